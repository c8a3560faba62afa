"""Sharing a per-image stage among processes that were started together.

`torchrun --nproc-per-node 4 -m wsss saliency ...` or `srun -n 4 wsss refine ...` on one file system: process 0
owns the run directory and its manifest, the others only write files of their shard. A file that exists is done, so no
process waits for another. After its own shard, process 0 makes what is still missing, even if another process died.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from wsss.errors import UserError
from wsss.rundir import RunDirectory

T = TypeVar("T")

SHARED = ("saliency", "refine")
"""The commands whose work is shared."""

PATIENCE = 600.0
"""Seconds that a helping process waits for process 0 to begin the stage."""


def rank_and_world() -> tuple[int, int]:
    """Index of this process and number of processes, from torchrun or Slurm's srun; (0, 1) without them."""
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and world in os.environ:
            return int(os.environ[rank]), max(1, int(os.environ[world]))
    return 0, 1


def shares(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """What this process works through: its own shard and, for process 0, everything after that, in reverse order.

    By then most is done and skipped. In reverse order, process 0 meets the others late.
    """
    rank, world = rank_and_world()
    if world > 1:
        yield items[rank::world]
    if rank == 0:
        yield items if world == 1 else items[::-1]


def wait_for_stage(stage: str, expected: str, run: RunDirectory, patience: float = PATIENCE) -> None:
    """Return when process 0 has begun the stage (or finished it) with the `expected` fingerprint.

    Raises:
        UserError: process 0 has not begun it within `patience` seconds.
    """

    def begun() -> bool:
        entry = run.read_manifest().get("stages", {}).get(stage, {})
        return entry.get("fingerprint") == expected and entry.get("state") in ("running", "done")

    wait_for(begun, f"begin the stage {stage} in {run.root}", patience)


def wait_for_file(path: Path, patience: float = PATIENCE) -> None:
    """Return when process 0 has written `path`. Raises UserError if it has not within `patience` seconds."""
    wait_for(path.is_file, f"write {path}", patience)


def wait_for(ready: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Return when `ready` says so. Raises UserError, which names `what`, after `patience` seconds."""
    until = time.monotonic() + patience
    while not ready():
        if time.monotonic() > until:
            raise UserError(
                f"process 0 did not {what} within {patience:.0f} s; look at its message, or unset RANK and "
                "WORLD_SIZE to run alone"
            )
        time.sleep(0.2)
