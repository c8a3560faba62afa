"""Choosing the background rule of a run: for which maps, with which classifier, on which photos."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from wsss.config import Config, RuntimeConfig, SaliencyConfig
from wsss.data.dataset import Dataset, Record
from wsss.data.files import Saliency, read_image, read_json, read_saliency, write_mask, write_saliency
from wsss.data.transforms import normalize_image, to_tensor
from wsss.metrics.confusion import ConfusionMatrix
from wsss.refine.background import background_threshold, prepare_maps, seed_mask
from wsss.refine.calibrate import CANDIDATES, evidence_of_seeds, mean_evidence
from wsss.rundir import EXTENDED, SALIENCY, RunDirectory
from wsss.stages import calibrate as stage
from wsss.stages.base import Context

CONFIG = Config(
    saliency=SaliencyConfig(checkpoint="best"),
    runtime=RuntimeConfig(accelerator="cpu", precision="float32", workers=0, progress=False),
)
LABELS = ((1, 2), (2,), ())


class Brightness(nn.Module):
    """Three classes: how bright the photo is in each channel."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = images.mean((2, 3))
        return logits


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """Noise, with saliency and extended maps that have nothing to do with each other, and `Brightness`."""
    random, run, records = np.random.default_rng(0), RunDirectory(tmp_path / "run"), []
    for index, labels in enumerate(LABELS):
        path, mask = tmp_path / f"{index}.png", tmp_path / "masks" / f"{index}.png"
        Image.fromarray(random.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(path)
        write_mask(mask, random.integers(0, 3, (16, 20), dtype=np.uint8))
        records.append(Record(str(index), path, labels, mask))
        for source in (SALIENCY, EXTENDED):
            maps = random.random((len(labels), 4, 5)).astype(np.float16)
            write_saliency(run.maps(source, str(index)), Saliency(np.array(labels, np.int16), maps, (16, 20)))

    def load(path: Path) -> tuple[nn.Module, None, None]:
        assert path == run.checkpoint("classifier", "best")
        return Brightness(), None, None

    monkeypatch.setattr(stage, "load_classifier", load)
    return Context(CONFIG, Dataset(("cat", "dog"), tuple(records), ()), run)


def expected(context: Context, source: str) -> list[dict[str, Any]]:
    """What is known about each candidate, photo by photo."""
    parts: list[list[Any]] = [[] for _ in CANDIDATES]
    truths = [ConfusionMatrix(3) for _ in CANDIDATES]
    for record in context.dataset.train[:2]:
        stored, image = read_saliency(context.run.maps(source, record.id)), read_image(record.image)
        maps = prepare_maps(stored.maps, stored.size)
        classes = record.labels or ()
        photo = normalize_image(to_tensor(image))
        found = evidence_of_seeds(
            photo, maps, classes, CANDIDATES, lambda images: Brightness()(images).sigmoid()
        )
        for index, rule in enumerate(CANDIDATES):
            parts[index] += found[index]
            seed = seed_mask(maps, classes, background_threshold(maps, rule))
            truths[index].update(seed, np.asarray(Image.open(record.mask)))
    evidence = [mean_evidence(part) for part in parts]
    return [
        {**asdict(rule), **asdict(one), "gain": one.gain, "oracle_miou": truth.miou()}
        for rule, one, truth in zip(CANDIDATES, evidence, truths, strict=True)
    ]


@pytest.mark.parametrize("source", [SALIENCY, EXTENDED])
def test_a_folder_of_maps_is_calibrated_with_its_own_maps(context: Context, source: str) -> None:
    chosen = stage.chosen_rule(context, source).background
    facts = read_json(context.run.calibration)
    assert list(facts) == [source]
    assert facts[source]["photos"] == 2
    rows = expected(context, source)
    for found, wanted in zip(facts[source]["candidates"], rows, strict=True):
        rule = wanted.pop("rule")
        assert found.pop("rule") == rule
        assert found == pytest.approx(wanted)
    assert chosen == CANDIDATES[int(np.argmax([row["gain"] for row in rows]))]


def test_a_second_folder_leaves_the_first_ones_rule(context: Context) -> None:
    first = stage.chosen_rule(context, SALIENCY)
    stage.chosen_rule(context, EXTENDED)
    assert set(read_json(context.run.calibration)) == {SALIENCY, EXTENDED}
    assert stage.chosen_rule(context, SALIENCY) == first


def test_large_photos_are_shrunk_for_the_classifier(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def classify(network: nn.Module, images: Tensor, hardware: RuntimeConfig) -> Tensor:
        seen.append(tuple(images.shape[2:]))
        return torch.zeros(len(images), 2)

    monkeypatch.setattr(stage, "_probabilities", classify)
    monkeypatch.setattr(stage, "LONG_SIDE", 10)
    stage.calibrate(context, SALIENCY)
    assert set(seen) == {(8, 10)}


def test_without_a_label_the_rule_is_the_threshold_of_the_configuration(context: Context) -> None:
    unlabelled = tuple(replace(record, labels=()) for record in context.dataset.train)
    context = replace(context, dataset=replace(context.dataset, train=unlabelled))
    rule = stage.chosen_rule(context, SALIENCY).background
    assert (rule.rule, rule.threshold) == ("constant", CONFIG.refine.background.threshold)
