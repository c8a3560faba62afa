"""Class-discriminative saliency of the training photos, for the classes in their labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wsss import runtime
from wsss.config import RuntimeConfig, SaliencyConfig, to_dict
from wsss.data.dataset import Record
from wsss.data.files import Saliency, write_saliency
from wsss.data.modules import Photo, load_batches, same_size_batches
from wsss.data.transforms import normalize_image
from wsss.errors import UserError
from wsss.models.backbone import layout_of
from wsss.parallel import rank_and_world
from wsss.rundir import CALIBRATION, CLASSIFIER, SALIENCY, RunDirectory
from wsss.saliency import SESS, ClassSubtraction, MultiScale, SaliencyMethod, normalize
from wsss.saliency.parse import parse_method
from wsss.stages import signs
from wsss.stages.base import Context, Stage, after, tell, unused
from wsss.stages.shards import shares
from wsss.tasks.classification import load_classifier


def build_method(config: SaliencyConfig, layer: str | None = None) -> SaliencyMethod:
    """The method: the expression, at several scales and mirrored, at this layer if it names none.

    A method with its own scales (`own_scales`: dcsm, cameras) is only mirrored, if `flip` is set. An expression with
    SESS or MultiScale, such as "sess(gradcam)", is used unchanged.

    Raises:
        UserError: there is no such method.
    """
    method = _parsed(config, layer)
    scales = (1.0,) if method.own_scales else tuple(config.scales)
    if _is_whole(method) or (scales == (1.0,) and not config.flip):
        return method
    balance = config.balance
    if balance == "auto":
        balance = method.scale_balance if len(scales) > 1 else "none"
    return MultiScale(method, scales=scales, flip=config.flip, balance=balance)


def _parsed(config: SaliencyConfig, layer: str | None = None) -> SaliencyMethod:
    try:
        return parse_method(config.method, layer, "sigmoid")
    except UserError as error:
        raise UserError(f"saliency.method: {error}") from error


def _is_whole(method: SaliencyMethod) -> bool:
    """Whether the expression says scales and mirror images itself."""
    return isinstance(method.base if isinstance(method, ClassSubtraction) else method, (SESS, MultiScale))


def _unused(config: SaliencyConfig) -> list[str]:
    """What of the configuration the method does not read."""
    method = _parsed(config)
    if _is_whole(method):
        reason = "saliency.method says scales and mirror images itself"
        return unused("saliency", config, ("scales", "flip", "balance"), reason)
    if method.own_scales:
        return unused("saliency", config, ("scales", "balance"), "saliency.method has scales of its own")
    return []


def write_all(
    classifier: nn.Module,
    method: SaliencyMethod,
    batches: Sequence[Sequence[Record]],
    run: RunDirectory,
    hardware: RuntimeConfig,
) -> None:
    """Write ``saliency/<id>.npz`` for every record that lacks it. A batch has photos of one size."""

    def missing(batch: Sequence[Record]) -> bool:
        return not all(run.saliency(record.id).is_file() for record in batch)

    todo = [batch for batch in batches if missing(batch)]
    total, left = (sum(map(len, some)) for some in (batches, todo))
    classifier = runtime.prepare(classifier, hardware)
    with runtime.bar(hardware, "saliency", total, total - left) as bar:
        for photos in load_batches(todo, workers=runtime.loader_workers(hardware)):
            # Another process may have written them meanwhile (see `wsss.stages.shards`).
            if missing([photo.record for photo in photos]):
                maps = maps_of_photos(classifier, method, photos, hardware)
                for photo, some in zip(photos, maps, strict=True):
                    if not (path := run.saliency(photo.record.id)).is_file():
                        write_saliency(path, to_archive(photo, some))
            bar.update(len(photos))


def maps_of_photos(
    classifier: nn.Module, method: SaliencyMethod, photos: Sequence[Photo], hardware: RuntimeConfig
) -> list[Tensor]:
    """One (K, h, w) tensor per photo, K the number of its labels."""
    counts = [len(photo.record.labels or ()) for photo in photos]
    targets = torch.tensor(
        [(index, label - 1) for index, photo in enumerate(photos) for label in photo.record.labels or ()],
        dtype=torch.int64,
    ).reshape(-1, 2)
    images = torch.stack([photo.image for photo in photos]).to(runtime.device(hardware), non_blocking=True)
    with runtime.autocast(hardware, gradients=True):
        maps = method(classifier, normalize_image(images), targets.to(images.device))
    return list(torch.split(maps, counts))


def to_archive(photo: Photo, maps: Tensor) -> Saliency:
    """Divide each map by its maximum (as the CAM family does) and round to float16.

    Args:
        photo: the photo; its labels name the maps.
        maps: (K, h, w), raw; negative evidence of signed methods is dropped.
    """
    scaled = normalize(maps.clamp(min=0), mode="max")
    return Saliency(
        classes=np.asarray(photo.record.labels or (), dtype=np.int16),
        maps=scaled.cpu().numpy().astype(np.float16),
        size=(photo.image.shape[1], photo.image.shape[2]),
    )


def write_saliency_of_photos(context: Context) -> dict[str, Any]:
    """Saliency archives of all training photos."""
    config, run = context.config, context.run
    path = run.checkpoint(CLASSIFIER, config.saliency.checkpoint)
    classifier, _, _ = load_classifier(path, config.saliency.output_stride)
    layout = layout_of(classifier)
    method = build_method(config.saliency, None if layout is None else layout.last)
    tell(_unused(config.saliency))
    for batches in shares(same_size_batches(context.dataset.train, config.saliency.batch_size)):
        write_all(classifier, method, batches, run, config.runtime)
    facts = {"images": len(context.dataset.train), "method": repr(method)}
    if rank_and_world()[0] == 0:  # which has made what was missing
        facts["warnings"] = signs.of_maps(context.dataset.train, run, context.dataset.class_names)
    return facts


def _settings(config: SaliencyConfig) -> dict[str, Any]:
    """The settings without the batch size, which changes no map."""
    return {key: value for key, value in to_dict(config).items() if key != "batch_size"}


SALIENCY_STAGE = Stage(
    "saliency of the training photos",
    write_saliency_of_photos,
    reads=lambda config, data: _settings(config.saliency),
    follows=after("classify"),
    writes=(SALIENCY, CALIBRATION),
    shared=True,
    files=lambda context: [context.run.saliency(record.id) for record in context.dataset.train],
)
