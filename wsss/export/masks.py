"""Masks in the formats of other tools: `wsss export masks` and `wsss predict --format`.

`FORMATS` has a writer for each name. A writer gets the photos one by one and then finishes; what it writes is at
`output`, a file or a folder. Background is no object, and 255 (not decided) neither: where a format has no value for
it, those pixels count as background, and the last line says how many.
"""

import base64
import io
import json
import os
import shutil
import zipfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from wsss.data.confidence import Confidence
from wsss.data.dataset import index_images
from wsss.data.files import (
    atomic_path,
    image_size,
    read_confidence,
    read_image,
    read_mask,
    write_csv,
    write_text,
)
from wsss.data.labels import BACKGROUND, IGNORE, image_id
from wsss.data.names import RECORD, classes_of
from wsss.data.palette import voc_palette
from wsss.errors import UserError

Binary = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Masked:
    """A photo and its mask."""

    id: str
    """Path without suffix below the folders, with "/"."""
    photo: Path
    name: str
    """The photo's path below its folder, with suffix."""
    mask: npt.NDArray[np.uint8]
    """(H, W): 0 background, 1.. classes, 255 not decided."""
    confidence: Confidence | None = None
    """Of the network that made it, if known."""

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Pixels of each value, (256,)."""
        return np.bincount(self.mask.ravel(), minlength=256)

    @cached_property
    def indices(self) -> list[int]:
        """Classes that have pixels."""
        return [index for index in np.flatnonzero(self.counts).tolist() if index not in (BACKGROUND, IGNORE)]

    def objects(self, components: bool, min_area: int) -> Iterator[tuple[int, Binary]]:
        """Class and pixels (H, W) of every object: a class each, or its 8-connected components."""
        for index in self.indices:
            whole = self.mask == index
            for part in parts_of(whole) if components else (whole,):
                if min_area <= 1 or int(part.sum()) >= min_area:
                    yield index, part


@dataclass
class Writer:
    """Writes one format.

    Args:
        output: the file or folder.
        classes: names by index, background first.
        components: an object for each 8-connected component, not for each class.
        min_area: smaller objects are left out (pixels).
        prefix: put before the photos' names, such as a URL.
    """

    output: Path
    classes: tuple[str, ...]
    components: bool = False
    min_area: int = 1
    prefix: str = ""
    undecided: int = 0
    """Pixels with 255 that became background."""
    keeps_undecided: bool = field(default=False, init=False)
    is_folder: bool = field(default=True, init=False)

    def add(self, item: Masked) -> None:
        """One photo."""
        if not self.keeps_undecided:
            self.undecided += int(item.counts[IGNORE])
        self.write(item)

    @abstractmethod
    def write(self, item: Masked) -> None:
        """One photo."""

    def finish(self) -> None:
        """After the last photo."""

    def discard(self) -> None:
        """After an error: remove what is half written."""

    def notes(self) -> list[str]:
        """What the user should know."""
        if not self.undecided:
            return []
        return [
            f"{self.undecided} pixels that were not decided (255) became background: this format has no value for them"
        ]


# -- formats ----------------------------------------------------------------------------------------


@dataclass
class Coco(Writer):
    """COCO's instances as one JSON, masks as compressed RLE (exact, with holes). Category = mask index, ids from 1."""

    def __post_init__(self) -> None:
        self.is_folder = False
        try:
            from pycocotools import mask as codec
        except ImportError as error:
            raise UserError('the format coco needs pycocotools: pip install "wsss[coco]"') from error
        self.codec = codec
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def write(self, item: Masked) -> None:
        """See `Writer`."""
        height, width = item.mask.shape
        number = len(self.images) + 1
        self.images.append(
            {"id": number, "file_name": f"{self.prefix}{item.name}", "height": height, "width": width}
        )
        for index, part in item.objects(self.components, self.min_area):
            code = self.codec.encode(np.asfortranarray(part.view(np.uint8)))
            self.annotations.append({
                "id": len(self.annotations) + 1, "image_id": number, "category_id": index, "iscrowd": 0,
                "area": int(self.codec.area(code)), "bbox": [float(value) for value in self.codec.toBbox(code)],
                "segmentation": {"size": [height, width], "counts": code["counts"].decode("ascii")},
            })  # fmt: skip

    def finish(self) -> None:
        """See `Writer`."""
        categories = [{"id": index, "name": name} for index, name in enumerate(self.classes) if index]
        tree = {"info": {}, "licenses": [], "images": self.images, "categories": categories}
        write_text(self.output, json.dumps({**tree, "annotations": self.annotations}))


_DATASET_CARD = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: [metadata.jsonl, "images/train/**", "masks/train/**"]
---
"""
"""Without it, Hugging Face takes only what lies in folders called train: photos and masks as one list of images."""


@dataclass
class Png(Writer):
    """Grey PNGs (mode L, 255 = ignore) beside the photos: images/train, masks/train, data.yaml (Ultralytics), and
    metadata.jsonl with a README.md that names it (Hugging Face)."""

    def __post_init__(self) -> None:
        self.keeps_undecided = True
        self.rows: list[dict[str, str]] = []

    def write(self, item: Masked) -> None:
        """See `Writer`."""
        target = self.output / "images" / "train" / item.name
        place(item.photo, target)
        mask = self.output / "masks" / "train" / f"{item.id}.png"
        save_png(mask, Image.fromarray(item.mask))
        self.rows.append(
            {"file_name": f"images/train/{item.name}", "mask_file_name": f"masks/train/{item.id}.png"}
        )

    def finish(self) -> None:
        """See `Writer`."""
        names = [f"  {index}: {json.dumps(name)}" for index, name in enumerate(self.classes)]
        lines = ["train: images/train", "val: images/train", "masks_dir: masks", "names:", *names]
        write_text(self.output / "data.yaml", "\n".join(lines) + "\n")
        write_text(self.output / "metadata.jsonl", "".join(f"{json.dumps(row)}\n" for row in self.rows))
        if not (self.output / "README.md").exists():
            write_text(self.output / "README.md", _DATASET_CARD)


@dataclass
class Yolo(Writer):
    """YOLO's polygons: labels/train/<id>.txt, a line for each component, class = index - 1. A hole is joined to the
    outline by a cut of no width."""

    wrong: int = 0

    def write(self, item: Masked) -> None:
        """See `Writer`."""
        place(item.photo, self.output / "images" / "train" / item.name)
        height, width = item.mask.shape
        lines = []
        for index, part in item.objects(True, self.min_area):
            outline = outline_of(part)
            drawn = cv2.fillPoly(np.zeros(part.shape, np.uint8), [outline], 1)
            self.wrong += int((drawn != part).sum())
            points = (outline + 0.25) / np.array(
                [width, height]
            )  # the same pixel for readers that round or cut
            lines.append(f"{index - 1} " + " ".join(f"{value:.6f}" for value in points.ravel()))
        write_text(
            self.output / "labels" / "train" / f"{item.id}.txt", "".join(f"{line}\n" for line in lines)
        )

    def finish(self) -> None:
        """See `Writer`."""
        names = [f"  {index - 1}: {json.dumps(name)}" for index, name in enumerate(self.classes) if index]
        lines = ["train: images/train", "val: images/train", "names:", *names]
        write_text(self.output / "data.yaml", "\n".join(lines) + "\n")

    def notes(self) -> list[str]:
        """See `Writer`."""
        wrong = [f"polygons draw {self.wrong} pixels in another way than the masks"] if self.wrong else []
        return [*super().notes(), *wrong]


@dataclass
class Cvat(Writer):
    """CVAT for images 1.1: one XML, a <mask> with RLE for every component (exact, with holes)."""

    def __post_init__(self) -> None:
        self.is_folder = False
        self.lines: list[str] = []
        self.count = 0

    def write(self, item: Masked) -> None:
        """See `Writer`."""
        height, width = item.mask.shape
        name = quoteattr(f"{self.prefix}{item.name}")
        self.lines.append(f'  <image id="{self.count}" name={name} width="{width}" height="{height}">')
        self.count += 1
        for index, part in item.objects(True, self.min_area):
            top, left, inside = box_of(part)
            runs = ", ".join(map(str, run_lengths(inside)))
            self.lines.append(
                f'    <mask label={quoteattr(self.classes[index])} source="auto" occluded="0" rle="{runs}" '
                f'left="{left}" top="{top}" width="{inside.shape[1]}" height="{inside.shape[0]}" z_order="0"></mask>'
            )
        self.lines.append("  </image>")

    def finish(self) -> None:
        """See `Writer`."""
        labels = [f"<label><name>{escape_text(name)}</name></label>" for name in self.classes[1:]]
        meta = f"  <meta><task><size>{self.count}</size><labels>{''.join(labels)}</labels></task></meta>"
        lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>", meta]
        write_text(self.output, "\n".join([*lines, *self.lines, "</annotations>", ""]))


@dataclass
class CvatMask(Writer):
    """CVAT's Segmentation mask 1.1: a zip of colour PNGs of classes and objects, and labelmap.txt."""

    def __post_init__(self) -> None:
        self.is_folder = False
        for name in self.classes:
            if ":" in name or name.startswith("#"):
                raise UserError(
                    f'the format cvat-mask cannot hold the class name "{name}": rename it without ":" and "#"'
                )
        self.colours = voc_palette()
        self.ids: list[str] = []
        self.temporary = self.output.with_name(f".{self.output.name}.{os.getpid()}.tmp")
        self.temporary.parent.mkdir(parents=True, exist_ok=True)
        self.archive = zipfile.ZipFile(self.temporary, "w", zipfile.ZIP_STORED)

    def write(self, item: Masked) -> None:
        """See `Writer`."""
        if item.id.startswith("#"):
            raise UserError(
                f'the format cvat-mask cannot hold the id "{item.id}": rename the photo without "#"'
            )
        mask = np.where(item.mask == IGNORE, BACKGROUND, item.mask)
        objects = np.zeros_like(mask)
        parts = [part for _, part in item.objects(True, 1)]
        if len(parts) > IGNORE - 1:
            parts = [part for _, part in item.objects(False, 1)]
        for number, part in enumerate(parts, 1):
            objects[part] = number
        for folder, values in (("SegmentationClass", mask), ("SegmentationObject", objects)):
            content = io.BytesIO()
            Image.fromarray(self.colours[values]).save(content, format="PNG")
            self.archive.writestr(f"{folder}/{item.id}.png", content.getvalue())
        self.ids.append(item.id)

    def finish(self) -> None:
        """See `Writer`."""
        colours = [",".join(map(str, self.colours[index].tolist())) for index in range(len(self.classes))]
        labels = [f"{name}:{colour}::" for name, colour in zip(self.classes, colours, strict=True)]
        self.archive.writestr("labelmap.txt", "# label:color_rgb:parts:actions\n" + "\n".join(labels) + "\n")
        self.archive.writestr("ImageSets/Segmentation/default.txt", "".join(f"{name}\n" for name in self.ids))
        self.archive.close()
        os.replace(self.temporary, self.output)

    def discard(self) -> None:
        """See `Writer`."""
        self.archive.close()
        self.temporary.unlink(missing_ok=True)


@dataclass
class LabelStudio(Writer):
    """Label Studio's predictions: brush RLE for every class, and the labelling configuration beside it."""

    def __post_init__(self) -> None:
        self.is_folder = False
        self.tasks: list[dict[str, Any]] = []

    def write(self, item: Masked) -> None:
        """See `Writer`."""
        height, width = item.mask.shape
        results = []
        for number, (index, part) in enumerate(item.objects(self.components, self.min_area)):
            value = {"format": "rle", "rle": brush_rle(part), "brushlabels": [self.classes[index]]}
            results.append({
                "id": f"t{len(self.tasks)}r{number}", "type": "brushlabels", "from_name": "mask", "to_name": "img",
                "original_width": width, "original_height": height, "image_rotation": 0, "value": value,
            })  # fmt: skip
        prediction = {"model_version": "wsss", "result": results}
        self.tasks.append({"data": {"image": f"{self.prefix}{item.name}"}, "predictions": [prediction]})

    def finish(self) -> None:
        """See `Writer`."""
        write_text(self.output, json.dumps(self.tasks))
        labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in self.classes[1:])
        view = '<View>\n  <Image name="img" value="$image"/>\n  <BrushLabels name="mask" toName="img">\n'
        config = f"{view}{labels}  </BrushLabels>\n</View>\n"
        write_text(self.output.with_suffix(".config.xml"), config)


@dataclass
class LabelMe(Writer):
    """LabelMe: a JSON for each photo, exact masks (shape_type mask) of the components."""

    def write(self, item: Masked) -> None:
        """See `Writer`."""
        target = self.output / item.name
        place(item.photo, target)
        shapes = []
        for number, (index, part) in enumerate(item.objects(True, self.min_area), 1):
            top, left, inside = box_of(part)
            content = io.BytesIO()
            Image.fromarray(inside).save(content, format="PNG")
            corners = [[left, top], [left + inside.shape[1] - 1, top + inside.shape[0] - 1]]
            shapes.append({
                "label": self.classes[index], "points": corners, "group_id": number, "description": "", "flags": {},
                "shape_type": "mask", "mask": base64.b64encode(content.getvalue()).decode("ascii"),
            })  # fmt: skip
        height, width = item.mask.shape
        tree: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": target.name,
            "imageData": None,
        }
        write_text(
            target.with_suffix(".json"), json.dumps({**tree, "imageHeight": height, "imageWidth": width})
        )


@dataclass
class CutOut(Writer):
    """Every object as RGBA PNG, cropped, alpha 255 inside; cutouts.csv has where each one was."""

    def __post_init__(self) -> None:
        self.rows: list[list[Any]] = [["file", "image", "class", "index", "x0", "y0", "x1", "y1"]]

    def write(self, item: Masked) -> None:
        """See `Writer`."""
        pixels = read_image(item.photo)
        for number, (index, part) in enumerate(item.objects(self.components, self.min_area), 1):
            top, left, inside = box_of(part)
            bottom, right = top + inside.shape[0], left + inside.shape[1]
            alpha = inside.astype(np.uint8)[..., None] * 255
            name = f"{item.id}_{number}_{self.classes[index].replace('/', '_')}.png"
            crop = np.concatenate([pixels[top:bottom, left:right] * (alpha > 0), alpha], axis=2)
            save_png(self.output / name, Image.fromarray(crop))
            self.rows.append([name, item.name, self.classes[index], index, left, top, right, bottom])

    def finish(self) -> None:
        """See `Writer`."""
        write_csv(self.output / "cutouts.csv", self.rows)


@dataclass
class Summary(Writer):
    """One CSV: a row for each photo and class, with pixels, share of the decided pixels, the network's mean probability
    where the mask's file has it (`wsss predict`), components and box."""

    def __post_init__(self) -> None:
        self.is_folder, self.keeps_undecided = False, True
        head = "image,class,index,pixels,share,mean_confidence,components,x0,y0,x1,y1"
        self.rows: list[list[Any]] = [head.split(",")]

    def write(self, item: Masked) -> None:
        """See `Writer`."""
        before = len(self.rows)
        decided = item.mask.size - int(item.counts[IGNORE])
        for index, part in item.objects(False, self.min_area):
            top, left, inside = box_of(part)
            count, pixels = len(list(parts_of(part))), int(part.sum())
            box = [left, top, left + inside.shape[1], top + inside.shape[0]]
            share = f"{pixels / decided:.6f}"
            sure = "" if item.confidence is None else f"{item.confidence.classes.get(index, 0):.6f}"
            self.rows.append([item.name, self.classes[index], index, pixels, share, sure, count, *box])
        if before == len(self.rows):
            self.rows.append([item.name, "", "", 0, "0", "", 0, "", "", "", ""])

    def finish(self) -> None:
        """See `Writer`."""
        write_csv(self.output, self.rows)


FORMATS: dict[str, type[Writer]] = {
    "coco": Coco,
    "png": Png,
    "yolo": Yolo,
    "cvat": Cvat,
    "cvat-mask": CvatMask,
    "labelstudio": LabelStudio,
    "labelme": LabelMe,
    "cutout": CutOut,
    "csv": Summary,
}
"""The names of the command line."""

ENDINGS = {"coco": ".json", "cvat": ".xml", "cvat-mask": ".zip", "labelstudio": ".json", "csv": ".csv"}
"""Of the formats that are one file."""


# -- masks to numbers -------------------------------------------------------------------------------


def parts_of(whole: Binary) -> Iterator[Binary]:
    """The 8-connected components (H, W) of a mask, top first."""
    count, labels = cv2.connectedComponents(whole.view(np.uint8), connectivity=8)
    for number in range(1, count):
        yield labels == number


def box_of(part: Binary) -> tuple[int, int, Binary]:
    """Top, left, and the pixels inside the tight box."""
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    top, left = int(rows[0]), int(columns[0])
    return top, left, part[top : rows[-1] + 1, left : columns[-1] + 1]


def run_lengths(part: Binary) -> list[int]:
    """Lengths of the runs of zeros and ones, row by row, zeros first (0 if it begins with a one)."""
    flat = part.ravel()
    ends = np.flatnonzero(np.diff(flat.view(np.int8))) + 1
    runs = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs


Points = npt.NDArray[np.int32]
"""Pixels (n, 2), x and y."""


def outline_of(part: Binary) -> Points:
    """Pixels (n, 2) x, y along the border of one component, at least three.

    One polygon with holes: the outline goes to the nearest hole on the shortest way, around it and back, until no hole
    is left. OpenCV and other readers that fill by the even-odd rule leave the holes empty.
    """
    found, levels = cv2.findContours(part.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [ring.reshape(-1, 2).astype(np.int32) for ring in found]
    outline = next(ring for ring, level in zip(rings, levels[0], strict=True) if level[3] < 0)
    holes = [ring for ring, level in zip(rings, levels[0], strict=True) if level[3] >= 0]
    ways = [_shortest(outline, hole) for hole in holes]
    while holes:
        chosen = min(range(len(holes)), key=lambda number: ways[number][0])
        (_, start, end), hole = ways.pop(chosen), holes.pop(chosen)
        loop = np.concatenate([hole[end:], hole[: end + 1]])
        outline = np.concatenate([outline[: start + 1], loop, outline[start:]])
        shift = len(loop) + 1
        for number, (length, place, there) in enumerate(ways):
            moved = place + shift * (place > start)
            near = _shortest(hole, holes[number])
            if near[0] < length:
                length, there = near[0], near[2]
                moved = start + 1 + (near[1] - end) % len(hole)
            ways[number] = (length, moved, there)
    return _corners(outline)


def _shortest(ring: Points, other: Points) -> tuple[float, int, int]:
    """The squared length of the shortest way between the points of two rings, and its ends."""
    pairs = cv2.BFMatcher(cv2.NORM_L2SQR).match(other.astype(np.float32), ring.astype(np.float32))
    best = min(pairs, key=lambda pair: float(pair.distance))
    return best.distance, best.trainIdx, best.queryIdx


def _corners(ring: Points) -> Points:
    """A ring without the points on straight ways, but with at least three."""
    steps = np.roll(ring, -1, 0) - ring
    kept = ring[(steps != np.roll(steps, 1, 0)).any(1)]
    points = kept if len(kept) else ring[:1]
    return np.concatenate([points, np.repeat(points[-1:], max(0, 3 - len(points)), axis=0)])


_RUN_BITS = (3, 4, 8, 16)


def brush_rle(part: Binary) -> list[int]:
    """Label Studio's bytes of a mask: runs over four equal channels a pixel, 0 and 255.

    32 bits: number of values; 5: bits of a value less one; 4 x 4: sizes of run lengths less one. Then for each run a 1,
    two bits for the size of its length, the length less one, and the value.
    """
    flat = part.ravel()
    ends = np.concatenate([np.flatnonzero(np.diff(flat.view(np.int8))) + 1, [flat.size]])
    starts = np.concatenate([[0], ends[:-1]])
    lengths, values = 4 * (ends - starts), np.where(flat[starts], 255, 0)
    longest = 1 << _RUN_BITS[-1]
    pieces = -(-lengths // longest)
    values = np.repeat(values, pieces)
    sizes = np.full(len(values), longest)
    sizes[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * longest
    kinds = np.searchsorted(1 << np.array(_RUN_BITS), sizes)
    bits = 3 + np.array(_RUN_BITS)[kinds] + 8
    head = [(4 * flat.size, 32), (7, 5), *((size - 1, 4) for size in _RUN_BITS)]
    begin = sum(width for _, width in head)
    offsets = begin + np.concatenate([[0], np.cumsum(bits)[:-1]])
    stream = np.zeros(-(-(begin + int(bits.sum())) // 8) * 8, np.uint8)
    at = 0
    for value, width in head:
        place_bits(stream, np.array([at]), np.array([value]), width)
        at += width
    for kind, width in enumerate(_RUN_BITS):
        chosen = kinds == kind
        codes = (((4 + kind) << width | (sizes[chosen] - 1)) << 8) | values[chosen]
        place_bits(stream, offsets[chosen], codes, 3 + width + 8)
    packed: list[int] = np.packbits(stream).tolist()
    return packed


def place_bits(
    stream: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], values: npt.NDArray[np.int64], width: int
) -> None:
    """Write numbers of so many bits, highest first, at bit offsets."""
    shifts = np.arange(width - 1, -1, -1)
    stream[offsets[:, None] + np.arange(width)] = (values[:, None] >> shifts) & 1


# -- files ------------------------------------------------------------------------------------------


def place(photo: Path, target: Path) -> None:
    """A photo in a data set: a hard link where the disk allows it, else a copy."""
    if target.exists() and os.path.samefile(photo, target):
        return
    with atomic_path(target) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(photo.resolve(), temporary)
        except OSError:
            shutil.copyfile(photo, temporary)


def save_png(path: Path, image: Image.Image) -> None:
    """Write a PNG with 8 bits a channel, atomically."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", bits=8)


def escape_text(text: str) -> str:
    """Text between XML tags."""
    return quoteattr(text)[1:-1]


# -- the command ------------------------------------------------------------------------------------


def find_pairs(masks: Path, photos: Path) -> list[tuple[str, Path, Path]]:
    """Id, mask and photo of every mask, sorted.

    Raises:
        UserError: no masks, or masks without a photo.
    """
    if not masks.is_dir():
        raise UserError(f"{masks} is not a folder of masks")
    if not photos.is_dir():
        raise UserError(f"{photos} is not a folder of photos; give it as --photos")
    own = (
        {masks / kind for kind in FORMATS} if (masks / RECORD).is_file() else set()
    )  # of `wsss predict --format`
    found = {
        image_id(path.relative_to(masks).as_posix()): path
        for path in sorted(masks.rglob("*.png"))
        if not path.name.startswith(".") and not own & set(path.parents)
    }
    if not found:
        raise UserError(f"{masks} has no <id>.png")
    known = index_images(photos, nested=True, exclude=[masks] if masks.is_relative_to(photos) else [])
    lost = [name for name in found if name not in known]
    if lost:
        raise UserError(
            f"{len(lost)} of {len(found)} masks have no photo in {photos}, such as {lost[0]}: give the folder with the "
            "photos that they are of as --photos"
        )
    return [(name, path, known[name]) for name, path in found.items()]


def export_masks(
    pairs: Sequence[tuple[str, Path, Path]],
    photos: Path,
    classes: tuple[str, ...],
    kind: str,
    output: Path,
    options: Mapping[str, Any] | None = None,
) -> str:
    """Write masks in a format of `FORMATS`.

    Args:
        pairs: of `find_pairs`.
        photos: the folder that the photos' names are relative to.
        classes: names by index, background first.
        kind: the name of the format.
        output: the file or folder.
        options: arguments of `Writer`.

    Returns:
        A summary for the user.

    Raises:
        UserError: a mask has another size than its photo, or an index without a class; or the output is there already
            and is something else.
    """
    is_folder = kind not in ENDINGS
    if output.exists() and output.is_dir() != is_folder:
        wanted = "a folder" if is_folder else "a file"
        raise UserError(
            f"{output} is there already, and the format {kind} writes {wanted}; choose another --output"
        )
    if is_folder and photos.resolve().is_relative_to(output.resolve()):
        raise UserError(
            f"{output} holds the photos, and files in it would be overwritten; choose another --output"
        )
    writer = FORMATS[kind](output, classes, **(options or {}))
    try:
        for name, path, photo in pairs:
            writer.add(_checked(name, path, photo, photos, len(classes)))
        writer.finish()
    except BaseException:
        writer.discard()
        raise
    return "\n".join([f"{output}: {len(pairs)} masks as {kind}", *writer.notes()])


def _checked(name: str, path: Path, photo: Path, photos: Path, classes: int) -> Masked:
    mask, size = read_mask(path), image_size(photo)
    if mask.shape != size:
        raise UserError(f"{path} has {mask.shape[::-1]} pixels, but {photo} has {size[::-1]}")
    below = os.path.relpath(photo, photos).replace(os.sep, "/")
    if below.startswith("../"):
        raise UserError(f"{photo} is not in {photos}")
    item = Masked(name, photo, below, mask, read_confidence(path))
    if item.indices and item.indices[-1] >= classes:
        raise UserError(
            f"{path} has the value {item.indices[-1]}, but there are only {classes - 1} classes; give their names as "
            "--classes"
        )
    return item


def export_folder(
    masks: Path, photos: Path, names: Path | None, kind: str, output: Path, options: Mapping[str, Any]
) -> str:
    """`export_masks` of two folders; the class names come from a list, from the masks' record, or are VOC's."""
    return export_masks(find_pairs(masks, photos), photos, classes_of([masks], names), kind, output, options)
