"""Worker processes: every item once, errors come through, little in memory."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from wsss.errors import UserError
from wsss.parallel import pool, unordered

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def executor() -> Iterator[ProcessPoolExecutor]:
    with pool(2) as made:
        assert made is not None
        yield made


@pytest.mark.parametrize("workers", [-1, 0, 1])
def test_one_worker_or_none_is_this_process(workers: int) -> None:
    with pool(workers) as made:
        assert made is None
        assert list(unordered(made, abs, [-3, 1, -2], ahead=0)) == [3, 1, 2]


@pytest.mark.parametrize(("count", "ahead"), [(0, 4), (1, 4), (7, 2), (7, 1), (7, 100)])
def test_every_item_is_done_once(executor: ProcessPoolExecutor, count: int, ahead: int) -> None:
    assert sorted(unordered(executor, abs, [-item for item in range(count)], ahead)) == list(range(count))


def test_work_is_done_in_other_processes_with_one_thread_each(executor: ProcessPoolExecutor) -> None:
    assert os.getpid() not in set(unordered(executor, _process, range(4), ahead=4))
    assert set(unordered(executor, _threads, range(4), ahead=4)) == {(os.environ["OMP_NUM_THREADS"], 1)}


def _process(_: int) -> int:
    return os.getpid()


def _threads(_: int) -> tuple[str | None, int]:
    import cv2

    return os.environ.get("OMP_NUM_THREADS"), cv2.getNumThreads()


@pytest.mark.parametrize("ahead", [1, 3])
def test_items_are_taken_only_a_few_ahead_of_the_results(executor: ProcessPoolExecutor, ahead: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(20):
            taken += 1
            yield item

    for done, _ in enumerate(unordered(executor, abs, items(), ahead)):
        assert taken <= done + ahead + 1


def _fail(item: int) -> int:
    if item == 2:
        raise UserError("photo 2 is damaged")
    return item


def test_the_callers_thread_setting_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in ("3", None):
        if before is None:
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        else:
            monkeypatch.setenv("OMP_NUM_THREADS", before)
        with pool(2) as made:
            assert made is not None
            assert os.environ["OMP_NUM_THREADS"] == "1"
        assert os.environ.get("OMP_NUM_THREADS") == before


def test_error_of_a_worker_comes_through(executor: ProcessPoolExecutor) -> None:
    with pytest.raises(UserError, match="photo 2 is damaged"):
        list(unordered(executor, _fail, range(5), ahead=2))
    with pytest.raises(UserError, match="photo 2 is damaged"):
        list(unordered(None, _fail, range(5), ahead=2))


def _kill(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_end_with_a_parent_that_is_killed() -> None:
    code = """
import time
from wsss.parallel import pool
from tests.unit.test_parallel import _process
if __name__ == "__main__":
    with pool(2) as executor:
        print(*{executor.submit(_process, 0).result() for _ in range(8)}, flush=True)
        time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert workers
        parent.kill()
    deadline = time.monotonic() + 60
    while any(map(_is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_is_alive, workers))


def _process_and_sleep(_: bytes) -> int:
    time.sleep(0.5)
    return os.getpid()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_killed_worker_is_explained() -> None:
    with (
        pytest.raises(UserError, match=r"worker process was killed.*fewer --runtime\.workers"),
        pool(2) as made,
    ):
        list(unordered(made, _kill, range(2), ahead=2))


def test_killed_worker_does_not_leave_the_pool_waiting_for_a_loader() -> None:
    """The loader's forked processes hold the pool's pipe open, and items are larger than the pipe."""
    code = """
import multiprocessing, os, signal
from wsss.errors import UserError
from wsss.parallel import pool, unordered
from tests.unit.test_parallel import _process_and_sleep
def items(children):
    child = multiprocessing.get_context("fork").Process(target=signal.pause)
    child.start()
    try:
        os.kill(next(children), signal.SIGKILL)
        for _ in range(8):
            yield bytes(1_000_000)
    finally:
        child.kill()
        child.join()
if __name__ == "__main__":
    try:
        with pool(2) as executor:
            children = iter([executor.submit(_process_and_sleep, b"").result()])
            list(unordered(executor, _process_and_sleep, items(children), ahead=4))
    except UserError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "worker process was killed" in done.stdout, done.stderr
