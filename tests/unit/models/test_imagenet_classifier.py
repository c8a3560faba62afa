"""ImageNet classifiers: torchvision's weights with their head, and what is refused."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from wsss.errors import UserError
from wsss.models.backbone import BACKBONES
from wsss.models.imagenet_classifier import imagenet_classes, load_imagenet_classifier


def save_zeros(path: Path, architecture: str, **arguments: int) -> str:
    """A state dict of the right shapes that takes no space."""
    with torch.device("meta"):
        state = getattr(models, architecture)(weights=None, **arguments).state_dict()
    torch.save({name: torch.zeros(()).expand(value.shape) for name, value in state.items()}, path)
    return str(path)


def test_a_state_dict_is_loaded_whole_and_names_come_in_the_order_of_the_logits(tmp_path: Path) -> None:
    peer = models.resnet18(weights=None).eval()
    torch.save(peer.state_dict(), tmp_path / "w.pth")
    model, names = load_imagenet_classifier("resnet18", str(tmp_path / "w.pth"))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(image), peer(image), rtol=0, atol=0)
    assert not model.training
    assert len(set(names)) == len(names) == 1000
    assert (names[0], names[207], names[517], names[999]) == (
        "tench",
        "golden retriever",
        "crane",
        "toilet tissue",
    )


@pytest.mark.parametrize(
    "architecture", [name for name, backbone in BACKBONES.items() if backbone.classifies]
)
def test_the_default_layer_is_the_last_feature_map_before_pooling(architecture: str) -> None:
    with torch.device("meta"):
        model = BACKBONES[architecture].build().eval()
        sizes: list[Tensor] = []
        handle = model.get_submodule(BACKBONES[architecture].layout.last).register_forward_hook(
            lambda _module, _inputs, output: sizes.append(output)
        )
        model(torch.zeros(1, 3, 64, 64))
        handle.remove()
    stride = 16 if architecture.startswith("vgg") else 32
    assert sizes[0].shape[-2:] == (64 // stride, 64 // stride)
    if architecture.startswith("vgg"):
        assert isinstance(model.get_submodule(BACKBONES[architecture].layout.last), nn.ReLU)


@pytest.mark.parametrize(("architecture", "other"), [("resnet50", "resnet18"), ("vgg16", "vgg16_bn")])
def test_weights_of_another_architecture_are_refused(tmp_path: Path, architecture: str, other: str) -> None:
    weights = save_zeros(tmp_path / "w.pth", other)
    with pytest.raises(UserError, match=r"--weights .*w\.pth belongs to another architecture"):
        load_imagenet_classifier(architecture, weights)


def test_weights_without_the_head_of_1000_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"w\.pth scores 20 classes, not ImageNet's 1000; .*--checkpoint"):
        load_imagenet_classifier("resnet18", save_zeros(tmp_path / "w.pth", "resnet18", num_classes=20))
    with pytest.raises(UserError, match=r"w\.pth has no classifier\.6\.weight"):
        load_imagenet_classifier("vgg16", str(tmp_path / "w.pth"))


def test_wrong_names_and_files_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--architecture is resnet52, but must be one of resnet18, .*vgg16_bn"
    ):
        load_imagenet_classifier("resnet52")
    with pytest.raises(UserError, match=r"no file .*none\.pth; give `imagenet` or the path"):
        load_imagenet_classifier("resnet18", str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match=r"--weights none leaves nothing to explain"):
        load_imagenet_classifier("resnet18", "none")


def test_a_failed_download_names_the_address_and_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(UserError, match=r"vgg16_bn-\w+\.pth elsewhere and give its path as --weights PATH$"):
        load_imagenet_classifier("vgg16_bn")


def test_class_names_are_torchvisions() -> None:
    assert list(imagenet_classes()) == models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
