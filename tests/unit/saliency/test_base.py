"""The interface, the guards around the classifier, and map arithmetic."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from wsss.saliency import METHODS, GlobalGuidanceCAM, GradCAM, MultiScale, SaliencyMethod, normalize, upsample
from wsss.saliency.base import evaluating, finite, gaussian_blur, rank_within_image, resize_images


def state_of(model):
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad for parameter in model.parameters()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        [len(module._backward_hooks) for module in model.modules()],
    )


def test_the_zoo_maps_names_to_methods():
    assert METHODS["gradcam"] is GradCAM
    assert METHODS["global_guidance"] is GlobalGuidanceCAM
    assert all(issubclass(method, SaliencyMethod) for method in METHODS.values())


def test_a_layer_without_feature_maps_also_leaves_no_hook(resnet, images, targets):
    before = state_of(resnet)
    with pytest.raises(Exception, match="feature maps"):
        GradCAM("fc")(resnet, images, targets)
    assert state_of(resnet) == before


def test_evaluating_does_not_call_overridden_train():
    class Stubborn(nn.Linear):
        def train(self, mode=True):
            raise AssertionError("train() was called")

    model = Stubborn(2, 2)
    with evaluating(model):
        assert not model.training
        assert not model.weight.requires_grad
    assert model.training
    assert model.weight.requires_grad


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("wrap", [lambda base: base, lambda base: MultiScale(base, scales=(1.0, 1.5))])
def test_gradient_contexts_of_the_caller_do_not_matter(resnet, images, targets, context, wrap):
    method = wrap(GradCAM("layer3"))
    expected = method(resnet, images, targets)
    with context():
        maps = method(resnet, images + 0, targets + 0)
    torch.testing.assert_close(maps, expected)
    assert not maps.requires_grad
    assert not maps.is_inference()


def test_channels_last_does_not_change_maps(resnet, images, targets):
    expected = GlobalGuidanceCAM("layer3")(resnet, images, targets)
    last = images.contiguous(memory_format=torch.channels_last)
    maps = GlobalGuidanceCAM("layer3")(resnet, last, targets)
    torch.testing.assert_close(normalize(maps), normalize(expected), atol=1e-4, rtol=0)


def test_no_targets_cost_nothing(images):
    def refuse(_):
        raise AssertionError("the classifier ran")

    model = nn.Module()
    model.forward = refuse
    maps = GradCAM("layer4")(model, images, torch.zeros((0, 2), dtype=torch.int64))
    assert maps.shape == (0, 0, 0)
    assert upsample(maps, (5, 6)).shape == (0, 5, 6)
    assert normalize(maps).shape == (0, 0, 0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[3, 0]], "image index 3 is out of range: there are 3"),
        ([[-1, 0]], "image index -1"),
        ([[0, 12]], "class index 12 is out of range: there are 12"),
        ([[0, -1]], "class index -1"),
        ([0, 1], "targets must be integers"),
        ([[0.0, 1.0]], "targets must be integers"),
    ],
)
def test_targets_out_of_range_are_refused(resnet, images, rows, message):
    with pytest.raises(ValueError, match=message):
        GradCAM("layer4")(resnet, images, torch.tensor(rows))


def test_images_that_are_not_float_batches_are_refused(resnet):
    with pytest.raises(ValueError, match="images must be floats"):
        GradCAM("layer4")(resnet, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.tensor([[0, 0]]))


def test_nan_becomes_zero_with_a_warning():
    with pytest.warns(UserWarning, match="NaN"):
        assert finite(torch.tensor([torch.nan, torch.inf, 1.0])).tolist() == [0, 0, 1]


def test_ranks_count_earlier_rows_of_the_same_image():
    assert rank_within_image(torch.tensor([2, 0, 2, 2, 1, 0])).tolist() == [0, 0, 1, 2, 0, 1]
    assert rank_within_image(torch.tensor([], dtype=torch.int64)).tolist() == []


def test_upsample_is_bilinear_with_half_pixel_centres():
    maps = np.random.default_rng(0).random((2, 5, 7), dtype=np.float32)
    expected = np.stack([cv2.resize(m, (31, 23), interpolation=cv2.INTER_LINEAR) for m in maps])
    np.testing.assert_allclose(upsample(torch.from_numpy(maps), (23, 31)).numpy(), expected, atol=1e-6)


def test_normalize_scales_each_map_by_itself():
    maps = torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]], [[0.0, 4.0]], [[0.0, 0.0]]])
    assert normalize(maps).tolist() == [[[0, 1]], [[0, 0]], [[0, 1]], [[0, 0]]]
    torch.testing.assert_close(
        normalize(maps, "max"), torch.tensor([[[1 / 3, 1]], [[1.0, 1]], [[0.0, 1]], [[0.0, 0]]])
    )
    with pytest.raises(ValueError, match="minmax"):
        normalize(maps, "sum")


def test_normalize_survives_extreme_values():
    maps = torch.tensor([[[0.0, 1e-38]], [[0.0, 1e-44]], [[0.0, 3e38]], [[-1.0, -2.0]]])
    assert normalize(maps).isfinite().all()
    assert normalize(maps, "max")[3].tolist() == [[0, 0]]


@pytest.mark.parametrize("size", [(40, 23), (7, 7), (3, 1), (1, 1), (5, 2)])
def test_gaussian_blur_agrees_with_opencv(size):
    maps = np.random.default_rng(0).random((2, *size), dtype=np.float32)
    expected = np.stack([cv2.GaussianBlur(m, (11, 11), 5.0) for m in maps])
    np.testing.assert_allclose(gaussian_blur(torch.from_numpy(maps), 11, 5.0).numpy(), expected, atol=1e-6)


def test_images_are_resized_with_antialiasing():
    stripes = torch.tensor([0.0, 1.0]).repeat(32).expand(1, 3, 64, 64)
    assert (resize_images(stripes, (16, 16)) - 0.5).abs().max() < 0.1
    assert resize_images(stripes, (64, 64)) is stripes
