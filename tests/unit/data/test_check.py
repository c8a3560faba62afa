"""The doctor: each fault is found, named once, and a sound data set raises no alarm."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data.check import check_dataset
from wsss.data.files import write_mask
from wsss.errors import UserError


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A sound data set in VOC layout: a, b train, c val, classes cat and dog."""
    mask = np.zeros((6, 8), np.uint8)
    mask[0], mask[1] = 1, 255
    for seed, identifier in enumerate("abc"):
        photo(tmp_path / f"JPEGImages/{identifier}.jpg", seed)
        write_mask(tmp_path / f"SegmentationClass/{identifier}.png", mask + 0)
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    (tmp_path / "ImageSets/Segmentation/trainval.txt").write_text("a\nb\nc\n")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("c\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "labels.csv").write_text("image,labels\na,cat\nb,cat\nc,cat\n")
    return tmp_path


def findings(root: Path, labels: str | None = None) -> set[tuple[str, str, str]]:
    report = check_dataset(root, None, labels)
    return {(problem.severity, problem.kind, problem.file.name) for problem in report.problems}


def test_sound_voc_data_raise_no_alarm(voc: Path) -> None:
    report = check_dataset(voc, None, None)
    assert report.problems == ()
    assert report.ok
    assert report.counts["images"] == report.counts["masks"] == report.counts["labelled"] == 3
    assert (report.counts["split train"], report.counts["split val"]) == (2, 1)
    assert "labels: cat 3" in str(report)
    assert str(report).endswith("0 errors, 0 warnings")


def test_sound_folder_data_raise_no_alarm(tmp_path: Path) -> None:
    photo(tmp_path / "images/x/a.png", 0)
    photo(tmp_path / "images/b.jpg", 1)
    (tmp_path / "labels.csv").write_text("image,labels\nx/a.png,cat\nb.jpg,dog\n")
    report = check_dataset(tmp_path, None, "xml")
    assert (report.problems, report.layout) == ((), "folder")
    assert report.per_class == {"cat": 1, "dog": 1}


def test_unreadable_photos_and_masks(voc: Path) -> None:
    path = voc / "JPEGImages/a.jpg"
    path.write_bytes(path.read_bytes()[:300])
    Image.new("RGB", (8, 6)).save(voc / "SegmentationClass/b.png")
    assert findings(voc) == {
        ("error", "unreadable photos", "a.jpg"),
        ("error", "unreadable masks", "b.png"),
    }


def test_masks_of_another_size_or_with_alien_values(voc: Path) -> None:
    write_mask(voc / "SegmentationClass/a.png", np.ones((8, 6), np.uint8))
    write_mask(voc / "SegmentationClass/b.png", np.full((6, 8), 2, np.uint8))
    text = str(check_dataset(voc, None, None))
    assert "a.png is 8x6, but its photo is 6x8" in text
    assert "b.png has the values 2: expected 0..1 and 255" in text
    assert ("warning", "labels that disagree with masks", "b.png") in findings(voc)


def test_mask_is_compared_with_the_upright_photo(voc: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(voc / "JPEGImages/a.jpg").save(voc / "JPEGImages/a.jpg", exif=exif)
    assert findings(voc) == {("error", "masks of the wrong size", "a.png")}
    write_mask(voc / "SegmentationClass/a.png", np.ones((8, 6), np.uint8))
    assert findings(voc) == set()


def test_masks_without_photo_and_two_files_of_one_id(voc: Path) -> None:
    write_mask(voc / "SegmentationClass/z.png", np.ones((6, 8), np.uint8))
    photo(voc / "JPEGImages/a.png", 9)
    assert findings(voc) == {
        ("warning", "masks without photo", "z.png"),
        ("error", "two files with one id", "a.png"),
    }


def test_all_unknown_labels_are_listed_and_not_only_the_first(voc: Path) -> None:
    (voc / "labels.csv").write_text("image,labels\na,catt\nb,cat;dgo\nc,cat\n")
    messages = [p.message for p in check_dataset(voc, None, None).problems if p.kind == "unknown labels"]
    assert len(messages) == 2
    assert 'labels.csv:2: unknown label "catt": did you mean "cat"' in messages[0]
    assert 'labels.csv:3: unknown label "dgo"' in messages[1]


def test_labels_that_disagree_with_masks_name_the_classes(voc: Path) -> None:
    (voc / "classes.txt").write_text("cat\ndog\n")
    (voc / "labels.csv").write_text("image,labels\na,dog\nb,cat\nc,cat\n")
    _, problem = check_dataset(voc, None, None).problems  # the first one: val has no dog
    assert problem.message == "a: only its labels have dog; only its mask has cat"


def test_missing_labels_photos_and_unused_classes(voc: Path) -> None:
    (voc / "classes.txt").write_text("cat\nelk\n")
    (voc / "labels.csv").write_text("image,labels\na,cat\nnone,cat\n")
    (voc / "ImageSets/Segmentation/val.txt").write_text("c\nlost\n")
    assert findings(voc) == {
        ("error", "labels without photo", "labels.csv"),
        ("error", "training images without labels", "train.txt"),
        ("error", "training images without labels", "trainval.txt"),
        ("error", "ids without photo", "val.txt"),
        ("warning", "classes without images", "labels.csv"),
    }


def test_overlapping_empty_and_escaping_split_lists(voc: Path) -> None:
    lists = voc / "ImageSets/Segmentation"
    (lists / "train_aug.txt").write_text("a\nc\n")
    (lists / "empty.txt").touch()
    (lists / "evil.txt").write_text("../../etc/passwd\n")
    assert findings(voc) == {
        ("error", "ids in two splits", voc.name),
        ("error", "split lists", "empty.txt"),
        ("error", "split lists", "evil.txt"),
    }
    assert "1 ids are in train_aug and in val (c)" in str(check_dataset(voc, None, None))


def test_equal_photos_are_an_error_across_splits_only(voc: Path) -> None:
    (voc / "JPEGImages/b.jpg").write_bytes((voc / "JPEGImages/a.jpg").read_bytes())
    assert findings(voc) == {("warning", "identical photos", "a.jpg")}
    (voc / "JPEGImages/c.jpg").write_bytes((voc / "JPEGImages/a.jpg").read_bytes())
    report = check_dataset(voc, None, None)
    assert "a = b = c: the same photo in train and val: remove one" in str(report)
    assert not report.ok


def test_annotations_are_preferred_and_broken_ones_reported(voc: Path) -> None:
    (voc / "Annotations").mkdir()
    for identifier in "abc":
        xml = "<annotation><object><name>cat</name></object></annotation>"
        (voc / f"Annotations/{identifier}.xml").write_text(xml)
    (voc / "labels.csv").write_text("broken")
    assert findings(voc) == set()
    (voc / "Annotations/b.xml").write_text("<annotation>")
    assert ("error", "annotations", "b.xml") in findings(voc)
    assert findings(voc, "labels.csv") == {("error", "labels", "labels.csv")}


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    kinds = {kind for _, kind, _ in findings(tmp_path)}
    assert {"no photos", "no labels"} <= kinds
    with pytest.raises(UserError, match="does not exist"):
        check_dataset(tmp_path / "none", None, None)


def test_report_shows_a_few_examples_and_counts_the_rest(voc: Path) -> None:
    (voc / "labels.csv").write_text("image,labels\n" + "".join(f"x{n},cat\n" for n in range(8)))
    text = str(check_dataset(voc, None, None))
    assert "error: labels without photo (8)" in text
    assert "labels.csv:6: no photo x4" in text
    assert "x5" not in text
    assert "… and 3 more" in text


def test_names_in_annotations_are_compared_with_the_class_list(voc: Path) -> None:
    (voc / "Annotations").mkdir()
    for identifier, name in zip("abc", ("cat", "Cat", "leaf"), strict=True):
        xml = f"<annotation><object><name>{name}</name></object></annotation>"
        (voc / f"Annotations/{identifier}.xml").write_text(xml)
    report = check_dataset(voc, None, None)
    assert ("error", "names that the class list lacks", "Annotations") in findings(voc)
    assert '"Cat" (1 photo, near "cat")' in str(report)
    (voc / "classes.txt").unlink()
    assert 'not among VOC\'s 20 classes: "Cat" (1 photo, near "cat"), "leaf" (1 photo)' in str(
        check_dataset(voc, None, None)
    )


def test_masks_of_0_and_255_and_labels_of_nothing_are_errors(voc: Path) -> None:
    for identifier in "abc":
        write_mask(voc / f"SegmentationClass/{identifier}.png", np.full((6, 8), 255, np.uint8))
    assert ("error", "masks of 0 and 255 only", "SegmentationClass") in findings(voc)
    (voc / "labels.csv").write_text("image,labels\na,\nb,\nc,\n")
    assert findings(voc) == {("error", "no labels at all", "labels.csv")}


def test_odd_photos_and_files_left_out_are_named(voc: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(voc / "JPEGImages/moving.gif", save_all=True, append_images=frames[1:])
    (voc / "JPEGImages/d.cr2").touch()
    assert findings(voc) == {
        ("warning", "files left out", "JPEGImages"),
        ("warning", "odd photos", "moving.gif"),
    }


def test_names_cannot_command_the_terminal(voc: Path) -> None:
    photo(voc / "JPEGImages/\x1b[2J\u202e.jpg", 0)
    text = str(check_dataset(voc, None, None))
    assert r"\x1b[2J\u202e = a" in text
    assert not {"\x1b", "\u202e"} & set(text)
