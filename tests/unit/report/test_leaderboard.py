"""The leaderboard's page: everything is shown, nothing is executed."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from wsss.report.chart import Dot, Scatter
from wsss.report.html import Facts, Gallery, GalleryRow
from wsss.report.leaderboard import (
    Leaderboard,
    SanityTable,
    ScoreColumn,
    ScoreRow,
    render_leaderboard,
    write_leaderboard,
)

EVIL = '"><script>alert(1)</script>'


def sample(text: str) -> Leaderboard:
    picture = np.zeros((8, 8, 3), np.uint8)
    return Leaderboard(
        title=text,
        subtitle=text,
        columns=(ScoreColumn(text, text), ScoreColumn("second", "of a new group", True)),
        rows=(ScoreRow(text, text, ((text, True), ("12.5", False)), (text, "11.0-14.0, #2")),),
        note=text,
        charts=(Scatter(text, text, (Dot(text, 3.0, 0.5, (0.4, 0.6)), Dot("other", 40.0, 0.5))),),
        sanity=SanityTable((text,), ((text, ((0.25, 0.5),)),), text),
        gallery=Gallery(text, ("photo", text), (GalleryRow(text, (text,), (picture, None)),), text),
        facts=(Facts(text, ((text, text),)),),
        config=text,
    )


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]


def test_every_text_is_escaped() -> None:
    page = render_leaderboard(sample(EVIL))
    parser = Tags()
    parser.feed(page)
    assert "script" not in parser.names
    assert EVIL not in page
    assert page.count("&lt;script&gt;") >= 15


def test_page_has_everything_and_loads_nothing(tmp_path: Path) -> None:
    write_leaderboard(tmp_path / "index.html", sample("words"))
    page = (tmp_path / "index.html").read_text()
    for part in (
        "12.5",
        "11.0-14.0, #2",
        'class="best"',
        'class="group"',
        "0.25",
        "50 % flat",
        "data:image/jpeg",
    ):
        assert part in page
    assert "http://" not in page
    assert "https://" not in page


def test_sections_without_content_are_left_out() -> None:
    bare = Leaderboard("t", "s", (ScoreColumn("a", "b"),), (ScoreRow("m", "M()", (("1", False),)),))
    page = render_leaderboard(bare)
    assert "Sanity" not in page
    assert "Cost against quality" not in page
    assert 'id="maps"' not in page


def test_a_row_with_a_missing_value_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="m: 0 values for 1 columns"):
        render_leaderboard(Leaderboard("t", "s", (ScoreColumn("a", "b"),), (ScoreRow("m", "M()", ()),)))
