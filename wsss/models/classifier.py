"""Multi-label classifiers: photo in, one logit per class out."""

import math

from torch import Tensor, nn

from wsss.config import ClassifierConfig
from wsss.errors import UserError
from wsss.models.backbone import Backbone, with_layout
from wsss.models.encoders import Trunk
from wsss.models.lookup import find_backbone
from wsss.models.pretraining import refuse_masks
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
    source = f"classifier.weights {config.weights}"
    state = load_weights(config.weights, backbone, "classifier.weights") if pretrained else None
    if state is not None:
        refuse_masks(state, source)
    if config.pooling == "own":
        model = backbone.classifier(classes, config.output_stride, config.small_images)
        if state is not None:
            load_into(
                model, backbone.adapt(state, model), ignore=backbone.classifier_layout.heads, source=source
            )
        return model
    if backbone.remodelled is not None:
        raise UserError(
            f"classifier.pooling is {config.pooling}, but {backbone.name} has a pooling of its own; set it to own, or "
            "choose another architecture"
        )
    pooled = CellClassifier(backbone, config, classes)
    if state is not None:
        trunk = pooled.network
        load_into(trunk, backbone.adapt(state, trunk), ignore=pooled.left_out, source=source)
    return with_layout(backbone.fitted(pooled), backbone.classifier_layout.within("network", "head"))


class CellClassifier(Trunk):
    """A classifier that scores every cell of the last feature map, and pools the scores.

        s_c(u, v) = W_c A(u, v) + b_c,    z_c = pooling over (u, v) of s_c

    A is the map of the backbone's last stage, z the logits. The poolings are

    - mean: then it is global average pooling and a linear head, and s the class activation map (Zhou et al. 2016)
    - max: Oquab et al., "Is object localization for free?", CVPR 2015
    - lse: log(mean exp(r s)) / r, Pinheiro and Collobert, "From Image-level to Pixel-level Labeling", CVPR 2015, eq. 2
    - topk: the mean of the highest share of the cells, Durand et al., "WILDCAT", CVPR 2017, without its lowest cells
    """

    def __init__(self, backbone: Backbone, config: ClassifierConfig, classes: int) -> None:
        super().__init__(backbone, config.output_stride, config.small_images)
        self.pooling, self.value = config.pooling_parts
        self.head = nn.Conv2d(self.channels[0], classes, kernel_size=1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def score_map(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes, H / stride, W / stride)."""
        scores: Tensor = self.head(self.stages(images)[0])
        return scores

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """(B, 3, H, W) -> logits (B, classes)."""
        scores = self.score_map(images).flatten(2)
        match self.pooling:
            case "max":
                return scores.amax(2)
            case "lse":
                temperature = self.value or 1.0
                scaled = (temperature * scores.float()).logsumexp(2) - math.log(scores.shape[2])
                return scaled / temperature
            case "topk":
                count = max(1, round((self.value or 1.0) * scores.shape[2]))
                return scores.topk(count, dim=2).values.mean(2)
        return scores.mean(2)


def classifier_backbone(architecture: str) -> Backbone:
    """The backbone that ``classifier.architecture`` names. UserError if there is none."""
    return find_backbone(architecture, "classifier.architecture", lambda backbone: backbone.classifies)
