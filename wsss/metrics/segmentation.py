"""Mean intersection over union as PASCAL VOC defines it, for any two folders of mask PNGs.

With `counts[t, p]` the pixels of true class t that were predicted as p, over *all* images at original size,

    IoU_c = TP_c / (TP_c + FP_c + FN_c)
          = counts[c, c] / (sum_p counts[c, p] + sum_t counts[t, c] - counts[c, c])

and mIoU is the mean over the classes that occur in the ground truth. Pixels whose ground truth is 255 are not
counted. A 255 in a *prediction* is an answer that is always wrong (a false negative of the true class).
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsss.data.files import read_mask
from wsss.data.labels import BACKGROUND, IGNORE
from wsss.errors import UserError

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
        classes = len(self.counts)
        check_pair(prediction, truth, classes)
        pairs = np.bincount(truth.ravel() * np.uint16(256) + prediction.ravel(), minlength=256 * 256)
        table = pairs.reshape(256, 256)
        self.counts[:, :classes] += table[:classes, :classes]
        self.counts[:, classes] += table[:classes, IGNORE]
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


def score(matrix: ConfusionMatrix, class_names: Sequence[str]) -> dict[str, Any]:
    """The numbers of a confusion matrix as JSON-ready values.

    Args:
        matrix: over C classes.
        class_names: C names, background first.

    Returns:
        `miou`, `per_class` (name -> IoU, None for a class without ground truth), `absent` (their names),
        `accuracy`, `coverage` (share of pixels not predicted as 255), `images`. An undefined number is None.

    Raises:
        ValueError: the number of names is not C.
    """
    if len(class_names) != len(matrix.counts):
        raise ValueError(f"{len(class_names)} class names for a matrix of {len(matrix.counts)} classes")
    per_class = {name: _number(value) for name, value in zip(class_names, matrix.iou().tolist(), strict=True)}
    return {
        "miou": _number(matrix.miou()),
        "per_class": per_class,
        "absent": [name for name, value in per_class.items() if value is None],
        "accuracy": _number(matrix.accuracy()),
        "images": matrix.images,
        "coverage": _number(matrix.coverage()),
    }


def score_folder(
    predictions: Path,
    truth: Path,
    ids: Sequence[str] | None,
    class_names: Sequence[str],
    *,
    ignored_as_background: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Score a folder of predicted masks against one of true masks: `score` of `confusion_of_folders`."""
    matrix = confusion_of_folders(
        predictions,
        truth,
        ids,
        len(class_names),
        ignored_as_background=ignored_as_background,
        workers=workers,
        progress=progress,
    )
    return score(matrix, class_names)


def confusion_of_folders(
    predictions: Path,
    truth: Path,
    ids: Sequence[str] | None,
    classes: int,
    *,
    ignored_as_background: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> ConfusionMatrix:
    """Count `predictions/<id>.png` against `truth/<id>.png`, one image in memory at a time.

    Args:
        predictions: folder of palette PNGs, values 0..C - 1 or 255.
        truth: folder of palette PNGs of the same sizes.
        ids: which images; None = every PNG of `predictions` (nested folders too).
        classes: C, background included.
        ignored_as_background: count a predicted 255 as background (the IRN convention) instead of as wrong.
        workers: processes; 0 or 1 = this one.
        progress: show a progress bar.

    Returns:
        The confusion matrix; the order of the images and the number of workers do not change it.

    Raises:
        UserError: no images, a missing or unreadable file, sizes that differ, a value out of range; names the
            file.
    """
    chosen = list(ids) if ids is not None else _ids_of_folder(predictions)
    if not chosen:
        raise UserError(
            f"{predictions}: no masks to score: expected PNG files (or a list of ids that is not empty)"
        )
    chunks = [chosen[start : start + 16] for start in range(0, len(chosen), 16)]
    count = functools.partial(_count_chunk, predictions, truth, classes, ignored_as_background)
    if workers <= 1:
        return _sum(map(count, chunks), len(chosen), classes, progress)
    # spawn, not fork: the caller may have threads (torch, OpenCV) that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context) as pool:
        return _sum(pool.map(count, chunks), len(chosen), classes, progress)


def _sum(parts: Iterable[ConfusionMatrix], total: int, classes: int, progress: bool) -> ConfusionMatrix:
    """Add up the matrices of the chunks; `total` is the number of images, for the progress bar."""
    from tqdm import tqdm

    matrix = ConfusionMatrix(classes)
    with tqdm(total=total, desc="scoring", unit="image", disable=not progress) as bar:
        for part in parts:
            matrix = matrix + part
            bar.update(part.images)
    return matrix


def _count_chunk(
    predictions: Path, truth: Path, classes: int, ignored_as_background: bool, ids: Sequence[str]
) -> ConfusionMatrix:
    """The matrix of some images; a picklable function for the worker processes."""
    matrix = ConfusionMatrix(classes)
    for identifier in ids:
        predicted_path, true_path = predictions / f"{identifier}.png", truth / f"{identifier}.png"
        for path, what in ((predicted_path, "predicted"), (true_path, "ground-truth")):
            if not path.is_file():
                raise UserError(f"{path}: the {what} mask of image {identifier} is missing")
        predicted, true = read_mask(predicted_path), read_mask(true_path)
        if ignored_as_background:
            predicted = np.where(predicted == IGNORE, np.uint8(BACKGROUND), predicted)
        try:
            matrix.update(predicted, true)
        except ValueError as error:
            raise UserError(f"{predicted_path} (scored against {true_path}): {error}") from error
    return matrix


def _ids_of_folder(folder: Path) -> list[str]:
    """The ids of all PNG files below a folder, sorted."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of masks")
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.png"))


def check_pair(prediction: Mask, truth: Mask, classes: int) -> None:
    """Raise ValueError unless both are `(H, W)` uint8 of one size with values in 0..classes - 1 or 255."""
    for name, mask in (("prediction", prediction), ("ground truth", truth)):
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise ValueError(f"the {name} must be (H, W) uint8, not {mask.shape} {mask.dtype}")
    if prediction.shape != truth.shape:
        raise ValueError(
            f"the prediction is {prediction.shape} pixels (height, width), the ground truth {truth.shape}"
        )
    for name, mask in (("prediction", prediction), ("ground truth", truth)):
        values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
        wrong = values[(values >= classes) & (values != IGNORE)]
        if len(wrong):
            raise ValueError(
                f"the {name} has the value {wrong[0]}, but the classes are 0..{classes - 1} (255 = ignore)"
            )


def _number(value: float) -> float | None:
    """JSON has no NaN: None instead."""
    return None if np.isnan(value) else float(value)
