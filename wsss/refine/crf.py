"""Dense CRF: mean-field inference with Gaussian edge potentials. `dense_crf` has the equation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt

from wsss.errors import UserError
from wsss.refine.parameters import CRFParameters

if TYPE_CHECKING:
    from torch import Tensor

# Probabilities below this one are raised to it, so that -log stays finite.
SMALLEST_PROBABILITY = 1e-8

# A class enters the CRF of a prediction where some pixel gives it this probability; with all labels it takes
# several times longer.
CRF_MIN_PROBABILITY = 0.1


@overload
def dense_crf(
    probabilities: npt.NDArray[np.float32],
    image: npt.NDArray[np.uint8],
    parameters: CRFParameters | None = None,
    backend: str = "auto",
    device: str | None = None,
) -> npt.NDArray[np.float32]: ...


@overload
def dense_crf(
    probabilities: Tensor,
    image: npt.NDArray[np.uint8] | Tensor,
    parameters: CRFParameters | None = None,
    backend: str = "auto",
    device: None = None,
) -> Tensor: ...


def dense_crf(
    probabilities: npt.NDArray[np.float32] | Tensor,
    image: npt.NDArray[np.uint8] | Tensor,
    parameters: CRFParameters | None = None,
    backend: str = "auto",
    device: str | None = None,
) -> npt.NDArray[np.float32] | Tensor:
    """Sharpen class probabilities along the edges of a photo.

    It returns the mean-field marginals, after a number of iterations, of a fully connected CRF with the energy

        E(x) = sum_i -log p_i(x_i) + sum_{i<j} [x_i != x_j] (
                   w1 exp(-|s_i - s_j|^2 / (2 sxy1^2))                                      (Gaussian, eq. 3)
                 + w2 exp(-|s_i - s_j|^2 / (2 sxy2^2) - |I_i - I_j|^2 / (2 srgb^2)) )       (bilateral, eq. 3)

    with x a labelling of the pixels i, p_i the given probabilities, s the pixel position, I the RGB colour in 0..255,
    and w the compatibilities (Potts model). Both kernels k are symmetrically normalised:
    k_ij / sqrt(sum_j k_ij * sum_i k_ij). `CRFParameters` has w1, sxy1 (`gaussian_*`), w2, sxy2, srgb (`bilateral_*`).

    Paper: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS
    2011, https://arxiv.org/abs/1210.5644

    The time grows with the number of labels C: give only the classes that can be present, plus background.

    A torch Tensor of probabilities stays on its device and is refined by the torch backend. Gradients flow back to it.

    Args:
        probabilities: `(C, H, W)` float32 with C >= 2, in [0, 1]; clipped to at least 1e-8. Only ratios
            within a pixel matter, so they need not sum to one. An array, or a Tensor on any device.
        image: `(H, W, 3)` uint8 RGB, the photo itself (not mean-subtracted), same height and width.
        parameters: the constants of the CRF; None means `CRFParameters()`.
        backend: "pydensecrf" (C++, one thread, holds the GIL), "torch" (the same arithmetic in PyTorch, as many
            threads as PyTorch uses, or a GPU), or "auto": torch on a GPU, else pydensecrf if it is installed,
            else torch. The marginals of the two differ by rounding only.
        device: where the torch backend works on arrays, as in "cuda"; None means the CPU.

    Returns:
        `(C, H, W)` float32, the marginals: in [0, 1], sum over C is one. An array for an array, a Tensor
        for a Tensor. No input is changed.

    Raises:
        ValueError: an argument has a wrong shape, type or value.
        UserError: the backend is not installed, a constant is out of range, or a kernel is too narrow for the image.

    Example:
        >>> dense_crf(probabilities, image).shape
        (3, 64, 64)
    """
    if isinstance(probabilities, np.ndarray):
        return dense_crf_batch([probabilities], [np.asarray(image)], parameters, backend, device)[0]
    return _of_tensor(probabilities, image, parameters or CRFParameters(), backend)


def _of_tensor(
    probabilities: Tensor, image: npt.NDArray[np.uint8] | Tensor, parameters: CRFParameters, backend: str
) -> Tensor:
    """`dense_crf` of a Tensor."""
    parameters.check()
    import torch  # only here: see `_torch`

    from wsss.refine.meanfield import mean_field

    if backend == "pydensecrf":
        raise ValueError("the CRF backend pydensecrf takes arrays, not tensors: choose torch or auto")
    if probabilities.dtype in (torch.bfloat16, torch.float16):  # as autocast gives them
        probabilities = probabilities.float()
    _check(probabilities.detach().cpu().numpy(), np.asarray(torch.as_tensor(image).cpu()))
    pixels = torch.as_tensor(image, device=probabilities.device).permute(2, 0, 1)
    return mean_field(probabilities.clamp(SMALLEST_PROBABILITY, 1.0).log(), pixels, parameters)


def dense_crf_batch(
    probabilities: Sequence[npt.NDArray[np.float32]],
    images: Sequence[npt.NDArray[np.uint8]],
    parameters: CRFParameters | None = None,
    backend: str = "auto",
    device: str | None = None,
) -> list[npt.NDArray[np.float32]]:
    """`dense_crf` of several photos, which may differ in size and in number of labels.

    The torch backend infers them all at once. That keeps a GPU busy and saves nothing on a CPU. Every photo
    then takes as much memory as the one with the most labels, so group photos with similar numbers.

    Args:
        probabilities: `(C_i, H_i, W_i)` float32 each.
        images: `(H_i, W_i, 3)` uint8 RGB each.
        parameters: as of `dense_crf`.
        backend: as of `dense_crf`.
        device: as of `dense_crf`.

    Returns:
        `(C_i, H_i, W_i)` float32 each, as from `dense_crf`.

    Raises:
        ValueError: an argument has a wrong shape, type or value.
        UserError: the backend is not installed, a constant is out of range, or a kernel is too narrow for an image.
    """
    if len(probabilities) != len(images):
        raise ValueError(f"got {len(probabilities)} arrays of probabilities for {len(images)} images")
    results = _infer([[scores] for scores in probabilities], images, parameters, backend, device)
    return [result for (result,) in results]


def dense_crfs(
    starts: Sequence[npt.NDArray[np.float32]],
    image: npt.NDArray[np.uint8],
    parameters: CRFParameters | None = None,
    backend: str = "auto",
    device: str | None = None,
) -> list[npt.NDArray[np.float32]]:
    """`dense_crf` of one photo from several starting points. Its kernels are built once for all of them.

    Args:
        starts: `(C, H, W)` float32 each, as of `dense_crf`, with the same C.
        image: as of `dense_crf`.
        parameters: as of `dense_crf`.
        backend: as of `dense_crf`.
        device: as of `dense_crf`.

    Returns:
        `(C, H, W)` float32 for each start, bit for bit what `dense_crf` returns for it.

    Raises:
        ValueError: an argument has a wrong shape, type or value.
        UserError: the backend is not installed, a constant is out of range, or a kernel is too narrow for the image.
    """
    if len({scores.shape for scores in starts}) != 1:
        raise ValueError(f"starts must be arrays of one shape, not {[scores.shape for scores in starts]}")
    return _infer([starts], [image], parameters, backend, device)[0]


def _infer(
    probabilities: Sequence[Sequence[npt.NDArray[np.float32]]],
    images: Sequence[npt.NDArray[np.uint8]],
    parameters: CRFParameters | None,
    backend: str,
    device: str | None,
) -> list[list[npt.NDArray[np.float32]]]:
    """Marginals of each start of each photo; every photo has the same number of starts."""
    parameters = parameters or CRFParameters()
    parameters.check()
    for starts, image in zip(probabilities, images, strict=True):
        for scores in starts:
            _check(scores, image)
    infer = _chosen(backend, device)
    clipped = [[np.clip(scores, SMALLEST_PROBABILITY, 1.0) for scores in starts] for starts in probabilities]
    # pydensecrf and torch both want memory that they could write to, and write nothing.
    writable = [np.require(image, requirements=["C", "W"]) for image in images]
    return infer(clipped, writable, parameters, device) if images else []


def crf_probabilities(
    probabilities: npt.NDArray[np.float32],
    image: npt.NDArray[np.uint8],
    parameters: CRFParameters,
    backend: str = "auto",
    device: str | None = None,
) -> npt.NDArray[np.float32]:
    """A prediction after the CRF. Only classes with a probability of at least 0.1 at some pixel take part.

    Args:
        probabilities: `(C, H, W)` float32, sums to one over C.
        image: `(H, W, 3)` uint8 RGB.
        parameters: the constants of the CRF.
        backend: as of `dense_crf`.
        device: as of `dense_crf`.

    Returns:
        `(C, H, W)` float32, 0 for classes that take no part. If fewer than two do, there is nothing to refine: then
        the probabilities themselves.
    """
    possible = np.flatnonzero(probabilities.max(axis=(1, 2)) >= CRF_MIN_PROBABILITY)
    if len(possible) < 2:
        return probabilities
    refined = np.zeros_like(probabilities)
    refined[possible] = dense_crf(probabilities[possible], image, parameters, backend, device)
    return refined


def _chosen(backend: str, device: str | None) -> _Backend:
    """The backend of a name, for a device."""
    on_cpu = device is None or device == "cpu"
    if backend == "auto":
        backend = "pydensecrf" if on_cpu and pydensecrf_is_installed() else "torch"
    match backend:
        case "torch":
            return _torch
        case "pydensecrf" if on_cpu:
            return _pydensecrf
        case "pydensecrf":
            raise ValueError(
                f"the CRF backend pydensecrf works on the CPU only, not on {device}: choose torch"
            )
    raise ValueError(f"unknown CRF backend {backend!r}: choose one of auto, pydensecrf, torch")


def pydensecrf_is_installed() -> bool:
    """Whether the C++ reference can be imported; it needs a compiler to install."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError:
        return False
    return True


def _pydensecrf(
    probabilities: Sequence[Sequence[npt.NDArray[np.float32]]],
    images: Sequence[npt.NDArray[np.uint8]],
    parameters: CRFParameters,
    device: str | None,
) -> list[list[npt.NDArray[np.float32]]]:
    """The C++ reference of Krähenbühl (one thread; it holds the GIL, so use processes)."""
    if not pydensecrf_is_installed():
        raise UserError(
            "the CRF backend pydensecrf needs the package of that name, which is missing here: run "
            "`pip install pydensecrf2`, or choose the backend torch"
        )
    return [_reference(*pair, parameters) for pair in zip(probabilities, images, strict=True)]


def _reference(
    starts: Sequence[npt.NDArray[np.float32]], image: npt.NDArray[np.uint8], parameters: CRFParameters
) -> list[npt.NDArray[np.float32]]:
    """One photo: the pairwise terms stay in pydensecrf's object, the unaries are exchanged."""
    import pydensecrf.densecrf as pydensecrf

    classes, height, width = starts[0].shape
    kernel = {"kernel": pydensecrf.DIAG_KERNEL, "normalization": pydensecrf.NORMALIZE_SYMMETRIC}
    crf = pydensecrf.DenseCRF2D(width, height, classes)
    crf.addPairwiseGaussian(sxy=parameters.gaussian_sxy, compat=parameters.gaussian_compat, **kernel)
    crf.addPairwiseBilateral(
        sxy=parameters.bilateral_sxy,
        srgb=parameters.bilateral_srgb,
        rgbim=image,
        compat=parameters.bilateral_compat,
        **kernel,
    )
    results = []
    for scores in starts:
        crf.setUnaryEnergy(np.ascontiguousarray(-np.log(scores).reshape(classes, -1), dtype=np.float32))
        marginals = np.array(crf.inference(parameters.iterations), dtype=np.float32)
        results.append(marginals.reshape(classes, height, width))
    return results


def _torch(
    probabilities: Sequence[Sequence[npt.NDArray[np.float32]]],
    images: Sequence[npt.NDArray[np.uint8]],
    parameters: CRFParameters,
    device: str | None,
) -> list[list[npt.NDArray[np.float32]]]:
    """Our own implementation, see `wsss.refine.meanfield`."""
    import torch  # only here: worker processes that use pydensecrf do without its seconds and memory

    from wsss.refine.meanfield import kernels_of, mean_field_of

    photos = [torch.from_numpy(image).to(device).permute(2, 0, 1) for image in images]
    with torch.no_grad():
        kernels = kernels_of(photos, parameters)
        results = [
            mean_field_of(_logits(starts, device), photos, parameters, kernels)
            for starts in zip(*probabilities, strict=True)
        ]
    return [
        [
            np.ascontiguousarray(result[: len(scores)].cpu().numpy())
            for result, scores in zip(of_photo, starts, strict=True)
        ]
        for of_photo, starts in zip(zip(*results, strict=True), probabilities, strict=True)
    ]


def _logits(probabilities: Sequence[npt.NDArray[np.float32]], device: str | None) -> list[Tensor]:
    """Logarithms `(C, H_i, W_i)`, C the largest number of labels; works in the given arrays."""
    import torch

    labels = max(len(scores) for scores in probabilities)
    logits = []
    for scores in probabilities:
        logarithms = torch.from_numpy(scores).to(device).log_()  # of a copy that `_infer` made
        # A label that another photo has is ruled out in this one.
        missing = logarithms.new_full((labels - len(scores), *scores.shape[1:]), -torch.inf)
        logits.append(torch.cat([logarithms, missing]) if len(missing) else logarithms)
    return logits


_Backend = Callable[
    [
        Sequence[Sequence[npt.NDArray[np.float32]]],
        Sequence[npt.NDArray[np.uint8]],
        CRFParameters,
        str | None,
    ],
    list[list[npt.NDArray[np.float32]]],
]


def _check(probabilities: npt.NDArray[np.float32], image: npt.NDArray[np.uint8]) -> None:
    """Raise ValueError where the arguments of `dense_crf` break its contract."""
    if probabilities.ndim != 3 or probabilities.dtype != np.float32:
        raise ValueError(
            f"probabilities must be (C, H, W) float32, not {probabilities.shape} {probabilities.dtype}"
        )
    if probabilities.shape[0] < 2:
        raise ValueError("probabilities need at least two classes (background and one more)")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
    if probabilities.shape[1:] != image.shape[:2]:
        raise ValueError(
            f"probabilities are {probabilities.shape[1:]} pixels (height, width), "
            f"the image is {image.shape[:2]}"
        )
    if 0 in image.shape:
        raise ValueError("the image is empty")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities contain NaN or infinity")
