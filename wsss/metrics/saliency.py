"""Where a saliency map points: localisation against a region, and the correlation of two maps.

Pure functions of tensors on any device. A map is (H, W) float of any range; only its order counts unless
a function says so. `region` (H, W) bool is the ground truth of the map's class, in the map's frame.
`ignored` (H, W) bool marks pixels without ground truth (255 in VOC masks): they are neither hit nor miss, and count in
no sum. A constant map says nothing: it points nowhere, and its zone is empty.
"""

import torch
from torch import Tensor

from wsss.saliency.base import gaussian_blur, normalize

TOLERANCE = 15.0
"""Pixels of the original image between the maximum and the region (TorchRay, `PointingGame`)."""
POINTING_SIGMA = 0.02
"""TorchRay's smoothing of gradients before pointing, as a share of the image's longer side."""


def zones(maps: Tensor, threshold: float | None = None) -> Tensor:
    """The salient zone of each map: (N, H, W) -> (N, H, W) bool.

    Args:
        maps: raw or normalised; each is min-max normalised first.
        threshold: in [0, 1); pixels above it are the zone. None is mean + one standard deviation of each
            map (Fahim et al. show their zones this way; their text gives no rule for the numbers).
    """
    scaled = normalize(maps.float())
    if threshold is not None:
        return scaled > threshold
    deviation, mean = torch.std_mean(scaled, dim=(1, 2), keepdim=True, correction=0)
    return scaled > mean + deviation


def peak(saliency: Tensor) -> tuple[int, int] | None:
    """(row, column) of the maximum, the first in reading order among equals; None for a constant map."""
    if bool(saliency.min() == saliency.max()):
        return None
    row, column = divmod(int(saliency.argmax()), saliency.shape[1])
    return row, column


def points_inside(saliency: Tensor, region: Tensor, ignored: Tensor | None = None) -> bool | None:
    """Pointing game of Fahim et al.: the maximum lies inside the region.

    Returns:
        None where the maximum lies on an ignored pixel, or where there is no region.
    """
    return points_near(saliency, region, ignored, tolerance=0.5)  # no other pixel is that near


def points_near(
    saliency: Tensor, region: Tensor, ignored: Tensor | None = None, tolerance: float = TOLERANCE
) -> bool | None:
    """Pointing game of TorchRay: a pixel of the region is less than `tolerance` from the maximum.

    The frame must be the original image, whose pixels the tolerance counts. Deviation: a constant map is a
    miss (TorchRay takes its upper left pixel).

    Returns:
        None if there is no region, or if a miss lies on an ignored pixel.
    """
    if not bool(region.any()):
        return None
    point = peak(saliency)
    if point is None:
        return False
    rows, columns = region.nonzero(as_tuple=True)
    if bool(((rows - point[0]) ** 2 + (columns - point[1]) ** 2 < tolerance**2).any()):
        return True
    return None if ignored is not None and bool(ignored[point]) else False


def smoothed(saliency: Tensor, sigma: float = POINTING_SIGMA) -> Tensor:
    """Gaussian blur with `sigma` times the longer side, as TorchRay does to gradients before pointing."""
    pixels = sigma * max(saliency.shape)
    return gaussian_blur(saliency[None], 2 * max(1, round(3 * pixels)) + 1, pixels)[0]


def energy(saliency: Tensor, region: Tensor, ignored: Tensor | None = None) -> float | None:
    """Energy pointing game (Score-CAM, section 4.3): share of the map's mass inside the region.

    The map is min-max normalised first, as in that paper's code; without any mass the share is 0.

    Returns:
        In [0, 1]; None where there is no region.
    """
    if not bool(region.any()):
        return None
    mass = _counted(normalize(saliency.float()[None])[0], ignored).double()
    total = float(mass.sum())
    return float(mass[_counted(region, ignored)].sum()) / total if total > 0 else 0.0


def overlap(
    zone: Tensor, region: Tensor, ignored: Tensor | None = None
) -> tuple[float, float] | tuple[None, None]:
    """(Dice, IoU) of a zone and a region, both (H, W) bool; (None, None) where there is no region."""
    if not bool(region.any()):
        return None, None
    zone, region = _counted(zone, ignored), _counted(region, ignored)
    both, sizes = int((zone & region).sum()), int(zone.sum()) + int(region.sum())
    return (2 * both / sizes, both / (sizes - both)) if sizes else (None, None)


def best_overlap(saliency: Tensor, region: Tensor, ignored: Tensor | None = None) -> float | None:
    """The largest IoU that any threshold gives this map: an oracle, chosen with the ground truth."""
    if not bool(region.any()):
        return None
    values, inside = _counted(saliency, ignored), _counted(region, ignored)
    order = values.argsort(descending=True)
    values, hits = values[order], inside[order].cumsum(0)
    taken = torch.arange(1, len(values) + 1, device=values.device)
    ious = hits / (taken + int(inside.sum()) - hits)
    last_of_equals = torch.ones_like(values, dtype=torch.bool)
    last_of_equals[:-1] = values[:-1] != values[1:]
    return float(ious[last_of_equals].max())


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two maps of one shape, ties averaged; 0 where one is constant."""
    pair = torch.stack((average_ranks(first.flatten()), average_ranks(second.flatten())))
    centred = pair - pair.mean(1, keepdim=True)
    norms = centred.norm(dim=1)
    return float((centred[0] @ centred[1]) / (norms[0] * norms[1])) if bool((norms > 0).all()) else 0.0


def average_ranks(values: Tensor) -> Tensor:
    """Ranks 1..n of (n,) values, float64; equal values share the mean of their ranks."""
    _, group, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = (last - (counts.double() - 1) / 2)[group]
    return ranks


def _counted(values: Tensor, ignored: Tensor | None) -> Tensor:
    """The values (n,) of the pixels that have ground truth."""
    return values.flatten() if ignored is None else values[~ignored]
