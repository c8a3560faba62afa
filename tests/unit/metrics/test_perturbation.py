"""Drop, increase, insertion and deletion, against plain loops over images and pixels."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.metrics.perturbation import (
    area,
    drop,
    increase,
    insertion_and_deletion,
    order_pixels,
    probabilities,
    scorer,
    zone_images,
)
from wsss.saliency.base import gaussian_blur

SIZE = (6, 7)


@pytest.fixture
def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * SIZE[0] * SIZE[1], 4)).train()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(1))


def test_probabilities_are_sigmoid_or_softmax_of_the_own_class() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 3.0]])
    values = np.exp(logits.double().numpy())
    classes = torch.tensor([2, 1])
    for row, cls in enumerate(classes.tolist()):
        softmax = values[row, cls] / values[row].sum()
        sigmoid = values[row, cls] / (1 + values[row, cls])
        assert probabilities(logits, classes, "softmax")[row] == pytest.approx(softmax)
        assert probabilities(logits, classes, "sigmoid")[row] == pytest.approx(sigmoid)


def test_another_score_is_refused() -> None:
    with pytest.raises(UserError, match="score is 'tanh', but must be 'sigmoid' or 'softmax'"):
        probabilities(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), "tanh")  # type: ignore[arg-type]


def test_the_scorer_scores_in_eval_mode_whatever_the_batch_size(classifier: nn.Module) -> None:
    images, classes = torch.randn(5, 3, *SIZE), torch.tensor([0, 3, 1, 1, 2])
    whole = scorer(classifier, "sigmoid", 8)(images, classes)
    parts = scorer(classifier, "sigmoid", 2)(images, classes)
    with torch.no_grad():
        expected = classifier.eval()(images).sigmoid()[torch.arange(5), classes]
    assert torch.allclose(whole, expected)
    assert torch.allclose(parts, expected)


def test_the_scorer_restores_training_mode(classifier: nn.Module) -> None:
    scorer(classifier, "softmax")(torch.randn(1, 3, *SIZE), torch.tensor([0]))
    assert classifier.training
    assert classifier[1].training
    assert all(parameter.requires_grad for parameter in classifier.parameters())


def test_drop_and_increase_are_what_a_pencil_finds() -> None:
    before, after = torch.tensor([0.8, 0.5, 0.0, 0.4]), torch.tensor([0.2, 0.6, 0.3, 0.4])
    assert drop(before, after).tolist() == pytest.approx([0.75, 0, 0, 0])
    assert increase(before, after).tolist() == [0, 1, 1, 0]


def test_zone_images_are_the_two_parts_of_the_image(image: Tensor) -> None:
    zone = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(3)) < 0.4
    saliency, context = zone_images(image, zone)
    for n, c, y, x in np.ndindex(2, 3, *SIZE):
        inside = bool(zone[n, y, x])
        assert saliency[n, c, y, x] == (image[c, y, x] if inside else 0)
        assert context[n, c, y, x] == (0 if inside else image[c, y, x])


def test_pixels_are_ordered_by_falling_saliency_and_then_by_reading_order() -> None:
    maps = torch.tensor([[[0.1, 0.9], [0.9, 0.5]], [[1.0, 1.0], [1.0, 2.0]]])
    assert order_pixels(maps).tolist() == [[[3, 0], [1, 2]], [[1, 2], [3, 0]]]


def test_area_is_a_sum_of_trapezoids() -> None:
    curve = torch.rand(3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row, value in zip(curve.tolist(), area(curve).tolist(), strict=True):
        assert value == pytest.approx(trapezoids(row))


def trapezoids(values: Sequence[float]) -> float:
    return sum((left + right) / 2 for left, right in pairwise(values)) / (len(values) - 1)


def plain_curves(
    classifier: nn.Module, image: Tensor, saliency: Tensor, cls: int, steps: int, hidden: str
) -> tuple[float, float]:
    """Insertion and deletion, pixel by pixel, with Python's sort."""
    pixels = [(y, x) for y in range(SIZE[0]) for x in range(SIZE[1])]
    order = sorted(pixels, key=lambda at: -float(saliency[at]))
    weak, grey = gaussian_blur(image, 11, 5.0), torch.zeros_like(image)
    shown, removed = (grey if hidden == "mean" else weak).clone(), image.clone()
    inserted, deleted, done = [], [], 0
    for step in range(steps + 1):
        until = round(step * len(order) / steps)
        for y, x in order[done:until]:
            shown[:, y, x], removed[:, y, x] = image[:, y, x], (weak if hidden == "blur" else grey)[:, y, x]
        done = until
        with torch.no_grad():
            inserted.append(float(classifier(shown[None])[0, cls].sigmoid()))
            deleted.append(float(classifier(removed[None])[0, cls].sigmoid()))
    return trapezoids(inserted), trapezoids(deleted)


@pytest.mark.parametrize(
    ("steps", "batch_size", "hidden"),
    [(5, 4, "rise"), (42, 16, "rise"), (100, 7, "rise"), (9, 4, "blur"), (9, 4, "mean")],
)
def test_insertion_and_deletion_equal_plain_loops(
    classifier: nn.Module, image: Tensor, steps: int, batch_size: int, hidden: Literal["rise", "blur", "mean"]
) -> None:
    classifier.eval()
    maps = (torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(2)) * 6).round()
    classes = torch.tensor([2, 0, 2])
    inserted, deleted = insertion_and_deletion(
        scorer(classifier, "sigmoid", batch_size), image, maps, classes, steps, batch_size, hidden
    )
    for row, cls in enumerate(classes.tolist()):
        expected = plain_curves(classifier, image, maps[row], cls, steps, hidden)
        assert (float(inserted[row]), float(deleted[row])) == pytest.approx(expected, abs=1e-5)


def test_batches_stay_below_their_bound(image: Tensor) -> None:
    seen = []

    def score(images: Tensor, classes: Tensor) -> Tensor:
        seen.append(len(images))
        return torch.zeros(len(images))

    insertion_and_deletion(score, image, torch.rand(2, *SIZE), torch.tensor([0, 1]), steps=9, batch_size=6)
    assert max(seen) == 6
    assert sum(seen) == 2 * 2 * 10


def test_no_steps_are_refused(image: Tensor) -> None:
    with pytest.raises(UserError, match="steps and batch_size of at least 1, got 0 and 16"):
        insertion_and_deletion(lambda a, b: b, image, torch.rand(1, *SIZE), torch.tensor([0]), steps=0)
