"""Scores as text: the table of `wsss.metrics.segmentation.score_folder` for the terminal, and shares as percent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

DASH = "\N{EN DASH}"

NO_ANSWER = "no answer"
"""The name of the predicted value 255."""

TOP_CONFUSIONS = 10


def score_table(result: dict[str, Any], confusion: bool = False) -> str:
    """mIoU, a row for each class (IoU, precision, recall, boundary F), and on request the top confusions.

    Args:
        result: of `score_folder`.
        confusion: append `confusion_table`.
    """
    per_class, boundary = result["per_class"], result.get("boundary")
    columns = {"IoU": per_class, "precision": result["precision"], "recall": result["recall"]}
    if boundary is not None:
        columns["boundary F"] = boundary["per_class"]
    head = (
        f"mIoU {_percent(result['miou'], 'undefined', ' %')} over {result['images']} images, "
        f"{len(per_class) - len(result['absent'])} of {len(per_class)} classes"
    )
    if boundary is not None:
        head += f", boundary F {_percent(boundary['mean'], 'undefined', ' %')}"
    if result["miou"] is None and len(per_class) > 1:
        head += (
            "\nno class but the background has a true pixel (255 is not counted; the first class is index 1)"
        )
    width = max(20, *map(len, per_class))
    lines = [head, f"  {'':<{width}}" + "".join(f"{title:>11}" for title in columns)]
    for name, iou in per_class.items():
        known = [_percent(column[name], "-") for column in columns.values()]
        cells = ["absent"] if iou is None else known
        lines.append(f"  {name:<{width}}" + "".join(f"{cell:>11}" for cell in cells))
    lines.append(f"pixels with an answer (not 255): {100 * (result['coverage'] or 0):.2f} %")
    return "\n".join(lines + (confusion_table(result) if confusion else []))


def confusion_table(result: dict[str, Any]) -> list[str]:
    """Which classes are confused most often, in lines of text."""
    names = list(result["per_class"])
    width = max(20, *map(len, names))
    lines = [f"most frequent confusions (at most {TOP_CONFUSIONS}), by share of the true class:"]
    for share, true, predicted in top_confusions(result["confusion"], names, TOP_CONFUSIONS):
        lines.append(f"  {true:<{width}} as {predicted:<{width}}{100 * share:>8.2f} % of its pixels")
    return lines if len(lines) > 1 else ["no pixel is confused with another class"]


def top_confusions(
    counts: Sequence[Sequence[int]], names: Sequence[str], number: int
) -> list[tuple[float, str, str]]:
    """The largest errors as (share of the true class's pixels, true class, predicted class), falling.

    Args:
        counts: C rows of C + 1 counts: true class, predicted class, the last one = 255.
        names: C names.
        number: how many at most; only errors that occur are listed.
    """
    columns = (*names, NO_ANSWER)
    errors = [
        (count / sum(row), true, predicted)
        for true, row in zip(names, counts, strict=True)
        for predicted, count in zip(columns, row, strict=True)
        if count and predicted != true
    ]
    return sorted(errors, key=lambda error: -error[0])[:number]


def percent(value: float | None) -> str:
    """A measure in [0, 1] as percent with one decimal; None and NaN as an en dash."""
    return DASH if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _percent(value: float | None, undefined: str, unit: str = "") -> str:
    return undefined if value is None else f"{100 * value:.2f}{unit}"
