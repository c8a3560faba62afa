from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.metrics.table import percent
from wsss.report.html import (
    ClassTable,
    Facts,
    Gallery,
    GalleryRow,
    Report,
    SummaryRow,
    Tile,
    render,
    write_report,
)

EVIL = '<script>alert("x")</script>'
VOID = {"meta", "img", "br", "link"}


def picture(height: int = 60, width: int = 80) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[:, width // 2 :] = (200, 30, 40)
    return image


def sample(text: str = "plain") -> Report:
    return Report(
        title=f"title {text}",
        subtitle=text,
        tiles=(Tile(text, 0.5, text), Tile("retention", None)),
        summary=(SummaryRow(f"seed {text}", 0.4567, text, oracle=0.5), SummaryRow("val", None, "not run")),
        tables=(
            ClassTable(
                f"classes {text}",
                (f"seed {text}", "val"),
                ((f"cat {text}", (128, 0, 0), (0.25, None)),),
                (0.3, 0.4),
                text,
            ),
        ),
        legend=((f"cat {text}", (128, 0, 0)),),
        galleries=(
            Gallery(
                f"photos {text}",
                ("photo", f"mask {text}"),
                (GalleryRow(f"id {text}", (f"cat {text}",), (picture(), None), text),),
                text,
            ),
        ),
        facts=(Facts(f"machine {text}", ((f"torch {text}", text), ("commit", ""))),),
        config=f"seed: 0  # {text}",
    )


class Page(HTMLParser):
    """Checks that elements nest, and collects attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "

    def values(self, attribute: str) -> list[str]:
        return [str(attributes[attribute]) for _, attributes in self.tags if attribute in attributes]


def test_every_text_is_escaped() -> None:
    html = render(sample(EVIL))
    assert "<script" not in html
    page = Page(html)
    assert not any(tag == "script" for tag, _ in page.tags)
    # Each text field of the sample must still be readable, so nothing was dropped: 18 of them hold the text
    # (the alternative texts of pictures are attributes).
    shown = page.text.count(EVIL)
    assert shown >= 18
    assert any(EVIL in value for value in page.values("alt"))


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = Page(render(sample()))
    assert all(value.startswith("data:image/jpeg;base64,") for value in page.values("src"))
    assert all(value.startswith("#") for value in page.values("href"))
    assert "url(" not in render(sample())
    assert "@import" not in render(sample())


def test_contents_lead_to_sections_that_exist() -> None:
    page = Page(render(sample()))
    targets = [value.removeprefix("#") for value in page.values("href")]
    assert targets == ["summary", "classes-0", "gallery-0", "run"]
    assert set(targets) <= set(page.values("id"))


def test_measures_are_percent_and_missing_ones_an_en_dash() -> None:
    assert percent(0.4567) == "45.7"
    assert percent(0.0) == "0.0"
    assert percent(None) == percent(float("nan")) == "\N{EN DASH}"
    text = Page(render(sample())).text
    assert "45.7" in text
    assert "None" not in text
    assert "nan" not in text
    # Tile, val, its oracle, the cat's second IoU, missing picture, empty commit.
    assert text.count("\N{EN DASH}") == 6


def test_oracle_is_marked_as_using_masks() -> None:
    assert "oracle (uses masks)" in Page(render(sample())).text


def test_pictures_come_back_small_and_in_their_colours() -> None:
    report = sample()
    row = dataclasses.replace(report.galleries[0].rows[0], pictures=(picture(600, 800), picture(60, 80)))
    gallery = dataclasses.replace(report.galleries[0], rows=(row,))
    page = Page(render(dataclasses.replace(report, galleries=(gallery,))))
    decoded = []
    for source in page.values("src"):
        with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
            decoded.append(np.asarray(image))
    assert [image.shape for image in decoded] == [(192, 256, 3), (60, 80, 3)]
    np.testing.assert_allclose(decoded[1][30, 70].astype(int), (200, 30, 40), atol=6)
    np.testing.assert_allclose(decoded[1][30, 10].astype(int), 0, atol=6)


def test_bars_are_as_long_as_their_values() -> None:
    lengths = re.findall(r'<td class="bar" style="--v:([\d.]+)"', render(sample()))
    assert lengths == ["45.7", "0"]


def test_an_empty_report_is_a_valid_page() -> None:
    page = Page(render(Report("empty")))
    assert "empty" in page.text
    assert page.values("href") == []


def test_gallery_of_twenty_five_noisy_rows_stays_below_three_megabytes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    # Noise at the scale of ten pixels, grey: about as hard to compress as the photos of VOC (16 kB each).
    coarse = Image.fromarray(generator.integers(0, 256, (27, 36), dtype=np.uint8)).convert("RGB")
    photo = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
    rows = tuple(GalleryRow(str(index), (), (photo,) * 5) for index in range(25))
    path = tmp_path / "report.html"
    write_report(path, Report("large", galleries=(Gallery("photos", tuple("abcde"), rows),)))
    assert 1_500_000 < path.stat().st_size < 3_000_000
    assert list(tmp_path.iterdir()) == [path]


def test_written_page_is_utf8_and_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, sample())
    write_report(path, sample("Größe"))
    assert path.read_text(encoding="utf-8") == render(sample("Größe"))


def test_rows_that_do_not_fit_their_columns_are_refused() -> None:
    table = ClassTable("t", ("seed", "val"), (("cat", (0, 0, 0), (0.1,)),))
    with pytest.raises(ValueError, match="cat: 1 values for 2 columns"):
        render(Report("bad", tables=(table,)))
    gallery = Gallery("photos", ("photo",), (GalleryRow("id7", (), ()),))
    with pytest.raises(ValueError, match="id7: 0 pictures for 1 columns"):
        render(Report("bad", galleries=(gallery,)))
