"""SESS: saliency enhancing with scaling and sliding."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import (
    DeferredEvidence,
    Evidence,
    SaliencyMethod,
    as_tuple,
    check_base,
    check_call,
    check_range,
    evaluating,
    exact,
    finite,
    gaussian_blur,
    normalize,
    resize_images,
    upsample,
)

SMOOTHING_KERNEL, SMOOTHING_SIGMA = 11, 5.0  # the authors' code, `SESS.smoother`
ROUNDING = 1e-6
"""Differences up to this share are float32 rounding, see `normalized_crops`."""


class Window(NamedTuple):
    """A crop of a resized image, in pixels of the resized frame."""

    frame: tuple[int, int]
    """Height and width of the resized image."""
    top: int
    left: int
    size: tuple[int, int]
    """Height and width of the crop: the window, or less where the frame is smaller."""


class Patch(NamedTuple):
    """Base maps of one window."""

    window: int
    """Index of the window."""
    rows: Tensor
    """(n,) the targets they belong to."""
    maps: Tensor
    """(n, h, w), raw."""


class Crops(NamedTuple):
    """What SESS makes of an image's crops, before they are fused: T targets, W windows."""

    windows: list[Window]
    weights: Tensor
    """(T, W) p_i / max_j p_j, also of the dropped crops."""
    kept: Tensor
    """(T, W) bool: what the pre-filter keeps."""
    patches: list[Patch]
    """The maps of the kept crops."""

    def maps(self, target: int) -> dict[int, Tensor]:
        """Window index -> normalised map (h, w) of its size, in [0, 1], for the crops that a target keeps."""
        return {
            index: normalized_crops(part[rows == target], self.windows[index].size)[0]
            for index, rows, part in self.patches
            if bool((rows == target).any())
        }


@dataclass(frozen=True)
class SESS(SaliencyMethod):
    """SESS: a method's maps of many crops at many scales, weighted by the crops' scores and fused.

        M(pixel) = mean over the crops i with v_i > theta there of v_i,    v_i = w_i m_i,    w_i = p_i / max_j p_j

    m_i is the base map of crop i, p_i the crop's score for the class, theta a threshold.

    1. The image is resized so that its shorter side is each of `scales`. A window slides over it.
    2. All crops are scored. For each class, the `prefilter` share of crops with the lowest scores is dropped.
    3. The base map of each remaining crop is min-max normalised in its window and multiplied by w_i. A map that is
       constant, exactly or but for rounding, contributes nothing. A faint map is stretched to 1 like any other. Only
       the crop's score says how much it counts.
    4. It is pasted into the resized frame, and the frame is resized bilinearly to the image.
    5. Per pixel: the mean over the maps that are above `theta` there (or the maximum).
    6. Gaussian blur, 11 x 11, sigma 5.

    Paper: Tursun et al., "SESS: Saliency Enhancing with Scaling and Sliding", ECCV 2022,
    https://arxiv.org/abs/2207.01769

    Deviations from the authors' code: a crop without evidence is ignored; theirs becomes NaN and blanks its window.
    Crops are ranked by log-odds instead of probability (for the sigmoid that is the logit). The order is the same,
    but saturated probabilities do not tie.

    Cost: each crop passes the classifier once for all classes, `batch_size` crops at a time. Only kept
    (crop, class) pairs need gradients. With a pre-filter the graphs above the layer are held for all crops of an image
    until its scores are known. Without one, only for those of one batch.

    Args:
        base: the method that makes the maps of the crops.
        window: side of the square window, pixels.
        step: stride of the window, pixels; the last window of each axis is shifted back to the border.
        scales: lengths of the shorter side. Where one is below `window`, the crop is as large as the frame allows.
        prefilter: share of crops dropped per class, in [0, 1); int(crops * prefilter) of them.
        theta: maps count at a pixel where they are above it, in [0, 1); for pool "mean" only.
        pool: "mean" or "max" over the crops.
        smooth: whether step 6 is done.
        score: p_i: "sigmoid" for multi-label classifiers, "softmax" for single-label ones.
        batch_size: most crops in one forward pass.

    The result has the size of the images, (N, H, W), values in [0, 1].

    Example:
        >>> SESS(GradCAM(layer="layer4"), scales=(224, 288))(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    base: SaliencyMethod
    window: int = 224
    step: int = 224
    scales: tuple[int, ...] = tuple(range(224, 929, 64))
    prefilter: float = 0.0
    theta: float = 0.0
    pool: Literal["mean", "max"] = "mean"
    smooth: bool = True
    score: Literal["sigmoid", "softmax"] = "sigmoid"
    batch_size: int = 32

    @property
    def own_scales(self) -> bool:
        return True

    @property
    def class_free(self) -> bool:
        return self.base.class_free

    def __post_init__(self) -> None:
        check_base(self, self.base)
        object.__setattr__(self, "scales", as_tuple(self.scales, "scales", "(224, 288)"))
        if not self.scales or min(*self.scales, self.window, self.step, self.batch_size) < 1:
            raise UserError(f"SESS needs window, step, batch_size and every scale to be at least 1: {self}")
        if not (0 <= self.prefilter < 1 and 0 <= self.theta < 1):
            raise UserError(f"SESS needs prefilter and theta in [0, 1), got {self.prefilter}, {self.theta}")
        if self.pool not in ("mean", "max") or self.score not in ("sigmoid", "softmax"):
            raise UserError(
                "SESS's pool must be 'mean' or 'max' and its score 'sigmoid' or 'softmax', "
                f"got {self.pool!r}, {self.score!r}"
            )

    def windows(self, height: int, width: int) -> list[Window]:
        """All windows of an image of this size, scale by scale, row-major; their number is the cost."""
        found = []
        for scale in self.scales:
            frame = scaled_frame(height, width, scale)
            size = (min(self.window, frame[0]), min(self.window, frame[1]))
            starts = [window_starts(frame[axis], size[axis], self.step) for axis in (0, 1)]
            found += [Window(frame, top, left, size) for top, left in product(*starts)]
        return found

    def crops(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Crops:
        """Weights and maps of all crops, to look at: steps 1 to 3. Arguments and errors are those of a call."""
        targets = check_call(classifier, images, targets)
        with torch.inference_mode(False), evaluating(classifier):
            windows = self.windows(images.shape[-2], images.shape[-1])
            return self._crops(classifier, images.clone().detach(), targets, windows)

    def forward(self, classifier: nn.Module, images: Tensor) -> DeferredEvidence:
        return DeferredEvidence(classifier, images, partial(self._maps, classifier, images))

    def _maps(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Maps of all targets, with as many images at a time as fill a batch with crops."""
        windows = self.windows(images.shape[-2], images.shape[-1])
        maps = torch.zeros((len(targets), *images.shape[-2:]), dtype=torch.float32, device=images.device)
        for some in torch.unique(targets[:, 0]).split(max(1, self.batch_size // len(windows))):
            rows = torch.isin(targets[:, 0], some).nonzero()[:, 0]
            local = torch.stack((torch.searchsorted(some, targets[rows, 0]), targets[rows, 1]), dim=1)
            maps[rows] = self._fused(self._crops(classifier, images[some], local, windows), images.shape[-2:])
        return maps

    def _crops(self, classifier: nn.Module, images: Tensor, targets: Tensor, windows: list[Window]) -> Crops:
        """Steps 1 to 3 for a group of images that are processed together."""
        keeps_all = int(len(windows) * self.prefilter) == 0
        kept = torch.ones((len(targets), len(windows)), dtype=torch.bool, device=images.device)
        logits: list[Tensor] = []
        waiting: list[tuple[list[int], Evidence]] = []
        patches: list[Patch] = []
        for run in window_runs(windows, max(1, self.batch_size // len(images))):
            evidence = self.base.forward(classifier, cut(images, [windows[index] for index in run]))
            logits.append(evidence.logits.view(len(run), len(images), -1))
            if keeps_all:
                patches += kept_maps(evidence, run, targets, kept)
            else:
                waiting.append((run, evidence))
        scores = torch.cat(logits)
        check_range(targets[:, 1], scores.shape[2], "class")
        odds, log_probabilities = crop_scores(scores[:, targets[:, 0]], targets[:, 1], self.score)
        if not keeps_all:
            kept = keep_highest(odds, self.prefilter)
            del evidence
        while waiting:  # popped, so that each graph is freed as soon as its maps are made
            run, evidence = waiting.pop()
            patches += kept_maps(evidence, run, targets, kept)
        weights = (log_probabilities - log_probabilities.amax(1, keepdim=True)).exp()
        return Crops(windows, weights, kept, patches)

    def _fused(self, crops: Crops, size: Sequence[int]) -> Tensor:
        """Steps 4 to 6: maps (T, H, W) of `size`."""
        with exact(crops.weights.device):
            maps = fuse(
                crops.patches, crops.weights, crops.windows, (size[0], size[1]), self.pool, self.theta
            )
            return finite(gaussian_blur(maps, SMOOTHING_KERNEL, SMOOTHING_SIGMA) if self.smooth else maps)


def scaled_frame(height: int, width: int, scale: int) -> tuple[int, int]:
    """(height, width) after the shorter side became `scale`; the longer is rounded down as by torchvision."""
    longer = int(scale * max(height, width) / min(height, width))
    return (scale, longer) if height <= width else (longer, scale)


def window_starts(length: int, window: int, step: int) -> list[int]:
    """First positions of windows along an axis; the last one ends at the border.

    >>> window_starts(500, 224, 224)
    [0, 224, 276]
    """
    return [*range(0, length - window, step), length - window]


def window_runs(windows: Sequence[Window], longest: int) -> Iterator[list[int]]:
    """Indices of consecutive windows with crops of one size, at most `longest` together."""
    for _, same in groupby(range(len(windows)), key=lambda index: windows[index].size):
        indices = list(same)
        yield from (indices[start : start + longest] for start in range(0, len(indices), longest))


def cut(images: Tensor, windows: Sequence[Window]) -> Tensor:
    """Crops (windows * images, 3, h, w) of images (G, 3, H, W), window by window; windows of equal size."""
    crops = []
    for frame, same in groupby(windows, key=lambda window: window.frame):
        resized = resize_images(images, frame)
        for _, top, left, (height, width) in same:
            crops.append(resized[:, :, top : top + height, left : left + width])
    return torch.cat(crops)


def kept_maps(evidence: Evidence, run: Sequence[int], targets: Tensor, kept: Tensor) -> list[Patch]:
    """The maps of the crops of a run of windows, for the targets (T, 2) that keep them: `kept` (T, W)."""
    places, rows = kept[:, list(run)].T.nonzero(as_tuple=True)
    images = len(evidence.logits) // len(run)
    if len(rows) == 0:
        return []
    maps = evidence.maps(torch.stack((places * images + targets[rows, 0], targets[rows, 1]), dim=1))
    used, counts = torch.unique_consecutive(places, return_counts=True)
    sizes = counts.tolist()
    parts = zip(used.tolist(), torch.split(rows, sizes), torch.split(maps, sizes), strict=True)
    return [Patch(run[place], some, part) for place, some, part in parts]


def crop_scores(
    logits: Tensor, classes: Tensor, score: Literal["sigmoid", "softmax"]
) -> tuple[Tensor, Tensor]:
    """Log-odds and log-probability (T, W) of class t in crop w: logits (W, T, C), classes (T,).

    Logarithms, because probabilities saturate: then crops tie, or all underflow and p_i / max_j p_j is 0 / 0.
    """
    index = classes[None, :, None].expand(len(logits), -1, 1)
    own = logits.gather(2, index)[..., 0].T
    if score == "sigmoid":
        return own, F.logsigmoid(own)
    others = logits.scatter(2, index, -torch.inf).logsumexp(2).T
    return own - others, F.logsigmoid(own - others)


def keep_highest(odds: Tensor, prefilter: float) -> Tensor:
    """(T, W) scores -> (T, W) bool: all but the int(W * prefilter) lowest of each row."""
    lowest = odds.argsort(dim=1, stable=True)[:, : int(odds.shape[1] * prefilter)]
    return torch.ones_like(odds, dtype=torch.bool).scatter(1, lowest, False)


def fuse(
    patches: Sequence[Patch],
    weights: Tensor,
    windows: Sequence[Window],
    size: tuple[int, int],
    pool: Literal["mean", "max"],
    theta: float,
) -> Tensor:
    """Pastes, resizes and pools weighted patches: weights (T, W) -> maps (T, H, W) of `size`."""
    resizers = {
        window.frame: tuple(resizer(window.frame[axis], size[axis], weights.device) for axis in (0, 1))
        for window in windows
    }
    total = weights.new_zeros((len(weights), *size))
    count = torch.zeros_like(total)
    for index, rows, maps in patches:
        frame, top, left, (height, width) = windows[index]
        down, across = covered(top, height, frame[0], size[0]), covered(left, width, frame[1], size[1])
        vertical = resizers[frame][0][down, top : top + height]
        horizontal = resizers[frame][1][across, left : left + width]
        scaled = normalized_crops(maps, (height, width)) * weights[rows, index, None, None]
        pasted = vertical @ scaled @ horizontal.T  # zeros stay exact zeros: only weights >= 0 are summed
        if pool == "max":
            total[rows, down, across] = total[rows, down, across].maximum(pasted)
        else:
            total[rows, down, across] += pasted.where(pasted > theta, 0)
            count[rows, down, across] += pasted > theta
    return total / count.clamp(min=1)


def normalized_crops(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Raw maps (n, u, v) of a window -> its `size`, in [0, 1].

    What is only rounding becomes exactly 0, so that it is not stretched and does not count in a mean:

    - A map whose values differ by at most `ROUNDING` of the largest magnitude. It is constant but for the rounding of
      the resizing or the classifier. It says nothing: there is no evidence, or the same everywhere.
    - Normalised values up to `ROUNDING`. With theta 0 a pixel of 1e-8 would count, a pixel of 0 would not.
    """
    large = upsample(maps, size)
    varies = large.amax((1, 2)) - large.amin((1, 2)) > ROUNDING * large.abs().amax((1, 2))
    local = normalize(large)
    return local.where((local > ROUNDING) & varies[:, None, None], 0)


def resizer(length: int, target: int, device: torch.device) -> Tensor:
    """Matrix (target, length) of bilinear resizing along one axis, half-pixel centres."""
    impulses = torch.eye(length, dtype=torch.float32, device=device)[None]
    return F.interpolate(impulses, size=target, mode="linear", align_corners=False)[0].T


def covered(start: int, extent: int, length: int, target: int) -> slice:
    """Pixels that start .. start+extent-1 contribute to when `length` becomes `target`, plus a few more."""
    ratio = target / length
    first = math.floor((start - 0.5) * ratio - 0.5)
    last = math.ceil((start + extent + 0.5) * ratio - 0.5)
    return slice(max(first, 0), min(last, target - 1) + 1)
