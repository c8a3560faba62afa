"""What is done is skipped, what changed is made again, and single stages equal the whole run."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from wsss.options import parse_config
from wsss.runner import fingerprints
from wsss.stages.prepare import prepare_dataset

Stages = Callable[[Path], dict[str, Any]]
OUTPUTS = ("classifier", "saliency", "pseudo_labels", "pseudo_masks", "segmenter", "predictions")


CALIBRATED = ("--refine.background.rule", "calibrated")


@pytest.fixture(autouse=True)
def _few_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    """A calibration asks the classifier two dozen times a photo and class."""
    monkeypatch.setattr("wsss.stages.calibrate.PHOTOS", 4)


@pytest.fixture
def calibrated(run: Path, tiny: list[str], command: Any) -> Path:
    """The finished run with masks of the calibrated rule."""
    assert command("refine", *tiny, "--output", run, "--calibrate").status == 0
    return run


def times(run: Path, *folders: str) -> dict[str, int]:
    """Modification time of every output file."""
    chosen = folders or (*OUTPUTS, "predictions_ms_flip", "predictions_crf")
    return {
        str(path.relative_to(run)): path.stat().st_mtime_ns
        for folder in chosen
        for path in sorted((run / folder).rglob("*"))
        if path.is_file()
    }


def metrics(run: Path) -> dict[str, Any]:
    entries: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return entries


def test_running_again_skips_everything(run: Path, tiny: list[str], command: Any) -> None:
    before, numbers = times(run), metrics(run)
    done = command("run", *tiny, "--output", run)
    assert done.status == 0
    assert done.err.count("already done") == 9
    assert times(run) == before
    assert metrics(run) == numbers


def test_the_stored_configuration_continues_the_run(run: Path, command: Any) -> None:
    before = times(run)
    stored = yaml.safe_load((run / "config.yaml").read_text())
    done = command("run", "--config", run / "config.yaml", "--output", run)
    assert done.status == 0
    assert done.err.count("already done") == 9
    assert times(run) == before
    assert yaml.safe_load((run / "config.yaml").read_text()) == {**stored, "output": str(run)}


def test_where_it_computes_does_not_make_anything_stale(run: Path, tiny: list[str], command: Any) -> None:
    done = command("run", *tiny, "--output", run, "--runtime.workers", 1, "--runtime.precision", "bf16")
    assert done.err.count("already done") == 9


def test_another_threshold_redoes_refine_and_what_follows(
    run: Path, tiny: list[str], command: Any, stages: Stages
) -> None:
    before, entries = times(run), stages(run)
    rule = ["--refine.background.rule", "constant", "--refine.background.threshold", 0.45]
    done = command("run", *tiny, "--output", run, *rule, "--overwrite")
    assert done.status == 0
    assert not (run / "replaced").exists()
    after = times(run)
    assert {n: t for n, t in after.items() if n.startswith(("classifier", "saliency"))} == {
        n: t for n, t in before.items() if n.startswith(("classifier", "saliency"))
    }
    changed = [n for n in after if n.startswith(("pseudo", "segmenter", "predictions"))]
    assert all(after[name] > before[name] for name in changed)
    same = [
        name for name, entry in stages(run).items() if entry["fingerprint"] == entries[name]["fingerprint"]
    ]
    assert same == ["classify", "score_classifier", "saliency", "extend"]
    assert metrics(run)["seed"]["threshold"] == pytest.approx(0.45)


def test_stage_by_stage_equals_run(finished: Path, tiny: list[str], tmp_path: Path, command: Any) -> None:
    output = tmp_path / "steps"
    for stage in ("classify", "saliency", "refine", "segment", "evaluate"):
        assert command(stage, *tiny, "--output", output).status == 0
    assert metrics(output) == metrics(finished)
    (output / "report.html").unlink()
    assert command("report", *tiny, "--output", output).status == 0
    assert (output / "report.html").is_file()


@pytest.mark.parametrize(
    ("stage", "needed"),
    [
        ("saliency", "classify"),
        ("refine", "saliency"),
        ("segment", "refine"),
        ("evaluate", "refine"),
        ("report", "classify"),
    ],
)
def test_a_stage_without_its_predecessor_says_which_to_run(
    tiny: list[str], tmp_path: Path, command: Any, stage: str, needed: str
) -> None:
    sentence = command(stage, *tiny, "--output", tmp_path / "new").sentence
    assert f"{stage} needs the stage {needed}" in sentence
    assert f"run `wsss {needed}` first" in sentence


@pytest.mark.parametrize("stage", ["saliency", "refine", "segment", "evaluate", "report"])
def test_a_stage_after_another_configuration_is_refused_and_changes_nothing(
    run: Path, tiny: list[str], command: Any, stage: str
) -> None:
    stored = {name: (run / name).read_bytes() for name in ("config.yaml", "manifest.json", "metrics.json")}
    before = times(run)
    sentence = command(stage, *tiny, "--output", run, "--classifier.epochs", 2).sentence
    assert "made with another configuration or data" in sentence
    assert f"--config {run / 'config.yaml'}" in sentence
    assert {name: (run / name).read_bytes() for name in stored} == stored
    assert times(run) == before


def test_evaluate_without_a_segmenter_scores_the_masks(
    run: Path, tiny: list[str], command: Any, finished: Path
) -> None:
    done = command("evaluate", *tiny, "--output", run, "--segmenter.epochs", 3)
    assert done.status == 0
    assert "only seeds and pseudo-masks are scored" in done.err
    assert set(metrics(run)) == {"classifier", "seed", "mask"}


def test_supervised_trains_only_the_twin_and_adds_its_numbers(
    run: Path, tiny: list[str], command: Any, stages: Stages
) -> None:
    before, numbers = times(run), metrics(run)
    done = command("run", *tiny, "--output", run, "--segmenter.supervised", "true")
    assert done.status == 0
    assert done.err.count("already done") == 9
    assert times(run) == before
    after = metrics(run)
    assert {name: after[name] for name in numbers} == numbers
    assert set(after) - set(numbers) == {"supervised", "retention"}
    assert after["retention"] == pytest.approx(after["val"]["miou"] / after["supervised"]["miou"])
    assert (run / "segmenter_supervised" / "last.ckpt").is_file()
    assert len(list((run / "supervised_predictions").glob("*.png"))) == 6
    # and a segmenter of other settings is not compared with the twin of the old ones
    command("segment", *tiny, "--output", run, "--segmenter.epochs", 1, "--overwrite")
    assert not {"val", "supervised", "retention"} & set(metrics(run))


def test_numbers_that_are_no_longer_asked_for_leave_metrics(run: Path, tiny: list[str], command: Any) -> None:
    done = command("run", *tiny, "--output", run, "--evaluate.ms_flip", "false", "--evaluate.crf", "false")
    assert done.status == 0
    assert set(metrics(run)) == {"classifier", "seed", "mask", "val", "tags"}
    assert not (run / "predictions_ms_flip").exists()


def test_going_back_to_the_old_configuration_gives_the_old_numbers(
    run: Path, tiny: list[str], command: Any
) -> None:
    numbers = metrics(run)
    assert command("refine", *tiny, "--output", run, "--refine.background.threshold", 0.5).status == 0
    assert set(metrics(run)) == {"classifier"}
    assert command("run", *tiny, "--output", run).status == 0
    assert metrics(run) == numbers


@pytest.mark.parametrize(
    ("lost", "stage"),
    [
        ("saliency/train_000003.npz", "saliency"),
        ("pseudo_masks/train_000003.png", "refine"),
        ("pseudo_labels/train_000003.png", "refine"),
        ("predictions/val_000003.png", "evaluate"),
    ],
)
def test_a_lost_output_is_made_again(
    run: Path, finished: Path, tiny: list[str], command: Any, lost: str, stage: str
) -> None:
    before = times(run)
    (run / lost).unlink()
    done = command("run", *tiny, "--output", run)
    assert done.status == 0
    assert f"{stage}: " in done.err
    assert (run / lost).read_bytes() == (finished / lost).read_bytes() or lost.endswith("npz")
    touched = {name for name, stamp in times(run).items() if before[name] != stamp}
    assert {name for name in touched if name.startswith(lost.split("/")[0] + "/")} == {lost}
    assert metrics(run) == metrics(finished)


def test_a_new_photo_makes_the_run_stale(run: Path, shapes_copy: Path, tiny: list[str], command: Any) -> None:
    shutil.copy(
        shapes_copy / "JPEGImages" / "train_000001.jpg", shapes_copy / "JPEGImages" / "train_000000.jpg"
    )
    done = command("saliency", *tiny, "--output", run, "--data.root", shapes_copy)
    assert "made with another configuration or data" in done.sentence


def test_a_run_directory_may_move(run: Path, tiny: list[str], command: Any, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    os.rename(run, moved)
    assert command("run", *tiny, "--output", moved).err.count("already done") == 9


def test_calibrated_masks_are_those_of_the_rule_with_the_largest_gain(
    calibrated: Path, tiny: list[str], command: Any
) -> None:
    run = calibrated
    facts = json.loads((run / "calibration.json").read_text())["saliency"]
    gains = [
        candidate["kept"] - candidate["removed"] - candidate["area"] for candidate in facts["candidates"]
    ]
    best = facts["candidates"][gains.index(max(gains))]
    assert {key: best[key] for key in facts["chosen"]} == facts["chosen"]
    made = {path.name: path.read_bytes() for path in (run / "pseudo_labels").glob("*.png")}
    options = [f"--refine.background.{key}={value}" for key, value in facts["chosen"].items()]
    assert command("refine", *tiny, "--output", run, *options).status == 0
    assert made == {path.name: path.read_bytes() for path in (run / "pseudo_labels").glob("*.png")}


def test_the_table_of_the_calibration_says_what_masks_would_choose(
    run: Path, tiny: list[str], command: Any
) -> None:
    outcome = command("refine", *tiny, "--output", run, *CALIBRATED)
    assert outcome.out.count("<- chosen") == 1
    assert "oracle, not used" in outcome.out


def test_another_crf_asks_no_classifier_again(
    calibrated: Path, tiny: list[str], command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = calibrated
    calibration, mask = run / "calibration.json", next((run / "pseudo_masks").glob("*.png"))
    before, made = calibration.stat().st_mtime_ns, mask.stat().st_mtime_ns
    for stage in ("calibrate", "saliency", "extend"):
        monkeypatch.setattr(f"wsss.stages.{stage}.load_classifier", None)
    outcome = command("refine", *tiny, "--output", run, *CALIBRATED, "--refine.crf.iterations", 2)
    assert outcome.status == 0, outcome.err
    assert mask.stat().st_mtime_ns > made
    assert calibration.stat().st_mtime_ns == before


def test_new_maps_are_calibrated_anew(calibrated: Path, tiny: list[str], command: Any) -> None:
    run, tiny = calibrated, [*tiny, *CALIBRATED]
    before = (run / "calibration.json").stat().st_mtime_ns
    assert command("saliency", *tiny, "--output", run, "--saliency.method", "gradient").status == 0
    assert not (run / "calibration.json").exists()
    assert command("refine", *tiny, "--output", run, "--saliency.method", "gradient").status == 0
    assert (run / "calibration.json").stat().st_mtime_ns > before


def test_calibrate_goes_before_a_rule_of_the_configuration(
    run: Path, tiny: list[str], tmp_path: Path, command: Any
) -> None:
    (tmp_path / "rule.yaml").write_text("refine: {background: {rule: constant, threshold: 0.6}}")
    words = [*tiny, "--config", tmp_path / "rule.yaml", "--output", run]
    assert command("refine", *words).status == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["refine"]["background"]["rule"] == "constant"
    done = command("refine", "--calibrate", *words)
    assert done.status == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["refine"]["background"]["rule"] == "calibrated"


def test_calibrate_is_an_option_of_refine_only(tiny: list[str], run: Path, command: Any) -> None:
    assert command("saliency", *tiny, "--output", run, "--calibrate").status == 2


@pytest.mark.parametrize("method", ["pixels", "walk"])
def test_masks_from_extended_maps_are_scored_step_by_step(
    method: str, run: Path, tiny: list[str], command: Any
) -> None:
    options = [*tiny, "--output", run, "--extend.method", method, "--extend.rounds", 2, "--extend.steps", 4]
    assert command("refine", *options).status == 0
    assert len(list((run / "extended").glob("*.npz"))) == len(list((run / "saliency").glob("*.npz")))
    assert (run / "extension.npz").is_file() == (method == "pixels")
    assert command("evaluate", *options).status == 0  # the segmenter is another one's: only masks are scored
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["extended"]["method"] == method
    assert metrics["extended"]["images"] == metrics["seed"]["images"] == metrics["mask"]["images"]
    assert ("oracle_background_factor" in metrics["mask"]) == (method == "pixels")
    assert "extended seeds" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("method", "of_masks"), [("pixels", set()), ("walk", {"extended"}), ("none", {"saliency"})]
)
def test_the_background_rule_is_calibrated_only_where_something_depends_on_it(
    method: str, of_masks: set[str], run: Path, tiny: list[str], command: Any
) -> None:
    def calibrated() -> set[str]:
        path = run / "calibration.json"
        return set(json.loads(path.read_text())) if path.is_file() else set()

    options = [
        *tiny,
        *CALIBRATED,
        "--output",
        run,
        "--extend.method",
        method,
        "--extend.rounds",
        2,
        "--extend.steps",
        4,
    ]
    assert command("refine", *options).status == 0
    assert calibrated() == of_masks
    assert command("evaluate", *options).status == 0  # there are true masks: the seeds are scored
    assert calibrated() == of_masks | {"saliency"}


def test_settings_that_play_no_part_are_told_once(run: Path, tiny: list[str], command: Any) -> None:
    options = [*tiny, "--output", run, "--refine.uncertainty", "posterior", "--refine.low_factor", 0.5]
    told = "refine.low_factor is 0.5, but has no effect"
    assert command("refine", *options).err.count(told) == 1
    assert told not in command("refine", *options).err  # done before
    walk = [*tiny, "--output", run, "--extend.method", "walk", "--extend.steps", 2, "--extend.rounds", 2]
    said = command("refine", *walk).err
    assert "extend.rounds is 2, but has no effect: the extension is walk (extend.method)" in said
    assert "extend.steps is" not in said
    pamr = [*tiny, "--output", run, "--refine.method", "pamr", "--refine.crf.iterations", 3]
    assert command("refine", *pamr).err.count("refine.crf.iterations is 3, but has no effect") == 1


@pytest.mark.parametrize(
    ("command_name", "options", "told"),
    [
        (
            "saliency",
            ["--saliency.method", "multiscale(gradcam, scales=(1,))", "--saliency.flip", "false"],
            "saliency.flip is False, but has no effect: saliency.method says scales and mirror images itself",
        ),
        (
            "saliency",
            ["--saliency.method", "cameras(resolutions=(64,))", "--saliency.balance", "max"],
            "saliency.balance is max, but has no effect: saliency.method has scales of its own",
        ),
        (
            "segment",
            ["--segmenter.bootstrap", "soft", "--segmenter.epochs", 1, "--overwrite"],
            "segmenter.bootstrap is soft, but has no effect: segmenter.loss is cross_entropy",
        ),
        (
            "evaluate",
            ["--evaluate.ms_flip", "false"],
            "evaluate.scales is (0.75, 1.0), but has no effect: evaluate.ms_flip is false",
        ),
    ],
)
def test_other_stages_tell_them_too(
    run: Path, tiny: list[str], command: Any, command_name: str, options: list[str], told: str
) -> None:
    assert told in command(command_name, *tiny, "--output", run, *options).err


@pytest.mark.parametrize("folder", ["classifier", "segmenter"])
def test_best_checkpoint_is_that_of_the_best_validation(finished: Path, folder: str) -> None:
    with (finished / folder / "metrics.csv").open() as stream:
        scores = [
            float(row[{"classifier": "val_mAP", "segmenter": "val_mIoU"}[folder]])
            for row in csv.DictReader(stream)
        ]
    chosen = torch.load(finished / folder / "best.ckpt", weights_only=True)["epoch"]
    assert scores[chosen] == max(scores)


def test_every_stage_takes_the_checkpoint_of_the_classifier_that_is_asked_for(
    run: Path, tiny: list[str], command: Any
) -> None:
    options = [*tiny, "--output", run, "--saliency.checkpoint", "best"]
    for name in ("saliency", "refine"):
        assert command(name, *options).status == 0
    best = run / "classifier" / "best.ckpt"
    best.write_bytes(b"nothing")
    for name, *changes in (
        ("segment", "--overwrite"),
        ("refine", *CALIBRATED),
        ("refine", "--extend.method", "walk"),
        ("saliency", "--saliency.method", "gradient"),
    ):
        assert f"{best} cannot be loaded" in command(name, *options, *changes).sentence, name


# -- what a fingerprint covers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "again"),
    [
        ("--saliency.batch_size", 1, []),
        ("--segmenter.val_every", 2, []),
        ("--extend.radius", 5, []),  # of an extension that this configuration does not use
        ("--evaluate.oracle_images", 3, ["score_masks"]),
        ("--saliency.checkpoint", "best", ["saliency", "extend", "refine"]),
    ],
)
def test_what_changes_no_result_makes_nothing_again(
    run: Path, tiny: list[str], option: str, value: Any, again: list[str]
) -> None:
    def found(*words: Any) -> dict[str, str]:
        config = parse_config("run", [str(word) for word in (*tiny, "--output", run, *words)])
        return fingerprints(config, prepare_dataset(config))

    before, after = found(), found(option, value)
    changed = [name for name in before if before[name] != after[name]]
    assert changed[: len(again)] == again
    assert bool(changed) == bool(again)
    if option == "--evaluate.oracle_images":
        assert changed == again


def test_other_validation_photos_score_the_same_classifier_anew(
    run: Path, tiny: list[str], shapes: Path, command: Any, tmp_path: Path
) -> None:
    names = (shapes / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    chosen = tmp_path / "two.txt"
    chosen.write_text("\n".join(names[:2]) + "\n")
    two = [*tiny, "--data.train", "train", "--data.val", chosen]
    before, checkpoint = metrics(run), (run / "classifier" / "last.ckpt").stat().st_mtime_ns
    assert command("classify", *two, "--output", run).status == 0
    after = metrics(run)
    assert (run / "classifier" / "last.ckpt").stat().st_mtime_ns == checkpoint
    assert after["classifier"] != before["classifier"]
    assert "val" not in after
    # the twin on the same two photos, from nothing
    fresh = tmp_path / "fresh"
    assert command("classify", *two, "--output", fresh).status == 0
    assert metrics(fresh)["classifier"] == after["classifier"]


def test_other_weights_at_the_same_path_are_noticed(tiny: list[str], tmp_path: Path, shapes: Path) -> None:
    path = tmp_path / "w.pth"

    def found() -> dict[str, str]:
        words = [*tiny, "--segmenter.weights", path, "--output", tmp_path / "r"]
        config = parse_config("run", [str(word) for word in words])
        return fingerprints(config, prepare_dataset(config))

    path.write_bytes(b"one")
    before = found()
    assert found() == before
    path.write_bytes(b"two")
    after = found()
    assert {name for name in before if before[name] != after[name]} == {
        "segment",
        "supervise",
        "evaluate",
        "score_tags",
        "evaluate_supervised",
    }


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--refine.low_factor", 2, "but 0 < low_factor <= 1 <= high_factor is needed"),
        ("--refine.soft_crf.iterations", -1, "refine.soft_crf.iterations is -1, but must be 0 or more"),
        ("--refine.crf.bilateral_sxy", 0, "refine.crf.bilateral_sxy is 0.0, but must be 0.1 or more"),
        ("--refine.method", "crff", "refine.method: there is no refinement 'crff'; did you mean crf?"),
        ("--refine.method", "pamr(iterations=-1)", "iterations must be 0 or more, not -1"),
    ],
)
def test_a_value_without_a_meaning_is_refused_before_anything_is_lost(
    run: Path, tiny: list[str], command: Any, option: str, value: Any, words: str
) -> None:
    before, numbers = times(run), metrics(run)
    assert words in command("run", *tiny, "--output", run, option, value).sentence
    assert times(run) == before
    assert metrics(run) == numbers
