"""Maps at several input scales and their mirror images, summed."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import (
    DeferredEvidence,
    SaliencyMethod,
    as_tuple,
    check_base,
    normalize,
    resize_images,
    upsample,
)


@dataclass(frozen=True)
class MultiScale(SaliencyMethod):
    """Sum of a method's maps at several scales and of the mirror images, all at the size of the finest map.

        M = sum_s up(b(M_s) + mirror(b(M'_s)))

    M_s is the base map of the image at scale s, M'_s that of its mirror image, b the balance (see below), `up` bilinear
    resizing to the size of the map at the largest scale. Without `flip` there is no M'_s.

    IRN's published code sums class activation maps like this, at the same scales: Ahn, Cho and Kwak, "Weakly Supervised
    Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019, https://arxiv.org/abs/1904.05044

    Images are resized bilinearly to round(scale * side), with half-pixel centres, and antialiased when they get
    smaller, as PIL and torchvision do. An image and its mirror share a batch, so the memory is that of 2 B images at
    the largest scale.

    Args:
        base: the method that makes the maps.
        scales: factors on the input's height and width.
        flip: also use the mirror image at each scale; its map is mirrored back.
        balance: how the maps are weighted. "none": they are summed as they are. Grad-CAM's weights are means over
            positions, so below a pooled head its maps shrink with 1 / (u v), and coarse scales dominate the plain
            sum. "area": each map times its number of cells, which turns the sum of Grad-CAMs into the sum of CAMs.
            "max": each map divided by its own maximum, for any base.

    Example:
        >>> MultiScale(GradCAM(layer="layer4"), scales=(1.0, 2.0))(classifier, images, targets).shape
        torch.Size([2, 4, 4])
    """

    base: SaliencyMethod
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    flip: bool = True
    balance: Literal["none", "area", "max"] = "none"

    @property
    def own_scales(self) -> bool:
        return True

    @property
    def class_free(self) -> bool:
        return self.base.class_free

    def __post_init__(self) -> None:
        check_base(self, self.base)
        object.__setattr__(self, "scales", as_tuple(self.scales, "scales", "(0.5, 1.0)"))
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
