"""Do class list, image labels and masks name the same classes? Findings for the doctor and for the start of a run."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsss.data.dataset import Dataset, Labels, Record, evenly, first, with_masks
from wsss.data.files import check_photo, read_truth
from wsss.data.findings import Problem, Severity
from wsss.data.labels import BACKGROUND, IGNORE
from wsss.data.names import CLASS_FILES, listed, nearest, plain
from wsss.parallel import pool

MANY = 5000
"""Up to this many headers of photos are read faster than worker processes start."""

LOOKED_AT = 100
"""So many true masks, evenly spaced, are read at the start of a run. The doctor reads all."""

ENOUGH = 10
"""From this many photos on, a class that all of them have is worth a word."""

NO_LABELS = "no labels at all"
"""The kind of that problem."""

FEW = 3
"""Masks of a class that must all contradict the labels before that is more than a slip."""


@dataclass(frozen=True)
class Seen:
    """What a mask holds, and the labels of its photo (None: unknown)."""

    path: Path
    values: frozenset[int]
    labels: tuple[int, ...] | None


def check_photos(dataset: Dataset, workers: int) -> None:
    """Reads the header of every photo, in processes if there are thousands. Raises UserError for one that has none."""
    images = [record.image for record in (*dataset.train, *dataset.val)]
    with pool(workers if len(images) > MANY else 0) as executor:
        for _ in (
            map(check_photo, images) if executor is None else executor.map(check_photo, images, chunksize=200)
        ):
            pass


def examine(dataset: Dataset) -> list[Problem]:
    """What is wrong with a loaded data set: labels and true masks.

    Raises:
        UserError: a mask cannot be read, or has another size than its photo.
    """
    if dataset.evaluation_only:
        return []
    records = (*dataset.train, *dataset.val)
    train, val = ([record.labels for record in split] for split in (dataset.train, dataset.val))
    seen = look(evenly(with_masks(records), LOOKED_AT))
    no_val = "there are no validation photos: nothing will tell how well the networks do on other photos"
    return [
        *([] if val else [Problem("warning", "no validation images", records[0].image.parent, no_val)]),
        *compare_labels(train, val, dataset.classes, records[0].image.parent),
        *alien_values(seen, dataset.classes),
        *compare_masks(seen, dataset.classes),
    ]


# -- names ------------------------------------------------------------------------------------------


def compare_names(
    names: Mapping[str, Iterable[str]], classes: Sequence[str], source: Path, *, chosen: bool
) -> list[Problem]:
    """Compares the names in VOC's annotations with the class list.

    A list that the user chose may be a part of the names. Other names are then left out, unless one is a class in
    another spelling.

    Args:
        names: image id -> names of its objects.
        classes: the class list.
        source: the folder of annotations.
        chosen: whether the user chose the class list; else it is VOC's.
    """
    photos = Counter(name for found in names.values() for name in set(found))
    unknown = {name: count for name, count in photos.items() if name not in classes}
    if not unknown:
        return []
    spelt = {plain(name) for name in classes}
    idle = [name for name in classes if name not in photos]  # a misspelt class has no photo
    alike = {name: count for name, count in unknown.items() if plain(name) in spelt or nearest(name, idle)}
    text = listed(unknown, classes)
    if not chosen:
        own = next((source.parent / name for name in CLASS_FILES if (source.parent / name).is_file()), None)
        fix = (
            f"set --data.classes {own}"
            if own
            else "write your class list, one name a line, and set --data.classes to it"
        )
        message = f"{source} has names that are not among VOC's 20 classes: {text}; {fix}"
    elif len(unknown) == len(photos):
        message = (
            f"{source} has none of the classes in data.classes ({first(classes, 8)}), but {text}: set --data.classes "
            "to a list of these"
        )
    elif alike:
        message = (
            f"{source} spells classes in another way than data.classes: {listed(alike, classes)}; write each name in "
            "one way, or remove the class that no photo has from the list"
        )
    else:
        message = f"{source} also has names that are not in data.classes, and they are left out: {text}"
        return [Problem("warning", "other names", source, message)]
    return [Problem("error", "names that the class list lacks", source, message)]


def indices(names: Mapping[str, Iterable[str]], classes: Sequence[str]) -> Labels:
    """Image id -> sorted mask indices 1..C of its names; other names are left out."""
    index = {name: number for number, name in enumerate(classes, 1)}
    return {
        key: tuple(sorted({index[name] for name in found if name in index})) for key, found in names.items()
    }


# -- labels -----------------------------------------------------------------------------------------


def compare_labels(
    train: Sequence[tuple[int, ...] | None],
    val: Sequence[tuple[int, ...] | None],
    classes: Sequence[str],
    source: Path,
) -> list[Problem]:
    """Which classes the photos of a split lack, and which all of them have.

    Args:
        train: labels of the training photos.
        val: likewise; None = unknown.
        classes: the class list.
        source: file or folder of the labels.
    """
    counts = Counter(index for labels in train for index in labels or ())
    if not counts:
        message = (
            f"none of the {len(train)} training photos has a label, so there is nothing to learn: check data.labels "
            "and data.classes"
        )
        return [Problem("error", NO_LABELS, source, message)]
    lacking = [name for index, name in enumerate(classes, 1) if not counts[index]]
    everywhere = [name for index, name in enumerate(classes, 1) if counts[index] == len(train) >= ENOUGH]
    known = [labels for labels in val if labels is not None]
    checked = {index for labels in known for index in labels}
    unchecked = [name for index, name in enumerate(classes, 1) if counts[index] and index not in checked]
    sentences = {
        "classes without images": (
            lacking,
            "no training photo has the label {}: no network can learn that",
        ),
        "classes in every image": (
            everywhere,
            f"all {len(train)} training photos have the label {{}}: add photos without it, or the classifier learns "
            "little of it",
        ),
        "classes without validation images": (
            unchecked if known else [],
            f"none of the {len(known)} validation photos has the label {{}}: nothing will tell how well that is learnt",
        ),
    }
    return [
        Problem("warning", kind, source, sentence.format(first(names, 20)))
        for kind, (names, sentence) in sentences.items()
        if names
    ]


# -- masks ------------------------------------------------------------------------------------------


def look(records: Sequence[Record]) -> list[Seen]:
    """Reads the masks of the records, in threads.

    Raises:
        UserError: a mask that `read_truth` refuses.
    """

    def see(record: Record) -> Seen:
        assert record.mask is not None
        values = np.flatnonzero(np.bincount(read_truth(record.mask, record.image).ravel()))
        return Seen(record.mask, frozenset(values.tolist()), record.labels)

    with ThreadPoolExecutor(4) as pool:  # Pillow's decoders release the GIL
        return list(pool.map(see, records))


def alien_values(seen: Sequence[Seen], classes: Sequence[str]) -> list[Problem]:
    """Mask indices beyond the class list."""
    found = [(mask.path, beyond) for mask in seen if (beyond := _classes(mask.values, len(classes) + 1))]
    if not found:
        return []
    path, beyond = found[0]
    message = (
        f"{path} holds the class index {max(beyond)}, but the class list has {len(classes)} names (such indices are in "
        f"{len(found)} of the {len(seen)} masks that were looked at): correct the masks or data.classes"
    )
    return [Problem("error", "mask values outside the class list", path, message)]


def compare_masks(seen: Sequence[Seen], classes: Sequence[str]) -> list[Problem]:
    """Masks without any class although there should be some, and masks whose indices contradict the labels.

    Args:
        seen: some masks or all of a data set.
        classes: the class list.
    """
    expected = [mask for mask in seen if mask.labels != ()]
    if expected and not any(_classes(mask.values) for mask in seen):
        return [_without_classes(expected, classes)]
    counts = Counter(index for mask in seen if mask.labels for index in _classes(mask.values))
    agreeing = Counter(index for mask in seen for index in _classes(mask.values) & {*(mask.labels or ())})
    wrong = [index for index in counts if 0 < index <= len(classes) and not agreeing[index]]
    worst = max(wrong, key=lambda index: counts[index], default=0)
    if counts[worst] < FEW:
        return []
    others = Counter(label for mask in seen if worst in mask.values for label in mask.labels or ())
    most = f'; most often they are labelled "{classes[others.most_common(1)[0][0] - 1]}"' if others else ""
    message = (
        f'index {worst} of the masks is "{classes[worst - 1]}" in the class list, but none of the {counts[worst]} '
        f"photos whose masks have it is labelled so{most}: bring data.classes into the order of the masks"
    )
    severity: Severity = "error" if len(wrong) == len(counts) else "warning"
    return [Problem(severity, "masks of other classes than the labels", seen[0].path.parent, message)]


def _classes(values: Iterable[int], least: int = BACKGROUND + 1) -> set[int]:
    return {value for value in values if least <= value < IGNORE}


def _without_classes(masks: Sequence[Seen], classes: Sequence[str]) -> Problem:
    folder = masks[0].path.parent
    looked = f"the {len(masks)} masks of {folder} that were looked at hold"
    if any(IGNORE in mask.values for mask in masks):
        message = (
            f"{looked} only 0 and 255, and 255 means pixels that are not counted, not a class: write 1 for "
            f'"{classes[0]}" (data/README.md has a script for masks of other values)'
        )
        return Problem("error", "masks of 0 and 255 only", folder, message)
    message = f"{looked} only background: no score can be measured with them"
    return Problem("warning", "masks without any class", folder, message)
