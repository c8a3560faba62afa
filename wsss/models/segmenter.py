"""Segmentation networks: photo in, one logit per class (background first) and pixel out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.lraspp import LRASPPHead

from wsss.config import SegmenterConfig
from wsss.data.transforms import scaled_size
from wsss.errors import UserError
from wsss.models import smp
from wsss.models.backbones import load_into, load_weights, resnet
from wsss.models.encoders import EndsOfMobileTrunk, EndsOfTrunk, MobileTrunk, Pyramid, Trunk
from wsss.models.heads import AtrousClassifiers, LightHead, PlusHead
from wsss.models.pretraining import backbone_state

# DeepLabV3 gives these rates for output stride 16 and doubles them for 8 (Chen et al. 2017, section 4).
_ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
# Channels of the last stage where they are not 2048.
_WIDTHS = {"resnet18": 512, "resnet34": 512}


def backbone_name(architecture: str) -> str:
    """torchvision's name of the backbone of a segmenter architecture.

    Raises:
        UserError: an encoder for ``smp:`` whose weights are not known here.
    """
    if architecture.startswith("smp:"):
        return smp.split_name(architecture)[1]
    return "resnet18" if architecture == "light" else architecture.partition("_")[2]


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
        UserError: the weights are missing, of another architecture or trained on masks, or the library that the
            architecture comes from is not installed.
    """
    backbone, head = _parts(config, classes)
    if pretrained and (state := _initial_state(config, initial)) is not None:
        inner = backbone.get_submodule("network")
        load_into(inner, state, ignore=("fc.", "classifier."), source=f"segmenter.weights {config.weights}")
    return Segmenter(backbone, head, multiple=smp.MULTIPLE if config.architecture.startswith("smp:") else 1)


def _parts(config: SegmenterConfig, classes: int) -> tuple[nn.Module, nn.Module]:
    """Backbone, with the network that takes the weights as ``network``, and head."""
    name, stride = backbone_name(config.architecture), config.output_stride or 16
    width = _WIDTHS.get(name, 2048)
    match config.architecture.partition("_")[0]:
        case "deeplabv2":
            stride = config.output_stride or 8
            return Trunk(resnet(name, stride)), AtrousClassifiers(width, classes, stride)
        case "deeplabv3" if name.startswith("mobilenet"):
            return MobileTrunk(), DeepLabHead(MobileTrunk.WIDTH, classes, _ATROUS_RATES[16])
        case "deeplabv3":
            return Trunk(resnet(name, stride)), DeepLabHead(width, classes, _ATROUS_RATES[stride])
        case "deeplabv3plus":
            backbone = EndsOfTrunk(resnet(name, stride))
            return backbone, PlusHead(EndsOfTrunk.LOW, width, classes, _ATROUS_RATES[stride])
        case "lraspp":
            ends = EndsOfMobileTrunk()
            return ends, LRASPPHead(ends.LOW, ends.WIDTH, classes, inter_channels=128)
        case "light":
            return Pyramid(resnet(name, 16)), LightHead(Pyramid.CHANNELS, classes)
    return smp.build(config.architecture, classes)  # the configuration lets nothing else through


def _initial_state(config: SegmenterConfig, initial: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """Backbone weights as ``config`` asks for them; None for fresh ones."""
    if config.weights == "classifier":
        if initial is None:
            raise UserError(
                "segmenter.weights is `classifier`, but there is no classifier; run `wsss classify` first"
            )
        return initial
    state = load_weights(config.weights, backbone_name(config.architecture), "segmenter.weights")
    if state is None:
        return None
    return backbone_state(state, f"segmenter.weights {config.weights}", config.allow_mask_pretraining)


class Segmenter(nn.Module):
    """Backbone, head, and bilinear upsampling to the input's size.

    Args:
        backbone: of which ``network`` has the names of a classifier's state dict.
        head: takes what the backbone gives.
        multiple: the backbone sees heights and widths that are multiples of this, padded with zeros (the mean colour)
            on the right and at the bottom.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, multiple: int = 1) -> None:
        super().__init__()
        self.backbone, self.head, self.multiple = backbone, head, multiple

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, classes, H, W)."""
        height, width = images.shape[-2:]
        if self.multiple > 1:
            images = functional.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        logits = self.head(self.backbone(images))
        full = functional.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return full[..., :height, :width]


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
