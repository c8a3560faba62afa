"""The mask of a photo as a labelling tool has it: regions of classes, painted one over the other."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from wsss.data.coco import region
from wsss.data.files import DECODE_ERRORS
from wsss.data.labels import BACKGROUND, IGNORE, is_background
from wsss.errors import UserError

Mask = npt.NDArray[np.uint8]
Binary = npt.NDArray[np.bool_]
Size = tuple[int, int]
"""(H, W)."""


@dataclass(frozen=True)
class Drawn:
    """The mask of one photo."""

    reference: str
    """The photo, as the export writes it."""
    names: frozenset[str] = frozenset()
    """Classes that the mask may have."""
    draw: Callable[[Size, Mapping[str, int]], Mask] | None = None
    """(size of the photo, index by name) -> (H, W) mask. None: nobody looked at the photo."""
    size: Size | None = None
    """Of the photo, as the export says."""
    skipped: bool = False


@dataclass(frozen=True)
class Drawing:
    """The photos of an export, and its class names in its own order, if it has one."""

    photos: list[Drawn]
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Region:
    """Pixels of one class."""

    name: str
    fill: Callable[[Size], Binary]
    """Size of the photo -> (H, W)."""


def _painted(
    regions: Sequence[Region], small_last: bool = False
) -> Callable[[Size, Mapping[str, int]], Mask]:
    """Paints regions in their order, or (where a format has no order) the smaller ones on top."""

    def draw(size: Size, index: Mapping[str, int]) -> Mask:
        mask = np.full(size, BACKGROUND, np.uint8)
        filled = [(one.fill(size), index[one.name]) for one in regions]
        for pixels, value in sorted(filled, key=lambda pair: -pair[0].sum()) if small_last else filled:
            mask[pixels] = value
        return mask

    return draw


def drawn_of(
    reference: str, regions: Sequence[Region], size: Size | None = None, small_last: bool = False
) -> Drawn:
    """A photo whose mask is painted from regions; see `_painted`."""
    names = frozenset(one.name for one in regions)
    return Drawn(reference, names, _painted(regions, small_last), size)


class _Indices(dict[str, int]):
    """Index by name; what tools call the background is one, however it is written."""

    def __missing__(self, name: str) -> int:
        if is_background(name):
            return BACKGROUND
        raise KeyError(name)


def indices_of(classes: Sequence[str]) -> dict[str, int]:
    """Index by name, background first; also what tools call the background, and LabelMe's __ignore__."""
    return _Indices({"__ignore__": IGNORE, **{name: index for index, name in enumerate(classes)}})


def names_of(drawn: Drawn) -> list[str]:
    """The classes that a mask may have, without background and what is ignored."""
    return sorted(name for name in drawn.names if not is_background(name) and name != "__ignore__")


# -- shapes -----------------------------------------------------------------------------------------


def polygon(points: Sequence[float], where: str) -> Callable[[Size], Binary]:
    """Pixels whose centres are in a polygon x, y, x, y, ... in pixels, 0 at the left and upper edge of the photo."""
    if len(points) < 6 or len(points) % 2:
        raise UserError(f"{where} has a polygon of {len(points) // 2} points, but at least 3 are needed")
    return lambda size: region([list(points)], size, where)


def crop(read: Callable[[], Binary], left: int, top: int, inner: Size) -> Callable[[Size], Binary]:
    """A mask of the size ``inner`` with its place in the photo."""

    def fill(size: Size) -> Binary:
        if not (0 <= top <= size[0] - inner[0] and 0 <= left <= size[1] - inner[1] and min(inner) > 0):
            raise ValueError("a mask leaves the photo")
        whole, inside = np.zeros(size, np.bool_), read()
        if inside.shape != inner:
            raise ValueError("a mask of another size than its box")
        whole[top : top + inner[0], left : left + inner[1]] = inside
        return whole

    return fill


def _within(points: npt.NDArray[np.float64], size: Size) -> None:
    """Raises ValueError for points that no one would draw, for which memory is taken; NaN is one of them."""
    if not (np.abs(points) <= 2 * max(size)).all():
        raise ValueError("a polygon leaves the photo by far")


def pixels_of(content: bytes, mode: str, where: str) -> npt.NDArray[Any]:
    """Pixels of an image in memory. Raises UserError if it is none."""
    try:
        return np.array(Image.open(io.BytesIO(content)).convert(mode))
    except DECODE_ERRORS as error:
        raise UserError(f"{where} has an image that cannot be decoded ({error}); export it again") from error


def brush(values: Sequence[int], size: Size) -> Binary:
    """Pixels of Label Studio's brush: run lengths over red, green, blue, alpha of every pixel; alpha from 128 on.

    The bits are described at `wsss.export.masks.brush_rle`; a block that begins with 0 has single values.
    """
    bits, at = "".join(f"{value:08b}" for value in bytes(values)), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = take(32), take(5) + 1
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"run lengths of {total} values for {size[1]}x{size[0]} pixels")
    lengths = [take(4) + 1 for _ in range(4)]
    runs: list[tuple[int, int]] = []
    done = 0
    while done < total:
        repeated = take(1)
        count = take(lengths[take(2)]) + 1
        runs += [(take(word), count)] if repeated else [(take(word), 1) for _ in range(count)]
        done += count
    found = np.array(runs)
    pixels: Binary = np.repeat(found[:, 0], found[:, 1])[:total].reshape(*size, 4)[..., 3] >= 128
    return pixels


def relative_polygon(values: Sequence[float]) -> Callable[[Size], Binary]:
    """A polygon in shares of width and height. Its corners are pixels that belong to it, as YOLO's readers draw it."""

    def fill(size: Size) -> Binary:
        points = np.array(values).reshape(-1, 2) * (size[1], size[0])
        _within(points, size)
        return cv2.fillPoly(np.zeros(size, np.uint8), [np.round(points).astype(np.int32)], 1).astype(np.bool_)

    return fill


def outlined_polygon(points: Sequence[tuple[float, float]], path: Path) -> Callable[[Size], Binary]:
    """A polygon with the pixels on its outline, as LabelMe draws it."""
    if len(points) < 3:
        raise UserError(f"{path} has a polygon of {len(points)} points, but at least 3 are needed")

    def fill(size: Size) -> Binary:
        _within(np.array(points), size)
        image = Image.new("1", (size[1], size[0]))
        ImageDraw.Draw(image).polygon(points, fill=1, outline=1)
        return np.array(image)

    return fill
