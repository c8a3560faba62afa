"""Scores of mask PNGs on disk; the definitions are in `wsss.metrics.confusion` and `wsss.metrics.boundary`."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsss.data.files import read_mask
from wsss.data.labels import BACKGROUND, IGNORE
from wsss.errors import UserError
from wsss.metrics.boundary import TOLERANCE, BoundaryScore
from wsss.metrics.confusion import ConfusionMatrix
from wsss.metrics.sweep import ThresholdSweep
from wsss.rundir import RESIZED

__all__ = [
    "BoundaryScore",
    "ConfusionMatrix",
    "Counts",
    "ThresholdSweep",
    "boundary_score",
    "confusion_of_pairs",
    "count_pairs",
    "pairs_of_folders",
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
        `precision` and `recall` (name -> share, of the predicted and of the true pixels that are right),
        `accuracy`, `coverage` (share of pixels not predicted as 255), `images`. An undefined number is None, and so is
        `miou` where no class but the background has true pixels.

    Raises:
        ValueError: the number of names is not C.
    """
    if len(class_names) != len(matrix.counts):
        raise ValueError(f"{len(class_names)} class names for a matrix of {len(matrix.counts)} classes")
    per_class = _by_name(class_names, matrix.iou())
    alone = len(class_names) > 1 and not matrix.counts[1:].any()
    return {
        "miou": None if alone else _number(matrix.miou()),
        "per_class": per_class,
        "absent": [name for name, value in per_class.items() if value is None],
        "precision": _by_name(class_names, matrix.precision()),
        "recall": _by_name(class_names, matrix.recall()),
        "accuracy": _number(matrix.accuracy()),
        "images": matrix.images,
        "coverage": _number(matrix.coverage()),
    }


def boundary_score(scores: BoundaryScore, class_names: Sequence[str]) -> dict[str, Any]:
    """The boundary F-scores as JSON-ready values.

    Returns:
        `mean` (over the classes), `per_class` (name -> F or None), `per_image` (the paper's average) and
        `tolerance` (share of the image diagonal).
    """
    return {
        "mean": _number(scores.mean()),
        "per_class": _by_name(class_names, scores.per_class()),
        "per_image": _number(scores.per_image()),
        "tolerance": TOLERANCE,
    }


def score_folder(
    predictions: Path,
    truth: Path,
    ids: Sequence[str] | None,
    class_names: Sequence[str],
    *,
    ignored_as_background: bool = False,
    boundary: bool = False,
    confusion: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Score a folder of predicted masks against one of true masks.

    Args:
        predictions: as in `pairs_of_folders`.
        truth: as in `pairs_of_folders`.
        ids: as in `pairs_of_folders`.
        class_names: C names, background first.
        ignored_as_background: as in `count_pairs`.
        boundary: also `boundary`, what `boundary_score` returns; several times slower.
        confusion: also `confusion`, the matrix: C rows (true class) of C + 1 counts (predicted class, the last
            one = 255).
        workers: as in `count_pairs`.
        progress: as in `count_pairs`.

    Returns:
        The entries of `score`, and those that were asked for.

    Raises:
        UserError: as `pairs_of_folders` and `count_pairs`.
    """
    counts = count_pairs(
        pairs_of_folders(predictions, truth, ids),
        len(class_names),
        ignored_as_background=ignored_as_background,
        boundary=boundary,
        workers=workers,
        progress=progress,
    )
    result = score(counts.matrix, class_names)
    if counts.boundary is not None:
        result["boundary"] = boundary_score(counts.boundary, class_names)
    if confusion:
        result["confusion"] = counts.matrix.counts.tolist()
    return result


def pairs_of_folders(predictions: Path, truth: Path, ids: Sequence[str] | None) -> list[tuple[Path, Path]]:
    """The pairs `predictions/<id>.png`, `truth/<id>.png`.

    Args:
        predictions: folder of predicted masks.
        truth: folder of true masks.
        ids: which images; None = every PNG of `predictions` (nested folders too).

    Raises:
        UserError: no images.
    """
    chosen = _ids_of_folder(predictions) if ids is None else ids
    if not chosen:
        raise UserError(
            f"{predictions}: no masks to score; expected PNG files there, and a list with ids if one is given"
        )
    return [(predictions / f"{identifier}.png", truth / f"{identifier}.png") for identifier in chosen]


def confusion_of_pairs(
    pairs: Sequence[tuple[Path, Path]],
    classes: int,
    *,
    ignored_as_background: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> ConfusionMatrix:
    """The confusion matrix of `count_pairs`."""
    counts = count_pairs(
        pairs, classes, ignored_as_background=ignored_as_background, workers=workers, progress=progress
    )
    return counts.matrix


@dataclass(frozen=True)
class Counts:
    """What is summed over images.

    Attributes:
        matrix: pixels by true and predicted class.
        boundary: the boundary F-scores; None if they were not asked for.
    """

    matrix: ConfusionMatrix
    boundary: BoundaryScore | None

    def __add__(self, other: Counts) -> Counts:
        """The counts over the images of both."""
        if self.boundary is None or other.boundary is None:
            return Counts(self.matrix + other.matrix, None)
        return Counts(self.matrix + other.matrix, self.boundary + other.boundary)


def count_pairs(
    pairs: Sequence[tuple[Path, Path]],
    classes: int,
    *,
    ignored_as_background: bool = False,
    boundary: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> Counts:
    """Count predicted masks against true ones, one image in memory at a time.

    Args:
        pairs: (predicted, true) palette PNGs of one size each, values 0..C - 1 or 255.
        classes: C, background included.
        ignored_as_background: count a predicted 255 as background (the IRN convention) instead of as wrong.
        boundary: also the boundary F-scores; several times slower.
        workers: processes; 0 or 1 = this one.
        progress: show a progress bar.

    Returns:
        The counts; the number of workers does not change them.

    Raises:
        UserError: a missing or unreadable file, sizes that differ, a value out of range; names the file.
    """
    chunks = [pairs[start : start + 16] for start in range(0, len(pairs), 16)]
    count = functools.partial(_count_chunk, classes, ignored_as_background, boundary)
    workers = min(workers, len(chunks))
    zero = Counts(ConfusionMatrix(classes), BoundaryScore(classes) if boundary else None)
    if workers <= 1:
        return _sum(map(count, chunks), zero, len(pairs), progress)
    # spawn, not fork: the caller may have threads (torch, OpenCV) that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return _sum(pool.map(count, chunks), zero, len(pairs), progress)


def _sum(parts: Iterable[Counts], counts: Counts, total: int, progress: bool) -> Counts:
    """Add the counts of the chunks; `total` is the number of images, for the progress bar."""
    if not progress:
        return sum(parts, start=counts)
    from tqdm import tqdm

    with tqdm(total=total, desc="scoring", unit="image") as bar:
        for part in parts:
            counts = counts + part
            bar.update(part.matrix.images)
    return counts


def _count_chunk(
    classes: int, ignored_as_background: bool, boundary: bool, pairs: Sequence[tuple[Path, Path]]
) -> Counts:
    """The counts of some images; a picklable function for the worker processes."""
    _keep_freed_memory()
    matrix, outlines = ConfusionMatrix(classes), BoundaryScore(classes) if boundary else None
    for predicted_path, true_path in pairs:
        predicted, true = _read_pair(predicted_path, true_path)
        if ignored_as_background:
            predicted[predicted == IGNORE] = BACKGROUND
        try:
            matrix.update(predicted, true)
        except ValueError as error:
            fix = (
                _copies_fix(predicted_path)
                if predicted.shape != true.shape
                else "correct the mask or the class list"
            )
            raise UserError(f"{predicted_path} (scored against {true_path}): {error}; {fix}") from error
        if outlines is not None:
            outlines.update(predicted, true)
    return Counts(matrix, outlines)


def _copies_fix(path: Path) -> str:
    """What to do about a prediction of another size than its true mask: a run may have worked on smaller copies."""
    from wsss.data.working import MASKS  # here, because it needs OpenCV

    copies = (folder / RESIZED / MASKS for folder in path.parents)
    if found := next((folder for folder in copies if folder.is_dir()), None):
        return (
            "that run worked on smaller copies (data.long_side): score against its copies of the large masks in "
            f"{found}, or score the masks of `wsss predict`, which have the photo's size"
        )
    return "score masks that are as large as their photo"


def _keep_freed_memory() -> None:
    """Allocate and free one large block, so that the arrays of an image reuse the memory of the previous one.

    glibc returns freed blocks of more than 128 KiB to the system, and every page of the next image's arrays is
    then a page fault: a fifth of the time of scoring. Freeing a larger block raises that limit for the process
    (mallopt(3), M_MMAP_THRESHOLD, "dynamic"). The block is never touched, and other allocators are not affected.
    """
    np.empty(8 << 20, dtype=np.uint8)


def _read_pair(predicted: Path, true: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    return _read(predicted, "predicted"), _read(true, "ground-truth")


def _read(path: Path, what: str) -> npt.NDArray[np.uint8]:
    try:
        return read_mask(path)
    except UserError as error:
        if path.is_file():
            raise
        raise UserError(f"{path}: the {what} mask of image {path.stem} is missing") from error


def _ids_of_folder(folder: Path) -> list[str]:
    """The ids of all PNG files below a folder, sorted; hidden files are left out, such as macOS's "._a.png"."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder of masks")
    files = (path for path in folder.rglob("*.png") if not path.name.startswith("."))
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in files)


def _by_name(names: Sequence[str], values: npt.NDArray[np.float64]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in zip(names, values.tolist(), strict=True)}


def _number(value: float) -> float | None:
    """JSON has no NaN: None instead."""
    return None if np.isnan(value) else float(value)
