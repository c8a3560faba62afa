"""The doctor (`wsss data check`): reads every file of a data set and reports all errors at once."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wsss.data.agreement import Seen, compare_labels, compare_masks, compare_names, indices
from wsss.data.dataset import check_root, first, found_in, left_out, missing_fix, resolve_file, walk_images
from wsss.data.files import read_image, read_mask
from wsss.data.findings import CheckReport, Problem, Severity
from wsss.data.folder import image_folder
from wsss.data.labels import IGNORE, PHOTO_KINDS, VOC_CLASSES, annotation_files, read_ids, xml_names
from wsss.data.names import read_classes
from wsss.data.tags import read_csv_classes, read_label_rows, unknown_label
from wsss.data.voc import SPLIT_FOLDERS
from wsss.errors import UserError


@dataclass
class _Check:
    """What is known so far; the steps below fill it."""

    root: Path
    layout: str
    classes: tuple[str, ...] = ()
    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, severity: Severity, kind: str, file: Path, message: str) -> None:
        self.problems.append(Problem(severity, kind, file, message))


@dataclass(frozen=True)
class _Scan:
    """What reading one image and its mask found."""

    problems: tuple[Problem, ...]
    values: frozenset[int] | None


def check_dataset(root: Path, classes: Path | None, labels: str | None) -> CheckReport:
    """Reads a data set completely (every photo and mask is decoded) and reports all its problems.

    Args:
        root: a folder in VOC layout (it has JPEGImages) or in folder layout.
        classes: the class list; None = root/classes.txt, else VOC's classes or those of the CSV.
        labels: "xml" or a CSV; None = Annotations/ where it exists, else root/labels.csv.

    Raises:
        UserError: `root` is not a folder. Everything else is in the report.
    """
    check_root(root)
    check = _Check(root, "voc" if (root / "JPEGImages").is_dir() else "folder")
    _list_files(check)
    source = _label_source(check, labels)
    _read_classes(check, classes, source)
    _read_labels(check, source)
    _read_splits(check)
    _compare_classes(check, source or root)
    scans = _scan_all(check)
    _compare_labels(check, scans)
    _find_duplicates(check)
    order = {problem.kind: number for number, problem in reversed([*enumerate(check.problems)])}
    problems = sorted(check.problems, key=lambda problem: (problem.severity != "error", order[problem.kind]))
    per_class = Counter(index for present in check.labels.values() for index in present)
    names = {name: per_class[index] for index, name in enumerate(check.classes, 1)} if check.labels else {}
    return CheckReport(root, check.layout, tuple(problems), _counts(check), names)


def _counts(check: _Check) -> dict[str, int]:
    counts = {"images": len(check.images), "masks": len(check.masks), "labelled": len(check.labels)}
    counts |= {"without any class": sum(not present for present in check.labels.values())}
    return counts | {f"split {name}": len(ids) for name, ids in check.splits.items()}


def _list_files(check: _Check) -> None:
    voc = check.layout == "voc"
    photos = check.root / "JPEGImages" if voc else image_folder(check.root)
    masks = check.root / ("SegmentationClass" if voc else "masks")
    check.images = _index(check, walk_images(photos, nested=not voc, exclude=(masks,)))
    check.masks = _index(check, walk_images(masks, nested=not voc))
    if not check.images:
        message = f"{photos} holds no photos ({PHOTO_KINDS}; {found_in(photos)}): see data/README.md"
        check.add("error", "no photos", photos, message)
    for message in left_out(photos, nested=not voc, exclude=(masks,)):
        check.add("warning", "files left out", photos, message)
    for identifier, path in check.masks.items():
        if identifier not in check.images:
            check.add("warning", "masks without photo", path, f"{path} has no photo of that name")


def _index(check: _Check, files: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    index: dict[str, Path] = {}
    for identifier, path in files:
        if identifier in index:
            message = f"{index[identifier]} and {path}: rename one of them"
            check.add("error", "two files with one id", path, message)
        index.setdefault(identifier, path)
    return index


def _label_source(check: _Check, labels: str | None) -> Path | None:
    """Annotations folder or CSV file; None (and a finding) if there is neither."""
    annotations, csv = check.root / "Annotations", check.root / "labels.csv"
    if labels == "xml" and check.layout == "folder":
        labels = None  # the configuration's default, which means labels.csv there
    if labels is None:
        has_xml = check.layout == "voc" and annotations.is_dir()
        found = annotations if has_xml else (csv if csv.is_file() else None)
    elif labels == "xml":
        found = annotations if annotations.is_dir() else None
    else:
        found = resolve_file(labels, check.root)
    if found is None:
        wanted = labels if labels not in (None, "xml") else str(csv)
        if check.layout == "voc" and labels in (None, "xml"):
            wanted = f"neither {annotations}/ nor {csv}"
        fix = f'write a CSV with the header "image,labels" there, or name yours with --labels ({found_in(check.root)})'
        check.add("error", "no labels", check.root, f"image labels not found: {wanted}; {fix}")
    return found


def _read_classes(check: _Check, classes: Path | None, source: Path | None) -> None:
    own = check.root / "classes.txt"
    try:
        if classes is None and not own.is_file() and check.layout == "folder":
            check.classes = () if source is None else read_csv_classes(source)
        else:
            check.classes = read_classes(classes or (own if own.is_file() else None))
    except UserError as error:
        file = source if classes is None and not own.is_file() and source is not None else classes or own
        check.add("error", "class list", file, str(error))


def _read_labels(check: _Check, source: Path | None) -> None:
    if source is None:
        return
    if source.is_dir():
        _read_annotations(check, source)
    else:
        _read_csv(check, source)


def _read_annotations(check: _Check, folder: Path) -> None:
    names: dict[str, tuple[str, ...]] = {}
    files = annotation_files(folder)
    for identifier in [name for name in check.images if name in files]:
        try:
            names[identifier] = xml_names(files[identifier])
        except UserError as error:
            check.add("error", "annotations", files[identifier], str(error))
    if check.classes:
        chosen = check.classes != VOC_CLASSES
        check.problems += compare_names(names, check.classes, folder, chosen=chosen)
    check.labels |= indices(names, check.classes)


def _compare_classes(check: _Check, source: Path) -> None:
    """The labels of train (every labelled photo that is not in val) and of val against the class list."""
    held = set(check.splits.get("val", ()))
    train = [labels for name, labels in check.labels.items() if name not in held]
    val = [check.labels[name] for name in held if name in check.labels]
    if train and check.classes:
        check.problems += compare_labels(train, val, check.classes, source)


def _read_csv(check: _Check, path: Path) -> None:
    try:
        rows = read_label_rows(path, nested=check.layout == "folder")
    except UserError as error:
        if str(error) not in {
            problem.message for problem in check.problems
        }:  # the class list may have reported it
            check.add("error", "labels", path, str(error))
        return
    index = {name: number for number, name in enumerate(check.classes, 1)}
    for row in rows:
        where = f"{path}:{row.line}"
        if row.identifier not in check.images:
            fix = missing_fix(row.identifier, check.images)
            check.add("error", "labels without photo", path, f"{where}: no photo {row.identifier}: {fix}")
            continue
        for name in row.names:
            if name not in index and check.classes:
                check.add("error", "unknown labels", path, f"{where}: {unknown_label(name, check.classes)}")
        known = {index[name] for name in row.names if name in index}
        check.labels[row.identifier] = tuple(sorted(known))
    if check.layout == "folder" and check.labels:
        _look_for_gaps(check, path)


def _look_for_gaps(check: _Check, path: Path) -> None:
    """Photos without a line in the CSV, and a single photo."""
    bare = [identifier for identifier in check.images if identifier not in check.labels]
    if bare:
        message = f"{path} has no line for {len(bare)} of {len(check.images)} photos ({first(bare)}): they are not used"
        check.add("warning", "photos without labels", path, message)
    if len(check.labels) == 1:
        message = (
            f"{path} labels only one photo: nothing is left for val, and most networks need two to train"
        )
        check.add("warning", "one photo", path, message)


def _split_files(check: _Check) -> list[Path]:
    if check.layout == "folder":
        return [path for name in ("train", "val", "test") if (path := check.root / f"{name}.txt").is_file()]
    segmentation = sorted((check.root / SPLIT_FOLDERS[0]).glob("*.txt"))
    main = [check.root / SPLIT_FOLDERS[1] / f"{name}.txt" for name in ("train", "trainval", "val", "test")]
    return segmentation or [path for path in main if path.is_file()]


def _read_splits(check: _Check) -> None:
    paths = _split_files(check)
    if not paths and check.layout == "voc":
        folder = check.root / SPLIT_FOLDERS[0]
        check.add(
            "warning", "no splits", folder, f"{folder} has no lists: set data.train and data.val to files"
        )
    for path in paths:
        try:
            ids = read_ids(path, nested=check.layout == "folder")
        except UserError as error:
            check.add("error", "split lists", path, str(error))
            continue
        check.splits[path.stem] = ids
        _check_split(check, path, ids)
    _check_overlap(check)


def _check_split(check: _Check, path: Path, ids: Sequence[str]) -> None:
    missing = [identifier for identifier in ids if identifier not in check.images]
    if missing:
        message = f"{path}: {len(missing)} of {len(ids)} ids have no photo ({first(missing)})"
        check.add("error", "ids without photo", path, message)
    bare = [name for name in ids if name in check.images and name not in check.labels]
    if bare and check.labels and path.stem.startswith("train"):
        message = f"{path}: {len(bare)} of {len(ids)} ids have no image labels ({first(bare)})"
        check.add("error", "training images without labels", path, message)


def _rivals(splits: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of splits that must not share an image; trainval holds val by definition."""
    names = set(splits)
    trains = sorted(name for name in names if name.startswith("train") and not name.startswith("trainval"))
    pairs = [(name, str(other)) for name in trains for other in ("val", "test") if other in names]
    return pairs + ([("val", "test")] if {"val", "test"} <= names else [])


def _check_overlap(check: _Check) -> None:
    for one, other in _rivals(check.splits):
        shared = sorted(set(check.splits[one]) & set(check.splits[other]))
        if shared:
            message = f"{len(shared)} ids are in {one} and in {other} ({first(shared)}): remove them from one"
            check.add("error", "ids in two splits", check.root, message)


def _scan_all(check: _Check) -> dict[str, _Scan]:
    """Decodes every photo and mask, in threads (Pillow's decoders release the GIL)."""
    from tqdm import tqdm  # here: a terminal nicety that importing this module should not cost

    def scan(identifier: str) -> _Scan:
        return _scan(check.images[identifier], check.masks.get(identifier), len(check.classes))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(scan, check.images)
        # disable=None: no bar if stderr is not a terminal
        bar = tqdm(results, total=len(check.images), desc="check", unit="photo", disable=None, leave=False)
        scans = dict(zip(check.images, bar, strict=True))
    for result in scans.values():
        check.problems += result.problems
    return scans


def _scan(image: Path, mask: Path | None, classes: int) -> _Scan:
    problems: list[Problem] = []
    size: tuple[int, ...] = ()
    remarks: list[str] = []
    try:
        size = read_image(image, remarks).shape[:2]
    except UserError as error:
        problems.append(Problem("error", "unreadable photos", image, str(error)))
    problems += [Problem("warning", "odd photos", image, f"{image} {remark}") for remark in remarks]
    if mask is None:
        return _Scan(tuple(problems), None)
    try:
        indices = read_mask(mask)
    except UserError as error:
        problems.append(Problem("error", "unreadable masks", mask, str(error)))
        return _Scan(tuple(problems), None)
    if size and indices.shape != size:
        height, width = indices.shape
        message = f"{mask} is {height}x{width}, but its photo is {size[0]}x{size[1]} (height x width)"
        problems.append(Problem("error", "masks of the wrong size", mask, message))
    values = np.flatnonzero(np.bincount(indices.ravel(), minlength=256)).tolist()
    alien = [str(value) for value in values if classes < value < IGNORE]
    if alien and classes:
        message = f"{mask} has the values {first(alien, 8)}: expected 0..{classes} and {IGNORE}"
        problems.append(Problem("error", "mask values outside the class list", mask, message))
    return _Scan(tuple(problems), frozenset(values))


def _compare_labels(check: _Check, scans: Mapping[str, _Scan]) -> None:
    kind = "labels that disagree with masks"
    masks = {name: scan.values for name, scan in scans.items() if scan.values is not None}
    if check.classes:
        seen = [Seen(check.masks[name], values, check.labels.get(name)) for name, values in masks.items()]
        check.problems += compare_masks(seen, check.classes)
    for identifier, values in masks.items():
        if identifier not in check.labels:
            continue
        labelled = set(check.labels[identifier])
        present = {value for value in values if 0 < value <= len(check.classes)}
        sides = (("only its labels have", labelled - present), ("only its mask has", present - labelled))
        parts = [
            f"{verb} {', '.join(check.classes[index - 1] for index in sorted(indices))}"
            for verb, indices in sides
            if indices
        ]
        if parts:
            check.add("warning", kind, check.masks[identifier], f"{identifier}: {'; '.join(parts)}")


def _find_duplicates(check: _Check) -> None:
    """Photos of the same bytes: an error across rival splits, else a warning."""
    sizes: dict[int, list[str]] = defaultdict(list)
    for identifier, path in check.images.items():
        with suppress(OSError):  # a dangling link, which was reported when decoding
            sizes[path.stat().st_size].append(identifier)
    same: dict[bytes, list[str]] = defaultdict(list)
    for identifier in (name for names in sizes.values() if len(names) > 1 for name in names):
        same[_digest(check.images[identifier])].append(identifier)
    members = {name: set(ids) for name, ids in check.splits.items()}
    for names in (group for group in same.values() if len(group) > 1):
        crossed = [pair for pair in _rivals(members) if all(members[split] & set(names) for split in pair)]
        path, text = check.images[names[0]], " = ".join(names[:4])
        if crossed:
            message = f"{text}: the same photo in {' and '.join(crossed[0])}: remove one"
            check.add("error", "identical photos in two splits", path, message)
        else:
            check.add("warning", "identical photos", path, text)


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return os.fsencode(path)  # unreadable: reported when decoding, equal to nothing here
