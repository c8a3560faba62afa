"""Grad-CAM, Grad-CAM++ and XGrad-CAM against grad-cam's own, their identities, and their cost."""

import copy
import warnings

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM as PeerGradCAM
from pytorch_grad_cam import GradCAMPlusPlus as PeerGradCAMPlusPlus
from pytorch_grad_cam import XGradCAM as PeerXGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from wsss.errors import UserError
from wsss.saliency import GlobalGuidanceCAM, GradCAM, GradCAMPlusPlus, XGradCAM, normalize, upsample


def peer_maps(peer, model, layer, images, targets):
    with peer(model, [model.get_submodule(layer)]) as cam:
        wanted = [ClassifierOutputTarget(int(cls)) for cls in targets[:, 1]]
        return torch.from_numpy(cam(images[targets[:, 0]], targets=wanted))


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet", "layer4"), ("resnet", "layer3"), ("vgg", "features.29"), ("vgg", "features.22")],
)
@pytest.mark.parametrize(
    ("method", "peer"),
    [
        (GradCAM, PeerGradCAM),
        (lambda layer: GradCAMPlusPlus(layer, eps=1e-6), PeerGradCAMPlusPlus),
        (XGradCAM, PeerXGradCAM),
    ],
    ids=["gradcam", "gradcam++", "xgradcam"],
)
@pytest.mark.filterwarnings("ignore:XGrad-CAM is Grad-CAM")
def test_agrees_with_the_grad_cam_package(request, images, targets, name, layer, method, peer):
    model = request.getfixturevalue(name)
    targets = targets[:4] if name == "resnet" else targets[2:4]
    expected = peer_maps(peer, model, layer, images, targets)
    maps = upsample(method(layer)(model, images, targets), (96, 80))
    assert (expected.amax((1, 2)) > 0.99).sum() >= len(targets) / 2  # otherwise the comparison says little
    assert (normalize(maps) - normalize(expected)).abs().max() < 1e-5


def test_raw_values_are_those_of_the_formula(resnet, images, targets, oracle):
    maps = GradCAM("layer3")(resnet, images, targets)
    for row, (image, cls) in enumerate(targets.tolist()):
        activation, gradient = (t.numpy() for t in oracle(resnet, "layer3", images[image], cls))
        expected = np.maximum((gradient.mean((1, 2))[:, None, None] * activation).sum(0), 0)
        np.testing.assert_allclose(maps[row].numpy(), expected, atol=1e-6 * expected.max())


def test_is_cam_below_a_pooled_head(resnet, images, targets):
    features = nn.Sequential(*list(resnet.children())[:-2])(images).detach()
    cam = torch.einsum("nk,nkuv->nuv", resnet.fc.weight[targets[:, 1]], features[targets[:, 0]]).relu()
    maps = GradCAM("layer4")(resnet, images, targets)
    torch.testing.assert_close(maps * maps[0].numel(), cam.detach().float(), rtol=1e-5, atol=1e-5)


def test_a_repeated_target_gets_the_same_map(resnet, images):
    maps = GradCAM("layer4")(resnet, images, torch.tensor([[1, 4], [1, 4]]))
    assert torch.equal(maps[0], maps[1])


def test_one_forward_and_as_many_backwards_as_classes_on_one_image(resnet, images, targets, monkeypatch):
    forwards, backwards, differentiate = [], [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: backwards.append(1) or differentiate(*a, **k))
    handle = resnet.register_forward_pre_hook(lambda module, inputs: forwards.append(1))
    try:
        GradCAM("layer4")(resnet, images, targets)
    finally:
        handle.remove()
    assert len(forwards) == 1
    assert len(backwards) == 3  # image 0 has three targets


def test_gradients_stop_at_the_layer(resnet, images, targets):
    evidence = GradCAM("layer4").forward(resnet, images)
    assert evidence.activation.is_leaf
    assert not evidence.logits.requires_grad
    torch.testing.assert_close(evidence.logits, resnet(images).detach().float())


def test_a_layer_before_an_in_place_relu_keeps_its_own_values(vgg, images, oracle):
    layer = "features.28"  # a convolution whose output torchvision's next module overwrites
    activation = GradCAM(layer).forward(vgg, images).activation
    torch.testing.assert_close(
        activation[0].detach(), oracle(vgg, layer, images[0], 0)[0], rtol=1e-9, atol=1e-12
    )
    assert activation.min() < 0


def test_the_last_use_of_a_shared_module_counts(resnet, images, targets):
    shared = GradCAM("layer4.1.relu")(resnet, images, targets)
    torch.testing.assert_close(shared, GradCAM("layer4")(resnet, images, targets))


def test_an_unknown_layer_is_answered_with_close_names(resnet, images, targets):
    with pytest.raises(UserError, match=r"no layer 'layer5'; close names: .*layer4"):
        GradCAM("layer5")(resnet, images, targets)
    with pytest.raises(UserError, match=r"no layer 'zzz'; close names: conv1, bn1"):
        GradCAM("zzz")(resnet, images, targets)


class Branched(nn.Module):
    def __init__(self, answer="logits"):
        super().__init__()
        self.used, self.dangling, self.idle = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.answer = answer

    def forward(self, images):
        self.dangling(images)
        features = self.used(images)
        return (
            features.mean((2, 3)) if self.answer == "logits" else (features if self.answer == "map" else {})
        )


@pytest.mark.parametrize(
    ("model", "layer", "message"),
    [
        (Branched(), "dangling", "do not depend on it"),
        (Branched(), "idle", "does not run"),
        (Branched("map"), "used", r"must return logits \(images, classes\) for 1 images, got shape"),
        (Branched("dict"), "used", "got dict"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 3)),
            "1",
            r"layer '1' must give feature maps .* shape \(1, 3\)",
        ),
    ],
)
def test_a_layer_or_classifier_that_does_not_fit_is_refused(model, layer, message):
    with pytest.raises(UserError, match=message):
        GradCAM(layer)(model, torch.randn(1, 3, 2, 2), torch.tensor([[0, 1]]))


@pytest.mark.parametrize(
    "method",
    [GradCAM("layer2"), GradCAMPlusPlus("layer2"), XGradCAM("layer2"), GlobalGuidanceCAM("layer2")],
)
def test_maps_are_never_negative(resnet, images, targets, method):
    maps = method(resnet, images, targets)
    assert maps.min() >= 0
    assert maps.dtype == torch.float32


def plus_plus_by_loops(activation, gradient, eps=0.0):
    """Equation 19 as written, place by place, in float64."""
    result = np.zeros(activation.shape[1:])
    for a, g in zip(activation.double().numpy(), gradient.double().numpy(), strict=True):
        weight = 0.0
        for value in g.flat:
            if value > 0:
                weight += value * value**2 / (2 * value**2 + a.sum() * value**3 + eps)
        result += weight * a
    return np.maximum(result, 0)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("layer", ["layer4", "layer3"])
def test_grad_cam_plus_plus_is_the_papers_formula_at_any_scale_of_the_logits(
    resnet, images, targets, oracle, scale, layer
):
    model = copy.deepcopy(resnet)
    model.fc.weight.data.mul_(scale)
    maps = GradCAMPlusPlus(layer)(model, images, targets[:3])
    for row, (image, cls) in enumerate(targets[:3].tolist()):
        expected = plus_plus_by_loops(*oracle(model, layer, images[image], cls))
        np.testing.assert_allclose(maps[row].numpy(), expected, atol=1e-4 * expected.max())


def test_small_logits_do_not_change_grad_cam_plus_plus_but_its_eps_form(resnet, images, targets):
    def change(method):
        maps = method(resnet, images, targets)
        small = copy.deepcopy(resnet)
        small.fc.weight.data.mul_(1e-3)
        return (normalize(maps) - normalize(method(small, images, targets))).abs().max()

    assert change(GradCAMPlusPlus("layer4")) < 0.05
    assert change(GradCAMPlusPlus("layer4", eps=1e-6)) > 0.1


def test_grad_cam_plus_plus_leaves_out_places_where_its_weight_has_no_value():
    activation = torch.tensor([[[[-1.0, -1.0]], [[2.0, 1.0]]]])  # sums -2 and 3
    gradient = torch.tensor([[[[1.0, 0.0]], [[1.0, -1.0]]]])  # 2 + S G: 0 and 5 where G > 0
    maps = GradCAMPlusPlus("any").combine(activation, gradient)
    torch.testing.assert_close(maps, torch.tensor([[[2 / 5, 1 / 5]]]))


@pytest.mark.filterwarnings("ignore:XGrad-CAM is Grad-CAM")
def test_xgrad_cam_is_grad_cam_below_a_pooled_head_only(resnet, vgg, images, targets):
    def difference(model, layer):
        maps, others = (method(layer)(model, images, targets) for method in (GradCAM, XGradCAM))
        return (normalize(maps) - normalize(others)).abs().max()

    assert difference(resnet, "layer4") < 1e-4
    assert difference(resnet, "layer3") > 0.02
    assert difference(vgg, "features.22") > 0.02
    assert difference(vgg, "features.29") > 0.02


@pytest.mark.parametrize(
    ("method", "message"),
    [(XGradCAM, "XGrad-CAM is Grad-CAM itself"), (GlobalGuidanceCAM, "just Grad-CAM squared")],
)
def test_methods_that_lose_their_point_below_pooling_say_so(resnet, vgg, images, targets, method, message):
    with pytest.warns(UserWarning, match=f"{message} at this layer.* choose an inner layer"):
        method("layer4")(resnet, images, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method("layer3")(resnet, images, targets)
        method("features.29")(vgg, images, targets)
        method("layer4")(resnet, images[..., :32, :32], targets)  # a single cell: nothing can vary
        GradCAM("layer4")(resnet, images, targets)


def test_the_warning_is_shown_once(resnet, images, targets):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(3):
            XGradCAM("layer4")(resnet, images, targets)
    assert len(shown) == 1


def test_xgrad_cam_is_refused_before_a_relu(vgg, images, targets):
    with pytest.raises(
        UserError, match="may be arbitrarily large: choose a layer after a ReLU, or global_guidance"
    ):
        XGradCAM("features.28")(vgg, images, targets)


def test_grad_cam_plus_plus_warns_where_its_weights_are_negative():
    activation, gradient = torch.full((1, 2, 3, 3), -1.0), torch.full((1, 2, 3, 3), 0.5)
    with pytest.warns(UserWarning, match="negative weights at places of this layer"):  # 2 - 9 * 0.5 < 0
        GradCAMPlusPlus().combine(activation, gradient)
    GradCAMPlusPlus().combine(activation, gradient / 10)


@pytest.mark.parametrize("method", [GradCAMPlusPlus, XGradCAM])
@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_eps_is_refused(method, eps):
    with pytest.raises(UserError, match="eps must be above 0"):
        method("layer4", eps=eps)
