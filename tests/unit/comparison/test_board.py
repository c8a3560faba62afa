"""The leaderboard's means, its best values, and its two forms as text."""

import csv
import io
from dataclasses import replace
from typing import Any

import pytest

from wsss.comparison.board import (
    COLUMNS,
    Row,
    best,
    cell,
    hit_rates,
    sanity_table,
    summarize,
    table,
    to_csv,
)

CLASSES = ("cat", "dog", "cow")


def target(label: int, hit: bool | None, **numbers: Any) -> dict[str, Any]:
    return {"class": label, "pointing_torchray": hit, **numbers}


@pytest.fixture
def row() -> Row:
    entries = [
        {
            "milliseconds": 30.0,
            "targets": [target(1, True, dice=0.5), target(2, False, difficult=True, dice=None)],
        },
        {"milliseconds": 10.0, "targets": [target(1, True, dice=0.7, difficult=False)]},
        {"milliseconds": 11.0, "targets": [target(2, True, difficult=True), target(1, None)]},
        {"milliseconds": 12.0, "targets": [target(1, False, difficult=True, dice=0.0)]},
    ]
    return summarize("a", "A()", entries, CLASSES)


def test_means_are_over_the_targets_that_have_a_number(row: Row) -> None:
    assert row.values["dice"] == pytest.approx(0.4)
    assert row.counts["dice"] == 3
    assert row.values["energy"] is None
    assert row.counts["energy"] == 0


def test_torchrays_pointing_game_is_a_mean_of_hit_rates_per_class(row: Row) -> None:
    assert row.per_class == {"cat": pytest.approx(2 / 3), "dog": 0.5}
    assert row.values["pointing_torchray"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert row.counts["pointing_torchray"] == 5
    assert row.values["pointing_difficult"] == pytest.approx((0 + 1 / 2) / 2)
    assert row.counts["pointing_difficult"] == 3


def test_time_is_a_median_over_images(row: Row) -> None:
    assert row.values["milliseconds"] == 11.5
    assert row.counts["milliseconds"] == 4


def test_classes_without_hit_or_miss_have_no_rate() -> None:
    assert hit_rates([target(3, None)]) == {}


def rows(key: str, *values: float | None) -> list[Row]:
    empty: dict[str, float | None] = dict.fromkeys(COLUMNS)
    return [
        Row(f"m{n}", "", {**empty, key: value}, dict.fromkeys(COLUMNS, 1), {})
        for n, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("dice", (0.1, 0.5, None), {1}),
        ("deletion", (0.1, 0.5, None), {0}),
        ("milliseconds", (12.0, 150.0, 11.96), {0, 2}),
        ("dice", (0.50001, 0.5, 0.2), {0, 1}),
        ("dice", (0.5, 0.50001), set()),
        ("dice", (None, None), set()),
        ("dice", (0.5,), set()),
    ],
)
def test_best_is_what_a_reader_sees_as_best(key: str, values: Any, expected: set[int]) -> None:
    assert best(rows(key, *values), key) == expected


def test_cells_are_percent_or_milliseconds() -> None:
    assert cell("dice", 0.1234) == "12.3"
    assert cell("milliseconds", 5.04) == "5.0"
    assert cell("milliseconds", 1234.5) == "1234"
    assert cell("dice", None) == "\N{EN DASH}"


def test_the_terminals_table_marks_the_best_and_leaves_empty_columns_out() -> None:
    text = table(rows("dice", 0.25, 0.5))
    assert "25.0 " in text
    assert "50.0*" in text
    assert "energy" not in text
    assert len({len(line) for line in text.splitlines()}) == 1


def test_the_sanity_table_has_a_line_for_each_method_and_a_column_for_each_stage() -> None:
    lines = sanity_table(("fc", "features.28"), {"gradcam": (0.5, -0.25), "m": (0.0, 1.0)}).splitlines()
    assert [line.split()[-2:] for line in lines] == [
        ["fc", "features.28"],
        ["0.50", "-0.25"],
        ["0.00", "1.00"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_csv_has_numbers_counts_and_the_method_in_full(row: Row) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv([replace(row, name='a, "b"')]))))
    assert len(lines) == 1
    assert lines[0]["method"] == 'a, "b"'
    assert float(lines[0]["dice"]) == row.values["dice"]
    assert lines[0]["energy"] == ""
    assert lines[0]["pointing_torchray_n"] == "5"
    assert lines[0]["repr"] == "A()"


def test_every_column_says_what_it_is() -> None:
    assert all(column.text.endswith(".") for column in COLUMNS.values())
