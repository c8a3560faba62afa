"""Integrated Grad-CAM against a loop over the path."""

import numpy as np
import pytest
import torch
from torch import nn

from wsss.data.transforms import normalize_image
from wsss.errors import UserError
from wsss.saliency import GradCAM, IntegratedGradCAM
from wsss.saliency.integrated import baseline_of


def by_loops(model, method, image, cls, oracle):
    """One point of the path after the other, by plain backward passes."""
    start = torch.zeros_like(image)
    if method.baseline == "black":
        start = normalize_image(torch.zeros(image.shape, dtype=torch.uint8))
    total = 0.0
    for step in range(method.steps):
        place = (step + 0.5) / method.steps if method.rule == "midpoint" else step / method.steps
        activation, gradient = oracle(model, method.layer, start + (image - start) * place, cls)
        weights = gradient.mean((1, 2)).numpy()
        total = total + np.maximum((weights[:, None, None] * activation.numpy()).sum(0), 0)
    return total


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 4},
        {"steps": 3, "rule": "midpoint", "baseline": "black", "batch_size": 3},
        {"steps": 2, "rule": "midpoint", "batch_size": 1},
        {"steps": 1, "rule": "midpoint", "batch_size": 64},
    ],
)
def test_equals_a_loop_over_the_path(resnet, images, targets, oracle, options):
    method = IntegratedGradCAM("layer3", **options)
    maps = method(resnet, images, targets)
    expected = np.stack([by_loops(resnet, method, images[i], cls, oracle) for i, cls in targets.tolist()])
    assert (expected.max((1, 2)) > 0).sum() >= 3
    assert maps.shape == (6, 6, 5)
    np.testing.assert_allclose(maps.numpy(), expected, atol=1e-6 * expected.max())


def test_the_vgg_head_works_too(vgg, images, targets, oracle):
    method = IntegratedGradCAM("features.29", steps=3)
    maps = method(vgg, images[:1], targets[1:2])
    expected = by_loops(vgg, method, images[0], 3, oracle)
    np.testing.assert_allclose(maps[0].numpy(), expected, atol=1e-5 * expected.max())


def test_without_a_change_along_the_path_it_is_a_multiple_of_grad_cam(resnet, images):
    black = baseline_of(images, "black").expand(1, 3, 96, 80)
    target = torch.tensor([[0, 7]])
    maps = IntegratedGradCAM("layer3", steps=6, baseline="black")(resnet, black, target)
    torch.testing.assert_close(maps, 6 * GradCAM("layer3")(resnet, black, target), rtol=1e-4, atol=1e-5)


def test_the_midpoint_rule_is_exact_where_the_map_is_linear_along_the_path(images):
    """A classifier whose Grad-CAM is linear in positive images: the integral is half of the end's map."""
    model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    pictures, target = images.abs(), torch.tensor([[0, 1]])
    end = GradCAM("0")(model, pictures, target)
    middle = IntegratedGradCAM("0", steps=4, rule="midpoint")(model, pictures, target)
    torch.testing.assert_close(middle / 4, end / 2)
    left = IntegratedGradCAM("0", steps=4)(model, pictures, target)
    torch.testing.assert_close(left / 4, end * 3 / 8)


def test_each_point_passes_once_for_all_classes_in_bounded_batches(resnet, images, targets):
    sizes = []
    handle = resnet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    try:
        IntegratedGradCAM("layer4", steps=5, batch_size=4)(resnet, images, targets)
    finally:
        handle.remove()
    assert sizes == [4, 4, 4, 3]  # 3 images, 6 targets


def test_black_is_what_the_transforms_make_of_black():
    expected = normalize_image(torch.zeros(3, 1, 1, dtype=torch.uint8))
    torch.testing.assert_close(baseline_of(torch.zeros(1, 3, 1, 1), "black")[0], expected)


def test_images_of_one_channel_have_a_mean_but_no_black():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images, target = torch.rand(1, 1, 12, 12), torch.tensor([[0, 1]])
    assert IntegratedGradCAM("1", steps=2)(model, images, target).shape == (1, 10, 10)
    with pytest.raises(UserError, match="'black' is defined for RGB only, not for 1 channels"):
        IntegratedGradCAM("1", steps=2, baseline="black")(model, images, target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"rule": "right"}, "rule must be 'left' or 'midpoint'"),
        ({"baseline": "white"}, "baseline 'mean' or 'black'"),
    ],
)
def test_impossible_parameters_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        IntegratedGradCAM("layer4", **options)
