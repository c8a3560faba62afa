"""Working copies of large photos, so that memory, time and the reach of every filter do not grow with the camera.

Walks and CRFs spread over a fixed number of pixels, and the classifier knows objects at the size at which it was
trained: a photo of 12 megapixels is too large for all of them. With `data.long_side` every stage of a run sees
copies, made once, and the files of the data set stay as they are.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from wsss.data.dataset import Dataset, Record
from wsss.data.files import image_size, read_image, read_truth, write_mask, write_photo
from wsss.errors import UserError
from wsss.parallel import pool, unordered
from wsss.report.overlay import shrink

PHOTOS, MASKS = "resized/photos", "resized/masks"
"""Folders of a run with the copies of the photos (JPEG) and of their true masks (PNG)."""

FEW = 16
"""So many photos are shrunk before worker processes would have started."""


@dataclass(frozen=True)
class _Copy:
    """A record, and where its copies go."""

    record: Record
    photo: Path
    mask: Path | None


def with_copies(dataset: Dataset, root: Path, long_side: int, workers: int, progress: Any) -> Dataset:
    """The data set, with records of small photos as they are, and of large ones with copies in the run directory.

    A copy is made again when its original or `long_side` changed.

    Args:
        dataset: as loaded.
        root: the run directory.
        long_side: pixels; photos whose longer side is larger get a copy of this longer side, averaged; masks sampled.
        workers: processes.
        progress: context manager factory ``progress(total, done)`` of a bar with ``update``.

    Raises:
        UserError: an unreadable photo or mask, a mask of another size than its photo, the disk refuses, or a copy would
            replace a file of the data set.
    """
    train, val = (
        [_planned(record, root, long_side) for record in split] for split in (dataset.train, dataset.val)
    )
    plans = [plan for plan in (*train, *val) if isinstance(plan, _Copy)]
    _check_targets(plans)
    todo = [plan for plan in plans if not _is_fresh(plan, long_side)]
    if todo:
        make = partial(_make, long_side, len(dataset.class_names))
        with (
            progress(len(plans), len(plans) - len(todo)) as bar,
            pool(workers if len(todo) > FEW else 0) as executor,
        ):
            for _ in unordered(executor, make, todo, ahead=4 * workers):
                bar.update(1)
    return replace(dataset, train=_records(train), val=_records(val))


def _planned(record: Record, root: Path, long_side: int) -> Record | _Copy:
    if max(image_size(record.image)) <= long_side:
        return record
    mask = None if record.mask is None else root / MASKS / f"{record.id}.png"
    return _Copy(record, root / PHOTOS / f"{record.id}.jpg", mask)


def _check_targets(plans: Sequence[_Copy]) -> None:
    """Raises UserError where the run directory holds the data set, so that a copy would replace an original."""
    files = [(plan.record.image, plan.photo) for plan in plans]
    files += [(plan.record.mask, plan.mask) for plan in plans if plan.record.mask and plan.mask]
    originals = {original.resolve() for original, _ in files}
    for _, copy in files:
        if copy.resolve() in originals:
            raise UserError(
                f"{copy} is a file of the data set, and its smaller copy would replace it; choose another --output"
            )


def _records(plans: Sequence[Record | _Copy]) -> tuple[Record, ...]:
    return tuple(
        replace(plan.record, image=plan.photo, mask=plan.mask) if isinstance(plan, _Copy) else plan
        for plan in plans
    )


def _is_fresh(plan: _Copy, long_side: int) -> bool:
    pairs = [(plan.record.image, plan.photo), *([(plan.record.mask, plan.mask)] if plan.mask else [])]
    return (
        all(
            # Whole seconds: not every file system keeps more of the time that the copy takes over.
            copy.is_file()
            and original is not None
            and int(copy.stat().st_mtime) == int(original.stat().st_mtime)
            for original, copy in pairs
        )
        and max(image_size(plan.photo)) == long_side
    )


def _make(long_side: int, classes: int, plan: _Copy) -> None:
    if plan.mask is not None and plan.record.mask is not None:
        truth = read_truth(plan.record.mask, plan.record.image, classes)
        write_mask(plan.mask, shrink(truth, long_side))
        _take_time(plan.record.mask, plan.mask)
    write_photo(plan.photo, shrink(read_image(plan.record.image), long_side))
    _take_time(plan.record.image, plan.photo)


def _take_time(original: Path, copy: Path) -> None:
    """The copy gets the original's time of modification, by which a changed original is noticed."""
    stamp = original.stat()
    os.utime(copy, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
