"""What each stage of ``pipeline`` reads, writes and follows: by this ``runner`` knows what is to be done.

A stage's fingerprint is a hash of what it reads and of the fingerprints of the stages before it (see ``rundir``).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsss import evaluation, pipeline
from wsss.config import Config, EvaluateConfig, to_dict
from wsss.data.dataset import Dataset
from wsss.pipeline import Context
from wsss.refine import stage as refine_stage
from wsss.rundir import ROUNDS, RunDirectory, content_digest, file_stamp

CALIBRATION = "calibration.json"
"""The refinement writes it, and new maps make it stale: masks are tuned again without asking the classifier."""


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline: what it does, what it depends on, what it writes."""

    work: Callable[[Context], dict[str, Any]]
    reads: Callable[[Config, Dataset], Any]
    after: tuple[str, ...]
    outputs: tuple[str, ...]
    title: str
    files: Callable[[Context], Iterable[Path]] = lambda context: ()
    """What must be there when it is done."""
    metrics: tuple[str, ...] = ()
    """Its entries of metrics.json."""
    wanted: Callable[[Config], bool] = lambda config: True
    """Whether this configuration asks for it at all."""


def _train_inputs(dataset: Dataset) -> list[Any]:
    return [[record.id, record.labels, file_stamp(record.image)] for record in dataset.train]


def _val_inputs(dataset: Dataset) -> list[Any]:
    return [[r.id, file_stamp(r.image), r.mask and file_stamp(r.mask)] for r in dataset.val]


def _val_labels(dataset: Dataset) -> list[Any]:
    return [[r.id, r.labels, file_stamp(r.image)] for r in dataset.val if r.labels is not None]


def _train_truth(dataset: Dataset) -> list[Any]:
    return [[record.id, file_stamp(record.mask)] for record in dataset.train if record.mask is not None]


def _weights(value: str) -> Any:
    """Initial weights given as a file count with its content: those of one architecture are all of one size."""
    return value if value in ("imagenet", "none", "classifier") else [value, content_digest(Path(value))]


def _segmenter_settings(config: Config) -> list[Any]:
    """What one training depends on, whichever round it is and whatever it is trained on."""
    settings = to_dict(replace(config.segmenter, supervised=False))
    for name in ("rounds", "val_every"):  # the second only says how often the log has a value
        del settings[name]
    return [settings, _weights(config.segmenter.weights), config.seed]


def _published_round(config: Config) -> list[int]:
    """Which round's training is the published one; nothing for the first, which needs no masks but refine's."""
    return [config.segmenter.rounds] if config.segmenter.rounds > 1 else []


def _extension_settings(config: Config) -> list[Any]:
    """The extension's method, and of its settings what that one reads."""
    settings = to_dict(config.extend)
    del settings["method"]
    if config.extension == "none":
        return ["none"]
    if config.extension == "walk":
        return ["walk", {name: settings[name] for name in ("radius", "power", "steps")}]
    return ["pixels", settings, config.seed]


def _without(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}


def _self_trained(config: Config) -> bool:
    return config.segmenter.rounds > 1


def _supervised(config: Config) -> bool:
    return config.segmenter.supervised


def _masks(run: RunDirectory, context: Context) -> list[Path]:
    folders = refine_stage.outputs(context.config.segmenter.confidence_weighted)
    return [run.mask(folder, record.id) for record in context.dataset.train for folder in folders]


STAGES: dict[str, Stage] = {
    "classify": Stage(
        pipeline.train_classifier,
        lambda config, data: [
            to_dict(config.classifier),
            _weights(config.classifier.weights),
            config.seed,
            data.classes,
            _train_inputs(data),
        ],
        after=(),
        outputs=("classifier",),
        title="train the classifier on image labels",
        files=lambda context: [context.run.checkpoint("classifier")],
    ),
    "score_classifier": Stage(
        pipeline.score_classifier,
        lambda config, data: _val_labels(data),
        after=("classify",),
        outputs=(),
        title="score the classifier on the validation photos",
        metrics=("classifier",),
    ),
    "saliency": Stage(
        pipeline.write_saliency,
        lambda config, data: _without(to_dict(config.saliency), "batch_size"),
        after=("classify",),
        outputs=("saliency", CALIBRATION),
        title="saliency of the training photos",
        files=lambda context: [context.run.saliency(record.id) for record in context.dataset.train],
    ),
    "extend": Stage(
        pipeline.extend,
        lambda config, data: _extension_settings(config),
        after=("saliency",),
        outputs=(refine_stage.EXTENDED, "extension.npz", CALIBRATION),
        title="from the saliency to whole objects",
        files=lambda context: [
            context.run.maps(refine_stage.EXTENDED, record.id)
            for record in context.dataset.train
            if context.config.extension != "none"
        ],
    ),
    "refine": Stage(
        pipeline.refine,
        lambda config, data: [to_dict(config.refine), config.segmenter.confidence_weighted],
        after=("extend",),
        outputs=(refine_stage.LABELS, refine_stage.MASKS, refine_stage.CONFIDENCE),
        title="pseudo-masks: background and dense CRF",
        files=lambda context: _masks(context.run, context),
    ),
    "self_train": Stage(
        pipeline.self_train,
        # Not the number of rounds: with more of them, those that are there stay.
        lambda config, data: _segmenter_settings(config),
        after=("refine",),
        outputs=(ROUNDS,),
        title="self-training: train, label the training photos again",
        files=lambda context: _masks(context.run.round(context.config.segmenter.rounds - 1), context),
        wanted=_self_trained,
    ),
    "segment": Stage(
        pipeline.train_segmenter,
        lambda config, data: [*_segmenter_settings(config), *_published_round(config)],
        after=("refine",),  # what self_train depends on is part of this fingerprint already
        outputs=("segmenter",),
        title="train the segmenter on the pseudo-masks",
        files=lambda context: [context.run.checkpoint("segmenter")],
    ),
    "supervise": Stage(
        pipeline.train_supervised,
        lambda config, data: [
            _segmenter_settings(config),
            data.classes,
            _train_inputs(data),
            _train_truth(data),
            *([config.saliency.checkpoint] if config.segmenter.weights == "classifier" else []),
        ],
        after=("classify",),
        outputs=("segmenter_supervised",),
        title="train the same segmenter on the true masks (oracle)",
        files=lambda context: [context.run.checkpoint("segmenter_supervised")],
        wanted=_supervised,
    ),
    "score_masks": Stage(
        pipeline.score_masks,
        lambda config, data: [config.evaluate.oracle_images, _train_truth(data)],
        after=("refine",),
        outputs=(),
        title="score seeds and pseudo-masks",
        metrics=("seed", "extended", "mask"),
    ),
    "score_relabelled": Stage(
        pipeline.score_relabelled,
        lambda config, data: [config.segmenter.rounds, _train_truth(data)],
        after=("self_train",),
        outputs=(),
        title="score the masks of the self-training",
        metrics=("relabelled",),
        wanted=_self_trained,
    ),
    "evaluate": Stage(
        pipeline.evaluate,
        lambda config, data: [_without(to_dict(config.evaluate), "oracle_images"), _val_inputs(data)],
        after=("segment",),
        outputs=tuple(evaluation.kinds(EvaluateConfig()).values()),
        title="predict and score the validation photos",
        files=lambda context: [
            context.run.mask(folder, record.id)
            for record in context.dataset.val
            for folder in evaluation.kinds(context.config.evaluate).values()
        ],
        metrics=("val", "val_ms_flip", "val_crf", "retention"),
    ),
    "evaluate_supervised": Stage(
        pipeline.evaluate_supervised,
        lambda config, data: _val_inputs(data),
        after=("supervise",),
        outputs=("supervised_" + evaluation.PLAIN,),
        title="predict and score with the supervised twin",
        files=lambda context: [
            context.run.mask("supervised_" + evaluation.PLAIN, record.id) for record in context.dataset.val
        ],
        metrics=("supervised", "retention"),
        wanted=_supervised,
    ),
}
"""All stages except the report, in order."""
