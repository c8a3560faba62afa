"""One entry in BACKBONES is all that a new backbone takes: it is trained, explained, extended and segmented with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from wsss.comparison.sanity import randomization_stages
from wsss.config import ClassifierConfig, Config, SegmenterConfig
from wsss.explain import explain, imagenet_subject, trained_subject
from wsss.extension.affinity import default_layers, last_stages
from wsss.models.backbone import BACKBONES, Backbone, Layout, Weights
from wsss.models.segmenter import build_segmenter, check_architecture
from wsss.saliency import DCSM, GradCAM, RelevanceCAM
from wsss.tasks.classification import load_classifier, new_task

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Tiny(nn.Module):
    """Three stages at strides 4, 8 and 16, pooling, and a linear head for ImageNet's classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.score = nn.Linear(16, 1000)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.score(self.pool(self.deep(self.block(self.stem(images)))).flatten(1))
        return logits


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry."""
    record = Backbone(
        "tiny",
        Tiny,
        Weights("https://example.org/tiny.pth", lambda: Tiny().state_dict()),
        Layout(("stem", "block", "deep"), ("stem", "block", "deep", "pool", "score"), "score"),
        strides=(4, 8, 16),
        channels=(8, 12, 16),
    )
    monkeypatch.setitem(BACKBONES, "tiny", record)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a classifier after one step."""
    torch.manual_seed(0)
    config = ClassifierConfig(architecture="tiny", weights="imagenet", frozen_stages=1)
    check_architecture(Config(classifier=config))
    task = new_task(config, ("cat", "dog"))
    task.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    before = {name: value.clone() for name, value in task.model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1)
    task.training_step((IMAGES, torch.eye(2)), 0).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    changed = {name for name, value in task.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if not name.startswith("stem.")}
    assert task.model.get_submodule("score").weight.shape == (2, 16)
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}, tmp_path / "c.ckpt")
    return tmp_path / "c.ckpt"


def test_it_is_trained_as_a_classifier_and_found_by_what_asks_for_layers(checkpoint: Path) -> None:
    network, classes, _ = load_classifier(checkpoint)
    assert classes == ("cat", "dog")
    assert (default_layers(network), last_stages(network)) == (("stem", "block"), ("stem", "block", "deep"))
    assert [stage.name for stage in randomization_stages(network)] == ["score", "deep", "block", "stem"]
    targets = torch.tensor([[0, 1], [1, 0]])
    for method, size in ((GradCAM("deep"), (4, 4)), (RelevanceCAM("deep"), (4, 4)), (DCSM(), (64, 64))):
        assert method(network, IMAGES, targets).shape == (2, *size)


def test_it_is_explained_without_naming_a_layer(checkpoint: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "photo.png")
    torch.save(Tiny().state_dict(), tmp_path / "w.pth")
    for subject in (trained_subject(checkpoint), imagenet_subject("tiny", str(tmp_path / "w.pth"))):
        assert subject.layer == "deep"
        explain(tmp_path / "photo.png", tmp_path / "why.png", subject, ["gradcam", "dcsm"], accelerator="cpu")
        assert np.load(tmp_path / "why.npy").shape[0] == 2


@pytest.mark.parametrize("head", ["deeplabv2", "deeplabv3", "deeplabv3plus", "lraspp"])
def test_it_is_the_trunk_of_a_segmenter(head: str, checkpoint: Path) -> None:
    state = load_classifier(checkpoint)[0].state_dict()
    config = SegmenterConfig(architecture=f"{head}_tiny", weights="classifier")
    model = build_segmenter(config, 3, initial=state).eval()
    own = model.state_dict()
    assert all(
        torch.equal(own[f"backbone.network.{name}"], value)
        for name, value in state.items()
        if not name.startswith("score.")
    )
    with torch.no_grad():
        assert model(IMAGES).shape == (2, 3, 64, 64)
