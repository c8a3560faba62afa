"""`wsss data import-masks`: what `wsss export masks` writes, and what tools make of it, comes back as it was."""

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from wsss.commands.data import MASK_IMPORTS
from wsss.data.files import read_mask, write_mask
from wsss.data.mask_formats import MASK_FORMATS
from wsss.export.masks import ENDINGS

CLASSES = ("cat", "dog & co", "hen")
Mask = npt.NDArray[np.uint8]


def masks() -> dict[str, Mask]:
    """Objects with holes, single pixels, the border, undecided pixels, and nothing at all."""
    ring = np.zeros((40, 60), np.uint8)
    ring[5:30, 5:30], ring[12:20, 12:20], ring[33:40, 50:60] = 1, 0, 1
    ring[2, 40:55], ring[35, 3], ring[0:3, 0:4] = 3, 2, 255
    noise = np.random.default_rng(0).integers(0, 4, (6, 9)).astype(np.uint8)
    noise = cv2.resize(noise, (45, 30), interpolation=cv2.INTER_NEAREST)
    return {"sea/ring": ring, "noise": noise, "empty": np.zeros((20, 25), np.uint8)}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name, mask in masks().items():
        write_mask(tmp_path / "masks" / f"{name}.png", mask)
        photo = tmp_path / "photos" / f"{name}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", mask.shape[::-1]).save(photo)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return tmp_path


@pytest.fixture
def exported(folders: Path, command: Any) -> Any:
    def call(kind: str) -> Path:
        output = folders / f"out{ENDINGS.get(kind, '')}"
        words = ["--photos", folders / "photos", "--classes", folders / "classes.txt"]
        done = command("export", "masks", folders / "masks", *words, "--format", kind, "--output", output)
        assert done.status == 0, done.err
        if kind == "labelstudio":
            output.write_text(json.dumps(annotated(json.loads(output.read_text()))))
        return output

    return call


def annotated(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Predictions that someone accepted: Label Studio exports them as annotations."""
    return [{**task, "annotations": [{"result": task["predictions"][0]["result"]}]} for task in tasks]


@pytest.fixture
def imported(folders: Path, command: Any) -> Any:
    """Calls the command with the photos; gives the masks and what was said."""

    def call(source: Path, *words: object, photos: bool = True) -> tuple[dict[str, Mask], str]:
        given = ["--photos", folders / "photos"] if photos else []
        done = command("data", "import-masks", source, folders / "back", *given, *words)
        assert done.status == 0, done.err
        assert not list(folders.glob(".back*"))
        found = sorted((folders / "back").rglob("*.png"))
        assert json.loads((folders / "back" / "masks.json").read_text())["classes"] == [
            "background",
            *CLASSES,
        ]
        names = [path.relative_to(folders / "back").with_suffix("").as_posix() for path in found]
        return {name: read_mask(path) for name, path in zip(names, found, strict=True)}, done.out

    return call


@pytest.fixture
def refused(folders: Path, command: Any) -> Any:
    """The sentence with which the command ends; nothing is written."""

    def call(source: Path, *words: object) -> str:
        given = ["--photos", folders / "photos"]
        sentence = command("data", "import-masks", source, folders / "no", *given, *words).sentence
        assert not (folders / "no").exists()
        assert not list(folders.glob(".no*"))
        return str(sentence)

    return call


def test_the_names_of_the_command_line_are_the_readers() -> None:
    assert (*MASK_FORMATS, "folder") == MASK_IMPORTS


@pytest.mark.parametrize("kind", [kind for kind in MASK_IMPORTS if kind != "folder"])
def test_what_was_exported_comes_back_pixel_for_pixel(
    kind: str, folders: Path, exported: Any, imported: Any
) -> None:
    own = ("--classes", folders / "classes.txt") if kind in ("labelstudio", "labelme") else ()
    bare = ("--unlabelled", "none") if kind == "cvat" else ()
    found, said = imported(exported(kind), *own, *bare, photos=kind not in ("png", "yolo", "labelme"))
    assert MASK_FORMATS[kind].title in said
    assert "3 masks, 1 of them with none of the classes" in said
    assert "masks with each class: cat 2, dog & co 2, hen 2" in said
    assert set(found) == set(masks())
    for name, mask in masks().items():
        assert np.array_equal(found[name], mask if kind == "png" else np.where(mask == 255, 0, mask))


def test_a_folder_of_grey_or_palette_pngs(folders: Path, imported: Any, refused: Any) -> None:
    Image.fromarray(masks()["noise"]).save(folders / "masks" / "noise.png")
    assert "give the class list that they belong to as --classes FILE" in refused(folders / "masks")
    found, said = imported(folders / "masks", "--classes", folders / "classes.txt")
    assert "a folder of PNGs with class indices (masks)" in said
    assert all(np.array_equal(found[name], mask) for name, mask in masks().items())
    (folders / "back" / "noise.png").rename(folders / "back" / "gone.png")
    assert "1 of 3 photos are not in" in refused(folders / "back")
    (folders / "classes.txt").write_text("dog & co\ncat\nhen\n")
    assert "use the class list that made it" in refused(
        folders / "back", "--classes", folders / "classes.txt"
    )


def test_names_decide_and_not_numbers(folders: Path, exported: Any, command: Any) -> None:
    (folders / "other.txt").write_text("cow\nhen\ncat\ndog & co\n")
    words = ["--photos", folders / "photos", "--classes", folders / "other.txt", "--unlabelled", "none"]
    for kind in ("coco", "png", "cvat", "cvat-mask"):
        done = command("data", "import-masks", exported(kind), folders / kind, *words)
        assert done.status == 0, done.err
        expected = np.array([0, 3, 4, 2], np.uint8)[masks()["noise"]]
        assert np.array_equal(read_mask(folders / kind / "noise.png"), expected), kind


def polygon_of(values: list[float], shape: tuple[int, int]) -> Mask:
    """Pixels whose centres are inside, drawn eight times as large by Pillow."""
    image = Image.new("L", (8 * shape[1], 8 * shape[0]))
    ImageDraw.Draw(image).polygon([8 * value for value in values], fill=1)
    return np.array(image)[4::8, 4::8]


TRIANGLE = [4.0, 3.0, 40.0, 6.0, 22.0, 28.0]


def cvat_xml(*shapes: str, name: str = "noise.jpg", width: int = 45) -> str:
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("cat", "dog &amp; co", "hen"))
    image = f'<image id="0" name="{name}" width="{width}" height="30">{"".join(shapes)}</image>'
    return f"<annotations><meta><task><labels>{labels}</labels></task></meta>{image}</annotations>"


def pairs(values: list[float]) -> list[list[float]]:
    return [values[at : at + 2] for at in range(0, len(values), 2)]


def polygons(kind: str) -> Any:
    """A triangle of a cat, and below it a mask or a polygon of a hen that covers all of it, as each tool writes it."""
    full = [0.0, 0.0, 45.0, 0.0, 45.0, 30.0, 0.0, 30.0]
    match kind:
        case "cvat":
            points = ";".join(f"{x},{y}" for x, y in pairs(TRIANGLE))
            above = f'<polygon label="cat" points="{points}" z_order="1"></polygon>'
            return cvat_xml(
                above,
                '<mask label="hen" rle="0,1350" left="0" top="0" width="45" height="30" z_order="0"></mask>',
            )
        case "labelstudio":
            percent = [[[x / 0.45, y / 0.3] for x, y in pairs(one)] for one in (full, TRIANGLE)]
            results = [
                {"original_width": 45, "original_height": 30, "type": "polygonlabels",
                 "value": {"points": points, "polygonlabels": [name]}}
                for points, name in zip(percent, ("hen", "cat"), strict=True)
            ]  # fmt: skip
            return [
                {"data": {"image": "/data/upload/1/0a1b2c3d-noise.jpg"}, "annotations": [{"result": results}]}
            ]
        case "labelme":
            shapes = [{"label": name, "points": pairs(one), "shape_type": "polygon"}
                      for name, one in (("hen", full), ("cat", TRIANGLE))]  # fmt: skip
            return {
                "flags": {},
                "shapes": shapes,
                "imagePath": "noise.jpg",
                "imageHeight": 30,
                "imageWidth": 45,
            }
        case _:
            annotations = [
                {"id": number, "image_id": 5, "category_id": number, "segmentation": [points]}
                for number, points in ((1, TRIANGLE), (3, full))
            ]
            images = [{"id": 5, "file_name": "noise.jpg", "height": 30, "width": 45}]
            categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
            return {"images": images, "annotations": annotations, "categories": categories}


@pytest.mark.parametrize("kind", ["coco", "cvat", "labelstudio", "labelme"])
def test_polygons_are_painted_in_the_order_of_the_tool(kind: str, folders: Path, imported: Any) -> None:
    content = polygons(kind)
    source = folders / "src" / ("a.xml" if kind == "cvat" else "a.json")
    source.parent.mkdir()
    source.write_text(content if isinstance(content, str) else json.dumps(content))
    found, _ = imported(source, "--classes", folders / "classes.txt")
    cat = found["noise"] == 1
    assert set(np.unique(found["noise"])) == {1, 3}
    expected = polygon_of(TRIANGLE, (30, 45)) > 0
    if kind == "labelme":  # it draws the outline, too
        corners = np.array(TRIANGLE, np.int32).reshape(-1, 2)
        expected = cv2.fillPoly(np.zeros((30, 45), np.uint8), [corners], 1) > 0
    # OpenCV and Pillow, which LabelMe draws with, take other pixels along slanted lines
    assert (cat & expected).sum() / (cat | expected).sum() > (0.95 if kind == "labelme" else 0.98)


def test_yolo_draws_corners_as_its_readers_do(folders: Path, imported: Any) -> None:
    root = folders / "set"
    for name in ("images/train/noise.jpg", "labels/train/noise.txt", "images/train/empty.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    for name in ("noise", "empty"):
        (folders / "photos" / f"{name}.jpg").rename(root / "images" / "train" / f"{name}.jpg")
    inside = "2 .2 .2 .28889 .2 .28889 .3 .2 .3\n0 .08889 .1 .88889 .1 .88889 .9 .08889 .9\n"
    (root / "labels" / "train" / "noise.txt").write_text(inside)
    (root / "data.yaml").write_text("names: [cat, dog & co, hen]\n")
    found, said = imported(root, "--unlabelled", "unknown", photos=False)
    assert "left out: 1 photos that nobody looked at" in said
    expected = np.zeros((30, 45), np.uint8)
    expected[3:28, 4:41], expected[6:10, 9:14] = 1, 3  # the smaller one is on top
    assert np.array_equal(found["noise"], expected)


def test_nobody_looked_is_not_nothing_there(folders: Path, exported: Any, imported: Any) -> None:
    source = exported("labelstudio")
    tasks = json.loads(source.read_text())
    tasks[0]["annotations"] = []
    tasks[1]["annotations"][0]["was_cancelled"] = True
    source.write_text(json.dumps(tasks))
    found, said = imported(source, "--classes", folders / "classes.txt")
    assert len(found) == 1
    assert "left out: 1 photos that nobody looked at, 1 that were skipped, 0 that it does not name" in said


def test_a_tag_without_a_region_is_no_empty_mask(
    folders: Path, exported: Any, imported: Any, refused: Any
) -> None:
    source = exported("labelstudio")
    tasks = json.loads(source.read_text())
    choice = {"type": "choices", "from_name": "tags", "to_name": "image", "value": {"choices": ["cat"]}}
    noise = next(task for task in tasks if "noise" in str(task["data"]))
    noise["annotations"] = [{"result": [choice]}]
    source.write_text(json.dumps(tasks))
    own = ("--classes", folders / "classes.txt")
    assert f"1 of {len(tasks)} photos of {source} have no mask" in refused(source, *own)
    found, _ = imported(source, *own, "--unlabelled", "unknown")
    assert "noise" not in found
    tree = ElementTree.parse(path := exported("cvat"))
    for image in tree.getroot().findall("image"):
        if "noise" in image.attrib["name"]:
            image[:] = [ElementTree.Element("tag", label="cat")]
    tree.write(path)
    assert "photos of" in refused(path)


def test_several_annotations_of_a_photo(folders: Path, exported: Any, imported: Any, refused: Any) -> None:
    source = exported("labelstudio")
    tasks = json.loads(source.read_text())
    for task in tasks:
        task["annotations"] = [
            {**task["annotations"][0], "updated_at": "2"},
            {"result": [], "updated_at": "1"},
        ]
    source.write_text(json.dumps(tasks))
    own = ("--classes", folders / "classes.txt")
    assert "has 2 annotations; say --annotators newest, or leave one of them" in refused(source, *own)
    found, _ = imported(source, *own, "--annotators", "newest")
    assert np.array_equal(found["noise"], masks()["noise"])


def test_labels_that_are_results_of_their_own(folders: Path, exported: Any, imported: Any) -> None:
    """Label Studio's <Labels> with <Brush>."""
    source = exported("labelstudio")
    tasks = json.loads(source.read_text())
    for task in tasks:
        split = []
        for one in task["annotations"][0]["result"]:
            name = one["value"].pop("brushlabels")
            split += [one, {**one, "type": "labels", "value": {**one["value"], "labels": name}}]
        task["annotations"][0]["result"] = split
    source.write_text(json.dumps(tasks))
    found, _ = imported(source, "--classes", folders / "classes.txt")
    assert np.array_equal(found["noise"], masks()["noise"])


def test_crowds_are_what_the_user_says(folders: Path, exported: Any, command: Any, refused: Any) -> None:
    source = exported("coco")
    tree = json.loads(source.read_text())
    for one in tree["annotations"]:
        one["iscrowd"] = int(one["category_id"] == 1)
    source.write_text(json.dumps(tree))
    assert "has 2 regions with iscrowd 1" in refused(source)
    for how, value in (("objects", 1), ("ignore", 255)):
        words = ["--photos", folders / "photos", "--crowds", how]
        assert command("data", "import-masks", source, folders / how, *words).status == 0
        expected = np.where(masks()["noise"] == 1, value, masks()["noise"])
        assert np.array_equal(read_mask(folders / how / "noise.png"), expected)


def test_an_unpacked_zip_with_other_colours(
    folders: Path, exported: Any, imported: Any, refused: Any
) -> None:
    with zipfile.ZipFile(exported("cvat-mask")) as archive:
        archive.extractall(folders / "unpacked")
    (folders / "out.zip").unlink()
    path = folders / "unpacked" / "SegmentationClass" / "noise.png"
    pixels = np.array(Image.open(path))
    pixels[0, 0] = (1, 2, 3)
    Image.fromarray(pixels).save(path)
    assert "noise.png has the colour (1, 2, 3), which labelmap.txt does not name" in refused(
        folders / "unpacked"
    )
    pixels[0, 0] = (224, 224, 192)  # VOC's colour of what is not scored
    Image.fromarray(pixels).save(path)
    lines = (folders / "unpacked" / "labelmap.txt").read_text().splitlines()
    plain = [line if line.startswith("#") else f"{line.partition(':')[0]}:::" for line in lines]
    (folders / "unpacked" / "labelmap.txt").write_text("\n".join(plain))  # as datumaro writes VOC's colours
    found, _ = imported(folders / "unpacked")
    assert found["noise"][0, 0] == 255
    assert np.array_equal(found["noise"].ravel()[1:], masks()["noise"].ravel()[1:])


def test_two_classes_of_one_colour_are_an_error(folders: Path, exported: Any, refused: Any) -> None:
    with zipfile.ZipFile(exported("cvat-mask")) as archive:
        archive.extractall(folders / "unpacked")
    path = folders / "unpacked" / "labelmap.txt"
    path.write_text(path.read_text() + "\ncow:1,2,3::\nbird:1,2,3::\n")
    assert "labelmap.txt gives cow and bird the same colour (1, 2, 3)" in refused(path.parent)


def test_the_background_is_known_however_it_is_written(folders: Path, imported: Any) -> None:
    shapes = [*labelme()["shapes"], *labelme(label="Background")["shapes"]]
    (folders / "a.json").write_text(json.dumps({**labelme(), "shapes": shapes}))
    found, _ = imported(folders / "a.json", "--classes", folders / "classes.txt")
    assert not found["noise"].any()


def test_the_target_may_be_a_link_but_not_the_current_folder(
    folders: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folders / "a.json").write_text(json.dumps(labelme()))
    words = ["--classes", folders / "classes.txt", "--photos", folders / "photos"]
    (folders / "empty").mkdir()
    monkeypatch.chdir(folders / "empty")
    done = command("data", "import-masks", folders / "a.json", ".", *words)
    assert "is the current folder; give the name of a new one" in done.sentence
    monkeypatch.chdir(folders)
    (folders / "link").symlink_to("empty")
    assert command("data", "import-masks", folders / "a.json", "link", *words).status == 0
    assert (folders / "empty" / "noise.png").is_file()


def labelme(**shape: Any) -> dict[str, Any]:
    whole = {"label": "cat", "points": pairs(TRIANGLE), "shape_type": "polygon", **shape}
    return {"flags": {}, "shapes": [whole], "imagePath": "noise.jpg", "imageHeight": 30, "imageWidth": 45}


def png(height: int, width: int) -> str:
    content = io.BytesIO()
    Image.fromarray(np.ones((height, width), bool)).save(content, format="PNG")
    return base64.b64encode(content.getvalue()).decode()


STUDIO: dict[str, Any] = polygons("labelstudio")[0]


def studio(**result: Any) -> list[Any]:
    one = {"original_width": 45, "original_height": 30, "type": "brushlabels", "value": {}, **result}
    return [{**STUDIO, "annotations": [{"result": [one]}]}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", labelme(label="Cat"), 'has names that .*classes.txt lacks: "Cat" (1 photo, near "cat")'),
        ("a.json", labelme(shape_type="circle"), "a.json has a circle, which is no mask"),
        ("a.json", labelme(points=[[1, 1], [2, 2]]), "a.json has a polygon of 2 points, but at least 3"),
        ("a.json", labelme(shape_type="mask", mask=png(3, 3), points=[[0, 0], [5, 5]]), "another size than its box"),
        ("a.json", labelme(shape_type="mask", mask=png(3, 3), points=[[43, 0], [45, 2]]), "leaves the photo"),
        ("a.json", labelme(shape_type="mask", mask="x", points=[[0, 0], [1, 1]]), "is not LabelMe's JSON as"),
        ("a.json", {**labelme(), "imageWidth": 44}, "has 44x30 pixels, but the photo has 45x30"),
        ("a.xml", cvat_xml('<box label="cat" xtl="1" ytl="1" xbr="2" ybr="2"></box>'), "has a box, which is no mask"),
        ("a.xml", cvat_xml('<mask label="cat" rle="1" left="0" top="0" width="2" height="1"/>'), "do not add up"),
        ("a.xml", cvat_xml(), "1 of 1 photos of .*a.xml have no mask, and the format does not say"),
        ("a.xml", cvat_xml('<polygon label="cat" points="1,1;9,1;9,9"/>', name="gone.jpg"), "1 of 1 photos are not in"),
        ("a.json", studio(value={"x": 1, "y": 1, "rectanglelabels": ["cat"]}), "has a brushlabels, which is no mask"),
        ("a.json", studio(value={"rle": [0], "brushlabels": []}), "has a region with 0 labels, but must have one"),
        ("a.json", studio(value={"rle": [0] * 9, "brushlabels": ["cat"]}), "run lengths of 0 values for 45x30"),
        ("a.json", studio(value={"rle": [0], "brushlabels": ["cat"]}, image_rotation=90), "was turned, or has"),
        ("a.json", [{**STUDIO, "annotations": []}], "has no photo with a mask"),
        ("a.json", [{**STUDIO, "predictions": []}], "has no photo with a mask"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(
    name: str, content: Any, message: str, folders: Path, refused: Any
) -> None:
    source = folders / "src" / name
    source.parent.mkdir()
    if name == "a.json" and isinstance(content, list) and "predictions" in content[0]:
        content = [{**content[0], "annotations": []}]
    source.write_text(content if isinstance(content, str) else json.dumps(content))
    sentence = refused(source, "--classes", folders / "classes.txt")
    assert all(part in sentence for part in message.split(".*")), sentence


def test_what_is_not_clear_is_an_error(folders: Path, exported: Any, refused: Any) -> None:
    source = exported("labelstudio")
    assert "has no list of its classes: give the one of your data set as --classes FILE" in refused(source)
    (folders / "both").mkdir()
    for kind in ("coco", "cvat"):
        path = exported(kind)
        path.rename(folders / "both" / path.name)
    assert "several formats: out.json (coco), out.xml (cvat); choose one with --format" in refused(
        folders / "both"
    )
    assert "has no masks of the format yolo" in refused(folders / "both", "--format", "yolo")
    assert "has no masks of a format that wsss knows" in refused(folders / "classes.txt")
    assert "does not exist" in refused(folders / "gone")
    root = exported("yolo")
    (root / "labels" / "train" / "noise.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert "noise.txt has boxes, not polygons" in refused(root)
    root = folders / "out"
    (root / "masks").mkdir()
    assert "data.yaml (png), data.yaml (yolo); choose one" in refused(root)
