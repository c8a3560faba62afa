"""CAMERAS against a loop over resolutions that upsamples whole tensors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsss.errors import UserError
from wsss.saliency import CAMERAS, GradCAM, upsample
from wsss.saliency import cameras as module
from wsss.saliency.cameras import inner_product

RESOLUTIONS = (80, 95, 115)  # the shorter side of 96 x 80 images


def by_loops(model, layer, image, cls, oracle, sizes, keep=None):
    """One resolution after the other, (k, H, W) tensors and all."""
    features, gradients = [], []
    for index, size in enumerate(sizes):
        if keep is not None and index not in keep:
            continue
        scaled = F.interpolate(image[None], size=size, mode="bicubic", align_corners=False)[0]
        activation, gradient = oracle(model, layer, scaled if index else image, cls)
        for kept, tensor in ((features, activation), (gradients, gradient)):
            kept.append(F.interpolate(tensor[None], size=sizes[0], mode="bilinear", align_corners=False)[0])
    product = sum(features) / len(features) * sum(gradients) / len(gradients)
    return product.sum(0).clamp(min=0).numpy()


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet", "layer4"), ("resnet", "layer3"), ("resnet", "layer2"), ("vgg", "features.29")],
)
def test_equals_a_loop_that_upsamples_whole_tensors(request, images, targets, oracle, name, layer):
    model = request.getfixturevalue(name)
    method = CAMERAS(layer, resolutions=RESOLUTIONS)
    sizes = [(96, 80), (114, 95), (138, 115)]
    assert method.sizes(96, 80) == sizes
    maps = method(model, images, targets)
    assert maps.shape == (len(targets), 96, 80)
    expected = np.stack(
        [by_loops(model, layer, images[i], cls, oracle, sizes) for i, cls in targets.tolist()]
    )
    assert (expected.max((1, 2)) > 0).sum() >= 3
    np.testing.assert_allclose(maps.numpy(), expected, atol=1e-6 * expected.max())


def test_the_papers_resolutions_are_the_default():
    method = CAMERAS("layer4")
    assert method.sizes(224, 224) == [(side, side) for side in range(224, 1000, 100)]
    assert method.sizes(448, 112)[-1] == (1848, 462)
    assert method.sizes(1, 3)[0] == (1, 3)


def test_one_resolution_is_gradient_times_activation(resnet, images, targets, oracle):
    maps = CAMERAS("layer3", resolutions=(80,))(resnet, images, targets[:1])
    activation, gradient = (upsample(t, (96, 80)) for t in oracle(resnet, "layer3", images[2], 5))
    torch.testing.assert_close(maps[0], (activation * gradient).sum(0).relu().float(), atol=1e-6, rtol=1e-5)


def test_below_a_pooled_head_one_resolution_is_cam_with_the_relu_after_upsampling(resnet, images, targets):
    maps = CAMERAS("layer4", resolutions=(80,))(resnet, images, targets)
    signed = resnet.fc.weight[targets[:, 1]] / 9  # 3 x 3 cells
    features = GradCAM("layer4").forward(resnet, images).activation.detach()[targets[:, 0]]
    expected = upsample(torch.einsum("nk,nkuv->nuv", signed, features).detach(), (96, 80)).relu()
    torch.testing.assert_close(maps, expected.float(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("working_set", [1, 3000, 2**22])
def test_the_inner_product_is_that_of_upsampled_tensors(monkeypatch, constant, working_set):
    monkeypatch.setattr(module, "WORKING_SET", working_set)
    random = torch.Generator().manual_seed(0)
    sizes = [(2, 3), (5, 4), (40, 70), (1, 1)]
    activations = [torch.randn(7, *size, generator=random) for size in sizes]
    gradients = [torch.randn(7, *size, generator=random) for size in sizes]
    if constant:
        gradients = [gradient[:, :1, :1].expand_as(gradient) for gradient in gradients]
    means = [
        sum(F.interpolate(part[None], size=(33, 47), mode="bilinear")[0] for part in parts) / 4
        for parts in (activations, gradients)
    ]
    found = inner_product(activations, gradients, (33, 47))
    torch.testing.assert_close(found, (means[0] * means[1]).sum(0), atol=1e-5, rtol=1e-4)


def test_agreeing_keeps_resolutions_of_the_first_ones_class(resnet, images, oracle):
    resolutions = (80, 90, 100, 115, 130)
    method = CAMERAS("layer3", resolutions=resolutions, agreeing=True, batch_size=3)
    targets = torch.tensor([[0, 7], [1, 7], [2, 7]])
    maps = method(resnet, images, targets)
    sizes, dropped = method.sizes(96, 80), 0
    for row, (image, cls) in enumerate(targets.tolist()):
        tops = [
            int(resnet(F.interpolate(images[image : image + 1], size=size, mode="bicubic")).argmax())
            for size in sizes
        ]
        keep = {index for index, top in enumerate(tops) if top == tops[0]}
        dropped += len(sizes) - len(keep)
        expected = by_loops(resnet, "layer3", images[image], cls, oracle, sizes, keep)
        np.testing.assert_allclose(maps[row].numpy(), expected, atol=1e-5 * expected.max())
    assert 0 < dropped < 3 * (len(sizes) - 1)


def test_one_forward_a_resolution_serves_all_classes_and_batches_are_bounded(resnet, images, targets):
    expected = CAMERAS("layer3", resolutions=RESOLUTIONS)(resnet, images, targets)
    sizes = []
    handle = resnet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    try:
        maps = CAMERAS("layer3", resolutions=RESOLUTIONS, batch_size=2)(resnet, images, targets)
    finally:
        handle.remove()
    assert sizes == [2, 2, 2, 1, 1, 1]
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


def test_the_pipeline_adds_no_scales_around_it():
    assert CAMERAS("layer4").own_scales


@pytest.mark.parametrize("options", [{"resolutions": ()}, {"resolutions": (224, 0)}, {"batch_size": 0}])
def test_impossible_parameters_are_refused(options):
    with pytest.raises(UserError, match="at least 1"):
        CAMERAS("layer4", **options)
