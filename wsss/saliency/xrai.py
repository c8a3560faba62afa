"""XRAI: integrated gradients of regions instead of pixels."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.attributions import integrated_gradients
from wsss.saliency.base import DeferredEvidence, SaliencyMethod, by_image, exact, finite, resize_images

SCALES = (50, 100, 150, 250, 500, 1200)
"""Of Felzenszwalb and Huttenlocher's segmentation."""
SIGMA, LEAST, SIDE = 0.8, 150, 224
"""Its smoothing and smallest segment, in pixels, and the longer side of the image that is segmented."""
GROWN, NEW = 5, 50
"""Pixels by which segments grow, and that a region adds at least."""


@dataclass(frozen=True)
class XRAI(SaliencyMethod):
    """XRAI: regions of the image, from the one that counts most for the logit to the least.

        M(pixel) = ReLU(mean of A over the pixels that its region added),    A = max over channels of (a0 + a1) / 2

    a0 and a1 are integrated gradients from images of the lowest and of the highest value in the image. Segments of six
    segmentations, grown by 5 pixels, are added one by one: always the one with the largest mean of A over pixels that
    are not yet covered, of which it must have at least 50. What no segment covers has its own mean.

    Paper: Kapishnikov et al., "XRAI: Better Attributions Through Regions", ICCV 2019, https://arxiv.org/abs/1906.02825

    Deviation: the midpoint rule. The authors' code takes both ends of the path, which is biased. Like theirs, the
    segmentation sees the image with its longer side at 224 pixels and values between -1 and 1.

    Needs scikit-image: `pip install scikit-image`.

    Cost: for an image with K classes, 2 * `steps` forwards and K times as many backward passes through the network, and
    the segmentations.

    Args:
        steps: points of each path.
        batch_size: most points in one forward pass.

    The result has the size of the images, (N, H, W).

    Example:
        >>> XRAI(steps=2)(classifier, images, targets).shape  # doctest: +SKIP
        torch.Size([2, 64, 64])
    """

    steps: int = 100
    batch_size: int = 8

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1:
            raise UserError(
                f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}"
            )

    def forward(self, classifier: nn.Module, images: Tensor) -> DeferredEvidence:
        return DeferredEvidence(classifier, images, partial(self._maps, classifier, images))

    def _maps(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        segments = {
            index: segments_of(images[index]) for index, _ in by_image(targets)
        }  # first, for the refusal
        places = (np.arange(self.steps) + 0.5) / self.steps, np.full(self.steps, 1 / self.steps)
        ends = (images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True))
        both = [
            integrated_gradients(classifier, images, targets, end, places, self.batch_size) for end in ends
        ]
        attributions = finite((both[0] + both[1]) / 2).amax(1)
        maps = torch.empty_like(attributions)
        with exact(images.device):
            for index, rows in by_image(targets):
                for row in rows.tolist():
                    maps[row] = regions(attributions[row], segments[index])
        return maps.relu()


def regions(attribution: Tensor, segments: Tensor, new: int = NEW) -> Tensor:
    """An attribution (H, W) averaged over what each of the segments (S, H, W), bool, adds: (H, W).

    Args:
        attribution: A.
        segments: in the order in which equal ones are taken.
        new: pixels that a segment adds at least.
    """
    values, free = attribution.flatten().double(), torch.ones(attribution.numel(), dtype=torch.bool)
    free = free.to(attribution.device)
    masks = segments.flatten(1)
    result = torch.zeros_like(values)
    counts = masks.sum(1)
    sums = masks.double() @ values
    while bool((counts >= new).any()):
        means = torch.where(counts >= new, sums / counts.clamp(min=1), -torch.inf)
        best = means.argmax()
        added = masks[best] & free
        result[added] = means[best]
        free &= ~added
        covered = masks[:, added]
        counts = counts - covered.sum(1)
        sums = sums - covered.double() @ values[added]
    if bool(free.any()):
        result[free] = values[free].mean()
    return result.view_as(attribution).to(attribution.dtype)


def segments_of(image: Tensor) -> Tensor:
    """The grown segments (S, H, W), bool, of an image (3, H, W), without those that are equal to an earlier one.

    Raises:
        UserError: scikit-image is missing.
    """
    try:
        from skimage.segmentation import felzenszwalb
    except ImportError as error:
        raise UserError("XRAI needs scikit-image for its segments: pip install scikit-image") from error
    height, width = image.shape[-2:]
    shrink = SIDE / max(height, width)
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    small = resize_images(image[None].float(), size)[0]
    low, high = small.min(), small.max()
    seen = (2 * (small - low) / (high - low).clamp(min=1e-12) - 1).movedim(0, 2).double().cpu().numpy()
    disc = torch.arange(-GROWN, GROWN + 1)
    kernel = (disc[:, None] ** 2 + disc**2 <= GROWN**2).to(image.device, torch.float32)[None, None]
    found: list[Tensor] = []
    for scale in SCALES:
        labels = felzenszwalb(seen, scale=scale, sigma=SIGMA, min_size=LEAST)
        numbers = torch.from_numpy(labels).to(image.device)[None, None]
        full = F.interpolate(numbers.float(), size=(height, width), mode="nearest")[0, 0].long()
        masks = F.one_hot(full).movedim(2, 0)[:, None].float()
        found.append(F.conv2d(masks, kernel, padding=GROWN)[:, 0] > 0)
    different: Tensor = torch.unique(torch.cat(found), dim=0)
    return different
