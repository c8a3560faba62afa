"""The procedural data set `shapes`: drawn from a seed in seconds, in the layout of PASCAL VOC.

Seven cartoon classes, each with a form, an interior texture and a hue range that overlaps those of its
neighbours, so that no single cue decides a class. Objects differ in size by more than 1:5 and hide each
other; distractors of no class share their hues; `boat` is tied to water, as boats are in VOC.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from wsss.data.files import atomic_path, read_json, write_json, write_mask, write_text
from wsss.data.labels import BACKGROUND, IGNORE
from wsss.errors import UserError

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
Texture = Callable[[FloatArray, FloatArray], FloatArray]

MARKER = "shapes.json"
# Raise this when the drawing changes, so that a directory of an older look is not taken for a finished one.
VERSION = 1
SPLITS = ("train", "val")


def _ellipse(u: float, v: float, a: float, b: float, points: int = 40) -> Points:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([u + a * np.cos(angle), v + b * np.sin(angle)], axis=1)


def _polygon(*points: tuple[float, float]) -> Points:
    return np.array(points, dtype=np.float64)


def _star(tips: int, inner: float) -> Points:
    angle = np.arange(2 * tips) * np.pi / tips - np.pi / 2
    radius = np.where(np.arange(2 * tips) % 2 == 0, 1.0, inner)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _lens() -> Points:
    half = np.linspace(-1, 1, 20)
    width = 0.55 * np.cos(half * np.pi / 2) ** 0.8
    return np.concatenate([np.stack([width, half], 1), np.stack([-width, half], 1)[::-1]])


@dataclass(frozen=True)
class _Form:
    """One class: parts in unit coordinates (u right, v down, in [-1, 1]) with a tone each, hue and texture.

    A part's tone is "main" (textured in the object's hue), "pale" or "dark" (same hue, no texture).
    """

    parts: tuple[tuple[str, Points], ...]
    texture: Texture
    hue: float
    tilt: float
    """Largest rotation in degrees; 180 for objects without an upright pose."""


def _square(wave: FloatArray) -> FloatArray:
    """A soft square wave in [0, 1]: a hard one would alias."""
    return np.clip(wave * 2 + 0.5, 0, 1)


def _bricks(u: FloatArray, v: FloatArray) -> FloatArray:
    row = np.floor(v * 4)
    column = (u * 2.5 + 0.5 * (row % 2)) % 1
    return 1 - np.maximum(_square(np.abs(column - 0.5) - 0.5 + 0.1), _square(np.abs(v * 4 % 1 - 0.5) - 0.42))


HUE_SPREAD = 40.0
"""Half the width of a class's hue range in degrees; neighbours are about 50 apart, so ranges overlap."""

_FORMS: dict[str, _Form] = {
    "ball": _Form(
        (("main", _ellipse(0, 0, 0.92, 0.92)), ("pale", _ellipse(-0.1, -0.1, 0.16, 0.16))),
        lambda u, v: _square(np.sin(3 * np.arctan2(v + 0.1, u + 0.1))),
        0,
        180,
    ),
    "boat": _Form(
        (
            ("dark", _polygon((-0.04, -1), (0.06, -1), (0.06, 0.3), (-0.04, 0.3))),
            ("pale", _polygon((0.08, -0.95), (0.85, 0.2), (0.08, 0.2))),
            ("pale", _polygon((-0.06, -0.8), (-0.06, 0.2), (-0.65, 0.2))),
            ("main", _polygon((-1, 0.28), (1, 0.28), (0.66, 0.85), (-0.7, 0.85))),
        ),
        lambda u, v: _square(np.sin(22 * v)),
        25,
        10,
    ),
    "fish": _Form(
        (
            ("main", _polygon((0.3, 0), (1, -0.55), (0.85, 0), (1, 0.55))),
            ("main", _ellipse(-0.25, 0, 0.73, 0.5)),
            ("pale", _ellipse(-0.65, -0.12, 0.12, 0.12)),
            ("dark", _ellipse(-0.67, -0.12, 0.06, 0.06)),
        ),
        lambda u, v: _square(np.sin(16 * u + 2 * np.cos(16 * v))),
        55,
        30,
    ),
    "leaf": _Form(
        (("dark", _polygon((-0.04, 0.8), (0.04, 0.8), (0.04, 1), (-0.04, 1))), ("main", _lens() * 0.9)),
        lambda u, v: _square(np.sin(14 * (v + np.abs(u))) - 2 * (np.abs(u) < 0.04)),
        110,
        180,
    ),
    "house": _Form(
        (
            ("main", _polygon((-0.72, -0.2), (0.72, -0.2), (0.72, 0.95), (-0.72, 0.95))),
            ("dark", _polygon((-0.95, -0.15), (0, -0.95), (0.95, -0.15))),
            ("pale", _polygon((-0.5, 0.1), (-0.1, 0.1), (-0.1, 0.5), (-0.5, 0.5))),
            ("dark", _polygon((0.15, 0.3), (0.5, 0.3), (0.5, 0.95), (0.15, 0.95))),
        ),
        _bricks,
        165,
        10,
    ),
    "car": _Form(
        (
            ("main", _polygon((-0.55, -0.1), (-0.35, -0.55), (0.3, -0.55), (0.6, -0.1))),
            ("pale", _polygon((-0.42, -0.12), (-0.28, -0.45), (-0.06, -0.45), (-0.06, -0.12))),
            ("pale", _polygon((0.04, -0.12), (0.04, -0.45), (0.24, -0.45), (0.44, -0.12))),
            ("main", _polygon((-1, 0), (-0.9, -0.14), (0.8, -0.14), (1, 0.02), (1, 0.4), (-1, 0.4))),
            ("dark", _ellipse(-0.52, 0.4, 0.24, 0.24)),
            ("dark", _ellipse(0.52, 0.4, 0.24, 0.24)),
        ),
        lambda u, v: np.clip(0.7 - v, 0, 1),
        225,
        12,
    ),
    "star": _Form(
        (("main", _star(5, 0.5)),),
        lambda u, v: _square(np.sin(11 * u) * np.sin(11 * v) - 0.1),
        295,
        180,
    ),
}
SHAPES_CLASSES: tuple[str, ...] = tuple(_FORMS)

_DISTRACTORS: tuple[Points, ...] = (
    _polygon((-1, -0.18), (1, -0.18), (1, 0.18), (-1, 0.18)),
    _polygon((0, -0.9), (0.9, 0.8), (-0.9, 0.8)),
    _polygon((-0.9, -0.6), (0.5, -0.9), (0.9, 0.6), (-0.5, 0.9)),
    _ellipse(0, 0, 1, 0.5),
    _star(4, 0.3),
    _polygon(
        (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
        (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3),
    ),  # fmt: skip
)
_DISTRACTOR_TEXTURES: tuple[Texture, ...] = (
    lambda u, v: np.zeros_like(u) + np.float32(0.5),
    lambda u, v: _square(np.sin(12 * (u + v))),
    lambda u, v: np.clip(0.5 + 0.5 * u, 0, 1),
    lambda u, v: _square(np.sin(7 * u) * np.sin(7 * v)),
)


@dataclass(frozen=True)
class Scene:
    """One drawn photo.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        mask: (size, size) uint8; 0 background, 1..C classes, 255 on the blended pixels of object borders.
        objects: mask index and visible box (xmin, ymin, xmax, ymax), 1-based inclusive as in VOC, one per object.
    """

    image: ByteArray
    mask: ByteArray
    objects: tuple[tuple[int, tuple[int, int, int, int]], ...]

    @property
    def labels(self) -> tuple[int, ...]:
        """The sorted mask indices of the classes in the photo."""
        return tuple(sorted({index for index, _ in self.objects}))


@dataclass(frozen=True)
class _Pose:
    """Where an object lies: centre and radius in pixels, angle in radians, horizontal and vertical factors."""

    x: float
    y: float
    radius: float
    angle: float
    stretch: tuple[float, float]

    def to_pixels(self, points: Points) -> Points:
        scaled = points * np.array(self.stretch) * self.radius
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return scaled @ np.array([[cos, sin], [-sin, cos]]) + np.array([self.x, self.y])

    def window(self, size: int) -> tuple[slice, slice]:
        reach = int(self.radius * 1.5) + 2
        rows = slice(max(int(self.y) - reach, 0), min(int(self.y) + reach, size))
        return rows, slice(max(int(self.x) - reach, 0), min(int(self.x) + reach, size))

    def grid(self, rows: slice, columns: slice) -> tuple[FloatArray, FloatArray]:
        """The unit coordinates (u, v) of the window's pixels."""
        dx = np.arange(columns.start, columns.stop, dtype=np.float32)[None] - np.float32(self.x)
        dy = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(self.y)
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        u = (cos * dx + sin * dy) / np.float32(self.radius * self.stretch[0])
        return u, (cos * dy - sin * dx) / np.float32(self.radius * self.stretch[1])


def _rgb(hue: float, saturation: float, value: float) -> FloatArray:
    """The (3,) float32 RGB colour in [0, 255] of a hue in degrees and a saturation and value in [0, 1]."""
    ramp = np.array([5.0, 3.0, 1.0]) + hue / 60.0
    ramp %= 6.0
    channel = value - value * saturation * np.clip(np.minimum(ramp, 4 - ramp), 0, 1)
    return (255 * channel).astype(np.float32)


def _noise(rng: np.random.Generator, size: int, cells: tuple[int, int]) -> FloatArray:
    """(size, size) smooth noise of unit variance from a (rows, columns) grid of random values."""
    coarse = rng.standard_normal(cells, dtype=np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)


def _coverage(polygon: Points, rows: slice, columns: slice) -> FloatArray:
    """How much of each pixel of the window the polygon covers, in [0, 1]."""
    mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
    corners = np.round((polygon - [columns.start, rows.start]) * 16).astype(np.int32)
    cv2.fillPoly(mask, [corners], 255, cv2.LINE_AA, shift=4)
    return mask.astype(np.float32) / 255


def _paint(
    canvas: FloatArray,
    parts: tuple[tuple[str, Points], ...],
    texture: Texture,
    colors: dict[str, tuple[FloatArray, FloatArray]],
    pose: _Pose,
) -> tuple[tuple[slice, slice], FloatArray]:
    """Draws the parts over the canvas; returns the window and the object's coverage in it."""
    rows, columns = pose.window(canvas.shape[0])
    view = canvas[rows, columns]
    u, v = pose.grid(rows, columns)
    shade = (1 - 0.12 * (u + v))[..., None]
    covered = np.zeros(u.shape, np.float32)
    for tone, polygon in parts:
        alpha = _coverage(pose.to_pixels(polygon), rows, columns)
        dark, light = colors[tone]
        mix = texture(u, v)[..., None] if tone == "main" else np.float32(1)
        view += alpha[..., None] * ((dark + mix * (light - dark)) * shade - view)
        np.maximum(covered, alpha, out=covered)
    return (rows, columns), covered


def _object_colors(rng: np.random.Generator, hue: float) -> dict[str, tuple[FloatArray, FloatArray]]:
    saturation, value = rng.uniform(0.5, 0.95), rng.uniform(0.6, 0.95)
    main = _rgb(hue, saturation, value)
    second = _rgb(hue + rng.uniform(-20, 20), saturation * 0.75, value * 0.6)
    pale = _rgb(hue, saturation * 0.3, min(value * 1.15, 1.0))
    dark = _rgb(hue, saturation, value * 0.45)
    return {"main": (second, main), "pale": (pale, pale), "dark": (dark, dark)}


def _background(rng: np.random.Generator, size: int, water: bool) -> FloatArray:
    """A textured (size, size, 3) ground: waves for water, else grass, sand, stone or a plain colour."""
    if water:
        line = np.arange(size, dtype=np.float32)
        waves = np.sin(line[:, None] * np.float32(rng.uniform(0.5, 0.9) * 128 / size) + 2 * _noise(rng, size, (6, 6)))
        light = 0.12 * waves + 0.08 * _noise(rng, size, (40, 10))
        color = _rgb(rng.uniform(190, 225), rng.uniform(0.35, 0.6), rng.uniform(0.5, 0.75))
    else:
        kind = int(rng.integers(4))
        hue = (100.0, 40.0, 220.0, rng.uniform(0, 360))[kind] + rng.uniform(-20, 20)
        cells = ((32, 64), (60, 60), (16, 16), (8, 8))[kind]
        color = _rgb(hue, rng.uniform(0.05, 0.4) * (kind != 2), rng.uniform(0.35, 0.85))
        light = 0.12 * _noise(rng, size, cells) + 0.06 * _noise(rng, size, (3, 3))
    ground: FloatArray = color * (1 + light + 0.1 * _noise(rng, size, (4, 4)))[..., None]
    return ground


def _clutter(rng: np.random.Generator, canvas: FloatArray) -> None:
    """Draws strokes and specks in colours near the ground's."""
    size = canvas.shape[0]
    base = canvas.mean((0, 1))
    for _ in range(int(rng.integers(6, 24))):
        start, end = rng.uniform(0, size, 2), rng.normal(0, 0.12 * size, 2)
        color = base * rng.uniform(0.6, 1.35) + rng.normal(0, 14, 3)
        ends = np.round(np.stack([start, start + end]) * 16).astype(int).tolist()
        width = int(rng.integers(1, max(2, size // 24)))
        cv2.line(canvas, ends[0], ends[1], color.tolist(), width, cv2.LINE_8, shift=4)


def _pose(rng: np.random.Generator, size: int, radius: float, tilt: float) -> _Pose:
    margin = min(0.6 * radius, 0.45 * size)
    x, y = rng.uniform(margin, size - margin, 2)
    stretch = (rng.choice([-1.0, 1.0]) * rng.uniform(0.85, 1.15), rng.uniform(0.85, 1.15))
    return _Pose(x, y, radius, np.deg2rad(rng.uniform(-tilt, tilt)), stretch)


def _draw_distractor(rng: np.random.Generator, canvas: FloatArray) -> tuple[tuple[slice, slice], FloatArray]:
    size = canvas.shape[0]
    pose = _pose(rng, size, size * rng.uniform(0.05, 0.16), 180)
    polygon = _DISTRACTORS[rng.integers(len(_DISTRACTORS))]
    texture = _DISTRACTOR_TEXTURES[rng.integers(len(_DISTRACTOR_TEXTURES))]
    colors = _object_colors(rng, rng.uniform(0, 360))
    return _paint(canvas, (("main", polygon),), texture, colors, pose)
