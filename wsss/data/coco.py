"""COCO 2014 and 2017: instances as image labels and masks.

ROOT/annotations/instances_{train2014,val2014}.json    (one of them may be missing), or 2017
ROOT/{train2014,val2014}/<id>.jpg                      photos; the id is the file name without suffix

The pipeline reads labels and masks per image. The annotation files are hundreds of megabytes of JSON, which every
command would have to parse again. So the first use of a split writes what the pipeline needs, and later uses read only
that:

ROOT/SegmentationClass/<id>.png     mode-P masks, 0 = background, 1..80 = classes, 255 = ignore
ROOT/labels_<split>.csv             image,labels; written last: if it is newer than the JSON, all is done

This is a loader, not a converter to the VOC layout: photos stay where they are, and there is no second command to
learn.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from wsss.data.dataset import (
    Dataset,
    Labels,
    check_images,
    check_labelled,
    check_root,
    found_in,
    index_images,
    left_out,
    make_records,
    read_split,
    resolve_file,
)
from wsss.data.files import read_json, write_mask, write_text
from wsss.data.labels import BACKGROUND, IGNORE, check_id, image_id
from wsss.data.names import listed
from wsss.data.tags import read_label_csv
from wsss.data.voc import find_labels
from wsss.errors import UserError

YEARS = ("2014", "2017")

COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase",
    "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 classes in the order of COCO's category ids (1..90 with gaps): person is mask index 1."""

MOST_PIXELS = 178_956_970
"""Of a photo that Pillow decodes."""

Annotation = Mapping[str, Any]
"""One entry of the JSON's "annotations": category_id, iscrowd, segmentation."""


@dataclass(frozen=True)
class CocoImage:
    """One photo of the annotation file: id, (H, W) and its annotations."""

    id: str
    size: tuple[int, int]
    annotations: tuple[Annotation, ...]


def load_coco(root: Path, labels: str, classes: Path | None, train: str | None, val: str | None) -> Dataset:
    """Loads COCO; the first use of a split writes its masks and labels (see the module).

    Args:
        root: the folder that contains annotations, and train2014 and val2014, or those of 2017.
        labels: "xml" (the configuration's default) = the annotated categories, crowds included; or a CSV.
        classes: must be None: the masks have COCO's 80 classes.
        train: "train2014", "val2014" or a list file; None = train2014, or train2017 where there is no 2014.
        val: likewise; None = val2014 (val2017) if it exists and is not the training split.

    Raises:
        UserError: something is missing or inconsistent; the message names the file and the fix.
    """
    check_root(root)
    if classes is not None:
        raise UserError("data.kind coco has its own 80 classes: set data.classes to null")
    splits = _splits(root, {train, val})
    images: dict[str, Path] = {}
    known: Labels = {}
    members: dict[str, tuple[str, ...]] = {}
    for split in splits:
        images |= index_images(root / split, nested=False)
        listed = read_label_csv(_prepare(root, split), COCO_CLASSES, nested=False)
        members[split] = tuple(listed)
        known = {**known, **listed}
    source = "COCO's annotations"
    if labels != "xml":
        path = find_labels(root, labels)
        known, source = read_label_csv(path, COCO_CLASSES, nested=False), str(path)
    default = {part: f"{part}{splits[0][-4:]}" for part in ("train", "val")}
    train_ids = _ids(root, train or default["train"], members, images)
    has_val = default["val"] in members and default["val"] != train
    val_ids = _ids(root, val or (default["val"] if has_val else None), members, images)
    check_labelled(train_ids, known, source)
    masks = index_images(root / "SegmentationClass", nested=False)
    return Dataset(
        COCO_CLASSES,
        make_records(train_ids, images, known, masks),
        make_records(val_ids, images, known, masks),
        notes=tuple(note for split in splits for note in left_out(root / split, nested=False)),
    )


def _splits(root: Path, wanted: Collection[str | None]) -> list[str]:
    """The splits with annotations, of the years whose splits are `wanted` by name, or else of the first year found."""
    found = [
        split for year in YEARS for split in (f"train{year}", f"val{year}") if _json(root, split).is_file()
    ]
    if not found:
        raise UserError(
            f"{root} has no annotations/instances_train2014.json, …_val2014.json, …_train2017.json or …_val2017.json "
            f"({found_in(root)}): set --data.root to COCO's folder (see data/README.md)"
        )
    years = {split[-4:] for split in found if split in wanted} or {found[0][-4:]}
    return [split for split in found if split[-4:] in years]


def _json(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def _ids(
    root: Path, name: str | None, members: Mapping[str, tuple[str, ...]], images: Mapping[str, Path]
) -> tuple[str, ...]:
    if name is None:
        return ()
    if name in members:
        check_images(members[name], images, str(_json(root, name)))
        return members[name]
    path = resolve_file(name, root)
    if path is None:
        raise UserError(
            f'"{name}" is neither a split with annotations in {root} ({", ".join(members)}) nor a list file: '
            "set data.train and data.val to one of these"
        )
    return read_split(path, images, nested=False)


def _prepare(root: Path, split: str) -> Path:
    """The split's label CSV. If it is missing or older than the JSON, masks and CSV are written first."""
    source, target = _json(root, split), root / f"labels_{split}.csv"
    if target.is_file() and target.stat().st_mtime >= source.stat().st_mtime:
        return target
    images = read_instances(source)
    for image in tqdm(images, desc=f"masks of {split}, once", unit="image", disable=None):
        path = root / "SegmentationClass" / f"{image.id}.png"
        if not path.is_file() or path.stat().st_mtime < source.stat().st_mtime:
            write_mask(path, coco_mask(image.annotations, image.size, f"{source}: {image.id}"))
    stream = io.StringIO()
    rows = ((image.id, ";".join(_names(image.annotations))) for image in images)
    csv.writer(stream, lineterminator="\n").writerows([("image", "labels"), *rows])
    write_text(target, stream.getvalue())
    return target


def _names(annotations: Iterable[Annotation]) -> list[str]:
    return [COCO_CLASSES[index - 1] for index in sorted({item["class"] for item in annotations})]


def read_instances(path: Path) -> tuple[CocoImage, ...]:
    """Reads a file of COCO instances; every annotation gets the key "class", its mask index 1..80.

    File names may begin with the split's folder: "train2014/x.jpg".

    Raises:
        UserError: not a COCO instances file, a category that COCO does not have, a file name that leaves its folder.
    """
    content, folder = read_json(path), f"{path.stem.removeprefix('instances_')}/"
    try:
        index = _class_index(content["categories"], content["annotations"], path)
        found: dict[int, list[Annotation]] = defaultdict(list)
        for item in content["annotations"]:
            found[item["image_id"]].append({**item, "class": index[item["category_id"]]})
        return tuple(
            CocoImage(
                check_id(image_id(image["file_name"].rpartition(folder)[2]), str(path), nested=False),
                _size(image, path),
                tuple(found[image["id"]]),
            )
            for image in content["images"]
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path} is not a COCO instances file ({type(error).__name__}: {error}): download it again"
        ) from error


def _size(image: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """(H, W) of an image of the JSON, for whose mask memory is taken."""
    height, width = int(image["height"]), int(image["width"])
    if min(height, width) < 1 or height * width > MOST_PIXELS:
        raise UserError(
            f"{path} says that {image['file_name']} has {width}x{height} pixels: correct it or download the file again"
        )
    return height, width


def _class_index(
    categories: Sequence[Mapping[str, Any]], annotations: Iterable[Annotation], path: Path
) -> dict[int, int]:
    """Category id -> mask index 1..80."""
    used = Counter(item["category_id"] for item in annotations)
    unknown = {item["name"]: used[item["id"]] for item in categories if item["name"] not in COCO_CLASSES}
    if unknown:
        raise UserError(
            f"{path} has categories that COCO does not have: {listed(unknown, COCO_CLASSES, 'object')}; use data.kind "
            "voc or folder for other classes"
        )
    return {category["id"]: COCO_CLASSES.index(category["name"]) + 1 for category in categories}


def coco_mask(annotations: Sequence[Annotation], size: tuple[int, int], where: str) -> npt.NDArray[np.uint8]:
    """The class mask of an image's instances.

    Where instances overlap, the smaller one (in pixels) is on top: it is in front, or a part of the other. Regions of
    crowds (iscrowd = 1) are 255, below all instances.

    Args:
        annotations: with "class", "iscrowd" and "segmentation" (polygons or run lengths).
        size: (H, W) of the photo.
        where: file and image, for messages.

    Returns:
        (H, W) uint8: 0 = background, 1..80, 255 = ignore.

    Raises:
        UserError: a segmentation is malformed, or pycocotools is not installed.
    """
    regions = [
        (not item.get("iscrowd"), region(item.get("segmentation"), size, where), item["class"])
        for item in annotations
    ]
    mask = np.full(size, BACKGROUND, np.uint8)
    for instance, pixels, cls in sorted(regions, key=lambda entry: (entry[0], -entry[1].sum())):
        mask[pixels] = cls if instance else IGNORE
    return mask


def region(segmentation: Any, size: tuple[int, int], where: str) -> npt.NDArray[np.bool_]:
    """Pixels (H, W) bool of one COCO segmentation: polygons, or run lengths (plain or compressed).

    Raises:
        UserError: it is malformed or of another size, or pycocotools is not installed.
    """
    codec = _codec()
    height, width = size
    try:
        if isinstance(segmentation, Mapping):
            if list(segmentation["size"]) != [height, width]:
                raise ValueError(f"run lengths of size {segmentation['size']} on {[height, width]} pixels")
            plain = isinstance(segmentation["counts"], list)
            if plain and (min(segmentation["counts"]) < 0 or sum(segmentation["counts"]) != height * width):
                raise ValueError("run lengths that do not add up to the image")
            parts = [codec.frPyObjects(segmentation, height, width) if plain else segmentation]
        else:
            # pycocotools would take four numbers for a box.
            if any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
                raise ValueError("a polygon needs three points or more")
            # It asks for memory by the length of an outline, and does not look whether it got it.
            if not all(abs(value) <= 2 * max(size) for polygon in segmentation for value in polygon):
                raise ValueError("a polygon leaves the image by far")
            parts = codec.frPyObjects(segmentation, height, width) if segmentation else []
        return np.asarray(codec.decode(codec.merge(parts)), np.bool_) if parts else np.zeros(size, np.bool_)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{where} has a segmentation that cannot be read ({error}): correct it or download the file again"
        ) from error


def _codec() -> ModuleType:
    try:
        import pycocotools.mask
    except ImportError as error:
        raise UserError(
            'COCO\'s masks need pycocotools: run pip install "pycocotools>=2.0.8" (or pip install "wsss[coco]")'
        ) from error
    module: ModuleType = pycocotools.mask
    return module
