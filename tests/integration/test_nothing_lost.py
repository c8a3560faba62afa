"""Files of the user's that a command would replace or remove: it is refused, and they stay."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

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


def networks(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(run.glob("*/*.ckpt"))}


@pytest.mark.parametrize(
    ("stage", "options", "part"),
    [
        (
            "run",
            ["--seed", 1],
            "run/classifier holds a finished network that was trained with seed 0 instead of 1;",
        ),
        (
            "classify",
            ["--classifier.epochs", 2],
            "trained with classifier.epochs 3 instead of 2; choose another",
        ),
        ("run", ["--segmenter.scale", "[0.7,1]"], "segmenter holds a finished network"),
        ("segment", ["--segmenter.epochs", 1], "choose another --output, or replace it with --overwrite"),
        (
            "run",
            ["--refine.background.threshold", 0.6],
            "segmenter holds a finished network that was trained with",
        ),
        ("run", ["--classifier.weights", "typo.pth"], "--classifier.weights: there is no file typo.pth"),
    ],
)
def test_a_finished_network_is_not_replaced_unasked(
    run: Path, tiny: list[str], command: Any, stage: str, options: list[object], part: str
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert part in command(stage, *tiny, "--output", run, *options).sentence
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_other_labels_are_another_training(run: Path, shapes: Path, tiny: list[str], command: Any) -> None:
    labels = run.parent / "labels.csv"
    lines = (shapes / "labels.csv").read_text().splitlines()
    lines[1] = lines[1].split(",")[0] + ",ball" if not lines[1].endswith(",ball") else f"{lines[1]};fish"
    labels.write_text("\n".join(lines))
    shutil.copy(run / "config.yaml", before := run.parent / "config.yaml")
    sentence = command("run", *tiny, "--output", run, "--data.labels", labels).sentence
    assert f"was trained with data.labels xml instead of {labels}; choose another --output" in sentence
    config = before.read_text().replace("labels: xml", f"labels: {labels}")
    (run / "config.yaml").write_text(config)
    sentence = command("run", *tiny, "--output", run, "--data.labels", labels).sentence
    assert "trained with other photos, labels, masks or weights, or by another version of wsss" in sentence


def test_an_overwritten_network_stays_until_its_successor_is_whole(
    run: Path, finished: Path, tiny: list[str], command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = networks(run)

    def interrupted(*values: object, **options: object) -> None:
        raise KeyboardInterrupt

    words = ["run", *tiny, "--output", run]
    with monkeypatch.context() as patch:
        patch.setattr("wsss.stages.classify.fit", interrupted)
        assert command(*words, "--seed", 1, "--overwrite").status == 130
    kept = run / "replaced" / "classify" / "classifier"
    assert (kept / "last.ckpt").read_bytes() == before[str(run / "classifier" / "last.ckpt")]
    done = command(*words)
    assert done.status == 0, done.err
    assert "classify: takes back what it had written with this configuration" in done.err
    assert networks(run) == before
    assert not (run / "replaced").exists()
    assert (run / "metrics.json").read_bytes() == (finished / "metrics.json").read_bytes()
    done = command(*words, "--seed", 1, "--overwrite")
    assert done.status == 0, done.err
    assert not set(networks(run).values()) & set(before.values())
    assert not (run / "replaced").exists()


def test_weights_that_are_gone_do_not_matter_once_the_networks_are_trained(
    tiny: list[str], tmp_path: Path, command: Any
) -> None:
    weights = tmp_path / "r18.pth"
    torch.save(resnet18(num_classes=3).state_dict(), weights)
    run = tmp_path / "run"
    words = [*tiny, "--output", run, "--classifier.architecture", "resnet18", "--classifier.weights", weights]
    words += ["--classifier.epochs", 1]
    assert command("classify", *words).status == 0
    weights.rename(tmp_path / "elsewhere.pth")
    before = networks(run)
    assert "already done" in command("classify", *words).err
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"]["classify"]["state"] = "running"
    (run / "manifest.json").write_text(json.dumps(manifest))
    done = command("classify", *words)
    assert done.status == 0, done.err
    assert "(continued)" in done.err
    assert networks(run) == before
    (run / "classifier" / "last.ckpt").unlink()
    assert f"there is no file {weights}" in command("classify", *words).sentence


def test_weights_of_another_architecture_are_refused_before_anything_is_written(
    tiny: list[str], tmp_path: Path, command: Any
) -> None:
    """Also those of the segmenter, which is trained last."""
    torch.save(resnet18().state_dict(), tmp_path / "r18.pth")
    words = ["--segmenter.architecture", "deeplabv3_resnet50", "--segmenter.weights", tmp_path / "r18.pth"]
    sentence = command("run", *tiny, "--output", tmp_path / "run", *words).sentence
    assert "belongs to another architecture" in sentence
    assert [path.name for path in (tmp_path / "run").rglob("*")] == [".lock"]


def test_files_of_ones_own_in_the_folder_of_a_stage_stay(run: Path, tiny: list[str], command: Any) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["stages"]["refine"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    before = {path: path.read_bytes() for path in (run / "pseudo_masks").iterdir()}
    shutil.rmtree(run / "pseudo_labels")
    sentence = command("refine", *tiny, "--output", run).sentence
    assert (
        f"{run / 'pseudo_masks'} holds files that no stage of this run wrote; move them elsewhere, or train"
        in sentence
    )
    assert {path: path.read_bytes() for path in (run / "pseudo_masks").iterdir()} == before


def test_a_disk_that_is_too_small_is_found_before_the_training(
    run: Path, tiny: list[str], command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(run)._replace(free=100_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert "already done" in command("run", *tiny, "--output", run).err
    sentence = command("run", *tiny, "--output", run.parent / "new").sentence
    assert re.search(
        r"new needs about [0-9.]+ GB, but its disk has 0\.0 GB free; free some space, or", sentence
    )
