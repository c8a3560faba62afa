"""COCO 2014, on tiny copies made here; masks against polygons and run lengths drawn by hand."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as codec

from wsss.data import coco
from wsss.data.coco import COCO_CLASSES, coco_mask, load_coco
from wsss.data.files import read_mask
from wsss.errors import UserError

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 17, "name": "cat"}, {"id": 90, "name": "toothbrush"}]
PERSON, CAT, TOOTHBRUSH = 1, 16, 80


def rectangle(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's plain run lengths: column by column, beginning with zeros."""
    flat = mask.T.flatten().tolist()
    counts, current = [0], False
    for value in flat:
        if value != current:
            counts.append(0)
            current = value
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def annotation(image: int, category: int, segmentation: Any, crowd: int = 0) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": crowd}


def write_split(
    root: Path, split: str, annotations: list[dict[str, Any]], names: tuple[str, ...] = ("a", "b", "c")
) -> Path:
    images = [
        {"id": number, "file_name": f"{split}_{name}.jpg", "height": 6, "width": 8}
        for number, name in enumerate(names, 1)
    ]
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 6)).save(root / split / f"{split}_{name}.jpg")
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    crowd = np.zeros((6, 8), bool)
    crowd[4:, :] = True
    write_split(
        tmp_path,
        "train2014",
        [
            annotation(1, 17, rectangle(0, 0, 2, 2)),
            annotation(1, 1, rectangle(0, 0, 5, 5)),
            annotation(1, 1, run_lengths(crowd), crowd=1),
            annotation(2, 90, rectangle(1, 1, 3, 3)),
        ],
    )
    write_split(tmp_path, "val2014", [annotation(1, 1, rectangle(0, 0, 8, 6))], ("v",))
    return tmp_path


def test_labels_are_the_annotated_categories(root: Path) -> None:
    dataset = load_coco(root, "xml", None, None, None)
    assert dataset.classes == COCO_CLASSES
    assert len(COCO_CLASSES) == 80
    labels = {record.id: record.labels for record in (*dataset.train, *dataset.val)}
    assert labels == {
        "train2014_a": (PERSON, CAT),
        "train2014_b": (TOOTHBRUSH,),
        "train2014_c": (),
        "val2014_v": (PERSON,),
    }
    assert [record.id for record in dataset.val] == ["val2014_v"]
    assert dataset.train[0].image == root / "train2014/train2014_a.jpg"


def test_masks_have_the_smaller_instance_on_top_and_crowds_ignored_below(root: Path) -> None:
    dataset = load_coco(root, "xml", None, None, None)
    assert dataset.train[0].mask == root / "SegmentationClass/train2014_a.png"
    expected = np.zeros((6, 8), np.uint8)
    expected[4:, :] = 255
    expected[:5, :5] = PERSON
    expected[:2, :2] = CAT
    np.testing.assert_array_equal(read_mask(dataset.train[0].mask), expected)
    empty = dataset.train[2].mask
    assert empty is not None
    assert not read_mask(empty).any()


def test_the_order_of_annotations_does_not_matter() -> None:
    small = {"class": 3, "segmentation": rectangle(0, 0, 2, 2), "iscrowd": 0}
    large = {"class": 5, "segmentation": rectangle(0, 0, 4, 4), "iscrowd": 0}
    first, second = (coco_mask(items, (6, 8), "x") for items in ([small, large], [large, small]))
    np.testing.assert_array_equal(first, second)
    assert (first == 3).sum() == 4


def test_all_spellings_of_a_region_agree() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = True
    compressed = codec.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": compressed["size"], "counts": compressed["counts"].decode()}
    for spelling in (rectangle(2, 1, 7, 4), run_lengths(mask), text):
        np.testing.assert_array_equal(coco.region(spelling, (6, 8), "x"), mask)
    two = rectangle(0, 0, 1, 1) + rectangle(7, 5, 8, 6)
    assert np.argwhere(coco.region(two, (6, 8), "x")).tolist() == [[0, 0], [5, 7]]
    assert not coco.region([], (6, 8), "x").any()


def test_the_annotations_are_read_once_and_again_when_they_change(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_coco(root, "xml", None, None, None)
    with monkeypatch.context() as patch:
        patch.setattr(coco, "read_json", lambda path: pytest.fail("parsed again"))
        assert load_coco(root, "xml", None, None, None) == first
    path = write_split(root, "val2014", [annotation(1, 17, rectangle(0, 0, 8, 6))], ("v",))
    later = (root / "labels_val2014.csv").stat().st_mtime + 5
    os.utime(path, (later, later))
    changed = load_coco(root, "xml", None, None, None).val[0]
    assert changed.labels == (CAT,)
    assert changed.mask is not None
    assert (read_mask(changed.mask) == CAT).all()


def test_an_interrupted_first_use_is_completed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    write = coco.write_mask

    def breaks_down(path: Path, mask: np.ndarray) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, mask)

    with monkeypatch.context() as patch:
        patch.setattr(coco, "write_mask", breaks_down)
        with pytest.raises(KeyboardInterrupt):
            load_coco(root, "xml", None, None, None)
    assert not (root / "labels_train2014.csv").exists()
    kept = [path.stat().st_mtime_ns for path in written]
    load_coco(root, "xml", None, None, None)
    assert [path.stat().st_mtime_ns for path in written] == kept
    assert len(list((root / "SegmentationClass").iterdir())) == 4


def test_splits_lists_and_a_csv_may_be_chosen(root: Path) -> None:
    dataset = load_coco(root, "xml", None, "val2014", None)
    assert [[r.id for r in part] for part in (dataset.train, dataset.val)] == [["val2014_v"], []]
    (root / "few.txt").write_text("train2014_b\n")
    (root / "mine.csv").write_text("image,labels\ntrain2014_b,cat\n")
    dataset = load_coco(root, "mine.csv", None, "few.txt", "val2014")
    assert [(r.id, r.labels) for r in (*dataset.train, *dataset.val)] == [
        ("train2014_b", (CAT,)),
        ("val2014_v", None),
    ]
    (root / "annotations/instances_val2014.json").unlink()
    assert load_coco(root, "xml", None, None, None).val == ()


def test_inconsistent_folders_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set data.classes to null"):
        load_coco(root, "xml", root / "classes.txt", None, None)
    with pytest.raises(UserError, match=r'"minival" is neither a split .* \(train2014, val2014\)'):
        load_coco(root, "xml", None, "minival", None)
    (root / "train2014/train2014_b.jpg").unlink()
    with pytest.raises(
        UserError, match=r"instances_train2014.json: 1 of its ids has no image \(train2014_b\)"
    ):
        load_coco(root, "xml", None, None, None)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 2, 2]], "three points"),
        ([[1, 1, 2, 2, 3, 1, 5]], "three points"),
        ([[1, 1, 2, 2, 3, 1e12]], "leaves the image"),
        ([[1, 1, 2, 2, 3, float("nan")]], "leaves the image"),
        ({"size": [8, 6], "counts": [48]}, r"size \[8, 6\]"),
        ({"size": [6, 8], "counts": [400]}, "add up"),
        ({"size": [6, 8], "counts": [96, -48]}, "add up"),
        ({"size": [6, 8], "counts": "ooooo1"}, "RLE"),
        ({"size": [6, 8]}, "counts"),
        (None, "cannot be read"),
        ([["x"] * 6], "cannot be read"),
    ],
)
def test_a_malformed_segmentation_is_refused_with_its_image(
    tmp_path: Path, segmentation: Any, message: str
) -> None:
    write_split(tmp_path, "train2014", [annotation(2, 17, segmentation)])
    with pytest.raises(UserError, match=rf"train2014.json: train2014_b has a segmentation .*{message}"):
        load_coco(tmp_path, "xml", None, None, None)


def test_malformed_files_are_refused(tmp_path: Path) -> None:
    path = write_split(tmp_path, "train2014", [annotation(2, 5, rectangle(0, 0, 1, 1))])
    with pytest.raises(UserError, match=r"not a COCO instances file \(KeyError: 5\)"):
        load_coco(tmp_path, "xml", None, None, None)
    content = json.loads(path.read_text()) | {"annotations": []}
    content["categories"].append({"id": 5, "name": "unicorn"})
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r'categories that COCO does not have: "unicorn" \(0 objects\)'):
        load_coco(tmp_path, "xml", None, None, None)
    content["categories"].pop()
    content["images"][0]["height"] = float("inf")
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"not a COCO instances file \(OverflowError"):
        load_coco(tmp_path, "xml", None, None, None)
    path.write_text("[]")
    with pytest.raises(UserError, match="not a COCO instances file"):
        load_coco(tmp_path, "xml", None, None, None)


@pytest.mark.parametrize(("height", "width"), [(0, 8), (6, -8), (10**6, 10**6)])
def test_an_impossible_size_is_refused(tmp_path: Path, height: int, width: int) -> None:
    path = write_split(tmp_path, "train2014", [])
    content = json.loads(path.read_text())
    content["images"][1] |= {"height": height, "width": width}
    path.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=rf"says that train2014_b.jpg has {width}x{height} pixels: correct it"
    ):
        load_coco(tmp_path, "xml", None, None, None)


@pytest.mark.parametrize("name", ["../evil.jpg", "/etc/evil.jpg", "sub/evil.jpg", ".."])
def test_ids_cannot_leave_their_folder(tmp_path: Path, name: str) -> None:
    path = write_split(tmp_path, "train2014", [])
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot be an image id"):
        load_coco(tmp_path, "xml", None, None, None)
    assert not (tmp_path / "SegmentationClass").exists()


def test_missing_pycocotools_is_explained(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.mask", None)
    with pytest.raises(UserError, match=r"pip install \"pycocotools>=2.0.8\""):
        load_coco(root, "xml", None, None, None)


def test_2017_is_understood_and_2014_comes_first(root: Path) -> None:
    write_split(root, "train2017", [annotation(1, 17, rectangle(0, 0, 2, 2))], ("d",))
    write_split(root, "val2017", [], ("w",))

    def ids(train: str | None, val: str | None) -> list[list[str]]:
        dataset = load_coco(root, "xml", None, train, val)
        return [[record.id for record in split] for split in (dataset.train, dataset.val)]

    assert ids(None, None)[1] == ["val2014_v"]
    assert ids("train2017", None) == [["train2017_d"], ["val2017_w"]]
    assert ids("train2017", "val2014") == [["train2017_d"], ["val2014_v"]]
    for split in ("train2014", "val2014"):
        (root / f"annotations/instances_{split}.json").unlink()
    assert ids(None, None) == [["train2017_d"], ["val2017_w"]]
    (root / "annotations/instances_train2017.json").unlink()
    with pytest.raises(UserError, match=r'"train2017" is neither a split with annotations in .* \(val2017\)'):
        load_coco(root, "xml", None, None, None)


@pytest.mark.parametrize("prefix", ["train2014/", "coco/images/train2014/", "../train2014/"])
def test_file_names_may_begin_with_the_splits_folder(tmp_path: Path, prefix: str) -> None:
    path = write_split(tmp_path, "train2014", [annotation(1, 17, rectangle(0, 0, 2, 2))], ("a",))
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = f"{prefix}train2014_a.jpg"
    path.write_text(json.dumps(content))
    (record,) = load_coco(tmp_path, "xml", None, None, None).train
    assert (record.id, record.labels) == ("train2014_a", (CAT,))
    assert [file.name for file in (tmp_path / "SegmentationClass").iterdir()] == ["train2014_a.png"]


def test_categories_of_others_are_listed_with_counts(tmp_path: Path) -> None:
    path = write_split(tmp_path, "train2014", [annotation(1, 5, [])] * 2)
    content = json.loads(path.read_text())
    content["categories"] += [{"id": 5, "name": "Cat"}, {"id": 6, "name": "unicorn"}]
    path.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r'"Cat" \(2 objects, near "cat"\), "unicorn" \(0 objects\); use data.kind voc'
    ):
        load_coco(tmp_path, "xml", None, None, None)
