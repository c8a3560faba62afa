"""Transformers of timm with random weights: sizes of photos, last layer, classifiers, segmenters."""

from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from wsss.config import ClassifierConfig, SegmenterConfig
from wsss.errors import UserError
from wsss.models.backbone import layout_of
from wsss.models.classifier import build_classifier
from wsss.models.lookup import find_backbone
from wsss.models.maps import kept
from wsss.models.segmenter import build_segmenter, split_architecture
from wsss.models.timm_networks import Renormalise, Resize, Sizes, TimmBackbone
from wsss.saliency import METHODS, GradCAM, MultiScale, last_layer

# Name -> sizes, last layer of a classifier that is trained here, and of timm's own with its 1000 logits.
NETWORKS = {
    "vit_tiny_patch16_224": (Sizes(16), "norm", "blocks.11.norm1"),
    "deit_tiny_patch16_224": (Sizes(16), "norm", "blocks.11.norm1"),
    "deit_tiny_distilled_patch16_224": (Sizes(16), "blocks.11.norm1", "blocks.11.norm1"),
    "vit_small_patch14_reg4_dinov2": (Sizes(14), "norm", "blocks.11.norm1"),
    "vit_small_patch16_dinov3": (Sizes(16), "norm", "norm"),
    "swin_tiny_patch4_window7_224": (Sizes(32), "norm", "norm"),
    "maxvit_nano_rw_256": (Sizes(256), "norm", "norm"),
    "coatnet_nano_rw_224": (Sizes(fixed=(224, 224)), "norm", "norm"),
    "mixer_s32_224": (Sizes(fixed=(224, 224)), "norm", "norm"),
    "cait_xxs24_224": (Sizes(fixed=(224, 224)), "blocks.23", "blocks.23"),
    "xcit_nano_12_p16_224": (Sizes(), "blocks.11", "blocks.11"),
    "pvt_v2_b0": (Sizes(), "stages.3", "stages.3"),
}
CONVOLUTIONAL = (
    "resnet10t",
    "resnext26ts",
    "convnext_atto",
    "tf_efficientnet_lite0",
    "efficientnet_b0",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "densenet121",
    "regnetx_002",
)
TARGETS = torch.tensor([[0, 1], [1, 2], [0, 0]])


def record(name: str) -> TimmBackbone:
    backbone = find_backbone(f"timm:{name}", "classifier.architecture", lambda backbone: True)
    assert isinstance(backbone, TimmBackbone)
    return backbone


def classifier(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = build_classifier(ClassifierConfig(f"timm:{name}", weights="none", output_stride=32), 3)
    return awake(model).double().eval()


def awake(model: nn.Module) -> nn.Module:
    """Heads and scales of some networks start at 0, and then nothing has a gradient."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if not parameter.any() or parameter.abs().max() < 1e-3:
            nn.init.normal_(parameter, std=0.3)
    return model


def photos(height: int = 101, width: int = 150) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(2)).double()


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_recorded_is_what_the_network_does(name: str) -> None:
    sizes, trained, own = NETWORKS[name]
    backbone = record(name)
    assert (backbone.sizes, backbone.classifier_layout.last, backbone.layout.last) == (sizes, trained, own)
    model, images = classifier(name), photos()
    layout = layout_of(model)
    assert layout == backbone.classifier_layout
    height, width = sizes.nearest(101, 150)
    with torch.no_grad(), kept(model, layout.stages, images) as found:
        logits = model(images)
    assert logits.shape == (2, 3)
    for layer, channels, stride in zip(layout.stages, backbone.channels, backbone.strides, strict=True):
        assert found[layer].shape[:2] == (2, channels), layer
        cells = tuple(-(-side // stride) for side in (height, width))
        assert tuple(found[layer].shape[2:]) == cells, layer
    maps = GradCAM()(model, images, TARGETS)
    assert maps.shape[1:] == found[layout.last].shape[2:]
    assert torch.equal(maps, GradCAM(trained)(model, images, TARGETS))
    assert maps.amax((1, 2)).max() > 0


def formula(method: str, activation: Tensor, gradient: Tensor) -> Tensor:
    """The map (cells,) of activation and gradient (cells, k), in plain sums."""
    match method:
        case "gradcam":
            return (activation * gradient.mean(0)).sum(1).clamp(min=0)
        case "gradcam++":
            positive = gradient.clamp(min=0)
            return (activation * (positive / (2 + activation.sum(0) * positive)).sum(0)).sum(1).clamp(min=0)
        case "xgradcam":
            weights = (gradient * activation).sum(0) / (activation.sum(0) + 1e-7)
            return (activation * weights).sum(1).clamp(min=0)
    guidance = (gradient * activation).sum(1).clamp(min=0)
    return (guidance * (gradient.mean(0) * activation).sum(1)).clamp(min=0)


@pytest.mark.filterwarnings("ignore:.*(at this layer|places of this layer)")
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "xgradcam", "global_guidance"])
@pytest.mark.parametrize("name", [*NETWORKS, *CONVOLUTIONAL])
def test_maps_are_those_of_plain_autograd(name: str, method: str) -> None:
    model, images = classifier(name), photos(64, 96)
    layout = layout_of(model)
    assert layout is not None
    outputs: list[Tensor] = []
    handle = model.get_submodule(layout.last).register_forward_hook(
        lambda _, __, output: outputs.append(output)
    )
    logits = model(images)
    handle.remove()
    first = outputs[0].ndim == 4 and "swin" not in name
    if method == "xgradcam" and outputs[0].min() < 0:
        with pytest.raises(UserError, match="choose a layer after a ReLU, or global_guidance"):
            METHODS[method]()(model, images, TARGETS)
        return
    found = METHODS[method]()(model, images, TARGETS)
    cells = found.shape[1] * found.shape[2]
    for row, (image, cls) in enumerate(TARGETS.tolist()):
        (gradient,) = torch.autograd.grad(logits[image, cls], outputs[0], retain_graph=True)
        parts = [outputs[0][image].detach(), gradient[image]]
        values, slopes = (part.flatten(1).T if first else part.flatten(0, -2)[-cells:] for part in parts)
        expected = formula(method, values, slopes).view(found.shape[1:])
        terms = float((values * slopes.mean(0)).abs().sum(1).max())  # which may cancel in the sum
        scale = terms**2 if method == "global_guidance" else max(terms, float(expected.max()))
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224"]
)
def test_a_trained_classifier_scores_the_mean_of_its_cells(name: str) -> None:
    """So Grad-CAM is CAM, W A / (u v) and the positive part of it, and the logit is the mean of W A plus its bias."""
    model, images = classifier(name), photos(64, 96)
    with torch.no_grad(), kept(model, ["norm"], images) as found:
        logits = model(images)
    head = model.get_submodule("head.fc" if "swin" in name else "head")
    scores = torch.einsum("ck,bkuv->bcuv", head.weight, found["norm"]).detach()
    torch.testing.assert_close(scores.mean((2, 3)) + head.bias, logits)
    cells = scores[0, 0].numel()
    expected = torch.stack([scores[image, cls].clamp(min=0) / cells for image, cls in TARGETS.tolist()])
    torch.testing.assert_close(GradCAM()(model, images, TARGETS), expected.float(), rtol=1e-4, atol=1e-7)


def test_published_weights_of_the_class_token_start_the_classifier(tmp_path) -> None:
    torch.manual_seed(5)
    published = timm.create_model("vit_tiny_patch16_224")
    torch.save(published.state_dict(), tmp_path / "vit.pth")
    config = ClassifierConfig("timm:vit_tiny_patch16_224", weights=str(tmp_path / "vit.pth"))
    state = build_classifier(config, 3).state_dict()
    assert {
        name for name, value in published.state_dict().items() if not torch.equal(state[name], value)
    } == {name for name in state if name.startswith("head.")}


@pytest.mark.parametrize(
    ("sizes", "size", "expected"),
    [
        (Sizes(), (101, 150), (101, 150)),
        (Sizes(16), (101, 150), (96, 144)),
        (Sizes(16), (104, 152), (112, 160)),
        (Sizes(224), (100, 500), (224, 448)),
        (Sizes(fixed=(224, 224)), (100, 500), (224, 224)),
    ],
)
def test_photos_get_the_nearest_size_that_a_network_takes(
    sizes: Sizes, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert sizes.nearest(*size) == expected
    ramp = torch.linspace(0, 1, size[1]).expand(1, 3, *size)
    (resized,) = Resize(sizes)(nn.Identity(), (ramp,))
    assert tuple(resized.shape[2:]) == expected
    middle = (torch.arange(expected[1]) + 0.5) / expected[1]  # of each column, as a share of the width
    inner = slice(expected[1] // 10, -expected[1] // 10)
    torch.testing.assert_close(
        resized[0, 0, 0, inner], ((middle * size[1] - 0.5) / (size[1] - 1))[inner], rtol=0, atol=2e-3
    )


def test_a_multiscale_sum_covers_the_photo() -> None:
    """Every scale is resized by its own factor; the maps still lie over the same photo."""
    model, images = classifier("vit_tiny_patch16_224"), photos()
    maps = MultiScale(GradCAM(), (0.5, 1.0, 1.5), flip=True)(model, images, TARGETS)
    mirrored = MultiScale(GradCAM(), (0.5, 1.0, 1.5), flip=True)(model, images.flip(3), TARGETS)
    torch.testing.assert_close(maps, mirrored.flip(2), rtol=1e-3, atol=1e-6 * float(maps.max()))


# -- segmenters -------------------------------------------------------------------------------------

TRUNKS = [
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "xcit_nano_12_p16_224",
    "convnext_atto",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_050",
]


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("head", ["linear", "fpn", "pup", "deeplabv3"])
def test_segmenters_learn_on_any_trunk(head: str, trunk: str) -> None:
    torch.manual_seed(0)
    initial = {
        name: value + 0.01
        for name, value in build_classifier(
            ClassifierConfig(f"timm:{trunk}", weights="none", output_stride=32), 3
        )
        .state_dict()
        .items()
    }
    config = SegmenterConfig(f"{head}_timm:{trunk}", weights="classifier")
    model = awake(build_segmenter(config, 4, initial=initial))
    for name, value in model.get_submodule("backbone.network").state_dict().items():
        if value.is_floating_point() and value.abs().max() > 0.3:
            assert torch.equal(value, initial[name]), name
    logits = model(photos(70, 101).float())
    assert logits.shape == (2, 4, 70, 101)
    logits.square().sum().backward()
    silent = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert silent == []  # DistributedDataParallel refuses them


def test_a_linear_segmenter_is_the_trunk_and_a_matrix() -> None:
    torch.manual_seed(0)
    config = SegmenterConfig("linear_timm:tf_efficientnet_lite0", weights="none", output_stride=16)
    model = build_segmenter(config, 4).eval().double()
    trunk = timm.create_model("tf_efficientnet_lite0", output_stride=16).double().eval()
    trunk.load_state_dict(model.get_submodule("backbone.network").state_dict(), strict=False)
    images = photos(64, 96)
    with torch.no_grad():
        (own,) = Renormalise((0.5,) * 3, (0.5,) * 3)(trunk, (images,))
        maps = torch.einsum("ck,bkuv->bcuv", model.head.weight[:, :, 0, 0], trunk.forward_features(own))
        maps = maps + model.head.bias[:, None, None]
        expected = nn.functional.interpolate(maps, (64, 96), mode="bilinear", align_corners=False)
        torch.testing.assert_close(model(images), expected)
    assert maps.shape[2:] == (4, 6)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (
            "deeplabv3plus_timm:vit_tiny_patch16_224",
            "no feature map at stride 4.*choose deeplabv3, fpn, pup or linear",
        ),
        ("linear_timm:mixer_s32_224", "timm:mixer_s32_224 takes images of one size only"),
        (
            "linear_timm:vit_tiny_patch16_225",
            "segmenter.architecture is timm:vit_tiny_patch16_225, but timm has no such",
        ),
    ],
)
def test_segmenters_that_do_not_fit_are_refused(architecture: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_segmenter(SegmenterConfig(architecture, weights="none"), 4)


def test_the_name_after_the_head_is_the_backbone() -> None:
    head, backbone = split_architecture("fpn_timm:swin_tiny_patch4_window7_224")
    assert (head, backbone.name, backbone.multiple) == ("fpn", "timm:swin_tiny_patch4_window7_224", 32)


# -- the last layer ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [
        ("convnext_atto", (64, 96), "stages"),
        ("efficientnet_b0", (64, 96), "bn2"),
        ("densenet121", (64, 96), "features"),
        ("vit_tiny_patch16_224", (224, 224), "blocks.11.norm1"),
        ("vit_small_patch16_dinov3", (256, 256), "norm"),
        ("swin_tiny_patch4_window7_224", (224, 224), "norm"),
        ("mixer_s32_224", (224, 224), "norm"),
        ("maxvit_nano_rw_256", (256, 256), "norm"),
    ],
)
def test_the_last_layer_of_a_network_of_someone_else(name: str, size: tuple[int, int], layer: str) -> None:
    model = awake(timm.create_model(name, num_classes=3)).eval()
    assert last_layer(model, size) == layer
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet18", "layer4"), ("convnext_tiny", "features"), ("efficientnet_b0", "features"), ("swin_t", "permute"),
     ("squeezenet1_1", "classifier.2"), ("vit_b_16", "encoder.layers.encoder_layer_11.ln_1")],
)  # fmt: skip
def test_the_last_layer_of_torchvision(name: str, layer: str) -> None:
    model = awake(torchvision.models.get_model(name)).eval()
    assert last_layer(model, (224, 224)) == layer


def test_the_last_layer_is_looked_for_once_and_again_when_it_is_gone() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    images = torch.rand(2, 3, 32, 32)
    first = GradCAM()(model, images, TARGETS)
    assert torch.equal(first, GradCAM("1")(model, images, TARGETS))
    calls.clear()
    GradCAM()(model, images, TARGETS)
    assert len(calls) == 1
    with pytest.raises(
        UserError, match=r"no layer with feature maps that count for its logits: name one \(layer=\)"
    ):
        last_layer(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3)), (32, 32))


class Wrapped(nn.Module):
    """A classifier that returns its logits as other libraries do."""

    def __init__(self, network: nn.Module, wrap) -> None:
        super().__init__()
        self.network, self.wrap = network, wrap

    def forward(self, images: Tensor):
        return self.wrap(self.network(images))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: {"logits": logits, "other": 0},
        lambda logits: (logits, logits.exp()),
        lambda logits: SimpleNamespace(logits=logits, loss=None),
    ],
)
def test_logits_are_unwrapped(wrap) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    images = torch.rand(2, 3, 32, 32)
    expected = GradCAM("1")(network, images, TARGETS)
    assert torch.equal(GradCAM("network.1")(Wrapped(network, wrap), images, TARGETS), expected)
    assert torch.equal(GradCAM()(Wrapped(network, wrap), images, TARGETS), expected)
