"""Loading the data set that a configuration names: one function for each ``data.kind``."""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from wsss.data.coco import load_coco
from wsss.data.dataset import Dataset, check_root, walk_images
from wsss.data.files import read_json
from wsss.data.folder import load_folder
from wsss.data.imagenet import load_imagenet
from wsss.data.importing import load_export
from wsss.data.shapes import MARKER
from wsss.data.voc import load_voc
from wsss.errors import UserError

Loader = Callable[[Path, str, Path | None, str | None, str | None], Dataset]
"""(root, labels, classes, train, val), as in `load_dataset`."""


def load_shapes(root: Path, labels: str, classes: Path | None, train: str | None, val: str | None) -> Dataset:
    """The procedural data set: VOC's layout, with its own classes.txt and labels.csv in ``root``."""
    own = str(root / "labels.csv") if (root / "labels.csv").is_file() else "xml"
    return load_voc(root, own if labels == "xml" else labels, classes or root / "classes.txt", train, val)


def load_auto(root: Path, labels: str, classes: Path | None, train: str | None, val: str | None) -> Dataset:
    """VOC's or COCO's layout, a folder with its own labels.csv, or the export of a labelling tool, by what is there."""
    check_root(root)
    if (root / "JPEGImages").is_dir():
        return load_voc(root, labels, classes, train, val)
    if any(root.glob("annotations/instances_*20*.json")):
        return load_coco(root, labels, classes, train, val)
    if labels != "xml" or classes is not None or _is_own(root / "labels.csv"):
        return load_folder(root, labels, classes, train, val)
    try:
        return load_export(root, train, val)
    except UserError as error:
        raise UserError(f"{error} (the options are those of: wsss data import {root} NEW_FOLDER)") from error


def _is_own(path: Path) -> bool:
    """Whether a file is a label CSV of `load_folder`, by its header."""
    if not path.is_file():
        return False
    head = path.read_bytes().partition(b"\n")[0].decode("utf-8-sig", errors="replace").strip().lower()
    return head.replace(";", ",").replace(" ", "") == "image,labels"


LOADERS: dict[str, Loader] = {
    "shapes": load_shapes,
    "voc": load_voc,
    "folder": load_folder,
    "coco": load_coco,
    "imagenet": load_imagenet,
    "auto": load_auto,
}
"""``data.kind`` -> its loader."""


def check_layout(kind: str, root: Path) -> None:
    """Compares the folder with `data.kind`, which is `shapes` until someone sets it.

    Raises:
        UserError: `root` holds another kind of data set; the message names that kind.
    """
    marker = read_json(root / MARKER) if (root / MARKER).is_file() else None
    own = {
        "shapes": isinstance(marker, dict) and marker.get("layout", "voc") == "voc",
        "voc": (root / "JPEGImages").is_dir(),
        "coco": any(root.glob("annotations/instances_*20*.json")),
        "folder": (root / "images").is_dir()
        or any(root.glob("*.csv"))
        or bool(walk_images(root, nested=False)),
    }
    found = next((other for other, holds in own.items() if holds), None)
    if found and not own.get(kind, True):
        raise UserError(
            f"{root} looks like a data set of another kind, but data.kind is {kind}: set --data.kind {found}"
        )


def load_dataset(
    kind: str, root: Path, labels: str, classes: Path | None, train: str | None, val: str | None
) -> Dataset:
    """Loads the data set that the configuration keys ``data.*`` name.

    Args:
        kind: one of ``LOADERS``.
        root: folder of the data set.
        labels: "xml" or the path of a CSV (imagenet: of a list ``name index``).
        classes: the class list; None = the 20 VOC classes, or root/classes.txt for "folder" and "shapes".
        train: a split name, a list file, or None.
        val: likewise.

    Raises:
        UserError: an unknown kind, or anything that the loader of that kind finds wrong.
    """
    if kind not in LOADERS:
        near = get_close_matches(kind, LOADERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f'data.kind is "{kind}", but must be one of {", ".join(LOADERS)}{hint}')
    return LOADERS[kind](root, labels, classes, train, val)
