"""VGG16 as a fully convolutional classifier."""

import math

import torch
from torch import Tensor, nn
from torchvision import models


class VGG16(nn.Module):
    """VGG16 as a fully convolutional network with global max pooling (Shimoda and Yanai, DCSM).

    fc6, fc7 and fc8 are convolutions, so that an input of any size gives a score map per class;
    the logit is its maximum.

    Args:
        classes: number of classes.
        batch_norm: with BatchNorm after each convolution of ``features`` (torchvision's vgg16_bn).
    """

    def __init__(self, classes: int, batch_norm: bool = False) -> None:
        super().__init__()
        build = models.vgg16_bn if batch_norm else models.vgg16
        self.features = build(weights=None).features
        self.fc6 = nn.Conv2d(512, 4096, kernel_size=7, padding=3)
        self.fc7 = nn.Conv2d(4096, 4096, kernel_size=1)
        self.fc8 = nn.Conv2d(4096, classes, kernel_size=1)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(0.5)
        nn.init.normal_(self.fc8.weight, std=0.01)
        nn.init.zeros_(self.fc8.bias)  # type: ignore[arg-type]

    def score_map(self, images: Tensor) -> Tensor:
        """Scores at stride 32: (B, 3, H, W) -> (B, classes, H / 32, W / 32)."""
        hidden = self.dropout(self.relu(self.fc6(self.features(images))))
        hidden = self.dropout(self.relu(self.fc7(hidden)))
        scores: Tensor = self.fc8(hidden)
        return scores

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        return torch.amax(self.score_map(images), dim=(2, 3))


def convolutionalize(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape torchvision's VGG16 linear layers to fc6 and fc7 convolutions; drops its fc8."""
    renamed = {name: value for name, value in state.items() if not name.startswith("classifier.")}
    for source, target, shape in (
        ("classifier.0", "fc6", (4096, 512, 7, 7)),
        ("classifier.3", "fc7", (4096, 4096, 1, 1)),
    ):
        if f"{source}.weight" in state:
            weight = state[f"{source}.weight"]
            # Another network's layer of this name keeps its shape, which `load_into` then refuses.
            renamed[f"{target}.weight"] = (
                weight.reshape(shape) if weight.numel() == math.prod(shape) else weight
            )
            if f"{source}.bias" in state:
                renamed[f"{target}.bias"] = state[f"{source}.bias"]
    return renamed
