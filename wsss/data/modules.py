"""Torch data sets and loaders for training, and the ordered photo stream of the per-image stages.

Shuffling and augmentation depend only on (seed, epoch, image). A run gives the same batches with any number of worker
processes, and a training that continues from a checkpoint sees what an uninterrupted one would have seen.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from wsss.data.dataset import Record
from wsss.data.files import image_size, read_image, read_truth
from wsss.data.transforms import TrainTransform, normalize_image, resize_long_side, to_tensor
from wsss.errors import UserError

# One multiplier per role, so that shuffling and augmentation draw from different streams.
_SHUFFLE, _AUGMENT = 1_000_003, 7_919


class EpochSampler(Sampler[int]):
    """Shuffled indices that carry their epoch: ``epoch * length + index``.

    Lightning calls :meth:`set_epoch`. The last incomplete batch over all replicas is dropped unless it is the
    only one. With several processes each takes every n-th index, so a global batch is the same
    set of photos on any number of devices.
    """

    def __init__(self, length: int, seed: int, batch_size: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0
        self.count = max(length // batch_size * batch_size, min(length, batch_size))

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * _SHUFFLE + self.epoch)
        order = torch.randperm(self.length, generator=generator)[: self.count].tolist()
        rank, world = _rank_and_world()
        return iter([self.epoch * self.length + index for index in order[rank::world]])

    def __len__(self) -> int:
        rank, world = _rank_and_world()
        return len(range(rank, self.count, world))


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class Augmented(Dataset[tuple[Tensor, ...]]):
    """Base of the training sets: decodes, then augments with its own generator state."""

    def __init__(self, records: Sequence[Record], transform: TrainTransform, seed: int) -> None:
        self.records, self.transform, self.seed = records, transform, seed

    def __len__(self) -> int:
        return len(self.records)

    def target(self, record: Record) -> tuple[Tensor | None, Tensor | None]:
        """(mask that is transformed along or None, fixed target or None)."""
        raise NotImplementedError

    def __getitem__(self, key: int) -> tuple[Tensor, ...]:
        epoch, index = divmod(key, len(self.records))
        record = self.records[index]
        image = to_tensor(read_image(record.image))
        mask, fixed = self.target(record)
        with torch.random.fork_rng(devices=[]):
            # The CPU generator alone: torch.manual_seed would also reseed CUDA, which fork_rng leaves out here.
            torch.default_generator.manual_seed((self.seed * _AUGMENT + epoch) * 1_000_033 + index)
            photo, moved = self.transform(image, mask)
        if fixed is not None:
            return photo, fixed
        assert moved is not None  # a record without a fixed target has a mask
        return photo, moved


class ClassificationData(Augmented):
    """Augmented photos (3, crop, crop) and multi-hot labels (classes,) float32."""

    def __init__(self, records: Sequence[Record], classes: int, transform: TrainTransform, seed: int) -> None:
        super().__init__(records, transform, seed)
        self.classes = classes

    def target(self, record: Record) -> tuple[Tensor | None, Tensor | None]:
        """The labels; they do not move with the photo."""
        return None, multi_hot(record.labels or (), self.classes)


class SegmentationData(Augmented):
    """Augmented photos (3, crop, crop) and masks (crop, crop) int64 with 255 = ignore.

    Args:
        records: with masks.
        transform: moves photo and mask together.
        seed: of the augmentation.
        classes: number of classes, background included; None leaves the masks' values unchecked.
    """

    def __init__(
        self,
        records: Sequence[Record],
        transform: TrainTransform,
        seed: int,
        classes: int | None = None,
    ) -> None:
        super().__init__(records, transform, seed)
        self.classes = classes

    def target(self, record: Record) -> tuple[Tensor | None, Tensor | None]:
        """The mask (H, W)."""
        if record.mask is None:
            raise UserError(f"{record.id} has no mask to train on")
        return torch.from_numpy(read_truth(record.mask, record.image, self.classes)), None

    def __getitem__(self, key: int) -> tuple[Tensor, ...]:
        photo, moved = super().__getitem__(key)
        return photo, moved.long()


class LabelledPhotos(Dataset[tuple[Tensor, Tensor]]):
    """Whole photos at a fixed longer side, with multi-hot labels: the classifier's validation set."""

    def __init__(self, records: Sequence[Record], classes: int, long_side: int) -> None:
        self.records = [record for record in records if record.labels is not None]
        self.classes, self.long_side = classes, long_side

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        record = self.records[index]
        image = resize_long_side(to_tensor(read_image(record.image)), self.long_side)
        return normalize_image(image), multi_hot(record.labels or (), self.classes)


@dataclass(frozen=True)
class Photo:
    """A photo on its way through a per-image stage."""

    record: Record
    image: Tensor
    """(3, H, W) uint8 RGB."""


class Photos(Dataset[Photo]):
    """Photos at their own size."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Photo:
        record = self.records[index]
        return Photo(record, to_tensor(read_image(record.image)))


def multi_hot(labels: Sequence[int], classes: int) -> Tensor:
    """Mask indices 1..C -> (C,) float32 of zeros and ones."""
    target = torch.zeros(classes)
    target[[label - 1 for label in labels]] = 1.0
    return target


def train_loader(
    data: Augmented, batch_size: int, seed: int, workers: int, devices: int = 1, pin: bool = False
) -> DataLoader[Any]:
    """Loader of augmented batches; ``batch_size`` counts all ``devices`` together and is a multiple of them.

    ``pin`` puts batches into memory from which a GPU copies faster.

    The workers are forked, as on Linux by default. Python 3.12 and newer warn of a fork in a process with threads, but
    a forkserver takes 6 s to the first batch and spawned workers 8 s, where a fork takes 0.2 s (two busy cores).
    """
    return DataLoader(
        data,
        batch_size=batch_size // devices,
        sampler=EpochSampler(len(data), seed, batch_size),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=_end_quietly,
    )


def same_size_batches(records: Sequence[Record], batch_size: int) -> list[list[Record]]:
    """The photos in batches of equal size, so that they can be stacked without padding.

    Reads only the headers; within a size the order of ``records`` is kept. The last bits of a network's output depend
    on what else is in the batch. So form the batches of all photos, and leave out those that are done.
    """
    groups: dict[tuple[int, int], list[Record]] = {}
    for record in records:
        groups.setdefault(image_size(record.image), []).append(record)
    return [
        group[start : start + batch_size]
        for group in groups.values()
        for start in range(0, len(group), batch_size)
    ]


def load_batches(batches: Iterable[Sequence[Record]], *, workers: int = 0) -> Iterator[list[Photo]]:
    """Read the photos of each batch, in order, ``workers`` processes ahead."""
    ends = list(accumulate(map(len, batches := list(batches)), initial=0))
    records = [record for batch in batches for record in batch]
    indices = [list(range(start, end)) for start, end in pairwise(ends)]
    yield from DataLoader(
        Photos(records),
        batch_sampler=indices,
        collate_fn=list,
        num_workers=workers,
        worker_init_fn=_end_quietly,
    )


def _end_quietly(_: int) -> None:
    """A loader's process that lost its parent says nothing: its thread that hands tensors over prints a traceback."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, (EOFError, OSError)):
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook


class TrueMasks(Dataset[tuple[Tensor, Tensor]]):
    """Whole photos (3, H, W) normalised and their masks (H, W) uint8: the segmenter's validation set.

    ``classes`` counts the background; None leaves the masks' values unchecked.
    """

    def __init__(self, records: Sequence[Record], classes: int | None = None) -> None:
        self.records, self.classes = records, classes

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        record = self.records[index]
        assert record.mask is not None  # its records all have one
        mask = read_truth(record.mask, record.image, self.classes)
        return normalize_image(to_tensor(read_image(record.image))), torch.from_numpy(mask)
