"""Class activation maps from the gradient at one layer: the machinery, and Grad-CAM."""

import difflib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@dataclass(frozen=True)
class LayerMethod(SaliencyMethod):
    """A method that combines one layer's activation A with the gradient of a logit with respect to it.

    One forward per image; the gradient runs through the layers above `layer` only. If the module at
    `layer` is used several times in one forward, its last use counts.

    Args:
        layer: a `get_submodule` path whose output is (B, k, u, v), such as "layer4" or "features.29".
    """

    layer: str

    @abstractmethod
    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Maps (n, u, v) from A and dz/dA, both (n, k, u, v) float32."""

    def forward(self, classifier: nn.Module, images: Tensor) -> "LayerEvidence":
        with evaluating(classifier), torch.enable_grad(), tapped(classifier, self.layer) as taken:
            output = classifier(images.detach())
        logits = check_logits(output, images)
        if not taken or not output.requires_grad:
            reason = "the logits do not depend on it" if taken else "it does not run in the forward pass"
            raise UserError(f"layer '{self.layer}' gives no saliency: {reason}; choose another layer")
        return LayerEvidence(logits, output, taken[-1], self.combine)


@dataclass(frozen=True)
class LayerEvidence:
    """Activation of one layer and the graph from there up to the logits."""

    logits: Tensor
    output: Tensor
    activation: Tensor
    combine: Callable[[Tensor, Tensor], Tensor]

    def maps(self, targets: Tensor) -> Tensor:
        check_range(targets[:, 1], self.logits.shape[1], "class")
        maps = self.logits.new_zeros((len(targets), *self.activation.shape[-2:]))
        with exact(maps.device):
            for rows, (gradient,) in backward_rounds(self.output, [self.activation], targets):
                chosen = targets[rows, 0]
                maps[rows] = self.combine(self.activation.detach()[chosen].float(), gradient[chosen].float())
        return finite(maps)


@contextmanager
def tapped(classifier: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Collects the outputs of `layer` as leaves that start the graph; the hook goes when the block ends.

    Raises:
        UserError: no such layer, or its output is not (B, k, u, v).
    """
    taken: list[Tensor] = []

    def take(module: nn.Module, inputs: object, output: object) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise UserError(f"layer '{layer}' must give feature maps (B, channels, h, w), it gives {got}")
        taken[:] = [output.detach().requires_grad_()]
        return taken[0].clone()  # the next module may work in place, which a leaf forbids

    handle = find_layer(classifier, layer).register_forward_hook(take)
    try:
        yield taken
    finally:
        handle.remove()


def find_layer(classifier: nn.Module, layer: str) -> nn.Module:
    """The submodule at the path `layer`, or UserError that lists the closest names."""
    modules: dict[str, nn.Module] = dict(classifier.named_modules())
    if layer in modules:
        return modules[layer]
    names = [name for name in modules if name]
    close = difflib.get_close_matches(layer, names, n=5, cutoff=0.5) or [n for n in names if "." not in n]
    raise UserError(f"the classifier has no layer '{layer}'; close names: {', '.join(close)}")


def weighted_activation(weights: Tensor, activation: Tensor) -> Tensor:
    """ReLU(sum_k w_k A_k): weights (n, k), activation (n, k, u, v) -> (n, u, v)."""
    return torch.einsum("nk,nkuv->nuv", weights, activation).relu()


@dataclass(frozen=True)
class GradCAM(LayerMethod):
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2): ReLU(sum_k w_k A_k), w_k = mean_uv dz/dA_k.

    A is the activation at `layer`, z the logit of the class. Below a global-average-pool head this is
    CAM times 1 / (u v).
    """

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return weighted_activation(gradient.mean((2, 3)), activation)
