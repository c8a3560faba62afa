"""ImageNet's validation images, for drop, increase, insertion and deletion: labels, no masks, no training.

Either one folder per class:

ROOT/<wnid>/*.JPEG          class index = rank of the folder's name, as torchvision's ImageFolder counts
ROOT/<number>/*.JPEG        class index = the number itself (0..999; leading zeros allowed)

or a flat folder and a list file (data.labels) with lines `name index`, index from 0:

ROOT/ILSVRC2012_val_00000001.JPEG

Logit k of a classifier is class index k here and label k + 1 in the records (0 is background everywhere in
this package). All images are in `Dataset.val`; `Dataset.evaluation_only` is set.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from wsss.data.dataset import (
    Dataset,
    Labels,
    check_images,
    check_labelled,
    check_root,
    first,
    found_in,
    index_images,
    make_records,
    read_split,
    resolve_file,
)
from wsss.data.labels import check_id, image_id, read_text
from wsss.errors import UserError

CLASSES = 1000
"""Number of classes of ILSVRC 2012."""


def load_imagenet(
    root: Path, labels: str, classes: Path | None, train: str | None, val: str | None
) -> Dataset:
    """Loads ImageNet's validation images, or some of them.

    Args:
        root: folder of class folders or of images.
        labels: "xml" (the configuration's default) = class folders; else the list file `name index`.
        classes: text file with one folder name per line, in the order of the class indices; only the first
            word counts, so that `n01440764 tench, …` does. It is needed if there are only some of the 1,000 wnids and
        the classifier knows all of them. None = the rule of the module. train: must be None. val: a list file of image
        ids (<folder>/<name>); None = all images.

    Raises:
        UserError: something is missing or inconsistent; the message names the file and the fix.
    """
    check_root(root)
    if train is not None:
        raise UserError("data.kind imagenet is for evaluation only: set data.train to null")
    if labels != "xml" and classes is not None:
        raise UserError(
            "data.classes is for class folders, data.labels for a list: set one of them to its default"
        )
    images = index_images(root, nested=True)
    if not images:
        raise UserError(f"{root} has no images ({found_in(root)}): see data/README.md for the layout")
    if labels == "xml":
        source = root
        indices, names = _by_folder(root, images, classes)
    else:
        source = _file(root, labels, "data.labels")
        indices, names = read_indices(source), imagenet_names()
        check_images(indices, images, str(source))
    known: Labels = {identifier: (index + 1,) for identifier, index in indices.items()}
    ids = tuple(known)
    if val is not None:
        ids = read_split(_file(root, val, "data.val"), images, nested=True)
        check_labelled(ids, known, str(source), "data.val")
    return Dataset(names, (), make_records(ids, images, known, {}), evaluation_only=True)


def imagenet_names() -> tuple[str, ...]:
    """The 1,000 class names in the order of the logits of torchvision's classifiers."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return tuple(_IMAGENET_CATEGORIES)


def _by_folder(
    root: Path, images: Mapping[str, Path], classes: Path | None
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Class index of every image, and the class names."""
    loose = [identifier for identifier in images if "/" not in identifier]
    if loose:
        raise UserError(
            f"{root} has images outside class folders ({first(loose)}): set data.labels to a list `name index`, "
            "or put them into folders"
        )
    folders = sorted({identifier.partition("/")[0] for identifier in images})
    order = _folder_indices(folders, root) if classes is None else _read_order(classes)
    unknown = [folder for folder in folders if folder not in order]
    if unknown:
        raise UserError(
            f"{classes} does not list the folder {unknown[0]} of {root}: add it in the right place"
        )
    indices = {identifier: order[identifier.partition("/")[0]] for identifier in images}
    numbered = classes is None and all(folder.isdecimal() for folder in folders)
    wnids = len(order) == CLASSES and all(re.fullmatch(r"n\d{8}", folder) for folder in order)
    return indices, imagenet_names() if numbered or wnids else tuple(order)


def _folder_indices(folders: Sequence[str], root: Path) -> dict[str, int]:
    if not all(folder.isdecimal() for folder in folders):
        if len(folders) > CLASSES:
            raise UserError(f"{root} has {len(folders)} class folders: expected at most {CLASSES}")
        return {folder: rank for rank, folder in enumerate(folders)}
    beyond = [folder for folder in folders if int(folder) >= CLASSES]
    if beyond:
        raise UserError(f"{root} has the folder {beyond[0]}: class indices are 0..{CLASSES - 1}")
    return {folder: int(folder) for folder in folders}


def _read_order(path: Path) -> dict[str, int]:
    """Folder name -> class index, from a file with one folder per line (its first word)."""
    names = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
    twice = [name for name in names if names.count(name) > 1]
    if not names or twice or len(names) > CLASSES:
        problem = f"lists {twice[0]} twice" if twice else f"lists {len(names)} folders"
        raise UserError(f"{path} {problem}: write 1 to {CLASSES} folder names, one per line, in class order")
    return {name: index for index, name in enumerate(names)}


def read_indices(path: Path) -> dict[str, int]:
    """Reads a list of lines `name index` with class indices from 0: image id -> class index.

    Raises:
        UserError: naming the line: no such file, another form, an index out of range, an image twice.
    """
    indices: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        name, _, index = line.strip().rpartition(" ")
        if not index.isdecimal() or int(index) >= CLASSES:
            raise UserError(f"{path}:{number}: {line.strip()!r}: write `name index`, index 0..{CLASSES - 1}")
        identifier = check_id(image_id(name.strip()), f"{path}:{number}")
        if identifier in indices:
            raise UserError(f"{path}:{number}: {identifier} is listed twice: remove one of the lines")
        indices[identifier] = int(index)
    if not indices:
        raise UserError(f"{path} lists no images: write lines `name index`")
    return indices


def _file(root: Path, name: str, option: str) -> Path:
    path = resolve_file(name, root)
    if path is None:
        raise UserError(f"{name} does not exist (nor in {root}): set {option} to a list file")
    return path
