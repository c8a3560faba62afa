"""Figures of saliency as one picture: photo and overlays in a table, the crops of SESS. All colours are RGB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsss.report.overlay import Picture, hatching, heat_palette

INK, FAINT, PAPER, MARK, TRACK = (
    (25, 25, 25),
    (110, 110, 110),
    (255, 255, 255),
    (190, 30, 45),
    (222, 222, 222),
)
GAP = 10
"""Pixels between pictures and around them."""
TEXT = 16
"""Height of the letters in pixels."""
TABLE_WIDTH, SMALLEST_CELL, LARGEST_CELL = 3200, 224, 480
"""Maximum width of a table unless its pictures get too small, and bounds of their longer side."""
PANELS_WIDTH, SMALLEST_TILE, LARGEST_TILE = 1600, 48, 128
"""The same for the panels of crops."""
LEGEND_SHARE, LARGEST_LETTERS, LONGEST_NAME = 45, 48, 40
"""Letters of a legend: a share of the picture's longer side, at most so many pixels; characters of a name."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Row:
    """Pictures of one size (H, W, 3) uint8 under a title; one for each column of the table."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Tile:
    """A crop with its map drawn over it."""

    picture: Picture
    weight: float
    """In [0, 1]; written and drawn as a bar below the crop."""
    dropped: bool = False
    """Crossed out and faint."""


@dataclass(frozen=True)
class Panel:
    """Crops of one scale in the order of their windows: rows from top to bottom, left to right."""

    title: str
    tiles: Sequence[Sequence[Tile]]


def draw_table(columns: Sequence[str], rows: Sequence[Row]) -> Picture:
    """The pictures of all rows below the columns' headings, a bar of the heat colours at the bottom.

    Pictures are scaled to a longer side between `SMALLEST_CELL` and `LARGEST_CELL`.
    """
    side = _between(SMALLEST_CELL, TABLE_WIDTH // len(columns), LARGEST_CELL)
    table = [[_scaled(picture, side) for picture in row.pictures] for row in rows]
    width = max(picture.width for pictures in table for picture in pictures)
    heads = [_text(name, width, FAINT) for name in columns]
    lines = [_beside(heads)]
    for row, pictures in zip(rows, table, strict=True):
        strip = _beside(pictures)
        lines += [_text(row.title, strip.width, size=TEXT + 2), strip]
    return np.asarray(_framed(_below([*lines, _heat_bar()])))


def draw_panels(title: str, panels: Sequence[Panel]) -> Picture:
    """Panels of tiles, side by side as long as there is room; bars below the tiles are their weights."""
    most = max(len(tiles) for panel in panels for tiles in panel.tiles)
    side = _between(SMALLEST_TILE, PANELS_WIDTH // most - GAP, LARGEST_TILE)
    lines = _shelves([_panel(panel, side) for panel in panels], PANELS_WIDTH, 3 * GAP)
    width = max(line.width for line in lines)
    return np.asarray(_framed(_below([_text(title, max(width, 40 * TEXT)), *lines, _heat_bar()], 2 * GAP)))


def with_legend(picture: Picture, entries: Sequence[tuple[str, Colour | None]]) -> Picture:
    """The picture, and below it names with their colours, in letters that suit its size.

    Args:
        picture: (H, W, 3) uint8 RGB.
        entries: name and colour; no colour: hatched, as uncertain pixels are.

    Returns:
        (H', W', 3) uint8 RGB with the picture at the top left; wider than it if a name needs the room.
    """
    image = Image.fromarray(picture)
    size = _between(TEXT, max(image.size) // LEGEND_SHARE, LARGEST_LETTERS)
    items = [_entry(name, colour, size) for name, colour in entries] or [_entry("nothing found", INK, size)]
    width = max(image.width - 2 * GAP, *(item.width for item in items))
    return np.asarray(_below([image, _framed(_below(_shelves(items, width, 2 * size)))], 0))


def _entry(name: str, colour: Colour | None, size: int) -> Image.Image:
    """A line of a legend."""
    name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."
    swatch = Image.fromarray(hatching((size, size)))
    if colour is not None:
        swatch.paste(colour, (0, 0, size, size))
    ImageDraw.Draw(swatch).rectangle((0, 0, size - 1, size - 1), outline=FAINT)
    text = _text(name, int(font_for(name, size).getlength(name)) + 1, INK, size)
    return _beside([swatch, text], size // 2, middle=True)


def _shelves(images: Sequence[Image.Image], width: int, gap: int) -> list[Image.Image]:
    """The images side by side, in rows of at most this width (or of one image)."""
    shelves: list[list[Image.Image]] = [[]]
    for image in images:
        used = sum(other.width + gap for other in shelves[-1])
        if shelves[-1] and used + image.width > width:
            shelves.append([])
        shelves[-1].append(image)
    return [_beside(shelf, gap) for shelf in shelves]


def _panel(panel: Panel, side: int) -> Image.Image:
    rows = [_beside([_tile(tile, side) for tile in tiles]) for tiles in panel.tiles]
    # A title may be wider than a single column of crops: two tiles' width is always there.
    return _below([_text(panel.title, max(rows[0].width, 2 * side + GAP), size=TEXT - 2), *rows])


def _tile(tile: Tile, side: int) -> Image.Image:
    picture = _scaled(tile.picture, side)
    colour = MARK if tile.dropped else INK
    if tile.dropped:
        picture = Image.blend(picture, Image.new("RGB", picture.size, PAPER), 0.5)
        pen, (right, bottom) = ImageDraw.Draw(picture), (picture.width - 1, picture.height - 1)
        pen.line((0, 0, right, bottom), MARK, 2)
        pen.line((0, bottom, right, 0), MARK, 2)
    bar = Image.new("RGB", (picture.width, 5), TRACK)
    bar.paste(colour, (0, 0, max(1, round(tile.weight * picture.width)), 5))
    caption = short(tile.weight) + (" dropped" if tile.dropped else "")
    return _below([picture, bar, _text(caption, picture.width, colour, TEXT - 4)], 2)


def short(value: float) -> str:
    """A number in [0, 1] with three decimals, or as a power of ten where these would be 0.

    >>> short(0.25), short(0.00003)
    ('0.250', '3e-05')
    """
    return f"{value:.3f}" if value >= 0.0005 or value == 0 else f"{value:.0e}"


def _scaled(picture: Picture, side: int) -> Image.Image:
    """The picture with a longer side of `side` where it is longer, or of half of it where it is shorter."""
    longer = max(picture.shape[:2])
    factor = _between(side // 2, longer, side) / longer
    image = Image.fromarray(picture)
    if factor == 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC)


FONTS = ("DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")
"""System fonts (Linux, macOS, Windows) with letters that Pillow's own font lacks; it has only English ones."""


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, or a system font, if there is one, for text with other than English letters."""
    for name in () if text.isascii() else FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _text(text: str, width: int, colour: tuple[int, int, int] = INK, size: int = TEXT) -> Image.Image:
    """Text in lines of at most `width` pixels."""
    font = font_for(text, size)
    lines = wrap(text, font, width)
    height = round(size * 1.3)
    image = Image.new("RGB", (width, height * len(lines)), PAPER)
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((0, number * height), line, colour, font)
    return image


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Breaks text into lines of at most `width` pixels: after spaces, commas and brackets, or anywhere."""
    lines = [""]
    for word in _pieces(text):
        if font.getlength((lines[-1] + word).rstrip()) <= width:
            lines[-1] += word
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line.rstrip() for line in lines]


def _pieces(text: str) -> list[str]:
    """Splits text after each character at which a line may end."""
    pieces = [""]
    for letter in text:
        pieces[-1] += letter
        if letter in " ,(/":
            pieces.append("")
    return [piece for piece in pieces if piece]


def _heat_bar(width: int = 160, height: int = 10) -> Image.Image:
    """The heat colours from 0 to a map's maximum, with their meaning."""
    colours = heat_palette()[np.linspace(0, 255, width).round().astype(np.uint8)]
    bar = Image.fromarray(np.repeat(colours[None], height, axis=0))
    size = TEXT - 4
    ends = [
        _text(word, round(ImageFont.load_default(size).getlength(word)) + 1, FAINT, size)
        for word in ("0", "highest")
    ]
    return _beside([ends[0], bar, ends[1]], 5, middle=True)


def _beside(images: Sequence[Image.Image], gap: int = GAP, middle: bool = False) -> Image.Image:
    height = max(image.height for image in images)
    sheet = Image.new("RGB", (sum(image.width + gap for image in images) - gap, height), PAPER)
    left = 0
    for image in images:
        sheet.paste(image, (left, (height - image.height) // 2 if middle else 0))
        left += image.width + gap
    return sheet


def _below(images: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    width = max(image.width for image in images)
    sheet = Image.new("RGB", (width, sum(image.height + gap for image in images) - gap), PAPER)
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height + gap
    return sheet


def _framed(image: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (image.width + 2 * GAP, image.height + 2 * GAP), PAPER)
    sheet.paste(image, (GAP, GAP))
    return sheet


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))
