"""Boundary F-score: how well the outlines of predicted masks follow the true ones.

G. Csurka, D. Larlus, F. Perronnin: "What is a good evaluation measure for semantic segmentation?", BMVC 2013.
With B_t and B_p the boundary pixels of a class in the true and in the predicted mask of one image, d the
Euclidean distance to the nearest pixel of a set, and theta = 0.75 % of the image diagonal,

    P = share of z in B_p with d(z, B_t) < theta,    R = share of z in B_t with d(z, B_p) < theta,
    F = 2 P R / (P + R), 0 where both are 0.

A boundary pixel has another value above, below, left or right of it; the edge of the image is not a boundary.

Deviations and what the paper leaves open: `per_class` averages F over the images in whose truth the class has
a boundary (the paper averages over the classes of an image; that is `per_image`, with the classes of the
truth). A true 255, which VOC paints around every object, ends a class like any other value, so that there are
outlines to match; a predicted outline on a true 255 counts where it matches and is left out where not.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from wsss.data.labels import IGNORE
from wsss.metrics.confusion import Mask, check_pair, ratio

TOLERANCE = 0.0075
"""theta as a share of the image diagonal (section 4 of the paper)."""

Points = npt.NDArray[np.intp]
"""`(2, N)` rows and columns of pixels."""


class BoundaryScore:
    """Boundary F-scores, summed over images.

    Example:
        >>> mask = np.array([[0, 0, 1, 1]], np.uint8)
        >>> scores = BoundaryScore(2)
        >>> scores.update(mask, mask)
        >>> scores.per_class().tolist()
        [1.0, 1.0]
    """

    def __init__(self, classes: int) -> None:
        """Start from zero, for `classes` classes (background included)."""
        self._sums = np.zeros(classes)
        self._images = np.zeros(classes, dtype=np.int64)
        self._image_sum, self._image_count = 0.0, 0

    def update(self, prediction: Mask, truth: Mask) -> None:
        """Count one image.

        Args:
            prediction: `(H, W)` uint8 in 0..C - 1 or 255 (no answer; it ends a class like any other value).
            truth: `(H, W)` uint8 in 0..C - 1 or 255 (see the module).

        Raises:
            ValueError: other shapes, types or values.
        """
        check_pair(prediction, truth, len(self._sums))
        scores = boundary_f_scores(prediction, truth, len(self._sums))
        present = ~np.isnan(scores)
        self._sums[present] += scores[present]
        self._images += present
        if present.any():
            self._image_sum += float(scores[present].mean())
            self._image_count += 1

    def __add__(self, other: BoundaryScore) -> BoundaryScore:
        """The scores over the images of both."""
        if len(self._sums) != len(other._sums):
            raise ValueError(
                f"cannot add boundary scores of {len(self._sums)} and {len(other._sums)} classes"
            )
        merged = BoundaryScore(len(self._sums))
        merged._sums, merged._images = self._sums + other._sums, self._images + other._images
        merged._image_sum = self._image_sum + other._image_sum
        merged._image_count = self._image_count + other._image_count
        return merged

    def per_class(self) -> npt.NDArray[np.float64]:
        """`(C,)` mean F of each class in [0, 1]; NaN where the truth never has a boundary of it."""
        return ratio(self._sums, self._images)

    def mean(self) -> float:
        """Mean of `per_class` over the classes that have a value; NaN if none has."""
        scores = self.per_class()
        present = ~np.isnan(scores)
        return float(scores[present].mean()) if present.any() else float("nan")

    def per_image(self) -> float:
        """Mean over images of the mean F of the classes in their truth (the paper's way); NaN without any."""
        return self._image_sum / self._image_count if self._image_count else float("nan")


def boundary_f_scores(prediction: Mask, truth: Mask, classes: int) -> npt.NDArray[np.float64]:
    """`(C,)` boundary F of one image in [0, 1]; NaN for classes without a boundary in the truth.

    Args:
        prediction: `(H, W)` uint8.
        truth: `(H, W)` uint8.
        classes: C; larger values have no score.
    """
    offsets = _offsets(truth.shape)
    predicted, true = _boundary(prediction), _boundary(truth)
    found = _matched(prediction, predicted, truth, true, offsets)
    covered = _matched(truth, true, prediction, predicted, offsets)
    counted = found | (truth[tuple(predicted)] != IGNORE)
    precision = _share(prediction[tuple(predicted)][counted], found[counted], classes)
    recall = _share(truth[tuple(true)], covered, classes)
    # Without a predicted boundary that counts, precision is undefined, but recall is 0, and so is F. Where
    # recall is undefined, so is F.
    scores = recall.copy()
    np.divide(2 * precision * recall, precision + recall, out=scores, where=precision + recall > 0)
    return scores


def _offsets(shape: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """`(K, 2)` row and column steps shorter than theta, the shortest first; exact, in integers."""
    # 0.0075 ** 2 = 9 / 160000, and the square of the diagonal is an integer.
    limit = 9 * (shape[0] ** 2 + shape[1] ** 2)
    reach = math.isqrt(limit // 160_000)
    steps = np.indices((2 * reach + 1, 2 * reach + 1)).reshape(2, -1).T - reach
    lengths = (steps**2).sum(axis=1)
    nearest = np.argsort(lengths, kind="stable")
    chosen: npt.NDArray[np.intp] = steps[nearest][160_000 * lengths[nearest] < limit]
    return chosen


def _boundary(mask: Mask) -> Points:
    """Pixels with another value above, below, left or right of them."""
    differs = np.zeros(mask.shape, dtype=bool)
    rows, columns = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    differs[1:] |= rows
    differs[:-1] |= rows
    differs[:, 1:] |= columns
    differs[:, :-1] |= columns
    return np.array(np.nonzero(differs))


def _matched(
    mask: Mask, points: Points, other: Mask, other_points: Points, offsets: npt.NDArray[np.intp]
) -> npt.NDArray[np.bool_]:
    """`(N,)` whether a boundary pixel of the same class lies within theta in the other mask, for all at once.

    Steps go outwards and matched pixels drop out, so pixels of good outlines cost a few look-ups.
    """
    margin = int(np.abs(offsets).max(initial=0))
    width = other.shape[1] + 2 * margin
    # Class of each boundary pixel of the other mask, 256 elsewhere. The margin makes border checks unnecessary.
    classes = np.full((other.shape[0] + 2 * margin) * width, 256, dtype=np.int16)
    classes[(other_points[0] + margin) * width + other_points[1] + margin] = other[tuple(other_points)]
    wanted = mask[tuple(points)].astype(np.int16)
    places = (points[0] + margin) * width + points[1] + margin
    missing = np.arange(len(wanted))
    for step in (offsets @ (width, 1)).tolist():
        hit = classes[places + step] == wanted
        if hit.any():
            missing, places, wanted = missing[~hit], places[~hit], wanted[~hit]
        if not len(missing):
            break
    matched = np.ones(points.shape[1], dtype=bool)
    matched[missing] = False
    return matched


def _share(values: Mask, matched: npt.NDArray[np.bool_], classes: int) -> npt.NDArray[np.float64]:
    """`(C,)` share of the boundary pixels of each class that match; NaN without boundary pixels."""
    every, hits = (np.bincount(chosen, minlength=256)[:classes] for chosen in (values, values[matched]))
    return ratio(hits, every)
