"""torchvision's ImageNet classifiers with their 1000 outputs, to be explained as they are."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from wsss.errors import UserError
from wsss.models.backbones import RESNETS, load_into, load_weights

ARCHITECTURES: dict[str, Any] = {**RESNETS, "vgg16": models.vgg16, "vgg16_bn": models.vgg16_bn}


def load_imagenet_classifier(
    architecture: str, weights: str = "imagenet"
) -> tuple[nn.Module, tuple[str, ...]]:
    """A single-label classifier of the 1000 ImageNet classes, in eval mode on the CPU.

    Args:
        architecture: a name of `ARCHITECTURES`.
        weights: `imagenet` downloads torchvision's; else the path of a torchvision state dict.

    Returns:
        (network (B, 3, H, W) -> logits (B, 1000), the class names in the order of the logits).

    Raises:
        UserError: unknown architecture, failed download, missing or damaged file, weights of another
            architecture, or without the head of 1000 classes.
    """
    if architecture not in ARCHITECTURES:
        raise UserError(f"--architecture is {architecture}, but must be one of {', '.join(ARCHITECTURES)}")
    state = load_weights(weights, architecture, "weights", optional=False)
    if state is None:
        raise UserError(
            "--weights none leaves nothing to explain; give `imagenet` or the path of a state dict"
        )
    with torch.device("meta"):  # without the seconds of an initialisation that is overwritten
        model: nn.Module = ARCHITECTURES[architecture](weights=None)
    model = model.to_empty(device="cpu")
    names = imagenet_classes()
    head = "classifier.6.weight" if architecture.startswith("vgg") else "fc.weight"
    _check_head(state, head, len(names), weights)
    load_into(model, state, ignore=(), source=f"--weights {weights}")
    return model.eval(), names


def imagenet_classes() -> tuple[str, ...]:
    """torchvision's names of the 1000 classes; each occurs once ("crane" and "crane bird")."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return tuple(_IMAGENET_CATEGORIES)


def _check_head(state: dict[str, Tensor], head: str, classes: int, weights: str) -> None:
    """Raises UserError where the weights are a backbone's alone, or score other classes."""
    if head not in state:
        raise UserError(
            f"--weights {weights} has no {head}: it is a network without head or another architecture; "
            "give a whole torchvision state dict that fits --architecture"
        )
    if len(state[head]) != classes:
        raise UserError(
            f"--weights {weights} scores {len(state[head])} classes, not ImageNet's {classes}; "
            "a classifier that wsss trained is given as --checkpoint"
        )
