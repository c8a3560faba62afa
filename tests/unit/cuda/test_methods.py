"""Every saliency method on a device that refuses mixed tensors: the maps are those of the CPU, and waits are few."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tests.pretend import pretending
from wsss.saliency import METHODS
from wsss.saliency.parse import WRAPPERS, parse_method

TARGETS = torch.tensor([[0, 1], [1, 2], [0, 3]])
SESS = "window=32, step=32, scales=(32, 48)"

# Expression -> most waits for the device in a call: 2 images, 3 pairs. They come from checks and from choosing rows,
# and must not grow with the number of pixels, channels or layers.
ON_A_RESNET = {
    "gradient": 30,
    "guided_backprop": 30,
    "dcsm(scales=(1, 1.2))": 60,
    "gradcam": 30,
    "gradcam++": 30,
    "xgradcam": 30,
    "integrated_gradcam(steps=3)": 60,
    "cameras(resolutions=(32, 48))": 60,
    "relevance_cam": 40,
    "scorecam@layer1": 60,
    "groupcam(groups=4)": 60,
    "fullgrad": 60,
    "smooth_fullgrad(samples=2)": 90,
    "global_guidance": 30,
    "cam": 40,
    "hirescam": 30,
    "layercam": 30,
    "eigencam@layer2": 40,
    "eigengradcam@layer2": 40,
    "ablationcam@layer1": 90,
    "smooth_gradcam++@layer2(samples=2)": 60,
    "augmented_gradcam@layer2(copies=2, steps=2)": 90,
    "finercam": 40,
    "refinecam": 60,
    "winsorcam": 30,
    "smoothgrad(samples=2)": 60,
    "integrated_gradients(steps=2)": 60,
    "input_x_gradient": 40,
    "deeplift": 60,
    "excitation_backprop": 60,
    "occlusion": 60,
    "rise(masks=6)": 60,
    "extremal_perturbation(areas=(0.1,), steps=2)": 90,
    "meaningful_perturbation(steps=2)": 90,
    "sise(layers=(layer1, layer2))": 150,
    "ada_sise(layers=(layer1, layer2))": 150,
    "mean(gradcam@layer2, gradcam)": 40,
    "max(product(gradcam@layer2, gradcam))": 40,
    f"sess(gradcam, {SESS})": 120,
    f"subtraction(sess(gradcam, {SESS}, prefilter=0.5))": 120,
    "multiscale(gradcam, scales=(1, 1.5))": 90,
}
ON_A_TRANSFORMER = {"rollout": 30, "gradient_attention": 40, "legrad": 60, "gradcam": 40}


def resnet() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)
    return model.eval()


def transformer() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 16, num_classes=5)
    nn.init.normal_(model.heads.head.weight)
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_whole_zoo_is_here() -> None:
    words = {word for text in (*ON_A_RESNET, *ON_A_TRANSFORMER) for word in text.replace("@", "(").split("(")}
    assert (set(METHODS) | set(WRAPPERS)) - words == {"xrai"}  # needs scikit-image


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "expression", [*ON_A_RESNET, *(f"{text} on a transformer" for text in ON_A_TRANSFORMER)]
)
def test_maps_are_those_of_the_cpu(expression: str, images: Tensor) -> None:
    text, _, other = expression.partition(" on a ")
    model, most = (transformer(), ON_A_TRANSFORMER[text]) if other else (resnet(), ON_A_RESNET[text])
    method = parse_method(text)
    expected = method(model, images, TARGETS)
    with pretending() as counts:
        there = model.to("cuda")
        found = method(there, images.to("cuda"), TARGETS.to("cuda"))
        assert found.is_cuda
        found = found.cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert sum(counts.values()) <= most, counts


@pytest.mark.parametrize(
    "expression", ["gradcam", "sess(gradcam, window=32, step=32, scales=(32,))", "legrad"]
)
def test_targets_may_be_on_the_cpu_and_precision_may_be_half(expression: str, images: Tensor) -> None:
    model = transformer() if expression == "legrad" else resnet()
    with pretending():
        there = model.to("cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            found = parse_method(expression)(there, images.to("cuda"), TARGETS)
        assert (found.is_cuda, found.dtype) == (True, torch.float32)
