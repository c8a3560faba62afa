"""Any network of timm (``timm:NAME``) as a backbone, as timm describes its layers and its input.

The pipeline normalises photos with ImageNet's mean and deviation. A network that was trained with other values gets a
hook that changes to them, so that zero padding means what it meant in its training. A network that takes some sizes
only gets one that resizes.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss.data.transforms import MEAN, STD
from wsss.errors import UserError
from wsss.models.backbone import Backbone, Layout, State, Weights, with_layout
from wsss.models.maps import as_maps, grid_of, kept, prefix_of

PREFIX = "timm:"
"""Of the names of these backbones."""

_LAST = ("norm", "bn2", "final_conv")
"""Modules after the last stage that still give maps: of transformers, CoAtNets, EfficientNets and RegNets."""


@dataclass(frozen=True)
class Sizes:
    """Which sizes of images a network takes."""

    multiple: int = 1
    """Height and width are multiples of this."""
    fixed: tuple[int, int] | None = None
    """The only size (H, W)."""

    def nearest(self, height: int, width: int) -> tuple[int, int]:
        """The nearest of them."""
        step = self.multiple
        return self.fixed or (
            max(step, (height + step // 2) // step * step),
            max(step, (width + step // 2) // step * step),
        )

    def examples(self) -> list[tuple[int, int]]:
        """Two sizes to try it with, of different shapes unless it takes only one."""
        step = self.multiple
        return [self.nearest(max(step, 150), max(2 * step, 217)), self.nearest(max(step, 130), max(step, 96))]


@dataclass(frozen=True)
class TimmBackbone(Backbone):
    """A network of timm."""

    sizes: Sizes = Sizes()
    arguments: tuple[tuple[str, Any], ...] = ()
    """Of ``timm.create_model``, so that the network takes photos of these sizes."""
    pooling: tuple[tuple[str, Any], ...] = ()
    """Likewise for classifiers that are trained here: vision transformers score the mean of their cells, not the class
    token. Below the mean every cell counts alike, so that Grad-CAM of the last layer is CAM."""
    trained: Layout | None = None
    """Of such classifiers, where it differs."""

    @property
    def classifier_layout(self) -> Layout:
        """See the base class."""
        return self.trained or self.layout

    def network(self, output_stride: int = 32, small_images: bool = False) -> nn.Module:
        """The network with fresh weights and 1000 logits; see the base class."""
        return self._create(1000, output_stride)

    def classifier(self, classes: int, output_stride: int, small_images: bool) -> nn.Module:
        """See the base class. ``small_images`` has no effect."""
        model = self._create(classes, output_stride, **dict(self.pooling))
        return with_layout(self._prepared(model), self.classifier_layout)

    def stride(self, wanted: int) -> int:
        """See the base class. It is measured: some families ignore what they cannot do."""
        with torch.device("meta"):
            model = self._create(1000, wanted)
            images = torch.empty(1, 3, *self.sizes.nearest(448, 448))
        with torch.no_grad():
            grid = grid_of(model.forward_features(images).shape, images.shape, prefix_of(model))  # type: ignore[operator]
        return self.strides[-1] if grid is None else round(images.shape[-1] / grid.width)

    def trunk(self, output_stride: int, small_images: bool = False) -> tuple[nn.Module, tuple[str, ...]]:
        """See the base class. Parameters that get no gradient, such as those after the last stage, are frozen."""
        model = self._create(0, output_stride)
        with torch.device("meta"):
            probe = self._create(0, output_stride)
            images = torch.empty(1, 3, *self.sizes.nearest(448, 448))
        (last,) = self.maps(probe, images, [self.classifier_layout.last])
        names, values = zip(*probe.named_parameters(), strict=True)
        gradients = torch.autograd.grad(last.sum(), values, allow_unused=True)
        used = {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
        for name, value in model.named_parameters():
            value.requires_grad_(name in used)
        return model, self.layout.heads

    def maps(self, trunk: nn.Module, images: Tensor, layers: Sequence[str]) -> list[Tensor]:
        """See the base class."""
        if (self.mean, self.deviation) != (MEAN, STD):
            (images,) = Renormalise(self.mean, self.deviation)(trunk, (images,))
        with kept(trunk, layers, images) as found:
            trunk.forward_features(images)  # type: ignore[operator]
        return [found[layer] for layer in layers]

    def complete(self, model: nn.Module) -> nn.Module:
        """See the base class."""
        return with_layout(self._prepared(model), self.layout)

    def adapt(self, state: State, model: nn.Module) -> State:
        """A published state dict under the names of the model: timm's own filter, where the family has one."""
        rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        return state if rename is None else dict(rename(dict(state), model))

    def fitted(self, model: nn.Module) -> nn.Module:
        """See the base class."""
        if self.sizes != Sizes():
            model.register_forward_pre_hook(Resize(self.sizes))
        return model

    def _prepared(self, model: nn.Module) -> nn.Module:
        """The model, behind hooks that bring photos to its size and normalisation."""
        self.fitted(model)
        if (self.mean, self.deviation) != (MEAN, STD):
            model.register_forward_pre_hook(Renormalise(self.mean, self.deviation))
        return model

    def _create(self, classes: int, output_stride: int, **arguments: Any) -> nn.Module:
        """Dilated if the family can; else it keeps its stride."""
        name = self.name.removeprefix(PREFIX)
        arguments = {**dict(self.arguments), **arguments}
        try:
            return create(name, classes, output_stride=output_stride, **arguments)
        except (TypeError, NotImplementedError):
            return create(name, classes, **arguments)


class Resize:
    """A hook before a network that takes some sizes only: photos are resized to the nearest of them.

    The maps then still cover the whole photo.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def __call__(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        """(B, 3, H, W) -> the same at the nearest size."""
        images = inputs[0]
        size = self.sizes.nearest(images.shape[-2], images.shape[-1])
        if images.shape[-2:] == size:
            return (images,)
        precise = images if images.dtype == torch.float64 else images.float()
        resized = functional.interpolate(precise, size, mode="bilinear", align_corners=False, antialias=True)
        return (resized.to(images.dtype),)


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
    try:
        form = _form(bare)
    except RuntimeError as error:
        raise UserError(
            f"{option} is {name}, but timm has no such weights ({error}); leave out what follows the dot"
        ) from error
    if form is None:
        raise UserError(
            f"{option} is {name}, which gives no feature maps of photos; choose another network of timm"
        )
    model, sizes, arguments = form
    configuration: Any = timm.get_pretrained_cfg(bare)
    said = configuration.classifier
    heads = (said,) if isinstance(said, str) else tuple(said or ())
    if not heads:
        raise UserError(f"{option} is {name}, whose head wsss does not know; choose another network of timm")
    pooling = _pooling(bare, model, heads, arguments)
    stages = _stages(model, sizes)
    if not stages:
        raise UserError(
            f"{option} is {name}, whose layers wsss does not know; choose another network of timm"
        )
    layers, channels, strides = zip(*stages, strict=True)
    layout = Layout(stages=layers, path=(), head=heads[0], second_head="".join(heads[1:2]))
    own = replace(layout, stages=(*layers[:-1], _before_class_token(model, layers[-1])))
    return TimmBackbone(
        name,
        lambda: create(bare, 1000, **arguments),
        Weights(f"https://huggingface.co/{configuration.hf_hub_id}", lambda: _published(bare)),
        layout=own,
        strides=strides,
        channels=channels,
        multiple=sizes.multiple,
        mean=tuple(configuration.mean),
        deviation=tuple(configuration.std),
        segments=sizes.fixed is None,
        sizes=sizes,
        arguments=tuple(arguments.items()),
        pooling=tuple(pooling.items()),
        trained=layout if pooling else own,
    )


def _form(name: str) -> tuple[nn.Module, Sizes, dict[str, Any]] | None:
    """The network on the meta device, the sizes that it takes, and the arguments that let it; None if it gives no maps.

    The most flexible way that works: any size, multiples of the patch or of the last stride, multiples of the size
    that it was trained with, or that size alone.
    """
    with torch.device("meta"):
        model = create(name, 1000).eval()
    own: tuple[int, int] = tuple(model.pretrained_cfg["input_size"][-2:])  # type: ignore[index]
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 16)
    patch = patch[0] if isinstance(patch, tuple) else patch
    step = max(patch, *(stage["reduction"] for stage in _feature_info(model)))
    forms: tuple[tuple[Sizes, dict[str, Any]], ...] = (
        (Sizes(), {}),
        (Sizes(step), {"dynamic_img_size": True}),
        (Sizes(step), {}),
        (Sizes(step), {"strict_img_size": False}),
        (Sizes(own[0]), {}),
        (Sizes(fixed=own), {}),
    )
    for sizes, arguments in forms:
        try:
            with torch.device("meta"):
                model = create(name, 1000, **arguments).eval()
        except TypeError:
            continue
        if gives_maps(model, sizes):
            return model, sizes, arguments
    return None


def gives_maps(model: nn.Module, sizes: Sizes) -> bool:
    """Whether a network on the meta device gives feature maps and logits of images of these sizes."""
    with torch.no_grad():
        for size in sizes.examples():
            images = torch.empty(1, 3, *size, device="meta")
            try:
                maps, logits = model.forward_features(images), model(images)  # type: ignore[operator]
            except (AssertionError, RuntimeError, TypeError):
                return False
            if not isinstance(maps, Tensor) or not isinstance(logits, Tensor) or logits.shape != (1, 1000):
                return False
            grid = grid_of(maps.shape, images.shape, prefix_of(model))
            if grid is None or grid.height * grid.width == 1:
                return False
    return True


def _pooling(
    name: str, model: nn.Module, heads: tuple[str, ...], arguments: dict[str, Any]
) -> dict[str, Any]:
    """The arguments by which a vision transformer scores the mean of its cells, normalised one by one."""
    pooling = {"global_pool": "avg", "fc_norm": False}
    if getattr(model, "global_pool", None) != "token" or len(heads) > 1:
        return {}
    try:
        with torch.device("meta"):
            changed = create(name, 1000, **arguments, **pooling)
    except (TypeError, AssertionError):
        return {}
    return pooling if _has(changed, "norm") and getattr(changed, "global_pool", None) == "avg" else {}


def _feature_info(model: nn.Module) -> list[dict[str, Any]]:
    info: Any = getattr(model, "feature_info", None) or []
    return list(getattr(info, "info", info))


def _stages(model: nn.Module, sizes: Sizes) -> list[tuple[str, int, int]]:
    """Name, channels and stride of each stage, as a forward pass on the meta device shows them.

    Plain transformers have the patches, and the ends of four quarters.
    """
    info = _feature_info(model)
    names = [stage["module"] for stage in info]
    if len({stage["reduction"] for stage in info}) == 1 and len(info) > 4:
        ends = [(quarter * len(info) + 3) // 4 - 1 for quarter in (1, 2, 3, 4)]
        names = ["patch_embed", *(names[end] for end in ends)]
    token_blocks = hasattr(model, "blocks_token_only") or hasattr(model, "cls_attn_blocks")
    if not token_blocks and (last := next((layer for layer in _LAST if _has(model, layer)), None)):
        names[-1] = last
    images = torch.empty(1, 3, *sizes.nearest(448, 448), device="meta")
    modules = dict(model.named_modules())
    found: dict[str, Tensor] = {}
    for name in set(names) & set(modules):
        modules[name].register_forward_hook(lambda _, __, output, name=name: found.update({name: output}))
    with torch.no_grad():
        model(images)
    stages = []
    for name in names:
        try:
            maps = as_maps(found.get(name), images.shape, name, prefix_of(model)).maps
        except UserError:  # some names of timm are wrong, and some modules give more than maps
            continue
        stages.append((name, maps.shape[1], round(images.shape[-1] / maps.shape[-1])))
    return stages


def _before_class_token(model: nn.Module, last: str) -> str:
    """The last layer whose cells the class token sees: nothing after the last block does, in most transformers."""
    blocks = getattr(model, "blocks", None)
    if last != "norm" or getattr(model, "global_pool", None) != "token" or blocks is None:
        return last
    return f"blocks.{len(blocks) - 1}.norm1"


def _has(model: nn.Module, layer: str) -> bool:
    return not isinstance(getattr(model, layer, nn.Identity()), nn.Identity)


def _published(name: str) -> State:
    """What timm downloads for this network.

    Raises:
        UserError: it has no weights, or they were trained on masks.
    """
    import timm

    if name.startswith(("samvit_", "sam2_")):
        raise UserError(
            f"the weights of {PREFIX}{name} were trained on masks; choose another network, or `none`"
        )
    configuration: Any = timm.get_pretrained_cfg(name)
    if not (configuration.hf_hub_id or configuration.url):
        raise UserError(
            f"there are no published weights of {PREFIX}{name}; give `none` or the path of a file"
        )
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
