"""Predictions on disk and the numbers of metrics.json, against plain loops."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from wsss import evaluation
from wsss.config import (
    BackgroundConfig,
    Config,
    CRFConfig,
    EvaluateConfig,
    ExtendConfig,
    RefineConfig,
    RuntimeConfig,
    SegmenterConfig,
)
from wsss.data.dataset import Record
from wsss.data.files import Saliency, read_image, read_mask, write_mask, write_saliency
from wsss.data.transforms import normalize_image
from wsss.evaluation import evenly, kinds, mask_metrics, predict_records, prediction_metrics
from wsss.models.segmenter import predict_probabilities
from wsss.refine.crf import CRFParameters, crf_labels, dense_crf
from wsss.rundir import RunDirectory

Mask = npt.NDArray[np.uint8]
CPU = RuntimeConfig(accelerator="cpu", precision="float32", workers=0, progress=False)
CRF = CRFConfig(iterations=2)
EVALUATE = EvaluateConfig(scales=(0.5, 1.0), oracle_images=4)
CONFIG = Config(
    extend=ExtendConfig(method="none"),
    refine=RefineConfig(background=BackgroundConfig("constant"), crf=CRF),
    evaluate=EVALUATE,
    runtime=CPU,
)
NAMES = ("background", "cat", "dog", "bird")
SIZES = ((16, 20), (20, 16), (16, 20), (18, 18), (16, 20), (16, 20))


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


# -- small things ----------------------------------------------------------------------------------


def test_kinds_name_a_folder_for_each_entry() -> None:
    both = {"val": "predictions", "val_ms_flip": "predictions_ms_flip", "val_crf": "predictions_crf"}
    assert kinds(EvaluateConfig()) == both
    assert list(kinds(EvaluateConfig(ms_flip=False))) == ["val", "val_crf"]
    assert list(kinds(EvaluateConfig(ms_flip=False, crf=False))) == ["val"]


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [(10, 5, [0, 2, 4, 6, 8]), (10, 3, [0, 3, 6]), (4, 0, [0, 1, 2, 3]), (4, 9, [0, 1, 2, 3]), (5, 1, [0])],
)
def test_evenly_spaced_records(length: int, count: int, expected: list[int]) -> None:
    records = [Record(str(index), Path(), (), None) for index in range(length)]
    assert [int(record.id) for record in evenly(records, count)] == expected


def test_label_map_is_the_most_probable_class() -> None:
    probabilities = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0))
    found = evaluation.label_map(probabilities)
    assert found.dtype == np.uint8
    assert np.array_equal(found, probabilities.numpy().argmax(0))


def test_masks_of_the_rounds_are_scored_and_the_last_one_in_full(
    records: list[Record], run: RunDirectory
) -> None:
    random = np.random.default_rng(3)
    for record, size in zip(records, SIZES, strict=True):
        for turn in (1, 2):
            labels = random.integers(0, 3, size, dtype=np.uint8)
            mask = np.where(random.random(size) < 0.3, 255, labels).astype(np.uint8)
            write_mask(run.round(turn).mask("pseudo_labels", record.id), labels)
            write_mask(run.round(turn).mask("pseudo_masks", record.id), mask)

    def pairs(turn: int, folder: str) -> list[tuple[Mask, Mask]]:
        return [(read_mask(run.round(turn).mask(folder, r.id)), truth_of(r)) for r in records[:5]]

    config = replace(CONFIG, segmenter=SegmenterConfig(rounds=3))
    entry = evaluation.relabelled_metrics(config, NAMES, records, run)
    assert entry is not None
    assert entry["round"] == 2
    assert entry["by_round"] == pytest.approx([plain_miou(pairs(turn, "pseudo_labels")) for turn in (1, 2)])
    assert entry["miou"] == entry["by_round"][1]
    assert entry["per_class"]["bird"] is None
    assert entry["kept_miou"] == pytest.approx(plain_miou(pairs(2, "pseudo_masks"), kept=True))
    counted = [mask[truth != 255] for mask, truth in pairs(2, "pseudo_masks")]
    assert entry["coverage"] == pytest.approx((np.concatenate(counted) != 255).mean())
    assert evaluation.relabelled_metrics(config, NAMES, records[5:], run) is None


# -- CRF -------------------------------------------------------------------------------------------

PARAMETERS = CRFParameters(iterations=2)


def noise(*shape: int) -> npt.NDArray[Any]:
    return np.random.default_rng(1).random(shape, dtype=np.float32)


def test_crf_of_a_photo_with_one_possible_class_is_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsss.refine.crf.dense_crf", lambda *_: pytest.fail("no CRF is needed"))
    probabilities = np.full((5, 6, 7), 0.02, np.float32)
    probabilities[3] = 0.92
    image = (255 * noise(6, 7, 3)).astype(np.uint8)
    assert (crf_labels(probabilities, image, PARAMETERS) == 3).all()
    none = np.full((20, 6, 7), 0.05, np.float32)  # nothing reaches a tenth
    none[4, 2, 2] = 0.06
    labels = crf_labels(none, image, PARAMETERS)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, none.argmax(0))


def test_crf_labels_are_those_of_the_possible_classes_alone() -> None:
    logits = 4 * noise(6, 16, 20)
    logits[[0, 3]] -= 9
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    image = (255 * noise(16, 20, 3)).astype(np.uint8)
    possible = [1, 2, 4, 5]
    refined = dense_crf(np.ascontiguousarray(probabilities[possible]), image, PARAMETERS)
    expected = np.array(possible)[refined.argmax(0)]
    found = crf_labels(probabilities, image, PARAMETERS)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


# -- predictions -----------------------------------------------------------------------------------


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 5, padding=2)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = 3 * self.convolution(images)
        return logits


@pytest.mark.parametrize("ms_flip", [True, False])
def test_every_photo_gets_every_kind_of_prediction_at_its_own_size(
    records: list[Record], run: RunDirectory, ms_flip: bool
) -> None:
    settings, model = replace(EVALUATE, ms_flip=ms_flip), Toy()
    predict_records(model, records, run.mask, settings, CRF, CPU, "predict")  # type: ignore[arg-type]
    assert (run.root / "predictions_ms_flip").exists() == ms_flip
    for record, size in zip(records, SIZES, strict=True):
        photo = read_image(record.image)
        images = normalize_image(torch.from_numpy(photo).permute(2, 0, 1))[None]
        with torch.no_grad():
            plain = predict_probabilities(model, images)[0]
            best = predict_probabilities(model, images, (0.5, 1.0), flip=True)[0] if ms_flip else plain
        crf = crf_labels(best.numpy(), photo, CRFParameters(iterations=2))
        expected = {"predictions": plain.argmax(0).numpy(), "predictions_crf": crf}
        if ms_flip:
            expected["predictions_ms_flip"] = best.argmax(0).numpy()
        for folder, labels in expected.items():
            found = read_mask(run.mask(folder, record.id))
            assert found.shape == size
            assert np.mean(found == labels) > 0.99  # batches may round differently


def test_only_photos_without_predictions_are_predicted(records: list[Record], run: RunDirectory) -> None:
    settings, model = replace(EVALUATE, ms_flip=False), Toy()
    predict_records(model, records, run.mask, settings, CRF, CPU, "predict")  # type: ignore[arg-type]
    model.calls = 0
    predict_records(model, records, run.mask, settings, CRF, CPU, "predict")  # type: ignore[arg-type]
    assert model.calls == 0
    run.mask("predictions_crf", "3").unlink()
    predict_records(model, records, run.mask, settings, CRF, CPU, "predict")  # type: ignore[arg-type]
    assert model.calls == 1
    assert run.mask("predictions_crf", "3").is_file()


def test_numbers_of_the_predictions_are_those_of_the_photos_with_masks(
    records: list[Record], run: RunDirectory
) -> None:
    random = np.random.default_rng(2)
    expected = {}
    for name, folder in kinds(EVALUATE).items():
        pairs = []
        for record, size in zip(records, SIZES, strict=True):
            labels = random.integers(0, 3, size, dtype=np.uint8)
            write_mask(run.mask("x_" + folder, record.id), labels)
            if record.mask is not None:
                pairs.append((labels, truth_of(record)))
        expected[name] = plain_miou(pairs)
    found = prediction_metrics(CONFIG, NAMES, records, run, "x_")
    assert {name: entry["miou"] for name, entry in found.items()} == pytest.approx(expected)
    assert found["val"]["images"] == 5
    assert found["val"]["absent"] == ["bird"]
    assert found["val"]["per_class"]["bird"] is None
    assert set(found["val"]["per_class"]) == set(NAMES)


def test_predictions_of_photos_without_masks_have_no_numbers(
    records: list[Record], run: RunDirectory
) -> None:
    assert prediction_metrics(CONFIG, NAMES, records[5:], run) == {
        "val": None,
        "val_ms_flip": None,
        "val_crf": None,
    }


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
    found = mask_metrics(CONFIG, CONFIG.refine, NAMES, records, run)
    masked = records[:5]
    labels = [(read_mask(run.mask("pseudo_labels", r.id)), truth_of(r)) for r in masked]
    masks = [(read_mask(run.mask("pseudo_masks", r.id)), truth_of(r)) for r in masked]
    mask = found["mask"]
    assert mask["miou"] == pytest.approx(plain_miou(labels))
    assert mask["kept_miou"] == pytest.approx(plain_miou(masks, kept=True))
    counted = [(prediction[truth != 255] != 255) for prediction, truth in masks]
    assert mask["coverage"] == pytest.approx(np.concatenate(counted).mean())
    assert mask["images"] == found["seed"]["images"] == 5
    assert mask["threshold"] == found["seed"]["threshold"] == pytest.approx(0.2)
    sample = evenly(masked, 4)
    own = [(read_mask(run.mask("pseudo_labels", r.id)), truth_of(r)) for r in sample]
    assert mask["oracle_images"] == 4
    assert mask["miou_on_oracle_images"] == pytest.approx(plain_miou(own))
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "background",
    [
        BackgroundConfig("constant", threshold=0.155),
        BackgroundConfig("constant", threshold=0.995),
        BackgroundConfig("power"),
        BackgroundConfig("otsu"),
    ],
)
def test_oracles_are_never_below_the_runs_own_numbers(
    records: list[Record], run: RunDirectory, background: BackgroundConfig
) -> None:
    fill(run, records)
    for record in records[:5]:  # perfect labels: no threshold is as good
        write_mask(run.mask("pseudo_labels", record.id), truth_of(record) % 255)
    config = replace(CONFIG, refine=replace(CONFIG.refine, background=background))
    found = mask_metrics(config, config.refine, NAMES, records, run)
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
    config = replace(CONFIG, refine=replace(CONFIG.refine, background=BackgroundConfig("otsu")))
    seed = mask_metrics(config, config.refine, NAMES, records, run)["seed"]
    assert seed["oracle_miou"] >= seed["miou"]


def test_without_true_masks_there_are_no_numbers(records: list[Record], run: RunDirectory) -> None:
    assert mask_metrics(CONFIG, CONFIG.refine, NAMES, records[5:], run) == {
        "seed": None,
        "extended": None,
        "mask": None,
    }


def test_masks_of_nothing_but_ignored_pixels_have_no_numbers_that_json_refuses(
    records: list[Record], run: RunDirectory
) -> None:
    fill(run, records)
    for record, size in zip(records[:2], SIZES, strict=False):
        write_mask(record.mask or Path(), np.full(size, 255, np.uint8))
    found = mask_metrics(CONFIG, CONFIG.refine, NAMES, records[:2], run)
    assert found["seed"]["miou"] is None
    assert found["mask"]["kept_miou"] is None
    json.dumps(found, allow_nan=False)


def test_masks_that_are_uncertain_everywhere_have_no_kept_miou(
    records: list[Record], run: RunDirectory
) -> None:
    fill(run, records)
    for record, size in zip(records, SIZES, strict=True):
        write_mask(run.mask("pseudo_masks", record.id), np.full(size, 255, np.uint8))
    mask = mask_metrics(CONFIG, CONFIG.refine, NAMES, records, run)["mask"]
    assert mask["coverage"] == 0
    assert mask["kept_miou"] is None
    assert not math.isnan(mask["miou"])
