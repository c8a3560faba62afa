"""ImageNet classifiers with their 1000 outputs, to be explained as they are."""

from torch import Tensor, nn

from wsss.errors import UserError
from wsss.models.lookup import find_backbone
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
