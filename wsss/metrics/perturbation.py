"""What a classifier says when salient pixels are removed: drop, increase, insertion and deletion.

Pure functions of tensors on any device. A removed pixel is 0 in all channels of the normalised image, which
is the mean colour of ImageNet. Scores are probabilities in [0, 1].
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import evaluating, gaussian_blur

BLUR_KERNEL, BLUR_SIGMA = 11, 5.0  # the start of an insertion, as in RISE's code: `gkern(11, 5)`

Score = Literal["sigmoid", "softmax"]
Scorer = Callable[[Tensor, Tensor], Tensor]
"""(images (B, 3, H, W), classes (B,)) -> the probability of each image's class, (B,) float32."""


def probabilities(logits: Tensor, classes: Tensor, score: Score) -> Tensor:
    """The probability of one class per row: logits (B, C), classes (B,) -> (B,) float32.

    Args:
        logits: of the classifier.
        classes: which class of each row.
        score: "sigmoid" for multi-label classifiers, "softmax" for single-label ones.

    Raises:
        UserError: an unknown `score`.
    """
    if score not in ("sigmoid", "softmax"):
        raise UserError(f"score is {score!r}, but must be 'sigmoid' or 'softmax'")
    values = logits.float()
    values = values.sigmoid() if score == "sigmoid" else values.softmax(1)
    return values.gather(1, classes[:, None])[:, 0]


def scorer(classifier: nn.Module, score: Score, batch_size: int = 16) -> Scorer:
    """A `Scorer` for a classifier: at most `batch_size` images per forward pass, without gradients."""

    def compute(images: Tensor, classes: Tensor) -> Tensor:
        pairs = zip(torch.split(images, batch_size), torch.split(classes, batch_size), strict=True)
        with evaluating(classifier), torch.inference_mode():
            parts = [probabilities(classifier(some), which, score) for some, which in pairs]
        return torch.cat(parts)

    return compute


def drop(before: Tensor, after: Tensor) -> Tensor:
    """max(0, y - y') / y of scores (N,): the share of the score that is lost, in [0, 1]; 0 where y is 0."""
    return torch.where(before > 0, (before - after).relu() / torch.where(before > 0, before, 1), 0)


def increase(before: Tensor, after: Tensor) -> Tensor:
    """y' > y of scores (N,), as 0 or 1 (float32)."""
    return (after > before).float()


def zone_images(image: Tensor, zone: Tensor) -> tuple[Tensor, Tensor]:
    """(saliency images, context images), both (N, 3, H, W), of one image (3, H, W) and zones (N, H, W) bool.

    The saliency image keeps the zone, the context image removes it (Fahim et al., "Evaluation metrics").
    """
    keep = zone[:, None].to(image.dtype)
    return image * keep, image * (1 - keep)


def order_pixels(maps: Tensor) -> Tensor:
    """Place of every pixel when sorted by falling saliency: (N, H, W) -> (N, H, W) int64 from 0.

    Equal pixels keep their reading order.
    """
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(maps)


def insertion_and_deletion(
    score: Scorer,
    image: Tensor,
    maps: Tensor,
    classes: Tensor,
    steps: int = 224,
    batch_size: int = 16,
    hidden: Literal["rise", "blur", "mean"] = "rise",
) -> tuple[Tensor, Tensor]:
    """Insertion and deletion (RISE, section 4.3): how fast the score comes and goes with salient pixels.

    In step s of S the round(s/S * pixels) most salient pixels are shown (insertion, over the blurred image)
    or removed (deletion, to the mean colour). The result is the area below the score over s/S, by trapezoids.
    Deviation: the blur mirrors the border instead of darkening it.

    Args:
        score: of image and class.
        image: (3, H, W), normalised.
        maps: (N, H, W), one for each class; only their order counts.
        classes: (N,) class indices.
        steps: S; RISE takes 224 pixels per step, which at 224 x 224 is S = 224.
        batch_size: most images made and scored at once.
        hidden: what a pixel is that is not shown: the blurred image ("blur"), the mean colour ("mean"), or, as above,
            the one for insertion and the other for deletion ("rise").

    Returns:
        (insertion, deletion), both (N,) in [0, 1]; high insertion and low deletion are good.

    Raises:
        UserError: steps or batch_size is below 1.
    """
    if min(steps, batch_size) < 1:
        raise UserError(f"insertion needs steps and batch_size of at least 1, got {steps} and {batch_size}")
    places = order_pixels(maps)
    blurred = gaussian_blur(image, BLUR_KERNEL, BLUR_SIGMA)
    grey = torch.zeros_like(image)
    inserted = _curve(score, image, grey if hidden == "mean" else blurred, places, classes, steps, batch_size)
    deleted = _curve(score, blurred if hidden == "blur" else grey, image, places, classes, steps, batch_size)
    return area(inserted), area(deleted)


def area(curve: Tensor) -> Tensor:
    """Area below curves (N, S + 1) over [0, 1], by trapezoids."""
    return (curve[:, 1:] + curve[:, :-1]).mean(1) / 2


def _curve(
    score: Scorer,
    front: Tensor,
    back: Tensor,
    places: Tensor,
    classes: Tensor,
    steps: int,
    batch_size: int,
) -> Tensor:
    """Scores (N, S + 1) while `front` (3, H, W) replaces `back` in the order of `places` (N, H, W)."""
    pixels = places[0].numel()
    counts = [round(step * pixels / steps) for step in range(steps + 1)]
    jobs = [(row, count) for row in range(len(places)) for count in counts]
    parts = []
    for start in range(0, len(jobs), batch_size):
        rows, shown = torch.tensor(jobs[start : start + batch_size], device=places.device).unbind(1)
        mask = (places[rows] < shown[:, None, None])[:, None]
        parts.append(score(torch.where(mask, front, back), classes[rows]))
    return torch.cat(parts).view(len(places), steps + 1)
