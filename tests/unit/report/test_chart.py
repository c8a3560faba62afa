"""The chart: points where they belong, text escaped."""

import re

from wsss.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, draw


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
