"""Fine-tuning a multi-label classifier."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MultilabelAveragePrecision

from wsss.config import ClassifierConfig, to_dict
from wsss.models.backbone import layout_of
from wsss.models.classifier import build_classifier
from wsss.models.freezing import freeze_stages
from wsss.tasks.base import BaseTask, Groups
from wsss.tasks.checkpoints import parse_config


class ClassificationTask(BaseTask):
    """Multi-label soft-margin loss (binary cross entropy on logits, mean over classes), per-class AP.

    Args:
        config: the classifier's configuration as a plain dictionary.
        classes: class names without background.
        pretrained: False skips the initial weights, to load a checkpoint.
    """

    kind = "classifier"
    config: ClassifierConfig

    def __init__(self, config: dict[str, Any], classes: list[str], pretrained: bool = True) -> None:
        settings = parse_config(ClassifierConfig, config)
        model = build_classifier(settings, len(classes), pretrained=pretrained)
        fresh = settings.weights == "none"
        super().__init__(settings, model, len(classes), not fresh)
        self.save_hyperparameters("config", "classes")
        layout = layout_of(model)
        assert layout is not None  # `build_classifier` gives one
        self.layout = layout
        frozen = settings.frozen_stages
        freeze_stages(self.model, self.layout, (0 if fresh else 2) if frozen is None else frozen)
        self.loss = nn.MultiLabelSoftMarginLoss()
        # torchmetrics needs at least two labels, so a single class gets an empty second column.
        # Every process of a training sees all validation photos, and process 0 alone scores them afterwards.
        self.average_precision = MultilabelAveragePrecision(
            max(2, self.classes), average=None, thresholds=None, sync_on_compute=False
        )
        self.ap_per_class: list[float | None] | None = None

    def trunk(self) -> nn.Module:
        """The whole network."""
        return self.model

    def groups(self) -> Groups:
        """Backbone and head."""
        named = list(self.model.named_parameters())
        return Groups(
            [value for name, value in named if not self.layout.is_head(name)],
            [value for name, value in named if self.layout.is_head(name)],
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """One batch: photos (B, 3, crop, crop), multi-hot labels (B, classes)."""
        images, labels = batch
        return self.log_loss(self.loss(self(images), labels), images)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Collect scores for the average precision.

        Raises:
            UserError: some of the network's scores are infinite or NaN.
        """
        images, labels = batch
        scores, spare = self.scores(images).float(), (0, self.average_precision.num_labels - self.classes)
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
    """The whole task with its trained weights, for validation. Arguments and errors as in `load_classifier`."""
    changes = {} if output_stride is None else {"output_stride": output_stride}
    return ClassificationTask.from_checkpoint(path, **changes)


def new_task(
    config: ClassifierConfig, classes: tuple[str, ...], *, pretrained: bool = True
) -> ClassificationTask:
    """The task with its initial weights, or without them, to continue from a checkpoint."""
    return ClassificationTask({"kind": "classifier", **to_dict(config)}, list(classes), pretrained)
