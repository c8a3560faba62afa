"""Choosing the background rule without masks: how much of the classifier's evidence a seed holds relative to its size.

For a photo x, a class c on its label and the seed S of the class under a background rule,

    gain = p_c(x on S) - p_c(x off S) - |S|

with p_c the classifier's probability, "x on S" the photo with everything but the seed replaced by the mean
colour, "x off S" the photo without the seed, and |S| the seed's share of the photo's pixels. The first two
are the measures of Fahim et al.'s increase and drop (the kept zone should suffice, the rest should not). On their own
they rise with every pixel that is added. Minus |S| they are, like Youden's J, the seed's advantage over a random region
of the same size. No mask is read. The rule with the largest mean over photos and classes is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsss.refine.background import Maps, background_threshold, seed_mask
from wsss.refine.parameters import BackgroundParameters

CANDIDATES = (
    *(
        BackgroundParameters("constant", threshold=value)
        for value in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7)
    ),
    *(BackgroundParameters("power", alpha=value) for value in (4.0, 8.0, 16.0)),
    BackgroundParameters("otsu"),
)
"""The candidates. The constants cover more than the papers' range of 0.15 to 0.30."""

Classify = Callable[[Tensor], Tensor]
"""Normalised images (B, 3, H, W) to probabilities (B, C)."""


@dataclass(frozen=True)
class Evidence:
    """The evidence in the seeds of one rule: means over photos and classes, all in [0, 1]."""

    kept: float
    """p_c of the photo with the seed only."""
    removed: float
    """p_c of the photo without the seed."""
    area: float
    """The seed's share of the photo."""

    @property
    def gain(self) -> float:
        """What is maximised, in [-2, 1]."""
        return self.kept - self.removed - self.area


def evidence_of_seeds(
    image: Tensor,
    maps: Maps,
    classes: Sequence[int],
    rules: Sequence[BackgroundParameters],
    classify: Classify,
    batch_size: int = 16,
) -> list[list[Evidence]]:
    """Evidence of every rule for every class of one photo.

    Args:
        image: (3, H, W) float, normalised, so that 0 is the mean colour.
        maps: (K, H, W) float32 in [0, 1], each class's maximum 1 (`prepare_maps`).
        classes: the K mask indices 1..C of the maps.
        rules: candidates.
        classify: the classifier.
        batch_size: largest number of masked photos in one call.

    Returns:
        One list per rule with K entries.
    """
    seeds = [seed_mask(maps, classes, background_threshold(maps, rule)) for rule in rules]
    regions = torch.stack([torch.from_numpy(seed == index) for seed in seeds for index in classes])
    regions = regions.to(image.device)
    columns = torch.tensor([index - 1 for _ in rules for index in classes], device=image.device)

    def probabilities(keep: Tensor) -> Tensor:
        parts = [classify(image * part[:, None]) for part in torch.split(keep, batch_size)]
        return torch.cat(parts).gather(1, columns[:, None])[:, 0].float()

    kept, removed, area = probabilities(regions), probabilities(~regions), regions.float().mean((1, 2))
    flat = [Evidence(*values) for values in torch.stack((kept, removed, area), dim=1).tolist()]
    return [flat[start : start + len(classes)] for start in range(0, len(flat), len(classes))]


def mean_evidence(parts: Sequence[Evidence]) -> Evidence:
    """The mean of each entry of one or more parts."""
    count = len(parts)
    return Evidence(
        sum(part.kept for part in parts) / count,
        sum(part.removed for part in parts) / count,
        sum(part.area for part in parts) / count,
    )


def describe(rule: BackgroundParameters) -> str:
    """ "constant 0.20", "power alpha 8", "otsu"."""
    match rule.rule:
        case "constant":
            return f"constant {rule.threshold:.2f}"
        case "power":
            return f"power alpha {rule.alpha:g}"
        case name:
            return name
