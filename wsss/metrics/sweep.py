"""Oracle background thresholds: the mIoU of thresholded saliency at many thresholds, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wsss.data.labels import BACKGROUND, IGNORE
from wsss.metrics.confusion import ConfusionMatrix, Mask, check_pair

_BINS = 4096


class ThresholdSweep:
    """Confusion matrices of thresholded saliency for many background thresholds, in one pass over the images.

    This is for an oracle ("which threshold would have been best?"), so its result must never choose anything. The
    strongest class and its saliency are computed once per image, so more thresholds cost almost nothing.

    Attributes:
        thresholds: `(T,)` float32, ascending; a pixel is foreground where its saliency exceeds the threshold.
        images: number of images counted.
    """

    def __init__(
        self, classes: int, thresholds: Sequence[float] | npt.NDArray[np.floating] | None = None
    ) -> None:
        """Start from zero, for `classes` classes (background included); None means 0.01, 0.02, ... 0.99."""
        grid = np.arange(1, 100) / 100 if thresholds is None else thresholds
        self.thresholds = np.unique(np.asarray(grid, dtype=np.float32))
        self.images = 0
        # Pixels by true class, strongest class, and how many thresholds the saliency exceeds.
        self._counts = np.zeros((classes, classes, len(self.thresholds) + 1), dtype=np.int64)

    def update(
        self, maps: npt.NDArray[np.float32], classes: Sequence[int] | npt.NDArray[np.integer], truth: Mask
    ) -> None:
        """Count one image.

        Args:
            maps: `(K, H, W)` float32 in [0, 1], at the size of `truth`; K may be 0.
            classes: K mask indices (1..C - 1).
            truth: `(H, W)` uint8 in 0..C - 1 or 255 (not counted).

        Raises:
            ValueError: other shapes or values.
        """
        if maps.shape[1:] != truth.shape or len(maps) != len(classes):
            raise ValueError(
                f"maps {maps.shape} of {len(classes)} classes do not fit a mask of {truth.shape}"
            )
        if len(maps) == 0:
            best, score = np.zeros_like(truth), np.zeros(truth.shape, dtype=np.float32)
        else:
            best, score = np.asarray(classes, dtype=np.uint8)[maps.argmax(axis=0)], maps.max(axis=0)
        check_pair(best, truth, len(self._counts))
        counted = truth != IGNORE
        exceeded = exceeded_thresholds(self.thresholds, score[counted])
        rows, columns, depth = self._counts.shape
        cells = (truth[counted].astype(np.intp) * columns + best[counted]) * depth + exceeded
        self._counts += np.bincount(cells, minlength=self._counts.size).reshape(rows, columns, depth)
        self.images += 1

    def __add__(self, other: ThresholdSweep) -> ThresholdSweep:
        """The sweep over the images of both, which must have the same classes and thresholds."""
        if self._counts.shape != other._counts.shape or not np.array_equal(self.thresholds, other.thresholds):
            raise ValueError("cannot add sweeps of different classes or thresholds")
        merged = ThresholdSweep(len(self._counts), self.thresholds)
        merged._counts, merged.images = self._counts + other._counts, self.images + other.images
        return merged

    def matrices(self) -> list[ConfusionMatrix]:
        """The confusion matrix at each of `thresholds`."""
        result = []
        for position in range(len(self.thresholds)):
            matrix = ConfusionMatrix(len(self._counts))
            matrix.counts[:, :-1] = self._counts[:, :, position + 1 :].sum(axis=2)
            matrix.counts[:, BACKGROUND] += self._counts[:, :, : position + 1].sum(axis=(1, 2))
            matrix.images = self.images
            result.append(matrix)
        return result

    def best(self) -> tuple[float, ConfusionMatrix]:
        """The threshold with the largest mIoU, and its confusion matrix (the oracle)."""
        matrices = self.matrices()
        mious = [matrix.miou() for matrix in matrices]
        if np.isnan(mious).all():
            return float(self.thresholds[0]), matrices[0]
        position = int(np.nanargmax(mious))
        return float(self.thresholds[position]), matrices[position]


def exceeded_thresholds(
    thresholds: npt.NDArray[np.float32], values: npt.NDArray[np.float32]
) -> npt.NDArray[np.intp]:
    """How many of the ascending thresholds each value exceeds: `np.searchsorted`, faster on many values.

    [0, 1] is cut into bins so narrow that each holds one threshold at most. The bin and one comparison then give the
    answer. The number of bins is a power of two, so that scaling rounds nothing.

    Args:
        thresholds: `(T,)` float32, ascending, without repeats.
        values: any shape, float32.

    Returns:
        Counts 0..T, of the shape of `values`.
    """
    inside = values.size > 0 and values.min() >= 0 and values.max() <= 1  # False with NaN
    occupied = np.floor(thresholds * np.float32(_BINS))
    if not inside or len(thresholds) == 0 or len(np.unique(occupied)) < len(occupied):
        return np.searchsorted(thresholds, values, side="left")
    edges = np.arange(_BINS + 1, dtype=np.float32) / np.float32(_BINS)
    below = np.searchsorted(thresholds, edges, side="left")[(values * np.float32(_BINS)).astype(np.intp)]
    following = np.append(thresholds, np.float32(np.inf))
    exceeded: npt.NDArray[np.intp] = below + (following[below] < values)
    return exceeded
