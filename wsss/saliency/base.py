"""What every saliency method shares: the interface, the guards around the classifier, map arithmetic.

A method has two steps. `forward` runs the classifier once per image and keeps what the maps need
(an `Evidence`); `Evidence.maps` then makes the maps of any (image, class) pairs without another
forward where the method allows it. Calling a method does both. Wrappers such as `SESS` look at the
logits in between.
"""

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from wsss.errors import UserError

Maps = Callable[[Tensor], Tensor]
"""Makes the maps (N, h, w) of targets (N, 2)."""


class ArgumentError(UserError, ValueError):
    """An argument of a call has the wrong kind or is out of range."""


class Evidence(Protocol):
    """What one forward over a batch of images leaves behind.

    It may hold an autograd graph. Let it go out of scope to free that memory.
    """

    @property
    def logits(self) -> Tensor:
        """The classifier's output (B, C), float32, detached."""

    def maps(self, targets: Tensor) -> Tensor:
        """Raw maps (N, h, w), float32, of the `targets` (N, 2): rows (image index, class index).

        May be called several times.
        """


@dataclass(frozen=True)
class DeferredEvidence:
    """Evidence of methods that learn nothing from a plain forward: it runs only when the logits are asked for."""

    classifier: nn.Module
    images: Tensor
    compute: Maps

    @cached_property
    def logits(self) -> Tensor:
        with evaluating(self.classifier), torch.no_grad():
            return check_logits(self.classifier(self.images), self.images)

    def maps(self, targets: Tensor) -> Tensor:
        return self.compute(targets)


@dataclass(frozen=True)
class SaliencyMethod(ABC):
    """A callable `method(classifier, images, targets) -> maps`; its `repr` describes it fully."""

    scale_balance: ClassVar[Literal["area", "max"]] = "max"
    """How maps of several input scales weigh the same in a sum (see `MultiScale`). area: by their number of cells, for
    methods whose values are means over positions; max: by their maximum, for any method."""

    @property
    def class_free(self) -> bool:
        """Whether all classes of an image get the same map."""
        return False

    @property
    def own_scales(self) -> bool:
        """Whether the method itself looks at several input scales; then the pipeline adds none around it."""
        return False

    @abstractmethod
    def forward(self, classifier: nn.Module, images: Tensor) -> Evidence:
        """Runs the classifier once over `images` (B, 3, H, W) and keeps what the maps need."""

    def __call__(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Saliency maps of (image, class) pairs.

        Args:
            classifier: maps images (B, 3, H, W) to logits (B, C). It runs in eval mode and without `torch.compile`. Its
                training flags, `requires_grad` flags, `.grad`, buffers and hooks are left as they were.
            images: (B, 3, H, W), float, normalised as the classifier expects, on its device. Images
                that no target names are not computed.
            targets: (N, 2) integers, rows (image index, class index); any order, N may be 0.

        Returns:
            (N, h, w) float32, raw (neither normalised nor upsampled), without NaN, row n for target n.
            Without targets (0, 0, 0), at no cost.

        Raises:
            ArgumentError (a UserError and ValueError): see `check_call`; or a class is out of range.
            UserError: the method does not fit the classifier (unknown layer, …).
        """
        targets = check_call(classifier, images, targets)
        if len(targets) == 0:
            return torch.zeros((0, 0, 0), dtype=torch.float32, device=images.device)
        # Tensors made under inference_mode cannot be differentiated; ours must be ordinary ones.
        with torch.inference_mode(False), evaluating(classifier):
            pairs, row = torch.unique(targets, dim=0, return_inverse=True)
            if repeated := len(pairs) < len(targets):
                targets = pairs
            used, position = torch.unique(targets[:, 0], return_inverse=True)
            if len(used) < len(images) or images.is_inference():
                images = images[used]
            evidence = self.forward(classifier, images.detach())
            maps = evidence.maps(torch.stack((position, targets[:, 1]), dim=1))
            return maps[row] if repeated else maps


def check_call(classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Targets (N, 2) on the images' device as int64.

    Raises:
        ArgumentError: the classifier is no module, images or targets have another type or shape, the images are on
            another device than the classifier, or a target's image does not exist or is not finite.
    """
    if not isinstance(classifier, nn.Module):
        raise ArgumentError(f"the classifier must be a torch.nn.Module, got {_kind(classifier)}")
    if (
        not isinstance(images, Tensor)
        or images.ndim != 4
        or not images.is_floating_point()
        or 0 in images.shape[1:]
    ):
        raise ArgumentError(
            f"images must be floats (B, 3, H, W), got {_kind(images)}; wsss.data.transforms makes them from a photo: "
            "normalize_image(to_tensor(photo)[None])"
        )
    number = isinstance(targets, Tensor) and not (targets.is_floating_point() or targets.is_complex())
    if not number or targets.ndim != 2 or targets.shape[1] != 2 or targets.dtype == torch.bool:
        raise ArgumentError(
            "targets must be integers (N, 2) with rows (image, class), such as torch.tensor([[0, 3], [0, 7]]), "
            f"got {_kind(targets)}"
        )
    homes = {str(value.device) for value in chain(classifier.parameters(), classifier.buffers())}
    if homes and str(images.device) not in homes:
        home = sorted(homes)[0]
        raise ArgumentError(
            f"the images are on {images.device}, but the classifier is on {home}: pass images.to('{home}')"
        )
    # A clone where needed: advanced indexing by an inference tensor is refused outside inference mode.
    with torch.inference_mode(False):
        targets = targets.clone() if targets.is_inference() else targets
        targets = targets.to(images.device, torch.int64)
    check_range(targets[:, 0], len(images), "image")
    if not bool(images.sum().isfinite()):  # ten times as fast as to look at every pixel
        for index in sorted(set(targets[:, 0].tolist())):
            if not bool(images[index].isfinite().all()):
                raise ArgumentError(
                    f"image {index} has NaN or infinite values: look at how it was normalised"
                )
    return targets


def _kind(value: object) -> str:
    """Type and shape of an argument, for messages."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def check_range(indices: Tensor, count: int, what: str) -> None:
    """ArgumentError unless every index is in 0..count-1."""
    outside = indices[(indices < 0) | (indices >= count)]
    if len(outside):
        raise ArgumentError(
            f"target {what} index {int(outside[0])} is out of range: there are {count}, 0..{count - 1}"
        )


def check_base(method: SaliencyMethod, base: object) -> None:
    """ArgumentError unless a wrapper was given a method to wrap."""
    if not isinstance(base, SaliencyMethod):
        name, got = type(method).__name__, base.__name__ if isinstance(base, type) else type(base).__name__
        raise ArgumentError(f"{name} wraps a method, such as {name}(GradCAM('layer4')), got {got}")


def as_tuple(values: Iterable[object], name: str, example: str) -> tuple[object, ...]:
    """The values of a parameter that takes several. ArgumentError if it is a single one."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ArgumentError(f"{name} takes several values, such as {name}={example}, got {values!r}")
    return tuple(values)


def check_logits(logits: object, images: Tensor) -> Tensor:
    """The logits (B, C), float32 and detached.

    Raises:
        UserError: the classifier returned something else.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"the classifier must return logits (images, classes) for {len(images)} images, got {got}"
        )
    return logits.detach().float()


@contextmanager
def evaluating(classifier: nn.Module) -> Iterator[None]:
    """Eval mode, parameters without gradient, inputs cloned, outputs unwrapped to logits, `torch.compile` off.

    All is restored afterwards, also after an exception, and so are the buffers. Inside another such block it does
    nothing. UserError for models of `torch.jit.script`, which take no hooks.

    - A classifier may normalise its input in place, so it gets a copy. The copy is cheap compared with its layers.
    - Compiled code does not see hooks that come later, and would keep those that it sees.
    """
    if cloned in classifier._forward_pre_hooks.values():
        yield
        return
    training = [module for module in classifier.modules() if module.training]
    # Those made under inference_mode cannot get the flag back; torch refuses to differentiate them anyway.
    parameters = (parameter for parameter in classifier.parameters() if not parameter.is_inference())
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    # Without dynamo nothing is compiled, and importing it takes a second.
    compiling = "torch._dynamo" in sys.modules
    eager = torch.compiler.set_stance("force_eager") if compiling else nullcontext()
    try:
        handles = [classifier.register_forward_pre_hook(cloned), classifier.register_forward_hook(_unwrapped)]
    except RuntimeError as error:
        raise UserError(
            "a model of torch.jit.script takes no hooks: pass the model that it was made from"
        ) from error
    try:
        with buffers_kept(classifier), eager:
            for module in training:  # the flag itself: train() and eval() may be overridden to do more
                module.training = False
            for parameter in learning:
                parameter.requires_grad_(False)
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def buffers_kept(classifier: nn.Module) -> Iterator[None]:
    """Buffers that change in the block get their values back. A traced BatchNorm, say, ignores eval mode."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in classifier.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not buffer.is_inference()  # which cannot change outside inference mode
    ]
    try:
        yield
    finally:
        for (module, name, buffer, values), changed in zip(kept, _changed(kept), strict=True):
            if changed:
                with torch.no_grad():
                    buffer.copy_(values)
            if getattr(module, name) is not buffer:
                setattr(module, name, buffer)


def _changed(kept: Sequence[tuple[nn.Module, str, Tensor, Tensor]]) -> list[bool]:
    """Which buffers have other values now; BatchNorm's updates do not show in `_version`. One wait for a GPU."""
    if not kept:
        return []
    found: list[bool] = torch.stack(
        [(buffer != values).any().to(kept[0][2].device) for _, _, buffer, values in kept]
    ).tolist()
    return found


def cloned(module: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
    """The inputs of a module, tensors among them copied."""
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)


def _unwrapped(module: nn.Module, inputs: object, output: object) -> object:
    """The logits of what a classifier returns: the attribute `logits` as of Hugging Face, the entry "logits" of a
    dictionary, or the first of several."""
    if isinstance(output, Mapping):
        output = output.get("logits", output)
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", output)
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        output = output[0]
    return output


def exact(device: torch.device) -> torch.autocast:
    """Context in which autocast is off: map arithmetic is float32 whatever the classifier ran in."""
    return torch.autocast(device_type=device.type, enabled=False)


def backward_rounds(
    output: Tensor,
    inputs: Sequence[Tensor] | Sequence[GradientEdge],
    targets: Tensor,
    directions: Tensor | None = None,
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Gradients of target logits, in as many backward passes as the image with the most targets has targets.

    Round r differentiates the r-th target of every image at once. In eval mode the images do not influence each
    other, so their one-hot seeds can share one backward pass.

    Args:
        output: logits (B, C) with their graph. The graph is kept, so this may be called again.
        inputs: what to differentiate with respect to: tensors (B, …), or the graph edges that stand for them.
            The output must depend on the edges.
        targets: (N, 2) rows (image, class), in range.
        directions: (N, C), for each target the weights of the logits in the sum that is differentiated; None: its class
            alone.

    Yields:
        The rows of `targets` in this round, (n,) int64, and for each input its gradient (B, …).

    Raises:
        UserError: activation checkpointing is in the way.
    """
    ranks = rank_within_image(targets[:, 0])
    for rank in range(int(ranks.max()) + 1 if len(ranks) else 0):
        rows = (ranks == rank).nonzero()[:, 0]
        seeds = torch.zeros_like(output)
        if directions is None:
            seeds[targets[rows, 0], targets[rows, 1]] = 1
        else:
            seeds[targets[rows, 0]] = directions[rows].to(seeds.dtype)
        try:
            gradients = torch.autograd.grad(output, inputs, seeds, retain_graph=True, materialize_grads=True)
        except RuntimeError as error:
            if "checkpoint" not in str(error).lower():
                raise
            raise UserError(
                "the gradients cannot pass the classifier's torch.utils.checkpoint: switch it off (it saves memory in "
                "training), or choose a layer outside the part that is checkpointed"
            ) from error
        yield rows, gradients


def by_image(targets: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each image index among targets (N, 2), and the rows (n,) that name it."""
    for index in torch.unique(targets[:, 0]).tolist():
        yield index, (targets[:, 0] == index).nonzero()[:, 0]


def rank_within_image(images: Tensor) -> Tensor:
    """(N,) image indices -> (N,) how many earlier rows have the same image."""
    same = images[:, None] == images[None, :]
    return same.tril(-1).sum(1)


def finite(maps: Tensor) -> Tensor:
    """`maps` with NaN and infinities replaced by 0, with a warning: classifier or input is broken."""
    if bool(torch.isfinite(maps).all()):
        return maps
    warnings.warn(
        "saliency was NaN or infinite in places and was set to 0 there: "
        "look for NaN in the classifier's weights and in the image",
        stacklevel=2,
    )
    return torch.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0)


def warn_class_free(name: str) -> None:
    """Warns that a method's map is the same for all classes. Python shows a warning once per place."""
    warnings.warn(
        f"{name} does not depend on the class: all classes of an image get the same map", stacklevel=3
    )


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing of maps (N, h, w) to (N, H, W): half-pixel centres, no antialiasing.

    The value at row Y and column X is sum_ij max(0, 1 - |y - i|) max(0, 1 - |x - j|) s_ij over the cells (i, j) of the
    map s. y = (Y + 1/2) h / H - 1/2, clamped to 0 .. h - 1, is the row in cells, and x the column likewise. This is
    torch's `interpolate(align_corners=False)`:
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.interpolate.html

    Args:
        maps: (N, h, w) float; N may be 0.
        size: (H, W) in pixels.

    Example:
        >>> upsample(torch.tensor([[[0.0, 1.0]]]), (1, 4))
        tensor([[[0.0000, 0.2500, 0.7500, 1.0000]]])
    """
    if len(maps) == 0:
        return maps.new_zeros((0, *size))
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def normalize(maps: Tensor, mode: Literal["minmax", "max"] = "minmax") -> Tensor:
    """Each map (N, h, w) scaled by its own values.

    - "minmax": (s - min s) / (max s - min s), in [0, 1], with s the map. Wang et al., "Score-CAM", CVPR Workshops
      2020, https://arxiv.org/abs/1910.01279
    - "max": s / max s, in [0, 1] for non-negative maps. Ahn and Kwak, "Learning Pixel-level Semantic Affinity with
      Image-level Supervision for Weakly Supervised Semantic Segmentation", CVPR 2018, section 3.1,
      https://arxiv.org/abs/1803.10464

    A constant map becomes 0 with "minmax". A map without a positive value becomes 0 with "max".

    Raises:
        ValueError: another mode.

    Example:
        >>> normalize(torch.tensor([[[1.0, 2.0, 5.0]]]))
        tensor([[[0.0000, 0.2500, 1.0000]]])
    """
    if mode not in ("minmax", "max"):
        raise ValueError(f"mode must be 'minmax' or 'max', got {mode!r}")
    if maps.numel() == 0:
        return maps
    low = maps.amin((1, 2), keepdim=True) if mode == "minmax" else torch.zeros_like(maps[:, :1, :1])
    span = maps.amax((1, 2), keepdim=True) - low
    return torch.where(span > 0, (maps - low) / torch.where(span > 0, span, 1), 0)


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing of images (B, 3, H, W), antialiased when smaller, as PIL and torchvision do."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    # Half precision is refused on the CPU, and would blur on top of it.
    precise = images if images.dtype == torch.float64 else images.float()
    resized = F.interpolate(precise, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.to(images.dtype)


def fast_layout(images: Tensor) -> Tensor:
    """The memory layout in which convolutions are fastest on this device, for images or convolution weights."""
    if images.device.type == "cpu":
        return images.contiguous(memory_format=torch.channels_last)
    return images


def gaussian_blur(maps: Tensor, kernel_size: int, sigma: float) -> Tensor:
    """Gaussian blur of maps (N, h, w) with mirrored borders, as `cv2.GaussianBlur`; any h and w."""
    radius = kernel_size // 2
    offsets = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    rows, columns = (_mirrored(length, radius, maps.device) for length in maps.shape[-2:])
    padded = maps[:, None, rows][..., columns]
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]


def _mirrored(length: int, radius: int, device: torch.device) -> Tensor:
    """Indices -radius .. length-1+radius folded into 0..length-1, border not repeated (dcb|abcd|cba)."""
    period = max(2 * (length - 1), 1)
    indices = torch.arange(-radius, length + radius, device=device) % period
    return torch.minimum(indices, (period - indices) if length > 1 else indices)
