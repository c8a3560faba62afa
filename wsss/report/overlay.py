"""Pictures for people: masks and saliency drawn over the photo. All colours are RGB."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import numpy.typing as npt

from wsss.data.labels import BACKGROUND, IGNORE
from wsss.data.palette import voc_palette

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]

HATCH_PERIOD = 8
"""Pixels from one stripe of the uncertain area to the next."""

CONTOUR_SHARE = 300
"""A contour is one pixel wide, and one more for every so many pixels of the picture's longer side."""


def overlay_mask(image: Picture, mask: Mask, opacity: float = 0.6) -> Picture:
    """Draw a mask over its photo, in the colours of the VOC palette.

    Background stays as it is, each region has a white outline inside its border, and 255 (uncertain) is
    lightened and hatched.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        mask: `(H, W)` uint8 mask indices.
        opacity: of the colour, 0 = photo only, 1 = colour only.

    Returns:
        `(H, W, 3)` uint8 RGB, a new array.

    Raises:
        ValueError: the sizes differ or a type is wrong.
    """
    _check(image, mask, np.uint8)
    drawn = _blend(image, voc_palette()[mask], np.where(mask == BACKGROUND, 0, opacity))
    _hatch(drawn, image, mask, min(opacity, 0.55))
    drawn[outline(mask)] = 255
    return drawn


def overlay_contour(image: Picture, mask: Mask) -> Picture:
    """Draw the borders of a mask's regions, so that the photo inside them can be seen.

    A line in the colour of the VOC palette runs inside each region's border, between two white ones that set it off
    from the photo. It is as wide as a picture of this size needs. 255 (uncertain) is lightened and hatched.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        mask: `(H, W)` uint8 mask indices.

    Returns:
        `(H, W, 3)` uint8 RGB, a new array.

    Raises:
        ValueError: the sizes differ or a type is wrong.
    """
    _check(image, mask, np.uint8)
    drawn = image.copy()
    _hatch(drawn, image, mask, 0.55)
    width = 1 + max(mask.shape) // CONTOUR_SHARE
    border = outline(mask)
    inside = (mask != BACKGROUND) & (mask != IGNORE)
    line = _grown(border, width) & inside
    drawn[_grown(border, width + max(1, width // 2))] = 255
    drawn[line] = voc_palette()[mask[line]]
    return drawn


def _grown(pixels: npt.NDArray[np.bool_], radius: int) -> npt.NDArray[np.bool_]:
    """The pixels within so many rows and columns of the given ones."""
    square = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    return np.asarray(cv2.dilate(pixels.view(np.uint8), square)).astype(np.bool_)


def _hatch(drawn: Picture, image: Picture, mask: Mask, opacity: float) -> None:
    """Lighten and hatch the uncertain pixels."""
    ignored = mask == IGNORE
    if ignored.any():
        drawn[ignored] = _blend(image, hatching(mask.shape), np.full(mask.shape, opacity))[ignored]


def hatching(shape: tuple[int, ...]) -> Picture:
    """`(H, W, 3)`: what uncertain pixels look like."""
    grey = np.where(_stripes(shape), np.uint8(255), np.uint8(150))
    return np.repeat(grey[..., None], 3, axis=2)


def overlay_saliency(image: Picture, saliency: npt.NDArray[np.floating], opacity: float = 0.85) -> Picture:
    """Draw a saliency map over its photo: the hotter and the more opaque, the more salient.

    The colours are matplotlib's "inferno", whose lightness rises evenly. The photo is shown in grey so that
    every colour in the picture means saliency.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        saliency: `(H, W)` float; values outside [0, 1] are clipped, NaN counts as 0.
        opacity: of the colour where the saliency is 1.

    Returns:
        `(H, W, 3)` uint8 RGB, a new array.

    Raises:
        ValueError: the sizes differ or a type is wrong.
    """
    _check(image, saliency, np.floating)
    clipped = np.clip(np.nan_to_num(saliency.astype(np.float32)), 0, 1)
    colours = heat_palette()[np.rint(clipped * 255).astype(np.uint8)]
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    # The square root keeps faint saliency visible; at 0 the photo is untouched.
    return _blend(np.repeat(grey[..., None], 3, axis=2), colours, opacity * np.sqrt(clipped))


def outline(mask: Mask) -> npt.NDArray[np.bool_]:
    """`(H, W)` bool: pixels of a class (not background, not 255) with a 4-neighbour of another value."""
    border = np.zeros(mask.shape, dtype=np.bool_)
    rows, columns = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    border[1:] |= rows
    border[:-1] |= rows
    border[:, 1:] |= columns
    border[:, :-1] |= columns
    border &= (mask != BACKGROUND) & (mask != IGNORE)
    return border


@functools.cache
def heat_palette() -> npt.NDArray[np.uint8]:
    """`(256, 3)` uint8 RGB of "inferno", from black over red to pale yellow; read-only."""
    blue_green_red = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)[:, 0]
    palette: npt.NDArray[np.uint8] = np.array(blue_green_red[:, ::-1], dtype=np.uint8)
    palette.flags.writeable = False
    return palette


def _blend(image: Picture, colours: Picture, weight: npt.NDArray[np.floating]) -> Picture:
    """Mix two pictures; `weight` is `(H, W)`, 0 = image, 1 = colours."""
    share = weight[..., None].astype(np.float32)
    mixed = image * (1 - share) + colours * share
    return np.rint(mixed).astype(np.uint8)


def _stripes(shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """`(H, W)` bool, True on diagonal stripes of a quarter of the period."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.asarray((x + y) % HATCH_PERIOD < HATCH_PERIOD // 4)


def _check(image: Picture, layer: npt.NDArray[np.generic], kind: type[np.generic]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
    if not np.issubdtype(layer.dtype, kind):
        raise ValueError(f"the layer over the photo must be {kind.__name__}, not {layer.dtype}")
    if layer.shape != image.shape[:2]:
        raise ValueError(f"the layer is {layer.shape} pixels (height, width), the image is {image.shape[:2]}")
