"""The dense CRF: our PyTorch backend against pydensecrf, in one run. Seconds, memory, and that they agree.

    python benchmarks/crf.py --photos VOC2012/JPEGImages
    python benchmarks/crf.py --photos VOC2012/JPEGImages --images 0 --output crf.json      without the stage

One image: photos resized to 500x375, class probabilities that are smooth at random and follow the photo in
part, the default parameters (10 iterations). The sides run in turns; medians over all photos and repeats.
"first" is torch on a size that it has not met, later calls remember the lattice of the Gaussian kernel.
Memory is the peak of resident memory above what was resident before the call, in a process of its own.

A stage: reading the photos at their own size, making the probabilities, the CRF, arg-max, writing a PNG;
pydensecrf one by one, our pool of processes, and batches on a GPU where there is one.

pydensecrf uses one core, torch --threads. Other work on the machine disturbs the threads more than the single
core: run this on an idle one.
"""

import argparse
import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from wsss.data.files import read_image, write_mask
from wsss.parallel import pool, unordered
from wsss.refine.crf import dense_crf, dense_crf_batch

# torch is imported where it is used: the pool's processes import this file, and need none, as in `wsss refine`.

SIZE = (500, 375)
"""Width and height of the single image, the usual ones of PASCAL VOC."""

Input = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder of JPEG photos")
    parser.add_argument("--labels", type=int, nargs="+", default=[4, 21], help="numbers of labels")
    parser.add_argument("--different", type=int, default=5, help="different photos for one image (default 5)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side on each photo (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch, processes of the pool")
    parser.add_argument("--images", type=int, default=200, help="images of the stage, 0 for none")
    parser.add_argument("--stage-labels", type=int, default=4, help="labels in the stage (default 4)")
    parser.add_argument("--batch", type=int, default=8, help="images at once on a GPU (default 8)")
    parser.add_argument("--output", type=Path, help="JSON of all figures")
    options = parser.parse_args()
    set_threads(options.threads)
    files = sorted(options.photos.glob("*.jpg"))
    if not files:
        parser.error(f"no .jpg in {options.photos}")
    figures: dict[str, object] = {"machine": machine(options.threads), "size": SIZE}
    figures["one image"] = [report(one_image(files, labels, options)) for labels in options.labels]
    if options.images:
        figures["stage"] = report(stage(files, options))
    if options.output:
        options.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def report(figures: dict[str, object]) -> dict[str, object]:
    """Print figures, one a line."""
    for name, value in figures.items():
        print(f"{name:<36}{value:>14.6g}" if isinstance(value, float) else f"{name:<36}{value!s:>14}")
    print(flush=True)
    return figures


def machine(threads: int) -> dict[str, object]:
    versions = {name: version(name) for name in ("torch", "pydensecrf2", "numpy")}
    return {"platform": platform.platform(), **versions, "threads": threads, "gpu": gpu()}


def set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def gpu() -> str | None:
    """Its name, None without one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


# -- one image -----------------------------------------------------------------------------------


def one_image(files: Sequence[Path], labels: int, options: argparse.Namespace) -> dict[str, object]:
    """Both sides in turns on several photos."""
    from wsss.refine import meanfield

    step = max(1, len(files) // options.different)
    chosen = files[::step][: options.different]
    seconds: dict[str, list[float]] = {}
    same, difference = [], []
    for path in chosen:
        given = example(path, labels, SIZE)
        runs = sides(given, options)
        results = {name: run() for name, run in runs.items()}  # unmeasured
        for _, (name, run) in itertools.product(range(options.repeats), runs.items()):
            if name == "torch, first":
                meanfield.forget_lattices()
            seconds.setdefault(name, []).append(timed(run))
        same.append(float((results["torch"].argmax(0) == results["pydensecrf"].argmax(0)).mean()))
        difference.append(float(np.abs(results["torch"] - results["pydensecrf"]).mean()))
    median = {name: statistics.median(times) for name, times in seconds.items()}
    if "cuda, batch" in median:
        median["cuda, batch"] /= options.batch
    given = example(chosen[0], labels, SIZE)
    return {
        "labels": labels,
        **{f"{name}: ms an image": 1000 * value for name, value in median.items()},
        **{f"pydensecrf / {name}": median["pydensecrf"] / median[name] for name in list(median)[1:]},
        **{f"{name}: peak MB": peak_memory(name, given, options.threads) for name in ("pydensecrf", "torch")},
        "same labels, least": min(same),
        "posterior difference, largest mean": max(difference),
    }


def sides(given: Input, options: argparse.Namespace) -> dict[str, Callable[[], npt.NDArray[np.float32]]]:
    """Name -> what is timed; the first one is what the others are compared with."""
    runs = {
        "pydensecrf": partial(dense_crf, *given, backend="pydensecrf"),
        "torch": partial(dense_crf, *given, backend="torch"),
        "torch, first": partial(dense_crf, *given, backend="torch"),
    }
    if gpu():
        runs["cuda"] = partial(dense_crf, *given, device="cuda")
        repeated = [[part] * options.batch for part in given]
        runs["cuda, batch"] = lambda: dense_crf_batch(*repeated, device="cuda")[0]
    return runs


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_memory(backend: str, given: Input, threads: int) -> float:
    """MB above the start, in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(_peak_memory, backend, given, threads).result()


def _peak_memory(backend: str, given: Input, threads: int) -> float:
    set_threads(threads)
    tiny = (given[0][:, :8, :8].copy(), given[1][:8, :8].copy())
    dense_crf(*tiny, backend=backend)  # libraries loaded
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM (Linux)
    before = resident("VmRSS")
    dense_crf(*given, backend=backend)
    return resident("VmHWM") - before


def resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


# -- a stage -------------------------------------------------------------------------------------


def stage(files: Sequence[Path], options: argparse.Namespace) -> dict[str, object]:
    """Seconds of a folder of photos: pydensecrf serial, our pool, and batches on a GPU."""
    chosen = list(itertools.islice(itertools.cycle(files), options.images))
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(path, Path(folder) / f"{index}.png") for index, path in enumerate(chosen)]
        work = partial(refine, options.stage_labels)
        seconds = {"pydensecrf serial": timed(lambda: [work(job) for job in jobs])}
        seconds[f"pool of {options.threads}"] = timed(lambda: pooled(work, jobs, options.threads))
        if gpu():
            refine_on_gpu(options.stage_labels, jobs[: options.batch])  # unmeasured
            seconds["cuda"] = timed(lambda: in_batches(options, jobs))
    serial = seconds["pydensecrf serial"]
    return {
        "images": len(jobs),
        "labels": options.stage_labels,
        **{f"{name}: images a second": len(jobs) / value for name, value in seconds.items()},
        **{f"serial / {name}": serial / value for name, value in list(seconds.items())[1:]},
    }


def refine(labels: int, job: tuple[Path, Path]) -> None:
    path, target = job
    posterior = dense_crf(*example(path, labels), backend="pydensecrf")
    write_mask(target, posterior.argmax(0).astype(np.uint8))


def pooled(work: Callable[[tuple[Path, Path]], None], jobs: list[tuple[Path, Path]], workers: int) -> None:
    """As `wsss refine` does it; the start of the processes counts."""
    with pool(workers) as executor:
        for _ in unordered(executor, work, jobs, ahead=4 * workers):
            pass


def in_batches(options: argparse.Namespace, jobs: list[tuple[Path, Path]]) -> None:
    for start in range(0, len(jobs), options.batch):
        refine_on_gpu(options.stage_labels, jobs[start : start + options.batch])


def refine_on_gpu(labels: int, jobs: Sequence[tuple[Path, Path]]) -> None:
    inputs = [example(path, labels) for path, _ in jobs]
    posteriors = dense_crf_batch(*zip(*inputs, strict=True), device="cuda")
    for posterior, (_, target) in zip(posteriors, jobs, strict=True):
        write_mask(target, posterior.argmax(0).astype(np.uint8))


# -- inputs --------------------------------------------------------------------------------------


def example(path: Path, labels: int, size: tuple[int, int] | None = None) -> Input:
    """A photo and class probabilities for it, the same for the same file name."""
    image = read_image(path)
    if size is not None:
        image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    height, width = image.shape[:2]
    random = np.random.default_rng(list(path.name.encode()))
    small = cv2.resize(image, (64, 48), interpolation=cv2.INTER_AREA).astype(np.float32)
    scores = np.stack(list(fields(random, labels))) - distances(small, random.integers(0, 256, (labels, 3)))
    scores = np.stack([cv2.resize(score, (width, height)) for score in scores])
    powers = np.exp(scores - scores.max(axis=0))
    return (powers / powers.sum(axis=0)).astype(np.float32), image


def fields(random: np.random.Generator, labels: int) -> Iterator[npt.NDArray[np.float32]]:
    """Smooth random fields (48, 64), one a label."""
    for _ in range(labels):
        coarse = random.normal(0, 2, (6, 8)).astype(np.float32)
        yield cv2.resize(coarse, (64, 48), interpolation=cv2.INTER_CUBIC)


def distances(image: npt.NDArray[np.float32], colours: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Squared distances (labels, 48, 64) of the photo to one colour a label, in units of 110 grey levels."""
    difference = image[None] - colours[:, None, None].astype(np.float32)
    return (difference**2).sum(axis=3) / (2 * 80**2)


if __name__ == "__main__":
    main()
