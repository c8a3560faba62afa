"""Your own photos: a folder of images, a CSV of tags, a class list; masks are optional.

ROOT/images/**/<name>.jpg   (or directly in ROOT; jpg, png, webp, bmp, tif, gif, heic, avif)
ROOT/labels.csv             image,labels
ROOT/classes.txt            one class per line; without it: the sorted labels of the CSV
ROOT/masks/**/<name>.png    optional, for scoring only
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from wsss.data.dataset import (
    Dataset,
    check_images,
    check_labelled,
    check_root,
    found_in,
    index_images,
    left_out,
    make_records,
    read_split,
    resolve_file,
    strays,
    unlabelled,
)
from wsss.data.files import check_mask_header
from wsss.data.labels import PHOTO_KINDS
from wsss.data.names import read_classes
from wsss.data.tags import LabelRow, read_csv_classes, read_label_csv, read_label_rows
from wsss.errors import UserError

VAL_SHARE = 0.1
"""Share of the labelled images that become val unless a list says otherwise."""


def load_folder(root: Path, labels: str, classes: Path | None, train: str | None, val: str | None) -> Dataset:
    """Loads a folder of photos with a CSV of tags.

    An image's id is its path below the image folder without suffix ("beach/one"). Photos that the CSV does
    not mention are not trained on; photos with an empty cell contain none of the classes.

    Args:
        root: the folder.
        labels: path of the CSV, absolute, relative to the working directory, or to `root`; "xml" (the
            configuration's default) means root/labels.csv.
        classes: the class list; None = root/classes.txt, or the labels of the CSV, sorted.
        train: a list file or the <name> of root/<name>.txt; None = every labelled image that is not in val.
        val: likewise; None with a train list = every labelled image that is not in it, None without one = about a tenth
            of the labelled images, chosen by a hash of the id, so that the choice stays when images are added.

    Raises:
        UserError: something is missing or inconsistent; the message names the file and the fix.
    """
    check_root(root)
    images = index_folder(root)
    path = find_csv(root, labels)
    rows = read_label_rows(path)
    names = folder_classes(root, classes, path, rows)
    known = read_label_csv(path, names, rows=rows)
    check_images(known, images, str(path))
    train_ids = None if train is None else read_split(find_list(root, train), images, nested=True)
    val_ids = None if val is None else read_split(find_list(root, val), images, nested=True)
    if train_ids is None and val_ids is None:
        train_ids, val_ids = hash_split(tuple(known))
    elif train_ids is None:
        train_ids = _others(known, val_ids or ())
    elif val_ids is None:
        val_ids = _others(known, train_ids)
    check_labelled(train_ids, known, str(path))
    masks, notes = index_masks(root, images)
    notes += left_out(image_folder(root), nested=True, exclude=(root / "masks",))
    if train is None:
        notes += unlabelled(images, {*train_ids, *(val_ids or ())}, path)
    return Dataset(
        names,
        make_records(train_ids, images, known, masks),
        make_records(val_ids or (), images, known, masks),
        notes=notes,
    )


def _others(known: Mapping[str, object], taken: Sequence[str]) -> tuple[str, ...]:
    excluded = set(taken)
    return tuple(name for name in known if name not in excluded)


def image_folder(root: Path) -> Path:
    """root/images, or `root` itself where that does not exist."""
    return root / "images" if (root / "images").is_dir() else root


def index_folder(root: Path) -> dict[str, Path]:
    """Image id -> photo. Raises UserError if there is no photo or two photos share an id."""
    images = index_images(image_folder(root), nested=True, exclude=(root / "masks",))
    if not images:
        raise UserError(
            f"{image_folder(root)} holds no photos ({PHOTO_KINDS}; {found_in(image_folder(root))}): "
            f"put them into {root / 'images'} (see data/README.md)"
        )
    return images


def index_masks(root: Path, images: Mapping[str, Path]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Image id -> true mask, for those photos that have one, and `strays`. Only headers are read.

    Raises:
        UserError: no mask has the name of a photo; or a mask is not a palette or grey image of its photo's size, which
            would otherwise be found only after the training.
    """
    found = index_images(root / "masks", nested=True)
    masks = {identifier: path for identifier, path in found.items() if identifier in images}
    if found and not masks:
        other = next(iter(found.values()))
        raise UserError(
            f"no mask in {root / 'masks'} has the name of a photo ({other.name} is one of {len(found)}): name the "
            "masks after their photos, with .png, or remove the folder"
        )
    for identifier, path in masks.items():
        check_mask_header(path, images[identifier])
    return masks, strays(found, images, root / "masks")


def find_csv(root: Path, labels: str) -> Path:
    """The label CSV of a folder data set. Raises UserError if there is none."""
    wanted = root / "labels.csv" if labels == "xml" else Path(labels)
    path = resolve_file(wanted, root)
    if path is None:
        others = sorted(file.name for file in root.glob("*.csv"))
        fix = f"--data.labels {others[0]}" if len(others) == 1 else "--data.labels to another"
        raise UserError(
            f'{root / wanted} does not exist: write a CSV with the header "image,labels" ({found_in(root)}), '
            f"or set {fix}"
        )
    return path


def folder_classes(
    root: Path, classes: Path | None, labels: Path, rows: Sequence[LabelRow] | None = None
) -> tuple[str, ...]:
    """The class list: the configured one, root/classes.txt, or what the CSV (with these rows) implies."""
    if classes is None and not (root / "classes.txt").is_file():
        return read_csv_classes(labels, rows)
    return read_classes(classes or root / "classes.txt")


def find_list(root: Path, name: str) -> Path:
    """The list file `name`, or root/<name>.txt. Raises UserError if neither exists."""
    named = root / f"{name}.txt"
    path = named if named.is_file() else resolve_file(name, root)
    if path is None:
        raise UserError(
            f'"{name}" is not a list file, and {named} does not exist: write the ids there, one per line, or set '
            "data.train and data.val to null for a split of 9 to 1"
        )
    return path


def hash_split(ids: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Splits ids into (train, val), each in the given order, by SHA-256 of the id.

    Every id's side depends on the id alone, except in tiny sets: at least one image (of two or more) is
    val, and at most half of them.
    """
    ranked = sorted((_position(identifier), identifier) for identifier in ids)
    share = sum(position < VAL_SHARE for position, _ in ranked)
    val = {identifier for _, identifier in ranked[: min(max(share, 1), len(ids) // 2)]}
    return tuple(name for name in ids if name not in val), tuple(name for name in ids if name in val)


def _position(identifier: str) -> float:
    """A fixed pseudo-random number in [0, 1) for an id (SHA-256: the same on every machine)."""
    return int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:8], "big") / 2**64
