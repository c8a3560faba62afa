"""Batch normalisation folded into the convolutions before it, for methods that pass many images without gradient."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from wsss.saliency.base import evaluating, exact, fast_layout

TOLERANCE = 1e-3
"""Of the largest logit. Folding moves logits by rounding only, about 1e-5; a wrong pair by far more."""

Pair = tuple[nn.Conv2d, nn.BatchNorm2d]


@contextmanager
def folded(classifier: nn.Module, image: Tensor) -> Iterator[None]:
    """While the block lasts, convolutions of the classifier also do the work of the BatchNorm that follows them.

    The block runs in eval mode and without gradients. Folding pays from about twenty images on (ResNet-18). In eval
    mode BatchNorm multiplies and shifts each channel. The weights and the bias of the convolution before it can do
    that as well, so the logits are the same up to rounding. Parameters, buffers and hooks of the classifier are not
    touched. Only `forward` of the paired modules is replaced, and it is restored at the end.

    A norm is paired with the convolution that its parent module registers right before it, as in all of torchvision's
    networks. Whether they are also called in that order is tried on `image`: if the logits differ, the classifier runs
    unchanged. It also does so if nothing can be paired or it is not in float32.

    Args:
        classifier: maps images (B, 3, H, W) to logits.
        image: (3, H, W), to try the pairs on; costs two forward passes of this one image.
    """
    pairs = adjacent_pairs(classifier)
    if not pairs or image.dtype != torch.float32:
        yield
        return
    with evaluating(classifier), torch.no_grad():
        with exact(image.device):
            expected = classifier(image[None])
        try:
            for convolution, norm in pairs:
                fold(convolution, norm)
            with exact(image.device):
                difference = (classifier(image[None]) - expected).abs().max()
            if not bool(difference <= TOLERANCE * expected.abs().max()):
                unfold(pairs)
            yield
        finally:
            unfold(pairs)


def adjacent_pairs(classifier: nn.Module) -> list[Pair]:
    """Convolutions, and the norms registered right after them in the same module, that can be folded."""
    return [
        (first, second)
        for parent in classifier.modules()
        for first, second in pairwise(parent.children())
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d) and foldable(first, second)
    ]


def foldable(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    """Whether both are PyTorch's own, in float32, and the norm keeps statistics of the convolution's channels."""
    # Subclasses may compute something else, and so may instances with a `forward` of their own.
    plain = type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d
    return (
        plain
        and "forward" not in {*vars(convolution), *vars(norm)}
        and convolution.padding_mode == "zeros"
        and convolution.weight.dtype == torch.float32
        and norm.running_mean is not None
        and norm.num_features == convolution.out_channels
    )


def fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Replaces `forward` of both on these instances: one convolution with other weights, then nothing."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None  # see `foldable`
    fused, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, mean, variance, norm.eps, norm.weight, norm.bias
    )
    # Images of this layout would have weights of another one reordered in every pass.
    weight = fast_layout(fused)

    def convolve(images: Tensor) -> Tensor:
        return F.conv2d(
            images, weight, bias, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
        )  # fmt: skip

    convolution.forward = convolve  # type: ignore[assignment, method-assign]
    norm.forward = unchanged  # type: ignore[assignment, method-assign]


def unfold(pairs: list[Pair]) -> None:
    """Gives the modules their class's `forward` back; done twice it changes nothing."""
    for pair in pairs:
        for module in pair:
            vars(module).pop("forward", None)


def unchanged(images: Tensor) -> Tensor:
    """What folded batch normalisation has left to do."""
    return images
