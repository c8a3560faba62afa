"""How sure the leaderboard's numbers are: intervals and ranks by resampling the photos.

All methods are resampled with the same photos, so that what is easy or hard about a photo cancels between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
LEVEL = 0.95

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One column of one method, photo by photo.

    Attributes:
        sums: (photos, groups), of the values of each photo's targets in a group.
        counts: (photos, groups), of these targets. The column is the mean over groups of sum / count. Columns that are
            means over all targets have one group, hit rates one for each class.
        median: whether it is the median over photos instead; then there is one group.
    """

    sums: Numbers
    counts: Numbers
    median: bool = False


def draws(photos: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """(RESAMPLES, photos): which photos each resample has, with replacement."""
    return np.random.default_rng(seed).integers(0, photos, (RESAMPLES, photos))


def resampled(measured: Measured, drawn: npt.NDArray[np.int64]) -> Numbers:
    """The column's value in each resample, (RESAMPLES,); NaN where it has no target."""
    if measured.median:
        return np.asarray(np.median(measured.sums[drawn, 0], axis=1))
    photos = len(measured.sums)
    cells = drawn + photos * np.arange(len(drawn))[:, None]
    times = (
        np.bincount(cells.ravel(), minlength=len(drawn) * photos).reshape(len(drawn), photos).astype(float)
    )
    counts = times @ measured.counts
    rates = np.divide(times @ measured.sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    known = counts > 0
    total = known.sum(axis=1)
    mean = np.where(known, rates, 0).sum(axis=1) / np.maximum(total, 1)
    return np.asarray(np.where(total > 0, mean, np.nan))


def interval(values: Numbers) -> tuple[float, float] | None:
    """The percentile interval of LEVEL, of the resamples that have a value; None if none has."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def ranks(values: Sequence[Numbers], better: str) -> list[int | None]:
    """1 plus the number of methods that are significantly better, for each method; None without values.

    Significantly: the interval of the difference, over resamples of the same photos, is above 0. So several methods may
    share a rank.

    Args:
        values: of `resampled`, one array for each method.
        better: "up" or "down".
    """
    sign = 1 if better == "up" else -1
    gaps = [[interval(sign * (other - own)) for other in values] for own in values]
    return [
        None if np.isnan(own).all() else 1 + sum(gap is not None and gap[0] > 0 for gap in row)
        for own, row in zip(values, gaps, strict=True)
    ]


def measured(entries: Sequence[Mapping[str, Any]], key: str, classes: int = 0, only: str = "") -> Measured:
    """A column from what is stored of a method's photos.

    Args:
        entries: each with `targets`, a list of numbers by key.
        key: of a target's number.
        classes: if above 0, there is a group for each class 1 .. classes.
        only: if given, targets count whose number of this key is true.
    """
    sums, counts = (np.zeros((len(entries), max(1, classes))) for _ in range(2))
    for photo, entry in enumerate(entries):
        for target in entry["targets"]:
            if target.get(key) is not None and (not only or target.get(only)):
                group = int(target["class"]) - 1 if classes else 0
                sums[photo, group] += float(target[key])
                counts[photo, group] += 1
    return Measured(sums, counts)
