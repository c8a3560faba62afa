"""The configuration tree: defaults, checks, plain dictionaries."""

import json
import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from wsss.config import (
    MOST_SEED,
    ClassifierConfig,
    Config,
    DataConfig,
    ExtendConfig,
    OptimizerConfig,
    RuntimeConfig,
    SaliencyConfig,
    SegmenterConfig,
    to_dict,
)
from wsss.data import modules
from wsss.errors import UserError
from wsss.saliency import METHODS
from wsss.stages.saliency import build_method
from wsss.tasks.checkpoints import parse_config


def test_plain_dictionary_survives_json_and_becomes_the_same_configuration() -> None:
    config = Config(saliency=SaliencyConfig(scales=(1.0, 1.5)), output="runs/x", seed=3)
    plain = to_dict(config)
    assert json.loads(json.dumps(plain)) == plain
    assert parse_config(Config, plain) == config


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    return [value]


def test_plain_dictionary_has_no_tuples() -> None:
    assert not [leaf for leaf in leaves(to_dict(Config())) if isinstance(leaf, tuple)]
    assert to_dict(Config())["classifier"]["long_side"] == [320, 640]


def test_every_default_is_accepted_by_the_stage_that_reads_it() -> None:
    config = Config()
    assert config.saliency.method in METHODS
    build_method(config.saliency, config.classifier.architecture)


def test_every_part_is_frozen() -> None:
    def check(part: Any) -> None:
        with pytest.raises(AttributeError):
            setattr(part, fields(part)[0].name, None)
        for field in fields(part):
            if is_dataclass(value := getattr(part, field.name)):
                check(value)

    check(Config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier": ClassifierConfig(epochs=0)}, "classifier.epochs is 0, but must be at least 1"),
        ({"classifier": ClassifierConfig(batch_size=0)}, "classifier.batch_size is 0"),
        ({"classifier": ClassifierConfig(crop=16)}, "classifier.crop is 16, but must be at least 32"),
        ({"segmenter": SegmenterConfig(epochs=-1)}, "segmenter.epochs is -1"),
        ({"segmenter": SegmenterConfig(batch_size=0)}, "segmenter.batch_size is 0"),
        ({"segmenter": SegmenterConfig(crop=1)}, "segmenter.crop is 1"),
        ({"saliency": SaliencyConfig(batch_size=0)}, "saliency.batch_size is 0"),
        ({"saliency": SaliencyConfig(scales=())}, "saliency.scales is empty; give at least one scale"),
        ({"runtime": RuntimeConfig(devices=0)}, "runtime.devices is 0"),
        ({"output": ""}, "output is empty; give the run directory"),
        ({"saliency": SaliencyConfig(scales=(1.0, 0.0))}, "saliency.scales is [1.0, 0.0], but every scale"),
        (
            {"classifier": ClassifierConfig(long_side=(9, 8))},
            "classifier.long_side is [9, 8], but must be [low, high]",
        ),
        (
            {"segmenter": SegmenterConfig(scale=(0.0, 1.0))},
            "segmenter.scale is [0, 1], but must be [low, high]",
        ),
        ({"data": DataConfig(long_side=8)}, "data.long_side is 8, but must be at least 32 pixels"),
        ({"seed": -1}, "seed is -1, but must be in 0..1000000000"),
        ({"seed": 3 * 10**9}, "seed is 3000000000, but must be in 0..1000000000"),
        ({"extend": ExtendConfig(radius=-1)}, "extend.radius is -1, but must be at least 1"),
        ({"extend": ExtendConfig(steps=-1)}, "extend.steps is -1"),
        ({"extend": ExtendConfig(power=0.0)}, "extend.power is 0.0, but must be above 0"),
        ({"extend": ExtendConfig(low=0.5)}, "extend.low is 0.5 and extend.high 0.35"),
    ],
)
def test_impossible_values_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        replace(Config(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_smoothing": 1.0}, r"segmenter.label_smoothing is 1.0, but must be in \[0, 1\)"),
    ],
)
def test_segmenter_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SegmenterConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, r"optimizer.lr is 0.0, but must be above 0"),
        ({"lr": float("nan")}, r"optimizer.lr is nan"),
        ({"head_factor": -1.0}, r"optimizer.head_factor is -1.0"),
        ({"momentum": -0.1}, r"optimizer.momentum is -0.1, but must be at least 0"),
        ({"weight_decay": -1.0}, r"optimizer.weight_decay is -1.0"),
        ({"power": -0.9}, r"optimizer.power is -0.9"),
        ({"warmup": 1.0}, r"optimizer.warmup is 1.0, but must be in \[0, 1\)"),
    ],
)
def test_optimiser_settings_that_mean_nothing_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**changes)


def test_the_largest_seed_is_one_that_torch_takes() -> None:
    torch.manual_seed((MOST_SEED * modules._AUGMENT + 10**4) * 1_000_033 + 10**6)
    torch.manual_seed(MOST_SEED * modules._SHUFFLE + 10**4)
    np.random.default_rng(MOST_SEED)


def test_networks_of_the_extra_are_named_with_a_prefix() -> None:
    assert SegmenterConfig(architecture="smp:Unet").architecture == "smp:Unet"


def test_a_dry_run_needs_a_photo() -> None:
    with pytest.raises(UserError, match=r"data.limit is 0, but must be at least 1, or null for all photos"):
        replace(Config(), data=DataConfig(limit=0))
