"""The functional interface: gradients, batches, number types. Parity with pydensecrf is in test_crf.py."""

import pytest
import torch
from torch import Tensor

from wsss.refine import CRFParameters, meanfield
from wsss.refine.meanfield import mean_field, mean_field_of

PARAMETERS = CRFParameters(iterations=3, bilateral_sxy=8, bilateral_srgb=40)


def random_input(classes: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(classes, height, width, generator=generator).log_softmax(0)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return scores, image


def test_gradients_with_respect_to_the_unaries_are_exact() -> None:
    scores, image = random_input(3, 3, 5)
    scores = scores.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: mean_field(s, image, PARAMETERS), scores)


@pytest.mark.parametrize("classes", [3, 20])
def test_marginals_can_be_trained_through(classes: int) -> None:
    scores, image = random_input(classes, 9, 10)
    scores.requires_grad_()
    target = torch.zeros(9, 10, dtype=torch.long)
    before = after = torch.tensor(0.0)
    for step in range(3):
        loss = torch.nn.functional.nll_loss(mean_field(scores, image, PARAMETERS).log()[None], target[None])
        before, after = (loss.detach(), after) if step == 0 else (before, loss.detach())
        (gradient,) = torch.autograd.grad(loss, scores)
        scores = (scores - 50 * gradient).detach().requires_grad_()
    assert after < before


def test_several_sizes_at_once_are_as_one_by_one() -> None:
    inputs = [
        random_input(3, *size, seed=seed) for seed, size in enumerate([(7, 9), (12, 5), (7, 9), (1, 3)])
    ]
    together = mean_field_of([scores for scores, _ in inputs], [image for _, image in inputs], PARAMETERS)
    for (scores, image), result in zip(inputs, together, strict=True):
        torch.testing.assert_close(result, mean_field(scores, image, PARAMETERS), atol=1e-5, rtol=0)


def test_a_batch_is_its_images_one_by_one() -> None:
    inputs = [random_input(4, 6, 11, seed=seed) for seed in range(3)]
    scores, images = (torch.stack(part) for part in zip(*inputs, strict=True))
    result = mean_field(scores, images, PARAMETERS)
    assert result.shape == scores.shape
    torch.testing.assert_close(result[1], mean_field(*inputs[1], PARAMETERS), atol=1e-5, rtol=0)


def test_labels_that_are_ruled_out_change_nothing() -> None:
    scores, image = random_input(3, 8, 9)
    longer = torch.cat([scores, torch.full((2, 8, 9), -torch.inf)])
    result = mean_field(longer, image, PARAMETERS)
    torch.testing.assert_close(result[:3], mean_field(scores, image, PARAMETERS))
    assert (result[3:] == 0).all()


def test_short_and_long_softmax_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, image = random_input(5, 8, 9)
    short = mean_field(scores * 40, image, PARAMETERS)
    monkeypatch.setattr(meanfield, "WIDE", 2)
    torch.testing.assert_close(mean_field(scores * 40, image, PARAMETERS), short)


def test_half_precision_is_computed_in_float32() -> None:
    scores, image = random_input(3, 8, 9)
    half = scores.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = mean_field(half, image, PARAMETERS)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, mean_field(half.float(), image, PARAMETERS), rtol=0, atol=0)


def test_a_lattice_remembered_from_inference_mode_serves_training() -> None:
    meanfield.forget_lattices()
    scores, image = random_input(3, 6, 7)
    with torch.inference_mode():
        expected = mean_field(scores.clone(), image.clone(), PARAMETERS)
    leaf = scores.clone().requires_grad_()
    result = mean_field(leaf, image, PARAMETERS)
    result.square().sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(result.detach(), expected.clone())
    assert meanfield._gaussian.cache_info().hits == 1


def test_kernels_of_weight_zero_are_not_built() -> None:
    scores, image = random_input(3, 6, 7)
    off = CRFParameters(gaussian_compat=0, bilateral_compat=0)
    torch.testing.assert_close(mean_field(scores, image, off), scores.softmax(0))


@pytest.mark.parametrize(
    ("scores", "image"),
    [((2, 4, 5), (3, 5, 4)), ((2, 4, 5), (4, 5, 3)), ((4, 5), (3, 4, 5)), ((2, 4, 5), (1, 3, 4, 5))],
)
def test_wrong_shapes_are_refused(scores: tuple[int, ...], image: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected log-probabilities"):
        mean_field_of([torch.zeros(scores)], [torch.zeros(image)], PARAMETERS)
