"""Class list, labels, masks and photos that do not fit together: refused or told before anything is written."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss.data.files import read_mask, write_mask
from wsss.data.shape_scenes import SHAPES_CLASSES

Words = Callable[[Path], list[str]]


def set_xml_names(root: Path, names: dict[str, str]) -> None:
    """Rename classes in the annotations of a copy of the shapes."""
    for path in (root / "Annotations").iterdir():
        text = path.read_text()
        for old, new in names.items():
            text = text.replace(f"<name>{old}</name>", f"<name>{new}</name>")
        path.write_text(text)


# -- names ------------------------------------------------------------------------------------------


@pytest.fixture
def xml(shapes_copy: Path, tiny_config: Path, tmp_path: Path) -> list[str]:
    """Options for a copy of the shapes whose labels are its XML, with VOC's class list."""
    (shapes_copy / "labels.csv").unlink()
    (shapes_copy / "classes.txt").rename(tmp_path / "classes.txt")
    root = ["--data.kind", "voc", "--data.root", str(shapes_copy)]
    return ["--config", str(tiny_config), *root, "--output", str(tmp_path / "r")]


def test_names_of_ones_own_without_a_class_list(
    xml: list[str], shapes_copy: Path, tmp_path: Path, command: Any
) -> None:
    sentence = command("run", *xml).sentence
    assert f"{shapes_copy / 'Annotations'} has names that are not among VOC's 20 classes: " in sentence
    assert f'"{SHAPES_CLASSES[0]}" (' in sentence
    assert "set --data.classes to it" in sentence
    assert not (tmp_path / "r").exists()
    done = command("data", "check", shapes_copy)
    assert (done.status, "names that are not among VOC's 20 classes" in done.out) == (1, True)


def test_a_class_in_another_case(xml: list[str], shapes_copy: Path, tmp_path: Path, command: Any) -> None:
    set_xml_names(shapes_copy, {"house": "House"})
    words = [*xml, "--data.classes", tmp_path / "classes.txt"]
    assert '"House" (' in (sentence := command("run", *words).sentence)
    assert 'near "house"); write each name in one way' in sentence
    done = command("data", "check", shapes_copy, "--classes", tmp_path / "classes.txt")
    assert (done.status, 'near "house")' in done.out) == (1, True)


def test_cvats_labelmap_is_a_class_list_and_other_names_are_told(
    xml: list[str], shapes_copy: Path, command: Any
) -> None:
    shutil.rmtree(shapes_copy / "SegmentationClass")
    rows = "".join(f"{name}:1,2,{index}::\n" for index, name in enumerate(SHAPES_CLASSES[:-1]))
    (shapes_copy / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\n" + rows)
    done = command("saliency", *xml, "--data.classes", "labelmap.txt")
    assert "saliency needs the stage classify" in done.sentence  # the data set is accepted
    assert done.err.count(f'they are left out: "{SHAPES_CLASSES[-1]}" (') == 1


def test_masks_know_the_classes_of_their_run(
    finished: Path, shapes: Path, tiny: list[str], tmp_path: Path, command: Any
) -> None:
    predictions, truth = finished / "predictions", shapes / "SegmentationClass"
    assert "  ball " in command("score", predictions, truth).out  # and not aeroplane
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(SHAPES_CLASSES[::-1]))
    sentence = command("score", predictions, truth, "--classes", classes).sentence
    assert (
        f'({finished / "manifest.json"}), and --classes {classes} has 7: index 1 is "ball" there' in sentence
    )
    words = ["--data.kind", "voc", "--data.labels", "labels.csv", "--data.classes", classes]
    shutil.copytree(shapes, tmp_path / "other", ignore=shutil.ignore_patterns("SegmentationClass"))
    words += ["--data.root", tmp_path / "other", "--segmenter.masks", finished / "pseudo_masks"]
    sentence = command("segment", *tiny, *words, "--output", tmp_path / "r").sentence
    assert f"{finished / 'pseudo_masks'} was made with 7 classes" in sentence
    assert "and data.classes has 7: index 1" in sentence


# -- labels and masks -------------------------------------------------------------------------------


def test_photos_without_labels_are_refused(
    shapes_copy: Path, voc_words: Words, tmp_path: Path, command: Any
) -> None:
    ids = [line.partition(",")[0] for line in (shapes_copy / "labels.csv").read_text().splitlines()[1:]]
    (shapes_copy / "labels.csv").write_text("image,labels\n" + "".join(f"{name},\n" for name in ids))
    words = [*voc_words(shapes_copy), "--output", tmp_path / "r"]
    assert "none of the 16 training photos has a label" in command("run", *words).sentence
    assert not (tmp_path / "r").exists()
    own = [*words, "--segmenter.masks", tmp_path / "none"]  # goes on to the masks
    assert "there is no such folder" in command("segment", *own).sentence


def test_masks_of_0_and_255(shapes_copy: Path, voc_words: Words, tmp_path: Path, command: Any) -> None:
    shutil.copytree(shapes_copy / "SegmentationClass", tmp_path / "right")
    for path in (shapes_copy / "SegmentationClass").iterdir():
        write_mask(path, np.where(read_mask(path) > 0, 255, 0).astype(np.uint8))
    words = [*voc_words(shapes_copy), "--output", tmp_path / "r"]
    expected = f"the 22 masks of {shapes_copy / 'SegmentationClass'} that were looked at hold only 0 and 255"
    assert expected in command("run", *words).sentence
    assert not (tmp_path / "r").exists()
    assert f"{expected}, and 255 means" in command("data", "check", shapes_copy).out
    done = command("score", tmp_path / "right", shapes_copy / "SegmentationClass")
    assert done.out.startswith("mIoU undefined over 22 images")
    shutil.move(shapes_copy / "SegmentationClass", tmp_path / "own")
    sentence = command("segment", *words, "--segmenter.masks", tmp_path / "own").sentence
    assert f"masks of {tmp_path / 'own'} that were looked at hold only 0 and 255" in sentence


def test_a_run_on_smaller_copies_says_where_its_masks_are(
    run: Path, shapes: Path, tmp_path: Path, command: Any
) -> None:
    for path in (run / "predictions").iterdir():
        write_mask(path, read_mask(path)[::2, ::2])
    (run / "resized/masks").mkdir(parents=True)
    sentence = command("score", run / "predictions", shapes / "SegmentationClass").sentence
    assert f"score against its copies of the large masks in {run / 'resized/masks'}" in sentence


# -- photos -----------------------------------------------------------------------------------------


def test_files_that_are_left_out_are_told_by_run_and_predict(
    folder: Path, folder_words: Words, mask_pretrained: Path, tmp_path: Path, command: Any
) -> None:
    (folder / "images" / "raw.cr2").touch()
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "images" / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "images" / "empty.jpg").touch()
    expected = f"{folder / 'images'}: 1 file is left out: 1 .cr2 (raw.cr2); wsss reads jpg, png, webp"
    words = ["--checkpoint", mask_pretrained, "--output", tmp_path / "m", "--accelerator", "cpu"]
    done = command("predict", folder / "images", *words)
    assert expected in done.err
    assert f"1 odd photos: {folder / 'images' / 'moving.gif'} has 2 frames" in done.err
    assert f"1 of 14 photos could not be read: {folder / 'images' / 'empty.jpg'} is an empty file" in done.err
    assert (tmp_path / "m" / "moving.png").is_file()
    words = [*folder_words(folder), "--output", tmp_path / "r"]
    done = command("saliency", *words)
    assert "saliency needs the stage classify" in done.sentence
    assert done.err.count(expected) == 1
    assert "2 of 14 photos are not used, because" in done.err
    with (folder / "labels.csv").open("a") as csv:
        csv.write("empty.jpg,red\n")
    assert f"{folder / 'images' / 'empty.jpg'} is an empty file" in command("run", *words).sentence


def test_a_folder_of_other_files_is_named(mask_pretrained: Path, tmp_path: Path, command: Any) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.cr2").touch()
    words = ["--checkpoint", mask_pretrained, "--output", tmp_path / "m"]
    assert "holds no photos (" in (sentence := command("predict", tmp_path / "raw", *words).sentence)
    assert "1 .cr2 (a.cr2)" in sentence


def test_a_long_list_of_broken_photos_is_cut(mask_pretrained: Path, tmp_path: Path, command: Any) -> None:
    (tmp_path / "many").mkdir()
    for index in range(10):
        (tmp_path / f"many/{index}.jpg").touch()
    words = ["--checkpoint", mask_pretrained, "--output", tmp_path / "m", "--accelerator", "cpu"]
    sentence = command("predict", tmp_path / "many", *words).sentence
    assert "10 of 10 photos could not be read" in sentence
    assert (sentence.count("is an empty file"), sentence[-3:]) == (8, "; …")


def test_a_photo_in_another_case_is_named(
    folder: Path, folder_words: Words, tmp_path: Path, command: Any
) -> None:
    (folder / "images" / "3.jpg").rename(folder / "images" / "IMG.JPG")
    (folder / "labels.csv").write_text((folder / "labels.csv").read_text().replace("\n3,", "\nimg.jpg,"))
    expected = 'write "IMG" (the photo is IMG.JPG)'
    assert expected in command("run", *folder_words(folder), "--output", tmp_path / "r").sentence
    assert expected in command("data", "check", folder).out


def test_a_folder_of_tagged_photos_is_recognised(
    folder: Path, tiny_config: Path, tmp_path: Path, command: Any
) -> None:
    words = ["--config", tiny_config, "--data.root", folder, "--output", tmp_path / "r"]
    assert f"{folder} looks like" in (sentence := command("run", *words).sentence)
    assert "but data.kind is shapes: set --data.kind folder" in sentence


# -- the terminal -----------------------------------------------------------------------------------


def test_names_outside_the_terminals_encoding_are_printed_with_escapes(folder: Path) -> None:
    (folder / "images" / "日\x1b[2J.jpg").touch()
    done = subprocess.run(
        [sys.executable, "-m", "wsss", "data", "check", str(folder)],
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert rb"\u65e5\x1b[2J.jpg is an empty file" in done.stdout
    assert b"Traceback" not in done.stderr
