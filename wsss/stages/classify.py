"""Fine-tune a multi-label classifier on photos and their image labels, and score it on the validation photos."""

from collections.abc import Sequence
from typing import Any

from lightning import seed_everything
from torch.utils.data import DataLoader

from wsss import runtime
from wsss.config import to_dict
from wsss.data.modules import ClassificationData, LabelledPhotos
from wsss.data.transforms import RandomLongSide, TrainTransform
from wsss.rundir import CLASSIFIER, StageState, file_stamp
from wsss.stages import signs
from wsss.stages.base import Context, Stage, after, batches, bytes_of_training, train_inputs, weights_stamp
from wsss.tasks import classification
from wsss.tasks.fit import LOG, fit, is_begun, read_log, rising_loss, validate


def train_classifier(context: Context) -> dict[str, Any]:
    """Fine-tune the classifier. It is validated after every epoch if validation photos have labels."""
    config, dataset, run = context.config, context.dataset, context.run
    settings, hardware = config.classifier, config.runtime
    seed_everything(config.seed, verbose=False)
    folder = run.root / CLASSIFIER
    task = classification.new_task(settings, dataset.classes, pretrained=not is_begun(folder))
    transform = TrainTransform(RandomLongSide(*settings.long_side), settings.crop, settings.color_jitter)
    train = ClassificationData(dataset.train, len(dataset.classes), transform, config.seed)
    fit(
        task,
        batches(context, train, settings.batch_size),
        _labelled_val(context),
        folder,
        epochs=settings.epochs,
        monitor=("val_mAP", "max"),
        config=hardware,
        seed=config.seed,
    )
    rows, precision = read_log(folder / LOG), None
    if value := rows[-1].get("val_mAP"):
        precision = float(value)
    frequent, in_val = (
        signs.shares_of(split, len(dataset.classes)) for split in (dataset.train, dataset.val)
    )
    warnings = [
        *rising_loss(rows, "classifier"),
        *signs.of_guessing(float(rows[-1]["train_loss"]), precision, frequent, in_val),
    ]
    return {"images": len(dataset.train), "warnings": warnings}


def score_classifier(context: Context) -> dict[str, Any]:
    """``classifier.mAP`` of ``last.ckpt`` on the validation photos that have labels."""
    val, classes = _labelled_val(context), context.dataset.classes
    if val is None:
        return {"images": 0}
    task = classification.load_task(context.run.checkpoint(CLASSIFIER))
    validate(task, val, context.config.runtime)
    context.run.update_metrics(classifier=_average_precisions(classes, task.ap_per_class or []))
    return {"images": len(val)}


def _labelled_val(context: Context) -> DataLoader[Any] | None:
    """The validation photos that have labels, one by one; None if none has."""
    config, dataset = context.config, context.dataset
    val = LabelledPhotos(dataset.val, len(dataset.classes), sum(config.classifier.long_side) // 2)
    workers = runtime.loader_workers(config.runtime)
    return DataLoader(val, batch_size=1, num_workers=workers) if len(val) else None


def _average_precisions(classes: Sequence[str], values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else None
    return {"mAP": mean, "per_class": dict(zip(classes, values, strict=True))}


def _check(context: Context, state: StageState) -> int:
    begun = state == "partial" and is_begun(context.run.root / CLASSIFIER)
    settings, classes = context.config.classifier, context.dataset.classes
    return bytes_of_training(classification.new_task(settings, classes, pretrained=not begun))


CLASSIFY = Stage(
    "train the classifier on image labels",
    train_classifier,
    reads=lambda config, data: [
        to_dict(config.classifier),
        weights_stamp(config, config.classifier.weights),
        config.seed,
        data.classes,
        train_inputs(data),
    ],
    follows=after(),
    writes=(CLASSIFIER,),
    files=lambda context: [context.run.checkpoint(CLASSIFIER)],
    check=_check,
    trains=True,
)

SCORE_CLASSIFIER = Stage(
    "score the classifier on the validation photos",
    score_classifier,
    reads=lambda config, data: [
        [r.id, r.labels, file_stamp(r.image)] for r in data.val if r.labels is not None
    ],
    follows=after("classify"),
)
