"""The layer that a method looks at: tapped during the forward pass, or found by looking where the last maps are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.models.backbone import layout_of
from wsss.models.maps import Features, as_maps, find_layer, grid_of, prefix_of, seen_by
from wsss.saliency.base import evaluating

_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_SILENT = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Linear)
"""What gives the maps of the module before it, or scores of its cells."""

_found: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()
"""Classifiers whose last layer has been looked for."""


Change = Callable[[Tensor], Tensor]
"""Of a layer's maps (B, k, u, v) to others (n, k, u, v), which the rest of the network then sees."""


@contextmanager
def tapped(
    classifier: nn.Module, layer: str | None, images: Tensor, change: Change | None = None
) -> Iterator[list[Features]]:
    """Collects what `layer` gives for the images (B, 3, H, W). The hook is removed when the block ends.

    None stands for `last_layer`.

    The maps start the graph, but for those of a layer above another one that is tapped: they are in its graph. With
    `change` they are what it makes of the layer's, and so is what the layers above see.

    Raises:
        UserError: there is no such layer, it does not run, or its output is no map of the images.
    """
    taken: list[Features] = []
    layer = chosen_layer(classifier, layer, images)
    prefix = prefix_of(classifier)
    with seen_by(classifier, images) as shapes:

        def take(module: nn.Module, inputs: object, output: object) -> Tensor:
            features = as_maps(output, shapes[0], layer, prefix)
            maps = features.maps if features.maps.requires_grad else features.maps.detach()
            maps = maps if change is None else change(maps)
            taken[:] = [features._replace(maps=maps if maps.requires_grad else maps.requires_grad_())]
            return features.restore(taken[0].maps)

        handle = find_layer(classifier, layer).register_forward_hook(take)
        try:
            yield taken
        finally:
            handle.remove()
    if not taken:
        raise UserError(
            f"layer '{layer}' gives no saliency: it does not run in the forward pass; choose another layer"
        )


def run_above(classifier: nn.Module, layer: str, image: Tensor, maps: Tensor) -> tuple[Tensor, object]:
    """Runs what follows `layer` on maps (n, k, u, v) in the place of what it gives for an image (1, 3, H, W).

    The layers below run for the one image. Where that breaks the classifier, which may have counted its images there,
    they run for n copies of it.

    Returns:
        The maps as the start of the graph, and the classifier's output.
    """

    def run(images: Tensor) -> tuple[Tensor, object]:
        with tapped(classifier, layer, images, lambda _: maps.detach()) as taken:
            output = classifier(images)
        return taken[-1].maps, output

    try:
        start, output = run(image)
    except RuntimeError:
        output = None
    if isinstance(output, Tensor) and len(output) == len(maps):
        return start, output
    return run(image.expand(len(maps), -1, -1, -1))


def chosen_layer(classifier: nn.Module, layer: str | None, images: Tensor) -> str:
    """The name itself; for None the classifier's last layer with maps of images (B, 3, H, W), looked for only once."""
    if layer is not None:
        return layer
    name = _found.get(classifier)
    if name is None or name not in dict(classifier.named_modules()):
        name = _found[classifier] = last_layer(classifier, (images.shape[-2], images.shape[-1]))
    return name


class _Output(NamedTuple):
    name: str
    value: Tensor
    tokens: bool
    prefix: int
    height: int
    width: int
    is_norm: bool


def last_layer(classifier: nn.Module, image_size: tuple[int, int] = (224, 224)) -> str:
    """The name of the last layer that gives feature maps of an image, and whose places count for the logits.

    Known networks (`layout_of`) name theirs. Any other is run once, forward and backward, on an image of noise. The
    layer is then the module that ends last among those whose output is a map of the image (`grid_of`) with a gradient
    that is not 0. Where the last tokens have none but the class token, as in most vision transformers, it is the last
    normalisation whose tokens have one: the first norm of the last block. Of modules that give the same maps it is the
    outermost.

    Args:
        classifier: maps images (B, 3, H, W) to logits; left as it was.
        image_size: (H, W) in pixels.

    Raises:
        UserError: it has no such layer.

    Example:
        >>> last_layer(torchvision.models.resnet18())
        'layer4'
    """
    if (layout := layout_of(classifier)) is not None:
        return layout.last
    example = next((p for p in classifier.parameters() if p.is_floating_point()), torch.zeros(1))
    noise = torch.rand(1, 3, *image_size, generator=torch.Generator().manual_seed(0))
    images = noise.to(example.device, example.dtype).requires_grad_()
    outputs: list[_Output] = []
    prefix = prefix_of(classifier)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        evaluating(classifier),
        seen_by(classifier, images) as shapes,
    ):

        def look(name: str, module: nn.Module, output: object) -> None:
            if not isinstance(output, Tensor) or isinstance(module, (*_POOLS, *_SILENT)):
                return
            grid = grid_of(output.shape, shapes[0], prefix)
            if grid is not None and grid.height * grid.width > 1 and output.requires_grad:
                norm, tokens = "norm" in type(module).__name__.lower(), output.ndim == 3
                outputs.append(_Output(name, output, tokens, grid.prefix, grid.height, grid.width, norm))

        handles = [
            module.register_forward_hook(lambda module, _, output, name=name: look(name, module, output))
            for name, module in classifier.named_modules()
            if name
        ]
        try:
            logits = classifier(images)
        finally:
            for handle in handles:
                handle.remove()
        values = [output.value for output in outputs]
        gradients = torch.autograd.grad(logits[0].max(), values, allow_unused=True) if values else ()
    return _last_that_counts(outputs, gradients)


def _last_that_counts(outputs: list[_Output], gradients: tuple[Tensor | None, ...]) -> str:
    chosen: _Output | None = None
    norms_only = False
    for output, gradient in reversed(list(zip(outputs, gradients, strict=True))):
        if chosen is not None and output.value.data_ptr() != chosen.value.data_ptr():
            break
        if norms_only and not (output.is_norm and output.tokens):
            continue
        cells = None if gradient is None else gradient[:, output.prefix :] if output.tokens else gradient
        if cells is not None and bool(cells.any()):
            chosen = chosen or output
        elif cells is not None and output.prefix:
            norms_only = True
    if chosen is None:
        raise UserError(
            "this classifier has no layer with feature maps that count for its logits: name one (layer=)"
        )
    return chosen.name
