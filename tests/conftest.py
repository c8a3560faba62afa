"""For all tests: one thread a process, as they run in as many processes as there are cores, and one seed a test."""

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # read when torch is imported, here and in processes that tests start

import pytest
import torch


@pytest.fixture(scope="session")
def seed() -> int:
    """Of random networks and images. A test must pass with any: `WSSS_TEST_SEED=1 pytest ...` tries another."""
    return int(os.environ.get("WSSS_TEST_SEED", "0"))


@pytest.fixture(autouse=True)
def _seeded(seed: int) -> None:
    """What a test draws without a seed of its own does not depend on the tests before it."""
    torch.manual_seed(seed)
