"""Ground truth of a photo from its mask or its boxes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.comparison.regions import truth_of
from wsss.data.dataset import Record
from wsss.data.files import write_mask
from wsss.errors import UserError

CLASSES = ("cat", "dog", "cow")
SIZE = (20, 30)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "JPEGImages" / "a.jpg"
    path.parent.mkdir()
    Image.new("RGB", SIZE[::-1]).save(path)
    return path


def with_mask(photo: Path, mask: np.ndarray, labels: tuple[int, ...]) -> Record:
    path = photo.parents[1] / "mask.png"
    write_mask(path, mask)
    return Record("a", photo, labels, path)


def write_annotation(photo: Path, *objects: tuple[str, int, int, int, int, int]) -> None:
    parts = [
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin>"
        f"<xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"
        for name, xmin, ymin, xmax, ymax, difficult in objects
    ]
    path = photo.parents[1] / "Annotations" / "a.xml"
    path.parent.mkdir()
    path.write_text(f"<annotation>{''.join(parts)}</annotation>")


def test_regions_of_a_mask_are_its_labelled_classes(photo: Path) -> None:
    mask = np.zeros(SIZE, np.uint8)
    mask[:10, :5], mask[10:, :25], mask[0, 29], mask[5, 20] = 1, 2, 3, 255
    truth = truth_of(with_mask(photo, mask, (1, 2)), CLASSES)
    assert truth.kind == "mask"
    assert truth.regions.keys() == {1, 2}
    for cls, region in truth.regions.items():
        assert (region.numpy() == (mask == cls)).all()
    assert truth.ignored is not None
    assert truth.ignored.nonzero().tolist() == [[5, 20]]
    assert truth.difficult == {1}  # 50 and 250 of 600 pixels


def test_a_labelled_class_that_is_all_ignored_has_no_region_but_counts_as_another_class(photo: Path) -> None:
    mask = np.full(SIZE, 255, np.uint8)
    mask[0, 0] = 1
    truth = truth_of(with_mask(photo, mask, (1, 2)), CLASSES)
    assert truth.regions.keys() == {1}
    assert truth.difficult == {1}


def test_the_only_class_is_never_difficult(photo: Path) -> None:
    mask = np.zeros(SIZE, np.uint8)
    mask[0, 0] = 1
    assert not truth_of(with_mask(photo, mask, (1,)), CLASSES).difficult


def test_boxes_stand_in_for_a_missing_mask(photo: Path) -> None:
    write_annotation(photo, ("cat", 1, 1, 3, 2, 0), ("cat", 30, 20, 30, 20, 1), ("dog", 1, 1, 30, 20, 1))
    truth = truth_of(Record("a", photo, (1, 2), None), CLASSES)
    expected = np.zeros(SIZE, bool)
    expected[:2, :3] = expected[19, 29] = True
    assert (truth.kind, truth.ignored) == ("boxes", None)
    assert truth.regions.keys() == {1}  # all dogs are difficult to recognise: skipped, as in TorchRay
    assert (truth.regions[1].numpy() == expected).all()
    assert truth.difficult == {1}


def test_without_both_there_is_no_truth(photo: Path) -> None:
    truth = truth_of(Record("a", photo, (1,), None), CLASSES)
    assert (truth.kind, dict(truth.regions)) == ("none", {})


def test_a_mask_of_another_size_is_refused(photo: Path) -> None:
    with pytest.raises(UserError, match="a mask must be as large as its photo"):
        truth_of(with_mask(photo, np.zeros((5, 5), np.uint8), (1,)), CLASSES)
