"""The README's way from a folder of photos to masks, run as it is written there; and folders that are less tidy."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss.data.files import image_size, read_mask, write_mask
from wsss.data.folder import load_folder

REPOSITORY = Path(__file__).parents[2]
Words = Callable[[Path], list[str]]

SMALLER = {
    "data shapes": "--train 24 --val 3 --size 64",
    "run": "--classifier.epochs 1 --classifier.batch_size 8 --classifier.long_side [64,64] --classifier.crop 64 "
    "--segmenter.epochs 1 --segmenter.batch_size 8 --segmenter.crop 64 --saliency.scales [1.0] "
    "--evaluate.scales [1.0] --runtime.workers 0 --runtime.accelerator cpu --runtime.progress false",
    "predict": "--device cpu",
}
"""Appended to the README's lines, so that they take seconds."""


def walkthrough() -> list[list[str]]:
    """The words of the ``wsss`` lines of the README's block that makes a folder of photos."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    block = next(block for block in blocks if "--layout folder" in block)
    lines = [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]
    return [words[1:] for words in lines if words and words[0] == "wsss"]


def smaller(words: list[str]) -> list[str]:
    key = next((key for key in SMALLER if " ".join(words).startswith(key)), None)
    return [*words, *shlex.split(SMALLER[key])] if key else words


def test_the_walkthrough_of_the_readme_goes_from_photos_to_masks(
    tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    done = {}
    for words in walkthrough():
        done[words[0]] = command(*smaller(words))
        assert done[words[0]].status == 0, (words, done[words[0]].err)
    assert {"data", "run", "predict"} <= done.keys()
    photos, run = tmp_path / "data" / "photos", tmp_path / "runs" / "photos"
    assert (run / "report.html").is_file()
    trained = load_folder(photos, "xml", None, None, None).train
    assert {path.stem for path in (run / "pseudo_masks").glob("*.png")} == {record.id for record in trained}
    untagged = sorted((photos / "untagged").glob("*.jpg"))
    assert f"{len(untagged)} photos predicted, masks in masks" in done["predict"].out
    for photo in untagged:
        assert read_mask(tmp_path / "masks" / f"{photo.stem}.png").shape == image_size(photo)
        assert (tmp_path / "masks" / f"{photo.stem}_overlay.jpg").is_file()


def test_one_hot_tags_photos_without_tags_and_a_few_masks(
    folder: Path, folder_words: Words, tmp_path: Path, command: Any
) -> None:
    names = sorted(path.relative_to(folder / "images").as_posix() for path in folder.rglob("*.jpg"))
    lines = [f"{name},{number % 2},{int(number % 3 == 0)}" for number, name in enumerate(names[:10])]
    (folder / "labels.csv").write_text("\n".join(["image,red,blue", *lines]) + "\n")
    (folder / "val.txt").write_text(f"{names[0]}\n{names[1]}\n")
    for name in (names[0], names[3], names[4]):
        photo = folder / "images" / name
        mask = np.zeros(image_size(photo), np.uint8)
        mask[8:24, 8:24] = 1
        write_mask((folder / "masks" / name).with_suffix(".png"), mask)
    output, words = tmp_path / "r", folder_words(folder)
    quick = [
        "--classifier.epochs",
        1,
        "--segmenter.epochs",
        1,
        "--evaluate.crf",
        "false",
        "--data.val",
        "val",
    ]
    done = command("run", *words, *quick, "--output", output)
    assert done.status == 0, done.err
    numbers = json.loads((output / "metrics.json").read_text())
    assert (numbers["mask"]["images"], numbers["val"]["images"]) == (2, 1)
    assert set(numbers["classifier"]["per_class"]) == {"blue", "red"}
    made = {
        path.relative_to(output / "pseudo_masks").as_posix() for path in output.glob("pseudo_masks/**/*.png")
    }
    assert made == {Path(name).with_suffix(".png").as_posix() for name in names[2:10]}


def test_predicting_the_same_folder_again_continues_past_a_broken_photo(
    mask_pretrained: Path, tmp_path: Path, command: Any
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "abc":
        Image.new("RGB", (40, 30), "red").save(photos / f"{name}.jpg")
    whole = (photos / "b.jpg").read_bytes()
    (photos / "b.jpg").write_bytes(whole[:200])
    words = [photos, "--checkpoint", mask_pretrained, "--output", tmp_path / "m", "--device", "cpu"]
    sentence = command("predict", *words).sentence
    assert "1 of 3 photos could not be read" in sentence
    assert str(photos / "b.jpg") in sentence
    assert {path.name for path in (tmp_path / "m").glob("*.png")} == {"a.png", "c.png"}
    (photos / "b.jpg").write_bytes(whole)
    again = command("predict", *words, "--skip-existing")
    assert again.status == 0
    assert again.out.startswith(f"1 photos predicted, masks in {tmp_path / 'm'}; 2 were there already")


# -- photos of a camera -------------------------------------------------------------------------------


@pytest.fixture
def camera(folder: Path) -> Path:
    """The folder with every photo and mask enlarged, as a camera would have taken it."""
    for path in [*folder.rglob("*.jpg"), *folder.rglob("*.png")]:
        with Image.open(path) as image:
            large = image.resize((image.width * 3, image.height * 3), Image.Resampling.NEAREST)
        large.save(path)
    return folder


def test_large_photos_are_worked_on_as_copies_and_predicted_at_full_size(
    camera: Path, folder_words: Words, tmp_path: Path, command: Any
) -> None:
    output = tmp_path / "r"
    quick = ["--classifier.epochs", 1, "--segmenter.epochs", 1, "--evaluate.crf", "false"]
    words = [*folder_words(camera), *quick, "--output", output, "--data.long_side", 64]
    done = command("run", *words)
    assert done.status == 0, done.err
    assert "photos above 64 pixels shrunk to that size, for the scores too" in done.out
    assert "photos above 64 pixels shrunk to that size" in (output / "report.html").read_text()
    assert json.loads((output / "metrics.json").read_text())["data_long_side"] == 64
    assert {max(image_size(path)) for path in (output / "resized").rglob("*.jpg")} == {64}
    for folder in ("pseudo_masks", "predictions"):
        found = list((output / folder).rglob("*.png"))
        assert found
        assert {max(read_mask(path).shape) for path in found} == {64}
    assert command("run", *words).err.count("already done") == 9
    photo = next(path for path in camera.rglob("*.jpg"))
    options = ["--checkpoint", output / "segmenter" / "last.ckpt", "--device", "cpu"]
    assert command("predict", photo, *options, "--output", tmp_path / "m").status == 0
    assert read_mask(tmp_path / "m" / f"{photo.stem}.png").shape == image_size(photo)
    record = json.loads((tmp_path / "m" / "predictions.json").read_text())
    assert record["options"]["long_side"] == 64  # as in the training
    assert command("predict", photo, *options, "--output", tmp_path / "n", "--long-side", 0).status == 0
    record = json.loads((tmp_path / "n" / "predictions.json").read_text())
    assert record["options"]["long_side"] == 0


def test_large_photos_without_copies_are_pointed_out(
    camera: Path, folder_words: Words, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsss.stages.prepare.LARGE", 60 * 60)
    words = [*folder_words(camera), "--output", tmp_path / "r", "--classifier.epochs", 1]
    assert "--data.long_side 640 works on smaller copies" in command("classify", *words).err
    assert "works on smaller copies" not in command("classify", *words, "--data.long_side", 64).err
