"""Pseudo-masks of the training photos: a refiner (by default a dense CRF) makes them from the maps."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from typing import Any

from wsss import runtime
from wsss.config import Config, RuntimeConfig, to_dict
from wsss.data.dataset import Record
from wsss.data.files import classes_in, read_mask
from wsss.parallel import pool, rank_and_world, unordered
from wsss.refine.parameters import RefineParameters
from wsss.refine.refiners import Place, Refiner, build_refiner, refiner_class, unused_settings
from wsss.rundir import EXTENDED, LABELS, MASKS, SALIENCY, RunDirectory
from wsss.stages import signs
from wsss.stages.base import Context, Stage, after, bytes_of_masks, tell
from wsss.stages.calibrate import chosen_rule
from wsss.stages.shards import shares
from wsss.stages.workers import is_done, refine_one

GPU_THREADS = 4
"""Threads: enough to read and write while one of them uses the GPU."""

MENTIONED = 3
"""How many classes the sentence about labels without a pixel names."""


def refine(context: Context) -> dict[str, Any]:
    """Pseudo-masks of all training photos."""
    config, records, run = context.config, context.dataset.train, context.run
    parameters, device = chosen_parameters(context), runtime.device(config.runtime)
    tell(unused_settings(config.refine, is_soft(config), config.evaluate.crf))
    refiner = build_refiner(parameters, str(device) if device.type == "cuda" else None)
    for part in shares(records):
        write_all(part, run, refiner, maps_folder(config), config.runtime)
    facts = {"images": len(records), "background": asdict(parameters.background)}
    if rank_and_world()[0] == 0:
        absent, names = absent_labels(records, run), context.dataset.class_names
        print(f"  {describe_absent(absent, names)}", flush=True)
        facts["warnings"] = signs.of_masks(records, run, maps_folder(config), absent, names)
    return facts


def maps_folder(config: Config) -> str:
    """Folder of the maps that the refinement starts from."""
    plain = config.extension == "none" or refiner_class(config.refine).from_saliency
    return SALIENCY if plain else EXTENDED


def is_soft(config: Config) -> bool:
    """Whether the refinement starts from probabilities, which bring a background of their own."""
    return config.extension == "pixels" and maps_folder(config) == EXTENDED


def chosen_parameters(context: Context) -> RefineParameters:
    """The refinement with the background rule for its maps, where it needs one."""
    config = context.config
    if is_soft(config) or not refiner_class(config.refine).uses_background:
        return config.refine
    return chosen_rule(context, maps_folder(config))


def write_all(
    records: Sequence[Record], run: RunDirectory, refiner: Refiner, source: str, hardware: RuntimeConfig
) -> None:
    """Write ``pseudo_masks/<id>.png`` and ``pseudo_labels/<id>.png`` for every record that lacks them.

    Args:
        records: training photos with stored maps.
        run: the run directory.
        refiner: makes the mask of a photo from its maps.
        source: where the maps are: ``SALIENCY`` or ``EXTENDED``.
        hardware: processes and progress.
    """
    todo = [record for record in records if not is_done(run, record)]
    workers = runtime.workers(hardware)
    with (
        runtime.bar(hardware, "refine", len(records), len(records) - len(todo)) as bar,
        _workers(refiner.place, min(workers, len(todo))) as executor,
    ):
        for _ in unordered(executor, partial(refine_one, run, refiner, source), todo, ahead=4 * workers):
            bar.update(1)


def _workers(place: Place, workers: int) -> AbstractContextManager[Executor | None]:
    """Where a refiner runs: in processes, in threads that share a GPU, or here, one photo after the other."""
    return ThreadPoolExecutor(GPU_THREADS) if place == "threads" else pool(0 if place == "main" else workers)


# -- labels that have no pixels in the masks --------------------------------------------------------


def absent_labels(records: Sequence[Record], run: RunDirectory) -> dict[int, tuple[int, int]]:
    """Image labels that have no pixel in ``pseudo_labels/<id>.png``: an error that can be seen without true masks.

    Returns:
        Mask index (1..C) of each labelled class -> (photos whose mask lacks it, photos with the label).
    """
    absent: Counter[int] = Counter()
    total: Counter[int] = Counter()
    for record in records:
        if record.labels:
            present = classes_in(read_mask(run.mask(LABELS, record.id)))
            total.update(record.labels)
            absent.update(set(record.labels) - set(present))
    return {index: (absent[index], total[index]) for index in sorted(total)}


def describe_absent(absent: dict[int, tuple[int, int]], names: Sequence[str]) -> str:
    """One sentence about `absent_labels`; ``names`` starts with the background."""
    total = sum(photos for _, photos in absent.values())
    lost = sum(count for count, _ in absent.values())
    if lost == 0:
        return "every image label has pixels in its pseudo-mask"
    worst = sorted((item for item in absent.items() if item[1][0]), key=lambda item: -item[1][0] / item[1][1])
    named = ", ".join(f"{names[index]} {count} of {photos}" for index, (count, photos) in worst[:MENTIONED])
    return f"{lost / total:.1%} of the image labels have no pixel in the pseudo-masks (most often {named})"


REFINE = Stage(
    "pseudo-masks: background and dense CRF",
    refine,
    reads=lambda config, data: to_dict(config.refine),
    follows=after("extend"),
    writes=(LABELS, MASKS),
    shared=True,
    files=lambda context: [
        context.run.mask(folder, record.id) for record in context.dataset.train for folder in (LABELS, MASKS)
    ],
    check=lambda context, state: bytes_of_masks(context.dataset.train, 2),
)
