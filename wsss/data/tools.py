"""Tags of photos as labelling tools and public data sets export them: one reader for each format.

A reader says whether a file is of its format, by content, and then gives `Tagged` photos. Three states are kept apart:
labels (an empty tuple means that someone looked and found none), unknown (nobody said), and skipped.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from wsss.data.labels import IMAGE_SUFFIXES, read_text
from wsss.errors import UserError

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""What tools call the splits."""


@dataclass(frozen=True)
class Tagged:
    """What an export says of one photo."""

    reference: str
    """The photo, as the export writes it."""
    labels: tuple[str, ...] | None = None
    """None: unknown."""
    split: str | None = None
    skipped: bool = False


@dataclass(frozen=True)
class Options:
    """What an export may not say itself."""

    field: str | None = None
    """Of several groups of tags, the one to take."""
    annotators: str | None = None
    """newest or union, where people disagree."""
    unlabelled: str | None = None
    """none or unknown: what a photo without a tag is, where the format does not say."""
    threshold: float | None = None
    """Confidence from which a tag counts."""
    separator: str | None = None
    """Between the labels of a cell."""
    crowds: str | None = None
    """objects or ignore: what COCO's regions with iscrowd 1 are, where masks are read."""
    classes: tuple[str, ...] | None = None
    """The class list of masks that have only indices."""


@dataclass(frozen=True)
class Export:
    """The photos of an export, and its class names in its own order, if it has one."""

    photos: list[Tagged]
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Format:
    """One format."""

    title: str
    fits: Callable[[Path], bool]
    """Whether a file (or for some a folder) is of this format."""
    read: Callable[[Path, Options], Export]


# -- reading ----------------------------------------------------------------------------------------


def json_of(path: Path) -> Any:
    """The content of a JSON file; None if it is something else."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    try:
        return json.loads(read_text(path))
    except ValueError:
        return None


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line; none if it is something else."""
    if path.suffix.lower() not in (".jsonl", ".manifest") or not path.is_file():
        return []
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path}:{number} is no JSON ({error}); correct the line") from error
    return [row for row in rows if isinstance(row, dict)]


def decoded(path: Path) -> str:
    """The text of a file in UTF-8, or else in Windows' code page, as Excel writes it."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _cells(text: str, path: Path, delimiter: str = ",") -> list[list[str]]:
    """The rows of a table that are not empty."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        return [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UserError(
            f"{path} is not valid CSV ({error}): check the quotes and close each of them"
        ) from error


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV by the names of their columns; cells that are missing are empty."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        return []
    rows = _cells(decoded(path), path)
    head = rows[0] if rows else []
    return [dict(zip(head, [*row, *[""] * len(head)], strict=False)) for row in rows[1:]]


def is_image(text: object) -> bool:
    """Whether a value names a photo."""
    return isinstance(text, str) and text.lower().split("?d=")[-1].endswith(IMAGE_SUFFIXES)


def xml_of(path: Path) -> ElementTree.Element | None:
    """The root of an XML file; None if it is something else, or has entities."""
    if path.suffix.lower() != ".xml" or not path.is_file():
        return None
    text = decoded(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        return None
    try:
        return ElementTree.fromstring(text.partition("?>")[2] if text.startswith("<?xml") else text)
    except (ElementTree.ParseError, ValueError):
        return None


def bare_photos(
    path: Path, options: Options, count: int, total: int, thing: str = "tag"
) -> tuple[str, ...] | None:
    """What photos without a tag (or another thing) are. Raises UserError if nobody said."""
    if options.unlabelled is None:
        raise UserError(
            f"{count} of {total} photos of {path} have no {thing}, and the format does not say whether someone looked: "
            "say --unlabelled none (they show none of the classes) or --unlabelled unknown (they are left out)"
        )
    return () if options.unlabelled == "none" else None


def _one(groups: Iterable[str], path: Path, options: Options) -> str | None:
    """The group of tags that is meant."""
    names = sorted(set(groups))
    if options.field is not None:
        if options.field not in names:
            raise UserError(f"{path} has no tags called {options.field}; it has {', '.join(names) or 'none'}")
        return options.field
    if len(names) > 1:
        raise UserError(f"{path} has several groups of tags ({', '.join(names)}): choose one with --field")
    return names[0] if names else None


# -- Label Studio -----------------------------------------------------------------------------------


def _is_label_studio(path: Path) -> bool:
    tree = json_of(path)
    return (
        isinstance(tree, list)
        and bool(tree)
        and all(
            isinstance(task, dict) and "data" in task and ("annotations" in task or "completions" in task)
            for task in tree
        )
    )


def _choices(result: Mapping[str, Any], path: Path) -> list[str]:
    values = result.get("value", {}).get("choices", [])
    if any(not isinstance(value, str) for value in values):
        raise UserError(f"{path} has nested choices, which wsss does not read: export a flat group of tags")
    return list(values)


def _read_label_studio(path: Path, options: Options) -> Export:
    tasks = json_of(path)
    results = [
        result
        for task in tasks
        for annotation in task.get("annotations", task.get("completions", []))
        for result in annotation.get("result", [])
        if result.get("type") == "choices" and not {"x", "points", "rle"} & set(result.get("value", {}))
    ]
    group = _one((str(result.get("from_name")) for result in results), path, options)
    photos = []
    for task in tasks:
        images = [value for value in task["data"].values() if is_image(value)]
        if len(images) != 1:
            raise UserError(f"{path}: task {task.get('id')} names {len(images)} images, but must name one")
        given = task.get("annotations", task.get("completions", []))
        kept = [one for one in given if not one.get("was_cancelled")]
        found = [
            (str(one.get("updated_at") or one.get("created_at") or ""), {
                name for result in one.get("result", []) if result.get("from_name") == group
                and result.get("type") == "choices" for name in _choices(result, path)
            })
            for one in kept
        ]  # fmt: skip
        photos.append(_of_annotators(images[0], found, bool(given) and not kept, path, options))
    return Export(photos)


def _of_annotators(
    reference: str, found: Sequence[tuple[str, set[str]]], skipped: bool, path: Path, options: Options
) -> Tagged:
    """One photo from the sets of its annotators, each with a time."""
    if not found:
        return Tagged(reference, skipped=skipped)
    sets = [names for _, names in found]
    if all(names == sets[0] for names in sets):
        return Tagged(reference, tuple(sorted(sets[0])))
    if options.annotators == "union":
        return Tagged(reference, tuple(sorted(set().union(*sets))))
    if options.annotators == "newest":
        return Tagged(reference, tuple(sorted(max(found, key=lambda pair: pair[0])[1])))
    raise UserError(
        f"{path}: people disagree about {reference}; say --annotators newest or --annotators union, or settle it there"
    )


_NO_TAGS = {"id", "annotation_id", "annotator", "created_at", "updated_at", "lead_time", "image", "task_id"}


def _is_label_studio_min(path: Path) -> bool:
    tree = json_of(path)
    rows = tree if isinstance(tree, list) else _rows(path)
    return bool(rows) and isinstance(rows[0], dict) and {"annotation_id", "annotator"} <= set(rows[0])


def _read_label_studio_min(path: Path, options: Options) -> Export:
    rows: list[dict[str, Any]] = json_of(path) or _rows(path)
    columns = {key for row in rows for key in row if key not in _NO_TAGS and not is_image(row[key])}
    group = _one(columns, path, options)
    found: dict[str, list[tuple[str, set[str]]]] = {}
    for row in rows:
        reference = next((str(value) for value in row.values() if is_image(value)), None)
        if reference is None:
            raise UserError(f"{path}: a record names no image: {str(row)[:80]}")
        sets = found.setdefault(reference, [])
        if row.get("annotation_id") in (None, ""):
            continue
        value = row.get(group or "")
        if isinstance(value, str) and value.startswith("{"):
            value = json.loads(value)
        names = value["choices"] if isinstance(value, dict) else [value] if value else []
        sets.append((str(row.get("updated_at") or ""), set(names)))
    return Export([_of_annotators(name, sets, False, path, options) for name, sets in found.items()])


# -- CVAT, COCO, YOLO, Roboflow ---------------------------------------------------------------------


def _is_cvat(path: Path) -> bool:
    root = xml_of(path)
    return (
        root is not None
        and root.tag == "annotations"
        and (root.find("image") is not None or root.find("track") is not None)
    )


def _read_cvat(path: Path, options: Options) -> Export:
    root = xml_of(path)
    assert root is not None
    if root.find("track") is not None:
        raise UserError(f"{path} holds a video: export its frames as images (CVAT for images 1.1)")
    images = root.findall("image")
    bare = sum(image.find("tag") is None for image in images)
    missing = bare_photos(path, options, bare, len(images)) if bare else None
    photos = []
    for image in images:
        tags = tuple(sorted({tag.attrib["label"] for tag in image.findall("tag")}))
        split = SPLITS.get(str(image.attrib.get("subset", "")).lower())
        photos.append(Tagged(image.attrib["name"], tags or missing, split))
    names = [label.findtext("name") for label in root.findall("meta//labels/label")]
    return Export(photos, tuple(name for name in names if name) or None)


def _is_coco(path: Path) -> bool:
    tree = json_of(path)
    return isinstance(tree, dict) and {"images", "annotations", "categories"} <= set(tree)


def coco_photos(
    path: Path,
) -> tuple[dict[Any, str], list[tuple[str, Mapping[str, Any], list[Mapping[str, Any]]]]]:
    """Names by category id; reference, entry and annotations of every image.

    Raises:
        UserError: an annotation names a category or an image that is not listed.
    """
    tree = json_of(path)
    names = {category["id"]: str(category["name"]) for category in tree["categories"]}
    found: dict[Any, list[Mapping[str, Any]]] = {image["id"]: [] for image in tree["images"]}
    for one in tree["annotations"]:
        if one["category_id"] not in names or one["image_id"] not in found:
            raise UserError(
                f"{path}: annotation {one.get('id')} names a category or an image that is not listed"
            )
        found[one["image_id"]].append(one)
    folder = f"{path.parent.name}/" if _coco_split(path) else ""
    return names, [(f"{folder}{image['file_name']}", image, found[image["id"]]) for image in tree["images"]]


def _coco_split(path: Path) -> str | None:
    """Roboflow's folder of a split."""
    return SPLITS.get(path.parent.name.lower()) if path.name == "_annotations.coco.json" else None


def _read_coco(path: Path, options: Options) -> Export:
    names, images = coco_photos(path)
    photos = [
        Tagged(reference, tuple(sorted({names[one["category_id"]] for one in found})), _coco_split(path))
        for reference, _, found in images
    ]
    used = {name for photo in photos for name in photo.labels or ()}
    return Export(photos, tuple(name for _, name in sorted(names.items()) if name in used))


def _is_roboflow(path: Path) -> bool:
    rows = _rows(path)
    if path.name != "_classes.csv" or not rows or next(iter(rows[0])).lower() != "filename":
        return False
    return all(value in ("0", "1") for row in rows for value in list(row.values())[1:])


def _read_roboflow(path: Path, options: Options) -> Export:
    split, rows = SPLITS.get(path.parent.name.lower()), _rows(path)
    folder = f"{path.parent.name}/" if split else ""
    name, *classes = rows[0]
    photos = [
        Tagged(f"{folder}{row[name]}", tuple(other for other in classes if row[other] == "1"), split)
        for row in rows
    ]
    return Export(photos, tuple(classes))


def _is_yolo(path: Path) -> bool:
    if path.suffix not in (".yaml", ".yml") or not path.is_file() or not (path.parent / "labels").is_dir():
        return False
    try:
        tree = yaml.safe_load(decoded(path))
    except yaml.YAMLError:
        return False
    return isinstance(tree, dict) and "names" in tree


def yolo_photos(path: Path) -> tuple[dict[int, str], list[tuple[Path, Path]]]:
    """Names by index; every photo and the path of its text, which may be missing."""
    named = yaml.safe_load(read_text(path))["names"]
    pairs = enumerate(named) if isinstance(named, list) else named.items()
    root = path.parent
    images = sorted(p for p in (root / "images").rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    return {int(key): str(name) for key, name in pairs}, [
        (image, _label_file(root, image)) for image in images
    ]


def yolo_rows(text: Path, names: Mapping[int, str]) -> list[tuple[str, list[float]]]:
    """Class and numbers of every row. Raises UserError where a class has no name."""
    rows = [[float(word) for word in line.split()] for line in read_text(text).splitlines() if line.strip()]
    if unknown := {int(row[0]) for row in rows} - set(names):
        raise UserError(f"{text} has the class {min(unknown)}, but its data.yaml names {len(names)} classes")
    return [(names[int(row[0])], row[1:]) for row in rows]


def _read_yolo(path: Path, options: Options) -> Export:
    root, photos = path.parent, []
    names, pairs = yolo_photos(path)
    lost = sum(not text.is_file() for _, text in pairs)
    missing = bare_photos(path, options, lost, len(pairs)) if lost else None
    for image, text in pairs:
        inside = image.relative_to(root / "images").parts
        split = next((SPLITS[part] for part in inside if part in SPLITS), None)
        labels = tuple(sorted({name for name, _ in yolo_rows(text, names)})) if text.is_file() else missing
        photos.append(Tagged(image.relative_to(root).as_posix(), labels, split))
    return Export(photos, tuple(name for _, name in sorted(names.items())))


def _label_file(root: Path, image: Path) -> Path:
    return root / "labels" / image.relative_to(root / "images").with_suffix(".txt")


# -- Hugging Face, FiftyOne, LabelMe, fastai, clouds ------------------------------------------------


def _is_hugging_face(path: Path) -> bool:
    rows = _lines(path) or _rows(path)
    return path.stem == "metadata" and bool(rows) and "file_name" in rows[0]


def _read_hugging_face(path: Path, options: Options) -> Export:
    rows: list[dict[str, Any]] = [*_lines(path)] or [*_rows(path)]
    usual = {"label", "labels", "tag", "tags"} & {key for row in rows for key in row}
    group = _one({key for row in rows for key in row} if options.field else usual, path, options)
    split = SPLITS.get(path.parent.name.lower())
    photos = []
    for row in rows:
        value = row.get(group or "")
        if isinstance(value, int) or (isinstance(value, list) and any(isinstance(one, int) for one in value)):
            raise UserError(f"{path} has numbers for classes, and no names: write the names")
        labels = (
            None if value is None else tuple(value) if isinstance(value, list) else (value,) if value else ()
        )
        folder = f"{path.parent.name}/" if split else ""
        photos.append(Tagged(f"{folder}{row['file_name']}", labels, split))
    return Export(photos)


def _is_fiftyone(path: Path) -> bool:
    tree = json_of(path)
    return isinstance(tree, dict) and isinstance(tree.get("labels"), dict)


def _read_fiftyone(path: Path, options: Options) -> Export:
    tree = json_of(path)
    classes = tree.get("classes")

    def name(target: Any) -> str:
        value = target.get("label") if isinstance(target, dict) else target
        if isinstance(value, int):
            if classes is None or not 0 <= value < len(classes):
                raise UserError(f"{path} has the class {value}, but names {len(classes or ())} classes")
            return str(classes[value])
        return str(value)

    photos = []
    for identifier, targets in tree["labels"].items():
        some = targets if isinstance(targets, list) else None if targets is None else [targets]
        photos.append(
            Tagged(identifier, None if some is None else tuple(sorted({name(one) for one in some})))
        )
    return Export(photos, tuple(map(str, classes)) if classes else None)


def _is_labelme(path: Path) -> bool:
    tree = json_of(path)
    return isinstance(tree, dict) and {"shapes", "imagePath", "flags"} <= set(tree)


def _read_labelme(path: Path, options: Options) -> Export:
    tree = json_of(path)
    flags = tree["flags"]
    labels = tuple(sorted(name for name, value in flags.items() if value)) if flags else None
    return Export([Tagged(f"{path.parent.name}/{tree['imagePath']}", labels)])


def _is_fastai(path: Path) -> bool:
    rows = _rows(path)
    return bool(rows) and list(rows[0])[:2] == ["fname", "labels"]


def _read_fastai(path: Path, options: Options) -> Export:
    photos = [
        Tagged(row["fname"], tuple(row["labels"].split()), _valid(row.get("is_valid"))) for row in _rows(path)
    ]
    return Export(photos)


def _valid(value: str | None) -> str | None:
    return None if value is None else "val" if value.lower() in ("true", "1") else "train"


def _is_vertex(path: Path) -> bool:
    rows = _lines(path)
    return bool(rows) and "imageGcsUri" in rows[0]


def _read_vertex(path: Path, options: Options) -> Export:
    photos = []
    for row in _lines(path):
        names = [one["displayName"] for one in row.get("classificationAnnotations", [])]
        if "classificationAnnotation" in row:
            names.append(row["classificationAnnotation"]["displayName"])
        use = row.get("dataItemResourceLabels", {}).get("aiplatform.googleapis.com/ml_use", "")
        photos.append(Tagged(row["imageGcsUri"], tuple(sorted(names)) or None, SPLITS.get(use)))
    return Export(photos)


def _is_sagemaker(path: Path) -> bool:
    rows = _lines(path)
    return bool(rows) and "source-ref" in rows[0]


def _read_sagemaker(path: Path, options: Options) -> Export:
    rows = _lines(path)
    kind = "groundtruth/image-classification-multilabel"
    groups = {
        key.removesuffix("-metadata")
        for row in rows
        for key, value in row.items()
        if key.endswith("-metadata") and isinstance(value, dict) and value.get("type") == kind
    }
    group = _one(groups, path, options)
    photos = []
    for row in rows:
        indices = row.get(group or "")
        known = row.get(f"{group}-metadata", {}).get("class-map", {})
        labels = None if indices is None else tuple(sorted(known[str(index)] for index in indices))
        photos.append(Tagged(row["source-ref"], labels))
    return Export(photos)


def _is_open_images(path: Path) -> bool:
    rows = _rows(path)
    return bool(rows) and {"ImageID", "LabelName", "Confidence"} <= set(rows[0])


def _read_open_images(path: Path, options: Options) -> Export:
    if options.unlabelled != "none":
        raise UserError(
            f"{path} verifies single labels, and wsss has no partial labels: say --unlabelled none to take every label "
            "that is not listed as absent"
        )
    found: dict[str, set[str]] = {}
    for row in _rows(path):
        confidence = float(row["Confidence"])
        if confidence not in (0.0, 1.0) and options.threshold is None:
            raise UserError(
                f"{path} has the confidence {confidence:g}: say from which on a label counts (--threshold)"
            )
        names = found.setdefault(row["ImageID"], set())
        if confidence >= (1.0 if options.threshold is None else options.threshold):
            names.add(row["LabelName"])
    return Export([Tagged(name, tuple(sorted(names))) for name, names in found.items()])


# -- other tables -----------------------------------------------------------------------------------

_YES, _NO = ("1", "1.0", "true", "yes", "x"), ("0", "0.0", "false", "no", "")


def _table(path: Path) -> list[list[str]]:
    """The cells of a text table with commas, semicolons or tabs; none if it is something else."""
    if path.suffix.lower() not in (".csv", ".tsv") or not path.is_file():
        return []
    text = decoded(path)
    first = text.partition("\n")[0]
    rest = text.partition("\n")[2].partition("\n")[0]
    marks = {mark: (first.count(mark) == rest.count(mark) > 0, first.count(mark)) for mark in "\t,;"}
    mark = max(marks, key=lambda one: marks[one])
    return _cells(text, path, mark)


def _is_table(path: Path) -> bool:
    rows = _table(path)
    return len(rows) > 1 and all(len(row) >= 2 for row in rows) and is_image(rows[1][0])


def _read_table(path: Path, options: Options) -> Export:
    """A photo in the first column; then its labels in one cell, one label a row, or a column for each class."""
    rows = _table(path)
    head = None if is_image(rows[0][0]) else rows.pop(0)
    if head is not None and len(head) > 2:
        return _of_columns(path, head, rows, options)
    words = ("label", "labels", "tag", "tags", "class", "classes")
    binary = all(len(row) == 2 and row[1].lower() in (*_YES, *_NO) for row in rows)
    if head is not None and head[1].lower() not in words and binary:
        return _of_columns(path, head, rows, options)
    if strange := next((row for row in rows if len(row) != 2), None):
        raise UserError(
            f"{path} has a row of {len(strange)} cells ({', '.join(strange)[:80]}), where most have 2"
        )
    mark = options.separator or _separator(path, [row[1] for row in rows])
    found: dict[str, set[str]] = {}
    for name, cell in rows:
        parts = cell.split(mark) if mark else [cell]
        found.setdefault(name, set()).update(part.strip() for part in parts if part.strip())
    return Export([Tagged(name, tuple(sorted(labels))) for name, labels in found.items()])


def _separator(path: Path, cells: Sequence[str]) -> str:
    """What separates the labels of a cell; nothing where each cell is one label."""
    if any(";" in cell for cell in cells):
        return ";"
    alone = set(cells)
    for mark in (",", "|", " "):
        several = [cell for cell in cells if mark in cell]
        known = [all(part.strip() in alone for part in cell.split(mark)) for cell in several]
        if mark == "," and several and all(known):
            return mark
        if any(known) or (several and mark != " "):
            raise UserError(
                f'{path} has cells such as "{several[0]}": say what separates labels, such as --label_separator '
                f'"{mark}", or --label_separator ";" if each cell is one label'
            )
    return ""


def _of_columns(path: Path, head: Sequence[str], rows: Sequence[Sequence[str]], options: Options) -> Export:
    """A column for each class."""
    if strange := next((row for row in rows if len(row) != len(head)), None):
        raise UserError(
            f"{path} has a row of {len(strange)} cells ({', '.join(strange)[:80]}), but its header has {len(head)}"
        )

    def counts(value: str) -> bool:
        if value.lower() in (*_YES, *_NO):
            return value.lower() in _YES
        try:
            number = float(value.replace(",", "."))
        except ValueError as error:
            raise UserError(f'{path} has the value "{value}" for a class; 0 and 1 are expected') from error
        if options.threshold is None:
            raise UserError(
                f"{path} has the value {value} for a class: say from which on a label counts (--threshold)"
            )
        return number >= options.threshold

    photos = [
        Tagged(row[0], tuple(name for name, value in zip(head[1:], row[1:], strict=True) if counts(value)))
        for row in rows
    ]
    return Export(photos, tuple(head[1:]))


def _is_cvat_imagenet(path: Path) -> bool:
    return path.name == "synsets.txt" and any(one.name != path.name for one in path.parent.glob("*.txt"))


def _read_cvat_imagenet(path: Path, options: Options) -> Export:
    names, photos = read_text(path).splitlines(), []
    for listed in sorted(one for one in path.parent.glob("*.txt") if one.name != path.name):
        for line in read_text(listed).splitlines():
            words = line.split()
            cut = next(
                (at for at in range(1, len(words)) if all(word.isdigit() for word in words[at:])), len(words)
            )
            labels = tuple(names[int(word)] for word in words[cut:])
            if words:
                photos.append(Tagged(" ".join(words[:cut]), labels or None, SPLITS.get(listed.stem.lower())))
    return Export(photos, tuple(names))


# -- folders ----------------------------------------------------------------------------------------


def _is_class_folders(path: Path) -> bool:
    """A folder whose sub-folders have photos, at once or below a folder for each split."""
    if not path.is_dir():
        return False
    if splits := _split_folders(path):
        return all(_is_class_folders(folder) for folder in splits)
    inside = [one for one in path.iterdir() if one.is_dir() and not one.name.startswith(".")]
    return (
        len(inside) > 1
        and not any(one.suffix.lower() in IMAGE_SUFFIXES for one in path.iterdir())
        and all(any(one.suffix.lower() in IMAGE_SUFFIXES for one in folder.iterdir()) for folder in inside)
    )


def _split_folders(path: Path) -> list[Path]:
    """The sub-folders, if all of them are called like splits."""
    inside = sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))
    return inside if inside and all(one.name.lower() in SPLITS for one in inside) else []


def _read_class_folders(path: Path, options: Options) -> Export:
    photos = []
    for top in _split_folders(path) or [path]:
        split = None if top == path else SPLITS[top.name.lower()]
        for folder in sorted(one for one in top.iterdir() if one.is_dir() and not one.name.startswith(".")):
            labels = (folder.name,) if folder.name != "_unlabeled" else None
            photos += [
                Tagged(image.relative_to(path).as_posix(), labels, split)
                for image in sorted(folder.iterdir())
                if image.suffix.lower() in IMAGE_SUFFIXES
            ]
    return Export(photos)


FORMATS: dict[str, Format] = {
    "cvat-imagenet": Format("CVAT's ImageNet export", _is_cvat_imagenet, _read_cvat_imagenet),
    "labelstudio": Format("Label Studio's JSON", _is_label_studio, _read_label_studio),
    "labelstudio-min": Format("Label Studio's JSON_MIN or CSV", _is_label_studio_min, _read_label_studio_min),
    "cvat": Format("CVAT for images 1.1", _is_cvat, _read_cvat),
    "coco": Format("COCO's JSON", _is_coco, _read_coco),
    "roboflow": Format("Roboflow's multi-label CSV", _is_roboflow, _read_roboflow),
    "yolo": Format("a YOLO data set", _is_yolo, _read_yolo),
    "huggingface": Format("Hugging Face's metadata", _is_hugging_face, _read_hugging_face),
    "fiftyone": Format("FiftyOne's labels.json", _is_fiftyone, _read_fiftyone),
    "labelme": Format("LabelMe's flags", _is_labelme, _read_labelme),
    "fastai": Format("fastai's CSV", _is_fastai, _read_fastai),
    "vertex": Format("Vertex AI's JSON lines", _is_vertex, _read_vertex),
    "sagemaker": Format("SageMaker's manifest", _is_sagemaker, _read_sagemaker),
    "openimages": Format("Open Images' CSV", _is_open_images, _read_open_images),
}
"""The formats of files, under the names of the command line."""

TABLE = Format("a table of photos and labels", _is_table, _read_table)
"""Taken where no format of a tool fits."""

FOLDERS = Format("a folder for each class", _is_class_folders, _read_class_folders)
"""Asked for by name, or taken where nothing else fits."""

SUFFIXES = (".json", ".csv", ".tsv", ".xml", ".jsonl", ".manifest", ".yaml", ".yml", ".zip")

_UPLOAD = re.compile(r"^[0-9a-f]{8}-")


def without_upload(reference: str) -> str:
    """The name of a file as it was before Label Studio put eight digits and its own folder before the uploads."""
    return _UPLOAD.sub("", reference.rpartition("/")[2])


@contextmanager
def as_written(path: Path, title: str) -> Iterator[None]:
    """What goes wrong in the block because a file is not as its tool writes it becomes a UserError."""
    try:
        yield
    except (
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        yaml.YAMLError,
    ) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is not {title} as wsss knows it ({type(error).__name__}: {error}); export it again, or "
            "choose another --format"
        ) from error


def read(form: Format, path: Path, options: Options) -> Export:
    """What a file says. Raises UserError where it is not as the tool writes it."""
    with as_written(path, form.title):
        export = form.read(path, options)
        for photo in export.photos:
            for text in (photo.reference, *(photo.labels or ())):
                if not isinstance(text, str):
                    raise TypeError(f"{text!r} is no name")
        return export


def candidates(source: Path) -> Iterator[Path]:
    """The files that may hold the tags: the source itself, or those at most two folders deep in it."""
    if source.is_file():
        yield source
        return
    for pattern in ("*", "*/*", "*/*/*"):
        for path in sorted(source.glob(pattern)):
            if path.name.startswith("."):
                continue
            if path.suffix.lower() in SUFFIXES or path.name in ("synsets.txt", "labelmap.txt"):
                yield path
