"""Fusions, RefineCAM, Winsor-CAM, Finer-CAM, Smooth Grad-CAM++ and Augmented Grad-CAM against plain loops and peers."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_grad_cam import FinerCAM as PeerFinerCAM
from pytorch_grad_cam import GradCAM as PeerGradCAM
from torch import nn

from wsss.errors import UserError
from wsss.saliency import (
    AugmentedGradCAM,
    FinerCAM,
    GradCAM,
    GradCAMPlusPlus,
    LayerCAM,
    Maximum,
    Mean,
    Product,
    RefineCAM,
    SmoothGradCAMPlusPlus,
    WinsorCAM,
    normalize,
    upsample,
)
from wsss.saliency.noise import noisy_copies
from wsss.saliency.parse import parse_method


@pytest.mark.parametrize(
    ("kind", "fuse"),
    [
        (Mean, lambda m: (m[0] + m[1]) / 2),
        (Maximum, lambda m: m[0].maximum(m[1])),
        (Product, lambda m: m[0] * m[1]),
    ],
)
@pytest.mark.parametrize("scale", ["max", "minmax", "none"])
def test_a_fusion_is_what_its_name_says(resnet, images, targets, kind, fuse, scale):
    bases = GradCAM("layer4"), LayerCAM("layer3")
    maps = [base(resnet, images, targets) for base in bases]
    if scale != "none":
        maps = [normalize(one, scale) for one in maps]
    expected = fuse([upsample(maps[0], (6, 5)), maps[1]])
    torch.testing.assert_close(kind(bases, scale)(resnet, images, targets), expected)


def test_layers_of_a_fusion_share_one_forward(resnet, images, targets):
    calls = []
    handle = resnet.register_forward_pre_hook(lambda *_: calls.append(1))
    parse_method("mean(gradcam@layer2, product(gradcam++@layer3, layercam@layer4))")(resnet, images, targets)
    assert len(calls) == 2  # one for layer2, one for the two layers of the product
    handle.remove()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mean", r"needs its bases, for example mean\(gradcam@layer3, gradcam@layer4\)"),
        ("mean(gradcam, gradcm)", "did you mean gradcam"),
        ("mean(gradcam, scale=big)", "it takes max or minmax or none"),
        ("max(gradcam, layercam, scales=3)", "no parameter 'scales'; did you mean scale"),
        ("mean(bases=())", "needs at least one method"),
    ],
)
def test_a_wrong_fusion_is_explained(text, message):
    with pytest.raises(UserError, match=message):
        parse_method(text)


def test_refinecam_is_the_product_of_the_stages(resnet, images, targets):
    expected = torch.ones(())
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        maps = normalize(GradCAMPlusPlus(layer)(resnet, images, targets))
        expected = expected * upsample(maps, (24, 20))
    torch.testing.assert_close(RefineCAM()(resnet, images, targets), expected)
    with pytest.raises(UserError, match="the stages of Sequential are not known: name layers"):
        RefineCAM()(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), images, targets)


def test_winsorcam_is_the_sum_of_a_loop_over_convolutions(resnet, images):
    image, cls, kept = images[1], 4, []
    convolutions = [module for module in resnet.modules() if isinstance(module, nn.Conv2d)]
    handles = [c.register_forward_hook(lambda _, __, output: kept.append(output)) for c in convolutions]
    score = resnet(image[None].clone().requires_grad_())[0, cls]
    for handle in handles:
        handle.remove()
    weights = [gradient.mean((2, 3))[0] for gradient in torch.autograd.grad(score, kept)]
    importance = np.array([max(float(weight.mean()), 0.0) for weight in weights])
    positive = importance[importance > 0]
    clipped = np.minimum(importance, np.percentile(positive, 80))
    scaled = 0.1 + 0.9 * (clipped - positive.min()) / (clipped.max() - positive.min())
    expected = torch.zeros(48, 40, dtype=torch.float64)
    for share, weight, output in zip(np.where(importance > 0, scaled, 0), weights, kept, strict=True):
        layer = normalize(torch.einsum("k,kuv->uv", weight, output[0]).relu()[None])
        expected += share * F.interpolate(layer[:, None], size=(48, 40))[0, 0].detach()
    maps = WinsorCAM(percentile=80)(resnet, images, torch.tensor([[0, 2], [1, cls]]))
    torch.testing.assert_close(maps[1], expected.float(), rtol=1e-4, atol=1e-5)


def test_winsorcam_needs_a_convolution_and_percentiles(images, targets):
    with pytest.raises(UserError, match="found no convolution"):
        WinsorCAM()(nn.Sequential(nn.Flatten(), nn.Linear(3 * 96 * 80, 12)).double(), images, targets)
    with pytest.raises(UserError, match=r"percentile must be in \[0, 100\]"):
        WinsorCAM(101)


def test_finercam_is_a_cam_of_the_difference(resnet, images, oracle):
    image, cls = 1, 4
    with torch.no_grad():
        logits = resnet(images[image][None])[0]
    nearest = sorted((abs(float(z - logits[cls])), d) for d, z in enumerate(logits) if d != cls)[:2]
    gradient = oracle(resnet, "layer3", images[image], cls)[1]
    for _, rival in nearest:
        gradient = gradient - 0.6 / 2 * oracle(resnet, "layer3", images[image], rival)[1]
    activation = oracle(resnet, "layer3", images[image], cls)[0]
    expected = torch.einsum("k,kuv->uv", gradient.mean((1, 2)), activation).relu()
    maps = FinerCAM(GradCAM("layer3"), rivals=2)(resnet, images, torch.tensor([[0, 1], [image, cls]]))
    torch.testing.assert_close(maps[1], expected.float(), rtol=1e-5, atol=1e-8)


def test_finercam_with_softmax_agrees_with_grad_cam(resnet, images):
    targets, seen = torch.tensor([[0, 3], [1, 4], [2, 0], [2, 5]]), 0
    maps = FinerCAM(GradCAM("layer3"), gamma=1, weights="softmax")(resnet, images, targets)
    for row, (image, cls) in enumerate(targets.tolist()):
        peer = PeerFinerCAM(resnet, [resnet.layer3], base_method=PeerGradCAM)
        expected = torch.from_numpy(peer(images[image][None], target_idx=cls))
        found = upsample(maps[row : row + 1], (96, 80))
        seen += int(expected.max() > 0.99)
        assert (normalize(found) - normalize(expected)).abs().max() < 1e-4
    assert seen >= 1  # otherwise the comparison says little


def test_finercam_without_rivals_is_its_base(resnet, images, targets):
    base = LayerCAM("layer3")
    expected = base(resnet, images, targets)
    torch.testing.assert_close(FinerCAM(base, gamma=0)(resnet, images, targets), expected)
    alone = FinerCAM(base, rivals=0)(resnet, images, torch.tensor([[1, 0], [0, 3]]))
    torch.testing.assert_close(alone[0], expected[2])  # image 1 has no other class in the call
    two = FinerCAM(GradCAM("layer4"), gamma=1, rivals=0)(resnet, images, torch.tensor([[0, 3], [0, 7]]))
    head = resnet.fc.weight[3] - resnet.fc.weight[7]
    features = nn.Sequential(*list(resnet.children())[:-2])(images[:1]).detach()[0]
    cam = torch.einsum("k,kuv->uv", head, features).relu().detach() / features[0].numel()
    torch.testing.assert_close(two[0], cam.float(), rtol=1e-4, atol=1e-7)
    with pytest.raises(UserError, match="FinerCAM wraps a method of one layer"):
        parse_method("finercam(gradient)")


def test_smooth_gradcam_plus_plus_is_a_loop_over_noise(resnet, images, oracle):
    method = SmoothGradCAMPlusPlus("layer3", samples=3, noise=0.2, batch_size=2)
    image, cls = 1, 4
    gradients = []
    for copies in noisy_copies(images[image], 3, 0.2, 0, 3):
        gradients = [oracle(resnet, "layer3", copy, cls)[1].numpy() for copy in copies]
    activation = oracle(resnet, "layer3", images[image], cls)[0].numpy()
    first, second, third = (np.mean([g**p for g in gradients], axis=0) for p in (1, 2, 3))
    denominator = 2 * second + activation.sum((1, 2))[:, None, None] * third
    good = (second > 0) & (denominator > 2 * second * 5e-7)
    alpha = np.divide(second, denominator, out=np.zeros_like(second), where=good)
    weights = (alpha * np.maximum(first, 0)).sum((1, 2))
    expected = np.maximum(np.einsum("k,kuv->uv", weights, activation), 0)
    maps = method(resnet, images, torch.tensor([[0, 3], [image, cls]]))
    np.testing.assert_allclose(maps[1].numpy(), expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_smooth_gradcam_plus_plus_without_noise_is_gradcam_plus_plus(resnet, images, targets):
    expected = GradCAMPlusPlus("layer3")(resnet, images, targets)
    maps = SmoothGradCAMPlusPlus("layer3", samples=1, noise=0)(resnet, images, targets)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)


def warped(image, angle, shift):
    """Rotated about the centre, then shifted by whole (x, y) pixels: an independent loop over pixels."""
    height, width = image.shape[1:]
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            x, y = column + 0.5 - width / 2 - shift[0], row + 0.5 - height / 2 - shift[1]
            there = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
            left, top = there[0] + width / 2 - 0.5, there[1] + height / 2 - 0.5
            for i in (int(np.floor(top)), int(np.floor(top)) + 1):
                for j in (int(np.floor(left)), int(np.floor(left)) + 1):
                    if 0 <= i < height and 0 <= j < width:
                        result[:, row, column] += (
                            max(0, 1 - abs(top - i)) * max(0, 1 - abs(left - j)) * image[:, i, j]
                        )
    return result


def test_copies_are_rotated_then_shifted(seed):
    method = AugmentedGradCAM(copies=3, angle=0.5, shift=0.2)
    image = torch.randn(2, 9, 14, generator=torch.Generator().manual_seed(seed))
    drawn = 2 * torch.rand((3, 3), generator=torch.Generator().manual_seed(0)) - 1
    for warp, (angle, x, y) in zip(method.warps((9, 14)), drawn.tolist(), strict=True):
        grid = F.affine_grid(warp[None], [1, 2, 9, 14], align_corners=False)
        found = F.grid_sample(image[None], grid, align_corners=False)[0]
        expected = warped(image, 0.5 * angle, (0.2 * x * 14, 0.2 * y * 9))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_augmented_gradcam_descends_on_the_loss_of_its_formula(resnet, images):
    method = AugmentedGradCAM("layer3", copies=3, steps=3, rate=0.1, smooth=0.01, shrink=0.02, batch_size=2)
    image, cls = images[1], 4
    warps = method.warps((96, 80))
    copies = F.grid_sample(
        image.expand(3, -1, -1, -1),
        F.affine_grid(warps.double(), [3, *image.shape], align_corners=False),
        align_corners=False,
    )
    seen = GradCAM("layer3")(resnet, copies, torch.tensor([[0, cls], [1, cls], [2, cls]]))
    seen = 0.15 * seen / seen.max()  # half of what three steps of 0.1 reach
    fine = torch.zeros(96, 80, requires_grad=True)
    adam = torch.optim.Adam([fine], lr=0.1)
    for _ in range(3):
        adam.zero_grad()
        loss = torch.zeros(())
        for warp, small in zip(warps, seen, strict=True):
            grid = F.affine_grid(
                warp[None], [1, 1, 4 * small.shape[0], 4 * small.shape[1]], align_corners=False
            )
            read = F.grid_sample(fine[None, None], grid, align_corners=False)[0, 0]
            means = read.unfold(0, 4, 4).unfold(1, 4, 4).mean((2, 3))
            loss = loss + (means - small).square().sum()
            for difference in (fine[1:] - fine[:-1], fine[:, 1:] - fine[:, :-1]):
                loss = loss + 0.01 * difference.abs().sum()
            loss = loss + 0.02 * fine.square().sum()
        loss.backward()
        adam.step()
    maps = method(resnet, images, torch.tensor([[0, 3], [1, cls]]))
    differs = (maps[1] - fine.detach().relu()).abs() > 1e-3
    assert differs.float().mean() < 0.01  # Adam takes a whole step where rounding decides a sign
    assert fine.max() > 0.05


@pytest.mark.parametrize("fuse", ["mean", "max"])
def test_maps_of_copies_are_turned_back(resnet, images, targets, fuse):
    still = AugmentedGradCAM("layer3", copies=2, angle=0, shift=0, fuse=fuse)(resnet, images, targets)
    gradcam = GradCAM("layer3")(resnet, images, targets)
    inner = slice(16, -16)  # beyond the centres of the outer cells warping reads zeros
    expected = upsample(normalize(gradcam, "max"), (96, 80))
    torch.testing.assert_close(still[:, inner, inner], expected[:, inner, inner], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("augmented_gradcam(copies=0)", "copies, steps and batch_size must be at least 1"),
        ("augmented_gradcam(angle=-1)", "angle, shift, smooth and shrink must be at least 0"),
        ("smooth_gradcam++(samples=0)", "samples and batch_size must be at least 1"),
        ("finercam(gamma=-1)", "gamma and rivals must be at least 0"),
        ("ablationcam(batch_size=0)", "batch_size must be at least 1"),
        ("refinecam(layers=layer3)", re.escape("it takes values in brackets")),
    ],
)
def test_values_out_of_range_are_refused(expression, message):
    with pytest.raises(UserError, match=message):
        parse_method(expression)
