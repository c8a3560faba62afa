from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFont

from wsss.report import figure
from wsss.report.figure import MARK, Panel, Row, Tile, draw_panels, draw_table, short, with_legend, wrap

RED, GREEN, BLUE = (220, 10, 10), (10, 220, 10), (10, 10, 220)


def plain(colour: tuple[int, int, int], height: int = 200, width: int = 300) -> np.ndarray:
    return np.broadcast_to(np.uint8(colour), (height, width, 3)).copy()


def box(picture: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of what has this colour, which must be one whole rectangle."""
    rows, columns = (picture == np.uint8(colour)).all(-1).nonzero()
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    assert len(rows) == height * width
    return int(rows.min()), int(columns.min()), height, width


def test_a_table_has_a_picture_for_every_column_and_a_strip_for_every_row() -> None:
    black = (1, 1, 1)
    rows = [Row("dog", [plain(RED), plain(GREEN)]), Row("cat", [plain(BLUE), plain(black)])]
    drawn = draw_table(["photo", "gradcam"], rows)
    red, green, blue, last = (box(drawn, colour) for colour in (RED, GREEN, BLUE, black))
    assert red[2:] == green[2:] == blue[2:] == last[2:] == (200, 300)
    assert red[0] == green[0] < blue[0] == last[0]
    assert red[1] == blue[1] < green[1] == last[1]
    for top, left, _, width in (red, blue):  # their titles
        above = drawn[top - figure.GAP - 18 : top - figure.GAP, left : left + width]
        assert (above < 128).any()


@pytest.mark.parametrize(
    ("size", "shown"),
    [((960, 1440), (320, 480)), ((300, 200), (300, 200)), ((20, 60), (80, 240)), ((2000, 2), (480, 1))],
)
def test_pictures_are_brought_to_a_legible_size(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert box(draw_table(["photo"], [Row("dog", [plain(RED, *size)])]), RED)[2:] == shown


@pytest.mark.parametrize("size", [(1, 1), (40, 60), (300, 400), (2000, 1500)])
def test_a_legend_is_below_a_picture_of_any_size(size: tuple[int, int]) -> None:
    picture = plain((200, 200, 10), *size)
    names = [("cat", RED), ("a rather long name of a class", GREEN), ("not decided", None), ("x" * 500, BLUE)]
    drawn = with_legend(picture, names)
    assert np.array_equal(drawn[: size[0], : size[1]], picture)
    assert drawn.shape[1] <= max(size[1], 700)  # long names are cut
    tops = []
    for colour in (RED, GREEN, BLUE):
        rows = (drawn[size[0] :] == np.uint8(colour)).all(-1).nonzero()[0]
        assert np.ptp(rows) + 3 >= max(16, min(48, max(size) // 45))  # with its frame
        tops.append(int(rows.min()))
    assert tops == sorted(tops)
    dark = (drawn[size[0] :].max(-1) < 90).sum()
    assert dark > 100  # letters
    assert with_legend(picture, []).shape[0] > size[0]


def test_many_columns_get_smaller_pictures() -> None:
    drawn = draw_table([f"method {i}" for i in range(10)], [Row("dog", [plain(RED, 400, 600)] * 10)])
    assert figure.TABLE_WIDTH * 0.9 < drawn.shape[1] < figure.TABLE_WIDTH * 1.1


def test_letters_beyond_english_ones_come_from_a_font_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ImageFont.load_default(16)
    assert figure.font_for("bicycle", 16).getname() == own.getname()
    monkeypatch.setattr(figure, "FONTS", ("no such font.ttf",))
    assert figure.font_for("v\u00e9lo", 16).getname() == own.getname()
    monkeypatch.setattr(figure, "FONTS", ("no such font.ttf", "DejaVuSans.ttf"))
    monkeypatch.setattr(
        figure.ImageFont, "truetype", lambda name, size: (name, size) if "Deja" in name else _none()
    )
    assert figure.font_for("v\u00e9lo", 16) == ("DejaVuSans.ttf", 16)


def _none() -> None:
    raise OSError("cannot open resource")


def test_dropped_tiles_are_crossed_out_and_weights_are_bars() -> None:
    tiles = [
        Tile(plain(RED, 96, 96), 1.0),
        Tile(plain(GREEN, 96, 96), 0.25),
        Tile(plain(BLUE, 96, 96), 0.5, True),
    ]
    drawn = draw_panels("dog", [Panel("shorter side 96", [tiles])])
    (top, left, height, width), (_, second, _, _) = box(drawn, RED), box(drawn, GREEN)
    assert (height, width) == (96, 96)
    bar = drawn[top + height + 4]
    assert [int((bar[start : start + 96] == figure.INK).all(-1).sum()) for start in (left, second)] == [
        96,
        24,
    ]
    cross = (drawn[top : top + 96, second + 96 + figure.GAP :] == np.uint8(MARK)).all(-1)
    assert cross[:, :96].sum() > 150
    assert not (drawn == np.uint8(BLUE)).all(-1).any()  # it is faint
    assert not (drawn[:, : second + 96] == np.uint8(MARK)).all(-1).any()


def test_panels_go_to_the_next_line_when_there_is_no_room() -> None:
    def panel(colour: tuple[int, int, int], columns: int) -> Panel:
        return Panel("scale", [[Tile(plain(colour, 96, 96), 1.0)] * columns])

    drawn = draw_panels("dog", [panel(RED, 1), panel(GREEN, 1), panel(BLUE, 12)])
    tops = [int((drawn == np.uint8(colour)).all(-1).nonzero()[0].min()) for colour in (RED, GREEN, BLUE)]
    assert tops[0] == tops[1] < tops[2]
    assert drawn.shape[1] <= figure.PANELS_WIDTH + 4 * figure.GAP


@pytest.mark.parametrize("width", [60, 150, 1000])
def test_wrapped_text_loses_no_letter_and_fits(width: int) -> None:
    font = ImageFont.load_default(figure.TEXT)
    text = "sess(global_guidance(layer='layer3'), prefilter=0.5)"
    lines = wrap(text, font, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(font.getlength(line) <= width for line in lines)
    assert (len(lines) == 1) == (width == 1000)


def test_numbers_are_short_and_small_ones_are_not_zero() -> None:
    assert [short(value) for value in (1.0, 0.1234, 0.00003, 0.0)] == ["1.000", "0.123", "3e-05", "0.000"]
