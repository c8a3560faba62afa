"""The criterion that chooses the background rule, against plain loops and on a case with a known answer."""

import numpy as np
import pytest
import torch

from wsss.refine.background import background_threshold, seed_mask
from wsss.refine.calibrate import CANDIDATES, Evidence, describe, evidence_of_seeds, mean_evidence
from wsss.refine.parameters import BackgroundParameters


def bright_share(images):
    """Two classes: how much of 200 pixels is positive in the first and in the second channel."""
    return (images[:, :2].clamp(min=0).sum((2, 3)) / 200).clamp(max=1)


def test_evidence_is_that_of_one_masked_photo_after_the_other():
    random = np.random.default_rng(0)
    image = torch.from_numpy(random.normal(size=(3, 20, 30)).astype(np.float32))
    maps = random.random((2, 20, 30)).astype(np.float32)
    maps /= maps.max((1, 2), keepdims=True)
    rules = (BackgroundParameters("constant", threshold=0.6), BackgroundParameters("otsu"))
    found = evidence_of_seeds(image, maps, (2, 1), rules, bright_share, batch_size=3)
    for rule, parts in zip(rules, found, strict=True):
        seed = torch.from_numpy(seed_mask(maps, (2, 1), background_threshold(maps, rule)))
        for index, part in zip((2, 1), parts, strict=True):
            kept = bright_share((image * (seed == index))[None])[0, index - 1]
            removed = bright_share((image * (seed != index))[None])[0, index - 1]
            assert part.kept == pytest.approx(float(kept), abs=1e-6)
            assert part.removed == pytest.approx(float(removed), abs=1e-6)
            assert part.area == pytest.approx(float((seed == index).float().mean()))


def test_the_rule_that_covers_the_object_and_nothing_else_gains_most():
    """A 10 x 20 object of 600 pixels; saliency falls off over its border into the background."""
    image = torch.zeros(3, 20, 30)
    image[0, 5:15, 5:25] = 1
    rows, columns = np.mgrid[:20, :30]
    outside = np.maximum(np.abs(rows - 9.5) - 4.5, 0) + np.maximum(np.abs(columns - 14.5) - 9.5, 0)
    inside = np.abs(columns - 14.5) / 9.5 * 0.4
    maps = np.where(outside > 0, 0.3 - 0.05 * outside, 1 - inside).clip(0, 1).astype(np.float32)[None]
    rules = [BackgroundParameters("constant", threshold=value) for value in (0.05, 0.2, 0.5, 0.8, 0.95)]
    found = evidence_of_seeds(image, maps, (1,), rules, bright_share)
    gains = [parts[0].gain for parts in found]
    assert int(np.argmax(gains)) == 2
    assert found[2][0] == Evidence(kept=1, removed=0, area=pytest.approx(1 / 3))


def test_means_and_names():
    mean = mean_evidence([Evidence(1.0, 0.0, 0.2), Evidence(0.5, 0.5, 0.4)])
    assert mean.gain == pytest.approx(0.75 - 0.25 - 0.3)
    names = [describe(rule) for rule in CANDIDATES]
    assert len(set(names)) == len(names)
    assert {"constant 0.20", "power alpha 8", "otsu"} <= set(names)
