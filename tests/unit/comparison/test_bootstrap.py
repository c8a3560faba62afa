"""Intervals and ranks of the leaderboard against plain loops over resamples, and on data where the answer is known."""

import math

import numpy as np
import pytest

from wsss.comparison.board import COLUMNS, Row, cell, doubt, summarize, with_statistics
from wsss.comparison.bootstrap import RESAMPLES, draws, interval, measured, ranks, resampled


def entries(seed: int, photos: int = 12, shift: float = 0.0) -> list[dict]:
    generator = np.random.default_rng(seed)
    return [
        {
            "milliseconds": float(generator.uniform(1, 9)),
            "targets": [
                {
                    "class": int(generator.integers(1, 4)),
                    "pointing_torchray": bool(generator.random() < 0.6 + shift)
                    if generator.random() < 0.8
                    else None,
                    "difficult": bool(generator.random() < 0.5),
                    "iou": float(np.clip(generator.normal(0.4 + shift, 0.1), 0, 1)),
                }
                for _ in range(generator.integers(1, 4))
            ],
        }
        for _ in range(photos)
    ]


@pytest.mark.parametrize("key", ["iou", "pointing_torchray", "pointing_difficult", "milliseconds"])
def test_intervals_are_those_of_summaries_of_resampled_photos(seed: int, key: str) -> None:
    found = entries(seed)
    values = []
    for drawn in draws(len(found)):
        value = summarize("a", "", [found[photo] for photo in drawn], "abc").values[key]
        values.append(math.nan if value is None else value)
    expected = np.nanquantile(values, [0.025, 0.975])
    (row,) = with_statistics([summarize("a", "", found, "abc")], [found])
    assert row.intervals[key] == pytest.approx(expected)
    assert row.ranks[key] == 1
    assert row.intervals["dice"] is None
    assert row.ranks["dice"] is None


def test_an_interval_of_a_mean_is_as_wide_as_statistics_say() -> None:
    generator = np.random.default_rng(0)
    found = [{"targets": [{"class": 1, "iou": value}]} for value in generator.normal(0.5, 0.1, 400)]
    low, high = interval(resampled(measured(found, "iou"), draws(400))) or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)


def test_methods_that_cannot_be_told_apart_share_a_rank(seed: int) -> None:
    same, near, far = entries(seed, 60), entries(seed + 1, 60), entries(seed, 60, shift=0.3)
    boards = [same, near, far]
    rows = with_statistics(
        [summarize(name, "", found, "abc") for name, found in zip("abc", boards, strict=True)], boards
    )
    assert [row.ranks["iou"] for row in rows] == [2, 2, 1]
    assert [row.ranks["milliseconds"] for row in rows] == [1, 1, 1]
    text = doubt(rows[2], "iou")
    low, high = rows[2].intervals["iou"] or (0, 0)
    assert text == f"{cell('iou', low)}–{cell('iou', high)}\n#1"


def test_a_small_but_steady_difference_is_beyond_doubt() -> None:
    """It shows only because both methods are resampled with the same photos."""
    generator = np.random.default_rng(0)
    levels = generator.uniform(0, 1, 40)
    boards = [[{"targets": [{"class": 1, "iou": level + gain}]} for level in levels] for gain in (0, 0.01)]
    values = [resampled(measured(found, "iou"), draws(40)) for found in boards]
    assert ranks(values, "up") == [2, 1]
    assert ranks(values, "down") == [1, 2]
    spread = [interval(one) or (0, 0) for one in values]
    assert spread[0][1] > spread[1][0]  # the intervals overlap


def test_columns_without_numbers_have_no_rank() -> None:
    nothing = np.full(RESAMPLES, math.nan)
    assert ranks([nothing, np.zeros(RESAMPLES)], "up") == [None, 1]
    assert doubt(Row("a", "", dict.fromkeys(COLUMNS), {}, {}), "iou") == ""
