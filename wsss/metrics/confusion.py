"""The confusion matrix behind mean intersection over union as PASCAL VOC defines it.

With `counts[t, p]` the pixels of true class t that were predicted as p, over *all* images at original size,

    IoU_c = TP_c / (TP_c + FP_c + FN_c)
          = counts[c, c] / (sum_p counts[c, p] + sum_t counts[t, c] - counts[c, c])

and mIoU is the mean over the classes that occur in the ground truth. Pixels whose ground truth is 255 are not
counted. A 255 in a *prediction* is an answer that is always wrong (a false negative of the true class).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wsss.data.labels import IGNORE

Mask = npt.NDArray[np.uint8]


class ConfusionMatrix:
    """Pixel counts by true and by predicted class, summed over images.

    Example:
        >>> matrix = ConfusionMatrix(2)
        >>> matrix.update(np.array([[0, 1]], np.uint8), np.array([[0, 0]], np.uint8))
        >>> matrix.iou().tolist()
        [0.5, nan]

    Attributes:
        counts: `(C, C + 1)` int64. Row = true class, column = predicted class, the last one = 255.
        images: number of images counted.
    """

    def __init__(self, classes: int) -> None:
        """Start from zero, for `classes` classes (background included, at most 255)."""
        if not 1 <= classes <= IGNORE:
            raise ValueError(f"the number of classes must lie between 1 and {IGNORE}, not {classes}")
        self.counts = np.zeros((classes, classes + 1), dtype=np.int64)
        self.images = 0

    def update(self, prediction: Mask, truth: Mask) -> None:
        """Count one image.

        Args:
            prediction: `(H, W)` uint8 in 0..C - 1 or 255 (no answer: wrong everywhere).
            truth: `(H, W)` uint8 in 0..C - 1 or 255 (not counted).

        Raises:
            ValueError: other shapes, types or values.
        """
        self.counts += _pair_counts(prediction, truth, len(self.counts))
        self.images += 1

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """The matrix over the images of both."""
        if self.counts.shape != other.counts.shape:
            raise ValueError(f"cannot add matrices of {len(self.counts)} and {len(other.counts)} classes")
        return self._with(self.counts + other.counts, self.images + other.images)

    def kept(self) -> ConfusionMatrix:
        """The matrix over the pixels with an answer: a predicted 255 is left out (not the VOC protocol)."""
        counts = self.counts.copy()
        counts[:, -1] = 0
        return self._with(counts, self.images)

    def iou(self) -> npt.NDArray[np.float64]:
        """`(C,)` IoU of each class in [0, 1]; NaN where the class does not occur in the ground truth."""
        hit = np.diagonal(self.counts).astype(np.float64)
        true = self.counts.sum(axis=1)
        union = true + self.counts[:, :-1].sum(axis=0) - hit
        iou = np.full(len(hit), np.nan)
        np.divide(hit, union, out=iou, where=true > 0)
        return iou

    def precision(self) -> npt.NDArray[np.float64]:
        """`(C,)` TP / (TP + FP) of each class in [0, 1]; NaN where the class is never predicted."""
        return ratio(np.diagonal(self.counts), self.counts[:, :-1].sum(axis=0))

    def recall(self) -> npt.NDArray[np.float64]:
        """`(C,)` TP / (TP + FN) of each class in [0, 1]; NaN where it does not occur in the ground truth."""
        return ratio(np.diagonal(self.counts), self.counts.sum(axis=1))

    def miou(self) -> float:
        """Mean IoU over the classes that occur in the ground truth; NaN if none does."""
        iou = self.iou()
        present = ~np.isnan(iou)
        return float(iou[present].mean()) if present.any() else float("nan")

    def accuracy(self) -> float:
        """Share of the counted pixels whose prediction is right; NaN without pixels."""
        return self._share(int(np.trace(self.counts)))

    def coverage(self) -> float:
        """Share of the counted pixels whose prediction is not 255; NaN without pixels."""
        return self._share(int(self.counts[:, :-1].sum()))

    def _share(self, pixels: int) -> float:
        total = int(self.counts.sum())
        return pixels / total if total else float("nan")

    def _with(self, counts: npt.NDArray[np.int64], images: int) -> ConfusionMatrix:
        matrix = ConfusionMatrix(len(counts))
        matrix.counts, matrix.images = counts, images
        return matrix


def check_pair(prediction: Mask, truth: Mask, classes: int) -> None:
    """Raise ValueError unless both are `(H, W)` uint8 of one size with values in 0..classes - 1 or 255."""
    _check_shapes(prediction, truth)
    for name, mask in (("prediction", prediction), ("ground truth", truth)):
        # Counting is several times cheaper than checking the values, which only the message needs.
        if np.count_nonzero(mask >= classes) != np.count_nonzero(mask == IGNORE):
            _check_values(name, mask, classes)


def _check_shapes(prediction: Mask, truth: Mask) -> None:
    for name, mask in (("prediction", prediction), ("ground truth", truth)):
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise ValueError(f"the {name} must be (H, W) uint8, not {mask.shape} {mask.dtype}")
    if prediction.shape != truth.shape:
        raise ValueError(
            f"the prediction is {prediction.shape} pixels (height, width), the ground truth {truth.shape}"
        )


def _check_values(name: str, values: Mask, classes: int) -> None:
    wrong = values[(values >= classes) & (values != IGNORE)]
    if wrong.size:
        raise ValueError(
            f"the {name} has the value {wrong.min()}, but the classes are 0..{classes - 1} (255 = ignore)"
        )


def _pair_counts(prediction: Mask, truth: Mask, classes: int) -> npt.NDArray[np.int64]:
    """`(C, C + 1)` pixels by true and predicted class.

    Masks are mostly constant: the pixels are cut into runs in which neither mask changes, and only the runs (some
    thousands per photo) are checked and counted. This keeps scoring cheap compared with decoding the PNGs.

    Raises:
        ValueError: as `check_pair`.
    """
    _check_shapes(prediction, truth)
    predicted, true = prediction.ravel(), truth.ravel()
    if not predicted.size:
        return np.zeros((classes, classes + 1), dtype=np.int64)
    changes = predicted[1:] != predicted[:-1]
    changes |= true[1:] != true[:-1]
    ends = np.concatenate((np.flatnonzero(changes), [predicted.size - 1]))
    lengths = ends.copy()
    lengths[0] += 1
    lengths[1:] -= ends[:-1]
    predicted, true = predicted[ends], true[ends]
    _check_values("prediction", predicted, classes)
    _check_values("ground truth", true, classes)
    # 255 becomes class C: the last column, and a last row that is dropped.
    cells = np.minimum(true, classes).astype(np.intp) * (classes + 1) + np.minimum(predicted, classes)
    counts = np.bincount(cells, weights=lengths, minlength=(classes + 1) ** 2)  # exact below 2 ** 53 pixels
    return counts.astype(np.int64).reshape(classes + 1, classes + 1)[:-1]


def ratio(part: npt.NDArray[Any], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """`(C,)` part / whole; NaN where the whole is 0."""
    result = np.full(len(whole), np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result
