"""Masks that are optimised: extremal and meaningful perturbation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import (
    DeferredEvidence,
    SaliencyMethod,
    as_tuple,
    by_image,
    check_range,
    evaluating,
    exact,
    finite,
    gaussian_blur,
)
from wsss.saliency.perturbation import Score, check_scoring, posterior, score_batches

Loss = Callable[[Tensor, int], Tensor]
"""Of parameters (n, 1, h, w) and the number of the step: a scalar."""
Optimiser = Callable[[list[Tensor]], torch.optim.Optimizer]

COLDNESS = 20.0  # of the smooth maximum, as TorchRay's


def optimised(
    start: Tensor, optimiser: Callable[[list[Tensor]], torch.optim.Optimizer], steps: int, loss: Loss
) -> Tensor:
    """Parameters in [0, 1] after so many steps of an optimiser that makes the loss smaller."""
    found = start.detach().clone().requires_grad_()
    stepping = optimiser([found])
    for step in range(steps):
        with torch.enable_grad():
            (found.grad,) = torch.autograd.grad(loss(found, step), found)
        stepping.step()
        with torch.no_grad():
            found.clamp_(0, 1)
    return found.detach()


@dataclass(frozen=True)
class ExtremalPerturbation(SaliencyMethod):
    """Extremal perturbation: for several areas, the smooth mask of that area which keeps the logit largest, summed.

        M = blur(sum_a m_a),    m_a = argmax over m of z_c(m . x) - 300 * 1.0035^t mean((sort(m) - r_a)^2)

    m . x blurs the image where m is small (sigma 20 (1 - m) pixels, interpolated between 8 levels). r_a is 0 for the
    share 1 - a of the values and 1 for the others. A mask is the smooth maximum of kernels k(|u - u_i| / 21) m_i around
    points u_i, 7 pixels from each other, k(d) = exp(-2 max(d - 0.5, 0)^2); the m_i, in [0, 1], start at 1. t is the
    step of stochastic gradient descent with momentum and dampening 0.9 and a learning rate of 0.01. In every
    other step the image is mirrored. All constants are TorchRay's.

    Paper: Fong, Patrick and Vedaldi, "Understanding Deep Networks via Extremal Perturbations and Smooth Masks", ICCV
    2019, https://arxiv.org/abs/1910.08485

    Cost: for each target `steps` forward and backward passes of len(areas) images. Memory: about 100 MB for each mask
    of a pass at 224 x 224, beside the network's.

    Args:
        areas: a, shares of the image in (0, 1].
        steps: of the optimiser.
        smooth: sigma of the last blur as a share of the shorter side; 0: none.
        batch_size: most masks in one pass.

    The result has the size of the images, (N, H, W).

    Example:
        >>> ExtremalPerturbation(areas=(0.1,), steps=2)(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    areas: tuple[float, ...] = (0.025, 0.05, 0.1, 0.2)
    steps: int = 800
    smooth: float = 0.09
    batch_size: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "areas", as_tuple(self.areas, "areas", "(0.05, 0.1)"))
        if not self.areas or not all(0 < area <= 1 for area in self.areas):
            raise UserError(f"areas must be one or more shares in (0, 1], got {self.areas}")
        if min(self.steps, self.batch_size) < 1 or not 0 <= self.smooth < math.inf:
            raise UserError("steps and batch_size must be at least 1, and smooth at least 0")

    def forward(self, classifier: nn.Module, images: Tensor) -> DeferredEvidence:
        return DeferredEvidence(classifier, images, partial(self._maps, classifier, images))

    def _maps(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        size = (images.shape[-2], images.shape[-1])
        maps = torch.zeros((len(targets), *size), dtype=torch.float32, device=images.device)
        generator = SmoothMasks.of(size, images.device)
        areas = torch.tensor(self.areas, dtype=torch.float32, device=images.device)
        for index, rows in by_image(targets):
            jobs = torch.cartesian_prod(rows, torch.arange(len(areas), device=images.device))
            with exact(images.device):
                pyramid = blur_pyramid(images[index].float())
            for some in torch.split(jobs, self.batch_size):
                classes = targets[some[:, 0], 1]
                masks = self._found(classifier, images.dtype, pyramid, generator, classes, areas[some[:, 1]])
                maps.index_add_(0, some[:, 0], masks)
        with exact(images.device):
            maps = finite(maps)
            return zero_blur(maps[:, None], self.smooth * min(size))[:, 0] if self.smooth else maps

    def _found(
        self,
        classifier: nn.Module,
        dtype: torch.dtype,
        pyramid: Tensor,
        generator: "SmoothMasks",
        classes: Tensor,
        areas: Tensor,
    ) -> Tensor:
        """The masks (n, H, W) of n (class, area) pairs of one image."""
        count = math.prod(generator.outer)
        hidden = (count * (1 - areas)).long()[:, None]
        wanted = (torch.arange(count, device=areas.device) >= hidden).float()

        def loss(parameters: Tensor, step: int) -> Tensor:
            with exact(areas.device):
                inner, outer = generator.masks(parameters)
                seen = blended(pyramid, inner).to(dtype)
            output = classifier(seen.flip(-1) if step % 2 == 0 else seen)
            check_range(classes, output.shape[1], "class")
            with exact(areas.device):
                missed = (outer.flatten(1).sort(1).values - wanted).square().mean(1)
                kept = output.float().gather(1, classes[:, None])[:, 0]
                total: Tensor = (300 * 1.0035**step * missed - kept).sum()
                return total

        start = torch.ones((len(classes), 1, *generator.grid), dtype=torch.float32, device=areas.device)
        descent = partial(torch.optim.SGD, lr=0.01, momentum=0.9, dampening=0.9)
        with evaluating(classifier):
            found = optimised(start, descent, self.steps, loss)
        with exact(areas.device), torch.no_grad():
            return generator.masks(found)[0]


@dataclass(frozen=True)
class SmoothMasks:
    """Masks as smooth maxima of kernels around the points of a grid, as TorchRay's `MaskGenerator`."""

    size: tuple[int, int]
    grid: tuple[int, int]
    """Points along the height and the width."""
    outer: tuple[int, int]
    """Size of the masks with a margin, which counts for their area."""
    kernel: Tensor
    """(1, neighbours, *outer): of each pixel's distance to the points around it."""
    step: int
    sigma: int

    @classmethod
    def of(cls, size: tuple[int, int], device: torch.device, step: int = 7, sigma: int = 21) -> "SmoothMasks":
        """Masks for images of (H, W) pixels."""
        radius, padding = _radius(step, sigma)
        grid = (math.ceil(size[0] / step), math.ceil(size[1] / step))
        outer = tuple(step * (points + 2 * padding - 2 * radius) - step + 1 for points in grid)
        offsets = torch.arange(2 * radius + 1, dtype=torch.float32, device=device) - padding
        rows, columns = (torch.arange(side, dtype=torch.float32, device=device) for side in outer)
        away = [
            (pixels - (sigma + step * ((pixels / step).floor() + offsets[:, None]))).square()
            for pixels in (rows, columns)
        ]
        distance = (away[0][:, None, :, None] + away[1][None, :, None, :]).sqrt() / sigma
        kernel = torch.exp(-2 * (distance - 0.5).clamp(min=0).square()).flatten(0, 1)[None]
        return cls(size, grid, (outer[0], outer[1]), kernel, step, sigma)

    def masks(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Masks (n, H, W), and with their margin (n, *outer), of values (n, 1, *grid) at the points."""
        radius, padding = _radius(self.step, self.sigma)
        around = F.unfold(parameters, 2 * radius + 1, padding=padding)
        cells = [(side + self.step - 1) // self.step for side in self.outer]
        around = around.view(len(parameters), -1, *cells)
        spread = around.repeat_interleave(self.step, 2).repeat_interleave(self.step, 3)
        values = self.kernel * spread[..., : self.outer[0], : self.outer[1]]
        outer = (values * (COLDNESS * values).softmax(1)).sum(1).clamp(0, 1)
        return outer[:, self.sigma : self.sigma + self.size[0], self.sigma : self.sigma + self.size[1]], outer


def _radius(step: int, sigma: int) -> tuple[int, int]:
    """Of the neighbourhood of a pixel, and of the padding around the grid, in points."""
    return 1 + math.ceil(sigma / step), 1 + math.ceil(2 * sigma / step)


def blur_pyramid(image: Tensor, levels: int = 8, sigma: float = 20.0) -> Tensor:
    """An image (3, H, W) blurred less and less: (levels, 3, H, W), the last one sharp."""
    blurs = [sigma * (1 - level / (levels - 1)) for level in range(levels)]
    return torch.cat([zero_blur(image[None], blur) if blur else image[None] for blur in blurs])


def blended(pyramid: Tensor, masks: Tensor) -> Tensor:
    """Images (n, 3, H, W) from a pyramid (levels, 3, H, W), interpolated at masks (n, H, W) from 0, its start, to 1."""
    place = masks * (len(pyramid) - 1)
    lower = place.detach().floor().long()
    share = (place - lower)[:, None]
    stack = pyramid.expand(len(masks), *pyramid.shape)

    def level(number: Tensor) -> Tensor:
        index = number.clamp(max=len(pyramid) - 1)[:, None, None].expand(-1, 1, *pyramid.shape[1:])
        return stack.gather(1, index)[:, 0]

    return (1 - share) * level(lower) + share * level(lower + 1)


def zero_blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of images (n, c, H, W), radius 4 sigma, with zeros beyond the border."""
    radius = math.ceil(4 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    flat = images.flatten(0, 1)[:, None]
    flat = F.conv2d(flat, kernel.view(1, 1, -1, 1), padding=(radius, 0))
    return F.conv2d(flat, kernel.view(1, 1, 1, -1), padding=(0, radius)).view(images.shape)


@dataclass(frozen=True)
class MeaningfulPerturbation(SaliencyMethod):
    """Meaningful perturbation: the smallest smooth region that, when blurred, takes the score away.

        M = 1 - up(m),    m = argmin p_c(x * up(m) + blur(x) * (1 - up(m))) + size sum |1 - m| + smooth TV_3(m)

    m has a value in [0, 1] for every 8 x 8 pixels; `up` is bilinear resizing to the image and a Gaussian of sigma 5. x
    is the image, blur a Gaussian of sigma 10, p_c the posterior of class c, TV_3 the sum over places of |gradient of
    m|^3. In each step of Adam (rate 0.1) the image is shifted by up to 4 pixels. m starts as a disc in the middle: the
    smallest of twelve that takes 99 % of the score that blurring all of the image takes.

    Paper: Fong and Vedaldi, "Interpretable Explanations of Black Boxes by Meaningful Perturbation", ICCV 2017, section
    4.3, https://arxiv.org/abs/1704.03296

    Cost: for each target `steps` forward and backward passes, and 14 forwards for the start.

    Args:
        steps: of the optimiser.
        size: weight of the region's size.
        smooth: weight of its total variation.
        score: p: "softmax" for single-label classifiers, as in the paper, "sigmoid" for multi-label ones.
        seed: of the shifts, which are the same for every image and device.
        batch_size: most masks in one pass; they may be of several classes of an image.

    The result has the size of the images, (N, H, W), values in [0, 1].

    Example:
        >>> MeaningfulPerturbation(steps=2)(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    steps: int = 300
    size: float = 1e-4
    smooth: float = 1e-2
    score: Score = "sigmoid"
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_scoring(self.score, self.batch_size)
        if self.steps < 1 or not 0 <= self.size < math.inf or not 0 <= self.smooth < math.inf:
            raise UserError("steps must be at least 1, and size and smooth at least 0")

    def forward(self, classifier: nn.Module, images: Tensor) -> DeferredEvidence:
        return DeferredEvidence(classifier, images, partial(self._maps, classifier, images))

    def _maps(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        maps = torch.zeros((len(targets), *images.shape[-2:]), dtype=torch.float32, device=images.device)
        for index, rows in by_image(targets):
            for some in torch.split(rows, self.batch_size):
                maps[some] = self._found(classifier, images[index], targets[some, 1])
        return finite(maps)

    def _found(self, classifier: nn.Module, image: Tensor, classes: Tensor) -> Tensor:
        """Maps (n, H, W) of n classes of an image (3, H, W)."""
        height, width = image.shape[-2:]
        generator = torch.Generator().manual_seed(self.seed)
        shifts = torch.randint(0, 5, (self.steps, 2), generator=generator).tolist()
        with exact(image.device):
            sharp = image.float()
            weak = gaussian_blur(sharp, 61, 10.0)

        def mixed(masks: Tensor) -> Tensor:
            with exact(image.device):
                mask = enlarged(masks, (height, width))[:, None]
                return (sharp * mask + weak * (1 - mask)).to(image.dtype)

        def loss(masks: Tensor, step: int) -> Tensor:
            output = classifier(mixed(masks).roll(shifts[step], (2, 3)))
            with exact(image.device):
                score = posterior(output.float(), self.score).gather(1, classes[:, None]).sum()
                return score + self.size * (1 - masks).abs().sum() + self.smooth * variation(masks)

        discs = circles(math.ceil(height / 8), math.ceil(width / 8), image.device)
        with evaluating(classifier):
            logits = score_batches(classifier, [mixed(discs)], image.dtype)
            check_range(classes, logits.shape[1], "class")
            scores = posterior(logits, self.score)[:, classes]
            enough = scores <= scores[-1:] + 0.01 * (scores[:1] - scores[-1:])
            start = discs[enough.int().argmax(0)] + 0 * scores[0][:, None, None, None]  # NaN stays NaN
            found = optimised(start, partial(torch.optim.Adam, lr=0.1), self.steps, loss)
        with exact(image.device):
            return 1 - enlarged(found, (height, width))


def circles(height: int, width: int, device: torch.device) -> Tensor:
    """Masks (14, 1, h, w): of the whole image, of all but larger and larger discs in the middle, and of nothing."""
    rows, columns = (torch.arange(side, device=device) - (side - 1) / 2 for side in (height, width))
    distance = (rows[:, None].square() + columns.square()).sqrt() / max(1, min(height, width) / 2)
    radii = torch.linspace(0.1, 1.2, 12, dtype=torch.float32, device=device)
    discs = (distance > radii[:, None, None]).float()
    return torch.cat((torch.ones_like(discs[:1]), discs, torch.zeros_like(discs[:1])))[:, None]


def enlarged(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (n, 1, h, w), bilinear at (H, W), then blurred: (n, H, W)."""
    return gaussian_blur(F.interpolate(masks, size=size, mode="bilinear", align_corners=False)[:, 0], 31, 5.0)


def variation(masks: Tensor) -> Tensor:
    """sum over places of |gradient|^3 of masks (n, 1, h, w)."""
    down, across = masks[:, :, 1:, :-1] - masks[:, :, :-1, :-1], masks[:, :, :-1, 1:] - masks[:, :, :-1, :-1]
    return (down.square() + across.square()).pow(1.5).sum()
