"""The classifier of a comparison: which one, and its classes by name."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from wsss.comparison.judge import Judge, load_judge, match_classes
from wsss.config import ClassifierConfig, CompareConfig, ComparisonConfig
from wsss.errors import UserError


@pytest.fixture
def judge() -> Judge:
    return Judge(nn.Linear(2, 3), ("dog", "cat", "cow"), "sigmoid", "layer4", "a test", "")


def test_classes_are_matched_by_name_not_by_position(judge: Judge) -> None:
    assert match_classes(("cat", "horse", "dog"), judge) == {1: 1, 3: 0}


def test_a_classifier_of_other_classes_is_refused(judge: Judge) -> None:
    with pytest.raises(UserError, match="a test knows none of the data set's classes"):
        match_classes(("horse", "sheep"), judge)


def test_imagenet_weights_are_judged_by_softmax(tmp_path: Path) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    config = ComparisonConfig(
        classifier=ClassifierConfig(architecture="resnet18", weights=str(path)),
        compare=CompareConfig(classifier="imagenet"),
    )
    judge = load_judge(config)
    assert (judge.score, judge.layer, len(judge.names)) == ("softmax", "layer4", 1000)
    assert match_classes(("tench", "no such fish"), judge) == {1: 0}


def test_a_missing_classifier_is_named(tmp_path: Path) -> None:
    config = ComparisonConfig(output=str(tmp_path / "run"))
    with pytest.raises(
        UserError, match=r"there is no checkpoint .*run/classifier/last.ckpt; train one first"
    ):
        load_judge(config)
    other = replace(config, compare=CompareConfig(classifier=str(tmp_path / "my.ckpt")))
    with pytest.raises(UserError, match=r"there is no checkpoint .*my\.ckpt"):
        load_judge(other)
    finished = replace(config, compare=CompareConfig(classifier=str(tmp_path)))
    with pytest.raises(
        UserError, match=r"there is no checkpoint .*/classifier/last.ckpt; finish the training"
    ):
        load_judge(finished)
