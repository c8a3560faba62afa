"""Attention methods against transformers that are written out here, block by block, and differentiated plainly."""

from dataclasses import dataclass

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency import AttentionRollout, ClassSubtraction, GradCAM, GradientAttention, LeGrad, MultiScale
from wsss.saliency.parse import parse_method

SIZE = (32, 48)
CELLS = (4, 6)
CLASSES = 5
TARGETS = torch.tensor([[1, 2], [0, 4], [1, 0], [1, 2]])
SMALL = {"depth": 3, "embed_dim": 24, "num_heads": 3, "patch_size": 8, "num_classes": CLASSES}

NETWORKS = {
    "vit": ("vit_tiny_patch16_224", {"img_size": SIZE}),
    "vit, mean of the cells": (
        "vit_tiny_patch16_224",
        {"img_size": SIZE, "global_pool": "avg", "fc_norm": False},
    ),
    "vit with registers": ("vit_small_patch14_reg4_dinov2", {"img_size": SIZE}),
    "distilled": ("deit_tiny_distilled_patch16_224", {"img_size": SIZE}),
    "torchvision": ("", {}),
}


@dataclass
class Restated:
    """What a transformer computes, from its weights alone."""

    attention: list[Tensor]
    outputs: list[Tensor]
    logits: Tensor


def network(name: str) -> nn.Module:
    torch.manual_seed(3)
    architecture, options = NETWORKS[name]
    if architecture:
        model = timm.create_model(architecture, **SMALL, **options)
    else:
        model = torchvision.models.VisionTransformer(48, 8, 3, 3, 24, 48, num_classes=CLASSES)
    for parameter in model.parameters():  # biases, scales and tokens start at trivial values
        nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def photos(name: str) -> Tensor:
    size = (48, 48) if name == "torchvision" else SIZE
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(4)).double()


def attend(tokens: Tensor, weight: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Attention (heads, T, T) and mixed values (T, D) of tokens (T, D)."""
    query, key, value = (tokens @ weight.T + bias).chunk(3, dim=1)
    width = query.shape[1] // heads
    parts = [slice(head * width, (head + 1) * width) for head in range(heads)]
    scores = torch.stack([query[:, part] @ key[:, part].T / width**0.5 for part in parts])
    maps = scores.exp() / scores.exp().sum(2, keepdim=True)
    return maps, torch.cat([one @ value[:, part] for one, part in zip(maps, parts, strict=True)], dim=1)


def restate(name: str, model: nn.Module, image: Tensor) -> Restated:
    attention, outputs = [], []

    def look(maps: Tensor) -> Tensor:
        attention.append(maps)
        return maps

    if name == "torchvision":
        tokens = torch.cat((model.class_token[0], model.conv_proj(image[None])[0].flatten(1).T))
        tokens = tokens + model.encoder.pos_embedding[0]
        for block in model.encoder.layers:
            own = block.self_attention
            maps, mixed = attend(block.ln_1(tokens), own.in_proj_weight, own.in_proj_bias, 3)
            look(maps)
            tokens = tokens + mixed @ own.out_proj.weight.T + own.out_proj.bias
            tokens = tokens + block.mlp(block.ln_2(tokens))
            outputs.append(tokens)
        return Restated(attention, outputs, score(name, model, tokens[:1]))
    patches = model.patch_embed.proj(image[None])[0].flatten(1).T
    if "registers" in name:  # their positions are those of the cells alone
        special = torch.cat((model.cls_token[0], model.reg_token[0]))
        tokens = torch.cat((special, patches + model.pos_embed[0]))
    elif name == "distilled":
        tokens = torch.cat((model.cls_token[0], model.dist_token[0], patches)) + model.pos_embed[0]
    else:
        tokens = torch.cat((model.cls_token[0], patches)) + model.pos_embed[0]
    for block in model.blocks:
        maps, mixed = attend(block.norm1(tokens), block.attn.qkv.weight, block.attn.qkv.bias, 3)
        look(maps)
        tokens = tokens + block.ls1(mixed @ block.attn.proj.weight.T + block.attn.proj.bias)
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
        outputs.append(tokens)
    if "mean" in name:
        return Restated(attention, outputs, model.head(model.norm(tokens)[1:].mean(0)))
    if name == "distilled":
        cls, dist = model.norm(tokens)[:2]
        return Restated(attention, outputs, (model.head(cls) + model.head_dist(dist)) / 2)
    return Restated(attention, outputs, score(name, model, tokens[:1]))


def score(name: str, model: nn.Module, tokens: Tensor) -> Tensor:
    """The head's logits (C,) of one token (1, D)."""
    if name == "torchvision":
        return model.heads(model.encoder.ln(tokens))[0]
    hidden = model.norm(tokens)[0]
    return (model.head(hidden) + model.head_dist(hidden)) / 2 if name == "distilled" else model.head(hidden)


def of_cells(name: str, relevance: Tensor) -> Tensor:
    """(T, T) -> (T',): the rows that the logits read, the columns of the cells."""
    prefix = {"vit with registers": 5, "distilled": 2}.get(name, 1)
    rows = {"distilled": [0, 1], "vit, mean of the cells": list(range(1, len(relevance)))}.get(name, [0])
    return torch.stack([relevance[row, prefix:] for row in rows]).mean(0)


def expected(method: str, name: str, model: nn.Module, image: Tensor, cls: int) -> Tensor:
    found = restate(name, model, image)
    count = found.attention[0].shape[-1]
    identity = torch.eye(count).double()
    if method == "rollout":
        total = identity
        for maps in found.attention:
            step = maps.mean(0) + identity
            total = (step / step.sum(1)[:, None]) @ total
        return of_cells(name, total)
    if method == "gradient_attention":
        total = identity
        for maps in found.attention:
            (gradient,) = torch.autograd.grad(found.logits[cls], maps, retain_graph=True)
            total = total + (gradient * maps).clamp(min=0).mean(0) @ total
        return of_cells(name, total)
    columns = []
    for maps, output in zip(found.attention, found.outputs, strict=True):
        own = score(name, model, output.mean(0, keepdim=True))[cls]
        (gradient,) = torch.autograd.grad(own, maps, retain_graph=True)
        columns.append(gradient.clamp(min=0).mean((0, 1)))
    prefix = {"vit with registers": 5, "distilled": 2}.get(name, 1)
    return torch.stack(columns).mean(0)[prefix:]


@pytest.mark.filterwarnings("ignore:attention rollout does not depend")
@pytest.mark.parametrize("method", ["rollout", "gradient_attention", "legrad"])
@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_those_of_the_written_out_network(method: str, name: str) -> None:
    model, images = network(name), photos(name)
    torch.testing.assert_close(model(images)[0], restate(name, model, images[0]).logits)
    maps = parse_method(method)(model, images, TARGETS)
    cells = (6, 6) if name == "torchvision" else CELLS
    assert maps.dtype == torch.float32
    assert maps.shape == (len(TARGETS), *cells)
    for row, (image, cls) in enumerate(TARGETS.tolist()):
        own = expected(method, name, model, images[image], cls).view(cells).detach()
        assert own.max() > own.min()
        torch.testing.assert_close(maps[row].double(), own, rtol=1e-4, atol=1e-5 * float(own.max()))


def test_legrad_looks_at_the_last_blocks_only_if_asked() -> None:
    model, images = network("vit"), photos("vit")
    last = LeGrad(blocks=1)(model, images, TARGETS)
    assert not torch.allclose(last, LeGrad()(model, images, TARGETS))
    torch.testing.assert_close(LeGrad(blocks=99)(model, images, TARGETS), LeGrad()(model, images, TARGETS))
    with pytest.raises(UserError, match="blocks must be at least 1, or None for all, got 0"):
        LeGrad(blocks=0)


@pytest.mark.parametrize("broken", [False, True])
def test_the_network_is_left_as_it_was(broken: bool) -> None:
    model, images = network("vit"), photos("vit")
    before = [dict(module._forward_hooks) for module in model.modules()]
    if broken:
        with pytest.raises(ValueError, match="out of range"):
            GradientAttention()(model, images, torch.tensor([[0, 9]]))
    else:
        GradientAttention()(model, images, TARGETS)
    assert [dict(module._forward_hooks) for module in model.modules()] == before
    assert all(block.attn.fused_attn for block in model.blocks)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:attention rollout does not depend")
def test_a_photo_has_its_maps_in_any_company() -> None:
    model, images = network("vit"), photos("vit")
    for method in (
        AttentionRollout(),
        GradientAttention(),
        LeGrad(),
        MultiScale(GradientAttention(), (1.0,), flip=True),
    ):
        together = method(model, images, TARGETS)
        alone = method(model, images[1:], torch.tensor([[0, 2]]))
        torch.testing.assert_close(together[0], alone[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, "has none, or another kind"),
        ("cait_xxs24_224", {"depth": 1}, "has none, or another kind"),
        ("xcit_nano_12_p16_224", {"depth": 1}, "within windows, over channels"),
        ("mixer_s32_224", {}, "within windows, over channels"),
        ("resnet10t", {}, "has none, or another kind"),
    ],
)
def test_other_networks_are_refused(name: str, options: dict[str, object], reason: str) -> None:
    model = timm.create_model(name, num_classes=CLASSES, **options).eval()
    with pytest.raises(UserError, match=f"{reason}.*use gradcam, which works on any network"):
        GradientAttention()(model, torch.zeros(1, 3, 224, 224), torch.tensor([[0, 1]]))


def test_rollout_says_that_it_knows_no_class() -> None:
    model, images = network("vit"), photos("vit")
    with pytest.warns(UserWarning, match="attention rollout does not depend on the class"):
        maps = AttentionRollout()(model, images, torch.tensor([[0, 1], [0, 2]]))
    assert torch.equal(maps[0], maps[1])
    with pytest.raises(UserError, match="every class gets the same map, which leaves nothing to subtract"):
        ClassSubtraction(AttentionRollout())
    ClassSubtraction(GradCAM())
