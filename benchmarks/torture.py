"""Break running pipelines on purpose, continue them, and compare with an undisturbed one, bit for bit.

    python benchmarks/torture.py WORK [--only kill,full] [--seed 0]

WORK is a new folder for a gigabyte. Each row of the table is one fault: how often it was injected, in which stages, how
long it all took, and what the continued run has in common with the undisturbed one. Two are tried at a time. The exit
status is 1 if anything was lost. A full disk and read-only folders need root; otherwise their rows say so.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from html import escape
from pathlib import Path
from random import Random

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


@dataclass
class Trial:
    """One kind of fault: what is tried, and what happened. Its runs go to ``work/name``."""

    name: str
    fault: str
    inject: "Callable[[Trial], None]"
    devices: int = 1
    words: tuple[str, ...] = ()
    work: Path = Path()
    moments: Random = field(default_factory=Random)
    durations: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage of the undisturbed run."""
    injected: int = 0
    stages: set[str] = field(default_factory=set)
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def output(self) -> Path:
        """The run directory."""
        return self.work / self.name / "run"

    @property
    def log(self) -> Path:
        """What the latest run said on stderr."""
        return self.work / self.name / "stderr"

    @property
    def photos(self) -> Path:
        """The data set."""
        return self.work / "shapes"

    def __str__(self) -> str:
        stages = ", ".join(name for name in STAGES if name in self.stages) or "-"
        verdict = "; ".join(self.lost) or self.note or "nothing lost, equal"
        return f"| {self.fault} | {self.injected} | {stages} | {self.seconds:.0f} | {verdict} |"

    def __call__(self) -> "Trial":
        started = time.monotonic()
        self.output.parent.mkdir(parents=True)
        try:
            self.inject(self)
        except Exception as error:
            self.lost.append(f"the trial itself failed: {error!r}")
        self.seconds = time.monotonic() - started
        shutil.rmtree(self.output.parent, ignore_errors=True)
        return self

    def command(self, output: Path, *words: str) -> list[str]:
        """``wsss run`` of the tiny configuration."""
        options = ["--data.root", str(self.photos), "--output", str(output)]
        options += ["--runtime.devices", str(self.devices), *self.words, *words]
        return [sys.executable, "-m", "wsss", "run", str(self.work / "tiny.yaml"), *options]

    def finish(self, output: Path, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run to the end."""
        command = self.command(output, *words)
        return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=900)

    @contextmanager
    def in_stage(self, stage: str, *words: str) -> "Iterator[subprocess.Popen[bytes] | None]":
        """A run at a random moment of a stage, in a session of its own; None if it ended before.

        It never outlives the block.
        """
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                self.command(self.output, *words),
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=ENVIRONMENT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        begins = re.compile(rf"^{stage}: (?!already done)", re.MULTILINE)
        try:
            while process.poll() is None and not begins.search(self.log.read_text()):
                time.sleep(0.02)
            time.sleep(self.moments.uniform(0, 0.8 * self.durations[stage]))
            yield process if process.poll() is None else None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def count(self, stage: str) -> None:
        """A fault was injected in that stage."""
        self.injected += 1
        self.stages.add(stage)

    def compare(self, output: Path, *words: str) -> None:
        """Finish the run, and note what differs from an undisturbed one."""
        done = self.finish(output, *words)
        if done.returncode != 0:
            self.lost.append(f"cannot be continued: {done.stderr.strip().splitlines()[-1]}")
            return
        found, expected = digests(output), digests(self.work / f"undisturbed-{self.devices}")
        self.lost += [f"{name} differ" for name, digest in expected.items() if found.get(name) != digest]
        if left := list(output.rglob("*.tmp")):
            self.lost.append(f"left over: {left[0].name}")

    def stops(self, process: "subprocess.Popen[bytes]", stage: str, part: str) -> None:
        """The run should stop with one sentence that has this part, unless it no longer needs what it lost."""
        self.count(stage)
        try:
            process.wait(180)
        except subprocess.TimeoutExpired:
            self.lost.append(f"{stage}: hangs")
            return
        error = self.log.read_text()
        if process.returncode and (part not in error or "Traceback" in error):
            self.lost.append(f"{stage}: {(error.strip().splitlines() or ['nothing'])[-1][:90]}")


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


def killed(*kinds: signal.Signals) -> Callable[[Trial], None]:
    """The signals at random moments of every stage, one after the other."""

    def inject(trial: Trial) -> None:
        for stage in STAGES:
            for kind in kinds:
                with trial.in_stage(stage) as process:
                    if process is None:
                        continue
                    process.send_signal(kind)
                    trial.count(stage)
                    try:
                        process.wait(60)
                    except subprocess.TimeoutExpired:
                        trial.lost.append(f"{stage}: {kind.name} did not end it")
        trial.compare(trial.output)

    return inject


def worker_killed(trial: Trial) -> None:
    """A process that reads photos or refines is killed, as by Linux when memory runs out."""
    for stage in STAGES:
        with trial.in_stage(stage) as process:
            while process is not None and process.poll() is None:
                if children := children_of(process.pid):
                    with suppress(ProcessLookupError):
                        os.kill(trial.moments.choice(children), signal.SIGKILL)
                        trial.stops(process, stage, "worker process")
                    break
                time.sleep(0.01)
    trial.compare(trial.output)


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


def photo_gone(trial: Trial) -> None:
    """A training photo disappears while a stage runs, and is back for the next try."""
    own = trial.output.parent / "photos"
    shutil.copytree(trial.photos, own)
    trial.words = ("--data.root", str(own))
    photo = own / "JPEGImages/train_000041.jpg"
    away = photo.with_suffix(".away")
    for stage in ("classify", "saliency", "refine"):
        with trial.in_stage(stage) as process:
            if process is not None:
                photo.rename(away)
                trial.stops(process, stage, str(photo))
                away.rename(photo)
    trial.compare(trial.output)


def second_run(trial: Trial) -> None:
    """A second process on the same run directory is refused, and the first one does not notice."""
    for stage in STAGES:
        with trial.in_stage(stage) as process:
            if process is None:
                continue
            other = trial.finish(trial.output)
            if process.poll() is None or other.returncode:
                trial.count(stage)
                if "in use by another wsss process" not in other.stderr:
                    trial.lost.append(f"{stage}: the second run says {other.stderr.strip().splitlines()[-1]}")
    trial.compare(trial.output)


def clock_back(trial: Trial) -> None:
    """The clock jumps back: all files of the run are from tomorrow."""
    tomorrow = time.time() + 86400
    for stage in ("classify", "saliency", "segment"):
        with trial.in_stage(stage) as process:
            if process is None:
                continue
            process.kill()
            process.wait()
            for path in trial.output.rglob("*"):
                os.utime(path, (tomorrow, tomorrow))
            trial.count(stage)
    trial.compare(trial.output)


def copied(trial: Trial) -> None:
    """The run directory is copied while it runs, and the copy is continued."""
    for stage in ("classify", "saliency", "refine", "evaluate"):
        copy = trial.output.with_name(f"copy-{stage}")
        with trial.in_stage(stage) as process:
            if process is None:
                continue
            subprocess.run(["cp", "-r", trial.output, copy], stderr=subprocess.DEVNULL, check=False)
            trial.count(stage)
        trial.compare(copy)


def disk_full(trial: Trial) -> None:
    """Another program fills the disk, up to 64 kB, during each stage; then there is room again."""
    folder = trial.output
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        trial.note = "not tried: no right to mount a disk"
        return
    try:
        for stage in STAGES:
            with trial.in_stage(stage) as process:
                if process is None:
                    continue
                with (folder / "filler").open("wb") as file:
                    for _ in range(10):
                        with suppress(OSError):  # the run has written something meanwhile
                            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - 65536)
                            break
                trial.stops(process, stage, "free some disk space")
                (folder / "filler").unlink()
        trial.compare(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def read_only(trial: Trial) -> None:
    """The folders of the run cannot be written to during each stage (chattr +i, which stops root too)."""
    for stage in STAGES:
        with trial.in_stage(stage) as process:
            if process is None:
                continue
            folders = [trial.output, *(path for path in trial.output.rglob("*") if path.is_dir())]
            if subprocess.run(["chattr", "+i", *folders], capture_output=True).returncode:
                trial.note = "not tried: chattr +i is not possible here"
                return
            try:
                trial.stops(process, stage, "choose a folder that you may write to")
            finally:
                subprocess.run(["chattr", "-i", *folders], check=True)
    trial.compare(trial.output)


def overwritten(trial: Trial) -> None:
    """A finished run is trained again with another seed, killed in each stage, and the old seed asked for."""
    shutil.copytree(trial.work / "undisturbed-1", trial.output)
    for stage in STAGES:
        with trial.in_stage(stage, "--seed", "1", "--overwrite") as process:
            if process is None:
                continue
            process.kill()
            process.wait()
            trial.count(stage)
            if (
                stage == "classify"
                and not (trial.output / "replaced/classify/classifier/last.ckpt").is_file()
            ):
                trial.lost.append("the network of the old seed is gone")
    trial.compare(trial.output, "--overwrite")


KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
TRIALS = (
    Trial("kill", "SIGKILL, twice in a row", killed(KILL, KILL)),
    Trial("signals", "SIGTERM, then SIGINT", killed(TERM, INT)),
    Trial("ranks", "two ranks: SIGKILL, then SIGTERM", killed(KILL, TERM), devices=2),
    Trial("worker", "SIGKILL to a worker process", worker_killed),
    Trial("full", "disk full", disk_full),
    Trial("readonly", "folders read-only", read_only),
    Trial("gone", "a photo disappears", photo_gone),
    Trial("second", "a second run on the directory", second_run),
    Trial("clock", "SIGKILL, and the clock jumps back", clock_back),
    Trial("copy", "copied while it runs", copied),
    Trial("overwrite", "--overwrite: SIGKILL, then the old seed again", overwritten),
)


# -- bad input --------------------------------------------------------------------------------------


def tries_bad_input() -> list[str]:
    """The integration tests that look at the sentence of a refused command, themselves or through a helper."""
    found = []
    for path in sorted(Path("tests/integration").glob("test_*.py")):
        text = path.read_text()
        functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
        sources = {node.name: ast.get_source_segment(text, node) or "" for node in functions}
        words = ["sentence", *(name for name, source in sources.items() if "sentence" in source)]
        found += [
            f"{path}::{name}"
            for name, source in sources.items()
            if name.startswith("test_") and any(re.search(rf"\b{word}\b", source) for word in words)
        ]
    return found


def refusals(work: Path) -> list[tuple[str, str]]:
    """(what was wrong, the message) of every bad input that the integration tests try, each refused with status 1."""
    log = work / "refusals.jsonl"
    tests = [sys.executable, "-m", "pytest", "-q", *tries_bad_input()]
    done = subprocess.run(tests, env={**os.environ, "WSSS_FAULTS": str(log)}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout)
    temporary = re.compile(r"/tmp/pytest-of-[^/]+/pytest-\d+/(popen-gw\d+/)?[^/ ]+/")
    found = {}
    for line in log.read_text().splitlines():
        test, message = json.loads(line)
        name = test.partition("::test_")[2].partition("[")[0].replace("_", " ")
        found[temporary.sub("", message)] = name
    return sorted((name, message) for message, name in found.items())


def page(rows: Sequence[str], found: Sequence[tuple[str, str]], seconds: float) -> str:
    """docs/faults.md."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    inputs = "\n".join(
        f"| {name} | {escape(message, quote=False).replace('|', chr(92) + '|')} |" for name, message in found
    )
    return f"""# Faults and bad input

Made by `make torture` on {date.today()}, commit {commit}, in {seconds / 60:.0f} minutes on {os.cpu_count()} cores.

## Faults

Each row is a pipeline on tiny data (every stage, two worker processes) that is broken on purpose at random moments and
continued. Afterwards its masks, predictions, maps, numbers and weights are compared with those of an undisturbed run,
bit for bit.

{chr(10).join([HEAD, *rows])}

## Bad input

{len({name for name, _ in found})} kinds, {len(found)} messages. Each is a test in tests/integration: exit status 1, one
sentence, no traceback.

| what the test tries | message |
|---|---|
{inputs}
"""


HEAD = "| fault | injected | in the stages | seconds | afterwards |\n|---|---|---|---|---|"


def undisturbed(work: Path, devices: int) -> dict[str, float]:
    """Make the run that the others are compared with; returns the seconds of its stages."""
    trial = Trial("", "", killed(), devices=devices, work=work)
    output = work / f"undisturbed-{devices}"
    done = trial.finish(output)
    if done.returncode:
        sys.exit(done.stderr)
    entries = json.loads((output / "manifest.json").read_text())["stages"]
    return {name: entries[name]["seconds"] for name in STAGES}


def main(arguments: Sequence[str] | None = None) -> int:
    names = ",".join(trial.name for trial in TRIALS)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--only", default=names, help=f"some of {names}")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--page", type=Path, metavar="FILE.md", help="try bad input too, and write the tables there"
    )
    options = parser.parse_args(arguments)
    started = time.monotonic()
    options.work.mkdir(parents=True)
    (options.work / "tiny.yaml").write_text(json.dumps(SETTINGS))
    chosen = [trial for trial in TRIALS if trial.name in options.only.split(",")]
    durations = {
        devices: undisturbed(options.work, devices) for devices in {trial.devices for trial in chosen}
    }
    for trial in chosen:
        trial.work, trial.durations = options.work, durations[trial.devices]
        trial.moments = Random(f"{options.seed} {trial.name}")
    print(HEAD, flush=True)
    with ThreadPoolExecutor(2) as pool:  # a run waits for its disk and its workers half of the time
        for future in as_completed([pool.submit(trial) for trial in chosen]):
            print(future.result(), flush=True)
    if options.page:
        found = refusals(options.work)
        options.page.write_text(page(list(map(str, chosen)), found, time.monotonic() - started))
    return int(any(trial.lost for trial in chosen))


if __name__ == "__main__":
    sys.exit(main())
