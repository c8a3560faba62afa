"""Boxes of VOC annotations, and the "difficult" subset of the pointing game."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data.boxes import Box, box_mask, difficult_classes, read_boxes
from wsss.data.voc import load_voc
from wsss.errors import UserError


def annotation(path: Path, *objects: str) -> Path:
    path.write_text(f"<annotation><size><width>8</width></size>{''.join(objects)}</annotation>")
    return path


def item(name: str, corners: tuple[object, ...], extra: str = "") -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{box}</bndbox></object>"


def test_boxes_become_zero_based_and_half_open(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>7</xmin></bndbox></part>"
    path = annotation(
        tmp_path / "a.xml",
        item("dog", (1, 2, 3, 2), part + "<difficult>1</difficult>"),
        item("unicorn", (1, 1, 1, 1)),
        item("cat", ("2.6", "1.2", "8", "6"), "<difficult>0</difficult>"),
    )
    assert read_boxes(path, ("cat", "dog")) == (Box(2, 0, 1, 3, 2, True), Box(1, 2, 0, 8, 6))


def test_one_pixel_and_the_whole_image_in_voc_convention(tmp_path: Path) -> None:
    path = annotation(tmp_path / "a.xml", item("cat", (3, 2, 3, 2)), item("dog", (1, 1, 5, 4)))
    boxes = read_boxes(path, ("cat", "dog"))
    assert np.argwhere(box_mask(boxes, 1, (4, 5))).tolist() == [[1, 2]]
    assert box_mask(boxes, 2, (4, 5)).all()


def test_box_mask_is_the_union_within_the_image() -> None:
    boxes = (Box(1, 0, 0, 2, 1), Box(1, 3, 2, 9, 9, difficult=True), Box(2, 0, 0, 5, 4))
    expected = np.zeros((4, 5), bool)
    for row in range(4):
        for column in range(5):
            expected[row, column] = any(
                box.cls == 1 and box.ymin <= row < box.ymax and box.xmin <= column < box.xmax for box in boxes
            )
    np.testing.assert_array_equal(box_mask(boxes, 1, (4, 5)), expected)
    assert not box_mask((), 1, (4, 5)).any()


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        ((0, 1, 2, 2), "expected 1 <= xmin"),
        ((3, 1, 2, 2), r"box \[3, 1, 2, 2\]"),
        ((1, "two", 2, 2), 'ymin "two"'),
        ((1, 1, "nan", 2), 'xmax "nan"'),
    ],
)
def test_an_impossible_box_is_refused_with_its_file(
    tmp_path: Path, corners: tuple[object, ...], message: str
) -> None:
    path = annotation(tmp_path / "a.xml", item("cat", corners))
    with pytest.raises(UserError, match=rf'a.xml: "cat" has the .*{message}'):
        read_boxes(path, ("cat",))


def test_an_object_without_box_and_xml_with_entities_are_refused(tmp_path: Path) -> None:
    path = annotation(tmp_path / "a.xml", "<object><name>cat</name></object>")
    with pytest.raises(UserError, match="expected a number in object/bndbox/xmin"):
        read_boxes(path, ("cat",))
    path.write_text('<!DOCTYPE a [<!ENTITY x "y">]><annotation/>')
    with pytest.raises(UserError, match="DTD or entities"):
        read_boxes(path, ("cat",))


def test_voc_2007_is_read_as_it_is_unpacked(tmp_path: Path) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    for identifier, name in (("000001", "dog"), ("000002", "train"), ("000005", "chair")):
        Image.new("RGB", (5, 4)).save(tmp_path / f"JPEGImages/{identifier}.jpg")
        annotation(tmp_path / f"Annotations/{identifier}.xml", item(name, (1, 1, 2, 4)))
    (tmp_path / "ImageSets/Main/trainval.txt").write_text("000005\n")
    (tmp_path / "ImageSets/Main/test.txt").write_text("000001\n000002\n")
    (tmp_path / "ImageSets/Segmentation/test.txt").write_text("000002\n")
    dataset = load_voc(tmp_path, "xml", None, None, "ImageSets/Main/test.txt")
    assert [record.id for record in dataset.train] == ["000005"]
    assert [(record.id, record.labels) for record in dataset.val] == [("000001", (12,)), ("000002", (19,))]
    boxes = read_boxes(tmp_path / "Annotations" / f"{dataset.val[0].id}.xml", dataset.classes)
    assert boxes == (Box(12, 0, 0, 2, 4),)
    # The segmentation task's list of the same name, 210 images of 4,952, comes first.
    assert [record.id for record in load_voc(tmp_path, "xml", None, None, "test").val] == ["000002"]


def test_difficult_needs_two_classes_and_less_than_a_quarter() -> None:
    small, quarter = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    small[0, :3], quarter[:2, :2] = True, True
    assert difficult_classes({3: small}) == frozenset()
    assert difficult_classes({}) == frozenset()
    assert difficult_classes({3: small, 7: quarter}) == {3}
    assert difficult_classes({3: small, 7: small}) == {3, 7}
