from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch

from wsss.refine.pamr import affinities, local_deviation, pamr

Array = npt.NDArray[np.float64]
COMPASS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


def random_input(classes: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(classes, height, width, generator=generator)
    return maps, torch.rand(1, 3, height, width, generator=generator) * 255


def pixel(array: Array, y: int, x: int) -> Array:
    """The value at (y, x); beyond the border, the border's."""
    value: Array = array[:, min(max(y, 0), array.shape[1] - 1), min(max(x, 0), array.shape[2] - 1)]
    return value


def reference(maps: Array, image: Array, iterations: int, dilations: Sequence[int]) -> Array:
    """Pixel by pixel and neighbour by neighbour, straight from the definition."""
    height, width = image.shape[1:]
    offsets = [(d * dy, d * dx) for d in dilations for dy, dx in COMPASS]
    for _ in range(iterations):
        result = np.empty_like(maps)
        for y in range(height):
            for x in range(width):
                here = image[:, y, x]
                colours = np.stack([pixel(image, y + dy, x + dx) for dy, dx in offsets])
                window = np.concatenate([colours, np.tile(here, (len(dilations), 1))])
                sigma = window.std(axis=0, ddof=1)
                kernel = (-np.abs(colours - here) / (1e-8 + 0.1 * sigma)).mean(axis=1)
                alpha = np.exp(kernel - kernel.max())
                alpha /= alpha.sum()
                result[:, y, x] = alpha @ np.stack([pixel(maps, y + dy, x + dx) for dy, dx in offsets])
        maps = result
    return maps


@pytest.mark.parametrize(
    ("size", "iterations", "dilations"),
    [((7, 9), 3, (1, 2, 4)), ((5, 4), 2, (1, 24)), ((1, 6), 1, (2,))],
    ids=["small", "dilation beyond the photo", "one row"],
)
def test_it_is_the_loop_over_pixels_and_neighbours(
    size: tuple[int, int], iterations: int, dilations: tuple[int, ...]
) -> None:
    maps, image = random_input(2, *size)
    expected = reference(maps.double().numpy(), image[0].double().numpy(), iterations, dilations)
    np.testing.assert_allclose(pamr(maps, image, iterations, dilations), expected, rtol=2e-4, atol=1e-5)


def test_a_constant_photo_averages_its_neighbours_evenly() -> None:
    maps, image = random_input(2, 6, 8)
    flat = torch.full_like(image, 128.0)
    weights = affinities(flat, (1, 2))
    assert torch.allclose(torch.cat(weights), torch.full((16, 1, 6, 8), 1 / 16))
    inner = maps[:, 2:5, 3:6].double()
    expected = (inner.sum((1, 2)) - maps[:, 3, 4]) / 8
    assert torch.allclose(pamr(maps, flat, 1, (1,))[:, 3, 4].double(), expected, atol=1e-6)


def test_the_deviation_of_tiny_contrast_on_a_bright_photo_is_exact() -> None:
    image = torch.full((1, 3, 5, 5), 200.0)
    image[0, :, 2, 2] += 2**-10
    expected = np.std([0] * 8 + [2**-10], ddof=1)
    assert torch.allclose(local_deviation(image, (1,))[0, :, 2, 2], torch.full((3,), expected).float())


def test_constant_maps_stay_as_they_are_and_results_stay_in_range() -> None:
    maps, image = random_input(3, 20, 17)
    assert torch.allclose(pamr(torch.full_like(maps, 0.3), image), torch.full_like(maps, 0.3), atol=1e-5)
    result = pamr(maps, image)
    assert result.min() >= maps.min()
    assert result.max() <= maps.max() + 1e-5
    shares = maps / maps.sum(0)
    assert torch.allclose(pamr(shares, image).sum(0), torch.ones(20, 17), atol=1e-5)


def test_scores_move_to_the_edge_of_the_photo_and_not_across() -> None:
    image = torch.full((1, 3, 24, 40), 20.0)
    image[..., 20:] = 200
    maps = torch.zeros(1, 24, 40)
    maps[..., 26:] = 1  # the seed starts 6 pixels right of the edge
    refined = pamr(maps, image, iterations=20, dilations=(1, 2, 4))
    assert refined[..., 20:].min() > 0.2
    assert refined[..., :20].max() < 0.01


def test_the_range_of_the_colours_does_not_matter() -> None:
    maps, image = random_input(2, 12, 15)
    assert torch.allclose(pamr(maps, image), pamr(maps, image / 255 - 0.4), atol=1e-4)


def test_images_of_a_batch_do_not_influence_each_other() -> None:
    first, second = random_input(2, 10, 11), random_input(2, 10, 11)
    image = torch.cat((first[1], second[1].flip(-1)))
    maps = torch.stack((first[0], second[0].flip(-1)))
    both = pamr(maps, image, 2)
    assert torch.allclose(both[0], pamr(first[0], first[1], 2), atol=1e-6)
    assert torch.allclose(both[0], pamr(first[0], first[1][0], 2), atol=1e-6)
    assert torch.allclose(both[1], both[0].flip(-1), atol=1e-5)


def test_half_precision_and_autocast_compute_in_float32() -> None:
    maps, image = random_input(2, 10, 11)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = pamr(maps, image)
    assert result.dtype == torch.float32
    assert torch.equal(result, pamr(maps, image))
    assert pamr(maps.half(), image.half()).dtype == torch.float32


def test_inputs_are_not_changed_and_no_gradient_is_kept() -> None:
    maps, image = random_input(2, 9, 9)
    before, image_before = maps.clone(), image.clone()
    assert not pamr(maps.requires_grad_(), image).requires_grad
    assert torch.equal(maps, before)
    assert torch.equal(image, image_before)
    assert torch.equal(pamr(maps, image, iterations=0), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": torch.zeros(5, 6)}, r"\(C, H, W\) or"),
        ({"maps": torch.zeros(2, 5, 6, dtype=torch.int64)}, "must be floats"),
        ({"image": torch.zeros(1, 3, 6, 5)}, "must agree in batch, height and width"),
        ({"image": torch.zeros(2, 3, 5, 6)}, "must agree in batch, height and width"),
        ({"image": torch.zeros(1, 3, 5, 6, dtype=torch.uint8)}, "float RGB"),
        ({"image": torch.zeros(1, 1, 5, 6)}, r"\(B, 3, H, W\)"),
        ({"maps": torch.zeros(2, 0, 6), "image": torch.zeros(1, 3, 0, 6)}, "image is empty"),
        ({"iterations": -1}, "iterations must be 0 or more"),
        ({"dilations": ()}, "one or more distances"),
        ({"dilations": (0, 1)}, "at least 1 pixel"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"maps": torch.zeros(2, 5, 6), "image": torch.zeros(1, 3, 5, 6)}
    with pytest.raises(ValueError, match=message):
        pamr(**(arguments | change))  # type: ignore[arg-type]
