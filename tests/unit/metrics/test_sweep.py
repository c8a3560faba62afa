from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from wsss.metrics.confusion import ConfusionMatrix
from wsss.metrics.sweep import ThresholdSweep, exceeded_thresholds
from wsss.refine.background import seed_mask

Image = tuple[npt.NDArray[np.float32], tuple[int, ...], npt.NDArray[np.uint8]]
GRID = (0.1, 0.25, 0.3, 0.5, 0.95)


def images() -> list[Image]:
    """Saliency that is larger inside the true objects; one image without classes."""
    generator = np.random.default_rng(0)
    result: list[Image] = []
    for classes in ((1, 3), (2,), ()):
        truth = generator.choice([0, 0, *classes, 255], (12, 15)).astype(np.uint8)
        maps = np.array([0.4 * (truth == c) + 0.6 * generator.random((12, 15)) for c in classes], np.float32)
        # Values that lie exactly on a threshold must fall to the same side as in seed_mask.
        maps = np.round(maps.reshape(-1, 12, 15) * 20).astype(np.float32) / np.float32(20)
        result.append((maps, classes, truth))
    return result


def swept(chosen: list[Image]) -> ThresholdSweep:
    sweep = ThresholdSweep(4, GRID)
    for maps, classes, truth in chosen:
        sweep.update(maps, classes, truth)
    return sweep


def test_sweep_equals_scoring_the_seed_at_each_threshold() -> None:
    sweep = swept(images())
    matrices = sweep.matrices()
    assert len(matrices) == len(GRID)
    for threshold, matrix in zip(sweep.thresholds, matrices, strict=True):
        expected = ConfusionMatrix(4)
        for maps, classes, truth in images():
            expected.update(seed_mask(maps, classes, float(threshold)), truth)
        np.testing.assert_array_equal(matrix.counts, expected.counts)
        assert matrix.images == 3


def test_many_classes_and_thresholds_count_beyond_a_byte() -> None:
    generator = np.random.default_rng(0)
    truth = generator.choice([0, 7, 15, 20, 255], (30, 40)).astype(np.uint8)
    maps = np.stack([0.8 * (truth == c) + 0.2 * generator.random((30, 40)) for c in (7, 15, 20)]).astype(
        np.float32
    )
    sweep = ThresholdSweep(21)
    sweep.update(maps, (7, 15, 20), truth)
    for threshold, matrix in zip(sweep.thresholds, sweep.matrices(), strict=True):
        expected = ConfusionMatrix(21)
        expected.update(seed_mask(maps, (7, 15, 20), float(threshold)), truth)
        np.testing.assert_array_equal(matrix.counts, expected.counts)


def test_best_is_the_largest_miou() -> None:
    sweep = swept(images())
    threshold, matrix = sweep.best()
    mious = [candidate.miou() for candidate in sweep.matrices()]
    assert matrix.miou() == max(mious) > min(mious)
    assert threshold == sweep.thresholds[int(np.argmax(mious))]


def test_a_sum_of_sweeps_is_the_sweep_of_all_images() -> None:
    merged = swept(images()[:1]) + swept(images()[1:])
    for ours, expected in zip(merged.matrices(), swept(images()).matrices(), strict=True):
        np.testing.assert_array_equal(ours.counts, expected.counts)
        assert ours.images == expected.images


def test_default_grid_is_every_hundredth() -> None:
    np.testing.assert_allclose(ThresholdSweep(2).thresholds, np.arange(1, 100) / 100, rtol=1e-6)


def test_without_ground_truth_there_is_no_best_but_no_crash() -> None:
    sweep = ThresholdSweep(2, GRID)
    assert np.isnan(sweep.best()[1].miou())


def test_what_does_not_fit_is_refused() -> None:
    sweep, truth = ThresholdSweep(4, GRID), np.zeros((3, 4), np.uint8)
    with pytest.raises(ValueError, match=r"maps \(1, 4, 3\) of 1 classes do not fit a mask of \(3, 4\)"):
        sweep.update(np.zeros((1, 4, 3), np.float32), (1,), truth)
    with pytest.raises(ValueError, match="of 2 classes do not fit"):
        sweep.update(np.zeros((1, 3, 4), np.float32), (1, 2), truth)
    with pytest.raises(ValueError, match="ground truth has the value 9"):
        sweep.update(np.zeros((1, 3, 4), np.float32), (1,), truth + np.uint8(9))
    with pytest.raises(ValueError, match="cannot add sweeps"):
        sweep + ThresholdSweep(4, (0.5,))


@pytest.mark.parametrize(
    "thresholds",
    [
        np.arange(1, 100) / 100,
        np.arange(4097) / 4096,  # on the edges of the bins
        (0.5, 0.50001),  # two in one bin
        (-0.5, 0, 1, 1.5),
        (0.3,),
        (),
    ],
)
def test_exceeded_thresholds_agrees_with_searchsorted(thresholds: npt.ArrayLike) -> None:
    grid = np.asarray(thresholds, np.float32)
    around = np.concatenate((grid, np.nextafter(grid, np.float32(9)), np.nextafter(grid, np.float32(-9))))
    noise = np.random.default_rng(0).random(1000, dtype=np.float32)
    inside = np.concatenate((around, noise, np.float32([0, 1, 1e-30]))).clip(0, 1)
    outside = np.float32([-1, -1e-9, 0.5, 2, np.inf])
    for values in (inside, outside, np.float32([0.5, np.nan]), inside[:0]):
        np.testing.assert_array_equal(exceeded_thresholds(grid, values), np.searchsorted(grid, values))
