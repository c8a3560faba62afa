"""SmoothGrad, Integrated Gradients, input x gradient and DeepLIFT against captum and loops, and their completeness."""

import copy

import pytest
import timm
import torch
from captum.attr import DeepLift, NoiseTunnel, Saliency
from captum.attr import InputXGradient as PeerInputXGradient
from captum.attr import IntegratedGradients as PeerIntegratedGradients
from torch import nn

from wsss.errors import UserError
from wsss.saliency import DeepLIFT, Gradient, InputXGradient, IntegratedGradients, SmoothGrad
from wsss.saliency.noise import noisy_copies
from wsss.saliency.parse import parse_method

TARGETS = torch.tensor([[1, 4], [0, 3], [1, 0]])


@pytest.mark.parametrize("name", ["resnet", "vgg"])
def test_smoothgrad_is_captums_noise_tunnel_with_the_same_noise(request, images, name, monkeypatch):
    model = request.getfixturevalue(name)
    maps = SmoothGrad("absolute", samples=3, noise=0.2, seed=5, batch_size=2)(model, images, TARGETS)
    for row, (image, cls) in enumerate(TARGETS.tolist()):
        (copies,) = noisy_copies(images[image], 3, 0.2, 5, 3)
        monkeypatch.setattr(torch, "normal", lambda *_, noise=copies - images[image]: noise)
        tunnel = NoiseTunnel(Saliency(model))
        found = tunnel.attribute(
            images[image][None], nt_type="smoothgrad", nt_samples=3, target=cls, abs=False
        )
        torch.testing.assert_close(maps[row], found[0].abs().sum(0).float(), rtol=1e-5, atol=1e-9)


def test_smoothgrad_without_noise_is_the_gradient(resnet, images):
    maps = SmoothGrad(samples=2, noise=0)(resnet, images, TARGETS)
    torch.testing.assert_close(maps, Gradient()(resnet, images, TARGETS))


@pytest.mark.parametrize("name", ["resnet", "vgg"])
def test_integrated_gradients_agree_with_captum(request, images, name):
    model = request.getfixturevalue(name)
    attributions = IntegratedGradients(steps=7, batch_size=3).attributions(model, images, TARGETS)
    for row, (image, cls) in enumerate(TARGETS.tolist()):
        expected = PeerIntegratedGradients(model).attribute(images[image][None], target=cls, n_steps=7)
        torch.testing.assert_close(attributions[row], expected[0].float(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("baseline", ["mean", "black"])
@pytest.mark.parametrize(
    ("name", "method", "close"),
    [
        ("resnet", DeepLIFT, 1e-5),
        ("vgg", DeepLIFT, 1e-5),
        ("modules", DeepLIFT, 1e-5),
        ("modules", IntegratedGradients, 1e-2),  # a rule of 50 points
    ],
)
def test_attributions_sum_to_the_difference(request, images, name, method, close, baseline):
    model = request.getfixturevalue(name)
    black = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]).double().view(1, 3, 1, 1)
    start = torch.zeros_like(images) if baseline == "mean" else black.expand_as(images)
    with torch.no_grad():
        difference = (model(images) - model(start))[TARGETS[:, 0], TARGETS[:, 1]].float()
    attributions = method(baseline=baseline).attributions(model, images, TARGETS).flatten(1)
    assert ((attributions.sum(1) - difference).abs() < close * attributions.abs().sum(1)).all()


def test_input_x_gradient_agrees_with_captum(resnet, images):
    attributions = InputXGradient().attributions(resnet, images, TARGETS)
    for row, (image, cls) in enumerate(TARGETS.tolist()):
        expected = PeerInputXGradient(resnet).attribute(images[image][None].requires_grad_(), target=cls)
        torch.testing.assert_close(attributions[row], expected[0].float(), rtol=1e-5, atol=1e-9)


class Modules(nn.Module):
    """Kinds of non-linearity for which captum has a rule, each behind a convolution and used once. Where two follow
    each other, or pooling windows overlap, captum's attributions do not sum to the difference."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(first, 6, 3, stride, padding=1) for first, stride in ((3, 2), *[(6, 1)] * 6)
        )
        self.activations = nn.ModuleList(
            [nn.ReLU(), nn.MaxPool2d(2), nn.ELU(), nn.Softplus(), nn.LeakyReLU(0.2), nn.Tanh(), nn.Sigmoid()]
        )
        self.head = nn.Linear(6, 5)

    def forward(self, images):
        for convolution, activation in zip(self.convolutions, self.activations, strict=True):
            images = activation(convolution(images))
        return self.head(images.mean((2, 3)))


@pytest.fixture
def modules(seed):
    torch.manual_seed(seed)
    return Modules().double().eval()


def test_deeplift_agrees_with_captum(modules, images):
    targets = torch.tensor([[1, 4], [0, 3], [1, 0]])
    found = DeepLIFT().attributions(modules, images, targets)
    for row, (image, cls) in enumerate(targets.tolist()):
        expected = DeepLift(copy.deepcopy(modules)).attribute(images[image][None], target=cls)
        torch.testing.assert_close(found[row], expected[0].float(), rtol=1e-4, atol=1e-7)


def test_deeplift_does_not_care_how_a_function_is_written(modules, images, monkeypatch):
    expected = DeepLIFT().attributions(modules, images, TARGETS)

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = modules

        def forward(self, images):
            functional, (one, two, three, four, five, six, seven) = (
                torch.nn.functional,
                self.inner.convolutions,
            )
            images = functional.max_pool2d(two(one(images).relu_()), 2)
            images = functional.softplus(four(functional.elu_(three(images))))
            images = functional.leaky_relu(five(images), 0.2, True)
            return self.inner.head(torch.sigmoid(seven(six(images).tanh())).mean((2, 3)))

    torch.testing.assert_close(DeepLIFT().attributions(Functional().eval(), images, TARGETS), expected)


def test_deeplift_through_a_global_maximum_is_exact(seed, images):
    torch.manual_seed(seed)

    class Maximum(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 6, 5, 2), nn.ReLU(True), nn.Conv2d(6, 5, 1))

        def forward(self, images):
            return torch.amax(self.body(images), dim=(2, 3))

    model = Maximum().double().eval()
    sums = DeepLIFT().attributions(model, images, TARGETS).sum((1, 2, 3))
    with torch.no_grad():
        expected = (model(images) - model(torch.zeros_like(images)))[TARGETS[:, 0], TARGETS[:, 1]]
    torch.testing.assert_close(sums, expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_atto", "vit_tiny_patch16_224"])
def test_deeplift_refuses_networks_without_a_rule(seed, name):
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=5).eval()
    nn.init.normal_(model.get_classifier().weight)
    image = torch.randn(1, 3, 224, 224) if name.startswith("vit") else torch.randn(1, 3, 64, 64)
    with pytest.raises(UserError, match="DeepLIFT is not right for this classifier: its attributions sum to"):
        DeepLIFT()(model, image, torch.tensor([[0, 1]]))


def test_channels_are_reduced_as_asked(resnet, images):
    attributions = InputXGradient().attributions(resnet, images, TARGETS)
    expected = {
        "positive": attributions.sum(1).clamp(min=0),
        "absolute": attributions.abs().sum(1),
        "maximum": attributions.abs().amax(1),
    }
    for reduce, maps in expected.items():
        torch.testing.assert_close(InputXGradient(reduce)(resnet, images, TARGETS), maps)
    assert InputXGradient().attributions(resnet, images, TARGETS[:0]).shape == (0, 3, 96, 80)


def test_each_point_takes_one_forward_for_all_classes(resnet, images, monkeypatch):
    sizes, backwards, differentiate = [], [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: backwards.append(1) or differentiate(*a, **k))
    handle = resnet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    IntegratedGradients(steps=5, batch_size=2)(resnet, images, torch.tensor([[0, 1], [0, 2]]))
    handle.remove()
    assert sizes == [2, 2, 1]
    assert len(backwards) == 3 * 2


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("integrated_gradients(steps=0)", "steps and batch_size must be at least 1"),
        ("integrated_gradients(rule=left)", "it takes gauss or midpoint"),
        ("deeplift(baseline=white)", "it takes mean or black"),
        ("input_x_gradient(reduce=mean)", "it takes positive or absolute or maximum"),
        ("smoothgrad(noise=-1)", "noise must be a share of at least 0"),
    ],
)
def test_values_out_of_range_are_refused(expression, message):
    with pytest.raises(UserError, match=message):
        parse_method(expression)
