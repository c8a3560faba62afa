"""The run directory: where the files of a run are, what is done, and what must be redone.

A stage is identified by its *fingerprint*, a hash of what it reads: its part of the
configuration, its input images and labels, the fingerprints of the stages before it and the
code version. ``manifest.json`` holds the fingerprint and the state (``running``, ``done``, or ``outdated`` if it was
done and what it builds on changed) of every stage. A stage whose stored fingerprint differs is run again, and one that
is ``running`` with the same fingerprint is continued. Meanwhile ``replaced/<stage>/`` has what it wrote before.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from wsss import __version__
from wsss.data.files import read_object, write_json
from wsss.errors import UserError

StageState = Literal["missing", "stale", "partial", "done"]


CLASSIFIER, SEGMENTER, SUPERVISED = "classifier", "segmenter", "segmenter_supervised"
"""Folders of the trainings. The last one belongs to the twin that is trained on true masks."""

SALIENCY, EXTENDED = "saliency", "extended"
"""Folders of maps: from the saliency stage, and after the extension to whole objects."""

LABELS, MASKS = "pseudo_labels", "pseudo_masks"
"""Folders of the arg-max labels (no 255; mask.miou scores them) and of the masks with 255 (the segmenter is trained on
them)."""

PLAIN, MS_FLIP, CRF = "predictions", "predictions_ms_flip", "predictions_crf"
"""Folders of the three kinds of prediction. The CRF refines the better one of the other two that exists."""

SUPERVISED_PLAIN = f"supervised_{PLAIN}"
"""Folder of the twin's predictions."""

CALIBRATION, EXTENSION = "calibration.json", "extension.npz"
"""Files with the background rules that were compared, and with the extension's classifier of cells."""

COMPARE, RESIZED = "compare", "resized"
"""Folders of the leaderboard of ``wsss compare`` and of the copies of large photos."""

REPLACED = "replaced"
"""Folder of the results that a changed configuration makes anew, until the new ones are whole."""

ENTRY = "entry.json"
"""File in ``replaced/<stage>/`` with what the manifest said about them."""

BEFORE_A_RUN = {".lock", COMPARE, RESIZED}
"""What a run directory may contain before the first stage."""


def fingerprint(*parts: Any) -> str:
    """SHA-256 of the canonical JSON of ``parts`` and the code version (hex, 64 characters)."""
    text = json.dumps([__version__, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_stamp(path: Path) -> tuple[str, int] | None:
    """What a fingerprint knows about an input file: its name and size in bytes; None if it does not exist."""
    try:
        return (path.name, os.stat(path).st_size)
    except OSError:
        return None


def content_digest(path: Path) -> str | None:
    """SHA-256 of a file's content, for files whose size says nothing; None if it does not exist."""
    try:
        facts = path.stat()
        return _digest(path, facts.st_size, facts.st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=8)
def _digest(path: Path, size: int, modified: int) -> str:
    """Cached by the file's size and time of modification, because a command asks several times."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run and the state of its stages."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration (YAML)."""
        return self.root / "config.yaml"

    @property
    def manifest(self) -> Path:
        """Versions, hardware, command and the state of every stage (JSON)."""
        return self.root / "manifest.json"

    @property
    def metrics(self) -> Path:
        """All numbers of the run (JSON)."""
        return self.root / "metrics.json"

    @property
    def report(self) -> Path:
        """The self-contained report (HTML)."""
        return self.root / "report.html"

    @property
    def calibration(self) -> Path:
        """The background rules that were compared, and the chosen one (JSON)."""
        return self.root / CALIBRATION

    @property
    def extension(self) -> Path:
        """The classifier of cells of the extension (arrays)."""
        return self.root / EXTENSION

    @property
    def compare(self) -> Path:
        """Folder of the leaderboard of ``wsss compare``."""
        return self.root / COMPARE

    @property
    def resized(self) -> Path:
        """Folder of the copies of large photos."""
        return self.root / RESIZED

    def checkpoint(self, folder: str, name: str = "last") -> Path:
        """``<folder>/<name>.ckpt``, folder being ``CLASSIFIER``, ``SEGMENTER`` or ``SUPERVISED``."""
        return self.root / folder / f"{name}.ckpt"

    def maps(self, source: str, identifier: str) -> Path:
        """Maps of one training photo; source is ``SALIENCY`` or ``EXTENDED``."""
        return self.root / source / f"{identifier}.npz"

    def saliency(self, identifier: str) -> Path:
        """Saliency of one training photo."""
        return self.maps(SALIENCY, identifier)

    def mask(self, folder: str, identifier: str) -> Path:
        """A mask; folder is ``MASKS``, ``LABELS``, ``PLAIN``, ..."""
        return self.root / folder / f"{identifier}.png"

    def check_own(self) -> None:
        """Refuse a folder with other content, which a stage would replace or remove.

        Raises:
            UserError: the folder is not empty and not a run directory.
        """
        try:
            names = {path.name for path in self.root.iterdir()}
        except OSError:
            return  # it does not exist yet, or `locked` explains what is wrong
        if names - BEFORE_A_RUN and not self.manifest.is_file():
            raise UserError(
                f"{self.root} is not empty and not a run directory (no {self.manifest.name} in it), and a run replaces "
                "files in its folder; choose another --output"
            )

    # -- stages ---------------------------------------------------------------------------------

    def read_manifest(self) -> dict[str, Any]:
        """The manifest, or an empty one."""
        return read_object(self.manifest) if self.manifest.exists() else {}

    def stage_state(self, stage: str, expected: str, files: Iterable[Path] = ()) -> StageState:
        """Compare the stored fingerprint of ``stage`` with the ``expected`` one.

        A finished stage that lacks one of ``files`` (somebody removed it) is ``partial``.
        """
        entry = self.stage_entry(stage)
        if not entry:
            return "missing"
        if entry.get("fingerprint") != expected:
            return "stale"
        return "done" if entry.get("state") == "done" and all(path.is_file() for path in files) else "partial"

    def is_finished(self, stage: str, files: Iterable[Path]) -> bool:
        """Whether the stage was done once, with whatever configuration, and its ``files`` exist."""
        return _is_done(self.stage_entry(stage)) and all(path.is_file() for path in files)

    def clear(self, outputs: Sequence[str]) -> None:
        """Remove files and folders (named relative to the run directory)."""
        for name in outputs:
            path = self.root / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def set_aside(self, stage: str, outputs: Sequence[str]) -> None:
        """Move what the stage has written to ``replaced/<stage>/``; `take_back` undoes it, also half done.

        What is there already from a stage that was done stays; then the unfinished files of the run directory are
        removed.
        """
        folder = self.root / REPLACED / stage
        if _is_done(_entry(folder)):
            self.clear(outputs)
            return
        self.clear([f"{REPLACED}/{stage}"])
        write_json(folder / ENTRY, self.stage_entry(stage))
        _move(self.root, folder, outputs)

    def remove_leftovers(self, outputs: Sequence[str]) -> None:
        """Remove temporary files of a killed process. No other process may be writing these files."""
        for leftover in [path for name in outputs for path in (self.root / name).rglob(".*.tmp")]:
            leftover.unlink(missing_ok=True)

    def take_back(self, stage: str, outputs: Sequence[str], expected: str | None = None) -> bool:
        """Undo `set_aside` if that was cut off, or if what is in ``replaced/<stage>/`` has the expected fingerprint.

        Returns whether it did.
        """
        folder = self.root / REPLACED / stage
        replaced = _entry(folder)
        if replaced and replaced["fingerprint"] != self.stage_entry(stage).get("fingerprint"):
            if replaced["fingerprint"] != expected:
                return False
            self.clear(outputs)
            self.replace(stage, replaced)
        # Now the manifest speaks of these files: if this process is killed here, the next one goes on.
        _move(folder, self.root, outputs)
        self.clear([f"{REPLACED}/{stage}"])
        return bool(replaced)

    def stage_entry(self, stage: str) -> dict[str, Any]:
        """What the manifest says about a stage; empty if it never ran."""
        entry: dict[str, Any] = self.read_manifest().get("stages", {}).get(stage, {})
        return entry

    def record(self, stage: str, **entry: Any) -> None:
        """Write facts about one stage into the manifest and keep the rest."""
        self.replace(stage, {**self.stage_entry(stage), **entry})

    def replace(self, stage: str, entry: dict[str, Any]) -> None:
        """Replace everything that the manifest says about one stage, in one write."""
        manifest = self.read_manifest()
        write_json(self.manifest, {**manifest, "stages": {**manifest.get("stages", {}), stage: entry}})

    @contextmanager
    def running(
        self, stage: str, expected: str, outputs: Sequence[str], *, shared: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Run a stage: set its stale files aside, mark it as running, and as done if the block succeeds.

        ``shared``: other processes work on it too, perhaps already, so a temporary file may be theirs.
        Yields a dictionary for facts (``images``, ...) that end up in the manifest. The seconds of
        an interrupted and continued stage add up.
        """
        state = self.stage_state(stage, expected)
        if state == "stale":
            self.set_aside(stage, outputs)
        if not shared:
            self.remove_leftovers(outputs)
        before = self.stage_entry(stage) if state == "partial" else {}
        facts: dict[str, Any] = {}
        started = time.monotonic()
        self.replace(stage, {**before, "fingerprint": expected, "state": "running"})
        try:
            yield facts
        finally:
            seconds = before.get("seconds", 0.0) + time.monotonic() - started
            if self.manifest.exists():
                self.record(stage, seconds=round(seconds, 2), peak_memory_mib=peak_memory_mib(), **facts)
        self.record(stage, state="done")
        self.clear([f"{REPLACED}/{stage}"])
        with suppress(OSError):  # it is not empty, or was never there
            (self.root / REPLACED).rmdir()

    # -- numbers --------------------------------------------------------------------------------

    def read_metrics(self) -> dict[str, Any]:
        """``metrics.json``, or an empty dictionary."""
        return read_object(self.metrics) if self.metrics.exists() else {}

    def update_metrics(self, **entries: Any) -> None:
        """Replace top-level entries of ``metrics.json``; an entry of None is removed."""
        metrics = {**self.read_metrics(), **entries}
        write_json(self.metrics, {key: value for key, value in metrics.items() if value is not None})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run directory for this process. The lock ends with the process, even if it is killed."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"cannot use {self.root} as a run directory ({error.strerror}); choose another with --output"
            ) from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    f"{self.root} is in use by another wsss process; wait for it or choose another --output"
                ) from error
            _HELD.add(handle)
            yield
        finally:
            _HELD.discard(handle)
            os.close(handle)


def _entry(folder: Path) -> dict[str, Any]:
    """What the manifest said about the stage whose results were moved to this folder; empty if none were."""
    return read_object(folder / ENTRY) if (folder / ENTRY).is_file() else {}


def _is_done(entry: dict[str, Any]) -> bool:
    return entry.get("state") in ("done", "outdated")


def _move(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        if (source / name).exists():
            os.replace(source / name, target / name)


_HELD: set[int] = set()
"""Open locks of this process."""


def _let_go() -> None:
    """Close them in a forked worker, which would otherwise keep the directory locked if it outlives a killed run."""
    for handle in _HELD:
        os.close(handle)
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)


def peak_memory_mib() -> dict[str, float]:
    """Highest memory of this process so far, in MiB: ``process`` and, where CUDA is in use, ``gpu``."""
    import resource

    unit = 1024 if sys.platform.startswith("linux") else 1024**2
    peak = {"process": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peak["gpu"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peak


def describe_machine() -> dict[str, Any]:
    """Versions, hardware and commit, for the manifest."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    packages = {}
    for name in ("torch", "torchvision", "lightning", "numpy", "opencv-python-headless", "pydensecrf2"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "wsss": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": packages,
        "cpu": _cpu_name() or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpus": gpus,
    }


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def _commit() -> str | None:
    """Commit of the source tree that this package runs from, with ``-dirty``; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def find_checkpoint(path: Path, network: Literal["classifier", "segmenter"]) -> Path:
    """The checkpoint that a user means by a file, a run directory, or a network's folder in one.

    Raises:
        UserError: the folder holds no such checkpoint.
    """
    if not path.is_dir():
        return path
    expected = RunDirectory(path).checkpoint(network)
    for file in (path / expected.name, expected):
        if file.is_file():
            return file
    command = {"classifier": "classify", "segmenter": "segment"}[network]
    raise UserError(
        f"there is no checkpoint {expected}; finish the training with `wsss {command}`, or give another path"
    )
