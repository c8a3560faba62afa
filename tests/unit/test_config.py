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
    CompareConfig,
    Config,
    DataConfig,
    EvaluateConfig,
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
    build_method(config.saliency)


def test_every_part_is_frozen() -> None:
    def check(part: Any) -> None:
        with pytest.raises(AttributeError):
            setattr(part, fields(part)[0].name, None)
        for field in fields(part):
            if is_dataclass(value := getattr(part, field.name)):
                check(value)

    check(Config())


SECTIONS = {
    "classifier": ClassifierConfig,
    "compare": CompareConfig,
    "data": DataConfig,
    "evaluate": EvaluateConfig,
    "extend": ExtendConfig,
    "optimizer": OptimizerConfig,
    "runtime": RuntimeConfig,
    "saliency": SaliencyConfig,
    "segmenter": SegmenterConfig,
}


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("classifier", {"epochs": 0}, "classifier.epochs is 0, but must be at least 1"),
        ("classifier", {"batch_size": 0}, "classifier.batch_size is 0"),
        ("classifier", {"crop": 16}, "classifier.crop is 16, but must be at least 32"),
        ("classifier", {"frozen_stages": -1}, "classifier.frozen_stages is -1, but must be at least 0"),
        ("classifier", {"color_jitter": float("nan")}, "classifier.color_jitter is nan"),
        ("classifier", {"long_side": (9, 8)}, "classifier.long_side is [9, 8], but must be [low, high]"),
        ("compare", {"images": -1}, "compare.images is -1, but must be at least 0"),
        ("compare", {"batch_size": 0}, "compare.batch_size is 0, but must be at least 1"),
        ("data", {"limit": 0}, "data.limit is 0, but must be at least 1, or null for all photos"),
        ("data", {"long_side": 8}, "data.long_side is 8, but must be at least 32 pixels"),
        ("evaluate", {"oracle_images": -1}, "evaluate.oracle_images is -1, but must be at least 0"),
        ("evaluate", {"scales": ()}, "evaluate.scales is empty; give at least one scale"),
        ("extend", {"radius": -1}, "extend.radius is -1, but must be at least 1"),
        ("extend", {"steps": -1}, "extend.steps is -1"),
        ("extend", {"power": 0.0}, "extend.power is 0.0, but must be above 0"),
        ("extend", {"low": 0.5}, "extend.low is 0.5 and extend.high is 0.35, but 0 <= low <= high is needed"),
        ("optimizer", {"lr": 0.0}, "optimizer.lr is 0.0, but must be above 0"),
        ("optimizer", {"lr": float("nan")}, "optimizer.lr is nan"),
        ("optimizer", {"head_factor": -1.0}, "optimizer.head_factor is -1.0"),
        ("optimizer", {"momentum": -0.1}, "optimizer.momentum is -0.1, but must be at least 0"),
        ("optimizer", {"weight_decay": -1.0}, "optimizer.weight_decay is -1.0"),
        ("optimizer", {"power": -0.9}, "optimizer.power is -0.9"),
        ("optimizer", {"warmup": 1.0}, "optimizer.warmup is 1.0, but must be in [0, 1)"),
        ("runtime", {"devices": 0}, "runtime.devices is 0, but must be at least 1"),
        ("runtime", {"workers": -1}, "runtime.workers is -1, but must be at least 0"),
        ("saliency", {"batch_size": 0}, "saliency.batch_size is 0"),
        ("saliency", {"scales": ()}, "saliency.scales is empty; give at least one scale"),
        ("saliency", {"scales": (1.0, 0.0)}, "saliency.scales is [1.0, 0.0], but every scale"),
        ("segmenter", {"epochs": -1}, "segmenter.epochs is -1"),
        ("segmenter", {"batch_size": 0}, "segmenter.batch_size is 0"),
        ("segmenter", {"crop": 1}, "segmenter.crop is 1"),
        ("segmenter", {"scale": (0.0, 1.0)}, "segmenter.scale is [0, 1], but must be [low, high]"),
        ("segmenter", {"label_smoothing": 1.0}, "segmenter.label_smoothing is 1.0, but must be in [0, 1)"),
    ],
)
def test_impossible_values_are_refused_by_name_when_a_section_is_made(
    section: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        SECTIONS[section](**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"output": ""}, "output is empty; give the run directory"),
        ({"seed": -1}, "seed is -1, but must be in 0..1000000000"),
        ({"seed": 3 * 10**9}, "seed is 3000000000, but must be in 0..1000000000"),
        (
            {"runtime": RuntimeConfig(devices=3)},
            "classifier.batch_size is 16, which cannot be split over 3 devices (runtime.devices); use a multiple",
        ),
        (
            {"runtime": RuntimeConfig(devices=16)},
            "segmenter.batch_size is 8, which cannot be split over 16 devices",
        ),
    ],
)
def test_impossible_values_of_the_whole_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        replace(Config(), **values)


MOST_LEAVES = 106


def test_the_configuration_stays_small() -> None:
    def count(part: Any) -> int:
        values = [getattr(part, field.name) for field in fields(part)]
        return sum(count(value) if is_dataclass(value) else 1 for value in values)

    assert count(Config()) <= MOST_LEAVES


def test_the_largest_seed_is_one_that_torch_takes() -> None:
    torch.manual_seed((MOST_SEED * modules._AUGMENT + 10**4) * 1_000_033 + 10**6)
    torch.manual_seed(MOST_SEED * modules._SHUFFLE + 10**4)
    np.random.default_rng(MOST_SEED)


def test_networks_of_the_extra_are_named_with_a_prefix() -> None:
    assert SegmenterConfig(architecture="smp:Unet").architecture == "smp:Unet"
