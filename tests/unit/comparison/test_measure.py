"""One method on one photo: frames, classes and what is measured where."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from wsss.comparison.measure import Subject, explain, is_smoothed, load_subject, measure
from wsss.comparison.regions import Truth
from wsss.config import CompareConfig, RuntimeConfig
from wsss.data.dataset import Record
from wsss.data.files import write_mask
from wsss.metrics.perturbation import scorer
from wsss.saliency import METHODS, SESS, ClassSubtraction, GradCAM

CPU = torch.device("cpu")


def classifier(images: Tensor) -> Tensor:
    """Two logits: mean brightness of the left and of the right half."""
    left, right = images.mean(1).tensor_split(2, dim=2)
    return torch.stack((left.mean((1, 2)), right.mean((1, 2))), dim=1)


class Halves(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return classifier(images)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """A bright left half with the class in it, 40 x 80 pixels."""
    pixels = np.full((40, 80, 3), 100, np.uint8)
    pixels[:, :40] = 250
    mask = np.zeros((40, 80), np.uint8)
    mask[10:30, 10:30] = 2
    Image.fromarray(pixels).save(tmp_path / "a.png")
    write_mask(tmp_path / "mask.png", mask)
    return Record("a", tmp_path / "a.png", (1, 2), tmp_path / "mask.png")


def test_a_subject_has_the_classes_that_the_classifier_knows(record: Record) -> None:
    subject = load_subject(record, ("cat", "dog"), {2: 0}, 20, CPU)
    assert subject.image.shape == (3, 20, 40)
    assert subject.size == (40, 80)
    assert subject.labels == (2,)
    assert subject.targets().tolist() == [[0, 0]]
    assert load_subject(record, ("cat", "dog"), {2: 0}, 0, CPU).image.shape == (3, 40, 80)


def test_localisation_is_measured_in_pixels_of_the_photo(record: Record) -> None:
    subject = load_subject(record, ("cat", "dog"), {2: 0}, 20, CPU)
    maps = torch.zeros(1, 4, 8)
    maps[0, 1:3, 1:3] = 1.0
    (entry,) = measure(maps, subject, scorer(Halves(), "sigmoid"), CompareConfig())
    assert entry["class"] == 2
    assert entry["pointing"] is entry["pointing_torchray"] is True
    assert entry["difficult"] is True  # 400 of 3200 pixels, and the label has two classes
    assert 0.5 < entry["iou"] <= entry["best_iou"] <= 1
    assert "insertion" not in entry


def test_scores_are_those_of_the_masked_images(record: Record) -> None:
    subject = load_subject(record, ("cat", "dog"), {1: 1, 2: 0}, 20, CPU)
    maps = torch.zeros(2, 20, 40)
    maps[:, :, :20] = 1.0  # the zone is the left half
    settings = CompareConfig(threshold=0.5, insertion_steps=2)
    right, left = measure(maps, subject, scorer(Halves(), "sigmoid"), settings, insertion=True)
    before = classifier(subject.image[None])[0].sigmoid()
    assert left["score"] == pytest.approx(float(before[0]))
    assert left["saliency_drop"] == pytest.approx(0, abs=1e-5)  # its own half is kept
    assert left["context_drop"] == pytest.approx(1 - 0.5 / float(before[0]), rel=1e-5)
    assert right["context_drop"] == pytest.approx(0, abs=1e-5)
    assert right["saliency_increase"] == (float(before[1]) < 0.5)
    assert left["insertion"] > left["deletion"]


def test_a_class_without_region_has_no_localisation(record: Record) -> None:
    subject = load_subject(record, ("cat", "dog"), {1: 0}, 20, CPU)
    (entry,) = measure(torch.rand(1, 5, 10), subject, scorer(Halves(), "softmax"), CompareConfig())
    assert "pointing" not in entry
    assert "saliency_drop" in entry


def test_a_flat_map_is_a_miss_and_changes_nothing(record: Record) -> None:
    subject = load_subject(record, ("cat", "dog"), {2: 0}, 20, CPU)
    (entry,) = measure(torch.zeros(1, 5, 10), subject, scorer(Halves(), "sigmoid"), CompareConfig())
    assert entry["pointing"] is entry["pointing_torchray"] is False
    assert entry["energy"] == entry["dice"] == entry["context_drop"] == entry["context_increase"] == 0


def test_explain_divides_the_time_by_the_classes(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Flat(GradCAM):
        def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
            seen.append(targets)
            return torch.ones(len(targets), 2, 2)

    subject = load_subject(record, ("cat", "dog"), {1: 1, 2: 0}, 20, CPU)
    clock = iter((10.0, 10.5))
    monkeypatch.setattr("wsss.comparison.measure.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    maps, milliseconds = explain(Flat("layer"), Halves(), subject, RuntimeConfig(accelerator="cpu"))
    assert maps.shape == (2, 2, 2)
    assert milliseconds == pytest.approx(500 / 2)
    assert seen[0].tolist() == [[0, 1], [0, 0]]


def test_only_maps_of_gradients_are_smoothed_before_pointing() -> None:
    assert not is_smoothed(SESS(GradCAM("layer4")))
    if "gradient" in METHODS:
        assert is_smoothed(METHODS["gradient"]())
        assert is_smoothed(ClassSubtraction(METHODS["gradient"]()))


def test_truth_moves_to_a_device() -> None:
    truth = Truth("mask", {1: torch.ones(2, 2, dtype=torch.bool)}, torch.zeros(2, 2, dtype=torch.bool))
    moved = truth.to(torch.device("meta"))
    assert moved.regions[1].device.type == "meta"
    assert moved.ignored is not None
    assert moved.ignored.device.type == "meta"


def test_a_subject_without_labels_of_the_classifier_has_no_targets(record: Record) -> None:
    subject = load_subject(record, ("cat", "dog"), {7: 0}, 20, CPU)
    assert isinstance(subject, Subject)
    assert subject.targets().shape == (0, 2)
