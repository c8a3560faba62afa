"""The numbers of metrics.json, against plain loops."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from wsss.config import NOT_WEAK, Config, EvaluateConfig, ExtendConfig, RuntimeConfig, SegmenterConfig
from wsss.data.dataset import Dataset, Record, evenly
from wsss.data.files import (
    Saliency,
    read_image,
    read_mask,
    read_saliency,
    write_json,
    write_mask,
    write_saliency,
)
from wsss.errors import UserError
from wsss.refine.background import prepare_maps
from wsss.refine.parameters import BackgroundParameters, CRFParameters, RefineParameters
from wsss.refine.refiners import REFINERS, GrabCut, Place, build_refiner
from wsss.report.build import build_report
from wsss.rundir import EXTENDED, SALIENCY, RunDirectory
from wsss.stages.base import Context
from wsss.stages.measures import ORACLE_THRESHOLDS, extended_entry, seed_entry
from wsss.stages.refine import chosen_parameters
from wsss.stages.score import METRICS, Metric, measure, summary
from wsss.stages.workers import score_oracle

Mask = npt.NDArray[np.uint8]
CPU = RuntimeConfig(accelerator="cpu", precision="float32", workers=0, progress=False)
CONSTANT = RefineParameters(background=BackgroundParameters("constant"), crf=CRFParameters(iterations=2))
CONFIG = Config(
    extend=ExtendConfig(method="none"),
    refine=CONSTANT,
    evaluate=EvaluateConfig(scales=(0.5, 1.0), oracle_images=4),
    runtime=CPU,
)
CLASSES = ("cat", "dog", "bird")
NAMES = ("background", *CLASSES)
SIZES = ((16, 20), (20, 16), (16, 20), (18, 18), (16, 20), (16, 20))
FOLDERS = {"val": "predictions", "val_ms_flip": "predictions_ms_flip", "val_crf": "predictions_crf"}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Noise with true masks of classes 0..2 (bird does not occur); the last photo has no mask."""
    random = np.random.default_rng(0)
    found = []
    for index, size in enumerate(SIZES):
        photo, mask = tmp_path / f"{index}.png", tmp_path / "truth" / f"{index}.png"
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(photo)
        truth = np.zeros(size, np.uint8)
        truth[3:12, 2:9], truth[8:15, 8:15] = 1, 2
        truth[random.random(size) < 0.1] = 255
        write_mask(mask, truth)
        found.append(Record(str(index), photo, (1, 2), mask if index < 5 else None))
    return found


def measured(
    stage: str, records: Sequence[Record], run: RunDirectory, config: Config = CONFIG
) -> dict[str, Any]:
    """metrics.json after the stage has measured its entries, with the records as both splits."""
    others = tuple(replace(record, id=f"val/{record.id}") for record in records)
    if stage == "score_masks":
        dataset = Dataset(CLASSES, tuple(records), others)
    else:
        dataset = Dataset(CLASSES, others, tuple(records))
    measure(Context(config, dataset, run), stage)
    return run.read_metrics()


def truth_of(record: Record) -> Mask:
    assert record.mask is not None
    return read_mask(record.mask)


def plain_miou(pairs: list[tuple[Mask, Mask]], kept: bool = False) -> float:
    """mIoU over classes of the truth; a predicted 255 is wrong, or left out where ``kept``."""
    predicted = np.concatenate([prediction[truth != 255] for prediction, truth in pairs])
    true = np.concatenate([truth[truth != 255] for _, truth in pairs])
    if kept:
        predicted, true = predicted[predicted != 255], true[predicted != 255]
    ious = []
    for cls in sorted(set(true.tolist())):
        hits = sum(p == cls and t == cls for p, t in zip(predicted, true, strict=True))
        either = sum(p == cls or t == cls for p, t in zip(predicted, true, strict=True))
        ious.append(hits / either)
    return float(np.mean(ious))


# -- predictions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["evaluate", "evaluate_supervised"])
def test_numbers_of_the_predictions_are_those_of_the_photos_with_masks(
    records: list[Record], run: RunDirectory, stage: str
) -> None:
    random = np.random.default_rng(2)
    expected = {}
    folders = FOLDERS if stage == "evaluate" else {"supervised": "supervised_predictions"}
    for name, folder in folders.items():
        pairs = []
        for record, size in zip(records, SIZES, strict=True):
            labels = random.integers(0, 3, size, dtype=np.uint8)
            write_mask(run.mask(folder, record.id), labels)
            if record.mask is not None:
                pairs.append((labels, truth_of(record)))
        expected[name] = plain_miou(pairs)
    found = measured(stage, records, run)
    assert {name: entry["miou"] for name, entry in found.items()} == pytest.approx(expected)
    entry = found[next(iter(folders))]
    assert entry["images"] == 5
    assert entry["absent"] == ["bird"]
    assert entry["per_class"]["bird"] is None
    assert set(entry["per_class"]) == set(NAMES)


def test_predictions_of_photos_without_masks_have_no_numbers(
    records: list[Record], run: RunDirectory
) -> None:
    run.update_metrics(val={"miou": 0.5})
    assert measured("evaluate", records[5:], run) == {}


def test_what_the_configuration_does_not_ask_for_is_not_measured(
    records: list[Record], run: RunDirectory
) -> None:
    for record in records:
        write_mask(
            run.mask("predictions", record.id),
            truth_of(record) if record.mask else np.zeros((1, 1), np.uint8),
        )
    run.update_metrics(val_crf={"miou": 0.5})
    config = replace(CONFIG, evaluate=EvaluateConfig(ms_flip=False, crf=False))
    assert set(measured("evaluate", records, run, config)) == {"val"}


def test_tags_are_compared_with_the_classes_that_have_pixels(
    records: list[Record], run: RunDirectory
) -> None:
    random = np.random.default_rng(4)
    tags = [(1, 2), (1,), (), (2,), None, (1, 2)]
    records = [replace(record, labels=labels) for record, labels in zip(records, tags, strict=True)]
    predicted = []
    for record, size in zip(records, SIZES, strict=True):
        labels = random.choice(np.array([0, 255], np.uint8), size)
        predicted.append({int(index) for index in random.choice([1, 2, 3], 2)})
        for index in predicted[-1]:
            labels[index, 5] = index  # a single pixel
        write_mask(run.mask("predictions", record.id), labels)
    found = measured("score_tags", records, run)["tags"]
    f1 = []
    for index, name in enumerate(CLASSES, 1):
        hit = missed = false = 0
        for labels, classes in zip(tags, predicted, strict=True):
            if labels is not None:
                hit += index in labels and index in classes
                missed += index in labels and index not in classes
                false += index not in labels and index in classes
        assert found["precision"][name] == (hit / (hit + false) if hit + false else None)
        assert found["recall"][name] == (hit / (hit + missed) if hit + missed else None)
        assert found["tagged"][name] == hit + missed
        assert found["without_pixel"][name] == missed
        f1.append(2 * hit / (2 * hit + missed + false))
        assert found["per_class"][name] == pytest.approx(f1[-1])
    assert found["f1"] == pytest.approx(np.mean(f1))
    assert found["images"] == 5


def test_validation_photos_without_tags_have_no_agreement(records: list[Record], run: RunDirectory) -> None:
    assert measured("score_tags", [replace(record, labels=None) for record in records], run) == {}


def test_the_summary_lists_the_tags_class_by_class_where_there_are_no_masks() -> None:
    names = [f"c{index}" for index in range(12)]
    per_class = dict(zip(names, [*np.linspace(1, 0, 11), None], strict=True))
    counts = dict.fromkeys(names, 4)
    same = {"precision": per_class, "recall": per_class, "tagged": counts}
    entry = {"f1": 0.5, "images": 9, "per_class": per_class, **same, "without_pixel": {**counts, "c0": 0}}
    lines = summary(CONFIG, {"tags": entry})
    assert lines[0] == f"  {'val tags in the predictions, F1 (no masks)':<44}0.5000"
    assert lines[2].split() == ["c10", "0.0", "0.0", "4", "of", "4"]  # the lowest first
    assert lines[-2].split() == ["c1", "90.0", "90.0", "4", "of", "4"]
    assert lines[-1].strip() == "1 more"
    assert len(summary(CONFIG, {"tags": entry, "val": {"miou": 0.5}})) == 2
    assert summary(CONFIG, {"tags": {**entry, "f1": None}}) == []  # no tag, nothing predicted


def test_retention_is_the_share_of_the_supervised_number(records: list[Record], run: RunDirectory) -> None:
    for record in records[:5]:
        write_mask(run.mask("supervised_predictions", record.id), truth_of(record))
    run.update_metrics(val={"miou": 0.4})
    found = measured("evaluate_supervised", records[:5], run)
    assert found["supervised"]["miou"] == 1
    assert found["retention"] == pytest.approx(0.4)


def test_numbers_of_weights_that_saw_masks_carry_the_mark(records: list[Record], run: RunDirectory) -> None:
    for record in records[:5]:
        write_mask(run.mask("predictions", record.id), truth_of(record))
    segmenter = SegmenterConfig(weights="deeplab.pth", allow_mask_pretraining=True)
    config = replace(CONFIG, segmenter=segmenter, evaluate=EvaluateConfig(ms_flip=False, crf=False))
    assert measured("evaluate", records[:5], run, config)["val"]["mask_pretraining"] is True
    assert f"  {NOT_WEAK}" in summary(config, run.read_metrics())


def test_numbers_of_a_segmenter_that_saw_true_masks_say_how_many(
    records: list[Record], run: RunDirectory
) -> None:
    for record in records[:5]:
        for folder in ("predictions", "supervised_predictions"):
            write_mask(run.mask(folder, record.id), truth_of(record))
    run.record("segment", state="done", true_masks=1)
    config = replace(CONFIG, evaluate=EvaluateConfig(ms_flip=False, crf=False))
    assert measured("evaluate", records[:5], run, config)["val"]["true_masks"] == 1
    assert "true_masks" not in measured("evaluate_supervised", records[:5], run, config)["supervised"]
    said = {line.split("  ")[1]: line for line in summary(config, run.read_metrics())}
    marked = {title for title, line in said.items() if line.endswith("  with 1 true mask")}
    assert marked == {"val mIoU, single scale, no CRF", "retention (val / oracle)"}


# -- masks -----------------------------------------------------------------------------------------


def fill(run: RunDirectory, records: list[Record]) -> None:
    """Saliency, pseudo-labels and pseudo-masks that have nothing to do with each other."""
    random = np.random.default_rng(3)
    for record, size in zip(records, SIZES, strict=True):
        maps = random.random((2, 5, 5)).astype(np.float16)
        write_saliency(run.saliency(record.id), Saliency(np.array([1, 2], np.int16), maps, size))
        labels = random.integers(0, 3, size, dtype=np.uint8)
        write_mask(run.mask("pseudo_labels", record.id), labels)
        write_mask(
            run.mask("pseudo_masks", record.id),
            np.where(random.random(size) < 0.3, np.uint8(255), labels),
        )


def test_mask_numbers_are_those_of_plain_loops(records: list[Record], run: RunDirectory) -> None:
    fill(run, records)
    found = measured("score_masks", records, run)
    masked = records[:5]
    labels = [(read_mask(run.mask("pseudo_labels", r.id)), truth_of(r)) for r in masked]
    masks = [(read_mask(run.mask("pseudo_masks", r.id)), truth_of(r)) for r in masked]
    mask = found["mask"]
    assert mask["miou"] == pytest.approx(plain_miou(labels))
    assert mask["kept_miou"] == pytest.approx(plain_miou(masks, kept=True))
    counted = [(prediction[truth != 255] != 255) for prediction, truth in masks]
    assert mask["coverage"] == pytest.approx(np.concatenate(counted).mean())
    right = [(prediction == truth)[(truth != 255) & (prediction != 255)] for prediction, truth in masks]
    assert mask["kept_accuracy"] == pytest.approx(np.concatenate(right).mean())
    assert mask["images"] == found["seed"]["images"] == 5
    assert mask["threshold"] == found["seed"]["threshold"] == pytest.approx(0.2)
    sample = evenly(masked, 4)
    own = [(read_mask(run.mask("pseudo_labels", r.id)), truth_of(r)) for r in sample]
    assert mask["oracle_images"] == 4
    assert mask["miou_on_oracle_images"] == pytest.approx(plain_miou(own))
    again = []
    for record in sample:
        stored = read_saliency(run.saliency(record.id))
        refined = build_refiner(CONSTANT)(
            prepare_maps(stored.maps, stored.size), (1, 2), read_image(record.image)
        )
        again.append((refined.labels == truth_of(record))[truth_of(record) != 255])
    assert mask["reliability"]["images"] == 4
    assert mask["reliability"]["accuracy"][-1] == pytest.approx(np.concatenate(again).mean(), abs=1e-5)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "background",
    [
        BackgroundParameters("constant", threshold=0.155),
        BackgroundParameters("constant", threshold=0.995),
        BackgroundParameters("power"),
        BackgroundParameters("otsu"),
    ],
)
def test_oracles_are_never_below_the_runs_own_numbers(
    records: list[Record], run: RunDirectory, background: BackgroundParameters
) -> None:
    fill(run, records)
    for record in records[:5]:  # perfect labels: no threshold is as good
        write_mask(run.mask("pseudo_labels", record.id), truth_of(record) % 255)
    config = replace(CONFIG, refine=replace(CONSTANT, background=background))
    found = measured("score_masks", records, run, config)
    assert found["seed"]["oracle_miou"] >= found["seed"]["miou"]
    assert found["mask"]["oracle_miou"] >= found["mask"]["miou_on_oracle_images"]
    assert found["mask"]["oracle_miou"] == pytest.approx(1.0)
    assert found["mask"]["oracle_threshold"] is None


def test_seed_oracle_with_thresholds_of_each_photo_is_not_below_them(
    run: RunDirectory, tmp_path: Path
) -> None:
    """Otsu fits each photo: here no single threshold can do what it does."""
    records, size = [], (8, 8)
    for index, levels in enumerate(((1.0, 0.6), (0.5, 0.1))):
        maps = np.full((1, *size), levels[1], np.float16)
        maps[0, :, :4], maps[0, 0, 0] = levels[0], 1.0
        truth = np.zeros(size, np.uint8)
        truth[:, :4] = 1
        photo, mask = tmp_path / f"{index}.png", tmp_path / "truth" / f"{index}.png"
        Image.new("RGB", size).save(photo)
        write_mask(mask, truth)
        record = Record(str(index), photo, (1,), mask)
        write_saliency(run.saliency(record.id), Saliency(np.array([1], np.int16), maps, size))
        for folder in ("pseudo_labels", "pseudo_masks"):
            write_mask(run.mask(folder, record.id), truth)
        records.append(record)
    config = replace(CONFIG, refine=replace(CONSTANT, background=BackgroundParameters("otsu")))
    seed = measured("score_masks", records, run, config)["seed"]
    assert seed["oracle_miou"] >= seed["miou"]


def test_without_true_masks_there_are_no_numbers(records: list[Record], run: RunDirectory) -> None:
    assert measured("score_masks", records[5:], run) == {}


def test_masks_of_nothing_but_ignored_pixels_have_no_numbers_that_json_refuses(
    records: list[Record], run: RunDirectory
) -> None:
    fill(run, records)
    for record, size in zip(records[:2], SIZES, strict=False):
        write_mask(record.mask or Path(), np.full(size, 255, np.uint8))
    found = measured("score_masks", records[:2], run)
    assert found["seed"]["miou"] is None
    assert found["mask"]["kept_miou"] is None
    json.dumps(found, allow_nan=False)


def test_masks_that_are_uncertain_everywhere_have_no_kept_miou(
    records: list[Record], run: RunDirectory
) -> None:
    fill(run, records)
    for record, size in zip(records, SIZES, strict=True):
        write_mask(run.mask("pseudo_masks", record.id), np.full(size, 255, np.uint8))
    mask = measured("score_masks", records, run)["mask"]
    assert mask["coverage"] == 0
    assert mask["kept_miou"] is None
    assert not math.isnan(mask["miou"])


# -- parts ------------------------------------------------------------------------------------------


def context_of(records: Sequence[Record], run: RunDirectory, config: Config = CONFIG) -> Context:
    return Context(config, Dataset(CLASSES, tuple(records), ()), run)


def plain_seed(run: RunDirectory, record: Record, threshold: float, source: str = SALIENCY) -> Mask:
    stored = read_saliency(run.maps(source, record.id))
    maps = prepare_maps(stored.maps, stored.size)
    seed = np.zeros(stored.size, np.uint8)
    for row, column in np.ndindex(*stored.size):
        values = maps[:, row, column]
        if values.max() > np.float32(threshold):
            seed[row, column] = stored.classes[values.argmax()]
    return seed


@pytest.mark.parametrize("workers", [1, 2])
def test_seeds_are_scored_before_the_refinement(
    records: list[Record], run: RunDirectory, workers: int
) -> None:
    fill(run, records)
    many = records[:5] * 7  # more than one chunk
    config = replace(
        CONFIG,
        refine=replace(CONSTANT, background=BackgroundParameters("constant", threshold=0.3)),
        runtime=replace(CPU, workers=workers),
    )
    entry = seed_entry(context_of(many, run, config), {})
    assert entry is not None
    pairs = [(plain_seed(run, record, 0.3), truth_of(record)) for record in records[:5]]
    assert entry["images"] == 35
    assert entry["miou"] == pytest.approx(plain_miou(pairs))
    assert entry["threshold"] == pytest.approx(0.3)
    best = entry["oracle_threshold"]
    at_best = [(plain_seed(run, record, best), truth_of(record)) for record in records[:5]]
    assert entry["oracle_miou"] == pytest.approx(plain_miou(at_best), abs=1e-3)
    assert entry["oracle_miou"] >= entry["miou"]


def test_oracle_refines_a_photo_with_every_candidate(records: list[Record], run: RunDirectory) -> None:
    fill(run, records)
    refiners = {
        value: build_refiner(replace(CONSTANT, background=BackgroundParameters("constant", threshold=value)))
        for value in ORACLE_THRESHOLDS
    }
    found = score_oracle(run, refiners, "saliency", 4, records[0])
    assert tuple(found) == ORACLE_THRESHOLDS
    stored = read_saliency(run.saliency(records[0].id))
    for threshold in (0.1, 0.4):
        maps = prepare_maps(stored.maps, stored.size)
        labels = refiners[threshold](maps, stored.classes, read_image(records[0].image)).labels
        assert found[threshold].miou() == pytest.approx(plain_miou([(labels, truth_of(records[0]))]))
    assert found[0.1].counts.tolist() != found[0.4].counts.tolist()
    doubled = (found + found)[0.1]
    assert doubled.counts.tolist() == (2 * found[0.1].counts).tolist()


def test_oracle_weighs_the_background_of_probabilities(records: list[Record], run: RunDirectory) -> None:
    record, image = records[0], read_image(records[0].image)
    maps = np.random.default_rng(0).random((3, *SIZES[0])).astype(np.float16)
    write_saliency(run.maps(EXTENDED, record.id), Saliency(np.array([0, 1, 2], np.int16), maps, SIZES[0]))
    refiner = build_refiner(replace(CONSTANT, soft_crf=CRFParameters(iterations=1)))
    found = score_oracle(run, {0.5: refiner, 2.0: refiner}, EXTENDED, 4, record)
    for factor in (0.5, 2.0):
        weighted = maps.astype(np.float32)
        weighted[0] *= factor
        labels = refiner(weighted / weighted.sum(0), (1, 2), image).labels
        assert found[factor].miou() == pytest.approx(plain_miou([(labels, truth_of(record))]), abs=0.02)
    background = [found[factor].counts[:, 0].sum() for factor in (0.5, 2.0)]
    assert background[0] < background[1]


class Resident(GrabCut):
    """Holds something that no other process can have."""

    place: ClassVar[Place] = "main"

    def __reduce__(self) -> Any:
        raise AssertionError("it was sent to another process")


def test_a_refiner_that_belongs_to_this_process_stays_in_it(
    records: list[Record], run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REFINERS, "resident", Resident)
    fill(run, records)
    config = replace(CONFIG, refine=replace(CONSTANT, method="resident"), runtime=replace(CPU, workers=2))
    assert measured("score_masks", records, run, config)["mask"]["oracle_images"] == 4


def test_scoring_refuses_foreign_masks(records: list[Record], run: RunDirectory) -> None:
    fill(run, records)
    write_mask(records[1].mask or Path(), np.zeros((5, 5), np.uint8))
    with pytest.raises(UserError, match=r"truth/1\.png has 5x5 pixels but .*1\.png has 16x20"):
        measured("score_masks", records, run)
    write_mask(records[1].mask or Path(), np.full(SIZES[1], 9, np.uint8))
    with pytest.raises(UserError, match=r"truth/1\.png holds the class index 9"):
        measured("score_masks", records, run)


def test_extended_seeds_have_a_rule_where_the_refiner_uses_none(
    records: list[Record], run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GrabCut, as a refiner of extended maps."""

    class Extended(GrabCut):
        from_saliency = False

    monkeypatch.setitem(REFINERS, "own", Extended)
    monkeypatch.setattr("wsss.stages.measures.chosen_rule", lambda context, source: CONSTANT)
    fill(run, records)
    (run.root / SALIENCY).rename(run.root / EXTENDED)
    config = replace(CONFIG, extend=ExtendConfig(method="walk"), refine=RefineParameters(method="own"))
    entry = extended_entry(context_of(records[:5], run, config), {})
    assert entry is not None
    pairs = [(plain_seed(run, record, 0.2, EXTENDED), truth_of(record)) for record in records[:5]]
    assert entry["miou"] == pytest.approx(plain_miou(pairs))


def test_every_folder_of_maps_has_the_background_rule_that_was_calibrated_for_it(
    records: list[Record], run: RunDirectory
) -> None:
    fill(run, records)
    shutil.copytree(run.root / SALIENCY, run.root / EXTENDED)
    rules = {
        source: BackgroundParameters("constant", threshold=value)
        for source, value in ((SALIENCY, 0.1), (EXTENDED, 0.8))
    }
    write_json(run.calibration, {source: {"chosen": asdict(rule)} for source, rule in rules.items()})
    calibrated = replace(CONFIG, refine=RefineParameters())
    for method, source in (("none", SALIENCY), ("walk", EXTENDED)):
        context = context_of(records[:5], run, replace(calibrated, extend=ExtendConfig(method=method)))
        assert chosen_parameters(context).background == rules[source]
    seed, extended = seed_entry(context, {}), extended_entry(context, {})
    assert seed is not None
    assert extended is not None
    for entry, threshold in ((seed, 0.1), (extended, 0.8)):
        pairs = [(plain_seed(run, record, threshold), truth_of(record)) for record in records[:5]]
        assert entry["miou"] == pytest.approx(plain_miou(pairs))


@pytest.mark.parametrize("method", ["walk", "pixels"])
def test_masks_that_start_from_extended_maps_have_no_threshold(
    records: list[Record], run: RunDirectory, method: Any
) -> None:
    """The threshold is that of the saliency."""
    fill(run, records)
    for record in records[:2]:
        stored = read_saliency(run.saliency(record.id))
        if method == "pixels":
            maps = np.concatenate((1 - stored.maps[:1], stored.maps)) / 2
            stored = Saliency(np.array([0, 1, 2], np.int16), maps, stored.size)
        write_saliency(run.maps(EXTENDED, record.id), stored)
    config = replace(CONFIG, extend=ExtendConfig(method=method))
    found = measured("score_masks", records[:2], run, config)
    assert found["seed"]["threshold"] is not None
    assert found["mask"]["threshold"] is None


# -- the table --------------------------------------------------------------------------------------


def test_every_entry_of_the_table_is_measured_by_a_stage_of_the_pipeline() -> None:
    from wsss.pipeline import STAGES

    assert {stage for metric in METRICS.values() for stage in metric.stages} <= set(STAGES)


def test_a_metric_from_outside_is_measured_printed_and_reported_by_its_entry_alone(
    records: list[Record], run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share(context: Context, known: Any) -> dict[str, Any]:
        labels = [read_mask(context.run.mask("predictions", record.id)) for record in context.dataset.val]
        per_class = {name: float(np.mean(labels[0] == index)) for index, name in enumerate(NAMES)}
        return {"share": per_class["cat"], "per_class": per_class}

    metric = Metric(
        "share of cats, val",
        ("evaluate",),
        share,
        headline="share",
        name="shares",
        protocol=lambda config: "val photos; pixels of a class",
        tile=("cats", "val"),
    )
    monkeypatch.setitem(METRICS, "cats", metric)
    for record in records[5:]:
        labels = np.zeros(SIZES[5], np.uint8)
        labels[:, :5] = 1
        write_mask(run.mask("predictions", record.id), labels)
    config = replace(CONFIG, output=str(run.root), evaluate=EvaluateConfig(ms_flip=False, crf=False))
    found = measured("evaluate", records[5:], run, config)
    assert found["cats"]["share"] == 0.25
    assert summary(config, found) == [f"  {'share of cats, val':<44}0.2500"]
    build_report(config, Dataset(CLASSES, (), tuple(records[5:]), evaluation_only=True), run)
    page = run.report.read_text()
    assert "val photos; pixels of a class" in page
    assert page.count("25.0") >= 3  # the tile, the row, the table of classes
