"""Extremal and meaningful perturbation against loops with the definitions written out, XRAI against a plain greedy."""

import builtins
import math

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from wsss.errors import UserError
from wsss.saliency import XRAI, ExtremalPerturbation, MeaningfulPerturbation
from wsss.saliency.optimised import SmoothMasks, blended, blur_pyramid, circles, enlarged
from wsss.saliency.parse import parse_method
from wsss.saliency.xrai import regions, segments_of

TARGETS = torch.tensor([[1, 4], [0, 3], [1, 0]])


def test_masks_are_smooth_maxima_of_kernels(seed):
    """Pixel by pixel, from the points within the neighbourhood that TorchRay looks at."""
    masks = SmoothMasks.of((20, 16), torch.device("cpu"))
    assert masks.grid == (3, 3)
    values = torch.rand((1, 1, 3, 3), generator=torch.Generator().manual_seed(seed))
    inner, outer = masks.masks(values)
    assert outer.shape[1:] == masks.outer
    for row, column in ((0, 0), (13, 7), (19, 15)):
        near = []
        for i in range((row + 21) // 7 - 7, (row + 21) // 7 + 2):
            for j in range((column + 21) // 7 - 7, (column + 21) // 7 + 2):
                inside = 0 <= i < 3 and 0 <= j < 3
                distance = math.hypot(row - 7 * i, column - 7 * j) / 21
                kernel = math.exp(-2 * max(distance - 0.5, 0) ** 2)
                near.append(kernel * float(values[0, 0, i, j]) if inside else 0.0)
        shares = np.exp(20 * np.array(near)) / np.exp(20 * np.array(near)).sum()
        assert float(inner[0, row, column]) == pytest.approx(float((shares * near).sum()), rel=1e-4)


def test_a_blend_interpolates_between_levels_of_blur(images):
    image = images[0].float()
    pyramid = blur_pyramid(image)
    torch.testing.assert_close(pyramid[7], image)
    padded = np.pad(image.numpy(), ((0, 0), (80, 80), (80, 80)))
    kernel = cv2.getGaussianKernel(161, 20)
    blurred = cv2.sepFilter2D(padded.transpose(1, 2, 0), -1, kernel, kernel)[80:-80, 80:-80].transpose(
        2, 0, 1
    )
    np.testing.assert_allclose(pyramid[0].numpy(), blurred, atol=1e-5)
    masks = torch.full((2, 96, 80), 0.5)
    masks[1] = 1
    mixed = blended(pyramid, masks)
    torch.testing.assert_close(mixed[0], (pyramid[3] + pyramid[4]) / 2)
    torch.testing.assert_close(mixed[1], image)


def test_extremal_perturbation_is_its_loop(resnet, images):
    image, cls, areas, maps = images[1], 4, (0.1, 0.3), torch.zeros(96, 80)
    generator, pyramid = SmoothMasks.of((96, 80), torch.device("cpu")), blur_pyramid(image.float())
    for area in areas:
        parameters = torch.ones((1, 1, *generator.grid))
        velocity = torch.zeros_like(parameters)
        for step in range(4):
            parameters.requires_grad_()
            mask, outer = generator.masks(parameters)
            seen = blended(pyramid, mask)
            seen = seen.flip(3) if step % 2 == 0 else seen
            count = outer.numel()
            wanted = torch.cat(
                (torch.zeros(int(count * (1 - area))), torch.ones(count - int(count * (1 - area))))
            )
            missed = ((outer.flatten().sort().values - wanted) ** 2).mean()
            loss = 300 * 1.0035**step * missed - resnet(seen.double())[0, cls]
            (gradient,) = torch.autograd.grad(loss, parameters)
            velocity = gradient.float() if step == 0 else 0.9 * velocity + 0.1 * gradient.float()
            parameters = (parameters.detach() - 0.01 * velocity).clamp(0, 1)
        maps += generator.masks(parameters)[0][0]
    found = ExtremalPerturbation(areas, steps=4, smooth=0, batch_size=3)(resnet, images, TARGETS)
    torch.testing.assert_close(found[0], maps, rtol=1e-4, atol=1e-4)
    assert maps.min() < maps.max() - 1e-3  # it moved


def test_meaningful_perturbation_is_its_loop(resnet, images):
    image, cls = images[1], 4
    weak = cv2.GaussianBlur(
        image.float().numpy().transpose(1, 2, 0), (61, 61), 10, borderType=cv2.BORDER_REFLECT_101
    )
    weak = torch.from_numpy(weak.transpose(2, 0, 1))

    def mixed(mask):
        large = enlarged(mask, (96, 80))[0]
        return (image.float() * large + weak * (1 - large)).double()[None]

    discs = circles(12, 10, torch.device("cpu"))
    with torch.no_grad():
        scores = [float(resnet(mixed(disc[None])).sigmoid()[0, cls]) for disc in discs]
    number = next(
        i for i, score in enumerate(scores) if score <= scores[-1] + 0.01 * (scores[0] - scores[-1])
    )
    mask = discs[number][None].clone().requires_grad_()
    adam = torch.optim.Adam([mask], lr=0.1)
    shifts = torch.randint(0, 5, (3, 2), generator=torch.Generator().manual_seed(0)).tolist()
    for down, right in shifts:
        seen = torch.roll(mixed(mask), (down, right), (2, 3))
        loss = resnet(seen).sigmoid()[0, cls] + 0.03 * (1 - mask).abs().sum()
        for i in range(11):
            for j in range(9):
                slope = (mask[0, 0, i + 1, j] - mask[0, 0, i, j]) ** 2 + (
                    mask[0, 0, i, j + 1] - mask[0, 0, i, j]
                ) ** 2
                loss = loss + 0.2 * slope**1.5
        adam.zero_grad()
        loss.backward()
        adam.step()
        mask.data.clamp_(0, 1)
    found = MeaningfulPerturbation(steps=3, size=0.03, smooth=0.2, batch_size=2)(resnet, images, TARGETS)
    torch.testing.assert_close(found[0], 1 - enlarged(mask.detach(), (96, 80))[0], rtol=1e-3, atol=1e-3)


class Patch(nn.Module):
    """The logit of class 1 is how sharp a texture in one place is."""

    def forward(self, images):
        detail = (images[:, :, 8:24, 40:56].diff(dim=2) ** 2).mean((1, 2, 3))
        return torch.stack((0 * detail, 8 * detail - 8), dim=1)


def test_both_find_the_place_that_matters(seed):
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    for method in (ExtremalPerturbation((0.1,), steps=100), MeaningfulPerturbation(steps=60)):
        found = method(Patch().eval(), images, torch.tensor([[0, 1]]))[0]
        assert found[10:22, 42:54].mean() > 1.5 * found[40:, :24].mean()


def greedy(attribution, segments, new):
    """The authors' loop: the segment with the largest mean over its new pixels, again and again."""
    result, free = np.full(attribution.shape, np.nan), np.ones(attribution.shape, bool)
    while True:
        gains = {
            number: attribution[segment & free].mean()
            for number, segment in enumerate(segments)
            if (segment & free).sum() >= new
        }
        if not gains:
            break
        best = max(gains, key=gains.get)
        result[segments[best] & free] = gains[best]
        free &= ~segments[best]
    result[free] = attribution[free].mean() if free.any() else 0
    return result


def test_regions_are_the_authors_greedy_loop(seed):
    generator = np.random.default_rng(seed)
    attribution = generator.normal(size=(12, 9))
    segments = np.stack([cv2.resize(generator.random((4, 3)), (9, 12)) > 0.6 for _ in range(7)])
    found = regions(torch.from_numpy(attribution), torch.from_numpy(segments), new=5)
    np.testing.assert_allclose(found.numpy(), greedy(attribution, segments, 5), atol=1e-6)


def test_xrai_ranks_regions(resnet, images):
    pytest.importorskip("skimage")
    blobs = nn.functional.interpolate(images[:2, :, :6, :5], size=(96, 80), mode="nearest")
    segments = segments_of(blobs[0])
    assert segments.any(0).all()
    maps = XRAI(steps=2)(resnet, blobs, torch.tensor([[0, 3], [1, 0]]))
    assert maps.shape == (2, 96, 80)
    assert maps.min() >= 0
    assert 1 < len(maps[0].unique()) < 200  # regions


def test_xrai_says_what_it_needs(resnet, images, monkeypatch):
    original = builtins.__import__

    def without(name, *rest):
        if name.startswith("skimage"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="XRAI needs scikit-image for its segments: pip install scikit-image"):
        XRAI(steps=1)(resnet, images, TARGETS)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("extremal_perturbation(areas=())", "areas must be one or more shares"),
        ("extremal_perturbation(areas=(2,))", r"areas must be one or more shares in \(0, 1\]"),
        ("extremal_perturbation(steps=0)", "steps and batch_size must be at least 1"),
        ("meaningful_perturbation(size=-1)", "size and smooth at least 0"),
        ("xrai(steps=0)", "steps and batch_size must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(expression, message):
    with pytest.raises(UserError, match=message):
        parse_method(expression)
