"""ResNets with dilation, frozen parts, and weights from files: against torchvision."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from wsss.errors import UserError
from wsss.models import backbones
from wsss.models.backbones import (
    freeze_batchnorm,
    freeze_stages,
    load_into,
    load_weights,
    read_state_dict,
    resnet,
)


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


IMAGES = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("output_stride", "replace"), [(32, [False] * 3), (16, [False, False, True]), (8, [False, True, True])]
)
def test_bottleneck_network_equals_torchvisions_own_dilation(output_stride: int, replace: list[bool]) -> None:
    torch.manual_seed(0)
    peer = random_statistics(models.resnet50(weights=None, replace_stride_with_dilation=replace))
    own = resnet("resnet50", output_stride).eval()
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
    strided = random_statistics(resnet(architecture, 32)).double()
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    expected = features(strided, images)
    for output_stride, step in ((16, 2), (8, 4)):
        dilated = resnet(architecture, output_stride).eval().double()
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
    model = resnet(architecture, output_stride, small_images).eval()
    stride = output_stride // 2 if small_images else output_stride
    assert features(model, IMAGES).shape[-2:] == (64 // stride, 96 // stride)
    assert features(model, IMAGES, "layer2").shape[-2:] == ((16, 24) if small_images else (8, 12))


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("stages", range(6))
def test_freezing_stages_of_a_resnet_freezes_exactly_the_first_ones(stages: int) -> None:
    model = resnet("resnet18", 32)
    freeze_stages(model, stages)
    prefixes = [("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",)]
    frozen = tuple(prefix for group in prefixes[:stages] for prefix in group)
    names = {name for name, _ in model.named_parameters()}
    assert trainable(model) == {name for name in names if not name.startswith(frozen)}
    assert "fc.weight" in trainable(model)


def test_freezing_stages_of_vgg16_goes_up_to_each_pooling() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.device("meta"):
                self.features = models.vgg16(weights=None).features

    for stages, first in ((0, 0), (1, 5), (2, 10), (3, 17), (4, 24), (5, 31)):
        model = Bare()
        freeze_stages(model, stages)
        assert {int(name.split(".")[1]) for name in trainable(model)} == {
            index for index in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28) if index >= first
        }


def test_frozen_batchnorm_keeps_statistics_and_weights_through_a_training_step() -> None:
    torch.manual_seed(0)
    model = random_statistics(resnet("resnet18", 32)).train()
    freeze_batchnorm(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(IMAGES.repeat(2, 1, 1, 1)).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    norms = {name for name in before if "bn" in name or "downsample.1" in name}
    assert not changed & norms
    assert changed == set(before) - norms


# -- weights ---------------------------------------------------------------------------------------


def test_weights_none_is_no_state_dict() -> None:
    assert load_weights("none", "resnet18", "classifier.weights") is None


def test_weights_path_reads_torchvisions_state_dict(tmp_path: Path) -> None:
    state = models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "w.pth")
    found = load_weights(str(tmp_path / "w.pth"), "resnet18", "classifier.weights")
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
        load_weights("imagenet", "resnet34", "segmenter.weights")


def test_imagenet_is_the_download_of_the_first_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def give(url: str, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        asked.append(url)
        return {"a": torch.zeros(1)}

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", give)
    for name in backbones._IMAGENET:
        assert load_weights("imagenet", name, "x") == {"a": torch.zeros(1)}
    assert [url.rsplit("/", 1)[1].split("-")[0] for url in asked] == list(backbones._IMAGENET)
    assert "resnet50-0676ba61.pth" in asked[2]


def test_missing_weights_file_names_it_and_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--classifier\.weights: there is no file .*none\.pth.*`imagenet`"):
        load_weights(str(tmp_path / "none.pth"), "resnet18", "classifier.weights")


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
    model, state = resnet("resnet18", 32), models.resnet18(weights=None).state_dict()
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
    model = resnet("resnet18", 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=rf"w\.pth belongs to another architecture: .*{numbers}|{numbers}"):
        load_into(model, state, ignore=("fc.",), source="w.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
