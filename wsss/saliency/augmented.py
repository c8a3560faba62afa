"""Augmented Grad-CAM: one fine map from the coarse Grad-CAMs of many rotated and shifted copies."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import DeferredEvidence, SaliencyMethod, by_image, exact, finite
from wsss.saliency.cam import GradCAM

POINTS = 4
"""Along each side of a cell, at which the fine map is averaged."""


@dataclass(frozen=True)
class AugmentedGradCAM(SaliencyMethod):
    """Augmented Grad-CAM: the fine map whose rotated and shifted copies look like the Grad-CAMs of such images.

        M = ReLU(g),    g = argmin sum_l ||D T_l g - h_l||^2 + smooth L (|dx g| + |dy g|)_1 + shrink L ||g||^2

    h_l is the raw Grad-CAM of copy l of L, T_l its rotation about the centre and then shift. D g has the means of g
    over the cells of h_l, dx and dy are differences between neighbours. g starts at 0; Adam takes `steps` steps.

    Paper: Morbidelli et al., "Augmented Grad-CAM: Heat-Maps Super Resolution Through Augmentation", ICASSP 2020,
    https://doi.org/10.1109/ICASSP40776.2020.9054416; constants of the authors' code,
    https://github.com/diegocarrera89/AugmentedGradCAM

    Deviations: D takes the mean of 4 x 4 points in a cell; the authors' bilinear resizing sees four of its pixels. Each
    target's h are scaled so that their largest value is steps * rate / 2, half of what Adam can reach: otherwise the
    result would depend on the scale of the logit, and large values would all end alike. Adam follows the sign of tiny
    gradients too, so rounding may move single values by a step.

    Cost: for an image L forwards, and L backward passes through the layers above `layer` for each class. The steps
    work on 16 L u v points and the pixels of the map.

    Args:
        layer: see `LayerMethod`.
        copies: L.
        angle: largest rotation either way, radians.
        shift: largest shift either way, as a share of the side (authors: 30 of 224 pixels).
        fuse: "super" as above; "mean" or "max" of the maps that are turned back.
        steps: of Adam.
        rate: its learning rate.
        smooth: weight of the total variation.
        shrink: weight of the square.
        seed: of the transformations, which are the same for every image and device.
        batch_size: most copies in one forward pass.

    Example:
        >>> AugmentedGradCAM(copies=4, steps=2)(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    layer: str | None = None
    copies: int = 100
    angle: float = 0.5
    shift: float = 30 / 224
    fuse: Literal["super", "mean", "max"] = "super"
    steps: int = 200
    rate: float = 1e-3
    smooth: float = 2e-3
    shrink: float = 1e-4
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        if min(self.copies, self.steps, self.batch_size) < 1 or not self.rate > 0:
            raise UserError("copies, steps and batch_size must be at least 1, and rate above 0")
        values = (self.angle, self.shift, self.smooth, self.shrink)
        if not all(0 <= value < math.inf for value in values):
            raise UserError(f"angle, shift, smooth and shrink must be at least 0, got {values}")
        if self.fuse not in ("super", "mean", "max"):
            raise UserError(f"fuse must be 'super', 'mean' or 'max', got {self.fuse!r}")

    def forward(self, classifier: nn.Module, images: Tensor) -> DeferredEvidence:
        return DeferredEvidence(classifier, images, partial(self._maps, classifier, images))

    def _maps(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        maps = torch.zeros((len(targets), *images.shape[-2:]), dtype=torch.float32, device=images.device)
        with exact(images.device):
            warps = self.warps((images.shape[-2], images.shape[-1])).to(images.device)
        for index, rows in by_image(targets):
            looked = torch.cat(list(self._look(classifier, images[index], targets[rows, 1], warps)), dim=1)
            with exact(images.device):
                looked = finite(looked)
                looked = looked / looked.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
                if self.fuse == "super":
                    looked = looked * (self.steps * self.rate / 2)
                maps[rows] = self._fused(looked, warps, (images.shape[-2], images.shape[-1]))
        return finite(maps)

    def warps(self, size: tuple[int, int]) -> Tensor:
        """(L, 2, 3): from a place of copy l to the place of the image (H, W) that is seen there, in [-1, 1] x, y."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = 2 * torch.rand((self.copies, 3), generator=generator, dtype=torch.float32) - 1
        angle, shift = self.angle * drawn[:, 0], 2 * self.shift * drawn[:, 1:]
        cosine, sine, ratio = angle.cos(), angle.sin(), size[0] / size[1]
        back = torch.stack((cosine, ratio * sine, -sine / ratio, cosine), dim=1).view(-1, 2, 2)
        return torch.cat((back, -(back @ shift[:, :, None])), dim=2)

    def _look(self, classifier: nn.Module, image: Tensor, classes: Tensor, warps: Tensor) -> Iterator[Tensor]:
        """Raw Grad-CAMs (K, b, u, v) of the copies of an image (3, H, W), batch by batch."""
        for some in torch.split(warps, self.batch_size):
            with exact(image.device):
                grid = F.affine_grid(some, [len(some), *image.shape], align_corners=False).to(image.dtype)
                copies = F.grid_sample(image.expand(len(some), -1, -1, -1), grid, align_corners=False)
            every = torch.arange(len(some), device=image.device)
            maps = GradCAM(self.layer)(classifier, copies, torch.cartesian_prod(every, classes))
            yield maps.view(len(some), -1, *maps.shape[1:]).transpose(0, 1)

    def _fused(self, looked: Tensor, warps: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps (K, H, W) from those of the copies, (K, L, u, v)."""
        if self.fuse != "super":
            square = torch.cat((warps, warps.new_tensor([[[0, 0, 1]]]).expand(len(warps), 1, 3)), dim=1)
            there = F.affine_grid(
                torch.linalg.inv(square)[:, :2], [len(warps), 1, *size], align_corners=False
            )
            turned = F.grid_sample(looked.transpose(0, 1), there, align_corners=False)
            return turned.mean(0) if self.fuse == "mean" else turned.amax(0)
        height, width = (POINTS * side for side in looked.shape[-2:])
        points = F.affine_grid(warps, [len(warps), 1, height, width], align_corners=False)
        points = points.view(1, -1, width, 2)  # those of all copies below each other
        with torch.enable_grad():
            fine = looked.new_zeros((1, len(looked), *size)).requires_grad_()
            adam = torch.optim.Adam([fine], lr=self.rate)
            for _ in range(self.steps):
                seen = F.avg_pool2d(F.grid_sample(fine, points, align_corners=False)[0], POINTS)
                loss = (seen - looked.flatten(1, 2)).square().sum() + len(warps) * self._penalty(fine)
                (fine.grad,) = torch.autograd.grad(loss, fine)
                adam.step()
        return fine.detach()[0].relu()

    def _penalty(self, maps: Tensor) -> Tensor:
        variation = maps.diff(dim=-1).abs().sum() + maps.diff(dim=-2).abs().sum()
        return self.smooth * variation + self.shrink * maps.square().sum()
