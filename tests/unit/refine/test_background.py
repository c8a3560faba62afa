from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from wsss.refine.background import (
    background_scores,
    background_threshold,
    otsu_threshold,
    prepare_maps,
    prepare_probabilities,
    saliency_histogram,
    seed_mask,
    strongest_class,
)
from wsss.refine.parameters import BackgroundParameters, Rule


def random_maps(classes: int = 3, height: int = 20, width: int = 31) -> np.ndarray:
    maps = np.random.default_rng(0).random((classes, height, width), dtype=np.float32)
    return maps / maps.max(axis=(1, 2), keepdims=True)


def test_prepared_maps_agree_with_torch_and_peak_at_one() -> None:
    stored = np.random.default_rng(0).random((3, 7, 9)).astype(np.float16)
    stored[1] = 0
    prepared = prepare_maps(stored, (40, 53))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(stored).float()[None], size=(40, 53), mode="bilinear", align_corners=False
    )[0].numpy()
    expected[[0, 2]] /= expected[[0, 2]].max(axis=(1, 2), keepdims=True)
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared, expected, atol=1e-5)
    assert prepared.max(axis=(1, 2)).tolist() == [1, 0, 1]


def test_prepared_probabilities_agree_with_torch_and_sum_to_one() -> None:
    stored = np.random.default_rng(0).random((3, 7, 9)).astype(np.float16)
    prepared = prepare_probabilities(stored, (40, 53))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(stored).float()[None], size=(40, 53), mode="bilinear", align_corners=False
    )[0].numpy()
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared, expected / expected.sum(axis=0), atol=1e-5)
    assert not prepare_probabilities(np.zeros_like(stored), (40, 53)).any()


def test_no_classes_make_no_maps() -> None:
    assert prepare_maps(np.zeros((0, 4, 5), np.float16), (8, 10)).shape == (0, 8, 10)
    assert seed_mask(np.zeros((0, 8, 10), np.float32), (), 0.5).tolist() == [[0] * 10] * 8


def test_seed_mask_agrees_with_a_loop_over_pixels() -> None:
    maps, classes, threshold = random_maps(), (4, 9, 17), 0.6
    mask = seed_mask(maps, classes, threshold)
    assert mask.dtype == np.uint8
    for y, x in itertools.product(range(maps.shape[1]), range(maps.shape[2])):
        best = max(range(3), key=lambda index: maps[index, y, x])
        assert mask[y, x] == (classes[best] if maps[best, y, x] > threshold else 0)


def test_a_pixel_at_the_threshold_is_background() -> None:
    maps = np.array([[[0.3, np.nextafter(np.float32(0.3), 1)]]], np.float32)
    assert seed_mask(maps, (5,), 0.3).tolist() == [[0, 5]]


def test_strongest_class_gives_index_and_saliency() -> None:
    maps = np.array([[[0.2, 0.9]], [[0.5, 0.1]]], np.float32)
    best, score = strongest_class(maps, (3, 8))
    assert best.tolist() == [[8, 3]]
    np.testing.assert_allclose(score, [[0.5, 0.9]])


@pytest.mark.parametrize("rule", ["constant", "power", "otsu"])
def test_scores_and_threshold_of_a_rule_give_the_same_seed(rule: Rule) -> None:
    maps, parameters = random_maps(), BackgroundParameters(rule=rule, threshold=0.7, alpha=0.5)
    scores = background_scores(maps, parameters)
    assert scores.shape == (4, 20, 31)
    assert scores.dtype == np.float32
    assert scores.min() >= 0
    assert scores.max() <= 1
    np.testing.assert_array_equal(scores[1:], maps)
    seed = seed_mask(maps, (1, 2, 3), background_threshold(maps, parameters))
    np.testing.assert_array_equal(scores.argmax(axis=0), seed)
    assert 0 < (seed == 0).mean() < 1


def test_power_rule_is_the_formula() -> None:
    maps = random_maps()
    scores = background_scores(maps, BackgroundParameters(rule="power", alpha=4))
    np.testing.assert_allclose(scores[0], (1 - maps.max(axis=0).astype(float)) ** 4, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1, 4, 16])
def test_power_rule_has_a_constant_threshold(alpha: float) -> None:
    threshold = background_threshold(random_maps(), BackgroundParameters(rule="power", alpha=alpha))
    assert threshold == pytest.approx((1 - threshold) ** alpha, abs=1e-9)


def test_otsu_maximises_the_variance_between_the_sides() -> None:
    generator = np.random.default_rng(3)
    values = np.clip(
        np.concatenate([generator.normal(0.2, 0.06, 3000), generator.normal(0.7, 0.1, 900)]), 0, 1
    )
    histogram = np.histogram(values, bins=256, range=(0, 1))[0]
    centres = (np.arange(256) + 0.5) / 256

    def within(edge: int) -> float:
        """Otsu's other form: the variance within the sides, to be minimised."""
        total = 0.0
        for side in (slice(None, edge), slice(edge, None)):
            weight = histogram[side]
            if weight.sum():
                mean = (weight * centres[side]).sum() / weight.sum()
                total += (weight * (centres[side] - mean) ** 2).sum()
        return float(total)

    best = min(range(1, 256), key=within)
    assert otsu_threshold(histogram) == pytest.approx(best / 256, abs=1e-9)
    assert 0.3 < otsu_threshold(histogram) < 0.55


def test_otsu_cuts_an_empty_valley_in_the_middle() -> None:
    histogram = np.zeros(256, np.int64)
    histogram[20], histogram[219] = 1000, 10
    assert otsu_threshold(histogram) == pytest.approx(120 / 256, abs=1 / 256)


def test_otsu_rule_cuts_skewed_saliency_between_its_square_roots() -> None:
    saliency = np.full((1, 10, 10), 0.01, np.float32)
    saliency[0, 0] = 0.81
    # Roots 0.1 and 0.9: the middle is 0.5, so the threshold 0.25 (and not (0.01 + 0.81) / 2 = 0.41).
    assert background_threshold(saliency, BackgroundParameters("otsu")) == pytest.approx(0.25, abs=0.01)


def test_otsu_of_one_value_is_a_half() -> None:
    assert otsu_threshold(np.bincount([17] * 50, minlength=256)) == 0.5
    assert background_threshold(np.ones((1, 4, 4), np.float32), BackgroundParameters("otsu")) == 0.25


def test_histograms_cover_all_pixels_and_add_up() -> None:
    first, second = random_maps(2), random_maps(3)
    total = saliency_histogram(first) + saliency_histogram(second)
    assert len(total) == 256
    assert total.sum() == 2 * 20 * 31
    expected = np.histogram(np.sqrt(first.max(axis=0)), bins=256, range=(0, 1))[0]
    assert (
        np.abs(saliency_histogram(first) - expected).sum() <= 4
    )  # values on an edge may fall to either side
    assert saliency_histogram(np.array([[[0.0, 1.0]]], np.float32)).nonzero()[0].tolist() == [0, 255]


@pytest.mark.parametrize("function", [background_threshold, background_scores], ids=["threshold", "scores"])
def test_a_rule_must_be_chosen_before_it_is_followed(function: Any) -> None:
    with pytest.raises(
        ValueError, match="`calibrated` must be chosen first: give one of constant, power, otsu"
    ):
        function(random_maps(), BackgroundParameters())
