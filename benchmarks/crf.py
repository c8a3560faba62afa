"""The dense CRF: our PyTorch backend against pydensecrf, in one run. Seconds, memory, and that they agree.

    python benchmarks/crf.py --photos VOC2012/JPEGImages
    python benchmarks/crf.py --photos VOC2012/JPEGImages --images 0 --output crf.json      without the stage

One image: photos resized to 500x375, class probabilities that are smooth at random and follow the photo in
part, the default parameters (10 iterations). The sides run in turns; medians over all photos and repeats.
"first" is torch on a size that it has not met, later calls remember the lattice of the Gaussian kernel.
Memory is the peak of resident memory above what was resident before the call, in a process of its own.

A stage: `wsss refine` itself (`wsss.stages.refine.write_all`) on photos of their own size, from stored
probabilities (one CRF a photo) and from stored saliency (agreement, two CRFs a photo), in a pool of processes and
on a GPU where there is one; against a plain loop that reads the same archive and photo, calls pydensecrf, anew for
each CRF, and writes the same two PNGs. The start of the processes counts. "same pixels" compares the PNGs.

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

from wsss.config import RuntimeConfig
from wsss.data.dataset import Record
from wsss.data.files import Saliency, read_image, read_mask, read_saliency, write_mask, write_saliency
from wsss.refine.background import prepare_maps, prepare_probabilities, seed_mask
from wsss.refine.crf import dense_crf, dense_crf_batch
from wsss.refine.masks import label_probabilities
from wsss.refine.parameters import BackgroundParameters, RefineParameters
from wsss.refine.refiners import build_refiner
from wsss.rundir import EXTENDED, LABELS, MASKS, SALIENCY, RunDirectory

# torch is imported where it is used: the pool's processes import this file, and need none, as in `wsss refine`.

SIZE = (500, 375)
"""Width and height of the single image, the usual ones of PASCAL VOC."""

RULE = RefineParameters(background=BackgroundParameters(rule="constant", threshold=0.2))
"""How the stage refines: the defaults, but a background rule that needs no calibration."""

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
        figures["stage"] = [report(stage(files, source, options)) for source in (EXTENDED, SALIENCY)]
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


def stage(files: Sequence[Path], source: str, options: argparse.Namespace) -> dict[str, object]:
    """Seconds of a folder of photos: pydensecrf in a loop, and `wsss refine`'s own function."""
    chosen = list(itertools.islice(itertools.cycle(files), options.images))
    classes = tuple(range(1, options.stage_labels))
    records = [Record(f"{index:06}", path, classes, None) for index, path in enumerate(chosen)]
    seconds, written = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder))
        for record in records:
            write_saliency(run.maps(source, record.id), archive(record.image, source, options.stage_labels))
        for name, work in stage_sides(records, run, source, options.threads).items():
            seconds[name] = timed(work)
            masks = sorted(run.root.glob("pseudo_*/*.png"))
            written[name] = [read_mask(path) for path in masks]
            for path in masks:
                path.unlink()
    serial = seconds["pydensecrf serial"]
    return {
        "from": source,
        "images": len(records),
        "labels": options.stage_labels,
        **{f"{name}: images a second": len(records) / value for name, value in seconds.items()},
        **{f"serial / {name}": serial / value for name, value in list(seconds.items())[1:]},
        **{f"{name}: same pixels": same_pixels(written, name) for name in list(seconds)[1:]},
    }


def stage_sides(
    records: Sequence[Record], run: RunDirectory, source: str, workers: int
) -> dict[str, Callable[[], None]]:
    """Name -> what is timed; the first one is what the others are compared with."""

    def ours(workers: int, device: str | None = None) -> None:
        from wsss.stages.refine import write_all

        hardware = RuntimeConfig(workers=workers, progress=False)
        write_all(records, run, build_refiner(RULE, device), source, hardware)

    sides: dict[str, Callable[[], None]] = {
        "pydensecrf serial": lambda: plain_loop(records, run, source),
        f"refine, {workers} processes": partial(ours, workers),
    }
    if gpu():
        sides["refine, cuda"] = partial(ours, workers, "cuda")
    return sides


def plain_loop(records: Sequence[Record], run: RunDirectory, source: str) -> None:
    """What one would write by hand."""
    for record in records:
        stored, image = read_saliency(run.maps(source, record.id)), read_image(record.image)
        posteriors = (by_probabilities if source == EXTENDED else by_agreement)(stored, image)
        best = [
            posterior.argmax(0).astype(np.uint8) for posterior in (np.sum(posteriors, axis=0), *posteriors)
        ]
        certain = (best[0] == best[1]) & (best[0] == best[-1])
        if source == EXTENDED:
            certain = posteriors[0].max(0) >= RULE.posterior_limit
        write_mask(run.mask(LABELS, record.id), best[0])
        write_mask(run.mask(MASKS, record.id), np.where(certain, best[0], np.uint8(255)))


def by_probabilities(stored: Saliency, image: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
    probabilities = prepare_probabilities(stored.maps, stored.size)
    return [dense_crf(probabilities, image, RULE.soft_crf, "pydensecrf")]


def by_agreement(stored: Saliency, image: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
    maps = prepare_maps(stored.maps, stored.size)
    posteriors = []
    for factor in (RULE.low_factor, RULE.high_factor):
        seed = seed_mask(maps, stored.classes, RULE.background.threshold * factor)
        unary = label_probabilities(seed, len(maps) + 1, RULE.confidence)
        posteriors.append(dense_crf(unary, image, RULE.crf, "pydensecrf"))
    return posteriors


def same_pixels(written: dict[str, list[npt.NDArray[np.uint8]]], name: str) -> float:
    pairs = zip(written["pydensecrf serial"], written[name], strict=True)
    return float(np.mean([(one == other).mean() for one, other in pairs]))


# -- inputs --------------------------------------------------------------------------------------


def archive(path: Path, source: str, labels: int) -> Saliency:
    """What the stages before the refinement would store: probabilities, or saliency without a background."""
    image = read_image(path)
    size = (image.shape[0], image.shape[1])
    probabilities = softmax(coarse_scores(path, image, labels))
    if source == EXTENDED:
        return Saliency(np.arange(labels, dtype=np.int16), probabilities.astype(np.float16), size)
    maps = probabilities[1:] / probabilities[1:].max(axis=(1, 2), keepdims=True)
    return Saliency(np.arange(1, labels, dtype=np.int16), maps.astype(np.float16), size)


def example(path: Path, labels: int, size: tuple[int, int]) -> Input:
    """A photo and class probabilities for it, the same for the same file name."""
    image = np.array(Image.fromarray(read_image(path)).resize(size, Image.Resampling.BICUBIC))
    scores = coarse_scores(path, image, labels)
    return softmax(np.stack([cv2.resize(score, size) for score in scores])), image


def coarse_scores(path: Path, image: npt.NDArray[np.uint8], labels: int) -> npt.NDArray[np.float32]:
    """Scores (labels, 48, 64): smooth random fields, and how near the photo is to one random colour a label."""
    random = np.random.default_rng(list(path.name.encode()))
    small = cv2.resize(image, (64, 48), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.stack(list(fields(random, labels))) - distances(small, random.integers(0, 256, (labels, 3)))


def softmax(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    powers = np.exp(scores - scores.max(axis=0))
    return (powers / powers.sum(axis=0)).astype(np.float32)


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
