"""Class subtraction: what distinguishes a class from the other classes of the image."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.saliency.base import Evidence, SaliencyMethod, by_image, check_base, normalize


@dataclass(frozen=True)
class ClassSubtraction(SaliencyMethod):
    """Class subtraction: what the map of a class has above the maps of the image's other classes.

        D_c = sum_c' max(M_c - M_c', 0)

    M_c is the base map of class c divided by its own maximum. c' runs over the other classes that the same call names
    for the same image. With only one class, the base map stays as it is (raw).

    Paper: Shimoda and Yanai, "Distinct Class-Specific Saliency Maps for Weakly Supervised Semantic Segmentation", ECCV
    2016, section 3.3, https://doi.org/10.1007/978-3-319-46493-0_14

    Args:
        base: the method that makes the maps.
        reduce: "sum" as in the paper, or "min" in its place: then a pixel must beat every other class.

    Example:
        >>> ClassSubtraction(GradCAM(layer="layer4"))(classifier, images, targets).shape
        torch.Size([2, 2, 2])
    """

    base: SaliencyMethod
    reduce: Literal["sum", "min"] = "sum"

    def __post_init__(self) -> None:
        check_base(self, self.base)
        if self.base.class_free:
            raise UserError(
                "every class gets the same map, which leaves nothing to subtract: choose another base"
            )
        if self.reduce not in ("sum", "min"):
            raise UserError(f"reduce must be 'sum' or 'min', got {self.reduce!r}")

    @property
    def own_scales(self) -> bool:
        return self.base.own_scales

    def forward(self, classifier: nn.Module, images: Tensor) -> "SubtractionEvidence":
        return SubtractionEvidence(self.base.forward(classifier, images), self.reduce)


@dataclass(frozen=True)
class SubtractionEvidence:
    """Evidence of the base method, subtracted between the classes of each `maps` call."""

    evidence: Evidence
    reduce: Literal["sum", "min"]

    @property
    def logits(self) -> Tensor:
        return self.evidence.logits

    def maps(self, targets: Tensor) -> Tensor:
        maps = self.evidence.maps(targets)
        result = maps.clone()
        for _, rows in by_image(targets):
            result[rows] = subtract_classes(maps[rows], targets[rows, 1], self.reduce)
        return result


def subtract_classes(maps: Tensor, classes: Tensor, reduce: Literal["sum", "min"] = "sum") -> Tensor:
    """Each of one image's maps (K, h, w) minus those of the other classes (K,); (K, h, w) again."""
    if len(torch.unique(classes)) == 1:
        return maps
    scaled = normalize(maps, "max")
    named = classes.tolist()
    distinct = torch.unique(classes)
    rivals = scaled[[named.index(cls) for cls in distinct.tolist()]]  # each once, however often it is named
    result = torch.empty_like(scaled)
    for row, cls in enumerate(classes):
        excess = (scaled[row] - rivals[distinct != cls]).relu()
        result[row] = excess.sum(0) if reduce == "sum" else excess.amin(0)
    return result
