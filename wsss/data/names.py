"""Names of classes: class lists as the usual tools write them, and names that two sources spell differently."""

import difflib
import html
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsss.data.labels import VOC_CLASSES, check_classes, is_background, read_text
from wsss.errors import UserError

CLASS_FILES = ("classes.txt", "labelmap.txt", "labels.txt", "data.yaml", "obj.names")
"""Where tools put a class list; only proposed in messages."""

RECORD = "predictions.json"
"""File beside the masks of ``wsss predict``: the class of each index, the checkpoint and the options that made them."""

IMPORTED = "masks.json"
"""File beside the masks of ``wsss data import-masks``: the class of each index, and where they come from."""

_TABLES = ("names", "categories", "thing_classes", "classes", "id2label", "labels")
_LABELMAP = re.compile(r"([^:]+):(\d+,\d+,\d+)?:[^:]*:[^:]*")
_VOID = "224,224,192"  # VOC's colour of pixels that are not scored
_FOREIGN = re.compile(r"""[\[\]{}<>"]|[,;:]$|\t|:\s|::""")  # of a line: some format rather than a name


# -- class lists ------------------------------------------------------------------------------------


def read_classes(path: Path | None) -> tuple[str, ...]:
    """Reads a class list: one name per line, index 1 first, or another tool's list, known by its content.

    These are CVAT's and VOC's labelmap.txt, LabelMe's labels.txt, YOLO's data.yaml, TensorFlow's label_map.pbtxt,
    COCO's categories, Label Studio's labelling configuration, numbered lines ("0: cat"), and names in JSON or YAML.
    The background is left out. Blank lines and lines that begin with "#" are skipped.

    Args:
        path: the file; None gives the 20 VOC classes.

    Raises:
        UserError: another format, with the reason; see also `read_text` and `check_classes`.
    """
    if path is None:
        return VOC_CLASSES
    try:
        names = _names(read_text(path).strip())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not a class list that wsss understands ({error}): write one class name per line"
        ) from error
    names = [name.strip() for name in names]
    while names and (is_background(names[0]) or names[0] == "__ignore__"):  # index 0, and LabelMe's index -1
        names = names[1:]
    return check_classes(names, str(path))


def _names(text: str) -> list[str]:
    """The names in a class list of any format; ValueError says why there are none."""
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if text[:1] in ("{", "["):
        return _of_value(json.loads(text))
    if text.startswith("<"):
        return [
            html.unescape(name) for name in re.findall(r'<(?:Choice|Label)\s[^<>]*?\bvalue="([^"]+)"', text)
        ]
    if re.match(r"item\s*\{", text):
        return _of_pbtxt(text)
    if any(re.match(rf"- |({'|'.join(_TABLES)})\s*:", line) for line in lines):
        return _of_yaml(text)
    labelmap = [_LABELMAP.fullmatch(line) for line in lines]
    if any(labelmap):
        rows = [row for row in labelmap if row and row[2] != _VOID and not is_background(row[1])]
        _refuse_lines(line for line, row in zip(lines, labelmap, strict=True) if not row)
        return [row[1] for row in rows]
    numbered = [row for row in map(_numbered, lines) if row]
    if lines and len(numbered) == len(lines):
        return _by_number(numbered)
    _refuse_lines(line for line in lines if _FOREIGN.search(line) or (len(lines) == 1 and "," in line))
    return lines


def _numbered(line: str) -> tuple[int, str] | None:
    """Number and name of a line such as "0: cat" or "cat,1"; None for another one."""
    for separator in "\t:=,":
        for number, name in (line.partition(separator)[::2], line.rpartition(separator)[::-2]):
            if number.strip().isdecimal() and name.strip():
                return int(number), name.strip()
    return None


def _refuse_lines(lines: Iterable[str]) -> None:
    for line in lines:
        raise ValueError(f'the line "{line[:60]}" is not a name')


def _of_yaml(text: str) -> list[str]:
    import yaml

    try:
        return _of_value(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(f"it is not valid YAML: {' '.join(str(error).split())}") from error


def _of_pbtxt(text: str) -> list[str]:
    found = []
    for item in re.findall(r"item\s*\{([^{}]*)\}", text):
        fields = {
            key: text or value
            for key, text, value in re.findall(r"""(\w+)\s*:\s*(?:["'](.*?)["']|(\S+))""", item)
        }
        found.append((int(fields.get("id", -1)), fields.get("display_name") or fields.get("name", "")))
    return _by_number(found)


def _of_value(value: Any) -> list[str]:
    """The names in the content of a JSON or YAML file."""
    if isinstance(value, Mapping):
        for key in _TABLES:
            if key in value:
                return _of_value(value[key])
        if all(isinstance(number, int) for number in value.values()):
            return _by_number([(number, name) for name, number in value.items()])
        if all(re.fullmatch(r"\d+", str(key)) for key in value):
            return _by_number([(int(key), name) for key, name in value.items()])
    elif isinstance(value, list) and value:
        if all(isinstance(item, Mapping) and "name" in item for item in value):
            ordered = all(isinstance(item.get("id"), int) for item in value)
            value = [
                item["name"] for item in (sorted(value, key=lambda item: item["id"]) if ordered else value)
            ]
        if all(isinstance(name, str) for name in value):
            return list(value)
    raise ValueError("it has no list of names; a name like yes or 1 needs quotes")


def _by_number(rows: Sequence[tuple[int, Any]]) -> list[str]:
    """The names in the order of their numbers, which must run from 0 or 1 without a gap."""
    numbers = sorted(number for number, _ in rows)
    if not any(numbers == list(range(start, start + len(rows))) for start in (0, 1)):
        raise ValueError("its numbers do not run from 0 or 1 without a gap")
    if not all(isinstance(name, str) and name for _, name in rows):
        raise ValueError("a number has no name")
    return [name for _, name in sorted(rows)]


# -- names that differ ------------------------------------------------------------------------------


def plain(name: str) -> str:
    """What spellings of one name have in common: no case, no spaces, dots, hyphens, underscores, one Unicode form."""
    return re.sub(r"[\s_.\-]+", "", unicodedata.normalize("NFKC", name).casefold())


def nearest(name: str, classes: Iterable[str], cutoff: float = 0.8) -> str | None:
    """The class whose spelling is most similar to a name; None if none is similar (cutoff: 1 = only the same)."""
    spelt = {plain(known): known for known in classes}
    near = difflib.get_close_matches(plain(name), spelt, n=1, cutoff=cutoff)
    return spelt[near[0]] if near else None


def listed(counts: Mapping[str, int], classes: Sequence[str], noun: str = "photo", number: int = 8) -> str:
    """Names that a class list lacks, most frequent first: '"Dog" (7 photos, near "dog"), "leaf" (2 photos), …'."""
    found = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    texts = []
    for name, count in found[:number]:
        near = nearest(name, classes)
        photos = f"{count} {noun}" + "s" * (count != 1)
        texts.append(f'"{name}" ({photos}, near "{near}")' if near else f'"{name}" ({photos})')
    return ", ".join(texts) + ", …" * (len(found) > number)


def recorded_classes(folder: Path) -> tuple[tuple[str, ...], Path] | None:
    """The class names that came with a folder of masks, background first, and the file that records them.

    That is what ``wsss predict`` or ``wsss data import-masks`` writes beside its masks, or the manifest of the run that
    the folder is in. None: nothing is recorded.
    """
    own = ((folder / name, ()) for name in (RECORD, IMPORTED))
    for path, first in (*own, (folder.resolve().parent / "manifest.json", ("background",))):
        try:
            names = json.loads(path.read_text(encoding="utf-8"))["classes"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not ours, or of an older version
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return (*first, *names), path
    return None


def classes_of(folders: Iterable[Path], path: Path | None) -> tuple[str, ...]:
    """The class names of folders of masks, background first: those in a class list, those recorded, or VOC's.

    Raises:
        UserError: see `check_recorded` and `read_classes`.
    """
    folders = list(folders)
    recorded = next((found for folder in folders if (found := recorded_classes(folder))), None)
    if path is None and recorded is not None:
        names = ("background", *check_classes(recorded[0][1:], str(recorded[1])))
    else:
        names = ("background", *read_classes(path))
    for folder in folders:
        check_recorded(
            folder, names, "the class list of the other masks" if path is None else f"--classes {path}"
        )
    return names


def check_recorded(folder: Path, class_names: Sequence[str], option: str) -> None:
    """Compares the classes that came with a folder of masks, or with a run, with those that are to be read from it.

    Args:
        folder: of masks, or any in a run directory.
        class_names: background first.
        option: where they come from, for the message.

    Raises:
        UserError: they differ, or stand in another order.
    """
    found = recorded_classes(folder)
    if found is None or found[0] == tuple(class_names):
        return
    names, path = found
    index = next(
        (n for n, pair in enumerate(zip(names, class_names, strict=False)) if pair[0] != pair[1]),
        min(len(names), len(class_names)),
    )
    theirs, ours = (f'"{some[index]}"' if index < len(some) else "nothing" for some in (names, class_names))
    raise UserError(
        f"{folder} was made with {len(names) - 1} classes ({path}), and {option} has {len(class_names) - 1}: index "
        f"{index} is {theirs} there and {ours} here; use the class list that made it"
    )
