"""Image ids and image-level labels, read from text and XML (`tags`: from a CSV; `names`: class lists). Standard library
only.

Class indices are mask indices everywhere: 0 = background, 1..C = classes in the order of the class list,
255 = ignore. An image's labels are the sorted tuple of the indices 1..C that the image contains; an empty
tuple says "contains none of the classes", a missing entry says "unknown".
"""

import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

from wsss.errors import UserError, escaped

BACKGROUND = 0
"""Mask index of "none of the classes"."""

IGNORE = 255
"""Mask index of pixels that are neither trained on nor scored."""

MAX_CLASSES = 254
"""Indices 1..254: 0 and 255 are taken."""

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
"""PASCAL VOC, official order: aeroplane is mask index 1, tvmonitor 20."""

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif",
)  # fmt: skip
"""File name endings of photos, which are removed from an image's name to get its id (compared in lower case)."""

PHOTO_KINDS = "jpg, png, webp, bmp, tif, gif, heic, avif"
"""The same for people."""

_MAX_PART_BYTES = 200  # file systems allow 255; room for suffixes and the temporary names of atomic writes
_PLAIN_ID = re.compile(r"\w[\w -]{0,150}", re.ASCII)  # most ids; the other rules take longer
_DEEPLAB_LINE = re.compile(r"/?JPEGImages/(\S+)\s+/?SegmentationClass\w*/\S+")


def read_text(path: Path) -> str:
    """Reads a UTF-8 text file; a byte order mark is dropped, line ends become "\\n".

    Raises:
        UserError: the file is missing, not readable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not a UTF-8 text file: save it as UTF-8 (Excel: "CSV UTF-8")') from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"{path} cannot be read ({error}): check the path and its permissions") from error


def check_classes(names: Iterable[str], source: str, *, masks: bool = True) -> tuple[str, ...]:
    """Returns `names` as a tuple if they are a valid class list, without background.

    Args:
        names: class names, index 1 first.
        source: where they come from, for the message.
        masks: whether the classes must fit into 8-bit masks, at most 254 of them.

    Raises:
        UserError: no name, a duplicate, "background" among them, a name with ";" or a control character, more than 254
            names.
    """
    classes = tuple(names)
    if not classes:
        raise UserError(f"{source} names no classes: write one class name per line")
    if masks and len(classes) > MAX_CLASSES:
        raise UserError(f"{source} names {len(classes)} classes: an 8-bit mask holds at most {MAX_CLASSES}")
    for name in classes:
        if not name.strip() or ";" in name or escaped(name, keep="") != name:
            raise UserError(
                f'{source}: "{name}" cannot be a class name: use a name without ";" and control characters'
            )
        if is_background(name):
            raise UserError(f'{source} lists "{name}": remove it, background is always index 0')
        if classes.count(name) > 1:
            raise UserError(f'{source} lists the class "{name}" twice: remove one of them')
    return classes


def is_background(name: str) -> bool:
    """Whether a class list means the background: "background", "_background_" (LabelMe), "__background__"."""
    return name.strip("_ ").casefold() == "background"


def check_id(identifier: str, source: str, *, nested: bool = True) -> str:
    """Returns `identifier` if it names a file inside its folder, whatever suffix is added.

    Args:
        identifier: image id, such as "2007_000032" or (nested) "holiday/beach 7".
        source: where it was read ("file:line"), for the message.
        nested: allow "/" between parts.

    Raises:
        UserError: the id is empty, absolute, has "..", a backslash, a control character or a too long part.
    """
    problem = _id_problem(identifier, nested)
    if problem:
        raise UserError(f"{source}: {identifier!r} cannot be an image id: {problem}")
    return identifier


def _id_problem(identifier: str, nested: bool) -> str:
    if _PLAIN_ID.fullmatch(identifier):
        return ""
    if not identifier.strip():
        return "it is empty"
    if escaped(identifier, keep="") != identifier or "\\" in identifier:
        return 'backslashes and control characters are not allowed; separate folders with "/"'
    if re.match(r"/|[A-Za-z]:/", identifier):
        return "give the name relative to the image folder, not an absolute path"
    parts = identifier.split("/")
    if len(parts) > 1 and not nested:
        return 'this layout has no sub-folders; remove the "/"'
    if any(part.strip() in ("", ".", "..") for part in parts):
        return 'its parts must be plain names, not empty, "." or ".."'
    if any(len(part.encode(errors="replace")) > _MAX_PART_BYTES for part in parts):
        return f"a name may have at most {_MAX_PART_BYTES} bytes"
    return ""


def image_id(name: str) -> str:
    """The id of a file name: "a/b.JPG" -> "a/b"; "shot.2" stays.

    In Unicode's composed form (NFC): macOS may write the "é" of a file name as "e" and an accent, lists do not.
    """
    name = unicodedata.normalize("NFC", name)
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else name


def read_ids(path: Path, *, nested: bool = True) -> tuple[str, ...]:
    """Reads a list of image ids, one per line, in the order of the file; blank lines are skipped.

    Three spellings are understood: an id (with or without image suffix; it may contain spaces); VOC's
    class lists, where every line is "id 1", "id 0" or "id -1" (every id is taken, whatever its flag);
    the pairs "/JPEGImages/id.jpg /SegmentationClassAug/id.png" in which train_aug lists often come.

    Raises:
        UserError: the file is not readable, lists nothing, an id twice, or an id that `check_id` refuses.
    """
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path).split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise UserError(f"{path} lists no images: write one image id per line")
    flagged = all(re.fullmatch(r".*\S\s+(1|0|-1)", line) for _, line in lines)
    rows = [(number, _list_id(line, flagged)) for number, line in lines]
    seen: dict[str, int] = {}
    for number, identifier in rows:
        check_id(identifier, f"{path}:{number}", nested=nested)
        check_new(identifier, number, seen, path)
    return tuple(seen)


def _list_id(line: str, flagged: bool) -> str:
    if pair := _DEEPLAB_LINE.fullmatch(line):
        return image_id(pair[1])
    return image_id(line.rsplit(maxsplit=1)[0] if flagged else line)


def check_new(identifier: str, line: int, seen: dict[str, int], path: Path) -> None:
    """Stores the line of an id in ``seen``. Raises UserError if the id is a duplicate."""
    if identifier in seen:
        raise UserError(
            f'{path}: duplicate image "{identifier}" on lines {seen[identifier]} and {line}: '
            "remove one of them"
        )
    seen[identifier] = line


def annotation_files(folder: Path) -> dict[str, Path]:
    """Image id -> its annotation file, of all XML files in a folder; empty if there is no such folder."""
    found = folder.iterdir() if folder.is_dir() else ()
    return {unicodedata.normalize("NFC", path.stem): path for path in found if path.suffix.lower() == ".xml"}


def xml_names(path: Path) -> tuple[str, ...]:
    """The names in a VOC annotation file, elements object/name, each once.

    Objects marked "difficult" or "truncated" count as present: they are in the image and in its mask.

    Raises:
        UserError: the file is not readable, not a VOC annotation, or contains a DTD or entities.
    """
    names = (item.findtext("name") or "" for item in read_annotation(path).findall("object"))
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def read_annotation(path: Path) -> ElementTree.Element:
    """The root <annotation> of a VOC annotation file.

    Raises:
        UserError: the file is not readable, not a VOC annotation, or contains a DTD or entities.
    """
    text = read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{path} contains a DTD or entities, which VOC files never do: remove them")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is not valid XML ({error}): copy it from the devkit again") from error
    if root.tag != "annotation":
        raise UserError(f"{path} has the root <{root.tag}>, expected a VOC <annotation>")
    return root
