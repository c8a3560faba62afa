"""The procedural data set `shapes`: layout, determinism, resume, content."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from wsss.data import shapes
from wsss.data.agreement import indices
from wsss.data.check import check_dataset
from wsss.data.files import read_image, read_mask
from wsss.data.folder import load_folder
from wsss.data.labels import BACKGROUND, IGNORE, read_ids, xml_names
from wsss.data.names import read_classes
from wsss.data.shapes import SHAPES_CLASSES, Scene, draw_scene, write_shapes
from wsss.data.tags import read_label_csv
from wsss.errors import UserError


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "set"
    write_shapes(folder, train=6, val=3, size=64)
    return folder


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(0, "train", index, 96) for index in range(250)]


def _train_ids(root: Path) -> tuple[str, ...]:
    return read_ids(root / "ImageSets" / "Segmentation" / "train.txt")


def test_the_set_has_the_voc_layout_and_the_asked_counts(root: Path) -> None:
    val = read_ids(root / "ImageSets" / "Segmentation" / "val.txt")
    assert len(_train_ids(root)) == 6
    assert len(val) == 3
    assert not set(val) & set(_train_ids(root))
    for identifier in (*_train_ids(root), *val):
        assert read_image(root / "JPEGImages" / f"{identifier}.jpg").shape == (64, 64, 3)
        assert read_mask(root / "SegmentationClass" / f"{identifier}.png").shape == (64, 64)
        assert (root / "Annotations" / f"{identifier}.xml").is_file()


def test_class_file_names_at_least_six_classes_in_mask_order(root: Path) -> None:
    assert read_classes(root / "classes.txt") == SHAPES_CLASSES
    assert len(SHAPES_CLASSES) >= 6


def test_the_doctor_finds_no_error(root: Path) -> None:
    report = check_dataset(root, root / "classes.txt", "xml")
    assert [problem for problem in report.problems if problem.severity == "error"] == []


def test_labels_of_csv_xml_and_masks_agree(root: Path) -> None:
    from_csv = read_label_csv(root / "labels.csv", SHAPES_CLASSES)
    ids = _train_ids(root)
    names = {identifier: xml_names(root / "Annotations" / f"{identifier}.xml") for identifier in ids}
    from_xml = indices(names, SHAPES_CLASSES)
    for identifier in ids:
        mask = read_mask(root / "SegmentationClass" / f"{identifier}.png")
        in_mask = tuple(sorted(set(np.unique(mask).tolist()) - {BACKGROUND, IGNORE}))
        assert from_csv[identifier] == from_xml[identifier] == in_mask


def test_boxes_lie_in_the_photo_and_enclose_every_labelled_pixel(root: Path) -> None:
    for identifier in _train_ids(root):
        mask = read_mask(root / "SegmentationClass" / f"{identifier}.png")
        boxed = np.zeros(mask.shape, bool)
        for item in ElementTree.parse(root / "Annotations" / f"{identifier}.xml").iter("bndbox"):
            left, top, right, bottom = (int(item.findtext(k, "")) for k in ("xmin", "ymin", "xmax", "ymax"))
            assert 1 <= left <= right <= 64
            assert 1 <= top <= bottom <= 64
            boxed[top - 1 : bottom, left - 1 : right] = True
        assert boxed[(mask != BACKGROUND) & (mask != IGNORE)].all()


def test_written_mask_is_the_drawn_one(root: Path) -> None:
    mask = read_mask(root / "SegmentationClass" / "train_000004.png")
    assert np.array_equal(mask, draw_scene(0, "train", 4, 64).mask)


def test_photo_does_not_depend_on_how_many_are_asked_for(root: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "more", train=9, val=4, size=64)
    ours, more = _contents(root), _contents(tmp_path / "more")
    photos = [name for name in ours if name.endswith((".jpg", ".png", ".xml"))]
    assert len(photos) == 27
    assert all(ours[name] == more[name] for name in photos)


def test_another_seed_split_or_index_is_another_photo() -> None:
    image = draw_scene(0, "train", 0, 64).image
    for other in ((1, "train", 0), (0, "val", 0), (0, "train", 1)):
        assert not np.array_equal(image, draw_scene(*other, 64).image)


def test_finished_set_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("drew again")

    monkeypatch.setattr(shapes, "draw_scene", fail)
    write_shapes(root, train=6, val=3, size=64)


def test_interrupted_write_is_completed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seed: int, split: str, index: int, size: int) -> Scene:
        if index == 3:
            raise KeyboardInterrupt
        return draw_scene(seed, split, index, size)

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "draw_scene", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_shapes(tmp_path / "set", train=6, val=3, size=64)
    write_shapes(tmp_path / "set", train=6, val=3, size=64)
    assert _contents(tmp_path / "set") == _contents(root)


def test_other_parameters_on_an_existing_set_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"train 6 instead of 7.*delete"):
        write_shapes(root, train=7, val=3, size=64)


def test_folder_with_other_data_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="not empty and not a shapes data set"):
        write_shapes(tmp_path, train=1, val=1, size=64)
    assert _contents(tmp_path) == {"photo.jpg": b"mine"}


@pytest.mark.parametrize(("name", "value"), [("train", 0), ("val", 0), ("size", 16), ("seed", -1)])
def test_numbers_out_of_range_are_refused(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}"):
        write_shapes(tmp_path / "set", **{"train": 1, "val": 1, "size": 64, name: value})


def test_every_photo_has_an_object_and_every_label_has_pixels(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.labels
        assert set(np.unique(scene.mask).tolist()) - {BACKGROUND, IGNORE} == set(scene.labels)


def test_classes_are_balanced_and_photos_hold_several_objects(scenes: list[Scene]) -> None:
    counts = Counter(label for scene in scenes for label in scene.labels)
    assert sorted(counts) == list(range(1, len(SHAPES_CLASSES) + 1))
    assert min(counts.values()) > 0.08 * len(scenes)
    assert np.mean([len(scene.objects) for scene in scenes]) > 1.5


def test_object_sizes_span_at_least_one_to_five(scenes: list[Scene]) -> None:
    boxes = np.array([box for scene in scenes for _, box in scene.objects])
    side = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]) + 1
    assert np.percentile(side, 99) / np.percentile(side, 1) >= 5


def test_objects_hide_each_other(scenes: list[Scene]) -> None:
    def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
        return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

    hiding = [
        any(overlap(a, b) for i, (_, a) in enumerate(s.objects) for _, b in s.objects[:i]) for s in scenes
    ]
    assert np.mean(hiding) > 0.15


def test_boats_come_with_water(scenes: list[Scene]) -> None:
    boat = SHAPES_CLASSES.index("boat") + 1
    grounds = {True: [], False: []}  # type: dict[bool, list[float]]
    for scene in scenes:
        red, _, blue = scene.image[scene.mask == BACKGROUND].mean(0)
        grounds[boat in scene.labels].append(float(blue - red))
    assert np.median(grounds[True]) > np.median(grounds[False]) + 20


def test_folder_layout_is_what_somebody_with_tagged_photos_has(tmp_path: Path) -> None:
    write_shapes(tmp_path / "set", train=4, val=2, size=64, layout="folder")
    names = sorted(_contents(tmp_path / "set"))
    photos = [f"images/photo_000{index}.jpg" for index in range(4)]
    untagged = ["untagged/new_0000.jpg", "untagged/new_0001.jpg"]
    assert names == ["classes.txt", *photos, "labels.csv", "shapes.json", *untagged]
    dataset = load_folder(tmp_path / "set", "xml", None, None, None)
    assert len(dataset.train) + len(dataset.val) == 4
    for record in (*dataset.train, *dataset.val):
        scene = draw_scene(0, "train", int(record.id[-4:]), 64)
        assert record.labels == scene.labels


def test_folder_layout_has_masks_on_request_only(tmp_path: Path) -> None:
    write_shapes(tmp_path / "set", train=2, val=1, size=64, layout="folder", masks=True)
    dataset = load_folder(tmp_path / "set", "xml", None, None, None)
    for record in (*dataset.train, *dataset.val):
        assert record.mask is not None
        scene = draw_scene(0, "train", int(record.id[-4:]), 64)
        np.testing.assert_array_equal(read_mask(record.mask), scene.mask)


def test_a_set_of_the_other_layout_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"layout voc instead of folder.*delete"):
        write_shapes(root, train=6, val=3, size=64, layout="folder")
    write_shapes(tmp_path / "set", train=2, val=1, size=64, layout="folder")
    with pytest.raises(UserError, match=r"layout folder instead of voc.*delete"):
        write_shapes(tmp_path / "set", train=2, val=1, size=64)
