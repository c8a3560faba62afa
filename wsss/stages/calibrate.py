"""The background rule that the classifier itself prefers (``refine.background.rule: calibrated``).

It is chosen only if something depends on it: for the maps that the refinement cuts by a rule, and for the saliency if
seeds are scored. No mask is used. If there are masks, their choice is printed next to it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from wsss import runtime
from wsss.config import Config, RuntimeConfig
from wsss.data.dataset import Record, evenly
from wsss.data.files import read_image, read_object, read_truth, write_json
from wsss.data.transforms import normalize_image, resize_long_side, to_tensor
from wsss.metrics.segmentation import ConfusionMatrix
from wsss.parallel import rank_and_world
from wsss.refine.background import background_threshold, prepare_maps, seed_mask
from wsss.refine.calibrate import CANDIDATES, Evidence, describe, evidence_of_seeds, mean_evidence
from wsss.refine.parameters import BackgroundParameters, RefineParameters
from wsss.rundir import CLASSIFIER, SALIENCY, RunDirectory
from wsss.stages.base import Context
from wsss.stages.shards import wait_for
from wsss.stages.workers import load_maps
from wsss.tasks.classification import load_classifier

PHOTOS = 50
"""Number of photos to look at, evenly spaced over the training list. Each costs two dozen forward passes per class."""
LONG_SIDE = 320
"""Larger photos are shrunk to this, in pixels. The classifier answers the same, in less time."""


@dataclass
class Candidate:
    """A background rule and what is known about it."""

    rule: BackgroundParameters
    evidence: Evidence
    truth: ConfusionMatrix
    """Of its seeds on the same photos, if there are masks. Printed, never used."""

    @property
    def miou(self) -> float | None:
        return self.truth.miou() if self.truth.images else None


def chosen_rule(context: Context, source: str) -> RefineParameters:
    """The refinement of the configuration with the background rule for the maps of ``source``.

    If the rule is `calibrated` and not chosen yet, process 0 chooses it now, and the others wait.
    """
    refine, run = context.config.refine, context.run
    if refine.background.rule != "calibrated":
        return refine
    if source not in _stored(run):
        if rank_and_world()[0] == 0:
            calibrate(context, source)
        else:
            wait_for(lambda: source in _stored(run), f"choose the background rule in {run.calibration}")
    rule = _stored(run)[source]["chosen"]
    return replace(refine, background=BackgroundParameters(**rule))


def _stored(run: RunDirectory) -> dict[str, Any]:
    """Folder of maps -> the rules that were compared for it, and the chosen one."""
    return read_object(run.calibration) if run.calibration.is_file() else {}


def calibrate(context: Context, source: str) -> None:
    """Choose the background rule with the largest gain for the maps in ``source``.

    Adds it to ``calibration.json`` and prints the table. Without any image label it is the constant
    `refine.background.threshold`.
    """
    config, dataset = context.config, context.dataset
    sample = evenly([record for record in dataset.train if record.labels], PHOTOS)
    candidates = judge(config, sample, len(dataset.class_names), context.run, source) if sample else []
    best = max(candidates, key=lambda candidate: candidate.evidence.gain, default=None)
    fallback = BackgroundParameters(rule="constant", threshold=config.refine.background.threshold)
    facts = _facts(candidates, best.rule if best else fallback, len(sample))
    write_json(context.run.calibration, {**_stored(context.run), source: facts})
    if best:
        print(table(candidates, best, len(sample), source))


def judge(
    config: Config, sample: Sequence[Record], classes: int, run: RunDirectory, source: str = SALIENCY
) -> list[Candidate]:
    """Try every candidate on every photo of the sample."""
    path = run.checkpoint(CLASSIFIER, config.saliency.checkpoint)
    network = runtime.prepare(load_classifier(path)[0], config.runtime)
    parts: list[list[Evidence]] = [[] for _ in CANDIDATES]
    truths = [ConfusionMatrix(classes) for _ in CANDIDATES]
    for record in runtime.progress(sample, config.runtime, "calibrate", len(sample)):
        saliency, maps = load_maps(run, record, source)
        indices = [int(index) for index in saliency.classes]
        image = to_tensor(read_image(record.image)).to(runtime.device(config.runtime))
        if max(image.shape) > LONG_SIDE:
            image = resize_long_side(image, LONG_SIDE)
        small = prepare_maps(saliency.maps, (image.shape[1], image.shape[2]))
        found = evidence_of_seeds(
            normalize_image(image),
            small,
            indices,
            CANDIDATES,
            lambda x: _probabilities(network, x, config.runtime),
        )
        for part, one in zip(parts, found, strict=True):
            part += one
        if record.mask is not None:
            truth = read_truth(record.mask, record.image, classes)
            for rule, matrix in zip(CANDIDATES, truths, strict=True):
                matrix.update(seed_mask(maps, indices, background_threshold(maps, rule)), truth)
    return [Candidate(*each) for each in zip(CANDIDATES, map(mean_evidence, parts), truths, strict=True)]


def _probabilities(network: nn.Module, images: Tensor, hardware: RuntimeConfig) -> Tensor:
    with torch.inference_mode(), runtime.autocast(hardware):
        return torch.sigmoid(network(images).float())


def table(candidates: Sequence[Candidate], best: Candidate, photos: int, source: str = SALIENCY) -> str:
    """What the user sees: the criterion, and next to it the seeds' mIoU if there are masks."""
    oracle = max((c.miou for c in candidates if c.miou is not None), default=None)
    lines = [
        f"background rules for the maps in {source}/ on {photos} training photos: "
        "how much of the classifier's evidence the seeds hold (no masks used)",
        f"  {'rule':<16}{'kept':>8}{'removed':>9}{'area':>8}{'gain':>8}"
        + ("" if oracle is None else f"{'seed mIoU (oracle, not used)':>32}"),
    ]
    for each in candidates:
        found = each.evidence
        truth = (
            ""
            if each.miou is None
            else f"{100 * each.miou:>24.1f}{' best' if each.miou == oracle else '':<8}"
        )
        mark = " <- chosen" if each is best else ""
        lines.append(
            f"  {describe(each.rule):<16}{found.kept:>8.3f}{found.removed:>9.3f}{found.area:>8.3f}{found.gain:>8.3f}"
            f"{truth}{mark}"
        )
    return "\n".join(lines)


def _facts(candidates: Sequence[Candidate], chosen: BackgroundParameters, photos: int) -> dict[str, Any]:
    rows = [
        {**asdict(each.rule), **asdict(each.evidence), "gain": each.evidence.gain, "oracle_miou": each.miou}
        for each in candidates
    ]
    return {"photos": photos, "chosen": asdict(chosen), "candidates": rows}
