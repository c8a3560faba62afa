"""``segmenter.masks``: training on any folder of masks, which are known by their content."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.data.files import read_mask, write_mask

Stages = Callable[[Path], dict[str, Any]]


@pytest.fixture
def masks(finished: Path, tmp_path: Path) -> Path:
    """The pseudo-masks of the finished run, as a folder of the user's."""
    return Path(shutil.copytree(finished / "pseudo_masks", tmp_path / "own"))


def test_a_run_trains_on_them_without_the_stages_that_nothing_reads(
    masks: Path, tiny: list[str], tmp_path: Path, finished: Path, command: Any, stages: Stages
) -> None:
    run = tmp_path / "run"
    done = command("run", *tiny, "--output", run, "--segmenter.masks", masks)
    assert done.status == 0, done.err
    assert set(stages(run)) == {
        "classify",
        "segment",
        "evaluate",
        "score_tags",
    }  # the light network starts from the classifier
    assert not (run / "saliency").exists()
    first, second = (json.loads((where / "metrics.json").read_text()) for where in (finished, run))
    assert second["val"] == first["val"]  # the same masks, the same training
    assert command("evaluate", *tiny, "--output", run, "--segmenter.masks", masks).status == 0
    assert command("report", *tiny, "--output", run, "--segmenter.masks", masks).status == 0


def test_they_are_known_by_their_content(
    masks: Path, tiny: list[str], run: Path, command: Any, stages: Stages
) -> None:
    words = [*tiny, "--output", run, "--segmenter.epochs", 1, "--segmenter.masks", masks]
    assert command("segment", *words, "--overwrite").status == 0
    shutil.copytree(masks, masks.with_name("moved"))
    moved = [*words[:-1], masks.with_name("moved")]
    assert "segment: already done" in command("segment", *moved).err
    changed = next(masks.glob("*.png"))
    size = changed.stat().st_size
    write_mask(changed, np.where(read_mask(changed) == 0, np.uint8(1), np.uint8(0)))
    done = command("segment", *words, "--overwrite")
    assert "segment: train the segmenter" in done.err, size
    assert "(again: its input or configuration changed)" in done.err


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", "has no mask for 2 of 16 training photos (train_000003.png, train_000005.png); add them"),
        ("size", "train_000003.png has 5x4 pixels but"),
        ("colour", "train_000003.png is a mask of mode RGB, which holds no class indices"),
        ("folder", "own, but there is no such folder; give the folder of <id>.png"),
    ],
)
def test_masks_that_do_not_fit_are_named_before_the_training(
    masks: Path, tiny: list[str], run: Path, command: Any, damage: str, words: str
) -> None:
    before = (run / "segmenter" / "last.ckpt").stat().st_mtime_ns
    match damage:
        case "missing":
            for number in (3, 5):
                (masks / f"train_00000{number}.png").unlink()
        case "size":
            write_mask(masks / "train_000003.png", np.zeros((4, 5), np.uint8))
        case "colour":
            Image.new("RGB", (64, 64)).save(masks / "train_000003.png")
        case "folder":
            shutil.rmtree(masks)
    assert words in command("segment", *tiny, "--output", run, "--segmenter.masks", masks).sentence
    assert (run / "segmenter" / "last.ckpt").stat().st_mtime_ns == before


# -- masks that people drew -------------------------------------------------------------------------


@pytest.fixture
def true_masks(shapes: Path, tmp_path: Path) -> Path:
    """True masks of three training photos."""
    for number in range(3):
        name = f"train_00000{number}.png"
        write_mask(tmp_path / "true" / name, read_mask(shapes / "SegmentationClass" / name))
    return tmp_path / "true"


def test_true_masks_take_the_place_of_pseudo_masks_and_every_number_says_so(
    true_masks: Path, tiny: list[str], run: Path, command: Any, stages: Stages, tmp_path: Path
) -> None:
    before = json.loads((run / "metrics.json").read_text())
    words = [*tiny, "--output", run, "--segmenter.true_masks", true_masks]
    sentence = command("run", *words).sentence
    assert "holds a finished network that was trained with segmenter.true_masks None instead of" in sentence
    done = command("run", *words, "--overwrite")
    assert done.status == 0, done.err
    assert stages(run)["segment"]["true_masks"] == 3
    metrics = json.loads((run / "metrics.json").read_text())
    for name in ("val", "val_ms_flip", "val_crf", "tags"):
        assert metrics[name]["true_masks"] == 3
        assert "true_masks" not in before[name]
    assert metrics["seed"] == before["seed"]
    said = [line for line in done.out.splitlines() if "val mIoU" in line]
    assert len(said) == 3
    assert all(line.endswith("  with 3 true masks") for line in said)
    page = (run / "report.html").read_text()
    assert page.count("with 3 true masks") == 5  # the tile, three rows and the agreement with tags
    trained = weights(run)
    mixed = Path(shutil.copytree(run / "pseudo_masks", tmp_path / "mixed"))
    shutil.copytree(true_masks, mixed, dirs_exist_ok=True)
    again = [*tiny, "--output", run, "--segmenter.masks", mixed, "--overwrite"]
    assert command("segment", *again).status == 0
    assert all(torch.equal(value, trained[name]) for name, value in weights(run).items())  # the same masks


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run / "segmenter" / "last.ckpt", weights_only=True)[
        "state_dict"
    ]
    return found


def test_photos_without_a_mask_of_their_own_may_have_a_true_one(
    masks: Path, true_masks: Path, tiny: list[str], run: Path, command: Any, stages: Stages
) -> None:
    for path in true_masks.iterdir():
        (masks / path.name).unlink()
    words = [*tiny, "--output", run, "--segmenter.epochs", 1, "--segmenter.masks", masks, "--overwrite"]
    assert "has no mask for 3 of 16 training photos" in command("segment", *words).sentence
    done = command("segment", *words, "--segmenter.true_masks", true_masks)
    assert done.status == 0, done.err
    assert stages(run)["segment"]["true_masks"] == 3


def test_true_masks_are_known_by_their_content(
    true_masks: Path, tiny: list[str], run: Path, command: Any
) -> None:
    words = [*tiny, "--output", run, "--segmenter.epochs", 1, "--segmenter.true_masks", true_masks]
    assert command("segment", *words, "--overwrite").status == 0
    assert "segment: already done" in command("segment", *words).err
    write_mask(true_masks / "train_000002.png", np.ones((64, 64), np.uint8))
    assert "finished network" in command("segment", *words).sentence


def test_true_masks_shrink_with_the_photos(
    shapes: Path, tiny: list[str], tmp_path: Path, command: Any
) -> None:
    true = tmp_path / "true"
    for path in (shapes / "SegmentationClass").glob("train*.png"):
        write_mask(true / path.name, read_mask(path))
    words = ["--data.long_side", 48, "--segmenter.weights", "none", "--segmenter.epochs", 1]
    words += ["--segmenter.masks", true, "--segmenter.true_masks", true]
    done = command("segment", *tiny, "--output", tmp_path / "run", *words)
    assert done.status == 0, done.err
    resized = tmp_path / "run" / "resized"
    copies = sorted((resized / "true_masks").iterdir())
    assert len(copies) == 16
    assert all(np.array_equal(read_mask(copy), read_mask(resized / "masks" / copy.name)) for copy in copies)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("val", "has masks of 1 validation photos (val_000001), and a network that was trained on them"),
        ("none", "has no mask of a training photo (found there: a, b, c)"),
        ("size", "train_000001.png has 5x4 pixels, which does not fit its photo of 64x64"),
        ("colour", "train_000001.png is a mask of mode RGB"),
        ("classes", "was made with 2 classes"),
        ("value", "holds the class index 77"),
        ("folder", "true, but there is no such folder"),
    ],
)
def test_true_masks_that_do_not_fit_are_named_before_anything_is_written(
    true_masks: Path, tiny: list[str], tmp_path: Path, command: Any, damage: str, words: str
) -> None:
    path = true_masks / "train_000001.png"
    match damage:
        case "val":
            path.rename(true_masks / "val_000001.png")
        case "none":
            for name, mask in zip("abc", sorted(true_masks.iterdir()), strict=True):
                mask.rename(true_masks / f"{name}.png")
        case "size":
            write_mask(path, np.zeros((4, 5), np.uint8))
        case "colour":
            Image.new("RGB", (64, 64)).save(path)
        case "classes":
            (true_masks / "masks.json").write_text('{"classes": ["background", "a", "b"]}')
        case "value":
            write_mask(path, np.full((64, 64), 77, np.uint8))
        case "folder":
            shutil.rmtree(true_masks)
    run = tmp_path / "run"
    assert words in command("run", *tiny, "--output", run, "--segmenter.true_masks", true_masks).sentence
    assert not list(run.glob("[!.]*"))


def test_true_masks_of_no_training_photo_are_told(
    true_masks: Path, tiny: list[str], run: Path, command: Any
) -> None:
    write_mask(true_masks / "beach" / "other.png", np.zeros((4, 5), np.uint8))
    words = [
        *tiny,
        "--output",
        run,
        "--segmenter.epochs",
        1,
        "--segmenter.true_masks",
        true_masks,
        "--overwrite",
    ]
    done = command("segment", *words)
    assert "1 masks are of no training photo (beach/other), left out" in done.err
