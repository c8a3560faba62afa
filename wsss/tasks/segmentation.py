"""Training a segmentation network on masks, true or pseudo."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsss.config import SegmenterConfig, to_dict
from wsss.metrics.segmentation import ConfusionMatrix
from wsss.models.heads import AtrousClassifiers
from wsss.models.segmenter import Segmenter, build_segmenter
from wsss.tasks.base import BaseTask, Groups
from wsss.tasks.checkpoints import parse_config
from wsss.tasks.losses import bootstrapped_cross_entropy, pixel_cross_entropy


class SegmentationTask(BaseTask):
    """One of ``losses`` over the pixels that are not 255.

    Args:
        config: the segmenter's configuration as a plain dictionary.
        classes: class names, background first.
        initial: backbone weights for ``weights: classifier``.
        pretrained: False skips the initial weights, to load a checkpoint.
        long_side: what the training's photos were shrunk to (``data.long_side``); None: they were not shrunk.
    """

    kind = "segmenter"
    config: SegmenterConfig
    model: Segmenter

    def __init__(
        self,
        config: dict[str, Any],
        classes: list[str],
        initial: dict[str, Tensor] | None = None,
        pretrained: bool = True,
        long_side: int | None = None,
    ) -> None:
        settings = parse_config(SegmenterConfig, config)
        model = build_segmenter(settings, len(classes), initial=initial, pretrained=pretrained)
        super().__init__(settings, model, len(classes), settings.weights not in ("none", "classifier"))
        self.save_hyperparameters("config", "classes", "long_side")
        self.confusion = ConfusionMatrix(self.classes)

    def trunk(self) -> nn.Module:
        """The backbone."""
        return self.model.backbone

    def groups(self) -> Groups:
        """Backbone and head; for DeepLabV2 also the head's biases."""
        head = dict(self.model.head.named_parameters())
        own = isinstance(self.model.head, AtrousClassifiers)
        biases = [name for name in head if own and name.endswith("bias")]
        return Groups(
            list(self.model.backbone.parameters()),
            [value for name, value in head.items() if name not in biases],
            [head[name] for name in biases],
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """One batch: photos (B, 3, crop, crop), masks (B, crop, crop) int64."""
        images, masks = batch
        return self.log_loss(self.loss(self(images).float(), masks), images)

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
            UserError: some of the network's scores are infinite or NaN.
        """
        images, masks = batch
        predicted = self.scores(images).argmax(1).to(torch.uint8).cpu().numpy()
        for prediction, truth in zip(predicted, masks.cpu().numpy(), strict=True):
            self.confusion.update(prediction, truth)

    def on_validation_epoch_end(self) -> None:
        """Log the mIoU. It is shown, and never used to choose anything that is published."""
        self.log("val_mIoU", torch.tensor(self.confusion.miou()), prog_bar=True)
        self.confusion = ConfusionMatrix(self.classes)


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
    """What larger photos of the training were shrunk to; None: they were not shrunk."""


def load_trained(path: Path) -> Trained:
    """Like ``load_segmenter``, with what else the checkpoint says."""
    task = SegmentationTask.from_checkpoint(path)
    return Trained(task.model.eval(), tuple(task.hparams["classes"]), task.config, task.hparams["long_side"])


def new_task(
    config: SegmenterConfig,
    class_names: tuple[str, ...],
    initial: dict[str, Tensor] | None = None,
    long_side: int | None = None,
    *,
    pretrained: bool = True,
) -> SegmentationTask:
    """The task with its initial weights, or without them, to continue from a checkpoint.

    ``class_names`` starts with background.
    """
    hyper = {"kind": "segmenter", **to_dict(config)}
    return SegmentationTask(hyper, list(class_names), initial, pretrained, long_side)
