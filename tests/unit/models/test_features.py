"""Networks that are looked into but not trained."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision

from wsss.errors import UserError
from wsss.models.backbone import layout_of
from wsss.models.imagenet_classifier import load_features

OPTION = "extend.backbone"


def saved(state: dict[str, torch.Tensor], path: Path) -> str:
    torch.save(state, path)
    return str(path)


def test_a_state_dict_is_loaded_with_or_without_its_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    headless = {name: value for name, value in state.items() if not name.startswith("fc.")}
    for one in (state, headless):
        model = load_features("resnet18", saved(one, tmp_path / "r.pth"), OPTION)
        assert not model.training
        assert all(torch.equal(model.state_dict()[name], value) for name, value in headless.items())
        assert layout_of(model) is not None


def test_self_supervised_weights_of_timm_need_no_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0).state_dict()
    path = saved(state, tmp_path / "dino.pth")
    model = load_features("timm:vit_small_patch14_reg4_dinov2", path, OPTION)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def test_what_is_no_frozen_network_is_refused(tmp_path: Path) -> None:
    masks = {f"backbone.{name}": value for name, value in torchvision.models.resnet18().state_dict().items()}
    with pytest.raises(
        UserError, match=r"extend\.backbone\.weights .*masks\.pth holds a network that was trained on"
    ):
        load_features("resnet18", saved(masks, tmp_path / "masks.pth"), OPTION)
    with pytest.raises(
        UserError, match=r"extend\.backbone\.weights is none, and an untrained network sees nothing"
    ):
        load_features("resnet18", "none", OPTION)
    with pytest.raises(
        UserError, match=r"extend\.backbone\.architecture is resnet19, but .*did you mean resnet"
    ):
        load_features("resnet19", "imagenet", OPTION)
    with pytest.raises(UserError, match=r"there is no file .*gone\.pth"):
        load_features("resnet18", str(tmp_path / "gone.pth"), OPTION)
