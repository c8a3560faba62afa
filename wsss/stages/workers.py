"""What worker processes do with one photo of a run: refine its maps, score them, refine a prediction.

Without torch, so that a process starts in a second and takes little memory: nothing here may import it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from wsss.data.confidence import confidence_of
from wsss.data.dataset import Record
from wsss.data.files import Saliency, read_image, read_saliency, read_truth, write_mask
from wsss.data.labels import BACKGROUND
from wsss.errors import UserError
from wsss.metrics.confusion import ConfusionMatrix
from wsss.metrics.reliability import ReliabilityCurve
from wsss.metrics.sweep import ThresholdSweep
from wsss.refine.background import Maps, background_threshold, prepare_maps, prepare_probabilities, seed_mask
from wsss.refine.crf import crf_probabilities
from wsss.refine.masks import RefinedMask
from wsss.refine.parameters import BackgroundParameters, CRFParameters
from wsss.refine.refiners import Refiner
from wsss.rundir import EXTENDED, LABELS, MASKS, SALIENCY, RunDirectory

T = TypeVar("T")


def load_maps(run: RunDirectory, record: Record, source: str = SALIENCY) -> tuple[Saliency, Maps]:
    """The stored maps of a photo, as stored and at the photo's size.

    Returns:
        The archive; and (K, H, W) saliency of maximum 1, or (K + 1, H, W) probabilities with the background first
        (`has_background`).
    """
    stored = read_saliency(run.maps(source, record.id))
    prepare = prepare_probabilities if has_background(stored) else prepare_maps
    return stored, prepare(stored.maps, stored.size)


def has_background(stored: Saliency) -> bool:
    """Whether the maps are probabilities with the background as their first class."""
    return len(stored.classes) > 0 and int(stored.classes[0]) == BACKGROUND


# -- refinement ---------------------------------------------------------------------------------------


def refine_one(run: RunDirectory, refiner: Refiner, source: str, record: Record) -> None:
    if is_done(run, record):
        return  # another process wrote it meanwhile (see `wsss.stages.shards`)
    refined = refine_stored(run, refiner, source, record)
    write_mask(run.mask(LABELS, record.id), refined.labels)
    write_mask(run.mask(MASKS, record.id), refined.mask)  # last: it marks the image as done


def is_done(run: RunDirectory, record: Record) -> bool:
    """Whether the photo has its labels and its mask."""
    return all(run.mask(folder, record.id).is_file() for folder in (LABELS, MASKS))


def refine_stored(run: RunDirectory, refiner: Refiner, source: str, record: Record) -> RefinedMask:
    """The refined mask of the stored maps of a photo.

    Raises:
        UserError: the photo changed since its maps were made.
    """
    (stored, maps), image = load_maps(run, record, source), read_image(record.image)
    if image.shape[:2] != stored.size:
        raise UserError(f"{record.image} changed since its saliency was made; run `wsss saliency` again")
    return refiner(maps, stored.classes[has_background(stored) :], image)


def write_crf(parameters: CRFParameters, job: tuple[Path, npt.NDArray[np.float32], Path]) -> None:
    """Refine one prediction with the CRF: ``job`` is (photo, probabilities (C, H, W), target file)."""
    photo, probabilities, path = job
    refined = crf_probabilities(probabilities, read_image(photo), parameters)
    labels = np.asarray(refined.argmax(axis=0), dtype=np.uint8)
    write_mask(path, labels, confidence_of(refined.max(axis=0), labels))


# -- scores -------------------------------------------------------------------------------------------


def sum_of(score: Callable[[Record], T], records: Sequence[Record]) -> tuple[int, T]:
    return len(records), reduce(add, map(score, records))


@dataclass(frozen=True)
class Seeds:
    """Thresholded saliency against true masks, summed over photos."""

    matrix: ConfusionMatrix
    sweep: ThresholdSweep
    """Over all thresholds, for the oracle."""
    thresholds: float = 0.0
    """Sum of the thresholds of the photos."""

    def __add__(self, other: "Seeds") -> "Seeds":
        return Seeds(self.matrix + other.matrix, self.sweep + other.sweep, self.thresholds + other.thresholds)


def score_seed(run: RunDirectory, rule: BackgroundParameters, classes: int, record: Record) -> Seeds:
    matrix, sweep = ConfusionMatrix(classes), ThresholdSweep(classes)
    stored, maps = load_maps(run, record)
    truth = _truth(record, classes)
    threshold = background_threshold(maps, rule) if len(maps) else rule.threshold
    matrix.update(seed_mask(maps, stored.classes, threshold), truth)
    sweep.update(maps, stored.classes, truth)
    return Seeds(matrix, sweep, threshold)


def score_extended(
    run: RunDirectory, rule: BackgroundParameters, classes: int, record: Record
) -> ConfusionMatrix:
    """Arg-max of probabilities, or seeds at the rule's threshold."""
    matrix = ConfusionMatrix(classes)
    stored, maps = load_maps(run, record, EXTENDED)
    if has_background(stored):
        labels = stored.classes.astype(np.uint8)[maps.argmax(axis=0)]
    else:
        threshold = background_threshold(maps, rule) if len(maps) else rule.threshold
        labels = seed_mask(maps, stored.classes, threshold)
    matrix.update(labels, _truth(record, classes))
    return matrix


class Matrices(dict[float, ConfusionMatrix]):
    """Confusion matrices by the value that made the masks; they add up value by value."""

    def __add__(self, other: "Matrices") -> "Matrices":
        return Matrices({key: self[key] + other[key] if key in self else other[key] for key in other})


def score_confidence(
    run: RunDirectory, refiner: Refiner, source: str, classes: int, record: Record
) -> ReliabilityCurve:
    refined, curve = refine_stored(run, refiner, source, record), ReliabilityCurve()
    curve.update(refined.labels, refined.confidence, _truth(record, classes))
    return curve


def score_oracle(
    run: RunDirectory, refiners: Mapping[float, Refiner], source: str, classes: int, record: Record
) -> Matrices:
    """Refine one photo with several strengths of the background and score each; writes nothing."""
    (stored, maps), image = load_maps(run, record, source), read_image(record.image)
    truth, matrices, soft = _truth(record, classes), Matrices(), has_background(stored)
    for value, refiner in refiners.items():
        weighted = maps
        if soft:
            weighted = np.concatenate((maps[:1] * np.float32(value), maps[1:]))
            total = weighted.sum(axis=0)
            weighted /= np.where(total > 0, total, 1)
        matrices[value] = ConfusionMatrix(classes)
        matrices[value].update(refiner(weighted, stored.classes[soft:], image).labels, truth)
    return matrices


def _truth(record: Record, classes: int) -> Any:
    """The true mask of a record that has one."""
    if record.mask is None:
        raise UserError(f"image {record.id} has no true mask to score against")
    return read_truth(record.mask, record.image, classes)
