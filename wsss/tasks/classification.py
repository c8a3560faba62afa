"""Fine-tuning a multi-label classifier."""

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MultilabelAveragePrecision

from wsss.config import ClassifierConfig, to_dict
from wsss.models.classifier import build_classifier, classifier_backbone
from wsss.models.freezing import freeze_batchnorm, freeze_stages
from wsss.tasks.checkpoints import parse_config, read_checkpoint
from wsss.tasks.divergence import check_finite
from wsss.tasks.optimization import build_optimizer, build_schedule


class ClassificationTask(LightningModule):
    """Multi-label soft-margin loss (binary cross entropy on logits, mean over classes), per-class AP.

    Args:
        config: the classifier's configuration as a plain dictionary.
        classes: class names without background.
        pretrained: False skips the initial weights, to load a checkpoint.
    """

    def __init__(self, config: dict[str, Any], classes: list[str], pretrained: bool = True) -> None:
        super().__init__()
        self.save_hyperparameters("config", "classes")
        self.config = parse_config(ClassifierConfig, config)
        self.model = build_classifier(self.config, len(classes), pretrained=pretrained)
        self.layout = classifier_backbone(self.config.architecture).classifier_layout
        self.loss = nn.MultiLabelSoftMarginLoss()
        self.classes = len(classes)
        # torchmetrics takes two labels or more: a single class gets an empty second column.
        self.average_precision = MultilabelAveragePrecision(
            max(2, self.classes), average=None, thresholds=None
        )
        self.ap_per_class: list[float | None] | None = None
        fresh = self.config.weights == "none"
        self.frozen_batchnorm = (
            self.config.freeze_batchnorm if self.config.freeze_batchnorm is not None else not fresh
        )
        frozen_stages = self.config.frozen_stages
        freeze_stages(
            self.model, self.layout, (0 if fresh else 2) if frozen_stages is None else frozen_stages
        )
        self.train()  # freezes BatchNorm; Lightning itself never calls it (since 2.2 it keeps every mode)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> logits (B, classes)."""
        logits: Tensor = self.model(images)
        return logits

    def train(self, mode: bool = True) -> "ClassificationTask":
        """As nn.Module.train, but frozen BatchNorm stays in eval mode."""
        super().train(mode)
        if self.frozen_batchnorm:
            freeze_batchnorm(self.model)
        return self

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """One batch: photos (B, 3, crop, crop), multi-hot labels (B, classes)."""
        images, labels = batch
        loss: Tensor = self.loss(self(images), labels)
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Collect scores for the average precision.

        Raises:
            UserError: the network answers with what is no number.
        """
        images, labels = batch
        scores, spare = self(images).float(), (0, self.average_precision.num_labels - self.classes)
        check_finite(scores, "some of its scores are", "classifier")
        self.average_precision.update(functional.pad(scores, spare), functional.pad(labels.long(), spare))

    def on_validation_epoch_end(self) -> None:
        """Log AP per class and their mean over the classes that occur."""
        values = self.average_precision.compute()[: self.classes]
        occurs = torch.stack([target.amax(0) for target in self.average_precision.target]).amax(0) > 0
        present = occurs[: self.classes]
        self.average_precision.reset()
        self.ap_per_class = [
            float(value) if seen else None for value, seen in zip(values, present, strict=True)
        ]
        self.log("val_mAP", values[present].mean() if present.any() else torch.tensor(0.0), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Two learning rates, poly schedule per step."""
        named = list(self.model.named_parameters())
        optimizer = build_optimizer(
            (p for name, p in named if not self.layout.is_head(name)),
            (p for name, p in named if self.layout.is_head(name)),
            self.config.optimizer,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = build_schedule(optimizer, steps, self.config.optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def load_classifier(
    path: Path, output_stride: int | None = None
) -> tuple[nn.Module, tuple[str, ...], ClassifierConfig]:
    """A trained classifier from its checkpoint, in eval mode on the CPU.

    Args:
        path: the checkpoint.
        output_stride: another output stride than the trained one (ResNets; the weights stay valid, as a
            dilated kernel samples the same positions relative to each other); None keeps it.

    Returns:
        (network, class names without background, its configuration).

    Raises:
        UserError: the file is missing, damaged or not a classifier checkpoint of wsss.
    """
    task = load_task(path, output_stride)
    return task.model.eval(), tuple(task.hparams["classes"]), task.config


def load_task(path: Path, output_stride: int | None = None) -> ClassificationTask:
    """The whole task with its trained weights, to validate it; arguments and errors as `load_classifier`."""
    checkpoint = read_checkpoint(path, kind="classifier")
    hyper = checkpoint["hyper_parameters"]
    config = hyper["config"] if output_stride is None else {**hyper["config"], "output_stride": output_stride}
    task = ClassificationTask(config, list(hyper["classes"]), pretrained=False)
    task.load_state_dict(checkpoint["state_dict"])
    return task


def new_task(config: ClassifierConfig, classes: tuple[str, ...]) -> ClassificationTask:
    """The task with its initial weights."""
    return ClassificationTask({"kind": "classifier", **to_dict(config)}, list(classes))
