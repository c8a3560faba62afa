"""Several processes that share a stage, as torchrun or srun start them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.conftest import TRAIN
from wsss.tasks.classification import load_classifier

STAGES = {"saliency": ("saliency", "npz"), "refine": ("pseudo_masks", "png")}


def unfinished(run: Path, stage: str) -> list[Path]:
    """Remove what the stage wrote and mark it as begun; its files, in the order of the ids."""
    folder, suffix = STAGES[stage]
    files = sorted((run / folder).glob(f"*.{suffix}"))
    shutil.rmtree(run / folder)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"][stage]["state"] = "running"
    (run / "manifest.json").write_text(json.dumps(manifest))
    return files


@pytest.mark.parametrize("stage", STAGES)
def test_a_helping_process_makes_its_shard_only(
    stage: str, run: Path, tiny: list[str], command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = unfinished(run, stage)
    before = (run / "manifest.json").read_text()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert command(stage, *tiny, "--output", run).status == 0
    made = [file for file in files if file.is_file()]
    assert len(made) == len(files[1::3])
    assert (run / "manifest.json").read_text() == before


def test_nobody_waits_for_a_stage_that_is_skipped(
    run: Path, tiny: list[str], command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("segmenter", "predictions"):
        shutil.rmtree(run / folder)
    monkeypatch.setattr("wsss.stages.shards.PATIENCE", 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = command("evaluate", *tiny, "--output", run)
    assert done.status == 0, done.err


def test_tools_run_once(command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = command("data", "shapes", tmp_path / "new")
    assert (done.status, done.out) == (0, "")
    assert not (tmp_path / "new").exists()


WRITTEN = (
    "saliency",
    "extended",
    "pseudo_masks",
    "pseudo_labels",
    "predictions",
    "predictions_ms_flip",
    "predictions_crf",
)


def without_images(finished: Path, run: Path) -> None:
    """Copy a finished run without the files of its per-image stages."""
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns(*WRITTEN))


def assert_same_files(finished: Path, run: Path) -> None:
    files = [file for folder in WRITTEN for file in (finished / folder).rglob("*.*")]
    assert len(files) > TRAIN
    for file in files:
        assert file.read_bytes() == (run / file.relative_to(finished)).read_bytes(), file


def test_two_devices_make_what_one_would(
    finished: Path, tiny: list[str], tmp_path: Path, command: Any
) -> None:
    without_images(finished, tmp_path / "run")
    done = command("run", *tiny, "--output", tmp_path / "run", "--runtime.devices", 2)
    assert done.status == 0, done.err
    assert "classify: already done" in done.err
    assert_same_files(finished, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
@pytest.mark.parametrize("processes", [2, 4])
def test_launchers_run_everything(
    launcher: str, processes: int, finished: Path, tiny: list[str], tmp_path: Path
) -> None:
    """Also the trainings; the per-image stages of their networks are then made again by one process."""
    words = ["-m", "wsss", "run", *tiny, "--output", str(tmp_path / "run")]
    if launcher == "torchrun":
        start = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
        ]
        done = subprocess.run([*start, *words], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    else:
        started = [
            subprocess.Popen([sys.executable, *words], env=as_srun(rank, processes))
            for rank in range(processes)
        ]
        assert [process.wait(600) for process in started] == [0] * processes
    without_images(tmp_path / "run", tmp_path / "again")
    alone = subprocess.run(
        [sys.executable, *words[:-1], str(tmp_path / "again")], capture_output=True, text=True
    )
    assert "classify: already done" in alone.stderr
    assert "segment: already done" in alone.stderr
    assert_same_files(tmp_path / "again", tmp_path / "run")


def as_srun(rank: int, processes: int) -> dict[str, str]:
    """The environment of a task of `srun -n PROCESSES` on this machine."""
    slurm = {
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NAME": "test",
        "SLURM_NTASKS": str(processes),
        "SLURM_NTASKS_PER_NODE": str(processes),
        "SLURM_STEP_NUM_TASKS": str(processes),
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }
    return {**os.environ, **slurm}


@pytest.mark.slow
def test_devices_train_what_one_trains(tiny: list[str], tmp_path: Path, command: Any) -> None:
    """With frozen BatchNorm, because each process normalises its own part of a batch on a CPU."""
    found = {}
    for devices in (1, 2, 4):
        words = [*tiny, "--output", tmp_path / str(devices), "--classifier.freeze_batchnorm", "true"]
        assert (
            command("classify", *words, "--runtime.devices", devices, "--runtime.precision", "float32").status
            == 0
        )
        found[devices] = load_classifier(tmp_path / str(devices) / "classifier" / "last.ckpt")[0].state_dict()
    for devices in (2, 4):
        for name, value in found[1].items():
            torch.testing.assert_close(found[devices][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_killed_process_is_named_and_the_run_continues(
    tiny: list[str], tmp_path: Path, command: Any
) -> None:
    words = [*tiny, "--output", str(tmp_path / "run"), "--runtime.devices", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wsss", "run", *words], stderr=subprocess.PIPE, text=True
    )
    helper = None
    while helper is None:
        time.sleep(0.2)
        found = subprocess.run(
            ["pgrep", "-P", str(process.pid), "-f", "--", "--config"], capture_output=True, text=True
        )
        helper = next((int(line) for line in found.stdout.split()), None)
    time.sleep(4)
    os.kill(helper, signal.SIGKILL)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "killed by signal 9" in error
    assert "Traceback" not in error
    assert command("run", *words).status == 0


@pytest.mark.slow
def test_sigterm_ends_a_training_of_several_processes(tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, "--output", str(tmp_path / "run"), "--runtime.devices", "2", "--classifier.epochs", "500"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wsss", "classify", *words], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert any("epoch 2/500" in line for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    time.sleep(2)
    left = subprocess.run(["pgrep", "-f", str(tmp_path / "run")], capture_output=True, text=True).stdout
    assert not left
