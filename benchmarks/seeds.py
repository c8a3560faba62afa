"""Which saliency makes the best seeds and pseudo-masks: methods of the zoo on the training photos of a run.

    python benchmarks/seeds.py runs/voc --methods "multiscale(gradcam, balance=area)" "sess(gradcam)"

The classifier, data set and refinement are those of the run directory. Each method makes the maps of the labels
on evenly spaced training photos; the background rule is chosen by the criterion of `wsss refine --calibrate`,
without masks, for each method by itself. With the masks of these photos are then scored: the seeds at that
rule and at the best threshold (oracle), the labels after the CRF, what the training would keep, and the labels after
`extend.method: pixels`, learnt from these photos, and the CRF.
Choosing a method by this table uses masks: do it while developing, not in a run that reports a number.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from extension import extended_masks

from wsss import runtime
from wsss.config import Config
from wsss.data.dataset import Dataset, Record, evenly, with_masks
from wsss.data.files import read_image, write_saliency
from wsss.data.modules import Photo
from wsss.data.transforms import to_tensor
from wsss.models.classifier import classifier_backbone
from wsss.options import parse_config
from wsss.refine.calibrate import describe
from wsss.refine.refiners import build_refiner
from wsss.rundir import SALIENCY, RunDirectory
from wsss.saliency import SaliencyMethod
from wsss.saliency.parse import parse_method, to_expression
from wsss.stages.base import Context
from wsss.stages.calibrate import judge
from wsss.stages.prepare import prepare_dataset
from wsss.stages.refine import write_all
from wsss.stages.saliency import maps_of_photos, to_archive
from wsss.stages.score import measure
from wsss.tasks.classification import load_classifier

CALIBRATION_PHOTOS = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="run directory with a trained classifier")
    parser.add_argument("--methods", nargs="+", required=True, metavar="EXPRESSION")
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument(
        "--output-stride", type=int, choices=(8, 16, 32), help="of the classifier, for the maps"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config: Config = parse_config("refine", ["--config", str(options.run / "config.yaml")])
    config = replace(config, runtime=replace(config.runtime, progress=False, workers=options.threads))
    dataset = prepare_dataset(config)
    records = evenly([record for record in with_masks(dataset.train) if record.labels], options.photos)
    classifier, _, settings = load_classifier(
        RunDirectory(options.run).checkpoint("classifier", config.saliency.checkpoint), options.output_stride
    )
    classifier = runtime.prepare(classifier, config.runtime)
    print(f"{len(records)} training photos, mIoU in %, {options.threads} threads")
    print(f"{'s/photo':>8}{'rule':>17}{'seed':>7}{'oracle':>8}{'mask':>7}{'coverage':>10}{'kept':>7}"
          f"{'+extend':>9}  method")  # fmt: skip
    rows: list[dict[str, object]] = []
    for text in options.methods:
        method = parse_method(text, classifier_backbone(settings.architecture).layout.last, "sigmoid")
        with tempfile.TemporaryDirectory() as work:
            run = RunDirectory(Path(work))
            (run.root / "classifier").symlink_to((options.run / "classifier").resolve())
            seconds = write_maps(classifier, method, records, run, config)
            scored = replace(dataset, train=tuple(records), val=())
            found = quality(config, scored, run)
            extended = extended_masks(config, run.root, records, scored)
        rows.append({"method": to_expression(method), "seconds": seconds, **found, "extended": extended})
        print(line(rows[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps({"photos": len(records), "rows": rows}, indent=1))


def write_maps(
    classifier, method: SaliencyMethod, records: list[Record], run: RunDirectory, config: Config
) -> float:
    """Archives as the saliency stage writes them; seconds a photo."""
    started = time.perf_counter()
    for record in records:
        photo = Photo(record, to_tensor(read_image(record.image)))
        (maps,) = maps_of_photos(classifier, method, [photo], config.runtime)
        write_saliency(run.saliency(record.id), to_archive(photo, maps))
    return (time.perf_counter() - started) / len(records)


def quality(config: Config, dataset: Dataset, run: RunDirectory) -> dict[str, object]:
    """The rule chosen without masks, and everything that masks say of it."""
    sample = evenly(dataset.train, CALIBRATION_PHOTOS)
    candidates = judge(config, sample, len(dataset.class_names), run, SALIENCY)
    best = max(candidates, key=lambda candidate: candidate.evidence.gain)
    config = replace(config, refine=replace(config.refine, background=best.rule))
    write_all(dataset.train, run, build_refiner(config.refine), SALIENCY, config.runtime)
    config = replace(
        config,
        evaluate=replace(config.evaluate, oracle_images=1),
        extend=replace(config.extend, method="none"),
    )
    measure(Context(config, dataset, run), "score_masks")
    numbers = run.read_metrics()
    seed, mask = numbers["seed"], numbers["mask"]
    return {
        "rule": describe(best.rule), "seed": seed["miou"], "oracle": seed["oracle_miou"],
        "oracle_threshold": seed["oracle_threshold"], "mask": mask["miou"], "coverage": mask["coverage"],
        "kept": mask["kept_miou"],
    }  # fmt: skip


def line(row: dict[str, object]) -> str:
    shares = "".join(f"{100 * row[key]:>{width}.1f}" for key, width in
                     (("seed", 7), ("oracle", 8), ("mask", 7), ("coverage", 10), ("kept", 7)))  # fmt: skip
    extended = f"{100 * row['extended']['mask']:>9.1f}"
    return f"{row['seconds']:>8.2f}{row['rule']:>17}{shares}{extended}  {row['method']}"


if __name__ == "__main__":
    main()
