"""`wsss data import`: tags of any tool to a folder that the pipeline reads: photos, labels.csv, classes.txt, splits."""

import csv
import io
import json
import os
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar
from urllib.parse import unquote, urlparse

from wsss.data.dataset import Dataset, check_labelled, first, index_images, make_records, read_split
from wsss.data.files import atomic_path, write_text
from wsss.data.folder import find_list, hash_split
from wsss.data.labels import check_classes, image_id
from wsss.data.names import read_classes
from wsss.data.tools import (
    FOLDERS,
    FORMATS,
    TABLE,
    Export,
    Format,
    Options,
    Tagged,
    candidates,
    read,
    without_upload,
)
from wsss.errors import UserError


class _Form(Protocol):
    @property
    def title(self) -> str: ...
    @property
    def fits(self) -> Callable[[Path], bool]: ...


class _Reference(Protocol):
    @property
    def reference(self) -> str: ...


F = TypeVar("F", bound=_Form)
R = TypeVar("R", bound=_Reference)


@dataclass(frozen=True)
class Source(Generic[F]):
    """The files of an export, and their format."""

    name: str
    format: F
    files: tuple[Path, ...]

    @property
    def title(self) -> str:
        """What the user sees: the format, and the names of the files."""
        return f"{self.format.title} ({first([path.name for path in self.files])})"


@dataclass(frozen=True)
class Found:
    """What an export says of the photos that are there."""

    source: Source[Format]
    index: Mapping[str, Path]
    """Image id -> photo, of all that are there."""
    placed: Mapping[str, Tagged]
    """Image id -> what the export says of it."""
    labelled: Mapping[str, Tagged]
    """Those whose labels are known."""
    names: tuple[str, ...]
    """The classes, without background."""


def import_tags(
    source: Path,
    target: Path,
    kind: str = "auto",
    photos: Path | None = None,
    options: Options | None = None,
    copy: bool = False,
) -> str:
    """Make a folder data set of an export.

    Args:
        source: the export: a file, or a folder with it.
        target: the new folder.
        kind: a name of `FORMATS`, ``folders``, or auto.
        photos: where the photos are; None: at the source.
        options: what the export does not say itself.
        copy: copy the photos instead of linking to them.

    Returns:
        A summary for the user.

    Raises:
        UserError: no format fits, or two; a photo is missing, ambiguous, or named twice; names that differ by case; see
            the readers.
    """
    check_places(source, target)
    found = _read(source, kind, photos, options or Options())
    write(target, found.labelled, found.index, found.names, copy)
    return _summary(found, source, target)


def check_places(source: Path, target: Path) -> None:
    """Raises UserError if there is nothing to import, or the target is not an empty or new folder."""
    if not source.exists():
        raise UserError(
            f"{source} does not exist; give the export of a labelling tool, or the folder that holds it"
        )
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} is not empty; give a new folder")


def _read(source: Path, kind: str, photos: Path | None, options: Options) -> Found:
    files = find_format(source, kind)
    folder = photos or (source if source.is_dir() else source.parent)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of photos")
    export = _merged([read(files.format, path, options) for path in files.files])
    index = index_images(folder, nested=True)
    placed = resolve(export.photos, index, folder, uploads=files.name.startswith("labelstudio"))
    labelled = {identifier: tagged for identifier, tagged in placed.items() if tagged.labels is not None}
    if not labelled:
        raise UserError(f"{source} has no photo with known labels")
    return Found(files, index, placed, labelled, _class_names(export, labelled, source))


def fitting(source: Path, paths: Sequence[Path], formats: Mapping[str, F], kind: str) -> Source[F] | None:
    """The files of the one format that fits; None if none does. Raises UserError if several do."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        for name, form in formats.items():
            if kind in ("auto", name) and form.fits(path):
                found[name].append(path)
    if len(found) > 1:
        files = ", ".join(f"{some[0].name} ({name})" for name, some in found.items())
        raise UserError(f"{source} has files of several formats: {files}; choose one with --format")
    for name, chosen in found.items():
        return Source(name, formats[name], tuple(chosen))
    return None


def find_format(source: Path, kind: str) -> Source[Format]:
    """The format of an export and its files.

    Raises:
        UserError: nothing fits, or files of two formats do.
    """
    if kind == "folders":
        return Source("folders", FOLDERS, (source,))
    paths = tuple(candidates(source))
    if (found := fitting(source, paths, FORMATS, kind)) is not None:
        return found
    tables = tuple(path for path in paths if TABLE.fits(path)) if kind in ("auto", "csv") else ()
    if len(tables) == 1:
        return Source("csv", TABLE, tables)
    if len(tables) > 1:
        raise UserError(
            f"{source} has {len(tables)} tables ({first([path.name for path in tables])}): name one of them"
        )
    if kind == "auto" and FOLDERS.fits(source):
        return Source("folders", FOLDERS, (source,))
    wanted = "of a format that wsss knows" if kind in ("auto", "csv") else f"that is {FORMATS[kind].title}"
    raise UserError(f"{source} has no file {wanted} ({', '.join([*FORMATS, 'csv', 'folders'])})")


def _merged(exports: list[Export]) -> Export:
    """Several files of one format, such as one for each split."""
    classes = [name for export in exports for name in export.classes or ()]
    photos = [tagged for export in exports for tagged in export.photos]
    return Export(photos, tuple(dict.fromkeys(classes)) or None)


def load_export(root: Path, train: str | None, val: str | None) -> Dataset:
    """The data set of an export, where nothing has to be said about it: without writing anything.

    Args:
        root: the export, with its photos.
        train: a list of ids, see `read_split`; None: the export's own split, or all photos that are not in val.
        val: likewise; None: the export's own split, or about a tenth, as in `load_folder`.

    Raises:
        UserError: as `import_tags`.
    """
    found = _read(root, "auto", None, Options())
    names, index, labelled = found.names, found.index, found.labelled
    known = {
        name: tuple(sorted(names.index(label) + 1 for label in tagged.labels or ()))
        for name, tagged in labelled.items()
    }
    splits: dict[str, tuple[str, ...] | None] = {}
    for split, given in (("train", train), ("val", val)):
        own = tuple(name for name, tagged in labelled.items() if tagged.split == split)
        splits[split] = read_split(find_list(root, given), index, nested=True) if given else own or None
    train_ids, val_ids = splits["train"], splits["val"]
    if train_ids is None and val_ids is None:
        train_ids, val_ids = hash_split(tuple(known))
    train_ids = train_ids or tuple(name for name in known if name not in set(val_ids or ()))
    val_ids = val_ids or tuple(name for name in known if name not in set(train_ids))
    notes = (
        f"{root} is {found.source.title}: {len(known)} photos with known labels, {len(found.placed) - len(known)} "
        f"without, {len(index) - len(found.placed)} that it does not name",
    )
    check_labelled(train_ids, known, str(root))
    return Dataset(
        names, make_records(train_ids, index, known, {}), make_records(val_ids, index, known, {}), notes=notes
    )


# -- photos -----------------------------------------------------------------------------------------


def normal_reference(reference: str) -> str:
    """A reference as a path with "/", without scheme, host, drive, and image suffix, in Unicode's composed form."""
    text = reference
    if "?d=" in text:
        text = text.partition("?d=")[2]
    elif "://" in text:
        text = urlparse(text).path
    text = unquote(text).replace("\\", "/")
    if len(text) > 1 and text[1] == ":":
        text = text[2:]
    parts = [part for part in unicodedata.normalize("NFC", text).split("/") if part not in ("", ".")]
    while ".." in parts:  # LabelMe's paths go up from the JSON's folder
        at = parts.index("..")
        del parts[max(0, at - 1) : at + 1]
    return image_id("/".join(parts))


def resolve(
    photos: Sequence[R], index: Mapping[str, Path], folder: Path, uploads: bool = False
) -> dict[str, R]:
    """Image id -> what the export says of it.

    Raises:
        UserError: a photo is missing, several fit, or two references mean one.
    """
    ends: dict[str, list[str]] = defaultdict(list)
    for identifier in index:
        parts = identifier.split("/")
        for start in range(len(parts)):
            ends["/".join(parts[start:])].append(identifier)
    placed: dict[str, R] = {}
    lost: list[str] = []
    for tagged in photos:
        reference = normal_reference(tagged.reference)
        found = (
            _match(reference, index, ends)
            or (uploads and _match(without_upload(reference), index, ends))
            or []
        )
        if len(found) > 1:
            raise UserError(
                f"{tagged.reference} may be {' or '.join(found[:3])} in {folder}: give a deeper --photos folder"
            )
        if not found:
            lost.append(tagged.reference)
            continue
        if found[0] in placed:
            raise UserError(
                f"{tagged.reference} and {placed[found[0]].reference} are the same photo {index[found[0]]}"
            )
        placed[found[0]] = tagged
    if lost:
        raise UserError(
            f"{len(lost)} of {len(photos)} photos are not in {folder}: {first(lost)}; give their folder as --photos"
        )
    return placed


def _match(reference: str, index: Mapping[str, Path], ends: Mapping[str, list[str]]) -> list[str]:
    """The ids that a reference means: that one, or those where one is the end of the other, in whole components."""
    if reference in index:
        return [reference]
    if found := ends.get(reference):
        return found
    parts = reference.split("/")
    return next(([end] for start in range(1, len(parts)) if (end := "/".join(parts[start:])) in index), [])


# -- writing ----------------------------------------------------------------------------------------


def _class_names(export: Export, labelled: Mapping[str, Tagged], source: Path) -> tuple[str, ...]:
    used = {name for tagged in labelled.values() for name in tagged.labels or ()}
    names = export.classes or tuple(sorted(used))
    if strange := used - set(names):
        raise UserError(f"{source} has the label {min(strange)}, which is not among its own classes")
    folded: dict[str, str] = {}
    for name in names:
        if (other := folded.setdefault(name.casefold(), name)) != name:
            raise UserError(
                f"{source} has the labels {other} and {name}, which differ by case only: write one of them"
            )
    if bad := [name for name in names if ";" in name]:
        raise UserError(
            f'{source} has the label "{bad[0]}", but labels.csv separates labels by ";": rename it'
        )
    return check_classes(names, str(source))


def _reads_back(path: Path, names: tuple[str, ...]) -> bool:
    """Whether a class list is understood as it was meant: some names look like another tool's format."""
    try:
        return read_classes(path) == names
    except UserError:
        return False


def write(
    target: Path,
    labelled: Mapping[str, Tagged],
    index: Mapping[str, Path],
    names: tuple[str, ...],
    copy: bool,
) -> None:
    """Write photos (links, or copies), labels.csv, classes.txt and the lists of the splits; labels.csv comes last."""
    for identifier in labelled:
        photo = index[identifier].resolve()
        place = target / "images" / f"{identifier}{index[identifier].suffix}"
        with atomic_path(place) as temporary:
            if copy:
                shutil.copyfile(photo, temporary)
            else:
                os.symlink(photo, temporary)
    write_text(target / "classes.txt", "".join(f"{name}\n" for name in names))
    if not _reads_back(target / "classes.txt", names):
        write_text(target / "classes.txt", json.dumps(list(names), ensure_ascii=False))
    for split in ("train", "val", "test"):
        ids = [identifier for identifier, tagged in labelled.items() if tagged.split == split]
        if ids:
            write_text(target / f"{split}.txt", "".join(f"{identifier}\n" for identifier in ids))
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(["image", "labels"])
    writer.writerows([identifier, ";".join(tagged.labels or ())] for identifier, tagged in labelled.items())
    write_text(target / "labels.csv", content.getvalue())


def _summary(found: Found, source: Path, target: Path) -> str:
    placed, labelled, there = found.placed, found.labelled, len(found.index)
    counts = Counter(name for tagged in labelled.values() for name in tagged.labels or ())
    none = sum(not tagged.labels for tagged in labelled.values())
    skipped = sum(tagged.skipped for tagged in placed.values())
    unknown = len(placed) - len(labelled) - skipped
    splits = Counter(tagged.split for tagged in labelled.values() if tagged.split)
    lines = [
        f"{source} is {found.source.title}",
        f"{target}: {len(labelled)} photos with known labels, {none} of them with none",
        f"left out: {unknown} photos of unknown labels, {skipped} that were skipped, {there - len(placed)} that it "
        "does not name",
        "photos with each class: " + ", ".join(f"{name} {counts[name]}" for name in found.names),
    ]
    if splits:
        lines.append("splits: " + ", ".join(f"{name} {count}" for name, count in splits.items()))
    if found.source.name == "folders":
        lines.append("every photo has one label: what else it shows is not known")
    words = " ".join(f"--data.{name} {name}" for name in ("train", "val") if splits.get(name))
    return "\n".join([*lines, f"next: wsss run configs/folder.yaml --data.root {target} {words}".rstrip()])
