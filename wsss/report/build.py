"""Collects what the report shows from a run directory."""

from wsss.config import Config
from wsss.data.dataset import Dataset
from wsss.rundir import RunDirectory


def build_report(config: Config, dataset: Dataset, run: RunDirectory) -> None:
    """Write ``report.html``."""
