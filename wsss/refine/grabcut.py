"""Masks from saliency by GrabCut: the segmentation baseline of Simonyan et al."""

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

    Each class gets its own GrabCut, which minimises

        E(a) = sum_i -log p(I_i | a_i) + 50 sum_{i~j} [a_i != a_j] exp(-beta |I_i - I_j|^2) / |s_i - s_j|

    with a_i foreground or background of pixel i, I the colour, p a mixture of five Gaussians for each side, s the
    position, i~j the pairs among eight neighbours, and beta = 1 / (2 mean |I_i - I_j|^2) (OpenCV's `grabCut`).

    The most salient pixels are fixed as foreground, the least salient ones as background. The pixels between start as
    probable foreground where their saliency is nearer to the former, else as probable background. Where several
    classes claim a pixel, the most salient one wins. The same input gives the same mask.

    Papers: Rother, Kolmogorov and Blake, "GrabCut: Interactive Foreground Extraction using Iterated Graph Cuts",
    SIGGRAPH 2004, https://doi.org/10.1145/1015706.1015720. From saliency: Simonyan, Vedaldi and Zisserman, "Deep
    Inside Convolutional Networks", ICLR Workshop 2014, section 3.2, https://arxiv.org/abs/1312.6034

    Args:
        maps: `(K, H, W)` float32 in [0, 1], largest value 1 per class; K may be 0.
        classes: K mask indices (1..C), one for each map.
        image: `(H, W, 3)` uint8 RGB.
        foreground: share of the pixels that are surely foreground, in (0, 1).
        background: share of the pixels that are surely background, in (0, 1).
        iterations: of GrabCut, at least 1.

    Returns:
        `(H, W)` uint8 mask indices, 0 = background. A class gets no pixels if its map is constant or one side has fewer
        than five sure pixels.

    Raises:
        ValueError: shapes, dtypes or shares do not fit.

    Example:
        >>> grabcut_labels(maps, classes, image).shape
        (64, 64)
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
    """What GrabCut starts from: `(H, W)` of `cv2.GC_*`, or None if the map has too little contrast.

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
