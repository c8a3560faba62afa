"""One method on one photo: its maps, their time, and every number about them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from wsss import runtime
from wsss.comparison.regions import Truth, truth_of
from wsss.config import CompareConfig, RuntimeConfig
from wsss.data.dataset import Record
from wsss.data.files import read_image
from wsss.data.transforms import normalize_image, to_tensor
from wsss.metrics import saliency as metrics
from wsss.metrics.perturbation import Scorer, drop, increase, insertion_and_deletion, zone_images
from wsss.saliency import METHODS, SaliencyMethod, upsample

Values = dict[str, Any]
"""Numbers of one target (image, class) by the keys of `board.COLUMNS`; None where one is undefined."""

SMOOTHED = ("gradient", "guided_backprop")
"""Methods whose maps TorchRay smooths before its pointing game."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A photo to be explained.

    Attributes:
        record: the photo.
        image: (3, h, w) float32, normalised, as the classifier sees it.
        size: (H, W) of the original photo, in whose pixels the localisation is measured.
        labels: (K) mask indices of the compared classes.
        classes: (K,) int64, the same as indices of the classifier.
        truth: ground truth.
    """

    record: Record
    image: Tensor
    size: tuple[int, int]
    labels: tuple[int, ...]
    classes: Tensor
    truth: Truth

    def targets(self) -> Tensor:
        """(K, 2) for a batch of this photo alone."""
        return torch.stack((torch.zeros_like(self.classes), self.classes), dim=1)


def load_subject(
    record: Record, names: Sequence[str], known: Mapping[int, int], short_side: int, device: torch.device
) -> Subject:
    """Reads a photo and its ground truth.

    Args:
        record: the photo; of its labels, the classes in `known` are used.
        names: class names, index 1 first.
        known: mask index -> index of the classifier.
        short_side: pixels after resizing (bilinear, antialiased, as torchvision's Resize); 0: as it is.
        device: of the result.
    """
    photo = to_tensor(read_image(record.image))
    size = (photo.shape[1], photo.shape[2])
    image = functional.resize(photo, [short_side], antialias=True) if short_side else photo
    labels = tuple(label for label in record.labels or () if label in known)
    classes = torch.tensor([known[label] for label in labels], device=device)
    truth = truth_of(record, names).to(device)
    return Subject(record, normalize_image(image).to(device), size, labels, classes, truth)


def explain(
    method: SaliencyMethod, classifier: nn.Module, subject: Subject, hardware: RuntimeConfig
) -> tuple[Tensor, float]:
    """(raw maps (K, h, w), milliseconds per class), in the precision of `runtime.precision`."""
    _synchronize(subject.image.device)
    started = time.perf_counter()
    with runtime.autocast(hardware, gradients=True):
        maps = method(classifier, subject.image[None], subject.targets())
    _synchronize(subject.image.device)
    return maps, 1000 * (time.perf_counter() - started) / len(subject.labels)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    maps: Tensor,
    subject: Subject,
    score: Scorer,
    settings: CompareConfig,
    *,
    smooth: bool = False,
    insertion: bool = False,
) -> list[Values]:
    """All numbers of the maps (K, h, w), one entry for each class.

    Args:
        maps: raw, of the method's own resolution.
        subject: the photo.
        score: probabilities of the classifier.
        settings: threshold, steps, batch size.
        smooth: whether the map is smoothed before TorchRay's pointing game.
        insertion: whether insertion and deletion are measured.
    """
    frame = (subject.image.shape[1], subject.image.shape[2])
    seen = upsample(maps, frame)
    numbers = perturb(seen, subject, score, settings.threshold)
    if insertion:
        curves = partial(
            insertion_and_deletion,
            *(score, subject.image, seen, subject.classes, settings.insertion_steps, settings.batch_size),
        )
        numbers["insertion"], numbers["deletion_blur"] = curves(hidden="blur")
        numbers["insertion_mean"], numbers["deletion"] = curves(hidden="mean")
    entries = [
        {"class": label, **{key: float(values[row]) for key, values in numbers.items()}}
        for row, label in enumerate(subject.labels)
    ]
    for entry, saliency, zone in zip(entries, *_in_photo(maps, subject, settings.threshold), strict=True):
        entry |= localize(saliency, zone, subject.truth, int(entry["class"]), smooth=smooth)
    return entries


def _in_photo(maps: Tensor, subject: Subject, threshold: float | None) -> tuple[Tensor, Tensor]:
    """Maps and their zones, both (K, H, W), in pixels of the original photo."""
    large = upsample(maps, subject.size)
    return large, metrics.zones(large, threshold)


def perturb(maps: Tensor, subject: Subject, score: Scorer, threshold: float | None) -> dict[str, Tensor]:
    """Score, and its drop and increase for saliency and context images, each (K,), for maps (K, h, w) of the image."""
    kept, removed = zone_images(subject.image, metrics.zones(maps, threshold))
    images = torch.cat((subject.image.expand_as(kept), kept, removed))
    before, after_kept, after_removed = score(images, subject.classes.repeat(3)).chunk(3)
    return {
        "score": before,
        "saliency_drop": drop(before, after_kept),
        "saliency_increase": increase(before, after_kept),
        "context_drop": drop(before, after_removed),
        "context_increase": increase(before, after_removed),
    }


def localize(saliency: Tensor, zone: Tensor, truth: Truth, label: int, *, smooth: bool) -> Values:
    """Numbers of one map (H, W) against the region of its class; empty where there is none."""
    region, ignored = truth.regions.get(label), truth.ignored
    if region is None:
        return {}
    dice, iou = metrics.overlap(zone, region, ignored)
    pointed = metrics.smoothed(saliency) if smooth else saliency
    return {
        "pointing": metrics.points_inside(saliency, region, ignored),
        "pointing_torchray": metrics.points_near(pointed, region, ignored),
        "difficult": label in truth.difficult,
        "energy": metrics.energy(saliency, region, ignored),
        "dice": dice,
        "iou": iou,
        "best_iou": metrics.best_overlap(saliency, region, ignored),
    }


def is_smoothed(method: SaliencyMethod) -> bool:
    """Whether TorchRay's pointing game smooths the maps of this method (of the innermost one in wrappers)."""
    while isinstance(base := getattr(method, "base", None), SaliencyMethod):
        method = base
    return type(method) in [METHODS[name] for name in SMOOTHED if name in METHODS]
