"""Where the classes of a photo are: its mask, or its boxes, or nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from wsss.data.boxes import box_mask, difficult_classes, read_boxes
from wsss.data.dataset import Record
from wsss.data.files import image_size, read_truth
from wsss.data.labels import IGNORE


@dataclass(frozen=True)
class Truth:
    """Ground truth of one photo, in its own pixels.

    Attributes:
        kind: what it comes from.
        regions: class index 1..C -> (H, W) bool, for the labelled classes that have a region.
        ignored: (H, W) bool, pixels of 255; None where there are none by definition (boxes).
        difficult: the classes of the "difficult" subset of the pointing game.
    """

    kind: Literal["mask", "boxes", "none"]
    regions: Mapping[int, Tensor] = field(default_factory=dict)
    ignored: Tensor | None = None
    difficult: frozenset[int] = frozenset()

    def to(self, device: torch.device) -> "Truth":
        """The same on another device."""
        regions = {cls: region.to(device) for cls, region in self.regions.items()}
        ignored = None if self.ignored is None else self.ignored.to(device)
        return Truth(self.kind, regions, ignored, self.difficult)


def truth_of(record: Record, classes: Sequence[str]) -> Truth:
    """The regions of a photo's labelled classes.

    A mask is preferred to boxes. With boxes, objects that VOC flags as difficult belong to the region, but a class that
    has only such objects has no region (both as in TorchRay).

    Args:
        record: the photo.
        classes: names by index, index 1 first.

    Raises:
        UserError: a mask or an annotation that is damaged or does not fit the photo.
    """
    labels = record.labels or ()
    if record.mask is not None:
        mask = torch.from_numpy(read_truth(record.mask, record.image, len(classes) + 1))
        regions = {cls: mask == cls for cls in labels if bool((mask == cls).any())}
        return Truth("mask", regions, mask == IGNORE, _difficult(regions, labels))
    path = annotation(record)
    if path is None:
        return Truth("none")
    boxes, size = read_boxes(path, classes), image_size(record.image)
    plain = {box.cls for box in boxes if not box.difficult}
    regions = {cls: torch.from_numpy(box_mask(boxes, cls, size)) for cls in labels if cls in plain}
    return Truth("boxes", regions, None, _difficult(regions, labels))


def annotation(record: Record) -> Path | None:
    """The photo's VOC annotation next to the photos' folder, if there is one."""
    path = record.image.parent.parent / "Annotations" / f"{record.id}.xml"
    return path if path.is_file() else None


def _difficult(regions: Mapping[int, Tensor], labels: Sequence[int]) -> frozenset[int]:
    """Classes of the difficult subset. A labelled class without a region still counts as one of several classes."""
    if not regions:
        return frozenset()
    empty = torch.zeros_like(next(iter(regions.values())))
    masks = {cls: regions.get(cls, empty).numpy() for cls in labels}
    return difficult_classes(masks) & regions.keys()
