"""The refinement stage on synthetic archives: masks, resume, scores against plain loops."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from wsss.config import RuntimeConfig
from wsss.data.dataset import Record
from wsss.data.files import Saliency, read_image, read_mask, read_saliency, write_mask, write_saliency
from wsss.errors import UserError
from wsss.refine.background import prepare_maps
from wsss.refine.parameters import BackgroundParameters, CRFParameters, RefineParameters
from wsss.refine.refiners import GrabCut, Place, build_refiner
from wsss.rundir import LABELS, MASKS, SALIENCY, RunDirectory
from wsss.stages import refine as stage

PARAMETERS = RefineParameters(
    background=BackgroundParameters(rule="constant"), crf=CRFParameters(iterations=2)
)
SIZE = (24, 32)


def write(
    records: list[Record], run: RunDirectory, workers: int = 0, parameters: RefineParameters = PARAMETERS
) -> None:
    hardware = RuntimeConfig(accelerator="cpu", workers=workers, progress=False)
    stage.write_all(records, run, build_refiner(parameters), SALIENCY, hardware)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def records(tmp_path: Path, run: RunDirectory) -> list[Record]:
    """Discs on noise; the saliency is a blurred and shifted disc. The last photo has no label."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    found = []
    for index, labels in enumerate([(1,), (2,), (1, 2), (2,), ()]):
        image = random.integers(0, 60, (*SIZE, 3), dtype=np.uint8)
        truth, maps = np.zeros(SIZE, np.uint8), []
        for position, label in enumerate(labels):
            y, x = 8 + 3 * index % 9, 9 + 12 * position
            inside = (rows - y) ** 2 + (columns - x) ** 2 < 36
            truth[inside] = label
            image[inside, label] += 150
            distance = (rows[::4, ::4] - y) ** 2 + (columns[::4, ::4] - x - 2) ** 2
            maps.append(np.exp(-distance / 50))
        truth[0, :4] = 255
        Image.fromarray(image).save(tmp_path / f"{index}.png")
        write_mask(tmp_path / "masks" / f"{index}.png", truth)
        archive = np.array(maps, np.float16).reshape(-1, 6, 8)
        write_saliency(run.saliency(f"s/{index}"), Saliency(np.array(labels, np.int16), archive, SIZE))
        found.append(
            Record(f"s/{index}", tmp_path / f"{index}.png", labels, tmp_path / "masks" / f"{index}.png")
        )
    return found


def maps_of(run: RunDirectory, record: Record) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    stored = read_saliency(run.saliency(record.id))
    return stored.classes, prepare_maps(stored.maps, SIZE)


def pair(run: RunDirectory, record: Record) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    return read_mask(run.mask("pseudo_labels", record.id)), read_mask(run.mask("pseudo_masks", record.id))


@pytest.mark.parametrize("workers", [1, 2])
def test_every_photo_gets_labels_and_a_mask(records: list[Record], run: RunDirectory, workers: int) -> None:
    write(records, run, workers)
    for record in records:
        labels, mask = pair(run, record)
        classes, maps = maps_of(run, record)
        expected = build_refiner(PARAMETERS)(maps, classes, read_image(record.image))
        assert np.array_equal(labels, expected.labels)
        assert np.array_equal(mask, expected.mask)
        assert set(np.unique(labels)) <= {0, *(record.labels or ())}
        assert np.array_equal(mask[mask != 255], labels[mask != 255])
    assert (pair(run, records[0])[0] == 1).any()
    assert not pair(run, records[4])[1].any()


def test_only_missing_masks_are_made(records: list[Record], run: RunDirectory) -> None:
    write(records, run)
    before = {record.id: [mask.copy() for mask in pair(run, record)] for record in records}
    marked = np.full(SIZE, 7, np.uint8)
    for record in records:
        write_mask(run.mask("pseudo_labels", record.id), marked)
    run.mask("pseudo_masks", records[2].id).unlink()  # the mask is written last: labels alone are half done
    write(records, run)
    for record in records:
        labels, mask = pair(run, record)
        again = record is records[2]
        assert np.array_equal(labels, before[record.id][0] if again else marked)
        assert np.array_equal(mask, before[record.id][1])


def test_photo_that_changed_its_size_is_refused(records: list[Record], run: RunDirectory) -> None:
    Image.new("RGB", (30, 24)).save(records[1].image)
    with pytest.raises(
        UserError, match=r"1\.png changed since its saliency was made; run `wsss saliency` again"
    ):
        write(records, run)


def test_missing_saliency_names_the_stage(records: list[Record], run: RunDirectory) -> None:
    run.saliency(records[0].id).unlink()
    with pytest.raises(UserError, match=r"0\.npz does not exist: run the saliency stage"):
        write(records, run)


@dataclass(frozen=True)
class Resident(GrabCut):
    """Holds something that no other process can have."""

    place: ClassVar[Place] = "main"

    def __reduce__(self) -> Any:
        raise AssertionError("it was sent to another process")


def test_a_refiner_that_belongs_to_this_process_stays_in_it(records: list[Record], run: RunDirectory) -> None:
    hardware = RuntimeConfig(accelerator="cpu", workers=2, progress=False)
    stage.write_all(records, run, Resident(PARAMETERS), SALIENCY, hardware)
    assert all(run.mask(MASKS, record.id).is_file() for record in records)


def test_threads_with_a_device_write_what_processes_write(records: list[Record], run: RunDirectory) -> None:
    """The way of the GPU, with the CPU in its place."""
    write(records, run, workers=1)
    expected = [pair(run, record) for record in records]
    run.clear([LABELS, MASKS])
    refiner = build_refiner(replace(PARAMETERS, backend="torch"), "cpu")
    assert refiner.place == "threads"
    hardware = RuntimeConfig(accelerator="cpu", workers=1, progress=False)
    stage.write_all(records, run, refiner, SALIENCY, hardware)
    for record, (labels, mask) in zip(records, expected, strict=True):
        found = pair(run, record)
        assert (found[0] == labels).mean() > 0.999
        assert (found[1] == mask).mean() > 0.999
