"""Random input: a few cases of every test by default, thousands with `-m slow`."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

FEW, MANY = 20, 2000


def pytest_configure(config: pytest.Config) -> None:
    """The same cases in every run, their number by the marker expression; no files in the repository."""
    settings.register_profile(
        "fuzz",
        max_examples=MANY if _is_slow(config) else FEW,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("fuzz")
    if (cache := getattr(config, "cache", None)) is not None:
        set_hypothesis_home_dir(cache.mkdir("hypothesis"))


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    """A reader that asks for more than two gigabytes fails, before it takes what the machine has."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(pages.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`-m slow` takes these tests, too."""
    for item in items:
        if _is_slow(config) and item.path.parent == Path(__file__).parent:
            item.add_marker("slow")


def _is_slow(config: pytest.Config) -> bool:
    return bool(config.option.markexpr == "slow")
