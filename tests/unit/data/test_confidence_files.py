"""Confidence maps on disk."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data.files import read_confidence, write_confidence, write_mask
from wsss.errors import UserError


def test_confidence_survives_to_half_a_step_of_eight_bits(tmp_path: Path) -> None:
    confidence = np.random.default_rng(0).random((7, 9), dtype=np.float32)
    confidence[0, :2] = 0, 1
    write_confidence(tmp_path / "sub" / "a.png", confidence)
    found = read_confidence(tmp_path / "sub" / "a.png", (7, 9))
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.rint(255 * confidence.astype(np.float64)))
    assert np.abs(found / 255 - confidence).max() <= 0.5 / 255 + 1e-6
    with Image.open(tmp_path / "sub" / "a.png") as image:
        assert image.mode == "L"


@pytest.mark.parametrize("bad", [np.full((2, 2), 1.01), np.full((2, 2), np.nan), np.zeros((1, 2, 2))])
def test_writing_something_else_than_shares_is_a_bug(tmp_path: Path, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a confidence map is"):
        write_confidence(tmp_path / "a.png", bad)
    assert not list(tmp_path.iterdir())


def test_masks_and_damaged_files_are_no_confidence_maps(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(
        UserError, match=r"mask\.png is an image of mode P, not a confidence map.*refine stage"
    ):
        read_confidence(tmp_path / "mask.png", (2, 2))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"broken\.png is"):
        read_confidence(tmp_path / "broken.png", (2, 2))
