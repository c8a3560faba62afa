"""A layer of any network: found by name, its output read as maps in whatever layout it comes."""

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsss.errors import UserError

PREFIX = 8
"""The most tokens that may come before those of the cells: the class token and the registers. Usual vision transformers
have up to five."""
COARSEST = 64
"""Pixels. An image with longer sides than this must leave more than one cell: no usual network has a larger stride."""


class Grid(NamedTuple):
    """How the cells of an image lie in a layer's output."""

    height: int
    width: int
    channels_last: bool
    """(B, h, w, channels) or (B, tokens, channels), not (B, channels, h, w)."""
    prefix: int = 0
    """Tokens before those of the cells, such as the class token."""


class Features(NamedTuple):
    """A layer's output as maps, and the way back."""

    maps: Tensor
    """(B, k, u, v)."""
    restore: Callable[[Tensor], Tensor]
    """Brings such maps into the layout of the output, prefix tokens included. The result is a copy: the next module may
    work in place."""
    prefix: int
    """Tokens that are left out."""


def find_layer(classifier: nn.Module, layer: object) -> nn.Module:
    """The submodule at the path `layer`.

    Raises:
        UserError: there is none; the closest names are listed. Or it is given as something else than its name.
    """
    modules: dict[str, nn.Module] = dict(classifier.named_modules())
    names = [name for name in modules if name]
    if not isinstance(layer, str):
        own = next((name for name in names if modules[name] is layer), "layer4")
        raise UserError(
            f"layer must be the name of a module of the classifier, such as layer='{own}', got {type(layer).__name__}"
        )
    if layer in modules:
        if isinstance(modules[layer], torch.jit.ScriptModule):
            raise UserError(
                f"layer '{layer}' cannot be seen in a model of torch.jit: pass the model that it was made from"
            )
        return modules[layer]
    close = [name for name in names if name.endswith(f".{layer}")]  # inside a wrapper: module.layer4
    close = close or difflib.get_close_matches(layer, names, n=5, cutoff=0.5)
    close = close or [name for name in names if "." not in name]
    raise UserError(f"the classifier has no layer '{layer}'; close names: {', '.join(close)}")


def as_maps(output: object, images: Sequence[int], layer: str, prefix: int | None = None) -> Features:
    """What a layer gives, as maps.

    Args:
        output: of the layer.
        images: shape (B, 3, H, W) of the images that the network saw.
        layer: its name, for the message.
        prefix: see `grid_of`.

    Raises:
        UserError: it is no map of the images.
    """
    size = f"{images[-2]} x {images[-1]}"
    grid = grid_of(output.shape, images, prefix) if isinstance(output, Tensor) else None
    if not isinstance(output, Tensor) or grid is None:
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"layer '{layer}' must give feature maps of the {images[0]} images of {size} pixels, as (B, channels, h, "
            f"w), (B, h, w, channels) or tokens (B, n, channels), but gives {got}; choose another layer"
        )
    if grid.height * grid.width == 1 and min(images[-2:]) > COARSEST:
        raise UserError(
            f"layer '{layer}' gives feature maps of one cell for images of {size} pixels, which say nothing about "
            "places: choose a layer before the pooling"
        )
    if not grid.channels_last:
        return Features(output, torch.clone, 0)
    tokens, shape = output.flatten(1, -2), output.shape

    def restore(maps: Tensor) -> Tensor:
        # There may be more maps than images, when a layer's output was changed: all of them of one image.
        before = tokens[:, : grid.prefix].expand(len(maps), -1, -1)
        return torch.cat((before, maps.flatten(2).mT), dim=1).view(-1, *shape[1:]).clone()

    maps = tokens[:, grid.prefix :].mT.reshape(len(tokens), -1, grid.height, grid.width)
    return Features(maps, restore, grid.prefix)


def grid_of(shape: Sequence[int], images: Sequence[int], prefix: int | None = None) -> Grid | None:
    """How the cells of images (B, 3, H, W) lie in an output of this shape; None if it is no map of them.

    ``prefix`` is the number of tokens before those of the cells. If it is not known (None), tokens that are no grid by
    themselves have a prefix only where one stride divides both sides of the images.

    An output with four dimensions has its channels first, unless the other reading fits the images better: one stride
    divides both sides, exactly or but for rounding. If both fit alike, as for (B, 96, 96, 96), channels come first.
    """
    if len(shape) < 3 or shape[0] != images[0] or 0 in shape:
        return None
    height, width = images[-2:]
    if len(shape) == 3:
        return _token_grid(shape[1], height, width, prefix)
    if len(shape) != 4:
        return None
    first, last = Grid(shape[2], shape[3], False), Grid(shape[1], shape[2], True)
    if _fit(last, height, width) > _fit(first, height, width):
        return last
    return first if first.height <= height and first.width <= width else None


def _fit(grid: Grid, height: int, width: int) -> int:
    """2 if one stride divides both sides, 1 if it does when either side may be rounded up or down, else 0."""
    if height % grid.height == width % grid.width == 0 and height // grid.height == width // grid.width:
        return 2
    sides = (grid.height, height), (grid.width, width)
    longest = min(pixels / (cells - 1) if cells > 1 else torch.inf for cells, pixels in sides)
    return int(max(pixels / (cells + 1) for cells, pixels in sides) < longest and longest >= 1)


def _token_grid(count: int, height: int, width: int, prefix: int | None) -> Grid | None:
    """The finest grid of so many tokens, row by row: with the prefix, or without as before the class token comes."""
    strides = range(1, min(height, width) + 1)
    exact = [(height // s, width // s) for s in strides if height % s == width % s == 0]
    others = [((height + up) // s, (width + up) // s) for s in strides for up in (0, s - 1)]
    if prefix is None:
        for grid in exact:
            if 0 <= (rest := count - math.prod(grid)) <= PREFIX:
                return Grid(*grid, True, rest)
    for rest in (prefix or 0, 0):
        if found := next((grid for grid in [*exact, *others] if math.prod(grid) == count - rest), None):
            return Grid(*found, True, rest)
    return None


def prefix_of(network: nn.Module) -> int | None:
    """How many tokens a network says come before those of the cells, as timm's do; None if it does not say."""
    said = (getattr(module, "num_prefix_tokens", None) for module in network.modules())
    return next((number for number in said if isinstance(number, int)), None)


@contextmanager
def seen_by(network: nn.Module, images: Tensor) -> Iterator[list[tuple[int, ...]]]:
    """The shape (B, 3, H, W) of the images that a network sees in the block, when hooks have resized them, as a list of
    one."""
    shapes: list[tuple[int, ...]] = [tuple(images.shape)]

    def look(module: nn.Module, inputs: tuple[object, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            shapes[:] = [tuple(inputs[0].shape)]

    handle = network.register_forward_pre_hook(look)
    try:
        yield shapes
    finally:
        handle.remove()


@contextmanager
def kept(network: nn.Module, layers: Sequence[str], images: Tensor) -> Iterator[dict[str, Tensor]]:
    """Keeps what layers (last) give in one forward pass over images (B, 3, H, W): layer -> maps (B, k, u, v).

    The hooks are removed when the block ends.

    Raises:
        UserError: there is no such layer, its output is no map of the images, or it does not run.
    """
    outputs: dict[str, Tensor] = {}
    handles: list[torch.utils.hooks.RemovableHandle] = []
    prefix = prefix_of(network)
    try:
        with seen_by(network, images) as shapes:

            def keep(layer: str, output: object) -> None:
                maps = as_maps(output, shapes[0], layer, prefix).maps
                outputs[layer] = maps.clone()  # the next module may work in place

            for layer in layers:
                module = find_layer(network, layer)
                handles.append(module.register_forward_hook(lambda _, __, out, name=layer: keep(name, out)))
            yield outputs
    finally:
        for handle in handles:
            handle.remove()
    if missing := [layer for layer in layers if layer not in outputs]:
        raise UserError(
            f"layer '{missing[0]}' does not run in the classifier's forward pass; choose another one"
        )
