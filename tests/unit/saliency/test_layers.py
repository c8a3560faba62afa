"""Layers by name, and their outputs in every layout, against the same network with its channels first."""

import re

import pytest
import torch
import torchvision
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.models.maps import Grid, as_maps, find_layer, grid_of
from wsss.saliency import DCSM, METHODS, GradCAM, ScoreCAM
from wsss.saliency.parse import parse_method

SIZE = (48, 64)
CELLS = (6, 8)
TARGETS = torch.tensor([[1, 2], [0, 4], [1, 0]])


class Relaid(nn.Module):
    """A convolutional network; between body and head its maps lie as `layout` says, at the layer "relaid"."""

    def __init__(self, layout: str, prefix: int = 0):
        super().__init__()
        self.layout, self.prefix = layout, prefix
        self.body = nn.Sequential(nn.Conv2d(3, 10, 8, stride=8), nn.ReLU())
        self.relaid = nn.ReLU(inplace=True)
        self.head = nn.Sequential(
            nn.Conv2d(10, 12, 3, padding=1), nn.ReLU(True), nn.Flatten(), nn.Linear(12 * 48, 6)
        )

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body(images)
        if self.layout == "first":
            return self.head(self.relaid(maps))
        rows = maps.permute(0, 2, 3, 1).contiguous()
        if self.layout == "last":
            return self.head(self.relaid(rows).mul_(1).permute(0, 3, 1, 2))
        other = 100 + torch.rand(len(maps), self.prefix, 10).to(maps)
        tokens = self.relaid(torch.cat((other, rows.flatten(1, 2)), dim=1)).mul_(1)[:, self.prefix :]
        return self.head(tokens.mT.reshape(maps.shape))


@pytest.fixture(scope="module")
def photos(seed: int) -> Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(seed)).double()


def relaid(seed: int, layout: str, prefix: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Relaid(layout, prefix).double().eval()


EXPRESSIONS = [
    "gradcam",
    "gradcam++",
    "xgradcam",
    "global_guidance",
    "integrated_gradcam(steps=2)",
    "cameras(resolutions=(48,))",
    "scorecam",
    "groupcam(groups=3)",
    "hirescam",
    "layercam",
    "eigencam",
    "eigengradcam",
    "ablationcam",
    "smooth_gradcam++(samples=2)",
    "augmented_gradcam(copies=2, fuse=mean)",
    "finercam(gradcam, gamma=0.1)",
    "max(gradcam, layercam)",
    "sess(gradcam, scales=(48,), window=64)",
    "multiscale(gradcam, scales=(1,))",
]
"""Every method that takes a layer but Relevance-CAM and excitation backprop, which know their networks by name, and
CAM, which needs a linear head."""


def test_every_method_with_a_layer_is_here():
    takes = {name for name, kind in METHODS.items() if "layer" in kind.__dataclass_fields__}
    assert takes - {"relevance_cam", "excitation_backprop", "cam"} <= {
        re.split(r"\(", text)[0] for text in EXPRESSIONS
    }


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize(("layout", "prefix"), [("last", 0), ("tokens", 0), ("tokens", 1), ("tokens", 5)])
def test_maps_do_not_depend_on_the_layout_of_the_layer(seed, photos, expression, layout, prefix):
    method = parse_method(expression, layer="relaid")
    expected = method(relaid(seed, "first"), photos, TARGETS)
    assert expected.amax((1, 2)).min() > 0
    maps = method(relaid(seed, layout, prefix), photos, TARGETS)
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-6 * float(expected.max()))


@pytest.mark.parametrize("layout", ["last", "tokens"])
def test_dcsm_reads_the_layouts_too(seed, photos, layout):
    method = DCSM(layers=("body", "relaid"), scales=(1.0,))
    expected = method(relaid(seed, "first"), photos, TARGETS)
    torch.testing.assert_close(method(relaid(seed, layout, 2), photos, TARGETS), expected)


@pytest.fixture(scope="module")
def transformer(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = torchvision.models.VisionTransformer(48, 8, 2, 2, 16, 32, num_classes=5)
    nn.init.normal_(model.heads.head.weight)
    return model.double().eval()


def differentiated(model: nn.Module, layer: str, image: Tensor, cls: int) -> tuple[Tensor, Tensor]:
    """The layer's output and its gradient, in their own layout, by one plain backward pass."""
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, __, output: kept.append(output))
    score = model(image[None])[0, cls]
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept)
    return kept[0][0].detach(), gradient[0]


def test_a_swin_transformer_gives_the_map_of_its_formula(seed):
    torch.manual_seed(seed)
    model = (
        torchvision.models.SwinTransformer([4, 4], 8, [1, 1, 1], [1, 2, 2], [2, 2], num_classes=5)
        .double()
        .eval()
    )
    nn.init.normal_(model.head.weight)
    images = torch.randn(2, 3, 48, 96).double()
    maps = GradCAM("features")(model, images, torch.tensor([[1, 3], [0, 2]]))
    assert maps.shape == (2, 3, 6)
    for row, (image, cls) in enumerate([(1, 3), (0, 2)]):
        activation, gradient = differentiated(model, "features", images[image], cls)
        assert activation.shape == (3, 6, 32)
        expected = torch.einsum("k,uvk->uv", gradient.mean((0, 1)), activation).relu()
        torch.testing.assert_close(maps[row], expected.float())


def test_a_vision_transformer_gives_the_map_of_its_formula(transformer, photos):
    images, layer = photos[..., :48, :48], "encoder.layers.encoder_layer_1.ln_1"
    maps = GradCAM(layer)(transformer, images, torch.tensor([[1, 3]]))
    activation, gradient = differentiated(transformer, layer, images[1], 3)
    assert activation.shape == (37, 16)
    expected = torch.einsum("k,nk->n", gradient[1:].mean(0), activation[1:]).relu().view(6, 6)
    torch.testing.assert_close(maps[0], expected.float())
    assert expected.max() > 0


@pytest.mark.parametrize("layer", ["encoder.layers.encoder_layer_1", "encoder.ln"])
def test_patches_that_no_logit_reads_are_refused(transformer, photos, layer):
    with pytest.raises(
        UserError, match="nothing but the class token at this layer: choose one that attention follows"
    ):
        GradCAM(layer)(transformer, photos[..., :48, :48], TARGETS)
    assert ScoreCAM(layer)(transformer, photos[..., :48, :48], TARGETS).max() > 0  # needs no gradients


@pytest.mark.parametrize(
    ("shape", "size", "grid"),
    [
        ((2, 512, 4, 4), (128, 128), Grid(4, 4, False)),
        ((2, 4, 4, 768), (128, 128), Grid(4, 4, True)),
        ((2, 56, 56, 96), (224, 224), Grid(56, 56, True)),
        ((2, 12, 16, 768), (375, 500), Grid(12, 16, True)),  # swin rounds up
        ((2, 3, 4, 5), (128, 170), Grid(4, 5, False)),
        ((2, 96, 96, 96), (384, 384), Grid(96, 96, False)),  # both readings fit
        ((2, 2048, 8, 11), (299, 400), Grid(8, 11, False)),  # without padding
        ((2, 64, 8, 32), (64, 64), Grid(8, 32, False)),  # two strides: nothing else fits
        ((2, 512, 1, 1), (32, 32), Grid(1, 1, False)),
        ((2, 3, 130, 130), (128, 128), None),
        ((2, 4, 768, 5), (128, 128), None),
        ((2, 197, 768), (224, 224), Grid(14, 14, True, 1)),
        ((2, 50, 768), (224, 224), Grid(7, 7, True, 1)),
        ((2, 198, 192), (224, 224), Grid(14, 14, True, 2)),
        ((2, 1374, 384), (518, 518), Grid(37, 37, True, 5)),
        ((2, 9, 384), (32, 32), Grid(2, 2, True, 5)),
        ((2, 49, 768), (200, 200), Grid(7, 7, True)),
        ((2, 129, 192), (128, 256), Grid(8, 16, True, 1)),
        ((2, 64, 768), (128, 256), None),
        ((2, 512), (128, 128), None),
        ((8, 4, 4, 768), (128, 128), None),  # windows, not images
        ((2, 4, 4, 4, 8), (128, 128), None),
    ],
)
def test_the_grid_follows_from_the_shape(shape, size, grid):
    assert grid_of(shape, (2, 3, *size)) == grid


@pytest.mark.parametrize("shape", [(2, 10, 6, 8), (2, 6, 8, 10), (2, 48, 10), (2, 51, 10)])
def test_maps_lead_back_to_the_output(photos, shape):
    output = torch.randn(shape)
    features = as_maps(output, photos.shape, "any")
    assert features.maps.shape == (2, 10, *CELLS)
    restored = features.restore(features.maps)
    assert torch.equal(restored, output)
    assert restored.data_ptr() != output.data_ptr()


class Forms(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.windows = nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Identity()
        self.pair, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 6)

    def forward(self, images):
        features = self.conv(images)
        self.pair(*[features.flatten(2).mT] * 3)
        self.windows(features.reshape(-1, 4, 2, 4))
        return self.head(self.pool(features).flatten(1))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            "head",
            r"'head' must give feature maps of the 2 images of 80 x 96 pixels.* but gives shape \(2, 6\)",
        ),
        ("pair", r"'pair' must give feature maps .* but gives tuple; choose another layer"),
        ("windows", r"'windows' must give feature maps .* but gives shape \(\d+, 4, 2, 4\)"),
        ("pool", r"'pool' gives feature maps of one cell for images of 80 x 96 pixels.* before the pooling"),
    ],
)
@pytest.mark.parametrize("method", [GradCAM, ScoreCAM, lambda layer: DCSM(layers=(layer,), scales=(1.0,))])
def test_outputs_that_are_no_map_of_the_image_are_refused(method, layer, message):
    with pytest.raises(UserError, match=message):
        method(layer)(Forms().eval(), torch.randn(2, 3, 80, 96), TARGETS)


def test_a_small_image_may_leave_a_single_cell():
    assert GradCAM("pool")(Forms().eval(), torch.randn(2, 3, 64, 80), TARGETS).shape == (3, 1, 1)


def test_a_layer_is_given_by_its_name(resnet):
    with pytest.raises(UserError, match=r"such as layer='layer4.1', got BasicBlock"):
        find_layer(resnet, resnet.layer4[-1])
    for other in (nn.ReLU(), 4, None, ["layer4"]):
        with pytest.raises(
            UserError, match=f"name of a module .*, such as layer='layer4', got {type(other).__name__}"
        ):
            find_layer(resnet, other)
    with pytest.raises(UserError, match=r"no layer 'layer4'; close names: module\.layer4$"):
        find_layer(nn.ModuleDict({"module": resnet}), "layer4")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_layers_of_traced_models_are_refused(photos):
    traced = torch.jit.trace(Relaid("first"), photos.float())
    with pytest.raises(UserError, match=r"'relaid' cannot be seen in a model of torch\.jit: pass the model"):
        GradCAM("relaid")(traced, photos.float(), TARGETS)
    with pytest.raises(
        UserError, match=r"torch\.jit\.script takes no hooks: pass the model that it was made from"
    ):
        GradCAM("relaid")(torch.jit.script(Relaid("first").relaid), photos.float(), TARGETS)
