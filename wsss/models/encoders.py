"""What segmentation networks see of a backbone: torchvision's classifiers without their classifying layer.

``network`` keeps torchvision's names, so that a state dict of the classifier loads into it.
"""

from torch import Tensor, nn
from torchvision import models


class _ResNet(nn.Module):
    """A torchvision ResNet without its classifier."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        network.fc = nn.Identity()
        self.network = network

    def stages(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the maps of layer1 to layer4, fine to coarse."""
        net = self.network
        hidden: Tensor = net.maxpool(net.relu(net.bn1(net.conv1(images))))  # type: ignore[operator]
        maps = []
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            hidden = net.get_submodule(stage)(hidden)
            maps.append(hidden)
        return maps


class Trunk(_ResNet):
    """The last feature map of a ResNet."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width, H / stride, W / stride)."""
        return self.stages(images)[-1]


class EndsOfTrunk(_ResNet):
    """The first and the last stage of a ResNet, for decoders that recover the outlines from the first."""

    LOW = 256
    """Channels of layer1 of ResNet-50 and 101."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, LOW, H / 4, W / 4) and (B, width, H / stride, W / stride)."""
        low, *_, high = self.stages(images)
        return low, high


class Pyramid(_ResNet):
    """The feature maps of all four stages of a ResNet-18, fine to coarse."""

    CHANNELS = (64, 128, 256, 512)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> four maps (B, CHANNELS[i], H / s, W / s) at strides s = 4, 8, 16, 16."""
        return self.stages(images)


class _MobileNet(nn.Module):
    """MobileNetV3-Large's convolutional part, dilated to stride 16."""

    WIDTH = 960

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.ModuleDict(
            {"features": models.mobilenet_v3_large(weights=None, dilated=True).features}
        )


class MobileTrunk(_MobileNet):
    """The last feature map of MobileNetV3-Large."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, WIDTH, H / 16, W / 16)."""
        maps: Tensor = self.network["features"](images)
        return maps


class EndsOfMobileTrunk(_MobileNet):
    """A map at stride 8, and the last one: what LR-ASPP takes."""

    LOW = 40
    _LOW_BLOCK = 4
    """The first block at stride 8, where torchvision's ``lraspp_mobilenet_v3_large`` branches off."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> ``low`` (B, LOW, H / 8, W / 8) and ``high`` (B, WIDTH, H / 16, W / 16)."""
        features = self.network["features"]
        low = features[: self._LOW_BLOCK + 1](images)  # type: ignore[index]
        return {"low": low, "high": features[self._LOW_BLOCK + 1 :](low)}  # type: ignore[index]
