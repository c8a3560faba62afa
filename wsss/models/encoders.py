"""What segmentation networks see of a backbone: the maps of its stages, without its head.

``network`` keeps the library's names, so that a state dict of the classifier loads into it.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from wsss.models.backbone import Backbone


class Pyramid(nn.Module):
    """The maps of some stages of a backbone.

    Args:
        backbone: the record.
        output_stride: of the last stage, where the backbone can be dilated.
        stages: their numbers, ascending.
        small_images: without the pooling of the stem, where there is one.
    """

    def __init__(
        self, backbone: Backbone, output_stride: int, stages: Sequence[int], small_images: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.network, self.left_out = backbone.trunk(output_stride, small_images)
        self.layers = tuple(backbone.classifier_layout.stages[stage] for stage in stages)
        self.channels = tuple(backbone.channels[stage] for stage in stages)

    def stages(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> (B, channels[i], H / s, W / s) of each stage, fine to coarse."""
        return self.backbone.maps(self.network, images, self.layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the maps of `stages`."""
        return self.stages(images)


class Trunk(Pyramid):
    """The map of a backbone's last stage."""

    def __init__(self, backbone: Backbone, output_stride: int, small_images: bool = False) -> None:
        super().__init__(backbone, output_stride, (len(backbone.channels) - 1,), small_images)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """(B, 3, H, W) -> (B, channels[0], H / stride, W / stride)."""
        return self.stages(images)[0]
