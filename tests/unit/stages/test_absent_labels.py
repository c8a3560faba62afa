"""Image labels that the pseudo-masks do not show."""

from pathlib import Path

import numpy as np
import pytest

from wsss.data.dataset import Record
from wsss.data.files import write_mask
from wsss.rundir import LABELS, RunDirectory
from wsss.stages.refine import absent_labels, describe_absent

NAMES = ("background", "cat", "dog", "sofa")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def photo(run: RunDirectory, name: str, labels: tuple[int, ...] | None, shown: list[int]) -> Record:
    """A record whose pseudo-mask has one pixel of each of ``shown``."""
    mask = np.zeros((4, 5), np.uint8)
    mask.flat[: len(shown)] = shown
    write_mask(run.mask(LABELS, name), mask)
    return Record(name, Path(f"{name}.jpg"), labels, None)


def test_labels_without_a_pixel_are_counted_by_class(run: RunDirectory) -> None:
    records = [
        photo(run, "a", (1, 2), [1, 2]),
        photo(run, "b", (1, 3), [3]),
        photo(run, "c", (1,), []),
        photo(run, "d", (), []),
    ]
    absent = absent_labels(records, run)
    assert absent == {1: (2, 3), 2: (0, 1), 3: (0, 1)}
    assert describe_absent(absent, NAMES) == (
        "40.0% of the image labels have no pixel in the pseudo-masks (most often cat 2 of 3)"
    )


def test_the_classes_that_lose_the_largest_share_are_named() -> None:
    text = describe_absent({1: (5, 100), 2: (1, 4), 3: (0, 9)}, NAMES)
    assert text.endswith("(most often dog 1 of 4, cat 5 of 100)")


def test_nothing_is_absent(run: RunDirectory) -> None:
    told = "every image label has pixels in its pseudo-mask"
    assert describe_absent(absent_labels([photo(run, "a", (2,), [2])], run), NAMES) == told
    assert describe_absent({}, NAMES) == told
