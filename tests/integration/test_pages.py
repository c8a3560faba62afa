"""`wsss predict --overlay, --html`: what a person looks at, and that no file is forgotten."""

import csv
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image

from wsss.data.files import read_confidence, read_mask, write_mask
from wsss.data.palette import voc_palette

EVIL = "<img src=x onerror=alert(1)> & #1 %41"


class Page(HTMLParser):
    """The text of a page, the files that it names, and the names of its photos in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.files, self.tags = "", [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.folder = path.parent

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.files += [
            value for name, value in attrs if name in ("href", "src") and not value.startswith("#")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data

    def targets(self) -> list[Path]:
        assert all(name.startswith("./") for name in self.files)
        return [self.folder / unquote_to_bytes(name).decode() for name in self.files]


@pytest.fixture
def folder(shapes: Path, tmp_path: Path) -> Path:
    """Four photos, two of them with odd names; and what cannot be predicted."""
    names = ["a", "b", f"in/{EVIL}", "=cmd"]
    for name, photo in zip(names, sorted(shapes.glob("JPEGImages/*")), strict=False):
        target = tmp_path / "photos" / f"{name}{photo.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(photo.read_bytes())
    (tmp_path / "photos" / "cut.jpg").write_bytes(photo.read_bytes()[:300])
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    (tmp_path / "photos" / "in" / "film.mp4").write_text("no photo")
    return tmp_path / "photos"


@pytest.fixture
def predict(checkpoint: Path, folder: Path, command: Any) -> Any:
    def call(output: Path, *words: object) -> Any:
        return command(
            "predict", folder, "--checkpoint", checkpoint, "--output", output, "--accelerator", "cpu", *words
        )

    return call


def test_the_page_has_every_file_that_was_given(predict: Any, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "m"
    assert "cut.jpg is damaged" in predict(output, "--html", "--review").sentence
    page = Page(output / "predictions.html")
    assert "5 photos: 4 predicted, 1 not; 2 other files" in page.text
    for part in ("notes.txt", "film.mp4", "cut.jpg is damaged", EVIL, "=cmd"):
        assert part in page.text
    assert "script" not in page.tags
    assert page.tags.count("img") == 8  # none comes from a name
    assert len(page.targets()) == 12
    assert all(path.is_file() for path in page.targets())
    rows = list(csv.DictReader((output / "review.csv").open()))
    assert rows[0]["image"] == "cut"
    assert "is damaged" in rows[0]["problem"]
    assert {row["image"] for row in rows} == {"cut", "a", "b", f"in/{EVIL}", "'=cmd"}  # no formula
    links = [
        path.with_suffix("").relative_to(output).as_posix()
        for path in page.targets()
        if path.suffix == ".png"
    ]
    assert links == [row["image"].removeprefix("'") for row in rows[1:]]  # the same order
    shown = re.findall(r"(?<!Mean )confidence ([\d.]+) %", page.text)[: len(links)]
    expected = [100 * float(row["confidence"]) for row in rows[1:]]
    assert [float(value) for value in shown] == pytest.approx(expected, abs=0.06)
    assert not (output / "film.png").exists()


@pytest.mark.parametrize(("option", "name"), [("--html", "predictions.html"), ("--review", "review.csv")])
def test_a_list_of_the_users_is_not_replaced(predict: Any, tmp_path: Path, option: str, name: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / name).write_text("mine")
    assert f"{name} exists, and wsss predict did not write it" in predict(tmp_path / "m", option).sentence
    assert (tmp_path / "m" / name).read_text() == "mine"


def test_continued_it_is_the_same_page(predict: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "cut.jpg").unlink()
    output = tmp_path / "m"
    assert predict(output, "--html").status == 0
    before = (output / "predictions.html").read_text()
    (output / "a.png").unlink()
    (output / "predictions_files" / "b_mask.jpg").unlink()
    done = predict(output, "--html", "--skip_existing")
    assert done.out.startswith("2 photos predicted")
    assert "2 were there already" in done.out
    assert (output / "predictions.html").read_text() == before.replace(
        "skip_existing</th><td>False", "skip_existing</th><td>True"
    )


def test_masks_that_do_not_say_their_confidence_come_last(predict: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "cut.jpg").unlink()
    output = tmp_path / "m"
    assert predict(output).status == 0
    write_mask(output / "b.png", read_mask(output / "b.png"))  # as an older version wrote it
    assert predict(output, "--review", "--skip_existing").status == 0
    rows = list(csv.DictReader((output / "review.csv").open()))
    assert (rows[-1]["image"], rows[-1]["confidence"]) == ("b", "")
    assert all(row["confidence"] for row in rows[:-1])


def test_the_summary_has_the_mean_probability_of_each_class(
    predict: Any, folder: Path, tmp_path: Path, command: Any
) -> None:
    (folder / "cut.jpg").unlink()
    output = tmp_path / "m"
    assert predict(output, "--format", "csv", "--probabilities", "--unsure", 0.3).status == 0
    rows = [row for row in csv.DictReader((output / "csv.csv").open()) if row["class"]]
    assert rows
    for row in rows:
        name = row["image"].removeprefix("'").rpartition(".")[0]
        with np.load(output / f"{name}.npz") as stored:
            best = stored["probabilities"].astype(np.float32).max(0)
        inside = read_mask(output / f"{name}.png") == int(row["index"])
        assert float(row["mean_confidence"]) == pytest.approx(best[inside].mean(), abs=2e-3)
    for path in output.glob("*.png"):
        write_mask(tmp_path / "plain" / path.name, read_mask(path))
    words = [
        "--photos",
        folder,
        "--classes",
        tmp_path / "c.txt",
        "--format",
        "csv",
        "--output",
        tmp_path / "p.csv",
    ]
    (tmp_path / "c.txt").write_text("disc\nsquare\n")
    assert command("export", "masks", tmp_path / "plain", *words).status == 0
    assert {row["mean_confidence"] for row in csv.DictReader((tmp_path / "p.csv").open())} == {""}


def test_overlays_are_filled_or_contours_with_a_legend(predict: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "cut.jpg").unlink()
    pictures = {}
    for words in (["--overlay"], ["--overlay", "filled"], ["--overlay", "contour"], ["--overlay", "true"]):
        output = tmp_path / f"o{len(pictures)}"
        assert predict(output, *words).status == 0
        with Image.open(output / "a_overlay.jpg") as image:
            pictures[tuple(words)] = np.asarray(image.convert("RGB"))
    filled, contour = pictures["--overlay",], pictures["--overlay", "contour"]
    assert np.array_equal(filled, pictures["--overlay", "filled"])
    assert np.array_equal(filled, pictures["--overlay", "true"])
    height, width = read_mask(output / "a.png").shape
    assert filled.shape == contour.shape
    assert filled.shape[0] > height
    assert filled.shape[1] >= width
    assert not np.array_equal(filled[:height, :width], contour[:height, :width])
    present = set(np.unique(read_mask(output / "a.png")).tolist()) - {0, 255}
    legend = filled[height:].reshape(-1, 3).astype(int)
    assert present
    for index in present:  # JPEG changes colours a little
        assert np.abs(legend - voc_palette()[index].astype(int)).max(1).min() < 40
    assert not (tmp_path / "none" / "a_overlay.jpg").exists()
    refused = predict(tmp_path / "o0", "--overlay", "contour", "--skip_existing").sentence
    assert "were made with a different --overlay" in refused
    done = predict(tmp_path / "x", "--overlay=contours")
    assert done.status == 2
    assert "did you mean contour" in done.err


def test_the_report_of_a_run_lists_the_least_certain_photos(finished: Path) -> None:
    sure = {path.stem: read_confidence(path) for path in (finished / "predictions").glob("*.png")}
    page = (finished / "report.html").read_text()
    part = page[page.index("photos to look at first</h2>") :]
    values = {name: one.photo for name, one in sure.items() if one is not None}
    assert len(values) == len(sure) == 6
    expected = sorted(values, key=lambda name: (values[name], name))
    assert re.findall(r"<h3>(val_\S+) ", part) == expected
    for name in expected:
        assert f"confidence {100 * values[name]:.1f} %" in part
