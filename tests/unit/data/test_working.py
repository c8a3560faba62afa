"""Working copies of large photos: which, how large, when they are made again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from wsss.data.dataset import Dataset, Record
from wsss.data.files import image_size, read_image, read_mask, write_mask
from wsss.data.working import shrink, with_copies
from wsss.errors import UserError


def record(folder: Path, name: str, size: tuple[int, int], masked: bool = False) -> Record:
    """A photo whose left half is red and whose right half is blue, and the mask of the right half."""
    image = np.zeros((*size, 3), np.uint8)
    image[:, : size[1] // 2, 0] = image[:, size[1] // 2 :, 2] = 255
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    mask = folder / "masks" / f"{name}.png" if masked else None
    if mask is not None:
        write_mask(mask, image[:, :, 2] // 255)
    return Record(name, path, (1,), mask)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    folder = tmp_path / "data"
    large, small = (
        record(folder, "a/large", (60, 100), masked=True),
        record(folder, "small", (30, 40), masked=True),
    )
    return Dataset(("blue",), (large, small), (record(folder, "upright", (120, 64)),))


@contextmanager
def silent(total: int, done: int) -> Iterator[SimpleNamespace]:
    yield SimpleNamespace(update=lambda count: None)


def copies(dataset: Dataset, root: Path, side: int = 50) -> Dataset:
    return with_copies(dataset, root / "resized", side, 1, silent)


def times(root: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ctime_ns for path in root.rglob("*") if path.is_file()}


def test_large_photos_and_their_masks_are_copied_and_small_ones_stay(
    dataset: Dataset, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    made = copies(dataset, root)
    large, small = made.train
    assert small == dataset.train[1]
    assert (large.id, large.labels) == ("a/large", (1,))
    assert large.image == root / "resized" / "photos" / "a" / "large.jpg"
    assert large.mask == root / "resized" / "masks" / "a" / "large.png"
    assert image_size(large.image) == (30, 50)
    assert image_size(made.val[0].image) == (50, 27)
    assert made.val[0].mask is None
    seen, truth = read_image(large.image).astype(int), read_mask(large.mask)
    assert truth.shape == (30, 50)
    np.testing.assert_array_equal(truth[:, :24], 0)
    np.testing.assert_array_equal(truth[:, 26:], 1)
    assert np.abs(seen[:, :20] - (255, 0, 0)).max() < 12
    assert np.abs(seen[:, 30:] - (0, 0, 255)).max() < 12


def test_copies_of_masks_are_samples_from_the_middle_of_what_they_stand_for() -> None:
    mask = np.random.default_rng(0).integers(0, 9, (9, 12)).astype(np.uint8)
    np.testing.assert_array_equal(shrink(mask, 4), mask[1::3, 1::3])


def test_copies_are_averages_of_what_they_stand_for(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(image).save(path)
    made = copies(Dataset(("a",), (Record("noise", path, (1,), None),), ()), tmp_path / "run", side=48)
    expected = image.reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))
    assert np.abs(read_image(made.train[0].image) - expected).mean() < 5  # of JPEG; samples are 60 away


def test_copies_are_made_once_and_again_for_another_size_or_original(
    dataset: Dataset, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    made = copies(dataset, root)
    before = times(root)
    assert copies(dataset, root) == made
    assert times(root) == before
    copies(dataset, root, side=48)
    assert image_size(made.train[0].image) == (29, 48)
    before = times(root)
    os.utime(dataset.train[0].image, (1, 1))
    copies(dataset, root, side=48)
    assert {name for name, stamp in times(root).items() if before[name] != stamp} >= {"large.jpg"}
    assert times(root)["upright.jpg"] == before["upright.jpg"]
    mask = dataset.train[0].mask
    assert mask is not None
    write_mask(mask, np.zeros((60, 100), np.uint8))
    os.utime(mask, (2, 2))
    again = copies(dataset, root, side=48).train[0].mask
    assert again is not None
    assert not read_mask(again).any()


def test_a_small_photo_in_place_of_a_large_one_stays_whatever_is_known(tmp_path: Path) -> None:
    large = Dataset(("cat",), (record(tmp_path, "a", (60, 100)),), ())
    assert image_size(copies(large, tmp_path).train[0].image) == (30, 50)
    small = Dataset(("cat",), (record(tmp_path, "a", (30, 40)),), ())
    os.utime(small.train[0].image, (5, 5))
    for known in (False, True):
        found = with_copies(small, tmp_path / "resized", 50, 1, silent, known=known)
        assert found.train == small.train


def test_worker_processes_make_the_same_copies(tmp_path: Path) -> None:
    records = tuple(
        record(tmp_path / "data", f"{number:02}", (40, 60 + number), masked=True) for number in range(18)
    )
    dataset = Dataset(("blue",), records, ())
    alone, together = tmp_path / "one", tmp_path / "two"
    with_copies(dataset, alone, 50, 1, silent)
    with_copies(dataset, together, 50, 2, silent)
    assert len(list(alone.rglob("*.jpg"))) == 18
    for path in alone.rglob("*.*"):
        assert path.read_bytes() == (together / path.relative_to(alone)).read_bytes()


def test_a_mask_of_another_size_or_a_damaged_photo_is_named(dataset: Dataset, tmp_path: Path) -> None:
    mask = dataset.train[0].mask
    assert mask is not None
    write_mask(mask, np.zeros((30, 50), np.uint8))
    with pytest.raises(UserError, match=r"large\.png"):
        copies(dataset, tmp_path / "run")
    photo = dataset.val[0].image
    photo.write_bytes(photo.read_bytes()[:100])
    write_mask(mask, np.zeros((60, 100), np.uint8))
    with pytest.raises(UserError, match=r"upright\.png"):
        copies(dataset, tmp_path / "run")


def test_a_copy_never_replaces_an_original(tmp_path: Path) -> None:
    image = Image.new("RGB", (100, 60), "red")
    (tmp_path / "resized" / "photos").mkdir(parents=True)
    image.save(tmp_path / "resized" / "photos" / "a.jpg")
    content = (tmp_path / "resized" / "photos" / "a.jpg").read_bytes()
    dataset = Dataset(("red",), (Record("a", tmp_path / "resized" / "photos" / "a.jpg", (1,), None),), ())
    with pytest.raises(UserError, match=r"photos/a\.jpg is a file of the data set.*choose another --output"):
        copies(dataset, tmp_path)
    assert (tmp_path / "resized" / "photos" / "a.jpg").read_bytes() == content
