"""Losses against plain loops in numpy, pixel by pixel."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from wsss.tasks.losses import bootstrapped_cross_entropy, pixel_cross_entropy

Array = npt.NDArray[np.float64]
CLASSES = 4
LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross entropy": pixel_cross_entropy,
    "hard bootstrap": bootstrapped_cross_entropy,
    "soft bootstrap": lambda *args: bootstrapped_cross_entropy(*args, hard=False),
}


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Logits and masks of two images; the first one has few pixels that count."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, CLASSES, 5, 6, generator=generator)
    masks = torch.randint(0, CLASSES, (2, 5, 6), generator=generator)
    masks[0, :4] = 255
    masks[1, 3:] = 0
    return logits, masks


def reference(name: str, logits: Tensor, masks: Tensor, smoothing: float = 0.0) -> float:
    """The definition, one pixel after the other."""
    total, count = 0.0, 0
    for image, row, column in np.ndindex(*masks.shape):
        label = int(masks[image, row, column])
        if label == 255:
            continue
        values = logits[image, :, row, column].double().numpy()
        probabilities = np.exp(values - values.max())
        probabilities /= probabilities.sum()
        target = np.full(CLASSES, smoothing / CLASSES)
        target[label] += 1 - smoothing
        if name == "hard bootstrap":
            target = 0.8 * target + 0.2 * (np.arange(CLASSES) == probabilities.argmax())
        elif name == "soft bootstrap":
            target = 0.95 * target + 0.05 * probabilities
        loss = -(target * np.log(probabilities)).sum()
        total += loss
        count += 1
    return total / count


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_its_definition_over_the_pixels_that_are_not_ignored(
    batch: tuple[Tensor, Tensor], name: str, smoothing: float
) -> None:
    expected = reference(name, *batch, smoothing)
    assert LOSSES[name](*batch, smoothing).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_batch_of_ignored_pixels_gives_zero_and_no_gradient(name: str) -> None:
    logits = torch.randn(1, 3, 4, 5, requires_grad=True)
    loss = LOSSES[name](logits, torch.full((1, 4, 5), 255))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert torch.count_nonzero(gradient) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_get_no_gradient(name: str) -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    LOSSES[name](logits, torch.tensor([[[0, 255], [1, 2]]])).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(1)[0] > 0).tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("hard", [True, False])
def test_bootstrapping_pulls_less_at_a_pixel_that_the_network_is_sure_is_labelled_wrong(hard: bool) -> None:
    def pull(loss: Callable[..., Tensor]) -> float:
        logits = torch.tensor([6.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(logits, torch.ones(1, 1, 1, dtype=torch.long)), logits)
        return float(gradient.abs().sum())

    plain = pull(pixel_cross_entropy)
    robust = pull(lambda *args: bootstrapped_cross_entropy(*args, hard=hard))
    assert robust < 0.97 * plain


@pytest.mark.parametrize("name", LOSSES)
def test_huge_logits_stay_finite(name: str) -> None:
    logits = torch.tensor([1e4, -1e4, 0.0]).view(1, 3, 1, 1).requires_grad_()
    loss = LOSSES[name](logits, torch.ones(1, 1, 1, dtype=torch.long))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
