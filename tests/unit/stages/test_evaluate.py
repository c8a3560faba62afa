"""Predictions of the validation photos on disk, against plain loops."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from wsss.config import EvaluateConfig, RuntimeConfig
from wsss.data.dataset import Record
from wsss.data.files import read_confidence, read_image, read_mask
from wsss.data.transforms import normalize_image
from wsss.models.segmenter import predict_probabilities
from wsss.refine.crf import crf_probabilities
from wsss.refine.parameters import CRFParameters
from wsss.rundir import RunDirectory
from wsss.stages.evaluate import folders, label_map, predict_records

CPU = RuntimeConfig(accelerator="cpu", precision="float32", workers=0, progress=False)
EVALUATE = EvaluateConfig(scales=(0.5, 1.0))
CONSTANTS = CRFParameters(iterations=2)
SIZES = ((16, 20), (20, 16), (16, 20), (18, 18), (16, 20), (16, 20))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Noise."""
    random = np.random.default_rng(0)
    found = []
    for index, size in enumerate(SIZES):
        photo = tmp_path / f"{index}.png"
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(photo)
        found.append(Record(str(index), photo, (1, 2), None))
    return found


def test_a_folder_for_each_kind_of_prediction() -> None:
    assert folders(EvaluateConfig()) == ["predictions", "predictions_ms_flip", "predictions_crf"]
    assert folders(EvaluateConfig(ms_flip=False)) == ["predictions", "predictions_crf"]
    assert folders(EvaluateConfig(ms_flip=False, crf=False)) == ["predictions"]


def test_label_map_is_the_most_probable_class() -> None:
    probabilities = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0))
    found = label_map(probabilities)
    assert found.dtype == np.uint8
    assert np.array_equal(found, probabilities.numpy().argmax(0))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 5, padding=2)
        self.calls = 0
        self.together: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.together.append(len(images))
        logits: Tensor = 3 * self.convolution(images)
        return logits


@pytest.mark.parametrize("ms_flip", [True, False])
def test_every_photo_gets_every_kind_of_prediction_at_its_own_size(
    records: list[Record], run: RunDirectory, ms_flip: bool
) -> None:
    settings, model = replace(EVALUATE, ms_flip=ms_flip), Toy()
    predict_records(model, records, run.mask, settings, CONSTANTS, CPU, "predict")  # type: ignore[arg-type]
    assert (run.root / "predictions_ms_flip").exists() == ms_flip
    for record, size in zip(records, SIZES, strict=True):
        photo = read_image(record.image)
        images = normalize_image(torch.from_numpy(photo).permute(2, 0, 1))[None]
        with torch.no_grad():
            plain = predict_probabilities(model, images)[0]
            best = predict_probabilities(model, images, (0.5, 1.0), flip=True)[0] if ms_flip else plain
        crf = crf_probabilities(best.numpy(), photo, CONSTANTS)
        expected = {"predictions": plain.numpy(), "predictions_crf": crf}
        if ms_flip:
            expected["predictions_ms_flip"] = best.numpy()
        for folder, probabilities in expected.items():
            found = read_mask(run.mask(folder, record.id))
            assert found.shape == size
            assert np.mean(found == probabilities.argmax(0)) > 0.99  # batches may round differently
            confidence = read_confidence(run.mask(folder, record.id))
            assert confidence is not None
            assert confidence.photo == pytest.approx(probabilities.max(0).mean(), abs=1e-4)


def test_only_photos_without_predictions_are_predicted(records: list[Record], run: RunDirectory) -> None:
    settings, model = replace(EVALUATE, ms_flip=False), Toy()
    predict_records(model, records, run.mask, settings, CONSTANTS, CPU, "predict")  # type: ignore[arg-type]
    model.calls = 0
    predict_records(model, records, run.mask, settings, CONSTANTS, CPU, "predict")  # type: ignore[arg-type]
    assert model.calls == 0
    run.mask("predictions_crf", "3").unlink()
    predict_records(model, records, run.mask, settings, CONSTANTS, CPU, "predict")  # type: ignore[arg-type]
    assert model.calls == 1
    assert run.mask("predictions_crf", "3").is_file()


def test_a_continued_stage_forms_the_batches_of_one_without_interruption(
    records: list[Record], run: RunDirectory
) -> None:
    """The last bits of a prediction depend on the other photos of its batch."""
    settings, model = replace(EVALUATE, ms_flip=False, crf=False), Toy()
    predict_records(model, records, run.mask, settings, CONSTANTS, CPU, "predict")  # type: ignore[arg-type]
    before = {record.id: run.mask("predictions", record.id).stat().st_mtime_ns for record in records}
    assert model.together == [4, 1, 1]
    run.mask("predictions", "2").unlink()
    model.together.clear()
    predict_records(model, records, run.mask, settings, CONSTANTS, CPU, "predict")  # type: ignore[arg-type]
    assert model.together == [4]
    assert {
        name for name, time in before.items() if run.mask("predictions", name).stat().st_mtime_ns != time
    } == {"2"}
