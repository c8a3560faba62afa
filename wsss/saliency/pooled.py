"""CAM, Ablation-CAM, and what both ask: whether only pooling and a linear head are above the layer."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import (
    SaliencyMethod,
    by_image,
    check_logits,
    check_range,
    evaluating,
    exact,
    finite,
)
from wsss.saliency.cam import (
    GradCAM,
    LayerEvidence,
    LayerMethod,
    layer_evidence,
    warn_signed,
    weighted_activation,
)
from wsss.saliency.layers import chosen_layer, run_above, tapped

LINEAR = 1e-3
"""By which share gradients may differ, between places and between activations, and still be called the same: rounding
of half precision is more than that on some networks, whose heads then count as not linear."""


@dataclass(frozen=True)
class CAM(LayerMethod):
    """CAM: activations weighted by the head's weights for the class.

        M = ReLU(sum_k W_ck A_k)

    A_k is channel k of the activation at `layer`, W_ck the weight of the linear head for the mean of A_k and class c.
    The head's bias is left out. The mean of the signed map plus the bias is the logit.

    Paper: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, equation 2,
    https://arxiv.org/abs/1512.04150

    W is the sum over places of dz_c/dA_k, so it does not matter what the head is called. Only global average pooling
    and a linear head may follow the layer: others are refused, and so are heads that end in a sigmoid or softmax.
    Whether that is so is tried by differentiating at three other activations.

    Cost: one forward; two images more for the trial. For each class a backward pass through the head.

    Args:
        layer: see `LayerMethod`.
        relu: False gives the signed map of the paper.

    Example:
        >>> CAM(layer="layer4")(classifier, images, targets).shape
        torch.Size([2, 2, 2])
    """

    scale_balance = "max"

    relu: bool = True

    def forward(self, classifier: nn.Module, images: Tensor) -> LayerEvidence:
        if not linear_above(classifier, self.layer, images):
            raise UserError(
                "CAM needs a layer that only global average pooling and a linear head follow, without a final sigmoid "
                "or softmax: choose another layer, or gradcam"
            )
        return layer_evidence((self,), classifier, images)[0]

    def combine(self, activation: Tensor, gradient: Tensor) -> Tensor:
        maps = torch.einsum("nk,nkuv->nuv", gradient.sum((2, 3)), activation)
        return maps.relu() if self.relu else maps


def linear_above(classifier: nn.Module, layer: str | None, images: Tensor) -> bool:
    """Whether the logits are a linear function (with a bias) of the mean over places of what `layer` gives.

    Then the gradient is the same everywhere and at any activation. It is compared at the first image's activation, at
    its negative, and at noise, for a random mix of the logits.
    """
    generator = torch.Generator().manual_seed(0)
    layer = chosen_layer(classifier, layer, images)
    with evaluating(classifier), exact(images.device):
        with torch.no_grad(), tapped(classifier, layer, images[:1]) as taken:
            classifier(images[:1])
        maps = taken[-1].maps.detach()
        noise = torch.randn(maps.shape, generator=generator, dtype=torch.float32).to(maps)
        with torch.enable_grad():
            start, output = run_above(
                classifier, layer, images[:1], torch.cat((maps, -maps, noise * maps.std()))
            )
            if not isinstance(output, Tensor) or not output.requires_grad:
                return False
            mix = torch.randn(output.shape[1:], generator=generator, dtype=torch.float32).to(output)
            (gradient,) = torch.autograd.grad((output * mix).sum(), start)
    difference = (gradient - gradient[:1, :, :1, :1]).abs().max()
    return bool(difference <= LINEAR * gradient.abs().max())


@dataclass(frozen=True)
class AblationCAM(SaliencyMethod):
    """Ablation-CAM: activations weighted by how much of the logit is lost without them; no gradients needed.

        M = ReLU(sum_k w_k A_k),    w_k = (z_c - z_c[A_k := 0]) / |z_c|

    A_k is channel k of the activation at `layer`, z_c the logit of class c, z_c[A_k := 0] the logit when the channel is
    set to 0.

    Paper: Desai and Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free
    Localization", WACV 2020, equation 3, https://arxiv.org/abs/2001.07233

    Deviations: the drop is divided by |z_c|, for a negative logit would turn the map around. A channel is set to 0;
    grad-cam's puts a very negative number in its place where it never is 0. On layers with negative activations 0 does
    not mean "absent", and a warning says so.

    Cost: one forward, and a pass through the layers above `layer` for each channel that is not 0, which serves all
    classes; the layers below run again once for `batch_size` channels. Below global average pooling and a linear head
    w_k is W_ck mean_uv A_k / |z_c|: one forward, and for each class a backward pass through the head.

    Args:
        layer: see `LayerMethod`.
        batch_size: most channels in one pass.

    Example:
        >>> AblationCAM(layer="layer3")(classifier, images, targets).shape
        torch.Size([2, 4, 4])
    """

    layer: str | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")

    def forward(self, classifier: nn.Module, images: Tensor) -> "AblationEvidence":
        evidence = GradCAM(self.layer).forward(classifier, images)
        return AblationEvidence(evidence, classifier, images, self)


@dataclass(frozen=True)
class AblationEvidence:
    """The evidence of Grad-CAM at the layer, and what it takes to run the layers above without a channel."""

    gradcam: LayerEvidence
    classifier: nn.Module
    images: Tensor
    method: AblationCAM

    @property
    def logits(self) -> Tensor:
        return self.gradcam.logits

    def maps(self, targets: Tensor) -> Tensor:
        check_range(targets[:, 1], self.logits.shape[1], "class")
        activation = self.gradcam.activation.detach().float()[targets[:, 0]]
        warn_signed(activation, "Ablation-CAM's 0 does not mean that a channel is absent")
        if linear_above(self.classifier, self.method.layer, self.images):
            drops = self._linear(targets)
        else:
            drops = activation.new_empty((len(targets), activation.shape[1]))
            for index, rows in by_image(targets):
                ablated = torch.cat(list(self._ablated(index)))
                drops[rows] = (self.logits[index] - ablated)[:, targets[rows, 1]].T
        size = self.logits[targets[:, 0], targets[:, 1], None].abs()
        with exact(targets.device):
            return finite(
                weighted_activation(drops / size.clamp(min=torch.finfo(size.dtype).tiny), activation)
            )

    def _linear(self, targets: Tensor) -> Tensor:
        """z_c - z_c[A_k := 0] (N, k) where the logit is the sum of G * A over all places, and a bias."""
        drops = self.logits.new_empty((len(targets), self.gradcam.activation.shape[1]))
        for rows, activation, gradient in self.gradcam.derivatives(targets):
            drops[rows] = (gradient * activation).sum((2, 3))
        return drops

    def _ablated(self, index: int) -> Iterator[Tensor]:
        """Logits (n, C) of one image without each of its channels, batch by batch; its own where a channel is 0."""
        activation, image = self.gradcam.activation[index].detach(), self.images[index][None]
        layer = chosen_layer(self.classifier, self.method.layer, image)
        channels = torch.arange(len(activation), device=image.device)
        live = activation.flatten(1).abs().amax(1) > 0
        for some in torch.split(channels, self.method.batch_size):
            logits = self.logits[index].repeat(len(some), 1)
            if bool(live[some].any()):
                logits[live[some]] = self._without(layer, image, activation, some[live[some]])
            yield logits

    def _without(self, layer: str, image: Tensor, activation: Tensor, channels: Tensor) -> Tensor:
        """Logits (n, C) of an image (1, 3, H, W), each without one of the channels (n,) of its activation."""
        left = activation.repeat(len(channels), 1, 1, 1)
        left[torch.arange(len(channels), device=image.device), channels] = 0
        with evaluating(self.classifier), torch.no_grad():
            return check_logits(run_above(self.classifier, layer, image, left)[1], left)
