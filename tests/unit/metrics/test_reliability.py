"""Coverage against accuracy, against sorting all pixels."""

import numpy as np
import pytest

from wsss.metrics.reliability import ReliabilityCurve


def pictures(seed: int):
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, (20, 30)).astype(np.uint8)
    nines = (random.integers(0, 90, (20, 30)) + 0.5) / 30  # in the middle of bins
    confidence = (1 - 10**-nines).astype(np.float32)
    labels = np.where(random.random((20, 30)) < confidence, truth, 2).astype(np.uint8)
    truth[:3] = 255
    return labels, confidence, truth


def test_points_are_those_of_brute_force():
    curve, everything = ReliabilityCurve(), []
    for seed in (0, 1):
        labels, confidence, truth = pictures(seed)
        part = ReliabilityCurve()
        part.update(labels, confidence, truth)
        curve = curve + part
        counted = truth != 255
        everything.append((confidence[counted], (labels == truth)[counted]))
    confidence, right = (np.concatenate(parts) for parts in zip(*everything, strict=True))
    points = curve.points()
    assert len(points["limit"]) > 80
    for limit, coverage, accuracy in zip(*points.values(), strict=True):
        kept = confidence >= limit - 2e-7
        assert coverage == pytest.approx(kept.mean(), abs=1e-5)
        assert accuracy == pytest.approx(right[kept].mean(), abs=1e-5)
    assert points["coverage"][-1] == 1
    assert points["accuracy"][-1] == pytest.approx(right.mean(), abs=1e-5)


def test_full_confidence_is_counted_and_nothing_gives_an_empty_curve():
    assert ReliabilityCurve().points() == {"limit": [], "coverage": [], "accuracy": []}
    curve = ReliabilityCurve()
    ones = np.ones((2, 2), np.uint8)
    curve.update(ones, np.ones((2, 2), np.float32), np.array([[1, 0], [1, 255]], np.uint8))
    assert curve.points() == {
        "limit": [pytest.approx(1, abs=1e-6)],
        "coverage": [1.0],
        "accuracy": [pytest.approx(2 / 3, abs=1e-5)],
    }


def test_sizes_must_fit():
    with pytest.raises(ValueError, match="the confidence is"):
        ReliabilityCurve().update(
            np.zeros((2, 2), np.uint8), np.zeros((3, 2), np.float32), np.zeros((2, 2), np.uint8)
        )
