"""Pixel-adaptive mask refinement (PAMR): average each pixel's scores over neighbours of similar colour, repeatedly.

It is local: two pixels exchange scores over at most `iterations * max(dilations)` pixels. The dense CRF compares all
pairs.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS = (1, 2, 4, 8, 12, 24)
"""Distances of the neighbours in pixels (the published code)."""

SIGMA_FACTOR = 0.1
"""Share of the local standard deviation at which a colour difference counts as 1 (the published code)."""

# Keeps the quotient finite where the photo is constant; there all neighbours get the same weight.
SMALLEST_DEVIATION = 1e-8

COMPASS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


def pamr(maps: Tensor, image: Tensor, iterations: int = 10, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Refine scores along the edges of a photo.

    For a pixel i and its neighbours j in N(i), the eight compass points at each of several distances,

        m_i <- sum over j in N(i) of alpha_ij m_j,      `iterations` times
        alpha_ij = exp(k_ij) / sum over l in N(i) of exp(k_il)
        k_ij = mean over the channels of -|I_i - I_j| / (0.1 sigma_i)

    with m the scores, I the colour and sigma_i the channel's standard deviation around i.

    Paper: Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020, on PAMR,
    https://arxiv.org/abs/2005.08104

    Deviation from the paper: it prints sigma^2 as the divisor. Its published code divides by 0.1 sigma, which does not
    depend on the range of the colours, and so do we. As in that code, sigma is the sample standard deviation over all
    3x3 windows together, in which the pixel itself counts once for each distance. Pixels beyond the border repeat the
    border.

    Every result is a weighted mean of its input. It stays in the input's range, constants stay as they are, and
    maps that sum to one over the classes keep doing so. The memory is one number per pixel and neighbour (8 times the
    number of dilations), shared by all classes.

    Args:
        maps: `(C, H, W)` of one image or `(B, C, H, W)`, any float type and range.
        image: `(B, 3, H, W)` (or `(3, H, W)` for maps of one image) float RGB in any range, at the size of
            `maps` and on its device.
        iterations: how often to average; 0 returns the maps.
        dilations: distances of the neighbours in pixels, 1 or more each; they may exceed the photo.

    Returns:
        Float32 of the shape of `maps`. No input is changed; gradients are not tracked.

    Raises:
        ValueError: shapes that do not fit, no dilation, or negative iterations.

    Example:
        >>> pamr(torch.from_numpy(maps), images[0]).shape
        torch.Size([2, 64, 64])
    """
    single = maps.ndim == 3
    batch = maps[None] if single else maps
    image = image[None] if image.ndim == 3 else image
    _check(batch, image, iterations, dilations)
    with torch.no_grad(), torch.autocast(device_type=maps.device.type, enabled=False):
        batch = batch.float()
        weights = affinities(image.float(), dilations) if iterations else []
        for _ in range(iterations):
            batch = _average(batch, weights, dilations)
    return batch[0] if single else batch


def affinities(image: Tensor, dilations: Sequence[int]) -> list[Tensor]:
    """The weights alpha of all neighbours, in the order of `_neighbours`.

    Args:
        image: `(B, 3, H, W)` float32.
        dilations: distances in pixels.

    Returns:
        One `(B, 1, H, W)` float32 in [0, 1] per neighbour; they sum to one.
    """
    scale = SMALLEST_DEVIATION + SIGMA_FACTOR * local_deviation(image, dilations)
    kernels = torch.cat(
        [
            ((neighbour - image).abs() / scale).mean(1, keepdim=True).neg_()
            for neighbour in _neighbours(image, dilations)
        ],
        dim=1,
    )
    return list(torch.split(kernels.softmax(dim=1), 1, dim=1))


def local_deviation(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """Sample standard deviation of each channel over the 3x3 windows of all dilations together.

    Args:
        image: `(B, 3, H, W)` float32.
        dilations: distances in pixels.

    Returns:
        `(B, 3, H, W)` float32, exactly 0 where all neighbours have the pixel's own colour.
    """
    # Differences to the pixel instead of colours: no cancellation where the contrast is small. The pixel
    # itself adds zeros to both sums and only counts.
    total, squares = torch.zeros_like(image), torch.zeros_like(image)
    for neighbour in _neighbours(image, dilations):
        difference = neighbour - image
        total += difference
        squares += difference.square()
    count = (len(COMPASS) + 1) * len(dilations)
    return ((squares - total.square() / count) / (count - 1)).clamp_(min=0).sqrt_()


def _average(maps: Tensor, weights: list[Tensor], dilations: Sequence[int]) -> Tensor:
    """One iteration: the weighted mean of the neighbours' scores."""
    result = torch.zeros_like(maps)
    for weight, neighbour in zip(weights, _neighbours(maps, dilations), strict=True):
        result.addcmul_(weight, neighbour)
    return result


def _neighbours(pixels: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """The values `(B, C, H, W)` of the neighbour in each of the eight directions, at each distance."""
    height, width = pixels.shape[-2:]
    for distance in dilations:
        padded = F.pad(pixels, [distance] * 4, mode="replicate")
        for dy, dx in COMPASS:
            top, left = distance * (1 + dy), distance * (1 + dx)
            yield padded[..., top : top + height, left : left + width]


def _check(maps: Tensor, image: Tensor, iterations: int, dilations: Sequence[int]) -> None:
    """Raise ValueError where the arguments of `pamr` break its contract."""
    if maps.ndim != 4 or not maps.is_floating_point():
        raise ValueError(
            f"maps must be floats (C, H, W) or (B, C, H, W), not {maps.dtype} {tuple(maps.shape)}"
        )
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise ValueError(f"image must be float RGB (B, 3, H, W), not {image.dtype} {tuple(image.shape)}")
    if image.shape[0] != maps.shape[0] or image.shape[-2:] != maps.shape[-2:]:
        raise ValueError(
            f"maps {tuple(maps.shape)} and image {tuple(image.shape)} must agree in batch, height and width"
        )
    if 0 in image.shape:
        raise ValueError("the image is empty")
    if iterations < 0:
        raise ValueError(f"iterations must be 0 or more, not {iterations}")
    if not dilations or min(dilations) < 1:
        raise ValueError(
            f"dilations must be one or more distances of at least 1 pixel, not {list(dilations)}"
        )
