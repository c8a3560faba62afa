"""Saliency of input pixels: the gradient of a logit, plain and guided."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from wsss.errors import UserError
from wsss.saliency.base import (
    SaliencyMethod,
    backward_rounds,
    check_call,
    check_logits,
    check_range,
    evaluating,
    exact,
    finite,
)

RELU = "ReluBackward0"
"""The graph node of every ReLU: nn.ReLU, torch.relu, F.relu, in place or not."""
OTHERS = frozenset(
    f"{name}Backward0"
    for name in (
        "Silu",
        "Gelu",
        "Hardswish",
        "Hardtanh",
        "Elu",
        "LeakyRelu",
        "Mish",
        "Softplus",
        "PreluKernel",
    )
)
"""The nodes of other non-linearities that take the place of a ReLU."""
VIEW_CHANGED = "torch::autograd::CopySlices"
"""The graph node of an in-place operation on a view; it hides which operation that was."""
HOOKED = "BackwardHookFunctionBackward"
"""The graph node of a module with full backward hooks, of the caller's or another library's: passes everything on."""


@dataclass(frozen=True)
class Gradient(SaliencyMethod):
    """Gradient of the logit: the largest absolute derivative over the image's channels.

        M = max over channels of |dz_c/dx|

    x is the image as the classifier gets it, z_c the logit of class c. Nothing is smoothed.

    Paper: Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks: Visualising Image Classification Models
    and Saliency Maps", ICLR Workshop 2014, section 3, https://arxiv.org/abs/1312.6034

    Cost: one forward, and as many backward passes as the image with the most targets has targets. Gradients of
    parameters are never computed.

    The result has the size of the images, (N, H, W). `gradients` returns the signed values of all channels.

    Example:
        >>> Gradient()(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    scale_balance = "area"

    guided: ClassVar[bool] = False

    def forward(self, classifier: nn.Module, images: Tensor) -> "InputEvidence":
        leaf = images.detach().requires_grad_()
        with evaluating(classifier), torch.enable_grad():
            output = classifier(leaf.clone())  # its first module may work in place, which a leaf forbids
        logits = check_logits(output, images)
        if not output.requires_grad:
            raise UserError(
                f"{type(self).__name__} needs logits that can be differentiated with respect to the images: "
                "remove no_grad, detach or inference mode from the classifier's forward"
            )
        if self.guided and guide(output) == 0:
            raise UserError(
                "GuidedBackprop found no ReLU between the images and the logits: use Gradient for this classifier"
            )
        return InputEvidence(logits, output, leaf)

    def gradients(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Signed gradients per channel, before the maximum: what the maps are made of.

        Args:
            classifier: as for a call of the method.
            images: (B, 3, H, W), as for a call of the method.
            targets: (N, 2) integers, rows (image index, class index).

        Returns:
            (N, 3, H, W) float32, row n for target n.

        Raises:
            ArgumentError, UserError: as a call of the method.
        """
        targets = check_call(classifier, images, targets)
        if len(targets) == 0:
            return torch.zeros((0, *images.shape[1:]), dtype=torch.float32, device=images.device)
        with torch.inference_mode(False), evaluating(classifier):
            used, position = torch.unique(targets[:, 0], return_inverse=True)
            evidence = self.forward(classifier, images[used])
            return evidence.gradients(torch.stack((position, targets[:, 1]), dim=1))


@dataclass(frozen=True)
class GuidedBackprop(Gradient):
    """Guided backpropagation: the gradient, with negative parts dropped at every ReLU on the way down.

        M = max over channels of |guided dz_c/dx|,    through a ReLU: g * [out > 0] * [g > 0]

    x is the image, z_c the logit of class c, g the gradient at the output `out` of a ReLU. The plain gradient passes
    g * [out > 0] instead. Other rectifiers (leaky, clipped at 6, GELU, clamp) keep their own derivative.

    Paper: Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR Workshop 2015, section 3.4,
    https://arxiv.org/abs/1412.6806

    The rule is put on the ReLUs in the autograd graph of this one forward. So the classifier is not touched, and
    functional and in-place ReLUs are guided like modules. A graph with parts that cannot be inspected (torch.compile,
    custom functions, in-place operations on views) is refused, because a ReLU might be missed there.

    Deviation from the SESS authors' code: it removes its hooks after the first call, so all later crops get plain
    gradients. Here every call is guided.

    Cost, result and `gradients`: as for `Gradient`.

    Example:
        >>> GuidedBackprop()(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    guided: ClassVar[bool] = True


@dataclass(frozen=True)
class InputEvidence:
    """The graph from the images up to the logits."""

    logits: Tensor
    output: Tensor
    images: Tensor

    def maps(self, targets: Tensor) -> Tensor:
        check_range(targets[:, 1], self.logits.shape[1], "class")
        maps = self.logits.new_empty((len(targets), *self.images.shape[-2:]))
        for rows, gradient in self._rounds(targets):
            maps[rows] = gradient.abs().amax(1)
        return finite(maps)

    def gradients(self, targets: Tensor) -> Tensor:
        """(N, 3, H, W) float32 of the `targets` (N, 2)."""
        check_range(targets[:, 1], self.logits.shape[1], "class")
        gradients = self.logits.new_empty((len(targets), *self.images.shape[1:]))
        for rows, gradient in self._rounds(targets):
            gradients[rows] = gradient
        return finite(gradients)

    def _rounds(self, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of `targets` and their gradients (n, 3, H, W) float32, one backward pass each."""
        with exact(self.images.device):
            for rows, (gradient,) in backward_rounds(self.output, [self.images], targets):
                yield rows, gradient[targets[rows, 0]].float()


def guide(output: Tensor) -> int:
    """Makes every later backward pass from `output` a guided one, down to the leaves of its graph.

    The rule lives in the graph and is freed with it, so there is nothing to undo.

    Args:
        output: a tensor with its graph. Guiding it twice changes nothing.

    Returns:
        The number of ReLUs found. A warning says if there are other non-linearities beside them.

    Raises:
        UserError: the graph has parts that may hide a ReLU.
    """
    count, others = 0, 0
    for node in graph_nodes(output):
        opaque = isinstance(node, BackwardCFunction) and node.name() != HOOKED
        if opaque or node.name() == VIEW_CHANGED:
            raise UserError(
                f"guided gradients cannot see into the classifier's operation {node.name()}, which may hide a "
                "ReLU: pass the model without torch.compile, custom autograd functions and in-place ReLUs on views"
            )
        if node.name() == RELU:
            node.register_prehook(drop_negative)
            count += 1
        others += node.name() in OTHERS
    if count and others:
        warnings.warn(
            f"only {count} of this classifier's {count + others} non-linearities are ReLUs: gradients are guided "
            "there, and plain elsewhere",
            stacklevel=2,
        )
    return count


def drop_negative(gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """g * [g > 0]; the ReLU's own derivative then multiplies by [out > 0]."""
    return tuple(gradient.clamp(min=0) for gradient in gradients)


def graph_nodes(output: Tensor) -> Iterator[Node]:
    """All nodes of the autograd graph below `output`, each once."""
    waiting, seen = [output.grad_fn], {output.grad_fn}
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        yield node
        below = {following for following, _ in node.next_functions} - seen
        seen |= below
        waiting += below
