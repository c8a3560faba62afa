"""Which image labels the pseudo-masks show: the one fault of masks that can be counted without true masks."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from wsss.data.dataset import Record
from wsss.data.files import read_mask
from wsss.refine.stage import LABELS
from wsss.rundir import RunDirectory

MENTIONED = 3
"""Classes that the sentence names."""


def absent_labels(records: Sequence[Record], run: RunDirectory) -> dict[int, tuple[int, int]]:
    """Image labels that have no pixel in ``pseudo_labels/<id>.png``.

    Returns:
        Mask index (1..C) of each class on a label -> (photos whose mask has none of it, photos with the label).
    """
    absent: Counter[int] = Counter()
    total: Counter[int] = Counter()
    for record in records:
        if record.labels:
            present = np.flatnonzero(np.bincount(read_mask(run.mask(LABELS, record.id)).ravel()))
            total.update(record.labels)
            absent.update(set(record.labels) - set(present.tolist()))
    return {index: (absent[index], total[index]) for index in sorted(total)}


def describe_absent(absent: dict[int, tuple[int, int]], names: Sequence[str]) -> str:
    """One sentence on `absent_labels`; ``names`` has the background first."""
    total = sum(photos for _, photos in absent.values())
    lost = sum(count for count, _ in absent.values())
    if lost == 0:
        return "every image label has pixels in its pseudo-mask"
    worst = sorted((item for item in absent.items() if item[1][0]), key=lambda item: -item[1][0] / item[1][1])
    named = ", ".join(f"{names[index]} {count} of {photos}" for index, (count, photos) in worst[:MENTIONED])
    return f"{lost / total:.1%} of the image labels have no pixel in the pseudo-masks (most often {named})"
