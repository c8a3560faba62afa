"""Maps at several input scales and their mirror images, summed."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import DeferredEvidence, SaliencyMethod, normalize, resize_images, upsample


@dataclass(frozen=True)
class MultiScale(SaliencyMethod):
    """Sum of the base maps at several scales (and mirrored), all upsampled to the finest map's size.

    Images are resized bilinearly (half-pixel centres, antialiased when made smaller, as PIL and
    torchvision do) to round(scale * side). An image and its mirror are one batch, so the memory is
    that of 2 B images at the largest scale.

    Args:
        base: the method that makes the maps.
        scales: factors on the input's height and width.
        flip: also the mirror image at each scale; its map is mirrored back.
        balance: how maps weigh against each other. "none": summed as they are. Grad-CAM's weights are
            means over positions, so below a pooled head its maps shrink with 1 / (u v) and coarse
            scales dominate the plain sum. "area": each map times its number of cells, which makes the
            sum of Grad-CAMs the sum of CAMs. "max": each map divided by its own maximum, for any base.
    """

    base: SaliencyMethod
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    flip: bool = True
    balance: Literal["none", "area", "max"] = "none"

    @property
    def own_scales(self) -> bool:
        return True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        if not self.scales or min(self.scales) <= 0:
            raise UserError(f"scales must be one or more positive factors, got {self.scales}")
        if self.balance not in ("none", "area", "max"):
            raise UserError(f"balance must be 'none', 'area' or 'max', got {self.balance!r}")

    @property
    def cost(self) -> float:
        """Work of one image in units of the base method on the image as it is (pixels are counted)."""
        return sum(scale**2 for scale in self.scales) * (2 if self.flip else 1)

    def forward(self, classifier: nn.Module, images: Tensor) -> DeferredEvidence:
        return DeferredEvidence(classifier, images, partial(self._sum, classifier, images))

    def _sum(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        finest, *others = sorted(self.scales, reverse=True)
        total = self._maps(classifier, images, targets, finest)
        for scale in others:
            maps = self._maps(classifier, images, targets, scale)
            total = total + upsample(maps, (total.shape[-2], total.shape[-1]))
        return total

    def _maps(self, classifier: nn.Module, images: Tensor, targets: Tensor, scale: float) -> Tensor:
        """Maps (N, h, w) at one scale: the image's, plus the mirror image's mirrored back."""
        height, width = (max(1, round(scale * side)) for side in images.shape[-2:])
        scaled = resize_images(images, (height, width))
        if not self.flip:
            return self._balanced(self.base(classifier, scaled, targets))
        mirrored = targets + targets.new_tensor([len(images), 0])
        both = self.base(classifier, torch.cat((scaled, scaled.flip(-1))), torch.cat((targets, mirrored)))
        direct, mirror = self._balanced(both).chunk(2) if len(targets) else (both, both)
        return direct + mirror.flip(-1)

    def _balanced(self, maps: Tensor) -> Tensor:
        match self.balance:
            case "area":
                return maps * (maps.shape[-2] * maps.shape[-1])
            case "max":
                return normalize(maps, "max")
            case _:
                return maps
