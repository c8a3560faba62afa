"""Saliency of vision transformers from their attention: rollout, gradient times attention, LeGrad."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.models.maps import Grid, grid_of, prefix_of, seen_by
from wsss.saliency.base import (
    SaliencyMethod,
    backward_rounds,
    check_logits,
    check_range,
    evaluating,
    exact,
    finite,
    warn_class_free,
)


@dataclass
class Attention:
    """What the attention of a transformer's blocks did in one forward pass over B images."""

    maps: list[Tensor] = field(default_factory=list)
    """After the softmax, (B, heads, T, T) for each block, in the graph: rows are queries, columns keys."""
    outputs: list[Tensor] = field(default_factory=list)
    """Of the blocks, (B, T, D)."""
    logits: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(B, C), with its graph."""
    grid: Grid = field(default_factory=lambda: Grid(0, 0, True))
    """Of the cells among the T tokens."""
    rows: tuple[int, ...] = ()
    """Of the class tokens that the logits read; empty: they read the mean of the cells."""

    def of_cells(self, relevance: Tensor) -> Tensor:
        """What the logits' tokens take from each cell: (n, T, T) -> (n, h, w). Several are averaged."""
        cells = slice(self.grid.prefix, None)
        rows = relevance[:, list(self.rows)] if self.rows else relevance[:, cells]
        return rows[:, :, cells].mean(1).view(-1, self.grid.height, self.grid.width)


@dataclass(frozen=True)
class AttentionMethod(SaliencyMethod):
    """A method for plain vision transformers: every token attends to all, and the blocks follow each other.

    Those of timm (ViT, DeiT, DINO, EVA) and torchvision are known. Its maps have one cell per patch. Memory: the
    attention of all blocks, 4 bytes x blocks x heads x tokens^2 for each image (100 MB for 12 blocks of 12 heads at
    400 tokens).
    """

    def forward(self, classifier: nn.Module, images: Tensor) -> "AttentionEvidence":
        with evaluating(classifier), torch.enable_grad(), attended(classifier, images) as attention:
            attention.logits = classifier(images.detach())
        logits = check_logits(attention.logits, images)
        return AttentionEvidence(logits, attention, classifier, self)

    @abstractmethod
    def explain(self, classifier: nn.Module, attention: Attention, targets: Tensor) -> Tensor:
        """Maps (N, h, w) of targets (N, 2)."""


@dataclass(frozen=True)
class AttentionEvidence:
    """The attention of one forward pass."""

    logits: Tensor
    attention: Attention
    classifier: nn.Module
    method: AttentionMethod

    def maps(self, targets: Tensor) -> Tensor:
        check_range(targets[:, 1], self.logits.shape[1], "class")
        with exact(targets.device):
            return finite(self.method.explain(self.classifier, self.attention, targets))


@dataclass(frozen=True)
class AttentionRollout(AttentionMethod):
    """Attention rollout: how much of each patch has reached the class token, block by block. It knows no class.

        R = R_L ... R_2 R_1,    R_l = rows of (mean over heads of Y_l + I) divided by their sums

    Y_l is the attention of block l, I the identity, for the residual connection. The map is the class token's row of R
    at the patches; that of the mean of the patches where the logits read it. All classes of an image get the same map.

    Paper: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020,
    https://arxiv.org/abs/2005.00928

    Deviation: a class token reads R; the paper is about language, where any token may. Where a network has two
    (distilled ones), it is their mean.

    Example:
        >>> AttentionRollout()(transformer, images, targets).shape
        torch.Size([2, 4, 4])
    """

    @property
    def class_free(self) -> bool:
        return True

    def explain(self, classifier: nn.Module, attention: Attention, targets: Tensor) -> Tensor:
        warn_class_free("attention rollout")
        rolled: Tensor | None = None
        for one in attention.maps:
            step = one.detach().float().mean(1) + torch.eye(one.shape[-1], device=one.device)
            step = step / step.sum(-1, keepdim=True)
            rolled = step if rolled is None else step @ rolled
        assert rolled is not None  # `attended` gives at least one
        return attention.of_cells(rolled)[targets[:, 0]]


@dataclass(frozen=True)
class GradientAttention(AttentionMethod):
    """Gradient times attention, rolled out: the relevance of each patch for a class.

        R = I,    R <- R + E_l R for l = 1 .. L,    E_l = mean over heads of ReLU(dz/dY_l * Y_l)

    Y_l is the attention of block l, z the logit of the class, * the product of each two values. The map is the class
    token's row of R at the patches; that of the mean of the patches where the logits read it.

    Paper: Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
    Transformers", ICCV 2021, equations 5 and 6, https://arxiv.org/abs/2103.15679

    Example:
        >>> GradientAttention()(transformer, images, targets).shape
        torch.Size([2, 4, 4])
    """

    def explain(self, classifier: nn.Module, attention: Attention, targets: Tensor) -> Tensor:
        maps = targets.new_zeros(
            (len(targets), attention.grid.height, attention.grid.width), dtype=torch.float32
        )
        for rows, gradients in backward_rounds(attention.logits, attention.maps, targets):
            chosen = targets[rows, 0]
            count = attention.maps[0].shape[-1]
            relevance = torch.eye(count, device=maps.device).repeat(len(rows), 1, 1)
            for one, gradient in zip(attention.maps, gradients, strict=True):
                share = (gradient[chosen].float() * one.detach()[chosen].float()).relu().mean(1)
                relevance = relevance + share @ relevance
            maps[rows] = attention.of_cells(relevance)
        return maps


@dataclass(frozen=True)
class LeGrad(AttentionMethod):
    """LeGrad: how sensitive each block's own score is to what its tokens attend to.

        M = mean over l of mean over heads and queries of ReLU(ds_l/dY_l),    s_l = head(norm(mean over tokens of Z_l))

    Y_l is the attention of block l, Z_l its output, head and norm those of the classifier. The map has the columns of
    the patches. Only one block is differentiated at a time.

    Paper: Bousselham et al., "LeGrad: An Explainability Method for Vision Transformers via Feature Formation
    Sensitivity", ICCV 2025, equations 5 to 8, https://arxiv.org/abs/2404.03214

    Deviation: the mean over the blocks, where the authors' code takes the sum.

    Args:
        blocks: the last so many blocks; None: all.

    Example:
        >>> LeGrad()(transformer, images, targets).shape
        torch.Size([2, 4, 4])
    """

    blocks: int | None = None

    def __post_init__(self) -> None:
        if self.blocks is not None and self.blocks < 1:
            raise UserError(f"blocks must be at least 1, or None for all, got {self.blocks}")

    def explain(self, classifier: nn.Module, attention: Attention, targets: Tensor) -> Tensor:
        grid = attention.grid
        total = targets.new_zeros((len(targets), grid.height, grid.width), dtype=torch.float32)
        pairs = list(zip(attention.maps, attention.outputs, strict=True))[-(self.blocks or 0) :]
        for one, output in pairs:
            with evaluating(classifier), torch.enable_grad():
                scores = _score(classifier, output.mean(1, keepdim=True))
            for rows, (gradient,) in backward_rounds(scores, [one], targets):
                columns = gradient[targets[rows, 0]].float().relu().mean((1, 2))[:, grid.prefix :]
                total[rows] += columns.view(-1, grid.height, grid.width)
        return total / len(pairs)


def _score(classifier: nn.Module, tokens: Tensor) -> Tensor:
    """The logits (B, C) of tokens (B, 1, D), by the classifier's last norm and its head."""
    if hasattr(classifier, "encoder"):  # torchvision
        logits: Tensor = classifier.get_submodule("heads")(classifier.get_submodule("encoder.ln")(tokens))[
            :, 0
        ]
        return logits
    hidden = classifier.get_submodule("norm")(tokens)[:, 0]
    hidden = getattr(classifier, "fc_norm", nn.Identity())(hidden)
    heads = [getattr(classifier, name) for name in ("head", "head_dist") if hasattr(classifier, name)]
    scores = torch.stack([head(hidden) for head in heads])
    return scores.mean(0)


@contextmanager
def attended(classifier: nn.Module, images: Tensor) -> Iterator[Attention]:
    """Collects the attention of one forward pass over images (B, 3, H, W). All is restored when the block ends.

    timm's blocks usually compute attention and its product with the values in one step, without a map; here they take
    the two steps. torchvision's are computed again from their weights, for what its module returns is not in the graph.

    Raises:
        UserError: the classifier is no plain transformer with global attention.
    """
    blocks = _blocks(classifier)
    found = Attention(rows=_rows(classifier))
    fused = [module for module in blocks.modules() if getattr(module, "fused_attn", False)]
    handles: list[torch.utils.hooks.RemovableHandle] = []

    def take(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        output = output if output.requires_grad else output.detach().requires_grad_()
        found.maps.append(output)
        return output

    def again(
        module: nn.MultiheadAttention, inputs: tuple[Tensor, ...], output: object
    ) -> tuple[Tensor, None]:
        return _attend(module, inputs[0], take), None

    try:
        for module in fused:
            module.fused_attn = False  # type: ignore[assignment]
        for name, module in blocks.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                handles.append(module.register_forward_hook(again))
            elif name.endswith("attn.attn_drop"):
                handles.append(module.register_forward_hook(take))
        for block in blocks.children():
            handles.append(block.register_forward_hook(lambda _, __, output: found.outputs.append(output)))
        with seen_by(classifier, images) as shapes:
            yield found
    finally:
        for handle in handles:
            handle.remove()
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]
    found.grid = _grid(found, shapes[0], prefix_of(classifier))


def _attend(module: nn.MultiheadAttention, tokens: Tensor, take: Callable[..., Tensor]) -> Tensor:
    """Self-attention of tokens (B, T, D) by the weights of torch's module."""
    heads = module.num_heads
    projected = nn.functional.linear(tokens, module.in_proj_weight, module.in_proj_bias)
    shape = (*tokens.shape[:2], heads, -1)
    query, key, value = (part.reshape(shape).transpose(1, 2) for part in projected.chunk(3, -1))
    weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
    mixed = take(module, (), weights) @ value
    result: Tensor = module.out_proj(mixed.transpose(1, 2).flatten(2))
    return result


def _blocks(classifier: nn.Module) -> nn.Module:
    own = getattr(classifier, "blocks", None)
    if getattr(classifier, "attn_pool", None) is not None:
        raise _refusal("pools by attention")
    layers = getattr(getattr(classifier, "encoder", None), "layers", None)
    if isinstance(layers, nn.Module) and any(isinstance(m, nn.MultiheadAttention) for m in layers.modules()):
        return layers
    if not isinstance(own, nn.Module) or hasattr(classifier, "blocks_token_only"):
        raise _refusal("has none, or another kind")
    return own


def _rows(classifier: nn.Module) -> tuple[int, ...]:
    if getattr(classifier, "global_pool", "token") != "token":
        return ()
    return (0, 1) if hasattr(classifier, "head_dist") else (0,)


def _grid(found: Attention, images: tuple[int, ...], prefix: int | None) -> Grid:
    """How the cells lie among the tokens, after a look whether all attention is global."""
    shapes = {tuple(one.shape[2:]) for one in found.maps}
    count = found.outputs[0].shape[1] if found.outputs and isinstance(found.outputs[0], Tensor) else 0
    grid = grid_of((images[0], count, 1), images, prefix)
    if len(found.maps) != len(found.outputs) or shapes != {(count, count)} or grid is None:
        raise _refusal("attends within windows, over channels, or through parts that wsss does not know")
    if len(found.maps[0]) != images[0]:
        raise _refusal("attends within windows")
    return grid


def _refusal(reason: str) -> UserError:
    return UserError(
        "attention methods need a plain vision transformer of timm or torchvision, with global attention in every "
        f"block; this classifier {reason}: use gradcam, which works on any network"
    )
