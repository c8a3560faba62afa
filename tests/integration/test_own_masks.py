"""``segmenter.masks``: training on any folder of masks, which are known by their content."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
