"""From the saliency of one image to its pseudo-mask: dense CRF, and 255 where the mask cannot be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wsss.data.labels import BACKGROUND, IGNORE
from wsss.refine.background import Maps, background_scores, background_threshold, seed_mask
from wsss.refine.crf import dense_crf, dense_crfs
from wsss.refine.grabcut import grabcut_labels
from wsss.refine.parameters import CRFParameters, RefineParameters

CRF = Callable[
    [Sequence[npt.NDArray[np.float32]], npt.NDArray[np.uint8], CRFParameters], list[npt.NDArray[np.float32]]
]
"""`dense_crfs` with a backend and a device."""

# A hard label needs a threshold below 1, or even the peak of the map would be background.
HIGHEST_THRESHOLD = 0.95


class RefinedMask(NamedTuple):
    """The two readings of one refined image, equal wherever `mask` is not 255, and how sure they are."""

    labels: npt.NDArray[np.uint8]
    """`(H, W)` the most probable mask index of every pixel, no 255: what `mask.miou` scores."""
    mask: npt.NDArray[np.uint8]
    """`(H, W)` the same with 255 where it is uncertain: what the segmentation network is trained on."""
    confidence: npt.NDArray[np.float32]
    """`(H, W)` in [0, 1]: the CRF's posterior of `labels` (agreement: the mean of the two posteriors)."""


def refine_mask(
    maps: Maps,
    classes: Sequence[int] | npt.NDArray[np.integer],
    image: npt.NDArray[np.uint8],
    parameters: RefineParameters | None = None,
    backend: str = "auto",
    device: str | None = None,
) -> RefinedMask:
    """Make the pseudo-mask of one image. Only its own classes and the background enter the CRF.

    Args:
        maps: `(K, H, W)` float32 in [0, 1], each class's maximum is 1 (`prepare_maps`).
        classes: the K mask indices (1..C) of the image-level labels, in the order of `maps`. Without any
            class the whole image is (certain) background.
        image: `(H, W, 3)` uint8 RGB.
        parameters: None means `RefineParameters()`.
        backend: of `dense_crf`.
        device: of `dense_crf`.

    Returns:
        `RefinedMask(labels, mask, confidence)`.

    Raises:
        ValueError: sizes, types or class indices that do not fit.
        UserError: the CRF backend is not installed.
    """
    parameters = parameters or RefineParameters()
    indices = _check(maps, classes, image)
    if len(indices) == 1:
        return _empty(image)
    if parameters.method == "grabcut":
        labels = grabcut_labels(maps, classes, image)
        return RefinedMask(labels, labels.copy(), np.ones(labels.shape, dtype=np.float32))
    if parameters.method == "pamr":
        return _averaged(background_scores(maps, parameters.background), image, indices, parameters)
    rule = _agreement if parameters.uncertainty in ("auto", "agreement") else _posterior
    posterior, certain = rule(maps, image, parameters, partial(dense_crfs, backend=backend, device=device))
    mask = indices[posterior.argmax(axis=0)]
    return RefinedMask(mask, np.where(certain, mask, np.uint8(IGNORE)), posterior.max(axis=0))


def _empty(image: npt.NDArray[np.uint8]) -> RefinedMask:
    """The mask of a photo without classes: background everywhere, and certain."""
    empty = np.full(image.shape[:2], BACKGROUND, dtype=np.uint8)
    return RefinedMask(empty, empty.copy(), np.ones(image.shape[:2], dtype=np.float32))


def refine_probabilities(
    probabilities: Maps,
    classes: Sequence[int] | npt.NDArray[np.integer],
    image: npt.NDArray[np.uint8],
    parameters: RefineParameters | None = None,
    backend: str = "auto",
    device: str | None = None,
) -> RefinedMask:
    """Make the pseudo-mask of one image from probabilities that know a background of their own.

    One CRF starts from them. Certain is what its posterior is sure of (`posterior_limit`), or everything with
    `uncertainty="none"`; "agreement" needs seeds of two strictnesses and is read as "posterior" here.

    Args:
        probabilities: `(K + 1, H, W)` float32, background first, sums to one (`prepare_probabilities`).
        classes: the K mask indices (1..C) of the image-level labels.
        image: `(H, W, 3)` uint8 RGB.
        parameters: None means `RefineParameters()`.
        backend: of `dense_crf`.
        device: of `dense_crf`.

    Returns:
        `RefinedMask(labels, mask, confidence)`.

    Raises:
        ValueError: sizes, types or class indices that do not fit.
        UserError: the CRF backend is not installed.
    """
    parameters = parameters or RefineParameters()
    indices = _check(probabilities[1:], classes, image)
    if len(indices) == 1:
        return _empty(image)
    if parameters.method == "pamr":
        return _averaged(probabilities, image, indices, parameters)
    posterior = dense_crf(probabilities, image, parameters.soft_crf, backend, device)
    return _by_posterior(posterior, indices, parameters)


def _by_posterior(
    posterior: npt.NDArray[np.float32], indices: npt.NDArray[np.uint8], parameters: RefineParameters
) -> RefinedMask:
    """The most probable classes; uncertain is what falls below `posterior_limit`."""
    labels, confidence = indices[posterior.argmax(axis=0)], posterior.max(axis=0)
    limit = 0.0 if parameters.uncertainty == "none" else parameters.posterior_limit
    return RefinedMask(labels, np.where(confidence >= limit, labels, np.uint8(IGNORE)), confidence)


def _averaged(
    scores: Maps, image: npt.NDArray[np.uint8], indices: npt.NDArray[np.uint8], parameters: RefineParameters
) -> RefinedMask:
    """PAMR instead of the CRF. Averages are never sharp, so no posterior is asked for: every pixel counts."""
    averaged = _local_average(scores, image)
    total = averaged.sum(axis=0, keepdims=True)
    posterior = np.divide(averaged, total, out=np.zeros_like(averaged), where=total > 0)
    return _by_posterior(posterior, indices, replace(parameters, uncertainty="none"))


def _local_average(maps: Maps, image: npt.NDArray[np.uint8]) -> Maps:
    """`refine.pamr` of maps `(C, H, W)`; torch is imported only where this is asked for."""
    import torch

    from wsss.refine.pamr import pamr

    photo = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    averaged: Maps = pamr(torch.from_numpy(np.ascontiguousarray(maps)), photo).numpy()
    return averaged


def _agreement(
    maps: Maps, image: npt.NDArray[np.uint8], parameters: RefineParameters, crf: CRF
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Two CRFs, from a generous and from a strict seed (IRN, Ahn et al., CVPR 2019, and its code).

    Certain is what both call the same. (IRN also keeps a pixel that both call foreground, but of different
    classes.) The labels come from the mean of the two posteriors, which keeps what both agree on.

    Returns:
        The posterior `(K + 1, H, W)`, background first, and `(H, W)` bool, True where its label is certain.
    """
    threshold = background_threshold(maps, parameters.background)
    positions = range(1, len(maps) + 1)
    unaries = []
    for factor in (parameters.low_factor, parameters.high_factor):
        seed = seed_mask(maps, positions, min(threshold * factor, HIGHEST_THRESHOLD))
        unaries.append(label_probabilities(seed, len(maps) + 1, parameters.confidence))
    generous, strict = crf(unaries, image, parameters.crf)
    mean = (generous + strict) / np.float32(2)
    labels = mean.argmax(axis=0)
    certain = (labels == generous.argmax(axis=0)) & (labels == strict.argmax(axis=0))
    return mean, certain


def _posterior(
    maps: Maps, image: npt.NDArray[np.uint8], parameters: RefineParameters, crf: CRF
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """One CRF from the soft scores; certain is what its posterior is sure of (CLIP-ES, Lin et al., 2023).

    Returns:
        The posterior `(K + 1, H, W)`, background first, and `(H, W)` bool, True where its label is certain.
    """
    scores = background_scores(maps, parameters.background)
    unary = score_probabilities(scores, parameters.confidence)
    (posterior,) = crf([unary], image, parameters.crf)
    limit = 0.0 if parameters.uncertainty == "none" else parameters.posterior_limit
    return posterior, posterior.max(axis=0) >= limit


def label_probabilities(
    labels: npt.NDArray[np.integer], count: int, confidence: float
) -> npt.NDArray[np.float32]:
    """Probabilities of hard labels: `confidence` for the label, the rest shared by the other classes.

    Args:
        labels: `(H, W)` integers in 0..count - 1.
        count: number of classes C >= 2, background included.
        confidence: in (0, 1).

    Returns:
        `(C, H, W)` float32, sums to one over C.
    """
    other = (1 - confidence) / (count - 1)
    chosen = np.arange(count).reshape(-1, 1, 1) == labels
    return np.where(chosen, np.float32(confidence), np.float32(other))


def score_probabilities(scores: npt.NDArray[np.float32], confidence: float) -> npt.NDArray[np.float32]:
    """Probabilities of soft scores s: `confidence * s / sum(s) + (1 - confidence) / C`.

    The uniform part keeps pixels of zero saliency reachable: without it, the CRF could never give them to
    a class.

    Args:
        scores: `(C, H, W)` float32, non-negative.
        confidence: in (0, 1).

    Returns:
        `(C, H, W)` float32, sums to one over C; uniform where all scores are zero.
    """
    total = scores.sum(axis=0)
    weight = np.divide(confidence, total, out=np.zeros_like(total), where=total > 0)
    probabilities: npt.NDArray[np.float32] = scores * weight
    probabilities += (1 - probabilities.sum(axis=0)) / len(scores)
    return probabilities


def _check(
    maps: Maps, classes: Sequence[int] | npt.NDArray[np.integer], image: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Check the arguments of `refine_mask`; return the mask indices (background, *classes)."""
    if maps.ndim != 3 or maps.dtype != np.float32:
        raise ValueError(f"maps must be (K, H, W) float32, not {maps.shape} {maps.dtype}")
    if len(maps) != len(classes):
        raise ValueError(f"{len(maps)} maps for {len(classes)} classes")
    if maps.shape[1:] != image.shape[:2]:
        raise ValueError(
            f"the maps are {maps.shape[1:]} pixels (height, width), the image is {image.shape[:2]}: "
            "use prepare_maps first"
        )
    listed = [int(index) for index in classes]
    if any(not BACKGROUND < index < IGNORE for index in listed) or len(set(listed)) != len(listed):
        raise ValueError(f"classes must be different mask indices from 1 to 254, not {listed}")
    return np.array([BACKGROUND, *listed], dtype=np.uint8)
