"""What both tasks share: hyper-parameters, checkpoints, and numbers that are none."""

from pathlib import Path

import pytest
import torch

from wsss.config import ClassifierConfig, SegmenterConfig
from wsss.errors import UserError
from wsss.tasks import classification, segmentation
from wsss.tasks.base import BaseTask, check_finite


def tasks() -> list[BaseTask]:
    return [
        classification.new_task(ClassifierConfig(architecture="resnet18", weights="none"), ("cat", "dog")),
        segmentation.new_task(
            SegmenterConfig(architecture="light", weights="none"), ("background", "cat"), long_side=200
        ),
    ]


def test_a_task_comes_back_from_its_checkpoint_with_weights_and_hyper_parameters(tmp_path: Path) -> None:
    for task in tasks():
        path = tmp_path / f"{task.kind}.ckpt"
        torch.save({"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}, path)
        found = type(task).from_checkpoint(path, epochs=77)
        assert found.config.epochs == 77
        assert dict(found.hparams) == {
            **task.hparams,
            "config": {**task.hparams["config"], "epochs": 77},
        }
        state = found.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in task.state_dict().items())
        with pytest.raises(UserError, match=rf"holds {task.kind}, but a wsss \w+ checkpoint is needed"):
            next(other for other in tasks() if other.kind != task.kind).from_checkpoint(path)


def test_scores_that_are_no_numbers_name_the_learning_rate() -> None:
    for task in tasks():
        torch.nn.init.constant_(next(task.model.parameters()), float("nan"))
        with pytest.raises(
            UserError, match=rf"the training of the {task.kind} diverged: .*--{task.kind}\.optim"
        ):
            task.eval().scores(torch.randn(1, 3, 32, 32))
    check_finite(torch.zeros(3), "its loss is", "classifier")
    with pytest.raises(UserError, match="diverged: its loss is infinite or not a number; lower --segmenter"):
        check_finite(torch.tensor([0.0, float("inf")]), "its loss is", "segmenter")
