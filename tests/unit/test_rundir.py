"""The run directory: fingerprints, states of the stages, lock, numbers."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import wsss.rundir
from wsss.errors import UserError
from wsss.rundir import RunDirectory, describe_machine, file_stamp, find_checkpoint, fingerprint


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


class Interrupted(Exception):
    pass


# -- fingerprints ----------------------------------------------------------------------------------


def test_fingerprint_depends_on_every_part_and_not_on_the_order_of_keys() -> None:
    base = fingerprint("saliency", {"a": 1, "b": [1, 2]}, None)
    assert base == fingerprint("saliency", {"b": (1, 2), "a": 1}, None)
    others = [
        fingerprint("refine", {"a": 1, "b": [1, 2]}, None),
        fingerprint("saliency", {"a": 2, "b": [1, 2]}, None),
        fingerprint("saliency", {"a": 1, "b": [2, 1]}, None),
        fingerprint("saliency", {"a": 1, "b": [1, 2]}, ["x"]),
        fingerprint("saliency", {"a": 1, "b": [1, 2]}),
    ]
    assert len({base, *others}) == 6


def test_fingerprint_covers_the_code_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint("a")
    monkeypatch.setattr(wsss.rundir, "__version__", "0.0.0.other")
    assert fingerprint("a") != before


def test_fingerprint_is_the_same_in_another_process() -> None:
    code = "from wsss.rundir import fingerprint; print(fingerprint('a', {'x': [1, None], 'y': 0.1}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint("a", {"x": [1, None], "y": 0.1})


def test_file_stamp_is_name_and_size(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"12345")
    assert file_stamp(tmp_path / "a.png") == ("a.png", 5)
    assert file_stamp(tmp_path / "b.png") is None


# -- stages ----------------------------------------------------------------------------------------


def test_stage_goes_from_missing_over_partial_to_done_and_becomes_stale(run: RunDirectory) -> None:
    assert run.stage_state("refine", "f1") == "missing"
    with run.running("refine", "f1", ["masks"]) as facts:
        facts["images"] = 7
        assert run.stage_state("refine", "f1") == "partial"
        assert run.stage_state("refine", "f2") == "stale"
    assert run.stage_state("refine", "f1") == "done"
    assert run.stage_state("refine", "f2") == "stale"
    assert run.stage_state("saliency", "f1") == "missing"
    entry = run.read_manifest()["stages"]["refine"]
    assert entry["images"] == 7
    assert entry["peak_memory_mib"]["process"] > 1


def test_done_stage_that_lacks_a_file_is_partial(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with run.running("refine", "f1", []):
        pass
    assert run.stage_state("refine", "f1", [tmp_path / "a"]) == "done"
    assert run.stage_state("refine", "f1", [tmp_path / "a", tmp_path / "b"]) == "partial"


def interrupt(run: RunDirectory, fingerprint: str, outputs: list[str], name: str) -> None:
    with pytest.raises(Interrupted), run.running("refine", fingerprint, outputs) as facts:  # noqa: PT012
        (run.root / outputs[0]).mkdir(exist_ok=True)
        (run.root / outputs[0] / name).touch()
        facts["method"] = name
        raise Interrupted


def test_partial_outputs_are_kept_and_stale_ones_removed(run: RunDirectory) -> None:
    interrupt(run, "f1", ["masks", "one.txt"], "a")
    (run.root / "one.txt").touch()
    (run.root / "other").mkdir()
    assert run.stage_state("refine", "f1") == "partial"
    with run.running("refine", "f1", ["masks", "one.txt"]):
        assert (run.root / "masks" / "a").is_file()
        assert (run.root / "one.txt").is_file()
    with run.running("refine", "f2", ["masks", "one.txt", "never made"]):
        assert not (run.root / "masks").exists()
        assert not (run.root / "one.txt").exists()
    assert (run.root / "other").is_dir()


def test_leftovers_of_a_killed_process_are_removed_and_its_results_kept(run: RunDirectory) -> None:
    interrupt(run, "f", ["masks"], "1.png")
    (run.root / "masks" / "a").mkdir()
    (run.root / "masks" / "a" / ".2.png.77.tmp").write_bytes(b"half")
    with run.running("refine", "f", ["masks"]):
        assert [path.name for path in (run.root / "masks").rglob("*") if path.is_file()] == ["1.png"]


OUTPUTS = ["masks", "table.json"]


@pytest.fixture
def old(run: RunDirectory) -> RunDirectory:
    """A run whose stage `refine` is done with the fingerprint "old"."""
    with run.running("refine", "old", OUTPUTS):
        write(run, "old")
    return run


def write(run: RunDirectory, content: str) -> None:
    (run.root / "masks").mkdir(exist_ok=True)
    (run.root / "masks" / "1.png").write_text(content)
    (run.root / "table.json").write_text(content)


def cut_off(run: RunDirectory, fingerprint: str, content: str) -> None:
    """The stage begins with this fingerprint, finds nothing, and is interrupted after it has written ``content``."""
    with suppress(KeyboardInterrupt), run.running("refine", fingerprint, OUTPUTS):
        assert contents(run.root) == ["", ""]
        write(run, content)
        raise KeyboardInterrupt


def contents(folder: Path) -> list[str]:
    files = [folder / "masks" / "1.png", folder / "table.json"]
    return [path.read_text() if path.exists() else "" for path in files]


def aside(run: RunDirectory) -> Path:
    return run.root / "replaced" / "refine"


def test_what_a_stale_stage_wrote_is_kept_until_its_successor_is_whole(old: RunDirectory) -> None:
    cut_off(old, "new", "half")
    assert contents(aside(old)) == ["old", "old"]
    with old.running("refine", "new", OUTPUTS):
        assert contents(old.root) == ["half", "half"]
        write(old, "new")
    assert contents(old.root) == ["new", "new"]
    assert not (old.root / "replaced").exists()


def test_with_the_old_configuration_the_old_results_come_back(old: RunDirectory) -> None:
    before = old.stage_entry("refine")
    cut_off(old, "new", "half")
    assert not old.take_back("refine", OUTPUTS, "another")
    assert contents(old.root) == ["half", "half"]
    assert old.take_back("refine", OUTPUTS, "old")
    assert contents(old.root) == ["old", "old"]
    assert old.stage_entry("refine") == before
    assert not aside(old).exists()
    assert not old.take_back("refine", OUTPUTS, "old")


def test_finished_results_stay_aside_when_two_successors_are_cut_off(old: RunDirectory) -> None:
    for successor in ("b", "c"):
        cut_off(old, successor, successor)
    assert contents(aside(old)) == ["old", "old"]
    assert contents(old.root) == ["c", "c"]


@pytest.mark.parametrize("renames", [1, 2, 3])
def test_a_kill_while_results_are_moved_aside_loses_none(
    old: RunDirectory, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """Of its entry, of one output, of both: the next process undoes it, and does not take them for the new stage's."""
    before, left, replace = old.stage_entry("refine"), renames, os.replace

    def killed(source: Any, target: Any) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        replace(source, target)

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt), old.running("refine", "new", OUTPUTS):
        pass
    monkeypatch.undo()
    assert old.take_back("refine", OUTPUTS)
    assert contents(old.root) == ["old", "old"]
    assert old.stage_entry("refine") == before
    assert not aside(old).exists()


def test_a_shared_stage_leaves_the_temporary_files_of_the_others(run: RunDirectory) -> None:
    interrupt(run, "f", ["masks"], ".1.png.77.tmp")
    with run.running("refine", "f", ["masks"], shared=True):
        assert (run.root / "masks" / ".1.png.77.tmp").is_file()


def test_seconds_of_interrupted_and_continued_stages_add_up(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for seconds in (3.0, 4.0):
        with pytest.raises(Interrupted), run.running("refine", "f1", []):  # noqa: PT012
            now[0] += seconds
            raise Interrupted
    with run.running("refine", "f1", []):
        now[0] += 5.5
    assert run.read_manifest()["stages"]["refine"]["seconds"] == 12.5
    with run.running("refine", "f2", []):  # another stage in fact: it starts from zero
        now[0] += 1
    assert run.read_manifest()["stages"]["refine"]["seconds"] == 1


def test_facts_of_one_stage_leave_the_others_alone(run: RunDirectory) -> None:
    with run.running("classify", "f1", []) as facts:
        facts["images"] = 3
    before = run.read_manifest()["stages"]["classify"]
    run.record("refine", state="running", fingerprint="f2")
    run.record("refine", images=4)
    stages = run.read_manifest()["stages"]
    assert stages["classify"] == before
    assert stages["refine"] == {"state": "running", "fingerprint": "f2", "images": 4}


def test_stage_that_is_made_again_loses_its_old_facts(run: RunDirectory) -> None:
    with run.running("saliency", "f1", []) as facts:
        facts["method"] = "GradCAM"
    with run.running("saliency", "f2", []):
        pass
    assert "method" not in run.read_manifest()["stages"]["saliency"]


def test_paths_lie_in_the_run_directory(run: RunDirectory) -> None:
    assert run.checkpoint("classifier", "best") == run.root / "classifier" / "best.ckpt"
    assert run.saliency("a/b.c") == run.root / "saliency" / "a" / "b.c.npz"
    assert run.mask("pseudo_masks", "2007_000032") == run.root / "pseudo_masks" / "2007_000032.png"


# -- numbers ---------------------------------------------------------------------------------------


def test_metrics_are_replaced_and_removed_by_entry(run: RunDirectory) -> None:
    assert run.read_metrics() == {}
    run.update_metrics(seed={"miou": 0.4, "absent": ["x"]}, val={"miou": 0.5}, retention=0.9)
    run.update_metrics(seed={"miou": 0.6}, retention=None, never=None)
    assert run.read_metrics() == {"seed": {"miou": 0.6}, "val": {"miou": 0.5}}


# -- lock ------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from wsss.rundir import RunDirectory
with RunDirectory(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_lock_refuses_a_second_process_and_goes_with_a_killed_one(run: RunDirectory) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=r"run is in use by another wsss process; wait"), run.locked():
            pass
    finally:
        holder.kill()
        holder.wait()
    with run.locked():
        pass


def test_a_forked_worker_does_not_keep_the_lock(run: RunDirectory) -> None:
    with run.locked():
        reader, writer = os.pipe()
        started, ready = os.pipe()
        child = os.fork()
        if child == 0:  # a worker that outlives the run
            os.write(ready, b"x")
            os.read(reader, 1)
            os._exit(0)
        os.read(started, 1)
    try:
        with run.locked():
            pass
    finally:
        os.write(writer, b"x")
        os.waitpid(child, 0)


def test_lock_is_given_back_after_an_error(run: RunDirectory) -> None:
    with pytest.raises(Interrupted), run.locked():
        raise Interrupted
    with run.locked():
        pass


def test_run_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot use .*run as a run directory .*choose another with --output"),
        RunDirectory(tmp_path / "run").locked(),
    ):
        pass


# -- machine ---------------------------------------------------------------------------------------


GROW = """
from wsss.rundir import peak_memory_mib
before = peak_memory_mib()["process"]
block = bytearray(int((before + 40) * 2**20))
del block
print(peak_memory_mib()["process"] - before)
"""


def test_peak_memory_is_that_of_the_largest_moment() -> None:
    done = subprocess.run([sys.executable, "-c", GROW], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 35


def test_machine_is_described_with_versions_and_hardware() -> None:
    import torch

    facts = describe_machine()
    assert facts["wsss"] == wsss.__version__
    assert torch.__version__.startswith(facts["packages"]["torch"])
    assert facts["cores"] >= 1
    assert facts["cpu"]


def test_a_checkpoint_is_found_in_a_run_and_in_a_networks_folder(tmp_path: Path) -> None:
    file = tmp_path / "segmenter" / "last.ckpt"
    file.parent.mkdir()
    file.touch()
    for named in (tmp_path, file.parent, file):
        assert find_checkpoint(named, "segmenter") == file
    assert (
        find_checkpoint(tmp_path / "none.ckpt", "segmenter") == tmp_path / "none.ckpt"
    )  # whoever reads it complains
    message = "there is no checkpoint .*classifier/last.ckpt; finish the training with `wsss classify`"
    with pytest.raises(UserError, match=message):
        find_checkpoint(tmp_path, "classifier")
