"""Joint transforms: photo and mask stay aligned, padding is mean colour and 255."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import models

from wsss.data.transforms import (
    MEAN,
    STD,
    RandomLongSide,
    RandomScale,
    TrainTransform,
    normalize_image,
    resize_long_side,
    scaled_size,
    to_tensor,
)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_array_becomes_tensor_with_its_own_memory() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    tensor = to_tensor(array)
    assert tensor.shape == (3, 2, 4)
    assert tensor.is_contiguous()
    assert tensor[1, 1, 2] == array[1, 2, 1]
    array[:] = 0
    assert tensor[1, 1, 2] == 19


def test_normalisation_is_that_of_torchvisions_weights() -> None:
    preset = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    assert (tuple(preset.mean), tuple(preset.std)) == (MEAN, STD)
    image = noise(2, 3, 4, 5)
    expected = (image.numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    found = normalize_image(image)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(50, 80), (80, 50), (64, 64), (2, 900)])
def test_long_side_is_exact_and_the_aspect_ratio_kept(size: tuple[int, int]) -> None:
    height, width = resize_long_side(noise(3, *size), 40).shape[-2:]
    assert max(height, width) == 40
    short = min(size) * 40 / max(size)
    assert min(height, width) == max(1, round(short))


def test_random_long_side_reaches_both_ends() -> None:
    torch.manual_seed(0)
    sides = {max(RandomLongSide(10, 12)(noise(3, 20, 30), None)[0].shape[-2:]) for _ in range(60)}
    assert sides == {10, 11, 12}


def test_random_scale_is_uniform_between_its_ends() -> None:
    torch.manual_seed(0)
    widths = [RandomScale(0.5, 1.5)(noise(3, 2, 200), None)[0].shape[-1] for _ in range(300)]
    assert 100 <= min(widths) < 110
    assert 290 < max(widths) <= 300
    assert np.mean(widths) == pytest.approx(200, abs=10)


@pytest.mark.parametrize("resize", [RandomScale(0.3, 0.45), RandomScale(1.0, 1.0), RandomScale(1.7, 2.6)])
def test_photo_and_mask_stay_aligned(resize: RandomScale) -> None:
    """The photo's colour is a function of the mask, so the transformed one still tells the label."""
    mask = torch.zeros(96, 120, dtype=torch.uint8)
    mask[10:50, 20:70], mask[40:90, 60:110], mask[70:80, 5:30] = 1, 2, 3
    colours = torch.tensor([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
    image = colours[mask.long()].permute(2, 0, 1)
    transform = TrainTransform(resize, 64)
    torch.manual_seed(0)
    agree, counted, mirrored = 0, 0, 0
    for _ in range(40):
        photo, label = transform(image, mask)
        assert label is not None
        colour = (photo * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255
        decoded = (colour.permute(1, 2, 0)[..., None, :] - colours.float()).abs().sum(-1).argmin(-1)
        inside = label != 255
        agree += int((decoded == label)[inside].sum())
        counted += int(inside.sum())
        columns = torch.nonzero(label == 1)[:, 1].float(), torch.nonzero(label == 2)[:, 1].float()
        if min(map(len, columns)):
            mirrored += int(columns[0].mean() > columns[1].mean())
    assert agree / counted > 0.97
    assert mirrored > 3


# Not 0.5: there, every pixel of the result lies in the middle between two of the mask.
@pytest.mark.parametrize("factor", [0.45, 0.7, 1.0, 1.6])
def test_mask_is_not_shifted_against_the_photo_by_resizing(factor: float) -> None:
    """Centre of mass of one shape, as photo and as mask, over many shapes."""
    random = np.random.default_rng(0)
    shifts = []
    for _ in range(30):
        top, left = random.integers(10, 40, 2)
        mask = torch.zeros(100, 100, dtype=torch.uint8)
        mask[top : top + random.integers(20, 50), left : left + random.integers(20, 50)] = 1
        photo, moved = RandomScale(factor, factor)(255 * mask.expand(3, 100, 100), mask)
        assert moved is not None
        shifts.append(centre(photo[0].double()) - centre(moved.double()))
    assert torch.stack(shifts).mean(0).abs().max() < 0.1


def centre(weights: Tensor) -> Tensor:
    rows, columns = torch.meshgrid(*(torch.arange(n).double() for n in weights.shape), indexing="ij")
    return torch.stack([(weights * rows).sum(), (weights * columns).sum()]) / weights.sum()


def test_small_photos_are_padded_with_the_mean_colour_and_ignored() -> None:
    torch.manual_seed(0)
    image, mask = torch.full((3, 20, 30), 255, dtype=torch.uint8), torch.ones(20, 30, dtype=torch.uint8)
    photo, label = TrainTransform(RandomScale(1, 1), 64)(image, mask)
    assert label is not None
    assert photo.shape == (3, 64, 64)
    assert photo.dtype == torch.float32
    assert label.shape == (64, 64)
    assert label.dtype == torch.uint8
    assert set(label.unique().tolist()) == {1, 255}
    assert int((label == 1).sum()) == 20 * 30
    assert photo[:, label == 255].abs().max() < 0.5 / 255 / min(STD) + 1e-6  # zero but for rounding to uint8
    assert photo[:, label == 1].min() > 2


def test_photos_alone_are_transformed_like_photos_with_masks() -> None:
    image = noise(3, 40, 50)
    transform = TrainTransform(RandomLongSide(30, 90), 48, color_jitter=0.4)
    torch.manual_seed(3)
    alone, nothing = transform(image)
    torch.manual_seed(3)
    both, _ = transform(image, torch.zeros(40, 50, dtype=torch.uint8))
    assert nothing is None
    assert torch.equal(alone, both)
    assert type(alone) is Tensor


def test_colour_jitter_changes_the_photo_and_never_the_mask() -> None:
    image, mask = noise(3, 32, 32), noise(32, 32) % 4
    for jitter in (0.0, 0.5):
        torch.manual_seed(0)
        photos, labels = zip(
            *(TrainTransform(RandomScale(1, 1), 32, jitter)(image, mask) for _ in range(6)), strict=True
        )
        sums = {round(float(photo.sum()), 2) for photo in photos}
        assert len(sums) == (1 if jitter == 0 else 6)
        assert all(
            torch.equal(label, mask) or torch.equal(label, mask.flip(1))
            for label in labels
            if label is not None
        )


def test_photos_shrink_to_averages() -> None:
    """Eight by eight pixels of noise average to a deviation of about a tenth of the noise's 74."""
    photo = noise(3, 320, 320)
    shrunk = RandomScale(1 / 8, 1 / 8)(photo, None)[0], resize_long_side(photo, 40)
    assert [float(small.float().std()) < 15 for small in shrunk] == [True, True]


def test_scaled_size_rounds_half_up_and_keeps_a_pixel() -> None:
    assert scaled_size((101, 5), 0.5) == (51, 3)
    assert scaled_size((100, 1), 0.25) == (25, 1)
    assert scaled_size((375, 500), 1.25) == (469, 625)


def test_a_photo_may_shrink_to_one_pixel() -> None:
    photo = torch.full((3, 4, 4), 77, dtype=torch.uint8)
    assert resize_long_side(photo, 1).unique().tolist() == [77]
    assert RandomScale(0.1, 0.1)(photo, None)[0].shape == (3, 1, 1)
