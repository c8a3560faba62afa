"""Whole stages against the plain scripts that the field's repositories have. Seconds, ratios, and that the masks agree.

    python benchmarks/pipeline.py --photos VOC2012/JPEGImages
    python benchmarks/pipeline.py --photos VOC2012/JPEGImages --only predict --count 100 --repeats 1

masks: from a classifier to pseudo-masks. Ours are the stages saliency and refine (`wsss.stages`), with Grad-CAM at four
scales and two CRFs a photo. The plain script does what the IRN family's scripts do, photo after photo: grad-cam for
each class and scale, the sum over the scales, two calls of pydensecrf (a generous and a strict seed), a PNG.

training: steps of Lightning on made-up batches in memory. The plain side is the same task in float32 and in torch's
default memory format.

predict: `wsss predict` without its start. The plain script reads, predicts in float32, enlarges, takes the arg-max and
writes a PNG, photo after photo.

ResNet-50, 20 classes, one or two labels a photo; the weights are random, which changes no time. The sides take turns;
medians over --repeats. What starting processes costs is on our side.
"""

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # for both sides

COUNTS = {"masks": 12, "training": 0, "predict": 40}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--count", type=int, help="photos (default: 12 for masks, 40 for predict)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("masks", "training", "predict"), action="append")
    parser.add_argument("--output", type=Path, help="JSON of all figures")
    options = parser.parse_args()
    import pipeline_sides as sides  # in the processes of a pool this script imports nothing heavy
    import torch

    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for kind, make in (("masks", sides.masks), ("training", sides.training), ("predict", sides.predict)):
            if options.only is None or kind in options.only:
                ours, plain, agreement = make(
                    sides.photos_of(options.photos, options.count or COUNTS[kind]), Path(name)
                )
                found[kind] = turns(kind, ours, plain, options.repeats)
                print(
                    f"{kind}: {found[kind]['ratio']:.1f} times the plain script's speed; {agreement()}",
                    flush=True,
                )
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


def turns(
    kind: str, ours: Callable[[], object], plain: Callable[[], object], repeats: int
) -> dict[str, float]:
    """Median seconds of both sides, which take turns, and the median of the ratios of a turn."""
    pairs = [(timed(ours), timed(plain)) for _ in range(repeats)]
    own, peer = (median(side) for side in zip(*pairs, strict=True))
    print(f"{kind}: ours {own:.1f} s, plain {peer:.1f} s ({repeats} turns)")
    return {"ours": own, "plain": peer, "ratio": median(two / one for one, two in pairs)}


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
