"""Predicting photos of any size in overlapping tiles whose probabilities are blended without seams."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Tiles start at multiples of this many pixels, as far apart as the coarsest feature maps have their cells: a network
# then sees the photo in the same grid with and without tiles.
ALIGNMENT = 32

SMALLEST_TILE = 4 * ALIGNMENT
"""Shortest side of a tile in pixels; the overlap of smaller ones would be lost to the alignment."""

Windows = list[tuple[int, Tensor]]


def windows(length: int, tile: int) -> Windows:
    """Divides one side of a photo among tiles.

    Neighbours share at least a quarter of a tile. In the shared pixels the weight of one falls while the other's rises
    along sin^2; the outermost quarter of the shared pixels has no weight at all, because there a network sees the
    tile's border and not the photo. Where the tile ends with the photo it keeps its full weight.

    Args:
        length: pixels of the side.
        tile: pixels of a tile; the last one is up to 31 pixels longer.

    Returns:
        (first pixel, weights (n,) float32) of every tile; at every pixel the weights of all tiles sum to one.
        One tile of weight 1 where ``length`` is at most ``tile``.

    Raises:
        ValueError: ``tile`` is below ``SMALLEST_TILE``.
    """
    if tile < SMALLEST_TILE:
        raise ValueError(f"a tile has at least {SMALLEST_TILE} pixels per side, got {tile}")
    if length <= tile:
        return [(0, torch.ones(length))]
    overlap = tile // 4
    gaps = math.ceil(
        (length - tile) / (tile - overlap - ALIGNMENT)
    )  # the alignment costs a tile up to 31 pixels
    starts = [index * (length - tile) // gaps // ALIGNMENT * ALIGNMENT for index in range(gaps + 1)]
    ends = [start + tile for start in starts[:-1]] + [length]
    weights = torch.zeros(len(starts), length)
    for row, start, end in zip(weights, starts, ends, strict=True):
        row[start:end] = 1
        if start > 0:
            row[start : start + overlap] = _rise(overlap)
        if end < length:
            row[end - overlap : end] = _rise(overlap).flip(0)
    weights /= weights.sum(0)
    return [(start, row[start:end]) for row, start, end in zip(weights, starts, ends, strict=True)]


def _rise(overlap: int) -> Tensor:
    """(overlap,) weights from 0 to 1: nothing in the first quarter, all in the last, sin^2 between them."""
    quarter = overlap // 4
    position = (torch.arange(overlap) + 0.5 - quarter) / (overlap - 2 * quarter)
    return torch.sin(position.clamp(0, 1) * math.pi / 2) ** 2


def blended_rows(
    image: Tensor, predict: Callable[[Tensor], Tensor], tile: int
) -> Iterator[tuple[int, Tensor]]:
    """Predicts a photo tile by tile, from its top to its bottom.

    No more than one row of tiles is in memory, C x tile x W values, however tall the photo is.

    Args:
        image: (channels, H, W).
        predict: (channels, h, w) -> (C, h, w) probabilities of one tile; may compute on another device.
        tile: longest side that is predicted at once, in pixels.

    Yields:
        (first row, (C, rows, W) float32 on the CPU) of strips that follow each other without gap and cover
        the photo. The strips of a photo that fits into one tile are one: ``predict(image)``.
    """
    height, width = image.shape[-2:]
    rows, columns = windows(height, tile), windows(width, tile)
    ends = [start for start, _ in rows[1:]] + [height]
    carried: Tensor | None = None
    for (top, vertical), end in zip(rows, ends, strict=True):
        sums: Tensor | None = None
        for left, horizontal in columns:
            area = (slice(None), slice(top, top + len(vertical)), slice(left, left + len(horizontal)))
            part = predict(image[area]).float().cpu()
            if sums is None:
                sums = part.new_zeros(len(part), len(vertical), width)
            sums[:, :, area[2]] += part.mul(vertical[:, None] * horizontal)
        assert sums is not None  # windows() gives at least one tile
        if carried is not None:
            sums[:, : carried.shape[1]] += carried
        carried = sums[:, end - top :].clone()
        yield top, sums[:, : end - top]
