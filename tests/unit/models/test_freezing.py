"""Parts that training leaves as they are."""

import pytest
import torch
from torch import nn

from wsss.models.backbone import BACKBONES
from wsss.models.freezing import freeze_batchnorm, freeze_stages

IMAGES = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("stages", range(6))
def test_freezing_stages_of_a_resnet_freezes_exactly_the_first_ones(stages: int) -> None:
    model = BACKBONES["resnet18"].network()
    freeze_stages(model, BACKBONES["resnet18"].layout, stages)
    prefixes = [("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",)]
    frozen = tuple(prefix for group in prefixes[:stages] for prefix in group)
    names = {name for name, _ in model.named_parameters()}
    assert trainable(model) == {name for name in names if not name.startswith(frozen)}
    assert "fc.weight" in trainable(model)


def test_freezing_stages_of_vgg16_goes_up_to_each_pooling() -> None:
    backbone = BACKBONES["vgg16"]
    for stages, first in ((0, 0), (1, 5), (2, 10), (3, 17), (4, 24), (5, 31)):
        with torch.device("meta"):
            model = backbone.classifier(2, 32, False)
        freeze_stages(model, backbone.classifier_layout, stages)
        convolutions = {int(name.split(".")[1]) for name in trainable(model) if name.startswith("features.")}
        assert convolutions == {
            index for index in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28) if index >= first
        }
        assert {"fc6.weight", "fc7.weight", "fc8.weight"} <= trainable(model)


def test_frozen_batchnorm_keeps_statistics_and_weights_through_a_training_step() -> None:
    torch.manual_seed(0)
    model = BACKBONES["resnet18"].network().train()
    freeze_batchnorm(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(IMAGES.repeat(2, 1, 1, 1)).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    norms = {name for name in before if "bn" in name or "downsample.1" in name}
    assert not changed & norms
    assert changed == set(before) - norms
