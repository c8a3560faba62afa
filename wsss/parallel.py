"""A pool of processes for the per-image work that holds the GIL (the CRF) or is pure numpy."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from wsss.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


def _quiet_threads() -> None:
    """One thread per worker process: the processes share the cores."""
    import signal

    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends the pool
    cv2.setNumThreads(1)


@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Worker processes, or None for 0 or 1. They are spawned: a fork of a process with threads may hang."""
    if workers <= 1:
        yield None
        return
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they start
    executor = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet_threads
    )
    try:
        yield executor
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, probably because memory ran out; run the command again with fewer "
            "--runtime.workers (what is done is kept)"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def unordered(
    executor: Executor | None, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """Apply ``function`` to ``items``, yielding results as they come; at most ``ahead`` are in memory."""
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
