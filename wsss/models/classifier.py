"""Multi-label classifiers: photo in, one logit per class out."""

from torch import nn

from wsss.config import ClassifierConfig
from wsss.models.backbone import Backbone
from wsss.models.lookup import find_backbone
from wsss.models.weights import load_into, load_weights


def build_classifier(config: ClassifierConfig, classes: int, *, pretrained: bool = True) -> nn.Module:
    """The classifier of ``config`` with ``classes`` logits: (B, 3, H, W) -> (B, classes).

    Args:
        config: architecture and weights.
        classes: number of classes without background.
        pretrained: False builds the bare network, to load a checkpoint into.

    Raises:
        UserError: an unknown architecture, or weights that are missing or of another one.
    """
    backbone = classifier_backbone(config.architecture)
    model = backbone.classifier(classes, config.output_stride, config.small_images)
    state = load_weights(config.weights, backbone, "classifier.weights") if pretrained else None
    if state is not None:
        state = backbone.adapt(state, model)
        ignore = backbone.classifier_layout.heads
        load_into(model, state, ignore=ignore, source=f"classifier.weights {config.weights}")
    return model


def classifier_backbone(architecture: str) -> Backbone:
    """The backbone that ``classifier.architecture`` names. UserError if there is none."""
    return find_backbone(architecture, "classifier.architecture", lambda backbone: backbone.classifies)
