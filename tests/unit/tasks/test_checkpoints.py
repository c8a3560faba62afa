"""Configurations through checkpoints, and files that are no checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from wsss.config import (
    ClassifierConfig,
    OptimizerConfig,
    SaliencyConfig,
    SegmenterConfig,
    to_dict,
)
from wsss.errors import UserError
from wsss.tasks.checkpoints import parse_config, read_checkpoint, weights_digest

CLASSIFIER = ClassifierConfig(
    architecture="vgg16",
    long_side=(100, 200),
    frozen_stages=3,
    freeze_batchnorm=False,
    optimizer=OptimizerConfig(name="adamw", lr=0.5),
)


@pytest.mark.parametrize(
    "config",
    [
        CLASSIFIER,
        ClassifierConfig(),
        SegmenterConfig(scale=(0.3, 2.0), freeze_batchnorm=True),
        SaliencyConfig(scales=(1.0, 2.0), output_stride=8),
    ],
)
def test_configuration_survives_a_safe_checkpoint(tmp_path: Path, config: Any) -> None:
    torch.save(to_dict(config), tmp_path / "c.pt")
    values = torch.load(tmp_path / "c.pt", weights_only=True)
    assert parse_config(type(config), values) == config


def test_unknown_keys_are_dropped_and_missing_ones_take_their_defaults() -> None:
    values = {"kind": "classifier", "epochs": 9, "gone": 1, "optimizer": {"lr": 0.25, "gone": 2}}
    expected = replace(ClassifierConfig(), epochs=9, optimizer=OptimizerConfig(lr=0.25))
    assert parse_config(ClassifierConfig, values) == expected


def test_checkpoint_of_the_right_kind_is_read(tmp_path: Path) -> None:
    value = {"hyper_parameters": {"config": {"kind": "classifier"}}, "state_dict": {"a": torch.ones(2)}}
    torch.save(value, tmp_path / "c.ckpt")
    assert read_checkpoint(tmp_path / "c.ckpt", "classifier")["state_dict"]["a"].tolist() == [1, 1]


def test_missing_checkpoint_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint .*c\.ckpt; train one first \(`wsss run`\)"):
        read_checkpoint(tmp_path / "c.ckpt", "classifier")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 half"])
def test_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=r"c\.ckpt cannot be loaded as a checkpoint"):
        read_checkpoint(tmp_path / "c.ckpt", "classifier")


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


def test_checkpoint_with_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(
        {"hyper_parameters": {"config": {"kind": "segmenter"}}, "more": Hostile()}, tmp_path / "c.ckpt"
    )
    with pytest.raises(UserError, match=r"cannot be loaded as a checkpoint"):
        read_checkpoint(tmp_path / "c.ckpt", "segmenter")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"hyper_parameters": {"config": {"kind": "segmenter"}}}, "holds segmenter"),
        ({"hyper_parameters": {"lr": 0.1}}, "holds no wsss model"),
        ({"hyper_parameters": {"config": "other.yaml"}}, "holds no wsss model"),
        ({"hyper_parameters": None}, "holds no wsss model"),
        ({"conv1.weight": torch.zeros(1)}, "holds no wsss model"),
        ([1, 2], "holds no wsss model"),
    ],
)
def test_checkpoint_of_another_kind_is_refused(tmp_path: Path, value: Any, found: str) -> None:
    torch.save(value, tmp_path / "c.ckpt")
    with pytest.raises(UserError, match=rf"c\.ckpt {found}, but a wsss classifier checkpoint is needed"):
        read_checkpoint(tmp_path / "c.ckpt", "classifier")


def test_digest_changes_with_one_weight_and_with_nothing_else() -> None:
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    second.load_state_dict(first.state_dict())
    assert weights_digest(first) == weights_digest(second.train())
    with torch.no_grad():
        second.weight[1, 2] += 1e-6
    assert weights_digest(first) != weights_digest(second)
