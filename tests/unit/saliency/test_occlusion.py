"""Occlusion, RISE and SISE against captum and the authors' algorithms in plain loops, and what they give on average."""

import cv2
import numpy as np
import pytest
import torch
from captum.attr import Occlusion as PeerOcclusion
from torch import nn

from wsss.errors import UserError
from wsss.saliency import RISE, SISE, AdaSISE, Occlusion
from wsss.saliency.parse import parse_method
from wsss.saliency.sise import otsu

TARGETS = torch.tensor([[1, 4], [0, 3], [1, 0]])


@pytest.mark.parametrize(("window", "step"), [(16, 9), (30, 30), (200, 7)])
def test_occlusion_agrees_with_captum(resnet, images, window, step):
    maps = Occlusion(window, step, batch_size=7)(resnet, images, TARGETS)
    sides = [min(window, side) for side in images.shape[-2:]]  # captum has no window larger than the image
    for row, (image, cls) in enumerate(TARGETS.tolist()):
        expected = PeerOcclusion(resnet).attribute(
            images[image][None], (3, *sides), (1, step, step), target=cls, perturbations_per_eval=20
        )
        torch.testing.assert_close(maps[row], expected[0, 0].relu().float(), rtol=1e-4, atol=1e-6)


def test_occlusion_may_hide_with_black(resnet, images):
    """A window over the whole image leaves the score of a black one."""
    black = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]).double().view(1, 3, 1, 1)
    with torch.no_grad():
        lost = (resnet(images) - resnet(black.expand_as(images)))[TARGETS[:, 0], TARGETS[:, 1]].relu().float()
    maps = Occlusion(96, 96, baseline="black")(resnet, images, TARGETS)
    torch.testing.assert_close(maps, lost[:, None, None].expand_as(maps), rtol=1e-4, atol=1e-6)


def test_rise_is_the_authors_loop(resnet, images):
    method = RISE(masks=9, cells=4, keep=0.4, seed=3, score="softmax", batch_size=4)
    drawn = torch.rand((9, 18), generator=torch.Generator().manual_seed(3)).numpy()
    cell = [int(np.ceil(side / 4)) for side in (96, 80)]
    masks = []
    for place_y, place_x, *grid in drawn:
        small = (np.float32(grid) < 0.4).astype(np.float32).reshape(4, 4)
        large = cv2.resize(small, (5 * cell[1], 5 * cell[0]), interpolation=cv2.INTER_LINEAR)
        top, left = int(place_y * cell[0]), int(place_x * cell[1])
        masks.append(large[top : top + 96, left : left + 80])
    maps = method(resnet, images, TARGETS)
    for row, (image, cls) in enumerate(TARGETS.tolist()):
        expected = np.zeros((96, 80))
        for mask in masks:
            with torch.no_grad():
                score = resnet(images[image][None] * torch.from_numpy(mask)).softmax(1)[0, cls]
            expected += float(score) * mask / (9 * 0.4)
        np.testing.assert_allclose(maps[row].numpy(), expected, rtol=1e-4, atol=1e-6)


class Indifferent(nn.Module):
    def forward(self, images):
        return torch.zeros(len(images), 2) + 0 * images.sum((1, 2, 3))[:, None]


class Corner(nn.Module):
    """The logit of class 1 is the value of one pixel."""

    def forward(self, images):
        return torch.stack((0 * images[:, 0, 20, 9], images[:, 0, 20, 9]), dim=1)


def test_rise_expects_the_score_given_that_a_pixel_is_seen():
    images = torch.ones(1, 3, 32, 32)
    method = RISE(masks=4000, batch_size=500)
    # p(x M) is 1/2 whatever is seen. A pixel's mask has a mean of p and a variance below p (1 - p).
    maps = method(Indifferent().eval(), images, torch.tensor([[0, 1]]))
    assert (maps - 0.5).abs().max() < 0.5 / 0.5 * 5 * np.sqrt(0.25 / 4000)
    # E[p M(u)] / p is larger at the pixel that the score is made of than where masks are independent of it.
    map_ = method(Corner().eval(), 3 * images, torch.tensor([[0, 1]]))[0]
    assert map_[20, 9] == map_[18:23, 7:12].max()
    far = map_[:8, 24:]
    assert far.max() < map_[20, 9] - 0.05
    with torch.no_grad():  # there it is E[p]
        scores = torch.cat([(3 * mask[:, 20, 9]).sigmoid() for mask in method.batches(images)])
    assert abs(far.mean() - scores.mean()) < 0.02


def test_the_masks_of_rise_do_not_depend_on_the_batch(images):
    masks = [torch.cat(list(RISE(masks=10, batch_size=size).batches(images))) for size in (3, 10)]
    torch.testing.assert_close(*masks)
    assert masks[0].shape == (10, 96, 80)
    assert 0 <= masks[0].min() < masks[0].max() <= 1


@pytest.mark.parametrize("kind", [SISE, AdaSISE])
def test_sise_is_its_formula_in_a_loop(resnet, images, oracle, kind):
    layers = ("layer3", "layer4")
    maps = kind(layers=layers, batch_size=19)(resnet, images, TARGETS[:2])
    for row, (image, cls) in enumerate(TARGETS[:2].tolist()):
        result = None
        for layer in layers:
            activation, gradient = (part.numpy() for part in oracle(resnet, layer, images[image], cls))
            speaks = gradient.sum((1, 2))
            threshold = 0.0 if kind is SISE else brute_force_otsu(speaks[speaks > 0])
            total = np.zeros((96, 80))
            for channel in np.flatnonzero(speaks > threshold):
                small = activation[channel]
                if small.max() == small.min():
                    continue
                mask = cv2.resize(small, (80, 96), interpolation=cv2.INTER_LINEAR)
                mask = (mask - mask.min()) / (mask.max() - mask.min())
                with torch.no_grad():
                    score = resnet(images[image][None] * torch.from_numpy(mask)).sigmoid()[0, cls]
                total += float(score) * mask / (mask.sum() if kind is SISE else 1)
            stage = (total - total.min()) / (total.max() - total.min())
            result = (
                stage
                if result is None
                else (result + stage) * (stage > brute_force_otsu(stage[::4, ::4].ravel()))
            )
        found = maps[row].numpy()
        # Otsu's threshold of a quarter of the pixels moves the border by a few.
        assert (np.abs(found - result) > 1e-3).mean() < 0.03


def brute_force_otsu(values):
    def between(threshold):
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    return float(max(np.unique(values)[:-1], key=between))


def test_otsu_is_the_best_of_all_thresholds(seed):
    generator = np.random.default_rng(seed)
    for values in (generator.normal(size=50), generator.integers(0, 4, 40).astype(float)):
        assert float(otsu(torch.from_numpy(values))) == brute_force_otsu(values)
    assert float(otsu(torch.tensor([2.0, 2.0]))) == 2
    assert float(otsu(torch.tensor([3.0]))) == 3


def test_the_channels_of_sise_serve_all_classes(resnet, images):
    sizes = []
    handle = resnet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    SISE(layers=("layer2",))(resnet, images, torch.tensor([[0, cls] for cls in range(12)]))
    handle.remove()
    assert sum(sizes) <= 1 + 32  # a channel once, whatever the number of classes


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("occlusion(window=8, step=9)", "no step above the window"),
        ("occlusion(baseline=white)", "it takes mean or black"),
        ("rise(masks=0)", "RISE needs masks and cells of at least 1"),
        ("rise(keep=0)", r"keep in \(0, 1\]"),
        ("sise(share=1)", r"share must be in \[0, 1\)"),
        ("ada_sise(batch_size=0)", "batch_size must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(expression, message):
    with pytest.raises(UserError, match=message):
        parse_method(expression)
