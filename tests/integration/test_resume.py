"""Runs that are really killed, and continued: nothing is lost, nothing is different."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
HELD = Path(__file__).with_name("held.py")


@contextmanager
def held(pattern: str, count: int, *words: object) -> Iterator["subprocess.Popen[str]"]:
    """``wsss WORDS...`` in a process of its own that has just written the count-th file that matches, and waits.

    It does not outlive the block.
    """
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, str(HELD), str(writing), str(count), pattern, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        pass_fds=[writing],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a shell, Ctrl-C is ignored, and so it would be here.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(writing)
    try:
        if not os.read(reading, 1):  # the end of the pipe: the process is gone
            pytest.fail(f"ended before it wrote {pattern}: {process.communicate()[1]}")
        yield process
    finally:
        os.close(reading)
        process.kill()
        process.communicate()


def rewind(run: Path, stage: str) -> None:
    """Make a copy of a finished run look as if it had ended before ``stage``."""
    order = ["classify", "saliency", "refine", "segment", "score_masks", "evaluate"]
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"] = {name: manifest["stages"][name] for name in order[: order.index(stage)]}
    (run / "manifest.json").write_text(json.dumps(manifest))
    outputs = {
        "classify": ["classifier", "metrics.json"],
        "saliency": ["saliency"],
        "refine": ["pseudo_labels", "pseudo_masks"],
        "segment": ["segmenter"],
        "evaluate": ["predictions", "predictions_ms_flip", "predictions_crf"],
    }
    for name in order[order.index(stage) :]:
        for output in outputs.get(name, []):
            path = run / output
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def weights(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)["state_dict"]
    return state


def same_weights(path: Path, other: Path) -> bool:
    ours, theirs = weights(path), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("stage", "folder"), [("classify", "classifier"), ("segment", "segmenter")])
def test_killed_training_continues_to_the_same_weights(
    run: Path, finished: Path, tiny: list[str], command: Any, stage: str, folder: str
) -> None:
    rewind(run, stage)
    checkpoint = run / folder / "last.ckpt"
    with held(str(checkpoint), 1, stage, *tiny, "--output", run) as process:
        process.kill()
        process.wait()
    assert json.loads((run / "manifest.json").read_text())["stages"][stage]["state"] == "running"
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 0
    total = {"classify": 3, "segment": 2}[stage]
    (run / folder / f".last.ckpt.{process.pid}.tmp").write_bytes(b"half a checkpoint")
    done = command(stage, *tiny, "--output", run)
    assert done.status == 0
    assert "(continued)" in done.err
    assert f"epoch 2/{total}" in done.err
    assert "epoch 1/" not in done.err
    assert same_weights(checkpoint, finished / folder / "last.ckpt")
    assert (run / folder / "metrics.csv").read_text() == (finished / folder / "metrics.csv").read_text()
    if stage == "classify":
        metrics = [json.loads((path / "metrics.json").read_text()) for path in (run, finished)]
        assert metrics[0]["classifier"] == metrics[1]["classifier"]


@pytest.mark.parametrize(
    ("stage", "folder", "ending"),
    [
        ("saliency", "saliency", "npz"),
        ("refine", "pseudo_masks", "png"),
        ("evaluate", "predictions_crf", "png"),
    ],
)
def test_killed_per_image_stage_continues_with_the_missing_files(
    run: Path, finished: Path, tiny: list[str], command: Any, stage: str, folder: str, ending: str
) -> None:
    rewind(run, stage)

    def files() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (run / folder).glob(f"*.{ending}")}

    with held(f"{run / folder}/*.{ending}", 2, stage, *tiny, "--output", run) as process:
        process.kill()
        process.wait()
    survived = files()
    everything = {path.name for path in (finished / folder).iterdir()}
    assert len(survived) == 2 < len(everything)
    missing = sorted(everything - survived.keys())[0]
    (run / folder / f".{missing}.{process.pid}.tmp").write_bytes(b"half a file")
    done = command("run", *tiny, "--output", run)
    assert done.status == 0
    assert f"{stage}: " in done.err
    assert "(continued)" in done.err
    after = files()
    assert after.keys() == everything
    assert {name: after[name] for name in survived} == survived
    for name in everything:
        assert same_file(run / folder / name, finished / folder / name)
    assert (run / "metrics.json").read_bytes() == (finished / "metrics.json").read_bytes()


def same_file(path: Path, other: Path) -> bool:
    """Equal content; .npz archives carry times."""
    if path.suffix != ".npz":
        return path.read_bytes() == other.read_bytes()
    with np.load(path) as ours, np.load(other) as theirs:
        return all(np.array_equal(ours[name], theirs[name]) for name in ("classes", "maps", "size"))


@pytest.mark.slow
def test_a_run_killed_in_its_first_training_ends_with_the_same_numbers(
    finished: Path, tiny: list[str], tmp_path: Path, command: Any
) -> None:
    output = tmp_path / "whole"
    with held(str(output / "classifier" / "last.ckpt"), 1, "run", *tiny, "--output", output) as process:
        process.kill()
        process.wait()
    assert command("run", *tiny, "--output", output).status == 0
    assert json.loads((output / "metrics.json").read_text()) == json.loads(
        (finished / "metrics.json").read_text()
    )


def test_ctrl_c_in_a_training_ends_with_one_sentence(run: Path, tiny: list[str]) -> None:
    rewind(run, "classify")
    with held(str(run / "classifier" / "last.ckpt"), 1, "classify", *tiny, "--output", run) as process:
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "interrupted; the same command continues where it stopped" in error
    assert "Traceback" not in error


def test_a_run_directory_in_use_is_refused(run: Path, tiny: list[str], command: Any) -> None:
    with (run / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        sentence = command("run", *tiny, "--output", run).sentence
    assert f"{run} is in use by another wsss process" in sentence
    assert command("run", *tiny, "--output", run).status == 0


def test_the_lock_goes_with_a_killed_process(run: Path, tiny: list[str], command: Any) -> None:
    code = "import fcntl, sys; h = open(sys.argv[1], 'w'); fcntl.flock(h, 2); print(1, flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert "in use" in command("run", *tiny, "--output", run).sentence
    process.kill()
    process.communicate()
    assert command("run", *tiny, "--output", run).status == 0


@pytest.mark.parametrize("name", ["manifest.json", "metrics.json"])
def test_a_damaged_file_of_the_run_is_named(run: Path, tiny: list[str], command: Any, name: str) -> None:
    (run / name).write_text('{"half')
    assert f"{run / name} is not valid JSON" in command("run", *tiny, "--output", run).sentence


def test_a_damaged_checkpoint_is_named_when_training_continues(
    run: Path, tiny: list[str], command: Any
) -> None:
    rewind(run, "saliency")
    (run / "classifier" / "last.ckpt").write_bytes(b"nothing")
    assert str(run / "classifier" / "last.ckpt") in command("saliency", *tiny, "--output", run).sentence
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"]["classify"]["state"] = "running"
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert str(run / "classifier" / "last.ckpt") in command("classify", *tiny, "--output", run).sentence


def test_a_truncated_archive_is_named_and_its_mend_works(
    run: Path, finished: Path, tiny: list[str], command: Any
) -> None:
    rewind(run, "refine")
    path = run / "saliency" / "train_000007.npz"
    path.write_bytes(path.read_bytes()[:-20])
    sentence = command("refine", *tiny, "--output", run).sentence
    assert f"{path} is not a complete saliency archive" in sentence
    assert "remove it and run the saliency stage again" in sentence
    path.unlink()
    assert "needs the stage saliency" in command("refine", *tiny, "--output", run).sentence
    assert command("saliency", *tiny, "--output", run).status == 0
    assert command("refine", *tiny, "--output", run).status == 0
    for mask in (finished / "pseudo_masks").iterdir():
        assert (run / "pseudo_masks" / mask.name).read_bytes() == mask.read_bytes()
