"""The leaderboard of saliency methods as one self-contained page.

`write_leaderboard` takes plain data (`Leaderboard`). All text is escaped.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from wsss.data.files import write_text
from wsss.report.chart import Scatter, draw_scatter
from wsss.report.html import Facts, Gallery, gallery_section, page, run_section


@dataclass(frozen=True)
class ScoreColumn:
    """A column of the table: its title with an arrow, what it is, and whether a new group starts with it."""

    title: str
    text: str
    starts_group: bool = False


@dataclass(frozen=True)
class ScoreRow:
    """A method: its name, its full description, for each column (text, is it the best one), and what is written small
    below each of them, if anything."""

    name: str
    description: str
    cells: tuple[tuple[str, bool], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SanityTable:
    """Rank correlations: stages from the head down, and for each method (correlation, share of flat maps)."""

    stages: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]
    note: str = ""


@dataclass(frozen=True)
class Leaderboard:
    """Everything on the page, in the page's order."""

    title: str
    subtitle: str
    columns: tuple[ScoreColumn, ...]
    rows: tuple[ScoreRow, ...]
    note: str = ""
    charts: tuple[Scatter, ...] = ()
    sanity: SanityTable | None = None
    gallery: Gallery | None = None
    facts: tuple[Facts, ...] = ()
    config: str = ""


def write_leaderboard(path: Path, leaderboard: Leaderboard) -> None:
    """Writes the page (atomically, UTF-8).

    Raises:
        ValueError: a row has more or fewer values than there are columns.
        UserError: the file cannot be written.
    """
    write_text(path, render_leaderboard(leaderboard))


def render_leaderboard(leaderboard: Leaderboard) -> str:
    """The page as a string."""
    gallery = leaderboard.gallery
    sections = [
        ("leaderboard", "Leaderboard", _scores(leaderboard)),
        ("cost", "Cost against quality", _charts(leaderboard.charts)),
        ("columns", "What the columns are", _explanations(leaderboard)),
        ("sanity", "Sanity check", _sanity(leaderboard.sanity)),
        ("maps", gallery.title if gallery else "", gallery_section(gallery) if gallery else ""),
        ("run", "Run", run_section(leaderboard.facts, leaderboard.config)),
    ]
    footer = "Numbers in percent unless said. Made by wsss compare."
    return page(leaderboard.title, leaderboard.subtitle, sections, footer)


def _scores(leaderboard: Leaderboard) -> str:
    head = "".join(_head(column) for column in leaderboard.columns)
    body = "".join(_score_row(row, leaderboard.columns) for row in leaderboard.rows)
    note = f'<p class="note">{escape(leaderboard.note)}</p>' if leaderboard.note else ""
    return (
        f'{note}<div class="card board"><table><thead><tr><th>Method</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _head(column: ScoreColumn) -> str:
    return f'<th{_group(column)} title="{escape(column.text)}">{escape(column.title)}</th>'


def _score_row(row: ScoreRow, columns: tuple[ScoreColumn, ...]) -> str:
    if len(row.cells) != len(columns):
        raise ValueError(f"{row.name}: {len(row.cells)} values for {len(columns)} columns")
    notes = (f'<br><span class="note">{escape(note)}</span>' if note else "" for note in row.notes)
    cells = "".join(
        f"<td{_group(column, 'best' if best else '')}>{escape(text)}{note}</td>"
        for (text, best), column, note in zip(
            row.cells, columns, [*notes] or [""] * len(columns), strict=True
        )
    )
    return f'<tr><th scope="row" title="{escape(row.description)}">{escape(row.name)}</th>{cells}</tr>'


def _charts(charts: tuple[Scatter, ...]) -> str:
    return "".join(f'<div class="card wide">{draw_scatter(chart)}</div>' for chart in charts)


def _group(column: ScoreColumn, other: str = "") -> str:
    names = " ".join(name for name in ("group" if column.starts_group else "", other) if name)
    return f' class="{names}"' if names else ""


def _explanations(leaderboard: Leaderboard) -> str:
    pairs = tuple((column.title, column.text) for column in leaderboard.columns)
    methods = tuple((row.name, row.description) for row in leaderboard.rows)
    return _definitions("Columns", pairs) + _definitions("Methods in full", methods)


def _definitions(title: str, pairs: tuple[tuple[str, str], ...]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>' for name, text in pairs
    )
    return f'<h3>{escape(title)}</h3><div class="card wide"><table><tbody>{rows}</tbody></table></div>'


def _sanity(table: SanityTable | None) -> str:
    if table is None:
        return ""
    head = "".join(f'<th class="heat">{escape(stage)}</th>' for stage in table.stages)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_correlation, values))}</tr>'
        for name, values in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'{note}<div class="card"><table><thead><tr><th>Method</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _correlation(cell: tuple[float, float]) -> str:
    value, flat = cell
    note = f'<br><span class="note">{100 * flat:.0f} % flat</span>' if flat else ""
    return f'<td class="heat" style="--v:{100 * abs(value):.0f}"><span>{value:.2f}</span>{note}</td>'
