"""Localisation and correlation of maps, against plain loops over pixels and scipy's ranks."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from wsss.metrics.saliency import (
    average_ranks,
    best_overlap,
    energy,
    overlap,
    peak,
    points_inside,
    points_near,
    rank_correlation,
    smoothed,
    zones,
)

SIZE = (13, 17)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=range(4))
def case(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor]:
    """A map with many equal values, a region, and ignored pixels outside of it."""
    random = generator(request.param)
    saliency = (torch.rand(SIZE, generator=random) * 8).round() - 2
    region = torch.rand(SIZE, generator=random) < 0.3
    ignored = ~region & (torch.rand(SIZE, generator=random) < 0.2)
    return saliency, region, ignored


def counted(case: tuple[Tensor, Tensor, Tensor]) -> list[tuple[float, bool]]:
    """(value, inside) of every pixel that is not ignored."""
    saliency, region, ignored = (part.numpy() for part in case)
    places = itertools.product(range(SIZE[0]), range(SIZE[1]))
    return [(float(saliency[at]), bool(region[at])) for at in places if not ignored[at]]


# -- zone and overlap -------------------------------------------------------------------------------


def test_zone_is_what_lies_above_mean_and_deviation() -> None:
    maps = torch.randn(3, *SIZE, generator=generator()) * 5 + 2
    for saliency, zone in zip(maps.numpy(), zones(maps).numpy(), strict=True):
        assert (zone == (saliency > saliency.mean() + saliency.std())).all()


def test_zone_above_a_constant_is_relative_to_the_maps_own_range() -> None:
    maps = torch.tensor([[[2.0, 4.0, 6.0, 12.0]]])
    assert zones(maps, 0.2).tolist() == [[[False, False, True, True]]]
    assert zones(maps, 0.0).sum() == 3


def test_zone_of_a_constant_map_is_empty() -> None:
    assert not zones(torch.full((1, 3, 3), 7.0)).any()
    assert not zones(torch.zeros(1, 3, 3), 0.0).any()


def test_overlap_counts_pixels(case: tuple[Tensor, Tensor, Tensor]) -> None:
    zone = case[0] > 2
    pixels = [(value > 2, inside) for value, inside in counted(case)]
    both = sum(a and b for a, b in pixels)
    either = sum(a or b for a, b in pixels)
    dice, iou = overlap(zone, *case[1:])
    assert iou == pytest.approx(both / either)
    assert dice == pytest.approx(2 * both / (sum(a for a, _ in pixels) + sum(b for _, b in pixels)))


def test_best_overlap_tries_every_threshold(case: tuple[Tensor, Tensor, Tensor]) -> None:
    pixels = counted(case)
    found = 0.0
    for threshold in {value for value, _ in pixels}:
        both = sum(value >= threshold and inside for value, inside in pixels)
        either = sum(value >= threshold or inside for value, inside in pixels)
        found = max(found, both / either)
    assert best_overlap(*case) == pytest.approx(found, rel=1e-6)


def test_no_threshold_beats_the_oracle(case: tuple[Tensor, Tensor, Tensor]) -> None:
    best = best_overlap(*case)
    assert best is not None
    for threshold in torch.linspace(0, 0.99, 20).tolist():
        iou = overlap(zones(case[0][None], threshold)[0], *case[1:])[1]
        assert iou is not None
        assert iou <= best + 1e-6


def test_without_a_region_nothing_is_measured() -> None:
    saliency, empty = torch.rand(SIZE), torch.zeros(SIZE, dtype=torch.bool)
    assert overlap(saliency > 0.5, empty) == (None, None)
    for measure in (best_overlap, energy, points_inside, points_near):
        assert measure(saliency, empty) is None


# -- pointing ---------------------------------------------------------------------------------------


def test_peak_is_the_first_maximum_in_reading_order() -> None:
    saliency = torch.tensor([[0.0, 1.0, 3.0], [3.0, 2.0, 3.0]])
    assert peak(saliency) == (0, 2)
    assert peak(torch.ones(2, 2)) is None


@pytest.mark.parametrize("seed", range(5))
def test_pointing_is_the_distance_to_the_nearest_pixel_of_the_region(seed: int) -> None:
    random = generator(seed)
    saliency = torch.rand(40, 50, generator=random)
    region = torch.rand(40, 50, generator=random) < 0.002
    region[3, 4] = True
    row, column = np.unravel_index(int(saliency.numpy().argmax()), saliency.shape)
    near = min(math.dist((row, column), at) for at in np.argwhere(region.numpy()))
    for tolerance in (0.5, 3.0, 15.0, 30.0):
        assert points_near(saliency, region, tolerance=tolerance) is (near < tolerance)
    assert points_inside(saliency, region) is bool(region[row, column])


def test_pointing_exactly_at_the_tolerance_misses_as_in_torchray() -> None:
    saliency, region = torch.zeros(1, 40), torch.zeros(1, 40, dtype=torch.bool)
    saliency[0, 20], region[0, 5] = 1, True
    assert points_near(saliency, region) is False
    region[0, 6] = True
    assert points_near(saliency, region) is True


def test_pointing_at_an_ignored_pixel_is_neither_hit_nor_miss() -> None:
    saliency = torch.zeros(1, 40)
    region, ignored = torch.zeros(2, 1, 40, dtype=torch.bool)
    saliency[0, 20], region[0, 0], ignored[0, 20] = 1, True, True
    assert points_inside(saliency, region, ignored) is None
    assert points_near(saliency, region, ignored) is None
    region[0, 18] = True  # near enough: the tolerance makes it a hit
    assert points_inside(saliency, region, ignored) is None
    assert points_near(saliency, region, ignored) is True


def test_a_constant_map_points_nowhere() -> None:
    region = torch.ones(4, 4, dtype=torch.bool)
    assert points_inside(torch.zeros(4, 4), region) is False
    assert points_near(torch.ones(4, 4), region) is False


def test_smoothing_moves_the_peak_to_where_the_mass_is() -> None:
    saliency = torch.zeros(100, 80)
    saliency[10, 10] = 1.0
    saliency[60:66, 40:46] = 0.8
    assert peak(saliency) == (10, 10)
    row, column = peak(smoothed(saliency)) or (0, 0)
    assert 60 <= row < 66
    assert 40 <= column < 46


def test_smoothing_is_a_gaussian_up_to_three_deviations() -> None:
    saliency = torch.zeros(101, 80)
    saliency[50, 40] = 1
    found = smoothed(saliency, sigma=0.1)  # 10.1 pixels
    for distance in (7, 29):
        ratio = math.exp(-(distance**2) / (2 * 10.1**2))
        assert float(found[50 + distance, 40] / found[50, 40]) == pytest.approx(ratio, rel=1e-3)


def test_energy_is_the_share_of_the_mass(case: tuple[Tensor, Tensor, Tensor]) -> None:
    low = float(case[0].min())  # of the whole map: normalisation comes first
    pixels = [(value - low, inside) for value, inside in counted(case)]
    expected = sum(value for value, inside in pixels if inside) / sum(value for value, _ in pixels)
    assert energy(*case) == pytest.approx(expected)


def test_energy_of_a_constant_map_is_zero() -> None:
    assert energy(torch.full((3, 3), 2.0), torch.ones(3, 3, dtype=torch.bool)) == 0


# -- ranks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_rank_correlation_is_scipys(levels: int) -> None:
    random = np.random.default_rng(levels)
    first = random.integers(0, levels, 300)
    second = random.integers(0, levels, 300) + first // 2
    ours = rank_correlation(torch.tensor(first).view(15, 20), torch.tensor(second).view(15, 20))
    assert ours == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
    assert (average_ranks(torch.tensor(first)).numpy() == stats.rankdata(first)).all()


def test_rank_correlation_knows_order_only() -> None:
    saliency = torch.rand(9, 9, generator=generator())
    assert rank_correlation(saliency, saliency**3) == pytest.approx(1)
    assert rank_correlation(saliency, -saliency) == pytest.approx(-1)
    assert rank_correlation(saliency, torch.zeros(9, 9)) == 0
