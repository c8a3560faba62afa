"""Signs of a training that failed, or of masks that cannot be right, with the likeliest cause and the option.

All are read from image labels, losses, maps and predicted masks, never from true masks. The limits are far from what a
working run shows; they only choose what is printed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt

from wsss.data.dataset import Record, evenly, first
from wsss.data.files import read_mask, read_saliency
from wsss.data.labels import BACKGROUND, IGNORE
from wsss.rundir import LABELS, MASKS, RunDirectory

LOOKED_AT = 500
"""Number of photos, evenly spaced, whose maps and masks are read for that."""

GUESS = 0.97
"""A loss of this share of the loss of guessing, or more, is no better."""

NEAR_CHANCE = 0.05
"""A mean average precision this close to that of guessing is no better."""

EMPTY, WITHOUT_OBJECT, UNCERTAIN, ALL_OBJECT = 0.15, 0.25, 0.1, 0.5
"""Shares of maps that are empty, and of masks that are all background, all 255, all objects."""

LOST = 0.5
"""Share of the photos with a label whose mask lacks the class."""

SHRUNK = 0.25
"""Ratio of a class's area in the masks to its area in the maps, where these are above half of their maximum."""

ONE_CLASS = 0.95
"""Share of the photos whose prediction is all of one class."""


def shares_of(records: Sequence[Record], classes: int) -> list[float]:
    """For each class, the share of the labelled photos that have it."""
    labelled = [record.labels for record in records if record.labels is not None]
    count = Counter(label for labels in labelled for label in labels)
    return [count[index] / max(1, len(labelled)) for index in range(1, classes + 1)]


def of_guessing(
    loss: float, precision: float | None, train: Sequence[float], val: Sequence[float]
) -> list[str]:
    """A classifier that only learnt how frequent each class is.

    Args:
        loss: of the last epoch, binary cross entropy in nats, mean over the classes.
        precision: mean average precision on the validation photos; None if it is unknown.
        train: share of the training photos with each class. Their entropy is the loss of guessing.
        val: the same of the validation photos. Their mean is the average precision of guessing.
    """
    entropy = float(np.mean([-sum(p * log(p) for p in (share, 1 - share) if p > 0) for share in train]))
    chance = float(np.mean([share for share in val if share] or [0]))
    advice = (
        "are the labels right? Else try --classifier.weights imagenet, more --classifier.epochs or another "
        "--classifier.optimizer.lr"
    )
    if precision is not None and precision < chance + NEAR_CHANCE:
        return [f"the classifier's mAP on val is {precision:.2f}, and guessing gives {chance:.2f}: {advice}"]
    if 0 < GUESS * entropy < loss:
        return [f"the classifier's loss is {loss:.3f}, and guessing gives {entropy:.3f}: {advice}"]
    return []


def of_maps(records: Sequence[Record], run: RunDirectory, names: Sequence[str]) -> list[str]:
    """Maps that are empty. ``names`` starts with the background."""
    empty: Counter[str] = Counter()
    total = 0
    for record in evenly([record for record in records if record.labels], LOOKED_AT):
        archive = read_saliency(run.saliency(record.id))
        total += len(archive.classes)
        empty.update(
            names[index] for index, one in zip(archive.classes, archive.maps, strict=True) if not one.any()
        )
    if empty.total() <= EMPTY * total:
        return []
    return [
        f"{empty.total() / total:.0%} of the maps are empty (most often {_most(empty)}), because the classifier sees "
        "no evidence for these labels: are they right, and is its mAP good? Else try another --saliency.method"
    ]


@dataclass
class _Masks:
    """What masks of labelled photos have in common."""

    photos: int = 0
    without_object: int = 0
    all_object: int = 0
    uncertain: int = 0


def of_masks(
    records: Sequence[Record],
    run: RunDirectory,
    source: str,
    absent: Mapping[int, tuple[int, int]],
    names: Sequence[str],
) -> list[str]:
    """Pseudo-masks that are all background, all 255 or all objects; classes that are lost or shrank.

    Args:
        records: the training photos.
        run: the run directory.
        source: folder of the maps that the masks were made from.
        absent: mask index -> (photos whose mask lacks the class, photos with the label).
        names: class names, background first.
    """
    found = _Masks()
    areas: dict[int, list[tuple[float, float]]] = {}
    for record in evenly([record for record in records if record.labels], LOOKED_AT):
        labels, mask = (read_mask(run.mask(folder, record.id)) for folder in (LABELS, MASKS))
        found.photos += 1
        found.without_object += not labels.any()
        found.all_object += bool((labels != BACKGROUND).all())
        found.uncertain += bool((mask == IGNORE).all())
        archive = read_saliency(run.maps(source, record.id))
        for index, one in zip(archive.classes.tolist(), archive.maps, strict=True):
            if index in (record.labels or ()):
                wide = float((one > one.max() / 2).mean())
                areas.setdefault(index, []).append((float((labels == index).mean()), wide))
    options = "--refine.background.rule calibrated, or another --refine.background.threshold"
    told = [
        f"{count / found.photos:.0%} of the masks {what}: {fix}"
        for count, limit, what, fix in (
            (
                found.without_object,
                WITHOUT_OBJECT,
                "are all background",
                f"is the background too strong? Try {options}",
            ),
            (
                found.all_object,
                ALL_OBJECT,
                "have no background",
                f"is the background too weak? Try {options}",
            ),
            (
                found.uncertain,
                UNCERTAIN,
                "are all 255, so they teach nothing",
                "try --refine.uncertainty none",
            ),
        )
        if count > limit * found.photos
    ]
    lost = {index: pair for index, pair in absent.items() if pair[0] > LOST * pair[1]}
    if lost:
        counted = [f"{names[index]} ({count} of {total})" for index, (count, total) in lost.items()]
        told.append(
            f"most masks of photos with the label {first(counted)} lack the class: are these labels right?"
        )
    shrunk = [
        f"{names[index]} ({mask:.1%} of the photo, {wide:.1%} in the maps)"
        for index, pairs in sorted(areas.items())
        for mask, wide in [np.mean(pairs, axis=0).tolist()]
        if mask < SHRUNK * wide and index not in lost
    ]
    if shrunk:
        told.append(
            f"in the masks these objects are much smaller than in the maps: {first(shrunk)}; try {options}"
        )
    return told


def of_predictions(masks: Iterable[npt.NDArray[np.uint8]], names: Sequence[str]) -> list[str]:
    """A segmenter that gives nearly every photo a single class. ``names`` starts with the background."""
    alone: Counter[str] = Counter()
    total = 0
    for mask in masks:
        total += 1
        if mask.min() == mask.max():
            alone[names[int(mask.flat[0])]] += 1
    worst = alone.most_common(1)
    if not worst or worst[0][1] < ONE_CLASS * total:
        return []
    return [
        f"the segmenter predicts nothing but {worst[0][0]} on {worst[0][1]} of {total} photos: look at its masks "
        "(pseudo_masks/), then try more --segmenter.epochs or another --segmenter.optimizer.lr"
    ]


def _most(counts: Counter[str]) -> str:
    return first([f"{name} {count}" for name, count in counts.most_common()])
