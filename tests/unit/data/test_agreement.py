"""Class list, labels and masks that do not fit together; what is an error and what is only told."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data import agreement
from wsss.data.agreement import (
    Seen,
    alien_values,
    check_photos,
    compare_labels,
    compare_masks,
    compare_names,
    examine,
)
from wsss.data.dataset import Dataset, Record
from wsss.data.files import write_mask
from wsss.data.findings import Problem, settle
from wsss.data.labels import VOC_CLASSES
from wsss.errors import UserError

HERE = Path("root/Annotations")
CLASSES = ("cat", "dog", "helmet")


def found(problems: list[Problem]) -> list[tuple[str, str]]:
    return [(problem.severity, problem.kind) for problem in problems]


# -- names ------------------------------------------------------------------------------------------


def test_a_part_of_the_names_is_allowed_and_the_others_are_told() -> None:
    names = {"a": ("cat", "cow"), "b": ("cow",), "c": ()}
    (problem,) = compare_names(names, ("cat", "dog"), HERE, chosen=True)
    assert (problem.severity, problem.kind) == ("warning", "other names")
    assert problem.message.endswith('are left out: "cow" (2 photos)')
    assert compare_names({"a": ("cat", "dog")}, ("cat", "dog"), HERE, chosen=True) == []


@pytest.mark.parametrize(
    ("names", "classes", "chosen", "words"),
    [
        (
            ("Car", "leaf"),
            VOC_CLASSES,
            False,
            r'not among VOC\'s 20 classes: "Car" \(1 photo, near "car"\), "leaf"',
        ),
        (
            ("car", "leaf"),
            VOC_CLASSES,
            False,
            r"not among VOC\'s 20 .*write your class list.*set --data\.classes to it",
        ),
        (
            ("leaf", "stone"),
            CLASSES,
            True,
            r'none of the classes in data\.classes \(cat, dog, helmet\), but "leaf"',
        ),
        (
            ("cat", "dog", "Dog"),
            CLASSES,
            True,
            r'in another way than data\.classes: "Dog" \(1 photo, near "dog"\)',
        ),
        (("cat", "hot_dog"), ("cat", "Hot Dog"), True, r'"hot_dog" \(1 photo, near "Hot Dog"\)'),
        (
            ("cat", "helmets"),
            CLASSES,
            True,
            r'"helmets" \(1 photo, near "helmet"\); write each name in one way',
        ),
    ],
)
def test_names_of_which_none_or_a_misspelt_one_is_known_are_an_error(
    names: tuple[str, ...], classes: tuple[str, ...], chosen: bool, words: str
) -> None:
    with pytest.raises(UserError, match=rf"^root/Annotations .*{words}"):
        settle(compare_names({"a": names}, classes, HERE, chosen=chosen))


def test_a_similar_name_beside_a_class_that_has_photos_is_another_thing() -> None:
    problems = compare_names({"a": ("cat", "cart"), "b": ("dog",)}, ("cat", "dog"), HERE, chosen=True)
    assert found(problems) == [("warning", "other names")]


def test_the_class_list_beside_the_data_is_proposed(tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").touch()
    (problem,) = compare_names({"a": ("leaf",)}, VOC_CLASSES, tmp_path / "Annotations", chosen=False)
    assert problem.message.endswith(f"set --data.classes {tmp_path / 'labelmap.txt'}")


# -- labels -----------------------------------------------------------------------------------------


def test_photos_without_any_label_are_an_error() -> None:
    with pytest.raises(UserError, match=r"none of the 2 training photos has a label.*check data\.labels and"):
        settle(compare_labels([(), ()], [(1,)], CLASSES, HERE))


def test_classes_that_a_split_lacks_are_told() -> None:
    told = settle(compare_labels([(1,), (1, 2), ()], [(1,), None], CLASSES, HERE))
    assert [sentence.partition(":")[0] for sentence in told] == [
        "no training photo has the label helmet",
        "none of the 1 validation photos has the label dog",
    ]
    assert settle(compare_labels([(1, 2, 3), ()], [None], CLASSES, HERE)) == ()


def test_a_class_that_all_of_many_photos_have_is_told() -> None:
    (told,) = settle(compare_labels([(1,)] * 10, [], ("cat",), HERE))
    assert told.startswith("all 10 training photos have the label cat: add photos without it")
    assert settle(compare_labels([(1,)] * 9, [], ("cat",), HERE)) == ()


# -- masks ------------------------------------------------------------------------------------------


def seen(*masks: tuple[set[int], tuple[int, ...] | None]) -> list[Seen]:
    return [
        Seen(Path(f"masks/{n}.png"), frozenset(values), labels) for n, (values, labels) in enumerate(masks)
    ]


def test_masks_that_fit_raise_no_alarm() -> None:
    masks = seen(({0, 1, 255}, (1,)), ({0, 2}, (1, 2)), ({0}, ()), ({0, 3}, None), ({0, 255}, (2,)))
    assert alien_values(masks, CLASSES) == compare_masks(masks, CLASSES) == []


def test_indices_beyond_the_class_list_are_counted() -> None:
    with pytest.raises(
        UserError, match=r"masks/1.png holds the class index 9, but the class list has 3 names .* 1 of the 2"
    ):
        settle(alien_values(seen(({3}, None), ({4, 9, 255}, None)), CLASSES))


def test_masks_of_0_and_255_say_what_255_means() -> None:
    with pytest.raises(
        UserError, match=r'2 masks of masks .*only 0 and 255.*not counted, not a class: write 1 for "cat"'
    ):
        settle(compare_masks(seen(({0, 255}, (1,)), ({0}, None)), CLASSES))
    assert compare_masks(seen(({0, 255}, ()), ({0}, ())), CLASSES) == []  # as their labels say


def test_masks_of_background_only_are_told() -> None:
    (told,) = settle(compare_masks(seen(({0}, (1,))), CLASSES))
    assert "hold only background: no score" in told


def test_masks_in_another_order_than_the_class_list_are_an_error() -> None:
    swapped = seen(*[({0, 1}, (2,))] * 3, ({0, 2}, (1,)))
    with pytest.raises(
        UserError, match=r'index 1 .* is "cat" .* none of the 3 .*most often they are labelled "dog"'
    ):
        settle(compare_masks(swapped, CLASSES))
    assert compare_masks(swapped[1:], CLASSES) == []  # two photos may be slips
    assert compare_masks(seen(*[({0, 1}, ())] * 3), CLASSES) == []  # an empty label may be a missing one
    mixed = [*swapped, *seen(({0, 3}, (3,)))]
    assert found(compare_masks(mixed, CLASSES)) == [("warning", "masks of other classes than the labels")]


@pytest.mark.parametrize("many", [1, 0])
def test_every_photo_has_a_readable_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    monkeypatch.setattr(agreement, "MANY", many)  # 0: in two processes
    for name in "ab":
        Image.new("RGB", (4, 3)).save(tmp_path / f"{name}.png")
    one, two = (Record(name, tmp_path / f"{name}.png", (1,), None) for name in "ab")
    check_photos(Dataset(("cat",), (one,), (two,)), workers=2)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"b\.png is an empty file"):
        check_photos(Dataset(("cat",), (one,), (two,)), workers=2)


def test_a_data_set_is_examined_before_a_run(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (4, 3)).save(tmp_path / f"{name}.png")
    write_mask(tmp_path / "mask.png", np.full((3, 4), 255, np.uint8))
    train = (Record("a", tmp_path / "a.png", (1,), tmp_path / "mask.png"),)
    val = (Record("b", tmp_path / "b.png", (1,), None),)
    assert found(examine(Dataset(("cat",), train, val))) == [("error", "masks of 0 and 255 only")]
    assert examine(Dataset(("cat",), (), val, evaluation_only=True)) == []
    assert ("warning", "no validation images") in found(examine(Dataset(("cat",), train, ())))
