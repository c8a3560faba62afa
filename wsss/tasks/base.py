"""What the training of a classifier and that of a segmenter have in common."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from wsss.config import ClassifierConfig, SegmenterConfig
from wsss.errors import UserError
from wsss.models.freezing import freeze_batchnorm
from wsss.runtime import no_tf32
from wsss.tasks.checkpoints import published_weights, read_checkpoint
from wsss.tasks.optimization import build_optimizer, build_schedule


class Groups(NamedTuple):
    """Parameters by how fast they learn, see `build_optimizer`."""

    backbone: Sequence[nn.Parameter]
    head: Sequence[nn.Parameter]
    head_biases: Sequence[nn.Parameter] = ()


class BaseTask(LightningModule):
    """A network in training: frozen BatchNorm, optimiser and schedule, checks, and loading from a checkpoint.

    A task's first two arguments are its configuration as a plain dictionary and its list of classes; it saves them as
    hyper-parameters. `pretrained=False` skips the initial weights, to load a checkpoint.

    Args:
        config: the configuration.
        model: the network.
        classes: number of logits.
        pretrained_weights: whether the network starts from weights whose BatchNorm is worth keeping;
            ``config.freeze_batchnorm`` overrides it.
    """

    kind: ClassVar[Literal["classifier", "segmenter"]]
    model: nn.Module

    def __init__(
        self,
        config: ClassifierConfig | SegmenterConfig,
        model: nn.Module,
        classes: int,
        pretrained_weights: bool,
    ) -> None:
        super().__init__()
        self.config, self.model, self.classes = config, model, classes
        frozen = config.freeze_batchnorm
        self.frozen_batchnorm = pretrained_weights if frozen is None else frozen
        self.train()  # freezes BatchNorm; Lightning itself never calls it (since 2.2 it keeps every mode)

    def trunk(self) -> nn.Module:
        """The part whose BatchNorm may be frozen."""
        raise NotImplementedError

    def groups(self) -> Groups:
        """All parameters of the network."""
        raise NotImplementedError

    @classmethod
    def from_checkpoint(cls, path: Path, **changes: Any) -> Self:
        """The task with its trained weights, on the CPU.

        Args:
            path: the checkpoint.
            changes: entries of the configuration that differ from the training's.

        Raises:
            UserError: the file is missing, damaged or not a checkpoint of this kind of task.
        """
        checkpoint = read_checkpoint(path, cls.kind)
        try:
            hyper = dict(checkpoint["hyper_parameters"])
            config, classes = {**hyper.pop("config"), **changes}, list(hyper.pop("classes"))
            task = cls(config, classes, pretrained=False, **hyper)  # type: ignore[arg-type,call-arg]
            task.load_state_dict(published_weights(checkpoint["state_dict"]))
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"{path} is not a whole wsss {cls.kind} checkpoint ({type(error).__name__}): give another, or train "
                "again"
            ) from error
        return task

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> logits of the network."""
        logits: Tensor = self.model(images)
        return logits

    def train(self, mode: bool = True) -> Self:
        """Like nn.Module.train, but frozen BatchNorm stays in eval mode."""
        super().train(mode)
        if self.frozen_batchnorm:
            freeze_batchnorm(self.trunk())
        return self

    def log_loss(self, loss: Tensor, images: Tensor) -> Tensor:
        """Add the loss of a batch of photos to the epoch's mean ``train_loss``; returns it."""
        self.log(
            "train_loss",
            loss,
            prog_bar=True,
            on_step=False,
            on_epoch=True,
            batch_size=len(images),
            sync_dist=True,
        )
        return loss

    def scores(self, images: Tensor) -> Tensor:
        """The logits of validation photos.

        Raises:
            UserError: some are infinite or not a number.
        """
        logits: Tensor = self(images)
        check_finite(logits, "some of its scores are", self.kind)
        return logits

    def setup(self, stage: str) -> None:
        """Lightning calls it in every process of a training."""
        no_tf32()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """A learning rate for each of `groups`, and the poly schedule per step."""
        groups = self.groups()
        optimizer = build_optimizer(groups.backbone, groups.head, self.config.optimizer, groups.head_biases)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = build_schedule(optimizer, steps, self.config.optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def check_finite(values: Tensor, what: str, kind: str) -> None:
    """Raises UserError, which says what to change, if a value is infinite or not a number.

    Args:
        values: of any shape.
        what: "its loss in epoch 3 is", for the message.
        kind: of the task, "classifier" or "segmenter".
    """
    if not bool(torch.isfinite(values).all()):
        raise UserError(
            f"the training of the {kind} diverged: {what} infinite or not a number; lower --{kind}.optimizer.lr or "
            f"raise --{kind}.optimizer.warmup"
        )
