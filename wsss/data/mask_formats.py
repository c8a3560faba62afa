"""Masks that people drew or corrected in other tools: one reader for each format.

A reader gives `Drawn` photos, whose masks are painted when they are asked for. A photo without any region is one that
shows none of the classes, or one that nobody looked at, as in `tools`.
"""

import base64
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import yaml

from wsss.data.coco import coco_mask
from wsss.data.files import ARCHIVE_ERRORS, check_archive, read_mask
from wsss.data.labels import BACKGROUND, IGNORE, is_background
from wsss.data.names import recorded_classes
from wsss.data.palette import voc_palette
from wsss.data.regions import (
    Binary,
    Drawing,
    Drawn,
    Mask,
    Region,
    Size,
    brush,
    crop,
    drawn_of,
    outlined_polygon,
    pixels_of,
    polygon,
    relative_polygon,
)
from wsss.data.tools import (
    FORMATS,
    Options,
    as_written,
    bare_photos,
    coco_photos,
    decoded,
    is_image,
    json_of,
    xml_of,
    yolo_photos,
    yolo_rows,
)
from wsss.errors import UserError


@dataclass(frozen=True)
class MaskFormat:
    """One format."""

    title: str
    fits: Callable[[Path], bool]
    read: Callable[[Path, Options], Drawing]


# -- COCO, YOLO, CVAT -------------------------------------------------------------------------------


def _read_coco(path: Path, options: Options) -> Drawing:
    names, images = coco_photos(path)
    crowds = sum(bool(one.get("iscrowd")) for _, _, found in images for one in found)
    if crowds and options.crowds is None:
        raise UserError(
            f"{path} has {crowds} regions with iscrowd 1: in COCO they are groups that are not decided, but CVAT and "
            "supervision write masks that way; say --crowds ignore (255) or --crowds objects"
        )

    def painted(found: Sequence[Mapping[str, Any]]) -> Callable[[Size, Mapping[str, int]], Mask]:
        return lambda size, index: coco_mask(
            [
                {
                    **one,
                    "class": index[names[one["category_id"]]],
                    "iscrowd": one.get("iscrowd") and options.crowds == "ignore",
                }
                for one in found
            ],
            size,
            str(path),
        )

    photos = [
        Drawn(
            reference,
            frozenset(names[one["category_id"]] for one in found),
            painted(found),
            (int(image["height"]), int(image["width"])),
        )
        for reference, image, found in images
    ]
    return Drawing(photos, tuple(name for _, name in sorted(names.items())))


def _read_yolo(path: Path, options: Options) -> Drawing:
    names, pairs = yolo_photos(path)
    lost = sum(not text.is_file() for _, text in pairs)
    unknown = bool(lost) and bare_photos(path, options, lost, len(pairs), "mask") is None
    photos = []
    for image, text in pairs:
        reference = image.relative_to(path.parent).as_posix()
        if not text.is_file() and unknown:
            photos.append(Drawn(reference))
            continue
        rows = yolo_rows(text, names) if text.is_file() else []
        if any(len(values) < 6 or len(values) % 2 for _, values in rows):
            raise UserError(f"{text} has boxes, not polygons; export the data set for segmentation")
        regions = [Region(name, relative_polygon(values)) for name, values in rows]
        photos.append(drawn_of(reference, regions, small_last=True))
    return Drawing(photos, tuple(name for _, name in sorted(names.items())))


def _read_cvat(path: Path, options: Options) -> Drawing:
    root = xml_of(path)
    assert root is not None
    if root.find("track") is not None:
        raise UserError(f"{path} holds a video: export its frames as images (CVAT for images 1.1)")
    images = root.findall("image")
    bare = sum(all(shape.tag == "tag" for shape in image) for image in images)
    unknown = bool(bare) and bare_photos(path, options, bare, len(images), "mask") is None
    photos = []
    for image in images:
        size = int(image.attrib["height"]), int(image.attrib["width"])
        shapes = [shape for shape in image if shape.tag != "tag"]
        shapes.sort(key=lambda shape: int(shape.attrib.get("z_order", 0)))
        regions = [Region(shape.attrib["label"], _cvat_shape(shape, path, image)) for shape in shapes]
        if unknown and not shapes:
            photos.append(Drawn(image.attrib["name"], size=size))
        else:
            photos.append(drawn_of(image.attrib["name"], regions, size))
    names = [label.findtext("name") for label in root.findall("meta//labels/label")]
    return Drawing(photos, tuple(name for name in names if name) or None)


def _cvat_shape(shape: Element, path: Path, image: Element) -> Callable[[Size], Binary]:
    where = f"{path}: {image.attrib['name']}"
    if shape.tag == "polygon":
        pairs = [pair.split(",") for pair in shape.attrib["points"].split(";")]
        return polygon([float(value) for pair in pairs for value in pair], where)
    if shape.tag != "mask":
        raise UserError(
            f"{where} has a {shape.tag}, which is no mask: remove it, or make it a mask or a polygon"
        )
    left, top, width, height = (int(shape.attrib[key]) for key in ("left", "top", "width", "height"))
    runs = [int(run) for run in shape.attrib["rle"].split(",")]

    def inside() -> Binary:
        if min(runs) < 0 or sum(runs) != width * height:
            raise ValueError("run lengths that do not add up to their box")
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)

    return crop(inside, left, top, (height, width))


# -- Label Studio, LabelMe --------------------------------------------------------------------------


def _read_label_studio(path: Path, options: Options) -> Drawing:
    photos: list[Drawn] = []
    tagged: list[int] = []
    for task in json_of(path):
        images = [value for value in task["data"].values() if is_image(value)]
        if len(images) != 1:
            raise UserError(f"{path}: task {task.get('id')} names {len(images)} images, but must name one")
        given = task.get("annotations", task.get("completions", []))
        kept = [one for one in given if not one.get("was_cancelled")]
        if len(kept) > 1 and options.annotators != "newest":
            raise UserError(
                f"{path}: {images[0]} has {len(kept)} annotations; say --annotators newest, or leave one of them"
            )
        if not kept:
            photos.append(Drawn(images[0], skipped=bool(given)))
            continue
        newest = max(kept, key=lambda one: str(one.get("updated_at") or one.get("created_at") or ""))
        photo = _label_studio_photo(images[0], newest["result"], path)
        tagged += [len(photos)] if newest["result"] and not photo.names else []
        photos.append(photo)
    if tagged and bare_photos(path, options, len(tagged), len(photos), "mask") is None:
        for index in tagged:  # somebody chose tags for them, but drew nothing
            photos[index] = Drawn(photos[index].reference)
    return Drawing(photos)


def _label_studio_photo(reference: str, results: Sequence[Mapping[str, Any]], path: Path) -> Drawn:
    where = f"{path}: {reference}"
    shapes = [one for one in results if {"rle", "points", "x"} & set(one.get("value", {}))]
    sizes = {(int(one["original_height"]), int(one["original_width"])) for one in shapes}
    if len(sizes) > 1 or any(one.get("image_rotation") for one in shapes):
        raise UserError(f"{where} was turned, or has regions of several sizes, which wsss does not read")
    size = next(iter(sizes), None)
    regions, named = [], {one.get("id") for one in shapes if _labels(one)}
    for one in shapes:
        labels, value = _labels(one), one["value"]
        if not labels and one.get("id") in named:  # the label of this region is a result of its own
            continue
        if len(labels) != 1:
            raise UserError(f"{where} has a region with {len(labels)} labels, but must have one")
        assert size is not None  # there is a shape
        if "rle" in value:
            regions.append(Region(labels[0], _brush(value["rle"])))
        elif "points" in value:
            scale = (size[1] / 100, size[0] / 100)
            points = [number * scale[axis] for pair in value["points"] for axis, number in enumerate(pair)]
            regions.append(Region(labels[0], polygon(points, where)))
        else:
            raise UserError(
                f"{where} has a {one.get('type')}, which is no mask: remove it, or draw it with the brush"
            )
    return drawn_of(reference, regions, size)


def _brush(values: Sequence[int]) -> Callable[[Size], Binary]:
    return lambda size: brush(values, size)


def _labels(result: Mapping[str, Any]) -> list[str]:
    found = [value for key, value in result["value"].items() if key.endswith("labels")]
    return [str(name) for names in found for name in names]


def _read_labelme(path: Path, options: Options) -> Drawing:
    tree = json_of(path)
    size = int(tree["imageHeight"]), int(tree["imageWidth"])
    regions = [Region(str(shape["label"]), _labelme_shape(shape, path)) for shape in tree["shapes"]]
    return Drawing([drawn_of(f"{path.parent.name}/{tree['imagePath']}", regions, size)])


def _labelme_shape(shape: Mapping[str, Any], path: Path) -> Callable[[Size], Binary]:
    kind = shape.get("shape_type", "polygon")
    if kind == "polygon":
        return outlined_polygon([(float(x), float(y)) for x, y in shape["points"]], path)
    if kind != "mask":
        raise UserError(f"{path} has a {kind}, which is no mask: remove it, or draw a polygon")
    (left, top), (right, bottom) = ([round(value) for value in point] for point in shape["points"])
    content = base64.b64decode(shape["mask"])
    return crop(
        lambda: pixels_of(content, "L", str(path)) > 0, left, top, (bottom - top + 1, right - left + 1)
    )


# -- PNGs -------------------------------------------------------------------------------------------


def _translated(
    read: Callable[[], Mask], names: Sequence[str], where: str
) -> Callable[[Size, Mapping[str, int]], Mask]:
    """A mask of indices in other order; 255 stays."""

    def draw(size: Size, index: Mapping[str, int]) -> Mask:
        mask = read()
        table = np.full(256, IGNORE, np.uint8)
        table[: len(names)] = [index[name] for name in names]
        if (beyond := mask[(mask >= len(names)) & (mask != IGNORE)]).size:
            raise UserError(
                f"{where} holds the index {beyond.max()}, but there are only {len(names) - 1} classes"
            )
        return table[mask]

    return draw


def _is_png_set(path: Path) -> bool:
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return False
    try:
        tree = yaml.safe_load(decoded(path))
    except yaml.YAMLError:
        return False
    return (
        isinstance(tree, dict)
        and "names" in tree
        and (path.parent / str(tree.get("masks_dir", "masks"))).is_dir()
    )


def _read_png_set(path: Path, options: Options) -> Drawing:
    names, _ = yolo_photos(path)
    listed = [names[index] for index in range(len(names))]
    if not listed or not is_background(listed[0]):
        raise UserError(f"{path} must name the background as class 0")
    folder = path.parent / str(yaml.safe_load(decoded(path)).get("masks_dir", "masks"))
    return _of_folder(folder, listed, "images/")


def _read_folder(path: Path, options: Options) -> Drawing:
    found = recorded_classes(path)
    names = ("background", *options.classes) if options.classes else found and found[0]
    if not names:
        raise UserError(
            f"{path} has only indices and no class names: give the class list that they belong to as --classes FILE"
        )
    return _of_folder(path, names, "")


def _of_folder(folder: Path, names: Sequence[str], prefix: str) -> Drawing:
    files = sorted(file for file in folder.rglob("*.png") if not file.name.startswith("."))
    every = frozenset(names[1:])
    photos = [
        Drawn(
            f"{prefix}{file.relative_to(folder).as_posix()}",
            every,
            _translated(_reader(file), ("background", *names[1:]), str(file)),
        )
        for file in files
    ]
    return Drawing(photos, tuple(names[1:]))


def _reader(path: Path) -> Callable[[], Mask]:
    return lambda: read_mask(path)


def _is_plain_folder(path: Path) -> bool:
    return path.is_dir() and any(not file.name.startswith(".") for file in path.rglob("*.png"))


_CLASS_FOLDER = "SegmentationClass/"


def _members(path: Path) -> dict[str, Callable[[], bytes]]:
    """Names and contents of the files of a zip, or of the folder that a labelmap.txt is in."""
    if path.suffix.lower() == ".zip":
        check_archive(path)
        archive = zipfile.ZipFile(
            path
        )  # open as long as its members are: opening reads the list of all names
        return {name: _member(archive, path, name) for name in archive.namelist()}
    files = [file for file in sorted(path.parent.rglob("*")) if file.is_file()]
    return {file.relative_to(path.parent).as_posix(): file.read_bytes for file in files}


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> Callable[[], bytes]:
    def content() -> bytes:
        try:
            return archive.read(name)
        except ARCHIVE_ERRORS as error:
            raise UserError(f"{path} is damaged ({error}); export it again") from error

    return content


def _is_cvat_mask(path: Path) -> bool:
    if path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                return "labelmap.txt" in archive.namelist()
        except (zipfile.BadZipFile, OSError):
            return False
    return path.name == "labelmap.txt" and (path.parent / _CLASS_FOLDER).is_dir()


def _read_cvat_mask(path: Path, options: Options) -> Drawing:
    members = _members(path)
    lines = members["labelmap.txt"]().decode("utf-8-sig").splitlines()
    rows = [line.split(":") for line in lines if line.strip() and not line.startswith("#")]
    colours: dict[tuple[int, ...], str] = {}
    for number, row in enumerate(rows):  # datumaro leaves colours out where they are VOC's
        given = (int(value) for value in row[1].split(",")) if row[1] else voc_palette()[number].tolist()
        colour = tuple(given)
        if colours.setdefault(colour, row[0]) != row[0]:
            raise UserError(
                f"{path} gives {colours[colour]} and {row[0]} the same colour {colour}; change one of "
                "them in the tool, and export again"
            )
    names = tuple(name for name in colours.values() if not is_background(name))
    photos = [
        Drawn(
            name.removeprefix(_CLASS_FOLDER),
            frozenset(names),
            _of_colours(content, colours, f"{path}: {name}"),
        )
        for name, content in sorted(members.items())
        if name.startswith(_CLASS_FOLDER) and name.endswith(".png")
    ]
    return Drawing(photos, names)


def _of_colours(
    content: Callable[[], bytes], colours: Mapping[tuple[int, ...], str], where: str
) -> Callable[[Size, Mapping[str, int]], Mask]:
    def draw(size: Size, index: Mapping[str, int]) -> Mask:
        codes = pixels_of(content(), "RGB", where).astype(np.int64) @ (65536, 256, 1)
        mask = np.full(codes.shape, BACKGROUND, np.uint8)
        known = {tuple(voc_palette()[IGNORE].tolist()): IGNORE}
        known |= {
            colour: BACKGROUND if is_background(name) else index[name] for colour, name in colours.items()
        }
        found = np.unique(codes)
        for code in found.tolist():
            colour = (code >> 16, code >> 8 & 255, code & 255)
            if colour not in known:
                raise UserError(f"{where} has the colour {colour}, which labelmap.txt does not name")
            mask[codes == code] = known[colour]
        return mask

    return draw


MASK_FORMATS: dict[str, MaskFormat] = {
    "coco": MaskFormat("COCO's JSON", FORMATS["coco"].fits, _read_coco),
    "png": MaskFormat("a data set of grey PNGs with data.yaml", _is_png_set, _read_png_set),
    "yolo": MaskFormat("a YOLO data set", FORMATS["yolo"].fits, _read_yolo),
    "cvat": MaskFormat("CVAT for images 1.1", FORMATS["cvat"].fits, _read_cvat),
    "cvat-mask": MaskFormat("CVAT's Segmentation mask 1.1", _is_cvat_mask, _read_cvat_mask),
    "labelstudio": MaskFormat("Label Studio's JSON", FORMATS["labelstudio"].fits, _read_label_studio),
    "labelme": MaskFormat("LabelMe's JSON", FORMATS["labelme"].fits, _read_labelme),
}
"""The formats of files, under the names of the command line."""

PLAIN_FOLDER = MaskFormat("a folder of PNGs with class indices", _is_plain_folder, _read_folder)
"""Taken where nothing else fits."""


def read_drawing(form: MaskFormat, path: Path, options: Options) -> Drawing:
    """What a file says. Raises UserError where it is not as the tool writes it."""
    with as_written(path, form.title):
        return form.read(path, options)


def paint(drawn: Drawn, size: Size, index: Mapping[str, int], source: Path, title: str) -> Mask:
    """The mask of a photo (H, W).

    Raises:
        UserError: it is not as the tool writes it, or has another size than the photo.
    """
    assert drawn.draw is not None  # unknown photos are left out
    with as_written(source, title):
        if drawn.size is not None and drawn.size != size:
            found = drawn.size
        else:
            mask = drawn.draw(size, index)
            if mask.shape == size:
                return mask
            found = mask.shape[0], mask.shape[1]
    raise UserError(
        f"{source}: the mask of {drawn.reference} has {found[1]}x{found[0]} pixels, but the photo has "
        f"{size[1]}x{size[0]}; a mask must be as large as its photo"
    )
