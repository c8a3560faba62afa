"""The lattice against a dictionary in plain Python, written from the paper, and against the exact Gaussian."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from wsss.errors import UserError
from wsss.refine import permutohedral
from wsss.refine.permutohedral import build_lattice, lattice_filter, pad_points


def random_points(dimension: int, count: int, spread: float = 2.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return pad_points(torch.rand(dimension, count, generator=generator) * spread)


def enclosing_simplex(point: npt.NDArray[np.float64]) -> dict[tuple[int, ...], float]:
    """Vertices (all d + 1 coordinates) and barycentric coordinates, by sorting in float64."""
    d = len(point)
    scaled = [
        x * math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2)) for i, x in enumerate(point.tolist())
    ]
    lifted = [sum(scaled[i:]) - (i * scaled[i - 1] if i else 0) for i in range(d + 1)]
    base = [(d + 1) * round(x / (d + 1)) for x in lifted]
    order = sorted(range(d + 1), key=lambda i: base[i] - lifted[i])
    excess = sum(base) // (d + 1)
    # Bring the sum to zero: too high, lower those that were rounded up most; too low, raise the opposite ones.
    for i in order[d + 1 - excess :] if excess > 0 else order[: max(0, -excess)]:
        base[i] -= int(math.copysign(d + 1, excess))
    order = sorted(range(d + 1), key=lambda i: base[i] - lifted[i])
    rest = sorted(((lifted[i] - base[i]) / (d + 1) for i in range(d + 1)), reverse=True)
    weights = [1 - rest[0] + rest[d], *(rest[d - k] - rest[d + 1 - k] for k in range(1, d + 1))]
    vertices = {}
    for k in range(d + 1):
        lowered = set(order[d + 1 - k :])
        vertices[tuple(base[i] + k - (d + 1) * (i in lowered) for i in range(d + 1))] = weights[k]
    return vertices


def filter_with_a_dictionary(points: Tensor, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    d, count = points.shape
    simplices = [enclosing_simplex(points[:, i].numpy().astype(float)) for i in range(count)]
    lattice: dict[tuple[int, ...], float] = {}
    for simplex, value in zip(simplices, values, strict=True):
        for vertex, weight in simplex.items():
            lattice[vertex] = lattice.get(vertex, 0.0) + weight * value
    for j in range(d + 1):
        step = np.array([d if i == j else -1 for i in range(d + 1)])
        lattice = {
            vertex: value
            + 0.5 * lattice.get(tuple((vertex + step).tolist()), 0.0)
            + 0.5 * lattice.get(tuple((vertex - step).tolist()), 0.0)
            for vertex, value in lattice.items()
        }
    sliced = [sum(weight * lattice[vertex] for vertex, weight in simplex.items()) for simplex in simplices]
    return np.array(sliced) / (1 + 2.0**-d)


@pytest.mark.parametrize(("dimension", "spread"), [*itertools.product([1, 2, 3, 5], [0.5, 4.0, 30.0])])
def test_filter_follows_the_paper(dimension: int, spread: float) -> None:
    points = random_points(dimension, 60, spread)
    values = np.random.default_rng(1).normal(size=60)
    ours = lattice_filter(torch.from_numpy(values)[:, None], build_lattice([points]))[:, 0]
    np.testing.assert_allclose(ours, filter_with_a_dictionary(points, values), atol=1e-5)


def test_filter_approximates_the_gaussian() -> None:
    points = random_points(2, 2000, spread=6.0)
    values = torch.rand(2000, 3, generator=torch.Generator().manual_seed(1))
    exact = (-torch.cdist(points.T, points.T).square() / 2).exp() @ values
    ours = lattice_filter(values, build_lattice([points]))
    assert torch.corrcoef(torch.stack([ours.flatten(), exact.flatten()]))[0, 1] > 0.98
    # The lattice's own normalisation is a constant factor off; densecrf divides by row sums, so do we.
    ratio = ours / exact
    assert ratio.std() / ratio.mean() < 0.1


@pytest.mark.parametrize("dimension", [2, 5])
def test_barycentric_coordinates_are_a_partition_of_one(dimension: int) -> None:
    lattice = build_lattice([random_points(dimension, 400, 20.0)])
    gain = (1 + 2.0**-dimension) ** -0.5
    torch.testing.assert_close(lattice.weights.sum(1), torch.full((400,), gain))
    assert lattice.weights.min() > -1e-5


def test_gradient_is_the_transpose_and_has_gradients_itself() -> None:
    # Vertices without all neighbours make the blur's directions not commute: the order matters.
    lattice = build_lattice([random_points(3, 24, 5.0)])
    matrix = lattice_filter(torch.eye(24, dtype=torch.float64), lattice)
    assert (matrix - matrix.T).abs().max() > 1e-3
    values = torch.rand(24, 24, dtype=torch.float64, requires_grad=True)
    lattice_filter(values, lattice).backward(torch.eye(24, dtype=torch.float64))
    torch.testing.assert_close(values.grad, matrix.T)
    assert torch.autograd.gradgradcheck(lambda v: lattice_filter(v, lattice) ** 2, values[:, :1])


def test_both_ways_to_splat_agree() -> None:
    lattice = build_lattice([random_points(5, 200, 3.0)])
    values = torch.rand(200, 7)
    torch.testing.assert_close(
        permutohedral._splat_by_point(values, lattice), permutohedral._splat_by_vertex(values, lattice)
    )


def test_sets_of_points_do_not_see_each_other() -> None:
    sets = [random_points(3, count, 2.0, seed=count) for count in (12, 40, 4)]
    values = torch.rand(56, 2)
    together = lattice_filter(values, build_lattice(sets))
    alone = [
        lattice_filter(part, build_lattice([points]))
        for part, points in zip(values.split([12, 40, 4]), sets, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_scaling_multiplies_before_and_after() -> None:
    lattice = build_lattice([random_points(2, 20)])
    factors, values = torch.rand(20), torch.rand(20, 3)
    expected = factors[:, None] * lattice_filter(factors[:, None] * values, lattice)
    torch.testing.assert_close(lattice_filter(values, lattice.scaled(factors)), expected)


def test_points_of_one_place_share_one_simplex() -> None:
    lattice = build_lattice([torch.zeros(5, 8)])
    assert len(lattice.offsets) - 1 == 6
    assert (lattice.vertices == lattice.vertices[0]).all()


@pytest.mark.parametrize("bits", [3, 16, 17, 40, 60])
def test_radix_sort_is_a_stable_sort(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 500), generator=torch.Generator().manual_seed(bits))
    codes[:, 100:200] = codes[:, :100]
    assert torch.equal(permutohedral._argsort_rows(codes), codes.argsort(dim=1, stable=True))


def test_points_too_far_apart_are_refused() -> None:
    with pytest.raises(UserError, match=r"too narrow for this image: raise crf\.gaussian_sxy"):
        build_lattice([random_points(5, 8, spread=1e6)])
