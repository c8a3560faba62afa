"""Class lists, ids and image labels from text, CSV and XML."""

from pathlib import Path

import pytest

from wsss.data.labels import VOC_CLASSES, annotation_files, check_classes, check_id, read_ids, xml_names
from wsss.data.names import read_classes
from wsss.data.tags import read_csv_classes, read_label_csv
from wsss.errors import UserError

CLASSES = ("cat", "dog", "person")


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_voc_classes_have_their_official_indices() -> None:
    assert len(VOC_CLASSES) == 20
    assert [VOC_CLASSES.index(name) + 1 for name in ("aeroplane", "person", "tvmonitor")] == [1, 15, 20]
    assert read_classes(None) == VOC_CLASSES


def test_class_list_ignores_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "classes.txt", b"\xef\xbb\xbfcat\r\n\r\n  traffic light \r\ndog\r\n")
    assert read_classes(path) == ("cat", "traffic light", "dog")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "names no classes"),
        (["cat", "cat"], 'the class "cat" twice'),
        (["Background", "cat"], "background is always index 0"),
        (["cat;dog"], "cannot be a class name"),
        ([f"c{number}" for number in range(255)], "at most 254"),
    ],
)
def test_invalid_class_list_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_classes(names, "classes.txt")


def test_254_classes_are_allowed() -> None:
    assert len(check_classes([f"c{number}" for number in range(254)], "x")) == 254


def test_text_that_is_not_utf8_or_missing_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"classes\.txt is not a UTF-8"):
        read_classes(write(tmp_path / "classes.txt", b"caf\xe9\n"))
    with pytest.raises(UserError, match=r"none\.txt does not exist"):
        read_classes(tmp_path / "none.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_classes(tmp_path)


@pytest.mark.parametrize("identifier", ["2007_000032", "a/b c/d.e", "...a", "Füße"])
def test_ordinary_ids_pass(identifier: str) -> None:
    assert check_id(identifier, "x") == identifier


@pytest.mark.parametrize(
    "identifier",
    [
        "",
        " ",
        "/etc/passwd",
        "../a",
        "a/../b",
        "a/..",
        "a//b",
        "a/",
        "./a",
        "a\\b",
        "a\0b",
        "a\nb",
        "C:/a",
        "x" * 201,
    ],
)
def test_ids_that_escape_their_folder_are_refused(identifier: str) -> None:
    with pytest.raises(UserError, match=r"list:3: .* cannot be an image id"):
        check_id(identifier, "list:3")


def test_nested_ids_are_refused_where_the_layout_is_flat(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sub-folders"):
        check_id("a/b", "x", nested=False)
    with pytest.raises(UserError, match=r"list\.txt:2.*no sub-folders"):
        read_ids(write(tmp_path / "list.txt", "a\nb/c\n"), nested=False)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("b\n\na.jpg\r\n", ("b", "a")),
        ("one  1\ntwo -1\nthree  0\n", ("one", "two", "three")),
        ("my photo 1\nmy photo 2\n", ("my photo 1", "my photo 2")),
        ("/JPEGImages/x_1.jpg /SegmentationClassAug/x_1.png\n", ("x_1",)),
        ("sub/shot.2.PNG", ("sub/shot.2",)),
    ],
)
def test_id_lists_in_every_spelling(tmp_path: Path, text: str, ids: tuple[str, ...]) -> None:
    assert read_ids(write(tmp_path / "list.txt", text)) == ids


def test_id_list_with_a_duplicate_names_both_lines(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'list\.txt: duplicate image "a" on lines 1 and 4'):
        read_ids(write(tmp_path / "list.txt", "a\nb\n\na.jpg\n"))


def test_empty_id_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lists no images"):
        read_ids(write(tmp_path / "list.txt", "\n \n"))


def test_tag_csv_gives_sorted_indices(tmp_path: Path) -> None:
    text = b'\xef\xbb\xbfImage, Labels\r\n\r\na.jpg, person ; cat;cat;\r\n"b, 2",dog\r\nc,\r\n'
    labels = read_label_csv(write(tmp_path / "labels.csv", text), CLASSES)
    assert labels == {"a": (1, 3), "b, 2": (2,), "c": ()}


def test_indices_are_sorted_whatever_the_order_of_the_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.csv", "image,labels\na,pottedplant;aeroplane;chair\n")
    assert read_label_csv(path, VOC_CLASSES) == {"a": (1, 9, 16)}


def test_excel_gives_each_label_a_cell_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.csv", "image;labels\na.jpg;cat;dog\nb;person\nc;\n")
    assert read_label_csv(path, CLASSES) == {"a": (1, 2), "b": (3,), "c": ()}


def test_one_hot_csv_follows_the_class_list_and_not_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.csv", "image,person,cat,dog\nx/a.png,1,0,1\nb,0,0,0\n")
    assert read_label_csv(path, CLASSES) == {"x/a": (2, 3), "b": ()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'is empty: expected the header "image,labels"'),
        ("a.jpg,cat\n", 'the first line is "a.jpg,cat": expected the header "image,labels"'),
        ("image\tlabels\na\tcat\n", "columns are separated by tabs, save it with commas"),
        ("image,cat,cat\n", 'repeated column "cat"'),
        ("image,labels\na,cat,dog\n", r'labels\.csv:2: 3 columns.*separate labels with ";"'),
        ("image,labels\na\n", r"labels\.csv:2: 1 columns"),
        ("image,cat\na,yes\n", r'labels\.csv:2: column "cat" is "yes": write 0 or 1'),
        ("image,labels\na,cat\n\na.png,dog\n", 'duplicate image "a" on lines 2 and 4'),
        ("image,labels\na,cat\nb,prson\n", r'labels\.csv:3: unknown label "prson": did you mean "person"'),
        ("image,labels\na,Cat\n", 'unknown label "Cat": did you mean "cat"'),
        (
            "image,labels\na,Cat\nb,cat;zzz\nc,Cat\n",
            r'csv:2: unknown label "Cat".*; all unknown labels: "Cat" \(2 photos, near "cat"\), "zzz" \(1 photo\)$',
        ),
        ("image,labels\na,zzz\n", r'unknown label "zzz": correct it or add it .*\(cat, dog, person\)$'),
        ("image,zebra\na,1\n", 'unknown label "zebra"'),
        ("image,labels\n../a,cat\n", r"labels\.csv:2: '../a' cannot be an image id"),
        ("image,labels\n,cat\n", "it is empty"),
        ('image,labels\n"a,cat\n', "not valid CSV"),
        ('image,labels\na,cat\nb,"dog\nc,cat\nd,cat\n', r"labels\.csv:3: not valid CSV.*close each of them"),
        ("image,labels,notes\na,cat,blurred\n", r'columns after "image" and "labels" \(notes\): remove them'),
    ],
)
def test_faulty_csv_is_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_label_csv(write(tmp_path / "labels.csv", text), CLASSES)


def test_class_list_from_a_csv_is_sorted(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.csv", "image,labels\na,dog;ant\nb,cat\n")
    assert read_csv_classes(path) == ("ant", "cat", "dog")
    with pytest.raises(UserError, match="names no classes"):
        read_csv_classes(write(tmp_path / "none.csv", "image,labels\na,\n"))


def annotation(*objects: str) -> str:
    return f"<annotation><filename>a.jpg</filename>{''.join(objects)}</annotation>"


def test_names_in_xml_include_difficult_objects_but_no_parts(tmp_path: Path) -> None:
    person = "<object><name>person</name><part><name>cat</name></part></object>"
    dog = "<object><name>dog</name><difficult>1</difficult></object>"
    write(tmp_path / "a.xml", annotation(person, dog, person, "<object><name> sofa </name></object>"))
    write(tmp_path / "e\u0301.XML", annotation())
    found = {name: xml_names(path) for name, path in annotation_files(tmp_path).items()}
    assert found == {"a": ("person", "dog", "sofa"), "é": ()}
    assert annotation_files(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "contains a DTD or entities"),
        ("<annotation><object>", "is not valid XML"),
        ("", "is not valid XML"),
        ("<html/>", "root <html>, expected a VOC <annotation>"),
    ],
)
def test_faulty_annotation_names_its_file(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "a.xml", text)
    with pytest.raises(UserError, match=rf"a\.xml.*{message}"):
        xml_names(tmp_path / "a.xml")
