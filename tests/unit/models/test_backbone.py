"""Records of backbones: they say of a network what is so; a new one is a single entry."""

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from wsss.errors import UserError
from wsss.models.backbone import BACKBONES, layout_of
from wsss.models.lookup import find_backbone
from wsss.models.vgg import VGG16

IMAGES = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def outputs(model: nn.Module, layers: tuple[str, ...], images: Tensor) -> list[tuple[str, Tensor]]:
    """Names and outputs of the layers, in the order in which they run."""
    kept: list[tuple[str, Tensor]] = []
    for layer in dict.fromkeys(layers):
        model.get_submodule(layer).register_forward_hook(
            lambda _m, _i, output, layer=layer: kept.append((layer, output))
        )
    with torch.no_grad():
        model.eval()(images)
    return kept


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_have_the_strides_and_channels_of_the_record(name: str) -> None:
    backbone = BACKBONES[name]
    with torch.device("meta"):
        model, images = backbone.network(), torch.zeros(1, 3, 128, 192)
    found = outputs(model, backbone.layout.stages, images)
    assert [layer for layer, _ in found] == list(backbone.layout.stages)
    assert [tuple(output.shape[1:]) for _, output in found] == [
        (channels, 128 // stride, 192 // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert [row.out_features for row in [model.get_submodule(backbone.layout.head)]] == [1000]


@pytest.mark.parametrize("name", BACKBONES)
def test_the_path_is_the_order_of_the_forward_pass_from_the_photo_to_the_logits(name: str) -> None:
    backbone = BACKBONES[name]
    with torch.device("meta"):
        images = torch.zeros(1, 3, 64, 64)
        models_and_layouts = [(backbone.build(), backbone.layout)]
        if backbone.classifies:
            models_and_layouts.append((backbone.classifier(4, 32, False), backbone.classifier_layout))
    for model, layout in models_and_layouts:
        ran = outputs(model, layout.path, images)
        assert tuple(layer for layer, _ in ran) == layout.path
        assert ran[-1][1].shape[1] in (4, 1000)
        learned = {parameter for parameter, _ in model.named_parameters()}
        assert all(parameter.startswith(tuple(f"{step}." for step in layout.path)) for parameter in learned)
        assert any(layout.is_head(parameter) for parameter in learned)


@pytest.mark.parametrize("name", [name for name, backbone in BACKBONES.items() if backbone.classifies])
def test_a_network_is_known_by_what_built_it_or_by_its_structure(name: str) -> None:
    backbone = BACKBONES[name]
    with torch.device("meta"):
        assert layout_of(backbone.classifier(2, 16, False)) == backbone.classifier_layout
        assert layout_of(backbone.build()) == backbone.layout
    if name.startswith("vgg"):
        with torch.device("meta"):
            own = VGG16(2, batch_norm=name == "vgg16_bn")
        assert layout_of(own) == backbone.classifier_layout


def test_networks_of_other_depth_are_known_too() -> None:
    with torch.device("meta"):
        deep, other = models.vgg19(weights=None), models.mobilenet_v2(weights=None)
        assert layout_of(models.resnet152(weights=None)) == BACKBONES["resnet50"].layout
    layout = layout_of(deep)
    assert layout is not None
    assert layout.stages == tuple(f"features.{index}" for index in (3, 8, 17, 26, 35))
    assert layout_of(other) is None
    assert layout_of(nn.Conv2d(3, 1, 1)) is None


def test_a_forward_pass_of_its_own_has_no_known_path() -> None:
    class Changed(models.ResNet):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * 2

    with torch.device("meta"):
        layout = layout_of(Changed(models.resnet.BasicBlock, [1, 1, 1, 1]))
    assert layout is not None
    assert layout.path == ()
    assert layout.stages[-3:] == ("layer2", "layer3", "layer4")


def test_the_last_layer_of_a_vgg_is_the_relu_before_the_last_pooling() -> None:
    for name, last in (("vgg16", 29), ("vgg16_bn", 42)):
        layout = BACKBONES[name].classifier_layout
        with torch.device("meta"):
            features = BACKBONES[name].build().get_submodule("features")
        assert layout.last == f"features.{last}"
        kinds = [type(module) for module in features.children()]
        assert kinds[last:] == [nn.ReLU, nn.MaxPool2d]


def test_unknown_names_are_refused_with_a_near_one() -> None:
    with pytest.raises(
        UserError, match=r"^x is resnet52, but must be one of resnet18, .*did you mean resnet5"
    ):
        find_backbone("resnet52", "x", lambda backbone: True)
    with pytest.raises(
        UserError, match=r"^x is mobilenet_v3_large, but must be one of resnet18, .*vgg16_bn, or timm:NAME$"
    ):
        find_backbone("mobilenet_v3_large", "x", lambda backbone: backbone.classifies)


def test_a_stride_that_a_backbone_has_not_is_refused() -> None:
    assert BACKBONES["resnet50"].stage(4) == 1
    with pytest.raises(UserError, match="mobilenet_v3_large has no feature map at stride 32"):
        BACKBONES["mobilenet_v3_large"].stage(32)


def random_statistics(model: nn.Module) -> nn.Module:
    """BatchNorm with statistics and weights of its own, so that no layer is an identity."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_var, module.weight.data):
                tensor.copy_(0.5 + torch.rand(len(tensor), generator=generator))
            module.running_mean.copy_(0.1 * torch.randn(len(module.running_mean), generator=generator))
    return model.eval()


def features(model: nn.Module, images: Tensor, last: str = "layer4") -> Tensor:
    """Output of a stage, through torchvision's own forward."""
    kept: list[Tensor] = []
    handle = model.get_submodule(last).register_forward_hook(lambda _m, _i, output: kept.append(output))
    with torch.no_grad():
        model(images)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize(
    ("output_stride", "replace"), [(32, [False] * 3), (16, [False, False, True]), (8, [False, True, True])]
)
def test_bottleneck_network_equals_torchvisions_own_dilation(output_stride: int, replace: list[bool]) -> None:
    torch.manual_seed(0)
    peer = random_statistics(models.resnet50(weights=None, replace_stride_with_dilation=replace))
    own = BACKBONES["resnet50"].network(output_stride).eval()
    own.load_state_dict(peer.state_dict())
    assert torch.equal(features(own, IMAGES), features(peer, IMAGES))
    with torch.no_grad():
        assert torch.equal(own(IMAGES), peer(IMAGES))


@pytest.mark.parametrize("architecture", ["resnet18", "resnet34"])
@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_basic_block_network_keeps_the_strided_features_among_the_dilated_ones(
    architecture: str, size: tuple[int, int]
) -> None:
    """The à-trous identity: dropping every second position gives what the stride would have computed."""
    torch.manual_seed(0)
    strided = random_statistics(BACKBONES[architecture].network(32)).double()
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    expected = features(strided, images)
    for output_stride, step in ((16, 2), (8, 4)):
        dilated = BACKBONES[architecture].network(output_stride).eval().double()
        dilated.load_state_dict(strided.state_dict())
        fine = features(dilated, images)
        assert fine.shape[-1] > expected.shape[-1]
        torch.testing.assert_close(fine[..., ::step, ::step], expected)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("small_images", [False, True])
def test_output_stride_is_kept_and_halves_for_small_images(
    architecture: str, output_stride: int, small_images: bool
) -> None:
    model = BACKBONES[architecture].network(output_stride, small_images).eval()
    stride = output_stride // 2 if small_images else output_stride
    assert features(model, IMAGES).shape[-2:] == (64 // stride, 96 // stride)
    assert features(model, IMAGES, "layer2").shape[-2:] == ((16, 24) if small_images else (8, 12))
