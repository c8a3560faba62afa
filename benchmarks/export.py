"""Seconds of `wsss export masks --format coco` against pycocotools' encoding alone, in one run.

    python benchmarks/export.py MASK_DIR PHOTO_DIR CLASSES.txt --count 1000 --repeats 3

The export reads masks and photos' headers itself; the peer's masks are in memory before its clock starts. So the ratio
is given to the encoding alone, and to the encoding plus the reading of the PNGs, which any exporter must do.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from pycocotools import mask as codec

from wsss.data.files import read_mask, write_json
from wsss.data.names import read_classes
from wsss.export.masks import export_masks, find_pairs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("masks", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("classes", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON of the figures")
    options = parser.parse_args()
    pairs = find_pairs(options.masks, options.photos)[: options.count]
    classes = ("background", *read_classes(options.classes))
    seconds: dict[str, list[float]] = {"export": [], "reading": [], "encoding": []}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            export_masks(pairs, options.photos, classes, "coco", Path(folder) / "masks.json")
            seconds["export"].append(time.perf_counter() - started)
        started = time.perf_counter()
        masks = [read_mask(path) for _, path, _ in pairs]
        seconds["reading"].append(time.perf_counter() - started)
        started = time.perf_counter()
        for mask in masks:
            for index in set(np.unique(mask).tolist()) - {0, 255}:
                code = codec.encode(np.asfortranarray(mask == index).view(np.uint8))
                codec.area(code), codec.toBbox(code)
        seconds["encoding"].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print({name: round(value, 2) for name, value in median.items()})
    print(f"export / encoding: {median['export'] / median['encoding']:.2f}")
    print(f"export / (reading + encoding): {median['export'] / (median['reading'] + median['encoding']):.2f}")
    if options.output:
        write_json(options.output, {"masks": len(pairs), **median})


if __name__ == "__main__":
    main()
