"""leaderboard.json, leaderboard.csv and index.html from what was measured."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from wsss.comparison import board
from wsss.comparison.bootstrap import LEVEL, RESAMPLES
from wsss.comparison.plan import Comparison
from wsss.comparison.regions import Truth, truth_of
from wsss.config import to_dict
from wsss.data.dataset import Record
from wsss.data.files import read_image, read_saliency, write_json, write_text
from wsss.data.labels import IGNORE
from wsss.data.working import shrink
from wsss.refine.background import prepare_maps
from wsss.report.chart import Dot, Scatter
from wsss.report.html import THUMBNAIL_SIDE, Facts, Gallery, GalleryRow
from wsss.report.leaderboard import Leaderboard, SanityTable, ScoreColumn, ScoreRow, write_leaderboard
from wsss.report.overlay import overlay_mask, overlay_saliency
from wsss.rundir import describe_machine

Checked = dict[str, Any]
"""Of the sanity check: `stages`, `images`, `targets`, and `methods`: name -> `correlation` and `flat` by stage."""

RULES = (
    "Every number is a mean over targets: (image, labelled class). Localisation is measured in pixels of the "
    "original photo, and pixels of 255 are neither hit nor miss; the score is measured at the size that the "
    "classifier sees, and removed pixels have the mean colour (0 after normalisation)."
)

DOUBT = (
    f"Below each number: its {100 * LEVEL:.0f} % interval over {RESAMPLES} resamples of the photos, and its rank: 1 "
    "plus the number of methods that are significantly better: the interval of the difference on the same resamples is "
    "above 0. Methods that do not differ significantly may share a rank."
)
QUALITIES = ("pointing_torchray", "iou", "insertion")
"""Columns that are drawn against the time."""


def write_results(
    comparison: Comparison, checked: Checked | None, command: Sequence[str]
) -> tuple[board.Row, ...]:
    """Writes the three files, and returns the rows of the leaderboard."""
    entries = {
        contestant: [comparison.stored(contestant, record) or {} for record in comparison.records]
        for contestant in comparison.contestants
    }
    rows = tuple(
        board.summarize(contestant.name, repr(contestant.method), stored, comparison.classes)
        for contestant, stored in entries.items()
    )
    rows = board.with_statistics(rows, list(entries.values()))
    truth = sorted({str(entry["truth"]) for stored in entries.values() for entry in stored})
    facts = describe(comparison, truth, command)
    columns = {key: {"better": column.better, "text": column.text} for key, column in board.COLUMNS.items()}
    methods = [asdict(row) for row in rows]
    write_json(
        comparison.folder / "leaderboard.json",
        {**facts, "rules": RULES, "columns": columns, "methods": methods, "sanity": checked},
    )
    write_text(comparison.folder / "leaderboard.csv", board.to_csv(rows))
    write_leaderboard(comparison.folder / "index.html", _page(comparison, rows, checked, facts))
    return rows


def describe(comparison: Comparison, truth: Sequence[str], command: Sequence[str]) -> dict[str, Any]:
    """Classifier, data, settings, command, versions and hardware."""
    config, records = comparison.config, comparison.records
    targets = sum(label in comparison.known for record in records for label in record.labels or ())
    data = {"kind": config.data.kind, "root": config.data.root, "split": config.compare.split}
    return {
        "command": list(command),
        "classifier": comparison.judge.facts(),
        "data": {**data, "images": len(records), "targets": targets, "truth": list(truth)},
        "settings": to_dict(config.compare),
        "device": comparison.hardware[0],
        "precision": comparison.hardware[1],
        "machine": describe_machine(),
    }


# -- the page ---------------------------------------------------------------------------------------


def _page(
    comparison: Comparison, rows: Sequence[board.Row], checked: Checked | None, facts: dict[str, Any]
) -> Leaderboard:
    data = facts["data"]
    return Leaderboard(
        title="wsss compare: saliency methods",
        subtitle=(
            f"{data['images']} {data['split']} images of {data['root']}, {data['targets']} targets, "
            f"ground truth: {', '.join(data['truth'])}; classifier: {facts['classifier']['source']}"
        ),
        columns=_columns(rows),
        rows=_score_rows(rows),
        note=f"Coloured: the best of each column. Arrow: whether higher or lower is better. {RULES} {DOUBT}",
        charts=_charts(rows),
        sanity=None if checked is None else _sanity(checked),
        gallery=_gallery(comparison),
        facts=_facts(facts),
        config=yaml.safe_dump(facts["settings"], sort_keys=False, allow_unicode=True),
    )


def _charts(rows: Sequence[board.Row]) -> tuple[Scatter, ...]:
    """Cost against quality, where both were measured."""
    charts = []
    for key in QUALITIES:
        dots = tuple(
            Dot(row.name, row.values["milliseconds"], value, row.intervals.get(key))
            for row in rows
            if (value := row.values[key]) is not None and row.values["milliseconds"]
        )
        if dots:
            charts.append(Scatter("milliseconds per class", board.COLUMNS[key].title, dots))
    return tuple(charts)


def _columns(rows: Sequence[board.Row]) -> tuple[ScoreColumn, ...]:
    keys = board.shown(rows)
    groups = [board.COLUMNS[key].group for key in keys]
    starts = [False, *(before != after for before, after in pairwise(groups))]
    columns = zip(keys, (board.COLUMNS[key] for key in keys), starts, strict=True)
    return tuple(
        ScoreColumn(f"{column.title} {column.arrow}", f"{column.text} {_count(rows, key)}", start)
        for key, column, start in columns
    )


def _score_rows(rows: Sequence[board.Row]) -> tuple[ScoreRow, ...]:
    keys = board.shown(rows)
    leaders = {key: board.best(rows, key) for key in keys}
    return tuple(
        ScoreRow(
            row.name,
            row.method,
            tuple((board.cell(key, row.values[key]), position in leaders[key]) for key in keys),
            tuple(board.doubt(row, key) for key in keys),
        )
        for position, row in enumerate(rows)
    )


def _count(rows: Sequence[board.Row], key: str) -> str:
    """How many targets are behind a column."""
    counts = sorted({row.counts[key] for row in rows})
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"({span} {'images' if key == 'milliseconds' else 'targets'})"


def _sanity(checked: Checked) -> SanityTable:
    note = (
        "Cascading randomisation: the classifier's weights are redrawn at random, stage by stage, from the head "
        "(left) down, and each map is compared with the original one by Spearman's rank correlation, mean over "
        f"{checked['targets']} targets of {checked['images']} images. A method that explains what was learned falls "
        "towards 0; one that stays near 1 shows the image, not the classifier. A flat map, without any contrast, "
        "counts as 0; the share of flat maps is shown below the number."
    )
    rows = tuple(
        (name, tuple(zip(values["correlation"], values["flat"], strict=True)))
        for name, values in checked["methods"].items()
    )
    return SanityTable(tuple(checked["stages"]), rows, note)


def _gallery(comparison: Comparison) -> Gallery:
    names = tuple(contestant.name for contestant in comparison.contestants)
    rows = tuple(row for record in comparison.page_records for row in _gallery_rows(comparison, record))
    note = "One row for each target, evenly spaced over the images; every map is scaled to its own range."
    return Gallery("Maps side by side", ("photo", "ground truth", *names), rows, note)


def _gallery_rows(comparison: Comparison, record: Record) -> Iterator[GalleryRow]:
    """One row for each compared class of an image."""
    photo, truth = read_image(record.image), truth_of(record, comparison.classes)
    small = shrink(photo, THUMBNAIL_SIDE)
    stored = [read_saliency(comparison.maps(contestant, record)) for contestant in comparison.contestants]
    for position, label in enumerate(int(label) for label in stored[0].classes):
        maps = [
            overlay_saliency(small, _fit(archive.maps[position : position + 1], small)) for archive in stored
        ]
        pictures = (photo, _region(photo, truth, label), *maps)
        yield GalleryRow(record.id, (comparison.classes[label - 1],), pictures)


def _fit(maps: npt.NDArray[np.float16], photo: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """A map (1, h, w) at the size of the picture, (H, W)."""
    height, width = photo.shape[:2]
    fitted: npt.NDArray[np.float32] = prepare_maps(maps, (height, width))[0]
    return fitted


def _region(photo: npt.NDArray[np.uint8], truth: Truth, label: int) -> npt.NDArray[np.uint8] | None:
    """The photo with the region of a class in its colour, ignored pixels hatched."""
    if label not in truth.regions:
        return None
    # Colours exist for mask indices; ImageNet's 1000 classes have no masks.
    drawn = truth.regions[label].numpy().astype(np.uint8) * np.uint8(label % IGNORE or 1)
    if truth.ignored is not None:
        drawn[truth.ignored.numpy()] = IGNORE
    return overlay_mask(photo, drawn)


def _facts(facts: dict[str, Any]) -> tuple[Facts, ...]:
    machine = facts["machine"]
    hardware = [(key, str(facts[key])) for key in ("device", "precision")]
    hardware += [(key, str(machine[key])) for key in ("wsss", "commit", "python", "cpu", "cores")]
    hardware += [("GPUs", ", ".join(machine["gpus"]))] if machine["gpus"] else []
    hardware += [(name, str(version)) for name, version in machine["packages"].items()]
    return (
        Facts("Classifier", tuple((key, str(value)) for key, value in facts["classifier"].items())),
        Facts("Data", tuple((key, _plain(value)) for key, value in facts["data"].items())),
        Facts("Machine and versions", (*hardware, ("command", " ".join(facts["command"])))),
    )


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
