"""Predicting photos with a trained segmenter, and the numbers of metrics.json."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wsss import runtime
from wsss.config import Config, EvaluateConfig, RefineConfig, RuntimeConfig
from wsss.data.dataset import Record
from wsss.data.files import write_mask
from wsss.data.modules import same_size_batches
from wsss.data.transforms import normalize_image
from wsss.metrics.segmentation import ConfusionMatrix, confusion_of_pairs, score
from wsss.models.segmenter import Segmenter, predict_probabilities
from wsss.parallel import pool, unordered
from wsss.refine import stage as refine
from wsss.refine.parameters import CRFParameters
from wsss.refine.stage import write_crf
from wsss.rundir import RunDirectory

PLAIN, MS_FLIP, CRF = "predictions", "predictions_ms_flip", "predictions_crf"
"""Folders of the three kinds of prediction; the CRF refines the best of the other two that is made."""


def kinds(config: EvaluateConfig) -> dict[str, str]:
    """Entry of metrics.json -> folder of the predictions that it scores."""
    chosen = {"val": PLAIN}
    if config.ms_flip:
        chosen["val_ms_flip"] = MS_FLIP
    if config.crf:
        chosen["val_crf"] = CRF
    return chosen


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
        records: photos; their labels and masks are not looked at.
        write: (folder, id) -> path of the PNG.
        config: kinds of prediction.
        crf: constants of the CRF (`refine.soft_crf`).
        hardware: device and processes.
        title: of the progress bar.
    """
    folders = list(kinds(config).values())
    todo = [record for record in records if not all(write(folder, record.id).is_file() for folder in folders)]
    model = runtime.prepare(model, hardware)  # type: ignore[assignment]
    workers = runtime.workers(hardware)
    refine_crf = partial(write_crf, crf)
    batches = same_size_batches(todo, 1 if config.ms_flip else 4, workers=runtime.loader_workers(hardware))
    with (
        runtime.bar(hardware, title, len(records), len(records) - len(todo)) as bar,
        pool(workers if config.crf and todo else 0) as executor,
        torch.inference_mode(),
        runtime.autocast(hardware),
    ):

        def jobs() -> Any:
            for photos in batches:
                images = normalize_image(torch.stack([p.image for p in photos]).to(runtime.device(hardware)))
                plain = predict_probabilities(model, images)
                best = plain
                if config.ms_flip:
                    best = predict_probabilities(model, images, config.scales, flip=True)
                for index, photo in enumerate(photos):
                    identifier = photo.record.id
                    write_mask(write(PLAIN, identifier), label_map(plain[index]))
                    if config.ms_flip:
                        write_mask(write(MS_FLIP, identifier), label_map(best[index]))
                    if config.crf:
                        yield photo.record.image, best[index].cpu().numpy(), write(CRF, identifier)
                    bar.update(1)

        for _ in unordered(executor, refine_crf, jobs(), ahead=2 * workers):
            pass


def label_map(probabilities: torch.Tensor) -> npt.NDArray[np.uint8]:
    """(C, H, W) -> (H, W) uint8 index of the most probable class."""
    labels: npt.NDArray[np.uint8] = probabilities.argmax(0).to(torch.uint8).cpu().numpy()
    return labels


# -- numbers ---------------------------------------------------------------------------------------


def with_masks(records: Sequence[Record]) -> list[Record]:
    """The records that have a true mask."""
    return [record for record in records if record.mask is not None]


def source(config: Config) -> str:
    """Folder of the maps that the refinement starts from."""
    plain = config.extension == "none" or config.refine.method == "grabcut"
    return refine.SALIENCY if plain else refine.EXTENDED


def rule_source(config: Config) -> str:
    """Folder of the maps that the background rule is for: probabilities bring their own background."""
    return source(config) if config.extension == "walk" else refine.SALIENCY


def mask_metrics(
    config: Config,
    seeds: RefineConfig,
    class_names: Sequence[str],
    train: Sequence[Record],
    run: RunDirectory,
) -> dict[str, Any]:
    """``seed``, ``extended`` and ``mask``: the training photos that have ground truth, step by step.

    The oracles beside them choose the background with the true masks; nothing in a run uses them.

    Args:
        config: of the run; the background rule is chosen.
        seeds: the refinement with the background rule for the saliency itself.
        class_names: background first.
        train: training photos.
        run: the run directory.
    """
    records = with_masks(train)
    if not records:
        return dict.fromkeys(("seed", "extended", "mask"))
    classes, workers = len(class_names), runtime.workers(config.runtime)
    bar, maps = partial(runtime.bar, config.runtime), source(config)
    matrix, sweep, threshold = refine.score_seeds(
        records, run, seeds, classes, workers, partial(bar, "score seeds")
    )
    best_threshold, best = sweep.best()
    seed = {
        **score(matrix, class_names),
        "threshold": round(threshold, 4),
        **_oracle("threshold", best.miou(), round(best_threshold, 4), matrix.miou()),
    }
    extended = None
    if maps == refine.EXTENDED:
        found = refine.score_extended(
            records, run, config.refine, classes, workers, partial(bar, "score extended")
        )
        extended = {"method": config.extension, **score(found, class_names)}
    labels = _confusion(records, run, refine.LABELS, config, classes)
    masks = _confusion(records, run, refine.MASKS, config, classes)
    mask = {
        **score(labels, class_names),
        "threshold": round(threshold, 4) if maps == refine.SALIENCY else None,
        **_kept(masks),
        "reliability": _reliability(config, classes, records, run, bar),
        **_mask_oracle(config, class_names, records, run, bar),
    }
    return {"seed": seed, "extended": extended, "mask": mask}


def relabelled_metrics(
    config: Config, class_names: Sequence[str], train: Sequence[Record], run: RunDirectory
) -> dict[str, Any] | None:
    """``relabelled``: the masks that the last training learnt from; ``by_round``: the mIoU of each round's."""
    records, classes, last = with_masks(train), len(class_names), config.segmenter.rounds - 1
    if not records:
        return None
    labels = [
        _confusion(records, run.round(turn), refine.LABELS, config, classes) for turn in range(1, last + 1)
    ]
    masks = _confusion(records, run.round(last), refine.MASKS, config, classes)
    return {
        **score(labels[-1], class_names),
        **_kept(masks),
        "round": last,
        "by_round": [_number(matrix.miou()) for matrix in labels],
        **({"mask_pretraining": True} if config.segmenter.mask_pretraining else {}),
    }


def _kept(masks: ConfusionMatrix) -> dict[str, Any]:
    """What a training sees of masks with 255."""
    return {
        "coverage": _number(masks.coverage()),
        "kept_miou": _number(masks.kept().miou()),
        "kept_accuracy": _number(masks.kept().accuracy()),
    }


def _reliability(
    config: Config, classes: int, records: list[Record], run: RunDirectory, bar: Any
) -> dict[str, Any]:
    """Coverage against accuracy as the confidence that is asked for falls, on the sample of the oracle."""
    sample = evenly(records, config.evaluate.oracle_images)
    workers, title = runtime.workers(config.runtime), partial(bar, "mask confidence")
    curve = refine.score_confidence(sample, run, config.refine, classes, workers, title, source(config))
    return {"images": len(sample), **curve.points()}


def _mask_oracle(
    config: Config, class_names: Sequence[str], records: list[Record], run: RunDirectory, bar: Any
) -> dict[str, Any]:
    """Best constant background after the CRF, on a sample: every candidate costs a CRF or two per photo."""
    sample = evenly(records, config.evaluate.oracle_images)
    classes, workers, title = len(class_names), runtime.workers(config.runtime), partial(bar, "mask oracle")
    matrices = refine.score_oracle(sample, run, config.refine, classes, workers, title, source(config))
    value, best = max(matrices.items(), key=lambda item: item[1].miou())
    own = _confusion(sample, run, refine.LABELS, config, classes)
    soft = config.extension == "pixels" and source(config) == refine.EXTENDED
    kind = "background_factor" if soft else "threshold"
    return {
        **_oracle(kind, best.miou(), value, own.miou()),
        "oracle_images": len(sample),
        "miou_on_oracle_images": _number(own.miou()),
    }


def _oracle(kind: str, best: float, value: float, own: float) -> dict[str, Any]:
    """The best constant, or None where the run's own rule (which may differ by photo) beats them all."""
    return {"oracle_miou": _number(max(best, own)), f"oracle_{kind}": value if best >= own else None}


def evenly(records: list[Record], count: int) -> list[Record]:
    """``count`` records evenly spaced over the list; all of them for 0."""
    if count <= 0 or count >= len(records):
        return records
    return [records[index * len(records) // count] for index in range(count)]


def prediction_metrics(
    config: Config, class_names: Sequence[str], val: Sequence[Record], run: RunDirectory, prefix: str = ""
) -> dict[str, Any]:
    """``val``, ``val_ms_flip`` and ``val_crf`` for the folders that start with ``prefix``."""
    records = with_masks(val)
    if not records:
        return dict.fromkeys(kinds(config.evaluate))
    result = {}
    for name, folder in kinds(config.evaluate).items():
        matrix = _confusion(records, run, prefix + folder, config, len(class_names))
        result[name] = score(matrix, class_names)
    return result


def _confusion(
    records: Sequence[Record], run: RunDirectory, folder: str, config: Config, classes: int
) -> ConfusionMatrix:
    pairs = [(run.mask(folder, record.id), record.mask) for record in records if record.mask is not None]
    return confusion_of_pairs(pairs, classes, workers=runtime.workers(config.runtime))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
