"""A whole run: every file of the run-directory contract, and numbers that agree with the files."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image

from wsss.config import to_dict
from wsss.data.palette import voc_palette
from wsss.data.shapes import SHAPES_CLASSES
from wsss.options import parse_config

CLASSES = len(SHAPES_CLASSES)
Stages = Callable[[Path], dict[str, Any]]


def ids(shapes: Path, split: str) -> list[str]:
    return (shapes / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()


def metrics(run: Path) -> dict[str, Any]:
    entries: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return entries


def test_run_directory_holds_the_whole_contract(finished: Path, shapes: Path) -> None:
    for name in ("config.yaml", "manifest.json", "metrics.json", "report.html"):
        assert (finished / name).is_file()
    for network in ("classifier", "segmenter"):
        assert {path.name for path in (finished / network).iterdir()} == {
            "last.ckpt",
            "best.ckpt",
            "metrics.csv",
        }
    train, val = ids(shapes, "train"), ids(shapes, "val")
    files = {folder: {path.name for path in (finished / folder).iterdir()} for folder in _folders(finished)}
    assert files["saliency"] == {f"{name}.npz" for name in train}
    assert files["pseudo_masks"] == files["pseudo_labels"] == {f"{name}.png" for name in train}
    for kind in ("predictions", "predictions_ms_flip", "predictions_crf"):
        assert files[kind] == {f"{name}.png" for name in val}
    assert not [path for path in finished.rglob("*.tmp")]


def _folders(run: Path) -> list[str]:
    return [path.name for path in run.iterdir() if path.is_dir() and not path.name.startswith(".")]


def test_saliency_archives_have_the_contracted_types_and_no_pickle(finished: Path, shapes: Path) -> None:
    labels = dict(row.split(",") for row in (shapes / "labels.csv").read_text().split()[1:])
    for name in ids(shapes, "train"):
        with np.load(finished / "saliency" / f"{name}.npz", allow_pickle=False) as archive:
            assert sorted(archive) == ["classes", "maps", "size"]
            classes, maps, size = archive["classes"], archive["maps"], archive["size"]
        assert classes.dtype == np.int16
        assert [SHAPES_CLASSES[index - 1] for index in classes] == labels[name].split(";")
        assert maps.dtype == np.float16
        assert maps.ndim == 3
        assert len(maps) == len(classes)
        assert maps.min() >= 0
        assert maps.max() <= 1
        assert size.tolist() == [64, 64]


@pytest.mark.parametrize(
    ("folder", "split", "ignored"),
    [
        ("pseudo_masks", "train", True),
        ("pseudo_labels", "train", False),
        ("predictions", "val", False),
        ("predictions_ms_flip", "val", False),
        ("predictions_crf", "val", False),
    ],
)
def test_masks_are_palette_pngs_of_the_photos_size(
    finished: Path, shapes: Path, folder: str, split: str, ignored: bool
) -> None:
    seen: set[int] = set()
    for name in ids(shapes, split):
        with Image.open(finished / folder / f"{name}.png") as image:
            assert (image.format, image.mode, image.size) == ("PNG", "P", (64, 64))
            palette = image.getpalette()
            seen |= set(np.unique(np.asarray(image)).tolist())
        assert palette == voc_palette().flatten().tolist()
    assert seen <= {*range(CLASSES + 1), 255}
    assert ignored or 255 not in seen  # that there are such pixels: test_refinement_of_other_rules


def test_pseudo_masks_hold_only_the_classes_on_the_label(finished: Path) -> None:
    for path in (finished / "pseudo_masks").iterdir():
        with np.load(finished / "saliency" / f"{path.stem}.npz") as archive:
            allowed = {0, 255, *archive["classes"].tolist()}
        assert set(np.unique(np.asarray(Image.open(path))).tolist()) <= allowed


def test_metrics_have_the_keys_of_the_contract(finished: Path) -> None:
    numbers = metrics(finished)
    assert set(numbers) == {"classifier", "seed", "mask", "val", "val_ms_flip", "val_crf", "tags"}
    assert set(numbers["classifier"]) == {"mAP", "per_class"}
    names = ["background", *SHAPES_CLASSES]
    for entry in ("seed", "mask", "val", "val_ms_flip", "val_crf"):
        assert list(numbers[entry]["per_class"]) == names
        known = [value for value in numbers[entry]["per_class"].values() if value is not None]
        assert numbers[entry]["miou"] == pytest.approx(sum(known) / len(known))
    for entry in ("seed", "mask"):
        assert {"threshold", "oracle_miou", "oracle_threshold"} <= set(numbers[entry])
        assert numbers[entry]["images"] == 16
        assert numbers[entry]["coverage"] == 1.0 or entry == "mask"
    assert numbers["seed"]["oracle_miou"] >= numbers["seed"]["miou"]
    assert numbers["mask"]["oracle_images"] == 4
    assert numbers["mask"]["oracle_miou"] >= numbers["mask"]["miou_on_oracle_images"]


def test_classifier_map_is_the_mean_of_its_classes(finished: Path) -> None:
    entry = metrics(finished)["classifier"]
    known = [value for value in entry["per_class"].values() if value is not None]
    assert list(entry["per_class"]) == list(SHAPES_CLASSES)
    assert entry["mAP"] == pytest.approx(sum(known) / len(known))


@pytest.mark.parametrize(
    ("folder", "entry"),
    [
        ("predictions", "val"),
        ("predictions_ms_flip", "val_ms_flip"),
        ("predictions_crf", "val_crf"),
        ("pseudo_labels", "mask"),
    ],
)
def test_metrics_equal_wsss_score_of_the_folder(
    finished: Path, shapes: Path, command: Any, folder: str, entry: str
) -> None:
    done = command(
        *("score", finished / folder, shapes / "SegmentationClass", "--json"),
        *("--classes", shapes / "classes.txt"),
    )
    scored = json.loads(done.out)
    assert done.status == 0
    expected = metrics(finished)[entry]
    assert scored["miou"] == expected["miou"]
    assert scored["per_class"] == expected["per_class"]


def test_mask_miou_scores_labels_and_coverage_describes_the_masks(finished: Path, shapes: Path) -> None:
    """The whole-matrix IoU of pseudo_labels, and the share of kept pixels, counted here by hand."""
    truths, labels, masks = [], [], []
    for name in ids(shapes, "train"):
        truths.append(np.asarray(Image.open(shapes / "SegmentationClass" / f"{name}.png")).ravel())
        labels.append(np.asarray(Image.open(finished / "pseudo_labels" / f"{name}.png")).ravel())
        masks.append(np.asarray(Image.open(finished / "pseudo_masks" / f"{name}.png")).ravel())
    truth, label, mask = np.concatenate(truths), np.concatenate(labels), np.concatenate(masks)
    counted = truth != 255
    entry = metrics(finished)["mask"]
    assert entry["miou"] == pytest.approx(_miou(truth[counted], label[counted]))
    assert entry["coverage"] == pytest.approx((mask[counted] != 255).mean())
    kept = counted & (mask != 255)
    assert entry["kept_miou"] == pytest.approx(_miou(truth[kept], mask[kept]))
    assert (label[mask != 255] == mask[mask != 255]).all()


def _miou(truth: np.ndarray, prediction: np.ndarray) -> float:
    ious = []
    for index in np.unique(truth):
        both = ((truth == index) & (prediction == index)).sum()
        ious.append(both / ((truth == index) | (prediction == index)).sum())
    return float(np.mean(ious))


def test_manifest_tells_what_was_done_where(finished: Path, stages: Stages) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert {"wsss", "commit", "python", "packages", "cpu", "cores", "gpus", "seed", "command"} <= set(
        manifest
    )
    assert manifest["precision"] == "float32"
    assert manifest["command"][:2] == ["wsss", "run"]
    entries = stages(finished)
    done = [
        "classify",
        "score_classifier",
        "saliency",
        "extend",
        "refine",
        "segment",
        "score_masks",
        "evaluate",
        "score_tags",
    ]
    assert list(entries) == done
    for name, entry in entries.items():
        assert entry["state"] == "done", name
        assert re.fullmatch("[0-9a-f]{64}", entry["fingerprint"])
        assert entry["seconds"] >= 0
        assert entry["peak_memory_mib"]["process"] > 0
        of_val = dict.fromkeys(("score_classifier", "evaluate", "score_tags"), 6)
        assert entry["images"] == {**of_val, "extend": 0}.get(name, 16)
    assert "GradCAM" in entries["saliency"]["method"]


def test_report_is_one_self_contained_page(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r"""(?:src|href|action|poster)\s*=\s*["']?([^"'\s>]+)""", page)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"url\(\s*['\"]?(?!data:|#)", page)
    assert not re.search(r"<script[^>]*\ssrc|<link|@import|https?://(?!www\.w3\.org)", page)
    assert (
        f"{100 * metrics(finished)['val']['miou']:.1f}" in page
        or f"{metrics(finished)['val']['miou']:.3f}" in page
    )


def test_config_yaml_is_the_whole_configuration(finished: Path, tiny: list[str]) -> None:
    stored = yaml.safe_load((finished / "config.yaml").read_text())
    assert stored == to_dict(parse_config("run", [*tiny, "--output", str(finished)]))
    assert stored == to_dict(parse_config("run", ["--config", str(finished / "config.yaml")]))


def test_metrics_csv_has_a_row_an_epoch(finished: Path) -> None:
    for network, epochs in (("classifier", 3), ("segmenter", 2)):
        rows = (finished / network / "metrics.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows] == ["epoch", *(str(epoch + 1) for epoch in range(epochs))]
        assert "train_loss" in rows[0]


def test_a_network_of_timm_goes_through_every_stage(tiny: list[str], tmp_path: Path, command: Any) -> None:
    run = tmp_path / "run"
    words = ["--classifier.architecture", "timm:mobilenetv4_conv_small_035", "--classifier.epochs", 1]
    own = ["--segmenter.weights", "none", "--segmenter.epochs", 1, "--extend.method", "pixels"]
    sentence = command("run", *tiny, "--output", run, *words).sentence
    assert "light is built on resnet18; use one network for both, or other --segmenter.weights" in sentence
    assert [path.name for path in run.iterdir()] == [".lock"]
    done = command("run", *tiny, "--output", run, *words, *own)
    assert done.status == 0, done.err
    assert {"classifier", "seed", "mask", "val"} <= json.loads((run / "metrics.json").read_text()).keys()
    photo = next((tmp_path / "run").glob("predictions/*.png"))
    figure = tmp_path / "why.png"
    assert command("explain", photo, "--checkpoint", run, "--class", "ball", "--output", figure).status == 0
    assert figure.is_file()


def test_a_vision_transformer_goes_through_every_stage(tiny: list[str], tmp_path: Path, command: Any) -> None:
    """Classifier, features of the extension, and trunk of the segmenter."""
    run = tmp_path / "run"
    words = ["--classifier.architecture", "timm:vit_tiny_patch16_224", "--classifier.epochs", 1]
    words += ["--segmenter.architecture", "pup_timm:vit_tiny_patch16_224", "--segmenter.epochs", 1]
    done = command("run", *tiny, "--output", run, *words, "--extend.method", "pixels")
    assert done.status == 0, done.err
    assert {"classifier", "seed", "mask", "val"} <= json.loads((run / "metrics.json").read_text()).keys()
    photo = next(run.glob("predictions/*.png"))
    figure = tmp_path / "why.png"
    methods = ["--method", "gradcam", "--method", "legrad"]
    methods += ["--method", "sess(gradient_attention, scales=(64,), window=64)"]
    words = ["--checkpoint", run, "--class", "ball", "--output", figure, *methods]
    done = command("explain", photo, *words)
    assert done.status == 0, done.err
    assert figure.is_file()
    done = command("predict", photo, "--checkpoint", run, "--output", tmp_path / "new")
    assert done.status == 0, done.err
    assert (tmp_path / "new" / photo.name).is_file()


def test_a_second_network_says_what_looks_alike(tiny: list[str], tmp_path: Path, command: Any) -> None:
    run, weights = tmp_path / "run", tmp_path / "eye.pth"
    words = [*tiny, "--output", run, "--extend.method", "pixels", "--extend.photos", 8, "--extend.backbone"]
    joined = f"[{{architecture: classifier}}, {{architecture: resnet18, weights: {weights}, layers: [layer1, layer2]}}]"
    sentence = command("refine", *words, joined).sentence
    assert f"there is no file {weights}" in sentence
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    assert (
        command("refine", *words, joined.replace("layer2", "layer9")).sentence.count("no layer 'layer9'") == 1
    )
    assert not (run / "classifier").exists()
    for stage in ("classify", "saliency", "refine"):
        done = command(stage, *words, joined)
        assert done.status == 0, done.err
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert stages["extend"]["power"] > 1
    before = stages["extend"]["fingerprint"]
    torch.save(torchvision.models.resnet18().state_dict(), weights)  # other weights in the same file
    assert command("refine", *words, joined).status == 0
    assert json.loads((run / "manifest.json").read_text())["stages"]["extend"]["fingerprint"] != before
