"""Self-training rounds through the command line: files, numbers, resume, another number of rounds."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROUNDS = ("--segmenter.rounds", "2")


@pytest.fixture
def copy(twice: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(twice, tmp_path / "twice"))


def metrics(run: Path) -> dict[str, Any]:
    entries: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return entries


def masks(run: Path, folder: str = "rounds/1/pseudo_masks") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / folder).glob("*.png")}


def same_weights(path: Path, other: Path) -> bool:
    ours, theirs = (torch.load(name, weights_only=True)["state_dict"] for name in (path, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def times(run: Path, folder: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (run / folder).iterdir()}


def test_a_second_round_keeps_the_first_and_trains_from_the_start_on_new_masks(
    twice: Path, finished: Path
) -> None:
    assert same_weights(twice / "rounds/1/segmenter/last.ckpt", finished / "segmenter/last.ckpt")
    assert masks(twice).keys() == masks(finished, "pseudo_masks").keys()
    assert masks(twice) != masks(finished, "pseudo_masks")
    assert masks(twice, "pseudo_masks") == masks(finished, "pseudo_masks")
    assert not same_weights(twice / "segmenter/last.ckpt", finished / "segmenter/last.ckpt")
    rows = (twice / "segmenter/metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2"]
    assert "val_mIoU" in rows[0]


def test_new_masks_hold_only_the_classes_on_the_label(twice: Path) -> None:
    for folder, extra in (("pseudo_labels", set()), ("pseudo_masks", {255})):
        for path in (twice / "rounds/1" / folder).iterdir():
            with np.load(twice / "saliency" / f"{path.stem}.npz") as archive:
                allowed = {0, *extra, *archive["classes"].tolist()}
            assert set(np.unique(np.asarray(Image.open(path))).tolist()) <= allowed


def test_new_masks_are_scored_as_wsss_score_does(twice: Path, shapes: Path, command: Any) -> None:
    words = (shapes / "SegmentationClass", "--json", "--classes", shapes / "classes.txt")
    entry = metrics(twice)["relabelled"]
    scored = json.loads(command("score", twice / "rounds/1/pseudo_labels", *words).out)
    assert (entry["miou"], entry["per_class"]) == (scored["miou"], scored["per_class"])
    assert (entry["round"], entry["by_round"]) == (1, [entry["miou"]])
    seen = json.loads(command("score", twice / "rounds/1/pseudo_masks", *words).out)
    assert entry["coverage"] == seen["coverage"]
    assert entry["kept_miou"] is not None


def test_the_new_masks_are_in_the_summary_and_in_the_report(
    copy: Path, tiny: list[str], command: Any
) -> None:
    done = command("run", *tiny, "--output", copy, *ROUNDS)
    assert done.err.count("done before") == 10
    lines = [line.strip().split("  ")[0] for line in done.out.splitlines()]
    order = [
        next(i for i, line in enumerate(lines) if line.startswith(name)) for name in ("pseudo", "re-", "val")
    ]
    assert order == sorted(order)
    page = (copy / "report.html").read_text()
    assert "re-labelled masks" in page
    assert "re-labelled, round 1" in page
    assert page.index("pseudo-masks") < page.index("re-labelled masks")


def test_one_round_again_takes_the_first_network_back(
    copy: Path, finished: Path, tiny: list[str], command: Any
) -> None:
    before = times(copy, "rounds/1/segmenter")
    done = command("run", *tiny, "--output", copy)
    assert done.status == 0
    assert "epoch 1/" not in done.err
    assert times(copy, "segmenter")["last.ckpt"] == before["last.ckpt"]
    assert metrics(copy) == metrics(finished)
    again = command("run", *tiny, "--output", copy, *ROUNDS)
    assert again.status == 0
    assert "epoch 1/" not in again.err


@pytest.mark.slow
def test_a_third_round_keeps_two(copy: Path, twice: Path, tiny: list[str], command: Any) -> None:
    before = times(copy, "rounds/1/pseudo_masks")
    assert command("segment", *tiny, "--output", copy, "--segmenter.rounds", 3).status == 0
    assert times(copy, "rounds/1/pseudo_masks") == before
    assert same_weights(copy / "rounds/2/segmenter/last.ckpt", twice / "segmenter/last.ckpt")
    assert masks(copy, "rounds/2/pseudo_masks").keys() == masks(twice).keys()
    assert "val" not in metrics(copy)  # measured with two rounds
    assert command("evaluate", *tiny, "--output", copy, "--segmenter.rounds", 3).status == 0
    entry = metrics(copy)["relabelled"]
    assert (entry["round"], len(entry["by_round"])) == (2, 2)
    assert entry["by_round"][0] == metrics(twice)["relabelled"]["miou"]


@pytest.mark.slow
def test_other_settings_of_the_segmenter_redo_every_round(copy: Path, tiny: list[str], command: Any) -> None:
    before = times(copy, "rounds/1/pseudo_masks")
    words = [*ROUNDS, "--segmenter.ema", 0.9, "--segmenter.epochs", 1]
    done = command("segment", *tiny, "--output", copy, *words)
    assert done.status == 0
    assert done.err.count("epoch 1/1") == 2
    assert "relabelled" not in metrics(copy)
    after = times(copy, "rounds/1/pseudo_masks")
    assert after.keys() == before.keys()
    assert all(after[name] > before[name] for name in before)


@pytest.mark.slow
def test_weighted_pixels_go_through_all_rounds(copy: Path, tiny: list[str], command: Any) -> None:
    words = [*ROUNDS, "--segmenter.confidence_weighted", "true", "--segmenter.epochs", 1]
    assert command("run", *tiny, "--output", copy, *words).status == 0
    assert masks(copy, "rounds/1/pseudo_confidence").keys() == masks(copy).keys()


def test_evaluate_does_not_insist_on_the_rounds(run: Path, tiny: list[str], command: Any) -> None:
    done = command("evaluate", *tiny, "--output", run, *ROUNDS)
    assert done.status == 0
    assert "score_relabelled: no finished self-training" in done.err
    assert set(metrics(run)) == {"classifier", "seed", "mask"}


def test_no_round_at_all_is_refused(tiny: list[str], tmp_path: Path, command: Any) -> None:
    sentence = command("run", *tiny, "--output", tmp_path / "new", "--segmenter.rounds", 0).sentence
    assert "segmenter.rounds is 0, but must be at least 1" in sentence
