"""Photos of one's own with a CSV of tags."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data.dataset import Dataset
from wsss.data.files import write_mask
from wsss.data.folder import hash_split, index_folder, load_folder
from wsss.errors import UserError


def folder(root: Path, csv: str, names: tuple[str, ...] = ("a.jpg", "b.PNG", "trip/c.webp")) -> Path:
    for name in names:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path)
    (root / "labels.csv").write_text("image,labels\n" + csv)
    return root


def splits(dataset: Dataset) -> tuple[list[str], list[str]]:
    return [record.id for record in dataset.train], [record.id for record in dataset.val]


def test_nested_photos_tags_and_masks_are_joined_by_relative_id(tmp_path: Path) -> None:
    root = folder(tmp_path, "a.jpg,dog;cat\nb,\ntrip/c.webp,cat\n")
    write_mask(root / "masks/trip/c.png", np.zeros((3, 4), np.uint8))
    (root / "val.txt").write_text("trip/c.webp\n")
    dataset = load_folder(root, "xml", None, None, "val")
    assert dataset.classes == ("cat", "dog")
    assert [(item.id, item.labels, item.mask) for item in dataset.train] == [
        ("a", (1, 2), None),
        ("b", (), None),
    ]
    (val,) = dataset.val
    assert (val.image, val.mask) == (root / "images/trip/c.webp", root / "masks/trip/c.png")


def test_photos_may_lie_in_the_root_beside_their_masks(tmp_path: Path) -> None:
    root = folder(tmp_path, "a,cat\nb,cat\n", ())
    for name in ("a.jpg", "b.jpg", "masks/a.png"):
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 3)).save(root / name)
    dataset = load_folder(root, "xml", None, None, None)
    masks = {item.id: item.mask for item in (*dataset.train, *dataset.val)}
    assert masks == {"a": root / "masks/a.png", "b": None}
    assert list(index_folder(root)) == ["a", "b"]  # a mask is no photo


def test_class_list_comes_from_the_argument_then_the_file_then_the_csv(tmp_path: Path) -> None:
    root = folder(tmp_path, "a,dog\nb,cat\n")
    assert load_folder(root, "xml", None, None, None).classes == ("cat", "dog")
    (root / "classes.txt").write_text("dog\ncat\n")
    assert load_folder(root, "xml", None, None, None).classes == ("dog", "cat")
    (root / "other.txt").write_text("dog\ncat\nelk\n")
    assert load_folder(root, "labels.csv", root / "other.txt", None, None).classes == ("dog", "cat", "elk")


def test_lists_of_either_split_leave_the_rest_to_the_other(tmp_path: Path) -> None:
    root = folder(tmp_path, "a,cat\nb,cat\ntrip/c,cat\n")
    (root / "one.txt").write_text("b\n")
    assert splits(load_folder(root, "xml", None, "one", None)) == (["b"], ["a", "trip/c"])
    assert splits(load_folder(root, "xml", None, None, str(root / "one.txt"))) == (["a", "trip/c"], ["b"])


def test_photos_without_a_row_are_not_used(tmp_path: Path) -> None:
    train, val = splits(load_folder(folder(tmp_path, "a,cat\nb,cat\n"), "xml", None, None, None))
    assert sorted(train + val) == ["a", "b"]


def test_hash_split_is_a_tenth_and_does_not_move_when_images_are_added() -> None:
    ids = [f"photo {number}" for number in range(2000)]
    train, val = hash_split(ids)
    assert 160 < len(val) < 240
    assert sorted(train + val) == sorted(ids)
    fewer = hash_split(ids[:1000])[1]
    assert set(fewer) == set(val) & set(ids[:1000])
    assert hash_split(ids[::-1])[1] == val[::-1]


def test_tiny_sets_keep_an_image_in_both_splits() -> None:
    for number in range(30):
        train, val = hash_split([f"{number}-a", f"{number}-b"])
        assert (len(train), len(val)) == (1, 1)
    assert hash_split(["a"]) == (("a",), ())


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("a,cat\nx,cat\n", r"labels\.csv: 1 of its ids has no image \(x\): add the photos or remove"),
        ("c.webp,cat\n", r'no image \(c\): write "trip/c"'),
        ("a,\n", "names no classes"),
    ],
)
def test_faulty_tags_are_explained(tmp_path: Path, csv: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_folder(folder(tmp_path, csv), "xml", None, None, None)


def test_two_photos_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'a\.jpg and .*a\.png have the same id "a"'):
        load_folder(folder(tmp_path, "a,cat\n", ("a.jpg", "a.png")), "xml", None, None, None)


def test_missing_parts_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_folder(tmp_path / "none", "xml", None, None, None)
    with pytest.raises(UserError, match=r"holds no photos .*put them into .*images"):
        load_folder(tmp_path, "xml", None, None, None)
    root = folder(tmp_path, "a,cat\nb,cat\n")
    with pytest.raises(UserError, match=r'"train" is not a list file.*null for a split'):
        load_folder(root, "xml", None, "train", None)
    with pytest.raises(UserError, match=r"tags\.csv does not exist: write a CSV"):
        load_folder(root, "tags.csv", None, None, None)
    (root / "labels.csv").unlink()
    with pytest.raises(
        UserError, match=r'labels\.csv does not exist: write a CSV with the header "image,labels"'
    ):
        load_folder(root, "xml", None, None, None)


def test_training_list_with_unlabelled_photos_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, "a,cat\n")
    (root / "train.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"has no labels for 1 of 2 training images \(b\)"):
        load_folder(root, "xml", None, "train", None)


def test_what_is_not_used_is_told(tmp_path: Path) -> None:
    root = folder(tmp_path, "a,cat\nb,cat\n")
    (root / "images/d").touch()
    for name in ("a", "x"):
        write_mask(root / f"masks/{name}.png", np.zeros((3, 4), np.uint8))
    assert [note.partition(" (")[0] for note in load_folder(root, "xml", None, None, None).notes] == [
        f"{root / 'masks'}: 1 of 2 masks have the name of no photo",
        f"{root / 'images'}: 1 file is left out: 1 without ending",
        f"1 of 3 photos are not used, because {root / 'labels.csv'} has no labels for them",
    ]
    (root / "list.txt").write_text("trip/c\n")
    notes = load_folder(root, "xml", None, None, str(root / "list.txt")).notes
    assert len(notes) == 2  # c needs no labels for val
