"""Bad input: one sentence that names the file and what to do, exit status 1 (2 for usage), no traceback."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.data.files import write_mask
from wsss.tasks.segmentation import SegmentationTask

Words = Callable[[Path], list[str]]


def set_labels(root: Path, identifier: str, labels: str) -> None:
    """Rewrite one line of labels.csv."""
    lines = (root / "labels.csv").read_text().splitlines()
    lines = [f"{identifier},{labels}" if line.startswith(f"{identifier},") else line for line in lines]
    (root / "labels.csv").write_text("\n".join(lines) + "\n")


# -- photos -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_photo_in_training_is_named(
    shapes_copy: Path, voc_words: Words, tmp_path: Path, command: Any, workers: int
) -> None:
    photo = shapes_copy / "JPEGImages" / "train_000003.jpg"
    photo.write_bytes(photo.read_bytes()[:300])
    words = voc_words(shapes_copy)
    sentence = command("classify", *words, "--output", tmp_path / "r", "--runtime.workers", workers).sentence
    assert f"{photo} is damaged or truncated" in sentence
    assert "replace the file or remove it from the data set" in sentence


def test_corrupt_validation_photo_is_named(
    shapes_copy: Path, voc_words: Words, tmp_path: Path, command: Any
) -> None:
    photo = shapes_copy / "JPEGImages" / "val_000003.jpg"
    photo.write_bytes(b"")
    sentence = command("run", *voc_words(shapes_copy), "--output", tmp_path / "r").sentence
    assert f"{photo} is an empty file" in sentence


# slow: after an error torch waits 5 s for each of its loader's processes
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_photo_that_breaks_after_training_is_named_by_the_later_stages(
    run: Path, shapes_copy: Path, tiny: list[str], command: Any, workers: int
) -> None:
    photo = shapes_copy / "JPEGImages" / "train_000003.jpg"
    damaged = photo.read_bytes()[:300]
    photo.write_bytes(damaged + bytes(photo.stat().st_size - 300))  # the same size: the fingerprint stays
    for path in [*(run / "saliency").iterdir(), *(run / "pseudo_masks").iterdir()]:
        path.unlink()
    words = [*tiny, "--data.root", shapes_copy, "--output", run, "--runtime.workers", workers]
    assert str(photo) in command("saliency", *words).sentence


def test_photo_of_another_size_than_its_saliency_is_named(
    run: Path, shapes_copy: Path, tiny: list[str], command: Any
) -> None:
    photo = shapes_copy / "JPEGImages" / "train_000003.jpg"
    (shapes_copy / "SegmentationClass" / "train_000003.png").unlink()  # its size would be refused first
    length = photo.stat().st_size
    Image.new("RGB", (40, 50)).save(photo)
    photo.write_bytes(photo.read_bytes().ljust(length, b"\0"))
    shutil.rmtree(run / "pseudo_masks")
    sentence = command("refine", *tiny, "--data.root", shapes_copy, "--output", run).sentence
    assert f"{photo} changed since its saliency was made" in sentence


# -- data sets --------------------------------------------------------------------------------------


def test_missing_root_is_named(tiny_config: Path, tmp_path: Path, command: Any) -> None:
    root = tmp_path / "nowhere"
    words = ["--config", tiny_config, "--data.kind", "voc", "--data.root", root, "--output", tmp_path / "r"]
    assert f"{root} does not exist: set --data.root" in command("run", *words).sentence
    assert not (tmp_path / "r").exists()


def test_missing_label_csv_is_named(
    shapes_copy: Path, voc_words: Words, tmp_path: Path, command: Any
) -> None:
    words = [*voc_words(shapes_copy), "--data.labels", "tags.csv", "--output", tmp_path / "r"]
    sentence = command("run", *words).sentence
    assert "tags.csv does not exist" in sentence
    assert "set --data.labels" in sentence


def test_unknown_label_is_named_with_the_nearest_class(
    shapes_copy: Path, voc_words: Words, tmp_path: Path, command: Any
) -> None:
    set_labels(shapes_copy, "train_000002", "housse")
    sentence = command("run", *voc_words(shapes_copy), "--output", tmp_path / "r").sentence
    assert f'{shapes_copy / "labels.csv"}:4: unknown label "housse": did you mean "house"?' in sentence


def test_shapes_of_other_parameters_are_not_taken(tiny: list[str], tmp_path: Path, command: Any) -> None:
    sentence = command("run", *tiny, "--data.shapes.seed", 5, "--output", tmp_path / "r").sentence
    assert "holds shapes made with different parameters (seed 0 instead of 5)" in sentence


@pytest.mark.parametrize("escaping", ["../outside", "/etc/passwd", "..", "a/../../b"])
def test_ids_that_escape_their_folder_are_refused_in_lists(
    shapes_copy: Path, voc_words: Words, tmp_path: Path, command: Any, escaping: str
) -> None:
    listed = tmp_path / "train.txt"
    listed.write_text(f"train_000001\n{escaping}\n")
    words = [*voc_words(shapes_copy), "--data.train", listed, "--output", tmp_path / "r"]
    assert f"{listed}:2: {escaping!r} cannot be an image id" in command("run", *words).sentence


def test_ids_that_escape_their_folder_are_refused_in_a_csv(
    folder: Path, folder_words: Words, tmp_path: Path, command: Any
) -> None:
    with (folder / "labels.csv").open("a") as csv:
        csv.write("../../outside,red\n")
    sentence = command("run", *folder_words(folder), "--output", tmp_path / "r").sentence
    assert f"{folder / 'labels.csv'}:14: '../../outside' cannot be an image id" in sentence


def test_an_image_in_both_splits_is_refused(
    shapes_copy: Path, voc_words: Words, tmp_path: Path, command: Any
) -> None:
    words = [*voc_words(shapes_copy), "--data.train", "val", "--data.val", "val", "--output", tmp_path / "r"]
    assert "both in train and in val" in command("run", *words).sentence


def test_data_check_survives_a_dangling_link(folder: Path, command: Any) -> None:
    (folder / "images" / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    done = command("data", "check", folder)
    assert done.status == 1
    assert "gone.jpg" in done.out
    assert "labels:" in done.out


# -- saliency methods --------------------------------------------------------------------------------


def test_unknown_saliency_method_lists_the_known(tiny: list[str], run: Path, command: Any) -> None:
    sentence = command("saliency", *tiny, "--output", run, "--saliency.method", "magic").sentence
    assert "saliency.method: there is no saliency method 'magic'; the methods are" in sentence


def test_unknown_layer_is_named(tiny: list[str], run: Path, command: Any) -> None:
    sentence = command("saliency", *tiny, "--output", run, "--saliency.method", "gradcam@layer9").sentence
    assert "layer9" in sentence


# -- weights, devices, outputs ----------------------------------------------------------------------


@pytest.mark.parametrize("network", ["classifier", "segmenter"])
def test_missing_weights_are_named(run: Path, tiny: list[str], command: Any, network: str) -> None:
    words = [*tiny, "--output", run, f"--{network}.weights", "nowhere.pth"]
    assert f"--{network}.weights: there is no file nowhere.pth" in command("run", *words).sentence


def test_weights_of_another_architecture_are_named(tiny: list[str], tmp_path: Path, command: Any) -> None:
    path = tmp_path / "small.pth"
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    sentence = command("run", *tiny, "--output", tmp_path / "r", "--classifier.weights", path).sentence
    assert f"{path} belongs to another architecture" in sentence


def test_impossible_download_says_what_to_do(
    tiny: list[str], tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    sentence = command("run", *tiny, "--output", tmp_path / "r", "--classifier.weights", "imagenet").sentence
    assert "cannot get the ImageNet weights of resnet18" in sentence
    assert "--classifier.weights PATH" in sentence


def test_missing_gpu_is_said_before_anything_is_written(
    tiny: list[str], run: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    stored = (run / "config.yaml").read_bytes()
    sentence = command("run", *tiny, "--output", run, "--runtime.accelerator", "gpu").sentence
    assert "torch sees no CUDA device; use cpu" in sentence
    assert (run / "config.yaml").read_bytes() == stored


def test_a_file_in_the_way_of_the_run_directory_is_named(
    tiny: list[str], tmp_path: Path, command: Any
) -> None:
    (tmp_path / "r").write_text("mine")
    assert (
        f"cannot use {tmp_path / 'r'} as a run directory"
        in command("run", *tiny, "--output", tmp_path / "r").sentence
    )
    assert (
        f"cannot use {tmp_path / 'r' / 's'}"
        in command("run", *tiny, "--output", tmp_path / "r" / "s").sentence
    )
    assert (tmp_path / "r").read_text() == "mine"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_in_the_way_of_a_stage_is_named(
    run: Path, tiny: list[str], command: Any, workers: int
) -> None:
    shutil.rmtree(run / "pseudo_labels")
    (run / "pseudo_labels").write_text("mine")
    sentence = command("refine", *tiny, "--output", run, "--runtime.workers", workers).sentence
    assert f"cannot write {run / 'pseudo_labels'}" in sentence


def test_a_training_that_diverges_stops_and_keeps_the_epoch_before(
    tiny: list[str], tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    loss = SegmentationTask.loss

    def explode(self: SegmentationTask, *values: Any) -> Any:
        nonlocal steps
        steps += 1
        return loss(self, *values) * (float("nan") if steps > 3 else 1)

    words = [*tiny, "--output", tmp_path / "r", "--segmenter.batch_size", 8, "--segmenter.epochs", 3]
    monkeypatch.setattr(SegmentationTask, "loss", explode)
    sentence = command("run", *words).sentence
    assert "the training of the segmenter diverged" in sentence
    assert "lower --segmenter.optimizer.lr" in sentence
    monkeypatch.setattr(SegmentationTask, "loss", loss)
    assert command("run", *words).status == 0  # continues from the checkpoint of the first epoch
    rows = (tmp_path / "r" / "segmenter" / "metrics.csv").read_text()
    assert [row.split(",")[0] for row in rows.splitlines()] == ["epoch", "1", "2", "3"]
    assert "nan" not in rows.lower()


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_a_network_that_answers_with_no_numbers_is_not_scored(
    tiny: list[str], tmp_path: Path, command: Any, kind: str
) -> None:
    words = [*tiny, "--output", tmp_path / "r", f"--{kind}.epochs", 1, f"--{kind}.optimizer.lr", 1e30]
    sentence = command("run", *words).sentence
    assert f"the training of the {kind} diverged" in sentence
    assert f"lower --{kind}.optimizer.lr" in sentence


# -- memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_that_runs_out_is_one_sentence(
    run: Path, tiny: list[str], command: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*values: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("wsss.stages.segment.segmentation.new_task", full)
    sentence = command("segment", *tiny, "--output", run, "--segmenter.epochs", 3).sentence
    assert "ran out of memory; use a smaller --classifier.batch_size" in sentence


def test_another_process_that_failed_is_one_sentence(
    run: Path, tiny: list[str], command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(*values: object, **options: object) -> None:
        raise RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:51349")

    monkeypatch.setattr("wsss.stages.segment.segmentation.new_task", alone)
    sentence = command("segment", *tiny, "--output", run, "--segmenter.epochs", 3).sentence
    assert "another process of this command failed; its own message says why" in sentence


def test_other_runtime_errors_keep_their_traceback(
    run: Path, tiny: list[str], command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*values: object, **options: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("wsss.stages.segment.segmentation.new_task", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        command("segment", *tiny, "--output", run, "--segmenter.epochs", 3)


# -- masks ------------------------------------------------------------------------------------------


def test_mask_of_another_size_is_named(tmp_path: Path, command: Any) -> None:
    write_mask(tmp_path / "p" / "a.png", np.zeros((4, 5), np.uint8))
    write_mask(tmp_path / "t" / "a.png", np.zeros((5, 4), np.uint8))
    sentence = command("score", tmp_path / "p", tmp_path / "t").sentence
    assert str(tmp_path / "p" / "a.png") in sentence
    assert str(tmp_path / "t" / "a.png") in sentence


def test_rgb_mask_is_refused_with_the_fix(tmp_path: Path, command: Any) -> None:
    write_mask(tmp_path / "t" / "a.png", np.zeros((4, 5), np.uint8))
    (tmp_path / "p").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "p" / "a.png")
    sentence = command("score", tmp_path / "p", tmp_path / "t").sentence
    assert f"{tmp_path / 'p' / 'a.png'} is a mask of mode RGB" in sentence
    assert "save it as an 8-bit palette" in sentence


def test_class_index_out_of_range_is_named(tmp_path: Path, command: Any) -> None:
    write_mask(tmp_path / "p" / "a.png", np.full((4, 5), 99, np.uint8))
    write_mask(tmp_path / "t" / "a.png", np.zeros((4, 5), np.uint8))
    sentence = command("score", tmp_path / "p", tmp_path / "t").sentence
    assert str(tmp_path / "p" / "a.png") in sentence
    assert "99" in sentence


def test_missing_true_mask_is_named(tmp_path: Path, command: Any) -> None:
    write_mask(tmp_path / "p" / "a.png", np.zeros((4, 5), np.uint8))
    (tmp_path / "t").mkdir()
    assert (
        f"{tmp_path / 't' / 'a.png'}: the ground-truth mask"
        in command("score", tmp_path / "p", tmp_path / "t").sentence
    )


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("mask", "part"),
    [
        (np.zeros((10, 12), np.uint8), "has 12x10 pixels but"),
        (np.full((64, 64), 8, np.uint8), "holds the class index 8, but the class list has 7 names"),
    ],
)
def test_true_mask_that_does_not_fit_is_named_by_the_pipeline(
    run: Path, shapes_copy: Path, voc_words: Words, command: Any, split: str, mask: np.ndarray, part: str
) -> None:
    path = shapes_copy / "SegmentationClass" / f"{split}_000002.png"
    write_mask(path, mask)
    words = [*voc_words(shapes_copy), "--data.train", "train", "--output", run, "--segmenter.epochs", 1]
    words.append("--overwrite")
    sentence = command("run" if split == "val" else "evaluate", *words).sentence
    assert f"{path} {part}" in sentence


def test_supervised_without_true_masks_is_refused(
    folder: Path, folder_words: Words, tmp_path: Path, command: Any
) -> None:
    words = [*folder_words(folder), "--output", tmp_path / "r", "--segmenter.supervised", "true"]
    sentence = command("run", *words).sentence
    assert "segmenter.supervised needs true masks of training images" in sentence


# -- checkpoints ------------------------------------------------------------------------------------


def test_checkpoint_of_the_wrong_kind_is_refused(
    finished: Path, shapes: Path, tmp_path: Path, command: Any
) -> None:
    checkpoint = finished / "classifier" / "last.ckpt"
    photo = shapes / "JPEGImages" / "val_000000.jpg"
    sentence = command("predict", photo, "--checkpoint", checkpoint, "--output", tmp_path).sentence
    assert f"{checkpoint} holds classifier, but a wsss segmenter checkpoint" in sentence


def test_missing_or_foreign_checkpoint_is_named(shapes: Path, tmp_path: Path, command: Any) -> None:
    photo = shapes / "JPEGImages" / "val_000000.jpg"
    missing, foreign = tmp_path / "no.ckpt", tmp_path / "list.ckpt"
    torch.save([1, 2], foreign)
    for path in (missing, foreign):
        assert str(path) in command("predict", photo, "--checkpoint", path, "--output", tmp_path).sentence
