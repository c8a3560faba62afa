"""The guidance map, which is HiResCAM, and the global guidance CAM that it guides."""

import math
from dataclasses import dataclass

from torch import Tensor

from wsss.errors import UserError
from wsss.saliency.base import gaussian_blur
from wsss.saliency.cam import LayerMethod, warn_below_pooling, weighted_activation


@dataclass(frozen=True)
class HiResCAM(LayerMethod):
    """HiResCAM: activations times their gradients, place by place. It is the guidance map of `GlobalGuidanceCAM`.

        M = ReLU(sum_k G_k * A_k)

    A_k is channel k of the activation at `layer`, G_k = dz/dA_k with z the logit of the class. Where the layers above
    are linear, the sum of the signed map over all places is z but for their biases. Below global average pooling and a
    linear head M is Grad-CAM times u v.

    Paper: Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
    networks", arXiv 2020, https://arxiv.org/abs/2011.08891

    Cost: one forward, and one backward through the layers above `layer` for each class of an image.

    Args:
        layer: see `LayerMethod`.
        relu: False gives the signed map, as the authors' code does; grad-cam's is True.

    Example:
        >>> HiResCAM(layer="layer3")(classifier, images, targets).shape
        torch.Size([2, 4, 4])
    """

    relu: bool = True

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return guidance_map(activation, gradient, self.relu)


def guidance_map(activation: Tensor, gradient: Tensor, relu: bool = True) -> Tensor:
    """ReLU(sum_k G_k * A_k), or without ReLU: A and G (n, k, u, v) -> (n, u, v)."""
    maps = (gradient * activation).sum(1)
    return maps.relu() if relu else maps


@dataclass(frozen=True)
class GlobalGuidanceCAM(LayerMethod):
    """Global guidance CAM: Grad-CAM multiplied by a guidance map.

        M = ReLU(sum_k w_k (GM * A_k)) = GM * ReLU(sum_k w_k A_k)
        GM = ReLU(sum_k G_k * A_k),    w_k = mean_uv G_k

    A_k is channel k of the activation at `layer`, G_k = dz/dA_k with z the logit of the class, * the product of each
    position, GM the global guidance map. GM is one non-negative map, so the two forms are equal; we compute the
    second. Below global average pooling and a linear head M is exactly Grad-CAM squared. A warning says so; choose an
    inner layer.

    Paper: Fahim et al., "Rethinking Gradient Weight's Influence over Saliency Map Estimation", Sensors 22(17), 2022,
    https://doi.org/10.3390/s22176516

    Args:
        layer: see `LayerMethod`.
        smooth: sigma of a Gaussian over the map (radius 3 sigma, mirrored borders), in cells of the layer's grid.
            0 leaves the map as it is.

    Example:
        >>> GlobalGuidanceCAM(layer="layer3")(classifier, images, targets).shape
        torch.Size([2, 4, 4])
    """

    smooth: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smooth < math.inf:
            raise UserError(f"smooth must be a sigma of at least 0, got {self.smooth}")

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        warn_below_pooling(gradient, "the global guidance CAM is just Grad-CAM squared")
        maps = guidance_map(activation, gradient) * weighted_activation(gradient.mean((2, 3)), activation)
        if self.smooth == 0:
            return maps
        return gaussian_blur(maps, 2 * math.ceil(3 * self.smooth) + 1, self.smooth)
