"""Building blocks of refiners: seeds as probabilities, and masks with 255 where they are uncertain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wsss.data.labels import BACKGROUND, IGNORE
from wsss.refine.background import Maps, background_scores, background_threshold, seed_mask
from wsss.refine.parameters import RefineParameters

# A hard label needs a threshold below 1; otherwise even the peak of the map would be background.
HIGHEST_THRESHOLD = 0.95


class RefinedMask(NamedTuple):
    """The two forms of one refined mask, which are equal wherever `mask` is not 255, and its confidence."""

    labels: npt.NDArray[np.uint8]
    """`(H, W)` the most probable mask index of every pixel, no 255: what `mask.miou` scores."""
    mask: npt.NDArray[np.uint8]
    """`(H, W)` the same with 255 where it is uncertain: what the segmentation network is trained on."""
    confidence: npt.NDArray[np.float32]
    """`(H, W)` in [0, 1]: the CRF's posterior of `labels` (agreement: the mean of the two posteriors)."""


def mask_indices(
    maps: Maps, classes: Sequence[int] | npt.NDArray[np.integer], image: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """What the scores (background, *classes) stand for: `(K + 1,)` uint8 mask indices.

    Args:
        maps: `(K, H, W)` float32 saliency, or `(K + 1, H, W)` float32 probabilities with the background first.
        classes: K mask indices (1..C).
        image: `(H, W, 3)` uint8 RGB.

    Raises:
        ValueError: sizes, types or class indices that do not fit.
    """
    if maps.ndim != 3 or maps.dtype != np.float32:
        raise ValueError(f"maps must be (K, H, W) float32, not {maps.shape} {maps.dtype}")
    if len(maps) not in (len(classes), len(classes) + 1):
        raise ValueError(
            f"{len(maps)} maps for {len(classes)} classes: give one per class, or put one for the background first"
        )
    if maps.shape[1:] != image.shape[:2]:
        raise ValueError(
            f"the maps are {maps.shape[1:]} pixels (height, width), the image is {image.shape[:2]}: "
            "use prepare_maps first"
        )
    listed = [int(index) for index in classes]
    if any(not BACKGROUND < index < IGNORE for index in listed) or len(set(listed)) != len(listed):
        raise ValueError(f"classes must be different mask indices from 1 to 254, not {listed}")
    return np.array([BACKGROUND, *listed], dtype=np.uint8)


def empty_mask(image: npt.NDArray[np.uint8]) -> RefinedMask:
    """The mask of a photo without classes: background everywhere, and certain."""
    empty = np.full(image.shape[:2], BACKGROUND, dtype=np.uint8)
    return RefinedMask(empty, empty.copy(), np.ones(image.shape[:2], dtype=np.float32))


def most_probable(
    posterior: Maps, indices: npt.NDArray[np.uint8], certain: npt.NDArray[np.bool_] | float = 0.0
) -> RefinedMask:
    """The most probable class of every pixel.

    Args:
        posterior: `(C, H, W)` float32, sums to one over C.
        indices: the C mask indices that it stands for.
        certain: `(H, W)` bool, False where the mask becomes 255; or the probability from which it does not.
    """
    labels, confidence = indices[posterior.argmax(axis=0)], posterior.max(axis=0)
    if isinstance(certain, float):
        certain = confidence >= certain
    return RefinedMask(labels, np.where(certain, labels, np.uint8(IGNORE)), confidence)


def hard_seeds(maps: Maps, parameters: RefineParameters) -> list[npt.NDArray[np.float32]]:
    """Where the two CRFs of the rule "agreement" start: a generous and a strict seed (IRN, Ahn et al., CVPR 2019).

    Args:
        maps: `(K, H, W)` float32 in [0, 1], each class's maximum is 1.
        parameters: the background rule, the two factors on its threshold, and the confidence.

    Returns:
        Two `(K + 1, H, W)` float32, background first, which sum to one.
    """
    threshold = background_threshold(maps, parameters.background)
    seeds = []
    for factor in (parameters.low_factor, parameters.high_factor):
        seed = seed_mask(maps, range(1, len(maps) + 1), min(threshold * factor, HIGHEST_THRESHOLD))
        seeds.append(label_probabilities(seed, len(maps) + 1, parameters.confidence))
    return seeds


def agreement(generous: Maps, strict: Maps) -> tuple[Maps, npt.NDArray[np.bool_]]:
    """Where two posteriors `(C, H, W)` agree. The labels come from their mean, which keeps the labels that they share.

    IRN's code also keeps a pixel that both call foreground although the classes differ.

    Returns:
        The mean `(C, H, W)`, and `(H, W)` bool, True where its label is certain.
    """
    mean = (generous + strict) / np.float32(2)
    labels = mean.argmax(axis=0)
    return mean, (labels == generous.argmax(axis=0)) & (labels == strict.argmax(axis=0))


def soft_seed(maps: Maps, parameters: RefineParameters) -> npt.NDArray[np.float32]:
    """Where the one CRF of the rule "posterior" starts (CLIP-ES, Lin et al., 2023): `(K + 1, H, W)` float32."""
    return score_probabilities(background_scores(maps, parameters.background), parameters.confidence)


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
