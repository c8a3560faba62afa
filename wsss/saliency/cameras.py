"""CAMERAS: activations and gradients of one image at many resolutions, averaged before they are multiplied."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import DeferredEvidence, SaliencyMethod, as_tuple, exact, finite, upsample
from wsss.saliency.cam import GradCAM, constant_in_space
from wsss.saliency.sess import resizer

FACTORS = tuple(resolution / 224 for resolution in range(224, 1000, 100))
"""224, 324, …, 924 of the paper's 224 x 224 inputs (authors' code, `CAMERAS.inputResolutions`)."""

WORKING_SET = 2**22
"""Numbers in the largest temporary tensor of the fusion (16 MiB): sets how many rows are fused at a time."""


@dataclass(frozen=True)
class CAMERAS(SaliencyMethod):
    """CAMERAS: activation times gradient, each averaged over many resolutions of the image first.

        M = ReLU(sum_k A_k G_k),    A = mean_r up(A_r),    G = mean_r up(G_r)

    The image is resized to each resolution r (bicubic, half-pixel centres, no antialiasing). A_r is the activation at
    `layer` there, G_r = dz/dA_r with z the logit of the class, k the channel. `up` is bilinear resizing to the size
    of the image at the first resolution.

    The upsampled tensors (k, H, W) are never built: see `inner_product`. Below global average pooling and a linear head
    G_r has one value per channel, and the map is mean_r up(sum_k G_k A_r,k).

    Paper: Jalwana et al., "CAMERAS: Enhanced Resolution And Sanity preserving Class Activation Mapping for image
    saliency", CVPR 2021, https://arxiv.org/abs/2106.10649

    Deviations from the authors' code: the aspect ratio of the image is kept; theirs needs squares. An image that does
    not have the first resolution is resized to it; theirs takes it as it is.

    Cost: one forward per resolution for all classes. With the default resolutions their total area is 60.9 times that
    of the image. Above `layer`, as many backward passes per resolution as one image has classes. Memory: one forward
    at the largest resolution, and A_r and G_r of the images that are processed together.

    Args:
        layer: see `LayerMethod`.
        resolutions: lengths of the shorter side, the map's size first. None: the image's own size and 324/224, 424/224,
            …, 924/224 times that. For 224 x 224 images these are exactly 224, 324, …, 924.
        agreeing: keep only the resolutions whose highest logit is of the same class as at the first resolution, for
            each image separately. The authors' code does so when it is given no class.
        batch_size: images processed together. One image at the largest resolution is the work of 17 already.

    The result has the size of the first resolution, (N, H, W).

    Example:
        >>> CAMERAS(layer="layer4")(classifier, images, targets).shape
        torch.Size([2, 64, 64])
    """

    layer: str | None = None
    resolutions: tuple[int, ...] | None = None
    agreeing: bool = False
    batch_size: int = 1

    @property
    def own_scales(self) -> bool:
        return True

    def __post_init__(self) -> None:
        if self.resolutions is not None:
            resolutions = as_tuple(self.resolutions, "resolutions", "(224, 324)")
            object.__setattr__(self, "resolutions", resolutions)
            if not self.resolutions or min(self.resolutions) < 1:
                raise UserError(
                    f"CAMERAS needs one or more resolutions of at least 1, got {self.resolutions}"
                )
        if self.batch_size < 1:
            raise UserError(f"CAMERAS needs a batch_size of at least 1, got {self.batch_size}")

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(height, width) at each resolution of an image of this size."""
        factors = FACTORS
        if self.resolutions is not None:
            factors = tuple(resolution / min(height, width) for resolution in self.resolutions)
        return [(max(1, round(height * factor)), max(1, round(width * factor))) for factor in factors]

    def forward(self, classifier: nn.Module, images: Tensor) -> DeferredEvidence:
        return DeferredEvidence(classifier, images, partial(self._maps, classifier, images))

    def _maps(self, classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Maps of all targets, `batch_size` images at a time."""
        sizes = self.sizes(images.shape[-2], images.shape[-1])
        maps = torch.zeros((len(targets), *sizes[0]), dtype=torch.float32, device=images.device)
        for some in torch.unique(targets[:, 0]).split(self.batch_size):
            rows = torch.isin(targets[:, 0], some).nonzero()[:, 0]
            local = torch.stack((torch.searchsorted(some, targets[rows, 0]), targets[rows, 1]), dim=1)
            seen = [self._look(classifier, images[some], local, size) for size in sizes]
            with exact(images.device):
                for image in range(len(some)):
                    own = (local[:, 0] == image).nonzero()[:, 0]
                    maps[rows[own]] = self._fused(seen, image, own, sizes[0])
        return finite(maps)

    def _look(
        self, classifier: nn.Module, images: Tensor, targets: Tensor, size: tuple[int, int]
    ) -> "Resolution":
        """What one resolution shows of the images (B, 3, H, W), for the targets (T, 2)."""
        evidence = GradCAM(self.layer).forward(classifier, resize_bicubic(images, size))
        activation = evidence.activation.detach().float()
        gradients = activation.new_empty((len(targets), *activation.shape[1:]))
        for rows, _, gradient in evidence.derivatives(targets):
            gradients[rows] = gradient
        return Resolution(evidence.logits, activation, gradients)

    def _fused(self, seen: Sequence["Resolution"], image: int, rows: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps (n, H, W) of one image for the targets `rows` (n,)."""
        best = [int(resolution.logits[image].argmax()) for resolution in seen]
        kept = [found for found, top in zip(seen, best, strict=True) if top == best[0] or not self.agreeing]
        activations = [found.activation[image] for found in kept]
        return torch.stack(
            [inner_product(activations, [found.gradient[row] for found in kept], size).relu() for row in rows]
        )


@dataclass(frozen=True)
class Resolution:
    """Of B images and T targets at one resolution: logits (B, C), A (B, k, u, v) and G (T, k, u, v)."""

    logits: Tensor
    activation: Tensor
    gradient: Tensor


def resize_bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W) at another size: bicubic, half-pixel centres, without antialiasing."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bicubic", align_corners=False)


def inner_product(
    activations: Sequence[Tensor], gradients: Sequence[Tensor], size: tuple[int, int]
) -> Tensor:
    """sum_k mean_r up(A_r)_k * mean_r up(G_r)_k: R tensors A_r and G_r (k, u_r, v_r) -> (H, W) of `size`.

    up is bilinear with half-pixel centres, that is, one matrix for the rows and one for the columns. Rows are blended
    first. That leaves the columns of all resolutions side by side, V = sum_r v_r of them. One matrix product with all
    column weights then blends the columns and sums over r at once. The output is made some rows at a time.
    """
    if all(constant_in_space(gradient[None]) for gradient in gradients):
        weights = sum(gradient[:, 0, 0] for gradient in gradients) / len(gradients)
        return _mean_upsampled([torch.einsum("k,kuv->uv", weights, part) for part in activations], size)
    across = torch.cat([resizer(part.shape[2], size[1], part.device) for part in activations], dim=1)
    across = across / len(activations)
    down = [resizer(part.shape[1], size[0], part.device) for part in activations]
    together = max(1, WORKING_SET // (len(activations[0]) * max(across.shape)))
    by_row = [[part.permute(1, 2, 0).contiguous() for part in parts] for parts in (activations, gradients)]
    rows = []
    for start in range(0, size[0], together):
        chunk = [matrix[start : start + together] for matrix in down]
        activation, gradient = (across @ _rows_blended(chunk, parts) for parts in by_row)
        rows.append((activation * gradient).sum(2))
    return torch.cat(rows)


def _rows_blended(down: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Row weights (n, u_r) and tensors (u_r, v_r, k) -> (n, V, k): output rows, columns side by side."""
    return torch.cat(
        [torch.einsum("nu,uvk->nvk", weights, part) for weights, part in zip(down, parts, strict=True)], dim=1
    )


def _mean_upsampled(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Mean of maps (u_r, v_r), each upsampled to (H, W)."""
    return torch.stack([upsample(one[None], size)[0] for one in maps]).mean(0)
