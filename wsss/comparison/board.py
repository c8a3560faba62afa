"""From the numbers of single targets to the leaderboard: columns, means, the table for the terminal, CSV."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Any, Literal

import numpy as np

from wsss.comparison import bootstrap
from wsss.comparison.measure import Values


@dataclass(frozen=True)
class Column:
    """One number of the leaderboard.

    Attributes:
        title: short.
        better: whether higher or lower values are better.
        text: what it is, in a sentence or two.
        group: the terminal shows one table for each.
        percent: whether it is in [0, 1] and shown in percent.
    """

    title: str
    better: Literal["up", "down"]
    text: str
    group: Literal["where", "score"]
    percent: bool = True

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return "\N{UPWARDS ARROW}" if self.better == "up" else "\N{DOWNWARDS ARROW}"


COLUMNS: dict[str, Column] = {
    "pointing": Column(
        "pointing",
        "up",
        "Pointing game (Fahim et al.): share of targets whose map has its maximum inside the region.",
        "where",
    ),
    "pointing_torchray": Column(
        "15 px",
        "up",
        "Pointing game (TorchRay): the maximum is less than 15 pixels of the original image from the region; hit "
        "rate per class, mean over the classes that occur. Maps of gradients are smoothed first, as in TorchRay.",
        "where",
    ),
    "pointing_difficult": Column(
        "difficult",
        "up",
        "The same on targets whose image has several classes and whose class covers less than a quarter of it.",
        "where",
    ),
    "energy": Column(
        "energy",
        "up",
        "Energy pointing game (Score-CAM): share of the normalised map's mass inside the region.",
        "where",
    ),
    "dice": Column("Dice", "up", "Dice of the salient zone and the region.", "where"),
    "iou": Column(
        "IoU", "up", "Intersection over union of the salient zone and the region; mean over targets.", "where"
    ),
    "best_iou": Column(
        "oracle IoU",
        "up",
        "IoU at the best threshold of each single map, chosen with the ground truth: a bound, not a result.",
        "where",
    ),
    "saliency_drop": Column(
        "kept: drop",
        "down",
        "Share of the score that is lost when only the salient zone is kept: max(0, y - y') / y.",
        "score",
    ),
    "saliency_increase": Column(
        "kept: increase",
        "up",
        "Share of targets whose score rises when only the salient zone is kept.",
        "score",
    ),
    "context_drop": Column(
        "removed: drop",
        "up",
        "Share of the score that is lost when the salient zone is removed.",
        "score",
    ),
    "context_increase": Column(
        "removed: increase",
        "down",
        "Share of targets whose score rises when the salient zone is removed.",
        "score",
    ),
    "insertion": Column(
        "insertion",
        "up",
        "Area below the score while the blurred image becomes sharp, most salient pixels first (RISE).",
        "score",
    ),
    "insertion_mean": Column(
        "ins. on grey",
        "up",
        "The same, on an image of the mean colour instead of the blurred one.",
        "score",
    ),
    "deletion": Column(
        "deletion",
        "down",
        "Area below the score while pixels become the mean colour, most salient pixels first (RISE).",
        "score",
    ),
    "deletion_blur": Column(
        "del. to blur",
        "down",
        "The same, where pixels become those of the blurred image instead of the mean colour.",
        "score",
    ),
    "milliseconds": Column(
        "ms / class",
        "down",
        "Milliseconds per image, divided by its number of classes; median over images, without the first call.",
        "score",
        percent=False,
    ),
}
"""Key in leaderboard.json -> what it is."""

Entry = Mapping[str, Any]
"""What is stored for one method and image: `milliseconds` and `targets`, a list of `Values`."""


@dataclass(frozen=True)
class Row:
    """One method on the leaderboard.

    Attributes:
        name: as the user wrote it.
        method: its `repr`.
        values: key of `COLUMNS` -> number, None if nothing could be measured.
        counts: key -> number of targets that were measured (for the milliseconds: of images).
        per_class: class name -> hit rate of TorchRay's pointing game.
        intervals: key -> 95 % interval over resamples of the photos, None if nothing could be measured.
        ranks: key -> 1 plus the number of methods that are significantly better (see `bootstrap.ranks`).
    """

    name: str
    method: str
    values: dict[str, float | None]
    counts: dict[str, int]
    per_class: dict[str, float]
    intervals: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    ranks: dict[str, int | None] = field(default_factory=dict)


def summarize(name: str, method: str, entries: Sequence[Entry], classes: Sequence[str]) -> Row:
    """The row of a method, from the stored values of its images; `classes` are names, index 1 first."""
    targets: list[Values] = [target for entry in entries for target in entry["targets"]]
    difficult = [target for target in targets if target.get("difficult")]
    values: dict[str, float | None] = {}
    counts: dict[str, int] = {}
    for key in COLUMNS:
        if key == "milliseconds":
            found = [float(entry[key]) for entry in entries]
            values[key] = median(found) if found else None
        elif key in ("pointing_torchray", "pointing_difficult"):
            chosen = targets if key == "pointing_torchray" else difficult
            found = _known(chosen, "pointing_torchray")
            rates = hit_rates(chosen)
            values[key] = fmean(rates.values()) if rates else None
        else:
            found = _known(targets, key)
            values[key] = fmean(found) if found else None
        counts[key] = len(found)
    per_class = {classes[label - 1]: rate for label, rate in sorted(hit_rates(targets).items())}
    return Row(name, method, values, counts, per_class)


def with_statistics(rows: Sequence[Row], entries: Sequence[Sequence[Entry]]) -> tuple[Row, ...]:
    """The rows with intervals and ranks, from the stored values of the same images for each row."""
    drawn = bootstrap.draws(len(entries[0]))
    intervals: list[dict[str, tuple[float, float] | None]] = [{} for _ in rows]
    ranks: list[dict[str, int | None]] = [{} for _ in rows]
    for key, column in COLUMNS.items():
        values = [bootstrap.resampled(_measured(stored, key), drawn) for stored in entries]
        places = bootstrap.ranks(values, column.better)
        for position, (found, place) in enumerate(zip(values, places, strict=True)):
            intervals[position][key], ranks[position][key] = bootstrap.interval(found), place
    return tuple(
        replace(row, intervals=between, ranks=place)
        for row, between, place in zip(rows, intervals, ranks, strict=True)
    )


def _measured(entries: Sequence[Entry], key: str) -> bootstrap.Measured:
    """What `summarize` makes a column of."""
    if key == "milliseconds":
        times = np.array([[float(entry[key])] for entry in entries])
        return bootstrap.Measured(times, np.ones_like(times), median=True)
    if key in ("pointing_torchray", "pointing_difficult"):
        classes = max((target["class"] for entry in entries for target in entry["targets"]), default=1)
        only = "difficult" if key == "pointing_difficult" else ""
        return bootstrap.measured(entries, "pointing_torchray", classes, only)
    return bootstrap.measured(entries, key)


def hit_rates(targets: Iterable[Values]) -> dict[int, float]:
    """Class -> hits / (hits + misses) of TorchRay's pointing game; only classes with either."""
    found: dict[int, list[bool]] = defaultdict(list)
    for target in targets:
        if target.get("pointing_torchray") is not None:
            found[target["class"]].append(target["pointing_torchray"])
    return {label: fmean(hits) for label, hits in found.items()}


def _known(targets: Iterable[Values], key: str) -> list[float]:
    return [float(target[key]) for target in targets if target.get(key) is not None]


def shown(rows: Sequence[Row]) -> list[str]:
    """Keys of the columns in which any method has a number."""
    return [key for key in COLUMNS if any(row.values[key] is not None for row in rows)]


def best(rows: Sequence[Row], key: str) -> set[int]:
    """Positions of the best rows of a column, equal to the last shown digit; none where all are equal."""
    texts = [cell(key, row.values[key]) for row in rows]
    values = [row.values[key] for row in rows]
    known = [value for value in values if value is not None]
    if len({text for text, value in zip(texts, values, strict=True) if value is not None}) < 2:
        return set()
    top = cell(key, max(known) if COLUMNS[key].better == "up" else min(known))
    return {position for position, text in enumerate(texts) if text == top}


def cell(key: str, value: float | None) -> str:
    """A number as it is shown."""
    if value is None:
        return "\N{EN DASH}"
    if COLUMNS[key].percent:
        return f"{100 * value:.1f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def table(rows: Sequence[Row]) -> str:
    """The leaderboard for a terminal: the best of each column has a star."""
    width = max(len("method"), *(len(row.name) for row in rows))
    parts = []
    for group in ("where", "score"):
        keys = [key for key in shown(rows) if COLUMNS[key].group == group]
        if not keys:
            continue
        heads = [f"{COLUMNS[key].title} {COLUMNS[key].arrow}" for key in keys]
        lines = ["method".ljust(width) + "".join(f"  {head:>8}" for head in heads)]
        marked = [best(rows, key) for key in keys]
        for position, row in enumerate(rows):
            texts = [cell(key, row.values[key]) for key in keys]
            stars = ["*" if position in leaders else " " for leaders in marked]
            cells = zip(texts, stars, heads, strict=True)
            line = "".join(f"  {text + star:>{max(8, len(head))}}" for text, star, head in cells)
            lines.append(row.name.ljust(width) + line)
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def sanity_table(stages: Sequence[str], methods: Mapping[str, Sequence[float]]) -> str:
    """Rank correlations for a terminal: a line for each method, a column for each randomised stage."""
    width = max(len("rank correlation without"), *(len(name) for name in methods))
    heads = "".join(f"  {stage:>6}" for stage in stages)
    lines = ["rank correlation without".ljust(width) + heads]
    for name, values in methods.items():
        cells = zip(values, stages, strict=True)
        lines.append(
            name.ljust(width) + "".join(f"  {value:>{max(6, len(stage))}.2f}" for value, stage in cells)
        )
    return "\n".join(lines)


def doubt(row: Row, key: str) -> str:
    """The interval and the rank of a number, as they are shown below it."""
    between, rank = row.intervals.get(key), row.ranks.get(key)
    if between is None or rank is None:
        return ""
    low, high = (cell(key, value) for value in between)
    return f"{low}\N{EN DASH}{high}\n#{rank}"


def to_csv(rows: Sequence[Row]) -> str:
    """One line per method: its numbers, how many targets were measured for each, the intervals and the ranks."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    more = [f"{key}_{end}" for end in ("n", "low", "high", "rank") for key in COLUMNS]
    writer.writerow(["method", *COLUMNS, *more, "repr"])
    for row in rows:
        values = ["" if row.values[key] is None else row.values[key] for key in COLUMNS]
        ends = [row.intervals.get(key) or ("", "") for key in COLUMNS]
        places = [row.ranks.get(key) or "" for key in COLUMNS]
        counts = [row.counts[key] for key in COLUMNS]
        lows, highs = ([end[side] for end in ends] for side in (0, 1))
        writer.writerow([row.name, *values, *counts, *lows, *highs, *places, row.method])
    return stream.getvalue()
