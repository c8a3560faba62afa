"""Segmentation networks: photo in, one logit per class (background first) and pixel out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from wsss.config import SegmenterConfig
from wsss.data.transforms import scaled_size
from wsss.errors import UserError
from wsss.models.backbones import load_into, load_weights, resnet

# DeepLabV3 gives these rates for output stride 16 and doubles them for 8 (Chen et al. 2017, section 4).
_ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}


def backbone_name(architecture: str) -> str:
    """torchvision's name of the backbone of a segmenter architecture."""
    return "resnet18" if architecture == "light" else architecture.removeprefix("deeplabv3_")


def build_segmenter(
    config: SegmenterConfig,
    classes: int,
    *,
    initial: dict[str, Tensor] | None = None,
    pretrained: bool = True,
) -> "Segmenter":
    """The network of ``config`` with ``classes`` logits, background included.

    Args:
        config: architecture and weights.
        classes: number of classes with background.
        initial: backbone weights for ``weights: classifier``.
        pretrained: False builds the bare network, to load a checkpoint into.

    Raises:
        UserError: the weights are missing or of another architecture.
    """
    name = backbone_name(config.architecture)
    backbone: nn.Module
    if config.architecture == "light":
        backbone = Pyramid(resnet(name, 16))
        head: nn.Module = LightHead(Pyramid.CHANNELS, classes)
    elif name.startswith("resnet"):
        trunk = resnet(name, config.output_stride)
        width = int(trunk.get_submodule("fc").in_features)  # type: ignore[arg-type]
        backbone, head = Trunk(trunk), DeepLabHead(width, classes, _ATROUS_RATES[config.output_stride])
    else:
        features = models.mobilenet_v3_large(weights=None, dilated=True).features
        backbone, head = MobileTrunk(features), DeepLabHead(960, classes, _ATROUS_RATES[16])
    if pretrained:
        state = (
            initial
            if config.weights == "classifier"
            else load_weights(config.weights, name, "segmenter.weights")
        )
        if config.weights == "classifier" and state is None:
            raise UserError(
                "segmenter.weights is `classifier`, but there is no classifier; run `wsss classify` first"
            )
        if state is not None:
            _load_backbone(backbone, state, f"segmenter.weights {config.weights}")
    return Segmenter(backbone, head)


def _load_backbone(backbone: nn.Module, state: dict[str, Tensor], source: str) -> None:
    inner = backbone.network if hasattr(backbone, "network") else backbone
    assert isinstance(inner, nn.Module)
    load_into(inner, state, ignore=("fc.", "classifier."), source=source)


class Segmenter(nn.Module):
    """Backbone, head, and bilinear upsampling to the input's size."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, classes, H, W)."""
        logits = self.head(self.backbone(images))
        return functional.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


class _ResNet(nn.Module):
    """A torchvision ResNet without its classifier; ``network`` keeps the names of its state dict."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        network.fc = nn.Identity()
        self.network = network

    def stem(self, images: Tensor) -> Tensor:
        net = self.network
        hidden: Tensor = net.maxpool(net.relu(net.bn1(net.conv1(images))))  # type: ignore[operator]
        return hidden


class Trunk(_ResNet):
    """The last feature map of a ResNet."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width, H / stride, W / stride)."""
        hidden = self.stem(images)
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            hidden = self.network.get_submodule(stage)(hidden)
        return hidden


class Pyramid(_ResNet):
    """The feature maps of all four stages of a ResNet-18, fine to coarse."""

    CHANNELS = (64, 128, 256, 512)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> four maps (B, CHANNELS[i], H / s, W / s) at strides s = 4, 8, 16, 16."""
        hidden, maps = self.stem(images), []
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            hidden = self.network.get_submodule(stage)(hidden)
            maps.append(hidden)
        return maps


class MobileTrunk(nn.Module):
    """MobileNetV3's convolutional part; ``network`` keeps torchvision's ``features.`` names."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.network = nn.ModuleDict({"features": features})

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 960, H / 16, W / 16)."""
        maps: Tensor = self.network["features"](images)
        return maps


class LightHead(nn.Module):
    """Feature pyramid decoder: 1x1 laterals, summed top down, one 3x3 convolution (after Lin et al., FPN)."""

    def __init__(self, channels: Sequence[int], classes: int, width: int = 64) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channel, width, kernel_size=1, bias=False), nn.BatchNorm2d(width))
            for channel in channels
        )
        self.smooth = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.classify = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps fine to coarse -> logits at the finest map's resolution."""
        merged: Tensor = self.laterals[-1](maps[-1])
        for lateral, features in zip(reversed(self.laterals[:-1]), reversed(maps[:-1]), strict=True):
            merged = functional.interpolate(
                merged, size=features.shape[-2:], mode="bilinear", align_corners=False
            )
            merged = merged + lateral(features)
        logits: Tensor = self.classify(self.smooth(merged))
        return logits


def predict_probabilities(
    model: nn.Module, images: Tensor, scales: Sequence[float] = (1.0,), flip: bool = False
) -> Tensor:
    """Softmax probabilities, averaged over input scales and mirror images.

    Args:
        model: a segmenter in eval mode.
        images: (B, 3, H, W) normalised.
        scales: factors of the input size.
        flip: also predict the mirror image at every scale.

    Returns:
        (B, classes, H, W) float32, sums to one over classes.
    """
    size = (int(images.shape[-2]), int(images.shape[-1]))
    total: Tensor | None = None
    for scale in scales:
        scaled = images
        if scale != 1:
            scaled = functional.interpolate(
                images, scaled_size(size, scale), mode="bilinear", align_corners=False
            )
        logits = model(torch.cat([scaled, scaled.flip(3)]) if flip else scaled).float()
        probabilities = logits.softmax(1)
        if flip:
            plain, mirrored = probabilities.chunk(2)
            probabilities = plain + mirrored.flip(3)
        if scale != 1:
            probabilities = functional.interpolate(probabilities, size, mode="bilinear", align_corners=False)
        total = probabilities if total is None else total + probabilities
    if total is None:
        raise ValueError("scales is empty")
    return total / (len(scales) * (2 if flip else 1))
