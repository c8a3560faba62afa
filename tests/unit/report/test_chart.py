"""The chart: points where they belong, text escaped."""

import re
from xml.etree import ElementTree

import pytest

from wsss.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Dot, Scatter, draw, draw_scatter


def test_the_corners_of_the_data_are_the_corners_of_the_plot():
    svg = draw(Chart("t", "x", "y", ((0.0, 0.0), (1.0, 1.0)), mark=(0.5, 0.5)))
    points = re.search(r'<polyline points="([^"]*)"', svg)
    assert points is not None
    assert points[1] == f"{LEFT}.0,{HEIGHT - BOTTOM}.0 {WIDTH - RIGHT}.0,{TOP}.0"
    middle = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    assert '<circle cx="{:.1f}" cy="{:.1f}"'.format(*middle) in svg


def test_the_axis_begins_below_the_lowest_value():
    assert ">80<" in draw(Chart("t", "x", "y", ((0.2, 0.97), (1.0, 0.86))))
    assert draw(Chart("t", "x", "y", ((1.0, 1.0),))).count("<line") == 6


def test_text_is_escaped():
    svg = draw(Chart("<a>", "<b>", "<c>", ((1.0, 0.5),)))
    assert not re.search("<[abc]>", svg)
    assert "&lt;b&gt;" in svg


def test_dots_are_placed_by_the_logarithm_and_names_do_not_cover_each_other() -> None:
    dots = tuple(Dot(f"m{n}", 10.0**n, 0.5, (0.4, 0.6)) for n in (1, 2, 3))
    drawing = draw_scatter(Scatter("ms", "IoU", (*dots, Dot("same place", 10.0, 0.5))))
    root = ElementTree.fromstring(drawing)
    centres = sorted(float(circle.get("cx") or 0) for circle in root.iter("circle"))
    assert centres[0] == centres[1]
    assert centres[3] - centres[2] == pytest.approx(centres[2] - centres[1], abs=0.2)
    spans = [line for line in root.iter("line") if line.get("class") == "span"]
    assert len(spans) == 3
    rows = [float(text.get("y") or 0) for text in root.iter("text") if text.text in ("m1", "same place")]
    assert abs(rows[0] - rows[1]) >= 12
