"""FullGrad: completeness, the authors' steps and grad-cam's, odd networks, the average over noise."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from pytorch_grad_cam import FullGrad as PeerFullGrad
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import FrozenBatchNorm2d, Permute

from wsss.errors import UserError
from wsss.saliency import FullGrad, SmoothFullGrad, normalize
from wsss.saliency.fullgrad import EXACT, HALF, FullGradient, full_gradient

SIZE = (64, 48)


def prepared(name, seed):
    """A network with statistics of noise and with biases, in float64; VGG with narrow layers, to be fast."""
    torch.manual_seed(seed)
    if name.startswith("vgg"):
        widths = [width if width == "M" else width // 4 for width in cfgs["D"]]
        features = make_layers(widths, batch_norm=name == "vgg16_bn")
        head = [nn.Linear(128, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 12)]
        model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)
    else:
        model = torchvision.models.resnet18(weights=None, num_classes=12)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and name.startswith("vgg"):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.normal_(module.weight, 1, 0.3)
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, *SIZE))
    return model.double().eval()


@pytest.fixture(scope="module")
def networks(seed):
    return {name: prepared(name, seed) for name in ("resnet18", "vgg16", "vgg16_bn")}


class Odd(nn.Module):
    """A convolution used twice and run before one defined earlier, an unused branch, layers without bias."""

    def __init__(self):
        super().__init__()
        self.late = nn.Conv2d(8, 6, 3, stride=2)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.plain.running_mean.normal_()
        self.plain.running_var.uniform_(0.5, 2)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.idle = nn.Conv2d(8, 8, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 5)

    def forward(self, images):
        features = self.relu(self.plain(self.stem(images)))
        features = self.relu(self.twice(features))
        features = features + self.relu(self.twice(features))
        self.idle(features)
        return self.head(self.relu(self.late(features)).mean((2, 3)))


@pytest.fixture
def odd():
    return Odd().double().eval()


@pytest.fixture
def images(seed):
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(seed + 1)).double()


@pytest.fixture
def targets():
    return torch.tensor([[1, 4], [0, 3], [1, 0]])


def terms_of(model, image, cls):
    """Input term and bias terms: what a module gives for a black input becomes a leaf of its own."""
    leaves, handles = [], []

    def add_leaf(module, inputs, output):
        if isinstance(module, nn.BatchNorm2d):
            black = torch.zeros_like(inputs[0])
            bias = nn.functional.batch_norm(
                black, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps
            )
        elif module.bias is None:
            return None
        else:
            bias = module.bias[None, :, None, None].expand_as(output)
        leaf = bias.detach().clone().requires_grad_()
        leaves.append(leaf)
        return output - bias.detach() + leaf

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)):
            handles.append(module.register_forward_hook(add_leaf))
    x = image[None].clone().requires_grad_()
    try:
        gradients = torch.autograd.grad(model(x)[0, cls], [x, *leaves], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    pairs = zip([x, *leaves], gradients, strict=True)
    return [(value * gradient).detach()[0].numpy() for value, gradient in pairs if gradient is not None]


def authors_map(terms, size, eps=1e-6):
    """Absolute value, min-max over the tensor, every channel resized with aligned corners, sum."""
    result = np.zeros(size)
    for term in terms:
        magnitude = np.abs(term)
        if magnitude.max() == magnitude.min():
            continue
        scaled = (magnitude - magnitude.min()) / (magnitude.max() - magnitude.min() + eps)
        for channel in torch.from_numpy(scaled):
            wide = nn.functional.interpolate(channel[None, None], size, mode="bilinear", align_corners=True)
            result += wide[0, 0].numpy()
    return result


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "vgg16_bn"])
def test_signed_terms_sum_to_the_logit(networks, images, targets, name):
    gradient = full_gradient(networks[name], images)
    logits = gradient.output.detach()
    for rows, terms in gradient.rounds(targets):
        sums = sum(term.double().flatten(1).sum(1) for term in terms)
        for row in rows.tolist():
            image, cls = targets[row].tolist()
            assert float(sums[image]) == pytest.approx(float(logits[image, cls]), rel=1e-4, abs=1e-5)


def test_signed_terms_sum_to_the_logit_of_an_odd_network(odd, images):
    gradient = full_gradient(odd, images)
    logits = gradient.output.detach()
    ((_, terms),) = gradient.rounds(torch.tensor([[0, 2], [1, 3]]))
    terms = list(terms)
    assert len(terms) == 6  # input, plain, twice, twice, late, head; neither stem nor idle
    sums = sum(term.double().flatten(1).sum(1) for term in terms)
    assert float(sums[0]) == pytest.approx(float(logits[0, 2]), abs=1e-5)
    assert float(sums[1]) == pytest.approx(float(logits[1, 3]), abs=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "vgg16_bn"])
def test_per_channel_agrees_with_the_grad_cam_package(networks, images, targets, name):
    model = networks[name]
    with PeerFullGrad(model, []) as cam:
        wanted = [ClassifierOutputTarget(int(cls)) for cls in targets[:, 1]]
        expected = torch.from_numpy(cam(images[targets[:, 0]], targets=wanted))
    maps = FullGrad("per_channel")(model, images, targets)
    assert maps.shape == (3, *SIZE)
    assert (normalize(maps) - normalize(expected)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
def test_tensor_is_the_authors_steps_in_plain_loops(networks, images, targets, name):
    maps = FullGrad()(networks[name], images, targets)
    for row, (image, cls) in enumerate(targets[:2].tolist()):
        expected = authors_map(terms_of(networks[name], images[image], cls), SIZE)
        np.testing.assert_allclose(maps[row].numpy(), expected, atol=1e-5 * np.ptp(expected))


@pytest.mark.parametrize("eps", [None, 0.0, 1e-2])
def test_an_odd_network_pairs_each_bias_with_its_own_gradient(odd, images, eps):
    maps = FullGrad(eps=eps)(odd, images, torch.tensor([[0, 2]]))
    expected = authors_map(terms_of(odd, images[0], 2), SIZE, 1e-6 if eps is None else eps)
    np.testing.assert_allclose(maps[0].numpy(), expected, atol=1e-5 * np.ptp(expected))


def test_without_eps_the_map_does_not_depend_on_the_scale_of_the_logit(odd, images, targets):
    expected = {eps: FullGrad(eps=eps)(odd, images, targets) for eps in (0.0, 1e-2)}
    with torch.no_grad():
        odd.head.weight *= 1e-3
    torch.testing.assert_close(FullGrad(eps=0.0)(odd, images, targets), expected[0.0], rtol=1e-3, atol=1e-3)
    assert (FullGrad(eps=1e-2)(odd, images, targets) < 0.5 * expected[1e-2]).all()


def test_one_forward_and_as_many_backwards_as_classes_on_one_image(odd, images, targets, monkeypatch):
    forwards, backwards, differentiate = [], [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: backwards.append(1) or differentiate(*a, **k))
    handle = odd.register_forward_pre_hook(lambda module, inputs: forwards.append(1))
    FullGrad()(odd, images, targets)
    handle.remove()
    assert len(forwards) == 1
    assert len(backwards) == 2


def test_without_noise_one_sample_is_fullgrad(networks, images, targets):
    expected = FullGrad()(networks["resnet18"], images, targets)
    maps = SmoothFullGrad(samples=1, noise=0.0)(networks["resnet18"], images, targets)
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-4)


def test_smooth_sums_signed_terms_over_noisy_copies_before_psi(odd, images):
    samples, noise = 5, 0.2
    maps = SmoothFullGrad(samples, noise, seed=7, batch_size=2)(odd, images, torch.tensor([[1, 2], [1, 3]]))
    for row, cls in enumerate((2, 3)):
        generator, totals = torch.Generator().manual_seed(7), None
        for _ in range(samples):
            deviation = noise * (images[1].max() - images[1].min())
            copy = images[1] + deviation * torch.randn(images[1].shape, generator=generator)
            terms = terms_of(odd, copy, cls)
            totals = terms if totals is None else [a + b for a, b in zip(totals, terms, strict=True)]
        expected = authors_map(totals, SIZE)
        np.testing.assert_allclose(maps[row].numpy(), expected, atol=1e-5 * np.ptp(expected))


def test_noise_is_reproducible_and_leaves_the_global_random_state_alone(odd, images, targets):
    before = torch.get_rng_state()
    first = SmoothFullGrad(samples=4, batch_size=4)(odd, images, targets)
    again = SmoothFullGrad(samples=4, batch_size=3)(odd, images[1:], torch.tensor([[0, 0]]))
    other = SmoothFullGrad(samples=4, seed=1)(odd, images, targets)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(first[2:], again, rtol=1e-4, atol=1e-4)
    assert (first - other).abs().max() > 1e-2


def test_no_more_copies_pass_together_than_the_batch_size(odd, images, targets):
    sizes = []
    handle = odd.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    SmoothFullGrad(samples=5, batch_size=2)(odd, images, targets)
    handle.remove()
    assert sizes == [2, 2, 1] * 2


METHODS = [FullGrad(), FullGrad("per_channel"), SmoothFullGrad(samples=2)]


def test_a_network_without_a_trace_of_the_image_is_zero(odd, images):
    with torch.no_grad():
        odd.head.weight.zero_()
    assert torch.equal(FullGrad()(odd, images, torch.tensor([[0, 1]])), torch.zeros(1, *SIZE))


class Frozen(Odd):
    def forward(self, images):
        return super().forward(images).detach()


@pytest.mark.parametrize("method", METHODS)
def test_networks_that_do_not_fit_are_refused(odd, images, targets, method):
    with pytest.raises(UserError, match="logits do not depend on the image"):
        method(Frozen().double().eval(), images, targets)
    with pytest.raises(ValueError, match="class index 5 is out of range"):
        method(odd, images, torch.tensor([[0, 5]]))
    odd.plain = nn.BatchNorm2d(8, track_running_stats=False).double().eval()
    with pytest.raises(UserError, match="batch normalisation with running statistics"):
        method(odd, images, targets)


def frozen(norm):
    """torchvision's BatchNorm of detection networks, with the same constants."""
    made = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    made.load_state_dict({key: value for key, value in norm.state_dict().items() if "batches" not in key})
    return made


@pytest.mark.parametrize("convert", [frozen, nn.SyncBatchNorm.convert_sync_batchnorm])
def test_other_forms_of_batch_normalisation_have_the_same_bias(networks, targets, convert):
    model = copy.deepcopy(networks["resnet18"])
    image = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    expected = FullGrad()(model, image, targets[1:2])
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, convert(module))
    torch.testing.assert_close(FullGrad()(model.eval(), image, targets[1:2]), expected)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), nn.LocalResponseNorm(2)])
def test_normalisation_by_the_images_own_statistics_is_refused(odd, images, targets, norm):
    odd.plain = norm.double()
    with pytest.raises(UserError, match=f"FullGrad has no bias for {type(norm).__name__}"):
        FullGrad()(odd, images, targets)


class Affine(nn.Module):
    """A layer of one's own that adds something."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.full((8, 1, 1), 0.5))

    def forward(self, features):
        return features + self.shift


class Squeeze(nn.Module):
    """Squeeze-excitation without biases: a product of two functions of the image."""

    def forward(self, features):
        return features * features.mean((2, 3), keepdim=True).sigmoid()


class FunctionalNorm(nn.BatchNorm2d):
    """Batch normalisation with parameters of its own, as a function."""

    def forward(self, features):
        mean, variance = torch.full((8,), 0.3).to(features), torch.full((8,), 2.0).to(features)
        return nn.functional.batch_norm(features, mean, variance, self.weight, self.bias)


class FunctionalHead(nn.Linear):
    def forward(self, features):
        return nn.functional.linear(features, 2 * self.weight, self.bias + 1)


def changed(model, **modules):
    for name, module in modules.items():
        setattr(model, name, module.double().eval())
    return model


def unlike_any(model, kind):
    """The odd network, computing something that FullGrad cannot see."""
    match kind:
        case "traced":
            return torch.jit.trace(model, torch.zeros(2, 3, *SIZE).double())
        case "affine":
            return changed(model, plain=Affine())
        case "normalisation as a function":
            return changed(model, plain=FunctionalNorm(8))
        case "linear as a function":
            return changed(model, head=FunctionalHead(6, 5))
        case "probabilities":
            return nn.Sequential(model, nn.Sigmoid())
        case "normalised inside":
            return nn.Sequential(torchvision.transforms.Normalize([0.5] * 3, [0.2] * 3), model)
        case "clipped":  # at a value that some activations reach
            return changed(model, relu=nn.Hardtanh(0, 0.5))
    activation = {"SiLU": nn.SiLU(), "GELU": nn.GELU(), "squeeze": nn.Sequential(nn.ReLU(), Squeeze())}[kind]
    return changed(model, relu=activation)


KINDS = [
    "traced",
    "affine",
    "normalisation as a function",
    "linear as a function",
    "probabilities",
    "normalised inside",
    "clipped",
    "SiLU",
    "GELU",
    "squeeze",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
def test_terms_that_do_not_sum_to_the_logit_are_refused(odd, images, targets, kind, method):
    with pytest.raises(
        UserError, match=r"FullGrad is not right .* terms sum to -?[\d.e-]+ where the logit is"
    ):
        method(unlike_any(odd, kind), images, targets)


def test_a_transposed_convolution_has_a_bias_term_like_any(odd, images, targets):
    odd.twice = nn.ConvTranspose2d(8, 8, 3, padding=1).double()
    expected = authors_map(terms_of(odd, images[0], 3), SIZE)
    np.testing.assert_allclose(FullGrad()(odd, images, targets)[1], expected, atol=1e-5 * np.ptp(expected))


def test_a_linear_layer_on_maps_is_a_convolution(odd, images, targets):
    odd.twice, odd.relu = nn.Conv2d(8, 8, 1).double(), nn.ReLU()
    expected = FullGrad()(odd, images, targets)
    linear = nn.Linear(8, 8).double()
    linear.weight.data, linear.bias.data = odd.twice.weight.data.flatten(1), odd.twice.bias.data
    odd.twice = nn.Sequential(Permute([0, 2, 3, 1]), linear, Permute([0, 3, 1, 2]))
    torch.testing.assert_close(FullGrad()(odd, images, targets), expected)


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "vgg16_bn"])
@pytest.mark.parametrize("method", METHODS[::2])
def test_rounding_is_not_refused(networks, images, targets, name, method):
    model = copy.deepcopy(networks[name]).float()
    method(model, images.float(), targets)
    with torch.autocast("cpu", torch.bfloat16):
        method(model, images.float(), targets)
    method(model.bfloat16(), images.bfloat16(), targets)


def test_what_is_missing_is_measured_against_terms_and_logits():
    output, targets = (
        torch.tensor([[1.0, -2.0], [0.0, 0.0]], requires_grad=True),
        torch.tensor([[0, 0], [1, 1]]),
    )
    gradient, size = FullGradient(torch.zeros(2, 3, 1, 1), output, ()), torch.tensor([8.0, 0.0])
    for dtype, tolerance in ((torch.float32, EXACT), (torch.bfloat16, HALF), (torch.float16, HALF)):
        gradient.check(torch.tensor([1 + 9.9 * tolerance, 0.0]), size, targets, {torch.float32, dtype})
        with pytest.raises(UserError, match="not right"):
            gradient.check(torch.tensor([1 + 10.1 * tolerance, 0.0]), size, targets, {torch.float32, dtype})
    with pytest.raises(UserError, match=r"terms sum to 0\.5 where the logit is 0,"):
        gradient.check(torch.tensor([1.0, 0.5]), size, targets, {torch.float32})
    gradient.check(torch.tensor([torch.nan, 0.0]), size, targets, {torch.float32})  # `finite` says so


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FullGrad("channel"), "psi must be 'tensor' or 'per_channel', got 'channel'"),
        (lambda: FullGrad(eps=-1.0), "eps must be None or at least 0, got -1.0"),
        (lambda: SmoothFullGrad(samples=0), "samples and batch_size must be at least 1, got 0 and"),
        (lambda: SmoothFullGrad(noise=float("nan")), "noise must be a share of at least 0, got nan"),
    ],
)
def test_impossible_parameters_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
