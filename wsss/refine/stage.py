"""The refinement stage: saliency archives to pseudo-masks, in several processes, without torch."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from wsss.data.dataset import Record
from wsss.data.files import Saliency, read_image, read_saliency, read_truth, write_confidence, write_mask
from wsss.data.labels import BACKGROUND
from wsss.errors import UserError
from wsss.metrics.reliability import ReliabilityCurve
from wsss.metrics.segmentation import ConfusionMatrix
from wsss.metrics.sweep import ThresholdSweep
from wsss.parallel import pool, unordered
from wsss.refine.background import (
    Maps,
    background_threshold,
    prepare_maps,
    prepare_probabilities,
    seed_mask,
)
from wsss.refine.crf import crf_labels
from wsss.refine.masks import RefinedMask, refine_mask, refine_probabilities
from wsss.refine.parameters import BackgroundParameters, CRFParameters, RefineParameters
from wsss.rundir import RunDirectory

T = TypeVar("T")

SALIENCY, EXTENDED = "saliency", "extended"
"""Folders of maps: of the saliency stage, and after the extension to whole objects."""

LABELS, MASKS = "pseudo_labels", "pseudo_masks"
"""Folders of the arg-max labels (no 255; what mask.miou scores) and of the masks with 255 (what is trained on)."""

CONFIDENCE = "pseudo_confidence"
"""Folder of the CRF's posterior of the labels, where the training weights pixels with it."""

GPU_THREADS = 4
"""Enough to read and write while one of them has the GPU."""

# A factor of about 1.4 between the candidates of the oracle; each costs two CRFs an image.
ORACLE_THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
ORACLE_FACTORS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)


def parameters(config: RefineParameters) -> RefineParameters:
    """The refinement's own parameters are the configuration's."""
    return config


def write_all(
    records: Sequence[Record],
    run: RunDirectory,
    config: RefineParameters,
    workers: int,
    progress: Any,
    source: str = SALIENCY,
    device: str | None = None,
    confidence: bool = False,
) -> None:
    """Write ``pseudo_masks/<id>.png`` and ``pseudo_labels/<id>.png`` for every record that lacks them.

    Args:
        records: training photos with stored saliency.
        run: the run directory.
        config: how to refine.
        workers: processes.
        progress: context manager factory ``progress(total, done)`` of a bar with ``update``.
        source: where the maps are: `SALIENCY` or `EXTENDED`.
        device: of a GPU; then threads read, write and wait for it, and there are no processes.
        confidence: also write ``pseudo_confidence/<id>.png``, grey, 255 = sure.
    """
    todo = [record for record in records if not is_done(run, record, confidence)]
    device = None if config.backend == "pydensecrf" else device
    refine = partial(_refine_one, run, parameters(config), source, config.backend, device, confidence)
    with (
        progress(len(records), len(records) - len(todo)) as bar,
        crf_pool(min(workers, len(todo)), device) as executor,
    ):
        for _ in unordered(executor, refine, todo, ahead=4 * workers):
            bar.update(1)


def crf_pool(workers: int, device: str | None) -> AbstractContextManager[Executor | None]:
    """Where CRFs run: processes, or threads that share the GPU ``device``."""
    return ThreadPoolExecutor(GPU_THREADS) if device else pool(workers)


def _refine_one(
    run: RunDirectory,
    settings: RefineParameters,
    source: str,
    backend: str,
    device: str | None,
    confidence: bool,
    record: Record,
) -> None:
    if is_done(run, record, confidence):
        return  # another process made it meanwhile (see `wsss.shards`)
    refined = refine_stored(run, settings, source, record, backend, device)
    _write_refined(run, record, refined, confidence)


def write_probabilities(
    run: RunDirectory,
    settings: RefineParameters,
    backend: str,
    device: str | None,
    confidence: bool,
    job: tuple[Record, npt.NDArray[np.float32]],
) -> None:
    """Refine probabilities of a photo and write its labels and its mask: ``job`` is (record, (K + 1, H, W))."""
    record, probabilities = job
    classes, image = record.labels or (), read_image(record.image)
    refined = refine_probabilities(probabilities, classes, image, settings, backend, device)
    _write_refined(run, record, refined, confidence)


def _write_refined(run: RunDirectory, record: Record, refined: RefinedMask, confidence: bool) -> None:
    if confidence:
        write_confidence(run.mask(CONFIDENCE, record.id), refined.confidence)
    write_mask(run.mask(LABELS, record.id), refined.labels)
    write_mask(run.mask(MASKS, record.id), refined.mask)  # last: it marks the image as done


def is_done(run: RunDirectory, record: Record, confidence: bool) -> bool:
    """Whether the photo has its labels and its mask, and its confidence where that is asked for."""
    return all(run.mask(folder, record.id).is_file() for folder in outputs(confidence))


def outputs(confidence: bool) -> tuple[str, ...]:
    """The folders in which every training photo has a file, with or without its confidence."""
    return (LABELS, MASKS, CONFIDENCE) if confidence else (LABELS, MASKS)


def refine_stored(
    run: RunDirectory,
    settings: RefineParameters,
    source: str,
    record: Record,
    backend: str = "auto",
    device: str | None = None,
) -> RefinedMask:
    """The refined mask of stored maps: of probabilities where they have a background, else of saliency."""
    stored, image = read_saliency(run.maps(source, record.id)), read_image(record.image)
    if image.shape[:2] != stored.size:
        raise UserError(f"{record.image} changed since its saliency was made; run `wsss saliency` again")
    if has_background(stored):
        probabilities = prepare_probabilities(stored.maps, stored.size)
        return refine_probabilities(probabilities, stored.classes[1:], image, settings, backend, device)
    maps = prepare_maps(stored.maps, stored.size)
    return refine_mask(maps, stored.classes, image, settings, backend, device)


def has_background(stored: Saliency) -> bool:
    """Whether the maps are probabilities with the background as their first class."""
    return len(stored.classes) > 0 and int(stored.classes[0]) == BACKGROUND


def load_maps(run: RunDirectory, record: Record, source: str = SALIENCY) -> tuple[Saliency, Maps]:
    """The stored saliency of a photo, and its maps (K, H, W) at the photo's size with maximum 1."""
    saliency = read_saliency(run.maps(source, record.id))
    return saliency, prepare_maps(saliency.maps, saliency.size)


def write_crf(parameters: CRFParameters, job: tuple[Path, npt.NDArray[np.float32], Path]) -> None:
    """Refine one prediction with the CRF: ``job`` is (photo, probabilities (C, H, W), target file)."""
    photo, probabilities, path = job
    write_mask(path, crf_labels(probabilities, read_image(photo), parameters))


# -- scoring of the training photos that have ground truth ---------------------------------------


def _scored(
    score: Callable[[Record], T], records: Sequence[Record], workers: int, progress: Any
) -> Iterator[T]:
    """`score` of every record, in processes, with a progress bar; as they come."""
    with progress(len(records), 0) as bar, pool(min(workers, len(records))) as executor:
        for part in unordered(executor, score, records, ahead=4 * workers):
            bar.update(1)
            yield part


def score_seeds(
    records: Sequence[Record],
    run: RunDirectory,
    config: RefineParameters,
    classes: int,
    workers: int,
    progress: Any,
) -> tuple[ConfusionMatrix, ThresholdSweep, float]:
    """Score the thresholded saliency before the CRF.

    Returns:
        The matrix at the rule's thresholds, the sweep over all thresholds (oracle), and the mean threshold.
    """
    matrix, sweep, total = ConfusionMatrix(classes), ThresholdSweep(classes), 0.0
    score = partial(_score_seed, run, parameters(config).background, classes)
    with progress(len(records), 0) as bar, pool(min(workers, len(records))) as executor:
        chunks = [records[start : start + 16] for start in range(0, len(records), 16)]
        for one, thresholds, part in unordered(executor, score, chunks, ahead=4 * workers):
            matrix, sweep, total = matrix + one, sweep + part, total + thresholds
            bar.update(one.images)
    return matrix, sweep, total / max(1, len(records))


def _score_seed(
    run: RunDirectory, rule: BackgroundParameters, classes: int, records: Sequence[Record]
) -> tuple[ConfusionMatrix, float, ThresholdSweep]:
    matrix, sweep, total = ConfusionMatrix(classes), ThresholdSweep(classes), 0.0
    for record in records:
        saliency, maps = load_maps(run, record)
        truth = _truth(record, classes)
        threshold = background_threshold(maps, rule) if len(maps) else rule.threshold
        matrix.update(seed_mask(maps, saliency.classes, threshold), truth)
        sweep.update(maps, saliency.classes, truth)
        total += threshold
    return matrix, total, sweep


def score_oracle(
    records: Sequence[Record],
    run: RunDirectory,
    config: RefineParameters,
    classes: int,
    workers: int,
    progress: Any,
    source: str = SALIENCY,
) -> dict[float, ConfusionMatrix]:
    """Refine with several strengths of the background and score each with the true masks; writes nothing.

    Returns:
        For saliency: constant background threshold -> matrix. For probabilities: factor on the background's.
    """
    total: dict[float, ConfusionMatrix] = {}
    score = partial(_score_refined, run, parameters(config), source, classes)
    for parts in _scored(score, records, workers, progress):
        total = {key: total[key] + part if key in total else part for key, part in parts.items()}
    return total


def _score_refined(
    run: RunDirectory, settings: RefineParameters, source: str, classes: int, record: Record
) -> dict[float, ConfusionMatrix]:
    stored, image = read_saliency(run.maps(source, record.id)), read_image(record.image)
    truth, matrices, soft = _truth(record, classes), {}, has_background(stored)
    maps = (prepare_probabilities if soft else prepare_maps)(stored.maps, stored.size)
    for value in ORACLE_FACTORS if soft else ORACLE_THRESHOLDS:
        if soft:
            weighted = np.concatenate((maps[:1] * np.float32(value), maps[1:]))
            total = weighted.sum(axis=0)
            weighted /= np.where(total > 0, total, 1)
            refined = refine_probabilities(weighted, stored.classes[1:], image, settings)
        else:
            rule = BackgroundParameters(rule="constant", threshold=value)
            refined = refine_mask(maps, stored.classes, image, replace(settings, background=rule))
        matrices[value] = ConfusionMatrix(classes)
        matrices[value].update(refined.labels, truth)
    return matrices


def score_extended(
    records: Sequence[Record],
    run: RunDirectory,
    config: RefineParameters,
    classes: int,
    workers: int,
    progress: Any,
) -> ConfusionMatrix:
    """The extended maps before the CRF: arg-max of probabilities, or seeds at the rule's threshold."""
    score = partial(_score_extended, run, parameters(config).background, classes)
    return sum(_scored(score, records, workers, progress), start=ConfusionMatrix(classes))


def _score_extended(
    run: RunDirectory, rule: BackgroundParameters, classes: int, record: Record
) -> ConfusionMatrix:
    stored, matrix = read_saliency(run.maps(EXTENDED, record.id)), ConfusionMatrix(classes)
    if has_background(stored):
        best = prepare_probabilities(stored.maps, stored.size).argmax(axis=0)
        labels = stored.classes.astype(np.uint8)[best]
    else:
        maps = prepare_maps(stored.maps, stored.size)
        threshold = background_threshold(maps, rule) if len(maps) else rule.threshold
        labels = seed_mask(maps, stored.classes, threshold)
    matrix.update(labels, _truth(record, classes))
    return matrix


def score_confidence(
    records: Sequence[Record],
    run: RunDirectory,
    config: RefineParameters,
    classes: int,
    workers: int,
    progress: Any,
    source: str = SALIENCY,
) -> ReliabilityCurve:
    """How right the refined labels are where the CRF is sure; refines once more and writes nothing."""
    score = partial(_score_confidence, run, parameters(config), source, classes)
    return sum(_scored(score, records, workers, progress), start=ReliabilityCurve())


def _score_confidence(
    run: RunDirectory, settings: RefineParameters, source: str, classes: int, record: Record
) -> ReliabilityCurve:
    refined = refine_stored(run, settings, source, record)
    curve = ReliabilityCurve()
    curve.update(refined.labels, refined.confidence, _truth(record, classes))
    return curve


def _truth(record: Record, classes: int) -> Any:
    """The true mask of a record that has one."""
    if record.mask is None:
        raise UserError(f"image {record.id} has no true mask to score against")
    return read_truth(record.mask, record.image, classes)
