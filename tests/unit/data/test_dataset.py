"""Records, the dispatcher over layouts, and the checks that both layouts share."""

import re
from pathlib import Path

import pytest
from PIL import Image

from wsss.data.dataset import (
    Dataset,
    Record,
    check_images,
    check_trainable,
    left_out,
    strays,
    unlabelled,
    walk_images,
)
from wsss.data.load import check_layout, load_dataset
from wsss.data.shapes import write_shapes
from wsss.errors import UserError


def record(identifier: str) -> Record:
    return Record(identifier, Path(f"{identifier}.jpg"), (1,), None)


def touch_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path)


def voc_like(root: Path) -> Path:
    for identifier in ("a", "b"):
        touch_image(root / "JPEGImages" / f"{identifier}.jpg")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("a\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("b\n")
    (root / "classes.txt").write_text("disc\nstar\n")
    (root / "labels.csv").write_text("image,labels\na,star\nb,disc\n")
    return root


def test_class_names_start_with_background() -> None:
    assert Dataset(("cat", "dog"), (record("a"),), ()).class_names == ("background", "cat", "dog")


@pytest.mark.parametrize(
    ("classes", "train", "val", "message"),
    [
        (("cat",), (), ("a",), "no training image"),
        ((), ("a",), (), "names no classes"),
        (("cat", "cat"), ("a",), (), "twice"),
        (("background",), ("a",), (), "always index 0"),
        (tuple(f"c{n}" for n in range(255)), ("a",), (), "at most 254"),
        (("cat",), ("a", "b"), ("b",), r"1 image is both in train and in val \(b\)"),
    ],
)
def test_inconsistent_dataset_is_refused(
    classes: tuple[str, ...], train: tuple[str, ...], val: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Dataset(classes, tuple(map(record, train)), tuple(map(record, val)))


def test_shapes_takes_its_own_classes_and_csv(tmp_path: Path) -> None:
    dataset = load_dataset("shapes", voc_like(tmp_path), "xml", None, "train", "val")
    assert dataset.classes == ("disc", "star")
    assert [(item.id, item.labels) for item in (*dataset.train, *dataset.val)] == [("a", (2,)), ("b", (1,))]


def test_every_kind_reaches_its_loader_and_others_are_refused(tmp_path: Path) -> None:
    root = voc_like(tmp_path)
    voc = load_dataset("voc", root, "labels.csv", root / "classes.txt", "train", "val")
    assert voc == load_dataset("shapes", root, "xml", None, "train", "val")
    (root / "tags.csv").write_text("image,labels\nJPEGImages/a,star\n")
    with pytest.raises(UserError, match='"train" is not a list file'):
        load_dataset("folder", root, "tags.csv", None, "train", None)
    with pytest.raises(UserError, match=r"no annotations/instances_train2014.json"):
        load_dataset("coco", root, "xml", None, None, None)
    with pytest.raises(UserError, match="imagenet is for evaluation only"):
        load_dataset("imagenet", root, "xml", None, "train", None)
    with pytest.raises(
        UserError,
        match=r'data.kind is "ade20k", but must be one of shapes, voc, folder, coco, imagenet, auto$',
    ):
        load_dataset("ade20k", root, "xml", None, None, None)


def test_evaluation_only_sets_need_no_training_images_and_have_any_number_of_classes() -> None:
    classes = tuple(f"c{n}" for n in range(1000))
    dataset = Dataset(classes, (), (record("a"),), evaluation_only=True)
    with pytest.raises(UserError, match="no training images and no masks"):
        check_trainable(dataset)
    check_trainable(Dataset(("cat",), (record("a"),), ()))


def test_image_walk_skips_hidden_files_other_files_and_excluded_folders(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.webp", ".hidden.jpg", "notes.txt", "sub/c.png", "masks/a.png", ".cache/x.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    exclude = (tmp_path / "masks",)
    assert [name for name, _ in walk_images(tmp_path, nested=True, exclude=exclude)] == ["a", "b", "sub/c"]
    assert [name for name, _ in walk_images(tmp_path, nested=False)] == ["a", "b"]
    assert walk_images(tmp_path / "missing", nested=True) == []


def test_image_walk_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    for name in ("photos/a.jpg", "elsewhere/deep/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "photos" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "here").symlink_to(tmp_path)
    found = [name for name, _ in walk_images(tmp_path / "photos", nested=True)]
    assert found == ["a", "more/deep/b"]


def test_accents_agree_however_the_file_system_writes_them(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cafe\u0301.jpg").touch()  # as macOS unpacks it
    (tmp_path / "images" / "b.jpg").touch()
    (tmp_path / "labels.csv").write_text("image,labels\ncaf\u00e9.jpg,cup\nb.jpg,cup\n", encoding="utf-8")
    (tmp_path / "val.txt").write_text("caf\u00e9\n", encoding="utf-8")
    dataset = load_dataset("folder", tmp_path, "xml", None, None, str(tmp_path / "val.txt"))
    assert [(record.id, record.labels) for record in dataset.val] == [("caf\u00e9", (1,))]
    assert dataset.val[0].image.is_file()


# -- what is left out, and what is missing ----------------------------------------------------------


def test_files_that_are_no_photos_are_counted_and_named(tmp_path: Path) -> None:
    for name in (
        "a.JPG",
        "b.cr2",
        "c.CR2",
        "photo",
        "notes.txt",
        ".DS_Store",
        "sub/d.jpg",
        "sub/e.psd",
        "masks/x.svg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    masks = (tmp_path / "masks",)
    (text,) = left_out(tmp_path, nested=True, exclude=masks)
    assert text == (
        f"{tmp_path}: 4 files are left out: 2 .cr2 (b.cr2, c.CR2), 1 .psd (sub/e.psd), 1 without ending (photo); "
        "wsss reads jpg, png, webp, bmp, tif, gif, heic, avif"
    )
    assert "2 in sub-folders (sub/d.jpg, sub/e.psd)" in left_out(tmp_path, nested=False, exclude=masks)[0]
    (tmp_path / "fine").mkdir()
    assert left_out(tmp_path / "fine", nested=True) == ()


@pytest.mark.parametrize("suffix", ["jpg", "jpe", "jfif", "gif", "HEIC", "heif", "avif"])
def test_endings_of_photos_are_no_part_of_their_id(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"IMG_1.{suffix}").touch()
    assert [name for name, _ in walk_images(tmp_path, nested=True)] == ["IMG_1"]


@pytest.mark.parametrize(
    ("identifier", "fix"),
    [
        ("one", 'write "trip/one" (the photo is one.png)'),
        ("images/one", 'write "trip/one" (the photo is one.png)'),
        ("case", 'write "CASE" (the photo is CASE.JPG)'),
        ("trip/CASE", 'write "CASE" (the photo is CASE.JPG)'),
        ("IMG.dng", "IMG.dng is there, but wsss reads jpg, png"),
        ("two", "add the photos or remove the ids"),  # two/two and three/two
    ],
)
def test_the_fix_for_an_id_without_photo(tmp_path: Path, identifier: str, fix: str) -> None:
    for name in ("CASE.JPG", "trip/one.png", "two/two.jpg", "three/two.jpg", "IMG.dng"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images = dict(walk_images(tmp_path, nested=True))
    with pytest.raises(UserError, match=re.escape(fix)):
        check_images([identifier], images, "labels.csv")


def test_masks_of_no_photo_and_photos_without_labels_are_counted(tmp_path: Path) -> None:
    images = {name: tmp_path / name for name in "abc"}
    assert strays({"a": tmp_path / "a.png"}, images, tmp_path) == ()
    (text,) = strays({"a": tmp_path / "a.png", "A": tmp_path / "A.png"}, images, tmp_path)
    assert text == f"{tmp_path}: 1 of 2 masks have the name of no photo (A.png)"
    assert unlabelled(images, "abc", tmp_path) == ()
    (text,) = unlabelled(images, "b", tmp_path)
    assert text == f"2 of 3 photos are not used, because {tmp_path} has no labels for them (a, c)"


# -- layouts ----------------------------------------------------------------------------------------


def test_the_layout_is_compared_with_the_kind(tmp_path: Path) -> None:
    roots = {name: tmp_path / name for name in ("voc", "coco", "folder", "bare", "shapes", "drawn", "none")}
    voc_like(roots["voc"])
    touch_image(roots["folder"] / "images/a.png")
    touch_image(roots["bare"] / "a.png")
    (roots["coco"] / "annotations").mkdir(parents=True)
    (roots["coco"] / "annotations/instances_val2017.json").touch()
    for layout, root in (("voc", "shapes"), ("folder", "drawn")):
        write_shapes(roots[root], train=1, val=1, size=64, layout=layout)  # type: ignore[arg-type]
    right = {
        "voc": "voc",
        "coco": "coco",
        "folder": "folder",
        "bare": "folder",
        "shapes": "shapes",
        "drawn": "folder",
    }
    for name, kind in right.items():
        check_layout(kind, roots[name])
    check_layout("voc", roots["shapes"])  # a data set in VOC layout like others
    check_layout("folder", roots["voc"])  # it has a CSV
    check_layout("shapes", roots["none"])
    check_layout("imagenet", roots["bare"])
    for kind, name in (
        ("shapes", "folder"),
        ("shapes", "drawn"),
        ("shapes", "voc"),
        ("voc", "bare"),
        ("folder", "coco"),
    ):
        with pytest.raises(
            UserError, match=rf"{name} looks like .* data\.kind is {kind}: set --data\.kind {right[name]}$"
        ):
            check_layout(kind, roots[name])
