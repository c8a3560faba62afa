from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.extension.affinity import (
    WalkParameters,
    affinity,
    calibrated_power,
    cells,
    default_layers,
    features,
    random_walk,
    reach,
    similarity,
    walk,
)
from wsss.models.vgg import VGG16

RESNET_LAYERS = ("layer2", "layer3")


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None, num_classes=4).eval()


def random_cells(depth: int, rows: int, columns: int) -> Tensor:
    cells = torch.randn(depth, rows, columns, generator=torch.Generator().manual_seed(0))
    return F.normalize(cells + 0.5, dim=0)


def dense_transition(cells: Tensor, radius: int, power: float) -> npt.NDArray[np.float64]:
    """All pairs of cells in plain loops: (N, N), rows sum to one."""
    array = cells.double().numpy()
    _, rows, columns = array.shape
    places = [(y, x) for y in range(rows) for x in range(columns)]
    matrix = np.zeros((len(places), len(places)))
    for i, (y, x) in enumerate(places):
        for j, (v, u) in enumerate(places):
            if (y - v) ** 2 + (x - u) ** 2 <= radius**2:
                matrix[i, j] = 1.0 if i == j else max(array[:, y, x] @ array[:, v, u], 0) ** power
    result: npt.NDArray[np.float64] = matrix / matrix.sum(axis=1, keepdims=True)
    return result


@pytest.mark.parametrize(
    ("size", "radius", "power", "steps"), [((6, 9), 2, 3.0, 5), ((5, 4), 12, 1.0, 3), ((1, 7), 3, 15.0, 2)]
)
def test_the_walk_is_the_power_of_the_dense_matrix(
    size: tuple[int, int], radius: int, power: float, steps: int
) -> None:
    cells = random_cells(4, *size)
    maps = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    dense = np.linalg.matrix_power(dense_transition(cells, radius, power), steps)
    expected = (maps.double().reshape(3, -1).numpy() @ dense.T).reshape(3, *size)
    result = random_walk(maps, affinity(cells, radius, power), steps)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_transitions_sum_to_one_and_end_at_the_radius() -> None:
    transition = affinity(random_cells(4, 7, 8), radius=3, power=2.0)
    assert transition.shape == (7, 8, 7, 8)
    assert torch.allclose(transition.sum((2, 3)), torch.ones(7, 8))
    assert transition[3, 4, 0, 4] > 0  # three rows up
    assert transition[3, 4, 0, 5] == 0  # and one to the right: further than 3
    assert transition[0, 4, :3].max() == 0  # above the grid


def test_equal_features_average_evenly_over_the_disc() -> None:
    cells = F.normalize(torch.ones(3, 9, 9), dim=0)
    maps = torch.zeros(1, 9, 9)
    maps[0, 4, 4] = 1
    result = random_walk(maps, affinity(cells, radius=2, power=7.0), steps=1)
    # 13 offsets lie within distance 2; a cell in the middle has them all.
    assert torch.allclose(result[0, 4, 2:7], torch.full((5,), 1 / 13))
    assert result[0, 4, 1] == 0
    assert result[0, 2, 3] == 0


def test_a_seed_covers_its_region_and_does_not_cross_an_orthogonal_border() -> None:
    cells = torch.zeros(2, 6, 10)
    cells[0, :, :5] = 1
    cells[1, :, 5:] = 1
    maps = torch.zeros(1, 6, 10)
    maps[0, 3, 2] = 1
    result = random_walk(maps, affinity(cells, radius=3, power=15.0), steps=40)
    assert result[..., 5:].max() == 0
    assert result[..., :5].min() > 0.5 * result.max()


def test_every_step_keeps_values_in_range() -> None:
    transition = affinity(random_cells(3, 8, 6), radius=3, power=2.0)
    maps = torch.rand(2, 8, 6, generator=torch.Generator().manual_seed(1))
    low, high = maps.amin((1, 2)), maps.amax((1, 2))
    for _ in range(5):
        maps = random_walk(maps, transition, 1)
        assert bool((maps.amin((1, 2)) >= low - 1e-6).all())
        assert bool((maps.amax((1, 2)) <= high + 1e-6).all())
        low, high = maps.amin((1, 2)), maps.amax((1, 2))


def test_a_cell_without_features_keeps_its_value() -> None:
    cells = random_cells(3, 5, 5)
    cells[:, 2, 2] = 0
    maps = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(1))
    result = random_walk(maps, affinity(cells, 2, 2.0), 6)
    assert torch.allclose(result[0, 2, 2], maps[0, 2, 2])
    assert bool(torch.isfinite(result).all())


def test_features_are_the_layers_outputs_as_unit_vectors(classifier: nn.Module) -> None:
    images = torch.randn(2, 3, 64, 80, generator=torch.Generator().manual_seed(1))
    cells = features(classifier, images, RESNET_LAYERS)
    assert cells.shape == (2, 128 + 256, 8, 10)
    assert torch.allclose(cells.norm(dim=1), torch.ones(2, 8, 10), atol=1e-5)
    with torch.no_grad():
        stem = nn.Sequential(*list(classifier.children())[:6])  # up to layer2
        second = stem(images)
        third = classifier.get_submodule("layer3")(second)
    expected = F.normalize(second, dim=1)
    assert torch.allclose(cells[:, :128] * 2**0.5, expected, atol=1e-5)
    coarse = F.interpolate(F.normalize(third, dim=1), scale_factor=2, mode="bilinear")
    assert torch.allclose(cells[:, 128:] * 2**0.5, F.normalize(coarse, dim=1), atol=1e-5)


def test_layers_that_are_finer_than_the_grid_are_averaged() -> None:
    fine = torch.randn(1, 5, 32, 40, generator=torch.Generator().manual_seed(0))
    averaged = F.interpolate(F.normalize(fine, dim=1), size=(8, 10), mode="bilinear", antialias=True)
    assert torch.allclose(cells([fine], (8, 10)), F.normalize(averaged, dim=1), atol=1e-5)


def test_a_layer_that_is_silent_in_a_cell_shortens_its_vector() -> None:
    layer = torch.randn(1, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    silent = layer.clone()
    silent[..., 1, 2] = 0
    lengths = cells([layer, silent], (4, 4)).norm(dim=1)[0]
    assert lengths[1, 2] == pytest.approx(0.5**0.5)
    assert lengths[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("size", [(33, 50), (20, 9), (64, 47)])
def test_odd_and_tiny_photos_get_a_grid_of_stride_8(classifier: nn.Module, size: tuple[int, int]) -> None:
    cells = features(classifier, torch.randn(1, 3, *size), RESNET_LAYERS)
    assert cells.shape[-2:] == (-(-size[0] // 8), -(-size[1] // 8))
    coarse = features(classifier, torch.randn(1, 3, *size), RESNET_LAYERS, stride=16)
    assert coarse.shape[-2:] == (-(-size[0] // 16), -(-size[1] // 16))
    refined = walk(torch.rand(2, 3, 4), classifier, torch.randn(3, *size), WalkParameters())
    assert refined.shape == (2, *cells.shape[-2:])
    assert bool(torch.isfinite(refined).all())


def test_walk_is_its_three_steps_and_divides_by_the_maximum(classifier: nn.Module) -> None:
    maps, image = torch.rand(2, 8, 10), torch.randn(3, 64, 80)
    cells = features(classifier, image[None], RESNET_LAYERS)[0]
    expected = random_walk(maps, affinity(cells, 4, 5.0), 3)
    expected = expected / expected.amax((1, 2), keepdim=True)
    result = walk(maps, classifier, image, WalkParameters(radius=4, power=5, steps=3))
    assert torch.allclose(result, expected, atol=1e-6)


def test_walk_of_no_class_costs_nothing_and_empty_maps_stay_empty(classifier: nn.Module) -> None:
    image = torch.randn(3, 64, 64)
    assert len(walk(torch.zeros(0, 4, 4), nn.Identity(), image, WalkParameters())) == 0
    assert walk(torch.zeros(1, 4, 4), classifier, image, WalkParameters()).abs().max() == 0


def test_default_layers_exist_in_both_architectures(classifier: nn.Module) -> None:
    assert default_layers(classifier) == ("layer2", "layer3")
    with torch.device("meta"):
        vgg = VGG16(3)
    assert default_layers(vgg) == ("features.15", "features.22")
    with pytest.raises(
        UserError, match="last three stages of this classifier are not known: name the layers to compare"
    ):
        default_layers(nn.Conv2d(3, 1, 1))


def test_inplace_layers_after_the_compared_one_do_not_change_its_features() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8, padding=1), nn.ReLU(inplace=True))
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = F.normalize(model[0](image), dim=1)
    assert torch.allclose(features(model, image, ("0",)), expected, atol=1e-6)


def test_it_leaks_nothing(classifier: nn.Module) -> None:
    classifier.train()
    statistics = {name: value.clone() for name, value in classifier.state_dict().items()}
    try:
        walk(torch.rand(1, 4, 4), classifier, torch.randn(3, 64, 64), WalkParameters(radius=2))
        assert all(module.training for module in classifier.modules())
    finally:
        classifier.eval()
    assert not any(module._forward_hooks for module in classifier.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in classifier.parameters())
    assert all(torch.equal(value, statistics[name]) for name, value in classifier.state_dict().items())


def test_maps_are_float32_also_under_autocast(classifier: nn.Module) -> None:
    maps, image = torch.rand(1, 8, 8), torch.randn(3, 64, 64)
    plain = walk(maps, classifier, image, WalkParameters(radius=3))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        cast = walk(maps, classifier, image, WalkParameters(radius=3))
    assert cast.dtype == torch.float32
    assert torch.allclose(cast, plain, atol=0.05)


@pytest.mark.parametrize(
    ("layer", "message"),
    [("layer9", "no layer 'layer9'; close names: layer"), ("fc", "'fc' must give feature maps")],
)
def test_layers_that_cannot_be_compared_are_refused(classifier: nn.Module, layer: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        features(classifier, torch.randn(1, 3, 32, 32), ("layer2", layer))
    assert not any(module._forward_hooks for module in classifier.modules())


def test_a_layer_that_does_not_run_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    model[0].unused = nn.Conv2d(1, 1, 1)
    with pytest.raises(UserError, match=r"'0\.unused' does not run"):
        features(model, torch.randn(1, 3, 16, 16), ("0.unused",))


def test_maps_must_fit_the_grid() -> None:
    with pytest.raises(ValueError, match="do not fit a grid of 5 x 6 cells"):
        random_walk(torch.zeros(1, 6, 5), affinity(random_cells(3, 5, 6), 1, 1.0), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": 0}, "radius must be 1 or more"),
        ({"power": 0.0}, "power must be positive"),
        ({"steps": -1}, "steps must be 0 or more"),
    ],
)
def test_meaningless_constants_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WalkParameters(**change)  # type: ignore[arg-type]


def test_reach_is_the_entropy_of_plain_loops() -> None:
    found = similarity(random_cells(4, 3, 5), radius=2)
    shares = []
    for row in range(3):
        for column in range(5):
            inside, raw = 0, []
            for i in range(5):
                for other in range(5):
                    there = row + i - 2
                    if 0 <= there < 3 and (i - 2) ** 2 + (other - column) ** 2 <= 4:
                        inside += 1
                        raw.append(float(found[row, column, i, other]) ** 7)
            parts = [value / sum(raw) for value in raw if value]
            shares.append(math.exp(-sum(part * math.log(part) for part in parts)) / inside)
    assert reach(found, 7.0) == pytest.approx(sum(shares) / len(shares), rel=1e-5)
    even = torch.ones_like(found) * (found > 0)
    assert reach(even, 3.0) <= 1.0


def test_a_network_that_finds_all_alike_gets_a_larger_power() -> None:
    torch.manual_seed(0)
    base = torch.randn(16, 8, 8)
    alike, different = F.normalize(base + 6, dim=0), F.normalize(base + 1, dim=0)
    powers = [calibrated_power([similarity(cells, 3)]) for cells in (different, alike)]
    assert 1 < powers[0] < powers[1] <= 200
