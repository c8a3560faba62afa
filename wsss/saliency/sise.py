"""SISE and Ada-SISE: masks of the channels that matter, from several stages, fused from fine to coarse."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import (
    SaliencyMethod,
    as_tuple,
    by_image,
    check_range,
    exact,
    finite,
    normalize,
)
from wsss.saliency.cam import GradCAM, LayerEvidence, layer_evidence
from wsss.saliency.fusion import stages_of
from wsss.saliency.perturbation import (
    Score,
    check_scoring,
    images_per_pass,
    masked_logits,
    masks,
    posterior,
)


@dataclass(frozen=True)
class InputSampling(SaliencyMethod):
    """What SISE and Ada-SISE share: see `SISE`."""

    divides: ClassVar[bool] = True
    """Whether each mask is divided by its sum."""

    layers: tuple[str, ...] | None = None
    score: Score = "sigmoid"
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_scoring(self.score, self.batch_size)
        if self.layers is not None:
            object.__setattr__(self, "layers", as_tuple(self.layers, "layers", "('layer3', 'layer4')"))

    def forward(self, classifier: nn.Module, images: Tensor) -> "SISEEvidence":
        layers = stages_of(classifier) if self.layers is None else self.layers
        stages = layer_evidence([GradCAM(layer) for layer in layers], classifier, images)
        return SISEEvidence(self, classifier, images, stages)

    @abstractmethod
    def chosen(self, speaks: Tensor) -> Tensor:
        """Which channels count, for a (n, k): (n, k) bool."""


@dataclass(frozen=True)
class SISE(InputSampling):
    """SISE: channels that speak for the class mask the image; the masks, weighted by the scores, are summed and fused.

        V_l = mm(sum_k p_c(x * m_k) m_k / sum m_k),    k with a_k > mu max_k' a_k',    a_k = sum_uv dz_c/dA_k
        R = V_1;    R <- (R + V_l) * [V_l > Otsu(V_l)] for l = 2 .. L

    A_k is channel k of the activation at stage l, fine to coarse; upsampled to the image and min-max normalised (mm) it
    is the mask m_k. p_c and z_c are the posterior and the logit of class c. Otsu(V) is the threshold that separates V
    best in two.

    Paper: Sattarzadeh et al., "Explaining Convolutional Neural Networks through Attribution-Based Input Sampling and
    Block-Wise Feature Aggregation", AAAI 2021, https://arxiv.org/abs/2010.00672

    Deviation: there is no code of the authors. On a ResNet the stages are the stem and the four layers, on VGG the
    activations before each pooling. Otsu's threshold is found among all values, without a histogram.

    Cost: 3 forwards (two of them to fold BatchNorm); for each class a backward pass from the logits to each stage; and
    a forward for each channel that speaks for any of the image's classes: about half of all (of 3904 for ResNet-50,
    1472 for VGG16).

    Args:
        layers: the stages; None: all of the network, where they are known.
        score: p: "sigmoid" for multi-label classifiers, "softmax" for single-label ones.
        batch_size: most masked images in one forward pass (on a CPU fewer where they are large).
        share: mu, in [0, 1).

    The result has the size of the images, (N, H, W).

    Example:
        >>> SISE(layers=("layer2", "layer3"))(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    share: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share < 1:
            raise UserError(f"share must be in [0, 1), got {self.share}")

    def chosen(self, speaks: Tensor) -> Tensor:
        return speaks > self.share * speaks.amax(1, keepdim=True).clamp(min=0)


@dataclass(frozen=True)
class AdaSISE(InputSampling):
    """Ada-SISE: SISE that finds its own threshold for the channels, and does not divide by the masks' sizes.

        V_l = mm(sum_k p_c(x * m_k) m_k),    k with a_k > Otsu(those of a that are positive)

    a_k = sum_uv dz_c/dA_k. The rest is that of `SISE`.

    Paper: Sudhakar et al., "Ada-SISE: Adaptive Semantic Input Sampling for Efficient Explanation of Convolutional
    Neural Networks", ICASSP 2021, https://arxiv.org/abs/2102.07799

    Cost: that of `SISE`, with fewer channels.

    Args:
        layers: see `SISE`.
        score: see `SISE`.
        batch_size: see `SISE`.

    Example:
        >>> AdaSISE(layers=("layer2", "layer3"))(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    divides: ClassVar[bool] = False

    def chosen(self, speaks: Tensor) -> Tensor:
        return torch.stack([row > otsu(row[row > 0]) if bool((row > 0).any()) else row > 0 for row in speaks])


@dataclass(frozen=True)
class SISEEvidence:
    """The evidence of Grad-CAM at each stage, and what it takes to score masked images."""

    method: InputSampling
    classifier: nn.Module
    images: Tensor
    stages: list[LayerEvidence]

    @property
    def logits(self) -> Tensor:
        return self.stages[0].logits

    def maps(self, targets: Tensor) -> Tensor:
        check_range(targets[:, 1], self.logits.shape[1], "class")
        chosen = [self._chosen(stage, targets) for stage in self.stages]
        maps = self.logits.new_zeros((len(targets), *self.images.shape[-2:]))
        for index, rows in by_image(targets):
            for stage, counts in zip(self.stages, chosen, strict=True):
                found = self._stage(
                    stage.activation[index].detach().float(), index, targets[rows, 1], counts[rows]
                )
                if stage is self.stages[0]:
                    maps[rows] = found
                else:
                    salient = torch.stack([one > otsu(one.flatten()) for one in found])
                    maps[rows] = (maps[rows] + found) * salient
        return finite(maps)

    def _chosen(self, stage: LayerEvidence, targets: Tensor) -> Tensor:
        """(N, k) bool: the channels that count for each target."""
        counts = torch.zeros(
            (len(targets), stage.activation.shape[1]), dtype=torch.bool, device=targets.device
        )
        with exact(targets.device):
            for rows, _, gradient in stage.derivatives(targets):
                counts[rows] = self.method.chosen(gradient.sum((2, 3)))
        return counts

    def _stage(self, activation: Tensor, index: int, classes: Tensor, counts: Tensor) -> Tensor:
        """V (K, H, W) of one stage and image: activation (k, u, v), the channels that count (K, k)."""
        image = self.images[index]
        varies = activation.amax((1, 2)) > activation.amin((1, 2))
        used = (counts.any(0) & varies).nonzero()[:, 0]
        total = self.logits.new_zeros((len(classes), *image.shape[-2:]))
        if len(used) == 0:
            return total + 0 * activation.sum()  # NaN stays NaN

        def batches() -> Iterator[Tensor]:
            for some in torch.split(used, images_per_pass(self.method.batch_size, image)):
                yield masks(activation[some], image)

        scores = posterior(masked_logits(self.classifier, image, batches()), self.method.score)
        weights = scores[:, classes] * counts[:, used].T
        start = 0
        with exact(image.device):
            for mask in batches():
                share = weights[start : start + len(mask)]
                if self.method.divides:
                    share = share / mask.sum((1, 2))[:, None]
                total += torch.einsum("nk,nhw->khw", share, mask)
                start += len(mask)
            return normalize(total) + 0 * total


def otsu(values: Tensor) -> Tensor:
    """The threshold t of values (n,) for which those above t and the others differ most (Otsu's).

    It maximises w0 w1 (m0 - m1)^2 with the counts w and the means m of the values up to t and above it. Equal values
    are not separated. If all are equal, t is that value.

    Source: Otsu, "A Threshold Selection Method from Gray-Level Histograms", IEEE Transactions on Systems, Man, and
    Cybernetics 9(1), 1979, https://doi.org/10.1109/TSMC.1979.4310076
    """
    ordered = values.double().sort().values
    count = torch.arange(1, len(ordered), device=values.device)
    below = ordered.cumsum(0)[:-1]
    gap = below / count - (ordered.sum() - below) / (len(ordered) - count)
    between = count * (len(ordered) - count) * gap.square() * (ordered[1:] > ordered[:-1])
    best = between.argmax() if len(between) else ordered.new_zeros((), dtype=torch.long)
    return torch.where((between > 0).any(), ordered[best], ordered[-1]).to(values.dtype)
