"""Mean-field inference of the dense CRF in PyTorch (Krähenbühl & Koltun, NIPS 2011, algorithm 1).

The energy is that of `wsss.refine.crf`; the kernels are filtered on the permutohedral lattice. All images of a call are
one long list of pixels, whatever their sizes; the lattice keeps them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce

import torch
from torch import Tensor

from wsss.refine.parameters import CRFParameters
from wsss.refine.permutohedral import Lattice, build_lattice, lattice_filter, pad_points

# Added to a kernel's row sum before the root (densecrf), for pixels that no other pixel reaches.
SMALLEST_SUM = 1e-20

# From this number of labels on, PyTorch's softmax uses a CPU's vector registers.
WIDE = 16

# Lattices of the Gaussian kernel to remember, one per list of image sizes: 9 MB each for a 500x375 photo.
REMEMBERED_SIZES = 16


def mean_field(log_probabilities: Tensor, image: Tensor, parameters: CRFParameters) -> Tensor:
    """Marginals of the dense CRF, differentiable with respect to the log-probabilities (not to the image).

    Args:
        log_probabilities: `(C, H, W)` of one image or `(B, C, H, W)`, any float type: minus the unary energy.
            Only differences within a pixel matter; -inf rules a label out.
        image: `(3, H, W)` or `(B, 3, H, W)` RGB in 0..255, any type, on the same device.
        parameters: the constants of the CRF.

    Returns:
        Marginals of the shape of `log_probabilities`, which sum to one over C, in float32 (float64 for float64).

    Raises:
        ValueError: shapes that do not fit.
        UserError: a constant is out of range, or a standard deviation is too small for the image.
    """
    if log_probabilities.ndim == 3:
        return mean_field_of([log_probabilities], [image], parameters)[0]
    return torch.stack(mean_field_of(log_probabilities.unbind(), image.unbind(), parameters))


def mean_field_of(
    log_probabilities: Sequence[Tensor],
    images: Sequence[Tensor],
    parameters: CRFParameters,
    kernels: Sequence[Lattice] | None = None,
) -> list[Tensor]:
    """Marginals of several images of any sizes with the same labels, in one inference.

    Args:
        log_probabilities: `(C, H_i, W_i)` each.
        images: `(3, H_i, W_i)` each.
        parameters: the constants of the CRF.
        kernels: `kernels_of` the images and parameters, where they serve several calls; None builds them.

    Returns:
        `(C, H_i, W_i)` each, as from one call of `mean_field` per image.
    """
    _check(log_probabilities, images)
    logits = torch.cat([pad_points(part.flatten(1)) for part in log_probabilities], dim=1).T.contiguous()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    kernels = kernels_of(images, parameters) if kernels is None else kernels
    marginals = _softmax(logits)
    for _ in range(parameters.iterations):
        messages = [lattice_filter(marginals, kernel) for kernel in kernels]
        # Everything is added in place to the first message, which nothing else needs. It saves a tenth of the time.
        marginals = _softmax(reduce(Tensor.add_, [*messages, logits]))
    counts = [_padded(part.shape[-2], part.shape[-1]) for part in log_probabilities]
    return [
        rows[: part[0].numel()].T.contiguous().view(part.shape)
        for rows, part in zip(torch.split(marginals, counts), log_probabilities, strict=True)
    ]


def _softmax(energy: Tensor) -> Tensor:
    """Softmax over the last dimension."""
    if energy.shape[1] >= WIDE:
        return energy.softmax(dim=1)
    # PyTorch's softmax over a short last dimension takes five times longer than these steps on a CPU.
    powers = (energy - energy.detach().amax(dim=1, keepdim=True)).exp_()
    return powers / powers.sum(dim=1, keepdim=True)


def kernels_of(images: Sequence[Tensor], parameters: CRFParameters) -> list[Lattice]:
    """The normalised and weighted kernels of all images `(3, H_i, W_i)`; those with weight 0 are left out."""
    parameters.check()
    sizes = tuple((image.shape[-2], image.shape[-1]) for image in images)
    device, kernels = images[0].device, []
    # Not in inference mode, whose tensors autograd refuses: remembered lattices may meet it later.
    with torch.inference_mode(False), torch.no_grad():
        if parameters.gaussian_compat:
            kernels.append(_gaussian(sizes, parameters.gaussian_sxy, parameters.gaussian_compat, device))
        if parameters.bilateral_compat:
            sxy, srgb = parameters.bilateral_sxy, parameters.bilateral_srgb
            lattice = build_lattice([_features(image, sxy, srgb) for image in images])
            kernels.append(_normalised(lattice, sizes, parameters.bilateral_compat))
    return kernels


@lru_cache(maxsize=REMEMBERED_SIZES)
def _gaussian(sizes: tuple[tuple[int, int], ...], sxy: float, compat: float, device: torch.device) -> Lattice:
    """The normalised and weighted Gaussian kernel, which depends on the sizes of the images only."""
    features = [pad_points(_positions(height, width, device) / sxy) for height, width in sizes]
    return _normalised(build_lattice(features), sizes, compat)


def forget_lattices() -> None:
    """Free the memory of the remembered lattices, on all devices."""
    _gaussian.cache_clear()


def _normalised(lattice: Lattice, sizes: Sequence[tuple[int, int]], compat: float) -> Lattice:
    """Symmetric normalisation: divide by the roots of the row sums on both sides; and the Potts weight."""
    device = lattice.vertices.device
    mass = torch.cat([pad_points(torch.ones(height * width, device=device)) for height, width in sizes])
    sums = lattice_filter(mass[:, None], lattice).squeeze(1)
    return lattice.scaled(mass * (sums + SMALLEST_SUM).rsqrt() * compat**0.5)


def _features(image: Tensor, sxy: float, srgb: float) -> Tensor:
    """Position and colour of each pixel, `(5, N)` float32, in units of the standard deviations, padded."""
    position = _positions(image.shape[-2], image.shape[-1], image.device) / sxy
    return pad_points(torch.cat([position, image.flatten(1).float() / srgb]))


def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """x and y of each pixel, `(2, H * W)` float32."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.stack([x, y]).flatten(1).float()


def _padded(height: int, width: int) -> int:
    return pad_points(torch.empty(height * width, device="meta")).numel()


def _check(log_probabilities: Sequence[Tensor], images: Sequence[Tensor]) -> None:
    """Raise ValueError where the arguments break the contract."""
    for scores, image in zip(log_probabilities, images, strict=True):
        if scores.ndim != 3 or image.ndim != 3 or image.shape[0] != 3 or scores.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"expected log-probabilities (C, H, W) and an image (3, H, W), not {tuple(scores.shape)} "
                f"and {tuple(image.shape)}"
            )
