"""The refinement stage on synthetic archives: masks, resume, scores against plain loops."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from wsss.config import BackgroundConfig, CRFConfig, RefineConfig
from wsss.data.dataset import Record
from wsss.data.files import Saliency, read_image, read_mask, read_saliency, write_mask, write_saliency
from wsss.errors import UserError
from wsss.refine import stage
from wsss.refine.background import prepare_maps
from wsss.refine.masks import refine_mask
from wsss.rundir import RunDirectory

CONSTANT = BackgroundConfig(rule="constant")
CONFIG = RefineConfig(background=CONSTANT, crf=CRFConfig(iterations=2))
SIZE = (24, 32)


class Bar:
    def __init__(self) -> None:
        self.count, self.total, self.done = 0, 0, 0

    def update(self, count: int) -> None:
        self.count += count


class Progress:
    """Remembers what a stage reports."""

    def __init__(self) -> None:
        self.bar = Bar()

    @contextmanager
    def __call__(self, total: int, done: int) -> Any:
        self.bar.total, self.bar.done = total, done
        yield self.bar


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
    progress = Progress()
    stage.write_all(records, run, CONFIG, workers, progress)
    assert (progress.bar.total, progress.bar.done, progress.bar.count) == (5, 0, 5)
    for record in records:
        labels, mask = pair(run, record)
        classes, maps = maps_of(run, record)
        expected = refine_mask(maps, classes, read_image(record.image), stage.parameters(CONFIG))
        assert np.array_equal(labels, expected.labels)
        assert np.array_equal(mask, expected.mask)
        assert set(np.unique(labels)) <= {0, *(record.labels or ())}
        assert np.array_equal(mask[mask != 255], labels[mask != 255])
    assert (pair(run, records[0])[0] == 1).any()
    assert not pair(run, records[4])[1].any()


def test_only_missing_masks_are_made(records: list[Record], run: RunDirectory) -> None:
    stage.write_all(records, run, CONFIG, 0, Progress())
    before = {record.id: [mask.copy() for mask in pair(run, record)] for record in records}
    marked = np.full(SIZE, 7, np.uint8)
    for record in records:
        write_mask(run.mask("pseudo_labels", record.id), marked)
    run.mask("pseudo_masks", records[2].id).unlink()  # the mask is written last: labels alone are half done
    progress = Progress()
    stage.write_all(records, run, CONFIG, 0, progress)
    assert (progress.bar.total, progress.bar.done, progress.bar.count) == (5, 4, 1)
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
        stage.write_all(records, run, CONFIG, 0, Progress())


def test_missing_saliency_names_the_stage(records: list[Record], run: RunDirectory) -> None:
    run.saliency(records[0].id).unlink()
    with pytest.raises(UserError, match=r"0\.npz does not exist: run the saliency stage"):
        stage.write_all(records, run, CONFIG, 0, Progress())


# -- scores ----------------------------------------------------------------------------------------


def plain_miou(pairs: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]], classes: int) -> float:
    """(prediction, truth) of all photos -> mean IoU over the classes of the truth; truth 255 is left out."""
    predicted = np.concatenate([prediction[truth != 255] for prediction, truth in pairs])
    true = np.concatenate([truth[truth != 255] for _, truth in pairs])
    ious = [
        np.sum((predicted == c) & (true == c)) / np.sum((predicted == c) | (true == c))
        for c in range(classes)
        if (true == c).any()
    ]
    return float(np.mean(ious))


def plain_seed(run: RunDirectory, record: Record, threshold: float) -> npt.NDArray[np.uint8]:
    classes, maps = maps_of(run, record)
    seed = np.zeros(SIZE, np.uint8)
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            values = maps[:, row, column]
            if len(values) and values.max() > np.float32(threshold):
                seed[row, column] = classes[values.argmax()]
    return seed


@pytest.mark.parametrize("workers", [1, 2])
def test_seeds_are_scored_before_the_crf(records: list[Record], run: RunDirectory, workers: int) -> None:
    config = replace(CONFIG, background=BackgroundConfig("constant", threshold=0.3))
    many = records * 7  # more than one chunk
    matrix, sweep, threshold = stage.score_seeds(many, run, config, 3, workers, Progress())
    pairs = [(plain_seed(run, record, 0.3), read_mask(record.mask or Path())) for record in records]
    assert matrix.images == 35
    assert matrix.miou() == pytest.approx(plain_miou(pairs, 3))
    assert threshold == pytest.approx(0.3)
    best_threshold, best = sweep.best()
    assert best.miou() >= matrix.miou()
    at_best = [
        (plain_seed(run, record, best_threshold), read_mask(record.mask or Path())) for record in records
    ]
    assert best.miou() == pytest.approx(plain_miou(at_best, 3))


def test_oracle_refines_every_photo_with_every_candidate(records: list[Record], run: RunDirectory) -> None:
    found = stage.score_oracle(records, run, CONFIG, 3, 0, Progress())
    assert tuple(found) == stage.ORACLE_THRESHOLDS
    for threshold in (0.1, 0.4):
        config = replace(CONFIG, background=BackgroundConfig("constant", threshold=threshold))
        pairs = []
        for record in records:
            classes, maps = maps_of(run, record)
            refined = refine_mask(maps, classes, read_image(record.image), stage.parameters(config))
            pairs.append((refined.labels, read_mask(record.mask or Path())))
        assert found[threshold].miou() == pytest.approx(plain_miou(pairs, 3))
    assert not (run.root / "pseudo_masks").exists()


def test_scoring_refuses_photos_without_or_with_foreign_masks(
    records: list[Record], run: RunDirectory
) -> None:
    with pytest.raises(UserError, match="image s/0 has no true mask to score against"):
        stage.score_seeds([replace(records[0], mask=None)], run, CONFIG, 3, 0, Progress())
    write_mask(records[1].mask or Path(), np.zeros((5, 5), np.uint8))
    with pytest.raises(UserError, match=r"masks/1\.png has 5x5 pixels but .*1\.png 32x24"):
        stage.score_seeds(records, run, CONFIG, 3, 0, Progress())
    write_mask(records[1].mask or Path(), np.full(SIZE, 9, np.uint8))
    with pytest.raises(UserError, match=r"masks/1\.png holds the class index 9"):
        stage.score_oracle(records, run, CONFIG, 3, 0, Progress())


def test_threads_with_a_device_write_what_processes_write(records: list[Record], run: RunDirectory) -> None:
    """The way of the GPU, with the CPU in its place."""
    stage.write_all(records, run, CONFIG, 1, Progress())
    expected = [pair(run, record) for record in records]
    run.clear([stage.LABELS, stage.MASKS])
    stage.write_all(records, run, replace(CONFIG, backend="torch"), 1, Progress(), device="cpu")
    for record, (labels, mask) in zip(records, expected, strict=True):
        found = pair(run, record)
        assert (found[0] == labels).mean() > 0.999
        assert (found[1] == mask).mean() > 0.999
