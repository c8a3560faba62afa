"""Tiles: their windows, and that no seam is left, against predictions of the whole photo."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from wsss.models.tiling import ALIGNMENT, SMALLEST_TILE, blended_rows, windows

Predict = Callable[[Tensor], Tensor]
IMAGE = torch.rand(3, 437, 701, generator=torch.Generator().manual_seed(5))


def blurred(image: Tensor) -> Tensor:
    """A network of two classes that looks three pixels far (zeros beyond the border, as convolutions pad)."""
    kernel = torch.linspace(-1, 1, 2 * 3 * 7 * 7).reshape(2, 3, 7, 7)
    return functional.conv2d(image[None], kernel, padding=3).softmax(1)[0]


def coarse(image: Tensor) -> Tensor:
    """The same with features at stride 32: only tiles of the photo's own grid see what the photo shows."""
    pooled = functional.avg_pool2d(image[None], ALIGNMENT, ceil_mode=True)
    near = functional.interpolate(pooled, scale_factor=ALIGNMENT, mode="nearest")
    return near[0, :2, : image.shape[1], : image.shape[2]].softmax(0)


def whole(image: Tensor, predict: Predict, tile: int) -> Tensor:
    """All strips, one below the other."""
    strips = list(blended_rows(image, predict, tile))
    starts = [top for top, _ in strips]
    ends = [top + strip.shape[1] for top, strip in strips]
    assert starts == [0, *ends[:-1]]
    return torch.cat([strip for _, strip in strips], dim=1)


@pytest.mark.parametrize("tile", [128, 160, 200, 512])
@pytest.mark.parametrize("length", [1, 127, 128, 129, 160, 161, 300, 513, 1000, 1999])
def test_windows_cover_every_pixel_with_weights_that_sum_to_one(length: int, tile: int) -> None:
    total = torch.zeros(length)
    for start, weights in windows(length, tile):
        assert start % ALIGNMENT == 0
        assert len(weights) < tile + ALIGNMENT
        assert weights.min() >= 0
        total[start : start + len(weights)] += weights
    torch.testing.assert_close(total, torch.ones(length))


@pytest.mark.parametrize("tile", [128, 200, 1024])
def test_neighbours_share_a_quarter_of_a_tile_and_borders_inside_the_photo_weigh_nothing(tile: int) -> None:
    cut = windows(3333, tile)
    assert len(cut) > 2
    for (start, weights), (after, rising) in pairwise(cut):
        assert start + len(weights) - after >= tile // 4
        margin = tile // 16
        assert not weights[-margin:].any()
        assert not rising[:margin].any()
    assert cut[0][1][0] == 1
    assert cut[-1][1][-1] == 1


def test_a_side_that_fits_is_one_tile() -> None:
    ((start, weights),) = windows(512, 512)
    assert start == 0
    assert torch.equal(weights, torch.ones(512))


@pytest.mark.parametrize("network", [blurred, coarse])
@pytest.mark.parametrize("tile", [128, 192, 300, 500])
def test_tiles_of_an_equivariant_network_equal_the_prediction_of_the_whole_photo(
    network: Predict, tile: int
) -> None:
    tiled = whole(IMAGE, network, tile)
    torch.testing.assert_close(tiled, network(IMAGE), atol=1e-6, rtol=0)


def test_probabilities_still_sum_to_one_where_tiles_disagree() -> None:
    def by_content(image: Tensor) -> Tensor:
        return image.mean((1, 2)).mul(30).softmax(0)[:, None, None].expand_as(image)

    tiled = whole(IMAGE, by_content, 128)
    torch.testing.assert_close(tiled.sum(0), torch.ones(437, 701))
    assert tiled.std() > 0
    steps = max(float(tiled.diff(dim=1).abs().max()), float(tiled.diff(dim=2).abs().max()))
    assert steps < 0.25 * float(tiled.max() - tiled.min())  # no seam: a step would have the whole difference


def test_a_small_photo_is_predicted_once() -> None:
    seen: list[tuple[int, ...]] = []

    def predict(image: Tensor) -> Tensor:
        seen.append(tuple(image.shape))
        return image

    assert torch.equal(whole(IMAGE, predict, 701), IMAGE)
    assert seen == [(3, 437, 701)]


def test_tiles_too_small_for_an_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match=f"at least {SMALLEST_TILE} pixels"):
        windows(1000, SMALLEST_TILE - 1)
