"""Who works on what where several processes share a stage."""

import time

import pytest

from wsss.errors import UserError
from wsss.parallel import rank_and_world
from wsss.rundir import RunDirectory
from wsss.runtime import processes_here
from wsss.stages import shards
from wsss.stages.shards import helpers, shares, wait_for_stage

VARIABLES = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_alone_a_process_does_everything_once():
    assert rank_and_world() == (0, 1)
    assert [list(part) for part in shares([1, 2, 3])] == [[1, 2, 3]]


@pytest.mark.parametrize(("rank", "world"), [VARIABLES[:2], VARIABLES[2:]])
def test_shards_are_disjoint_and_process_0_looks_after_the_rest(monkeypatch, rank, world):
    items = list(range(10))
    monkeypatch.setenv(world, "3")
    own: list[int] = []
    for index in range(3):
        monkeypatch.setenv(rank, str(index))
        parts = [list(part) for part in shares(items)]
        own += parts[0]
        assert parts[1:] == ([items[::-1]] if index == 0 else [])
    assert sorted(own) == items


def test_a_helper_waits_for_the_same_stage_but_not_for_ever(tmp_path):
    run = RunDirectory(tmp_path)

    def wait(state):
        return wait_for_stage("refine", "f", run, lambda: state, patience=0)

    with pytest.raises(UserError, match="process 0 did not begin the stage refine"):
        wait("missing")
    run.record("refine", fingerprint="other", state="running")
    with pytest.raises(UserError, match="unset RANK"):
        wait("stale")
    run.record("refine", fingerprint="f", state="running")
    assert wait("partial")
    run.record("refine", state="done")
    assert not wait("done")
    with pytest.raises(
        UserError, match="did not begin"
    ):  # somebody removed a file: process 0 will begin again
        wait("partial")


def test_processes_of_one_machine_share_its_cores(monkeypatch):
    for name, value in (("SLURM_PROCID", "5"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_STEP_NUM_NODES", "2")):
        monkeypatch.setenv(name, value)
    assert processes_here() == 4


def started(monkeypatch, tmp_path, script):
    """Let the helping processes be a shell script."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(shards.sys, "executable", str(program))
    return helpers("run", RunDirectory(tmp_path), ["a.py"], 3)


def test_helping_processes_know_their_place(monkeypatch, tmp_path):
    script = f'echo "$RANK/$WORLD_SIZE $*" > {tmp_path}/$RANK.txt'
    with started(monkeypatch, tmp_path, script):
        assert rank_and_world() == (0, 3)
        assert processes_here() == 3
    words = f'-m wsss run --config {tmp_path}/config.yaml --plugins ["a.py"]'
    assert [(tmp_path / f"{rank}.txt").read_text().strip() for rank in (1, 2)] == [
        f"1/3 {words}",
        f"2/3 {words}",
    ]
    assert rank_and_world() == (0, 1)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo 'wsss run: error: no memory; use less' >&2; exit 1", "no memory; use less"),
        ("kill -9 $$", r"killed by signal 9.*smaller batch_size"),
        ("exit 1", "a process of runtime.devices failed: it said nothing"),
        ("echo ValueError: odd >&2; exit 1", "a process of runtime.devices failed: ValueError: odd"),
    ],
)
def test_the_sentence_of_a_process_that_failed_is_told(monkeypatch, tmp_path, script, sentence):
    with pytest.raises(UserError, match=sentence), started(monkeypatch, tmp_path, script):
        raise RuntimeError("Connection closed by peer")


def test_process_0_does_not_wait_for_what_is_no_longer_needed(monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "GRACE", 0.1)
    begin = time.monotonic()
    with started(monkeypatch, tmp_path, "exec sleep 60"):
        pass
    assert time.monotonic() - begin < 30


def test_errors_of_process_0_stay(monkeypatch, tmp_path):
    with pytest.raises(RuntimeError, match="own"), started(monkeypatch, tmp_path, "exec sleep 60"):
        raise RuntimeError("own")
