"""The report of a run directory, empty, partial and whole."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss.config import NOT_WEAK, Config
from wsss.data.dataset import Dataset, Record
from wsss.data.files import Saliency, write_json, write_mask, write_saliency, write_text
from wsss.report.build import GALLERY_ROWS, build_report
from wsss.rundir import RunDirectory

SIZE = (12, 16)
EVIL = '<img src=x onerror=alert(1)>&"'


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def dataset(root: Path, train: int = 3, val: int = 2, classes: tuple[str, ...] = ("cat", "dog")) -> Dataset:
    random = np.random.default_rng(0)

    def record(name: str, labels: tuple[int, ...] | None, mask: bool) -> Record:
        Image.fromarray(random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(root / f"{name}.png")
        truth = root / "truth" / f"{name}.png"
        write_mask(truth, random.integers(0, 3, SIZE, dtype=np.uint8))
        return Record(name, root / f"{name}.png", labels, truth if mask else None)

    return Dataset(
        classes,
        tuple(record(f"t{i}", ((1,), (1, 2), ())[i % 3], i % 2 == 0) for i in range(train)),
        tuple(record(f"v{i}", None, i == 0) for i in range(val)),
    )


def score(miou: float | None, **more: Any) -> dict[str, Any]:
    return {"miou": miou, "per_class": {"background": 0.9, "cat": miou, "dog": None}, **more}


MASK = {"threshold": 0.2, "coverage": 0.75, "oracle_images": 7, "oracle_miou": 0.6}
METRICS = {
    "classifier": {"mAP": 0.812, "per_class": {"cat": 0.9, "dog": None}},
    "seed": score(0.4321, threshold=0.2, oracle_miou=0.5),
    "mask": score(0.5432, kept_miou=0.6543, miou_on_oracle_images=0.5557, **MASK),
    "val": score(0.6123),
    "val_ms_flip": score(0.6234),
    "val_crf": score(0.6347),
    "supervised": score(0.7456),
    "retention": 0.8212,
}


class Text(HTMLParser):
    """Collects the visible text and the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def build(data: Dataset, run: RunDirectory, config: Config | None = None) -> tuple[str, Text]:
    build_report(config or Config(output=str(run.root)), data, run)
    page = run.report.read_text(encoding="utf-8")
    parser = Text()
    parser.feed(page)
    return page, parser


def fill(data: Dataset, run: RunDirectory) -> None:
    random = np.random.default_rng(1)
    for record in data.train:
        labels = np.array(record.labels or (), np.int16)
        maps = random.random((len(labels), 3, 4)).astype(np.float16)
        write_saliency(run.saliency(record.id), Saliency(labels, maps, SIZE))
        write_mask(run.mask("pseudo_masks", record.id), random.choice([0, 1, 255], SIZE).astype(np.uint8))
    for record in data.val:
        for folder in ("predictions", "predictions_ms_flip", "predictions_crf"):
            write_mask(run.mask(folder, record.id), random.integers(0, 3, SIZE, dtype=np.uint8))
    run.update_metrics(**METRICS)
    with run.running("saliency", "f", []) as facts:
        facts.update(images=3, method="GradCAM(layer='layer4')")
    write_json(
        run.manifest, {**run.read_manifest(), "command": ["wsss", "run"], "packages": {"torch": "9.9"}}
    )
    write_text(run.config, "seed: 0\n")


def test_page_is_written_from_an_empty_run_directory(tmp_path: Path, run: RunDirectory) -> None:
    page, parser = build(dataset(tmp_path), run)
    text = " ".join(parser.words)
    assert "3 training photos with image labels, 2 validation photos, 2 classes, seed 0" in text
    assert "classifier mAP" in text
    assert "retention" not in text
    # photos and ground truth are there: of the 2 labelled training photos and the 2 validation photos
    assert len(re.findall("<img ", page)) == (1 + 1) + 1 + (1 + 1) + 1


def test_page_is_written_without_validation_photos(tmp_path: Path, run: RunDirectory) -> None:
    _, parser = build(dataset(tmp_path, val=0), run)
    assert "Validation photos: predictions" not in " ".join(parser.words)


def test_every_number_of_a_whole_run_is_on_the_page(tmp_path: Path, run: RunDirectory) -> None:
    data = dataset(tmp_path)
    fill(data, run)
    page, parser = build(data, run)
    text = " ".join(parser.words)
    for number in ("81.2", "43.2", "54.3", "61.2", "62.3", "63.5", "74.6", "82.1", "50.0", "60.0"):
        assert number in text, number
    assert "training keeps 75.0 % of the pixels with mIoU 65.4" in text
    assert "best background on 7 photos (this run there: 55.6)" in text
    assert "GradCAM(layer='layer4')" in text
    assert "wsss run" in text
    assert "seed: 0" in text
    assert "3 photos (done)" in text
    # training: photo, saliency, mask (2 labelled), one truth; validation: photo and 3 predictions, one truth
    assert len(re.findall("<img ", page)) == 2 * 3 + 1 + 2 * 4 + 1


def test_agreement_with_the_tags_is_on_the_page(tmp_path: Path, run: RunDirectory) -> None:
    numbers = {"cat": 0.514, "dog": None}
    entry = {"f1": 0.514, "images": 2, "per_class": numbers, "precision": numbers, "recall": numbers}
    run.update_metrics(tags={**entry, "tagged": {"cat": 3, "dog": 0}, "without_pixel": {"cat": 2, "dog": 0}})
    page, parser = build(dataset(tmp_path), run)
    text = " ".join(parser.words)
    assert "Tags in the predictions" in text
    assert "Tags without a pixel: cat 2 of 3." in text
    assert page.count("51.4") >= 4  # the tile, F1, precision, recall


def test_page_needs_nothing_else(tmp_path: Path, run: RunDirectory) -> None:
    data = dataset(tmp_path)
    fill(data, run)
    page, parser = build(data, run)
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "script" not in parser.tags


def test_names_are_escaped(tmp_path: Path, run: RunDirectory) -> None:
    data = dataset(tmp_path, classes=(EVIL, "dog"))
    data = replace(data, train=tuple(replace(r, id=f"{EVIL}{r.id}".replace("/", "")) for r in data.train))
    run.update_metrics(val={"miou": 0.5, "per_class": {EVIL: 0.25, "dog": 0.5}})
    run.record(EVIL, state=EVIL, seconds=1.0, images=EVIL)
    write_text(run.config, f"output: {EVIL}\n")
    page, parser = build(data, run, Config(output=f"runs/{EVIL}".replace("/", "|")))
    assert "onerror=alert" in page
    assert "<img src=x" not in page
    text = " ".join(parser.words)
    assert text.count(EVIL) >= 5
    assert "25.0" in text


def test_running_stage_and_missing_numbers_are_shown(tmp_path: Path, run: RunDirectory) -> None:
    run.record("classify", state="running", fingerprint="f")
    run.update_metrics(
        classifier={"mAP": None, "per_class": {}},
        seed=score(None, threshold=0.2, oracle_miou=None),
        mask=score(
            None,
            kept_miou=None,
            miou_on_oracle_images=None,
            **{**MASK, "coverage": None, "oracle_miou": None},
        ),
        val=score(None),
    )
    _, parser = build(dataset(tmp_path), run)
    text = " ".join(parser.words)
    assert "0.0 s, ? photos (running)" in text
    assert "pseudo-masks" in text


def test_gallery_is_a_sample_evenly_spaced_over_the_labelled_photos(
    tmp_path: Path, run: RunDirectory
) -> None:
    data = dataset(tmp_path, train=60, val=30)
    page, _ = build(data, run)
    shown = re.findall(r"<h3>([tv]\d+)", page)
    labelled = [record.id for record in data.train if record.labels]
    assert shown[:GALLERY_ROWS] == [labelled[i * len(labelled) // GALLERY_ROWS] for i in range(GALLERY_ROWS)]
    assert shown[GALLERY_ROWS:] == [f"v{i * 30 // GALLERY_ROWS}" for i in range(GALLERY_ROWS)]


def test_numbers_of_a_backbone_that_saw_masks_say_so(tmp_path: Path, run: RunDirectory) -> None:
    data = dataset(tmp_path)
    run.update_metrics(**METRICS)
    assert NOT_WEAK not in " ".join(build(data, run)[1].words)
    run.update_metrics(val=score(0.6, mask_pretraining=True), val_crf=score(0.7, mask_pretraining=True))
    words = " ".join(build(data, run)[1].words)
    assert f"val photos; single scale, no CRF; {NOT_WEAK}" in words
    assert words.count(NOT_WEAK) == 4  # the tiles of val and retention, and the two rows


def test_every_number_of_a_dry_run_says_that_it_is_no_result(tmp_path: Path, run: RunDirectory) -> None:
    data = dataset(tmp_path)
    fill(data, run)
    assert "dry run" not in " ".join(build(data, run)[1].words).lower()
    run.update_metrics(data_limit=3)
    words = " ".join(build(data, run)[1].words)
    said = "DRY RUN on 3 photos of each split (data.limit): not a result"
    rows, tiles, subtitle = 6, 5, 1
    assert words.count(said) == rows + tiles + subtitle
    assert "(dry run)" in words  # the title
