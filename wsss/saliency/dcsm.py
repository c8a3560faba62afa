"""Distinct class saliency maps: guided gradients of intermediate layers, subtracted between classes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.models.backbone import layout_of
from wsss.models.maps import as_maps, find_layer, prefix_of, seen_by
from wsss.saliency.base import (
    DeferredEvidence,
    SaliencyMethod,
    as_tuple,
    backward_rounds,
    check_logits,
    check_range,
    evaluating,
    exact,
    finite,
    normalize,
    resize_images,
    upsample,
)
from wsss.saliency.gradient import graph_nodes, guide

SCALES = (1.0, 1.2, 1.4, 1.6)
"""Factors on the image's sides in the paper."""
CAFFE_SIDE = 512
"""The authors' code resizes every image to a square of this side."""
CAFFE_CLASSES = 3
"""The authors' code subtracts between the classes with this many highest scores."""
Side = Literal["output", "input"]
"""Where a layer is differentiated."""


@dataclass(frozen=True)
class DCSM(SaliencyMethod):
    """Distinct class saliency maps: guided gradients of intermediate layers, subtracted between the classes.

        M^c = mean over scales and layers of tanh(alpha * M~_l^c), in [0, 1]
        M~_l^c = sum over the other candidates c' of max(M_l^c - M_l^c', 0); M_l^c if there are none
        M_l^c = max over channels of |dS_c / dL_l|, divided by its maximum, then upsampled

    L_l is the activation of layer l (after the ReLU) for the image at one scale, S_c the score map of class c. The
    gradient is guided (see `GuidedBackprop`) in the ReLUs above the layer, and its seed is 1 at every position of
    S_c. alpha is the steepness of tanh.

    The candidates of an image are the classes that the call names for it, that is, its labels where they are known.
    `candidates="classifier"` adds the classes whose probability is above `threshold`.

    Paper: Shimoda and Yanai, "Distinct Class-Specific Saliency Maps for Weakly Supervised Semantic Segmentation", ECCV
    2016, https://doi.org/10.1007/978-3-319-46493-0_14

    Deviations from the paper: "divided by its maximum" is ours; without it alpha has no scale. A classifier without
    a method `score_map(images) -> (B, C, u, v)` is seeded at its logit.

    `variant="caffe"` follows the authors' code, which differs from their paper:

    - The input is one image of 512 x 512; `scales` has no effect.
    - The candidates are the classifier's top three, whatever the call names.
    - Gradients are those at each convolution's input, not at its activation.
    - M is the largest gradient of a channel, not its absolute value, and is not divided by its maximum.
    - A difference M^c - M^c' keeps its negative part and is multiplied by alpha / max, and so is the sum over c' before
      tanh. alpha is 3 in their code.
    - The sum over layers is divided by its maximum and only then clamped at 0.

    Where such a maximum is not positive, their code flips the sign or divides by 0. We add nothing there.

    Identity: right below a global-average-pool head (layer4 of a ResNet) dS_c / dL_l is constant in space. There M_l is
    1 everywhere, and the layer drops out wherever classes are subtracted.

    Cost: one forward for each scale, in all 6.96 times the area of one image (512 x 512 for "caffe"). Each has as
    many backward passes, down to the lowest layer, as the image with the most targets and candidates has. Where the
    classifier chooses candidates, one more forward without gradients.

    Args:
        variant: "paper" or "caffe".
        layers: `get_submodule` paths of modules that give (B, k, u, v). By default the ReLUs of conv3_1 to conv5_3 on
            a VGG ("caffe": its convolutions), and layer2 to layer4 on a ResNet. For a convolution before a ReLU, dL_l
            is taken before that ReLU and guided by it too.
        scales: factors on the image's height and width.
        alpha: steepness of tanh.
        candidates: "targets" or "classifier", see above.
        threshold: probability above which the classifier's own candidates count, in [0, 1).
        score: that probability: "sigmoid" for multi-label classifiers, "softmax" for single-label ones.
        batch_size: most images in one forward pass.

    The result has the size of the images, (N, H, W); for "caffe" it is (N, 512, 512). Values are in [0, 1].

    Example:
        >>> DCSM()(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    variant: Literal["paper", "caffe"] = "paper"
    layers: tuple[str, ...] | None = None
    scales: tuple[float, ...] = SCALES
    alpha: float = 3.0
    candidates: Literal["targets", "classifier"] = "targets"
    threshold: float = 0.5
    score: Literal["sigmoid", "softmax"] = "sigmoid"
    batch_size: int = 4

    @property
    def own_scales(self) -> bool:
        return True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", as_tuple(self.scales, "scales", "(1.0, 1.2)"))
        if self.layers is not None:
            object.__setattr__(self, "layers", as_tuple(self.layers, "layers", "('layer3', 'layer4')"))
        if self.variant not in ("paper", "caffe") or self.candidates not in ("targets", "classifier"):
            raise UserError(
                "DCSM's variant must be 'paper' or 'caffe' and its candidates 'targets' or 'classifier', "
                f"got {self.variant!r}, {self.candidates!r}"
            )
        if self.score not in ("sigmoid", "softmax"):
            raise UserError(f"score must be 'sigmoid' or 'softmax', got {self.score!r}")
        if self.layers == () or not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise UserError(f"DCSM needs at least one layer and only positive scales: {self}")
        if not (0 < self.alpha < math.inf and 0 <= self.threshold < 1 and self.batch_size >= 1):
            raise UserError(
                "DCSM needs a positive alpha, a threshold in [0, 1) and a batch_size of at least 1, "
                f"got {self.alpha}, {self.threshold}, {self.batch_size}"
            )

    def forward(self, classifier: nn.Module, images: Tensor) -> DeferredEvidence:
        return DeferredEvidence(classifier, images, partial(self._maps, classifier, images))

    def _maps(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Maps of all targets, `batch_size` images at a time."""
        if self.variant == "caffe":
            images = resize_images(images, (CAFFE_SIDE, CAFFE_SIDE))
        maps = torch.zeros((len(targets), *images.shape[-2:]), dtype=torch.float32, device=images.device)
        for some in torch.unique(targets[:, 0]).split(self.batch_size):
            rows = torch.isin(targets[:, 0], some).nonzero()[:, 0]
            local = torch.stack((torch.searchsorted(some, targets[rows, 0]), targets[rows, 1]), dim=1)
            maps[rows] = self._batch_maps(classifier, images[some], local)
        return finite(maps)

    def _batch_maps(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Maps (T, H, W) of the images of one batch, summed scale by scale and layer by layer."""
        candidates = self._candidates(classifier, images, targets)
        pairs = torch.unique(torch.cat((targets, candidates)), dim=0)
        own, rivals = rivalry(targets, candidates, pairs)
        height, width = images.shape[-2:]
        total = torch.zeros((len(targets), height, width), dtype=torch.float32, device=images.device)
        count = 0
        for scale in self.scales if self.variant == "paper" else (1.0,):
            scaled = resize_images(images, (max(1, round(scale * height)), max(1, round(scale * width))))
            for maps in self._layer_maps(classifier, scaled, pairs):
                with exact(images.device):
                    total += self._terms(upsample(maps, (height, width)), own, rivals)
                count += 1
        return total / count if self.variant == "paper" else normalize(total, "max").clamp(min=0)

    def _candidates(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """(R, 2) rows (image, class): the classes that each image's maps are compared with."""
        if self.variant == "paper" and self.candidates == "targets":
            return targets
        with evaluating(classifier), torch.no_grad():
            logits = check_logits(classifier(images), images)
        if self.variant == "caffe":
            best = logits.topk(min(CAFFE_CLASSES, logits.shape[1])).indices
            return torch.zeros_like(logits).scatter(1, best, 1).nonzero()
        probabilities = logits.sigmoid() if self.score == "sigmoid" else logits.softmax(1)
        return torch.cat((targets, (probabilities > self.threshold).nonzero()))

    def _layer_maps(self, classifier: nn.Module, images: Tensor, pairs: Tensor) -> Iterator[Tensor]:
        """M of every layer, (P, u, v) each, of the (image, class) `pairs` (P, 2)."""
        side: Side = "output" if self.variant == "paper" else "input"
        layers = default_layers(classifier, side) if self.layers is None else self.layers
        for maps in guided_maps(classifier, images, layers, side, pairs, absolute=self.variant == "paper"):
            yield normalize(maps, "max") if self.variant == "paper" else maps

    def _terms(self, maps: Tensor, own: Tensor, rivals: Tensor) -> Tensor:
        """What one layer adds to each target: maps (P, H, W), see `rivalry` -> (T, H, W)."""
        term = paper_term if self.variant == "paper" else caffe_term
        return torch.stack(
            [term(maps[row], maps[others], self.alpha) for row, others in zip(own, rivals, strict=True)]
        )


def rivalry(targets: Tensor, candidates: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Where each target is among the sorted, unique `pairs` (P, 2), and which pairs are its rivals.

    A target's rivals are the other classes among the candidates (R, 2) of its image.

    Returns:
        The index of each target (T,), and the rivals (T, P) bool.
    """
    equal = (targets[:, None] == pairs).all(2)
    contested = (candidates[:, None] == pairs).all(2).any(0)
    same_image = targets[:, None, 0] == pairs[:, 0]
    return equal.int().argmax(1), same_image & contested & ~equal


def paper_term(own: Tensor, others: Tensor, alpha: float) -> Tensor:
    """tanh(alpha * sum_c' max(M_c - M_c', 0)): own (H, W), others (K, H, W); tanh(alpha * M_c) if K is 0."""
    distinct = (own - others).relu().sum(0) if len(others) else own
    return (alpha * distinct).tanh()


def caffe_term(own: Tensor, others: Tensor, alpha: float) -> Tensor:
    """The same with signs, each difference and their sum scaled to the maximum alpha."""
    differences = alpha * normalize(own - others, "max") if len(others) else own[None]
    return (alpha * normalize(differences.sum(0, keepdim=True), "max")[0]).tanh()


def guided_maps(
    classifier: nn.Module,
    images: Tensor,
    layers: Sequence[str],
    side: Side,
    pairs: Tensor,
    *,
    absolute: bool,
) -> list[Tensor]:
    """The largest guided derivative over the channels of each layer, from one forward.

    Args:
        classifier: see `score_sums`.
        images: (B, 3, H, W).
        layers: `get_submodule` paths.
        side: whether dL is taken at the layers' outputs or inputs.
        pairs: (P, 2) rows (image, class).
        absolute: take the largest |dS/dL| instead of the largest dS/dL.

    Returns:
        For each layer (P, u, v), float32, in the resolution of the layer.

    Raises:
        ValueError: a class is out of range.
        UserError: a layer does not exist, is no feature map, or does not lead to the scores.
    """
    with (
        evaluating(classifier),
        torch.enable_grad(),
        tapped_layers(classifier, images, layers, side) as taken,
    ):
        scores = score_sums(classifier, images)
    check_range(pairs[:, 1], scores.shape[1], "class")
    nodes = set(graph_nodes(scores))
    for layer in layers:
        if layer not in taken or torch.autograd.graph.get_gradient_edge(taken[layer]).node not in nodes:
            raise UserError(f"the scores do not depend on layer '{layer}': choose other layers")
    if guide(scores) == 0:
        raise UserError(
            "DCSM found no ReLU above its layers, so that its derivatives would be plain gradients: choose earlier "
            "layers, or use gradient or gradcam for this classifier"
        )
    activations = [taken[layer] for layer in layers]
    maps = [
        torch.zeros((len(pairs), *a.shape[-2:]), dtype=torch.float32, device=a.device) for a in activations
    ]
    with exact(images.device):
        for rows, gradients in backward_rounds(scores, activations, pairs):
            for one, gradient in zip(maps, gradients, strict=True):
                chosen = gradient[pairs[rows, 0]].float()
                one[rows] = (chosen.abs() if absolute else chosen).amax(1)
    return maps


def score_sums(classifier: nn.Module, images: Tensor) -> Tensor:
    """(B, C) whose gradient has the seed 1 at every position of the score map; the logits if there is none."""
    score_map = getattr(classifier, "score_map", None)
    if score_map is None:
        output: Tensor = classifier(images)
        check_logits(output, images)
        return output
    scores = score_map(images.clone())
    if not isinstance(scores, Tensor) or scores.ndim != 4:
        raise UserError("the classifier's score_map must return a tensor (images, classes, h, w)")
    sums: Tensor = scores.sum((2, 3))
    return sums


@contextmanager
def tapped_layers(
    classifier: nn.Module, images: Tensor, layers: Sequence[str], side: Side
) -> Iterator[dict[str, Tensor]]:
    """Collects the layers' outputs (or inputs) as maps. The graph starts at the first. Hooks are removed at the end."""
    taken: dict[str, Tensor] = {}
    prefix = prefix_of(classifier)

    def take(layer: str, features: object) -> Tensor:
        maps, restore, _ = as_maps(features, shapes[0], layer, prefix)
        taken[layer] = maps if maps.requires_grad else maps.detach().requires_grad_()
        return restore(taken[layer])

    with ExitStack() as hooks:
        shapes = hooks.enter_context(seen_by(classifier, images))
        for layer in layers:
            module = find_layer(classifier, layer)
            if side == "output":
                handle = module.register_forward_hook(lambda _, __, output, layer=layer: take(layer, output))
            else:
                handle = module.register_forward_pre_hook(
                    lambda _, inputs, layer=layer: take(layer, inputs[0])
                )
            hooks.enter_context(handle)
        yield taken


def default_layers(classifier: nn.Module, side: Side) -> tuple[str, ...]:
    """The layers of the paper.

    On a VGG those after the second max-pooling (conv3_1 and later): the ReLUs for the side "output", the convolutions
    for "input". On other networks the last three stages.

    Raises:
        UserError: the classifier's layers are not known.
    """
    layout = layout_of(classifier)
    if layout is None:
        raise UserError(
            "DCSM knows the layers of VGG and ResNet classifiers only: name this one's with `layers`"
        )
    return (layout.guided if side == "output" else layout.convolutions) or layout.stages[-3:]
