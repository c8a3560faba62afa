"""How sure a network is of a mask: the means, and the text in the mask's file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from wsss.data.confidence import CHUNK, Confidence, Tally, confidence_of
from wsss.data.files import classes_in, read_confidence, read_mask, write_mask
from wsss.errors import UserError


def test_it_is_the_mean_over_the_pixels_whichever_parts_they_come_in() -> None:
    random = np.random.default_rng(0)
    best = random.uniform(0.3, 1, (13, 17)).astype(np.float32)
    mask = random.choice(np.array([0, 2, 7, 255], np.uint8), (13, 17))
    total, per_class = 0.0, {}
    for value, index in zip(best.ravel().tolist(), mask.ravel().tolist(), strict=True):
        total += value
        per_class.setdefault(index, []).append(value)
    tally = Tally()
    for part in (slice(0, 4), slice(4, 5), slice(5, 13)):
        tally.add(best[part], mask[part])
    for found in (tally.confidence(), confidence_of(best, mask)):
        assert found.photo == pytest.approx(total / best.size, abs=1e-5)
        assert set(found.classes) == {0, 2, 7}  # 255 is no class
        for index, value in found.classes.items():
            assert value == pytest.approx(sum(per_class[index]) / len(per_class[index]), abs=1e-5)


def test_a_masks_file_keeps_it_and_the_mask_is_the_same(tmp_path: Path) -> None:
    mask = np.array([[0, 1], [255, 3]], np.uint8)
    known = Confidence(0.75, {0: 1.0, 1: 0.5, 3: 0.123456})
    write_mask(tmp_path / "with.png", mask, known)
    write_mask(tmp_path / "without.png", mask)
    assert read_confidence(tmp_path / "with.png") == known
    assert read_confidence(tmp_path / "without.png") is None
    for name in ("with", "without"):
        assert np.array_equal(read_mask(tmp_path / f"{name}.png"), mask)


@pytest.mark.parametrize(
    "text",
    [
        *("", "7", "{}", "[" * 100_000),
        '{"photo": "a", "classes": {}}',
        '{"photo": NaN, "classes": {}}',
        '{"photo": 1, "classes": 3}',
        '{"photo": 1, "classes": [5]}',
        f'{{"photo": 1{"0" * 400}, "classes": {{}}}}',
        '{"photo": 0.5, "classes": {"x": 1}}',
        '{"photo": 0.5, "classes": {"1": 1.5}}',
    ],
)
def test_a_damaged_one_names_the_file(tmp_path: Path, text: str) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text(CHUNK, text)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "m.png", pnginfo=notes)
    with pytest.raises(UserError, match=r"m\.png has a damaged text .*predict this photo again"):
        read_confidence(tmp_path / "m.png")


def test_the_classes_of_a_mask_have_pixels_and_are_neither_background_nor_undecided() -> None:
    mask = np.array([[0, 9, 9], [255, 1, 0]], np.uint8)
    assert classes_in(mask) == [1, 9]
    assert classes_in(np.full((2, 2), 255, np.uint8)) == []
