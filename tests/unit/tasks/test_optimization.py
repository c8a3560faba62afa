"""Optimiser groups and the poly schedule against their formulas."""

from typing import Literal

import pytest
import torch
from torch import nn

from wsss.config import OptimizerConfig
from wsss.tasks.optimization import build_optimizer, build_schedule, poly_factor


@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
def test_poly_factor_is_deeplabs_rule(power: float) -> None:
    for step in range(11):
        assert poly_factor(step, 10, power, 0.0) == pytest.approx((1 - step / 10) ** power)
    assert poly_factor(12, 10, power, 0.0) == 0.0  # never complex or negative


def test_warmup_grows_linearly_and_then_leaves_the_rule_alone() -> None:
    ratio = [poly_factor(step, 100, 0.9, 0.1) / poly_factor(step, 100, 0.9, 0.0) for step in range(100)]
    assert ratio[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert ratio[10:] == pytest.approx([1.0] * 90)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_head_learns_faster_and_frozen_parameters_are_left_out(name: Literal["sgd", "adamw"]) -> None:
    backbone, head = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), nn.Linear(4, 5)
    backbone[0].requires_grad_(False)
    config = OptimizerConfig(name=name, lr=0.02, head_factor=5.0, momentum=0.8, weight_decay=0.03)
    optimizer = build_optimizer(backbone.parameters(), head.parameters(), config)
    slow, fast = optimizer.param_groups
    assert [id(p) for p in slow["params"]] == [id(p) for p in backbone[1].parameters()]
    assert [id(p) for p in fast["params"]] == [id(p) for p in head.parameters()]
    assert (slow["lr"], fast["lr"]) == pytest.approx((0.02, 0.1))
    assert slow["weight_decay"] == fast["weight_decay"] == 0.03
    if name == "sgd":
        assert isinstance(optimizer, torch.optim.SGD)
        assert slow["momentum"] == fast["momentum"] == 0.8
    else:
        assert isinstance(optimizer, torch.optim.AdamW)


def test_schedule_moves_both_groups_along_the_rule() -> None:
    layer, head = nn.Linear(1, 1), nn.Linear(1, 1)
    config = OptimizerConfig(lr=0.1, head_factor=10, power=0.9, warmup=0.2)
    optimizer = build_optimizer(layer.parameters(), head.parameters(), config)
    schedule = build_schedule(optimizer, 10, config)
    for step in range(10):
        factor = (1 - step / 10) ** 0.9 * min(1, (step + 1) / 3)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * factor, factor])
        optimizer.step()
        schedule.step()
