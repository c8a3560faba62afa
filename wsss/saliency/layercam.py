"""LayerCAM and Eigen-CAM: activations weighted place by place, and their first principal component."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import (
    SaliencyMethod,
    check_logits,
    check_range,
    evaluating,
    exact,
    finite,
    normalize,
    warn_class_free,
)
from wsss.saliency.cam import LayerMethod, warn_signed
from wsss.saliency.layers import tapped


@dataclass(frozen=True)
class LayerCAM(LayerMethod):
    """LayerCAM: activations weighted by their positive gradients, place by place.

        M = ReLU(sum_k ReLU(G_k) * A_k)

    A_k is channel k of the activation at `layer`, G_k = dz/dA_k with z the logit of the class. For several layers, as
    in the paper: `max(layercam@layer2(sharpen=2), layercam@layer3(sharpen=2), layercam@layer4)`.

    Paper: Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE Transactions on
    Image Processing 30, 2021, equations 5 and 6, https://doi.org/10.1109/TIP.2021.3089943

    Cost: one forward, and one backward through the layers above `layer` for each class of an image.

    Args:
        layer: see `LayerMethod`. On layers with negative activations 0 does not mean "absent"; a warning says so.
        sharpen: if above 0, the map is tanh(sharpen * M / max M); the authors' code takes 2 for shallow layers.

    Example:
        >>> LayerCAM(layer="layer3")(classifier, images, targets).shape
        torch.Size([2, 4, 4])
    """

    sharpen: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sharpen < math.inf:
            raise UserError(f"sharpen must be at least 0, got {self.sharpen}")

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        warn_signed(activation, "LayerCAM's weights do not say what is absent")
        maps = (gradient.relu() * activation).sum(1).relu()
        return (self.sharpen * normalize(maps, "max")).tanh() if self.sharpen else maps


@dataclass(frozen=True)
class EigenCAM(SaliencyMethod):
    """Eigen-CAM: the first principal component of the activation. It knows no class.

        M = ReLU(X v)

    Row (u, v) of X has the k channels of the activation at `layer` there, minus their means over places. v is the first
    right singular vector of X. All classes of an image get the same map; a warning says so.

    Paper: Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020,
    https://arxiv.org/abs/2008.00299

    Deviation: the sign of v is arbitrary. We take the one with which the largest absolute value of X v is positive;
    grad-cam takes what the solver gives.

    Cost: one forward for all classes, and the eigenvectors of a matrix of min(k, u v) rows.

    Args:
        layer: see `LayerMethod`.

    Example:
        >>> EigenCAM(layer="layer4")(classifier, images, targets).shape
        torch.Size([2, 2, 2])
    """

    layer: str | None = None

    @property
    def class_free(self) -> bool:
        return True

    def forward(self, classifier: nn.Module, images: Tensor) -> "EigenEvidence":
        with evaluating(classifier), torch.no_grad(), tapped(classifier, self.layer, images) as taken:
            logits = check_logits(classifier(images), images)
        return EigenEvidence(logits, taken[-1].maps.detach().float())


@dataclass(frozen=True)
class EigenEvidence:
    """Activation (B, k, u, v) of one layer."""

    logits: Tensor
    activation: Tensor

    def maps(self, targets: Tensor) -> Tensor:
        check_range(targets[:, 1], self.logits.shape[1], "class")
        warn_class_free("Eigen-CAM")
        used, position = torch.unique(targets[:, 0], return_inverse=True)
        with exact(targets.device):
            return first_component(finite(self.activation[used]))[position]


@dataclass(frozen=True)
class EigenGradCAM(LayerMethod):
    """Eigen-Grad-CAM: the first principal component of activation times gradient; Eigen-CAM for a class.

        M = ReLU(X v)

    Row (u, v) of X has the values G_k A_k of the k channels there, minus their means over places. A_k is a channel of
    the activation at `layer`, G_k = dz/dA_k with z the logit of the class, and v the first right singular vector of X,
    with the sign of `EigenCAM`.

    Source: `EigenGradCAM` of the grad-cam package, https://github.com/jacobgil/pytorch-grad-cam

    Cost: one forward. For each class one backward through the layers above `layer` and the eigenvectors of a matrix of
    min(k, u v) rows.

    Args:
        layer: see `LayerMethod`.

    Example:
        >>> EigenGradCAM(layer="layer3")(classifier, images, targets).shape
        torch.Size([2, 4, 4])
    """

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return first_component(finite(gradient * activation))


def first_component(values: Tensor) -> Tensor:
    """The positive part of the first principal component over places: (n, k, u, v) -> (n, u, v)."""
    rows = values.flatten(2).double()  # the matrix below squares the range of values
    rows = rows - rows.mean(2, keepdim=True)
    if rows.shape[2] <= rows.shape[1]:
        powers, vectors = torch.linalg.eigh(rows.mT @ rows)
        maps = vectors[:, :, -1] * powers[:, -1:].clamp(min=0).sqrt()
    else:
        maps = torch.einsum("nkp,nk->np", rows, torch.linalg.eigh(rows @ rows.mT).eigenvectors[:, :, -1])
    largest = maps.gather(1, maps.abs().argmax(1, keepdim=True))
    signed: Tensor = maps * torch.where(largest < 0, -1, 1)
    return signed.relu().float().view(-1, *values.shape[2:])
