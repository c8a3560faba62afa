"""Predict the validation photos with the trained networks, and score them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wsss import runtime
from wsss.config import Config, EvaluateConfig, RuntimeConfig, to_dict
from wsss.data.confidence import confidence_of
from wsss.data.dataset import Dataset, Record, evenly
from wsss.data.files import read_mask, write_mask
from wsss.data.modules import load_batches, same_size_batches
from wsss.data.transforms import normalize_image
from wsss.models.segmenter import Segmenter, predict_probabilities
from wsss.parallel import pool, rank_and_world, unordered
from wsss.refine.parameters import CRFParameters
from wsss.rundir import CRF, MS_FLIP, PLAIN, SEGMENTER, SUPERVISED, SUPERVISED_PLAIN
from wsss.stages import signs
from wsss.stages.base import Context, Stage, after, bytes_of_masks, tell, unused, val_inputs
from wsss.stages.score import measure
from wsss.stages.shards import shares
from wsss.stages.workers import write_crf
from wsss.tasks import segmentation


def evaluate(context: Context) -> dict[str, Any]:
    """Predictions of the validation photos, and ``val``, ``val_ms_flip``, ``val_crf``."""
    if not context.config.evaluate.ms_flip:
        tell(unused("evaluate", context.config.evaluate, ["scales"], "evaluate.ms_flip is false"))
    _predict(context, SEGMENTER, "", context.config.evaluate)
    if rank_and_world()[0] > 0:
        return {}
    measure(context, "evaluate")
    some = evenly(context.dataset.val, signs.LOOKED_AT)
    masks = (read_mask(context.run.mask(PLAIN, record.id)) for record in some)
    warnings = signs.of_predictions(masks, context.dataset.class_names)
    return {"images": len(context.dataset.val), "warnings": warnings}


def evaluate_supervised(context: Context) -> dict[str, Any]:
    """Single-scale predictions of the supervised twin, and ``supervised`` and ``retention``."""
    prefix = SUPERVISED_PLAIN.removesuffix(PLAIN)
    _predict(context, SUPERVISED, prefix, replace(context.config.evaluate, ms_flip=False, crf=False))
    if rank_and_world()[0] > 0:
        return {}
    measure(context, "evaluate_supervised")
    return {"images": len(context.dataset.val)}


def _predict(context: Context, network: str, prefix: str, settings: EvaluateConfig) -> None:
    config, run = context.config, context.run
    model, _ = segmentation.load_segmenter(run.checkpoint(network))
    predict_records(
        model,
        context.dataset.val,
        lambda folder, identifier: run.mask(prefix + folder, identifier),
        settings,
        config.refine.soft_crf,
        config.runtime,
        f"predict ({network})",
    )


def folders(config: EvaluateConfig) -> list[str]:
    """The folders of predictions that this configuration asks for."""
    return [PLAIN, *([MS_FLIP] if config.ms_flip else []), *([CRF] if config.crf else [])]


def predict_records(
    model: Segmenter,
    records: Sequence[Record],
    write: Callable[[str, str], Path],
    config: EvaluateConfig,
    crf: CRFParameters,
    hardware: RuntimeConfig,
    title: str,
) -> None:
    """Write the predictions of every record that lacks one, at the photo's own size.

    Args:
        model: the segmenter.
        records: photos; their labels and masks are not read.
        write: (folder, id) -> path of the PNG.
        config: kinds of prediction.
        crf: constants of the CRF that refines them.
        hardware: device and processes.
        title: of the progress bar.
    """
    asked = folders(config)

    def missing(record: Record) -> bool:
        return not all(write(folder, record.id).is_file() for folder in asked)

    batches = same_size_batches(records, 1 if config.ms_flip else 4)
    left = sum(len(batch) for batch in batches if any(map(missing, batch)))
    model = runtime.prepare(model, hardware)  # type: ignore[assignment]
    workers = runtime.workers(hardware)
    with (
        runtime.bar(hardware, title, len(records), len(records) - left) as bar,
        pool(workers if config.crf and left else 0) as executor,
        torch.inference_mode(),
        runtime.autocast(hardware),
    ):

        def jobs(todo: Sequence[Sequence[Record]]) -> Any:
            for photos in load_batches(todo, workers=runtime.loader_workers(hardware)):
                images = normalize_image(torch.stack([p.image for p in photos]).to(runtime.device(hardware)))
                plain = predict_probabilities(model, images)
                best = plain
                if config.ms_flip:
                    best = predict_probabilities(model, images, config.scales, flip=True)
                for index, photo in enumerate(photos):
                    bar.update(1)
                    identifier = photo.record.id
                    if not missing(photo.record):
                        continue
                    _write(write(PLAIN, identifier), plain[index])
                    if config.ms_flip:
                        _write(write(MS_FLIP, identifier), best[index])
                    if config.crf:
                        yield photo.record.image, best[index].cpu().numpy(), write(CRF, identifier)

        for part in shares(batches):
            todo = [batch for batch in part if any(map(missing, batch))]
            for _ in unordered(executor, partial(write_crf, crf), jobs(todo), ahead=2 * workers):
                pass


def _write(path: Path, probabilities: torch.Tensor) -> None:
    labels = label_map(probabilities)
    write_mask(path, labels, confidence_of(probabilities.amax(0).float().cpu().numpy(), labels))


def label_map(probabilities: torch.Tensor) -> npt.NDArray[np.uint8]:
    """(C, H, W) -> (H, W) uint8 index of the most probable class."""
    labels: npt.NDArray[np.uint8] = probabilities.argmax(0).to(torch.uint8).cpu().numpy()
    return labels


def _reads(config: Config, dataset: Dataset) -> list[Any]:
    settings = to_dict(config.evaluate)
    del settings["oracle_images"]  # belongs to the scores of the pseudo-masks
    crf = to_dict(config.refine.soft_crf) if config.evaluate.crf else None
    return [settings, crf, val_inputs(dataset)]


EVALUATE = Stage(
    "predict and score the validation photos",
    evaluate,
    reads=_reads,
    follows=after("segment"),
    writes=(PLAIN, MS_FLIP, CRF),
    shared=True,
    files=lambda context: [
        context.run.mask(folder, record.id)
        for record in context.dataset.val
        for folder in folders(context.config.evaluate)
    ],
    check=lambda context, state: bytes_of_masks(context.dataset.val, len(folders(context.config.evaluate))),
)

EVALUATE_SUPERVISED = Stage(
    "predict and score with the supervised twin",
    evaluate_supervised,
    reads=lambda config, data: val_inputs(data),
    follows=after("supervise"),
    writes=(SUPERVISED_PLAIN,),
    shared=True,
    files=lambda context: [context.run.mask(SUPERVISED_PLAIN, record.id) for record in context.dataset.val],
    wanted=lambda config: config.segmenter.supervised,
)
