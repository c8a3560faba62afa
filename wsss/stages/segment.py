"""Train the segmentation network on pseudo-masks, on masks of your own, or (as an oracle) on the true masks."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning import seed_everything
from torch.utils.data import DataLoader

from wsss import runtime
from wsss.config import Config, SegmenterConfig, to_dict
from wsss.data.agreement import LOOKED_AT, Seen, alien_values, compare_masks, look
from wsss.data.dataset import Dataset, Record, evenly, first, with_masks
from wsss.data.files import check_mask_header, image_size, read_mask, write_mask
from wsss.data.findings import settle
from wsss.data.labels import image_id
from wsss.data.modules import SegmentationData, TrueMasks
from wsss.data.names import check_recorded
from wsss.data.transforms import RandomScale, TrainTransform
from wsss.data.working import shrink
from wsss.errors import UserError
from wsss.models.segmenter import split_architecture
from wsss.parallel import rank_and_world
from wsss.rundir import CLASSIFIER, MASKS, SEGMENTER, SUPERVISED, StageState, content_digest
from wsss.stages.base import (
    Context,
    Stage,
    batches,
    bytes_of_training,
    tell,
    train_inputs,
    train_truth,
    unused,
    weights_stamp,
)
from wsss.tasks import classification, segmentation
from wsss.tasks.fit import LOG, fit, is_begun, read_log, rising_loss


def train_segmenter(context: Context) -> dict[str, Any]:
    """Train the segmenter on the pseudo-masks, or on the masks in ``segmenter.masks``; where a photo has a mask in
    ``segmenter.true_masks``, on that."""
    settings, run = context.config.segmenter, context.run
    if settings.loss != "bootstrap":
        tell(unused("segmenter", settings, ["bootstrap"], f"segmenter.loss is {settings.loss}"))
    own = settings.masks
    path = (lambda identifier: run.mask(MASKS, identifier)) if own is None else _mask_of(own)
    true = _true_masks(context)
    records = [replace(record, mask=true.get(record.id, path(record.id))) for record in context.dataset.train]
    facts = _train(context, records, run.root / SEGMENTER)
    return {**facts, "true_masks": len(true)} if true else facts


def train_supervised(context: Context) -> dict[str, Any]:
    """Train the same network on the true masks: an oracle, kept apart from everything else."""
    return _train(context, with_masks(context.dataset.train), context.run.root / SUPERVISED)


def _train(context: Context, records: Sequence[Record], folder: Path) -> dict[str, Any]:
    config, dataset, run = context.config, context.dataset, context.run
    settings, hardware = config.segmenter, config.runtime
    begun, initial = is_begun(folder), None
    if settings.weights == "classifier" and not begun:
        path = run.checkpoint(CLASSIFIER, config.saliency.checkpoint)
        initial = classification.load_classifier(path)[0].state_dict()
    seed_everything(config.seed, verbose=False)
    task = segmentation.new_task(
        settings, dataset.class_names, initial, config.data.long_side, pretrained=not begun
    )
    transform = TrainTransform(RandomScale(*settings.scale), settings.crop, settings.color_jitter)
    workers = runtime.loader_workers(hardware)
    train = SegmentationData(records, transform, config.seed, len(dataset.class_names))
    truth = TrueMasks(with_masks(dataset.val), len(dataset.class_names))
    fit(
        task,
        batches(context, train, settings.batch_size),
        DataLoader(truth, batch_size=1, num_workers=workers) if len(truth) else None,
        folder,
        epochs=settings.epochs,
        monitor=("val_mIoU", "max"),
        config=hardware,
        seed=config.seed,
        val_every=settings.val_every,
    )
    warnings = rising_loss(read_log(folder / LOG), "segmenter")
    return {"images": len(records), "warnings": warnings}


# -- the user's own masks ---------------------------------------------------------------------------


def _mask_of(folder: str) -> Callable[[str], Path]:
    """Id -> ``<folder>/<id>.png``."""
    return lambda identifier: Path(folder) / f"{identifier}.png"


def check_own_masks(folder: Path, dataset: Dataset, exempt: Collection[str] = ()) -> None:
    """Raises UserError if a training photo (without those ``exempt``) has no mask in ``folder`` or one of another size,
    or if some that are looked at have other classes than the data set."""
    records = [record for record in dataset.train if record.id not in exempt]
    if not folder.is_dir():
        raise UserError(
            f"segmenter.masks is {folder}, but there is no such folder; give the folder of <id>.png"
        )
    path = _mask_of(str(folder))
    missing = [record.id for record in records if not path(record.id).is_file()]
    if missing:
        raise UserError(
            f"segmenter.masks: {folder} has no mask for {len(missing)} of {len(records)} training photos "
            f"({first([f'{name}.png' for name in missing])}); add them, or remove the photos from data.train"
        )
    check_recorded(folder, dataset.class_names, "data.classes")
    for record in records:
        check_mask_header(path(record.id), record.image)
    seen = look([replace(record, mask=path(record.id)) for record in evenly(records, LOOKED_AT)])
    tell(settle([*alien_values(seen, dataset.classes), *compare_masks(seen, dataset.classes)]))


def _masks_digest(folder: Path, dataset: Dataset) -> str:
    """SHA-256 of the contents of the masks of the training photos, missing ones included."""
    path, found = _mask_of(str(folder)), hashlib.sha256()
    for record in dataset.train:
        found.update(f"{record.id} {content_digest(path(record.id))}\n".encode())
    return found.hexdigest()


# -- masks that people drew -------------------------------------------------------------------------


def _own_true_masks(folder: Path, dataset: Dataset) -> dict[str, Path]:
    """Id -> mask of the training photos that have one in ``segmenter.true_masks``."""
    path = _mask_of(str(folder))
    return {record.id: path(record.id) for record in dataset.train if path(record.id).is_file()}


def check_true_masks(folder: Path, dataset: Dataset, long_side: int | None) -> None:
    """Raises UserError if ``folder`` has no mask of a training photo, or one of a validation photo, of another size, or
    with other classes than the data set. Tells of masks that are of no photo."""
    if not folder.is_dir():
        raise UserError(
            f"segmenter.true_masks is {folder}, but there is no such folder; give the folder of <id>.png"
        )
    every = {image_id(path.relative_to(folder).as_posix()): path for path in sorted(folder.rglob("*.png"))}
    val = [record.id for record in dataset.val if record.id in every]
    if val:
        raise UserError(
            f"segmenter.true_masks: {folder} has masks of {len(val)} validation photos ({first(val)}), and a network "
            "that was trained on them would be scored on them; remove these masks"
        )
    found = _own_true_masks(folder, dataset)
    if not found:
        raise UserError(
            f"segmenter.true_masks: {folder} has no mask of a training photo (found there: "
            f"{first(list(every)) or 'nothing'}); name the masks <id>.png after the photos in data.train"
        )
    check_recorded(folder, dataset.class_names, "data.classes")
    seen = []
    for record in dataset.train:
        if record.id in found:
            mask = _shrunk(found[record.id], record, long_side)
            values = frozenset(np.flatnonzero(np.bincount(mask.ravel())).tolist())
            seen.append(Seen(found[record.id], values, record.labels))
    tell(settle([*alien_values(seen, dataset.classes), *compare_masks(seen, dataset.classes)]))
    strange = [name for name in every if name not in found]
    if strange:
        tell(
            [
                f"segmenter.true_masks: {len(strange)} masks are of no training photo ({first(strange)}), left out"
            ]
        )


def _shrunk(path: Path, record: Record, long_side: int | None) -> npt.NDArray[np.uint8]:
    """The mask as large as the run's copy of the photo. Raises UserError if it does not fit."""
    mask, size = read_mask(path), image_size(record.image)
    small = mask if long_side is None else shrink(mask, long_side)
    if small.shape != size:
        raise UserError(
            f"{path} has {mask.shape[1]}x{mask.shape[0]} pixels, which does not fit its photo of {size[1]}x{size[0]}"
        )
    return small


def _true_masks(context: Context) -> dict[str, Path]:
    """Id -> mask to train on, as large as its photo: with ``data.long_side`` a copy in the run directory."""
    folder, long_side = context.config.segmenter.true_masks, context.config.data.long_side
    found = {} if folder is None else _own_true_masks(Path(folder), context.dataset)
    if long_side is None:
        return found
    copies = {name: context.run.resized / "true_masks" / f"{name}.png" for name in found}
    for record in context.dataset.train:
        if record.id in found:
            write_mask(copies[record.id], _shrunk(found[record.id], record, long_side))
    return copies


# -- the stages -------------------------------------------------------------------------------------


def _settings(config: Config) -> list[Any]:
    """What one training depends on, whatever it is trained on."""
    # val_every only says how often the log has a value.
    other = ("supervised", "val_every", "masks", "true_masks")
    settings = {name: value for name, value in to_dict(config.segmenter).items() if name not in other}
    if config.segmenter.loss != "bootstrap":
        settings["bootstrap"] = SegmenterConfig().bootstrap  # it has no effect
    return [settings, weights_stamp(config, config.segmenter.weights), config.seed]


def _reads(config: Config, dataset: Dataset) -> list[Any]:
    own, true = config.segmenter.masks, config.segmenter.true_masks
    digests = [] if true is None else [_masks_digest(Path(true), dataset)]
    if own is None:
        return [*_settings(config), *digests]
    checkpoint = [config.saliency.checkpoint] if config.segmenter.weights == "classifier" else []
    return [
        *_settings(config),
        dataset.classes,
        train_inputs(dataset),
        _masks_digest(Path(own), dataset),
        *checkpoint,
        *digests,
    ]


def _classifier(config: Config) -> tuple[str, ...]:
    """The stage `classify`, if the training starts from its network."""
    return ("classify",) if config.segmenter.weights == "classifier" else ()


def _check_batch(context: Context, images: int) -> None:
    """DeepLab's image pooling has one value per channel, which BatchNorm cannot normalise over one image."""
    settings = context.config.segmenter
    world = max(rank_and_world()[1], context.config.runtime.devices)
    share = min(settings.batch_size, images) // world
    if settings.architecture != "light" and share < 2:
        raise UserError(
            f"{settings.architecture} cannot be trained on batches of one image per device; use more photos or a "
            "larger --segmenter.batch_size, or --segmenter.architecture light"
        )


def _check_network(context: Context, state: StageState, folder: str) -> int:
    """Build the network, with its initial weights if they will be needed and are known by now."""
    settings, names = context.config.segmenter, context.dataset.class_names
    begun = state == "partial" and is_begun(context.run.root / folder)
    classifier = context.config.classifier.architecture
    trunk = split_architecture(settings.architecture)[1].name
    if settings.weights == "classifier" and classifier != trunk:
        raise UserError(
            f"segmenter.weights is classifier, but the classifier is {classifier} and {settings.architecture} is built "
            f"on {trunk}; use one network for both, or other --segmenter.weights"
        )
    pretrained = not begun and settings.weights != "classifier"
    return bytes_of_training(segmentation.new_task(settings, names, pretrained=pretrained))


def _check_segment(context: Context, state: StageState) -> int:
    settings, dataset, true = context.config.segmenter, context.dataset, {}
    if settings.true_masks is not None:
        check_true_masks(Path(settings.true_masks), dataset, context.config.data.long_side)
        true = _own_true_masks(Path(settings.true_masks), dataset)
    if settings.masks is not None:
        check_own_masks(Path(settings.masks), dataset, true)
    _check_batch(context, len(context.dataset.train))
    return _check_network(context, state, SEGMENTER)


def _check_supervise(context: Context, state: StageState) -> int:
    records = with_masks(context.dataset.train)
    if not records:
        raise UserError(
            "segmenter.supervised needs true masks of training images, and this data set has none; set it to false"
        )
    _check_batch(context, len(records))
    return _check_network(context, state, SUPERVISED)


SEGMENT = Stage(
    "train the segmenter on the pseudo-masks",
    train_segmenter,
    reads=_reads,
    follows=lambda config: ("refine",) if config.segmenter.masks is None else _classifier(config),
    writes=(SEGMENTER,),
    files=lambda context: [context.run.checkpoint(SEGMENTER)],
    check=_check_segment,
    trains=True,
)

SUPERVISE = Stage(
    "train the same segmenter on the true masks (oracle)",
    train_supervised,
    reads=lambda config, data: [
        _settings(config),
        data.classes,
        train_inputs(data),
        train_truth(data),
        *([config.saliency.checkpoint] if config.segmenter.weights == "classifier" else []),
    ],
    follows=_classifier,
    writes=(SUPERVISED,),
    files=lambda context: [context.run.checkpoint(SUPERVISED)],
    wanted=lambda config: config.segmenter.supervised,
    check=_check_supervise,
    trains=True,
)
