"""Cascading randomisation: which weights change, in which order, and what is computed once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from wsss.comparison.sanity import cascade, correlations, randomization_stages
from wsss.models.vgg import VGG16


def changed(before: dict[str, Tensor], after: nn.Module) -> set[str]:
    return {name for name, value in after.state_dict().items() if not torch.equal(value, before[name])}


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # all ones have no deviation: they would stay
            nn.init.normal_(module.weight, 1, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def test_stages_of_a_resnet_go_from_the_head_to_the_stem(resnet: nn.Module) -> None:
    stages = randomization_stages(resnet)
    assert [stage.name for stage in stages] == ["fc", "layer4", "layer3", "layer2", "layer1", "conv1"]
    assert stages[-1].modules == (resnet.conv1, resnet.bn1)


def test_every_weight_of_a_vgg_is_in_one_stage() -> None:
    with torch.device("meta"):
        own, theirs = VGG16(3), torchvision.models.vgg16_bn()
    names = [stage.name for stage in randomization_stages(own)]
    assert names[:4] == ["fc8", "fc7", "fc6", "features.28"]
    assert (names[-1], len(names)) == ("features.0", 16)
    stages = randomization_stages(theirs)
    assert [stage.name for stage in stages][:4] == [
        "classifier.6",
        "classifier.3",
        "classifier.0",
        "features.40",
    ]
    weights = [weight for stage in stages for module in stage.modules for weight in module.parameters()]
    assert {id(weight) for weight in weights} == {id(weight) for weight in theirs.parameters()}
    assert len(weights) == len(list(theirs.parameters()))


def test_the_cascade_adds_one_stage_after_the_other_to_a_copy(resnet: nn.Module) -> None:
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    learned = {name for name, _ in resnet.named_parameters()}
    prefixes: tuple[str, ...] = ()
    for stage, broken in cascade(resnet, seed=0):
        prefixes += (stage, "bn1.") if stage == "conv1" else (f"{stage}.",)
        assert changed(before, broken) == {name for name in learned if name.startswith(prefixes)}
    assert not changed(before, resnet)


def test_new_weights_keep_mean_and_deviation_and_follow_the_seed(resnet: nn.Module) -> None:
    def last(seed: int) -> Tensor:
        *_, (_, broken) = cascade(resnet, seed)
        return broken.layer3[0].conv1.weight.detach().clone()

    first, trained = last(0), resnet.layer3[0].conv1.weight.detach()
    assert torch.equal(first, last(0))
    assert not torch.equal(first, last(1))
    assert float(first.std()) == pytest.approx(float(trained.std()), rel=0.02)
    assert float(first.mean()) == pytest.approx(float(trained.mean()), abs=0.001)


def test_maps_that_know_the_weights_lose_and_others_keep_their_correlation(
    resnet: nn.Module, tmp_path: Path
) -> None:
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    calls, ticks = [], []

    def edges(model: nn.Module, index: int) -> Tensor:
        calls.append(index)
        return images[index].diff(dim=2).abs()

    def learned(model: nn.Module, index: int) -> Tensor:
        return model.fc.weight.detach()[:, :, None].unflatten(1, (16, 32))[..., 0] * (index + 1)

    def files(name: str) -> Callable[[str], Path]:
        return lambda stage: tmp_path / name / f"{stage}.json"

    def check() -> dict[str, list[tuple[float, float]]]:
        found = correlations(
            resnet, [edges, learned], [files("edges"), files("learned")], ["a", "b"], 2, 0, ticks.append
        )
        return {stage: list(values) for stage, values in found.items()}

    found = check()
    assert [values[0] for values in found.values()] == [pytest.approx((1, 0))] * 6
    assert all(abs(values[1][0]) < 0.1 for values in found.values())
    assert len(calls) == 2 + 6 * 2
    stored = json.loads((tmp_path / "learned" / "fc.json").read_text())
    assert stored["correlation"] == found["fc"][1][0]
    assert check() == found
    assert len(calls) == 14  # all of it was stored
    assert sum(ticks) == 2 * 2 * 6 * 2


def test_flat_maps_are_counted(resnet: nn.Module, tmp_path: Path) -> None:
    def fragile(model: nn.Module, index: int) -> Tensor:
        return torch.rand(2, 3, 3) if model is resnet else torch.stack((torch.zeros(3, 3), torch.rand(3, 3)))

    found = correlations(resnet, [fragile], [lambda stage: tmp_path / stage], ["x"], 1, 0, lambda done: None)
    assert found["conv1"][0].flat == 0.5
