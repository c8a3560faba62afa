"""Every shipped configuration runs from end to end on a few made-up photos, and says that this is not a result."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import yaml
from PIL import Image

from wsss.data.coco import COCO_CLASSES
from wsss.data.files import write_mask
from wsss.data.labels import VOC_CLASSES
from wsss.options import parse_config
from wsss.runner import fingerprints
from wsss.stages.prepare import prepare_dataset

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SMALL_VOC = ("cat", "chair", "cow", "dog", "horse", "person", "sheep", "sofa")
TRAIN, VAL, LIMIT = 9, 5, 4
NOTE = f"DRY RUN on {LIMIT} photos of each split (data.limit): not a result"

# Everything else is what the file says: methods, scales, batch sizes, optimisers, CRF.
SHORT = {
    "data.limit": LIMIT,
    "classifier.epochs": 1,
    "classifier.long_side": "[48,64]",
    "classifier.crop": 48,
    "segmenter.epochs": 1,
    "segmenter.crop": 48,
    "runtime.accelerator": "cpu",
    "runtime.precision": "float32",
    "runtime.workers": 0,
    "runtime.progress": "false",
}
LIGHT = {
    "classifier.architecture": "resnet18",
    "segmenter.architecture": "light",
    "segmenter.output_stride": "null",
}


def paint(path: Path, mask: Path, labels: Sequence[int], random: np.random.Generator) -> None:
    """A photo of 48x64 with a coloured square for each label, and its mask."""
    pixels, truth = random.integers(0, 90, (48, 64, 3), dtype=np.uint8), np.zeros((48, 64), np.uint8)
    for place, label in enumerate(labels):
        rows, columns = slice(8, 40), slice(4 + 30 * place, 30 + 30 * place)
        pixels[rows, columns] = (10 * label, 255 - 10 * label, 60 + 90 * (label % 3))
        truth[rows, columns] = label
    Image.fromarray(pixels).save(path)
    write_mask(mask, truth)


def photos(root: Path, images: str, masks: str, classes: Sequence[str]) -> dict[str, list[str]]:
    """Paint photos of one or two classes; id -> names."""
    random, names = np.random.default_rng(0), {}
    (root / images).mkdir(parents=True)
    for index in range(TRAIN + VAL):
        labels = sorted({1 + index % len(classes), 1 + 3 * index % len(classes)})
        paint(root / images / f"p{index}.jpg", root / masks / f"p{index}.png", labels, random)
        names[f"p{index}"] = [classes[label - 1] for label in labels]
    return names


def write_labels(root: Path, names: dict[str, list[str]]) -> None:
    rows = [f"{name},{';'.join(labels)}\n" for name, labels in names.items()]
    (root / "labels.csv").write_text("image,labels\n" + "".join(rows))


def voc(root: Path, classes: Sequence[str] = VOC_CLASSES) -> None:
    """A devkit with XML labels, a CSV, both segmentation lists and the list of all labelled photos."""
    names = photos(root, "JPEGImages", "SegmentationClass", classes)
    for folder in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name, labels in names.items():
        body = "".join(f"<object><name>{label}</name></object>" for label in labels)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{body}</annotation>")
    listed = {
        "Segmentation/train": [*names][:TRAIN],
        "Segmentation/val": [*names][TRAIN:],
        "Main/trainval": [*names],
    }
    for split, ids in listed.items():
        (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in ids))
    write_labels(root, names)
    if classes != VOC_CLASSES:
        (root / "classes.txt").write_text("\n".join(classes) + "\n")


def coco(root: Path) -> None:
    """Photos of COCO's two splits and their instances, as boxes in both of its spellings."""
    random = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": index, "name": name} for index, name in enumerate(COCO_CLASSES, 1)]
    for split, count in (("train2014", TRAIN), ("val2014", VAL)):
        images, annotations = [], []
        (root / split).mkdir()
        for index in range(count):
            name = f"COCO_{split}_{index:012}"
            labels = sorted({1 + index, 1 + 3 * index})
            paint(root / split / f"{name}.jpg", root / "unused" / f"{name}.png", labels, random)
            images.append({"id": index, "file_name": f"{name}.jpg", "height": 48, "width": 64})
            for place, label in enumerate(labels):
                left, right = 4 + 30 * place, 30 + 30 * place
                outline = [left, 8, right, 8, right, 40, left, 40]
                annotations.append(
                    {"id": len(annotations), "image_id": index, "category_id": label, "segmentation": [outline],
                     "iscrowd": 0, "area": 832, "bbox": [left, 8, right - left, 32]}
                )  # fmt: skip
        tree = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))


def own_photos(root: Path) -> None:
    """A folder of photos and a CSV of tags."""
    write_labels(root, photos(root, "images", "masks", SMALL_VOC))


def words(stem: str, root: Path, changes: Mapping[str, object]) -> list[str]:
    """The options of a dry run of a configuration; makes its data set."""
    files, written = [stem], yaml.safe_load((FOLDER / f"{stem}.yaml").read_text())
    if "data" not in written:  # settings to be put after those for photos of one's own
        files, written = ["folder", stem], yaml.safe_load((FOLDER / "folder.yaml").read_text())
    options = {**SHORT, "data.root": root, **changes}
    match written["data"]["kind"]:
        case "voc" if written["data"]["classes"] is None:
            voc(root)
        case "voc":
            voc(root, SMALL_VOC)
        case "folder":
            own_photos(root)
        case "coco":
            coco(root)
        case "shapes":
            options |= {"data.shapes.train": TRAIN, "data.shapes.val": VAL, "data.shapes.size": 64}
    settings = yaml.safe_load((FOLDER / f"{files[-1]}.yaml").read_text())
    for part in ("classifier", "segmenter"):
        if settings[part]["weights"] == "imagenet":
            options[f"{part}.weights"] = "none"
    given = [word for name in files for word in ("--config", str(FOLDER / f"{name}.yaml"))]
    return given + [word for key, value in options.items() for word in (f"--{key}", str(value))]


def check(command: Any, given: Sequence[object], output: Path) -> None:
    """Run it, and look at what it says and wrote."""
    done = command("run", *given, "--output", output)
    assert done.status == 0, done.err
    metrics: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    assert metrics["data_limit"] == LIMIT
    assert {"classifier", "seed", "mask", "val", "val_ms_flip", "val_crf"} <= metrics.keys()
    assert NOTE in done.out
    assert (output / "report.html").read_text().count(NOTE) >= 10
    dataset = prepare_dataset(parse_config("run", [str(word) for word in given]))
    assert len(dataset.train) == LIMIT
    assert json.loads((output / "manifest.json").read_text())["looked_at"] == dataset.looked_at
    for folder in ("pseudo_masks", "predictions", "predictions_ms_flip", "predictions_crf"):
        expected = dataset.train if folder == "pseudo_masks" else dataset.val
        assert {path.stem for path in (output / folder).glob("*.png")} == {record.id for record in expected}
    again = command("run", *given, "--output", output)
    assert "saliency: already done" in again.err
    assert not re.search("again|continued", again.err), again.err


@pytest.mark.parametrize("stem", CONFIGS)
def test_configuration_runs_to_the_end_with_small_networks(stem: str, tmp_path: Path, command: Any) -> None:
    check(command, words(stem, tmp_path / "data", LIGHT), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("stem", CONFIGS)
def test_configuration_runs_to_the_end_with_its_own_networks(stem: str, tmp_path: Path, command: Any) -> None:
    check(command, words(stem, tmp_path / "data", {}), tmp_path / "run")


@pytest.fixture
def shapes_words(tiny: list[str]) -> Callable[..., list[str]]:
    """Options of the tiny run on a part of its photos."""
    return lambda *more: [*tiny, *(str(word) for word in more)]


def test_a_part_of_the_photos_is_evenly_spaced(shapes_words: Callable[..., list[str]]) -> None:
    whole = prepare_dataset(parse_config("run", shapes_words()))
    part = prepare_dataset(parse_config("run", shapes_words("--data.limit", 4)))
    assert part.train == whole.train[::4]
    assert part.val == tuple(whole.val[index] for index in (0, 1, 3, 4))
    assert part.classes == whole.classes
    assert prepare_dataset(parse_config("run", shapes_words("--data.limit", 99))) == whole


def test_headers_of_the_same_photos_are_read_once(
    shapes_words: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read = Mock()
    monkeypatch.setattr("wsss.stages.prepare.check_photos", read)
    config = parse_config("run", shapes_words("--output", tmp_path / "run"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(
        json.dumps({"looked_at": prepare_dataset(config).looked_at})
    )
    assert read.call_count == 1
    prepare_dataset(config)
    assert read.call_count == 1
    prepare_dataset(parse_config("run", shapes_words("--output", tmp_path / "run", "--data.limit", 4)))
    assert read.call_count == 2


def test_no_stage_of_a_dry_run_is_taken_for_that_of_a_whole_run(
    shapes_words: Callable[..., list[str]],
) -> None:
    whole, part = (
        fingerprints(config, prepare_dataset(config))
        for config in (parse_config("run", shapes_words(*more)) for more in ((), ("--data.limit", 4)))
    )
    assert not set(whole.values()) & set(part.values())


def test_the_mark_of_a_dry_run_goes_with_its_numbers(
    run: Path, shapes_words: Callable[..., list[str]], command: Any
) -> None:
    limited = shapes_words("--output", run, "--data.limit", 8)
    assert command("classify", *limited, "--overwrite").status == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["data_limit"] == 8
    assert metrics.keys() == {"data_limit", "classifier"}  # the others were of all photos
    refused = command("evaluate", *shapes_words("--output", run))
    assert "evaluate needs the stage refine, which is not finished" in refused.sentence
    assert command("classify", *shapes_words("--output", run), "--overwrite").status == 0
    assert json.loads((run / "metrics.json").read_text()).keys() == {"classifier"}
