"""A line chart as inline SVG, without scripts."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 46

Point = tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """One curve; both axes are shares, shown in percent."""

    title: str
    x: str
    y: str
    points: tuple[Point, ...]
    """In [0, 1] x [0, 1], by rising x; at least one."""
    mark: Point | None = None
    """A point of its own."""
    note: str = ""


def draw(chart: Chart) -> str:
    """The chart as an `<svg>` that follows the page's colours; the y axis begins below the lowest value."""
    values = [y for _, y in chart.points] + ([chart.mark[1]] if chart.mark else [])
    low = max(0.0, np.floor(min(values) * 10 - 0.5) / 10)
    columns, rows = np.linspace(0, 1, 6), np.linspace(low, 1, 6)

    def place(x: float, y: float) -> Point:
        share = (y - low) / (1 - low)
        return LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    grid = "".join(_row(*place(0, y), place(1, y)[0], y) for y in rows)
    grid += "".join(_column(*place(x, low), x) for x in columns)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in chart.points))
    dot = '<circle cx="{:.1f}" cy="{:.1f}" r="5"/>'.format(*place(*chart.mark)) if chart.mark else ""
    middle = (LEFT + WIDTH - RIGHT) / 2
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">'
        f'{grid}<polyline points="{line}"/>{dot}'
        f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(chart.x)}, %</text>'
        f'<text transform="translate(14 {(HEIGHT - BOTTOM + TOP) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(chart.y)}, %</text></svg>"
    )


def _row(left: float, y: float, right: float, value: float) -> str:
    return (
        f'<line x1="{left:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}"/>'
        f'<text x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{100 * value:.0f}</text>'
    )


def _column(x: float, y: float, value: float) -> str:
    return f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{100 * value:.0f}</text>'
