"""Data sets of one's own, end to end: folders of photos, VOC's XML labels, and odd ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss.data.files import image_size, read_mask, read_saliency, write_mask
from wsss.tasks.classification import load_classifier

Words = Callable[[Path], list[str]]
ONE_EPOCH = ["--classifier.epochs", "1", "--segmenter.epochs", "1"]
QUICK = [*ONE_EPOCH, "--evaluate.ms_flip", "false", "--evaluate.crf", "false"]


def metrics(output: Path) -> dict[str, Any]:
    entries: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return entries


def keep(root: Path, split: str, ids: list[str]) -> None:
    """Rewrite a split of a copy of the shapes."""
    (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in ids))


# -- folders of photos ------------------------------------------------------------------------------


def test_folder_without_masks_runs_to_the_end(
    folder: Path, folder_words: Words, tmp_path: Path, command: Any
) -> None:
    output = tmp_path / "r"
    done = command("run", *folder_words(folder), *QUICK, "--output", output)
    assert done.status == 0, done.err
    assert set(metrics(output)) == {"classifier", "tags"}
    assert set(metrics(output)["classifier"]["per_class"]) == {"blue", "red", "square"}
    masks = {
        path.relative_to(output / "pseudo_masks").as_posix() for path in output.glob("pseudo_masks/**/*.png")
    }
    predicted = {
        path.relative_to(output / "predictions").as_posix() for path in output.glob("predictions/**/*.png")
    }
    names = {f"beach/{i}.png" if i % 4 == 0 else f"{i}.png" for i in range(12)}
    assert masks | predicted == names
    assert not masks & predicted
    for name in sorted(masks):
        photo = folder / "images" / name.replace(".png", ".jpg")
        assert read_mask(output / "pseudo_masks" / name).shape == image_size(photo)
    assert (output / "report.html").is_file()
    again = command("run", *folder_words(folder), *QUICK, "--output", output)
    assert again.err.count("already done") == 9


def test_folder_with_masks_is_scored(folder: Path, folder_words: Words, tmp_path: Path, command: Any) -> None:
    for photo in (folder / "images").rglob("*.jpg"):
        name = photo.relative_to(folder / "images").with_suffix(".png")
        mask = np.zeros(image_size(photo), np.uint8)
        mask[8:24, 8:24] = 2 if int(photo.stem) % 2 else 1
        write_mask(folder / "masks" / name, mask)
    output = tmp_path / "r"
    assert command("run", *folder_words(folder), *QUICK, "--output", output).status == 0
    numbers = metrics(output)
    assert {"seed", "mask", "val"} <= set(numbers)
    assert numbers["seed"]["absent"] == ["square"]
    truth, classes = folder / "masks", tmp_path / "classes.txt"
    classes.write_text("blue\nred\nsquare\n")
    scored = command("score", output / "predictions", truth, "--classes", classes, "--json")
    assert json.loads(scored.out)["miou"] == numbers["val"]["miou"]


def test_photos_of_every_mode_and_orientation_pass(
    folder: Path, folder_words: Words, tmp_path: Path, command: Any
) -> None:
    random = np.random.default_rng(1)
    colour = Image.fromarray(random.integers(0, 255, (36, 60, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    photos = {
        "grey.png": (colour.convert("L"), {}),
        "cmyk.jpg": (colour.convert("CMYK"), {}),
        "rgba.png": (colour.convert("RGBA"), {}),
        "palette.png": (colour.convert("P"), {}),
        "turned.jpg": (colour, {"exif": exif}),
        "flat.png": (colour.resize((60, 1)), {}),
        "thin.png": (colour.resize((2, 50)), {}),
        "dot.png": (colour.resize((1, 1)), {}),
    }
    for name, (image, options) in photos.items():
        image.save(folder / "images" / name, **options)
    with (folder / "labels.csv").open("a") as csv:
        csv.writelines(f"{name},red\n" for name in photos)
    (folder / "val.txt").write_text("1\n2\ngrey\nturned\nflat\ndot\n")
    output = tmp_path / "r"
    done = command("run", *folder_words(folder), *ONE_EPOCH, "--data.val", "val", "--output", output)
    assert done.status == 0, done.err
    assert read_mask(output / "predictions" / "turned.png").shape == (60, 36)
    assert read_mask(output / "predictions_crf" / "flat.png").shape == (1, 60)
    assert read_mask(output / "predictions_crf" / "dot.png").shape == (1, 1)
    assert read_mask(output / "pseudo_masks" / "thin.png").shape == (50, 2)
    assert read_mask(output / "pseudo_masks" / "cmyk.png").shape == (36, 60)


# -- VOC layout -------------------------------------------------------------------------------------


def test_voc_layout_with_xml_labels(
    shapes_copy: Path, voc_words: Words, tmp_path: Path, command: Any
) -> None:
    (shapes_copy / "labels.csv").unlink()
    output = tmp_path / "r"
    words = [*voc_words(shapes_copy), "--data.labels", "xml", *QUICK, "--output", output]
    for stage in ("classify", "saliency"):
        assert command(stage, *words).status == 0
    assert len(list((output / "saliency").iterdir())) == 16
    _, classes, _ = load_classifier(output / "classifier" / "last.ckpt")
    assert classes == tuple((shapes_copy / "classes.txt").read_text().split())


def test_xml_and_csv_labels_give_the_same_run(
    run: Path, shapes_copy: Path, voc_words: Words, command: Any
) -> None:
    (shapes_copy / "labels.csv").unlink()
    words = [*voc_words(shapes_copy), "--data.labels", "xml", "--output", run]
    done = command("saliency", *words)
    assert done.status == 0
    assert "saliency: already done" in done.err


# -- odd data sets ----------------------------------------------------------------------------------


def test_photo_without_any_label_is_background(
    shapes_copy: Path, voc_words: Words, tmp_path: Path, command: Any
) -> None:
    lines = (shapes_copy / "labels.csv").read_text().splitlines()
    lines[1:3] = [line.split(",")[0] + "," for line in lines[1:3]]
    (shapes_copy / "labels.csv").write_text("\n".join(lines) + "\n")
    photo = (
        shapes_copy / "JPEGImages" / "train_000000.jpg"
    )  # the only one of its size: a batch without targets
    Image.open(photo).resize((70, 50)).save(photo)
    (shapes_copy / "SegmentationClass" / "train_000000.png").unlink()
    output = tmp_path / "r"
    done = command("run", *voc_words(shapes_copy), *QUICK, "--output", output)
    assert done.status == 0, done.err
    assert metrics(output)["mask"]["images"] == 15
    for name in ("train_000000", "train_000001"):
        assert read_saliency(output / "saliency" / f"{name}.npz").maps.shape[0] == 0
        assert not read_mask(output / "pseudo_masks" / f"{name}.png").any()


def test_class_that_no_photo_has_is_reported_as_unknown(
    shapes_copy: Path, voc_words: Words, tmp_path: Path, command: Any
) -> None:
    with (shapes_copy / "classes.txt").open("a") as classes:
        classes.write("unicorn\n")
    output = tmp_path / "r"
    assert command("run", *voc_words(shapes_copy), *QUICK, "--output", output).status == 0
    numbers = metrics(output)
    assert numbers["classifier"]["per_class"]["unicorn"] is None
    for entry in ("seed", "mask", "val"):
        assert "unicorn" in numbers[entry]["absent"]


@pytest.mark.parametrize("what", ["no val split", "no masks", "no val labels"])
def test_numbers_that_cannot_be_known_are_left_out(
    shapes_copy: Path, voc_words: Words, tmp_path: Path, command: Any, what: str
) -> None:
    words, expected = voc_words(shapes_copy), {"classifier", "seed", "mask", "val", "tags"}
    if what == "no val split":
        keep(shapes_copy, "val", [])
        (shapes_copy / "ImageSets" / "Segmentation" / "val.txt").unlink()
        words, expected = [*words, "--data.train", "train"], {"seed", "mask"}
    elif what == "no masks":
        shutil.rmtree(shapes_copy / "SegmentationClass")
        expected = {"classifier", "tags"}
    else:
        lines = (shapes_copy / "labels.csv").read_text().splitlines()
        (shapes_copy / "labels.csv").write_text(
            "\n".join(line for line in lines if "val_" not in line) + "\n"
        )
        expected -= {"classifier", "tags"}
    output = tmp_path / "r"
    done = command("run", *words, *QUICK, "--output", output)
    assert done.status == 0, done.err
    assert set(metrics(output)) == expected
    assert (output / "report.html").is_file()


def single(root: Path, voc_words: Words, output: Path) -> list[str]:
    """Options for one training and one validation photo, and larger batches."""
    keep(root, "train", ["train_000001"])
    keep(root, "val", ["val_000001"])
    words = [*voc_words(root), "--data.train", "train", "--classifier.batch_size", "64", *QUICK]
    return [*words, "--output", str(output)]


def test_a_single_training_photo_is_enough(
    shapes_copy: Path, voc_words: Words, tmp_path: Path, command: Any
) -> None:
    done = command("run", *single(shapes_copy, voc_words, tmp_path / "r"))
    assert done.status == 0, done.err
    assert metrics(tmp_path / "r")["mask"]["images"] == 1


def test_deeplab_on_a_single_photo_is_refused_before_any_training(
    shapes_copy: Path, voc_words: Words, tmp_path: Path, command: Any
) -> None:
    words = single(shapes_copy, voc_words, tmp_path / "r")
    words += ["--segmenter.architecture", "deeplabv3_mobilenet_v3_large", "--segmenter.weights", "none"]
    sentence = command("run", *words).sentence
    assert "cannot be trained on batches of one image per device" in sentence
    assert "--segmenter.architecture light" in sentence
    assert not (tmp_path / "r" / "classifier").exists()


def test_photos_smaller_than_the_crop_are_padded(run: Path, tiny: list[str], command: Any) -> None:
    words = [*tiny, "--output", run, "--segmenter.crop", 96, "--segmenter.epochs", 1]
    assert command("segment", *words, "--overwrite").status == 0


def test_validation_every_other_epoch(run: Path, tiny: list[str], command: Any) -> None:
    words = [*tiny, "--output", run, "--segmenter.epochs", 3, "--segmenter.val_every", 2]
    assert command("segment", *words, "--overwrite").status == 0
    rows = (run / "segmenter" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4
    assert (run / "segmenter" / "best.ckpt").is_file()


# -- other methods and several devices --------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--saliency.method", "global_guidance@layer3"],
        [
            "--saliency.method",
            "subtraction(multiscale(gradcam, balance='area'))",
            "--saliency.batch_size",
            "4",
        ],
        ["--saliency.method", "sess(gradcam, window=48, step=24, scales=(64,))"],
        ["--saliency.checkpoint", "best", "--saliency.scales", "[1.0]", "--saliency.flip", "false"],
    ],
    ids=["global guidance", "subtraction", "sess", "best"],
)
def test_saliency_of_other_methods(
    with_evidence: Path, tiny: list[str], command: Any, words: list[str]
) -> None:
    run = with_evidence
    assert command("saliency", *tiny, "--output", run, *words).status == 0
    archives = [read_saliency(path) for path in (run / "saliency").iterdir()]
    assert len(archives) == 16
    assert all(len(stored.maps) == len(stored.classes) > 0 for stored in archives)
    assert max(stored.maps.max() for stored in archives) == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--refine.uncertainty", "posterior"],
        ["--refine.uncertainty", "none", "--refine.background.rule", "otsu"],
        ["--refine.background.rule", "power", "--refine.background.alpha", "4"],
    ],
    ids=["default", "posterior", "otsu", "power"],
)
def test_refinement_of_other_rules(with_ramps: Path, tiny: list[str], command: Any, words: list[str]) -> None:
    run = with_ramps
    done = command("refine", *tiny, "--output", run, *words)
    assert done.status == 0
    assert "image label" in done.out  # how many of them the masks show
    masks = [read_mask(path) for path in (run / "pseudo_masks").iterdir()]
    assert len(masks) == 16
    assert any((mask == 255).any() for mask in masks) == ("none" not in words)


def test_worker_processes_change_nothing(run: Path, finished: Path, tiny: list[str], command: Any) -> None:
    for name in ("pseudo_masks", "pseudo_labels"):
        shutil.rmtree(run / name)
    assert command("refine", *tiny, "--output", run, "--runtime.workers", 2).status == 0
    for folder in ("pseudo_masks", "pseudo_labels"):
        for path in (finished / folder).iterdir():
            assert (run / folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_worker_processes_change_no_number(
    finished: Path, tiny: list[str], tmp_path: Path, command: Any
) -> None:
    assert command("run", *tiny, "--output", tmp_path / "r", "--runtime.workers", 2).status == 0
    assert metrics(tmp_path / "r") == metrics(finished)


@pytest.mark.slow
def test_two_devices_train_one_classifier(tiny: list[str], tmp_path: Path, command: Any) -> None:
    output = tmp_path / "r"
    words = [*tiny, "--output", output, "--classifier.epochs", 2, "--runtime.devices", 2]
    done = command("classify", *words)
    assert done.status == 0, done.err
    _, classes, _ = load_classifier(output / "classifier" / "last.ckpt")
    assert len(classes) == 7
    assert 0 <= metrics(output)["classifier"]["mAP"] <= 1
    rows = (output / "classifier" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3


@pytest.mark.slow
def test_bad_photo_under_two_devices_is_one_sentence(
    shapes_copy: Path, voc_words: Words, tmp_path: Path, command: Any
) -> None:
    photo = shapes_copy / "JPEGImages" / "train_000003.jpg"
    photo.write_bytes(photo.read_bytes()[:300])
    words = [*voc_words(shapes_copy), "--output", tmp_path / "r", "--runtime.devices", 2]
    done = command("classify", *words)
    assert done.status == 1
    assert f"wsss classify: error: {photo} is damaged or truncated" in done.err
