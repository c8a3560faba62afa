"""Networks of segmentation-models-pytorch, an extra: ``smp:Unet``, ``smp:UPerNet/resnet101``.

Its own weights are never used. The encoder is a ResNet with torchvision's names and takes the weights of
``segmenter.weights``, like every other backbone.
"""

from typing import Any

from torch import Tensor, nn

from wsss.errors import UserError

MULTIPLE = 32
"""Its decoders want heights and widths that are multiples of the encoder's stride, at most 32."""

ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101")
"""Those of its encoders that have torchvision's names and weights."""

_ENCODER = "resnet50"


def split_name(architecture: str) -> tuple[str, str]:
    """``smp:NAME`` or ``smp:NAME/ENCODER`` -> (NAME, ENCODER); resnet50 where none is given.

    Raises:
        UserError: the encoder is not one of the ResNets whose weights are known here.
    """
    name, _, encoder = architecture.removeprefix("smp:").partition("/")
    if encoder and encoder not in ENCODERS:
        raise UserError(
            f"segmenter.architecture {architecture}: the encoder is {encoder}, but must be one of {', '.join(ENCODERS)}"
        )
    return name, encoder or _ENCODER


class Encoder(nn.Module):
    """An encoder of the library; ``network`` keeps the names of its state dict."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps fine to coarse, the photo first."""
        maps: list[Tensor] = self.network(images)
        return maps


class Decoder(nn.Module):
    """Decoder and head of one of its networks."""

    def __init__(self, decoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.decoder, self.head = decoder, head

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps of the encoder -> logits (B, classes, h, w)."""
        logits: Tensor = self.head(self.decoder(maps))
        return logits


def build(architecture: str, classes: int) -> tuple[Encoder, Decoder]:
    """Encoder and decoder of ``smp:NAME/ENCODER`` with fresh weights.

    Raises:
        UserError: the library is missing, or has no such network for this encoder.
    """
    name, encoder = split_name(architecture)
    library = _import()
    try:
        model = library.create_model(
            name, encoder_name=encoder, encoder_weights=None, in_channels=3, classes=classes
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"segmenter.architecture {architecture}: segmentation-models-pytorch cannot build it ({error}); "
            "give another name, for example smp:Unet"
        ) from error
    return Encoder(model.encoder), Decoder(model.decoder, model.segmentation_head)


def _import() -> Any:
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise UserError(
            f"segmenter.architecture smp:... needs segmentation-models-pytorch ({error}); install it with "
            '`pip install "wsss[smp]"`, or `pip install "segmentation-models-pytorch>=0.5"`'
        ) from error
    return segmentation_models_pytorch
