"""Segmentation networks: photo in, one logit per class (background first) and pixel out."""

from collections.abc import Sequence
from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from wsss.config import SEGMENTERS, Config, SegmenterConfig
from wsss.data.transforms import scaled_size
from wsss.errors import UserError
from wsss.models import smp
from wsss.models.backbone import BACKBONES, Backbone
from wsss.models.classifier import classifier_backbone
from wsss.models.encoders import Pyramid, Trunk
from wsss.models.heads import AtrousClassifiers, LightHead, LRASPPHead, PlusHead, ProgressiveHead
from wsss.models.pretraining import backbone_state
from wsss.models.timm_networks import PREFIX, timm_backbone
from wsss.models.weights import load_into, load_weights

WITHIN = "network"
"""Where the backbone is in classifiers that score cells."""

HEADS = ("deeplabv2", "deeplabv3", "deeplabv3plus", "lraspp", "linear", "fpn", "pup")
"""The heads: what may come before the underscore of ``segmenter.architecture``."""


def check_architecture(config: Config) -> None:
    """Raises UserError if the classifier or the segmenter uses a backbone that does not exist."""
    classifier_backbone(config.classifier.architecture)
    split_architecture(config.segmenter.architecture)


def split_architecture(architecture: str) -> tuple[str, Backbone]:
    """``HEAD_BACKBONE``, ``light``, ``smp:NAME`` or ``smp:NAME/ENCODER`` -> (head, record of the backbone).

    The head is one of `HEADS`, ``light`` or ``smp``.

    Raises:
        UserError: an unknown head, backbone or encoder; the message suggests close names.
    """
    if architecture.startswith("smp:"):
        return "smp", BACKBONES[smp.split_name(architecture)[1]]
    if architecture == "light":
        return "light", BACKBONES["resnet18"]
    head, _, name = architecture.partition("_")
    trunks = [other for other, backbone in BACKBONES.items() if backbone.segments]
    if head in HEADS and name.startswith(PREFIX):
        backbone = timm_backbone(name, "segmenter.architecture")
        if not backbone.segments:
            raise UserError(
                f"segmenter.architecture is {architecture}, but {name} takes images of one size only; choose a network "
                "that takes photos of any size"
            )
        return head, backbone
    if head not in HEADS or name not in trunks:
        names = [*SEGMENTERS, *(f"{head}_{name}" for head in HEADS for name in trunks)]
        near = get_close_matches(architecture, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"segmenter.architecture is {architecture}, but must be one of {', '.join(SEGMENTERS)}, another "
            f"HEAD_BACKBONE of {', '.join(HEADS)} and {', '.join(trunks)} or timm:NAME, or smp:NAME (smp:Unet, "
            f"smp:UPerNet/resnet101){hint}"
        )
    return head, BACKBONES[name]


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
    name, backbone = split_architecture(config.architecture)
    trunk, head = _parts(name, backbone, config, classes)
    if pretrained and (state := _initial_state(config, backbone, initial)) is not None:
        network = trunk.get_submodule("network")
        # Other code calls a ResNet's head `classifier`.
        left_out = trunk.left_out if isinstance(trunk, Pyramid) else backbone.layout.heads
        ignore = (*left_out, "classifier.")
        if config.weights != "classifier":
            state = backbone.adapt(state, network)
        load_into(network, state, ignore=ignore, source=f"segmenter.weights {config.weights}")
    return Segmenter(trunk, head, multiple=smp.MULTIPLE if name == "smp" else backbone.multiple)


def _parts(
    name: str, backbone: Backbone, config: SegmenterConfig, classes: int
) -> tuple[nn.Module, nn.Module]:
    """Trunk, with the network that takes the weights as ``network``, and head."""
    last, width = len(backbone.channels) - 1, backbone.channels[-1]
    wanted = config.output_stride or (8 if name == "deeplabv2" else 16)
    stride = backbone.stride(wanted)
    match name:
        case "deeplabv2":
            return Trunk(backbone, wanted), AtrousClassifiers(width, classes, stride)
        case "deeplabv3":
            return Trunk(backbone, wanted), DeepLabHead(width, classes, atrous_rates(stride))
        case "linear":
            return Trunk(backbone, wanted), nn.Conv2d(width, classes, kernel_size=1)
        case "pup":
            return Trunk(backbone, wanted), ProgressiveHead(width, classes)
        case "fpn":
            every = Pyramid(backbone, wanted, tuple(range(max(0, last - 3), last + 1)))
            return every, LightHead(every.channels, classes)
        case "deeplabv3plus":
            ends = Pyramid(backbone, wanted, (backbone.stage(4), last))
            return ends, PlusHead(ends.channels[0], width, classes, atrous_rates(stride))
        case "lraspp":
            ends = Pyramid(backbone, wanted, (backbone.stage(8), last))
            return ends, LRASPPHead(ends.channels[0], width, classes, inter_channels=128)
        case "light":
            pyramid = Pyramid(backbone, 16, tuple(range(last - 3, last + 1)))
            return pyramid, LightHead(pyramid.channels, classes)
    return smp.build(config.architecture, classes)


def atrous_rates(stride: int) -> tuple[int, ...]:
    """DeepLabV3's 6, 12 and 18 at output stride 16, which it doubles at 8 (Chen et al. 2017, section 4)."""
    return tuple(rate * 16 // stride for rate in (6, 12, 18))


def _initial_state(
    config: SegmenterConfig, backbone: Backbone, initial: dict[str, Tensor] | None
) -> dict[str, Tensor] | None:
    """Backbone weights as ``config`` asks for them; None for fresh ones."""
    if config.weights == "classifier":
        if initial is None:
            raise UserError(
                "segmenter.weights is `classifier`, but there is no classifier; run `wsss classify` first"
            )
        own = f"{WITHIN}."
        return {
            name.removeprefix(own): value for name, value in initial.items() if name.startswith(own)
        } or initial
    state = load_weights(config.weights, backbone, "segmenter.weights")
    if state is None:
        return None
    return backbone_state(state, f"segmenter.weights {config.weights}", config.allow_mask_pretraining)


class Segmenter(nn.Module):
    """Backbone, head, and bilinear upsampling to the input's size.

    Args:
        backbone: its ``network`` has the names of a classifier's state dict.
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
