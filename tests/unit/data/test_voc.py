"""The devkit layout, on tiny devkits made here."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data.dataset import Record
from wsss.data.files import write_mask
from wsss.data.labels import VOC_CLASSES
from wsss.data.voc import load_voc
from wsss.errors import UserError

OBJECTS = {"a": ["cat"], "b": ["dog", "person"], "c": [], "d": ["sofa"]}
SPLITS = {"Segmentation/train": ["b"], "Segmentation/val": ["a"]}


def devkit(
    root: Path,
    objects: Mapping[str, Sequence[str]] = OBJECTS,
    splits: Mapping[str, Sequence[str]] = SPLITS,
) -> Path:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for identifier, names in objects.items():
        Image.new("RGB", (4, 3)).save(root / "JPEGImages" / f"{identifier}.jpg")
        body = "".join(f"<object><name>{name}</name></object>" for name in names)
        (root / "Annotations" / f"{identifier}.xml").write_text(f"<annotation>{body}</annotation>")
    for name, ids in splits.items():
        (root / "ImageSets" / f"{name}.txt").write_text("".join(f"{identifier}\n" for identifier in ids))
    write_mask(root / "SegmentationClass" / "a.png", np.zeros((3, 4), np.uint8))
    return root


def ids(records: Sequence[Record]) -> list[str]:
    return [record.id for record in records]


def test_devkit_with_xml_labels(tmp_path: Path) -> None:
    root = devkit(tmp_path)
    dataset = load_voc(root, "xml", None, "train", "val")
    assert dataset.classes == VOC_CLASSES
    assert dataset.train == (Record("b", root / "JPEGImages/b.jpg", (12, 15), None),)
    assert dataset.val == (Record("a", root / "JPEGImages/a.jpg", (8,), root / "SegmentationClass/a.png"),)


def test_class_list_that_is_a_part_of_voc_keeps_images_without_any_class(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("dog\ncat\n")
    dataset = load_voc(devkit(tmp_path / "voc"), "xml", tmp_path / "some.txt", None, "val")
    assert {record.id: record.labels for record in dataset.train} == {"b": (1,), "c": (), "d": ()}


def test_without_train_list_every_labelled_image_outside_val_is_taken(tmp_path: Path) -> None:
    root = devkit(tmp_path)
    (root / "Annotations/d.xml").unlink()
    assert ids(load_voc(root, "xml", None, None, "val").train) == ["b", "c"]


def test_without_train_list_trainval_keeps_test_and_action_photos_out(tmp_path: Path) -> None:
    splits = SPLITS | {"Main/trainval": ["a", "c"], "Segmentation/trainval": ["a", "b"]}
    assert ids(load_voc(devkit(tmp_path, splits=splits), "xml", None, None, "val").train) == ["b", "c"]


def test_list_files_and_main_splits_are_found(tmp_path: Path) -> None:
    root = devkit(tmp_path / "voc", splits=SPLITS | {"Main/cat_trainval": ["a  1", "d -1"]})
    (tmp_path / "train_aug.txt").write_text("/JPEGImages/d.jpg /SegmentationClassAug/d.png\n")
    (root / "mine.txt").write_text("c\n")
    assert ids(load_voc(root, "xml", None, str(tmp_path / "train_aug.txt"), "mine.txt").train) == ["d"]
    dataset = load_voc(root, "xml", None, "train", "cat_trainval")
    assert (ids(dataset.train), ids(dataset.val)) == (["b"], ["a", "d"])


def test_a_split_in_both_folders_is_that_of_segmentation(tmp_path: Path) -> None:
    splits = SPLITS | {"Main/train": ["a", "c"], "Main/val": ["d"]}
    dataset = load_voc(devkit(tmp_path, splits=splits), "xml", None, "train", "val")
    assert (ids(dataset.train), ids(dataset.val)) == (["b"], ["a"])


def test_val_null_means_the_val_split_or_nothing(tmp_path: Path) -> None:
    root = devkit(tmp_path)
    assert ids(load_voc(root, "xml", None, "train", None).val) == ["a"]
    (root / "ImageSets/Segmentation/val.txt").unlink()
    assert load_voc(root, "xml", None, "train", None).val == ()


def test_csv_labels_are_found_absolute_here_and_in_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = devkit(tmp_path / "voc")
    (root / "in_root.csv").write_text("image,labels\nb,cat\nc,\n")
    (tmp_path / "here.csv").write_text("image,labels\nb,dog\n")
    monkeypatch.chdir(tmp_path)
    found = [
        load_voc(root, labels, None, "train", "val").train[0].labels
        for labels in ("in_root.csv", "here.csv", str(tmp_path / "here.csv"))
    ]
    assert found == [(8,), (12,), (12,)]
    assert load_voc(root, "in_root.csv", None, "train", "val").val[0].labels is None
    assert ids(load_voc(root, "in_root.csv", None, None, "val").train) == ["b", "c"]


def test_training_images_without_labels_are_named(tmp_path: Path) -> None:
    root = devkit(tmp_path, splits=SPLITS | {"Segmentation/train": ["b", "c", "d"]})
    (root / "few.csv").write_text("image,labels\nc,cat\n")
    with pytest.raises(UserError, match=r"few\.csv has no labels for 2 of 3 training images \(b, d\)"):
        load_voc(root, "few.csv", None, "train", "val")
    (root / "Annotations/d.xml").unlink()
    with pytest.raises(UserError, match=r"Annotations has no labels for 1 of 3 training images \(d\)"):
        load_voc(root, "xml", None, "train", "val")


def test_listed_ids_without_photo_are_named_with_their_list(tmp_path: Path) -> None:
    root = devkit(tmp_path, splits=SPLITS | {"Segmentation/val": ["a", "x", "y"]})
    with pytest.raises(UserError, match=r"val\.txt: 2 of its ids have no image \(x, y\): add the photos"):
        load_voc(root, "xml", None, "train", "val")
    (root / "ImageSets/Segmentation/val.txt").write_text("a\n")
    (root / "l.csv").write_text("image,labels\nz,cat\n")
    with pytest.raises(UserError, match=r"l\.csv: 1 of its ids has no image \(z\)"):
        load_voc(root, "l.csv", None, None, "val")


def test_wrong_roots_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist: set --data\.root"):
        load_voc(tmp_path / "nowhere", "xml", None, "train", "val")
    with pytest.raises(UserError, match=r"has no photos in JPEGImages/.*that folder is empty"):
        load_voc(tmp_path, "xml", None, "train", "val")
    devkit(tmp_path / "VOCdevkit/VOC2012")
    for root in (tmp_path, tmp_path / "VOCdevkit"):
        with pytest.raises(UserError, match=r"set --data\.root .*VOCdevkit/VOC2012$"):
            load_voc(root, "xml", None, "train", "val")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file"):
        load_voc(tmp_path / "file", "xml", None, "train", "val")


def test_unknown_split_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r'"trian" is neither a split .*one of the splits there \(train, val\)'
    ):
        load_voc(devkit(tmp_path), "xml", None, "trian", "val")


def test_missing_annotations_point_to_the_csv(tmp_path: Path) -> None:
    root = devkit(tmp_path)
    for path in (root / "Annotations").iterdir():
        path.unlink()
    (root / "Annotations").rmdir()
    with pytest.raises(UserError, match=r"no Annotations folder.*set --data.labels to a CSV"):
        load_voc(root, "xml", None, "train", "val")
    (root / "labels.csv").write_text("image,labels\n")
    with pytest.raises(UserError, match=r"no Annotations folder.*set --data\.labels .*labels\.csv"):
        load_voc(root, "xml", None, "train", "val")
    with pytest.raises(UserError, match=r"tags\.csv does not exist \(nor in "):
        load_voc(root, "tags.csv", None, "train", "val")


def test_own_class_list_is_never_mistaken_for_vocs(tmp_path: Path) -> None:
    root = devkit(tmp_path)
    (root / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"classes\.txt lists classes other than VOC's 20"):
        load_voc(root, "xml", None, "train", "val")
    assert load_voc(root, "xml", root / "classes.txt", "train", "val").classes == ("cat", "dog")


def test_ids_with_folders_are_refused_in_the_flat_layout(tmp_path: Path) -> None:
    root = devkit(tmp_path, splits=SPLITS | {"Segmentation/train": ["../b"]})
    with pytest.raises(UserError, match=r"train\.txt:1: '\.\./b' cannot be an image id"):
        load_voc(root, "xml", None, "train", "val")
    (root / "deep.csv").write_text("image,labels\nb/c,cat\n")
    with pytest.raises(
        UserError, match=r"deep\.csv:2: 'b/c' cannot be an image id: this layout has no sub-folders"
    ):
        load_voc(root, "deep.csv", None, None, "val")


def test_names_in_xml_are_compared_with_the_class_list(tmp_path: Path) -> None:
    root = devkit(tmp_path / "voc", OBJECTS | {"c": ["leaf"]})
    with pytest.raises(
        UserError, match=r'not among VOC\'s 20 classes: "leaf" \(1 photo\).*set --data\.classes'
    ):
        load_voc(root, "xml", None, None, "val")
    (tmp_path / "some.txt").write_text("dog\ncat\n")
    (note,) = load_voc(root, "xml", tmp_path / "some.txt", None, "val").notes
    assert note.endswith('they are left out: "leaf" (1 photo), "person" (1 photo), "sofa" (1 photo)')
    (tmp_path / "some.txt").write_text("Dog\ncat\n")
    with pytest.raises(UserError, match=r'"dog" \(1 photo, near "Dog"\); write each name in one way'):
        load_voc(root, "xml", tmp_path / "some.txt", None, "val")


def test_what_is_not_used_is_told(tmp_path: Path) -> None:
    root = devkit(tmp_path)
    (root / "Annotations/d.xml").unlink()
    (root / "JPEGImages/e.psd").touch()
    write_mask(root / "SegmentationClass/A.png", np.zeros((3, 4), np.uint8))
    notes = load_voc(root, "xml", None, None, "val").notes
    assert [note.partition(" (")[0] for note in notes] == [
        f"{root / 'JPEGImages'}: 1 file is left out: 1 .psd",
        f"1 of 4 photos are not used, because {root / 'Annotations'} has no labels for them",
        f"{root / 'SegmentationClass'}: 1 of 2 masks have the name of no photo",
    ]
    assert len(load_voc(root, "xml", None, "train", "val").notes) == 2  # the user's list leaves d out
