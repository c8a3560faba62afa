"""Draws the photos of the data set `shapes` with their masks: grounds, objects, occlusion, light."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wsss.data.labels import BACKGROUND, IGNORE
from wsss.data.shape_forms import (
    DISTRACTOR_TEXTURES,
    DISTRACTORS,
    FORMS,
    HUE_SPREAD,
    FloatArray,
    Form,
    Points,
)

IntArray = npt.NDArray[np.int16]
ByteArray = npt.NDArray[np.uint8]

SHAPES_CLASSES: tuple[str, ...] = tuple(FORMS)
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Scene:
    """One drawn photo.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        mask: (size, size) uint8; 0 background, 1..C classes, 255 on the blended pixels of object borders.
        objects: mask index and visible box (xmin, ymin, xmax, ymax) of each object,
            1-based and inclusive as in VOC.
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
    """Where an object lies: centre and radius in pixels, angle in radians, factors along u and v."""

    x: float
    y: float
    radius: float
    angle: float
    stretch: tuple[float, float]

    def to_pixels(self, points: Points) -> Points:
        scaled = points * np.array(self.stretch) * self.radius
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turned: Points = scaled @ np.array([[cos, sin], [-sin, cos]]) + np.array([self.x, self.y])
        return turned

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
    """(size, size) smooth noise, interpolated from a (rows, columns) grid of standard normal values."""
    coarse = rng.standard_normal(cells, dtype=np.float32)
    noise: FloatArray = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    return noise


def _coverage(polygon: Points, rows: slice, columns: slice) -> FloatArray:
    """How much of each pixel of the window the polygon covers, in [0, 1]."""
    mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
    corners = np.round((polygon - [columns.start, rows.start]) * 16).astype(np.int32)
    cv2.fillPoly(mask, [corners], 255, cv2.LINE_AA, shift=4)
    return mask.astype(np.float32) / 255


@dataclass(frozen=True)
class _Thing:
    """An object (or a distractor, index 0) placed in a photo, not yet painted."""

    index: int
    form: Form
    pose: _Pose
    window: tuple[slice, slice]
    coverage: tuple[FloatArray, ...]
    """How much of each pixel of the window each part covers, in [0, 1]."""

    @property
    def alpha(self) -> FloatArray:
        alpha: FloatArray = np.max(self.coverage, axis=0)
        return alpha


def _place(index: int, form: Form, pose: _Pose, size: int) -> _Thing:
    rows, columns = pose.window(size)
    coverage = tuple(_coverage(pose.to_pixels(polygon), rows, columns) for _, polygon in form.parts)
    return _Thing(index, form, pose, (rows, columns), coverage)


def _paint(canvas: FloatArray, thing: _Thing, colors: dict[str, tuple[FloatArray, FloatArray]]) -> None:
    """Draws the thing's parts over the canvas, in order, in place."""
    view = canvas[thing.window]
    u, v = thing.pose.grid(*thing.window)
    shade = (1 - 0.1 * (u + v))[..., None]
    pattern = thing.form.texture(u, v)[..., None]
    for (tone, _), alpha in zip(thing.form.parts, thing.coverage, strict=True):
        dark, light = colors[tone]
        color = dark + pattern * (light - dark) if tone == "main" else light
        view += alpha[..., None] * (color * shade - view)


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
        waves = np.sin(
            line[:, None] * np.float32(rng.uniform(0.5, 0.9) * 128 / size) + 2 * _noise(rng, size, (6, 6))
        )
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


def _distractor(rng: np.random.Generator) -> Form:
    polygon = DISTRACTORS[rng.integers(len(DISTRACTORS))]
    texture = DISTRACTOR_TEXTURES[rng.integers(len(DISTRACTOR_TEXTURES))]
    return Form((("main", polygon),), texture, rng.uniform(0, 360), 180)


SMALLEST, LARGEST = 0.09, 0.46
"""Radius of objects in image sizes, drawn log-uniformly: a range of 1:5."""
MINIMUM_VISIBLE = 0.45
"""Part of an object's area that later things may not hide."""


def _classes_of(rng: np.random.Generator, water: bool) -> list[int]:
    """The mask indices of the objects to draw: boats live on water, the other classes do not care."""
    boat = SHAPES_CLASSES.index("boat") + 1
    others = [index for index in range(1, len(SHAPES_CLASSES) + 1) if index != boat]
    drawn = [int(index) for index in rng.choice(others, int(rng.integers(1, 4)))]
    if rng.random() < (0.75 if water else 0.02):
        drawn[0] = boat
    return drawn


def _place_visibly(
    rng: np.random.Generator, owner: IntArray, index: int, areas: list[float]
) -> _Thing | None:
    """Places a thing where every thing below stays visible enough; None after some misses."""
    size = owner.shape[0]
    for _ in range(8):
        if index == BACKGROUND:
            form, radius = _distractor(rng), size * rng.uniform(0.05, 0.16)
        else:
            form = FORMS[SHAPES_CLASSES[index - 1]]
            radius = size * float(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))))
        thing = _place(index, form, _pose(rng, size, radius, form.tilt), size)
        kept = owner.copy()
        kept[thing.window][thing.alpha > 0.1] = 0
        left = np.bincount(kept.ravel(), minlength=len(areas) + 1)[1:]
        if all(left >= MINIMUM_VISIBLE * np.array(areas)):
            return thing
    return None


def draw_scene(seed: int, split: str, index: int, size: int) -> Scene:
    """Draws one photo; it depends on the arguments only.

    Args:
        seed: Seed of the data set.
        split: "train" or "val": two streams, so that neither depends on the other's length.
        index: Number of the photo in its split.
        size: Height and width in pixels.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    water = rng.random() < 0.22
    canvas = _background(rng, size, water)
    _clutter(rng, canvas)
    owner = np.zeros((size, size), np.int16)  # 0 is the ground, n the n-th thing drawn
    blended = np.zeros((size, size), bool)
    things: list[_Thing] = []
    areas: list[float] = []
    kinds = [BACKGROUND] * int(rng.integers(1, 4)) + _classes_of(rng, water)
    for kind in rng.permutation(kinds).tolist():
        thing = _place_visibly(rng, owner, kind, areas)
        if thing is None:
            continue
        spread = HUE_SPREAD if kind else 0.0
        _paint(canvas, thing, _object_colors(rng, thing.form.hue + rng.uniform(-spread, spread)))
        inside = thing.alpha >= 0.5
        things.append(thing)
        areas.append(float(inside.sum()) if kind else 0.0)  # distractors may be hidden whole
        owner[thing.window][inside] = len(things)
        blended[thing.window] &= thing.alpha < 0.9
        blended[thing.window] |= (thing.alpha > 0.1) & (thing.alpha < 0.9)
    return _develop(rng, canvas, owner, blended, [thing.index for thing in things])


def _develop(
    rng: np.random.Generator,
    canvas: FloatArray,
    owner: IntArray,
    blended: npt.NDArray[np.bool_],
    kinds: list[int],
) -> Scene:
    """Adds light, blur and grain, and turns the owners of the pixels into a mask and boxes."""
    canvas *= np.float32(rng.uniform(0.8, 1.15)) * rng.uniform(0.93, 1.07, 3).astype(np.float32)
    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (3, 3), rng.uniform(0.4, 0.9)).astype(np.float32)
    canvas = canvas + rng.uniform(2, 7) * rng.standard_normal(canvas.shape, dtype=np.float32)
    lookup = np.array([BACKGROUND, *kinds], np.uint8)
    mask: ByteArray = lookup[owner]
    objects = [(kind, _box(owner == number)) for number, kind in enumerate(kinds, start=1) if kind]
    # Only near objects: the blended border of a distractor on the ground is ground.
    near = cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 0
    mask[blended & near] = IGNORE
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), mask, tuple(objects))


def _box(visible: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    return int(columns[0]) + 1, int(rows[0]) + 1, int(columns[-1]) + 1, int(rows[-1]) + 1
