"""The report of a run as one self-contained HTML page: no scripts, no external resources.

`write_report` takes plain data (`Report`), so it knows nothing about the pipeline. All text is escaped.
Measures are given in [0, 1] and shown in percent; None is shown as an en dash.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsss.data.files import write_text
from wsss.data.working import shrink
from wsss.metrics.table import DASH, percent
from wsss.report.chart import Chart, draw
from wsss.report.css import CSS
from wsss.report.overlay import heat_palette

EMBEDDED, BESIDE = "data:", "'self' file:"
"""Where a page's pictures are: in it, or in files beside it. Nothing else is loaded (Content-Security-Policy)."""

THUMBNAIL_SIDE = 256
"""Longest side of a gallery picture in pixels: five of them take about 80 kB."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    value: float | None
    """In [0, 1]."""
    note: str = ""


@dataclass(frozen=True)
class SummaryRow:
    """The score of one stage."""

    name: str
    miou: float | None
    note: str = ""
    """The protocol: what it is measured on, whether multi-scale, flip and CRF are included."""
    oracle: float | None = None
    """What the best choice with ground-truth masks would give; shown in grey and marked as using masks."""


@dataclass(frozen=True)
class ClassTable:
    """Measures of each class."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, Colour, tuple[float | None, ...]], ...]
    """Class name, its colour, one measure in [0, 1] for each column."""
    means: tuple[float | None, ...] = ()
    """Mean of each column over the classes that have a value; empty = no such row."""
    note: str = ""


@dataclass(frozen=True)
class Linked:
    """A picture in a file beside the page."""

    path: str
    """Relative to the page, with "/"."""
    size: tuple[int, int]
    """(H, W) in pixels."""


@dataclass(frozen=True)
class GalleryRow:
    """One image in all its stages."""

    identifier: str
    labels: tuple[str, ...]
    """Names of its image-level labels."""
    pictures: tuple[npt.NDArray[np.uint8] | Linked | None, ...]
    """`(H, W, 3)` uint8 RGB or a file, one for each of `Gallery.columns`; None = not made."""
    note: str = ""
    link: str = ""
    """Path of a file beside the page that the name leads to, with "/"; empty: none."""


@dataclass(frozen=True)
class Gallery:
    """Pictures of some images; the captions under a row's pictures are `columns`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[GalleryRow, ...]
    note: str = ""
    cards: bool = False
    """Several rows side by side where there is room: for a few pictures of many images."""


@dataclass(frozen=True)
class Facts:
    """A table of names and values: versions, hardware, seconds per stage."""

    title: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Report:
    """Everything on the page, in the page's order."""

    title: str
    subtitle: str = ""
    warnings: tuple[str, ...] = ()
    """What looks wrong, a sentence each."""
    tiles: tuple[Tile, ...] = ()
    summary: tuple[SummaryRow, ...] = ()
    tables: tuple[ClassTable, ...] = ()
    legend: tuple[tuple[str, Colour], ...] = ()
    """Names and colours of the classes, for the galleries."""
    charts: tuple[Chart, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    facts: tuple[Facts, ...] = ()
    config: str = ""
    """The resolved configuration as text."""


def write_report(path: Path, report: Report) -> None:
    """Write the page (atomically, UTF-8).

    Args:
        path: the HTML file.
        report: its contents. Pictures are reduced to `THUMBNAIL_SIDE`; some 25 rows of five stay below 3 MB.

    Raises:
        ValueError: a row has more or fewer values than its table has columns.
        UserError: the file cannot be written.
    """
    write_text(path, render(report))


def render(report: Report) -> str:
    """The page as a string."""
    galleries = [
        (f"gallery-{index}", gallery.title, gallery_section(gallery, report.legend))
        for index, gallery in enumerate(report.galleries)
    ]
    sections = [
        ("warnings", "What looks wrong", warning_list(report.warnings)),
        ("summary", "Summary", _summary(report.summary)),
        *((f"classes-{index}", table.title, _classes(table)) for index, table in enumerate(report.tables)),
        *((f"chart-{index}", chart.title, _chart(chart)) for index, chart in enumerate(report.charts)),
        *galleries,
        ("run", "Run", run_section(report.facts, report.config)),
    ]
    footer = (
        "mIoU: one confusion matrix over all images at original size, PASCAL VOC protocol; a class without "
        "ground truth is left out. Made by wsss."
    )
    return page(report.title, report.subtitle, sections, footer, _tiles(report.tiles))


def page(
    title: str,
    subtitle: str,
    sections: Sequence[tuple[str, str, str]],
    footer: str,
    lead: str = "",
    images: str = EMBEDDED,
) -> str:
    """A whole page.

    Args:
        title: plain text.
        subtitle: plain text.
        sections: (anchor, title as plain text, content as HTML); those without content are left out.
        footer: plain text.
        lead: HTML before the first section.
        images: `EMBEDDED` or `BESIDE`.
    """
    shown = [section for section in sections if section[2]]
    links = "".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for anchor, name, _ in shown)
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(name)}</h2>{content}</section>\n'
        for anchor, name, content in shown
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src {images}; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p></header>
<nav aria-label="Contents"><ul>{links}</ul></nav>
<main>
{lead}{body}</main>
<footer>{escape(footer)}</footer>
</body>
</html>
"""


def thumbnail(image: npt.NDArray[np.uint8]) -> tuple[bytes, tuple[int, int]]:
    """A small copy as JPEG with full colour resolution (thin outlines stay crisp), and its (H, W)."""
    small = shrink(image, THUMBNAIL_SIDE)
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, format="JPEG", quality=85, subsampling=0, optimize=True)
    return buffer.getvalue(), (small.shape[0], small.shape[1])


def picture(image: npt.NDArray[np.uint8] | Linked, alternative: str) -> str:
    """An `<img>`, with a small copy of the picture inside unless it is in a file."""
    if isinstance(image, Linked):
        source, (height, width) = address(image.path), image.size
    else:
        content, (height, width) = thumbnail(image)
        source = f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"
    return (
        f'<img src="{source}" width="{width}" height="{height}" '
        f'style="height:auto" loading="lazy" alt="{escape(alternative)}">'
    )


def address(path: str) -> str:
    """A relative path as URL, whatever is in its name. "./" because "a:b" would be a scheme."""
    return f"./{quote(os.fsencode(path))}"


def warning_list(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="warnings">{items}</ul>' if items else ""


def _chart(chart: Chart) -> str:
    note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
    return f'{note}<div class="card plot">{draw(chart)}</div>'


def _tiles(tiles: tuple[Tile, ...]) -> str:
    cells = "".join(
        f'<div class="tile"><span class="soft">{escape(tile.label)}</span><b>{percent(tile.value)}</b>'
        f'<span class="note">{escape(tile.note)}</span></div>'
        for tile in tiles
    )
    return f'<div class="tiles">{cells}</div>\n' if cells else ""


def _summary(rows: tuple[SummaryRow, ...]) -> str:
    if not rows:
        return ""
    body = "".join(
        f'<tr><th scope="row">{escape(row.name)}</th>{_cell(row.miou, "bar")}'
        f'<td class="number oracle">{percent(row.oracle)}</td><td class="note">{escape(row.note)}</td></tr>'
        for row in rows
    )
    return (
        '<div class="card"><table><thead><tr><th>Stage</th><th>mIoU, %</th>'
        '<th class="number oracle">oracle (uses masks)</th><th>Measured on</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        '<p class="note">The oracle column shows what the best threshold, chosen with the true masks, '
        "would reach. Nothing in the run uses it.</p>"
    )


def _classes(table: ClassTable) -> str:
    rows = [
        f'<tr><th scope="row">{_dot(colour)}{escape(name)}</th>{_heat_cells(name, values, table)}</tr>'
        for name, colour, values in table.rows
    ]
    if table.means:
        rows.insert(
            0, f'<tr class="mean"><th scope="row">mean</th>{_heat_cells("mean", table.means, table)}</tr>'
        )
    head = "".join(f'<th class="heat">{escape(column)}</th>' for column in table.columns)
    return (
        f'<p class="note">{escape(table.note)}</p>'
        f'<div class="card"><table class="even"><thead><tr><th>Class</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _heat_cells(name: str, values: tuple[float | None, ...], table: ClassTable) -> str:
    if len(values) != len(table.columns):
        raise ValueError(f"{name}: {len(values)} values for {len(table.columns)} columns")
    return "".join(_cell(value, "heat") for value in values)


def _cell(value: float | None, kind: str) -> str:
    """A table cell with a bar or a shade as long or as strong as the value."""
    text = percent(value)
    strength = "0" if text == DASH else text
    return f'<td class="{kind}" style="--v:{strength}"><span>{text}</span></td>'


def gallery_section(
    gallery: Gallery, legend: tuple[tuple[str, Colour], ...] = (), *, heat: bool = True
) -> str:
    """The content of a gallery's section; empty without rows. ``heat``: the legend explains the colours of maps too."""
    if not gallery.rows:
        return ""
    note = f'<p class="note">{escape(gallery.note)}</p>' if gallery.note else ""
    rows = "".join(_gallery_row(row, gallery.columns) for row in gallery.rows)
    return note + _legend(legend, heat) + (f'<div class="cards">{rows}</div>' if gallery.cards else rows)


def _gallery_row(row: GalleryRow, columns: tuple[str, ...]) -> str:
    if len(row.pictures) != len(columns):
        raise ValueError(f"{row.identifier}: {len(row.pictures)} pictures for {len(columns)} columns")
    figures = "".join(
        f"<figure>{_figure(image, f'{row.identifier}: {column}')}"
        f"<figcaption>{escape(column)}</figcaption></figure>"
        for image, column in zip(row.pictures, columns, strict=True)
    )
    chips = "".join(f'<span class="chip">{escape(label)}</span>' for label in row.labels)
    note = f'<span class="note">{escape(row.note)}</span>' if row.note else ""
    name = escape(row.identifier)
    if row.link:
        name = f'<a href="{address(row.link)}">{name}</a>'
    return (
        f'<article class="card row"><h3>{name} {chips}{note}</h3>'
        f'<div class="strip">{figures}</div></article>\n'
    )


def _figure(image: npt.NDArray[np.uint8] | Linked | None, alternative: str) -> str:
    return f'<div class="missing">{DASH}</div>' if image is None else picture(image, alternative)


def _legend(legend: tuple[tuple[str, Colour], ...], heat: bool) -> str:
    if not legend:
        return ""
    stops = ", ".join(
        f"rgb{tuple(int(value) for value in heat_palette()[index])}" for index in range(0, 256, 51)
    )
    bar = f'<span class="heatbar" style="background:linear-gradient(90deg, {stops})"></span>'
    items = "".join(f"<li>{_dot(colour)}{escape(name)}</li>" for name, colour in legend)
    scale = f"<li>saliency 0{bar}1</li>" if heat else ""
    return f'<ul class="legend">{items}<li><span class="dot hatch"></span>uncertain (255)</li>{scale}</ul>'


def _dot(colour: Colour) -> str:
    return '<span class="dot" style="background:rgb({},{},{})"></span>'.format(*colour)


def run_section(facts: Sequence[Facts], config: str = "") -> str:
    """Tables of facts side by side, and the configuration, which can be unfolded."""
    tables = "".join(_facts(table) for table in facts if table.pairs)
    content = f'<div class="columns">{tables}</div>' if tables else ""
    if config:
        content += '<details class="card"><summary>Configuration</summary>'
        content += f"<pre>{escape(config)}</pre></details>"
    return content


def _facts(facts: Facts) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value) or DASH}</td></tr>'
        for name, value in facts.pairs
    )
    table = f'<div class="card facts"><table><tbody>{rows}</tbody></table></div>'
    return f"<div><h3>{escape(facts.title)}</h3>{table}</div>"
