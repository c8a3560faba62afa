"""Relevance-CAM against a restatement by patches and matrices in float64, its closed form, conservation."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.models.vgg import VGG16
from wsss.saliency import RelevanceCAM
from wsss.saliency.relevance import at_maximum, contrastive_seed, divide

CLASSES = 12


@pytest.fixture(scope="module")
def bottlenecks() -> nn.Module:
    """wsss's classifier: dilated last stage, bias-free head, bottlenecks; one block a stage, to be fast."""
    torch.manual_seed(2)
    model = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 2, 1], num_classes=CLASSES)
    model.fc = nn.Linear(2048, CLASSES, bias=False)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model(torch.randn(4, 3, 64, 64))
    return model.double().eval()


@pytest.fixture(scope="module")
def vgg_bn() -> nn.Module:
    torch.manual_seed(3)
    with torch.device("meta"):  # its own head has 120 million weights
        model = torchvision.models.VGG(nn.Sequential(), num_classes=CLASSES)
    model.features = torchvision.models.vgg.make_layers([8, "M", 16, "M", 16, 24], batch_norm=True)
    model.classifier = nn.Sequential(
        nn.Linear(24 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, CLASSES)
    )
    return model.double().eval()


@pytest.fixture(scope="module")
def convolutional() -> nn.Module:
    """wsss's VGG16 with narrow layers: the real one has 120 million weights (here never in memory)."""
    torch.manual_seed(4)
    with torch.device("meta"):
        model = VGG16(CLASSES)
    model.features = torchvision.models.vgg.make_layers([8, "M", 16, "M", 24])
    model.fc6, model.fc7 = nn.Conv2d(24, 32, 7, padding=3), nn.Conv2d(32, 16, 1)
    model.fc8 = nn.Conv2d(16, CLASSES, 1)
    return model.double().eval()


# --- the restatement: forward and backward of one image, (k, h, w) arrays, no autograd ---


def patches(x: Tensor, conv: nn.Conv2d) -> Tensor:
    options = dict(dilation=conv.dilation, padding=conv.padding, stride=conv.stride)
    return F.unfold(x[None], conv.kernel_size, **options)[0]


def share(matrix: Tensor, x: Tensor, relevance: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """R_i = x_i sum_j w+_ji R_j / z_j for columns x (i, p), w (j, i), R (j, p)."""
    weight = matrix.clamp(min=0)
    z = weight @ x + bias
    quotient = torch.where(z != 0, relevance / z, torch.zeros_like(z))
    return x * (weight.T @ quotient)


def conv_back(conv: nn.Conv2d, x: Tensor, relevance: Tensor, biases: bool) -> Tensor:
    assert x.min() >= 0
    bias = 2 * conv.bias[:, None] if biases and conv.bias is not None else 0.0
    columns = share(conv.weight.flatten(1), patches(x, conv), relevance.flatten(1), bias)
    options = dict(dilation=conv.dilation, padding=conv.padding, stride=conv.stride)
    return F.fold(columns[None], x.shape[1:], conv.kernel_size, **options)[0]


def max_back(pool: nn.MaxPool2d, x: Tensor, relevance: Tensor) -> Tensor:
    out, places = F.max_pool2d(x[None], pool.kernel_size, pool.stride, pool.padding, return_indices=True)
    result = torch.zeros_like(x).flatten(1)
    result.scatter_add_(1, places[0].flatten(1), torch.where(out[0] != 0, relevance, 0).flatten(1))
    return result.view_as(x)


def average_back(size: tuple[int, int], x: Tensor, relevance: Tensor) -> Tensor:
    result, (height, width) = torch.zeros_like(x), x.shape[1:]
    relevance = relevance.reshape(len(x), *size)
    for i in range(size[0]):
        for j in range(size[1]):
            rows = slice(i * height // size[0], -(-(i + 1) * height // size[0]))
            columns = slice(j * width // size[1], -(-(j + 1) * width // size[1]))
            window = x[:, rows, columns]
            total = window.sum((1, 2))
            factor = torch.where(total != 0, relevance[:, i, j] / total, torch.zeros_like(total))
            result[:, rows, columns] += window * factor[:, None, None]
    return result


def block_run(block: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Output, inputs of the convolutions, and the two summands."""
    inputs, value = [], x
    count = 3 if hasattr(block, "conv3") else 2
    for n in range(1, count + 1):
        inputs.append(value)
        value = getattr(block, f"bn{n}")(getattr(block, f"conv{n}")(value[None]))[0]
        value = value.relu() if n < count else value
    skip = x if block.downsample is None else block.downsample(x[None])[0]
    return (value + skip).relu(), inputs, value, skip


def block_back(block: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    _, inputs, branch, skip = block_run(block, x)
    total = branch + skip
    share = torch.where(total != 0, relevance / total, torch.zeros_like(total))
    down, across = branch * share, skip * share
    for n in range(len(inputs), 0, -1):
        down = conv_back(getattr(block, f"conv{n}"), inputs[n - 1], down, False)
    if block.downsample is not None:
        across = conv_back(block.downsample[0], x, across, False)
    return down + across


def run_down(
    steps: list[nn.Module], activation: Tensor, cls: int, biases: bool = False, pooled: bool = False
) -> Tensor:
    """Relevance at `activation`, the input of the first step."""
    values = [activation]
    for module in steps:
        x = values[-1].flatten() if isinstance(module, nn.Linear) else values[-1]
        is_block = hasattr(module, "conv1")
        values.append(block_run(module, x)[0] if is_block else copy.deepcopy(module)(x[None])[0])
    seed = torch.full((CLASSES,), -1 / CLASSES, dtype=torch.float64)
    seed[cls] = 1
    relevance = seed
    if pooled:
        relevance = torch.zeros_like(values[-1])
        for k, scores in enumerate(values[-1]):
            relevance[k].view(-1)[scores.argmax()] = seed[k]
    for module, x in zip(reversed(steps), reversed(values[:-1]), strict=True):
        if hasattr(module, "conv1"):
            relevance = block_back(module, x, relevance)
        elif isinstance(module, nn.Conv2d):
            relevance = conv_back(module, x, relevance, biases)
        elif isinstance(module, nn.Linear):
            relevance = share(module.weight, x.flatten()[:, None], relevance[:, None])[:, 0]
        elif isinstance(module, nn.MaxPool2d):
            relevance = max_back(module, x, relevance)
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            size = module.output_size
            relevance = average_back(size if isinstance(size, tuple) else (size, size), x, relevance)
    return relevance.view_as(activation)


def expected_maps(model, cut, chain, images, targets, **options):
    """Signed maps by the restatement; `chain(model)` lists the modules in order, `cut` of them are below."""
    model = copy.deepcopy(model).double().eval().requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    steps, maps, relevances = chain(model), [], []
    for image, cls in targets.tolist():
        activation = images[image].double()
        for module in steps[:cut]:
            activation = module(activation[None])[0]
        relevance = run_down(steps[cut:], activation, cls, **options)
        relevances.append(relevance)
        maps.append(torch.einsum("k,kuv->uv", relevance.mean((1, 2)), activation))
    return torch.stack(maps), torch.stack(relevances)


def resnet_chain(model):
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    blocks = [block for stage in stages for block in stage]
    return [model.conv1, model.bn1, model.relu, model.maxpool, *blocks, model.avgpool, model.fc]


def vgg_chain(model):
    return [*model.features, model.avgpool, *model.classifier]


def convolutional_chain(model):
    return [*model.features, model.fc6, nn.ReLU(), model.fc7, nn.ReLU(), model.fc8]


CASES = [
    ("resnet", "layer4", 12, resnet_chain, {}),
    ("resnet", "layer3", 10, resnet_chain, {}),
    ("resnet", "layer3.0", 9, resnet_chain, {}),
    ("bottlenecks", "layer3.0", 7, resnet_chain, {}),
    ("bottlenecks", "maxpool", 4, resnet_chain, {}),
    ("vgg", "features.29", 30, vgg_chain, {}),
    ("vgg", "features.22", 23, vgg_chain, {"biases": True}),
    ("vgg_bn", "features.2", 3, vgg_chain, {}),
    ("vgg_bn", "features.6", 7, vgg_chain, {"biases": True}),
    ("convolutional", "features.4", 5, convolutional_chain, {"pooled": True}),
    ("convolutional", "features", 8, convolutional_chain, {"pooled": True, "biases": True}),
]


@pytest.mark.parametrize(("name", "layer", "cut", "chain", "options"), CASES)
def test_agrees_with_a_restatement_by_patches_and_matrices(request, images, name, layer, cut, chain, options):
    model, images = request.getfixturevalue(name), images[:2, :, :48, :32]
    targets = torch.tensor([[1, 5], [0, 3]])
    expected, relevances = expected_maps(model, cut, chain, images, targets, **options)
    method = RelevanceCAM(layer, relu=False, biases=options.get("biases", False))
    evidence = method.forward(model, images)
    scale = relevances.abs().amax()
    assert scale > 0
    torch.testing.assert_close(evidence.relevance(targets).double(), relevances, rtol=1e-3, atol=1e-4 * scale)
    maps = method(model, images, targets)
    torch.testing.assert_close(maps.double(), expected, rtol=1e-3, atol=1e-4 * expected.abs().max())


def test_closed_form_below_a_pooled_linear_head(resnet, images, targets):
    features = nn.Sequential(*list(resnet.children())[:-2])(images).detach().double()
    weight = resnet.fc.weight.detach().double().clamp(min=0)
    for relu in (False, True):
        maps = RelevanceCAM("layer4", relu=relu)(resnet, images, targets)
        for row, (image, cls) in enumerate(targets.tolist()):
            mean = features[image].mean((1, 2))
            seed = torch.full((CLASSES,), -1 / CLASSES, dtype=torch.float64)
            seed[cls] = 1
            weights = mean * (weight.T @ (seed / (weight @ mean))) / features[image, 0].numel()
            cam = torch.einsum("k,kuv->uv", weights, features[image])
            expected = cam.clamp(min=0) if relu else cam
            torch.testing.assert_close(maps[row].double(), expected, rtol=1e-4, atol=1e-5 * cam.abs().max())


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet", "layer4"),
        ("resnet", "layer3"),
        ("bottlenecks", "layer2"),
        ("vgg", "features.29"),
        ("vgg", "features.20"),
        ("vgg_bn", "features.2"),
        ("convolutional", "features.4"),
    ],
)
def test_relevance_is_conserved_from_the_seed_to_the_layer(request, images, targets, name, layer):
    model = request.getfixturevalue(name)
    relevance = RelevanceCAM(layer).forward(model, images).relevance(targets)
    total, size = relevance.sum((1, 2, 3)), relevance.abs().sum((1, 2, 3))
    torch.testing.assert_close(
        total, torch.full_like(total, 1 / CLASSES), rtol=0, atol=1e-4 * float(size.max())
    )


def test_biases_take_their_share(vgg_bn, images, targets):
    model = copy.deepcopy(vgg_bn)
    for module in model.features:
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.bias, 0.5)
    plain = RelevanceCAM("features.2").forward(model, images).relevance(targets)
    biased = RelevanceCAM("features.2", biases=True).forward(model, images).relevance(targets)
    assert (biased.sum((1, 2, 3)).abs() < plain.sum((1, 2, 3)).abs() * 0.9).all()


def test_the_seed_is_one_and_minus_one_over_all_classes():
    seed = contrastive_seed(torch.tensor([2, 0]), 4)
    np.testing.assert_allclose(seed.numpy(), [[-0.25, -0.25, 1, -0.25], [1, -0.25, -0.25, -0.25]])
    assert contrastive_seed(torch.tensor([0]), 1).tolist() == [[1]]


def test_division_ends_where_there_is_nothing_to_divide_by():
    quotient = divide(torch.ones(4), torch.tensor([0.0, 1e-40, -2.0, 4.0]))
    assert quotient.tolist() == [0, 0, -0.5, 0.25]


def test_relevance_goes_to_the_first_maximum_of_a_score_map():
    scores = torch.tensor([[[[0.0, 3.0], [3.0, 1.0]], [[-1.0, -2.0], [-0.5, -3.0]]]])
    placed = at_maximum(torch.tensor([[1.0, -0.5]]), scores)
    assert placed.tolist() == [[[[0, 1], [0, 0]], [[0, 0], [-0.5, 0]]]]


def test_relu_keeps_the_positive_part(resnet, images, targets):
    signed = RelevanceCAM("layer4", relu=False)(resnet, images, targets)
    maps = RelevanceCAM("layer4")(resnet, images, targets)
    assert signed.min() < 0
    assert torch.equal(maps, signed.relu())
    assert maps.dtype == torch.float32


@pytest.mark.parametrize("batch_size", [1, 4])
def test_order_company_and_batch_size_do_not_matter(resnet, images, targets, batch_size):
    together = RelevanceCAM("layer3", relu=False)(resnet, images, targets)
    split = RelevanceCAM("layer3", relu=False, batch_size=batch_size)(resnet, images, targets)
    scale = together.abs().max()
    torch.testing.assert_close(split, together, rtol=1e-3, atol=1e-5 * scale)
    for row in (0, 3):
        alone = RelevanceCAM("layer3", relu=False)(resnet, images, targets[row : row + 1])[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-3, atol=1e-5 * scale)


def test_one_forward_serves_all_classes(resnet, images, targets):
    forwards = []
    handle = resnet.register_forward_pre_hook(lambda module, inputs: forwards.append(1))
    inner = resnet.layer4[0].register_forward_pre_hook(lambda module, inputs: forwards.append(1))
    try:
        RelevanceCAM("layer3")(resnet, images, targets)
    finally:
        handle.remove()
        inner.remove()
    assert len(forwards) == 2


def test_leaks_nothing(resnet, images, targets):
    model = copy.deepcopy(resnet).train()
    model.layer1.eval()
    model.layer2.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()], [p.requires_grad for p in model.parameters()]
    expected = RelevanceCAM("layer3")(resnet, images, targets)
    torch.testing.assert_close(RelevanceCAM("layer3")(model, images, targets), expected)
    assert flags == (
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
    )
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))
    assert all(p.grad is None for p in model.parameters() if p is not model.fc.weight)


def test_a_blank_image_gives_finite_maps(vgg, resnet):
    for model, layer in ((vgg, "features.29"), (resnet, "layer2")):
        maps = RelevanceCAM(layer, relu=False)(
            model, torch.zeros(1, 3, 64, 64).double(), torch.tensor([[0, 2]])
        )
        assert maps.isfinite().all()


class Another(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, images):
        return self.conv(images).mean((2, 3))


class Changed(torchvision.models.ResNet):
    def forward(self, images):
        return super().forward(images) * 2


def swapped(model, path, module):
    model = copy.deepcopy(model)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
    return model


def test_other_networks_and_layers_are_refused(resnet, vgg, vgg_bn, convolutional, images, targets):
    block = torchvision.models.resnet.BasicBlock
    cases = [
        (Another(), "conv", r"does not support Another, only torchvision's ResNet and VGG"),
        (Changed(block, [1, 1, 1, 1], num_classes=CLASSES), "layer4", "does not support Changed"),
        (nn.Sequential(resnet), "0.layer4", "does not support Sequential"),
        (swapped(resnet, "fc", nn.Sequential(nn.Linear(128, 5), nn.GELU())), "layer4", "no rule for GELU at 'fc.1'"),
        (swapped(resnet, "layer4.0.relu", nn.GELU()), "layer3", "no rule for GELU at 'layer4.0.relu'"),
        (resnet, "layer5", r"no layer 'layer5'; close names: .*layer4"),
        (resnet, "layer4.1.conv2", "layer 'layer4.1.conv2' is not between two steps .* choose layer4.1"),
        (resnet, "fc", "nothing above it"),
        (vgg, "classifier.0", "must give feature maps"),
        (vgg, "", "is not between two steps"),
    ]  # fmt: skip
    for model, layer, message in cases:
        with pytest.raises(UserError, match=message):
            RelevanceCAM(layer)(model, images, targets)


class Attentive(torchvision.models.ResNet):
    """Multiplies by something between two layers, which relevance cannot see."""

    def _forward_impl(self, images):
        stem = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = self.layer3(self.layer2(self.layer1(stem)))
        return self.fc(self.avgpool(self.between(features)).flatten(1))

    def between(self, features):
        return self.layer4(features * features.mean(1, keepdim=True).sigmoid())


class InPlace(Attentive):
    def between(self, features):
        return self.layer4(features.mul_(0.5))


class Twice(Attentive):
    def between(self, features):
        return self.avgpool(self.layer4(features))


class Below(Attentive):
    def between(self, features):
        return self.layer4(features).relu() + 1


@pytest.mark.parametrize("kind", [Attentive, InPlace, Twice, Below])
def test_a_resnet_that_computes_between_its_layers_is_refused(images, targets, kind):
    model = kind(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES).double().eval()
    for layer in ("layer3", "layer2"):
        with pytest.raises(
            UserError, match="does not just run its layers one after the other; choose another"
        ):
            RelevanceCAM(layer)(model, images, targets)


class Standardised(nn.Conv2d):
    def forward(self, images):
        return F.conv2d(images, self.weight - self.weight.mean(), None, self.stride, self.padding)


@pytest.mark.parametrize("path", ["layer4.0.conv2", "layer4.0.downsample.0", "conv1"])
def test_modules_that_compute_something_else_than_their_rule_are_refused(resnet, images, targets, path):
    own = resnet.get_submodule(path)
    size = (own.in_channels, own.out_channels, own.kernel_size, own.stride, own.padding)
    reflected = nn.Conv2d(*size, padding_mode="reflect")
    replaced = copy.deepcopy(own)
    replaced.forward = lambda images: own(images) * 2
    for module in (Standardised(*size), reflected, replaced, nn.Sequential(own, nn.GELU())):
        name = "GELU" if isinstance(module, nn.Sequential) else type(module).__name__
        with pytest.raises(UserError, match=f"no rule for {name} at '{path}"):
            RelevanceCAM("layer3")(swapped(resnet, path, module), images, targets)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_traced_network_is_refused(images, targets):
    with pytest.raises(UserError, match="does not support TopLevelTracedModule"):
        RelevanceCAM("conv")(torch.jit.trace(Another().double(), images), images, targets)


def test_a_score_map_below_another_pooling_is_refused(convolutional, images, targets):
    class Averaged(VGG16):
        def forward(self, images):
            return self.score_map(images).mean((2, 3))

    model = Averaged.__new__(Averaged)
    model.__dict__ = copy.deepcopy(convolutional).__dict__
    with pytest.raises(UserError, match="only below global max pooling"):
        RelevanceCAM("features")(model, images, targets)


def test_a_class_out_of_range_and_an_empty_batch_are_refused(resnet, images):
    with pytest.raises(ValueError, match="class index 12 is out of range"):
        RelevanceCAM("layer4")(resnet, images, torch.tensor([[0, 12]]))
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        RelevanceCAM("layer4", batch_size=0)
