"""Segmenters: shapes, weights of the backbone, and multi-scale prediction against plain loops."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from wsss.config import SEGMENTERS, ClassifierConfig, Config, SegmenterConfig
from wsss.errors import UserError
from wsss.models.backbone import BACKBONES
from wsss.models.classifier import build_classifier
from wsss.models.encoders import Pyramid, Trunk
from wsss.models.heads import AtrousClassifiers, PlusHead
from wsss.models.segmenter import (
    HEADS,
    Segmenter,
    build_segmenter,
    check_architecture,
    predict_probabilities,
    split_architecture,
)

RESNET18 = BACKBONES["resnet18"]
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def config(architecture: str, weights: str = "none", stride: Literal[8, 16] | None = None) -> SegmenterConfig:
    return SegmenterConfig(architecture=architecture, weights=weights, output_stride=stride)


@pytest.mark.parametrize(
    "architecture",
    [name for name in SEGMENTERS if not name.endswith("101")],
)
def test_backbone_takes_torchvisions_classification_weights_and_logits_have_the_inputs_size(
    tmp_path: Path, architecture: str
) -> None:
    state = split_architecture(architecture)[1].build().state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            state[name] = value + 0.01  # no value that a fresh network has too
    torch.save(state, tmp_path / "w.pth")
    model = build_segmenter(config(architecture, str(tmp_path / "w.pth")), 4).eval()
    own = model.state_dict()
    loaded = {name for name in state if not name.startswith(("fc.", "classifier."))}
    assert len(loaded) > 100
    for name in loaded:
        assert torch.equal(own[f"backbone.network.{name}"], state[name]), name
    with torch.no_grad():
        assert model(IMAGES[:1, :, :61, :50]).shape == (1, 4, 61, 50)


@pytest.mark.parametrize("stride", [8, 16])
def test_deeplab_has_the_configured_stride_and_atrous_rates(stride: Literal[8, 16]) -> None:
    model = build_segmenter(config("deeplabv3_resnet18", stride=stride), 3).eval()
    with torch.no_grad():
        assert model.backbone(IMAGES).shape == (2, 512, 64 // stride, 96 // stride)
    rates = {m.dilation[0] for m in model.head.modules() if isinstance(m, nn.Conv2d)} - {1}
    assert rates == ({6, 12, 18} if stride == 16 else {12, 24, 36})


@pytest.mark.parametrize(("stride", "rates"), [(None, (6, 12, 18, 24)), (16, (3, 6, 9, 12))])
def test_deeplabv2_sums_four_dilated_classifiers(stride: Literal[16] | None, rates: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = build_segmenter(config("deeplabv2_resnet50", stride=stride), 3).eval()
    head = model.head
    assert isinstance(head, AtrousClassifiers)
    with torch.no_grad():
        features = model.backbone(IMAGES)
        step = stride or 8
        assert features.shape == (2, 2048, 64 // step, 96 // step)
        expected = sum(
            F.conv2d(features, layer.weight, layer.bias, padding=rate, dilation=rate)
            for layer, rate in zip(head.classifiers, rates, strict=True)
        )
        torch.testing.assert_close(head(features), expected)
    assert [name for name, _ in head.named_parameters()] == [
        f"classifiers.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")
    ]
    assert all(layer.weight.std().item() == pytest.approx(0.01, rel=0.05) for layer in head.classifiers)
    assert all(torch.count_nonzero(layer.bias) == 0 for layer in head.classifiers)


@pytest.mark.parametrize("stride", [8, 16])
def test_deeplabv3plus_joins_the_first_stage_and_the_pyramid(stride: Literal[8, 16]) -> None:
    torch.manual_seed(0)
    model = build_segmenter(config("deeplabv3plus_resnet50", stride=stride), 3).eval()
    head = model.head
    assert isinstance(head, PlusHead)
    with torch.no_grad():
        low, high = model.backbone(IMAGES)
        assert low.shape == (2, 256, 16, 24)
        assert high.shape == (2, 2048, 64 // stride, 96 // stride)
        assert head.reduce(low).shape == (2, 48, 16, 24)
        logits = head((low, high))
        assert logits.shape == (2, 3, 16, 24)
        assert not torch.allclose(head((low + 1, high)), logits)
        assert not torch.allclose(head((low, high + 1)), logits)
    convolutions = [m for m in head.refine.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in convolutions] == [
        (304, 256, (3, 3)),
        (256, 256, (3, 3)),
    ]
    rates = {m.dilation[0] for m in head.pyramid.modules() if isinstance(m, nn.Conv2d)} - {1}
    assert rates == ({6, 12, 18} if stride == 16 else {12, 24, 36})


def test_lraspp_equals_torchvisions() -> None:
    torch.manual_seed(0)
    peer = models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    ).eval()
    model = build_segmenter(config("lraspp_mobilenet_v3_large"), 5).eval()
    names = {"backbone.": "backbone.network.features.", "classifier.": "head."}
    state = {}
    for name, value in peer.state_dict().items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        state[names[prefix] + name.removeprefix(prefix)] = value
    model.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(model(IMAGES), peer(IMAGES)["out"])


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large"])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_goes_on_every_trunk(head: str, name: str) -> None:
    with torch.device("meta"):
        model = build_segmenter(config(f"{head}_{name}"), 3).eval()
        assert model(torch.zeros(1, 3, 61, 50)).shape == (1, 3, 61, 50)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("unet", r"is unet, .*deeplabv2_resnet101, .*smp:NAME"),
        ("deeplabv3_resnet52", r"is deeplabv3_resnet52, but must be .*did you mean deeplabv3_resnet5"),
        ("deeplabv3_vgg16", r"is deeplabv3_vgg16, but must be one of"),
        ("smp:Unet/vgg11", r"smp:Unet/vgg11: the encoder is vgg11"),
    ],
)
def test_architectures_that_do_not_exist_are_refused_before_anything_is_built(
    architecture: str, message: str
) -> None:
    with pytest.raises(UserError, match=rf"segmenter\.architecture {message}"):
        check_architecture(Config(segmenter=SegmenterConfig(architecture=architecture)))


def test_classifiers_that_do_not_exist_are_refused_too() -> None:
    with pytest.raises(
        UserError,
        match=r"classifier\.architecture is vgg19, but must be one of resnet18, .*did you mean vgg16",
    ):
        check_architecture(Config(classifier=ClassifierConfig(architecture="vgg19")))
    check_architecture(Config(classifier=ClassifierConfig(architecture="vgg16_bn")))


@pytest.mark.parametrize("architecture", [name for name in SEGMENTERS if name.endswith("101")])
def test_networks_on_resnet101_have_all_its_blocks(architecture: str) -> None:
    with torch.device("meta"):
        model = build_segmenter(config(architecture), 21)
    assert len(model.backbone.network.layer3) == 23
    assert split_architecture(architecture)[1].name == "resnet101"


def test_backbone_sees_multiples_and_the_padding_is_cut_off() -> None:
    """A one-to-one network: every pixel has to come back at its place."""
    seen: list[Tensor] = []

    class Eye(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images

    images = torch.randn(2, 3, 33, 50)
    assert torch.equal(Segmenter(Eye(), nn.Identity(), multiple=32)(images), images)
    assert seen[0].shape == (2, 3, 64, 64)
    assert torch.count_nonzero(seen[0][..., 33:, :]) == 0
    assert torch.equal(Segmenter(Eye(), nn.Identity())(images), images)
    assert seen[1].shape == images.shape


def test_mobilenet_has_stride_16() -> None:
    model = build_segmenter(config("deeplabv3_mobilenet_v3_large"), 3).eval()
    with torch.no_grad():
        assert model.backbone(IMAGES).shape == (2, 960, 4, 6)


def test_trunk_and_pyramid_are_the_stages_of_the_network() -> None:
    torch.manual_seed(0)
    torch.manual_seed(0)
    pyramid = Pyramid(RESNET18, 32, (1, 2, 3, 4)).eval()
    torch.manual_seed(0)
    trunk = Trunk(RESNET18, 32).eval()
    torch.manual_seed(0)
    network = models.resnet18(weights=None).eval()
    kept: list[Tensor] = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        network.get_submodule(stage).register_forward_hook(lambda _m, _i, output: kept.append(output))
    with torch.no_grad():
        network(IMAGES)
        expected = kept
        maps, last = pyramid(IMAGES), trunk(IMAGES)
    assert all(torch.equal(own, peer) for own, peer in zip(maps, expected, strict=True))
    assert torch.equal(last, expected[-1])
    assert tuple(single.shape[1] for single in maps) == pyramid.channels


def test_light_head_uses_every_map_of_the_pyramid() -> None:
    torch.manual_seed(0)
    model = build_segmenter(config("light"), 3).eval()
    with torch.no_grad():
        maps = model.backbone(IMAGES)
        logits = model.head(maps)
        assert logits.shape == (2, 3, *maps[0].shape[-2:])
        for index in range(4):
            other = [value + (position == index) for position, value in enumerate(maps)]
            assert not torch.allclose(model.head(other), logits)


def test_backbone_takes_this_runs_classifier() -> None:
    classifier = build_classifier(ClassifierConfig(architecture="resnet18", weights="none"), 2)
    state = classifier.state_dict()
    model = build_segmenter(config("light", "classifier"), 3, initial=state)
    own = model.state_dict()
    assert all(
        torch.equal(own[f"backbone.network.{name}"], value)
        for name, value in state.items()
        if not name.startswith("fc.")
    )


def test_classifier_weights_without_a_classifier_say_what_to_run() -> None:
    with pytest.raises(UserError, match=r"segmenter\.weights is `classifier`.*run `wsss classify` first"):
        build_segmenter(config("light", "classifier"), 3)


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"segmenter\.weights .*w\.pth belongs to another architecture"):
        build_segmenter(config("deeplabv3_mobilenet_v3_large", str(tmp_path / "w.pth")), 3)


def test_bare_network_reads_no_weights(tmp_path: Path) -> None:
    settings = config("light", str(tmp_path / "missing.pth"))
    assert build_segmenter(settings, 3, pretrained=False) is not None
    with pytest.raises(UserError, match=r"segmenter\.weights: there is no file"):
        build_segmenter(settings, 3)


# -- prediction ------------------------------------------------------------------------------------


class Toy(nn.Module):
    """A network that sees neighbours, left and right differently."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 5, padding=2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = 3 * self.convolution(images)
        return logits


def plain_loops(model: nn.Module, image: Tensor, scales: Sequence[float], flip: bool) -> Tensor:
    """(3, H, W) -> (C, H, W): one forward per image, scale and mirror image."""
    height, width = image.shape[1:]
    found = []
    for scale in scales:
        size = (int(height * scale + 0.5), int(width * scale + 0.5))
        resized = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)
        for mirrored in (False, True) if flip else (False,):
            seen = resized.flip(-1) if mirrored else resized
            probabilities = torch.softmax(model(seen), dim=1)
            probabilities = probabilities.flip(-1) if mirrored else probabilities
            found.append(
                F.interpolate(probabilities, size=(height, width), mode="bilinear", align_corners=False)
            )
    return torch.cat(found).mean(0)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.5,), (0.5, 0.75, 1.0, 1.5)])
@torch.no_grad()
def test_prediction_equals_plain_loops_and_sums_to_one(scales: tuple[float, ...], flip: bool) -> None:
    model, images = Toy().eval(), IMAGES[:, :, :31, :45]
    found = predict_probabilities(model, images, scales, flip)
    expected = torch.stack([plain_loops(model, image, scales, flip) for image in images])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 31, 45))


@torch.no_grad()
def test_prediction_with_flip_mirrors_with_the_photo() -> None:
    model = Toy().eval()
    found = predict_probabilities(model, IMAGES, (0.5, 1.0), flip=True)
    mirrored = predict_probabilities(model, IMAGES.flip(3), (0.5, 1.0), flip=True)
    torch.testing.assert_close(mirrored, found.flip(3))
    plain = predict_probabilities(model, IMAGES)
    assert not torch.allclose(predict_probabilities(model, IMAGES.flip(3)), plain.flip(3), atol=1e-3)


@torch.no_grad()
def test_prediction_is_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = predict_probabilities(Toy().eval(), IMAGES, (1.0, 0.5), flip=True)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(2, 64, 96))


def test_prediction_without_scales_is_refused() -> None:
    with pytest.raises(ValueError, match="scales is empty"):
        predict_probabilities(Toy(), IMAGES, ())
