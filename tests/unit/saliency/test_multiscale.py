"""Multi-scale and flip against a loop over scales, images and targets."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.functional import resize

from wsss.errors import UserError
from wsss.saliency import ClassSubtraction, GradCAM, MultiScale


def by_loops(base, model, image, cls, scales, flip, balance):
    """One image and class; every scale and mirror image by itself, resized by OpenCV."""
    collected = []
    for scale in scales:
        size = [max(1, round(scale * side)) for side in image.shape[-2:]]
        scaled = resize(image, size, antialias=True)
        for mirror in (False, True) if flip else (False,):
            seen = scaled.flip(-1) if mirror else scaled
            found = base(model, seen[None], torch.tensor([[0, cls]]))[0].numpy()
            found = found[:, ::-1] if mirror else found
            factor = {"none": 1, "area": found.size, "max": 1 / found.max() if found.max() > 0 else 0}[
                balance
            ]
            collected.append(np.ascontiguousarray(found * factor))
    height, width = max(m.shape for m in collected)
    return sum(cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in collected)


@pytest.mark.parametrize("balance", ["none", "area", "max"])
@pytest.mark.parametrize(("scales", "flip"), [((0.5, 1.0, 1.5), True), ((1.3, 0.71), False), ((1.0,), True)])
def test_equals_a_loop(resnet, images, targets, scales, flip, balance):
    base = GradCAM("layer3")
    targets = targets[:3]
    maps = MultiScale(base, scales, flip, balance)(resnet, images, targets)
    for row, (image, cls) in enumerate(targets.tolist()):
        expected = by_loops(base, resnet, images[image], cls, scales, flip, balance)
        assert maps[row].shape == expected.shape
        np.testing.assert_allclose(maps[row].numpy(), expected, atol=2e-5 * max(expected.max(), 1e-3))


def test_one_forward_per_scale_holds_image_and_mirror(resnet, images, targets):
    shapes = []
    handle = resnet.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    try:
        MultiScale(GradCAM("layer4"), scales=(0.5, 2.0))(resnet, images, targets)
    finally:
        handle.remove()
    assert shapes == [(6, 3, 192, 160), (6, 3, 48, 40)]


def test_cost_counts_pixels(resnet):
    base = GradCAM("layer4")
    assert MultiScale(base).cost == 2 * (0.25 + 1 + 2.25 + 4)
    assert MultiScale(base, scales=(1.0,), flip=False).cost == 1


def test_a_symmetric_image_has_symmetric_maps(resnet):
    half = torch.randn(1, 3, 64, 32, dtype=torch.float64)
    maps = MultiScale(GradCAM("layer4"))(resnet, torch.cat((half, half.flip(-1)), -1), torch.tensor([[0, 2]]))
    torch.testing.assert_close(maps, maps.flip(-1), atol=1e-5, rtol=1e-4)


def test_area_balance_sums_cams(resnet, images, targets):
    features = nn.Sequential(*list(resnet.children())[:-2])
    expected = 0
    for scale in (1.0, 2.0):
        seen = features(torch.nn.functional.interpolate(images, scale_factor=scale, mode="bilinear")).detach()
        cam = torch.einsum("nk,nkuv->nuv", resnet.fc.weight[targets[:, 1]], seen[targets[:, 0]]).relu()
        expected = expected + torch.nn.functional.interpolate(cam[:, None], (6, 5), mode="bilinear")[:, 0]
    maps = MultiScale(GradCAM("layer4"), scales=(1.0, 2.0), flip=False, balance="area")(
        resnet, images, targets
    )
    torch.testing.assert_close(maps, expected.detach().float(), rtol=1e-5, atol=1e-5)


def test_works_around_another_wrapper(resnet, images, targets):
    maps = MultiScale(ClassSubtraction(GradCAM("layer4")), scales=(1.0,))(resnet, images, targets)
    assert maps.shape == (6, 3, 3)
    assert maps.max() > 0


def test_logits_are_those_of_the_image(resnet, images):
    torch.testing.assert_close(
        MultiScale(GradCAM("layer4")).forward(resnet, images).logits, resnet(images).detach().float()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "positive factors"),
        ({"scales": (1.0, 0.0)}, "positive factors"),
        ({"balance": "x"}, "balance"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        MultiScale(GradCAM("layer4"), **options)
