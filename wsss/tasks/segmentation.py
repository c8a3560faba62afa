"""Training a segmentation network on masks, true or pseudo."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from wsss.config import SegmenterConfig, to_dict
from wsss.metrics.segmentation import ConfusionMatrix
from wsss.models.freezing import freeze_batchnorm
from wsss.models.heads import AtrousClassifiers
from wsss.models.segmenter import Segmenter, build_segmenter
from wsss.tasks.checkpoints import parse_config, read_checkpoint
from wsss.tasks.divergence import check_finite
from wsss.tasks.losses import bootstrapped_cross_entropy, pixel_cross_entropy
from wsss.tasks.optimization import build_optimizer, build_schedule


class SegmentationTask(LightningModule):
    """One of ``losses`` over the pixels that are not 255.

    Args:
        config: the segmenter's configuration as a plain dictionary.
        classes: class names, background first.
        initial: backbone weights for ``weights: classifier``.
        pretrained: False skips the initial weights, to load a checkpoint.
        long_side: what the training's photos were shrunk to (``data.long_side``); None: they were as they are.
    """

    def __init__(
        self,
        config: dict[str, Any],
        classes: list[str],
        initial: dict[str, Tensor] | None = None,
        pretrained: bool = True,
        long_side: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters("config", "classes", "long_side")
        self.config = parse_config(SegmenterConfig, config)
        self.model = build_segmenter(self.config, len(classes), initial=initial, pretrained=pretrained)
        frozen = self.config.freeze_batchnorm
        self.frozen_batchnorm = (
            frozen if frozen is not None else self.config.weights not in ("none", "classifier")
        )
        self.classes = len(classes)
        self.confusion = ConfusionMatrix(self.classes)
        self.train()  # freezes BatchNorm; Lightning itself never calls it (since 2.2 it keeps every mode)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> logits (B, classes, H, W)."""
        logits: Tensor = self.model(images)
        return logits

    def train(self, mode: bool = True) -> "SegmentationTask":
        """As nn.Module.train, but the backbone's frozen BatchNorm stays in eval mode."""
        super().train(mode)
        if self.frozen_batchnorm:
            freeze_batchnorm(self.model.backbone)
        return self

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """One batch: photos (B, 3, crop, crop), masks (B, crop, crop) int64."""
        images, masks = batch
        loss = self.loss(self.model(images).float(), masks)
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The configured loss; see ``losses``."""
        smoothing = self.config.label_smoothing
        match self.config.loss:
            case "bootstrap":
                hard = self.config.bootstrap == "hard"
                return bootstrapped_cross_entropy(logits, masks, smoothing, hard=hard)
            case "cross_entropy":
                return pixel_cross_entropy(logits, masks, smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Photos of one size (B, 3, H, W) and true masks (B, H, W).

        Raises:
            UserError: the network answers with what is no number.
        """
        images, masks = batch
        scores = self(images)
        check_finite(scores, "some of its scores are", "segmenter")
        predicted = scores.argmax(1).to(torch.uint8).cpu().numpy()
        for prediction, truth in zip(predicted, masks.cpu().numpy(), strict=True):
            self.confusion.update(prediction, truth)

    def on_validation_epoch_end(self) -> None:
        """Log the mIoU; it is shown, never used to choose anything that is published."""
        self.log("val_mIoU", torch.tensor(self.confusion.miou()), prog_bar=True)
        self.confusion = ConfusionMatrix(self.classes)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Two learning rates (DeepLabV2: a third one for the head's biases), poly schedule per step."""
        head = dict(self.model.head.named_parameters())
        own = isinstance(self.model.head, AtrousClassifiers)
        biases = [name for name in head if own and name.endswith("bias")]
        optimizer = build_optimizer(
            self.model.backbone.parameters(),
            (value for name, value in head.items() if name not in biases),
            self.config.optimizer,
            head_biases=[head[name] for name in biases],
        )
        schedule = build_schedule(
            optimizer, int(self.trainer.estimated_stepping_batches), self.config.optimizer
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def load_segmenter(path: Path) -> tuple[Segmenter, tuple[str, ...]]:
    """A trained segmenter from its checkpoint, in eval mode on the CPU.

    Returns:
        (network, class names with background first).

    Raises:
        UserError: the file is missing, damaged or not a segmenter checkpoint of wsss.
    """
    trained = load_trained(path)
    return trained.network, trained.classes


@dataclass(frozen=True)
class Trained:
    """A trained segmenter, in eval mode on the CPU, and how it was trained."""

    network: Segmenter
    classes: tuple[str, ...]
    """Names, background first."""
    config: SegmenterConfig
    long_side: int | None
    """What the photos of the training were shrunk to, where they were larger; None: they were as they are."""


def load_trained(path: Path) -> Trained:
    """As ``load_segmenter``, with what else the checkpoint says."""
    checkpoint = read_checkpoint(path, kind="segmenter")
    hyper = checkpoint["hyper_parameters"]
    task = SegmentationTask(hyper["config"], list(hyper["classes"]), pretrained=False)
    task.load_state_dict(published_weights(checkpoint["state_dict"]))
    return Trained(task.model.eval(), tuple(hyper["classes"]), task.config, hyper.get("long_side"))


def published_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a checkpoint stands for: the mean over the steps, where it was trained with ``segmenter.ema``.

    That option is gone; such checkpoints hold the mean of ``model.`` as ``average.network.``, beside a counter.
    """
    prefix = "average.network."
    mean = {f"model.{name.removeprefix(prefix)}": state[name] for name in state if name.startswith(prefix)}
    return mean or state


def new_task(
    config: SegmenterConfig,
    class_names: tuple[str, ...],
    initial: dict[str, Tensor] | None = None,
    long_side: int | None = None,
) -> SegmentationTask:
    """The task with its initial weights; ``class_names`` starts with background."""
    return SegmentationTask(
        {"kind": "segmenter", **to_dict(config)}, list(class_names), initial, long_side=long_side
    )
