"""`wsss data import`: exports as the tools write them, and the folder that comes of them."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss.commands.data import IMPORTS
from wsss.data.folder import load_folder
from wsss.data.load import load_dataset
from wsss.data.tools import FORMATS
from wsss.errors import UserError

CAT, BOTH, NONE = ("cat",), ("cat", "dog"), ()


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, path.name))
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(path)


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four photos, one of them in a folder with a space."""
    for name in ("sea/7.jpg", "8.jpg", "my photos/9.jpg", "10.png"):
        photo(tmp_path / "src" / name)
    return tmp_path / "src"


@pytest.fixture
def imported(source: Path, tmp_path: Path, command: Any) -> Any:
    """Calls the command; gives id -> labels of the folder data set, and what was said."""

    def call(*words: object) -> tuple[dict[str, tuple[str, ...]], str]:
        target = tmp_path / "out"
        done = command("data", "import", source, target, *words)
        assert done.status == 0, done.err
        with (target / "labels.csv").open() as file:
            rows = {
                row["image"]: tuple(filter(None, row["labels"].split(";"))) for row in csv.DictReader(file)
            }
        for identifier in rows:
            (link,) = (target / "images").glob(f"{identifier}.*")
            assert link.read_bytes()
        return rows, done.out

    return call


EXPECTED = {"sea/7": BOTH, "8": NONE, "my photos/9": CAT}
"""10 is unknown."""


def choices(names: list[str], group: str = "tags") -> dict[str, Any]:
    return {"from_name": group, "to_name": "img", "type": "choices", "value": {"choices": names}}


def task(image: str, *annotations: list[Any], cancelled: bool = False) -> dict[str, Any]:
    given = [{"was_cancelled": cancelled, "result": results, "updated_at": f"2026-0{1 + number}"}
             for number, results in enumerate(annotations)]  # fmt: skip
    return {"id": 7, "data": {"image": image, "note": "x"}, "annotations": given}


def label_studio(root: Path) -> None:
    put(root / "export.json", [
        task("/data/upload/3/1a2b3c4d-7.jpg", [choices(["dog", "cat"])]),
        task("/data/local-files/?d=set%2F8.jpg", []),
        task("s3://bucket/my%20photos/9.jpg", [choices(["cat"]), {"type": "rectanglelabels", "value": {"x": 1}}]),
        task("10.png"),
    ])  # fmt: skip


def label_studio_min(root: Path) -> None:
    put(root / "min.json", [
        {"image": "/upload/1a2b3c4d-7.jpg", "annotation_id": 1, "annotator": 1, "tags": {"choices": ["cat", "dog"]}},
        {"image": "8.jpg", "annotation_id": 2, "annotator": 1},
        {"image": "my photos/9.jpg", "annotation_id": 3, "annotator": 1, "tags": "cat"},
        {"image": "10.png", "annotation_id": None, "annotator": None},
    ])  # fmt: skip


def label_studio_csv(root: Path) -> None:
    lines = ["image,tags,annotation_id,annotator,lead_time",
             'sea/7.jpg,"{""choices"":[""cat"",""dog""]}",1,1,2.5',
             "8.jpg,,2,1,1", "9.jpg,cat,3,1,1", "10.png,,,,"]  # fmt: skip
    put(root / "export.csv", "\n".join(lines))


def cvat(root: Path) -> None:
    put(root / "annotations.xml", """<annotations><meta><task><labels><label><name>cat</name></label>
      <label><name>dog</name></label></labels></task></meta>
      <image id="0" name="sea/7.jpg" width="16" height="12"><tag label="dog"/><tag label="cat"/></image>
      <image id="1" name="8.jpg" width="16" height="12"></image>
      <image id="2" name="my photos/9.jpg" width="16" height="12"><tag label="cat"/><box label="dog"/></image>
      </annotations>""")  # fmt: skip


def coco(root: Path) -> None:
    images = [
        {"id": n, "file_name": name} for n, name in enumerate(("sea/7.jpg", "8.jpg", "my photos/9.jpg"))
    ]
    pairs = [(0, 0), (0, 5), (0, 5), (2, 0)]
    annotations = [{"id": n, "image_id": image, "category_id": one} for n, (image, one) in enumerate(pairs)]
    categories = [{"id": 0, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 9, "name": "animals"}]
    put(root / "instances.json", {"images": images, "annotations": annotations, "categories": categories})


def yolo(root: Path) -> None:
    for path in [*root.rglob("*.jpg"), *root.glob("*.png")]:
        target = root / "images" / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    put(root / "data.yaml", "names: {0: cat, 1: dog}")
    put(root / "labels/sea/7.txt", "1 0.5 0.5 0.1 0.1\n0 0.1 0.1 0.2 0.2 0.3 0.3\n1 0 0 1 1\n")
    put(root / "labels/8.txt", "")
    put(root / "labels/my photos/9.txt", "0 0.5 0.5 0.1 0.1\n")


def hugging_face(root: Path) -> None:
    rows = [("sea/7.jpg", ["cat", "dog"]), ("8.jpg", []), ("my photos/9.jpg", ["cat"]), ("10.png", None)]
    put(
        root / "metadata.jsonl",
        "\n".join(json.dumps({"file_name": name, "labels": labels}) for name, labels in rows),
    )


def fiftyone(root: Path) -> None:
    put(root / "labels.json", {"classes": ["cat", "dog"],
        "labels": {"sea/7": [0, 1], "8": [], "my photos/9": {"label": "cat"}, "10": None}})  # fmt: skip


def labelme(root: Path) -> None:
    for folder, name, flags in (("sea", "7.jpg", {"cat": True, "dog": True}), (".", "8.jpg", {"cat": False}),
                                ("json", "..\\my photos\\9.jpg", {"cat": True}), (".", "10.png", {})):  # fmt: skip
        tree = {"flags": flags, "shapes": [], "imagePath": name, "imageData": None}
        put(root / folder / f"{Path(name.replace(chr(92), '/')).stem}.json", tree)


def vertex(root: Path) -> None:
    rows = [
        ("gs://b/sea/7.jpg", ["cat", "dog"], "training"),
        ("gs://b/my photos/9.jpg", ["cat"], "validation"),
    ]
    put(root / "data.jsonl", "\n".join(json.dumps({
        "imageGcsUri": uri, "classificationAnnotations": [{"displayName": name} for name in names],
        "dataItemResourceLabels": {"aiplatform.googleapis.com/ml_use": use}}) for uri, names, use in rows))  # fmt: skip


def sagemaker(root: Path) -> None:
    kind = "groundtruth/image-classification-multilabel"
    rows = [("s3://b/sea/7.jpg", [0, 3]), ("s3://b/8.jpg", []), ("s3://b/my photos/9.jpg", [0])]
    put(root / "out.manifest", "\n".join(json.dumps({"source-ref": uri, "t": indices,
        "t-metadata": {"class-map": {"0": "cat", "3": "dog"}, "type": kind}}) for uri, indices in rows))  # fmt: skip


def fastai(root: Path) -> None:
    put(root / "train.csv", "fname,labels,is_valid\nsea/7.jpg,dog cat,False\n8.jpg,,True\n9.jpg,cat,False\n")


WRITERS = {
    "labelstudio": (label_studio, ()),
    "labelstudio-min": (label_studio_min, ()),
    "labelstudio-min, CSV": (label_studio_csv, ()),
    "cvat": (cvat, ("--unlabelled", "none")),
    "coco": (coco, ()),
    "yolo": (yolo, ("--unlabelled", "unknown")),
    "huggingface": (hugging_face, ()),
    "fiftyone": (fiftyone, ()),
    "labelme": (labelme, ()),
    "sagemaker": (sagemaker, ()),
    "fastai": (fastai, ()),
}


def test_the_names_of_the_command_line_are_the_readers() -> None:
    assert (*FORMATS, "csv", "folders") == IMPORTS


@pytest.mark.parametrize("name", WRITERS)
def test_an_export_becomes_a_folder(name: str, source: Path, imported: Any, tmp_path: Path) -> None:
    write, words = WRITERS[name]
    write(source)
    rows, said = imported(*words)
    found = {identifier.removeprefix("images/"): tuple(sorted(labels)) for identifier, labels in rows.items()}
    assert found == EXPECTED
    assert FORMATS[name.partition(",")[0]].title in said
    assert "3 photos with known labels, 1 of them with none" in said
    assert "photos with each class: cat 2, dog 1" in said
    dataset = load_folder(tmp_path / "out", "xml", None, None, None)
    assert dataset.classes == ("cat", "dog")
    assert len(dataset.train) + len(dataset.val) == 3


def rows(text: str) -> Any:
    def write(root: Path) -> None:
        (root / "labels.csv").write_bytes(text.encode("cp1252"))

    return write


TABLES = {
    "one row a label": "image,label\nsea/7.jpg,dog\nsea/7.jpg,cat\n8.jpg,\n9.jpg,cat\n",
    "another header": "filename,labels\nsea/7.jpg,cat;dog\n8.jpg,\n9.jpg,cat\n",
    "no header": "sea/7.jpg,cat;dog\n8.jpg,\n9.jpg,cat\n",
    "commas in quotes": 'image,labels\nsea/7.jpg,"cat, dog"\n8.jpg,\n9.jpg,cat\nx/10.png,dog\n',
    "columns of TRUE": "image,cat,dog\nsea/7.jpg,TRUE,TRUE\n8.jpg,FALSE,FALSE\n9.jpg,TRUE,FALSE\n",
    "columns of numbers": "image;cat;dog\nsea/7.jpg;1.0;1.0\n8.jpg;0.0;0.0\n9.jpg;1.0;0.0\n",
    "tabs": "file\tcat\tdog\nsea/7.jpg\t1\t1\n8.jpg\t0\t0\nmy photos/9.jpg\t1\t0\n",
    "paths": "image,labels\nC:\\\\photos\\\\sea\\\\7.jpg,cat;dog\n./8.jpg,\nphotos/my photos/9.jpg,cat\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_every_kind_are_read(name: str, source: Path, imported: Any) -> None:
    if name == "commas in quotes":
        photo(source / "x" / "10.png")
        (source / "10.png").unlink()
    rows(TABLES[name])(source)
    found, said = imported()
    found.pop("x/10", None)
    assert found == EXPECTED
    assert "a table of photos and labels (labels.csv)" in said


def test_tables_that_may_mean_two_things_are_refused(
    source: Path, command: Any, tmp_path: Path, imported: Any
) -> None:
    def sentence() -> str:
        return str(command("data", "import", source, tmp_path / "x").sentence)

    rows("image,labels\nsea/7.jpg,cat dog\n8.jpg,dog\n9.jpg,cat\n")(source)
    assert 'say what separates labels, such as --label_separator " "' in sentence()
    assert imported("--label_separator", " ")[0]["sea/7"] == BOTH
    rows("image,cat,dog\nsea/7.jpg,0.7,1\n8.jpg,0,0\n")(source)
    assert "has the value 0.7 for a class: say from which on a label counts (--threshold)" in sentence()
    rows("image,cat,dog\nsea/7.jpg,maybe,1\n8.jpg,0,0\n")(source)
    assert 'has the value "maybe" for a class; 0 and 1 are expected' in sentence()
    (source / "other.csv").write_text("image,labels\n8.jpg,dog\n9.jpg,cat\n")
    assert "has 2 tables (labels.csv, other.csv): name one of them" in sentence()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "image,cat,dog\nsea/7.jpg,1\n8.jpg,0,1\n",
            "a row of 2 cells (sea/7.jpg, 1), but its header has 3",
        ),
        (
            "a.json",
            '{"images": [{"id": 1}], "annotations": [], "categories": []}',
            "is not COCO's JSON as wsss knows it (KeyError",
        ),
        (
            "a.json",
            '[{"annotation_id": 1, "annotator": 1, "image": "8.jpg", "b": [{"x": 1}]}]',
            "is not Label Studio's JSON_MIN",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "8.jpg", "labels": ["cat"]}\n{"labels": ["cat"]}',
            "is not Hugging Face's metadata",
        ),
        ("a.jsonl", '{"imageGcsUri": "8.jpg"}\n{', "a.jsonl:2 is no JSON"),
        ("a.csv", "fname,labels\n8.jpg\n", "names no classes"),
        (
            "a.csv",
            'image,labels\n8.jpg,"cat, dog"\n7.jpg,hen\n',
            "say what separates labels, such as --label_separator",
        ),
    ],
)
def test_what_a_tool_would_not_write_is_one_sentence(
    source: Path, command: Any, tmp_path: Path, name: str, content: str, message: str
) -> None:
    put(source / name, content)
    done = command("data", "import", source, tmp_path / "out")
    assert message in done.err
    assert (done.status, "Traceback" in done.err) == (1, False)


@pytest.mark.parametrize("place", ["data.yaml", "labels/8.txt"])
def test_a_class_that_is_no_number_is_one_sentence(
    source: Path, command: Any, tmp_path: Path, place: str
) -> None:
    yolo(source)
    put(source / place, "names: {.inf: cat, 1: dog}" if place == "data.yaml" else "inf 0.5 0.5 0.1 0.1\n")
    done = command("data", "import", source, tmp_path / "out", "--unlabelled", "none")
    assert "data.yaml is not a YOLO" in done.sentence
    assert "OverflowError" in done.sentence


def test_other_code_pages_and_other_files_beside_the_export(source: Path, imported: Any) -> None:
    (source / "labels.csv").write_bytes(
        "filename;Stra\xdfe;b\xe4r\nsea/7.jpg;1;1\n8.jpg;0;0\n".encode("cp1252")
    )
    (source / "._labels.csv").write_bytes(b"\x00\x05\x16")
    put(source / "Info.xml", '<!DOCTYPE plist><plist version="1.0"></plist>')
    put(source / "other.yaml", "a: [")
    assert imported()[0] == {"sea/7": ("Stra\xdfe", "b\xe4r"), "8": ()}


def test_names_that_look_like_another_class_list_are_kept(
    source: Path, imported: Any, tmp_path: Path
) -> None:
    put(
        source / "labels.json",
        {"classes": ["weather: sunny", "cat [young]"], "labels": {"sea/7": [0], "8": [1]}},
    )
    imported()
    assert load_folder(tmp_path / "out", "xml", None, None, None).classes == ("weather: sunny", "cat [young]")


def test_a_list_with_photos_of_unknown_labels_is_refused(source: Path, tmp_path: Path) -> None:
    hugging_face(source)
    (tmp_path / "list.txt").write_text("sea/7\n10\n")
    with pytest.raises(UserError, match="has no labels for 1 of 2 training images"):
        load_dataset("auto", source, "xml", None, str(tmp_path / "list.txt"), None)
    with pytest.raises(UserError, match="does not exist"):
        load_dataset("auto", source / "gone", "xml", None, None, None)


def test_cvats_imagenet_export_and_split_folders(
    source: Path, imported: Any, tmp_path: Path, command: Any
) -> None:
    put(source / "synsets.txt", "cat\ndog\n")
    put(source / "default.txt", "7 0 1\nmy photos/9 0\n8\n")
    assert imported()[0] == {"sea/7": BOTH, "my photos/9": CAT}
    for name in ("train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "val/dog/4.jpg"):
        photo(tmp_path / "folders" / name)
    done = command("data", "import", tmp_path / "folders", tmp_path / "out2")
    assert done.status == 0, done.err
    assert (tmp_path / "out2" / "val.txt").read_text() == "val/cat/3\nval/dog/4\n"


def test_labels_that_nobody_looked_at_are_unknown(source: Path, imported: Any) -> None:
    label_studio(source)
    assert (
        "left out: 1 photos of unknown labels, 0 that were skipped, 0 that it does not name" in imported()[1]
    )


def test_skipped_tasks_are_counted(source: Path, imported: Any) -> None:
    put(
        source / "e.json",
        [task("sea/7.jpg", [choices(["cat"])]), task("8.jpg", [choices(["dog"])], cancelled=True)],
    )
    rows, said = imported()
    assert rows == {"sea/7": CAT}
    assert "left out: 0 photos of unknown labels, 1 that were skipped, 2 that it does not name" in said


@pytest.mark.parametrize(("how", "expected"), [("union", ("cat", "dog")), ("newest", ("dog",))])
def test_people_who_disagree(
    source: Path, imported: Any, command: Any, tmp_path: Path, how: str, expected: Any
) -> None:
    put(source / "e.json", [task("sea/7.jpg", [choices(["cat"])], [choices(["dog"])])])
    sentence = command("data", "import", source, tmp_path / "x").sentence
    assert "people disagree about sea/7.jpg; say --annotators newest or --annotators union" in sentence
    assert imported("--annotators", how)[0] == {"sea/7": expected}


def test_roboflow_has_splits(tmp_path: Path, command: Any) -> None:
    for split, name in (("train", "7_jpg.rf.ab12.jpg"), ("valid", "8.jpg")):
        photo(tmp_path / "src" / split / name)
        put(
            tmp_path / "src" / split / "_classes.csv",
            f"filename, cat, dog\n{name}, 1, {int(split == 'train')}\n",
        )
    done = command("data", "import", tmp_path / "src", tmp_path / "out")
    assert done.status == 0, done.err
    assert "Roboflow" in done.out
    assert "--data.train train --data.val val" in done.out
    dataset = load_folder(tmp_path / "out", "xml", None, "train", "val")
    assert [(record.id, record.labels) for record in dataset.train] == [("train/7_jpg.rf.ab12", (1, 2))]
    assert [(record.id, record.labels) for record in dataset.val] == [("valid/8", (1,))]


def test_vertex_has_splits_and_no_negatives(source: Path, imported: Any, tmp_path: Path) -> None:
    vertex(source)
    rows, _ = imported()
    assert rows == {"sea/7": BOTH, "my photos/9": CAT}
    assert (tmp_path / "out" / "val.txt").read_text() == "my photos/9\n"


def test_class_folders_are_taken_where_nothing_else_fits(tmp_path: Path, command: Any) -> None:
    for name in ("cat/1.jpg", "dog/2.jpg", "_unlabeled/3.jpg"):
        photo(tmp_path / "src" / name)
    done = command("data", "import", tmp_path / "src", tmp_path / "out", "--copy")
    assert done.status == 0, done.err
    assert "every photo has one label: what else it shows is not known" in done.out
    assert (tmp_path / "out" / "labels.csv").read_text().splitlines()[1:] == ["cat/1,cat", "dog/2,dog"]
    assert not (tmp_path / "out" / "images" / "cat" / "1.jpg").is_symlink()


def test_open_images_need_a_word_about_what_is_not_listed(
    source: Path, imported: Any, command: Any, tmp_path: Path
) -> None:
    head = "ImageID,Source,LabelName,Confidence"
    put(source / "labels.csv", f"{head}\n7,verification,cat,1\n7,verification,dog,0\n8,machine,dog,0.7\n")
    assert "wsss has no partial labels" in command("data", "import", source, tmp_path / "x").sentence
    words = ("--unlabelled", "none")
    assert (
        "say from which on a label counts"
        in command("data", "import", source, tmp_path / "x", *words).sentence
    )
    assert imported(*words, "--threshold", 0.5)[0] == {"sea/7": CAT, "8": ("dog",)}


def test_what_is_not_clear_is_an_error(source: Path, command: Any, tmp_path: Path) -> None:
    def sentence(*words: object) -> str:
        return str(command("data", "import", source, tmp_path / "out", *words).sentence)

    assert "has no file of a format that wsss knows (cvat-imagenet," in sentence()
    cvat(source)
    assert "1 of 3 photos" in sentence()
    assert "say --unlabelled none" in sentence()
    coco(source)
    assert "files of several formats: annotations.xml (cvat), instances.json (coco); choose one" in sentence()
    (source / "annotations.xml").unlink()
    (source / "8.jpg").unlink()
    assert "1 of 3 photos are not in" in sentence()
    photo(source / "a/8.jpg")
    photo(source / "b/8.jpg")
    assert "8.jpg may be a/8 or b/8" in sentence()
    (source / "instances.json").unlink()
    put(source / "labels.json", {"classes": ["Cat", "cat"], "labels": {"sea/7": [0]}})
    assert "the labels Cat and cat, which differ by case only" in sentence()
    put(source / "labels.json", {"classes": ["cat"], "labels": {"sea/7": [0], "7": [0]}})
    assert "are the same photo" in sentence()
    put(source / "labels.json", {"classes": ["cat"], "labels": {"sea/7": [4]}})
    assert "has the class 4, but names 1 classes" in sentence()
    put(source / "labels.json", [task("sea/7.jpg", [choices(["cat"]), choices(["x"], "other")])])
    assert "several groups of tags (other, tags): choose one with --field" in sentence()
    put(source / "labels.json", {"labels": {"../../etc/passwd": ["x"]}})
    assert "photos are not in" in sentence()
    assert not (tmp_path / "out").exists()
    put(tmp_path / "out" / "mine.txt", "x")
    assert "out is not empty; give a new folder" in sentence()
    assert "does not exist" in command("data", "import", source / "gone", tmp_path / "o").sentence


@pytest.mark.parametrize("name", ["labelstudio", "coco", "huggingface", "sagemaker"])
def test_kind_auto_reads_an_export_where_it_is(name: str, source: Path) -> None:
    WRITERS[name][0](source)
    before = sorted(source.rglob("*"))
    dataset = load_dataset("auto", source, "xml", None, None, None)
    assert dataset.classes == ("cat", "dog")
    found = {record.id: tuple(dataset.classes[label - 1] for label in record.labels or ())
             for record in (*dataset.train, *dataset.val)}  # fmt: skip
    assert found == EXPECTED
    assert FORMATS[name].title in dataset.notes[0]
    assert sorted(source.rglob("*")) == before


def test_kind_auto_takes_the_splits_of_the_export_and_knows_the_usual_layouts(
    source: Path, shapes: Path
) -> None:
    vertex(source)
    dataset = load_dataset("auto", source, "xml", None, None, None)
    assert [record.id for record in dataset.train] == ["sea/7"]
    assert [record.id for record in dataset.val] == ["my photos/9"]
    (source / "labels.csv").write_text("image,labels\n8,cat\n10,dog\nsea/7,cat\n")
    assert {record.id for record in load_dataset("auto", source, "xml", None, None, None).train} < {
        "8",
        "10",
        "sea/7",
    }
    voc = load_dataset("auto", shapes, str(shapes / "labels.csv"), shapes / "classes.txt", None, None)
    assert voc == load_dataset("voc", shapes, str(shapes / "labels.csv"), shapes / "classes.txt", None, None)
