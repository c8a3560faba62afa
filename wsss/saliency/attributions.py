"""Attributions of a logit to input pixels: averaged gradients, and what each pixel adds to the logit."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import (
    DeferredEvidence,
    SaliencyMethod,
    by_image,
    check_call,
    evaluating,
    exact,
    finite,
)
from wsss.saliency.gradient import Gradient
from wsss.saliency.integrated import baseline_of
from wsss.saliency.noise import check_noise, noisy_copies

Reduce = Literal["positive", "absolute", "maximum"]
"""How an attribution (3, H, W) becomes a map: ReLU(sum over channels), or the sum or maximum of absolute values."""
Points = Callable[[Tensor], Iterator[tuple[Tensor, Tensor]]]
"""Of an image (3, H, W): batches of points (b, 3, H, W) and their weights (b,), which sum to 1 in all."""


@dataclass(frozen=True)
class AttributionMethod(SaliencyMethod):
    """A method that gives every value of the image a number, as large as the image: (3, H, W) for each target.

    The maps have the size of the images, (N, H, W). `attributions` gives the signed values of all channels.

    Args:
        reduce: how the channels become one map: ReLU of their sum ("positive"), or the sum ("absolute") or largest
            ("maximum") of their absolute values.
    """

    reduce: Reduce = "positive"

    def __post_init__(self) -> None:
        if self.reduce not in get_args(Reduce):
            raise UserError(f"reduce must be 'positive', 'absolute' or 'maximum', got {self.reduce!r}")

    @abstractmethod
    def attribute(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """(N, 3, H, W) float32 of checked arguments."""

    def reduced(self, attributions: Tensor) -> Tensor:
        """Maps (N, H, W) of attributions (N, 3, H, W)."""
        match self.reduce:
            case "positive":
                return attributions.sum(1).relu()
            case "absolute":
                return attributions.abs().sum(1)
            case _:
                return attributions.abs().amax(1)

    def forward(self, classifier: nn.Module, images: Tensor) -> DeferredEvidence:
        return DeferredEvidence(classifier, images, partial(self._maps, classifier, images))

    def _maps(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return self.reduced(finite(self.attribute(classifier, images, targets)))

    def attributions(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Signed attributions per channel, (N, 3, H, W) float32: what the maps are made of.

        Arguments and errors are those of a call of the method.
        """
        targets = check_call(classifier, images, targets)
        if len(targets) == 0:
            return torch.zeros((0, *images.shape[1:]), dtype=torch.float32, device=images.device)
        with torch.inference_mode(False), evaluating(classifier):
            return finite(self.attribute(classifier, images.clone().detach(), targets))


def mean_gradients(classifier: nn.Module, images: Tensor, targets: Tensor, points: Points) -> Tensor:
    """Weighted means of dz_c/dx over points around each image or on the way to it: (N, 3, H, W) float32.

    Each batch of points of an image takes one forward, and a backward pass for each of its classes.
    """
    means = torch.zeros((len(targets), *images.shape[1:]), dtype=torch.float32, device=images.device)
    for index, rows in by_image(targets):
        classes = targets[rows, 1]
        for batch, weights in points(images[index]):
            evidence = Gradient().forward(classifier, batch)
            every = torch.arange(len(batch), device=images.device)
            gradients = evidence.gradients(torch.cartesian_prod(every, classes))
            gradients = gradients.view(len(batch), -1, *gradients.shape[1:])
            with exact(images.device):
                means[rows] += torch.einsum("b,bkchw->kchw", weights.float(), gradients)
    return means


@dataclass(frozen=True)
class SmoothGrad(AttributionMethod):
    """SmoothGrad: the mean gradient over noisy copies of the image.

        M = max over channels of |mean_i dz_c/dx(x + n_i)|,    n_i ~ N(0, (noise * (max x - min x))^2)

    x is the image as the classifier gets it, z_c the logit of class c. Without noise it is `Gradient`.

    Paper: Smilkov et al., "SmoothGrad: removing noise by adding noise", ICML Workshop 2017,
    https://arxiv.org/abs/1706.03825

    Cost: for an image with K classes, `samples` forwards and K * `samples` backward passes through the network,
    `batch_size` copies at a time.

    Args:
        reduce: see `AttributionMethod`.
        samples: number of noisy copies.
        noise: standard deviation of the noise as a share of the image's range of values.
        seed: of the noise, which is the same for every image and device.
        batch_size: most copies in one forward pass.

    Example:
        >>> SmoothGrad(samples=4)(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    scale_balance = "area"

    reduce: Reduce = "maximum"
    samples: int = 25
    noise: float = 0.15
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_noise(self.samples, self.noise, self.batch_size)

    def attribute(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return mean_gradients(classifier, images, targets, self._points)

    def _points(self, image: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for copies in noisy_copies(image, self.samples, self.noise, self.seed, self.batch_size):
            yield copies, copies.new_full((len(copies),), 1 / self.samples)


@dataclass(frozen=True)
class InputXGradient(AttributionMethod):
    """Input times gradient: what each pixel adds to the logit, if the network were linear.

        M = ReLU(sum over channels of x * dz_c/dx)

    x is the image as the classifier gets it, z_c the logit of class c. The sum of all attributions is z_c only for
    ReLU networks without biases.

    Paper: Shrikumar et al., "Not Just a Black Box: Learning Important Features Through Propagating Activation
    Differences", arXiv 2016, https://arxiv.org/abs/1605.01713

    Cost: one forward, and as many backward passes as the image with the most targets has targets.

    Args:
        reduce: see `AttributionMethod`.

    Example:
        >>> InputXGradient()(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    def attribute(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        gradients = Gradient().forward(classifier, images).gradients(targets)
        return images[targets[:, 0]].float() * gradients


@dataclass(frozen=True)
class IntegratedGradients(AttributionMethod):
    """Integrated Gradients: the gradient along the way from a baseline to the image, times their difference.

        M = ReLU(sum over channels of a),    a = (x - x0) * integral over t in [0, 1] of dz_c/dx(x0 + t (x - x0))

    x is the image as the classifier gets it, x0 the baseline, z_c the logit of class c. The sum of a is
    z_c(x) - z_c(x0), but for the error of the rule.

    Paper: Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, equation 1,
    https://arxiv.org/abs/1703.01365

    Cost: for an image with K classes, `steps` forwards and K * `steps` backward passes through the network,
    `batch_size` points at a time.

    Args:
        reduce: see `AttributionMethod`.
        steps: number of points.
        rule: "gauss" (Gauss and Legendre's, as captum's default) or "midpoint".
        baseline: "mean" (the mean colour: 0 after normalisation) or "black" (with ImageNet's normalisation).
        batch_size: most points in one forward pass.

    Example:
        >>> IntegratedGradients(steps=4)(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    steps: int = 50
    rule: Literal["gauss", "midpoint"] = "gauss"
    baseline: Literal["mean", "black"] = "mean"
    batch_size: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.steps, self.batch_size) < 1:
            raise UserError(
                f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}"
            )
        if self.rule not in ("gauss", "midpoint") or self.baseline not in ("mean", "black"):
            raise UserError(
                "IntegratedGradients' rule must be 'gauss' or 'midpoint' and its baseline 'mean' or 'black', "
                f"got {self.rule!r}, {self.baseline!r}"
            )

    def attribute(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        start = baseline_of(images, self.baseline)
        return integrated_gradients(classifier, images, targets, start, self.places(), self.batch_size)

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """The points t in [0, 1] and their weights, (steps,) each."""
        if self.rule == "midpoint":
            return (np.arange(self.steps) + 0.5) / self.steps, np.full(self.steps, 1 / self.steps)
        nodes, weights = np.polynomial.legendre.leggauss(self.steps)
        return (nodes + 1) / 2, weights / 2


def integrated_gradients(
    classifier: nn.Module,
    images: Tensor,
    targets: Tensor,
    start: Tensor,
    places: tuple[np.ndarray, np.ndarray],
    batch_size: int,
) -> Tensor:
    """Attributions (N, 3, H, W) from the baseline `start` (1 or B, 3 or 1, 1, 1), with points and weights of a rule."""
    along, weights = (torch.tensor(values, dtype=torch.float64).to(images) for values in places)
    start = start.expand(len(images), *start.shape[1:])
    result = torch.zeros((len(targets), *images.shape[1:]), dtype=torch.float32, device=images.device)
    for index, rows in by_image(targets):

        def points(image: Tensor, base: Tensor = start[index]) -> Iterator[tuple[Tensor, Tensor]]:
            pairs = zip(torch.split(along, batch_size), torch.split(weights, batch_size), strict=True)
            for some, share in pairs:
                yield base + some[:, None, None, None] * (image - base), share

        own = torch.stack((torch.zeros_like(targets[rows, 1]), targets[rows, 1]), dim=1)
        means = mean_gradients(classifier, images[index : index + 1], own, points)
        result[rows] = (images[index] - start[index]).float() * means
    return result
