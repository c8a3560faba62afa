"""The method, stage after stage: image labels in, mIoU out.

    classify    fine-tune a multi-label classifier on photos and their image labels
    saliency    class-discriminative saliency of every training photo
    extend      from the parts that the saliency marks to whole objects
    refine      background score and dense CRF: pseudo-masks, uncertain pixels 255
    self_train  only with segmenter.rounds: train, label the training photos again, and so on
    segment     train a segmentation network on the pseudo-masks, or on those of the last round
    supervise   only on request: the same network on the true masks, as a ceiling
    score_masks seeds and pseudo-masks against the true masks, where there are any; then those of the rounds
    evaluate    predict the validation photos, score them
    report      one page with everything

A stage reads its part of the configuration and what the stages before it wrote (see ``stages``). What is
done is skipped, what changed is made again, what was cut off is continued (see ``runner`` and ``rundir``).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning import seed_everything
from torch.utils.data import DataLoader

from wsss import evaluation, extension, runtime, selftraining
from wsss.calibration import calibrate, resolve
from wsss.config import Config, EvaluateConfig
from wsss.data.dataset import Dataset, Record
from wsss.data.modules import (
    ClassificationData,
    LabelledPhotos,
    SegmentationData,
    TrueMasks,
    train_loader,
)
from wsss.data.transforms import RandomLongSide, RandomScale, TrainTransform
from wsss.presence import absent_labels, describe_absent
from wsss.refine import stage as refine_stage
from wsss.rundir import RunDirectory
from wsss.saliency import stage as saliency_stage
from wsss.shards import rank_and_world, shares, wait_for_file
from wsss.tasks import classification, segmentation
from wsss.tasks.fit import fit, validate


@dataclass(frozen=True)
class Context:
    """What every stage gets."""

    config: Config
    dataset: Dataset
    run: RunDirectory


def train_classifier(context: Context) -> dict[str, Any]:
    """Fine-tune the classifier; validated after every epoch where validation photos have labels."""
    config, dataset, run = context.config, context.dataset, context.run
    settings, hardware = config.classifier, config.runtime
    seed_everything(config.seed, verbose=False)
    task = classification.new_task(settings, dataset.classes)
    transform = TrainTransform(RandomLongSide(*settings.long_side), settings.crop, settings.color_jitter)
    train = ClassificationData(dataset.train, len(dataset.classes), transform, config.seed)
    workers = runtime.loader_workers(hardware)
    fit(
        task,
        train_loader(train, settings.batch_size, config.seed, workers, hardware.devices * hardware.num_nodes),
        _labelled_val(context),
        run.root / "classifier",
        epochs=settings.epochs,
        monitor=("val_mAP", "max"),
        config=hardware,
        seed=config.seed,
    )
    return {"images": len(dataset.train)}


def score_classifier(context: Context) -> dict[str, Any]:
    """``classifier.mAP`` of ``last.ckpt`` on the validation photos that have labels."""
    val, classes = _labelled_val(context), context.dataset.classes
    if val is None:
        return {"images": 0}
    task = classification.load_task(context.run.checkpoint("classifier"))
    validate(task, val, context.config.runtime)
    context.run.update_metrics(classifier=_average_precisions(classes, task.ap_per_class or []))
    return {"images": len(val)}


def _labelled_val(context: Context) -> DataLoader[Any] | None:
    """The validation photos that have labels, one by one; None without any."""
    config, dataset = context.config, context.dataset
    val = LabelledPhotos(dataset.val, len(dataset.classes), sum(config.classifier.long_side) // 2)
    workers = runtime.loader_workers(config.runtime)
    return DataLoader(val, batch_size=1, num_workers=workers) if len(val) else None


def _average_precisions(classes: Sequence[str], values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else None
    return {"mAP": mean, "per_class": dict(zip(classes, values, strict=True))}


def write_saliency(context: Context) -> dict[str, Any]:
    """Saliency archives of all training photos."""
    config, run = context.config, context.run
    path = run.checkpoint("classifier", config.saliency.checkpoint)
    classifier, _, settings = classification.load_classifier(path, config.saliency.output_stride)
    method = saliency_stage.build_method(config.saliency, settings.architecture)
    for records in shares(context.dataset.train):
        saliency_stage.write_all(classifier, method, records, run, config.saliency, config.runtime)
    return {"images": len(context.dataset.train), "method": repr(method)}


def extend(context: Context) -> dict[str, Any]:
    """Maps of all training photos that cover whole objects."""
    config, run, records = context.config, context.run, context.dataset.train
    settings, hardware = config.extend, config.runtime
    if config.extension == "none":
        return {"images": 0}
    network, _, _ = classification.load_classifier(run.checkpoint("classifier", config.saliency.checkpoint))
    if config.extension == "walk":
        for part in shares(records):
            extension.write_walks(network, settings, part, run, hardware)
        return {"images": len(records)}
    pixels = extension.PixelExtension(network, settings, hardware)
    if not run.extension.is_file():
        if rank_and_world()[0] == 0:
            sample = extension.sample(records, settings)
            layer = pixels.learn(sample, run, len(context.dataset.class_names), config.seed)
            extension.write_layer(run.extension, layer)
        else:
            wait_for_file(run.extension)
    layer = extension.read_layer(run.extension)
    for part in shares(records):
        extension.write_pixels(pixels, layer, part, run)
    return {"images": len(records)}


def refine(context: Context) -> dict[str, Any]:
    """Pseudo-masks of all training photos."""
    source, records, run = evaluation.source(context.config), context.dataset.train, context.run
    _calibrate(context)
    config = resolve(context.config, run, evaluation.rule_source(context.config))
    bar, workers = partial(runtime.bar, config.runtime, "refine"), runtime.workers(config.runtime)
    device = runtime.device(config.runtime)
    gpu = str(device) if device.type == "cuda" else None
    for part in shares(records):
        refine_stage.write_all(
            part, run, config.refine, workers, bar, source, gpu, config.segmenter.confidence_weighted
        )
    _tell_absent(context, run)
    return {"images": len(records), "background": asdict(config.refine.background)}


def _tell_absent(context: Context, run: RunDirectory) -> None:
    """Print how many image labels the masks in ``run`` do not show; it takes no true mask to see that."""
    if rank_and_world()[0] == 0:
        absent = absent_labels(context.dataset.train, run)
        print(f"  {describe_absent(absent, context.dataset.class_names)}", flush=True)


def _calibrate(context: Context) -> None:
    """Choose the background rule if it is neither given nor chosen yet for these maps."""
    config, run, dataset = context.config, context.run, context.dataset
    if config.refine.background.rule != "calibrated" or run.calibration.is_file():
        return
    if rank_and_world()[0] == 0:
        walked = (refine_stage.EXTENDED,) if config.extension == "walk" else ()
        calibrate(config, dataset.train, len(dataset.class_names), run, (refine_stage.SALIENCY, *walked))
    else:
        wait_for_file(run.calibration)


def self_train(context: Context) -> dict[str, Any]:
    """The rounds before the last: train on the masks of the round before, label the training photos again."""
    run, records = context.run, context.dataset.train
    config = resolve(context.config, run, evaluation.rule_source(context.config))
    for turn in range(1, config.segmenter.rounds):
        here = run.round(turn)
        if not selftraining.is_done(records, here, config):
            _train_on_masks_of(run.round(turn - 1), context, here.root / "segmenter")
            network, _ = segmentation.load_segmenter(here.checkpoint("segmenter"))
            selftraining.relabel(network, records, here, config, f"label again (round {turn})")
            _tell_absent(context, here)
    return {"images": len(records)}


def train_segmenter(context: Context) -> dict[str, Any]:
    """Train the segmenter on the pseudo-masks, or on the masks of the last self-training round."""
    last = context.run.round(context.config.segmenter.rounds - 1)
    return _train_on_masks_of(last, context, context.run.root / "segmenter")


def _train_on_masks_of(source: RunDirectory, context: Context, folder: Path) -> dict[str, Any]:
    records = [
        replace(record, mask=source.mask(refine_stage.MASKS, record.id)) for record in context.dataset.train
    ]
    confidence = partial(source.mask, refine_stage.CONFIDENCE)
    weighted = context.config.segmenter.confidence_weighted
    return _train_segmenter(context, records, folder, confidence if weighted else None)


def train_supervised(context: Context) -> dict[str, Any]:
    """Train the same network on the true masks: an oracle, kept apart from everything else."""
    records = evaluation.with_masks(context.dataset.train)
    return _train_segmenter(context, records, context.run.root / "segmenter_supervised")


def _train_segmenter(
    context: Context,
    records: Sequence[Record],
    folder: Path,
    confidence: Callable[[str], Path] | None = None,
) -> dict[str, Any]:
    config, dataset, run = context.config, context.dataset, context.run
    settings, hardware = config.segmenter, config.runtime
    initial = None
    if settings.weights == "classifier":
        classifier, _, _ = classification.load_classifier(
            run.checkpoint("classifier", config.saliency.checkpoint)
        )
        initial = classifier.state_dict()
    seed_everything(config.seed, verbose=False)
    task = segmentation.new_task(settings, dataset.class_names, initial, config.data.long_side)
    transform = TrainTransform(RandomScale(*settings.scale), settings.crop, settings.color_jitter)
    workers = runtime.loader_workers(hardware)
    truth = TrueMasks(evaluation.with_masks(dataset.val), len(dataset.class_names))
    fit(
        task,
        train_loader(
            SegmentationData(records, transform, config.seed, len(dataset.class_names), confidence),
            settings.batch_size,
            config.seed,
            workers,
            hardware.devices * hardware.num_nodes,
        ),
        DataLoader(truth, batch_size=1, num_workers=workers) if len(truth) else None,
        folder,
        epochs=settings.epochs,
        monitor=("val_mIoU", "max"),
        config=hardware,
        seed=config.seed,
        val_every=settings.val_every,
    )
    return {"images": len(records)}


def score_masks(context: Context) -> dict[str, Any]:
    """``seed`` and ``mask`` in metrics.json."""
    config, dataset, run = context.config, context.dataset, context.run
    seeds = resolve(config, run).refine
    config = resolve(config, run, evaluation.rule_source(config))
    run.update_metrics(**evaluation.mask_metrics(config, seeds, dataset.class_names, dataset.train, run))
    return {"images": len(evaluation.with_masks(dataset.train))}


def score_relabelled(context: Context) -> dict[str, Any]:
    """``relabelled`` in metrics.json."""
    config, dataset, run = context.config, context.dataset, context.run
    run.update_metrics(
        relabelled=evaluation.relabelled_metrics(config, dataset.class_names, dataset.train, run)
    )
    return {"images": len(evaluation.with_masks(dataset.train))}


def evaluate(context: Context) -> dict[str, Any]:
    """Predictions of the validation photos, and ``val``, ``val_ms_flip``, ``val_crf``."""
    numbers = _predict_and_score(context, "segmenter", "", context.config.evaluate)
    context.run.update_metrics(**numbers)
    _update_retention(context.run)
    return {"images": len(context.dataset.val)}


def evaluate_supervised(context: Context) -> dict[str, Any]:
    """Single-scale predictions of the supervised twin, and ``supervised`` and ``retention``."""
    settings = replace(context.config.evaluate, ms_flip=False, crf=False)
    numbers = _predict_and_score(context, "segmenter_supervised", "supervised_", settings)
    context.run.update_metrics(supervised=numbers["val"])
    _update_retention(context.run)
    return {"images": len(context.dataset.val)}


def _predict_and_score(
    context: Context, folder: str, prefix: str, settings: EvaluateConfig
) -> dict[str, Any]:
    config, dataset, run = context.config, context.dataset, context.run
    model, _ = segmentation.load_segmenter(run.checkpoint(folder))

    def path(kind: str, identifier: str) -> Path:
        return run.mask(prefix + kind, identifier)

    evaluation.predict_records(
        model, dataset.val, path, settings, config.refine.soft_crf, config.runtime, f"predict ({folder})"
    )
    plain = replace(config, evaluate=settings)
    numbers = evaluation.prediction_metrics(plain, dataset.class_names, dataset.val, run, prefix)
    if config.segmenter.mask_pretraining:
        numbers = {name: entry and {**entry, "mask_pretraining": True} for name, entry in numbers.items()}
    return numbers


def _update_retention(run: RunDirectory) -> None:
    """``retention`` = val.miou / supervised.miou, where both are known."""
    metrics = run.read_metrics()
    weak, ceiling = ((metrics.get(name) or {}).get("miou") for name in ("val", "supervised"))
    run.update_metrics(retention=weak / ceiling if weak is not None and ceiling else None)
