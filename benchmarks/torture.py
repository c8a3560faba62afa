"""Break running pipelines on purpose, continue them, and compare with an undisturbed one, bit for bit.

    python benchmarks/torture.py WORK [--only kill,disk] [--seed 0]

WORK is a folder for some hundred megabytes. Each row of the table that is printed is one fault: how often it was
injected, in which stages, and what the continued run has in common with the undisturbed one. The exit status is 1 if
anything was lost. A full or read-only disk needs the right to mount a tmpfs; without it those rows say so.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

STAGES = ("classify", "saliency", "extend", "refine", "segment", "evaluate")
SETTINGS = {
    "data": {"kind": "shapes", "shapes": {"train": 60, "val": 16, "size": 64}},
    "classifier": {
        "architecture": "resnet18",
        "weights": "none",
        "output_stride": 32,
        "epochs": 4,
        "batch_size": 12,
        "long_side": [64, 72],
        "crop": 64,
    },
    "saliency": {"scales": [0.5, 1.0], "batch_size": 4},
    "extend": {"method": "pixels", "photos": 20},
    "segmenter": {
        "architecture": "light",
        "weights": "classifier",
        "epochs": 4,
        "batch_size": 12,
        "crop": 64,
    },
    "evaluate": {"ms_flip": False, "oracle_images": 4},
    "runtime": {"accelerator": "cpu", "precision": "float32", "workers": 2, "progress": False},
}
"""Every stage with two worker processes, in a few seconds each."""

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
Command = list[str]


@dataclass
class Row:
    """What happened to one kind of fault."""

    fault: str
    injected: int = 0
    stages: set[str] = field(default_factory=set)
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)
    note: str = ""

    def __str__(self) -> str:
        stages = ", ".join(name for name in STAGES if name in self.stages) or "-"
        verdict = "; ".join(self.lost) or self.note or "nothing lost, equal"
        return f"| {self.fault} | {self.injected} | {stages} | {self.seconds:.0f} | {verdict} |"


class Bench:
    """Starts ``wsss run`` in ``work``, and knows what an undisturbed run gives."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.random = work, random.Random(seed)
        self.config = work / "tiny.yaml"
        self.config.write_text(json.dumps(SETTINGS))
        self.devices = 1
        self.expected: dict[int, dict[str, str]] = {}
        self.durations: dict[str, float] = {}

    def command(self, output: Path, *words: str) -> Command:
        options = ["--data.root", str(self.work / "shapes"), "--output", str(output)]
        devices = ["--runtime.devices", str(self.devices)]
        return [sys.executable, "-m", "wsss", "run", str(self.config), *options, *devices, *words]

    def finish(self, output: Path, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(output, *words), capture_output=True, text=True, env=ENVIRONMENT, timeout=600
        )

    def undisturbed(self) -> dict[str, str]:
        """Digests of what an undisturbed run on ``devices`` writes."""
        if self.devices not in self.expected:
            output = self.work / f"undisturbed-{self.devices}"
            done = self.finish(output)
            assert done.returncode == 0, done.stderr
            self.expected[self.devices] = digests(output)
            entries = json.loads((output / "manifest.json").read_text())["stages"]
            self.durations = {name: entries[name]["seconds"] for name in STAGES}
        return self.expected[self.devices]

    @contextmanager
    def in_stage(self, output: Path, stage: str, *words: str) -> "Iterator[subprocess.Popen[str] | None]":
        """A run at a random moment of a stage, in a session of its own; None if it ended before. It never outlives the
        block."""
        process = subprocess.Popen(
            self.command(output, *words),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert process.stderr is not None
        try:
            begun = False
            for line in process.stderr:
                if line.startswith(f"{stage}: ") and "already done" not in line:
                    begun = True
                    break
            if begun:
                time.sleep(self.random.uniform(0, 0.8 * self.durations[stage]))
            yield process if process.poll() is None else None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def compare(self, output: Path, row: Row, *words: str) -> None:
        """Finish the run, and note what differs from an undisturbed one."""
        done = self.finish(output, *words)
        if done.returncode != 0:
            row.lost.append(f"cannot be continued: {done.stderr.strip().splitlines()[-1]}")
            return
        found, expected = digests(output), self.undisturbed()
        row.lost += [f"{name} differ" for name, digest in expected.items() if found.get(name) != digest]
        if left := [path for path in output.rglob("*.tmp")]:
            row.lost.append(f"left over: {left[0].name}")


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of masks, predictions, numbers and weights of a run."""
    found = {}
    for name in ("pseudo_masks", "pseudo_labels", "predictions", "predictions_crf"):
        digest = hashlib.sha256()
        for path in sorted((run / name).glob("*.png")):
            digest.update(path.name.encode() + path.read_bytes())
        found[name] = digest.hexdigest()
    for name in ("saliency", "extended"):
        digest = hashlib.sha256()
        for path in sorted((run / name).glob("*.npz")):
            with np.load(path) as arrays:
                digest.update(path.name.encode() + b"".join(arrays[key].tobytes() for key in sorted(arrays)))
        found[name] = digest.hexdigest()
    for name in ("metrics.json", "classifier/metrics.csv", "segmenter/metrics.csv"):
        found[name] = hashlib.sha256((run / name).read_bytes()).hexdigest()
    for name in ("classifier", "segmenter"):
        for kind in ("last", "best"):
            state = torch.load(run / name / f"{kind}.ckpt", weights_only=True)["state_dict"]
            digest = hashlib.sha256()
            for key, value in sorted(state.items()):
                digest.update(key.encode() + value.contiguous().numpy().tobytes())
            found[f"{name}/{kind}.ckpt"] = digest.hexdigest()
    return found


# -- faults -----------------------------------------------------------------------------------------


def killed(kind: signal.Signals, devices: int = 1) -> Callable[[Bench, Row], None]:
    """The signal at random moments of every stage, twice in a row."""

    def inject(bench: Bench, row: Row) -> None:
        bench.devices = devices
        bench.undisturbed()
        output = bench.work / f"{kind.name}-{devices}"
        for stage in STAGES if devices == 1 else ("classify", "segment"):
            for _ in range(2):
                with bench.in_stage(output, stage) as process:
                    if process is None:
                        continue
                    process.send_signal(kind)
                    row.injected += 1
                    row.stages.add(stage)
                    try:
                        process.wait(60)
                    except subprocess.TimeoutExpired:
                        row.lost.append(f"{stage}: {kind.name} did not end it")
        bench.compare(output, row)
        bench.devices = 1

    return inject


def worker_killed(bench: Bench, row: Row) -> None:
    """SIGKILL to one child process of every stage that has some: a sentence and a status, and it continues."""
    output = bench.work / "worker"
    for stage in STAGES:
        with bench.in_stage(output, stage) as process:
            children = [] if process is None else children_of(process.pid)
            if process is None or not children:
                continue
            os.kill(bench.random.choice(children), signal.SIGKILL)
            note_failure(process, row, stage, "worker process")
    bench.compare(output, row)


def children_of(parent: int) -> list[int]:
    """Process ids of the children (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            command = (path.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) == parent and "resource_tracker" not in command:
            found.append(int(path.parent.name))
    return found


def photo_gone(bench: Bench, row: Row) -> None:
    """A training photo disappears while a stage runs, and is back for the next try."""
    output = bench.work / "gone"
    photo = bench.work / "shapes/JPEGImages/train_000041.jpg"
    for stage in ("classify", "saliency", "refine"):
        with bench.in_stage(output, stage) as process:
            if process is None:
                continue
            photo.rename(photo.with_suffix(".away"))
            note_failure(process, row, stage, str(photo))
            photo.with_suffix(".away").rename(photo)
    bench.compare(output, row)


def second_run(bench: Bench, row: Row) -> None:
    """A second process on the same run directory: it is refused, and the first one does not notice."""
    output = bench.work / "second"
    for stage in STAGES:
        with bench.in_stage(output, stage) as process:
            if process is None:
                continue
            other = bench.finish(output)
            if process.poll() is None or other.returncode:
                row.injected += 1
                row.stages.add(stage)
                if "in use by another wsss process" not in other.stderr:
                    row.lost.append(
                        f"{stage}: the second run says {other.stderr.strip().splitlines()[-1][:80]}"
                    )
    bench.compare(output, row)


def clock_back(bench: Bench, row: Row) -> None:
    """The clock jumps back: all files of the run are from tomorrow."""
    output, tomorrow = bench.work / "clock", time.time() + 86400
    for stage in ("classify", "saliency", "segment"):
        with bench.in_stage(output, stage) as process:
            if process is None:
                continue
            process.kill()
            process.wait()
            for path in output.rglob("*"):
                os.utime(path, (tomorrow, tomorrow))
            row.injected += 1
            row.stages.add(stage)
    bench.compare(output, row)


def copied(bench: Bench, row: Row) -> None:
    """The run directory is copied while it runs, and the copy is continued."""
    for stage in STAGES:
        source, output = bench.work / "source", bench.work / f"copy-{stage}"
        with bench.in_stage(source, stage) as process:
            if process is None:
                continue
            subprocess.run(
                ["cp", "-r", source, output], stderr=subprocess.DEVNULL, check=False
            )  # files vanish
            row.injected += 1
            row.stages.add(stage)
        bench.compare(output, row)
        shutil.rmtree(output)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of 500 MB, in memory, at ``folder``."""
    folder.mkdir(exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=500m", "tmpfs", folder], check=True, capture_output=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def disk_full(bench: Bench, row: Row) -> None:
    """Another program fills the disk during each stage, up to 64 kB; then there is room again."""
    folder = bench.work / "small"
    try:
        with small_disk(folder):
            _fill_in_each_stage(bench, row, folder)
    except (OSError, subprocess.CalledProcessError):
        row.note = "not tried: no right to mount"


def _fill_in_each_stage(bench: Bench, row: Row, folder: Path) -> None:
    filler = folder / "filler"
    for stage in STAGES:
        with bench.in_stage(folder / "run", stage) as process:
            if process is None:
                continue
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - 65536)
            note_failure(process, row, stage, "free some disk space")
            filler.unlink()
    bench.compare(folder / "run", row)


def note_failure(process: "subprocess.Popen[str]", row: Row, stage: str, part: str) -> None:
    """Wait for a run that should stop with one sentence that has this part, if it needs what it no longer has."""
    row.injected += 1
    row.stages.add(stage)
    try:
        error = process.communicate(timeout=120)[1]
    except subprocess.TimeoutExpired:
        row.lost.append(f"{stage}: hangs")
        return
    if process.returncode and (part not in error or "Traceback" in error):
        row.lost.append(f"{stage}: {error.strip().splitlines()[-1][:90]}")


def read_only(bench: Bench, row: Row) -> None:
    """The folders of the run become unwritable during each stage (chattr +i, which stops root too), then writable."""
    output = bench.work / "frozen"
    for stage in STAGES:
        with bench.in_stage(output, stage) as process:
            folders = [output, *(path for path in output.rglob("*") if path.is_dir())]
            if process is None:
                continue
            try:
                subprocess.run(["chattr", "+i", *folders], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                row.note = "not tried: chattr +i is not possible here"
                return
            try:
                note_failure(process, row, stage, "choose a folder that you may write to")
            finally:
                subprocess.run(["chattr", "-i", *folders], check=True)
    bench.compare(output, row)


def overwritten(bench: Bench, row: Row) -> None:
    """``--overwrite`` with another seed is killed in each stage; the old configuration gives the old run."""
    output = bench.work / "overwritten"
    shutil.copytree(bench.work / "undisturbed-1", output)
    for stage in STAGES:
        with bench.in_stage(output, stage, "--seed", "1", "--overwrite") as process:
            if process is None:
                continue
            process.kill()
            process.wait()
            row.injected += 1
            row.stages.add(stage)
    kept = sorted(path.name for path in (output / "replaced").iterdir())
    row.note = (
        f"the last kill left {', '.join(kept) or 'nothing'} in replaced/; the old seed gives the old run"
    )
    done = bench.finish(output, "--overwrite")
    if done.returncode:
        row.lost.append(f"cannot go back: {done.stderr.strip().splitlines()[-1]}")
    else:
        bench.compare(output, row)


FAULTS: dict[str, list[tuple[str, Callable[[Bench, Row], None]]]] = {
    "kill": [
        (f"{kind.name}, twice in each stage", killed(kind))
        for kind in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    ],
    "ranks": [("SIGKILL with two ranks", killed(signal.SIGKILL, 2))],
    "worker": [("SIGKILL to a worker process", worker_killed)],
    "disk": [("disk full", disk_full), ("disk read-only", read_only)],
    "gone": [("a photo disappears", photo_gone)],
    "second": [("a second run on the directory", second_run)],
    "clock": [("killed, and the clock jumps back", clock_back)],
    "copy": [("copied while it runs", copied)],
    "overwrite": [("--overwrite, killed", overwritten)],
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", default=",".join(FAULTS), help=f"some of {','.join(FAULTS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.work, options.seed)
    bench.undisturbed()
    print("| fault | injected | stages | seconds | afterwards |\n|---|---|---|---|---|", flush=True)
    lost = False
    for name in options.only.split(","):
        for fault, inject in FAULTS[name]:
            row, started = Row(fault), time.monotonic()
            inject(bench, row)
            row.seconds = time.monotonic() - started
            lost |= bool(row.lost)
            print(row, flush=True)
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())
