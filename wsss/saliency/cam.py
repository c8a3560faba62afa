"""Class activation maps from the gradient at one layer: the machinery, Grad-CAM, Grad-CAM++ and XGrad-CAM."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import (
    SaliencyMethod,
    backward_rounds,
    check_logits,
    check_range,
    evaluating,
    exact,
    finite,
)
from wsss.saliency.layers import chosen_layer, tapped

NEARLY_ZERO = 1e-6
"""Denominators of Grad-CAM++ within this distance of 0 mean nothing (they occur before a ReLU only)."""


@dataclass(frozen=True)
class LayerMethod(SaliencyMethod):
    """A method that combines one layer's activation A with the gradient of a logit with respect to it.

    It takes one forward per image. The gradient runs only through the layers above `layer`. If the module at `layer`
    is used several times in one forward, its last use counts.

    Args:
        layer: a `get_submodule` path, such as "layer4" or "features.29"; None finds the last one with maps
            (`last_layer`). Its output is (B, k, u, v). Channels-last (B, u, v, k) and tokens (B, n, k) are understood
            too, see `grid_of`.
    """

    layer: str | None = None

    @abstractmethod
    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Maps (n, u, v) from A and dz/dA, both (n, k, u, v) float32."""

    def forward(self, classifier: nn.Module, images: Tensor) -> "LayerEvidence":
        return layer_evidence((self,), classifier, images)[0]


@dataclass(frozen=True)
class LayerEvidence:
    """Activation of one layer and the graph from there up to the logits."""

    logits: Tensor
    output: Tensor
    activation: Tensor
    prefix: int
    """Tokens of the layer that are not in the activation."""
    combine: Callable[[Tensor, Tensor], Tensor]
    directions: Callable[[Tensor, Tensor], Tensor] | None = None
    """Of the logits (B, C) and the targets (N, 2): what is differentiated, see `backward_rounds`."""

    def maps(self, targets: Tensor) -> Tensor:
        maps = self.logits.new_zeros((len(targets), *self.activation.shape[-2:]))
        with exact(maps.device):
            for rows, activation, gradient in self.derivatives(targets):
                maps[rows] = self.combine(activation, gradient)
        return finite(maps)

    def derivatives(self, targets: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Round by round (n,) rows of `targets`, their A and their dz/dA, both (n, k, u, v) float32."""
        check_range(targets[:, 1], self.logits.shape[1], "class")
        directions = None if self.directions is None else self.directions(self.logits, targets)
        for rows, (gradient,) in backward_rounds(self.output, [self.activation], targets, directions):
            if self.prefix and not bool(gradient.any()):
                raise UserError(
                    "the logits depend on nothing but the class token at this layer: choose one that attention "
                    "follows, such as the first norm of the last block"
                )
            chosen = targets[rows, 0]
            yield rows, self.activation.detach()[chosen].float(), gradient[chosen].float()


def layer_evidence(
    methods: Sequence[LayerMethod], classifier: nn.Module, images: Tensor
) -> list[LayerEvidence]:
    """The evidence of each of the methods, of one forward pass over images (B, 3, H, W)."""
    with evaluating(classifier), torch.enable_grad(), ExitStack() as stack:
        layers = [chosen_layer(classifier, method.layer, images) for method in methods]
        taken = [stack.enter_context(tapped(classifier, layer, images)) for layer in layers]
        output = classifier(images.detach())
    logits = check_logits(output, images)
    for layer, maps in zip(layers, taken, strict=True):
        if not output.requires_grad or not maps[-1].maps.requires_grad:
            raise UserError(
                f"layer '{layer}' gives no saliency: the logits do not depend on it, or what follows runs under "
                "no_grad or torch.utils.checkpoint; choose another layer"
            )
    return [
        LayerEvidence(logits, output, maps[-1].maps, maps[-1].prefix, method.combine)
        for method, maps in zip(methods, taken, strict=True)
    ]


def weighted_activation(weights: Tensor, activation: Tensor) -> Tensor:
    """ReLU(sum_k w_k A_k): weights (n, k), activation (n, k, u, v) -> (n, u, v)."""
    return torch.einsum("nk,nkuv->nuv", weights, activation).relu()


def constant_in_space(gradient: Tensor) -> bool:
    """Whether each channel of dz/dA (n, k, u, v) has one value everywhere, as below global average pooling."""
    return bool((gradient == gradient[:, :, :1, :1]).all())


def warn_below_pooling(gradient: Tensor, consequence: str) -> None:
    """Warns that a method loses what sets it apart where dz/dA (n, k, u, v) is constant in space.

    It looks at the first map only. Python shows a warning once per place, so once per method.
    """
    first = gradient[:1]
    if first[0, 0].numel() > 1 and bool(first.any()) and constant_in_space(first):
        warnings.warn(
            f"{consequence} at this layer, because only global average pooling and a linear head follow; "
            "choose an inner layer, such as layer3 of a ResNet",
            stacklevel=3,
        )


def warn_negative_weights(name: str) -> None:
    """Warns that a method of the Grad-CAM++ family has denominators of 0 or less."""
    warnings.warn(
        f"{name} has negative weights at places of this layer, where activations are negative: choose a "
        "layer after a ReLU, or gradcam",
        stacklevel=3,
    )


def warn_signed(activation: Tensor, consequence: str) -> None:
    """Warns where an activation has values below 0, which then do not mean "absent"."""
    if bool((activation < 0).any()):
        warnings.warn(
            f"activations are negative in places of this layer, where {consequence}: choose a layer after a ReLU, or "
            "gradcam",
            stacklevel=3,
        )


@dataclass(frozen=True)
class GradCAM(LayerMethod):
    """Grad-CAM: activations weighted by their mean gradient.

        M = ReLU(sum_k w_k A_k),    w_k = mean_uv dz/dA_k

    A_k is channel k of the activation at `layer`, z the logit of the class, mean_uv the mean over positions. With
    only global average pooling and a linear head above the layer, M is CAM times 1 / (u v).

    Paper: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    ICCV 2017, equations 1 and 2, https://arxiv.org/abs/1610.02391

    Args:
        layer: see `LayerMethod`.

    Example:
        >>> GradCAM(layer="layer4")(classifier, images, targets).shape
        torch.Size([2, 2, 2])
    """

    scale_balance = "area"

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return weighted_activation(gradient.mean((2, 3)), activation)


@dataclass(frozen=True)
class GradCAMPlusPlus(LayerMethod):
    """Grad-CAM++: Grad-CAM that weights every position by higher derivatives.

        M = ReLU(sum_k w_k A_k),    w_k = sum_uv alpha ReLU(G),
        alpha = G^2 / (2 G^2 + S_k G^3) = 1 / (2 + S_k G), and 0 where G is 0

    A_k is channel k of the activation at `layer`, z the logit of the class, G = dz/dA_k at a position (u, v), and
    S_k = sum_uv A_k. Only places with G > 0 count. There the denominator is at least 2 after a ReLU, where A >= 0.
    On other layers a place where the denominator is about 0 is left out.

    Paper: Chattopadhyay et al., "Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks", WACV 2018,
    equation 19, https://arxiv.org/abs/1710.11063

    Deviation from public code, which adds 1e-6 to the denominator of the first form: below global average pooling
    G is about 1 / (u v); once G is below about 1e-3 that constant outweighs everything else. Alpha then grows with G^2,
    and the map depends on the scale of the logits. Without it, the weights tend to half of Grad-CAM's positive part as
    logits shrink.

    Args:
        layer: see `LayerMethod`.
        eps: added to the denominator of the first form. 1e-6 gives the maps of the grad-cam package.

    Example:
        >>> GradCAMPlusPlus(layer="layer4")(classifier, images, targets).shape
        torch.Size([2, 2, 2])
    """

    eps: float | None = None

    def __post_init__(self) -> None:
        if self.eps is not None and not 0 < self.eps < math.inf:
            raise UserError(f"eps must be above 0, or None to leave it out, got {self.eps}")

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        positive = gradient.relu()
        denominator = 2 + activation.sum((2, 3), keepdim=True) * positive
        if bool((denominator < NEARLY_ZERO).any()):
            warn_negative_weights("Grad-CAM++")
        if self.eps is None:
            shares = positive / denominator.where(denominator.abs() > NEARLY_ZERO, math.inf)
        else:
            shares = positive**3 / (denominator * positive**2 + self.eps)
        return weighted_activation(shares.sum((2, 3)), activation)


@dataclass(frozen=True)
class XGradCAM(LayerMethod):
    """XGrad-CAM: Grad-CAM with the gradient averaged where the activation is.

        M = ReLU(sum_k w_k A_k),    w_k = sum_uv G A_k / (sum_uv A_k + eps)

    A_k is channel k of the activation at `layer`, G = dz/dA_k with z the logit of the class. The weights divide by
    sums of activations, so `layer` must follow a ReLU. Below global average pooling and a linear head it is Grad-CAM
    itself; a warning says so.

    Paper: Fu et al., "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs", BMVC 2020,
    https://arxiv.org/abs/2008.02312

    Args:
        layer: see `LayerMethod`.
        eps: keeps the weight of channels without activation at 0.

    Example:
        >>> XGradCAM(layer="layer3")(classifier, images, targets).shape
        torch.Size([2, 4, 4])
    """

    scale_balance = "area"

    eps: float = 1e-7

    def __post_init__(self) -> None:
        if not 0 < self.eps < math.inf:
            raise UserError(f"eps must be above 0, got {self.eps}")

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        warn_below_pooling(gradient, "XGrad-CAM is Grad-CAM itself")
        if bool((activation < 0).any()):
            raise UserError(
                "XGrad-CAM divides by sums of activations, and some are negative at this layer, so that its weights "
                "may be arbitrarily large: choose a layer after a ReLU, or global_guidance"
            )
        weights = (gradient * activation).sum((2, 3)) / (activation.sum((2, 3)) + self.eps)
        return weighted_activation(weights, activation)
