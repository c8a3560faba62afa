"""Networks of segmentation-models-pytorch, where it is installed, and what is said where it is not."""

import sys
from pathlib import Path

import pytest
import torch
from torchvision import models

from wsss.config import SegmenterConfig
from wsss.errors import UserError
from wsss.models.segmenter import build_segmenter, split_architecture
from wsss.models.smp import split_name


def config(architecture: str, weights: str = "none") -> SegmenterConfig:
    return SegmenterConfig(architecture=architecture, weights=weights)


def test_name_and_encoder_are_read_from_the_architecture() -> None:
    assert split_name("smp:Unet") == ("Unet", "resnet50")
    assert split_name("smp:UPerNet/resnet101") == ("UPerNet", "resnet101")
    assert split_architecture("smp:FPN/resnet18")[1].name == "resnet18"
    with pytest.raises(UserError, match=r"smp:Unet/vgg11: the encoder is vgg11, .*one of resnet18, resnet34"):
        build_segmenter(config("smp:Unet/vgg11"), 3)


def test_missing_library_is_one_sentence_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(UserError, match=r'needs segmentation-models-pytorch .*`pip install "wsss\[smp\]"`'):
        build_segmenter(config("smp:Unet"), 3)


@pytest.mark.parametrize("name", ["Unet", "FPN", "DeepLabV3Plus", "PSPNet"])
def test_network_takes_classification_weights_and_any_size(tmp_path: Path, name: str) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    state = models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "w.pth")
    model = build_segmenter(config(f"smp:{name}/resnet18", str(tmp_path / "w.pth")), 4).eval()
    own = model.state_dict()
    for key, value in state.items():
        assert key.startswith("fc.") or torch.equal(own[f"backbone.network.{key}"], value), key
    images = torch.randn(1, 3, 75, 61)
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (1, 4, 75, 61)
        padded = torch.nn.functional.pad(images, (0, 3, 0, 21))
        torch.testing.assert_close(logits, model(padded)[..., :75, :61])


def test_unknown_name_is_refused() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(UserError, match=r"smp:Nonsense: segmentation-models-pytorch cannot build it"):
        build_segmenter(config("smp:Nonsense"), 3)
