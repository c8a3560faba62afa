"""LayerCAM, HiResCAM and the Eigen-CAMs against grad-cam's own, CAM and Ablation-CAM, and their identities."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam import AblationCAM as PeerAblationCAM
from pytorch_grad_cam import EigenCAM as PeerEigenCAM
from pytorch_grad_cam import EigenGradCAM as PeerEigenGradCAM
from pytorch_grad_cam import HiResCAM as PeerHiResCAM
from pytorch_grad_cam import LayerCAM as PeerLayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from wsss.errors import UserError
from wsss.saliency import (
    CAM,
    AblationCAM,
    ClassSubtraction,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    HiResCAM,
    LayerCAM,
    MultiScale,
    normalize,
    upsample,
)
from wsss.saliency.layercam import first_component
from wsss.saliency.pooled import linear_above

LAYERS = [("resnet", "layer4"), ("resnet", "layer3"), ("vgg", "features.29"), ("vgg", "features.22")]


def peer_maps(peer, model, layer, images, targets):
    with peer(model, [model.get_submodule(layer)]) as cam:
        wanted = [ClassifierOutputTarget(int(cls)) for cls in targets[:, 1]]
        return torch.from_numpy(cam(images[targets[:, 0]], targets=wanted))


@pytest.mark.parametrize(("name", "layer"), LAYERS)
@pytest.mark.parametrize(
    ("method", "peer"), [(LayerCAM, PeerLayerCAM), (HiResCAM, PeerHiResCAM)], ids=["layercam", "hirescam"]
)
def test_agrees_with_the_grad_cam_package(request, images, targets, name, layer, method, peer):
    model = request.getfixturevalue(name)
    targets = targets[:4] if name == "resnet" else targets[2:4]
    expected = peer_maps(peer, model, layer, images, targets)
    maps = upsample(method(layer)(model, images, targets), (96, 80))
    assert (expected.amax((1, 2)) > 0.99).sum() >= len(targets) / 2  # otherwise the comparison says little
    assert (normalize(maps) - normalize(expected)).abs().max() < 1e-5


@pytest.mark.parametrize(("name", "layer"), LAYERS[1:])
@pytest.mark.parametrize(
    ("method", "peer"),
    [(EigenCAM, PeerEigenCAM), (EigenGradCAM, PeerEigenGradCAM)],
    ids=["eigencam", "eigengradcam"],
)
@pytest.mark.filterwarnings("ignore:Eigen-CAM does not depend")
def test_agrees_with_the_grad_cam_package_up_to_sign(request, images, targets, name, layer, method, peer):
    model, maps = request.getfixturevalue(name), []
    ours = method(layer)(model, images, targets[2:4])
    for sign in (1, -1):  # grad-cam takes the solver's sign, and ReLU after it
        with peer(model, [model.get_submodule(layer)]) as cam:
            whole = cam.get_cam_image
            cam.get_cam_image = lambda *values, sign=sign, whole=whole: sign * whole(*values)
            wanted = [ClassifierOutputTarget(int(cls)) for cls in targets[2:4, 1]]
            maps.append(torch.from_numpy(cam(images[targets[2:4, 0]], targets=wanted)))
    differences = [(normalize(upsample(ours, (96, 80))) - normalize(one)).abs().amax((1, 2)) for one in maps]
    assert torch.stack(differences).amin(0).max() < 1e-4


@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (2, 20, 4, 3)])  # more places than channels, and fewer
def test_first_component_is_numpys(seed, shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for found, one in zip(first_component(values), values.numpy(), strict=True):
        rows = one.reshape(len(one), -1).T
        rows = rows - rows.mean(0)
        expected = rows @ np.linalg.svd(rows, full_matrices=False)[2][0]
        expected *= np.sign(expected[np.abs(expected).argmax()])
        np.testing.assert_allclose(found.flatten(), np.maximum(expected, 0), rtol=1e-4, atol=1e-5)


def test_eigencam_knows_no_class_and_says_so(resnet, images):
    with pytest.warns(UserWarning, match="does not depend on the class"):
        first, second = EigenCAM("layer3")(resnet, images, torch.tensor([[0, 1], [0, 2]]))
    assert torch.equal(first, second)
    for base in (EigenCAM(), MultiScale(EigenCAM(), scales=(1.0,))):
        with pytest.raises(UserError, match="nothing to subtract"):
            ClassSubtraction(base)


def test_a_layer_with_negative_values_is_pointed_out(resnet, images, targets):
    for method in (LayerCAM("layer3.1.bn2"), AblationCAM("layer4.1.bn2")):
        with pytest.warns(UserWarning, match="activations are negative"):
            method(resnet, images, targets[:1])


def test_layercam_of_a_shallow_layer_is_sharpened_like_the_authors(resnet, images, targets):
    plain = normalize(LayerCAM("layer2")(resnet, images, targets), "max")
    torch.testing.assert_close(LayerCAM("layer2", sharpen=2.0)(resnet, images, targets), (2 * plain).tanh())
    with pytest.raises(UserError, match="sharpen must be at least 0"):
        LayerCAM(sharpen=-1)


def test_cam_is_the_weighted_sum_and_grad_cam_up_to_scale(resnet, images, targets):
    features = nn.Sequential(*list(resnet.children())[:-2])(images).detach()
    expected = torch.einsum("nk,nkuv->nuv", resnet.fc.weight[targets[:, 1]], features[targets[:, 0]])
    maps = CAM("layer4", relu=False)(resnet, images, targets)
    torch.testing.assert_close(maps, expected.detach().float(), rtol=1e-5, atol=1e-5)
    logits = resnet(images)[targets[:, 0], targets[:, 1]].detach().float()
    bias = resnet.fc.bias[targets[:, 1]].detach().float()
    torch.testing.assert_close(maps.mean((1, 2)) + bias, logits, rtol=1e-5, atol=1e-5)
    gradcam = GradCAM("layer4")(resnet, images, targets)
    torch.testing.assert_close(maps.relu(), gradcam * maps[0].numel(), rtol=1e-5, atol=1e-5)
    signed = HiResCAM("layer4", relu=False)(resnet, images, targets)
    torch.testing.assert_close(maps, signed * maps[0].numel(), rtol=1e-5, atol=1e-5)


def test_cam_needs_pooling_and_a_linear_head(resnet, vgg, images, targets):
    ends_in_sigmoid = nn.Sequential(resnet, nn.Sigmoid())
    for model, layer in ((resnet, "layer3"), (vgg, "features.29"), (ends_in_sigmoid, "0.layer4")):
        assert not linear_above(model, layer, images)
        with pytest.raises(UserError, match="only global average pooling and a linear head"):
            CAM(layer)(model, images, targets)


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet", "layer4"), ("resnet", "layer4.0"), ("vgg", "features.29")]
)
def test_ablationcam_is_the_drop_of_each_channel_in_a_loop(request, images, name, layer):
    model = request.getfixturevalue(name)
    targets = torch.tensor([[1, 4], [0, 3]] if layer == "layer4" else [[1, 4]])
    maps = AblationCAM(layer, batch_size=50)(model, images, targets)
    module = model.get_submodule(layer)
    for row, (image, cls) in enumerate(targets.tolist()):
        kept = []
        handle = module.register_forward_hook(lambda _, __, output, kept=kept: kept.append(output.clone()))
        with torch.no_grad():
            logit = model(images[image][None])[0, cls]
        handle.remove()
        expected = torch.zeros(kept[0].shape[2:], dtype=torch.float64)
        for channel in range(kept[0].shape[1]):

            def ablate(_, __, output, channel=channel):
                output = output.clone()
                output[:, channel] = 0
                return output

            handle = module.register_forward_hook(ablate)
            with torch.no_grad():
                expected += (logit - model(images[image][None])[0, cls]) / logit.abs() * kept[0][0, channel]
            handle.remove()
        torch.testing.assert_close(maps[row], expected.relu().float(), rtol=1e-4, atol=1e-5)


def test_ablationcam_agrees_with_grad_cam_where_every_channel_is_zero_somewhere(resnet, images, targets):
    """Otherwise grad-cam puts another number in the channel's place; and its weights have the logit's sign."""
    layer = "layer2"
    activation = nn.Sequential(*list(resnet.children())[:-4])(images[:1])
    assert (activation.amin((2, 3)) == 0).all()
    cls = int(resnet(images[:1]).argmax())
    expected = peer_maps(PeerAblationCAM, resnet, layer, images[:1], torch.tensor([[0, cls]]))
    maps = upsample(AblationCAM(layer)(resnet, images[:1], torch.tensor([[0, cls]])), (96, 80))
    assert (normalize(maps) - normalize(expected)).abs().max() < 1e-5


def test_ablationcam_runs_the_layers_below_once_for_a_batch(resnet, images):
    below, above = [], []
    handles = [
        module.register_forward_pre_hook(lambda _, inputs, sizes=sizes: sizes.append(len(inputs[0])))
        for module, sizes in ((resnet.conv1, below), (resnet.layer4[1], above))
    ]
    AblationCAM("layer4.0", batch_size=64)(resnet, images, torch.tensor([[0, 1], [0, 2]]))
    for handle in handles:
        handle.remove()
    assert sum(below) <= 1 + 2 + 128 / 64  # the image, the trial of the head, and a batch at a time
    assert sum(above) <= 1 + 4 + 128  # whatever the number of classes
