"""Fitting: continued equals uninterrupted, checkpoints are safe and written whole, BatchNorm stays frozen."""

import csv
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wsss.config import ClassifierConfig, OptimizerConfig, RuntimeConfig, SegmenterConfig
from wsss.data.dataset import Record
from wsss.data.files import write_mask
from wsss.data.modules import (
    ClassificationData,
    LabelledPhotos,
    SegmentationData,
    TrueMasks,
    train_loader,
)
from wsss.data.transforms import RandomLongSide, RandomScale, TrainTransform
from wsss.errors import UserError
from wsss.models.segmenter import Segmenter
from wsss.tasks import classification, segmentation
from wsss.tasks import fit as fitting
from wsss.tasks.fit import AtomicCheckpoints, fit

CPU = RuntimeConfig(accelerator="cpu", precision="float32", workers=0, progress=False)
CLASSES = ("cat", "dog")
SETTINGS = ClassifierConfig(
    architecture="resnet18",
    weights="none",
    output_stride=32,
    optimizer=OptimizerConfig(lr=0.01, head_factor=1.0),
)
Weights = dict[str, Tensor]


class Interrupted(Exception):
    """Stands for whatever ends a process."""


class StopAfter(Callback):
    """Raises when the given number of epochs is done and written."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epochs:
            raise Interrupted


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Ten photos of 40x36 noise; photos with label 2 are brighter on the right."""
    random = np.random.default_rng(0)
    found = []
    for index in range(10):
        pixels = random.integers(0, 120, (36, 40, 3), dtype=np.uint8)
        labels = ((1,), (2,), (1, 2))[index % 3]
        if 2 in labels:
            pixels[:, 20:] += 100
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        mask = np.zeros((36, 40), np.uint8)
        mask[:, 20:] = labels[-1]
        write_mask(tmp_path / "masks" / f"{index}.png", mask)
        found.append(Record(str(index), tmp_path / f"{index}.png", labels, tmp_path / f"masks/{index}.png"))
    return found


def train_classifier(
    records: list[Record],
    folder: Path,
    epochs: int,
    settings: ClassifierConfig = SETTINGS,
    val_every: int = 1,
    val: bool = True,
    workers: int = 0,
) -> classification.ClassificationTask:
    """A fresh task with fixed initial weights, dropout in front of its head, fitted in ``folder``."""
    torch.manual_seed(0)
    task = classification.new_task(settings, CLASSES)
    task.model.fc = nn.Sequential(nn.Dropout(0.5), task.model.fc)
    data = ClassificationData(
        records, len(CLASSES), TrainTransform(RandomLongSide(30, 48), 32, color_jitter=0.3), seed=7
    )
    loader = DataLoader(LabelledPhotos(records[:4], len(CLASSES), 40), batch_size=1) if val else None
    fit(
        task,
        train_loader(data, 4, seed=7, workers=workers),
        loader,
        folder,
        epochs=epochs,
        monitor=("val_mAP", "max"),
        config=CPU,
        seed=7,
        val_every=val_every,
    )
    return task


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").open()))


def weights(path: Path) -> Weights:
    state: Weights = torch.load(path, weights_only=True)["state_dict"]
    return state


def with_callback(monkeypatch: pytest.MonkeyPatch, callback: Callback) -> None:
    real = fitting._trainer

    def extended(config: RuntimeConfig, callbacks: list[Callback], bar: bool, **arguments: Any) -> Trainer:
        return real(config, [*callbacks, callback], bar, **arguments)

    monkeypatch.setattr(fitting, "_trainer", extended)


@pytest.mark.parametrize(("done", "workers"), [(1, 0), (3, 0), (1, 1)])
def test_interrupted_and_continued_training_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch, done: int, workers: int
) -> None:
    """Also with worker processes, which fetch the first photos before Lightning sets the epoch."""
    whole = train_classifier(records, tmp_path / "whole", epochs=4)
    with monkeypatch.context() as patch:
        with_callback(patch, StopAfter(done))
        with pytest.raises(Interrupted):
            train_classifier(records, tmp_path / "parts", epochs=4, workers=workers)
    assert [row["epoch"] for row in rows(tmp_path / "parts")] == [str(i + 1) for i in range(done)]
    continued = train_classifier(records, tmp_path / "parts", epochs=4, workers=workers)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, continued.state_dict()[name]), name
    for name in ("metrics.csv",):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()
    for name in ("last.ckpt", "best.ckpt"):
        expected, found = weights(tmp_path / "whole" / name), weights(tmp_path / "parts" / name)
        assert all(torch.equal(expected[key], found[key]) for key in expected), name


def test_epochs_differ_from_each_other(tmp_path: Path, records: list[Record]) -> None:
    """Otherwise the test above could not see a continuation that repeats the first epoch."""
    train_classifier(records, tmp_path / "one", epochs=2)
    losses = [row["train_loss"] for row in rows(tmp_path / "one")]
    assert len(set(losses)) == 2


def test_training_leaves_two_safe_checkpoints_and_a_row_an_epoch(
    tmp_path: Path, records: list[Record]
) -> None:
    task = train_classifier(records, tmp_path / "c", epochs=2)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "metrics.csv",
    ]
    table = rows(tmp_path / "c")
    assert [row["epoch"] for row in table] == ["1", "2"]
    assert set(table[0]) == {"epoch", "train_loss", "val_mAP"}
    last = weights(tmp_path / "c" / "last.ckpt")
    assert all(torch.equal(value, last[name]) for name, value in task.state_dict().items())
    checkpoint = torch.load(tmp_path / "c" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["config"]["kind"] == "classifier"
    assert checkpoint["hyper_parameters"]["classes"] == list(CLASSES)


def test_best_checkpoint_has_the_best_monitored_value(tmp_path: Path, records: list[Record]) -> None:
    train_classifier(records, tmp_path / "c", epochs=3, val=False)
    losses = [float(row["train_loss"]) for row in rows(tmp_path / "c")]
    assert torch.load(tmp_path / "c" / "best.ckpt", weights_only=True)["epoch"] == int(np.argmin(losses))


@pytest.mark.usefixtures("tiny")
def test_best_checkpoint_has_the_largest_value_of_a_measure_of_quality(
    tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scripted(task: LightningModule) -> None:
        task.log("val_mIoU", torch.tensor([0.2, 0.9, 0.5][task.current_epoch]))

    monkeypatch.setattr(segmentation.SegmentationTask, "on_validation_epoch_end", scripted)
    train_segmenter(records, tmp_path / "s")
    assert torch.load(tmp_path / "s" / "best.ckpt", weights_only=True)["epoch"] == 1


@pytest.mark.usefixtures("tiny")
def test_weights_that_diverged_replace_no_checkpoint(
    tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = segmentation.SegmentationTask.loss

    def diverging(task: segmentation.SegmentationTask, logits: Tensor, masks: Tensor) -> Tensor:
        return real(task, logits, masks) * (1 if task.current_epoch == 0 else float("nan"))

    monkeypatch.setattr(segmentation.SegmentationTask, "loss", diverging)
    monkeypatch.setattr(
        segmentation.SegmentationTask, "scores", lambda task, images: task(images)
    )  # unchecked
    with pytest.raises(UserError, match="its loss in epoch 2 is infinite or not a number"):
        train_segmenter(records, tmp_path / "s")
    last = torch.load(tmp_path / "s" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 0
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())


@pytest.mark.usefixtures("tiny")
def test_a_training_inside_a_slurm_job_starts_its_own_processes(
    tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would take the four tasks of the job for its own, and refuse."""
    job = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "here"}
    for name, value in (job | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}).items():
        monkeypatch.setenv(name, value)
    train_segmenter(records, tmp_path / "s")
    assert (tmp_path / "s" / "last.ckpt").is_file()


def test_validation_computes_as_configured_on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[RuntimeConfig] = []

    def caught(config: RuntimeConfig, *_: Any, alone: bool) -> Trainer:
        assert alone
        configs.append(config)
        raise Interrupted

    monkeypatch.setattr(fitting, "_trainer", caught)
    with pytest.raises(Interrupted):
        fitting.validate(LightningModule(), DataLoader([]), RuntimeConfig("cpu", devices=4, precision="bf16"))
    assert configs == [RuntimeConfig("cpu", devices=4, precision="bf16")]


class Draws(Callback):
    """What torch draws in the first step of each epoch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self.values.append(float(torch.rand(())))


@pytest.mark.usefixtures("tiny")
def test_every_epoch_of_every_seed_draws_other_dropout(
    tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = Draws()
    with_callback(monkeypatch, draws)
    for seed in (0, 1):
        train_segmenter(records, tmp_path / str(seed), seed=seed)
    assert len(draws.values) == len(set(draws.values)) == 6


def test_finished_training_is_not_trained_again(tmp_path: Path, records: list[Record]) -> None:
    first = train_classifier(records, tmp_path / "c", epochs=1)
    before = (tmp_path / "c" / "metrics.csv").read_text()
    train_classifier(records, tmp_path / "c", epochs=1)
    assert (tmp_path / "c" / "metrics.csv").read_text() == before
    last = weights(tmp_path / "c" / "last.ckpt")
    assert all(torch.equal(value, last[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("every", [2, 5])
def test_epochs_without_validation_are_written_too(tmp_path: Path, records: list[Record], every: int) -> None:
    train_classifier(records, tmp_path / "c", epochs=3, val_every=every)
    table = rows(tmp_path / "c")
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert torch.load(tmp_path / "c" / "last.ckpt", weights_only=True)["epoch"] == 2
    assert (tmp_path / "c" / "best.ckpt").is_file()
    # an epoch without validation has no number of its own, and none of an earlier epoch
    assert [bool(row.get("val_mAP")) for row in table] == [(i + 1) % every == 0 for i in range(3)]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing more than ``size`` bytes into a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_keeps_the_previous_checkpoint_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"weights": torch.arange(3)}, path)
    before = path.read_bytes()
    with file_size_limit(100_000), pytest.raises(UserError, match=r"cannot write .*last\.ckpt"):
        AtomicCheckpoints().save_checkpoint({"weights": torch.zeros(100_000)}, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_checkpoint_is_not_replaced_before_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"weights": torch.arange(3)}, path)

    def half(checkpoint: Any, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise Interrupted

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(Interrupted):
        AtomicCheckpoints().save_checkpoint({"weights": torch.arange(4)}, path)
    assert torch.load(path, weights_only=True)["weights"].tolist() == [0, 1, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


class Snapshots(Callback):
    """The state dict before the first batch and after every validation."""

    def __init__(self) -> None:
        self.states: list[Weights] = []

    def _take(self, module: LightningModule) -> None:
        self.states.append({name: value.clone() for name, value in module.state_dict().items()})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take(pl_module)


def changed(states: list[Weights]) -> set[str]:
    return {name for name, value in states[0].items() if not torch.equal(value, states[-1][name])}


def is_batchnorm(name: str) -> bool:
    return "bn" in name or "downsample.1" in name


@pytest.mark.parametrize("frozen", [True, False])
def test_fit_freezes_the_classifiers_batchnorm_and_first_stages_as_configured(
    tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    settings = ClassifierConfig(
        architecture="resnet18",
        weights="none",
        freeze_batchnorm=frozen,
        frozen_stages=2,
        optimizer=OptimizerConfig(lr=0.1),
    )
    taken = Snapshots()
    with_callback(monkeypatch, taken)
    train_classifier(records, tmp_path / "c", epochs=2, settings=settings)
    moved = changed(taken.states)
    batchnorm = {name for name in taken.states[0] if is_batchnorm(name)}
    assert {"model.fc.1.weight", "model.layer2.0.conv1.weight", "model.layer4.1.conv2.weight"} <= moved
    still = ("model.conv1.", "model.layer1.")
    assert not {name for name in moved - batchnorm if name.startswith(still)}
    if frozen:
        assert not moved & batchnorm
    else:
        assert {name for name in batchnorm if "running_mean" in name} <= moved
        assert "model.layer4.0.bn1.weight" in moved
        assert "model.layer1.0.bn1.weight" not in moved


@pytest.mark.parametrize("frozen", [True, False])
def test_fit_freezes_the_batchnorm_of_the_segmenters_backbone_only(
    tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    torch.manual_seed(0)
    settings = SegmenterConfig(architecture="light", weights="none", freeze_batchnorm=frozen)
    task = segmentation.new_task(settings, ("background", *CLASSES))
    data = SegmentationData(records, TrainTransform(RandomScale(0.9, 1.1), 32), seed=0)
    taken = Snapshots()
    with_callback(monkeypatch, taken)
    fit(
        task,
        train_loader(data, 5, seed=0, workers=0),
        DataLoader(TrueMasks(records[:2]), batch_size=1),
        tmp_path / "s",
        epochs=2,
        monitor=("val_mIoU", "max"),
        config=CPU,
        seed=0,
    )
    moved = changed(taken.states)
    backbone = {name for name in taken.states[0] if "backbone" in name and is_batchnorm(name)}
    assert "model.head.smooth.1.running_mean" in moved
    assert "model.backbone.network.layer1.0.conv1.weight" in moved
    assert bool(moved & backbone) == (not frozen)
    network, names = segmentation.load_segmenter(tmp_path / "s" / "last.ckpt")
    assert names == ("background", *CLASSES)
    assert all(
        torch.equal(value, task.model.state_dict()[name]) for name, value in network.state_dict().items()
    )


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segmenters of a few weights, so that writing checkpoints takes no time."""

    def build(config: SegmenterConfig, classes: int, **_: Any) -> Segmenter:
        backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU())
        return Segmenter(backbone, nn.Sequential(nn.Dropout(0.5), nn.Conv2d(8, classes, 1)))

    monkeypatch.setattr(segmentation, "build_segmenter", build)


def train_segmenter(records: list[Record], folder: Path, seed: int = 0) -> segmentation.SegmentationTask:
    """A fresh task with fixed initial weights, fitted in ``folder`` for three epochs of two steps."""
    torch.manual_seed(0)
    settings = SegmenterConfig(architecture="light", weights="none")
    task = segmentation.new_task(settings, ("background", *CLASSES))
    fit(
        task,
        train_loader(
            SegmentationData(records, TrainTransform(RandomScale(0.9, 1.1), 32), 0), 5, seed=0, workers=0
        ),
        DataLoader(TrueMasks(records[:2]), batch_size=1),
        folder,
        epochs=3,
        monitor=("val_mIoU", "max"),
        config=CPU,
        seed=seed,
    )
    return task


@pytest.mark.usefixtures("tiny")
def test_continued_training_of_a_segmenter_equals_an_uninterrupted_one(
    tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_segmenter(records, tmp_path / "whole")
    with monkeypatch.context() as patch:
        with_callback(patch, StopAfter(2))
        with pytest.raises(Interrupted):
            train_segmenter(records, tmp_path / "parts")
    train_segmenter(records, tmp_path / "parts")
    for name in ("last.ckpt", "best.ckpt"):
        expected, found = weights(tmp_path / "whole" / name), weights(tmp_path / "parts" / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    assert (tmp_path / "whole/metrics.csv").read_text() == (tmp_path / "parts/metrics.csv").read_text()
    network, _ = segmentation.load_segmenter(tmp_path / "parts/last.ckpt")
    trained = whole.model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in network.state_dict().items())
