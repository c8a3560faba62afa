"""Smooth Grad-CAM++: Grad-CAM++ from gradients averaged over noisy copies of the image."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from wsss.saliency.base import DeferredEvidence, SaliencyMethod, by_image, exact, finite
from wsss.saliency.cam import NEARLY_ZERO, GradCAM, warn_negative_weights, weighted_activation
from wsss.saliency.noise import check_noise, noisy_copies


@dataclass(frozen=True)
class SmoothGradCAMPlusPlus(SaliencyMethod):
    """Smooth Grad-CAM++: Grad-CAM++ whose derivatives are means over noisy copies of the image.

        M = ReLU(sum_k w_k A_k),    w_k = sum_uv alpha ReLU(D1),    alpha = D2 / (2 D2 + S_k D3), and 0 where D2 is 0
        Dp = mean_i G_i^p,    copies x + n_i with n_i ~ N(0, (noise * (max x - min x))^2)

    A_k is channel k of the activation of the image x itself at `layer`, S_k its sum over places, G_i = dz/dA at copy i
    with z the logit of the class. With one sample and no noise it is Grad-CAM++.

    Paper: Omeiza et al., "Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep Convolutional
    Neural Network Models", arXiv 2019, https://arxiv.org/abs/1908.01224

    Deviations: the paper has D1 in the numerator of alpha, which does not follow from Grad-CAM++. torchcam uses the
    gradient and activation of the last copy in w and M. Places where the denominator is 0 or less mean nothing and are
    left out, with a warning. They occur on layers with negative activations, and where noise turns gradients around.

    Cost: for an image with K classes, 1 + `samples` forwards, and K * `samples` backward passes through the layers
    above `layer`, `batch_size` copies at a time.

    Args:
        layer: see `LayerMethod`.
        samples: number of noisy copies.
        noise: standard deviation of the noise as a share of the image's range of values.
        seed: of the noise, which is the same for every image and device.
        batch_size: most copies in one forward pass.

    Example:
        >>> SmoothGradCAMPlusPlus(layer="layer3", samples=4)(classifier, images, targets).shape
        torch.Size([2, 4, 4])
    """

    layer: str | None = None
    samples: int = 25
    noise: float = 0.15
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_noise(self.samples, self.noise, self.batch_size)

    def forward(self, classifier: nn.Module, images: Tensor) -> DeferredEvidence:
        return DeferredEvidence(classifier, images, partial(self._maps, classifier, images))

    def _maps(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        activation = GradCAM(self.layer).forward(classifier, images).activation.detach().float()
        maps = activation.new_empty((len(targets), *activation.shape[2:]))
        for index, rows in by_image(targets):
            powers = self._powers(classifier, images[index], targets[rows, 1])
            with exact(maps.device):
                own = activation[index]
                maps[rows] = weighted_activation(_weights(own, *powers), own.expand(len(rows), -1, -1, -1))
        return finite(maps)

    def _powers(self, classifier: nn.Module, image: Tensor, classes: Tensor) -> tuple[Tensor, ...]:
        """D1, D2, D3 (K, k, u, v) of an image (3, H, W)."""
        total = torch.zeros((), device=image.device)
        for copies in noisy_copies(image, self.samples, self.noise, self.seed, self.batch_size):
            evidence = GradCAM(self.layer).forward(classifier, copies)
            every = torch.arange(len(copies), device=image.device)
            with exact(image.device):
                # Round r differentiates the r-th class of all copies at once.
                rounds = evidence.derivatives(torch.cartesian_prod(every, classes))
                sums = [torch.stack([(g**p).sum(0) for p in (1, 2, 3)]) for _, _, g in rounds]
                total = total + torch.stack(sums, dim=1) / self.samples
        return total.unbind(0)


def _weights(activation: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """w (K, k) of an activation (k, u, v) and the means of the powers of its gradients (K, k, u, v)."""
    # Divided by D2, so that small gradients do not vanish in products of three.
    ratio = third / second.where(second > 0, torch.inf)
    denominator = 2 + activation.sum((1, 2))[:, None, None] * ratio
    counts = (first > 0) & (second > 0)
    if bool((counts & (denominator < NEARLY_ZERO)).any()):
        warn_negative_weights("Smooth Grad-CAM++")
    alpha = (counts & (denominator > NEARLY_ZERO)) / denominator.where(denominator > NEARLY_ZERO, torch.inf)
    return (alpha * first.relu()).sum((2, 3))
