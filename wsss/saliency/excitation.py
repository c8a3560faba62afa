"""Excitation backprop: where the neurons are that made a class win."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.relevance import RelevanceEvidence, RelevanceMethod, Rules, Tape


@dataclass(frozen=True)
class ExcitationBackprop(RelevanceMethod):
    """Excitation backprop: the probability that a winner-takes-all walk from the class down passes through each place.

        M = ReLU(sum_k P_k),    P_i = sum_j (x_i w+_ij) / (sum_i' x_i' w+_i'j) P_j,    with w+ = max(w, 0)

    P is 1 at the logit of the class and goes down, module by module, to `layer`, with x the input of a module and w its
    weights, without biases. Max pooling passes it to the maximum, ReLU on unchanged. On a network without residual
    blocks the sum of P stays 1, but where a denominator is 0. With global average pooling and a linear head on the last
    layer, P_k = w+_ck A_k / (u v sum_k' w+_ck' mean_uv A_k').

    The contrastive variant subtracts, at the input of the last linear layer, the same for the negated weights -w of
    that layer: what speaks against the class.

    Paper: Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016, equation 10 and section 3.4,
    https://arxiv.org/abs/1608.00507

    Deviations: the paper has neither BatchNorm nor residual blocks. BatchNorm is folded into the convolution before it,
    for a negative factor turns its weights around. Where a block adds a + b, the branches get ReLU(a) and ReLU(b) as
    shares. `variant="torchray"`: as in TorchRay, BatchNorm passes P on unchanged, and the shares are a and b, which are
    signed.

    Cost: one forward. For each target about two forwards of the layers above `layer` (four of the head).

    Supported networks: those of `RelevanceCAM`. The layers above must get values of at least 0, as after a ReLU, so
    `layer` must be above the first convolution.

    Args:
        layer: as of `RelevanceCAM`.
        contrastive: see above.
        variant: "folded" or "torchray", see above.
        batch_size: targets that are propagated at a time; limits memory.

    Example:
        >>> ExcitationBackprop(layer="layer3")(classifier, images, targets).shape
        torch.Size([2, 4, 4])
    """

    layer: str | None = None
    contrastive: bool = True
    variant: Literal["folded", "torchray"] = "folded"
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.variant not in ("folded", "torchray"):
            raise UserError(f"variant must be 'folded' or 'torchray', got {self.variant!r}")

    def forward(self, classifier: nn.Module, images: Tensor) -> RelevanceEvidence:
        evidence = super().forward(classifier, images)
        if bool((evidence.activation < 0).any()):
            raise UserError(
                "excitation backprop needs layers whose input is at least 0, and activations are negative at this "
                "layer: choose one after a ReLU, such as layer4 of a ResNet"
            )
        return evidence

    def start(self, rules: Rules, head: nn.Module, logits: Tensor, targets: Tensor) -> Tensor:
        seed = F.one_hot(targets[:, 1], logits.shape[1]).float()
        winning = rules.of_head(head, seed)
        return winning - replace(rules, sign=-1).of_head(head, seed) if self.contrastive else winning

    def rules(self, above: Sequence[nn.Module], tape: Tape, rows: Tensor) -> Rules:
        if self.variant == "torchray":
            return Rules(tape, rows)
        return Rules(tape, rows, scales=norm_factors(above), positive_shares=True)

    def reduced(self, relevance: Tensor, activation: Tensor) -> Tensor:
        return relevance.sum(1).relu()


def norm_factors(steps: Sequence[nn.Module]) -> dict[nn.Module, Tensor]:
    """By what BatchNorm multiplies the channels of the convolution before it: convolution -> (channels,), float32."""
    rows = [list(steps), *(list(module.children()) for step in steps for module in step.modules())]
    found: dict[nn.Module, Tensor] = {}
    for first, second in (pair for row in rows for pair in pairwise(row)):
        if (
            isinstance(first, nn.Conv2d)
            and isinstance(second, nn.BatchNorm2d)
            and second.running_var is not None
        ):
            factor = (second.running_var.float() + second.eps).rsqrt()
            found[first] = factor if second.weight is None else factor * second.weight.detach().float()
    return found
