"""The PASCAL VOC colour map, which every mask PNG and every overlay of the project uses."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt


@functools.cache
def voc_palette() -> npt.NDArray[np.uint8]:
    """Colours of the mask indices, as in the VOC development kit (`VOCcolormap.m`).

    Bit `3j` of an index becomes bit `7 - j` of its red value, bit `3j + 1` of green and
    bit `3j + 2` of blue. So 0 (background) is black, 1 is (128, 0, 0) and 255 (ignore) is
    the beige (224, 224, 192) of the VOC object borders.

    Returns:
        `(256, 3)` uint8 RGB, read-only: the same array is handed to every caller.
    """
    index = np.arange(256, dtype=np.uint8)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((index >> channel) & 1) << (7 - bit)
        index >>= 3
    palette.flags.writeable = False
    return palette


def colour_of(index: int) -> tuple[int, int, int]:
    """Red, green, blue of a class, 0..255."""
    red, green, blue = (int(value) for value in voc_palette()[index])
    return red, green, blue
