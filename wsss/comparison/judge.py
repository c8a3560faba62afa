"""The classifier whose decisions the compared methods explain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from wsss.config import ComparisonConfig
from wsss.errors import UserError
from wsss.metrics.perturbation import Score
from wsss.models.imagenet_classifier import load_imagenet_classifier
from wsss.rundir import RunDirectory, find_checkpoint
from wsss.saliency import last_layer
from wsss.tasks.checkpoints import weights_digest
from wsss.tasks.classification import load_classifier


@dataclass(frozen=True, eq=False)
class Judge:
    """A classifier.

    Attributes:
        model: (B, 3, H, W) -> logits (B, C), in eval mode.
        names: of its C classes.
        score: how its logits become probabilities.
        layer: for methods that take one and name none.
        source: where it comes from.
        digest: SHA-256 of its weights.
    """

    model: nn.Module
    names: tuple[str, ...]
    score: Score
    layer: str
    source: str
    digest: str

    def facts(self) -> dict[str, Any]:
        """What the results say about it."""
        return {
            "source": self.source,
            "sha256": self.digest,
            "classes": len(self.names),
            "score": self.score,
            "layer": self.layer,
        }


def load_judge(config: ComparisonConfig) -> Judge:
    """The classifier that `compare.classifier` names, on the CPU.

    Raises:
        UserError: there is none, or the file is damaged or of another kind.
    """
    settings = config.classifier
    if config.compare.classifier == "imagenet":
        model, names = load_imagenet_classifier(settings.architecture, settings.weights)
        source = f"torchvision {settings.architecture}, weights {settings.weights}"
        return Judge(model, names, "softmax", last_layer(model), source, weights_digest(model))
    if config.compare.classifier == "run":
        path = RunDirectory(Path(config.output)).checkpoint("classifier", config.saliency.checkpoint)
    else:
        path = find_checkpoint(Path(config.compare.classifier), "classifier")
    model, names, trained = load_classifier(path, config.saliency.output_stride)
    source = f"{path} ({trained.architecture}, output stride {trained.output_stride})"
    return Judge(model, names, "sigmoid", last_layer(model), source, weights_digest(model))


def match_classes(classes: Sequence[str], judge: Judge) -> Mapping[int, int]:
    """Mask index 1..C of the data set -> index of the classifier's logit, by name.

    Raises:
        UserError: the classifier knows none of the classes.
    """
    positions = {name: index for index, name in enumerate(judge.names)}
    known = {label: positions[name] for label, name in enumerate(classes, 1) if name in positions}
    if not known:
        raise UserError(
            f"{judge.source} knows none of the data set's classes ({', '.join(classes[:3])}, ...), but "
            f"{', '.join(judge.names[:3])}, ...; choose another --compare.classifier, or use its names in data.classes"
        )
    return known
