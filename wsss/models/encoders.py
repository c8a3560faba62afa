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
    """

    def __init__(self, backbone: Backbone, output_stride: int, stages: Sequence[int]) -> None:
        super().__init__()
        layout = backbone.layout
        self.network = backbone.network(output_stride)
        for name in layout.above:
            self.network.set_submodule(name, nn.Identity())
        self.path = layout.path[: layout.path.index(layout.last) + 1]
        self.layers = tuple(layout.stages[stage] for stage in stages)
        self.channels = tuple(backbone.channels[stage] for stage in stages)

    def stages(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> (B, channels[i], H / s, W / s) of each stage, fine to coarse."""
        maps, hidden = [], images
        for name in self.path:
            hidden = self.network.get_submodule(name)(hidden)
            if name in self.layers:
                maps.append(hidden)
        return maps

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the maps of `stages`."""
        return self.stages(images)


class Trunk(Pyramid):
    """The map of a backbone's last stage."""

    def __init__(self, backbone: Backbone, output_stride: int) -> None:
        super().__init__(backbone, output_stride, (len(backbone.channels) - 1,))

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """(B, 3, H, W) -> (B, channels[0], H / stride, W / stride)."""
        return self.stages(images)[0]
