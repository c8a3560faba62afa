"""Sharing the stages of a command among processes, on one file system.

`--runtime.devices 4`, `torchrun --nproc-per-node 4 -m wsss run ...` and `srun -n 4 wsss run ...` all mean four
processes of the same command. Process 0 owns the run directory, its manifest and everything that exists once. The
others help with the stages that are shared: they train with it, or write the files of their shard. A file that exists
is done, so no process waits for another. After its own shard, process 0 makes what is still missing.

With `--runtime.devices` and torchrun a process that fails ends the command. Under srun use `--kill-on-bad-exit`.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

import torch

from wsss.errors import UserError
from wsss.parallel import environment, rank_and_world
from wsss.rundir import RunDirectory, StageState

T = TypeVar("T")

PATIENCE = 600.0
"""Seconds that a helping process waits for process 0 to begin its first stage."""

LONG_PATIENCE = 86_400.0
"""The same for a later stage: what comes before it may be work that process 0 does alone."""

GRACE = 10.0
"""Seconds for a process to end by itself."""


def shares(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """What this process works through: its own shard and, for process 0, everything after that, in reverse order.

    By then most is done and skipped. In reverse order, process 0 meets the others late.
    """
    rank, world = rank_and_world()
    if world > 1:
        yield items[rank::world]
    if rank == 0:
        yield items if world == 1 else items[::-1]


# -- waiting for process 0 --------------------------------------------------------------------------


def wait_for_stage(
    stage: str, expected: str, run: RunDirectory, state: Callable[[], StageState], patience: float = PATIENCE
) -> bool:
    """Return when process 0 has begun or finished the stage with the `expected` fingerprint.

    Args:
        stage: its name.
        expected: its fingerprint.
        run: the run directory.
        state: looks at the manifest and at the files of the stage.
        patience: seconds.

    Returns:
        Whether there is something to help with.

    Raises:
        UserError: process 0 has not begun it within `patience` seconds.
    """

    def begun() -> bool:
        entry = run.stage_entry(stage)
        return entry.get("fingerprint") == expected and (entry.get("state") == "running" or state() == "done")

    wait_for(begun, f"begin the stage {stage} in {run.root}", patience)
    return run.stage_entry(stage).get("state") == "running"


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


# -- starting the other processes -------------------------------------------------------------------


@contextmanager
def helpers(command: str, run: RunDirectory, plugins: Sequence[str], devices: int) -> Iterator[None]:
    """Run the block as process 0 of ``devices``, with the others started as `wsss COMMAND --config RUN/config.yaml`.

    Without effect for one device, and where torchrun or srun started the processes.

    Raises:
        UserError: another process failed or was killed; the message is its own.
    """
    if devices == 1 or rank_and_world()[1] > 1:
        yield
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads, before = max(1, cores // devices), torch.get_num_threads()
    variables = {
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(threads),
    }
    words = [sys.executable, "-m", "wsss", command, "--config", str(run.config)]
    words += ["--plugins", json.dumps(list(plugins))] if plugins else []
    with tempfile.TemporaryFile("w+") as said, environment({**variables, "RANK": "0", "LOCAL_RANK": "0"}):
        others = [
            subprocess.Popen(
                words,
                env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), PARENT: str(os.getpid())},
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
            for rank in range(1, devices)
        ]
        torch.set_num_threads(threads)
        ended = threading.Event()
        threading.Thread(target=_watch, args=(others, said, ended), daemon=True).start()
        try:
            yield
            for process in others:  # all is written: what they still do was done meanwhile
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
        except Exception as error:
            if message := _failure(others, said):
                raise UserError(message) from error
            raise
        finally:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            ended.set()
            torch.set_num_threads(before)
            for process in others:
                process.terminate()
            for process in others:
                _end(process)


PARENT = "WSSS_PARENT"
"""Environment variable with the process number of process 0, for the processes that it started."""


def end_with_parent() -> None:
    """End this process when process 0, which started it, has gone."""
    parent = int(os.environ.get(PARENT, 0))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if parent:
        threading.Thread(target=watch, daemon=True).start()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _watch(others: Sequence["subprocess.Popen[bytes]"], said: IO[str], ended: threading.Event) -> None:
    """End this process if another one failed and the work here does not notice, because it waits for that one."""
    while not ended.wait(0.5):
        if any(process.poll() for process in others):
            if ended.wait(GRACE):
                return
            print(f"wsss: error: {_failure(others, said)}", file=sys.stderr, flush=True)
            for process in others:
                process.kill()
            os._exit(1)


def _failure(others: Sequence["subprocess.Popen[bytes]"], said: IO[str]) -> str:
    """What ended the first process that failed: its own message, or the signal; empty if none failed."""
    deadline = time.monotonic() + 1  # a process whose connection broke may still be ending
    while not (codes := [code for process in others if (code := process.poll())]):
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.05)
    if codes[0] < 0:
        return (
            f"a process of runtime.devices was killed by signal {-codes[0]}, probably because memory ran out; use a "
            "smaller batch_size or fewer --runtime.workers and run it again (finished work is kept)"
        )
    said.seek(0)
    lines = [line for line in said.read().splitlines() if line.strip()] or ["it said nothing"]
    errors = [line.partition("error: ")[2] for line in lines if "error: " in line]
    return errors[-1] if errors else f"a process of runtime.devices failed: {lines[-1]}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
