from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest

from wsss.metrics.boundary import BoundaryScore, boundary_f_scores

Mask = npt.NDArray[np.uint8]


def outline(mask: Mask, label: int) -> list[tuple[int, int]]:
    """Pixels of a class that have a neighbour of another one, by loops."""
    height, width = mask.shape
    found = []
    for y, x in itertools.product(range(height), range(width)):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        values = [mask[v, u] for v, u in around if 0 <= v < height and 0 <= u < width]
        if mask[y, x] == label and any(value != label for value in values):
            found.append((y, x))
    return found


def brute_force(prediction: Mask, truth: Mask, label: int) -> float:
    """F from the distances of all pairs of boundary pixels; NaN without a boundary in the truth."""
    theta = 0.0075 * math.hypot(*truth.shape)
    predicted, true = outline(prediction, label), outline(truth, label)
    if not true:
        return math.nan
    found = [any(math.dist(z, w) < theta for w in true) for z in predicted]
    covered = [any(math.dist(z, w) < theta for w in predicted) for z in true]
    counted = [hit for hit, z in zip(found, predicted, strict=True) if hit or truth[z] != 255]
    precision = sum(counted) / len(counted) if counted else 0.0
    recall = sum(covered) / len(covered)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blobs(seed: int, shape: tuple[int, int], border: bool) -> Mask:
    """Four discs of three classes, with the 255 that VOC paints around objects if asked for."""
    generator = np.random.default_rng(seed)
    rows, columns = np.indices(shape)
    mask = np.zeros(shape, np.uint8)
    for label in (1, 2, 3, 1):
        y, x = generator.uniform(0, shape[0]), generator.uniform(0, shape[1])
        distance = np.hypot(rows - y, columns - x) - generator.uniform(8, 0.4 * min(shape))
        if border:
            mask[distance < 2] = 255
        mask[distance < 0] = label
    return mask


@pytest.mark.parametrize("shape", [(20, 31), (110, 150), (70, 290)])  # theta: 0.3, 1.4, 2.2 pixels
@pytest.mark.parametrize("shift", [0, 1, 2, 5])
def test_boundary_f_agrees_with_the_distances_of_all_pairs(shape: tuple[int, int], shift: int) -> None:
    truth = blobs(1, shape, border=True)
    prediction = np.roll(blobs(1, shape, border=False), shift, axis=1)
    prediction[:4, :9] = 255
    expected = [brute_force(prediction, truth, label) for label in range(4)]
    np.testing.assert_allclose(boundary_f_scores(prediction, truth, 4), expected)


def test_unrelated_masks_agree_with_the_distances_of_all_pairs() -> None:
    prediction, truth = blobs(2, (100, 140), border=True), blobs(3, (100, 140), border=False)
    expected = [brute_force(prediction, truth, label) for label in range(4)]
    np.testing.assert_allclose(boundary_f_scores(prediction, truth, 4), expected)


@pytest.mark.parametrize(("shift", "expected"), [(5, 1), (6, 0)])
def test_a_pixel_exactly_at_the_tolerance_does_not_match(shift: int, expected: float) -> None:
    truth = np.zeros((480, 640), np.uint8)  # diagonal 800, theta exactly 6
    truth[:, 320:] = 1
    prediction = np.zeros_like(truth)
    prediction[:, 320 + shift :] = 1
    assert boundary_f_scores(prediction, truth, 2).tolist() == [expected, expected]


def test_equal_masks_have_perfect_boundaries_and_absent_classes_none() -> None:
    mask = blobs(1, (60, 80), border=True)
    np.testing.assert_array_equal(boundary_f_scores(mask, mask, 5), [1, 1, 1, 1, np.nan])


def test_the_edge_of_the_image_is_no_boundary() -> None:
    mask = np.ones((30, 40), np.uint8)
    assert np.isnan(boundary_f_scores(mask, mask, 2)).all()


def test_a_missed_class_counts_as_zero() -> None:
    truth = blobs(1, (60, 80), border=False)
    assert boundary_f_scores(np.zeros_like(truth), truth, 4).tolist() == [0, 0, 0, 0]


def test_a_predicted_outline_inside_a_255_counts_only_where_it_matches() -> None:
    truth = np.zeros((100, 100), np.uint8)  # theta 1.06: the pixel itself and its neighbours
    truth[20:40, 20:40] = 1
    truth[60:, :] = 255
    prediction = truth.copy()
    prediction[60:] = 0
    prediction[80:90, 80:90] = 1
    # The square on 255 is neither right nor wrong, on background it would be wrong.
    assert boundary_f_scores(prediction, truth, 2)[1] == 1
    truth[60:] = 0
    assert boundary_f_scores(prediction, truth, 2)[1] < 1


def test_a_class_is_averaged_over_the_images_where_it_has_a_boundary() -> None:
    first, second = blobs(1, (60, 80), border=False), blobs(4, (50, 70), border=False)
    second[second == 3] = 2
    shifted = np.roll(first, 2, axis=0)
    scores = BoundaryScore(4)
    scores.update(shifted, first)
    scores.update(second, second)
    alone = boundary_f_scores(shifted, first, 4)
    np.testing.assert_allclose(scores.per_class(), [*(alone[:3] + 1) / 2, alone[3]])
    assert scores.mean() == pytest.approx(scores.per_class().mean())
    assert scores.per_image() == pytest.approx((alone.mean() + 1) / 2)


def test_a_sum_of_scores_is_the_score_of_all_images() -> None:
    masks = [blobs(seed, (50, 60), border=True) for seed in range(4)]
    parts = [BoundaryScore(4), BoundaryScore(4), BoundaryScore(4)]
    for index, (prediction, truth) in enumerate(itertools.pairwise(masks)):
        parts[0].update(prediction, truth)
        parts[1 + index % 2].update(prediction, truth)
    merged = parts[1] + parts[2]
    np.testing.assert_allclose(merged.per_class(), parts[0].per_class())
    assert merged.per_image() == pytest.approx(parts[0].per_image())


def test_nothing_counted_has_no_numbers() -> None:
    scores = BoundaryScore(2)
    assert math.isnan(scores.mean())
    assert math.isnan(scores.per_image())
    assert np.isnan(scores.per_class()).all()


def test_masks_that_do_not_fit_are_refused() -> None:
    scores = BoundaryScore(2)
    with pytest.raises(ValueError, match=r"prediction is \(2, 3\).*ground truth \(3, 2\)"):
        scores.update(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
    with pytest.raises(ValueError, match="ground truth has the value 2"):
        scores.update(np.zeros((2, 3), np.uint8), np.full((2, 3), 2, np.uint8))
    with pytest.raises(ValueError, match="cannot add boundary scores of 2 and 3 classes"):
        scores + BoundaryScore(3)
