"""Weights of backbones: downloads, files, and what is refused."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor
from torchvision import models

from wsss.errors import UserError
from wsss.models.backbone import BACKBONES
from wsss.models.weights import load_into, load_weights, read_state_dict

RESNET18 = BACKBONES["resnet18"]


def test_weights_none_is_no_state_dict() -> None:
    assert load_weights("none", RESNET18, "classifier.weights") is None


def test_weights_path_reads_torchvisions_state_dict(tmp_path: Path) -> None:
    state = models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "w.pth")
    found = load_weights(str(tmp_path / "w.pth"), RESNET18, "classifier.weights")
    assert found is not None
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    "error", [URLError("no route to host"), OSError("disk"), RuntimeError("invalid hash value")]
)
def test_failed_download_names_the_address_and_both_mends(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(
        UserError,
        match=r"resnet34 .*https://download\.pytorch\.org/models/resnet34-\w+\.pth.*"
        r"--segmenter\.weights PATH.*--segmenter\.weights none",
    ):
        load_weights("imagenet", BACKBONES["resnet34"], "segmenter.weights")


def test_imagenet_is_the_download_of_the_first_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def give(url: str, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        asked.append(url)
        return {"a": torch.zeros(1)}

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", give)
    for backbone in BACKBONES.values():
        assert load_weights("imagenet", backbone, "x") == {"a": torch.zeros(1)}
    assert [url.rsplit("/", 1)[1].split("-")[0] for url in asked] == list(BACKBONES)
    assert "resnet50-0676ba61.pth" in asked[2]


def test_missing_weights_file_names_it_and_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--classifier\.weights: there is no file .*none\.pth.*`imagenet`"):
        load_weights(str(tmp_path / "none.pth"), RESNET18, "classifier.weights")


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


@pytest.mark.parametrize("content", ["pickle", "text", "empty"])
def test_unsafe_or_damaged_weights_are_refused(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.pth"
    if content == "pickle":
        torch.save({"a": Hostile()}, path)
    else:
        path.write_text("hello" if content == "text" else "")
    with pytest.raises(UserError, match=r"w\.pth is not a state dict that torch can load safely"):
        read_state_dict(path, "classifier.weights")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("value", [{"state_dict": {"a": torch.zeros(1)}}, [torch.zeros(1)], torch.zeros(1)])
def test_nested_state_dict_is_refused(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth holds no flat state dict"):
        read_state_dict(tmp_path / "w.pth", "classifier.weights")


def test_load_into_takes_all_but_the_ignored_names() -> None:
    model, state = RESNET18.network(), models.resnet18(weights=None).state_dict()
    head = model.get_submodule("fc").weight.clone()
    del state["fc.bias"], state["bn1.num_batches_tracked"]
    load_into(model, state, ignore=("fc.",), source="w.pth")
    assert torch.equal(model.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert torch.equal(model.get_submodule("fc").weight, head)


@pytest.mark.parametrize(
    ("change", "numbers"),
    [
        ("missing", r"1 tensors missing, 0 unknown, 0 of another shape \(first: layer1\.0\.conv1\.weight\)"),
        ("surplus", r"0 tensors missing, 1 unknown, 0 of another shape \(first: more\)"),
        ("shape", r"0 tensors missing, 0 unknown, 1 of another shape \(first: conv1\.weight\)"),
        ("resnet50", r"another architecture"),
    ],
)
def test_state_dict_of_another_architecture_is_refused(change: str, numbers: str) -> None:
    state = models.resnet18(weights=None).state_dict()
    if change == "missing":
        del state["layer1.0.conv1.weight"]
    elif change == "surplus":
        state["more"] = torch.zeros(1)
    elif change == "shape":
        state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    else:
        state = models.resnet50(weights=None).state_dict()
    model = RESNET18.network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=rf"w\.pth belongs to another architecture: .*{numbers}|{numbers}"):
        load_into(model, state, ignore=("fc.",), source="w.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
