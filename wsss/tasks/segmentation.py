"""Training a segmentation network on masks, true or pseudo."""

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional

from wsss.config import SegmenterConfig, to_dict
from wsss.data.labels import IGNORE
from wsss.metrics.segmentation import ConfusionMatrix
from wsss.models.backbones import freeze_batchnorm
from wsss.models.segmenter import Segmenter, build_segmenter
from wsss.tasks.checkpoints import parse_config, read_checkpoint
from wsss.tasks.optimization import build_optimizer, build_schedule


class SegmentationTask(LightningModule):
    """Cross entropy over the pixels that are not 255.

    Args:
        config: the segmenter's configuration as a plain dictionary.
        classes: class names, background first.
        initial: backbone weights for ``weights: classifier``.
        pretrained: False skips the initial weights, to load a checkpoint.
    """

    def __init__(
        self,
        config: dict[str, Any],
        classes: list[str],
        initial: dict[str, Tensor] | None = None,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters("config", "classes")
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
        loss = pixel_cross_entropy(self(images).float(), masks)
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Photos of one size (B, 3, H, W) and true masks (B, H, W)."""
        images, masks = batch
        predicted = self(images).argmax(1).to(torch.uint8).cpu().numpy()
        for prediction, truth in zip(predicted, masks.cpu().numpy(), strict=True):
            self.confusion.update(prediction, truth)

    def on_validation_epoch_end(self) -> None:
        """Log the mIoU; it is shown, never used to choose anything that is published."""
        self.log("val_mIoU", torch.tensor(self.confusion.miou()), prog_bar=True)
        self.confusion = ConfusionMatrix(self.classes)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Two learning rates, poly schedule per step."""
        optimizer = build_optimizer(
            self.model.backbone.parameters(), self.model.head.parameters(), self.config.optimizer
        )
        schedule = build_schedule(
            optimizer, int(self.trainer.estimated_stepping_batches), self.config.optimizer
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def pixel_cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean cross entropy over the pixels that are not 255; zero (not NaN) if there are none.

    Args:
        logits: (B, classes, H, W) float32.
        masks: (B, H, W) int64, 0..classes - 1 or 255.
    """
    total = functional.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="sum")
    return total / (masks != IGNORE).sum().clamp(min=1)


def load_segmenter(path: Path) -> tuple[Segmenter, tuple[str, ...]]:
    """A trained segmenter from its checkpoint, in eval mode on the CPU.

    Returns:
        (network, class names with background first).

    Raises:
        UserError: the file is missing, damaged or not a segmenter checkpoint of wsss.
    """
    checkpoint = read_checkpoint(path, kind="segmenter")
    hyper = checkpoint["hyper_parameters"]
    task = SegmentationTask(hyper["config"], list(hyper["classes"]), pretrained=False)
    task.load_state_dict(checkpoint["state_dict"])
    task.model.eval()
    return task.model, tuple(hyper["classes"])


def new_task(
    config: SegmenterConfig, class_names: tuple[str, ...], initial: dict[str, Tensor] | None = None
) -> SegmentationTask:
    """The task with its initial weights; ``class_names`` starts with background."""
    return SegmentationTask({"kind": "segmenter", **to_dict(config)}, list(class_names), initial)
