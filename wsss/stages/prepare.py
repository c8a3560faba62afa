"""The data set of a configuration: loaded, limited, and with copies of large photos."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from wsss import runtime
from wsss.config import Config
from wsss.data.agreement import NO_LABELS, check_photos, examine
from wsss.data.dataset import Dataset, evenly, resolve_file
from wsss.data.files import image_size
from wsss.data.findings import settle
from wsss.data.load import check_layout, load_dataset
from wsss.data.shapes import write_shapes
from wsss.data.working import with_copies
from wsss.parallel import rank_and_world
from wsss.rundir import RunDirectory, fingerprint
from wsss.stages.base import tell, train_inputs, val_inputs

LARGE = 2_500_000
"""From this many pixels per photo on, a run tells how to work on smaller copies."""

LOOKED_AT = 20
"""Number of photos, evenly spaced, whose size is checked for that."""


def prepare_dataset(config: Config) -> Dataset:
    """Load the data set: ``data.limit`` photos of each split, large ones as copies of ``data.long_side`` pixels.

    The shapes are made on first use. What is left out and what looks odd is told.

    Raises:
        UserError: something is missing, cannot be read, or does not fit together; nothing was written yet.
    """
    data, root = config.data, Path(config.data.root)
    check_layout(data.kind, root)
    if data.kind == "shapes":
        shapes = data.shapes
        write_shapes(
            root,
            train=shapes.train,
            val=shapes.val,
            size=shapes.size,
            seed=shapes.seed,
            progress=config.runtime.progress and sys.stderr.isatty(),
        )
    classes = None if data.classes is None else resolve_file(data.classes, root) or Path(data.classes)
    dataset = load_dataset(data.kind, root, data.labels, classes, data.train, data.val)
    if data.limit is not None:
        train, val = (tuple(evenly(split, data.limit)) for split in (dataset.train, dataset.val))
        dataset = replace(dataset, train=train, val=val)
    run = RunDirectory(Path(config.output))
    looked_at = fingerprint(data.long_side, train_inputs(dataset), val_inputs(dataset))
    known = run.read_manifest().get("looked_at") == looked_at
    if not (known or dataset.evaluation_only or rank_and_world()[0]):
        check_photos(dataset, runtime.workers(config.runtime))
    problems = examine(dataset)
    if config.segmenter.masks is not None:  # such a run may do without labels
        problems = [problem for problem in problems if problem.kind != NO_LABELS]
    tell((*dataset.notes, *settle(problems)))
    dataset = replace(dataset, looked_at=looked_at)
    if data.long_side is None:
        return dataset
    return with_copies(
        dataset,
        run.resized,
        data.long_side,
        runtime.workers(config.runtime),
        partial(runtime.bar, config.runtime, "shrink photos"),
        known=known,
    )


def warn_of_large_photos(dataset: Dataset) -> None:
    """Print one line if photos from a camera would be used at full size."""
    for record in evenly([*dataset.train, *dataset.val], LOOKED_AT):
        height, width = image_size(record.image)
        if height * width > LARGE:
            runtime.say(
                f"{record.image} has {width}x{height} pixels: memory and time grow with the photos, and masks do not "
                "get better; --data.long_side 640 works on smaller copies"
            )
            return
