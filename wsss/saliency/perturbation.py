"""Saliency from the scores of masked images: Score-CAM and Group-CAM."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import (
    SaliencyMethod,
    by_image,
    check_logits,
    check_range,
    evaluating,
    exact,
    fast_layout,
    finite,
    gaussian_blur,
    normalize,
)
from wsss.saliency.cam import GradCAM, LayerEvidence, weighted_activation
from wsss.saliency.folding import folded
from wsss.saliency.layers import tapped

Score = Literal["sigmoid", "softmax"]

CPU_PIXELS = 2**20
"""Of a forward pass on a CPU: beyond about that many the activations leave its caches (10 to 15 % slower at 448)."""


@dataclass(frozen=True)
class ScoreCAM(SaliencyMethod):
    """Score-CAM: activations weighted by the score of the image that they mask; no gradients.

        M = ReLU(sum_k w_k A_k)

    A_k is channel k of the activation at `layer`. Upsampled to the image and min-max normalised it is a mask M_k. The
    masked image x * M_k is scored, and the weight w_k follows from the score of the class c. The two public forms
    differ in more than the weights:

    - "posterior" (the authors' code): w_k is the posterior p_c(x * M_k). Constant channels are skipped: w_k = 0.
    - "channel_softmax" (grad-cam's): w_k is the softmax over the channels of the logits z_c(x * M_k), and masks are
      upsampled with aligned corners. A constant channel scores the black image.

    Paper: Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", CVPR
    Workshops 2020, equations 5 to 8, https://arxiv.org/abs/1910.01279

    Deviation from the paper: it subtracts the score of a baseline image. Neither code does, and neither do we.

    Cost: three forwards per image (two of them to fold BatchNorm into convolutions, see `folded`), and one for each
    channel that is not constant. They serve all classes of the image. Only `batch_size` masks and masked images exist
    at a time. On a CPU the masked images are channels_last, which makes convolutions 1.3 to 1.9 times as fast
    (ResNet-18, ResNet-50, VGG16).

    Args:
        layer: see `LayerMethod`.
        weights: see above.
        score: p: "sigmoid" for multi-label classifiers, "softmax" for single-label ones; for "posterior".
        batch_size: most masked images in one forward pass (on a CPU fewer where they are large).

    Example:
        >>> ScoreCAM(layer="layer4")(classifier, images, targets).shape
        torch.Size([2, 2, 2])
    """

    layer: str | None = None
    weights: Literal["posterior", "channel_softmax"] = "posterior"
    score: Score = "sigmoid"
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.weights not in ("posterior", "channel_softmax"):
            raise UserError(f"weights must be 'posterior' or 'channel_softmax', got {self.weights!r}")
        check_scoring(self.score, self.batch_size)

    def forward(self, classifier: nn.Module, images: Tensor) -> "ScoreEvidence":
        with evaluating(classifier), torch.no_grad(), tapped(classifier, self.layer, images) as taken:
            logits = check_logits(classifier(images), images)
        return ScoreEvidence(self, classifier, images, logits, taken[-1].maps.detach().float())

    def channel_weights(
        self, classifier: nn.Module, image: Tensor, activation: Tensor, classes: Tensor
    ) -> Tensor:
        """w (T, k) of the `classes` (T,): image (3, H, W), activation (k, u, v)."""
        live = activation.amax((1, 2)) > activation.amin((1, 2))
        masked = self._masked(image, activation[live])
        if self.weights == "posterior":
            weights = activation.new_zeros((len(classes), len(activation)))
            if bool(live.any()):
                scores = posterior(score_batches(classifier, masked, image.dtype), self.score)
                weights[:, live] = scores[:, classes].T
            return weights
        # The mask of a constant channel is zero everywhere: one black image stands for all of them.
        logits = score_batches(classifier, chain(masked, [torch.zeros_like(image)[None]]), image.dtype)
        black = len(logits) - 1
        return logits[torch.where(live, live.cumsum(0) - 1, black)][:, classes].T.softmax(1)

    def _masked(self, image: Tensor, channels: Tensor) -> Iterator[Tensor]:
        """Batches of the image (3, H, W) under the mask of each of the channels (n, u, v)."""
        if len(channels) == 0:
            return
        for some in torch.split(channels, images_per_pass(self.batch_size, image)):
            mask = masks(some, image, align_corners=self.weights == "channel_softmax")
            yield fast_layout(image * mask[:, None])


@dataclass(frozen=True)
class ScoreEvidence:
    """Activation (B, k, u, v) of one layer, and what it takes to score masked images."""

    method: ScoreCAM
    classifier: nn.Module
    images: Tensor
    logits: Tensor
    activation: Tensor

    def maps(self, targets: Tensor) -> Tensor:
        check_range(targets[:, 1], self.logits.shape[1], "class")
        maps = self.logits.new_zeros((len(targets), *self.activation.shape[-2:]))
        for index, rows in by_image(targets):
            activation = self.activation[index]
            image, classes = self.images[index], targets[rows, 1]
            with folded(self.classifier, image):
                weights = self.method.channel_weights(self.classifier, image, activation, classes)
            with exact(maps.device):
                maps[rows] = weighted_activation(weights, activation.expand(len(rows), -1, -1, -1))
        return finite(maps)


@dataclass(frozen=True)
class GroupCAM(SaliencyMethod):
    """Group-CAM: groups of channels, each weighted by how much the score gains where it keeps the image sharp.

        M = sum_l a_l I_l,    a_l = ReLU(p_c(x_l) - p_c(x~)),    x_l = x * M_l + x~ * (1 - M_l)
        I_l = ReLU(sum_{k in group l} w_k A_k),    w_k = mean_uv dz_c/dA_k

    A_k is channel k of the activation at `layer`, w_k its Grad-CAM weight, z_c and p_c the logit and the posterior of
    class c. I_l, upsampled to the image and min-max normalised, is the mask M_l. It keeps the image x where it is 1 and
    the blurred image x~ where it is 0. a_l is the gain in posterior.

    Groups are contiguous, of ceil(k / groups) channels. The last one is smaller where k does not divide. The rounding
    may leave fewer groups than asked for (as in `torch.chunk`, which the authors use).

    Paper: Zhang, Rao and Yang, "Group-CAM: Group Score-Weighted Visual Explanations for Deep Convolutional Networks",
    arXiv 2021, section 3, https://arxiv.org/abs/2103.13859

    Deviations from the authors' code, which changed over time: a dead group (constant I_l) is skipped; theirs gave NaN.
    Without any gain the map is zeros. No percentile of I_l is cut off. The weighted maps are I_l, not M_l, as in the
    paper. The result has the layer's resolution. After upsampling that is the same, because upsampling is linear.

    Cost: for an image with K classes, 2 + groups * K forwards (image, blurred image, masked images) and K backward
    passes through the layers above `layer`. A batch holds `batch_size` masked images, of several classes and images
    together. Twice in a call one image more, to fold BatchNorm (see `folded`).

    Args:
        layer: see `LayerMethod`.
        groups: number of groups.
        score: p: "sigmoid" for multi-label classifiers, "softmax" for single-label ones.
        batch_size: most masked images in one forward pass (on a CPU fewer where they are large).
        blur_kernel: side of the Gaussian kernel of the blur, pixels, odd; borders are mirrored.
        blur_sigma: its standard deviation, pixels.

    Example:
        >>> GroupCAM(layer="layer4")(classifier, images, targets).shape
        torch.Size([2, 2, 2])
    """

    scale_balance = "area"

    layer: str | None = None
    groups: int = 32
    score: Score = "sigmoid"
    batch_size: int = 32
    blur_kernel: int = 51
    blur_sigma: float = 50.0

    def __post_init__(self) -> None:
        check_scoring(self.score, self.batch_size)
        if self.groups < 1:
            raise UserError(f"groups must be at least 1, got {self.groups}")
        if self.blur_kernel < 1 or self.blur_kernel % 2 == 0 or not self.blur_sigma > 0:
            raise UserError(
                "GroupCAM needs an odd blur_kernel and a blur_sigma above 0, "
                f"got {self.blur_kernel} and {self.blur_sigma}"
            )

    def forward(self, classifier: nn.Module, images: Tensor) -> "GroupEvidence":
        return GroupEvidence(self, classifier, images, GradCAM(self.layer).forward(classifier, images))


@dataclass(frozen=True)
class GroupEvidence:
    """The evidence of Grad-CAM at the layer, and what it takes to score masked images."""

    method: GroupCAM
    classifier: nn.Module
    images: Tensor
    gradcam: LayerEvidence

    @property
    def logits(self) -> Tensor:
        return self.gradcam.logits

    def maps(self, targets: Tensor) -> Tensor:
        check_range(targets[:, 1], self.logits.shape[1], "class")
        device = self.images.device
        with exact(device):
            groups = self._groups(targets)
            # Only images that are asked for are blurred: positions in `blurred` instead of image indices.
            used, position = torch.unique(targets[:, 0], return_inverse=True)
            blurred = self._blurred(used)
        gains = self._gains(targets, groups, blurred, position)
        with exact(device):
            return finite(torch.einsum("nl,nluv->nuv", gains, groups))

    def _groups(self, targets: Tensor) -> Tensor:
        """I (N, groups, u, v) of all targets."""
        groups: list[tuple[Tensor, Tensor]] = []
        for rows, activation, gradient in self.gradcam.derivatives(targets):
            weights = gradient.mean((2, 3), keepdim=True)
            groups.append((rows, group_sums(weights * activation, self.method.groups)))
        order = torch.cat([rows for rows, _ in groups]).argsort()
        return torch.cat([part for _, part in groups])[order]

    def _blurred(self, used: Tensor) -> Tensor:
        """Blurred images (n, 3, H, W) of the image indices `used` (n,)."""
        images = self.images[used].float()
        flat = gaussian_blur(images.flatten(0, 1), self.method.blur_kernel, self.method.blur_sigma)
        return flat.view(images.shape)

    def _gains(self, targets: Tensor, groups: Tensor, blurred: Tensor, position: Tensor) -> Tensor:
        """a (N, groups); 0 for dead groups."""
        size = images_per_pass(self.method.batch_size, self.images)
        score, dtype = self.method.score, self.images.dtype
        gains = groups.new_zeros(groups.shape[:2])
        live = groups.amax((2, 3)) > groups.amin((2, 3))
        rows, parts = live.nonzero(as_tuple=True)
        if len(rows) == 0:
            return gains

        def mixed() -> Iterator[Tensor]:
            for row, part in zip(torch.split(rows, size), torch.split(parts, size), strict=True):
                weak, strong = blurred[position[row]], self.images[targets[row, 0]].float()
                mask = masks(groups[row, part], strong[0])[:, None]
                yield fast_layout(strong * mask + weak * (1 - mask))

        with folded(self.classifier, self.images[targets[0, 0]]):
            floor = score_batches(self.classifier, map(fast_layout, torch.split(blurred, size)), dtype)
            scored = posterior(score_batches(self.classifier, mixed(), dtype), score)
        floor = posterior(floor, score)[position[rows], targets[rows, 1]]
        gains[rows, parts] = (scored[torch.arange(len(rows)), targets[rows, 1]] - floor).relu()
        return gains


def check_scoring(score: str, batch_size: int) -> None:
    """UserError unless the score is known and a batch holds something."""
    if score not in ("sigmoid", "softmax"):
        raise UserError(f"score must be 'sigmoid' or 'softmax', got {score!r}")
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")


def images_per_pass(batch_size: int, images: Tensor) -> int:
    """`batch_size`, or what fits `CPU_PIXELS` where images (..., H, W) are on a CPU; at least one."""
    if images.device.type != "cpu":
        return batch_size
    return max(1, min(batch_size, CPU_PIXELS // (images.shape[-2] * images.shape[-1])))


def posterior(logits: Tensor, score: Score) -> Tensor:
    """Probabilities (n, C) of logits (n, C)."""
    return logits.sigmoid() if score == "sigmoid" else logits.softmax(1)


def masks(channels: Tensor, image: Tensor, align_corners: bool = False) -> Tensor:
    """Channels (n, u, v), upsampled to the size of the image (3, H, W), then min-max normalised: (n, H, W)."""
    size = tuple(image.shape[-2:])
    with exact(channels.device):
        return normalize(
            F.interpolate(channels[:, None], size=size, mode="bilinear", align_corners=align_corners)[:, 0]
        )


def group_sums(channels: Tensor, groups: int) -> Tensor:
    """ReLU of the sum over each group of channels: (n, k, u, v) -> (n, groups, u, v).

    Groups are those of `torch.chunk`. Where it would make fewer groups, the missing ones are zeros.
    """
    count, width = channels.shape[1], -(-channels.shape[1] // groups)
    padded = F.pad(channels, (0, 0, 0, 0, 0, groups * width - count))
    return padded.view(len(channels), groups, width, *channels.shape[2:]).sum(2).relu()


def score_batches(classifier: nn.Module, batches: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """Logits (n, C), float32, of batches of images (b, 3, H, W) that are made one at a time, passed as `dtype`."""
    with evaluating(classifier), torch.no_grad():
        return torch.cat([check_logits(classifier(batch.to(dtype)), batch) for batch in batches])


def masked_logits(
    classifier: nn.Module, image: Tensor, batches: Iterable[Tensor], baseline: Tensor | None = None
) -> Tensor:
    """Logits (n, C), float32, of an image (3, H, W) under masks (b, H, W) in [0, 1], made a batch at a time.

    Where a mask is 0 the image becomes the baseline (3 or 1, H or 1, W or 1); None: 0, the mean colour. Two more
    forwards of the image fold BatchNorm (see `folded`).
    """

    def masked(mask: Tensor) -> Tensor:
        kept = image * mask[:, None].to(image.dtype)
        return fast_layout(
            kept if baseline is None else kept + baseline * (1 - mask[:, None].to(image.dtype))
        )

    with folded(classifier, image):
        return score_batches(classifier, map(masked, batches), image.dtype)
