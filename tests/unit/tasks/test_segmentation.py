"""The segmentation task: choice of the loss, mIoU, learning rates, checkpoints."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from wsss.config import SegmenterConfig
from wsss.tasks.losses import bootstrapped_cross_entropy, pixel_cross_entropy
from wsss.tasks.segmentation import SegmentationTask, load_segmenter, load_trained, new_task

NAMES = ("background", "cat", "dog")


def light(**changes: object) -> SegmenterConfig:
    return SegmenterConfig(**{"architecture": "light", "weights": "none", **changes})  # type: ignore[arg-type]


class Fixed(torch.nn.Module):
    """Predicts what the first channel of the image says."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(images[:, 0].long(), 3).permute(0, 3, 1, 2).float()


def test_validation_miou_comes_from_one_matrix_over_all_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    task = new_task(light(), NAMES)
    task.model = Fixed()  # type: ignore[assignment]
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.__setitem__(name, value))
    random = np.random.default_rng(0)
    for _epoch in range(2):  # the second does not remember the first
        pairs = []
        for size in ((4, 6), (7, 3), (5, 5)):
            truth = random.choice([0, 1, 2, 255], size)
            prediction = np.where(random.random(size) < 0.6, truth % 255, random.integers(0, 3, size))
            pairs.append((prediction, truth))
            image = torch.from_numpy(prediction).float().expand(1, 3, *size)
            task.validation_step((image, torch.from_numpy(truth.astype(np.uint8))[None]), 0)
        task.on_validation_epoch_end()
        predicted = np.concatenate([prediction[truth != 255] for prediction, truth in pairs])
        true = np.concatenate([truth[truth != 255] for _, truth in pairs])
        ious = [
            ((predicted == c) & (true == c)).sum() / ((predicted == c) | (true == c)).sum() for c in range(3)
        ]
        assert float(logged["val_mIoU"]) == pytest.approx(np.mean(ious), rel=1e-6)


def test_backbone_and_head_have_their_own_learning_rates() -> None:
    task = new_task(light(), NAMES)
    task._trainer = type("Stub", (), {"estimated_stepping_batches": 10})()  # type: ignore[assignment]
    slow, fast = task.configure_optimizers()["optimizer"].param_groups  # type: ignore[index]
    assert [id(p) for p in slow["params"]] == [id(p) for p in task.model.backbone.parameters()]
    assert [id(p) for p in fast["params"]] == [id(p) for p in task.model.head.parameters()]
    config = task.config.optimizer
    assert fast["initial_lr"] == pytest.approx(config.lr * config.head_factor)


def test_deeplabv2s_biases_learn_at_twenty_times_the_backbones_rate_without_decay() -> None:
    config = SegmenterConfig(architecture="deeplabv2_resnet50", weights="none")
    with torch.device("meta"):
        task = new_task(config, NAMES)
    task._trainer = type("Stub", (), {"estimated_stepping_batches": 10})()  # type: ignore[assignment]
    slow, fast, biases = task.configure_optimizers()["optimizer"].param_groups  # type: ignore[index]
    assert len(slow["params"]) == len(list(task.model.backbone.parameters()))
    head = dict(task.model.head.named_parameters())
    assert [id(p) for p in fast["params"]] == [id(head[f"classifiers.{i}.weight"]) for i in range(4)]
    assert [id(p) for p in biases["params"]] == [id(head[f"classifiers.{i}.bias"]) for i in range(4)]
    rates = [group["initial_lr"] / config.optimizer.lr for group in (slow, fast, biases)]
    assert rates == pytest.approx([1, 10, 20])
    assert (fast["weight_decay"], biases["weight_decay"]) == (config.optimizer.weight_decay, 0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, pixel_cross_entropy),
        ({"label_smoothing": 0.1}, pixel_cross_entropy),
        ({"loss": "bootstrap"}, bootstrapped_cross_entropy),
        ({"loss": "bootstrap", "bootstrap": "soft"}, partial(bootstrapped_cross_entropy, hard=False)),
    ],
)
def test_training_step_takes_the_configured_loss(
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    expected: Callable[..., Tensor],
) -> None:
    task = new_task(light(**changes), NAMES).eval()
    monkeypatch.setattr(task, "log", lambda *args, **_: None)
    images, masks = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    with torch.no_grad():
        found = task.training_step((images, masks), 0)
        smoothing = float(changes.get("label_smoothing", 0.0))  # type: ignore[arg-type]
        wanted = expected(task.model(images), masks, smoothing)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("changes", "frozen"),
    [({}, False), ({"weights": "imagenet"}, True), ({"freeze_batchnorm": True}, True)],
)
def test_batchnorm_of_the_backbone_alone_is_frozen(changes: dict[str, object], frozen: bool) -> None:
    task = SegmentationTask(
        {"architecture": "light", "weights": "none", **changes}, list(NAMES), pretrained=False
    )
    for call in range(2):
        if call:
            task.eval()
            task.train()
        norms = [m for m in task.model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert {norm.training for norm in norms} == {not frozen}
        assert {norm.weight.requires_grad for norm in norms} == {not frozen}
        own = [m for m in task.model.head.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert own
        assert all(norm.training and norm.weight.requires_grad for norm in own)


def test_segmenter_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    task = new_task(light(), NAMES)
    hyper = {**task.hparams, "config": {**task.hparams["config"], "weights": "gone.pth"}}
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": hyper}, tmp_path / "c.ckpt")
    network, names = load_segmenter(tmp_path / "c.ckpt")
    images = torch.randn(1, 3, 32, 48)
    assert names == NAMES
    assert not network.training
    assert torch.equal(network(images), task.model.eval()(images))


def test_checkpoint_of_a_training_with_ema_gives_the_mean_of_its_weights(tmp_path: Path) -> None:
    """As wsss wrote it while it had `segmenter.ema`, `confidence_weighted` and `loss: balanced`."""
    task = new_task(light(), NAMES)
    trained = {
        name: torch.rand_like(value.float()).to(value.dtype) for name, value in task.state_dict().items()
    }
    mean = {
        f"average.network.{name.removeprefix('model.')}": value for name, value in task.state_dict().items()
    }
    gone = {"ema": 0.99, "confidence_weighted": True, "loss": "balanced", "rounds": 2, "epochs": 7}
    hyper = {**task.hparams, "config": {**task.hparams["config"], **gone}}
    state = {**trained, **mean, "average.updates": torch.tensor(6)}
    torch.save({"state_dict": state, "hyper_parameters": hyper}, tmp_path / "c.ckpt")
    found = load_trained(tmp_path / "c.ckpt")
    images = torch.randn(1, 3, 32, 48)
    assert torch.equal(found.network(images), task.model.eval()(images))
    assert (found.config.epochs, found.config.loss) == (7, "cross_entropy")
