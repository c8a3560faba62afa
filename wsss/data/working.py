"""Working copies of large photos, so that memory, time and the reach of filters do not depend on the camera.

Walks and CRFs spread over a fixed number of pixels, and the classifier knows objects at the size at which it was
trained: a photo of 12 megapixels is too large for all of them. With `data.long_side` every stage of a run sees
copies, made once, and the files of the data set stay as they are.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from wsss.data.dataset import Dataset, Record
from wsss.data.files import image_size, read_image, read_truth, write_mask, write_photo
from wsss.errors import UserError
from wsss.parallel import pool, unordered

Array = TypeVar("Array", bound=npt.NDArray[np.generic])

PHOTOS, MASKS = "photos", "masks"
"""Folders for the copies of the photos (JPEG) and of their true masks (PNG)."""

FEW = 16
"""Up to this many photos are shrunk faster than worker processes start."""


@dataclass(frozen=True)
class _Copy:
    """A record, and the files of its copies."""

    record: Record
    photo: Path
    mask: Path | None


def with_copies(
    dataset: Dataset, folder: Path, long_side: int, workers: int, progress: Any, *, known: bool = False
) -> Dataset:
    """The data set, in which the records of large photos point to copies in ``folder``; small photos stay as they are.

    A copy is made again when its original or `long_side` changed.

    Args:
        dataset: as loaded.
        folder: for the copies.
        long_side: pixels; photos whose longer side is larger get a copy of this longer side, averaged; masks sampled.
        workers: processes.
        progress: context manager factory ``progress(total, done)`` of a bar with ``update``.
        known: all copies were made before with this `long_side`; their headers are not read again.

    Raises:
        UserError: an unreadable photo or mask, a mask of another size than its photo, the disk refuses, or a copy would
            replace a file of the data set.
    """
    train, val = (
        [_planned(record, folder, long_side, known) for record in split]
        for split in (dataset.train, dataset.val)
    )
    plans = [plan for plan in (*train, *val) if isinstance(plan, _Copy)]
    _check_targets(plans)
    todo = [plan for plan in plans if not _is_fresh(plan, long_side, known)]
    if todo:
        make = partial(_make, long_side, len(dataset.class_names))
        with (
            progress(len(plans), len(plans) - len(todo)) as bar,
            pool(workers if len(todo) > FEW else 0) as executor,
        ):
            for _ in unordered(executor, make, todo, ahead=4 * workers):
                bar.update(1)
    return replace(dataset, train=_records(train), val=_records(val))


def _planned(record: Record, folder: Path, long_side: int, known: bool) -> Record | _Copy:
    mask = None if record.mask is None else folder / MASKS / f"{record.id}.png"
    plan = _Copy(record, folder / PHOTOS / f"{record.id}.jpg", mask)
    # A copy that is not fresh may be of a large photo that a small one replaced.
    needs_copy = (known and _is_fresh(plan, long_side, known)) or max(image_size(record.image)) > long_side
    return plan if needs_copy else record


def _check_targets(plans: Sequence[_Copy]) -> None:
    """Raises UserError if a copy would replace an original, because the data set is in the folder of the copies."""
    files = [(plan.record.image, plan.photo) for plan in plans]
    files += [(plan.record.mask, plan.mask) for plan in plans if plan.record.mask and plan.mask]
    originals = {original.resolve() for original, _ in files}
    for _, copy in files:
        if copy.resolve() in originals:
            raise UserError(
                f"{copy} is a file of the data set, and the smaller copy would overwrite it; choose another --output"
            )


def _records(plans: Sequence[Record | _Copy]) -> tuple[Record, ...]:
    return tuple(
        replace(plan.record, image=plan.photo, mask=plan.mask) if isinstance(plan, _Copy) else plan
        for plan in plans
    )


def _is_fresh(plan: _Copy, long_side: int, known: bool) -> bool:
    pairs = [(plan.record.image, plan.photo), *([(plan.record.mask, plan.mask)] if plan.mask else [])]
    return all(
        # Whole seconds: not every file system stores fractions of the time that the copy gets.
        copy.is_file() and original is not None and int(copy.stat().st_mtime) == int(original.stat().st_mtime)
        for original, copy in pairs
    ) and (known or max(image_size(plan.photo)) == long_side)


def _make(long_side: int, classes: int, plan: _Copy) -> None:
    if plan.mask is not None and plan.record.mask is not None:
        truth = read_truth(plan.record.mask, plan.record.image, classes)
        write_mask(plan.mask, shrink(truth, long_side))
        _take_time(plan.record.mask, plan.mask)
    write_photo(plan.photo, shrink(read_image(plan.record.image), long_side))
    _take_time(plan.record.image, plan.photo)


def _take_time(original: Path, copy: Path) -> None:
    """Give the copy the original's time of modification, which shows later whether the original changed."""
    stamp = original.stat()
    os.utime(copy, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def shrink(array: Array, side: int) -> Array:
    """Reduce a photo, a saliency map or a mask so that neither side is longer than `side`; never enlarges.

    Args:
        array: `(H, W, 3)` uint8 photo, `(H, W)` float saliency (both averaged) or uint8 mask (sampled).
        side: the longest side allowed, in pixels.

    Returns:
        The array itself if it is small enough, else a smaller one of the same type.
    """
    height, width = array.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return array
    size = max(1, round(width * scale)), max(1, round(height * scale))
    is_mask = array.ndim == 2 and array.dtype == np.uint8
    source = array.astype(np.float32) if array.dtype == np.float16 else np.ascontiguousarray(array)
    small = cv2.resize(source, size, interpolation=cv2.INTER_NEAREST_EXACT if is_mask else cv2.INTER_AREA)
    return small.astype(array.dtype)  # type: ignore[return-value]
