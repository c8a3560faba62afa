"""The global guidance CAM."""

import math
from dataclasses import dataclass

from torch import Tensor

from wsss.errors import UserError
from wsss.saliency.base import gaussian_blur
from wsss.saliency.cam import LayerMethod, warn_below_pooling, weighted_activation


@dataclass(frozen=True)
class GlobalGuidanceCAM(LayerMethod):
    """Global guidance CAM (Fahim et al.): ReLU(sum_k w_k (GM * A_k)).

    GM = ReLU(sum_k G_k * A_k) is the global guidance map, G = dz/dA, w_k = mean_uv G_k. GM is one
    non-negative map, so the formula equals GM * ReLU(sum_k w_k A_k), which is what we compute.
    Below a global-average-pool head it is exactly Grad-CAM squared (warned of): choose an inner layer.

    Args:
        layer: see `LayerMethod`.
        smooth: sigma of a Gaussian (radius 3 sigma, mirrored borders) over the map, in cells of the
            layer's grid; 0 leaves the map as it is.
    """

    smooth: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smooth < math.inf:
            raise UserError(f"smooth must be a sigma of at least 0, got {self.smooth}")

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        warn_below_pooling(gradient, "the global guidance CAM is just Grad-CAM squared")
        guidance = (gradient * activation).sum(1).relu()
        maps = guidance * weighted_activation(gradient.mean((2, 3)), activation)
        if self.smooth == 0:
            return maps
        return gaussian_blur(maps, 2 * math.ceil(3 * self.smooth) + 1, self.smooth)
