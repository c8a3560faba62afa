"""Any convolutional classifier of timm (``timm:NAME``) as a backbone, as timm describes its layers and its input.

The pipeline normalises photos with ImageNet's mean and deviation. A network that was trained with other values gets a
hook that changes to them, so that zero padding means what it meant in its training.
"""

import sys
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from wsss.data.transforms import MEAN, STD
from wsss.errors import UserError
from wsss.models.backbone import Backbone, Layout, State, Weights, with_layout

PREFIX = "timm:"
"""Of the names of these backbones."""

_LAST = ("norm", "bn2", "final_conv")
"""Modules after the last stage that still give maps: of CoAtNets, EfficientNets and RegNets."""


@dataclass(frozen=True)
class TimmBackbone(Backbone):
    """A convolutional network of timm. Its classifier keeps timm's own pooling and head."""

    def network(self, output_stride: int = 32, small_images: bool = False) -> nn.Module:
        """The network with fresh weights and 1000 logits; see the base class."""
        return self._create(1000, output_stride)

    def classifier(self, classes: int, output_stride: int, small_images: bool) -> nn.Module:
        """See the base class. ``small_images`` has no effect."""
        return self.complete(self._create(classes, output_stride))

    def complete(self, model: nn.Module) -> nn.Module:
        """See the base class."""
        if (self.mean, self.deviation) != (MEAN, STD):
            model.register_forward_pre_hook(Renormalise(self.mean, self.deviation))
        return with_layout(model, self.layout)

    def adapt(self, state: State, model: nn.Module) -> State:
        """A published state dict under the names of the model: timm's own filter, where the family has one."""
        rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        return state if rename is None else dict(rename(dict(state), model))

    def _create(self, classes: int, output_stride: int) -> nn.Module:
        """Dilated if the family can; else it keeps its stride."""
        name = self.name.removeprefix(PREFIX)
        try:
            return create(name, classes, output_stride=output_stride)
        except (TypeError, NotImplementedError):
            return create(name, classes)


class Renormalise:
    """A hook before a network: from ImageNet's mean and deviation to the network's own."""

    def __init__(self, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        to = torch.tensor((STD, MEAN, mean, deviation))[..., None, None]
        self.scale, self.shift = to[0] / to[3], (to[1] - to[2]) / to[3]

    def __call__(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        """(B, 3, H, W) in ImageNet's normalisation -> the same in the network's."""
        images = inputs[0]
        return (images * self.scale.to(images) + self.shift.to(images),)


def create(name: str, classes: int, **arguments: Any) -> nn.Module:
    """timm's network with fresh weights."""
    import timm

    return timm.create_model(name, num_classes=classes, **arguments)


@lru_cache(maxsize=16)
def timm_backbone(name: str, option: str = "classifier.architecture") -> Backbone:
    """The record of ``timm:NAME``, from timm's description of the network.

    Args:
        name: with ``timm:``.
        option: the option that gives the name, for the message.

    Raises:
        UserError: timm has no such network, or it cannot be a classifier here.
    """
    import timm

    bare = name.removeprefix(PREFIX)
    known = set(timm.list_models())
    if bare.partition(".")[0] not in known:
        near = get_close_matches(bare, known, n=1)
        hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
        raise UserError(
            f"{option} is {name}, but timm has no such network{hint}; `wsss networks WORD` lists them"
        )
    with torch.device("meta"):
        model = create(bare, 1000).eval()
    if not takes_any_size(model):
        raise UserError(
            f"{option} is {name}, which gives no feature maps of photos of any size, as transformers do not; choose a "
            "convolutional network"
        )
    configuration: Any = timm.get_pretrained_cfg(bare)
    heads = (
        [configuration.classifier] if isinstance(configuration.classifier, str) else configuration.classifier
    )
    if not heads or len(heads) != 1:
        raise UserError(f"{option} is {name}, whose head wsss does not know; choose another network of timm")
    stages = [(stage["module"], stage["num_chs"], stage["reduction"]) for stage in _stages(model)]
    if last := next((layer for layer in _LAST if _gives_maps(model, layer)), None):
        stages[-1] = (last, model.num_features, stages[-1][2])
    layers, channels, strides = zip(*stages, strict=True)
    return TimmBackbone(
        name,
        lambda: create(bare, 1000),
        Weights(f"https://huggingface.co/{configuration.hf_hub_id}", lambda: _published(bare)),
        Layout(stages=layers, path=(), head=heads[0]),
        strides=strides,
        channels=channels,
        mean=tuple(configuration.mean),
        deviation=tuple(configuration.std),
        segments=False,
    )


def takes_any_size(model: nn.Module) -> bool:
    """Whether a network on the meta device gives feature maps (B, k, u, v) and logits of images of odd sizes."""
    with torch.no_grad():
        for size in ((150, 217), (96, 130)):
            images = torch.empty(1, 3, *size, device="meta")
            try:
                maps, logits = model.forward_features(images), model(images)  # type: ignore[operator]
            except (AssertionError, RuntimeError, TypeError):
                return False
            if maps.ndim != 4 or logits.shape != (1, 1000) or maps.shape[2] > maps.shape[1]:
                return False
    return True


def _stages(model: nn.Module) -> list[dict[str, Any]]:
    info: Any = model.feature_info
    return list(getattr(info, "info", info))


def _gives_maps(model: nn.Module, layer: str) -> bool:
    return not isinstance(getattr(model, layer, nn.Identity()), nn.Identity)


def _published(name: str) -> State:
    """What timm downloads for this network."""
    import timm

    model = timm.create_model(name, pretrained=True)
    return model.state_dict()


def networks(word: str) -> list[str]:
    """A header, and a line for each network of timm whose name has the word: parameters, size in training, licence.

    Raises:
        UserError: there is none.
    """
    import timm

    names = timm.list_models(f"*{word}*")
    if not names:
        raise UserError(f"no network of timm has {word} in its name; try a shorter part of it")
    lines = [f"{'name':<44}{'million parameters':>20}{'size':>6}  licence of the weights"]
    for name in names:
        with torch.device("meta"):
            count = sum(value.numel() for value in create(name, 1000).parameters())
        configuration: Any = timm.get_pretrained_cfg(name)
        size, licence = configuration.input_size[-1], configuration.license or "unknown"
        lines.append(f"{PREFIX + name:<44}{count / 1e6:>20.1f}{size:>6}  {licence}")
    return lines
