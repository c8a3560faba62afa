"""Finer-CAM: what speaks for a class against the classes that are most like it."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import SaliencyMethod
from wsss.saliency.cam import GradCAM, LayerEvidence, LayerMethod


@dataclass(frozen=True)
class FinerCAM(SaliencyMethod):
    """Finer-CAM: a CAM of the difference between the logit of the class and those of its rivals.

        z = z_c - gamma mean_d z_d

    The base makes its map from the gradient of z in the place of that of z_c. d runs over the rivals of class c.

    Paper: Zhang et al., "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation", CVPR 2025,
    equation 6, https://arxiv.org/abs/2501.11309

    Deviation: the authors' code takes z = sum_d p_d (z_c - gamma z_d) / (sum_d p_d + 1e-9) with the softmax p,
    and differentiates p as well: `weights="softmax", gamma=1`.

    Cost: that of the base.

    Args:
        base: a method of one layer that uses gradients, such as gradcam or layercam.
        gamma: how much the rivals count; 0 gives the base.
        rivals: number of rivals: the classes whose logits are nearest to z_c. 0: the other classes that the call names
            for the image, as suits multi-label classifiers; without any, z is z_c.
        weights: "mean", or "softmax" as above.

    Example:
        >>> FinerCAM(GradCAM(layer="layer3"), rivals=1)(classifier, images, targets).shape
        torch.Size([2, 4, 4])
    """

    base: SaliencyMethod = field(default_factory=GradCAM)
    gamma: float = 0.6
    rivals: int = 3
    weights: Literal["mean", "softmax"] = "mean"

    def __post_init__(self) -> None:
        if not isinstance(self.base, LayerMethod):
            raise UserError(
                "FinerCAM wraps a method of one layer that uses gradients, such as gradcam or layercam"
            )
        if not 0 <= self.gamma < math.inf or self.rivals < 0:
            raise UserError(f"gamma and rivals must be at least 0, got {self.gamma} and {self.rivals}")
        if self.weights not in ("mean", "softmax"):
            raise UserError(f"weights must be 'mean' or 'softmax', got {self.weights!r}")

    def forward(self, classifier: nn.Module, images: Tensor) -> LayerEvidence:
        assert isinstance(self.base, LayerMethod)
        return replace(self.base.forward(classifier, images), directions=self.directions)

    def directions(self, logits: Tensor, targets: Tensor) -> Tensor:
        """dz/dlogits (N, C) of logits (B, C) and targets (N, 2)."""
        with torch.enable_grad():
            own = logits[targets[:, 0]].detach().requires_grad_()
            score = own.gather(1, targets[:, 1:])
            rivals = self._rivals(own.detach(), targets)
            if self.weights == "softmax":
                shares = own.softmax(1) * rivals
                z = (shares * (score - self.gamma * own)).sum(1) / (shares.sum(1) + 1e-9)
            else:
                shares = rivals / rivals.sum(1, keepdim=True).clamp(min=1)
                z = score[:, 0] - self.gamma * (shares * own).sum(1)
            (gradient,) = torch.autograd.grad(z.sum(), own)
        return gradient

    def _rivals(self, own: Tensor, targets: Tensor) -> Tensor:
        """(N, C), 1 at the rivals of each target and 0 elsewhere, for the logits (N, C) of their images."""
        classes = targets[:, 1:]
        if self.rivals:
            distance = (own - own.gather(1, classes)).abs().scatter(1, classes, math.inf)
            nearest = distance.topk(min(self.rivals, own.shape[1] - 1), largest=False).indices
            return torch.zeros_like(own).scatter(1, nearest, 1)
        same = (targets[:, None, 0] == targets[None, :, 0]).to(own.dtype)
        named = torch.zeros_like(own).scatter(1, classes, 1)
        return (same @ named).clamp(max=1).scatter(1, classes, 0)
