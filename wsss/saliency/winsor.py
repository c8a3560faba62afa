"""Winsor-CAM: the Grad-CAMs of all convolutions, weighted by importance without its outliers."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from wsss.errors import UserError
from wsss.saliency.base import (
    SaliencyMethod,
    backward_rounds,
    check_logits,
    check_range,
    evaluating,
    exact,
    finite,
    normalize,
)
from wsss.saliency.cam import weighted_activation


@dataclass(frozen=True)
class WinsorCAM(SaliencyMethod):
    """Winsor-CAM: Grad-CAMs of all convolutions, weighted by the layers' importance, whose outliers are clipped.

        M = sum_l I_l up(mm(ReLU(sum_k w_lk A_lk))),    I_l = ReLU(mean_k w_lk),    w_lk = mean_uv dz/dA_lk

    A_lk is channel k of the output of convolution l (before BatchNorm and ReLU), z the logit of the class, mm min-max
    normalisation, `up` the nearest value at the size of the finest layer. Positive importances above their
    `percentile` become that percentile; then they are rescaled to [0.1, 1]. Others stay 0.

    Paper: https://arxiv.org/abs/2507.10846

    Cost: one forward, and a backward pass through the whole network for each class of an image. Memory: the outputs of
    all convolutions twice.

    Args:
        percentile: in [0, 100], of the positive importances.
        lowest: that of the least important layer with a positive one, in [0, 1].

    Example:
        >>> WinsorCAM()(classifier, images, targets).shape
        torch.Size([2, 32, 32])
    """

    percentile: float = 99.0
    lowest: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.percentile <= 100 or not 0 <= self.lowest <= 1:
            raise UserError(
                "WinsorCAM's percentile must be in [0, 100] and its lowest in [0, 1], "
                f"got {self.percentile} and {self.lowest}"
            )

    def forward(self, classifier: nn.Module, images: Tensor) -> "WinsorEvidence":
        kept: list[Kept] = []

        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            if output.requires_grad:
                kept.append(Kept(output.detach().clone(), get_gradient_edge(output)))

        convolutions = [module for module in classifier.modules() if isinstance(module, nn.Conv2d)]
        handles = [module.register_forward_hook(keep) for module in convolutions]
        try:
            with evaluating(classifier), torch.enable_grad():
                output = classifier(images.detach().clone().requires_grad_().clone())
        finally:
            for handle in handles:
                handle.remove()
        logits = check_logits(output, images)
        if not kept or not output.requires_grad:
            raise UserError(
                "WinsorCAM found no convolution that the logits depend on: choose another method, such as gradcam"
            )
        return WinsorEvidence(self, logits, output, kept)


class Kept(NamedTuple):
    """The output (B, k, u, v) of a convolution, and its place in the graph."""

    activation: Tensor
    edge: GradientEdge


@dataclass(frozen=True)
class WinsorEvidence:
    """The graph of one forward pass, and the outputs of its convolutions."""

    method: WinsorCAM
    logits: Tensor
    output: Tensor
    kept: list[Kept]

    def maps(self, targets: Tensor) -> Tensor:
        check_range(targets[:, 1], self.logits.shape[1], "class")
        height, width = max(
            (one.activation.shape[-2:] for one in self.kept), key=lambda size: size[0] * size[1]
        )
        maps = self.logits.new_zeros((len(targets), height, width))
        with exact(maps.device):
            edges = [one.edge for one in self.kept]
            for rows, gradients in backward_rounds(self.output, edges, targets):
                chosen = targets[rows, 0]
                weights = [gradient[chosen].float().mean((2, 3)) for gradient in gradients]
                importance = self._winsorized(torch.stack([weight.mean(1).relu() for weight in weights]))
                for share, weight, one in zip(importance, weights, self.kept, strict=True):
                    raw = weighted_activation(weight, one.activation[chosen].float())
                    share = share + 0 * raw.sum((1, 2))  # NaN stays NaN
                    resized = F.interpolate(normalize(raw)[:, None], size=(height, width))[:, 0]
                    maps[rows] += share[:, None, None] * resized
        return finite(maps)

    def _winsorized(self, importance: Tensor) -> Tensor:
        """(layers, n) importances of at least 0, clipped and rescaled, target by target."""
        known = torch.where(importance > 0, importance, torch.nan)
        top = known.nanquantile(self.method.percentile / 100, dim=0)
        clipped = known.minimum(top)
        low = clipped.nan_to_num(nan=torch.inf).amin(0)
        share = torch.where(top > low, (clipped - low) / (top - low), 1)
        scaled = self.method.lowest + (1 - self.method.lowest) * share
        return torch.where(importance > 0, scaled, torch.zeros_like(importance))
