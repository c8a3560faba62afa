"""`wsss compare` as a user calls it, on the tiny shared run."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

METHODS = ("gradcam", "global_guidance@layer3", "subtraction(gradcam)")


@pytest.fixture
def words(run: Path) -> list[str]:
    """Options of a small comparison in a copy of the finished run."""
    options = {
        "methods": json.dumps(METHODS),
        "images": 4,
        "size": 64,
        "insertion_steps": 4,
        "insertion_images": 2,
        "page_images": 2,
    }
    given = [word for key, value in options.items() for word in (f"--compare.{key}", str(value))]
    return ["--config", str(run / "config.yaml"), "--output", str(run), *given]


def leaderboard(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "compare" / "leaderboard.json").read_text())
    return result


def stamps(run: Path) -> dict[str, int]:
    """Modification times of all measured values."""
    files = (run / "compare" / "values").rglob("*.json")
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in files}


def test_compare_writes_numbers_a_table_and_a_page(run: Path, words: list[str], command: Any) -> None:
    done = command("compare", *words, "--compare.sanity", "true", "--compare.sanity_images", 1)
    assert done.status == 0, done.err
    board = leaderboard(run)
    assert [row["name"] for row in board["methods"]] == list(METHODS)
    assert board["data"]["images"] == 4
    assert board["data"]["truth"] == ["mask"]
    assert board["classifier"]["score"] == "sigmoid"
    for row in board["methods"]:
        for key in ("pointing", "energy", "dice", "iou", "saliency_drop", "context_increase", "insertion"):
            assert 0 <= row["values"][key] <= 1
        assert row["values"]["best_iou"] >= row["values"]["iou"]
        assert row["values"]["milliseconds"] > 0
        assert row["counts"]["saliency_drop"] == board["data"]["targets"]
        assert 0 < row["counts"]["insertion"] < board["data"]["targets"]
        assert row["counts"]["milliseconds"] == 4
    assert board["sanity"]["stages"] == ["fc", "layer4", "layer3", "layer2", "layer1", "conv1"]
    for checked in board["sanity"]["methods"].values():
        assert len(checked["correlation"]) == len(checked["flat"]) == 6
        assert all(-1 <= value <= 1 for value in checked["correlation"])
    page = (run / "compare" / "index.html").read_text()
    for row in board["methods"]:
        for key in ("iou", "insertion", "insertion_mean", "deletion_blur", "milliseconds"):
            low, high = row["intervals"][key]
            assert low <= row["values"][key] <= high
            assert 1 <= row["ranks"][key] <= len(METHODS)
    for text in (*METHODS, "Cost against quality", "Sanity check", "Maps side by side", "data:image/jpeg"):
        assert text in page
    for text in METHODS:
        assert text in done.out
    with (run / "compare" / "leaderboard.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["dice"]) for row in rows] == [row["values"]["dice"] for row in board["methods"]]
    assert [int(row["dice_rank"]) for row in rows] == [row["ranks"]["dice"] for row in board["methods"]]


def test_what_is_measured_is_not_measured_again(run: Path, words: list[str], command: Any) -> None:
    words = [*words, "--compare.methods", "[gradcam, subtraction(gradcam)]"]
    assert command("compare", *words).status == 0
    before, first = stamps(run), leaderboard(run)["methods"]
    assert len(before) == 8
    (removed,) = (run / "compare" / "values").glob("subtraction*/val_000001.json")
    removed.unlink()
    assert command("compare", *words).status == 0
    after = stamps(run)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {str(removed.relative_to(run))}
    for old, new in zip(first, leaderboard(run)["methods"], strict=True):
        for key in ("values", "intervals", "ranks"):
            del old[key]["milliseconds"], new[key]["milliseconds"]
        assert new == old


def test_changed_settings_are_measured_again_and_no_others(run: Path, words: list[str], command: Any) -> None:
    words = [*words, "--compare.methods", "[gradcam]"]
    assert command("compare", *words).status == 0
    before = stamps(run)
    assert command("compare", *words, "--compare.threshold", 0.5).status == 0
    middle = stamps(run)
    assert all(middle[name] > before[name] for name in before)
    more = ["--compare.threshold", 0.5, "--compare.insertion_images", 3]
    assert command("compare", *words, *more).status == 0
    changed = {name for name, stamp in stamps(run).items() if stamp != middle[name]}
    assert 0 < len(changed) < 4  # insertion of another choice of images


def test_compare_leaves_the_stages_done(run: Path, words: list[str], command: Any, stages: Any) -> None:
    before = stages(run)
    assert command("compare", *words, "--compare.methods", "[gradcam]").status == 0
    done = command("saliency", run)
    assert "saliency: already done" in done.err
    assert stages(run) == before


def test_without_masks_boxes_are_the_truth_and_without_both_only_scores_are_measured(
    run: Path, words: list[str], shapes_copy: Path, voc_words: Any, command: Any
) -> None:
    words = [*words, *voc_words(shapes_copy)[2:], "--compare.methods", "[gradcam]"]
    shutil.rmtree(shapes_copy / "SegmentationClass")
    assert command("compare", *words).status == 0
    board = leaderboard(run)
    assert board["data"]["truth"] == ["boxes"]
    assert board["methods"][0]["counts"]["pointing"] == board["data"]["targets"]
    shutil.rmtree(shapes_copy / "Annotations")
    assert command("compare", *words).status == 0
    board = leaderboard(run)
    (row,) = board["methods"]
    assert board["data"]["truth"] == ["none"]
    assert row["values"]["pointing"] is row["values"]["best_iou"] is None
    assert row["counts"]["pointing"] == 0
    assert row["values"]["saliency_drop"] is not None
    assert "oracle IoU" not in (run / "compare" / "index.html").read_text()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (
            ["--compare.methods", "[gradcamm]"],
            "there is no saliency method 'gradcamm'; did you mean gradcam?",
        ),
        (["--compare.methods", "[gradcam, gradcam@layer4]"], "gradcam@layer4 and gradcam are the same"),
        (["--compare.methods", "[sess(gradcam, pool=max)]"], "quote entries that hold a comma"),
        (["--compare.methods", "[gradcam@layer9]"], "gradcam@layer9: the classifier has no layer 'layer9'"),
        (["--compare.methods", "[]"], "compare.methods is empty; name at least one method"),
        (["--compare.threshold", "1.5"], "compare.threshold is 1.5, but must be in [0, 1), or null"),
        (["--compare.batch_size", "0"], "compare.batch_size is 0, but must be at least 1"),
        (["--compare.classifier", "no.ckpt"], "there is no checkpoint no.ckpt"),
        (["--compare.classifier", "."], "there is no checkpoint classifier/last.ckpt; finish the training"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(
    run: Path, words: list[str], command: Any, change: list[str], part: str
) -> None:
    assert part in command("compare", *words, *change).sentence
    assert not (run / "compare" / "leaderboard.json").exists()


def test_a_split_that_does_not_exist_is_bad_usage(words: list[str], command: Any) -> None:
    assert command("compare", *words, "--compare.split", "test").status == 2


def test_compare_before_training_says_what_to_run(tmp_path: Path, words: list[str], command: Any) -> None:
    sentence = command("compare", *words, "--output", tmp_path / "fresh").sentence
    assert "there is no checkpoint" in sentence
    assert not (tmp_path / "fresh").exists()


def test_a_split_without_known_labels_is_refused(
    words: list[str], shapes: Path, tmp_path: Path, command: Any
) -> None:
    name = (shapes / "classes.txt").read_text().split()[0]
    ids = {
        split: (shapes / "ImageSets/Segmentation" / f"{split}.txt").read_text().split()
        for split in ("train", "val")
    }
    rows = [*(f"{one},{name}" for one in ids["train"]), *(f"{one}," for one in ids["val"])]
    (tmp_path / "labels.csv").write_text("\n".join(["image,labels", *rows]) + "\n")
    data = ["--data.kind", "voc", "--data.labels", tmp_path / "labels.csv", "--data.classes", "classes.txt"]
    sentence = command("compare", *words, *data).sentence
    assert "no image of val has a label that the classifier knows; choose --compare.split train" in sentence
