"""How much better pseudo-masks are where their confidence is high: coverage against accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wsss.data.labels import IGNORE
from wsss.metrics.confusion import Mask, check_pair

BINS = 210
DIGITS = 7.0
"""The bins are even in -log10(1 - confidence), up to seven nines: most of a CRF's posteriors are above 0.99."""


class ReliabilityCurve:
    """Share of right pixels among those whose confidence is at least c, for every c, in one pass over images.

    For judging masks with ground truth, so its result must never choose anything.
    """

    def __init__(self) -> None:
        """Start from zero."""
        self._right = np.zeros(BINS, dtype=np.int64)
        self._total = np.zeros(BINS, dtype=np.int64)

    def update(self, labels: Mask, confidence: npt.NDArray[np.float32], truth: Mask) -> None:
        """Count one image.

        Args:
            labels: `(H, W)` uint8 mask indices.
            confidence: `(H, W)` float32 in [0, 1].
            truth: `(H, W)` uint8; 255 is not counted.

        Raises:
            ValueError: other shapes or types.
        """
        check_pair(labels, truth, IGNORE)
        if confidence.shape != labels.shape:
            raise ValueError(f"the confidence is {confidence.shape}, the mask {labels.shape}")
        counted = truth != IGNORE
        doubt = np.maximum(1 - confidence[counted].astype(np.float64), 10**-DIGITS)
        bins = np.clip(-np.log10(doubt) * (BINS / DIGITS), 0, BINS - 1).astype(np.int64)
        self._total += np.bincount(bins, minlength=BINS)
        self._right += np.bincount(bins[labels[counted] == truth[counted]], minlength=BINS)

    def __add__(self, other: ReliabilityCurve) -> ReliabilityCurve:
        """The curve over the images of both."""
        merged = ReliabilityCurve()
        merged._right, merged._total = self._right + other._right, self._total + other._total
        return merged

    def points(self) -> dict[str, Any]:
        """The curve from the most confident pixels to all of them, JSON-ready.

        Returns:
            `limit` (c), `coverage` (share of the counted pixels with confidence >= c) and `accuracy` (share of
            those that are right): lists of equal length, by falling c, only where coverage changes. Empty
            lists without pixels.
        """
        total, right = self._total[::-1].cumsum(), self._right[::-1].cumsum()
        used = np.flatnonzero(self._total[::-1])
        limits = 1 - 10 ** (-(BINS - 1 - np.arange(BINS)) * (DIGITS / BINS))
        return {
            "limit": limits[used].round(7).tolist(),
            "coverage": (total[used] / max(int(total[-1]), 1)).round(5).tolist(),
            "accuracy": (right[used] / np.maximum(total[used], 1)).round(5).tolist(),
        }
