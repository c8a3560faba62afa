"""How sure a network is of a mask: mean probabilities, which the mask's file keeps (a text chunk of the PNG)."""

import json
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from wsss.data.labels import IGNORE

CHUNK = "wsss confidence"
"""Keyword of the text chunk."""

DIGITS = 6
"""Decimals that are kept."""


@dataclass(frozen=True)
class Confidence:
    """Of one mask. Probabilities in [0, 1] of the class that the network prefers at a pixel."""

    photo: float
    """Mean over all pixels, the undecided ones (255) too."""
    classes: dict[int, float]
    """Mask index -> mean over the pixels that have it in the mask. Only classes with pixels, background included."""

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps({"photo": self.photo, "classes": self.classes})


def from_text(text: str) -> Confidence:
    """The inverse of `Confidence.to_text`. Raises ValueError if it is something else."""
    try:
        tree = json.loads(text)
        found = Confidence(
            float(tree["photo"]), {int(key): float(tree["classes"][key]) for key in tree["classes"]}
        )
    except (LookupError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError("no confidence") from error
    if not all(0 <= value <= 1 for value in (found.photo, *found.classes.values())):
        raise ValueError("a confidence is in 0..1")
    return found


@dataclass
class Tally:
    """Sums up a `Confidence`, part by part of a photo."""

    sums: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(IGNORE + 1))
    pixels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))

    def add(self, best: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8]) -> None:
        """One part: the highest probability of each pixel, and the mask there, both (h, w)."""
        self.sums += np.bincount(mask.ravel(), best.ravel(), minlength=IGNORE + 1)
        self.pixels += np.bincount(mask.ravel(), minlength=IGNORE + 1)

    def confidence(self) -> Confidence:
        """Of all parts together."""
        found = [index for index in np.flatnonzero(self.pixels).tolist() if index != IGNORE]
        per_class = {index: _mean(self.sums[index], self.pixels[index]) for index in found}
        return Confidence(_mean(self.sums.sum(), self.pixels.sum()), per_class)


def confidence_of(best: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8]) -> Confidence:
    """Of a whole photo; see `Tally.add`."""
    tally = Tally()
    tally.add(best, mask)
    return tally.confidence()


def _mean(total: float, count: int) -> float:
    """Rounded; at most 1, whatever the rounding of the probabilities was."""
    return round(min(1.0, float(total) / max(1, int(count))), DIGITS)
