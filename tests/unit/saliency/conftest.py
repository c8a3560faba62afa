"""Small random classifiers, images and an autograd oracle that shares no code with wsss.

They have a quarter of the channels of ResNet18 and VGG16, otherwise the same layers: a tenth of the time. And they
are in float64. In float32 the size of a batch, the CPU's instructions or the seed now and then decide the sign of
a value before a ReLU, and so a gradient: a map of one image then differs from the same map in a batch.
"""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

Oracle = Callable[[nn.Module, str, Tensor, int], tuple[Tensor, Tensor]]


def thin(model: nn.Module) -> nn.Module:
    """The same layers with a quarter of the channels, new weights and the statistics of noise."""
    for path, layer in list(model.named_modules()):
        parent, _, name = path.rpartition(".")
        new: nn.Module
        if isinstance(layer, nn.Conv2d):
            new = nn.Conv2d(
                max(layer.in_channels // 4, 3),
                layer.out_channels // 4,
                kernel_size=layer.kernel_size,
                stride=layer.stride,
                padding=layer.padding,
                dilation=layer.dilation,
                bias=layer.bias is not None,
            )
            nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
            if new.bias is not None:
                nn.init.zeros_(new.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            new = nn.BatchNorm2d(layer.num_features // 4, momentum=None)
        elif isinstance(layer, nn.Linear):
            new = nn.Linear(layer.in_features // 4, layer.out_features, bias=layer.bias is not None)
        else:
            continue
        setattr(model.get_submodule(parent), name, new)
    # Statistics of noise instead of 0 and 1: activations differ in sign and place, and so do the maps.
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 96, 80))
    return model.eval()


@pytest.fixture(scope="session")
def thinned() -> Callable[[nn.Module], nn.Module]:
    """`thin`, for the tests."""
    return thin


@pytest.fixture(scope="session")
def resnet(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = torchvision.models.resnet18(num_classes=12)
    return thin(model).double()


@pytest.fixture(scope="session")
def vgg(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = torchvision.models.vgg16()
    # The 4096-wide head is most of the time and says nothing about saliency.
    model.classifier = nn.Sequential(nn.Linear(512 * 49, 32), nn.ReLU(True), nn.Linear(4 * 32, 12))
    model = thin(model)
    model.classifier[0].weight.data *= 10
    return model.double()


@pytest.fixture
def images(seed: int) -> Tensor:
    return torch.randn(3, 3, 96, 80, generator=torch.Generator().manual_seed(seed + 1)).double()


@pytest.fixture
def targets() -> Tensor:
    return torch.tensor([[2, 5], [0, 3], [1, 0], [0, 7], [2, 11], [0, 1]])


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """Activation and gradient (k, u, v) of one image and class, by one plain backward pass."""

    def differentiate(model: nn.Module, layer: str, image: Tensor, cls: int) -> tuple[Tensor, Tensor]:
        kept = []

        def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            output.retain_grad()
            kept.append(output)
            return output * 1

        handle = model.get_submodule(layer).register_forward_hook(keep)
        try:
            with torch.enable_grad():
                model(image[None].clone().requires_grad_())[0, cls].backward()
        finally:
            handle.remove()
            model.zero_grad(set_to_none=True)
        return kept[-1][0].detach(), kept[-1].grad[0]

    return differentiate
