"""Layer-wise relevance propagation (LRP), and Relevance-CAM, whose channel weights it gives.

The network above the layer is not rebuilt: one forward pass records what its modules received, and plain
functions then send relevance back through them, module by module, in reverse order. For that the order must
be known, so the method supports named networks only (`steps_of`).
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from wsss.errors import UserError
from wsss.models.backbone import layout_of
from wsss.models.maps import find_layer
from wsss.saliency.base import SaliencyMethod, check_logits, check_range, evaluating, exact, finite
from wsss.saliency.layers import chosen_layer, tapped

Block: TypeAlias = BasicBlock | Bottleneck

SUPPORTED = "torchvision's ResNet and VGG families and wsss's own classifiers"

_TINY = 1e-30
"""Denominators closer to 0 than this give no relevance: the quotient would not be finite."""


class RelevanceMethod(SaliencyMethod):
    """A method that sends relevance from the logits down to a layer, see `Rules`."""

    layer: str | None
    batch_size: int

    @abstractmethod
    def start(self, rules: "Rules", head: nn.Module, logits: Tensor, targets: Tensor) -> Tensor:
        """Relevance at the input of the `head`, the last module, for targets (n, 2) and logits (B, C)."""

    @abstractmethod
    def rules(self, above: Sequence[nn.Module], tape: "Tape", rows: Tensor) -> "Rules":
        """For the modules above the layer and the images `rows` (n,)."""

    @abstractmethod
    def reduced(self, relevance: Tensor, activation: Tensor) -> Tensor:
        """Maps (n, u, v) of the relevance at the layer and its activation, both (n, k, u, v)."""

    def forward(self, classifier: nn.Module, images: Tensor) -> "RelevanceEvidence":
        layer = chosen_layer(classifier, self.layer, images)
        above = steps_above(classifier, layer)
        with (
            evaluating(classifier),
            torch.no_grad(),
            tapped(classifier, layer, images) as taken,
            chained(find_layer(classifier, layer), above),
            taped(above) as tape,
        ):
            output = classifier(images)
        logits = check_logits(output, images)
        if above[-1] in tape.outputs:
            _check_maximum(tape.outputs[above[-1]], logits)
        return RelevanceEvidence(logits, taken[-1].maps.detach(), tuple(above), tape, self)


@dataclass(frozen=True)
class RelevanceCAM(RelevanceMethod):
    """Relevance-CAM: activations weighted by the relevance that arrives at them (layer-wise relevance propagation).

        M = sum_k w_k A_k,    w_k = mean_uv R_k

    A_k is channel k of the activation at `layer`, R_k its relevance. Relevance starts at the logits with the
    contrastive seed R_c = 1 for the class c and R_j = -1 / N for the others, where N is the number of *all* classes.
    It goes down by the z+ rule (alpha 1, beta 0), with x the input of a module and w its weights:

        R_i = sum_j (x_i w_ij)+ / (sum_i' (x_i' w_i'j)+) R_j,    with (t)+ = max(t, 0).

    - Pooling layers share relevance among their inputs in proportion to what these contribute (max pooling: all of it
      to the maximum).
    - ReLU and dropout pass it on unchanged.
    - Where a residual block adds a + b, the branches get a / (a + b) and b / (a + b) of it. The branches are signed, so
      a share may be negative or above 1.
    - BatchNorm passes it on unchanged: the authors' rule x w R / (x w + 1e-9) amounts to that. Hence their use of
      var^2 for var has no effect.

    So the sum over R stays 1 / N, except where a denominator is 0 and relevance ends. With global average pooling
    and a linear head on the last layer there is a closed form, up to a factor: w_k = m_k sum_j w+_jk R_j /
    (sum_k' w+_jk' m_k') with m = mean_uv A. The size of the logit does not matter.

    Paper: Lee et al., "Relevance-CAM: Your Model Already Knows Where to Look", CVPR 2021,
    https://doi.org/10.1109/CVPR46437.2021.01470

    Deviations from the authors' code: `relu` is on by default, because the map is signed without it. Convolution biases
    are left out of the denominators by default (`biases`). Relevance stops at denominators below 1e-30; theirs stops at
    exact zeros. With `relu=False, biases=True` the maps equal theirs to rounding. Compared once on a photo, the largest
    difference in units of the maximum was 4e-7 and 5e-6 for ResNet-18 and 50 (ImageNet's weights; layer4, 3 and 2) and
    7e-7 for VGG16 and VGG16-BN (random weights; four and three layers).

    Cost: one forward, whatever the number of classes. For each target about two forwards of the layers above `layer`
    (one with w+, one transposed).

    Supported are torchvision's ResNet and VGG (also dilated, grouped, with BatchNorm or another head) and the
    classifiers of wsss. A network that computes something between its layers is refused, and so are layers with a
    forward of their own. A residual block counts as one layer. The logit of DCSM's VGG16 is the maximum of a score
    map, and all relevance goes to the place of the maximum.

    Args:
        layer: a path on the way from the image to the logits: "layer4", "layer3.0", "features.22".
        relu: keep the positive part only. False gives the *signed* map of the authors' code, in which
            negative values speak for other classes.
        biases: add a convolution's bias to its denominator. It is added twice, as in the authors' code (once in the
            branch of positive inputs, once in that of negative ones). Linear layers have none there either.
        batch_size: targets that are propagated at a time; limits memory.

    Example:
        >>> RelevanceCAM(layer="layer4")(classifier, images, targets).shape
        torch.Size([2, 2, 2])
    """

    scale_balance = "area"

    layer: str | None = None
    relu: bool = True
    biases: bool = False
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")

    def start(self, rules: "Rules", head: nn.Module, logits: Tensor, targets: Tensor) -> Tensor:
        return rules.of_head(head, contrastive_seed(targets[:, 1], logits.shape[1]))

    def rules(self, above: Sequence[nn.Module], tape: "Tape", rows: Tensor) -> "Rules":
        return Rules(tape, rows, self.biases)

    def reduced(self, relevance: Tensor, activation: Tensor) -> Tensor:
        maps = torch.einsum("nk,nkuv->nuv", relevance.mean((2, 3)), activation)
        return maps.relu() if self.relu else maps


@dataclass(frozen=True)
class Tape:
    """What modules received in one forward pass and, where it is needed, what they returned: (B, …) each."""

    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    outputs: dict[nn.Module, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class RelevanceEvidence:
    """Activation of the layer and the tape of everything above it."""

    logits: Tensor
    activation: Tensor
    above: tuple[nn.Module, ...]
    tape: Tape
    method: RelevanceMethod

    def maps(self, targets: Tensor) -> Tensor:
        check_range(targets[:, 1], self.logits.shape[1], "class")
        maps = self.logits.new_zeros((len(targets), *self.activation.shape[-2:]))
        with exact(maps.device):
            for start in range(0, len(targets), self.method.batch_size):
                part = targets[start : start + self.method.batch_size]
                activation = self.activation[part[:, 0]].float()
                maps[start : start + len(part)] = self.method.reduced(self.relevance(part), activation)
        return finite(maps)

    def relevance(self, targets: Tensor) -> Tensor:
        """The relevance R (n, k, u, v) at the layer, float32, of targets (n, 2)."""
        rules = self.method.rules(self.above, self.tape, targets[:, 0])
        relevance = self.method.start(rules, self.above[-1], self.logits, targets)
        for module in reversed(self.above[:-1]):
            relevance = rules.through(module, relevance)
        return relevance.reshape(len(targets), *self.activation.shape[1:])


def contrastive_seed(classes: Tensor, number: int) -> Tensor:
    """(n,) class indices -> (n, number): 1 at the class, -1 / number elsewhere."""
    seed = torch.full((len(classes), number), -1 / number, dtype=torch.float32, device=classes.device)
    return seed.scatter(1, classes[:, None], 1.0)


def at_maximum(relevance: Tensor, scores: Tensor) -> Tensor:
    """Relevance (n, C) put where each score map (n, C, h, w) has its (first) maximum."""
    flat = scores.flatten(2)
    places = flat.argmax(2, keepdim=True)
    return torch.zeros_like(flat).scatter(2, places, relevance[..., None]).view_as(scores)


@dataclass(frozen=True)
class Rules:
    """The rules of relevance propagation, for the images `rows` (n,) of a tape."""

    tape: Tape
    rows: Tensor
    biases: bool = False
    scales: Mapping[nn.Module, Tensor] = field(default_factory=dict)
    """By which the channels (k,) of a convolution's output are multiplied, in the norm behind it."""
    positive_shares: bool = False
    """Whether the branches of a residual block share relevance by their positive parts."""
    sign: int = 1
    """-1: the weights of convolutions and linear layers are negated."""

    def of_head(self, head: nn.Module, relevance: Tensor) -> Tensor:
        """Relevance of the logits (n, C) -> at the input of the last module."""
        if head in self.tape.outputs:  # its output is a map of scores, whose maxima are the logits
            relevance = at_maximum(relevance, self.tape.outputs[head][self.rows].float())
        return self.through(head, relevance)

    def through(self, module: nn.Module, relevance: Tensor) -> Tensor:
        """Relevance at a module's output (n, …) -> at its input, float32."""
        match module:
            case BasicBlock() | Bottleneck():
                return self._through_block(module, relevance)
            case nn.Conv2d():
                return self._share(lambda x: self._positive_convolution(module, x), module, relevance)
            case nn.Linear():
                return self._share(
                    lambda x: positive(F.linear, x, self.sign * module.weight), module, relevance
                )
            case nn.MaxPool2d() | nn.AdaptiveAvgPool2d():
                return self._share(module.forward, module, relevance)
        return relevance  # ReLU, dropout, BatchNorm

    def _share(self, function: Callable[[Tensor], Tensor], module: nn.Module, relevance: Tensor) -> Tensor:
        """x * d(function)/dx with the seed R / function(x): every input's share of every output."""
        x = self.tape.inputs[module][self.rows].float().requires_grad_()
        with torch.enable_grad():
            z = function(x)
        seed = divide(relevance.reshape(z.shape), z.detach())
        (gradient,) = torch.autograd.grad(z, x, seed)
        return x.detach() * gradient

    def _positive_convolution(self, module: nn.Conv2d, x: Tensor) -> Tensor:
        def convolve(x: Tensor, weight: Tensor) -> Tensor:
            return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)

        weight = self.sign * module.weight
        if module in self.scales:
            weight = weight * self.scales[module][:, None, None, None]
        z = positive(convolve, x, weight)
        if self.biases and module.bias is not None:
            z = z + 2 * module.bias.detach().float()[:, None, None]
        return z

    def _through_block(self, block: Block, relevance: Tensor) -> Tensor:
        *convolutions, last = _branch(block)
        branch = self.tape.outputs[last][self.rows].float()
        skip = self._skipped(block)
        if self.positive_shares:
            branch, skip = branch.relu(), skip.relu()
        share = divide(relevance.reshape(branch.shape), branch + skip)
        down, across = branch * share, skip * share
        for module in reversed(convolutions):
            down = self.through(module, down)
        for module in reversed(list(block.downsample or ())):
            across = self.through(module, across)
        return down + across

    def _skipped(self, block: Block) -> Tensor:
        taken = self.tape.inputs[block] if block.downsample is None else self.tape.outputs[block.downsample]
        return taken[self.rows].float()


def divide(relevance: Tensor, z: Tensor) -> Tensor:
    """relevance / z, 0 where z is (nearly) 0."""
    known = z.abs() > _TINY
    return torch.where(known, relevance / torch.where(known, z, 1), 0)


def positive(apply: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    """The sum of the positive products x_i w_ij: apply(x+, w+) + apply(x-, w-)."""
    weight = weight.detach().float()
    z = apply(x.clamp(min=0), weight.clamp(min=0))
    if bool((x < 0).any()):  # never behind a ReLU
        z = z + apply(x.clamp(max=0), weight.clamp(max=0))
    return z


def _branch(block: Block) -> list[nn.Module]:
    """The residual branch: its convolutions, then its last BatchNorm, whose output is added."""
    if isinstance(block, Bottleneck):
        return [block.conv1, block.conv2, block.conv3, block.bn3]
    return [block.conv1, block.conv2, block.bn2]


@contextmanager
def taped(steps: list[nn.Module]) -> Iterator[Tape]:
    """Records what the rules need while the block runs. The hooks are removed when it ends."""
    tape = Tape()

    def keep_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        tape.inputs[module] = inputs[0].detach()

    def keep_output(module: nn.Module, inputs: object, output: Tensor) -> None:
        tape.outputs[module] = output.detach().clone()  # residual blocks add to it in place

    taking = {part for step in steps for part in step.modules() if _shares(part)}
    giving: set[nn.Module] = {_branch(step)[-1] for step in steps if isinstance(step, Block)}
    giving |= {step.downsample for step in steps if isinstance(step, Block) and step.downsample is not None}
    if isinstance(steps[-1], nn.Conv2d):
        giving.add(steps[-1])
    handles = [module.register_forward_pre_hook(keep_input) for module in taking]
    handles += [module.register_forward_hook(keep_output) for module in giving]
    try:
        yield tape
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def chained(layer: nn.Module, steps: list[nn.Module]) -> Iterator[None]:
    """Checks that what runs after the layer is the steps, each on what the one before gave (or flattened).

    Relevance goes through these modules only. What happens between them, such as attention, it cannot see.

    Raises:
        UserError: it is something else.
    """
    ran: list[nn.Module] = []
    given: list[tuple[Tensor, int]] = []
    changed = UserError(
        "relevance propagation is not right for this classifier, because it does not just run its layers one after "
        "the other; choose another method, such as gradcam"
    )

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        ran.append(module)
        for output, version in given:
            intact = output._version == version
            if intact and (inputs[0] is output or torch.equal(*map(_flat, (inputs[0], output)))):
                return
        raise changed

    def leave(module: nn.Module, inputs: object, output: Tensor) -> None:
        given[:] = [(output, output._version)]

    handles = [module.register_forward_pre_hook(enter) for module in dict.fromkeys(steps)]
    handles += [module.register_forward_hook(leave) for module in dict.fromkeys([layer, *steps])]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if ran != steps:
        raise changed


_SHARES = (BasicBlock, Bottleneck, nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
_PASSES = (nn.ReLU, nn.Dropout, nn.Identity, nn.BatchNorm2d)


def _flat(values: Tensor) -> Tensor:
    return values.flatten(1).nan_to_num()


def _shares(module: nn.Module) -> bool:
    return isinstance(module, _SHARES)


def steps_above(classifier: nn.Module, layer: str) -> list[nn.Module]:
    """The modules between the layer and the logits, in forward order.

    Raises:
        UserError: another network, or no such layer on its path.
    """
    steps = steps_of(classifier)
    find_layer(classifier, layer)
    names = [name for name, _ in steps]
    within = [index for index, name in enumerate(names) if f"{name}.".startswith(f"{layer}.")]
    if not within:
        inside = [name for name in names if layer.startswith(f"{name}.")]
        fix = f"choose {inside[0]}" if inside else f"choose a layer such as {names[-2]}"
        raise UserError(f"layer '{layer}' is not between two steps from the image to the logits: {fix}")
    if within[-1] == len(steps) - 1:
        raise UserError(
            f"layer '{layer}' has nothing above it: choose a layer with feature maps below the head"
        )
    return [module for _, module in steps[within[-1] + 1 :]]


def steps_of(classifier: nn.Module) -> list[tuple[str, nn.Module]]:
    """Paths and modules from the image to the logits in forward order; residual blocks are one step.

    Raises:
        UserError: the order of the network's modules is not known, or a module has no rule.
    """
    layout = layout_of(classifier)
    if layout is None or not layout.path:
        raise UserError(
            f"relevance propagation does not support {type(classifier).__name__}, only {SUPPORTED}; "
            "choose another method, such as gradcam"
        )
    steps = [step for name in layout.path for step in _flattened(name, classifier.get_submodule(name))]
    for name, module in steps:
        _check_rule(name, module)
    return steps


def _flattened(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, nn.Sequential):
        for child, part in module.named_children():
            yield from _flattened(f"{name}.{child}", part)
    else:
        yield name, module


def _check_rule(name: str, module: nn.Module) -> None:
    """UserError unless the module, and for a residual block each of its parts, computes what its rule says."""
    kind = next((kind for kind in (*_SHARES, *_PASSES) if isinstance(module, kind)), None)
    own = kind is None or type(module).forward is not kind.forward or "forward" in vars(module)
    if own or getattr(module, "padding_mode", "zeros") != "zeros":
        raise UserError(
            f"relevance propagation has no rule for {type(module).__name__} at '{name}': it supports {SUPPORTED}"
        )
    if isinstance(module, Block):
        for child, part in module.named_children():
            for path, step in _flattened(f"{name}.{child}", part):
                _check_rule(path, step)


def _check_maximum(scores: Tensor, logits: Tensor) -> None:
    """A network that ends in a convolution must give the maxima of its score map."""
    if scores.ndim != 4 or not torch.equal(scores.amax((2, 3)).float(), logits):
        raise UserError(
            "relevance propagation supports score maps only below global max pooling: the logits are not the maxima "
            "of the last convolution"
        )
