"""`wsss export masks`: every format is read back, and the masks are the same pixel for pixel."""

import base64
import csv
import io
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import yaml
from PIL import Image

from wsss.commands.export import NAMES
from wsss.data.files import write_mask
from wsss.export.masks import ENDINGS, FORMATS, brush_rle, outline_of, parts_of, run_lengths

CLASSES = ("cat", "dog & co", "hen")
Mask = npt.NDArray[np.uint8]


def masks() -> dict[str, Mask]:
    """Objects with holes, single pixels, lines, the border, undecided pixels, and nothing at all."""
    random = np.random.default_rng(0)
    ring = np.zeros((40, 60), np.uint8)
    ring[5:30, 5:30], ring[12:20, 12:20], ring[33:40, 50:60] = 1, 0, 1
    ring[2, 40:55], ring[35, 3] = 3, 2
    ring[0:3, 0:4] = 255
    noise = cv2.resize(
        random.integers(0, 4, (6, 9)).astype(np.uint8), (45, 30), interpolation=cv2.INTER_NEAREST
    )
    return {"sea/ring": ring, "noise": noise, "empty": np.zeros((20, 25), np.uint8)}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    random = np.random.default_rng(1)
    for name, mask in masks().items():
        write_mask(tmp_path / "masks" / f"{name}.png", mask)
        photo = tmp_path / "photos" / f"{name}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*mask.shape, 3), dtype=np.uint8)).save(photo)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return tmp_path


def given(folders: Path, photos: Path | None = None) -> list[object]:
    """What every export of these masks is told."""
    return [
        "masks",
        folders / "masks",
        "--photos",
        photos or folders / "photos",
        "--classes",
        folders / "classes.txt",
    ]


@pytest.fixture
def export(folders: Path, command: Any) -> Any:
    def call(kind: str, *more: object) -> tuple[Path, str]:
        output = folders / f"out{ENDINGS.get(kind, '')}"
        done = command("export", *given(folders), "--format", kind, "--output", output, *more)
        assert done.status == 0, done.err
        assert f"3 masks as {kind}" in done.out
        assert not list(folders.rglob("*.tmp"))
        return output, done.out

    return call


def decided(mask: Mask) -> Mask:
    return np.where(mask == 255, 0, mask).astype(np.uint8)


def test_the_names_of_the_command_line_are_the_formats() -> None:
    assert tuple(FORMATS) == NAMES


@pytest.mark.parametrize("objects", ["classes", "components"])
def test_coco_is_read_by_pycocotools(export: Any, objects: str) -> None:
    from pycocotools.coco import COCO

    output, said = export("coco", "--objects", objects, "--image_prefix", "set/")
    assert "12 pixels that were not decided (255) became background" in said
    coco = COCO(str(output))
    found = {image["file_name"]: image["id"] for image in coco.dataset["images"]}
    assert set(found) == {f"set/{name}.jpg" for name in masks()}
    assert {one["id"]: one["name"] for one in coco.dataset["categories"]} == dict(enumerate(CLASSES, 1))
    for name, mask in masks().items():
        drawn = np.zeros_like(mask)
        annotations = coco.imgToAnns[found[f"set/{name}.jpg"]]
        for one in annotations:
            part = coco.annToMask(one)
            assert one["area"] == part.sum()
            drawn[part > 0] = one["category_id"]
        assert np.array_equal(drawn, decided(mask))
        if objects == "classes":
            assert len(annotations) == len(set(np.unique(mask)) - {0, 255})
        else:
            assert all(
                cv2.connectedComponents(coco.annToMask(one), connectivity=8)[0] == 2 for one in annotations
            )


def test_png_keeps_all_values_in_grey(export: Any, folders: Path) -> None:
    output, said = export("png")
    assert "(255)" not in said
    tree = yaml.safe_load((output / "data.yaml").read_text())
    assert tree["names"] == dict(enumerate(("background", *CLASSES)))
    card = yaml.safe_load((output / "README.md").read_text().split("---")[1])["configs"][0]["data_files"]
    assert card == [{"split": "train", "path": ["metadata.jsonl", "images/train/**", "masks/train/**"]}]
    rows = [json.loads(line) for line in (output / "metadata.jsonl").read_text().splitlines()]
    for row, (name, mask) in zip(sorted(rows, key=str), sorted(masks().items(), key=str), strict=True):
        image = Image.open(output / row["mask_file_name"])
        assert image.mode == "L"
        assert np.array_equal(np.array(image), mask), name
        assert np.array_equal(cv2.imread(str(output / row["mask_file_name"]), cv2.IMREAD_GRAYSCALE), mask)
        assert (output / row["file_name"]).read_bytes() == (folders / "photos" / f"{name}.jpg").read_bytes()


@pytest.mark.parametrize("cut", [np.round, np.floor])
def test_yolo_draws_the_same_with_holes(export: Any, cut: Any) -> None:
    """In readers that round and in those that cut."""
    output, said = export("yolo")
    assert yaml.safe_load((output / "data.yaml").read_text())["names"] == dict(enumerate(CLASSES))
    for name, mask in masks().items():
        drawn, height, width = np.zeros_like(mask), *mask.shape
        for line in (output / "labels" / "train" / f"{name}.txt").read_text().splitlines():
            index, *values = line.split()
            points = np.array(values, float).reshape(-1, 2) * (width, height)
            assert len(points) >= 3
            part = cv2.fillPoly(np.zeros_like(mask), [cut(points).astype(np.int32)], 1)
            drawn[part > 0] = int(index) + 1
        assert np.array_equal(drawn, decided(mask))
        assert (output / "images" / "train" / f"{name}.jpg").is_file()
    assert "polygons" not in said


def test_outlines_go_around_any_number_of_holes() -> None:
    """Filled by OpenCV they are the component; their lines never leave it."""
    random = np.random.default_rng(3)
    for _ in range(20):
        rough = cv2.resize(random.random((7, 9)), (90, 70), interpolation=cv2.INTER_CUBIC)
        whole = (rough > 0.35) & (random.random(rough.shape) > 0.03)
        for part in parts_of(whole):
            outline = outline_of(part)
            lines = cv2.polylines(np.zeros(part.shape, np.uint8), [outline], True, 1)
            assert not (lines.astype(bool) & ~part).any()
            filled = cv2.fillPoly(np.zeros(part.shape, np.uint8), [outline], 1)
            assert np.array_equal(filled.astype(bool), part)


def test_cvat_has_every_component_as_runs(export: Any) -> None:
    output, _ = export("cvat")
    root = ElementTree.parse(output).getroot()
    assert [label.findtext("name") for label in root.iter("label")] == list(CLASSES)
    images = {image.attrib["name"]: image for image in root.iter("image")}
    for name, mask in masks().items():
        image = images[f"{name}.jpg"]
        assert (int(image.attrib["height"]), int(image.attrib["width"])) == mask.shape
        drawn = np.zeros_like(mask)
        for one in image.iter("mask"):
            left, top, width, height = (int(one.attrib[key]) for key in ("left", "top", "width", "height"))
            bits, value = [], 0
            for run in one.attrib["rle"].split(", "):
                bits += [value] * int(run)
                value = 1 - value
            part = np.array(bits, bool).reshape(height, width)
            assert all(side.any() for side in (part[0], part[-1], part[:, 0], part[:, -1]))
            drawn[top : top + height, left : left + width][part] = CLASSES.index(one.attrib["label"]) + 1
        assert np.array_equal(drawn, decided(mask))


def test_cvat_masks_are_a_zip_of_colours(export: Any, folders: Path) -> None:
    output, _ = export("cvat-mask")
    with zipfile.ZipFile(output) as archive:
        lines = archive.read("labelmap.txt").decode().splitlines()[1:]
        colours = {tuple(map(int, line.split(":")[1].split(","))): line.split(":")[0] for line in lines}
        assert list(colours.values()) == ["background", *CLASSES]
        assert archive.read("ImageSets/Segmentation/default.txt").decode().split() == sorted(masks())
        for name, mask in masks().items():
            pixels = np.array(Image.open(io.BytesIO(archive.read(f"SegmentationClass/{name}.png"))))
            drawn = np.zeros_like(mask)
            for index, colour in enumerate(colours):
                drawn[(pixels == colour).all(2)] = index
            assert np.array_equal(drawn, decided(mask))
            objects = np.array(Image.open(io.BytesIO(archive.read(f"SegmentationObject/{name}.png"))))
            assert np.array_equal(objects.any(2), drawn > 0)


def decode_brush(values: list[int], height: int, width: int) -> Mask:
    """Label Studio's bytes, read bit by bit."""
    bits = "".join(f"{value:08b}" for value in values)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < total:
        repeated, length = take(1), None
        length = take(sizes[take(2)]) + 1
        out += [take(word)] * length if repeated else [take(word) for _ in range(length)]
    return np.array(out, np.uint8).reshape(height, width, 4)[..., 3]


def test_label_studio_reads_the_runs(export: Any) -> None:
    output, _ = export("labelstudio", "--image_prefix", "/data/local-files/?d=set/")
    tasks = {
        task["data"]["image"]: task["predictions"][0]["result"] for task in json.loads(output.read_text())
    }
    config = ElementTree.parse(output.with_suffix(".config.xml")).getroot()
    assert [label.attrib["value"] for label in config.iter("Label")] == list(CLASSES)
    for name, mask in masks().items():
        drawn = np.zeros_like(mask)
        for one in tasks[f"/data/local-files/?d=set/{name}.jpg"]:
            assert (one["original_height"], one["original_width"]) == mask.shape
            alpha = decode_brush(one["value"]["rle"], *mask.shape)
            assert set(np.unique(alpha)) <= {0, 255}
            drawn[alpha == 255] = CLASSES.index(one["value"]["brushlabels"][0]) + 1
        assert np.array_equal(drawn, decided(mask))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (260, 300)])
def test_runs_of_any_length(shape: tuple[int, int]) -> None:
    """Longer than 65,536 values, too."""
    random = np.random.default_rng(2)
    for part in (np.ones(shape, bool), np.zeros(shape, bool), random.random(shape) < 0.5):
        assert np.array_equal(decode_brush(brush_rle(part), *shape) == 255, part)
        runs = run_lengths(part)
        values = np.concatenate([np.full(run, index % 2) for index, run in enumerate(runs)])
        assert np.array_equal(values.reshape(shape).astype(bool), part)


def test_labelme_has_exact_masks(export: Any) -> None:
    output, _ = export("labelme")
    for name, mask in masks().items():
        tree = json.loads((output / f"{name}.json").read_text())
        assert (output / name).with_name(tree["imagePath"]).is_file()
        drawn = np.zeros_like(mask)
        for shape in tree["shapes"]:
            (left, top), (right, bottom) = shape["points"]
            part = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))).astype(bool)
            drawn[top : bottom + 1, left : right + 1][part] = CLASSES.index(shape["label"]) + 1
        assert np.array_equal(drawn, decided(mask))


def test_cut_outs_are_the_photo_inside_the_object(export: Any, folders: Path) -> None:
    output, _ = export("cutout")
    rows = list(csv.DictReader((output / "cutouts.csv").open()))
    drawn = {name: np.zeros_like(mask) for name, mask in masks().items()}
    for row in rows:
        cut = np.array(Image.open(output / row["file"]))
        left, top, right, bottom = (int(row[key]) for key in ("x0", "y0", "x1", "y1"))
        photo = np.array(Image.open(folders / "photos" / row["image"]))[top:bottom, left:right]
        inside = cut[..., 3] == 255
        assert np.array_equal(cut[inside][:, :3], photo[inside])
        drawn[row["image"].removesuffix(".jpg")][top:bottom, left:right][inside] = int(row["index"])
    for name, mask in masks().items():
        assert np.array_equal(drawn[name], decided(mask))


def test_the_summary_counts(export: Any) -> None:
    output, _ = export("csv")
    rows = list(csv.DictReader(output.open()))
    head = "image,class,index,pixels,share,mean_confidence,components,x0,y0,x1,y1"
    assert ",".join(rows[0]) == head
    by = {(row["image"], row["class"]): row for row in rows}
    ring = by["sea/ring.jpg", "cat"]
    assert (int(ring["pixels"]), int(ring["components"])) == (25 * 25 - 64 + 70, 2)
    assert float(ring["share"]) == pytest.approx((25 * 25 - 64 + 70) / (40 * 60 - 12), abs=1e-6)
    assert [int(ring[key]) for key in ("x0", "y0", "x1", "y1")] == [5, 5, 60, 40]
    assert by["empty.jpg", ""]["pixels"] == "0"


def test_names_cannot_become_formulas(folders: Path, command: Any) -> None:
    (folders / "classes.txt").write_text("=cat\n@b\nc\n")
    assert command("export", *given(folders), "--format", "csv", "--output", folders / "o.csv").status == 0
    assert {row["class"] for row in csv.DictReader((folders / "o.csv").open())} == {
        "'=cat",
        "'@b",
        "c",
        "",
    }


@pytest.mark.parametrize(("kind", "below"), [("labelme", ""), ("yolo", ""), ("png", "images/train")])
def test_photos_are_never_replaced(folders: Path, command: Any, kind: str, below: str) -> None:
    place = folders / "set" / below
    place.parent.mkdir(parents=True, exist_ok=True)
    (folders / "photos").rename(place)
    before = {path: path.read_bytes() for path in place.rglob("*.jpg")}
    words = [*given(folders, place), "--format", kind]
    assert "holds the photos" in command("export", *words, "--output", folders / "set").sentence
    assert {path: path.read_bytes() for path in place.rglob("*.jpg")} == before


def test_linked_photos_stay_inside_the_output(
    finished: Path, shapes: Path, tmp_path: Path, command: Any
) -> None:
    """As `wsss data import` makes them."""
    (tmp_path / "in" / "images").mkdir(parents=True)
    for number, photo in enumerate(sorted(shapes.glob("JPEGImages/*"))[:2]):
        (tmp_path / "in" / "images" / f"{number}.jpg").symlink_to(photo)
    words = [
        tmp_path / "in" / "images",
        "--checkpoint",
        finished,
        "--output",
        tmp_path / "out",
        "--accelerator",
        "cpu",
    ]
    done = command("predict", *words, "--format", "labelme", "--format", "png")
    assert done.status == 0, done.err
    assert sorted(path.name for path in (tmp_path / "out" / "labelme").iterdir()) == [
        "0.jpg",
        "0.json",
        "1.jpg",
        "1.json",
    ]
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["images"]
    again = ["masks", tmp_path / "out", "--photos", tmp_path / "in" / "images", "--format", "csv"]
    assert (
        "2 masks as csv" in command("export", *again, "--output", tmp_path / "s.csv").out
    )  # not those in out/png


def test_small_objects_are_left_out(export: Any) -> None:
    output, _ = export("coco", "--objects", "components", "--min_area", 20)
    assert min(one["area"] for one in json.loads(output.read_text())["annotations"]) >= 20


def test_predict_writes_formats_beside_its_masks(
    finished: Path, shapes: Path, tmp_path: Path, command: Any
) -> None:
    photos = sorted(shapes.glob("JPEGImages/*"))[:3]
    words = [*photos, "--checkpoint", finished, "--output", tmp_path / "masks", "--accelerator", "cpu"]
    done = command("predict", *words, "--format", "coco", "--format", "yolo")
    assert done.status == 0, done.err
    assert len(json.loads((tmp_path / "masks" / "coco.json").read_text())["images"]) == 3
    assert len(list((tmp_path / "masks" / "yolo").rglob("*.txt"))) == 3
    again = command("predict", *words, "--format", "cvat", "--skip_existing")
    assert again.status == 0, again.err
    assert (tmp_path / "masks" / "cvat.xml").is_file()


def test_photos_that_cannot_be_read_are_missing_in_the_formats(
    run: Path, command: Any, tmp_path: Path, shapes: Path
) -> None:
    photo = next((shapes / "JPEGImages").iterdir())
    (tmp_path / "in").mkdir()
    shutil.copy(photo, tmp_path / "in" / "good.jpg")
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no photo")
    words = [tmp_path / "in", "--checkpoint", run, "--output", tmp_path / "out", "--format", "csv"]
    assert "1 of 2 photos could not be read" in command("predict", *words).sentence
    table = (tmp_path / "out" / "csv.csv").read_text()
    assert "good.jpg" in table
    assert "bad.jpg" not in table


def test_what_does_not_fit_is_one_sentence(
    folders: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sentence(*more: object, kind: str = "csv", output: str = "o") -> str:
        return str(
            command("export", *given(folders), "--format", kind, "--output", folders / output, *more).sentence
        )

    assert "o is there already" in sentence(output="masks").replace("masks is", "o is")
    (folders / "classes.txt").write_text("cat\n")
    assert "has the value 3, but there are only 1 classes; give their names as --classes" in sentence()
    assert not (folders / "o").exists()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pycocotools", None)
        assert 'pip install "wsss[coco]"' in sentence(kind="coco")
    (folders / "classes.txt").write_text("a:b\nc\nd\n")
    assert 'cannot hold the class name "a:b"' in sentence(kind="cvat-mask")
    (folders / "classes.txt").write_text("cat\ndog\nhen\n")
    write_mask(folders / "masks" / "empty.png", np.zeros((9, 9), np.uint8))
    assert "empty.png has (9, 9) pixels, but " in sentence(kind="cvat-mask")
    assert not list(folders.glob("*.tmp"))
    (folders / "photos" / "noise.jpg").unlink()
    assert "1 of 3 masks have no photo in" in sentence()
    assert "is not a folder of photos" in sentence("--photos", folders / "gone")
