"""The refinement stage: saliency archives to pseudo-masks, in several processes, without torch."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsss.config import CRFConfig, RefineConfig
from wsss.data.dataset import Record
from wsss.data.files import Saliency, read_image, read_saliency, read_truth, write_mask
from wsss.errors import UserError
from wsss.metrics.reliability import ReliabilityCurve
from wsss.metrics.segmentation import ConfusionMatrix
from wsss.metrics.sweep import ThresholdSweep
from wsss.parallel import pool, unordered
from wsss.refine.background import BackgroundParameters, Maps, background_threshold, prepare_maps, seed_mask
from wsss.refine.crf import CRFParameters, crf_labels
from wsss.refine.masks import RefineParameters, refine_mask
from wsss.rundir import RunDirectory

LABELS, MASKS = "pseudo_labels", "pseudo_masks"
"""Folders of the arg-max labels (no 255; what mask.miou scores) and of the masks with 255 (what is trained on)."""

# A factor of about 1.4 between the candidates of the oracle; each costs two CRFs an image.
ORACLE_THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)


def crf_parameters(config: CRFConfig) -> CRFParameters:
    """The CRF's own parameters from the configuration."""
    return CRFParameters(**asdict(config))


def parameters(config: RefineConfig) -> RefineParameters:
    """The refinement's own parameters from the configuration.

    Raises:
        UserError: a value is out of range.
    """
    try:
        return RefineParameters(
            background=BackgroundParameters(**asdict(config.background)),
            uncertainty=config.uncertainty,
            low_factor=config.low_factor,
            high_factor=config.high_factor,
            posterior_limit=config.posterior_limit,
            confidence=config.confidence,
            crf=crf_parameters(config.crf),
        )
    except ValueError as error:
        raise UserError(f"refine: {error}") from error


def write_all(
    records: Sequence[Record], run: RunDirectory, config: RefineConfig, workers: int, progress: Any
) -> None:
    """Write ``pseudo_masks/<id>.png`` and ``pseudo_labels/<id>.png`` for every record that lacks them.

    Args:
        records: training photos with stored saliency.
        run: the run directory.
        config: how to refine.
        workers: processes.
        progress: context manager factory ``progress(total, done)`` of a bar with ``update``.
    """
    folders = (LABELS, MASKS)
    todo = [r for r in records if not all(run.mask(folder, r.id).is_file() for folder in folders)]
    refine = partial(_refine_one, run, parameters(config))
    with progress(len(records), len(records) - len(todo)) as bar, pool(min(workers, len(todo))) as executor:
        for _ in unordered(executor, refine, todo, ahead=4 * workers):
            bar.update(1)


def _refine_one(run: RunDirectory, settings: RefineParameters, record: Record) -> None:
    if all(run.mask(folder, record.id).is_file() for folder in (LABELS, MASKS)):
        return  # another process made it meanwhile (see `wsss.shards`)
    saliency, maps = load_maps(run, record)
    image = read_image(record.image)
    if image.shape[:2] != saliency.size:
        raise UserError(f"{record.image} changed since its saliency was made; run `wsss saliency` again")
    labels, mask, _ = refine_mask(maps, saliency.classes, image, settings)
    write_mask(run.mask(LABELS, record.id), labels)
    write_mask(run.mask(MASKS, record.id), mask)  # last: it marks the image as done


def load_maps(run: RunDirectory, record: Record) -> tuple[Saliency, Maps]:
    """The stored saliency of a photo, and its maps (K, H, W) at the photo's size with maximum 1."""
    saliency = read_saliency(run.saliency(record.id))
    return saliency, prepare_maps(saliency.maps, saliency.size)


def write_crf(parameters: CRFParameters, job: tuple[Path, npt.NDArray[np.float32], Path]) -> None:
    """Refine one prediction with the CRF: ``job`` is (photo, probabilities (C, H, W), target file)."""
    photo, probabilities, path = job
    write_mask(path, crf_labels(probabilities, read_image(photo), parameters))


# -- scoring of the training photos that have ground truth ---------------------------------------


def score_seeds(
    records: Sequence[Record],
    run: RunDirectory,
    config: RefineConfig,
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
    config: RefineConfig,
    classes: int,
    workers: int,
    progress: Any,
) -> dict[float, ConfusionMatrix]:
    """Refine with several constant background thresholds and score each with the true masks; writes nothing."""
    rules = {
        threshold: replace(
            parameters(config), background=BackgroundParameters(rule="constant", threshold=threshold)
        )
        for threshold in ORACLE_THRESHOLDS
    }
    matrices = {threshold: ConfusionMatrix(classes) for threshold in rules}
    with progress(len(records), 0) as bar, pool(min(workers, len(records))) as executor:
        score = partial(_score_refined, run, rules, classes)
        for parts in unordered(executor, score, records, ahead=4 * workers):
            matrices = {threshold: matrices[threshold] + parts[threshold] for threshold in rules}
            bar.update(1)
    return matrices


def _score_refined(
    run: RunDirectory, rules: dict[float, RefineParameters], classes: int, record: Record
) -> dict[float, ConfusionMatrix]:
    saliency, maps = load_maps(run, record)
    image, truth = read_image(record.image), _truth(record, classes)
    matrices = {}
    for threshold, settings in rules.items():
        matrices[threshold] = ConfusionMatrix(classes)
        matrices[threshold].update(refine_mask(maps, saliency.classes, image, settings).labels, truth)
    return matrices


def score_confidence(
    records: Sequence[Record],
    run: RunDirectory,
    config: RefineConfig,
    classes: int,
    workers: int,
    progress: Any,
) -> ReliabilityCurve:
    """How right the refined labels are where the CRF is sure; refines once more and writes nothing."""
    curve = ReliabilityCurve()
    with progress(len(records), 0) as bar, pool(min(workers, len(records))) as executor:
        score = partial(_score_confidence, run, parameters(config), classes)
        for part in unordered(executor, score, records, ahead=4 * workers):
            curve = curve + part
            bar.update(1)
    return curve


def _score_confidence(
    run: RunDirectory, settings: RefineParameters, classes: int, record: Record
) -> ReliabilityCurve:
    saliency, maps = load_maps(run, record)
    refined = refine_mask(maps, saliency.classes, read_image(record.image), settings)
    curve = ReliabilityCurve()
    curve.update(refined.labels, refined.confidence, _truth(record, classes))
    return curve


def _truth(record: Record, classes: int) -> Any:
    """The true mask of a record that has one."""
    if record.mask is None:
        raise UserError(f"image {record.id} has no true mask to score against")
    return read_truth(record.mask, record.image, classes)
