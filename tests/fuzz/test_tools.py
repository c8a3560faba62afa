"""Exports of labelling tools, whole and broken: a reader gives photos or a UserError, and nothing leaves the folder."""

import base64
import io
import json
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsss.commands.data import IMPORTS
from wsss.data.files import read_mask
from wsss.data.importing import import_tags, normal_reference
from wsss.data.mask_import import import_masks
from wsss.data.tools import FOLDERS, FORMATS, TABLE, Options, read
from wsss.errors import UserError
from wsss.export.masks import brush_rle, run_lengths

WORDS = (
    *(
        "image",
        "labels",
        "file_name",
        "filename",
        "fname",
        "annotation_id",
        "annotator",
        "ImageID",
        "LabelName",
        "Confidence",
    ),
    *(
        "data",
        "annotations",
        "result",
        "value",
        "choices",
        "type",
        "from_name",
        "was_cancelled",
        "images",
        "categories",
    ),
    *(
        "id",
        "name",
        "image_id",
        "category_id",
        "labels",
        "classes",
        "flags",
        "shapes",
        "imagePath",
        "imageGcsUri",
        "source-ref",
    ),
    *(
        "t",
        "t-metadata",
        "class-map",
        "groundtruth/image-classification-multilabel",
        "classificationAnnotations",
        "displayName",
    ),
    *(
        "a.jpg",
        "b.jpg",
        "../a.jpg",
        "/etc/a.jpg",
        "C:\\a.jpg",
        "s3://x/a.jpg",
        "/data/local-files/?d=a.jpg",
        "cat",
        "dog",
        "",
    ),
)
"""The keys of all formats, references and labels."""

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.sampled_from(WORDS), st.text(max_size=5)
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=6),
    max_leaves=30,
)
TABLES = st.lists(st.lists(st.sampled_from(WORDS) | st.text(max_size=6), min_size=1, max_size=5), max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tools")
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(root / name)
    return root


def each_reader(path: Path) -> None:
    for form in (*FORMATS.values(), TABLE, FOLDERS):
        for options in (Options(), Options("tags", "union", "none", 0.5, ";")):
            try:
                if form.fits(path):
                    assert all(isinstance(photo.reference, str) for photo in read(form, path, options).photos)
            except UserError:
                pass


@given(tree=TREES, whole=st.booleans())
def test_json_of_any_shape(folder: Path, tree: Any, whole: bool) -> None:
    path = folder / "export.json"
    text = json.dumps(tree)
    path.write_text(text if whole else text[: len(text) // 2])
    each_reader(path)
    path.unlink()


@given(rows=st.lists(TREES, max_size=4), name=st.sampled_from(["metadata.jsonl", "x.jsonl", "x.manifest"]))
def test_json_lines_of_any_shape(folder: Path, rows: list[Any], name: str) -> None:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)))
    each_reader(path)
    path.unlink()


@given(
    rows=TABLES,
    mark=st.sampled_from(",;\t"),
    name=st.sampled_from(["labels.csv", "_classes.csv", "metadata.csv"]),
)
def test_tables_of_any_shape(folder: Path, rows: list[list[str]], mark: str, name: str) -> None:
    path = folder / name
    path.write_bytes("\n".join(mark.join(row) for row in rows).encode("utf-8", errors="surrogatepass"))
    each_reader(path)
    path.unlink()


@given(
    content=st.binary(max_size=200),
    name=st.sampled_from(["a.json", "a.csv", "a.xml", "a.jsonl", "data.yaml", "synsets.txt"]),
)
def test_bytes_of_any_kind(folder: Path, content: bytes, name: str) -> None:
    (folder / "labels").mkdir(exist_ok=True)  # so that data.yaml may be YOLO's
    path = folder / name
    path.write_bytes(content)
    each_reader(path)
    path.unlink()


TAGS = st.lists(
    st.tuples(st.sampled_from(["tag", "box", "x"]), st.sampled_from(["cat", "dog", ""])), max_size=3
)


@given(images=st.lists(st.tuples(st.sampled_from(WORDS), TAGS), max_size=3), bare=st.booleans())
def test_cvat_of_any_shape(folder: Path, images: list[tuple[str, list[tuple[str, str]]]], bare: bool) -> None:
    lines = []
    for name, tags in images:
        inside = "".join(f"<{kind}{'' if bare else f' label={label!r}'}/>" for kind, label in tags)
        lines.append(f"<image {'' if bare else f'name={name!r}'}>{inside}</image>")
    path = folder / "annotations.xml"
    path.write_text(f"<annotations>{''.join(lines)}</annotations>")
    each_reader(path)
    path.unlink()


@given(
    reference=st.text(max_size=30)
    | st.lists(st.sampled_from(["..", ".", "a", "/", "\\", "C:", "%2e%2e"]), max_size=6).map("".join)
)
def test_no_reference_leaves_its_folder(reference: str) -> None:
    try:
        parts = normal_reference(reference).split("/")
    except ValueError:  # no URL
        return
    assert ".." not in parts
    assert parts == [""] or "" not in parts


@given(tree=TREES, kind=st.sampled_from(IMPORTS))
def test_the_whole_command_writes_nothing_outside(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, tree: Any, kind: str
) -> None:
    target = tmp_path_factory.mktemp("out") / "set"
    (folder / "export.json").write_text(json.dumps(tree))
    before = sorted(folder.rglob("*"))
    with suppress(UserError):
        import_tags(folder, target, kind, options=Options(unlabelled="none", annotators="union"))
    assert sorted(folder.rglob("*")) == before
    (folder / "export.json").unlink()


@given(data=st.data(), height=st.integers(1, 9), width=st.integers(1, 9))
def test_runs_of_any_mask(data: st.DataObject, height: int, width: int) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    part = np.array(bits).reshape(height, width)
    runs = run_lengths(part)
    assert sum(runs) == part.size
    assert [value for number, run in enumerate(runs) for value in [bool(number % 2)] * run] == bits
    assert len(brush_rle(part)) >= 7


KIND = "groundtruth/image-classification-multilabel"
CHOICES = {"from_name": "tags", "type": "choices", "value": {"choices": ["cat"]}}
VALID: dict[str, Any] = {
    "export.json": [
        {"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"was_cancelled": False, "result": [CHOICES]}]}
    ],
    "min.json": [
        {
            "image": "a.jpg",
            "annotation_id": 1,
            "annotator": 1,
            "tags": {"choices": ["cat"]},
            "updated_at": "2",
        }
    ],
    "coco.json": {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 2, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2}],
    },
    "labels.json": {"classes": ["cat", "dog"], "labels": {"a": [0, {"label": "dog"}], "b": None}},
    "a.json": {"flags": {"cat": True}, "shapes": [], "imagePath": "a.jpg"},
    "metadata.jsonl": {"file_name": "a.jpg", "labels": ["cat"]},
    "v.jsonl": {
        "imageGcsUri": "gs://x/a.jpg",
        "classificationAnnotations": [{"displayName": "cat"}],
        "dataItemResourceLabels": {"aiplatform.googleapis.com/ml_use": "test"},
    },
    "s.manifest": {
        "source-ref": "s3://x/a.jpg",
        "t": [0],
        "t-metadata": {"class-map": {"0": "cat"}, "type": KIND},
    },
}


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all parts of a tree."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(one for key, value in inside for one in places(value, (*path, key)))]


def replace_parts(tree: Any, data: st.DataObject, values: st.SearchStrategy[Any]) -> None:
    """Remove up to two parts of a JSON tree, or put something else there."""
    for _ in range(data.draw(st.integers(0, 2))):
        *above, last = data.draw(st.sampled_from([one for one in places(tree) if one] or [("nothing",)]))
        parent = tree
        for key in above:
            parent = parent[key]
        if last == "nothing":
            break
        if isinstance(parent, dict) and data.draw(st.booleans()):
            del parent[last]
        else:
            parent[last] = data.draw(values)


@pytest.mark.parametrize("name", VALID)
@given(data=st.data())
def test_exports_with_a_part_replaced(name: str, data: st.DataObject, folder: Path) -> None:
    tree = json.loads(json.dumps(VALID[name]))
    replace_parts(tree, data, TREES)
    (folder / name).write_text(json.dumps(tree))
    each_reader(folder / name)
    (folder / name).unlink()


def test_the_whole_examples_are_read(folder: Path) -> None:
    for name, tree in VALID.items():
        (folder / name).write_text(json.dumps(tree))
        fitting = [form for form in FORMATS.values() if form.fits(folder / name)]
        assert len(fitting) == 1, name
        assert "cat" in (fitting[0].read(folder / name, Options()).photos[0].labels or ()), name
        (folder / name).unlink()


# -- masks ------------------------------------------------------------------------------------------


def packed(mask: Any) -> str:
    content = io.BytesIO()
    Image.fromarray(mask).save(content, format="PNG")
    return base64.b64encode(content.getvalue()).decode()


PART = np.array([[1, 0], [0, 1], [1, 1]], bool)
WHOLE = np.pad(PART, ((0, 1), (1, 2)))
TRIANGLE = [[0.0, 0.0], [4.0, 0.0], [2.0, 3.0]]
DRAWN: dict[str, Any] = {
    "coco.json": {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 5}],
        "categories": [{"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 2, "segmentation": [[0, 0, 4, 0, 2, 3]], "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 2, "segmentation": {"size": [4, 5], "counts": [3, 9, 8]}},
        ],
    },
    "export.json": [
        {"data": {"image": "a.jpg"}, "annotations": [{"result": [
            {"id": "x", "type": "brushlabels", "original_height": 4, "original_width": 5, "image_rotation": 0,
             "value": {"rle": brush_rle(WHOLE), "brushlabels": ["cat"]}},
            {"id": "y", "type": "polygonlabels", "original_height": 4, "original_width": 5,
             "value": {"points": TRIANGLE, "polygonlabels": ["cat"]}},
        ]}]}
    ],
    "a.json": {
        "flags": {}, "imagePath": "a.jpg", "imageHeight": 4, "imageWidth": 5,
        "shapes": [
            {"label": "cat", "shape_type": "mask", "points": [[1, 0], [2, 2]], "mask": packed(PART)},
            {"label": "cat", "shape_type": "polygon", "points": TRIANGLE},
        ],
    },
}  # fmt: skip


def import_everything(folder: Path, target: Path) -> None:
    """Either the whole folder comes of it, or nothing."""
    before = sorted(folder.rglob("*"))
    own = Options(unlabelled="none", annotators="newest", crowds="objects")
    try:
        import_masks(folder, target, "auto", folder.parent / "classes.txt", folder, own)
        mask = read_mask(target / "a.png")
        assert mask.shape == (4, 5)
        assert set(np.unique(mask).tolist()) <= {0, 1, 2, 255}
    except UserError:
        assert not target.exists()
    assert sorted(folder.rglob("*")) == before
    assert not [path for path in target.parent.iterdir() if path.name.startswith(".")]
    shutil.rmtree(target, ignore_errors=True)


@pytest.fixture(scope="module")
def target(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (folder.parent / "classes.txt").write_text("cat\ndog\n")
    return tmp_path_factory.mktemp("masks") / "out"


@pytest.mark.parametrize("name", DRAWN)
@given(data=st.data())
def test_masks_with_a_part_replaced(name: str, data: st.DataObject, folder: Path, target: Path) -> None:
    tree = json.loads(json.dumps(DRAWN[name]))
    replace_parts(tree, data, TREES | st.integers(-(10**12), 10**12))
    (folder / name).write_text(json.dumps(tree))
    import_everything(folder, target)
    (folder / name).unlink()


@given(
    numbers=st.lists(st.integers(-2, 9) | st.sampled_from([10**6, 10**12]), min_size=4, max_size=9),
    points=st.lists(st.floats(-1e6, 1e6) | st.sampled_from([float("nan"), 1e300]), max_size=8),
    tag=st.sampled_from(["mask", "polygon", "box"]),
)
def test_cvats_masks_of_any_numbers(
    numbers: list[int], points: list[float], tag: str, folder: Path, target: Path
) -> None:
    left, top, width, height, *runs = numbers
    pairs = ";".join(f"{value},{value}" for value in points)
    shape = f'label="cat" rle="{", ".join(map(str, runs))}" left="{left}" top="{top}" width="{width}" height="{height}"'
    image = f'<image name="a.jpg" width="5" height="4"><{tag} {shape} points="{pairs}"/></image>'
    (folder / "annotations.xml").write_text(f"<annotations>{image}</annotations>")
    import_everything(folder, target)
    (folder / "annotations.xml").unlink()


@given(values=st.lists(st.floats() | st.integers(-1, 2), max_size=12), index=st.integers(-1, 3))
def test_yolos_rows_of_any_numbers(values: list[float], index: int, folder: Path, target: Path) -> None:
    root = folder / "set"
    for place in ("images", "labels"):
        (root / place).mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "a.jpg", root / "images" / "a.jpg")
    (root / "labels" / "a.txt").write_text(" ".join(map(str, [index, *values])))
    (root / "data.yaml").write_text("names: [cat, dog]")
    import_everything(root, target)
    shutil.rmtree(root)


@given(content=st.binary(max_size=300), at=st.integers(0, 600), size=st.integers(0, 40))
def test_damaged_zips(content: bytes, at: int, size: int, folder: Path, target: Path) -> None:
    """Bytes of a good one replaced."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("labelmap.txt", "background:0,0,0::\ncat:128,0,0::\n")
        image = io.BytesIO()
        Image.fromarray(np.stack([128 * WHOLE, 0 * WHOLE, 0 * WHOLE], 2).astype(np.uint8)).save(
            image, format="PNG"
        )
        archive.writestr("SegmentationClass/a.png", image.getvalue())
    good = stream.getvalue()
    (folder / "masks.zip").write_bytes(good[:at] + content[:size] + good[at + size :])
    import_everything(folder, target)
    (folder / "masks.zip").unlink()


def test_the_whole_masks_are_read(folder: Path, target: Path) -> None:
    for name, tree in DRAWN.items():
        (folder / name).write_text(json.dumps(tree))
        own = Options(annotators="newest")
        import_masks(folder, target, "auto", folder.parent / "classes.txt", folder, own)
        assert (read_mask(target / "a.png") == 1).any(), name
        shutil.rmtree(target)
        (folder / name).unlink()
