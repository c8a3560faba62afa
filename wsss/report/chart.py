"""A line chart and a scatter plot as inline SVG, without scripts."""

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


@dataclass(frozen=True)
class Dot:
    """A named point: x above 0, y in [0, 1], and the interval of y, if known."""

    name: str
    x: float
    y: float
    between: tuple[float, float] | None = None


@dataclass(frozen=True)
class Scatter:
    """Points with names; x on a logarithmic axis, y in percent."""

    x: str
    y: str
    dots: tuple[Dot, ...]


def draw_scatter(chart: Scatter) -> str:
    """The plot as an `<svg>`: a bar for each interval, the name beside each point, or in a free row above or below."""
    width, height = 2 * WIDTH, HEIGHT + 160
    logs = [float(np.log10(dot.x)) for dot in chart.dots]
    left, right = min(logs) - 0.1, max(logs) + 0.35  # room for the last name
    ends = [value for dot in chart.dots for value in (dot.y, *(dot.between or ()))]
    low, high = max(0.0, min(ends) - 0.03), min(1.0, max(ends) + 0.03)

    def place(log: float, y: float) -> Point:
        across, up = (log - left) / (right - left), (y - low) / (high - low)
        return LEFT + across * (width - LEFT - RIGHT), height - BOTTOM - up * (height - TOP - BOTTOM)

    parts = [_row(*place(left, y), place(right, y)[0], y) for y in np.linspace(low, high, 6)]
    bottom = height - BOTTOM
    for power in range(int(np.ceil(left)), int(np.floor(right)) + 1):
        x = place(power, low)[0]
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{10**power:g}</text>')
    taken: list[Point] = []
    for dot, log in sorted(zip(chart.dots, logs, strict=True), key=lambda pair: -pair[0].y):
        x, y = place(log, dot.y)
        for between in (dot.between,) if dot.between else ():
            top, under = (place(log, end)[1] for end in reversed(between))
            parts.append(f'<line class="span" x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{under:.1f}"/>')
        text = y + 4
        while any(
            abs(text - other) < 13 and abs(x - there) < 7 * len(dot.name) + 20 for there, other in taken
        ):
            text += 4
        taken.append((x, text))
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        parts.append(f'<text x="{x + 8:.1f}" y="{text:.1f}">{escape(dot.name)}</text>')
    middle = (LEFT + width - RIGHT) / 2
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(chart.y)} against {escape(chart.x)}">{"".join(parts)}'
        f'<text x="{middle:.0f}" y="{height - 8}" text-anchor="middle">{escape(chart.x)}</text>'
        f'<text transform="translate(14 {(bottom + TOP) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(chart.y)}, %</text></svg>"
    )
