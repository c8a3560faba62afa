"""Forms, interior textures and hues of the classes and distractors of the data set `shapes`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
Points = npt.NDArray[np.float64]
Texture = Callable[[FloatArray, FloatArray], FloatArray]
"""Unit coordinates (u, v) -> the mix, in [0, 1], of an object's second and main colour."""


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


def _cross(arm: float = 0.3) -> Points:
    quarter = np.array([(-arm, -arm), (-arm, -1), (arm, -1)])
    turn = np.array([(0.0, 1.0), (-1.0, 0.0)])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, turns) for turns in range(4)])


@dataclass(frozen=True)
class Form:
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
    square: FloatArray = np.clip(wave * 2 + 0.5, 0, 1)
    return square


def _bricks(u: FloatArray, v: FloatArray) -> FloatArray:
    row = np.floor(v * 4)
    column = (u * 2.5 + 0.5 * (row % 2)) % 1
    return 1 - np.maximum(_square(np.abs(column - 0.5) - 0.5 + 0.1), _square(np.abs(v * 4 % 1 - 0.5) - 0.42))


HUE_SPREAD = 40.0
"""Half the width of a class's hue range in degrees; neighbours are 25 to 70 apart, so ranges overlap."""

FORMS: dict[str, Form] = {
    "ball": Form(
        (("main", _ellipse(0, 0, 0.92, 0.92)), ("pale", _ellipse(-0.1, -0.1, 0.16, 0.16))),
        lambda u, v: _square(np.sin(3 * np.arctan2(v + 0.1, u + 0.1))),
        0,
        180,
    ),
    "boat": Form(
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
    "fish": Form(
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
    "leaf": Form(
        (("dark", _polygon((-0.04, 0.8), (0.04, 0.8), (0.04, 1), (-0.04, 1))), ("main", _lens() * 0.9)),
        lambda u, v: _square(np.sin(14 * (v + np.abs(u))) - 2 * (np.abs(u) < 0.04)),
        110,
        180,
    ),
    "house": Form(
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
    "car": Form(
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
    "star": Form(
        (("main", _star(5, 0.5)),),
        lambda u, v: _square(np.sin(11 * u) * np.sin(11 * v) - 0.1),
        295,
        180,
    ),
}
DISTRACTORS: tuple[Points, ...] = (
    _polygon((-1, -0.18), (1, -0.18), (1, 0.18), (-1, 0.18)),
    _polygon((0, -0.9), (0.9, 0.8), (-0.9, 0.8)),
    _polygon((-0.9, -0.6), (0.5, -0.9), (0.9, 0.6), (-0.5, 0.9)),
    _ellipse(0, 0, 1, 0.5),
    _star(4, 0.3),
    _cross(),
)
DISTRACTOR_TEXTURES: tuple[Texture, ...] = (
    lambda u, v: np.zeros_like(u) + np.float32(0.5),
    lambda u, v: _square(np.sin(12 * (u + v))),
    lambda u, v: np.clip(0.5 + 0.5 * u, 0, 1),
    lambda u, v: _square(np.sin(7 * u) * np.sin(7 * v)),
)
