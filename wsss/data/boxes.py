"""Bounding boxes of VOC annotations: ground truth of the pointing game where there are no masks.

VOC writes 1-based pixel coordinates with both ends included: xmin = 1 is the first column, xmax = width the last. Here
a box is 0-based and half-open, like a slice: columns xmin .. xmax - 1, which are xmax - xmin columns.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import numpy.typing as npt

from wsss.data.labels import read_annotation
from wsss.errors import UserError

DIFFICULT_AREA = 0.25
"""The pointing game's "difficult" subset: the class covers less than this share of the image."""


@dataclass(frozen=True)
class Box:
    """One annotated object.

    Attributes:
        cls: class index 1..C.
        xmin, ymin, xmax, ymax: 0-based half-open pixels of the original image: rows ymin .. ymax - 1,
            columns xmin .. xmax - 1. They may reach beyond the image; `box_mask` cuts them off.
        difficult: VOC's flag: hard to recognise without its surroundings.
    """

    cls: int
    xmin: int
    ymin: int
    xmax: int
    ymax: int
    difficult: bool = False


def read_boxes(path: Path, classes: Sequence[str]) -> tuple[Box, ...]:
    """Reads the boxes of one VOC annotation file, in its order.

    Objects whose name is not in `classes` are left out; boxes of object parts are not read. Fractional
    coordinates, which some files of VOC 2011 and later have, are rounded.

    Raises:
        UserError: naming the file: not a VOC annotation, or an object without a proper box.
    """
    index = {name: number for number, name in enumerate(classes, 1)}
    objects = [
        (item, (item.findtext("name") or "").strip()) for item in read_annotation(path).findall("object")
    ]
    return tuple(_box(item, index[name], f'{path}: "{name}"') for item, name in objects if name in index)


def _box(item: Element, cls: int, where: str) -> Box:
    corners = [_coordinate(item, key, where) for key in ("xmin", "ymin", "xmax", "ymax")]
    xmin, ymin, xmax, ymax = corners
    if xmin < 1 or ymin < 1 or xmax < xmin or ymax < ymin:
        raise UserError(
            f"{where} has the box {corners}: expected 1 <= xmin <= xmax and 1 <= ymin <= ymax (VOC counts from 1)"
        )
    difficult = (item.findtext("difficult") or "0").strip() == "1"
    return Box(cls, xmin - 1, ymin - 1, xmax, ymax, difficult)


def _coordinate(item: Element, key: str, where: str) -> int:
    text = item.findtext(f"bndbox/{key}") or ""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f'{where} has the {key} "{text.strip()}": expected a number in object/bndbox/{key}')
    return round(value)


def box_mask(boxes: Iterable[Box], cls: int, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The pixels within any box of the class.

    Args:
        boxes: of one image.
        cls: class index 1..C.
        size: (H, W) of the image.

    Returns:
        (H, W) bool. Objects flagged "difficult" are included, as in TorchRay's pointing game.
    """
    mask = np.zeros(size, np.bool_)
    for box in boxes:
        if box.cls == cls:
            mask[box.ymin : box.ymax, box.xmin : box.xmax] = True
    return mask


def difficult_classes(masks: Mapping[int, npt.NDArray[np.bool_]]) -> frozenset[int]:
    """The classes of one image that belong to the pointing game's "difficult" subset.

    The rule of excitation backprop (Zhang et al. 2016): the image has more than one class, and the regions of
    the class cover less than a quarter of it. (This is not VOC's flag `Box.difficult`.) TorchRay does not compute
    it but reads it from that paper's lists, and counts an image that is not on them as difficult: a score may
    differ from theirs by a few images.

    Args:
        masks: class index -> (H, W) bool, for every class that the image contains.

    Returns:
        The difficult ones among them; none if there is only one class.
    """
    if len(masks) < 2:
        return frozenset()
    return frozenset(cls for cls, mask in masks.items() if mask.mean() < DIFFICULT_AREA)
