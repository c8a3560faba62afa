"""How the entries of metrics.json are measured: the run directory's files against the true masks, if there are any.

No true mask ever chooses anything in a run. Only oracles choose with them, and they say so.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from wsss import runtime
from wsss.config import RuntimeConfig
from wsss.data.dataset import Record, evenly, with_masks
from wsss.data.files import classes_in, read_mask
from wsss.metrics.reliability import ReliabilityCurve
from wsss.metrics.segmentation import ConfusionMatrix, confusion_of_pairs, score
from wsss.metrics.sweep import ThresholdSweep
from wsss.parallel import pool, unordered
from wsss.refine.parameters import BackgroundParameters
from wsss.refine.refiners import Refiner, build_refiner
from wsss.rundir import EXTENDED, LABELS, MASKS, PLAIN, SALIENCY, SUPERVISED_PLAIN
from wsss.stages.base import Context
from wsss.stages.calibrate import chosen_rule
from wsss.stages.refine import chosen_parameters, is_soft, maps_folder
from wsss.stages.workers import (
    Matrices,
    Seeds,
    score_confidence,
    score_extended,
    score_oracle,
    score_seed,
    sum_of,
)

T = TypeVar("T")
Entry = dict[str, Any]

Measure = Callable[[Context, Mapping[str, Any]], Any]
"""(context, the other entries of metrics.json) -> the entry, or None if there is nothing to measure."""

# A factor of about 1.4 between the candidates of the oracle; each costs two CRFs an image.
ORACLE_THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
ORACLE_FACTORS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)

SEEDS_AT_ONCE = 16
"""Photos whose sweeps a worker sums before it returns them. A sweep has a count for each threshold and class."""


def accumulate(
    score: Callable[[Record], T],
    records: Sequence[Record],
    hardware: RuntimeConfig,
    title: str,
    start: T,
    *,
    at_once: int = 1,
    parallel: bool = True,
) -> T:
    """The sum of ``score`` over the records, in worker processes, with a progress bar.

    Args:
        score: of one record, something that can be added.
        records: photos with true masks.
        hardware: processes and progress.
        title: of the progress bar.
        start: the empty sum.
        at_once: number of records that a worker sums before it returns the sum.
        parallel: False scores in this process.
    """
    workers = runtime.workers(hardware) if parallel else 0
    chunks = [records[begin : begin + at_once] for begin in range(0, len(records), at_once)]
    total = start
    with (
        runtime.bar(hardware, title, len(records), 0) as bar,
        pool(min(workers, len(chunks))) as executor,
    ):
        for count, part in unordered(executor, partial(sum_of, score), chunks, ahead=4 * max(1, workers)):
            total = total + part  # type: ignore[operator]
            bar.update(count)
    return total


# -- seeds and extended seeds -----------------------------------------------------------------------


def seed_entry(context: Context, known: Mapping[str, Any]) -> Entry | None:
    """``seed``: the saliency at the rule's thresholds, before the CRF."""
    records, classes = with_masks(context.dataset.train), len(context.dataset.class_names)
    if not records:
        return None
    rule = chosen_rule(context, SALIENCY).background
    found = accumulate(
        partial(score_seed, context.run, rule, classes),
        records,
        context.config.runtime,
        "score seeds",
        Seeds(ConfusionMatrix(classes), ThresholdSweep(classes)),
        at_once=SEEDS_AT_ONCE,
    )
    best_threshold, best = found.sweep.best()
    return {
        **score(found.matrix, context.dataset.class_names),
        "threshold": round(found.thresholds / len(records), 4),
        **_oracle("threshold", best.miou(), round(best_threshold, 4), found.matrix.miou()),
    }


def extended_entry(context: Context, known: Mapping[str, Any]) -> Entry | None:
    """``extended``: the maps after the extension, before the CRF."""
    records, classes = with_masks(context.dataset.train), len(context.dataset.class_names)
    if not records or maps_folder(context.config) != EXTENDED:
        return None
    refine = context.config.refine if is_soft(context.config) else chosen_rule(context, EXTENDED)
    rule = refine.background  # also where the refiner itself uses none
    found = accumulate(
        partial(score_extended, context.run, rule, classes),
        records,
        context.config.runtime,
        "score extended",
        ConfusionMatrix(classes),
    )
    return {"method": context.config.extension, **score(found, context.dataset.class_names)}


# -- pseudo-masks -----------------------------------------------------------------------------------


def mask_entry(context: Context, known: Mapping[str, Any]) -> Entry | None:
    """``mask``: the labels after the refinement, what a training sees of the masks, and the oracle."""
    records = with_masks(context.dataset.train)
    if not records:
        return None
    names = context.dataset.class_names
    labels, masks = (_confusion(context, records, folder) for folder in (LABELS, MASKS))
    plain = maps_folder(context.config) == SALIENCY
    return {
        **score(labels, names),
        "threshold": known["seed"]["threshold"] if plain else None,
        "coverage": _number(masks.coverage()),
        "kept_miou": _number(masks.kept().miou()),
        "kept_accuracy": _number(masks.kept().accuracy()),
        "reliability": _reliability(context, records),
        **_mask_oracle(context, records),
    }


def _reliability(context: Context, records: Sequence[Record]) -> Entry:
    """Coverage against accuracy as the required confidence falls, on the oracle's sample.

    Refines once more and writes nothing.
    """
    config, classes = context.config, len(context.dataset.class_names)
    sample, refiner = (
        evenly(records, config.evaluate.oracle_images),
        build_refiner(chosen_parameters(context)),
    )
    curve = accumulate(
        partial(score_confidence, context.run, refiner, maps_folder(config), classes),
        sample,
        config.runtime,
        "mask confidence",
        ReliabilityCurve(),
        parallel=refiner.place == "processes",
    )
    return {"images": len(sample), **curve.points()}


def _mask_oracle(context: Context, records: Sequence[Record]) -> Entry:
    """Best constant background after the refinement, on a sample, because every candidate costs a CRF or two per
    photo."""
    config, classes, soft = context.config, len(context.dataset.class_names), is_soft(context.config)
    sample = evenly(records, config.evaluate.oracle_images)
    refiners = _oracle_refiners(context, soft)
    matrices = accumulate(
        partial(score_oracle, context.run, refiners, maps_folder(config), classes),
        sample,
        config.runtime,
        "mask oracle",
        Matrices(),
        parallel=all(refiner.place == "processes" for refiner in refiners.values()),
    )
    value, best = max(matrices.items(), key=lambda item: item[1].miou())
    own = _confusion(context, sample, LABELS)
    return {
        **_oracle("background_factor" if soft else "threshold", best.miou(), value, own.miou()),
        "oracle_images": len(sample),
        "miou_on_oracle_images": _number(own.miou()),
    }


def _oracle_refiners(context: Context, soft: bool) -> dict[float, Refiner]:
    """For saliency: constant background threshold -> refiner. For probabilities: factor on the background's."""
    parameters = chosen_parameters(context)
    if soft:
        return dict.fromkeys(ORACLE_FACTORS, build_refiner(parameters))
    rules = [BackgroundParameters(rule="constant", threshold=value) for value in ORACLE_THRESHOLDS]
    return {rule.threshold: build_refiner(replace(parameters, background=rule)) for rule in rules}


def _oracle(kind: str, best: float, value: float, own: float) -> Entry:
    """The best constant, or None if the run's own rule (which may differ by photo) beats them all."""
    return {"oracle_miou": _number(max(best, own)), f"oracle_{kind}": value if best >= own else None}


# -- predictions ------------------------------------------------------------------------------------


def prediction_entry(folder: str) -> Measure:
    """``val`` and the like: the predictions in ``folder`` against the true masks of the validation photos."""

    def entry(context: Context, known: Mapping[str, Any]) -> Entry | None:
        records = with_masks(context.dataset.val)
        if not records:
            return None
        return {
            **score(_confusion(context, records, folder), context.dataset.class_names),
            **_seen(context, folder),
        }

    return entry


def _seen(context: Context, folder: str) -> Entry:
    """The masks that the network behind these predictions has seen, pseudo-masks aside."""
    true = None if folder == SUPERVISED_PLAIN else context.run.stage_entry("segment").get("true_masks")
    pretraining = context.config.segmenter.mask_pretraining
    return {**({"mask_pretraining": True} if pretraining else {}), **({"true_masks": true} if true else {})}


def tags_entry(context: Context, known: Mapping[str, Any]) -> Entry | None:
    """``tags``: the classes in the single-scale predictions of the validation photos against the photos' tags.

    No true mask is read. A class is predicted if it has a pixel. Of each class: F1, precision (share of the photos
    where it is predicted that have the tag), recall (share of the photos with the tag where it is predicted), its tags
    and those without a pixel. ``f1`` is the mean over the classes that are tagged or predicted.
    """
    records = [record for record in context.dataset.val if record.labels is not None]
    if not records:
        return None
    tagged, predicted, both = (np.zeros(len(context.dataset.class_names), int) for _ in range(3))
    for record in records:
        tags, found = set(record.labels or ()), set(classes_in(read_mask(context.run.mask(PLAIN, record.id))))
        for count, classes in ((tagged, tags), (predicted, found), (both, tags & found)):
            count[list(classes)] += 1

    def per_class(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> dict[str, float | None]:
        pairs = zip(context.dataset.classes, part.tolist()[1:], whole.tolist()[1:], strict=True)
        return {name: one / all_ if all_ else None for name, one, all_ in pairs}

    f1 = per_class(2 * both, tagged + predicted)
    values = [value for value in f1.values() if value is not None]
    return {
        "f1": sum(values) / len(values) if values else None,
        "images": len(records),
        "per_class": f1,
        "precision": per_class(both, predicted),
        "recall": per_class(both, tagged),
        "tagged": dict(zip(context.dataset.classes, tagged.tolist()[1:], strict=True)),
        "without_pixel": dict(zip(context.dataset.classes, (tagged - both).tolist()[1:], strict=True)),
        **_seen(context, PLAIN),
    }


def retention(context: Context, known: Mapping[str, Any]) -> float | None:
    """``retention`` = val.miou / supervised.miou, if both are known."""
    weak, ceiling = ((known.get(name) or {}).get("miou") for name in ("val", "supervised"))
    return weak / ceiling if weak is not None and ceiling else None


def _confusion(context: Context, records: Sequence[Record], folder: str) -> ConfusionMatrix:
    pairs = [(context.run.mask(folder, r.id), r.mask) for r in records if r.mask is not None]
    classes, workers = len(context.dataset.class_names), runtime.workers(context.config.runtime)
    return confusion_of_pairs(pairs, classes, workers=workers)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
