"""ImageNet's val, as class folders and as a list, on tiny copies made here."""

from pathlib import Path

import pytest
from PIL import Image

from wsss.data.imagenet import load_imagenet
from wsss.errors import UserError


def photos(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path, format="JPEG")
    return root


def test_few_wnid_folders_count_by_rank_and_keep_their_names(tmp_path: Path) -> None:
    root = photos(tmp_path, "n02/b.JPEG", "n01/a.JPEG", "n10/c.JPEG")
    dataset = load_imagenet(root, "xml", None, None, None)
    assert dataset.classes == ("n01", "n02", "n10")
    assert dataset.evaluation_only
    assert dataset.train == ()
    assert [(r.id, r.labels, r.mask) for r in dataset.val] == [
        ("n01/a", (1,), None),
        ("n02/b", (2,), None),
        ("n10/c", (3,), None),
    ]
    assert dataset.val[0].image == root / "n01/a.JPEG"


def test_the_thousand_wnids_have_torchvisions_names(tmp_path: Path) -> None:
    photo = photos(tmp_path, "n00000000/x.JPEG") / "n00000000/x.JPEG"
    for number in range(1, 1000):
        folder = tmp_path / f"n{number:08d}"
        folder.mkdir()
        (folder / f"{number}.JPEG").symlink_to(photo)
    dataset = load_imagenet(tmp_path, "xml", None, None, None)
    assert len(dataset.val) == len(dataset.classes) == 1000
    assert (dataset.classes[0], dataset.classes[999]) == ("tench", "toilet tissue")
    assert dataset.val[207].labels == (208,)


def test_numbered_folders_are_class_indices(tmp_path: Path) -> None:
    dataset = load_imagenet(photos(tmp_path, "007/a.JPEG", "999/b.JPEG"), "xml", None, None, None)
    assert [record.labels for record in dataset.val] == [(8,), (1000,)]
    assert dataset.classes[7] == "cock"
    with pytest.raises(UserError, match=r"has the folder 1000: class indices are 0..999"):
        load_imagenet(photos(tmp_path, "1000/a.JPEG"), "xml", None, None, None)


def test_an_order_file_gives_a_part_of_the_folders_its_indices(tmp_path: Path) -> None:
    root = photos(tmp_path / "val", "n03/a.JPEG")
    order = tmp_path / "order.txt"
    order.write_text("n01 tench, Tinca\nn02 goldfish\n\nn03 shark\n")
    dataset = load_imagenet(root, "xml", order, None, None)
    assert dataset.val[0].labels == (3,)
    assert dataset.classes == ("n01", "n02", "n03")
    order.write_text("n01\nn02\n")
    with pytest.raises(UserError, match=r"order.txt does not list the folder n03"):
        load_imagenet(root, "xml", order, None, None)
    order.write_text("n01\nn01\n")
    with pytest.raises(UserError, match="lists n01 twice"):
        load_imagenet(root, "xml", order, None, None)


def test_a_flat_folder_needs_a_list_of_indices(tmp_path: Path) -> None:
    root = photos(tmp_path, "v_1.JPEG", "v 2.JPEG", "v_3.JPEG")
    (root / "val.txt").write_text("v_1.JPEG 65\nv 2.JPEG 0\n")
    dataset = load_imagenet(root, "val.txt", None, None, None)
    assert [(r.id, r.labels) for r in dataset.val] == [("v_1", (66,)), ("v 2", (1,))]
    assert len(dataset.classes) == 1000
    with pytest.raises(UserError, match=r"images outside class folders \(v 2, v_1, v_3\)"):
        load_imagenet(root, "xml", None, None, None)


def test_val_may_be_a_part_of_the_images(tmp_path: Path) -> None:
    root = photos(tmp_path, "v_1.JPEG", "v_2.JPEG", "v_3.JPEG")
    (root / "val.txt").write_text("v_1.JPEG 65\nv_2.JPEG 0\n")
    (root / "few.txt").write_text("v_2\n")
    assert [r.id for r in load_imagenet(root, "val.txt", None, None, "few.txt").val] == ["v_2"]
    (root / "few.txt").write_text("v_3\n")
    with pytest.raises(UserError, match=r"no labels for 1 of 1 images \(v_3\).*data.val"):
        load_imagenet(root, "val.txt", None, None, "few.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v_1.JPEG\n", r"val.txt:1: 'v_1.JPEG': write `name index`"),
        ("v_1.JPEG 1000\n", "index 0..999"),
        ("v_1.JPEG -1\n", "index 0..999"),
        ("v_1.JPEG 1\nv_1 2\n", "val.txt:2: v_1 is listed twice"),
        ("../v_1.JPEG 1\n", "cannot be an image id"),
        ("v_9.JPEG 1\n", r"1 of its ids has no image \(v_9\)"),
        ("\n", "lists no images"),
    ],
)
def test_a_broken_list_is_refused(tmp_path: Path, text: str, message: str) -> None:
    root = photos(tmp_path, "v_1.JPEG")
    (root / "val.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        load_imagenet(root, "val.txt", None, None, None)


def test_more_folders_than_classes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsss.data.imagenet.CLASSES", 2)
    root = photos(tmp_path, "n01/a.JPEG", "n02/a.JPEG", "n03/a.JPEG")
    with pytest.raises(UserError, match="has 3 class folders: expected at most 2"):
        load_imagenet(root, "xml", None, None, None)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no images"):
        load_imagenet(tmp_path, "xml", None, None, None)
    root = photos(tmp_path, "n01/a.JPEG")
    with pytest.raises(UserError, match=r"set data.train to null"):
        load_imagenet(root, "xml", None, "train.txt", None)
    with pytest.raises(UserError, match=r"none.txt does not exist"):
        load_imagenet(root, "none.txt", None, None, None)
    with pytest.raises(UserError, match="one of them to its default"):
        load_imagenet(root, "val.txt", root / "x.txt", None, None)
