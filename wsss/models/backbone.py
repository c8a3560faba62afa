"""Backbones: one record each, with everything that the rest of the package needs to know about a network.

A new backbone is an entry of `BACKBONES`. Classifier, segmenter, extension, DCSM, Relevance-CAM, `wsss explain` and
`wsss compare` find it there by name, or with `layout_of` if they have a network but no name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vgg import cfgs, make_layers

from wsss.data.transforms import MEAN, STD
from wsss.errors import UserError
from wsss.models.resnet import dilate
from wsss.models.vgg import VGG16, convolutionalize

State = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Which layer of a network does what, as `get_submodule` paths.

    Attributes:
        stages: layers that give the feature maps (B, k, u, v), fine to coarse; each one is in `path`.
        path: modules in the order of the forward pass, from the photo to the logits, where each module takes the output
            of the one before; empty if that is unknown.
        head: the module that scores the classes.
        guided: activations that DCSM differentiates at; empty: the last three stages.
        convolutions: the convolutions of these activations, for DCSM's variant "caffe"; empty: the last three stages.
        second_head: another module that scores them, as distilled transformers have.
    """

    stages: tuple[str, ...]
    path: tuple[str, ...]
    head: str
    guided: tuple[str, ...] = ()
    convolutions: tuple[str, ...] = ()
    second_head: str = ""

    @property
    def last(self) -> str:
        """The last layer with feature maps: where CAM methods look unless told otherwise."""
        return self.stages[-1]

    @property
    def above(self) -> tuple[str, ...]:
        """What follows the last stage: pooling and head."""
        return self.path[self.path.index(self.last) + 1 :]

    def within(self, name: str, head: str) -> "Layout":
        """The layout where this network is the submodule `name` of another, which scores the classes with `head`."""
        stages, guided, convolutions = (
            tuple(f"{name}.{layer}" for layer in layers)
            for layers in (self.stages, self.guided, self.convolutions)
        )
        return Layout(stages, (), head, guided, convolutions)

    @property
    def heads(self) -> tuple[str, ...]:
        """What the names of the heads' parameters start with."""
        return tuple(f"{head}." for head in (self.head, self.second_head) if head)

    def is_head(self, parameter: str) -> bool:
        """Whether a parameter's name belongs to a head, which is new and learns faster."""
        return parameter.startswith(self.heads)


@dataclass(frozen=True)
class Weights:
    """Where `weights: imagenet` comes from."""

    url: str
    """Of the file, for people without a connection."""
    read: Callable[[], State]
    """Downloads it once and reads it; its errors are those of the library."""


@dataclass(frozen=True)
class Remodelled:
    """A classifier that differs from the library's network by more than its head."""

    build: Callable[[int], nn.Module]
    """Number of classes -> (B, 3, H, W) -> logits (B, classes)."""
    adapt: Callable[[State], State]
    """The library's state dict under this network's names."""
    layout: Layout


@dataclass(frozen=True)
class Backbone:
    """What is known about a network that was trained on ImageNet."""

    name: str
    build: Callable[[], nn.Module]
    """The library's network, (B, 3, H, W) -> logits (B, 1000), with fresh weights."""
    weights: Weights
    layout: Layout
    """Of the library's network."""
    strides: tuple[int, ...]
    """Input pixels per cell of each stage's map, as built."""
    channels: tuple[int, ...]
    """Of each stage's map."""
    dilate: Callable[[nn.Module, int], None] | None = None
    """Replaces the stride of a stage by a dilation; None: the strides are fixed."""
    stem_pooling: str | None = None
    """The pooling that is dropped for small images; None: there is none."""
    mean: tuple[float, float, float] = MEAN
    """Of the input's channels, RGB in 0..1."""
    deviation: tuple[float, float, float] = STD
    """Standard deviation of the input's channels."""
    multiple: int = 1
    """Height and width of the input must be multiples of this."""
    classifies: bool = True
    """Whether it can be a classifier."""
    segments: bool = True
    """Whether it can be the trunk of a segmenter."""
    remodelled: Remodelled | None = None
    """The classifier, if it is not the library's network with a bias-free linear head."""

    @property
    def classifier_layout(self) -> Layout:
        """Of the classifier that is trained."""
        return self.layout if self.remodelled is None else self.remodelled.layout

    def network(self, output_stride: int = 32, small_images: bool = False) -> nn.Module:
        """The library's network with fresh weights.

        Args:
            output_stride: 32, 16 or 8, counted with the full stem; only for backbones that can be dilated.
            small_images: without the pooling of the stem, which halves every stride.
        """
        model = self.build()
        if self.dilate is not None and output_stride <= 16:
            self.dilate(model.get_submodule(self.layout.stages[-1]), 2 if output_stride == 16 else 4)
        if self.dilate is not None and output_stride <= 8:
            self.dilate(model.get_submodule(self.layout.stages[-2]), 2)
        if small_images and self.stem_pooling is not None:
            model.set_submodule(self.stem_pooling, nn.Identity())
        return model

    def classifier(self, classes: int, output_stride: int, small_images: bool) -> nn.Module:
        """A classifier with fresh weights, (B, 3, H, W) -> logits (B, classes); arguments as `network`."""
        if self.remodelled is not None:
            return with_layout(self.remodelled.build(classes), self.remodelled.layout)
        model = self.network(output_stride, small_images)
        width = model.get_submodule(self.layout.head).in_features
        head = nn.Linear(int(width), classes, bias=False)  # type: ignore[arg-type]
        nn.init.normal_(head.weight, std=0.01)
        model.set_submodule(self.layout.head, head)
        return with_layout(model, self.layout)

    def stride(self, wanted: int) -> int:
        """Of the last stage, where a network is built with that output stride."""
        return self.strides[-1] if self.dilate is None else wanted

    def trunk(self, output_stride: int, small_images: bool = False) -> tuple[nn.Module, tuple[str, ...]]:
        """The network with fresh weights, without what follows its last stage; what the names of that start with."""
        model = self.network(output_stride, small_images)
        for name in self.layout.above:
            model.set_submodule(name, nn.Identity())
        return model, tuple(f"{name}." for name in self.layout.above)

    def maps(self, trunk: nn.Module, images: Tensor, layers: Sequence[str]) -> list[Tensor]:
        """(B, 3, H, W) -> what the layers of a trunk give, (B, channels, H / stride, W / stride) each."""
        path = self.layout.path
        found, hidden = [], images
        for name in path[: path.index(self.layout.last) + 1]:
            hidden = trunk.get_submodule(name)(hidden)
            if name in layers:
                found.append(hidden)
        return found

    def adapt(self, state: State, model: nn.Module) -> State:
        """A state dict of the library under the names of the classifier ``model``."""
        return state if self.remodelled is None else self.remodelled.adapt(state)

    def fitted(self, model: nn.Module) -> nn.Module:
        """A network around `trunk`, behind hooks that bring photos to a size that it takes."""
        return model

    def complete(self, model: nn.Module) -> nn.Module:
        """The library's network, ready for photos in ImageNet's normalisation and for `layout_of`."""
        return with_layout(model, self.layout)

    def stage(self, stride: int) -> int:
        """The number of the first stage with this stride.

        Raises:
            UserError: there is none.
        """
        if stride not in self.strides:
            raise UserError(
                f"{self.name} has no feature map at stride {stride}, which this segmenter needs; "
                "choose deeplabv3, fpn, pup or linear on it, or another backbone"
            )
        return self.strides.index(stride)


def with_layout(network: nn.Module, layout: Layout) -> nn.Module:
    """The network itself, registered for `layout_of`."""
    object.__setattr__(network, "layout", layout)
    return network


def layout_of(network: nn.Module) -> Layout | None:
    """The layout of a network that was built here, or of one of torchvision's ResNets and VGGs; None for others."""
    known = getattr(network, "layout", None)
    if isinstance(known, Layout):
        return known
    forward = getattr(type(network), "forward", None)  # traced networks have none
    if all(
        hasattr(network, stage) for stage in _RESNET.stages[1:]
    ):  # other libraries name the stem otherwise
        return _RESNET if forward is models.ResNet.forward else replace(_RESNET, path=())
    features = getattr(network, "features", None)
    if not isinstance(features, nn.Sequential):
        return None
    if isinstance(network, VGG16):
        return _vgg_layout(features, _CONVOLUTIONAL)
    if forward is models.VGG.forward:
        classifier = network.get_submodule("classifier")
        return _vgg_layout(
            features, ("avgpool", *(f"classifier.{name}" for name, _ in classifier.named_children()))
        )
    found = _vgg_layout(features, ())
    return replace(found, path=()) if found.guided else None


def _torchvision(entry: Any) -> Weights:
    return Weights(entry.url, partial(entry.get_state_dict, progress=True, check_hash=True))


# -- torchvision's families -------------------------------------------------------------------------

_RESNET = Layout(
    stages=("relu", "layer1", "layer2", "layer3", "layer4"),
    path=("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"),
    head="fc",
)


def _resnet(name: str, weights: Any, channels: tuple[int, ...]) -> Backbone:
    return Backbone(
        name,
        partial(getattr(models, name), weights=None),
        _torchvision(weights),
        _RESNET,
        strides=(2, 4, 8, 16, 32),
        channels=channels,
        dilate=dilate,
        stem_pooling="maxpool",
    )


_CONVOLUTIONAL = ("fc6", "relu", "fc7", "relu", "fc8")


def _vgg_layout(features: nn.Sequential, top: tuple[str, ...]) -> Layout:
    """Of a network whose modules are ``features`` and ``top``, as torchvision's VGGs.

    A stage ends with the last ReLU before each pooling. DCSM's layers are those behind the second pooling: conv3_1
    and later.
    """
    stages: list[str] = []
    guided: list[str] = []
    convolutions: list[str] = []
    last, pools = "", 0
    for name, module in features.named_children():
        layer = f"features.{name}"
        if isinstance(module, nn.MaxPool2d):
            stages.append(last)
            pools += 1
        elif isinstance(module, nn.ReLU):
            last = layer
            guided += [layer] if pools >= 2 else []
        elif isinstance(module, nn.Conv2d):
            convolutions += [layer] if pools >= 2 else []
    if last not in stages:
        stages.append(last)
    path = (*(f"features.{name}" for name, _ in features.named_children()), *top)
    return Layout(tuple(stages), path, path[-1], tuple(guided), tuple(convolutions))


def _vgg16(name: str, weights: Any, batch_norm: bool) -> Backbone:
    with torch.device("meta"):
        features = make_layers(cfgs["D"], batch_norm=batch_norm)
    own = _vgg_layout(features, _CONVOLUTIONAL)
    return Backbone(
        name,
        partial(getattr(models, name), weights=None),
        _torchvision(weights),
        _vgg_layout(features, ("avgpool", *(f"classifier.{index}" for index in range(7)))),
        strides=(1, 2, 4, 8, 16),
        channels=(64, 128, 256, 512, 512),
        segments=False,
        remodelled=Remodelled(partial(VGG16, batch_norm=batch_norm), convolutionalize, own),
    )


# torchvision's segmenters branch off at these blocks.
_MOBILENET = Layout(
    stages=("features.2", "features.4", "features.7", "features.16"),
    path=(*(f"features.{index}" for index in range(17)), "avgpool", "classifier"),
    head="classifier.3",
)

# The weights that the WSSS literature starts from. torchvision's newer V2 recipes reach a higher
# top-1 accuracy but are not comparable.
_RECORDS = (
    _resnet("resnet18", models.ResNet18_Weights.IMAGENET1K_V1, (64, 64, 128, 256, 512)),
    _resnet("resnet34", models.ResNet34_Weights.IMAGENET1K_V1, (64, 64, 128, 256, 512)),
    _resnet("resnet50", models.ResNet50_Weights.IMAGENET1K_V1, (64, 256, 512, 1024, 2048)),
    _resnet("resnet101", models.ResNet101_Weights.IMAGENET1K_V1, (64, 256, 512, 1024, 2048)),
    _vgg16("vgg16", models.VGG16_Weights.IMAGENET1K_V1, batch_norm=False),
    _vgg16("vgg16_bn", models.VGG16_BN_Weights.IMAGENET1K_V1, batch_norm=True),
    Backbone(
        "mobilenet_v3_large",
        partial(models.mobilenet_v3_large, weights=None, dilated=True),
        _torchvision(models.MobileNet_V3_Large_Weights.IMAGENET1K_V1),
        _MOBILENET,
        strides=(4, 8, 16, 16),
        channels=(24, 40, 80, 960),
        classifies=False,
    ),
)
BACKBONES: dict[str, Backbone] = {record.name: record for record in _RECORDS}
"""Every backbone, under the name that configurations use."""
