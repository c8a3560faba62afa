"""DeepLIFT with the rescale rule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wsss.errors import UserError
from wsss.saliency.attributions import AttributionMethod
from wsss.saliency.base import backward_rounds, check_logits, check_range, evaluating, exact
from wsss.saliency.fullgrad import EXACT, HALF, TENSOR_CORES
from wsss.saliency.integrated import baseline_of

_WORDS = (
    "relu relu6 leaky_relu elu selu celu gelu silu mish softplus sigmoid logsigmoid tanh hardtanh hardsigmoid "
    "hardswish clamp"
)
ELEMENTWISE = frozenset(_WORDS.split())
"""Functions of each value by itself, by the name of torch's function; in-place ones have an underscore after it."""
SAME = 1e-10
"""Differences to the baseline below this have the derivative in the place of the multiplier, as in captum."""


@dataclass(frozen=True)
class DeepLIFT(AttributionMethod):
    """DeepLIFT with the rescale rule: how much of the difference to a baseline each pixel makes.

        M = ReLU(sum over channels of a),    a = (x - x0) * m,    m: gradient of z_c with f'(y) replaced by
        (f(y) - f(y0)) / (y - y0) at every non-linearity f

    x is the image as the classifier gets it, x0 the baseline, z_c the logit of class c, y and y0 what a non-linearity
    gets from the two. Max pooling passes what it lets through of x and of x0 to the places where their maxima are. The
    sum of a is z_c(x) - z_c(x0) exactly.

    Paper: Shrikumar, Greenside and Kundaje, "Learning Important Features Through Propagating Activation Differences",
    ICML 2017, section 3.5.1, https://arxiv.org/abs/1704.02685

    The rule is put on torch's functions while the classifier runs, so that functional, in-place and shared
    non-linearities are covered; captum's rule is on modules that are used once. Products of activations, attention and
    normalisation by the input's own statistics have no rule: where the attributions do not sum to the difference, the
    classifier is refused.

    Cost: one forward with one image more (the baseline), and as many backward passes as the image with the most targets
    has targets.

    Args:
        reduce: see `AttributionMethod`.
        baseline: "mean" (the mean colour: 0 after normalisation) or "black" (with ImageNet's normalisation).

    Example:
        >>> DeepLIFT()(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    baseline: Literal["mean", "black"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline not in ("mean", "black"):
            raise UserError(f"baseline must be 'mean' or 'black', got {self.baseline!r}")

    def attribute(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        start = baseline_of(images, self.baseline).expand(1, *images.shape[1:])
        leaf = torch.cat((images, start)).detach().requires_grad_()
        with evaluating(classifier), torch.enable_grad(), Rescaled():
            output = classifier(leaf.clone())
        logits = check_logits(output, leaf)
        check_range(targets[:, 1], logits.shape[1], "class")
        if not output.requires_grad:
            raise UserError("DeepLIFT needs logits that can be differentiated with respect to the images")
        result = torch.zeros((len(targets), *images.shape[1:]), dtype=torch.float32, device=images.device)
        with exact(images.device):
            for rows, (multiplier,) in backward_rounds(output, [leaf], targets):
                chosen = targets[rows, 0]
                result[rows] = (images[chosen] - start).float() * multiplier[chosen].float()
        self._check(result, logits, targets, output.dtype)
        return result + 0 * logits[targets[:, 0], targets[:, 1], None, None, None]  # NaN where the logit is

    def _check(self, attributions: Tensor, logits: Tensor, targets: Tensor, dtype: torch.dtype) -> None:
        """Completeness, but for rounding, as FullGrad's."""
        image, cls = targets.unbind(1)
        expected, flat = logits[image, cls] - logits[-1, cls], attributions.flatten(1)
        share = EXACT if logits.device.type == "cpu" else TENSOR_CORES
        share = share if dtype in (torch.float32, torch.float64) else HALF
        wrong = (flat.sum(1) - expected).abs() > share * (flat.abs().sum(1) + logits.abs().amax(1)[image])
        if bool(wrong.any()):
            worst = int(wrong.int().argmax())
            raise UserError(
                f"DeepLIFT is not right for this classifier: its attributions sum to {float(flat[worst].sum()):.4g} "
                f"where the logit differs by {float(expected[worst]):.4g}, because it has no rule for products of "
                "activations, attention, LayerNorm and the like; choose integrated_gradients"
            )


class Rescaled(TorchFunctionMode):
    """While it is entered, non-linear functions of a batch have the multipliers to its last row for derivatives."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        y = args[0] if args else kwargs.get("input")
        if not isinstance(y, Tensor) or not y.requires_grad:
            return func(*args, **kwargs)
        if name.rstrip("_") in ELEMENTWISE and not name.startswith("_"):
            rest = {key: value for key, value in kwargs.items() if key not in ("input", "inplace")}
            plain = getattr(F, name.rstrip("_"), None) or getattr(torch, name.rstrip("_"))
            positional = [value for value in args[1:] if not isinstance(value, bool)]
            result = rescaled(lambda values: plain(values, *positional, **rest), y)
            in_place = name.endswith("_") or kwargs.get("inplace") or True in args[1:]
            return y.copy_(result) if in_place else result
        if name in ("max_pool2d", "_max_pool2d"):
            options = {key: value for key, value in kwargs.items() if key not in ("input", "return_indices")}
            pooled, places = F.max_pool2d(y, *args[1:], **options, return_indices=True)
            return rescaled_maximum(y, pooled, places)
        if name == "amax" and y.ndim == 4:
            pooled, places = F.adaptive_max_pool2d(y, 1, return_indices=True)
            result = rescaled_maximum(y, pooled, places)
            return result if func(*args, **kwargs).ndim == 4 else result.flatten(1)
        return func(*args, **kwargs)


def rescaled(function: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """f(y) of a batch y, with the multiplier to the last row as its derivative."""
    own = y.detach()
    with torch.enable_grad():
        leaf = own.clone().requires_grad_()
        result = function(leaf)
        (slope,) = torch.autograd.grad(result.sum(), leaf)
    result = result.detach()
    difference = own - own[-1:]
    far = difference.abs() > SAME
    multiplier = torch.where(far, (result - result[-1:]) / difference.where(far, 1), slope)
    return result + multiplier * (y - own)


def rescaled_maximum(y: Tensor, pooled: Tensor, places: Tensor) -> Tensor:
    """Maxima (n, k, u, v) of windows of y (n, k, h, w) at `places`, with the rule's derivative.

    What the pool gives more than for the last row comes from the maximum of y, what it gives less from that of the last
    row; each in the shape of a multiplier of the difference at its place.
    """
    own, result = y.detach(), pooled.detach()
    difference, change = (own - own[-1:]).flatten(2), (y - own).flatten(2)
    highest = torch.maximum(result, result[-1:])
    total = result
    parts = ((highest - result[-1:], places), (result - highest, places[-1:].expand_as(places)))
    for gain, place in parts:
        flat = place.flatten(2)
        apart = difference.gather(2, flat)
        far = apart.abs() > SAME
        share = torch.where(far, gain.flatten(2) / apart.where(far, 1), 0)
        total = total + (share * change.gather(2, flat)).view_as(result)
    return total
