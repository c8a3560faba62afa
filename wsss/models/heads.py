"""Heads of the segmentation networks: feature maps in, logits at the finest map's resolution out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.models.segmentation.lraspp import LRASPPHead as _LRASPPHead


def resize(maps: Tensor, like: Tensor) -> Tensor:
    """Bilinear resizing of (B, C, h, w) to the height and width of ``like``."""
    return functional.interpolate(maps, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _block(channels: int, width: int, kernel: int) -> nn.Sequential:
    """Convolution without bias that keeps the size, BatchNorm, ReLU."""
    convolution = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())


class AtrousClassifiers(nn.Module):
    """DeepLabV2's atrous spatial pyramid: the sum of 3x3 classifiers at several dilations (Chen et al. 2016).

    ``logits = sum over r of W_r *_r features + b_r``, where ``*_r`` is convolution at dilation r. There is nothing
    between the backbone and the classifiers: the variant that the ResNet-101 models of the paper, and the
    weakly supervised papers after them, use. Weights start at a standard deviation of 0.01, biases at zero.

    Deviations from the public recipes: the loss is taken at the photo's resolution, not on masks that are shrunk
    to the logits', and training sees one scale of a photo at a time, not the maximum over three.
    """

    RATES = (6, 12, 18, 24)
    """Dilations at stride 8; other strides divide them, so that the kernels see the same part of the photo."""

    def __init__(self, channels: int, classes: int, output_stride: int = 8) -> None:
        super().__init__()
        rates = [rate * 8 // output_stride for rate in self.RATES]
        self.classifiers = nn.ModuleList(
            nn.Conv2d(channels, classes, kernel_size=3, padding=rate, dilation=rate) for rate in rates
        )
        for classifier in self.classifiers:
            nn.init.normal_(classifier.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) -> logits (B, classes, h, w)."""
        first, *others = self.classifiers
        logits: Tensor = first(features)
        for classifier in others:
            logits = logits + classifier(features)
        return logits


class PlusHead(nn.Module):
    """DeepLabV3+'s decoder: atrous pyramid, then outlines from the first stage (Chen et al. 2018, section 3.1).

    The pyramid's 256 channels are enlarged to the size of the first stage, which a 1x1 convolution reduces to 48
    channels; two 3x3 convolutions of 256 channels see both.

    Deviation: plain convolutions, where the paper's final models have depthwise separable ones.
    """

    LOW_WIDTH, WIDTH = 48, 256

    def __init__(self, low: int, high: int, classes: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.pyramid = ASPP(high, list(rates), self.WIDTH)
        self.reduce = _block(low, self.LOW_WIDTH, 1)
        self.refine = nn.Sequential(
            _block(self.LOW_WIDTH + self.WIDTH, self.WIDTH, 3), _block(self.WIDTH, self.WIDTH, 3)
        )
        self.classify = nn.Conv2d(self.WIDTH, classes, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, low, h, w) and a coarser (B, high, h', w') -> logits (B, classes, h, w)."""
        low, high = maps
        context = resize(self.pyramid(high), low)
        logits: Tensor = self.classify(self.refine(torch.cat([self.reduce(low), context], dim=1)))
        return logits


class LRASPPHead(_LRASPPHead):  # type: ignore[misc]
    """torchvision's LR-ASPP (Howard et al. 2019, section 6.4), which takes its two maps as a list."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, low, h, w) and a coarser (B, high, h', w') -> logits (B, classes, h, w)."""
        low, high = maps
        logits: Tensor = super().forward({"low": low, "high": high})
        return logits


class LightHead(nn.Module):
    """Feature pyramid decoder: 1x1 laterals, summed top down, one 3x3 convolution (after Lin et al., FPN)."""

    def __init__(self, channels: Sequence[int], classes: int, width: int = 64) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channel, width, kernel_size=1, bias=False), nn.BatchNorm2d(width))
            for channel in channels
        )
        self.smooth = _block(width, width, 3)
        self.classify = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps fine to coarse -> logits at the finest map's resolution."""
        merged: Tensor = self.laterals[-1](maps[-1])
        for lateral, features in zip(reversed(self.laterals[:-1]), reversed(maps[:-1]), strict=True):
            merged = resize(merged, features) + lateral(features)
        logits: Tensor = self.classify(self.smooth(merged))
        return logits


class ProgressiveHead(nn.Module):
    """Decoder for plain transformers, whose maps have one stride: SETR's progressive upsampling (Zheng et al. 2021,
    section 3.2), two rounds of a 3x3 convolution and bilinear enlarging by two.
    """

    def __init__(self, channels: int, classes: int, width: int = 256) -> None:
        super().__init__()
        self.rounds = nn.ModuleList((_block(channels, width, 3), _block(width, width, 3)))
        self.classify = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, channels, h, w) -> logits (B, classes, 4 h, 4 w)."""
        for block in self.rounds:
            maps = functional.interpolate(block(maps), scale_factor=2, mode="bilinear", align_corners=False)
        logits: Tensor = self.classify(maps)
        return logits
