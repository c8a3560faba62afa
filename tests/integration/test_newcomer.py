"""What goes wrong with a first folder of photos: `wsss data check` and `wsss run` both say it, and how to fix it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss.data.files import write_mask
from wsss.options import parse_config
from wsss.stages.prepare import prepare_dataset

Words = Callable[[Path], list[str]]


def write_csv(root: Path, text: str, encoding: str = "utf-8") -> None:
    (root / "labels.csv").write_bytes(text.encode(encoding))


def rows(template: str) -> str:
    """A line for each photo of ``folder``; ``{}`` is its name."""
    names = [f"beach/{index}" if index % 4 == 0 else f"{index}" for index in range(12)]
    return "".join(f"{template.format(name)}\n" for name in names)


def rename_csv(root: Path) -> None:
    (root / "labels.csv").rename(root / "tags.csv")


def add_photo(root: Path) -> None:
    with (root / "labels.csv").open("a") as stream:
        stream.write("99.jpg,red\n")


def repeat_photo(root: Path) -> None:
    with (root / "labels.csv").open("a") as stream:
        stream.write("3.jpg,blue\n")


def no_photos(root: Path) -> None:
    for path in (root / "images").rglob("*.jpg"):
        path.rename(path.with_suffix(".dng"))


def photos_of_a_phone(root: Path) -> None:
    for path in (root / "images").rglob("*.jpg"):
        path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
        path.rename(path.with_suffix(".HEIC"))


def write_true_mask(root: Path, name: str, size: tuple[int, int]) -> None:
    write_mask(root / "masks" / name, np.ones(size, np.uint8))


def rgb_mask(root: Path) -> None:
    write_true_mask(root, "1.png", (48, 56))
    Image.new("RGB", (56, 48)).save(root / "masks" / "1.png")


HEADER = r'expected the header "image,labels" \(labels separated by ";"\)'
MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no CSV": (lambda root: (root / "labels.csv").unlink(), r'labels\.csv.* with the header "image,labels"'),
    "CSV of another name": (rename_csv, r"labels\.csv.* tags\.csv"),
    "other columns": (
        lambda root: write_csv(root, "file,tags\n" + rows("{},red")),
        rf'labels\.csv: the first line is "file,tags": {HEADER}',
    ),
    "no header": (lambda root: write_csv(root, rows("{},red")), rf"labels\.csv: the first line .*{HEADER}"),
    "tabs": (
        lambda root: write_csv(root, "image\tlabels\n" + rows("{}\tred")),
        r"labels\.csv: .* separated by tabs, save it with commas",
    ),
    "commas between labels": (
        lambda root: write_csv(root, "image,labels\n" + rows("{},red,blue")),
        r'labels\.csv:2: 3 columns, but the header has 2: separate labels with ";"',
    ),
    "commas between labels in quotes": (
        lambda root: write_csv(root, "image,labels\n" + rows('{},"red,blue"')),
        r'labels\.csv has the label "red,blue": separate labels with ";"',
    ),
    "one class in two spellings": (
        lambda root: write_csv(root, "image,labels\n" + rows("{},red;Blue").replace("3,red", "3,Red")),
        r'labels\.csv has the labels "Red" and "red": write one of them everywhere',
    ),
    "class that is not in the list": (
        lambda root: (root / "classes.txt").write_text("Red\nblue\nsquare\n"),
        r'labels\.csv:3: unknown label "red": did you mean "Red"',
    ),
    "empty class list": (
        lambda root: (root / "classes.txt").write_text("\n"),
        r"classes\.txt names no classes: write one class name per line",
    ),
    "no label": (
        lambda root: write_csv(root, "image,labels\n" + rows("{},")),
        r"labels\.csv names no classes: write the labels of each photo in its line",
    ),
    "listed photo is missing": (add_photo, r"labels\.csv.*99.*: add .*remove the"),
    "listed with the folder's name": (
        lambda root: write_csv(root, "image,labels\n" + rows("images/{}.jpg,red")),
        r'labels\.csv.*images/1.*write "1"|labels\.csv.*images/beach/0.*write "beach/0"',
    ),
    "photo listed twice": (
        repeat_photo,
        r'labels\.csv: duplicate image "3" on lines 5 and 14: remove one',
    ),
    "other encoding": (
        lambda root: write_csv(root, "image,labels\n" + rows("{},café"), "latin-1"),
        r'labels\.csv is not a UTF-8 text file: save it as UTF-8 \(Excel: "CSV UTF-8"\)',
    ),
    "raw photos": (no_photos, r"images holds no photos \(jpg.*found there: .*1\.dng"),
    "photos of a phone": (
        photos_of_a_phone,
        r'\.HEIC (is a photo in HEIC, .*run pip install "wsss\[heic\]", or save it as JPEG|is not an image)',
    ),
    "mask of another size": (
        lambda root: write_true_mask(root, "1.png", (10, 12)),
        r"masks/1\.png (has 12x10 pixels but .*1\.jpg has 56x48|is 10x12, but its photo is 48x56)",
    ),
    "coloured mask": (rgb_mask, r'masks/1\.png is a mask of mode RGB.*data/README\.md, "RGB masks"'),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_before_anything_is_trained(
    folder: Path, folder_words: Words, tmp_path: Path, command: Any, mistake: str
) -> None:
    make, message = MISTAKES[mistake]
    make(folder)
    checked = command("data", "check", folder)
    assert checked.status == 1
    assert re.search(message, checked.out), checked.out
    sentence = command("run", *folder_words(folder), "--output", tmp_path / "r").sentence
    assert re.search(message, sentence), sentence
    assert not (tmp_path / "r").exists()


def test_masks_named_otherwise_than_the_photos_are_not_left_out_in_silence(
    folder: Path, folder_words: Words, tmp_path: Path, command: Any
) -> None:
    write_true_mask(folder, "1_mask.png", (48, 56))
    assert "1_mask.png has no photo of that name" in command("data", "check", folder).out
    sentence = command("run", *folder_words(folder), "--output", tmp_path / "r").sentence
    assert "no mask in" in sentence
    assert "has the name of a photo (1_mask.png is one of 1): name the masks after their photos" in sentence


def test_photos_without_a_line_are_counted_and_not_used(
    folder: Path, folder_words: Words, command: Any
) -> None:
    write_csv(folder, "image,labels\n" + "".join(rows("{},red").splitlines(keepends=True)[:10]))
    checked = command("data", "check", folder)
    assert checked.status == 0
    assert "labels.csv has no line for 2 of 12 photos (10, 11): they are not used" in checked.out
    dataset = prepare_dataset(parse_config("run", [str(word) for word in folder_words(folder)]))
    assert len(dataset.train) + len(dataset.val) == 10


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("image,labels\n" + rows("{},red;traffic light"), "utf-8"),
        ("Image, Labels\r\n" + rows("{}.jpg, red ; traffic light ").replace("\n", "\r\n"), "utf-8-sig"),
        ("image;labels\r\n" + rows('{};"red;traffic light"').replace("\n", "\r\n"), "utf-8-sig"),
        ("image;labels\n" + rows("{};red;traffic light"), "utf-8"),
        ("image,red,other,traffic light\n" + rows("{},1,0,1"), "utf-8"),
        ("image;red;other;traffic light\r\n" + rows("{};1;0;1").replace("\n", "\r\n"), "utf-8-sig"),
    ],
    ids=["plain", "BOM and CRLF", "Excel with semicolons", "a cell a label", "one-hot", "one-hot of Excel"],
)
def test_every_spelling_of_the_tags_gives_the_same_labels(
    folder: Path, folder_words: Words, command: Any, text: str, encoding: str
) -> None:
    write_csv(folder, text, encoding)
    checked = command("data", "check", folder)
    assert checked.status == 0, checked.out
    assert "labels: red 12, traffic light 12" in checked.out
    dataset = prepare_dataset(parse_config("run", [str(word) for word in folder_words(folder)]))
    assert dataset.classes == ("red", "traffic light")
    assert {record.labels for record in (*dataset.train, *dataset.val)} == {(1, 2)}
