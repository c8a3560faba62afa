"""Files of networks that were trained on masks: recognised, refused, and taken apart where they are asked for."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import segmentation

from wsss.config import SegmenterConfig
from wsss.errors import UserError
from wsss.models.backbone import BACKBONES
from wsss.models.pretraining import backbone_state, sign_of_masks
from wsss.models.segmenter import build_segmenter

State = dict[str, Tensor]


def empty(build: object, **arguments: object) -> nn.Module:
    """A network without memory: only its names and shapes are looked at."""
    with torch.device("meta"):
        return build(weights=None, **arguments)  # type: ignore[operator,no-any-return]


@pytest.mark.parametrize(
    ("build", "first"),
    [
        (segmentation.deeplabv3_resnet50, "backbone.conv1.weight"),
        (segmentation.deeplabv3_mobilenet_v3_large, "backbone.0.0.weight"),
        (segmentation.fcn_resnet50, "backbone.conv1.weight"),
        (segmentation.lraspp_mobilenet_v3_large, "backbone.0.0.weight"),
        (models.detection.maskrcnn_resnet50_fpn, "backbone.body.conv1.weight"),
    ],
)
def test_torchvisions_networks_for_masks_and_boxes_are_recognised(build: object, first: str) -> None:
    assert sign_of_masks(empty(build, weights_backbone=None).state_dict()) == first


@pytest.mark.parametrize(
    "name",
    [
        "aux_classifier.4.weight",
        "decoder.blocks.0.weight",
        "decode_head.conv_seg.weight",
        "module.aspp.c0.weight",
    ],
)
def test_heads_of_other_libraries_are_recognised(name: str) -> None:
    state = {"layer1.0.conv1.weight": torch.zeros(2, 2, 1, 1), name: torch.zeros(2, 2, 1, 1)}
    assert sign_of_masks(state) == name


def test_convolutional_classifier_is_recognised_and_a_matrix_is_not() -> None:
    assert sign_of_masks({"classifier.4.weight": torch.zeros(21, 256, 1, 1)}) == "classifier.4.weight"
    assert sign_of_masks({"classifier.3.weight": torch.zeros(1000, 1280)}) is None
    assert sign_of_masks({"head.weight": torch.zeros(1000, 768)}) is None
    assert sign_of_masks({"head.weight": torch.zeros(21, 768, 1, 1)}) == "head.weight"


@pytest.mark.parametrize("build", [getattr(models, name) for name in BACKBONES])
def test_classifiers_pass_as_they_are(build: object) -> None:
    state = empty(build).state_dict()
    assert sign_of_masks(state) is None
    assert backbone_state(state, "w.pth", allow=False) is state


def saved(path: Path, network: nn.Module) -> State:
    """The state of a network with random values, in a file."""
    state: State = {
        name: torch.rand_like(value) if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }
    torch.save(state, path)
    return state


def mobile_config(path: Path, allow: bool) -> SegmenterConfig:
    return SegmenterConfig(
        architecture="lraspp_mobilenet_v3_large", weights=str(path), allow_mask_pretraining=allow
    )


def test_mask_weights_are_refused_by_name_with_both_ways_out(tmp_path: Path) -> None:
    network = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
    saved(tmp_path / "w.pth", network)
    with pytest.raises(
        UserError,
        match=r"segmenter\.weights .*w\.pth holds a network that was trained on masks.*backbone\.0\.0\.weight.*"
        r"ImageNet classifier.*--segmenter\.allow_mask_pretraining true",
    ):
        build_segmenter(mobile_config(tmp_path / "w.pth", allow=False), 3)


def test_mask_weights_of_a_mobilenet_lend_their_backbone_where_that_is_allowed(tmp_path: Path) -> None:
    network = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
    state = saved(tmp_path / "w.pth", network)
    own = build_segmenter(mobile_config(tmp_path / "w.pth", allow=True), 3).state_dict()
    names = [name for name in state if name.startswith("backbone.")]
    assert len(names) > 100
    for name in names:
        inner = name.removeprefix("backbone.")
        assert torch.equal(own[f"backbone.network.features.{inner}"], state[name]), name


@pytest.mark.parametrize("prefix", ["backbone.", "encoder.", "module.backbone."])
def test_mask_weights_of_a_resnet_lend_their_backbone_under_any_wrapper(tmp_path: Path, prefix: str) -> None:
    state = {
        name: value
        for name, value in models.resnet18(weights=None).state_dict().items()
        if not name.startswith("fc.")
    }
    wrapped = {prefix + name: value for name, value in state.items()}
    wrapped["decoder.0.weight"] = wrapped["classifier.4.weight"] = torch.zeros(2, 2, 1, 1)
    torch.save(wrapped, tmp_path / "w.pth")
    settings = SegmenterConfig(
        architecture="light", weights=str(tmp_path / "w.pth"), allow_mask_pretraining=True
    )
    own = build_segmenter(settings, 3).state_dict()
    assert all(torch.equal(own[f"backbone.network.{name}"], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("weights", "allow", "said"),
    [
        ("w.pth", True, True),
        ("w.pth", False, False),
        ("imagenet", True, False),
        ("none", True, False),
        ("classifier", True, False),
    ],
)
def test_results_say_so_where_a_file_may_have_seen_masks(weights: str, allow: bool, said: bool) -> None:
    assert SegmenterConfig(weights=weights, allow_mask_pretraining=allow).mask_pretraining == said
