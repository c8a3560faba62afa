"""Fitting a task with Lightning, so that a killed training continues where it stopped."""

import csv
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from torch.utils.data import DataLoader

from wsss import runtime
from wsss.config import RuntimeConfig
from wsss.data.files import atomic_path, write_text
from wsss.data.modules import EpochSampler
from wsss.errors import UserError
from wsss.parallel import rank_and_world
from wsss.tasks.base import check_finite
from wsss.tasks.checkpoints import read_checkpoint

LAST = "last.ckpt"
"""The checkpoint after the latest epoch."""

LOG = "metrics.csv"
"""The numbers of every epoch."""

RISE = 1.1
"""A loss of this many times the first epoch's, or more, has risen. A warm-up alone may raise it a little."""

_ACCELERATORS = {"cpu": "cpu", "cuda": "gpu", "mps": "cpu"}
_PRECISIONS: dict[runtime.Precision, Any] = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, written to a temporary name and renamed."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """A kill at any moment leaves the previous checkpoint whole.

        Raises:
            UserError: the file cannot be written.
        """
        with atomic_path(Path(path)) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # what torch's zip writer raises on a full disk
                raise UserError(
                    f"cannot write {path} ({error}); free some disk space and run again"
                ) from error


class SeedEpochs(Callback):
    """Seeds torch at every epoch, so that a continued training draws what an uninterrupted one would."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed dropout and the like."""
        # Not at the epoch's start: a loader draws from torch's generator when its iterator is made, which is
        # after that hook, except in a continued training.
        if batch_idx == 0:
            torch.manual_seed(self.seed * 1009 + trainer.current_epoch)


class EndAtOnce(Callback):
    """SIGTERM ends a process of several at once, which loses nothing: checkpoints are renamed when they are whole.

    Lightning's own handler broadcasts the signal, and hangs if the others wait in another operation.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After Lightning has installed its handler."""
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class StopDivergence(Callback):
    """Stops when the loss is NaN or infinite, before the previous checkpoint is overwritten."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the epoch's mean loss.

        Raises:
            UserError: it is infinite or not a number.
        """
        loss, epoch = trainer.callback_metrics["train_loss"], trainer.current_epoch + 1
        check_finite(loss, f"its loss in epoch {epoch} is", pl_module.hparams["config"]["kind"])


class EpochLog(Callback):
    """Writes ``metrics.csv`` (one row per epoch) and one line per epoch to stderr."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        self.validated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the rows of the epochs that the checkpoint contains (its epoch is not known before this hook)."""
        if self.path.is_file():
            self.rows = [row for row in read_log(self.path) if int(row["epoch"]) <= trainer.current_epoch]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch begins."""
        self.validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """This epoch has its own validation numbers."""
        self.validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the numbers of the epoch."""
        if not trainer.is_global_zero:
            return
        values = {
            name: f"{float(value):.5f}"
            for name, value in sorted(trainer.callback_metrics.items())
            if self.validated or not name.startswith("val_")  # Lightning keeps those of earlier epochs
        }
        self.rows.append({"epoch": str(trainer.current_epoch + 1), **values})
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())
        line = "  ".join(f"{name} {value}" for name, value in values.items())
        print(f"  epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {line}", file=sys.stderr)
        for sentence in rising_loss(self.rows, pl_module.hparams["config"]["kind"]):
            print(f"  warning: {sentence}", file=sys.stderr)


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv``, one per epoch; a value that was not measured is empty."""
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def rising_loss(rows: Sequence[Mapping[str, str]], kind: str) -> list[str]:
    """A sentence if the training loss is clearly higher than in the first epoch.

    Args:
        rows: of ``metrics.csv``.
        kind: of the task, ``classifier`` or ``segmenter``.
    """
    first, last = (float(rows[index]["train_loss"]) for index in (0, -1))
    if last <= RISE * first:
        return []
    return [
        f"the training loss rose from {first:.3f} in epoch 1 to {last:.3f} in epoch {rows[-1]['epoch']}: try a lower "
        f"--{kind}.optimizer.lr"
    ]


def fit(
    task: LightningModule,
    train: DataLoader[Any],
    val: DataLoader[Any] | None,
    folder: Path,
    *,
    epochs: int,
    monitor: tuple[str, str],
    config: RuntimeConfig,
    seed: int,
    val_every: int = 1,
) -> None:
    """Train ``task``; ``folder`` gets ``last.ckpt`` (every epoch), ``best.ckpt`` and ``metrics.csv``.

    Continues from ``last.ckpt`` if it is there.

    Args:
        task: the LightningModule with its initial weights.
        train: batches for one device.
        val: validation batches, or None.
        folder: the stage's folder.
        epochs: passes over ``train``.
        monitor: (logged value, ``min`` or ``max``) that chooses best.ckpt; without ``val`` it is the training loss.
        config: devices and precision.
        seed: of dropout.
        val_every: epochs between validations.
    """
    validates = val is not None and val_every <= epochs
    metric, mode = monitor if validates else ("train_loss", "min")
    checkpoints: dict[str, Any] = {
        "dirpath": folder,
        "enable_version_counter": False,
        "save_on_train_epoch_end": True,
    }
    best = ModelCheckpoint(
        filename="best",
        monitor=metric,
        mode=mode,
        every_n_epochs=val_every if validates else 1,
        **checkpoints,
    )
    # Not save_last=True: since Lightning 2.6 it writes only if the monitored value is the best so far.
    # It comes after `best`, so that it holds the state of that one.
    newest = ModelCheckpoint(filename="last", every_n_epochs=1, **checkpoints)
    log = EpochLog(folder / LOG)
    callbacks: list[Callback] = [SeedEpochs(seed), EndAtOnce(), log, StopDivergence(), best, newest]
    bar = config.progress and os.isatty(2)
    if bar:
        callbacks.append(TQDMProgressBar(leave=False))
    with quiet_lightning():
        trainer = _trainer(config, callbacks, bar, max_epochs=epochs, check_val_every_n_epoch=val_every)
        last, begun = folder / LAST, is_begun(folder)
        if begun:
            checkpoint = read_checkpoint(
                last, task.hparams["config"]["kind"]
            )  # its error names a damaged file
            # Lightning tells the sampler too, but after the workers of a continued training got their first photos.
            cast("EpochSampler", train.sampler).set_epoch(checkpoint["epoch"] + 1)
        task.to(memory_format=torch.channels_last)
        with _plain_errors():
            trainer.fit(task, train, val, ckpt_path=str(last) if begun else None, weights_only=True)


def is_begun(folder: Path) -> bool:
    """Whether `fit` would continue a training, which needs no initial weights."""
    return (folder / LAST).is_file()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Undo what Lightning does to Ctrl-C."""
    try:
        yield
    except SystemExit as stop:  # Lightning exits with status 1 on Ctrl-C
        raise KeyboardInterrupt from stop


def validate(task: LightningModule, val: DataLoader[Any], config: RuntimeConfig) -> None:
    """Run the task's validation once, on one device."""
    with quiet_lightning():
        _trainer(config, [], False, alone=True).validate(task, val, verbose=False)


def _trainer(
    config: RuntimeConfig, callbacks: list[Callback], bar: bool, *, alone: bool = False, **arguments: Any
) -> Trainer:
    """A trainer for this process, or for all the processes that share the command (see ``stages.shards``)."""
    world, here = (1, 1) if alone else (rank_and_world()[1], runtime.processes_here())
    # Under Slurm, Lightning by itself would take the job's tasks for the processes of the training.
    environment: ClusterEnvironment = LightningEnvironment()
    if world > 1:
        environment = (
            TorchElasticEnvironment() if "RANK" in os.environ else SLURMEnvironment(auto_requeue=False)
        )
    return Trainer(
        accelerator=_ACCELERATORS[runtime.device(config).type],
        devices=here,
        num_nodes=world // here,
        strategy="ddp" if world > 1 else "auto",
        sync_batchnorm=world > 1 and runtime.device(config).type == "cuda",  # torch has it for GPUs only
        precision=_PRECISIONS[runtime.precision(config)[0]],
        callbacks=callbacks,
        plugins=[AtomicCheckpoints(), environment],
        logger=False,
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **arguments,
    )


class quiet_lightning(warnings.catch_warnings):
    """Hides Lightning's hints about worker counts, loggers and checkpoint folders."""

    def __enter__(self) -> None:
        """Filter them."""
        import logging

        super().__enter__()
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        for pattern in (
            ".*does not have many workers.*",
            ".*Checkpoint directory.*exists and is not empty.*",
            ".*The number of training batches.*is smaller than the logging interval.*",
            ".*GPU available but not used.*",
            ".*in eval mode at the start of training.*",  # frozen BatchNorm
            ".*have no `val_dataloader`.*",
            ".*lr_scheduler.step.*before.*optimizer.step.*",
            ".*compute.* method of metric.*was called before the .*update.*",
            ".*isinstance.treespec, LeafSpec.*",
            ".*No positive samples found in target.*",
            ".*recommended to use .self.log.*sync_dist=True.*",  # every process has all validation photos
            ".*Found keys that are not in the model state dict.*",
            ".*The dirpath has changed.*",  # a run that was moved
        ):
            warnings.filterwarnings("ignore", pattern)
