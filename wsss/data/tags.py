"""Tags of photos from a CSV: `image,labels` with ";" between labels, or a 0/1 column for each class.

Needs the standard library only. `labels` explains what labels and ids are.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsss.data.labels import check_classes, check_id, check_new, image_id, read_text
from wsss.data.names import listed, nearest
from wsss.errors import UserError

CSV_FORMAT = (
    'expected the header "image,labels" (labels separated by ";"), or "image,<class>,<class>,…" with 0/1; '
    "`wsss data import` reads other tables and the exports of labelling tools"
)

_SEMICOLONS = re.compile(r'\s*"?image"?\s*;', re.IGNORECASE)


@dataclass(frozen=True)
class LabelRow:
    """One line of a label CSV: the line number in the file (from 1), the image id and the label names."""

    line: int
    identifier: str
    names: tuple[str, ...]


def read_label_rows(path: Path, *, nested: bool = True) -> tuple[LabelRow, ...]:
    """Reads a label CSV without looking at the class list: `image,labels` or one-hot columns.

    Columns may be separated by ";" too, as Excel does where the comma is the decimal point; the header tells.

    Raises:
        UserError: naming file and line: no such file, wrong header, wrong number of columns, a one-hot
            value other than 0 and 1, a refused id, an image listed twice, broken quotes.
    """
    text = read_text(path)
    delimiter = ";" if _SEMICOLONS.match(text) else ","
    stream = io.StringIO(text, newline="")
    reader = csv.reader(stream, strict=True, skipinitialspace=True, delimiter=delimiter)
    header: list[str] = []
    tagged = False  # `image,labels`, else a column for each class
    rows: list[LabelRow] = []
    seen: dict[str, int] = {}
    ended = 0  # the line where the latest row ended; an open quote swallows those after it
    try:
        for cells in reader:
            ended = reader.line_num
            values = [cell.strip() for cell in cells]
            if not any(values):
                continue
            if not header:
                header = _check_header(values, path)
                tagged = _is_tags(header)
                continue
            if delimiter == ";" and tagged:  # in such a file a;cat;dog has one cell per label
                values = [values[0], ";".join(values[1:])]
            row = _label_row(values, header, tagged, path, reader.line_num, nested)
            check_new(row.identifier, row.line, seen, path)
            rows.append(row)
    except csv.Error as error:
        raise UserError(
            f"{path}:{ended + 1}: not valid CSV ({error}): check the quotes there and close each of them"
        ) from error
    if not header:
        raise UserError(f"{path} is empty: {CSV_FORMAT}")
    return tuple(rows)


def _is_tags(header: Sequence[str]) -> bool:
    return [name.lower() for name in header] == ["image", "labels"]


def _check_header(values: list[str], path: Path) -> list[str]:
    if values[0].lower() != "image" or len(values) < 2:
        tabs = "columns are separated by tabs, save it with commas; " if "\t" in "".join(values) else ""
        raise UserError(f'{path}: the first line is "{",".join(values)[:80]}": {tabs}{CSV_FORMAT}')
    if values[1].lower() == "labels" and len(values) > 2:
        raise UserError(
            f'{path} has columns after "image" and "labels" ({", ".join(values[2:])}): remove them'
        )
    for name in values[1:]:
        if not name or values.count(name) > 1:
            raise UserError(f'{path}: the header has an empty or repeated column "{name}": {CSV_FORMAT}')
    return values


def _label_row(
    values: list[str], header: list[str], tagged: bool, path: Path, line: int, nested: bool
) -> LabelRow:
    where = f"{path}:{line}"
    if len(values) != len(header):
        fix = 'separate labels with ";", not ","' if tagged else "give each class 0 or 1"
        raise UserError(f"{where}: {len(values)} columns, but the header has {len(header)}: {fix}")
    identifier = check_id(image_id(values[0]), where, nested=nested)
    if tagged:
        names = [part.strip() for part in values[1].split(";")]
        return LabelRow(line, identifier, tuple(name for name in names if name))
    for name, value in zip(header[1:], values[1:], strict=True):
        if value not in ("0", "1"):
            raise UserError(f'{where}: column "{name}" is "{value}": write 0 or 1')
    present = zip(header[1:], values[1:], strict=True)
    return LabelRow(line, identifier, tuple(name for name, value in present if value == "1"))


def read_csv_classes(path: Path, rows: Iterable[LabelRow] | None = None) -> tuple[str, ...]:
    """The class list that a label CSV implies: all its labels, sorted. ``rows`` are its rows, if they are known.

    Raises:
        UserError: see `read_label_rows` and `check_classes`; no label at all; labels that look like mistakes: with a
            comma inside, or differing only by case. A class list allows them.
    """
    names = sorted({name for row in rows or read_label_rows(path) for name in row.names})
    if not names:
        raise UserError(
            f'{path} names no classes: write the labels of each photo in its line, separated by ";"'
        )
    spelling: dict[str, str] = {}
    for name in names:
        if "," in name:
            raise UserError(f'{path} has the label "{name}": separate labels with ";", not ","')
        other = spelling.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(f'{path} has the labels "{other}" and "{name}": write one of them everywhere')
    return check_classes(names, str(path))


def read_label_csv(
    path: Path, classes: Sequence[str], *, nested: bool = True, rows: Sequence[LabelRow] | None = None
) -> dict[str, tuple[int, ...]]:
    """Reads image labels from a CSV `image,labels` (labels separated by ";") or with one 0/1 column per class.

    ``rows`` are its rows, if they are known.

    Returns:
        image id (without image suffix) -> sorted mask indices 1..C; () where the cell is empty.

    Raises:
        UserError: see `read_label_rows`; a label that is not in `classes` (with file, line, the label
            and the nearest class).
    """
    rows = read_label_rows(path, nested=nested) if rows is None else rows
    index = {name: number for number, name in enumerate(classes, 1)}
    for row in rows:
        for name in row.names:
            if name not in index:
                raise UserError(
                    f"{path}:{row.line}: {unknown_label(name, classes)}{_all_unknown(rows, classes)}"
                )
    return {row.identifier: tuple(sorted({index[name] for name in row.names})) for row in rows}


def _all_unknown(rows: Iterable[LabelRow], classes: Sequence[str]) -> str:
    """The end of the sentence if there is more than one unknown label: all of them, with their numbers."""
    counts = Counter(name for row in rows for name in set(row.names) if name not in classes)
    return f"; all unknown labels: {listed(counts, classes)}" if counts.total() > 1 else ""


def unknown_label(name: str, classes: Sequence[str]) -> str:
    """The sentence for a label outside the class list, with the nearest class if one is near."""
    near = nearest(name, classes, cutoff=0.5)
    if near:
        return f'unknown label "{name}": did you mean "{near}"? Else add it to the class list (data.classes)'
    shown = ", ".join(classes[:8]) + (", …" if len(classes) > 8 else "")
    return f'unknown label "{name}": correct it or add it to the class list ({shown})'
