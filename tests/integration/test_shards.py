"""Several processes that share a stage, as torchrun or srun start them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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


def test_two_processes_make_what_one_would(run: Path, finished: Path, tiny: list[str]) -> None:
    files = unfinished(run, "refine")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "wsss", "refine", *tiny, "--output", str(run)],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 0, error
    assert json.loads((run / "manifest.json").read_text())["stages"]["refine"]["state"] == "done"
    for file in files:
        assert file.read_bytes() == (finished / file.relative_to(run)).read_bytes()
