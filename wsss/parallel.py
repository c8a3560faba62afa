"""Processes: those that share a command, and a pool for work that holds the GIL (the CRF) or is pure numpy."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from wsss.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
}
"""Environment of the workers. The processes share the cores, so each has one thread. glibc keeps freed memory instead
of returning it to the system and asking for it again in every iteration of a CRF: 20 MB, and 15 of 200 ms per photo."""

WORKER_GONE = (
    "a worker process was killed, probably because it ran out of memory; run the command again with fewer "
    "--runtime.workers (finished work is kept)"
)
"""What a command says when a process of a pool or of a loader was killed."""


def rank_and_world() -> tuple[int, int]:
    """Index of this process and number of processes that share a command, from torchrun or Slurm's srun, or started by
    ``runtime.devices`` (see ``stages.shards``); (0, 1) without them."""
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and world in os.environ:
            return int(os.environ[rank]), max(1, int(os.environ[world]))
    return 0, 1


def _quiet_threads() -> None:
    """One thread per worker process: the processes share the cores."""
    import signal

    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends the pool
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End the worker with its parent. A killed parent cannot end its pool, and the workers would stay, with their
    memory."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def pool(workers: int, threads: int = 1) -> Iterator[ProcessPoolExecutor | None]:
    """Worker processes of so many threads, or None for 0 or 1 workers.

    They are spawned, because a fork of a process with threads may hang.
    """
    if workers <= 1:
        yield None
        return
    with environment({**ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}), _processes(workers) as executor:
        yield executor


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for what starts in the block, and restore them afterwards."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    executor = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet_threads
    )
    # All processes start with the first item. If one starts while the pool ends because another was killed, starting
    # fails, or Python does not end it and waits for ever to write to its pipe.
    executor._safe_to_dynamically_spawn_children = False  # type: ignore[attr-defined]
    try:
        yield executor
    except BrokenProcessPool as error:
        raise UserError(WORKER_GONE) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def unordered(
    executor: Executor | None, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """Apply ``function`` to ``items`` and yield results as they come; at most ``ahead`` are in memory.

    An iterator that makes the items is closed at the end, also after an error. The worker processes of a loader in it
    end with that. They were forked, so they hold the pipe to the pool open. When a process of the pool dies, the
    pool would otherwise wait for ever to write the next item to that pipe.
    """
    try:
        if executor is None:
            yield from map(function, items)
            return
        pending: set[Future[R]] = set()
        for item in items:
            pending.add(executor.submit(function, item))
            if len(pending) >= ahead:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        if isinstance(items, Generator):
            items.close()
