"""The classification task: loss, average precision, learning rates, checkpoints."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wsss.config import ClassifierConfig, OptimizerConfig
from wsss.tasks.classification import ClassificationTask, load_classifier, new_task

CLASSES = ("cat", "dog", "bird")
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Scores(torch.nn.Module):
    """Gives the scores that are encoded in the images."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0]


def settings(**changes: object) -> ClassifierConfig:
    return ClassifierConfig(**{"architecture": "resnet18", "weights": "none", **changes})  # type: ignore[arg-type]


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> ClassificationTask:
    made = new_task(settings(), CLASSES)
    made.logged = {}
    monkeypatch.setattr(made, "log", lambda name, value, **_: made.logged.__setitem__(name, value))
    return made


def test_loss_is_binary_cross_entropy_over_all_classes(task: ClassificationTask) -> None:
    task.eval()
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0]])
    loss = task.training_step((IMAGES, labels), 0)
    logits = task(IMAGES).detach()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    by_hand = [
        math.log1p(math.exp(-x if y else x))
        for x, y in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True)
    ]
    assert loss.item() == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
    assert task.logged["train_loss"] is loss


def brute_force_ap(scores: list[float], truth: list[int]) -> float:
    """Mean over the positives of the precision at their rank (no ties)."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    hits, total = 0, 0.0
    for rank, index in enumerate(order, start=1):
        if truth[index]:
            hits += 1
            total += hits / rank
    return total / hits


def test_average_precision_is_that_of_all_validation_photos(task: ClassificationTask) -> None:
    task.model = Scores()
    generator = torch.Generator().manual_seed(1)
    scores, truth = torch.randn(20, 3, generator=generator), torch.rand(20, 3, generator=generator) < 0.4
    truth[:, 2] = False  # a class that does not occur
    for first, last in ((0, 1), (1, 8), (8, 20)):
        images = scores[first:last, :, None, None].expand(-1, -1, 4, 4)
        task.validation_step((images, truth[first:last].float()), 0)
    task.on_validation_epoch_end()
    expected = [brute_force_ap(scores[:, c].tolist(), truth[:, c].tolist()) for c in range(2)]
    assert task.ap_per_class is not None
    assert task.ap_per_class[:2] == pytest.approx(expected)
    assert task.ap_per_class[2] is None
    assert float(task.logged["val_mAP"]) == pytest.approx(sum(expected) / 2)


def test_average_precision_starts_afresh_every_epoch(task: ClassificationTask) -> None:
    task.model = Scores()
    labels = torch.tensor([[1.0, 1, 1], [0, 0, 0]])
    for right in (False, True):
        scores = labels if right else 1 - labels
        task.validation_step((scores[:, :, None, None], labels), 0)
        task.on_validation_epoch_end()
        assert task.ap_per_class == pytest.approx([1.0] * 3 if right else [0.5] * 3)


def test_a_single_class_has_its_average_precision_too(monkeypatch: pytest.MonkeyPatch) -> None:
    task = new_task(settings(), ("cat",))
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.__setitem__(name, value))
    task.model = Scores()
    scores, truth = [0.9, 0.1, 0.5, 0.3], [1, 0, 0, 1]
    images = torch.tensor(scores)[:, None, None, None].expand(-1, 1, 4, 4)
    task.validation_step((images, torch.tensor(truth)[:, None].float()), 0)
    task.on_validation_epoch_end()
    assert task.ap_per_class == pytest.approx([brute_force_ap(scores, truth)])
    assert float(logged["val_mAP"]) == pytest.approx(brute_force_ap(scores, truth))


def test_validation_without_any_label_gives_zero(task: ClassificationTask) -> None:
    task.model = Scores()
    task.validation_step((torch.randn(2, 3, 4, 4), torch.zeros(2, 3)), 0)
    task.on_validation_epoch_end()
    assert task.ap_per_class == [None] * 3
    assert float(task.logged["val_mAP"]) == 0


def test_the_head_has_its_own_learning_rate(task: ClassificationTask) -> None:
    task.config = settings(optimizer=OptimizerConfig(lr=0.1, head_factor=7.0))
    task._trainer = type("Stub", (), {"estimated_stepping_batches": 10})()
    result = task.configure_optimizers()
    slow, fast = result["optimizer"].param_groups  # type: ignore[index]
    assert [id(p) for p in fast["params"]] == [id(task.model.fc.weight)]
    assert len(slow["params"]) == len(list(task.model.parameters())) - 1
    assert (slow["initial_lr"], fast["initial_lr"]) == pytest.approx((0.1, 0.7))
    assert result["lr_scheduler"]["interval"] == "step"  # type: ignore[index]


@pytest.mark.parametrize(
    ("changes", "batchnorm", "stages"),
    [
        ({}, False, 0),
        ({"weights": "file"}, True, 2),
        ({"freeze_batchnorm": True}, True, 0),
        ({"weights": "file", "freeze_batchnorm": False, "frozen_stages": 0}, False, 0),
        ({"frozen_stages": 3}, False, 3),
    ],
)
def test_pretrained_networks_keep_batchnorm_and_first_stages_unless_told_otherwise(
    tmp_path: Path, changes: dict[str, object], batchnorm: bool, stages: int
) -> None:
    made = ClassificationTask(
        {"architecture": "resnet18", "weights": "none", **changes}, ["a", "b"], pretrained=False
    )
    frozen = {name.split(".")[0] for name, p in made.model.named_parameters() if not p.requires_grad}
    convolutions = {
        name.split(".")[0]
        for name, p in made.model.named_parameters()
        if not p.requires_grad and "bn" not in name and "downsample.1" not in name
    }
    assert convolutions == {name for name in ("conv1", "layer1", "layer2")[:stages]}
    assert ("layer4" in frozen) == batchnorm
    for module in made.modules():  # the mode that Lightning finds, without anybody calling train()
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.training != batchnorm
    made.eval()
    made.train()
    assert made.model.bn1.training != batchnorm


def test_classifier_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    config = settings(output_stride=32, weights="gone.pth", long_side=(10, 20))
    made = ClassificationTask(
        {"kind": "classifier", **new_task(settings(output_stride=32), CLASSES).hparams["config"]},
        list(CLASSES),
    )
    hyper = dict(made.hparams)
    hyper["config"] = {**hyper["config"], "weights": config.weights, "long_side": [10, 20]}
    torch.save({"state_dict": made.state_dict(), "hyper_parameters": hyper}, tmp_path / "c.ckpt")
    network, classes, found = load_classifier(tmp_path / "c.ckpt")
    assert classes == CLASSES
    assert found == config
    assert not network.training
    assert torch.equal(network(IMAGES), made.model.eval()(IMAGES))
