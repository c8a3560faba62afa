"""Samplers, training sets and the photo stream: everything depends on (seed, epoch, photo) alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from wsss.data import modules
from wsss.data.dataset import Record
from wsss.data.files import write_mask
from wsss.data.modules import (
    ClassificationData,
    EpochSampler,
    LabelledPhotos,
    SegmentationData,
    TrueMasks,
    load_batches,
    multi_hot,
    same_size_batches,
    train_loader,
)
from wsss.data.transforms import RandomLongSide, RandomScale, TrainTransform, normalize_image
from wsss.errors import UserError

SIZES = ((20, 30), (30, 20), (20, 30), (25, 25), (20, 30), (30, 20), (20, 30))


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    random = np.random.default_rng(0)
    found = []
    for index, size in enumerate(SIZES):
        photo, mask = tmp_path / f"{index}.png", tmp_path / "masks" / f"{index}.png"
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(photo)
        write_mask(mask, random.integers(0, 4, size, dtype=np.uint8))
        found.append(Record(str(index), photo, (1 + index % 3,), mask))
    return found


# -- order -----------------------------------------------------------------------------------------


def epochs(sampler: EpochSampler, count: int) -> list[list[int]]:
    found = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found


def test_every_epoch_is_another_permutation_that_carries_its_epoch() -> None:
    found = epochs(EpochSampler(12, seed=3, batch_size=4), 3)
    for epoch, keys in enumerate(found):
        assert {key // 12 for key in keys} == {epoch}
        assert sorted(key % 12 for key in keys) == list(range(12))
    orders = [[key % 12 for key in keys] for keys in found]
    assert orders[0] != orders[1] != orders[2]
    assert found == epochs(EpochSampler(12, seed=3, batch_size=4), 3)
    assert found != epochs(EpochSampler(12, seed=4, batch_size=4), 3)


@pytest.mark.parametrize(
    ("length", "batch", "count"), [(10, 4, 8), (8, 4, 8), (3, 4, 3), (4, 4, 4), (5, 1, 5)]
)
def test_last_incomplete_batch_is_dropped_unless_it_is_the_only_one(
    length: int, batch: int, count: int
) -> None:
    sampler = EpochSampler(length, seed=0, batch_size=batch)
    keys = list(sampler)
    assert len(keys) == len(set(keys)) == len(sampler) == count


def test_dropped_photos_change_from_epoch_to_epoch() -> None:
    seen = {key % 10 for keys in epochs(EpochSampler(10, seed=0, batch_size=8), 12) for key in keys}
    assert seen == set(range(10))


def test_two_processes_share_every_global_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = EpochSampler(22, seed=5, batch_size=4)
    sampler.set_epoch(2)
    alone = list(sampler)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(modules, "_rank_and_world", lambda rank=rank: (rank, 2))
        parts.append(list(sampler))
        assert len(sampler) == len(parts[-1]) == 10
    for start in range(0, 20, 4):
        halves = [part[start // 2 : start // 2 + 2] for part in parts]
        assert sorted(halves[0] + halves[1]) == sorted(alone[start : start + 4])
        assert not set(halves[0]) & set(halves[1])


# -- augmentation ----------------------------------------------------------------------------------


def classification(records: list[Record], seed: int = 0) -> ClassificationData:
    return ClassificationData(records, 3, TrainTransform(RandomLongSide(20, 40), 24, color_jitter=0.5), seed)


def test_augmentation_depends_on_seed_epoch_and_photo_alone(records: list[Record]) -> None:
    data, count = classification(records), len(records)
    first = data[3]
    torch.rand(5)  # whatever else draws random numbers
    data[1]
    assert torch.equal(data[3][0], first[0])
    other_epoch, other_seed = data[3 + count], classification(records, seed=1)[3]
    assert not torch.equal(other_epoch[0], first[0])
    assert not torch.equal(other_seed[0], first[0])
    assert torch.equal(other_epoch[1], first[1])


def test_every_photo_of_an_epoch_is_augmented_in_its_own_way(records: list[Record]) -> None:
    data = classification([records[0]] * 6)
    assert len({float(data[index][0].sum()) for index in range(6)}) == 6


def test_augmentation_leaves_the_global_generator_alone(records: list[Record]) -> None:
    data = classification(records)
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    data[0]
    assert torch.equal(torch.rand(3), expected)


def test_batches_are_the_same_with_any_number_of_workers(records: list[Record]) -> None:
    def batches(workers: int) -> list[tuple[Tensor, Tensor]]:
        found = []
        loader = train_loader(classification(records), 2, seed=4, workers=workers)
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            found += [(images, labels) for images, labels in loader]
        return found

    alone, several = batches(0), batches(2)
    assert len(alone) == len(several) == 6
    for (images, labels), (other_images, other_labels) in zip(alone, several, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_classification_batch_has_the_labels_of_its_photos(records: list[Record]) -> None:
    data = classification([replace(records[0], labels=(1, 3)), replace(records[1], labels=None)])
    photo, labels = data[0]
    assert photo.shape == (3, 24, 24)
    assert labels.tolist() == [1, 0, 1]
    assert data[1][1].tolist() == [0, 0, 0]


def test_multi_hot_shifts_mask_indices_by_one() -> None:
    assert multi_hot((1, 4), 5).tolist() == [1, 0, 0, 1, 0]
    assert multi_hot((), 2).tolist() == [0, 0]


def test_segmentation_data_moves_the_mask_with_the_photo(records: list[Record], tmp_path: Path) -> None:
    """The photo's red channel is 60 times the mask, so that both can be compared after the crop."""
    mask = np.asarray(Image.open(records[0].mask or ""))
    Image.fromarray(np.stack([mask * 60] * 3, axis=2)).save(tmp_path / "same.png")
    record = replace(records[0], image=tmp_path / "same.png")
    photo, label = SegmentationData([record], TrainTransform(RandomScale(1, 1), 40), seed=0)[0]
    assert label.dtype == torch.int64
    assert label.shape == (40, 40)
    red = (photo[0] * 0.229 + 0.485) * 255
    known = label != 255
    assert int(known.sum()) == mask.size
    assert torch.equal((red[known] / 60).round().long(), label[known])


def test_training_mask_of_another_size_names_both_files(records: list[Record]) -> None:
    data = SegmentationData(
        [replace(records[0], mask=records[1].mask)], TrainTransform(RandomScale(1, 1), 32), 0
    )
    with pytest.raises(
        UserError, match=r"masks/1\.png has 20x30 pixels but .*0\.png has 30x20; a mask must be as large as"
    ):
        data[0]


def test_training_photo_without_a_mask_is_refused(records: list[Record]) -> None:
    data = SegmentationData([replace(records[0], mask=None)], TrainTransform(RandomScale(1, 1), 32), 0)
    with pytest.raises(UserError, match="0 has no mask to train on"):
        data[0]


def test_a_batch_is_split_over_the_devices(records: list[Record]) -> None:
    loader = train_loader(classification(records), 4, seed=0, workers=0, devices=2)
    assert loader.batch_size == 2


# -- whole photos ----------------------------------------------------------------------------------


def test_validation_photos_are_those_with_labels_at_a_fixed_long_side(records: list[Record]) -> None:
    data = LabelledPhotos(
        [replace(records[0], labels=None), *records[1:3], replace(records[3], labels=())], 3, 50
    )
    assert len(data) == 3
    image, labels = data[0]
    assert image.shape == (3, 50, 33)
    assert labels.tolist() == [0, 1, 0]
    assert data[2][1].tolist() == [0, 0, 0]


def test_true_masks_are_whole_photos_with_their_masks(records: list[Record]) -> None:
    image, mask = TrueMasks(records)[1]
    photo = np.asarray(Image.open(records[1].image))
    assert torch.equal(image, normalize_image(torch.from_numpy(photo.copy()).permute(2, 0, 1)))
    assert np.array_equal(mask.numpy(), np.asarray(Image.open(records[1].mask or "")))
    assert mask.dtype == torch.uint8


def test_true_mask_of_another_size_names_both_files(records: list[Record]) -> None:
    with pytest.raises(
        UserError, match=r"masks/1\.png has 20x30 pixels but .*0\.png has 30x20; a mask must be as large as"
    ):
        TrueMasks([replace(records[0], mask=records[1].mask)])[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_equal_size_hold_every_photo_once_in_order(records: list[Record], workers: int) -> None:
    batches = list(load_batches(same_size_batches(records, 3), workers=workers))
    ids = [[photo.record.id for photo in batch] for batch in batches]
    assert ids == [["0", "2", "4"], ["6"], ["1", "5"], ["3"]]
    for batch in batches:
        assert len({photo.image.shape for photo in batch}) == 1
        for photo in batch:
            pixels = np.asarray(Image.open(photo.record.image))
            assert np.array_equal(photo.image.permute(1, 2, 0).numpy(), pixels)


def test_stream_of_nothing_is_empty() -> None:
    nothing: list[Any] = list(load_batches(same_size_batches([], 4)))
    assert nothing == []


def test_masks_with_indices_beyond_the_class_list_are_refused(records: list[Record]) -> None:
    write_mask(records[0].mask or Path(), np.full(SIZES[0], 4, np.uint8))
    for data in (
        SegmentationData(records, TrainTransform(RandomScale(1, 1), 32), 0, classes=4),
        TrueMasks(records, classes=4),
    ):
        with pytest.raises(UserError, match=r"masks/0\.png holds the class index 4.*3 names"):
            data[0]
        assert data[1][1].max() <= 255
