"""The interface, the guards around the classifier, and map arithmetic."""

import copy

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from wsss.errors import UserError
from wsss.saliency import (
    CAMERAS,
    DCSM,
    METHODS,
    SESS,
    ClassSubtraction,
    FullGrad,
    GlobalGuidanceCAM,
    GradCAM,
    Gradient,
    MultiScale,
    SaliencyMethod,
    normalize,
    upsample,
)
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


CALLS = [GradCAM("layer4"), Gradient().gradients, SESS(GradCAM("layer4"), scales=(96,)).crops]
"""Every way in."""


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("images", "got"),
    [
        (torch.zeros(3, 32, 32), r"torch\.float32 \(3, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"torch\.uint8 \(1, 3, 32, 32\)"),
        (torch.zeros(1, 3, 0, 32), r"torch\.float32 \(1, 3, 0, 32\)"),
        (np.zeros((1, 3, 32, 32)), "ndarray"),
    ],
)
def test_images_of_another_kind_get_the_right_one_shown(resnet, call, images, got):
    message = (
        rf"images must be floats \(B, 3, H, W\), got {got}; .*normalize_image\(to_tensor\(photo\)\[None\]\)"
    )
    with pytest.raises(UserError, match=message):
        call(resnet, images, torch.tensor([[0, 0]]))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("targets", "got"),
    [
        ([[0, 3]], "list"),
        ((0, 3), "tuple"),
        (None, "NoneType"),
        (torch.tensor([0, 3]), r"torch\.int64 \(2,\)"),
        (torch.tensor([[0, 3, 1]]), r"torch\.int64 \(1, 3\)"),
        (torch.tensor([[0.0, 3.0]]), r"torch\.float32 \(1, 2\)"),
        (torch.tensor([[True, False]]), r"torch\.bool \(1, 2\)"),
    ],
)
def test_targets_of_another_kind_get_the_right_one_shown(resnet, images, call, targets, got):
    message = (
        rf"targets must be integers \(N, 2\) .* such as torch\.tensor\(\[\[0, 3\], \[0, 7\]\]\), got {got}"
    )
    with pytest.raises(UserError, match=message):
        call(resnet, images, targets)


@pytest.mark.parametrize("call", CALLS)
def test_images_on_another_device_or_with_nan_and_what_is_no_classifier_are_refused(
    resnet, images, targets, call
):
    with pytest.raises(
        UserError, match=r"images are on meta, but the classifier is on cpu: pass images\.to\('cpu'\)"
    ):
        call(resnet, images.to("meta"), targets)
    with pytest.raises(UserError, match=r"must be a torch\.nn\.Module, got function"):
        call(lambda images: images, images, targets)
    images[1, 0, 3, 4] = torch.inf
    with pytest.raises(UserError, match="image 1 has NaN or infinite values"):
        call(resnet, images, targets)
    call(resnet, images, targets[targets[:, 0] != 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SESS("gradcam"), r"SESS wraps a method, such as SESS\(GradCAM\('layer4'\)\), got str"),
        (lambda: MultiScale(GradCAM), "MultiScale wraps a method, .* got GradCAM"),
        (lambda: ClassSubtraction(None), "ClassSubtraction wraps a method, .* got NoneType"),
        (
            lambda: SESS(GradCAM("layer4"), scales=224),
            r"scales takes several values, such as .*\(224, 288\), got 224",
        ),
        (lambda: MultiScale(GradCAM("layer4"), scales=1.0), "scales takes several values"),
        (lambda: CAMERAS("layer4", resolutions=224), "resolutions takes several values"),
        (lambda: DCSM(scales=1.0), "scales takes several values"),
        (
            lambda: DCSM(layers="layer4"),
            r"layers takes several values, .*\('layer3', 'layer4'\), got 'layer4'",
        ),
    ],
)
def test_parameters_of_another_kind_get_the_right_one_shown(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_statistics_survive_a_traced_batch_norm_that_ignores_eval_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(2, 3, 8, 8)
    traced = torch.jit.trace(model.train(), images, check_trace=False)
    before = copy.deepcopy(traced.state_dict())
    Gradient()(traced, images, torch.tensor([[1, 3]]))
    torch.testing.assert_close(traced.state_dict(), before, rtol=0, atol=0)


class Compiled(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.compiled = model, torch.compile(model.forward, backend="eager")

    def forward(self, images):
        return self.compiled(images)


def test_a_compiled_classifier_runs_as_it_was_written(resnet, images, targets):
    expected = GradCAM("layer3")(resnet, images, targets)
    model = Compiled(copy.deepcopy(resnet).requires_grad_(False))
    logits = model(images)  # compiled for eval mode without gradients, and so without hooks
    torch.testing.assert_close(GradCAM("model.layer3")(model, images, targets), expected)
    torch.testing.assert_close(model(images), logits)


CROPS = SESS(Gradient(), scales=(80,)).crops


class Checkpointed(nn.Module):
    """A ResNet whose inner stages run again in the backward pass, in the mode that they are in then."""

    def __init__(self, model, reentrant):
        super().__init__()
        self.model, self.reentrant = model, reentrant

    def forward(self, images):
        model = self.model
        features = model.maxpool(model.relu(model.bn1(model.conv1(images))))
        features = model.layer1(features)
        for stage in (model.layer2, model.layer3):
            features = checkpoint(stage, features, use_reentrant=self.reentrant)
        return model.fc(model.avgpool(model.layer4(features)).flatten(1))


@pytest.mark.parametrize(
    ("method", "own"),
    [
        (Gradient(), Gradient()),
        (Gradient().gradients, Gradient().gradients),
        (lambda *call: CROPS(*call).patches[0].maps, lambda *call: CROPS(*call).patches[0].maps),
        (FullGrad(), FullGrad()),
        (GradCAM("layer1"), GradCAM("model.layer1")),
    ],
)
def test_checkpointed_activations_are_those_of_eval_mode(resnet, images, targets, method, own):
    model = Checkpointed(copy.deepcopy(resnet).train(), reentrant=False)
    before = copy.deepcopy(model.state_dict())
    torch.testing.assert_close(own(model, images, targets), method(resnet, images, targets))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("method", "reentrant"),
    [
        (Gradient(), True),
        (FullGrad(), True),
        (GradCAM("model.layer1"), True),
        (GradCAM("model.layer2.0"), False),
    ],
)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradients_that_a_checkpoint_stops_are_refused(resnet, images, targets, method, reentrant):
    with pytest.raises(
        UserError, match=r"cannot pass the classifier's torch\.utils\.checkpoint: switch it off"
    ):
        method(Checkpointed(resnet, reentrant), images, targets)


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
