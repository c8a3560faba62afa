"""What the stages hand on: every setting reaches the training, the method or the prediction that it is for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wsss.config import (
    ClassifierConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    ExtendConfig,
    FeatureConfig,
    RuntimeConfig,
    SaliencyConfig,
    SegmenterConfig,
)
from wsss.data.dataset import Dataset, Record
from wsss.data.files import write_mask
from wsss.data.modules import ClassificationData, SegmentationData, same_size_batches, train_loader
from wsss.data.transforms import RandomLongSide, RandomScale, TrainTransform
from wsss.errors import UserError
from wsss.refine.parameters import CRFParameters, RefineParameters
from wsss.rundir import RunDirectory
from wsss.saliency import Gradient
from wsss.stages import classify, evaluate, extend, saliency, segment, signs
from wsss.stages.base import Context
from wsss.tasks import classification, segmentation

CPU = RuntimeConfig(accelerator="cpu", precision="float32", workers=0, progress=False)
CONFIG = Config(
    data=DataConfig(long_side=77),
    classifier=ClassifierConfig("resnet18", epochs=3, batch_size=2, long_side=(30, 50), crop=32, color_jitter=0.4),
    saliency=SaliencyConfig("gradient", output_stride=8, scales=(1.0,), flip=False, checkpoint="best"),
    extend=ExtendConfig("pixels", photos=2),
    refine=RefineParameters(soft_crf=CRFParameters(iterations=3)),
    segmenter=SegmenterConfig(
        "light", weights="none", epochs=4, batch_size=2, scale=(0.4, 0.8), crop=32, color_jitter=0.4, val_every=2
    ),
    evaluate=EvaluateConfig(scales=(0.5, 1.0)),
    runtime=CPU,
    seed=5,
)  # fmt: skip
CLASSES = ("cat", "dog")
NAMES = ("background", *CLASSES)
NETWORK = nn.Linear(2, 3)

Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """Noise with true masks; the pseudo-masks say the opposite."""
    random, run, records = np.random.default_rng(0), RunDirectory(tmp_path / "run"), []
    for index in range(7):
        path, mask = tmp_path / f"{index}.png", tmp_path / "truth" / f"{index}.png"
        Image.fromarray(random.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(path)
        truth = random.integers(0, 3, (36, 40), dtype=np.uint8)
        write_mask(mask, truth)
        write_mask(run.mask("pseudo_masks", str(index)), 2 - truth)
        records.append(Record(str(index), path, (1 + index % 2,), mask))
    return Context(CONFIG, Dataset(CLASSES, tuple(records[:5]), tuple(records[5:])), run)


@pytest.fixture
def calls_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calls]:
    """Replaces a function and lists its calls."""

    def listen(owner: ModuleType | SimpleNamespace | type, name: str, result: Any = None) -> Calls:
        calls: Calls = []

        def listening(*args: Any, **keywords: Any) -> Any:
            calls.append((args, keywords))
            return result

        monkeypatch.setattr(owner, name, listening)
        return calls

    for stage in (classify, segment):
        monkeypatch.setattr(stage, "read_log", lambda path: [{"epoch": "1", "train_loss": "0.3"}])
    for name in ("of_maps", "of_predictions"):
        monkeypatch.setattr(signs, name, lambda *parts: [])
    return listen


def batches(loader: DataLoader[Any]) -> list[Tensor]:
    """All tensors of two epochs."""
    found: list[Tensor] = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        found += [tensor for batch in loader for tensor in batch]
    return found


def same(one: DataLoader[Any], other: DataLoader[Any]) -> bool:
    first, second = batches(one), batches(other)
    return len(first) == len(second) > 0 and all(map(torch.equal, first, second))


def test_the_classifier_is_trained_as_configured(context: Context, calls_of: Callable[..., Calls]) -> None:
    tasks, fits = calls_of(classification, "new_task", NETWORK), calls_of(classify, "fit")
    classify.train_classifier(context)
    assert tasks == [((CONFIG.classifier, CLASSES), {"pretrained": True})]
    (((task, train, val, folder), keywords),) = fits
    assert (task, folder) == (NETWORK, context.run.root / "classifier")
    assert keywords == {"epochs": 3, "monitor": ("val_mAP", "max"), "config": CPU, "seed": 5}
    transform = TrainTransform(RandomLongSide(30, 50), 32, 0.4)
    assert same(train, train_loader(ClassificationData(context.dataset.train, 2, transform, 5), 2, 5, 0))
    assert [tuple(image.shape) for image, _ in val] == [(1, 3, 36, 40)] * 2  # the middle of long_side


@pytest.mark.parametrize("masks", ["pseudo", "own", "true"])
def test_the_segmenter_is_trained_as_configured(
    context: Context, calls_of: Callable[..., Calls], tmp_path: Path, masks: str
) -> None:
    tasks, fits = calls_of(segmentation, "new_task", NETWORK), calls_of(segment, "fit")
    if masks == "own":
        for record in context.dataset.train:
            write_mask(tmp_path / "own" / f"{record.id}.png", np.ones((36, 40), np.uint8))
        settings = replace(CONFIG.segmenter, masks=str(tmp_path / "own"))
        context = replace(context, config=replace(CONFIG, segmenter=settings))
    train = segment.train_supervised if masks == "true" else segment.train_segmenter
    train(context)
    assert tasks == [((context.config.segmenter, NAMES, None, 77), {"pretrained": True})]
    (((task, loader, val, folder), keywords),) = fits
    expected = "segmenter_supervised" if masks == "true" else "segmenter"
    assert (task, folder) == (NETWORK, context.run.root / expected)
    assert keywords == {"epochs": 4, "monitor": ("val_mIoU", "max"), "config": CPU, "seed": 5, "val_every": 2}
    source = {
        "pseudo": context.run.root / "pseudo_masks",
        "own": tmp_path / "own",
        "true": tmp_path / "truth",
    }[masks]
    records = [replace(record, mask=source / f"{record.id}.png") for record in context.dataset.train]
    transform = TrainTransform(RandomScale(0.4, 0.8), 32, 0.4)
    assert same(loader, train_loader(SegmentationData(records, transform, 5, 3), 2, 5, 0))
    assert len(val) == 2
    write_mask(source / "0.png", np.full((36, 40), 3, np.uint8))
    with pytest.raises(UserError, match="holds the class index 3"):
        batches(loader)


def test_a_segmenter_may_start_from_the_classifier(context: Context, calls_of: Callable[..., Calls]) -> None:
    tasks, _ = calls_of(segmentation, "new_task", NETWORK), calls_of(segment, "fit")
    loads = calls_of(classification, "load_classifier", (NETWORK, CLASSES, None))
    config = replace(CONFIG, segmenter=replace(CONFIG.segmenter, weights="classifier"))
    segment.train_segmenter(replace(context, config=config))
    assert loads == [((context.run.checkpoint("classifier", "best"),), {})]
    ((_, _, initial, _), _) = tasks[0]
    assert torch.equal(initial["weight"], NETWORK.weight)


@pytest.mark.parametrize(("batch_size", "photos", "refused"), [(1, 5, True), (2, 1, True), (2, 2, False)])
def test_deeplab_is_not_trained_on_single_photos(
    context: Context, batch_size: int, photos: int, refused: bool
) -> None:
    settings = replace(CONFIG.segmenter, architecture="deeplabv3_resnet18", batch_size=batch_size)
    dataset = replace(context.dataset, train=context.dataset.train[:photos])
    context = Context(replace(CONFIG, segmenter=settings), dataset, context.run)
    for stage in (segment.SEGMENT, segment.SUPERVISE):
        if refused:
            with pytest.raises(UserError, match="cannot be trained on batches of one image"):
                stage.check(context, "missing")
        else:
            stage.check(context, "missing")


def test_saliency_is_that_of_the_configured_network_and_method(
    context: Context, calls_of: Callable[..., Calls]
) -> None:
    loads = calls_of(saliency, "load_classifier", (NETWORK, CLASSES, CONFIG.classifier))
    writes = calls_of(saliency, "write_all")
    facts = saliency.write_saliency_of_photos(context)
    assert loads == [((context.run.checkpoint("classifier", "best"), 8), {})]
    method = Gradient()
    assert facts == {"images": 5, "method": repr(method), "warnings": []}
    batches = same_size_batches(context.dataset.train, CONFIG.saliency.batch_size)
    assert writes == [((NETWORK, method, batches, context.run, CPU), {})]


def test_cells_are_learnt_on_evenly_spaced_photos_with_the_seed_of_the_run(
    context: Context, calls_of: Callable[..., Calls]
) -> None:
    frozen = calls_of(extend, "frozen_network", (NETWORK, ("0", "1")))
    powers = calls_of(extend.Features, "power", 7.5)
    pixels = SimpleNamespace(learn=None)
    made = calls_of(extend, "PixelExtension", pixels)
    learns, writes = calls_of(pixels, "learn", nn.Linear(4, 3)), calls_of(extend, "write_pixels")
    facts = extend.extend(context)
    assert frozen == [((context, FeatureConfig()), {})]
    assert (len(powers), facts["power"], made[0][0][1]) == (1, 7.5, replace(CONFIG.extend, power=7.5))
    first, _, middle, *_ = context.dataset.train
    assert learns == [(([first, middle], context.run, 3, 5), {})]
    assert writes[0][0][2:] == (context.dataset.train, context.run)


@pytest.mark.parametrize("supervised", [False, True])
def test_predictions_are_refined_with_the_crf_of_probabilities(
    context: Context, calls_of: Callable[..., Calls], supervised: bool
) -> None:
    loads = calls_of(segmentation, "load_segmenter", (NETWORK, NAMES))
    predictions, measures = calls_of(evaluate, "predict_records"), calls_of(evaluate, "measure")
    (evaluate.evaluate_supervised if supervised else evaluate.evaluate)(context)
    prefix, network = ("supervised_", "segmenter_supervised") if supervised else ("", "segmenter")
    assert loads == [((context.run.checkpoint(network, "last"),), {})]
    ((model, records, write, settings, crf, hardware, _), _) = predictions[0]
    assert (model, records, crf, hardware) == (NETWORK, context.dataset.val, CONFIG.refine.soft_crf, CPU)
    assert write("predictions", "a/b") == context.run.root / f"{prefix}predictions" / "a" / "b.png"
    asked = replace(CONFIG.evaluate, ms_flip=False, crf=False) if supervised else CONFIG.evaluate
    assert settings == asked
    assert measures == [((context, "evaluate_supervised" if supervised else "evaluate"), {})]
