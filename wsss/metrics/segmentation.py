"""VOC mean IoU of mask PNGs on disk; the definition is in `wsss.metrics.confusion`."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from wsss.data.files import read_mask
from wsss.data.labels import BACKGROUND, IGNORE
from wsss.errors import UserError
from wsss.metrics.confusion import ConfusionMatrix
from wsss.metrics.sweep import ThresholdSweep

__all__ = [
    "ConfusionMatrix",
    "ThresholdSweep",
    "confusion_of_folders",
    "confusion_of_pairs",
    "score",
    "score_folder",
]


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
    """Count `predictions/<id>.png` against `truth/<id>.png`; see `confusion_of_pairs`.

    Args:
        predictions: folder of predicted masks.
        truth: folder of true masks.
        ids: which images; None = every PNG of `predictions` (nested folders too).
        classes: C, background included.
        ignored_as_background: as in `confusion_of_pairs`.
        workers: as in `confusion_of_pairs`.
        progress: as in `confusion_of_pairs`.

    Raises:
        UserError: no images, or as `confusion_of_pairs`.
    """
    chosen = _ids_of_folder(predictions) if ids is None else ids
    if not chosen:
        raise UserError(
            f"{predictions}: no masks to score: expected PNG files there, and ids in the list if one is given"
        )
    return confusion_of_pairs(
        [(predictions / f"{identifier}.png", truth / f"{identifier}.png") for identifier in chosen],
        classes,
        ignored_as_background=ignored_as_background,
        workers=workers,
        progress=progress,
    )


def confusion_of_pairs(
    pairs: Sequence[tuple[Path, Path]],
    classes: int,
    *,
    ignored_as_background: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> ConfusionMatrix:
    """Count predicted masks against true ones, one image in memory at a time.

    Args:
        pairs: (predicted, true) palette PNGs of one size each, values 0..C - 1 or 255.
        classes: C, background included.
        ignored_as_background: count a predicted 255 as background (the IRN convention) instead of as wrong.
        workers: processes; 0 or 1 = this one.
        progress: show a progress bar.

    Returns:
        The confusion matrix; the order of the images and the number of workers do not change it.

    Raises:
        UserError: a missing or unreadable file, sizes that differ, a value out of range; names the file.
    """
    chunks = [pairs[start : start + 16] for start in range(0, len(pairs), 16)]
    count = functools.partial(_count_chunk, classes, ignored_as_background)
    workers = min(workers, len(chunks))
    if workers <= 1:
        return _sum(map(count, chunks), len(pairs), classes, progress)
    # spawn, not fork: the caller may have threads (torch, OpenCV) that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return _sum(pool.map(count, chunks), len(pairs), classes, progress)


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
    classes: int, ignored_as_background: bool, pairs: Sequence[tuple[Path, Path]]
) -> ConfusionMatrix:
    """The matrix of some images; a picklable function for the worker processes."""
    matrix = ConfusionMatrix(classes)
    for predicted_path, true_path in pairs:
        for path, what in ((predicted_path, "predicted"), (true_path, "ground-truth")):
            if not path.is_file():
                raise UserError(f"{path}: the {what} mask of image {predicted_path.stem} is missing")
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


def _number(value: float) -> float | None:
    """JSON has no NaN: None instead."""
    return None if np.isnan(value) else float(value)
