"""The segmentation task: cross entropy with ignored pixels, mIoU, learning rates, checkpoints."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from wsss.config import SegmenterConfig
from wsss.tasks.segmentation import SegmentationTask, load_segmenter, new_task, pixel_cross_entropy

NAMES = ("background", "cat", "dog")


def brute_force(logits: Tensor, masks: Tensor) -> float:
    losses = []
    for image in range(len(masks)):
        for row in range(masks.shape[1]):
            for column in range(masks.shape[2]):
                label = int(masks[image, row, column])
                if label != 255:
                    values = logits[image, :, row, column].tolist()
                    losses.append(math.log(sum(math.exp(v) for v in values)) - values[label])
    return sum(losses) / len(losses)


def test_cross_entropy_is_the_mean_over_the_pixels_that_are_not_ignored() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    masks = torch.randint(0, 3, (2, 4, 5), generator=generator)
    masks[0, :3] = 255  # images of unequal weight: a mean of means would differ
    assert pixel_cross_entropy(logits, masks).item() == pytest.approx(brute_force(logits, masks), rel=1e-6)


def test_batch_of_ignored_pixels_gives_zero_and_no_gradient() -> None:
    logits = torch.randn(1, 3, 4, 5, requires_grad=True)
    loss = pixel_cross_entropy(logits, torch.full((1, 4, 5), 255))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad) == 0


def test_ignored_pixels_get_no_gradient() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    pixel_cross_entropy(logits, torch.tensor([[[0, 255], [1, 2]]])).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(1)[0] > 0).tolist() == [[True, False], [True, True]]


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
