"""A backbone, a kind of data set, a refiner and a metric from outside: the pipeline takes each by one entry."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from torch import Tensor, nn

from wsss.data.dataset import Dataset
from wsss.data.load import LOADERS, load_shapes
from wsss.models.backbone import BACKBONES, Backbone, Layout, Weights
from wsss.refine.masks import RefinedMask
from wsss.refine.parameters import RefineParameters
from wsss.refine.refiners import REFINERS, Place, Refiner
from wsss.stages.base import Context
from wsss.stages.score import METRICS, Metric


class Tiny(nn.Module):
    """Three stages, pooling, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.score = nn.Linear(16, 1000)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.score(self.pool(self.deep(self.block(self.stem(images)))).flatten(1))
        return logits


TINY = Backbone(
    "tiny",
    Tiny,
    Weights("https://example.org/tiny.pth", lambda: Tiny().state_dict()),
    Layout(("stem", "block", "deep"), ("stem", "block", "deep", "pool", "score"), "score"),
    strides=(4, 8, 16),
    channels=(8, 12, 16),
)


class Half(Refiner):
    """The upper part of every photo is its first class, in this process as a network on a GPU would be."""

    def __init__(self, parameters: RefineParameters, device: str | None = None, share: float = 0.5) -> None:
        self.share = share

    @property
    def place(self) -> Place:
        return "main"

    def __call__(
        self,
        maps: npt.NDArray[np.float32],
        classes: Sequence[int] | npt.NDArray[np.integer],
        image: npt.NDArray[np.uint8],
    ) -> RefinedMask:
        labels = np.zeros(image.shape[:2], np.uint8)
        if len(classes):
            labels[: int(self.share * len(labels))] = classes[0]
        return RefinedMask(labels, labels.copy(), np.ones(labels.shape, np.float32))


def first_photos(
    root: Path, labels: str, classes: Path | None, train: str | None, val: str | None
) -> Dataset:
    """Of a folder of shapes, the first eight photos and two to validate on."""
    whole = load_shapes(root, labels, classes, train, val)
    return Dataset(whole.classes, whole.train[:8], whole.val[:2])


def photos(context: Context, known: Any) -> dict[str, Any]:
    """How many photos were predicted, of every class."""
    return {
        "count": len(context.dataset.val),
        "per_class": dict.fromkeys(context.dataset.class_names, 0.5),
    }


def test_one_entry_each_is_all_that_the_pipeline_needs(
    shapes: Path, tiny_config: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", TINY)
    monkeypatch.setitem(LOADERS, "first", first_photos)
    monkeypatch.setitem(REFINERS, "half", Half)
    counted = Metric("photos predicted", ("evaluate",), photos, headline="count", name="photos")
    monkeypatch.setitem(METRICS, "photos", counted)
    run = tmp_path / "run"
    done = command(
        *("run", tiny_config, "--data.kind", "first", "--data.root", shapes, "--output", run),
        *("--classifier.architecture", "tiny", "--segmenter.architecture", "deeplabv3_tiny"),
        *("--refine.method", "half(share=0.25)", "--classifier.epochs", 1, "--segmenter.epochs", 1),
        *("--evaluate.ms_flip", "false", "--evaluate.crf", "false"),
    )
    assert done.status == 0, done.err
    assert len(list((run / "pseudo_masks").glob("*.png"))) == 8
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["photos"]["count"] == 2
    assert metrics["val"]["images"] == 2
    assert "photos predicted" in done.out
    report = (run / "report.html").read_text()
    assert "photos" in report
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["stages"]["classify"]["images"] == 8
    assert "layer='deep'" in manifest["stages"]["saliency"]["method"]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--data.kind", "shape", 'data.kind is "shape", but must be one of shapes, voc'),
        ("--refine.method", "grabcutt", "did you mean grabcut"),
        ("--classifier.architecture", "resnet51", "did you mean resnet"),
    ],
)
def test_a_name_that_nobody_registered_is_refused_before_anything_is_written(
    tiny: list[str], tmp_path: Path, command: Any, option: str, value: str, words: str
) -> None:
    assert words in command("run", *tiny, "--output", tmp_path / "run", option, value).sentence
    assert not (tmp_path / "run").exists()
