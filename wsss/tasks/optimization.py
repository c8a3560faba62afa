"""Optimiser and schedule, shared by both tasks."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from wsss.config import OptimizerConfig


def build_optimizer(
    backbone: Iterable[nn.Parameter],
    head: Iterable[nn.Parameter],
    config: OptimizerConfig,
    head_biases: Sequence[nn.Parameter] = (),
) -> Optimizer:
    """SGD or AdamW over the trainable parameters, the head with ``lr * head_factor``.

    ``head_biases`` learn at twice the head's rate and without weight decay, as in Caffe's recipes for DeepLab.
    """
    groups: list[dict[str, Any]] = [
        {"params": [p for p in backbone if p.requires_grad], "lr": config.lr},
        {"params": [p for p in head if p.requires_grad], "lr": config.lr * config.head_factor},
    ]
    if head_biases:
        fast = 2 * config.lr * config.head_factor
        groups.append({"params": list(head_biases), "lr": fast, "weight_decay": 0.0})
    if config.name == "adamw":
        return torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)


def poly_factor(step: int, steps: int, power: float, warmup: float) -> float:
    """Learning-rate factor at ``step`` of ``steps``.

    ``(1 - step / steps) ** power`` (DeepLab), multiplied by a linear ramp over the first
    ``warmup * steps`` steps.
    """
    ramp = min(1.0, (step + 1) / (warmup * steps + 1))
    return float(ramp * max(0.0, 1 - step / steps) ** power)


def build_schedule(optimizer: Optimizer, steps: int, config: OptimizerConfig) -> LambdaLR:
    """The poly schedule, to be stepped after every optimiser step."""
    return LambdaLR(optimizer, lambda step: poly_factor(step, steps, config.power, config.warmup))
