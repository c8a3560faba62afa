"""Classifiers that score cells and pool the scores."""

import math
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from wsss.config import ClassifierConfig, SegmenterConfig
from wsss.errors import UserError
from wsss.models.backbone import layout_of
from wsss.models.classifier import CellClassifier, build_classifier
from wsss.models.segmenter import build_segmenter
from wsss.saliency import DCSM, GradCAM
from wsss.tasks.classification import new_task

NETWORKS = (
    "resnet18",
    "timm:convnext_atto",
    "timm:vit_tiny_patch16_224",
    "timm:swin_tiny_patch4_window7_224",
)
TARGETS = torch.tensor([[0, 1], [1, 2]])


def classifier(architecture: str, **settings: Any) -> CellClassifier:
    torch.manual_seed(0)
    model = build_classifier(ClassifierConfig(architecture, weights="none", output_stride=32, **settings), 3)
    assert isinstance(model, CellClassifier)
    nn.init.normal_(model.head.weight)
    return model.double().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double()


def pooled(scores: list[float], pooling: str) -> float:
    """Plain Python."""
    match pooling:
        case "mean":
            return sum(scores) / len(scores)
        case "max":
            return max(scores)
        case "lse(3)":
            return math.log(sum(math.exp(3 * score) for score in scores) / len(scores)) / 3
    count = max(1, round(0.3 * len(scores)))
    return sum(sorted(scores)[-count:]) / count


@pytest.mark.parametrize("pooling", ["mean", "max", "lse(3)", "topk(0.3)"])
@pytest.mark.parametrize("architecture", NETWORKS)
def test_logits_are_the_pooled_scores_of_the_cells(architecture: str, pooling: Any, images: Tensor) -> None:
    model = classifier(architecture, pooling=pooling)
    scores = model.score_map(images)
    assert scores.shape[:2] == (2, 3)
    expected = [[pooled(one.flatten().tolist(), pooling) for one in photo] for photo in scores]
    torch.testing.assert_close(model(images), torch.tensor(expected).to(model(images)), rtol=1e-5, atol=1e-5)


def test_mean_is_the_own_head_of_a_resnet(images: Tensor) -> None:
    model = classifier("resnet18", pooling="mean")
    own = torchvision.models.resnet18(num_classes=3).double().eval()
    state = {name.removeprefix("network."): value for name, value in model.state_dict().items()}
    own.load_state_dict(
        {**state, "fc.weight": state["head.weight"][:, :, 0, 0], "fc.bias": state["head.bias"]}, strict=False
    )
    torch.testing.assert_close(model(images), own(images))


@pytest.mark.parametrize("architecture", NETWORKS)
def test_saliency_finds_the_last_layer_inside(architecture: str, images: Tensor) -> None:
    model = classifier(architecture, pooling="mean")
    layout = layout_of(model)
    assert layout is not None
    assert layout.last.startswith("network.")
    maps = GradCAM()(model, images, TARGETS)
    scores = model.score_map(images) - model.head.bias[:, None, None]
    cells = scores[0, 0].numel()
    expected = torch.stack([scores[image, cls].clamp(min=0) / cells for image, cls in TARGETS.tolist()])
    torch.testing.assert_close(maps, expected.float(), rtol=1e-4, atol=1e-6)


def test_dcsm_starts_at_the_score_map(images: Tensor) -> None:
    model = classifier("resnet18", pooling="max")
    assert DCSM(scales=(1.0,))(model, images, TARGETS).amax((1, 2)).min() > 0


@pytest.mark.parametrize("architecture", NETWORKS[:3])
def test_weights_freezing_and_the_head_are_those_of_the_backbone(architecture: str, tmp_path: Any) -> None:
    torch.manual_seed(3)
    backbone = build_classifier(ClassifierConfig(architecture, weights="none", output_stride=32), 7)
    torch.save(backbone.state_dict(), tmp_path / "weights.pth")
    settings = ClassifierConfig(architecture, weights=str(tmp_path / "weights.pth"), pooling="lse")
    task = new_task(settings, ("cat", "dog"))
    own, state = task.model.state_dict(), backbone.state_dict()
    loaded = [name for name in own if name.startswith("network.") and name.removeprefix("network.") in state]
    assert len(loaded) > 20
    assert all(torch.equal(own[name], state[name.removeprefix("network.")]) for name in loaded)
    head = {id(value) for value in task.groups().head}
    assert {name for name, value in task.model.named_parameters() if id(value) in head} == {
        "head.weight",
        "head.bias",
    }
    first = {"resnet18": "network.conv1.weight", "timm:convnext_atto": "network.stem.0.weight"}
    learning = dict(task.model.named_parameters())
    assert not learning[first.get(architecture, "network.patch_embed.proj.weight")].requires_grad
    assert learning["head.weight"].requires_grad


def test_a_segmenter_starts_from_such_a_classifier() -> None:
    model = classifier("timm:convnext_atto", pooling="max").float()
    config = SegmenterConfig("linear_timm:convnext_atto", weights="classifier", output_stride=16)
    segmenter = build_segmenter(config, 4, initial=model.state_dict())
    for name, value in segmenter.get_submodule("backbone.network").state_dict().items():
        assert torch.equal(value, model.state_dict()[f"network.{name}"]), name


def test_what_makes_no_pooling_is_refused() -> None:
    with pytest.raises(UserError, match=r"classifier\.pooling is lse, but vgg16 has a pooling of its own"):
        build_classifier(ClassifierConfig("vgg16", weights="none", pooling="lse"), 3)


@pytest.mark.parametrize("pooling", ["lse(0)", "topk(1.5)", "mean(3)", "median", "lse(x)", "topk()"])
def test_other_poolings_are_refused(pooling: str) -> None:
    with pytest.raises(
        UserError, match=r"classifier\.pooling is .*, but must be one of own, mean, max, lse, topk; lse"
    ):
        ClassifierConfig(pooling=pooling)
    assert ClassifierConfig(pooling="lse").pooling_parts == ("lse", 5.0)
