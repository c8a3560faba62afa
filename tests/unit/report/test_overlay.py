from __future__ import annotations

import itertools

import numpy as np
import pytest

from wsss.data.palette import voc_palette
from wsss.data.working import shrink
from wsss.report.overlay import heat_palette, outline, overlay_contour, overlay_mask, overlay_saliency


def photo(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mask() -> np.ndarray:
    labels = np.zeros((20, 30), np.uint8)
    labels[2:10, 3:12] = 7
    labels[2:10, 12:20] = 9
    labels[14:, 20:] = 255
    return labels


def test_background_is_untouched_and_the_input_too() -> None:
    image, labels = photo(), mask()
    before = image.copy()
    drawn = overlay_mask(image, labels)
    np.testing.assert_array_equal(drawn[labels == 0], before[labels == 0])
    np.testing.assert_array_equal(image, before)


def test_inside_a_region_the_palette_colour_is_blended_in() -> None:
    image, labels = photo(), mask()
    drawn = overlay_mask(image, labels, opacity=0.6)
    inside = (labels == 7) & ~outline(labels)
    assert inside.any()
    expected = 0.4 * image[inside].astype(float) + 0.6 * voc_palette()[7]
    np.testing.assert_allclose(drawn[inside], expected, atol=0.51)


def test_outline_is_white_and_agrees_with_a_loop_over_pixels() -> None:
    labels = mask()
    expected = np.zeros(labels.shape, bool)
    for y, x in itertools.product(range(20), range(30)):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        values = [labels[a, b] for a, b in around if 0 <= a < 20 and 0 <= b < 30]
        expected[y, x] = labels[y, x] not in (0, 255) and any(value != labels[y, x] for value in values)
    np.testing.assert_array_equal(outline(labels), expected)
    assert (overlay_mask(photo(), labels)[expected] == 255).all()


@pytest.mark.parametrize("scale", [1, 20])
def test_contours_leave_the_photo_and_agree_with_a_loop_over_pixels(scale: int) -> None:
    """A line of the class's colour inside the border, white beyond it, as wide as the picture asks for."""
    labels = np.kron(mask(), np.ones((scale, scale), np.uint8))
    height, width = labels.shape
    image = photo(height, width)
    drawn = overlay_contour(image, labels)
    reach = 1 + max(labels.shape) // 300
    beyond = reach + max(1, reach // 2)
    random, border = np.random.default_rng(0), outline(labels)
    for y, x in zip(random.integers(0, height, 600), random.integers(0, width, 600), strict=True):

        def near(steps: int, y: int = y, x: int = x) -> bool:
            return bool(border[max(0, y - steps) : y + steps + 1, max(0, x - steps) : x + steps + 1].any())

        if near(reach) and labels[y, x] in (7, 9):
            expected = voc_palette()[labels[y, x]]
        elif near(beyond):
            expected = np.full(3, 255)
        elif labels[y, x] == 255:
            continue  # hatched, see below
        else:
            expected = image[y, x]
        assert (drawn[y, x] == expected).all(), (y, x)
    hatched = drawn[labels == 255]
    assert np.array_equal(hatched, overlay_mask(image, labels)[labels == 255])
    assert np.array_equal(image, photo(height, width))


def test_uncertain_pixels_are_hatched_and_not_a_plain_colour() -> None:
    labels = mask()
    drawn = overlay_mask(np.full((20, 30, 3), 40, np.uint8), labels)
    values = np.unique(drawn[labels == 255], axis=0)
    assert len(values) == 2
    assert (values > 40).all()


def test_a_mask_of_one_class_without_border_has_no_outline() -> None:
    assert not outline(np.full((4, 5), 3, np.uint8)).any()


def test_zero_saliency_shows_the_photo_in_grey_and_full_saliency_the_hottest_colour() -> None:
    image = photo()
    saliency = np.zeros((20, 30), np.float32)
    saliency[:, 15:] = 1
    drawn = overlay_saliency(image, saliency, opacity=1.0)
    assert (drawn[:, :15, 0] == drawn[:, :15, 1]).all()
    assert (drawn[:, :15, 0] == drawn[:, :15, 2]).all()
    grey = image[:, :15] @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(drawn[:, :15, 0], grey, atol=1)
    np.testing.assert_array_equal(drawn[:, 15:], np.broadcast_to(heat_palette()[255], (20, 15, 3)))


def test_saliency_out_of_range_is_clipped_and_nan_is_zero() -> None:
    image = photo(1, 4)
    odd = overlay_saliency(image, np.array([[-3, np.nan, 7, 0.5]], np.float16))
    np.testing.assert_array_equal(odd, overlay_saliency(image, np.array([[0, 0, 1, 0.5]])))


def test_heat_palette_is_rgb_and_grows_lighter() -> None:
    lightness = heat_palette() @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > -0.8).all()
    red, _, blue = heat_palette()[150].tolist()
    assert red > blue  # the middle of inferno is red: a swapped channel order would make it blue


def test_shrink_keeps_the_aspect_and_never_enlarges() -> None:
    image = photo(60, 90)
    assert shrink(image, 45).shape == (30, 45, 3)
    assert shrink(image, 200) is image
    assert shrink(np.zeros((500, 2), np.uint8), 10).shape == (10, 1)


def test_shrink_averages_photos_and_samples_masks() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[::2] = 100
    assert (shrink(image, 2) == 50).all()
    labels = np.array([[3, 3, 255, 255]] * 4, np.uint8)
    assert shrink(labels, 2).tolist() == [[3, 255]] * 2
    half = shrink(np.array([[0, 1, 0, 1]] * 4, np.float16), 2)
    assert half.dtype == np.float16
    assert half.tolist() == [[0.5, 0.5]] * 2


def test_layers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layer is \(5, 5\).* image is \(20, 30\)"):
        overlay_mask(photo(), np.zeros((5, 5), np.uint8))
    with pytest.raises(ValueError, match=r"layer is \(5, 5\).* image is \(20, 30\)"):
        overlay_contour(photo(), np.zeros((5, 5), np.uint8))
    with pytest.raises(ValueError, match="must be uint8, not int64"):
        overlay_mask(photo(), np.zeros((20, 30), np.int64))
    with pytest.raises(ValueError, match="must be floating, not uint8"):
        overlay_saliency(photo(), np.zeros((20, 30), np.uint8))
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) uint8"):
        overlay_saliency(photo()[..., 0], np.zeros((20, 30)))
