"""Full-gradient saliency: FullGrad, and its average over noisy images."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torchvision.ops import FrozenBatchNorm2d

from wsss.errors import UserError
from wsss.saliency.base import (
    DeferredEvidence,
    SaliencyMethod,
    backward_rounds,
    by_image,
    check_logits,
    check_range,
    evaluating,
    exact,
    finite,
)
from wsss.saliency.noise import check_noise, noisy_copies

Psi = Literal["tensor", "per_channel"]
EPSILON: dict[Psi, float] = {"tensor": 1e-6, "per_channel": 1e-7}
"""In the denominator of psi: the authors' code, `FullGrad._postProcess`, and grad-cam's, `scale_cam_image`."""

NORMS = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)
BIASED = (nn.modules.conv._ConvNd, nn.Linear, *NORMS)
UNKNOWN = (nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm, nn.LocalResponseNorm)
"""Layers whose bias is known, and those that normalise by statistics of their own input."""

EXACT, TENSOR_CORES, HALF = 1e-4, 4e-3, 3e-2
"""By how much the terms may miss the logit, see `FullGradient.check`: in float32 on CPUs, on other devices (where a
float32 convolution may round to TF32's 11 bits), and where half precision is involved. On ResNets, RegNetX, ShuffleNet,
Inception and VGG16 the largest of several hundred was 2e-6 in float32 and 9e-3 under bf16 autocast. The median on
MobileNetV2 (clipped ReLUs) and RegNetY (squeeze-excitation) was 2e-2, on EfficientNet 2e-1."""


@dataclass(frozen=True)
class FullGrad(SaliencyMethod):
    """FullGrad: the input term and the bias terms of a logit, each made a map, and summed.

        M = sum_terms sum_channels up(psi(|term|))

    The terms are the input term x * dz_c/dx and, for each bias b of a convolution or batch normalisation,
    b * dz_c/d(output). x is the image, z_c the logit of class c. The bias of batch normalisation is its effective one,
    beta - mean * gamma / sqrt(variance + epsilon). The biases of linear layers have no position and so no map. Together
    with them, the terms of a ReLU network sum to z_c exactly.

    psi is min-max normalisation, `up` bilinear resizing to the image. The public codes differ in both:

    - "tensor" (the authors'): psi over each term's whole (channels, h, w), `up` with aligned corners.
    - "per_channel" (grad-cam's): psi over each channel, `up` with half-pixel centres.

    Paper: Srinivas and Fleuret, "Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019,
    equation 5, https://arxiv.org/abs/1905.00780

    Deviations: a term is paired with its gradient by the output of its module, not by order. So modules may run in
    any order and several times. A constant term is 0. Because psi is affine and `up` linear, channels and layers of
    one size are summed first and resized once, which changes nothing.

    Where the input of a ReLU is within rounding of 0, its gradient may depend on the rest of the batch. One such flip
    changes normalised maps by 1e-3 to 1e-2. It was seen in 2 of 18 random ResNet-18s on noise, on no photo with
    ImageNet's weights, and not in float64.

    Cost: one forward through the whole network, and as many backward passes as the image with the most classes has.
    Only gradients of outputs are computed, none of parameters.

    Args:
        psi: see above.
        eps: added to the denominator of psi. None: as in the public code, 1e-6 for "tensor" and 1e-7 for
            "per_channel". With 0 the map does not depend on the scale of the logit.

    The result has the size of the images, (N, H, W), and is non-negative.

    Example:
        >>> FullGrad()(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    psi: Psi = "tensor"
    eps: float | None = None

    def __post_init__(self) -> None:
        check_psi(self.psi, self.eps)

    def forward(self, classifier: nn.Module, images: Tensor) -> "FullGradEvidence":
        return FullGradEvidence(full_gradient(classifier, images), self.psi, self.eps)


@dataclass(frozen=True)
class SmoothFullGrad(SaliencyMethod):
    """Smooth-FullGrad: FullGrad of the terms summed over noisy copies of the image.

        M = sum_terms sum_channels up(psi(|sum_i term(x + n_i)|)),    n_i ~ N(0, (noise * (max x - min x))^2)

    x is the image, with max and min over its own values; terms, psi and `up` are those of `FullGrad`. The signed
    terms are summed over the copies i before psi. With one sample and no noise it is FullGrad.

    Paper: Srinivas and Fleuret, "Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019,
    https://arxiv.org/abs/1905.00780; the smoothing is that of the authors' code.

    Deviation: the authors' code also sums the three channels of the input term before psi. Here they stay separate, as
    in FullGrad.

    Cost: for an image with K classes, `samples` forwards and K * `samples` backward passes through the whole network,
    `batch_size` copies at a time. Memory also holds the summed terms of the K classes of one image.

    Args:
        samples: number of noisy copies.
        noise: standard deviation of the noise as a share of the image's range of values.
        psi: see `FullGrad`.
        eps: see `FullGrad`.
        seed: of the noise, which is the same for every image, device and batch size. The global random
            state is neither read nor changed.
        batch_size: most copies in one forward pass.

    The result has the size of the images, (N, H, W), and is non-negative.

    Example:
        >>> SmoothFullGrad(samples=4)(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    samples: int = 25
    noise: float = 0.15
    psi: Psi = "tensor"
    eps: float | None = None
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_psi(self.psi, self.eps)
        check_noise(self.samples, self.noise, self.batch_size)

    def forward(self, classifier: nn.Module, images: Tensor) -> DeferredEvidence:
        return DeferredEvidence(classifier, images, partial(self._maps, classifier, images))

    def _maps(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        maps = torch.zeros((len(targets), *images.shape[-2:]), dtype=torch.float32, device=images.device)
        for index, rows in by_image(targets):
            totals = self._total_terms(classifier, images[index], targets[rows, 1])
            with exact(maps.device):
                for row, terms in zip(rows.tolist(), totals, strict=True):
                    maps[row] = combine((term[None] for term in terms), self.psi, self.eps, maps.shape[-2:])[
                        0
                    ]
        return finite(maps)

    def _total_terms(self, classifier: nn.Module, image: Tensor, classes: Tensor) -> list[list[Tensor]]:
        """For each class its terms (channels, h, w), the sums over the noisy copies of the image."""
        totals: list[list[Tensor]] = [[] for _ in classes]
        for copies in noisy_copies(image, self.samples, self.noise, self.seed, self.batch_size):
            gradient = full_gradient(classifier, copies)
            check_range(classes, gradient.output.shape[1], "class")
            every = torch.arange(len(copies), device=classes.device)
            # Round r differentiates the r-th class of all copies at once.
            for place, (_, terms) in enumerate(gradient.rounds(torch.cartesian_prod(every, classes))):
                sums = [term.sum(0) for term in terms]
                earlier = totals[place]
                totals[place] = [a + b for a, b in zip(earlier, sums, strict=True)] if earlier else sums
        return totals


class Tap(NamedTuple):
    """A bias, and the place in the graph where it was added."""

    bias: Tensor
    """(channels,), float32."""
    edge: GradientEdge
    """Stands for the module's output as it was, also if a later module has overwritten it in place."""
    channels_last: bool
    """Whether the channels are the last dimension of the output, not the second."""


@dataclass(frozen=True)
class FullGradient:
    """One forward pass over images, whose logits can be decomposed into an input term and bias terms."""

    images: Tensor
    output: Tensor
    taps: tuple[Tap, ...]

    def rounds(self, targets: Tensor) -> Iterator[tuple[Tensor, Iterator[Tensor]]]:
        """For each round of `backward_rounds`, the rows of `targets` and the signed terms of all images.

        The terms are the input's (B, 3, H, W) and one for each bias: (B, channels, h, w), or (B, channels) for a linear
        layer. They are made one at a time. After the last one their sum is checked.

        Raises:
            UserError: see `check`.
        """
        inputs = [get_gradient_edge(self.images), *(tap.edge for tap in self.taps)]
        for rows, gradients in backward_rounds(self.output, inputs, targets):
            yield rows, self._checked(gradients, targets[rows])

    def _checked(self, gradients: Sequence[Tensor], targets: Tensor) -> Iterator[Tensor]:
        total = size = self.output.new_zeros(len(self.output), dtype=torch.float32)
        for term in self._terms(gradients):
            part = term.flatten(1).sum(1)
            total, size = total + part, size + part.abs()
            yield term
        self.check(total, size, targets, {gradient.dtype for gradient in gradients})

    def _terms(self, gradients: Sequence[Tensor]) -> Iterator[Tensor]:
        yield self.images.detach().float() * gradients[0].float()
        for tap, output_gradient in zip(self.taps, gradients[1:], strict=True):
            gradient = output_gradient.movedim(-1, 1) if tap.channels_last else output_gradient
            yield tap.bias.view(-1, *(1,) * (gradient.ndim - 2)) * gradient.float()

    def check(self, total: Tensor, size: Tensor, targets: Tensor, dtypes: set[torch.dtype]) -> None:
        """Completeness: the terms sum to the logit, but for rounding.

        Rounding is measured against the sizes of the terms and of the logits, because these cancel.

        Args:
            total: (B,) sum of all terms.
            size: (B,) sum of the terms' absolute sums.
            targets: (n, 2) the targets that the terms are for, at most one an image.
            dtypes: of the gradients.

        Raises:
            UserError: the sum is not the logit.
        """
        logits = self.output.detach().float()
        image, cls = targets.unbind(1)
        missing = (total[image] - logits[image, cls]).abs()
        precise = EXACT if logits.device.type == "cpu" else TENSOR_CORES
        half = not {torch.bfloat16, torch.float16}.isdisjoint(dtypes | {self.output.dtype})
        wrong = missing > (HALF if half else precise) * (size + logits.abs().amax(1))[image]
        if bool(wrong.any()):
            worst = int(missing.where(wrong, 0).argmax())
            raise UserError(
                f"FullGrad is not right for this classifier: its terms sum to {float(total[image[worst]]):.4g} where "
                f"the logit is {float(logits[image[worst], cls[worst]]):.4g}, because it sees only torch's own "
                "convolutions, linear layers, BatchNorm and ReLUs (no SiLU, ReLU6, squeeze-excitation, final sigmoid, "
                "own functions or layers that add something, traced code); choose another method, such as gradcam"
            )


@dataclass(frozen=True)
class FullGradEvidence:
    """A forward pass with its whole graph."""

    gradient: FullGradient
    psi: Psi
    eps: float | None

    @property
    def logits(self) -> Tensor:
        return self.gradient.output.detach().float()

    def maps(self, targets: Tensor) -> Tensor:
        check_range(targets[:, 1], self.gradient.output.shape[1], "class")
        size = self.gradient.images.shape[-2:]
        maps = torch.zeros((len(targets), *size), dtype=torch.float32, device=targets.device)
        with exact(maps.device):
            for rows, terms in self.gradient.rounds(targets):
                maps[rows] = combine(terms, self.psi, self.eps, size)[targets[rows, 0]]
        return finite(maps)


def full_gradient(classifier: nn.Module, images: Tensor) -> FullGradient:
    """Runs the classifier over images (B, 3, H, W) and keeps its graph and the places of its biases."""
    leaf = images.detach().clone().requires_grad_()
    with evaluating(classifier), torch.enable_grad(), tapped_biases(classifier) as taps:
        output = classifier(leaf)
    check_logits(output, images)
    if not output.requires_grad:
        raise UserError("the classifier gives no full gradient: its logits do not depend on the image")
    used = nodes_below(output)
    return FullGradient(leaf, output, tuple(tap for tap in taps if tap.edge.node in used))


@contextmanager
def tapped_biases(classifier: nn.Module) -> Iterator[list[Tap]]:
    """Collects a `Tap` whenever a module with a bias runs. The hooks are removed when the block ends."""
    taps: list[Tap] = []

    def tap(module: nn.Module, inputs: object, output: Tensor) -> None:
        bias = effective_bias(module)
        if bias is not None and output.requires_grad:
            taps.append(Tap(bias, get_gradient_edge(output), isinstance(module, nn.Linear)))

    handles = [m.register_forward_hook(tap) for m in classifier.modules() if isinstance(m, BIASED + UNKNOWN)]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def effective_bias(module: nn.Module) -> Tensor | None:
    """What a layer adds to a linear function of its input: (channels,) float32, or None if nothing.

    Raises:
        UserError: the layer normalises by statistics of its own input, so the network is not piecewise linear.
    """
    if isinstance(module, UNKNOWN):
        raise UserError(
            f"FullGrad has no bias for {type(module).__name__}, which normalises by statistics of its input: the "
            "network is not piecewise linear; choose another method"
        )
    if not isinstance(module, NORMS):
        bias = module.bias
        return bias.detach().float() if isinstance(bias, Tensor) else None
    if module.running_mean is None or module.running_var is None:
        raise UserError(
            "FullGrad needs batch normalisation with running statistics: with those of the batch "
            "the network is not piecewise linear"
        )
    shift = -module.running_mean.float() / (module.running_var.float() + module.eps).sqrt()
    if module.weight is not None:
        shift = shift * module.weight.detach().float()
    return shift if module.bias is None else shift + module.bias.detach().float()


def nodes_below(output: Tensor) -> set[torch.autograd.graph.Node]:
    """All nodes of the graph that `output` depends on. Autograd refuses the gradient for any other node."""
    found: set[torch.autograd.graph.Node] = set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return found


def combine(terms: Iterable[Tensor], psi: Psi, eps: float | None, size: Sequence[int]) -> Tensor:
    """sum_terms sum_channels up(psi(|term|)): signed terms (B, channels, h, w) -> (B, H, W) of `size`.

    Terms without positions, (B, channels), are left out.
    """
    eps = EPSILON[psi] if eps is None else eps
    by_size: dict[torch.Size, Tensor] = {}
    for term in terms:
        if term.ndim == 4:
            summed = rescaled_sum(term.abs(), psi, eps)
            earlier = by_size.get(summed.shape)
            by_size[summed.shape] = summed if earlier is None else earlier + summed
    resized = [
        F.interpolate(maps[:, None], size=tuple(size), mode="bilinear", align_corners=psi == "tensor")[:, 0]
        for maps in by_size.values()
    ]
    return torch.stack(resized).sum(0)


def rescaled_sum(magnitudes: Tensor, psi: Psi, eps: float) -> Tensor:
    """sum_channels psi(magnitudes): (B, channels, h, w) -> (B, h, w). A constant tensor (channel) gives 0."""
    if psi == "tensor":
        low, high = magnitudes.amin((1, 2, 3)), magnitudes.amax((1, 2, 3))
        # Summed first, then rescaled: the same, with fewer passes over the channels.
        shifted = magnitudes.sum(1) - magnitudes.shape[1] * low[:, None, None]
        return shifted * inverse(high - low, eps)[:, None, None]
    low, high = magnitudes.amin((2, 3), keepdim=True), magnitudes.amax((2, 3), keepdim=True)
    return ((magnitudes - low) * inverse(high - low, eps)).sum(1)


def inverse(span: Tensor, eps: float) -> Tensor:
    """1 / (span + eps), 0 where the span is 0."""
    return torch.where(span > 0, 1 / torch.where(span > 0, span + eps, 1), 0)


def check_psi(psi: str, eps: float | None) -> None:
    """UserError unless psi is known and eps is a number from 0."""
    if psi not in ("tensor", "per_channel"):
        raise UserError(f"psi must be 'tensor' or 'per_channel', got {psi!r}")
    if eps is not None and not 0 <= eps < math.inf:
        raise UserError(f"eps must be None or at least 0, got {eps}")
