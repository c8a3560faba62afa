"""Saliency of any network from the scores of images that are hidden in part: occlusion and RISE."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import DeferredEvidence, SaliencyMethod, by_image, check_range, exact, finite
from wsss.saliency.integrated import baseline_of
from wsss.saliency.perturbation import Score, check_scoring, images_per_pass, masked_logits, posterior
from wsss.saliency.sess import resizer


@dataclass(frozen=True)
class Occlusion(SaliencyMethod):
    """Occlusion: how much of the logit is lost when a square of the image is hidden.

        M(pixel) = ReLU(mean over the windows w over the pixel of z_c(x) - z_c(x with w hidden))

    x is the image, z_c the logit of class c. Windows start at every `step` pixels and are cut off at the border.

    Paper: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2,
    https://arxiv.org/abs/1311.2901

    Deviation: they show the score itself at each window's place. Differences averaged over windows are those of
    captum's `Occlusion`, before the ReLU.

    Cost: 3 forwards (two of them to fold BatchNorm), and one for each window (196 at 224 x 224), whatever the number of
    classes.

    Args:
        window: side of the square, pixels.
        step: from one window to the next, pixels.
        baseline: the colour that hides: "mean" (0 after normalisation) or "black" (with ImageNet's normalisation).
        batch_size: most images in one forward pass (on a CPU fewer where they are large).

    The result has the size of the images, (N, H, W).

    Example:
        >>> Occlusion()(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    window: int = 32
    step: int = 16
    baseline: Literal["mean", "black"] = "mean"
    batch_size: int = 32

    def __post_init__(self) -> None:
        if min(self.window, self.step, self.batch_size) < 1 or self.step > self.window:
            raise UserError(
                "Occlusion needs window, step and batch_size of at least 1, and no step above the window, "
                f"got {self.window}, {self.step} and {self.batch_size}"
            )
        if self.baseline not in ("mean", "black"):
            raise UserError(f"baseline must be 'mean' or 'black', got {self.baseline!r}")

    def forward(self, classifier: nn.Module, images: Tensor) -> DeferredEvidence:
        return DeferredEvidence(classifier, images, partial(self._maps, classifier, images))

    def _maps(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        maps = torch.zeros((len(targets), *images.shape[-2:]), dtype=torch.float32, device=images.device)
        hidden = baseline_of(images, self.baseline)[0]
        down, across = (self._windows(side).to(images.device) for side in images.shape[-2:])
        size = images_per_pass(self.batch_size, images)
        # The first row hides nothing.
        rows = torch.cat((torch.zeros_like(down[:1]), down.repeat_interleave(len(across), 0)))
        columns = torch.cat((torch.zeros_like(across[:1]), across.repeat(len(down), 1)))
        for index, some in by_image(targets):
            masks = (
                1 - row[:, :, None] * column[:, None]
                for row, column in zip(torch.split(rows, size), torch.split(columns, size), strict=True)
            )
            logits = masked_logits(classifier, images[index], masks, hidden)
            check_range(targets[some, 1], logits.shape[1], "class")
            with exact(maps.device):
                lost = (logits[:1] - logits)[1:, targets[some, 1]].view(len(down), len(across), -1)
                total = torch.einsum("dh,aw,dak->khw", down, across, lost)
                maps[some] = (total / (down.sum(0)[:, None] * across.sum(0))).relu()
        return finite(maps)

    def _windows(self, side: int) -> Tensor:
        """(windows, side), 1 where a window is, along one side of the image."""
        count = max(0, math.ceil((side - self.window) / self.step)) + 1
        start = self.step * torch.arange(count)[:, None]
        places = torch.arange(side)
        return ((places >= start) & (places < start + self.window)).to(torch.float32)


@dataclass(frozen=True)
class RISE(SaliencyMethod):
    """RISE: the mean of random masks, weighted by the scores of the images that they leave.

        M = 1 / (N p) sum_i p_c(x * M_i) M_i

    x is the image, p_c the posterior of class c. A mask M_i is a grid of `cells` x `cells` values, each 1 with
    probability p and else 0, enlarged bilinearly to (cells + 1) * ceil(side / cells) and cut out at a random place.

    Paper: Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018,
    equations 5 and 6, https://arxiv.org/abs/1806.07421

    Cost: N forwards for all classes, and two to fold BatchNorm. Only `batch_size` masks exist at a time. On a CPU the
    masked images are channels_last, as of `ScoreCAM`.

    Args:
        masks: N; the authors take 4000 for VGG16 and 8000 for ResNet-50.
        cells: cells of a mask along each side.
        keep: p.
        score: "softmax" for single-label classifiers, as in the paper, "sigmoid" for multi-label ones.
        seed: of the masks, which are the same for every image, device and batch size.
        batch_size: most masked images in one forward pass (on a CPU fewer where they are large).

    The result has the size of the images, (N, H, W).

    Example:
        >>> RISE(masks=20)(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    masks: int = 4000
    cells: int = 7
    keep: float = 0.5
    score: Score = "sigmoid"
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_scoring(self.score, self.batch_size)
        if min(self.masks, self.cells) < 1 or not 0 < self.keep <= 1:
            raise UserError(
                "RISE needs masks and cells of at least 1 and keep in (0, 1], "
                f"got {self.masks}, {self.cells} and {self.keep}"
            )

    def forward(self, classifier: nn.Module, images: Tensor) -> DeferredEvidence:
        return DeferredEvidence(classifier, images, partial(self._maps, classifier, images))

    def _maps(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        maps = torch.zeros((len(targets), *images.shape[-2:]), dtype=torch.float32, device=images.device)
        for index, rows in by_image(targets):
            scores = posterior(masked_logits(classifier, images[index], self.batches(images)), self.score)
            check_range(targets[rows, 1], scores.shape[1], "class")
            with exact(maps.device):
                start = 0
                for masks in self.batches(images):  # made again, which takes less than to keep them
                    weights = scores[start : start + len(masks), targets[rows, 1]]
                    maps[rows] += torch.einsum("nk,nhw->khw", weights, masks) / (self.masks * self.keep)
                    start += len(masks)
        return finite(maps)

    def batches(self, images: Tensor) -> Iterator[Tensor]:
        """The masks (b, H, W) in [0, 1] for images (..., H, W), batch by batch."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.rand((self.masks, self.cells**2 + 2), generator=generator, dtype=torch.float32)
        drawn = drawn.to(images.device)
        for some in torch.split(drawn, images_per_pass(self.batch_size, images)):
            yield self._masks(some, images)

    def _masks(self, drawn: Tensor, images: Tensor) -> Tensor:
        """The masks (b, H, W) of random numbers in [0, 1), (b, 2 + cells * cells): place and grid."""
        grid = (drawn[:, 2:] < self.keep).float().view(-1, self.cells, self.cells)
        with exact(images.device):
            down, across = (self._cut(side, drawn[:, axis]) for axis, side in enumerate(images.shape[-2:]))
            return down @ grid @ across.mT

    def _cut(self, side: int, place: Tensor) -> Tensor:
        """Bilinear weights (b, side, cells) of `side` pixels that begin at places (b,) in [0, 1) of the first cell."""
        cell = math.ceil(side / self.cells)
        enlarged = resizer(self.cells, (self.cells + 1) * cell, place.device)
        start = (place * cell).long().clamp(max=cell - 1)
        return enlarged[start[:, None] + torch.arange(side, device=place.device)]
