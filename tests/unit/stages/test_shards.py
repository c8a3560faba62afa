"""Who works on what where several processes share a stage."""

import pytest

from wsss.errors import UserError
from wsss.rundir import RunDirectory
from wsss.stages.shards import rank_and_world, shares, wait_for_stage

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


def test_a_helper_does_not_wait_for_ever(tmp_path):
    run = RunDirectory(tmp_path)
    with pytest.raises(UserError, match="process 0 did not begin the stage refine"):
        wait_for_stage("refine", "f", run, patience=0)
    run.record("refine", fingerprint="other", state="running")
    with pytest.raises(UserError, match="unset RANK"):
        wait_for_stage("refine", "f", run, patience=0)
    run.record("refine", fingerprint="f", state="running")
    wait_for_stage("refine", "f", run, patience=0)
