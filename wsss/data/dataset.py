"""What a data set is for the rest of the package: a class list and the records of two splits."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsss.data.labels import IMAGE_SUFFIXES, PHOTO_KINDS, check_classes, image_id, read_ids
from wsss.errors import UserError

Labels = Mapping[str, tuple[int, ...]]

NOTES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".db", ".ini")
"""Endings of files beside photos that nobody takes for one."""


@dataclass(frozen=True)
class Record:
    """One photo.

    Attributes:
        id: name of everything that is written for it, "/" between folders.
        image: the photo's file.
        labels: sorted mask indices 1..C of the classes it contains; () for none of them, None if unknown.
        mask: its ground truth (mode-P or L PNG), None if there is none. For scoring, never for training.
    """

    id: str
    image: Path
    labels: tuple[int, ...] | None
    mask: Path | None


@dataclass(frozen=True)
class Dataset:
    """Class names (index 1 first, without background) and the records of both splits; val may be empty.

    An `evaluation_only` data set (ImageNet's val) has its images in val, nothing to train on, no masks, and
    any number of classes; commands that train refuse it (`check_trainable`). `notes` are sentences for the user: files
    and names that are left out. `looked_at` is a digest of the photos whose headers were read. The manifest keeps it,
    so that they are not read at every start.

    Raises:
        UserError: no training image, an invalid class list, or an image that is in both splits.
    """

    classes: tuple[str, ...]
    train: tuple[Record, ...]
    val: tuple[Record, ...]
    evaluation_only: bool = False
    notes: tuple[str, ...] = ()
    looked_at: str = ""

    def __post_init__(self) -> None:
        check_classes(self.classes, "the class list (data.classes)", masks=not self.evaluation_only)
        if not self.train and not self.evaluation_only:
            raise UserError("the data set has no training image: check data.train and data.labels")
        val = {record.id for record in self.val}
        both = [record.id for record in self.train if record.id in val]
        if both:
            raise UserError(
                f"{count(both, 'image')} both in train and in val ({first(both)}): scores on them would be "
                "worthless; remove them from one list (data.train, data.val)"
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by mask index: ("background", *classes)."""
        return ("background", *self.classes)


def check_trainable(dataset: Dataset) -> None:
    """Raises UserError if the data set is only for evaluating saliency."""
    if dataset.evaluation_only:
        raise UserError(
            "this data set has no training images and no masks (data.kind imagenet): use it with wsss compare, "
            "and voc, coco, folder or shapes for training"
        )


def evenly(records: Sequence[Record], count: int) -> list[Record]:
    """``count`` records evenly spaced over the list; all of them for 0."""
    if count <= 0 or count >= len(records):
        return list(records)
    return [records[index * len(records) // count] for index in range(count)]


def with_masks(records: Sequence[Record]) -> list[Record]:
    """The records that have a true mask."""
    return [record for record in records if record.mask is not None]


def first(items: Sequence[str], number: int = 3) -> str:
    """The first items for a message: "a, b, c, …"."""
    return ", ".join(items[:number]) + (", …" if len(items) > number else "")


def count(items: Sequence[object], noun: str) -> str:
    """ "1 image is", "3 images are": the start of a message."""
    return f"1 {noun} is" if len(items) == 1 else f"{len(items)} {noun}s are"


def found_in(root: Path) -> str:
    """What `root` contains, for a message: 'found there: "a", "b", …'."""
    try:
        names = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
    except OSError:
        return "that folder cannot be read"
    return f"found there: {first(names, 6)}" if names else "that folder is empty"


def check_root(root: Path) -> None:
    """Raises UserError if `root` is not a folder."""
    if not root.exists():
        raise UserError(
            f"{root} does not exist: set --data.root to the data set's folder (see data/README.md)"
        )
    if not root.is_dir():
        raise UserError(f"{root} is a file: set --data.root to the data set's folder")


def resolve_file(name: str | Path, root: Path) -> Path | None:
    """The file `name`: absolute, relative to the working directory, or else to `root`; None if neither."""
    return next((path for path in (Path(name), root / name) if path.is_file()), None)


def walk_images(folder: Path, *, nested: bool, exclude: Sequence[Path] = ()) -> list[tuple[str, Path]]:
    """(id, file) of every image in `folder`, sorted by id; hidden files and folders are left out, links followed.

    Args:
        folder: where to look; a missing folder gives an empty list.
        nested: look into sub-folders too; ids are then relative paths with "/".
        exclude: sub-folders that are not entered.
    """
    files = _walk(folder, nested, exclude)
    return sorted((image_id(name), folder / name) for name in files if name.lower().endswith(IMAGE_SUFFIXES))


def left_out(folder: Path, *, nested: bool, exclude: Sequence[Path] = ()) -> tuple[str, ...]:
    """A sentence that counts and names the files that `walk_images` leaves out; none if there are none.

    Hidden files and text (`NOTES`) are not counted.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in _walk(folder, True, exclude):
        if not nested and "/" in name:
            kinds["in sub-folders"].append(name)
        elif not name.lower().endswith((*IMAGE_SUFFIXES, *NOTES)):
            kinds[Path(name).suffix.lower() or "without ending"].append(name)
    if not kinds:
        return ()
    parts = [f"{len(names)} {kind} ({first(sorted(names))})" for kind, names in sorted(kinds.items())]
    number = count([name for names in kinds.values() for name in names], "file")
    return (f"{folder}: {number} left out: {', '.join(parts)}; wsss reads {PHOTO_KINDS}",)


def other_files(folder: Path, exclude: Sequence[Path] = ()) -> list[Path]:
    """Every file that `walk_images` leaves out, text too, but not the hidden ones; sorted."""
    names = _walk(folder, True, exclude)
    return sorted(folder / name for name in names if not name.lower().endswith(IMAGE_SUFFIXES))


def _walk(folder: Path, nested: bool, exclude: Sequence[Path]) -> Iterator[str]:
    """The path relative to `folder` of every file, with "/"; see `walk_images`."""
    left_out = {path.absolute() for path in exclude}
    for top, folders, names in os.walk(folder, followlinks=True):
        here = Path(top)
        folders[:] = [
            name
            for name in folders
            if nested
            and not name.startswith(".")
            and (here / name).absolute() not in left_out
            and not here.resolve().is_relative_to(
                (here / name).resolve()
            )  # a link to a folder above it: a circle
        ]
        prefix = "" if here == folder else here.relative_to(folder).as_posix() + "/"
        yield from (prefix + name for name in names if not name.startswith("."))


def index_images(folder: Path, *, nested: bool, exclude: Sequence[Path] = ()) -> dict[str, Path]:
    """Image id -> file, sorted by id; see `walk_images`.

    Raises:
        UserError: two files have the same id.
    """
    index: dict[str, Path] = {}
    for identifier, path in walk_images(folder, nested=nested, exclude=exclude):
        if identifier in index:
            raise UserError(
                f'{index[identifier]} and {path} have the same id "{identifier}": rename one of them or move it away'
            )
        index[identifier] = path
    return index


def read_split(path: Path, images: Mapping[str, Path], *, nested: bool) -> tuple[str, ...]:
    """Reads a list of ids that must all have an image.

    Raises:
        UserError: see `read_ids`; or ids without image, of which the message names the first.
    """
    ids = read_ids(path, nested=nested)
    check_images(ids, images, str(path))
    return ids


def check_images(ids: Iterable[str], images: Mapping[str, Path], source: str) -> None:
    """Raises UserError, with the likeliest fix, if ids in `source` have no image."""
    missing = [identifier for identifier in ids if identifier not in images]
    if not missing:
        return
    verb = "has" if len(missing) == 1 else "have"
    raise UserError(
        f"{source}: {len(missing)} of its ids {verb} no image ({first(missing)}): {missing_fix(missing[0], images)}"
    )


def missing_fix(identifier: str, images: Mapping[str, Path]) -> str:
    """What to do about an id without image: a photo may have that name in another folder or case, or another ending."""
    tail = identifier.rpartition("/")[2]
    tails = {known: known.rpartition("/")[2] for known in images}
    for near in (
        [known for known in images if tails[known] == tail],
        [known for known in images if tails[known].casefold() == tail.casefold()],
    ):
        if len(near) == 1:
            return f'write "{near[0]}" (the photo is {images[near[0]].name})'
    for folder in {path.parent for path in images.values()}:
        if (folder / identifier).is_file():
            return f"{folder / identifier} is there, but wsss reads {PHOTO_KINDS}: save it as one of these"
    return "add the photos or remove the ids"


def strays(masks: Mapping[str, Path], images: Mapping[str, Path], folder: Path) -> tuple[str, ...]:
    """A sentence that counts the masks without photo; none if there are none."""
    found = [path.name for name, path in masks.items() if name not in images]
    if not found:
        return ()
    return (f"{folder}: {len(found)} of {len(masks)} masks have the name of no photo ({first(found)})",)


def unlabelled(images: Iterable[str], used: Iterable[str], source: Path) -> tuple[str, ...]:
    """A sentence that counts the photos that are not used because they have no labels; none if there are none."""
    images, used = list(images), set(used)
    bare = [name for name in images if name not in used]
    if not bare:
        return ()
    return (
        f"{len(bare)} of {len(images)} photos are not used, because {source} has no labels for them ({first(bare)})",
    )


def make_records(
    ids: Iterable[str], images: Mapping[str, Path], labels: Labels, masks: Mapping[str, Path]
) -> tuple[Record, ...]:
    """Records in the order of `ids`; unknown labels and missing masks are None."""
    return tuple(Record(name, images[name], labels.get(name), masks.get(name)) for name in ids)


def check_labelled(ids: Sequence[str], labels: Labels, source: str, option: str = "data.train") -> None:
    """Raises UserError if images of the split that `option` names have no labels; the message names the first."""
    missing = [identifier for identifier in ids if identifier not in labels]
    if missing:
        noun = "training images" if option == "data.train" else "images"
        raise UserError(
            f"{source} has no labels for {len(missing)} of {len(ids)} {noun} ({first(missing)}): "
            f"add them, or remove these ids from {option}"
        )
