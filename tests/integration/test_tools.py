"""The tools beside the pipeline: predict, score, data check, data shapes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss.data.files import write_mask
from wsss.data.palette import voc_palette


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of several formats and sizes, one folder deep."""
    random = np.random.default_rng(3)
    root = tmp_path / "photos"
    (root / "deep").mkdir(parents=True)
    for name, size in (("a.jpg", (50, 70)), ("b.png", (64, 64)), ("deep/c.bmp", (33, 41))):
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(root / name)
    Image.fromarray(random.integers(0, 255, (40, 30, 4), dtype=np.uint8)).save(root / "transparent.png")
    return root


# -- predict ----------------------------------------------------------------------------------------


def test_predict_writes_a_palette_mask_of_every_photos_size(
    finished: Path, photos: Path, tmp_path: Path, command: Any
) -> None:
    output = tmp_path / "masks"
    checkpoint = finished / "segmenter" / "last.ckpt"
    done = command("predict", photos, "--checkpoint", checkpoint, "--output", output, "--accelerator", "cpu")
    assert done.status == 0, done.err
    written = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    assert written == ["a.png", "b.png", "deep/c.png", "predictions.json", "transparent.png"]
    for name, size in (("a", (70, 50)), ("b", (64, 64)), ("deep/c", (41, 33)), ("transparent", (30, 40))):
        with Image.open(output / f"{name}.png") as mask:
            assert (mask.mode, mask.size) == ("P", size)
            assert mask.getpalette() == voc_palette().flatten().tolist()
            assert np.asarray(mask).max() <= 7


def test_predict_equals_the_predictions_of_the_run(
    finished: Path, shapes: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsss.runtime.cpu_has_bf16", lambda: False)  # the run is float32
    files = sorted((shapes / "JPEGImages").glob("val_*.jpg"))
    words = [
        "--checkpoint",
        finished / "segmenter" / "last.ckpt",
        "--output",
        tmp_path / "m",
        "--accelerator",
        "cpu",
    ]
    assert command("predict", *files, *words).status == 0
    for file in files:
        ours = np.asarray(Image.open(tmp_path / "m" / f"{file.stem}.png"))
        theirs = np.asarray(Image.open(finished / "predictions" / f"{file.stem}.png"))
        assert (ours == theirs).mean() > 0.999  # batches of another size round differently


def test_predict_writes_overlays_and_multi_scale(
    finished: Path, photos: Path, tmp_path: Path, command: Any
) -> None:
    words = [
        "--checkpoint",
        finished / "segmenter" / "last.ckpt",
        "--output",
        tmp_path,
        "--accelerator",
        "cpu",
    ]
    assert command("predict", photos / "a.jpg", *words, "--overlay", "--ms_flip").status == 0
    with Image.open(tmp_path / "a_overlay.jpg") as overlay:
        assert overlay.format == "JPEG"
        assert overlay.width >= 70
        assert overlay.height > 50  # with a legend below
    assert (tmp_path / "a.png").is_file()


def test_predict_skips_broken_photos_and_names_them(
    finished: Path, photos: Path, tmp_path: Path, command: Any
) -> None:
    (photos / "a.jpg").write_bytes((photos / "a.jpg").read_bytes()[:200])
    (photos / "empty.jpg").write_bytes(b"")
    words = [
        "--checkpoint",
        finished / "segmenter" / "last.ckpt",
        "--output",
        tmp_path / "m",
        "--accelerator",
        "cpu",
    ]
    done = command("predict", photos, *words)
    assert done.status == 1
    assert "Traceback" not in done.err
    assert "2 of 5 photos could not be read" in done.err
    assert str(photos / "a.jpg") in done.err
    assert str(photos / "empty.jpg") in done.err
    assert len(list((tmp_path / "m").rglob("*.png"))) == 3


def test_predict_never_overwrites_a_photo(finished: Path, photos: Path, command: Any) -> None:
    before = (photos / "b.png").read_bytes()
    words = ["--checkpoint", finished / "segmenter" / "last.ckpt", "--output", photos]
    sentence = command("predict", photos, *words).sentence
    assert f"{photos / 'b.png'} is one of the photos and would be overwritten" in sentence
    assert (photos / "b.png").read_bytes() == before


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda root: [root / "none.jpg"], "none.jpg does not exist"),
        (lambda root: [(root / "bare").mkdir() or root / "bare"], "holds no photos"),
        (
            lambda root: [root / "b.png", shutil.copytree(root, root.parent / "other") / "b.png"],
            "would both be written",
        ),
    ],
    ids=["missing", "empty folder", "two of one name"],
)
def test_predict_refuses_what_it_cannot_write(
    finished: Path, photos: Path, tmp_path: Path, command: Any, make: Any, part: str
) -> None:
    words = ["--checkpoint", finished / "segmenter" / "last.ckpt", "--output", tmp_path / "m"]
    assert part in command("predict", *make(photos), *words).sentence


def test_predict_into_a_file_is_refused(finished: Path, photos: Path, tmp_path: Path, command: Any) -> None:
    (tmp_path / "m").write_text("mine")
    words = [
        "--checkpoint",
        finished / "segmenter" / "last.ckpt",
        "--output",
        tmp_path / "m",
        "--accelerator",
        "cpu",
    ]
    assert (
        f"cannot write {tmp_path / 'm' / 'predictions.json'}"
        in command("predict", photos / "b.png", *words).sentence
    )


@pytest.mark.parametrize("part", ["", "segmenter"])
def test_predict_finds_the_segmenter_of_a_run(
    finished: Path, photos: Path, tmp_path: Path, command: Any, part: str
) -> None:
    words = ["predict", photos / "b.png", "--accelerator", "cpu"]
    assert command(*words, "--checkpoint", finished / part, "--output", tmp_path / "m").status == 0
    checkpoint = json.loads((tmp_path / "m" / "predictions.json").read_text())["checkpoint"]
    assert checkpoint == str(finished / "segmenter" / "last.ckpt")


def test_explain_and_export_find_the_networks_of_a_run(
    finished: Path, photos: Path, tmp_path: Path, command: Any
) -> None:
    words = ["--checkpoint", finished, "--output", tmp_path / "why.png", "--accelerator", "cpu"]
    assert command("explain", photos / "b.png", *words).status == 0
    unfinished = tmp_path / "run"
    (unfinished / "classifier").mkdir(parents=True)
    sentence = command("export", "torch", "--checkpoint", unfinished, "--output", tmp_path / "m").sentence
    assert f"there is no checkpoint {unfinished / 'segmenter' / 'last.ckpt'}; finish the training" in sentence


def test_predict_without_checkpoint_is_bad_usage(photos: Path, tmp_path: Path, command: Any) -> None:
    assert command("predict", photos, "--output", tmp_path / "m").status == 2


# -- score ------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and truth whose numbers are known: background 1/2, aeroplane 1/3."""
    truth = np.array([[0, 0, 1, 1], [255, 255, 255, 255]], np.uint8)
    prediction = np.array([[0, 1, 1, 255], [0, 1, 2, 3]], np.uint8)
    write_mask(tmp_path / "truth" / "a.png", truth)
    write_mask(tmp_path / "truth" / "b.png", np.zeros((3, 3), np.uint8))
    write_mask(tmp_path / "predicted" / "a.png", prediction)
    write_mask(tmp_path / "predicted" / "b.png", np.zeros((3, 3), np.uint8))
    return tmp_path / "predicted", tmp_path / "truth"


def test_score_of_listed_ids_is_what_a_pencil_finds(
    pair: tuple[Path, Path], tmp_path: Path, command: Any
) -> None:
    (tmp_path / "ids.txt").write_text("a\n")
    result = json.loads(command("score", *pair, "--ids", tmp_path / "ids.txt", "--json").out)
    assert result["images"] == 1
    assert result["per_class"]["background"] == pytest.approx(1 / 2)
    assert result["per_class"]["aeroplane"] == pytest.approx(1 / 3)
    assert result["miou"] == pytest.approx(5 / 12)
    assert result["coverage"] == pytest.approx(3 / 4)
    assert len(result["absent"]) == 19


def test_score_counts_ignored_as_background_on_request(
    pair: tuple[Path, Path], tmp_path: Path, command: Any
) -> None:
    (tmp_path / "ids.txt").write_text("a\n")
    words = ["--ids", tmp_path / "ids.txt", "--json", "--ignored_as_background"]
    result = json.loads(command("score", *pair, *words).out)
    assert result["per_class"]["background"] == pytest.approx(1 / 3)
    assert result["coverage"] == 1


def test_score_prints_a_table(pair: tuple[Path, Path], command: Any) -> None:
    done = command("score", *pair)
    assert done.status == 0
    assert "over 2 images, 2 of 21 classes" in done.out
    assert "pixels with an answer (not 255)" in done.out


def test_score_shows_boundaries_and_confusions_on_request(pair: tuple[Path, Path], command: Any) -> None:
    plain, full = command("score", *pair).out, command("score", *pair, "--boundary", "--confusion").out
    assert "boundary F" not in plain
    assert "most frequent confusions" not in plain
    assert "boundary F" in full
    assert "most frequent confusions" in full
    assert "aeroplane            as no answer" in full
    result = json.loads(command("score", *pair, "--boundary", "--json").out)
    assert set(result["boundary"]) == {"mean", "per_class", "per_image", "tolerance"}
    assert result["confusion"][0][:2] == [10, 1]
    assert (len(result["confusion"]), len(result["confusion"][0])) == (21, 22)


def test_score_names_the_file_whose_size_differs(pair: tuple[Path, Path], command: Any) -> None:
    write_mask(pair[0] / "b.png", np.zeros((3, 4), np.uint8))
    for words in ([], ["--boundary"]):
        sentence = command("score", *pair, *words).sentence
        assert f"{pair[0] / 'b.png'} (scored against {pair[1] / 'b.png'})" in sentence
        assert "the prediction is (3, 4) pixels (height, width), the ground truth (3, 3)" in sentence


def test_score_in_processes_is_the_same(finished: Path, shapes: Path, command: Any) -> None:
    words = [
        finished / "pseudo_masks",
        shapes / "SegmentationClass",
        "--classes",
        shapes / "classes.txt",
        "--json",
    ]
    assert command("score", *words, "--workers", 2).out == command("score", *words).out


@pytest.mark.parametrize("option", ["--ids", "--classes"])
def test_score_names_a_missing_list(
    pair: tuple[Path, Path], tmp_path: Path, command: Any, option: str
) -> None:
    path = tmp_path / "missing.txt"
    assert f"{path} does not exist" in command("score", *pair, option, path).sentence


def test_score_refuses_missing_and_empty_folders(
    pair: tuple[Path, Path], tmp_path: Path, command: Any
) -> None:
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'no'} is not a folder" in command("score", tmp_path / "no", pair[1]).sentence
    assert (
        f"{tmp_path / 'empty'}: no masks to score" in command("score", tmp_path / "empty", pair[1]).sentence
    )
    (tmp_path / "ids.txt").write_text("../truth/a\n")
    assert "cannot be an image id" in command("score", *pair, "--ids", tmp_path / "ids.txt").sentence


def test_abbreviated_options_are_refused(pair: tuple[Path, Path], command: Any) -> None:
    done = command("score", *pair, "--ignored")
    assert done.status == 2
    assert (
        "there is no option --ignored; did you mean --ignored_as_background? (see `wsss score --help`)"
        in done.err
    )


# -- data -------------------------------------------------------------------------------------------


def test_data_shapes_and_check_agree(tmp_path: Path, command: Any) -> None:
    root = tmp_path / "shapes"
    words = ["--train", 3, "--val", 2, "--size", 64, "--seed", 1]
    assert command("data", "shapes", root, *words).out.strip() == str(root)
    done = command("data", "check", root)
    assert done.status == 0, done.out
    assert "5" in done.out


def test_data_shapes_refuses_a_folder_of_other_things(folder: Path, command: Any) -> None:
    sentence = command("data", "shapes", folder).sentence
    assert f"{folder} is not empty and not a shapes data set" in sentence


def test_data_check_finds_errors_and_exits_with_1(shapes_copy: Path, command: Any) -> None:
    Image.new("RGB", (64, 64)).save(shapes_copy / "SegmentationClass" / "val_000001.png")
    (shapes_copy / "JPEGImages" / "train_000001.jpg").write_bytes(b"broken")
    done = command("data", "check", shapes_copy)
    assert done.status == 1
    for name in ("val_000001.png", "train_000001.jpg"):
        assert name in done.out


def test_data_check_of_a_folder(folder: Path, command: Any) -> None:
    done = command("data", "check", folder)
    assert done.status == 0, done.out


def test_data_check_reads_the_labels_that_it_is_given(folder: Path, command: Any) -> None:
    (folder / "tags.csv").write_text("image,labels\n1,green\n")
    done = command("data", "check", folder, "--labels", folder / "tags.csv")
    assert "labels: green 1" in done.out
    assert "red" not in done.out


def test_data_shapes_writes_masks_of_tagged_photos_on_request(tmp_path: Path, command: Any) -> None:
    words = ["--layout", "folder", "--train", 3, "--val", 1, "--size", 64]
    assert command("data", "shapes", tmp_path / "a", *words).status == 0
    assert command("data", "shapes", tmp_path / "b", *words, "--masks").status == 0
    assert not (tmp_path / "a" / "masks").exists()
    assert len(list((tmp_path / "b" / "masks").glob("*.png"))) == 3


def test_data_without_action_is_bad_usage(command: Any, tmp_path: Path) -> None:
    assert command("data").status == 2
    assert f"{tmp_path / 'no'} does not exist" in command("data", "check", tmp_path / "no").sentence
