from __future__ import annotations

import numpy as np
import pytest

from wsss.data.palette import voc_palette


@pytest.mark.parametrize(
    ("index", "colour"),
    [
        (0, (0, 0, 0)),
        (1, (128, 0, 0)),
        (2, (0, 128, 0)),
        (7, (128, 128, 128)),
        (8, (64, 0, 0)),
        (15, (192, 128, 128)),
        (20, (0, 64, 128)),
        (255, (224, 224, 192)),
    ],
)
def test_colours_are_those_of_the_voc_development_kit(index: int, colour: tuple[int, int, int]) -> None:
    assert tuple(int(value) for value in voc_palette()[index]) == colour


def test_every_index_has_its_own_colour() -> None:
    palette = voc_palette()
    assert palette.shape == (256, 3)
    assert palette.dtype == np.uint8
    assert len(np.unique(palette, axis=0)) == 256


def test_the_shared_palette_cannot_be_overwritten() -> None:
    with pytest.raises(ValueError, match="read-only"):
        voc_palette()[0, 0] = 1
