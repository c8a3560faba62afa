"""What every method of the zoo promises, alone and wrapped, on four kinds of classifier."""

import copy
import gc
import os
import re
import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from wsss.config import ClassifierConfig
from wsss.models.classifier import build_classifier
from wsss.models.vgg import VGG16
from wsss.saliency import METHODS, Gradient, SaliencyMethod, normalize, perturbation
from wsss.saliency.attention import AttentionMethod
from wsss.saliency.parse import WRAPPERS, parse_method, to_expression

CLASSES = 12
SIZE = (33, 47)
TARGETS = torch.tensor([[2, 4], [0, 3], [2, 5], [0, 2], [2, 1], [2, 0]])
"""Three pairs of opposite classes (see `networks`), none for image 1."""

SESS = "window=32, step=32, scales=(32, 48)"
EXPRESSIONS = [
    "gradient",
    "guided_backprop",
    "dcsm(scales=(1, 1.2))",
    "gradcam",
    "gradcam++",
    "xgradcam",
    "integrated_gradcam(steps=3)",
    "cameras(resolutions=(32, 48))",
    "relevance_cam",
    "scorecam@{early}",
    "groupcam(groups=4)",
    "fullgrad",
    "fullgrad(psi=per_channel)",
    "smooth_fullgrad(samples=2)",
    "global_guidance",
    "hirescam",
    "layercam",
    "eigencam",
    "eigengradcam",
    "ablationcam@{early}",
    "smooth_gradcam++(samples=2)",
    "augmented_gradcam(copies=2, fuse=mean)",
    "finercam",
    "refinecam",
    "winsorcam",
    "smoothgrad(samples=2)",
    "integrated_gradients(steps=2)",
    "input_x_gradient",
    "deeplift",
    "excitation_backprop",
    "occlusion(window=24, step=20)",
    "rise(masks=6)",
    "sise(layers=('{early}',))",
    "extremal_perturbation(areas=(0.1,), steps=2)",
    "meaningful_perturbation(steps=2)",
    "ada_sise(layers=('{early}',))",
    "mean(gradcam, gradcam@{early})",
    "max(product(gradcam@{early}, layercam), hirescam)",
    f"sess(gradcam, {SESS})",
    f"sess(guided_backprop, {SESS}, prefilter=0.5)",
    f"sess(global_guidance, {SESS}, pool=max)",
    f"subtraction(sess(gradcam, {SESS}))",
    "multiscale(relevance_cam, scales=(1, 1.5))",
]
"""Every method and wrapper, with parameters that make it cheap."""

GRADIENTS = re.compile(
    "^gradient|guided_backprop|dcsm|smoothgrad|integrated_gradients|input_x_gradient|extremal"
)
"""Those that look at gradients only."""

# The maps of a class depend on which other classes the call names for the image.
TOGETHER = ("dcsm", "subtraction")


def residual_network() -> nn.Module:
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)


def vgg_with_batch_norm() -> nn.Module:
    with torch.device("meta"):  # its own head has 120 million weights
        model = torchvision.models.VGG(nn.Sequential(), num_classes=CLASSES)
    model.features = make_layers([8, "M", 16, "M", 24, 24, "M", 32], batch_norm=True)
    head = nn.Linear(32 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, CLASSES)
    model.classifier = nn.Sequential(*head)
    return model


def dilated_classifier() -> nn.Module:
    config = ClassifierConfig(architecture="resnet18", weights="none", output_stride=16)
    model = build_classifier(config, CLASSES)
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        setattr(model, stage, model.get_submodule(stage)[:1])  # one block, to be fast
    return model


def convolutional_classifier() -> nn.Module:
    with torch.device("meta"):
        model = VGG16(CLASSES)
    model.features = make_layers([8, 8, "M", 16, "M", 24, 24, "M"])
    model.fc6, model.fc7 = nn.Conv2d(24, 32, 7, padding=3), nn.Conv2d(32, 32, 1)
    model.fc8 = nn.Conv2d(32, CLASSES, 1)
    return model


NETWORKS = {
    # name: how it is made, an inner layer, and an early one with few channels
    "resnet": (residual_network, "layer3", "layer1"),
    "vgg_bn": (vgg_with_batch_norm, "features.14", "features.6"),
    "dilated": (dilated_classifier, "layer3", "layer1"),
    "convolutional": (convolutional_classifier, "features.9", "features.3"),
}


@pytest.fixture(scope="module")
def networks(seed: int, thinned: Callable[[nn.Module], nn.Module]) -> dict[str, nn.Module]:
    """Random classifiers; batch normalisation knows the statistics of noise, which keeps signals alive."""
    made = {}
    for name, (make, _, _) in NETWORKS.items():
        torch.manual_seed(seed)
        made[name] = thinned(make()) if name in ("resnet", "dilated") else make()
        for module in made[name].modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        with torch.no_grad():
            made[name](torch.randn(4, 3, 64, 64))
            # What speaks against a class speaks for its opposite: one of the two has evidence, whatever the seed.
            head = [module for module in made[name].modules() if isinstance(module, (nn.Linear, nn.Conv2d))][
                -1
            ]
            head.weight[1::2] = -head.weight[::2]
            if head.bias is not None:
                head.bias.zero_()
        made[name].eval()
    return made


@pytest.fixture
def photos(seed: int) -> Tensor:
    """Blobs on noise, (3, 3, 33, 47)."""
    generator = torch.Generator().manual_seed(seed + 1)
    blobs = torch.randn(3, 3, 6, 8, generator=generator)
    smooth = nn.functional.interpolate(blobs, size=SIZE, mode="bicubic")
    return smooth + 0.2 * torch.randn(3, 3, *SIZE, generator=generator)


def method_for(expression: str, network: str) -> SaliencyMethod:
    _, layer, early = NETWORKS[network]
    return parse_method(expression.format(early=early), layer=layer)


def test_the_whole_zoo_is_here():
    words = {word.strip("(), ") for text in EXPRESSIONS for word in text.replace("@", "(").split("(")}
    others = {
        name for name, kind in METHODS.items() if issubclass(kind, AttentionMethod)
    }  # test_attention.py
    others |= {"cam"}  # test_layercam.py: two of these networks have another head
    others |= {"xrai"}  # test_optimised.py: needs scikit-image
    assert (set(METHODS) | set(WRAPPERS)) - words == others


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_each_target_gets_its_own_finite_map_whatever_the_company(networks, photos, network, expression):
    # In float32 the company in a batch now and then decides the sign of a ReLU's input, and so a gradient.
    model, photos = copy.deepcopy(networks[network]).double(), photos.double()
    method = method_for(expression, network)
    together = method(model, photos, TARGETS)
    assert together.dtype == torch.float32
    assert together.ndim == 3
    assert together.isfinite().all()
    assert together.min() >= 0
    assert together.amax((1, 2)).gt(0).sum() >= 3  # otherwise the comparison says little
    order = [3, 0, 4, 1, 5, 2]
    shuffled = method(model, photos.flip(0), torch.stack((2 - TARGETS[order, 0], TARGETS[order, 1]), dim=1))
    assert (normalize(shuffled) - normalize(together)[order]).abs().max() < 1e-5
    for row in (0, 1):
        rows = TARGETS[:, 0] == TARGETS[row, 0] if expression.startswith(TOGETHER) else [row]
        wanted = TARGETS[rows] * torch.tensor([0, 1])
        alone = method(model, photos[TARGETS[row, 0]][None], wanted)
        assert (normalize(alone) - normalize(together)[rows]).abs().max() < 1e-5


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_images_without_targets_cost_nothing(networks, photos, expression):
    model, method = networks["convolutional"], method_for(expression, "convolutional")
    sizes: list[int] = []
    # At the first layer: DCSM does not call the classifier itself but its `score_map`.
    handle = model.features[0].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    try:
        some = method(model, photos, TARGETS)
        count = sum(sizes)
        alone = method(model, photos[[0, 2]], torch.stack((TARGETS[:, 0] // 2, TARGETS[:, 1]), dim=1))
        assert sum(sizes) == 2 * count > 0
        assert torch.equal(some, alone)
        assert method(model, photos, TARGETS[:0]).shape == (0, 0, 0)
        assert sum(sizes) == 2 * count
    finally:
        handle.remove()


def state_of(model: nn.Module) -> list[object]:
    """Everything of a classifier that a method could leave changed."""
    return [
        # Flags, hooks, forward, submodules, parameters, buffers: the very same objects in the same order.
        [
            [
                (
                    key,
                    [(name, id(part)) for name, part in value.items()]
                    if isinstance(value, dict)
                    else id(value),
                )
                for key, value in vars(module).items()
            ]
            for module in model.modules()
        ],
        [(value.requires_grad, id(value.grad), value._version) for value in model.parameters()],
        {name: value.tolist() for name, value in model.named_buffers()},
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
    ]


class Breaks(RuntimeError):
    """What the classifier of the test raises."""


def breaks(*_: object) -> None:
    raise Breaks


def breaks_later(module: nn.Module, inputs: object, output: Tensor) -> None:
    """In the backward pass, if there is one."""
    if output.requires_grad:
        output.register_hook(breaks)


def counts(module: nn.Module, inputs: object) -> None:
    """Changes buffers in eval mode too, in place and by new ones."""
    module.calls += 1
    module.double_calls = module.double_calls + 2


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("network", ["vgg_bn", "convolutional"])
def test_the_classifier_is_left_as_it_was(networks, photos, network, expression):
    model, method = copy.deepcopy(networks[network]), method_for(expression, network)
    expected = method(model, photos, TARGETS)
    model.train()
    first, *_, last = model.parameters()
    first.requires_grad_(False)
    last.grad = torch.ones_like(last)
    next(model.children()).eval()
    model.features[0].register_buffer("calls", torch.zeros(()))
    model.features[0].register_buffer("double_calls", torch.zeros(()))
    model.features[0].register_forward_pre_hook(counts)
    before, outputs = state_of(model), []
    head = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    handle = head.register_forward_hook(lambda module, inputs, output: outputs.append(weakref.ref(output)))
    maps = method(model, photos, TARGETS)
    handle.remove()
    assert state_of(model) == before
    torch.testing.assert_close(maps, expected)
    assert not maps.requires_grad
    assert not photos.requires_grad
    assert photos.grad is None
    assert outputs
    assert not any(
        output() is not None for output in outputs
    )  # the graphs are gone, and needed no garbage collector

    for place, hook in ((model.features[3], breaks), (head, breaks), (head, breaks_later)):
        handle = place.register_forward_hook(hook)
        with pytest.raises(Breaks) if hook is breaks else suppress(Breaks):
            method(model, photos, TARGETS)
        handle.remove()
        assert state_of(model) == before


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_callers_inference_mode_and_bf16_autocast_are_no_hindrance(
    networks, photos, expression, monkeypatch
):
    model, method = networks["vgg_bn"], method_for(expression, "vgg_bn")
    expected = normalize(method(model, photos, TARGETS))
    with torch.inference_mode():
        maps = method(model, photos + 0, TARGETS + 0)
    assert not maps.is_inference()
    torch.testing.assert_close(normalize(maps), expected)
    # In bfloat16 a folded network rounds elsewhere, and it is not folded where the autocast is its own.
    monkeypatch.setattr(perturbation, "folded", lambda *arguments: nullcontext())
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        maps = method(model, photos, TARGETS)
    assert maps.dtype == torch.float32
    if not isinstance(method, Gradient):  # which does no arithmetic of its own, so none in bfloat16
        assert not torch.equal(maps, maps.bfloat16().float())
    wrapped = copy.deepcopy(model)
    wrapped.forward = torch.autocast("cpu", dtype=torch.bfloat16)(wrapped.forward)
    torch.testing.assert_close(
        normalize(maps), normalize(method(wrapped, photos, TARGETS)), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_classifier_may_work_in_place_on_its_input(networks, photos, expression):
    model, method = copy.deepcopy(networks["vgg_bn"]), method_for(expression, "vgg_bn")
    forward, before = model.forward, photos.clone()
    model.forward = lambda images: forward(images / 2 * 3)  # nothing is added: FullGrad would miss that
    expected = method(model, photos, TARGETS)
    model.forward = lambda images: forward(images.div_(2).mul_(3))
    assert torch.equal(method(model, photos, TARGETS), expected)
    assert torch.equal(photos, before)


# Gradients are numbers where activations are not: a ReLU that does not fire passes nothing back.
@pytest.mark.parametrize("expression", [text for text in EXPRESSIONS if not GRADIENTS.search(text)])
def test_a_weight_that_is_no_number_is_pointed_out(networks, photos, expression):
    broken = copy.deepcopy(networks["vgg_bn"])
    broken.features[0].bias.data[0] = torch.nan
    with pytest.warns(UserWarning, match="NaN or infinite"):
        maps = method_for(expression, "vgg_bn")(broken, photos, TARGETS[1:2])
    assert maps.isfinite().all()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_classifier_in_bfloat16_still_gives_float32_maps(networks, photos, expression):
    model, method = copy.deepcopy(networks["vgg_bn"]).bfloat16(), method_for(expression, "vgg_bn")
    maps = method(model, photos.bfloat16(), TARGETS)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert maps.max() > 0


def test_a_target_that_is_named_again_costs_nothing(networks, photos, monkeypatch):
    calls, differentiate = [], torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *args, **kw: calls.append(1) or differentiate(*args, **kw)
    )
    method, again = method_for("gradcam", "resnet"), torch.tensor([[1, 2], [0, 1], [1, 2], [1, 2]])
    maps = method(networks["resnet"], photos, again)
    assert len(calls) == 1
    torch.testing.assert_close(maps, method(networks["resnet"], photos, again[:2])[[0, 1, 0, 0]])


def test_a_classifier_made_under_inference_mode_keeps_its_flags(networks, photos):
    with torch.inference_mode():
        model = copy.deepcopy(networks["resnet"])
    before = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match=r"[Ii]nference"):
        method_for("gradcam", "resnet")(model, photos, torch.tensor([[0, 1]]))
    assert [parameter.requires_grad for parameter in model.parameters()] == before


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_callers_default_type_does_not_matter(networks, photos, expression):
    model, method, targets = (
        networks["resnet"],
        method_for(expression, "resnet"),
        torch.tensor([[1, 0], [0, 2]]),
    )
    expected = method(model, photos, targets)
    torch.set_default_dtype(torch.float64)
    try:
        maps = method(model, photos, targets)
    finally:
        torch.set_default_dtype(torch.float32)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_images_may_be_tiny_or_narrow(networks, expression):
    for network, size in (("resnet", (1, 1)), ("dilated", (5, 71)), ("convolutional", (9, 8))):
        maps = method_for(expression, network)(networks[network], torch.randn(1, 3, *size), TARGETS[1:4:2])
        assert maps.ndim == 3
        assert maps.isfinite().all()
        assert maps.min() >= 0


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_repr_and_expression_lead_back_to_the_method(expression):
    method = method_for(expression, "resnet")
    assert parse_method(repr(method)) == method
    assert parse_method(to_expression(method)) == method
    assert hash(parse_method(repr(method))) == hash(method)


def left_over(method, model: nn.Module, photos: Tensor, calls: int) -> list[object]:
    """The objects that were made by so many calls and are still alive."""
    gc.freeze()  # what lives now is not looked at again, which also makes this fast
    try:
        for _ in range(calls):
            method(model, photos, TARGETS)
        gc.collect()
        return gc.get_objects()
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_many_calls_leave_no_objects(networks, photos, expression):
    model, method = networks["convolutional"], method_for(expression, "convolutional")
    method(model, photos, TARGETS)  # what is made once may stay
    objects = left_over(method, model, photos, 10)
    assert not [found for found in objects if issubclass(type(found), Tensor)]
    assert len(objects) < 10  # less than one a call


def resident() -> int:
    """Bytes of memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_thousand_calls_take_no_more_memory(networks, photos, expression):
    model, method = networks["convolutional"], method_for(expression, "convolutional")
    left_over(method, model, photos, 100)
    before = resident()
    objects = left_over(method, model, photos, 1000)
    assert len(objects) < 10
    assert resident() - before < 4 * 2**20  # a thousand of the smallest maps would be more
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
