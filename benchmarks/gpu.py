"""Everything that only a GPU can tell, in one command of at most eight minutes: `make gpu`.

    python benchmarks/gpu.py WORK --voc DIR --weights R50.pth         on a machine with a GPU
    python benchmarks/gpu.py WORK --device cpu --tiny                 the same script on a CPU, to see that it works

Writes WORK/gpu.json after every part, and WORK/gpu.md at the end (`--page docs/gpu.md` replaces that page's table). A
part that fails is a row with its error. Parts that no longer fit into `--budget` seconds are skipped, and said so.
Without `--voc`, the run is on the procedural data set. Needs no network, and of wsss's dependencies no pydensecrf (then
the CRF has no peer) and no grad-cam.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wsss.config import ClassifierConfig
from wsss.models.classifier import build_classifier
from wsss.refine.crf import dense_crf
from wsss.saliency import normalize
from wsss.saliency.parse import parse_method

METHODS = (
    *(
        "gradient",
        "guided_backprop",
        "dcsm",
        "gradcam",
        "gradcam++",
        "xgradcam@layer3",
        "integrated_gradcam(steps=10)",
    ),
    *("cameras", "relevance_cam", "groupcam", "fullgrad", "global_guidance@layer3"),
    *("sess(gradcam, scales=(224, 288))", "multiscale(gradcam)", "subtraction(gradcam)"),
)
MARK = "<!-- made by benchmarks/gpu.py -->"
Rows = list[dict[str, Any]]


class Report:
    """The parts' rows so far, on disk after every part."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.started = options, time.monotonic()
        self.parts: dict[str, Any] = {}

    def part(self, name: str, work: Callable[[argparse.Namespace], Rows], seconds: float) -> None:
        """Run a part that is expected to take so long, unless the budget is spent."""
        left = self.options.budget - (time.monotonic() - self.started)
        begun = time.monotonic()
        if left < seconds:
            rows: Rows = [{"skipped": f"{left:.0f} s left, {seconds:.0f} needed"}]
        else:
            try:
                rows = work(self.options)
            except Exception as error:
                rows = [{"failed": f"{type(error).__name__}: {error}"[:300]}]
        self.parts[name] = {"seconds": round(time.monotonic() - begun, 1), "rows": rows}
        print(table(name, self.parts[name]), flush=True)
        (self.options.work / "gpu.json").write_text(json.dumps(self.parts, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("work", type=Path, help="a new folder")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--voc", type=Path, help="data set of configs/small_voc.yaml")
    parser.add_argument("--weights", type=Path, help="ImageNet weights of a ResNet-50, for that run")
    parser.add_argument("--limit", type=int, help="photos of each split")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to try the script")
    parser.add_argument("--budget", type=float, default=450, help="seconds")
    parser.add_argument("--page", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device; --device cpu --tiny tries the script on a CPU")
    report = Report(options)
    report.part("machine", machine, 0)
    report.part("gpu tests", gpu_tests, 40)
    report.part("saliency: largest difference from the CPU after min-max", methods, 60)
    report.part("CRF", crf, 30)
    report.part("the whole run", whole_run, 150)
    report.part("predict", predict, 40)
    report.part("launch", launch, 60)
    text = "\n\n".join(table(name, part) for name, part in report.parts.items())
    (options.work / "gpu.md").write_text(text)
    if options.page:
        before, _, rest = options.page.read_text().partition(f"{MARK}\n")
        after = rest.partition(f"{MARK}\n")[2]
        options.page.write_text(f"{before}{MARK}\n\n{date.today()}\n\n{text}\n\n{MARK}\n{after}")


def table(name: str, part: dict[str, Any]) -> str:
    """Markdown of a part."""
    rows = part["rows"]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [" | ".join(str(row.get(key, "")) for key in keys) for row in rows]
    head = f"**{name}** ({part['seconds']} s)\n\n| {' | '.join(keys)} |\n{'|---' * len(keys)}|\n"
    return head + "\n".join(f"| {line} |" for line in lines)


# -- parts ------------------------------------------------------------------------------------------


def machine(options: argparse.Namespace) -> Rows:
    """Where the numbers are from."""
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    cores = len(os.sched_getaffinity(0))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    return [{"device": name, "cores": cores, "torch": torch.__version__, "commit": commit or "unknown"}]


def gpu_tests(options: argparse.Namespace) -> Rows:
    """The tests with the marker."""
    marker = "gpu" if options.device == "cuda" else "gpu and not gpu"
    words = [sys.executable, "-m", "pytest", "-m", marker, "-n", "0", "-q", "tests"]
    done = subprocess.run(words, capture_output=True, text=True)
    return [{"exit status": done.returncode, "says": (done.stdout.strip().splitlines() or ["nothing"])[-1]}]


def methods(options: argparse.Namespace) -> Rows:
    """Maps of the device in three precisions against those of the CPU in float32."""
    torch.manual_seed(0)
    architecture, size, some = ("resnet18", 64, METHODS[:4]) if options.tiny else ("resnet50", 224, METHODS)
    config = ClassifierConfig(architecture, weights="none", output_stride=32)
    here = build_classifier(config, 5).eval()
    there = build_classifier(config, 5).eval()
    there.load_state_dict(here.state_dict())
    there.to(options.device)
    images = torch.randn(2, 3, size, size)
    targets = torch.tensor([[0, 1], [1, 2], [1, 3]])
    rows = []
    for text in some:
        method = parse_method(text, "layer4", "sigmoid")
        expected = normalize(method(here, images, targets))
        row: dict[str, Any] = {"method": text}
        for precision in ("float32", "TF32", "bf16"):
            with computing(precision, options.device):
                method(there, images.to(options.device), targets.to(options.device))
                wait(options.device)
                begun = time.perf_counter()
                found = method(there, images.to(options.device), targets.to(options.device))
                wait(options.device)
                row[f"{precision} ms"] = round(1000 * (time.perf_counter() - begun), 1)
            row[precision] = f"{float((normalize(found.cpu()) - expected).abs().max()):.1e}"
        rows.append(row)
    return rows


@contextmanager
def computing(precision: str, device: str) -> Iterator[None]:
    """float32 as it is, with TF32, or under bf16 autocast."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "TF32"
    try:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def wait(device: str) -> None:
    """Until the device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def crf(options: argparse.Namespace) -> Rows:
    """torch's CRF on the device against pydensecrf on one core, from the same maps."""
    size = (60, 80) if options.tiny else (375, 500)
    rows = []
    for classes in (2, 4, 21):
        generator = torch.Generator().manual_seed(classes)
        coarse = torch.randn(1, classes, 8, 10, generator=generator)
        scores = nn.functional.interpolate(coarse, size, mode="bicubic")[0].mul(3).softmax(0)
        photo = nn.functional.interpolate(
            torch.rand(1, 3, 20, 25, generator=generator), size, mode="bicubic"
        )[0]
        image = (photo.clamp(0, 1) * 255).byte().permute(1, 2, 0).contiguous()
        row: dict[str, Any] = {"classes": classes, "size": f"{size[1]}x{size[0]}"}
        ours, row["torch ms"] = timed(lambda s=scores, i=image: on_device(s, i, options.device), 3)
        try:
            theirs, row["pydensecrf ms"] = timed(
                lambda s=scores, i=image: dense_crf(s.numpy(), i.numpy(), backend="pydensecrf"), 1
            )
        except Exception as error:
            row["pydensecrf ms"] = f"not here ({type(error).__name__})"
        else:
            row["ratio"] = round(row["pydensecrf ms"] / row["torch ms"], 1)
            row["same label"] = f"{(ours.argmax(0) == theirs.argmax(0)).mean():.3%}"
        rows.append(row)
    return rows


def on_device(scores: Tensor, image: Tensor, device: str) -> "np.ndarray[Any, Any]":
    found = dense_crf(scores.to(device), image)
    wait(device)
    return found.cpu().numpy()


def timed(work: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """The result, and the median of milliseconds after one unmeasured call."""
    result, seconds = work(), []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - begun)
    return result, round(1000 * sorted(seconds)[len(seconds) // 2], 1)


def run_words(options: argparse.Namespace) -> list[str]:
    """The configuration of the whole run."""
    if options.voc:
        words = ["configs/small_voc.yaml", "--data.root", str(options.voc)]
        for part in ("classifier", "segmenter"):
            words += [f"--{part}.weights", str(options.weights or "none")]
    else:
        words = ["configs/shapes.yaml", "--data.root", str(options.work / "shapes")]
        if options.tiny:
            words += ["--data.shapes.train", "24", "--data.shapes.val", "6", "--data.shapes.size", "64"]
            words += ["--classifier.epochs", "1", "--segmenter.epochs", "1"]
    words += ["--data.limit", str(options.limit)] if options.limit else []
    return [
        *words,
        "--runtime.accelerator",
        "gpu" if options.device == "cuda" else "cpu",
        "--runtime.progress",
        "false",
    ]


def whole_run(options: argparse.Namespace) -> Rows:
    """Seconds, photos a second, utilisation and memory of every stage, and the numbers."""
    run = options.work / "run"
    samples: list[tuple[float, float, float]] = []
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(samples, ended, options.device))
    watcher.start()
    offset = time.time()
    words = [sys.executable, "-m", "wsss", "run", *run_words(options), "--output", str(run)]
    done = subprocess.run(words, capture_output=True, text=True)
    ended.set()
    watcher.join()
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    rows: Rows = []
    entries = json.loads((run / "manifest.json").read_text())["stages"]
    begun = offset
    for name, entry in entries.items():
        seconds = float(entry.get("seconds", 0))
        inside = [one for one in samples if begun <= one[0] <= begun + seconds]
        begun += seconds
        row = {"stage": name, "seconds": round(seconds, 1), "photos": entry.get("images", "")}
        if seconds and entry.get("images"):
            row["photos/s"] = round(entry["images"] / seconds, 1)
        if inside:
            row["GPU busy %"] = round(sum(one[1] for one in inside) / len(inside))
            row["GPU MiB"] = round(max(one[2] for one in inside))
        rows.append(row)
    numbers = json.loads((run / "metrics.json").read_text())
    found = {name: numbers[name]["miou"] for name in ("seed", "mask", "val") if name in numbers}
    rows.append({"stage": "all", "seconds": round(time.time() - offset, 1), "mIoU": json.dumps(found)})
    return rows


def watch(samples: list[tuple[float, float, float]], ended: threading.Event, device: str) -> None:
    """Time, utilisation in percent, and memory in MiB of the GPU, four times a second."""
    query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
    while device == "cuda" and not ended.wait(0.25):
        line = subprocess.run(query, capture_output=True, text=True).stdout.strip().splitlines()
        if line:
            busy, memory = (float(value) for value in line[0].split(","))
            samples.append((time.time(), busy, memory))


def photos_of(options: argparse.Namespace, count: int) -> list[str]:
    root = options.voc or options.work / "shapes"
    return [str(path) for path in sorted((root / "JPEGImages").iterdir())[:count]]


def predict(options: argparse.Namespace) -> Rows:
    """Masks of new photos, plain and in the best quality."""
    rows = []
    for extra in ([], ["--ms_flip", "--crf"]):
        photos = photos_of(options, 6 if options.tiny else 100 if not extra else 20)
        words = [sys.executable, "-m", "wsss", "predict", *photos, "--checkpoint", str(options.work / "run")]
        words += ["--output", str(options.work / f"masks{len(extra)}"), *extra]
        words += ["--accelerator", "gpu" if options.device == "cuda" else "cpu"]
        begun = time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True)
        seconds = time.perf_counter() - begun
        row = {"options": " ".join(extra) or "plain", "photos": len(photos), "seconds": round(seconds, 1)}
        if done.returncode:
            row["failed"] = done.stderr.strip().splitlines()[-1][:200]
        rows.append(row)
    return rows


def launch(options: argparse.Namespace) -> Rows:
    """Saliency by two processes under torchrun, and a training on all GPUs."""
    run, rows = options.work / "run", []
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    for title, words in (
        ("torchrun, 2 processes: saliency", [*launcher, sys.executable, "-m", "wsss", "saliency", str(run)]),
        ("Slurm's variables set: saliency", [sys.executable, "-m", "wsss", "saliency", str(run)]),
    ):
        (run / "saliency").rename(run / "saliency_before") if (run / "saliency").exists() else None
        slurm = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "x"} if "Slurm" in title else {}
        begun = time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **slurm})
        row: dict[str, Any] = {"launch": title, "seconds": round(time.perf_counter() - begun, 1)}
        row["exit status"] = done.returncode
        before = sorted(path.name for path in (run / "saliency_before").iterdir())
        same = sum(equal(run / "saliency_before" / name, run / "saliency" / name) for name in before)
        row["same maps"] = f"{same} of {len(before)}"
        for path in (run / "saliency_before").iterdir():
            path.unlink()
        (run / "saliency_before").rmdir()
        rows.append(row)
    return rows


def equal(one: Path, other: Path) -> bool:
    if not other.is_file():
        return False
    with np.load(one) as left, np.load(other) as right:
        return all(np.allclose(left[key], right[key], atol=5e-3) for key in left)


if __name__ == "__main__":
    main()
