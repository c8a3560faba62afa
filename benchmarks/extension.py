"""What the constants of `extend.method: pixels` do to the masks, on the training photos of a run.

    python benchmarks/extension.py runs/small_voc --photos 80 --rounds 1 2 4 6
    python benchmarks/extension.py runs/small_voc --photos 80 --rounds 4 --balance 0.5 0.75 1 --rate 1e-3 3e-3 6e-3

Classifier, saliency, data set and refinement are those of the run directory. For every combination the classifier of
cells learns on as many photos as the configuration says; evenly spaced photos get their probabilities and the
CRF, and their masks score both. Choosing a constant by this table uses masks: do it while developing, not in
a run that reports a number.
"""

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from wsss.config import Config, ExtendConfig, FeatureConfig
from wsss.data.dataset import Dataset, Record, evenly, with_masks
from wsss.extension import pixels
from wsss.options import parse_config
from wsss.refine.parameters import BackgroundParameters
from wsss.refine.refiners import build_refiner
from wsss.rundir import EXTENDED, RunDirectory
from wsss.stages import extend as extension
from wsss.stages.base import Context
from wsss.stages.prepare import prepare_dataset
from wsss.stages.refine import write_all
from wsss.stages.score import measure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="run directory with saliency")
    parser.add_argument("--photos", type=int, default=80, help="that are scored (default 80)")
    parser.add_argument("--learn", type=int, help="photos that are learnt from (default: extend.photos)")
    parser.add_argument("--rounds", type=int, nargs="+", default=[4])
    parser.add_argument(
        "--balance", type=float, nargs="+", default=[ExtendConfig().balance], help="of the classes"
    )
    parser.add_argument("--rate", type=float, nargs="+", default=[pixels.LEARNING_RATE], help="learning rate")
    parser.add_argument("--steps", type=int, nargs="+", default=[pixels.STEPS], help="of a round")
    parser.add_argument("--power", type=float, nargs="+", help="of the walk (default: chosen by itself)")
    parser.add_argument(
        "--backbone", nargs="+", help='networks: `classifier`, or "NAME=WEIGHTS"; default: those of the run'
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config: Config = parse_config("refine", ["--config", str(options.run / "config.yaml")])
    config = replace(config, runtime=replace(config.runtime, progress=False, workers=options.threads))
    if options.backbone:
        networks = tuple(FeatureConfig(*name.split("=", 1)) for name in options.backbone)
        config = replace(config, extend=replace(config.extend, backbone=networks))
    if options.learn:
        config = replace(config, extend=replace(config.extend, photos=options.learn))
    dataset = prepare_dataset(config)
    print(
        f"{'rounds':>6}{'balance':>9}{'rate':>8}{'steps':>7}{'power':>7}{'extended':>10}{'after CRF':>11}  per class"
    )
    rows = []
    for rounds, balance, rate, steps, power in itertools.product(
        options.rounds, options.balance, options.rate, options.steps, options.power or [None]
    ):
        pixels.LEARNING_RATE, pixels.STEPS = rate, steps
        extend = replace(config.extend, rounds=rounds, balance=balance, power=power)
        found = quality(replace(config, extend=extend), dataset, options.run, options.photos)
        rows.append({"rounds": rounds, "balance": balance, "rate": rate, "steps": steps, **found})
        shares = " ".join(f"{100 * value:.0f}" for value in found["per_class"].values() if value is not None)
        print(
            f"{rounds:>6}{balance:>9g}{rate:>8g}{steps:>7}{found['power']:>7.1f}{100 * found['extended']:>10.1f}"
            f"{100 * found['mask']:>11.1f}  {shares}",
            flush=True,
        )
        if options.json:
            options.json.write_text(json.dumps({"photos": options.photos, "rows": rows}, indent=1))


def quality(config: Config, dataset: Dataset, source: Path, photos: int) -> dict:
    """mIoU of the probabilities and of the masks after the CRF, and the seconds that it took."""
    started = time.perf_counter()
    records = evenly([record for record in with_masks(dataset.train) if record.labels], photos)
    sample = extension.sample(dataset.train, config.extend)
    found = extended_masks(config, source, sample, replace(dataset, train=tuple(records), val=()))
    return {**found, "seconds": time.perf_counter() - started}


def extended_masks(config: Config, source: Path, sample: list[Record], dataset: Dataset) -> dict:
    """mIoU of the probabilities and of the masks after the CRF, by the stages' own functions.

    Args:
        config: what `extend` and `refine` say holds.
        source: a run directory with the classifier and the saliency of all these photos; nothing is written there.
        sample: photos that the classifier of cells learns from.
        dataset: its training photos' masks are made and scored.
    """
    # Probabilities bring their own background; the rule for seeds, which would be calibrated, plays no part.
    refinement = replace(config.refine, background=BackgroundParameters(rule="otsu"))
    extend = replace(config.extend, method="pixels")
    config = replace(
        config, extend=extend, refine=refinement, evaluate=replace(config.evaluate, oracle_images=1)
    )
    with tempfile.TemporaryDirectory() as work:
        run = RunDirectory(Path(work))
        for name in ("classifier", "saliency"):
            (run.root / name).symlink_to((source / name).resolve())
        context = Context(config, dataset, run)
        networks = [extension.frozen_network(context, one) for one in extend.networks]
        features = extension.Features(networks, config.runtime)
        extend = replace(extend, power=extend.power or features.power(sample))
        extender = extension.PixelExtension(features, extend, config.runtime)
        layer = extender.learn(sample, run, len(dataset.class_names), config.seed)
        extension.write_pixels(extender, layer, dataset.train, run)
        write_all(dataset.train, run, build_refiner(refinement), EXTENDED, config.runtime)
        measure(context, "score_masks")
        numbers = run.read_metrics()
    return {
        "extended": numbers["extended"]["miou"],
        "mask": numbers["mask"]["miou"],
        "power": extend.power,
        "per_class": numbers["mask"]["per_class"],
    }


if __name__ == "__main__":
    main()
