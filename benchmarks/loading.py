"""How long a run needs to know its photos: loading a folder and its CSV, and the fingerprints of all stages.

    python benchmarks/loading.py WORK                           20,000 photos
    python benchmarks/loading.py WORK --photos 1000000 --repeats 1

WORK/PHOTOS gets a made-up data set: hard links to a small photo, and a CSV with one to three of 20 tags a photo. The
peer does nothing but read that CSV with the `csv` module and list the folder with `pathlib`. Both run in turn, and the
table has medians. The headers of the photos are read once for each data set (the manifest remembers it); that time
stands apart.
"""

import argparse
import csv
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np

from wsss import runtime
from wsss.config import Config
from wsss.data.agreement import check_photos
from wsss.data.dataset import Dataset
from wsss.data.files import write_json, write_photo
from wsss.options import parse_config
from wsss.runner import fingerprints
from wsss.stages.prepare import prepare_dataset

T = TypeVar("T")

LINKS = 60_000
"""Most hard links to one file."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder for the made-up data set")
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON of the figures")
    options = parser.parse_args()
    root = options.work / str(options.photos)
    if not (root / "labels.csv").is_file():
        write_data_set(root, options.photos)
    run = options.work / f"run{options.photos}"
    config = parse_config("run", ["--data.kind", "folder", "--data.root", str(root), "--output", str(run)])
    dataset, first = timed(lambda: prepare_dataset(config))
    write_json(run / "manifest.json", {"looked_at": dataset.looked_at})
    headers = timed(lambda: check_photos(dataset, runtime.workers(config.runtime)))[1]
    plain, ours = [], []
    for _ in range(options.repeats):
        plain.append(timed(lambda: read_plainly(root))[1])
        ours.append(timed(lambda: load(config))[1])
    peer, own = median(plain), median(ours)
    print(
        f"{options.photos:,} photos: CSV and listing {peer:.2f} s, loading and fingerprints {own:.2f} s "
        f"({own / peer:.1f} times, {1e6 * own / options.photos:.0f} µs a photo); headers {headers:.1f} s; "
        f"the first start {first:.1f} s"
    )
    if options.output:
        figures = {"photos": options.photos, "ours": own, "plain": peer, "headers": headers, "first": first}
        write_json(options.output, figures)


def write_data_set(root: Path, photos: int) -> None:
    for number in range(photos // LINKS + 1):
        write_photo(root / f"photo{number}.jpg", np.zeros((32, 32, 3), np.uint8))
    (root / "images").mkdir(parents=True)
    draw, tags = random.Random(0), [f"class {number}" for number in range(20)]
    lines = ["image,labels"]
    for number in range(photos):
        name = f"photo {number:07}.jpg"
        os.link(root / f"photo{number // LINKS}.jpg", root / "images" / name)
        lines.append(f"{name},{';'.join(draw.sample(tags, draw.randint(1, 3)))}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_plainly(root: Path) -> None:
    with (root / "labels.csv").open(newline="", encoding="utf-8") as file:
        {row["image"]: row["labels"].split(";") for row in csv.DictReader(file)}
    sorted((root / "images").iterdir())


def load(config: Config) -> Dataset:
    dataset = prepare_dataset(config)
    fingerprints(config, dataset)
    return dataset


def timed(work: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin


if __name__ == "__main__":
    main()
