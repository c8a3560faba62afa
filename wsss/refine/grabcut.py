"""Masks from saliency by GrabCut: the segmentation baseline of Simonyan et al. (2014), section 3.2."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from wsss.refine.background import Maps

FOREGROUND, BACKGROUND = 0.05, 0.30
"""Shares of an image's pixels that are surely foreground and background: Simonyan et al., section 3.2."""
ITERATIONS = 5
"""Of each GrabCut."""
SMALLEST_SEED = 5
"""OpenCV fits five Gaussians to the colours of each side and needs a pixel for each."""


def grabcut_labels(
    maps: Maps,
    classes: Sequence[int] | npt.NDArray[np.integer],
    image: npt.NDArray[np.uint8],
    foreground: float = FOREGROUND,
    background: float = BACKGROUND,
    iterations: int = ITERATIONS,
) -> npt.NDArray[np.uint8]:
    """Segment each class by its colours, learnt where its saliency is highest and lowest.

    Each class gets its own GrabCut (Rother et al. 2004): the most salient pixels are surely foreground,
    the least salient ones surely background. The pixels between start as probable foreground where their
    saliency is nearer to the former, else as probable background. Where several classes claim a pixel,
    the most salient one wins. The same input gives the same mask.

    Args:
        maps: `(K, H, W)` float32 in [0, 1], largest value 1 per class; K may be 0.
        classes: K mask indices (1..C), one for each map.
        image: `(H, W, 3)` uint8 RGB.
        foreground: share of the pixels that are surely foreground, in (0, 1).
        background: share of the pixels that are surely background, in (0, 1).
        iterations: of GrabCut, at least 1.

    Returns:
        `(H, W)` uint8 mask indices, 0 = background. A class whose map is constant, or with fewer than five
        pixels on one side, has no pixels.

    Raises:
        ValueError: shapes, dtypes or shares do not fit.
    """
    _check(maps, classes, image, foreground, background, iterations)
    labels = np.zeros(image.shape[:2], dtype=np.uint8)
    strongest = np.zeros(image.shape[:2], dtype=np.float32)
    for index, saliency in zip(classes, maps, strict=True):
        trimap = seed_trimap(saliency, foreground, background)
        if trimap is None:
            continue
        claimed = _cut(image, trimap, iterations) & (saliency > strongest)
        labels[claimed] = index
        strongest[claimed] = saliency[claimed]
    return labels


def seed_trimap(
    saliency: npt.NDArray[np.float32], foreground: float, background: float
) -> npt.NDArray[np.uint8] | None:
    """What GrabCut starts from: `(H, W)` of `cv2.GC_*`, or None if the map has too little contrast for it.

    Args:
        saliency: `(H, W)` float32.
        foreground: share of the pixels from the top of the ranking. Pixels as salient as
            the last one of them count too, unless they are background.
        background: share of the pixels from the bottom. Pixels as salient as the last one of them count
            too, so that all zeros of a sparse map are background.
    """
    high, low = np.quantile(saliency, 1 - foreground), np.quantile(saliency, background)
    sure, surely_not = (saliency >= high) & (saliency > low), saliency <= low
    if min(sure.sum(), surely_not.sum()) < SMALLEST_SEED:
        return None
    trimap = np.where(saliency > (high + low) / 2, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    trimap[sure], trimap[surely_not] = cv2.GC_FGD, cv2.GC_BGD
    return trimap


def _cut(
    image: npt.NDArray[np.uint8], trimap: npt.NDArray[np.uint8], iterations: int
) -> npt.NDArray[np.bool_]:
    """`(H, W)` bool: the foreground of one GrabCut."""
    cv2.setRNGSeed(0)  # its k-means draws random centres
    bgr = np.ascontiguousarray(image[..., ::-1])
    mask = trimap.copy()
    background, foreground = np.zeros((2, 1, 65))  # the colour models that it writes
    unused = (0, 0, 1, 1)
    cv2.grabCut(bgr, mask, unused, background, foreground, iterations, cv2.GC_INIT_WITH_MASK)
    return np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD))


def _check(
    maps: Maps,
    classes: Sequence[int] | npt.NDArray[np.integer],
    image: npt.NDArray[np.uint8],
    foreground: float,
    background: float,
    iterations: int,
) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"the image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    if maps.shape != (len(classes), *image.shape[:2]):
        expected = (len(classes), *image.shape[:2])
        raise ValueError(f"the maps must be (classes, H, W) = {expected}, got {maps.shape}")
    check_settings(foreground, background, iterations)


def check_settings(foreground: float, background: float, iterations: int) -> None:
    """Raise ValueError where a setting of `grabcut_labels` has no meaning."""
    if not (0 < foreground < 1 and 0 < background < 1 and foreground + background <= 1):
        raise ValueError(
            "foreground and background must be shares of the pixels that sum to at most 1, "
            f"got {foreground} and {background}"
        )
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
