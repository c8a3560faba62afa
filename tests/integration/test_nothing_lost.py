"""Files of the user's that a command would replace or remove: it is refused, and they stay."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss.data.files import write_mask


def test_a_folder_of_other_things_is_no_run_directory(tiny: list[str], tmp_path: Path, command: Any) -> None:
    own = tmp_path / "project" / "predictions" / "mine.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    for name in ("run", "classify", "report"):
        sentence = command(name, *tiny, "--output", tmp_path / "project").sentence
        assert f"{tmp_path / 'project'} is not empty and not a run directory" in sentence
    assert [path.name for path in (tmp_path / "project").rglob("*") if path.is_file()] == ["mine.txt"]


def test_copies_of_large_photos_wait_for_a_run_directory(
    folder: Path, folder_words: Any, command: Any
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    words = [*folder_words(folder), "--output", folder, "--data.long_side", 32]
    assert "is not empty and not a run directory" in command("classify", *words).sentence
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_export_never_replaces_its_checkpoint(
    finished: Path, tmp_path: Path, command: Any, kind: str
) -> None:
    path = tmp_path / "mine.ckpt"
    shutil.copy(finished / "segmenter" / "last.ckpt", path)
    content = path.read_bytes()
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    sentence = command("export", kind, "--checkpoint", path, "--output", path).sentence
    assert f"{path} is the checkpoint itself and would be overwritten" in sentence
    assert path.read_bytes() == content


def test_predict_never_replaces_masks_that_it_did_not_make(
    finished: Path, tmp_path: Path, command: Any
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    write_mask(tmp_path / "masks" / "a.png", np.ones((30, 40), np.uint8))
    content = (tmp_path / "masks" / "a.png").read_bytes()
    words = [
        "--checkpoint",
        finished / "segmenter" / "last.ckpt",
        "--output",
        tmp_path / "masks",
        "--device",
        "cpu",
    ]
    assert "wsss predict did not write it" in command("predict", tmp_path / "a.jpg", *words).sentence
    assert command("predict", tmp_path / "a.jpg", *words, "--skip-existing").status == 0
    assert (tmp_path / "masks" / "a.png").read_bytes() == content
