"""ImageNet classifiers with their 1000 outputs, to be explained as they are."""

from torch import Tensor, nn

from wsss.errors import UserError
from wsss.models.lookup import find_backbone
from wsss.models.pretraining import refuse_masks
from wsss.models.weights import load_into, load_weights


def load_imagenet_classifier(
    architecture: str, weights: str = "imagenet"
) -> tuple[nn.Module, tuple[str, ...]]:
    """A single-label classifier of the 1000 ImageNet classes, in eval mode on the CPU.

    Args:
        architecture: a backbone that can be a classifier.
        weights: `imagenet` downloads torchvision's; else the path of a torchvision state dict.

    Returns:
        (network (B, 3, H, W) -> logits (B, 1000), the class names in the order of the logits).

    Raises:
        UserError: unknown architecture, failed download, missing or damaged file, weights of another
            architecture, or without the head of 1000 classes.
    """
    backbone = find_backbone(architecture, "--architecture", lambda other: other.classifies)
    state = load_weights(weights, backbone, "weights", optional=False)
    if state is None:
        raise UserError(
            "--weights none leaves nothing to explain; give `imagenet` or the path of a state dict"
        )
    model = backbone.build()
    state = backbone.adapt(state, model) if backbone.remodelled is None else state
    names = imagenet_classes()
    _check_head(state, f"{backbone.layout.head}.weight", len(names), weights)
    load_into(model, state, ignore=(), source=f"--weights {weights}")
    return backbone.complete(model).eval(), names


def imagenet_classes() -> tuple[str, ...]:
    """torchvision's names of the 1000 classes; each occurs once ("crane" and "crane bird")."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return tuple(_IMAGENET_CATEGORIES)


def _check_head(state: dict[str, Tensor], head: str, classes: int, weights: str) -> None:
    """Raises UserError if the weights have no head or score other classes."""
    if head not in state:
        raise UserError(
            f"--weights {weights} has no {head}: it is a network without a head, or of another architecture; "
            "give a complete state dict that fits --architecture"
        )
    if len(state[head]) != classes:
        raise UserError(
            f"--weights {weights} scores {len(state[head])} classes, not ImageNet's {classes}; "
            "a classifier that wsss trained is given as --checkpoint"
        )


def load_features(architecture: str, weights: str, option: str) -> nn.Module:
    """A network for its inner layers, in eval mode on the CPU. It needs no head, so self-supervised weights do.

    Args:
        architecture: any backbone.
        weights: `imagenet` downloads what the library offers; else the path of a state dict.
        option: the section that gives both, for messages.

    Raises:
        UserError: as `load_imagenet_classifier`, or the weights were trained on masks.
    """
    backbone = find_backbone(architecture, f"{option}.architecture", lambda other: True)
    state = load_weights(weights, backbone, f"{option}.weights", optional=False)
    if state is None:
        raise UserError(
            f"{option}.weights is none, and an untrained network sees nothing: give `imagenet` or a path"
        )
    refuse_masks(state, f"{option}.weights {weights}")
    model = backbone.build()
    state = backbone.adapt(state, model) if backbone.remodelled is None else state
    load_into(model, state, ignore=backbone.layout.heads, source=f"{option}.weights {weights}")
    return backbone.complete(model).eval()
