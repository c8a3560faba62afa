"""The PASCAL VOC devkit layout (2007 and 2012), and other data sets in that layout.

ROOT/JPEGImages/<id>.jpg             photos
ROOT/Annotations/<id>.xml            image labels (or a CSV)
ROOT/SegmentationClass/<id>.png      masks, for scoring only; may be missing
ROOT/ImageSets/Segmentation/*.txt    splits; ROOT/ImageSets/Main/*.txt are found too
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from wsss.data.agreement import compare_names, indices
from wsss.data.dataset import (
    Dataset,
    check_images,
    check_labelled,
    check_root,
    first,
    found_in,
    index_images,
    left_out,
    make_records,
    read_split,
    resolve_file,
    strays,
    unlabelled,
)
from wsss.data.findings import settle
from wsss.data.labels import VOC_CLASSES, annotation_files, read_ids, xml_names
from wsss.data.names import read_classes
from wsss.data.tags import read_label_csv
from wsss.errors import UserError

SPLIT_FOLDERS = ("ImageSets/Segmentation", "ImageSets/Main")


def load_voc(root: Path, labels: str, classes: Path | None, train: str | None, val: str | None) -> Dataset:
    """Loads a data set in devkit layout.

    Args:
        root: the folder that contains JPEGImages (VOCdevkit/VOC2012, not VOCdevkit).
        labels: "xml" for Annotations/*.xml ("difficult" objects count as present), or a CSV: absolute,
            relative to the working directory, or to `root`.
        classes: text file of class names; None = the 20 VOC classes.
        train: a split name, a list file (for train_aug), or None = every labelled image that is not in val.
        val: a split name, a list file, or None = the split "val" if it exists, else no validation images.

    Returns:
        Train records all have labels (maybe ()), val records may have None; missing masks are None.

    Raises:
        UserError: something is missing or inconsistent; the message names the file and the fix.
    """
    check_root(root)
    images = _images(root)
    names = read_classes(_class_file(root, classes))
    val_ids = _val_ids(root, val, images)
    train_ids = None if train is None else read_split(find_split(root, train), images, nested=False)
    notes = left_out(root / "JPEGImages", nested=False)
    if labels == "xml":
        source, candidates = root / "Annotations", _all_ids(root, images)
        _check_annotations(root)
        files = annotation_files(source)
        wanted = {*candidates, *(train_ids or ()), *val_ids}
        found = {name: xml_names(path) for name, path in files.items() if name in wanted}
        notes += settle(compare_names(found, names, source, chosen=classes is not None))
        known = indices(found, names)
    else:
        source = find_labels(root, labels)
        known = read_label_csv(source, names, nested=False)
        candidates = tuple(known)
    if train_ids is None:
        excluded = set(val_ids)
        train_ids = tuple(name for name in candidates if name in known and name not in excluded)
        check_images(train_ids, images, str(source))
        notes += unlabelled(candidates if labels == "xml" else images, {*train_ids, *val_ids}, source)
    check_labelled(train_ids, known, str(source))
    folder = root / "SegmentationClass"
    masks = index_images(folder, nested=False)
    return Dataset(
        names,
        make_records(train_ids, images, known, masks),
        make_records(val_ids, images, known, masks),
        notes=(*notes, *strays(masks, images, folder)),
    )


def _images(root: Path) -> dict[str, Path]:
    images = index_images(root / "JPEGImages", nested=False)
    if images:
        return images
    deeper = sorted(path.parent for path in root.glob("*/JPEGImages")) or sorted(
        path.parent for path in root.glob("*/*/JPEGImages")
    )
    fix = f"set --data.root {deeper[0]}" if deeper else "see data/README.md for the layout"
    raise UserError(
        f"{root} has no photos in JPEGImages/, which the VOC layout needs ({found_in(root)}): {fix}"
    )


def _class_file(root: Path, classes: Path | None) -> Path | None:
    """The configured class list. Refuses VOC's list if the data set comes with another one."""
    own = root / "classes.txt"
    if classes is None and own.is_file() and read_classes(own) != VOC_CLASSES:
        raise UserError(f"{own} lists classes other than VOC's 20: set --data.classes {own}")
    return classes


def find_labels(root: Path, labels: str) -> Path:
    """The label CSV that `data.labels` names. Raises UserError if there is none."""
    path = resolve_file(labels, root)
    if path is None:
        raise UserError(
            f'{labels} does not exist (nor in {root}): set --data.labels to a CSV "image,labels" or to xml'
        )
    return path


def find_split(root: Path, name: str) -> Path:
    """The list file of a split: its name in ImageSets/Segmentation or ImageSets/Main, or a path.

    Raises:
        UserError: neither exists; the message lists the names that do.
    """
    for folder in SPLIT_FOLDERS:
        path = root / folder / f"{name}.txt"
        if path.is_file():
            return path
    path_given = resolve_file(name, root)
    if path_given is not None:
        return path_given
    known = sorted({path.stem for folder in SPLIT_FOLDERS for path in (root / folder).glob("*.txt")})
    raise UserError(
        f'"{name}" is neither a split in {root}/ImageSets/Segmentation nor a list file: '
        f"set data.train and data.val to one of the splits there ({first(known, 6) or 'none'}) or to a file"
    )


def _val_ids(root: Path, val: str | None, images: Mapping[str, Path]) -> tuple[str, ...]:
    if val is None and not (root / SPLIT_FOLDERS[0] / "val.txt").is_file():
        return ()
    return read_split(find_split(root, "val" if val is None else val), images, nested=False)


def _all_ids(root: Path, images: Iterable[str]) -> tuple[str, ...]:
    """The images whose annotations are complete: both trainval lists, or every image if there are no lists.

    VOC 2012 also holds photos of the action and person-layout tasks, in which only people are annotated,
    and the test photos of 2007 are in the same folder. Neither may become training images.
    """
    lists = [path for folder in SPLIT_FOLDERS if (path := root / folder / "trainval.txt").is_file()]
    if not lists:
        return tuple(images)
    return tuple(sorted({identifier for path in lists for identifier in read_ids(path, nested=False)}))


def _check_annotations(root: Path) -> None:
    if (root / "Annotations").is_dir():
        return
    csv = root / "labels.csv"
    fix = f"set --data.labels {csv}" if csv.is_file() else "add that folder, or set --data.labels to a CSV"
    raise UserError(f"{root} has no Annotations folder for data.labels=xml ({found_in(root)}): {fix}")
