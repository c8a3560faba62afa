"""Small random classifiers, images and an autograd oracle that shares no code with wsss."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

Oracle = Callable[[nn.Module, str, Tensor, int], tuple[Tensor, Tensor]]


@pytest.fixture(scope="session")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=12)
    # Statistics of noise instead of 0 and 1: activations differ in sign and place, and so do the maps.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model(torch.randn(8, 3, 96, 80))
    return model.eval()


@pytest.fixture(scope="session")
def vgg() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.vgg16(weights=None)
    # The 4096-wide head is most of the time and says nothing about saliency.
    model.classifier = nn.Sequential(nn.Linear(512 * 49, 32), nn.ReLU(True), nn.Linear(32, 12))
    model.classifier[0].weight.data *= 10
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 96, 80, generator=torch.Generator().manual_seed(1))


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
