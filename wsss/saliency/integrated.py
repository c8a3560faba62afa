"""Integrated Grad-CAM: Grad-CAM summed along the way from a baseline to the image."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import DeferredEvidence, SaliencyMethod
from wsss.saliency.cam import GradCAM

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""With which images are normalised (`wsss.data.transforms.normalize_image`); they say where black is."""


@dataclass(frozen=True)
class IntegratedGradCAM(SaliencyMethod):
    """Integrated Grad-CAM: the sum of the Grad-CAM maps on a straight path from a baseline to the image.

        M = sum_i GradCAM(x_i),    x_i = x0 + (x - x0) t_i,    GradCAM = ReLU(sum_k w_k A_k)

    x is the image, x0 the baseline. GradCAM is the raw map, with A_k channel k of the activation at `layer`,
    w_k = mean_uv dz/dA_k and z the logit of the class. Of n steps, t_i = i / n for the rule "left" (i = 0 .. n-1), and
    (i + 1/2) / n for "midpoint".

    Paper: Sattarzadeh et al., "Integrated Grad-CAM: Sensitivity-Aware Visual Explanation of Deep Convolutional Networks
    via Integrated Gradient-Based Scoring", ICASSP 2021, https://arxiv.org/abs/2102.07805

    Deviations from the paper: this is what the authors' code computes. The paper integrates with A - A(x0) in the
    place of A; the code has that as an option and does not use it. Their README calls the baseline black. In their
    code it is 0 after normalisation, which is the mean colour.

    Cost: n forwards for all classes, and n backward passes above `layer` for each class of an image.

    Args:
        layer: see `LayerMethod`.
        steps: n.
        rule: "left" as in the authors' code, or "midpoint", which is exact for a map that is linear along the path.
        baseline: "mean" (the mean colour: 0 after normalisation) or "black" (with ImageNet's normalisation).
        batch_size: most points in one forward pass; they may belong to different images.

    Example:
        >>> IntegratedGradCAM(layer="layer4")(classifier, images, targets).shape
        torch.Size([2, 2, 2])
    """

    scale_balance = "area"

    layer: str | None = None
    steps: int = 50
    rule: Literal["left", "midpoint"] = "left"
    baseline: Literal["mean", "black"] = "mean"
    batch_size: int = 16

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1:
            raise UserError(
                "IntegratedGradCAM needs steps and batch_size of at least 1, "
                f"got {self.steps} and {self.batch_size}"
            )
        if self.rule not in ("left", "midpoint") or self.baseline not in ("mean", "black"):
            raise UserError(
                "IntegratedGradCAM's rule must be 'left' or 'midpoint' and its baseline 'mean' or 'black', "
                f"got {self.rule!r}, {self.baseline!r}"
            )

    def forward(self, classifier: nn.Module, images: Tensor) -> DeferredEvidence:
        return DeferredEvidence(classifier, images, partial(self._maps, classifier, images))

    def _maps(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Sum over the points of all images' paths, `batch_size` of them at a time."""
        base = GradCAM(self.layer)
        start = baseline_of(images, self.baseline)
        used = torch.unique(targets[:, 0])
        owners = used.repeat_interleave(self.steps)
        places = self._places(images).repeat(len(used))[:, None, None, None]
        total = torch.zeros((), dtype=torch.float32, device=images.device)
        for some in torch.split(torch.arange(len(owners), device=images.device), self.batch_size):
            owner, place = owners[some], places[some]
            points = start + (images[owner] - start) * place
            which, rows = (owner[:, None] == targets[None, :, 0]).nonzero(as_tuple=True)
            maps = base(classifier, points, torch.stack((which, targets[rows, 1]), dim=1))
            total = total + maps.new_zeros((len(targets), *maps.shape[1:])).index_add(0, rows, maps)
        return total

    def _places(self, images: Tensor) -> Tensor:
        """t_i, (steps,)."""
        offset = 0.5 if self.rule == "midpoint" else 0.0
        return (torch.arange(self.steps, device=images.device, dtype=images.dtype) + offset) / self.steps


def baseline_of(images: Tensor, baseline: Literal["mean", "black"]) -> Tensor:
    """The baseline x0 of images (B, channels, H, W): the mean colour or black, in normalised values.

    Returns:
        (1, channels or 1, 1, 1), which broadcasts over the images.

    Raises:
        UserError: "black" for images that are not RGB, where we do not know what black is.
    """
    if baseline == "mean":
        return images.new_zeros((1, 1, 1, 1))
    if images.shape[1] != 3:
        raise UserError(
            f"the baseline 'black' is defined for RGB only, not for {images.shape[1]} channels: use baseline='mean'"
        )
    black = [-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    return images.new_tensor(black).view(1, 3, 1, 1)
