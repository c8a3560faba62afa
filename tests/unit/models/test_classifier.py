"""Classifiers: heads, weights of torchvision, and VGG16 as a fully convolutional network."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from wsss.config import ClassifierConfig
from wsss.errors import UserError
from wsss.models.backbone import BACKBONES
from wsss.models.classifier import build_classifier
from wsss.models.vgg import VGG16, convolutionalize

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def vgg() -> tuple[VGG16, nn.Module]:
    """Our VGG16 with the weights of torchvision's (without the seconds of its initialisation)."""
    torch.manual_seed(0)
    with torch.device("meta"):
        peer = models.vgg16(weights=None, init_weights=False)
        own = VGG16(3)
    peer = peer.to_empty(device="cpu").eval()
    for parameter in peer.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 100
        torch.nn.init.uniform_(parameter, -((6 / fan) ** 0.5), (6 / fan) ** 0.5)
    state = convolutionalize(peer.state_dict())
    state["fc8.weight"] = 0.1 * torch.randn(3, 4096, 1, 1)
    state["fc8.bias"] = torch.randn(3)
    own.load_state_dict(state, assign=True)
    return own.eval(), peer


def config(architecture: str, weights: str = "none") -> ClassifierConfig:
    return ClassifierConfig(architecture=architecture, weights=weights)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_resnet_takes_torchvisions_weights_and_gets_a_new_head_without_bias(
    tmp_path: Path, architecture: str
) -> None:
    state = getattr(models, architecture)(weights=None).state_dict()
    torch.save(state, tmp_path / "w.pth")
    model = build_classifier(config(architecture, str(tmp_path / "w.pth")), 5)
    own = model.state_dict()
    assert set(state) - set(own) == {"fc.bias"}
    assert all(torch.equal(own[name], value) for name, value in state.items() if not name.startswith("fc."))
    assert own["fc.weight"].shape == (5, state["fc.weight"].shape[1])
    assert own["fc.weight"].std() == pytest.approx(0.01, rel=0.1)


def test_resnet_logits_are_the_head_on_the_mean_of_the_last_stage() -> None:
    torch.manual_seed(0)
    model = build_classifier(config("resnet18"), 4).eval()
    kept: list[Tensor] = []
    layer = model.get_submodule(BACKBONES["resnet18"].layout.last)
    layer.register_forward_hook(lambda _m, _i, output: kept.append(output))
    with torch.no_grad():
        logits = model(IMAGES)
    assert kept[0].shape[-2:] == (64 // 16, 96 // 16)
    expected = kept[0].mean((2, 3)) @ model.get_submodule("fc").weight.T
    torch.testing.assert_close(logits, expected)


def test_bare_network_reads_no_weights(tmp_path: Path) -> None:
    settings = config("resnet18", str(tmp_path / "missing.pth"))
    assert build_classifier(settings, 2, pretrained=False)(IMAGES).shape == (2, 2)
    with pytest.raises(UserError, match=r"classifier\.weights: there is no file .*missing\.pth"):
        build_classifier(settings, 2)


@pytest.mark.parametrize(
    ("architecture", "other"),
    [
        ("resnet18", "resnet34"),
        ("resnet50", "resnet101"),
        ("resnet50", "vgg11"),
        ("vgg16", "resnet18"),
        ("vgg16", "vgg11"),
        ("vgg16", "vgg16_bn"),
        ("vgg16", "mobilenet_v3_large"),  # also has a classifier.0 and a classifier.3, of other sizes
        ("vgg16", "alexnet"),
    ],
)
def test_weights_of_another_architecture_are_refused(tmp_path: Path, architecture: str, other: str) -> None:
    with torch.device("meta"):  # shapes alone: nothing is loaded
        state = getattr(models, other)(weights=None).state_dict()
    zeros = {name: torch.zeros(()).expand(value.shape) for name, value in state.items()}
    torch.save(zeros, tmp_path / "w.pth")
    with (
        torch.device("meta"),
        pytest.raises(UserError, match=r"classifier\.weights .*w\.pth belongs to another architecture"),
    ):
        build_classifier(config(architecture, str(tmp_path / "w.pth")), 2)


def test_vgg16_convolutions_equal_torchvisions_linear_layers(vgg: tuple[VGG16, nn.Module]) -> None:
    """On a 224 pixel input the centre of the padded 7x7 window sees exactly what fc6 saw."""
    own, peer = vgg
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = own.features(image)
        assert maps.shape == (1, 512, 7, 7)
        hidden = own.relu(own.fc7(own.relu(own.fc6(maps))))
        expected = peer.classifier[:5](maps.flatten(1))  # up to fc7's ReLU; dropout is off in eval mode
        torch.testing.assert_close(hidden[:, :, 3, 3], expected, rtol=1e-3, atol=1e-4)
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(own.score_map(image), own.fc8(hidden))


def test_vgg16_logits_are_the_maximum_of_the_score_map(vgg: tuple[VGG16, nn.Module]) -> None:
    own, _ = vgg
    with torch.no_grad():
        scores, logits = own.score_map(IMAGES), own(IMAGES)
    assert scores.shape == (2, 3, 2, 3)
    for image in range(2):
        for cls in range(3):
            assert logits[image, cls] == max(scores[image, cls].flatten().tolist())


def test_the_head_is_what_imagenet_does_not_give(vgg: tuple[VGG16, nn.Module]) -> None:
    def heads(architecture: str, model: nn.Module) -> set[str]:
        layout = BACKBONES[architecture].classifier_layout
        return {name for name, _ in model.named_parameters() if layout.is_head(name)}

    assert heads("vgg16", vgg[0]) == {"fc8.weight", "fc8.bias"}
    assert heads("resnet18", build_classifier(config("resnet18"), 2)) == {"fc.weight"}


def test_vgg16_bn_is_torchvisions_with_batchnorm_under_the_convolutional_head(tmp_path: Path) -> None:
    with torch.device("meta"):
        peer = models.vgg16_bn(weights=None, init_weights=False)
    state = {name: torch.randn(()).expand(value.shape) for name, value in peer.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    torch.manual_seed(0)
    own = build_classifier(config("vgg16_bn", str(tmp_path / "w.pth")), 3).state_dict()
    for name, value in state.items():
        if name.startswith("features.") and not name.endswith("num_batches_tracked"):
            assert torch.equal(own[name], value), name
    assert torch.equal(own["fc6.weight"].flatten(1), state["classifier.0.weight"])
    assert torch.equal(own["fc7.bias"], state["classifier.3.bias"])
    assert own["fc8.weight"].shape == (3, 4096, 1, 1)
    assert "features.1.running_mean" in own
