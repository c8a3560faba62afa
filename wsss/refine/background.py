"""The background's score: it competes with the saliency of the classes, and is chosen without masks.

There are three rules for the score b:

- "constant": b = t, the same in every image (0.15 to 0.30 across papers).
- "power": b = (1 - m)^alpha with m the largest saliency of the pixel (Ahn and Kwak, "AffinityNet", CVPR 2018,
  https://arxiv.org/abs/1803.10464). b falls where m rises. So the hard seed is the same as with the constant t* that
  solves t* = (1 - t*)^alpha (alpha 4, 8, 16: t* = 0.28, 0.19, 0.12). Only the soft scores differ.
- "otsu": b = s^2 with s the threshold that best splits the square roots of this image's own saliency
  (Otsu, IEEE Trans. SMC 1979, https://doi.org/10.1109/TSMC.1979.4310076). Saliency is skewed: most pixels are near 0,
  and on the plain values Otsu cuts far above the border of the objects. The square root makes the two sides more even.
  The rule reads no mask. But the root was preferred to other powers by looking at 30 photos with masks (class
  activation maps of VOC: thresholds of 0.28 without it and 0.13 with it; the best one with masks was 0.14).

So every rule has a threshold per image (`background_threshold`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from wsss.refine.parameters import BackgroundParameters

Maps = npt.NDArray[np.float32]

HISTOGRAM_BINS = 256


def prepare_maps(maps: npt.NDArray[np.floating], size: tuple[int, int]) -> Maps:
    """Bring stored saliency to the photo's size and each class to a maximum of 1.

    Args:
        maps: `(K, h, w)` float of any precision, non-negative.
        size: `(H, W)` of the photo in pixels.

    Returns:
        `(K, H, W)` float32 in [0, 1]: bilinear (pixel centres aligned at half pixels, as torch's
        `interpolate(align_corners=False)`), then divided by each class's maximum. A map of zeros stays zero.
    """
    height, width = size
    prepared = np.empty((len(maps), height, width), dtype=np.float32)
    for source, target in zip(maps, prepared, strict=True):
        cv2.resize(source.astype(np.float32), (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
        largest = target.max()
        if largest > 0:
            target /= largest
    return prepared


def prepare_probabilities(maps: npt.NDArray[np.floating], size: tuple[int, int]) -> Maps:
    """Bring stored probabilities to the photo's size.

    Args:
        maps: `(C, h, w)` float of any precision, non-negative, background first.
        size: `(H, W)` of the photo in pixels.

    Returns:
        `(C, H, W)` float32, bilinear as in `prepare_maps`, sums to one over C.
    """
    height, width = size
    prepared = np.empty((len(maps), height, width), dtype=np.float32)
    for source, target in zip(maps, prepared, strict=True):
        cv2.resize(source.astype(np.float32), (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
    total = prepared.sum(axis=0)
    prepared /= np.where(total > 0, total, 1)
    return prepared


def background_threshold(maps: Maps, parameters: BackgroundParameters) -> float:
    """The saliency above which the rule calls a pixel of this image foreground.

    Args:
        maps: `(K, H, W)` float32 in [0, 1], K >= 1.
        parameters: the rule and its constants.

    Returns:
        A value strictly between 0 and 1.

    Raises:
        ValueError: the rule is `calibrated`, which must first be replaced by the rule that calibration chooses.
    """
    if parameters.rule not in _THRESHOLDS:
        raise ValueError(
            f"the background rule `{parameters.rule}` must be chosen first: give one of {', '.join(_THRESHOLDS)}"
        )
    return _THRESHOLDS[parameters.rule](maps, parameters)


def background_scores(maps: Maps, parameters: BackgroundParameters) -> Maps:
    """Put the background's score in front of the classes' saliency.

    Args:
        maps: `(K, H, W)` float32 in [0, 1], K >= 1.
        parameters: the rule and its constants.

    Returns:
        `(K + 1, H, W)` float32 in [0, 1]; index 0 is the background, then the classes in their order.
    """
    scores = np.empty((len(maps) + 1, *maps.shape[1:]), dtype=np.float32)
    scores[1:] = maps
    if parameters.rule == "power":
        scores[0] = (1 - maps.max(axis=0)) ** np.float32(parameters.alpha)
    else:
        scores[0] = background_threshold(maps, parameters)
    return scores


def seed_mask(
    maps: Maps, classes: Sequence[int] | npt.NDArray[np.integer], threshold: float
) -> npt.NDArray[np.uint8]:
    """Hard labels from saliency: the most salient class, or background where no class exceeds the threshold.

    Args:
        maps: `(K, H, W)` float32 in [0, 1]; K may be 0.
        classes: K mask indices (1..C), one for each map.
        threshold: in [0, 1); a pixel at exactly the threshold is background.

    Returns:
        `(H, W)` uint8 mask indices, 0 = background.
    """
    if len(maps) == 0:
        return np.zeros(maps.shape[1:], dtype=np.uint8)
    best, score = strongest_class(maps, classes)
    best[score <= np.float32(threshold)] = 0
    return best


def strongest_class(
    maps: Maps, classes: Sequence[int] | npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.uint8], Maps]:
    """The most salient class of each pixel and its saliency (K >= 1; the first class wins ties).

    Returns:
        `(H, W)` uint8 mask indices and `(H, W)` float32 saliency.
    """
    return np.asarray(classes, dtype=np.uint8)[maps.argmax(axis=0)], maps.max(axis=0)


def saliency_histogram(maps: Maps) -> npt.NDArray[np.int64]:
    """How often each saliency occurs, per pixel the largest over the classes, on a square-root scale.

    Histograms add up: `otsu_threshold(sum of histograms) ** 2` is the threshold of a whole data set.

    Args:
        maps: `(K, H, W)` float32 in [0, 1], K >= 1.

    Returns:
        `(256,)` int64 counts; the bins are equal in the square root of the saliency.
    """
    bins = (np.sqrt(maps.max(axis=0)) * np.float32(HISTOGRAM_BINS - 1e-3)).astype(np.int64)
    return np.bincount(bins.ravel(), minlength=HISTOGRAM_BINS)


def otsu_threshold(histogram: npt.NDArray[np.int64]) -> float:
    """The threshold t that maximises the variance between the two sides, w0(t) w1(t) (mu0(t) - mu1(t))^2.

    Args:
        histogram: `(B,)` counts of equal bins over [0, 1].

    Returns:
        The upper edge of the last bin of the lower side, strictly between 0 and 1; where several thresholds
        are equally good (an empty valley), the middle one. 0.5 if all values lie in one bin.
    """
    bins = len(histogram)
    centres = (np.arange(bins) + 0.5) / bins
    share = histogram / histogram.sum()
    below = share.cumsum()[:-1]
    moment = (share * centres).cumsum()
    above = 1 - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * below - moment[:-1]) ** 2 / (below * above)
    between[(below <= 0) | (above <= 1e-12)] = 0
    if between.max() <= 0:
        return 0.5
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float((best.mean() + 1) / bins)


def _constant(maps: Maps, parameters: BackgroundParameters) -> float:
    return parameters.threshold


def _power(maps: Maps, parameters: BackgroundParameters) -> float:
    """Solve t = (1 - t)^alpha by bisection: t rises, (1 - t)^alpha falls, so there is one solution."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if middle < (1 - middle) ** parameters.alpha:
            low = middle
        else:
            high = middle
    return high


def _otsu(maps: Maps, parameters: BackgroundParameters) -> float:
    return otsu_threshold(saliency_histogram(maps)) ** 2


_THRESHOLDS: dict[str, Callable[[Maps, BackgroundParameters], float]] = {
    "constant": _constant,
    "power": _power,
    "otsu": _otsu,
}
