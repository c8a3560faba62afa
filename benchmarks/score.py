"""`wsss score` against only decoding the PNGs: how much the measuring costs, in one process and with workers.

    python benchmarks/score.py                                       1,449 made-up pairs of 500x375
    python benchmarks/score.py --folders predictions VOC2012/SegmentationClass --output score.json

The made-up masks are VOC-like palette PNGs: objects with ragged outlines and the 255 border of VOC, predictions
that differ from them along the outlines. "decode" opens both files of every pair with Pillow and asks for
their arrays, nothing else; it runs on the same processes in the same portions as the score, so what starting
the processes costs is on both sides. The sides run in turns; medians over --repeats. The ratio is the median of
the ratios of one turn, which other work on the machine disturbs less than the seconds.

"sweep" and "check" are the oracle over 99 thresholds and the validation of one pair, in memory.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsss.data.files import read_mask, write_mask
from wsss.metrics.confusion import check_pair
from wsss.metrics.segmentation import count_pairs, pairs_of_folders
from wsss.metrics.sweep import ThresholdSweep

WIDTH, HEIGHT, CLASSES = 500, 375, 21
"""The usual size of PASCAL VOC's photos, and its classes with background."""

PORTION = 16
"""Pairs of one task of a worker, as in `count_pairs`."""

Pair = tuple[Path, Path]
Mask = npt.NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--folders", type=Path, nargs=2, metavar=("PREDICTIONS", "TRUTH"), help="real masks")
    parser.add_argument("--images", type=int, default=1449, help="made-up pairs (default 1449, VOC's val)")
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[2], help="numbers of processes (default 2)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns (default 5)")
    parser.add_argument("--output", type=Path, help="JSON of all figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        predictions, truth = options.folders or make_masks(Path(folder), options.images)
        pairs = pairs_of_folders(predictions, truth, None)
        rows = [measure(pairs, workers, options.repeats) for workers in (1, *options.workers)]
        memory = in_memory(pairs[:50], options.repeats)
    report = {
        "images": len(pairs),
        "machine": {"cpus": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], "cpu": cpu()},
        "rows": rows,
        "milliseconds_of_a_pair": memory,
    }
    print(table(report))
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


def measure(pairs: Sequence[Pair], workers: int, repeats: int) -> dict[str, Any]:
    """Median seconds of decoding, scoring and scoring with boundaries, and the ratios to decoding."""
    sides: dict[str, Callable[[], object]] = {
        "decode": lambda: decode(pairs, workers),
        "score": lambda: count_pairs(pairs, CLASSES, workers=workers),
        "boundary": lambda: count_pairs(pairs, CLASSES, boundary=True, workers=workers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    decode(pairs, 1)  # the files are in the page cache from here on
    for _ in range(repeats):
        for name, side in sides.items():
            seconds[name].append(timed(side))
    ratios = {
        name: statistics.median(b / a for a, b in zip(seconds["decode"], values, strict=True))
        for name, values in seconds.items()
    }
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"workers": workers, "seconds": medians, "ratio": ratios, "all_seconds": seconds}


def decode(pairs: Sequence[Pair], workers: int) -> None:
    """Decode both masks of every pair and drop them."""
    portions = [pairs[start : start + PORTION] for start in range(0, len(pairs), PORTION)]
    if workers <= 1:
        list(map(decode_portion, portions))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(decode_portion, portions))


def decode_portion(pairs: Sequence[Pair]) -> None:
    for pair in pairs:
        for path in pair:
            with Image.open(path) as image:
                np.asarray(image)


def in_memory(pairs: Sequence[Pair], repeats: int) -> dict[str, float]:
    """Milliseconds of a pair: validation, and the sweep over 99 thresholds with two maps."""
    masks = [(read_mask(predicted), read_mask(true)) for predicted, true in pairs]
    ramps = [np.linspace(0, 1, true.size, dtype=np.float32).reshape(true.shape) for _, true in masks]

    def check() -> None:
        for predicted, true in masks:
            check_pair(predicted, true, CLASSES)

    def sweep() -> None:
        swept = ThresholdSweep(CLASSES)
        for (_, true), ramp in zip(masks, ramps, strict=True):
            swept.update(np.stack((ramp, ramp[::-1])), (1, 2), true)

    return {
        side.__name__: 1000 * statistics.median(timed(side) for _ in range(repeats)) / len(masks)
        for side in (check, sweep)
    }


def timed(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def make_masks(root: Path, images: int) -> tuple[Path, Path]:
    """Writes `images` made-up pairs; returns the folders of the predictions and of the truth."""
    generator = np.random.default_rng(0)
    for index in range(images):
        truth, prediction = made_up_pair(generator)
        write_mask(root / "truth" / f"{index}.png", truth)
        write_mask(root / "predictions" / f"{index}.png", prediction)
    return root / "predictions", root / "truth"


def made_up_pair(generator: np.random.Generator) -> tuple[Mask, Mask]:
    """(truth, prediction): one to four objects whose outline is an ellipse with waves."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    truth, prediction = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    for _ in range(generator.integers(1, 5)):
        down, right = generator.uniform(0, HEIGHT), generator.uniform(0, WIDTH)
        high, wide = generator.uniform(25, 150), generator.uniform(25, 200)
        angle = np.arctan2(rows - down, columns - right)
        radius = np.hypot((rows - down) / high, (columns - right) / wide)
        distance = (radius - waves(angle, generator, 0.1)) * min(high, wide)  # about pixels from the outline
        label = generator.integers(1, CLASSES)
        truth[distance < 2.5] = 255
        truth[distance < -2.5] = label
        prediction[distance + min(high, wide) * waves(angle, generator, 0.05) < min(high, wide)] = label
    return truth, prediction


def waves(angle: npt.NDArray[np.float32], generator: np.random.Generator, size: float) -> Any:
    """1 + waves of 3 to 40 periods around the outline, with `size` as standard deviation of the largest."""
    result = np.ones_like(angle)
    for periods in (3, 7, 17, 40):
        result += generator.normal(0, size * 3 / periods) * np.sin(
            periods * angle + generator.uniform(0, 6.28)
        )
    return result


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(report: dict[str, Any]) -> str:
    machine = report["machine"]
    lines = [
        f"{report['images']} pairs; {machine['cpus']} cores of {machine['cpu']}, load {machine['load']:.1f}",
        f"{'processes':<12}{'decode s':>10}{'score s':>10}{'ratio':>8}{'+ boundary s':>14}{'ratio':>8}",
    ]
    for row in report["rows"]:
        seconds, ratio = row["seconds"], row["ratio"]
        lines.append(
            f"{row['workers']:<12}{seconds['decode']:>10.2f}{seconds['score']:>10.2f}{ratio['score']:>8.2f}"
            f"{seconds['boundary']:>14.2f}{ratio['boundary']:>8.2f}"
        )
    for name, value in report["milliseconds_of_a_pair"].items():
        lines.append(f"{name}: {value:.2f} ms a pair")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
