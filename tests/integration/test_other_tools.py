"""Other tools' own libraries: they read what we write, we read what they write, and the path of a person."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import supervision
import torch
from label_studio_converter import Converter, brush
from PIL import Image
from pycocotools import mask as codec
from pycocotools.coco import COCO

from wsss.cli import main
from wsss.data.files import read_mask, write_mask

CLASSES = ["cat", "dog", "hen"]
Mask = npt.NDArray[np.uint8]


def masks() -> dict[str, Mask]:
    """Blobs of several classes, with holes, at the border and inside each other."""
    rows, columns = np.mgrid[:90, :120]
    found = {}
    for number in range(3):
        random, mask = np.random.default_rng(number), np.zeros((90, 120), np.uint8)
        for value in (1, 2, 3, 0, 1, 3):
            y, x, size = random.integers(0, 90), random.integers(0, 120), random.integers(8, 30)
            mask[((rows - y) / 1.3) ** 2 + (columns - x) ** 2 < size**2] = value
        found[f"photo{number}"] = mask
    return found


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name, mask in masks().items():
        write_mask(tmp_path / "masks" / f"{name}.png", mask)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(np.stack([mask * 60] * 3, 2)).save(tmp_path / "photos" / f"{name}.jpg")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    return tmp_path


@pytest.fixture
def written(folders: Path, command: Any) -> Callable[[str, str], Path]:
    """The masks in a format of `wsss export masks`."""

    def call(kind: str, ending: str = "") -> Path:
        words = ["--photos", folders / "photos", "--classes", folders / "classes.txt", "--format", kind]
        done = command("export", "masks", folders / "masks", *words, "--output", folders / f"ours{ending}")
        assert done.status == 0, done.err
        return folders / f"ours{ending}"

    return call


@pytest.fixture
def read(folders: Path, command: Any) -> Callable[..., dict[str, Mask]]:
    """What `wsss data import-masks` makes of an export."""

    def call(source: Path, *words: object) -> dict[str, Mask]:
        given = ["--photos", folders / "photos", "--classes", folders / "classes.txt"]
        done = command("data", "import-masks", source, folders / "back", *given, *words)
        assert done.status == 0, done.err
        return {path.stem: read_mask(path) for path in (folders / "back").glob("*.png")}

    return call


def iou(found: dict[str, Mask], expected: dict[str, Mask]) -> float:
    """Of all objects' pixels over all photos, of the right class."""
    assert set(found) == set(expected)
    pairs = [(found[name], expected[name]) for name in expected]
    both = sum(int(((a == b) & (b > 0)).sum()) for a, b in pairs)
    return both / sum(int(((a > 0) | (b > 0)).sum()) for a, b in pairs)


# -- supervision ------------------------------------------------------------------------------------


def of_supervision(folders: Path) -> supervision.DetectionDataset:
    """The masks as it holds them."""
    annotations = {}
    for name, mask in masks().items():
        values = [value for value in np.unique(mask).tolist() if value]
        parts = np.stack([mask == value for value in values])
        boxes = supervision.mask_to_xyxy(parts).astype(float)
        annotations[str(folders / "photos" / f"{name}.jpg")] = supervision.Detections(
            xyxy=boxes, mask=parts, class_id=np.array(values) - 1
        )
    return supervision.DetectionDataset(CLASSES, list(annotations), annotations)


def test_supervision_reads_our_yolo_pixel_for_pixel(written: Any) -> None:
    root = written("yolo")
    places = (root / "images" / "train", root / "labels" / "train", root / "data.yaml")
    data = supervision.DetectionDataset.from_yolo(*map(str, places), force_masks=True)
    assert data.classes == CLASSES
    found = {}
    for path, _, detections in data:
        mask = np.zeros((90, 120), np.uint8)
        for part, index in zip(detections.mask, detections.class_id, strict=True):
            mask[np.asarray(part, bool)] = index + 1
        found[Path(path).stem] = mask
    expected = masks()
    assert all(np.array_equal(found[name], mask) for name, mask in expected.items())


def test_we_read_supervisions_yolo_coco_and_labelme(folders: Path, read: Any, command: Any) -> None:
    data = of_supervision(folders)
    root = folders / "theirs"
    data.as_yolo(*(str(root / name) for name in ("images", "labels", "data.yaml")))
    assert iou(read(root), masks()) > 0.98
    done = command("data", "import", root, folders / "tags")
    assert done.status == 0, done.err
    rows = dict(row.split(",") for row in (folders / "tags" / "labels.csv").read_text().split()[1:])
    for name, mask in masks().items():
        assert rows[f"images/{name}"] == ";".join(CLASSES[value - 1] for value in np.unique(mask) if value)
    for path in (folders / "back").iterdir():
        path.unlink()
    data.as_coco(None, str(folders / "coco.json"))
    assert iou(read(folders / "coco.json", "--crowds", "objects"), of_pycocotools(folders / "coco.json")) == 1
    for path in (folders / "back").iterdir():
        path.unlink()
    (folders / "labelme").mkdir()
    data.as_labelme(str(folders / "labelme"), str(folders / "labelme"))
    assert iou(read(folders / "labelme"), masks()) > 0.98


def of_pycocotools(path: Path) -> dict[str, Mask]:
    """What pycocotools draws, smaller regions on top."""
    coco, found = COCO(str(path)), {}
    for image in coco.loadImgs(coco.getImgIds()):
        mask = np.zeros((90, 120), np.uint8)
        parts = [(coco.annToMask(one) > 0, one["category_id"]) for one in coco.imgToAnns[image["id"]]]
        for part, value in sorted(parts, key=lambda pair: -pair[0].sum()):
            mask[part] = value
        found[Path(image["file_name"]).stem] = mask
    assert iou(found, masks()) > 0.95  # its polygons go through the centres of the outer pixels
    return found


# -- pycocotools and Label Studio's converter -------------------------------------------------------


def test_we_read_what_pycocotools_encodes(folders: Path, read: Any) -> None:
    """With the sparse ids that COCO has; test_export_masks.py has the other way."""
    numbers = {1: 7, 2: 18, 3: 90}
    images, annotations = [], []
    for number, (name, mask) in enumerate(masks().items()):
        images.append({"id": 100 + number, "file_name": f"{name}.jpg", "height": 90, "width": 120})
        for value, category in numbers.items():
            code = codec.encode(np.asfortranarray(mask == value, np.uint8))
            code["counts"] = code["counts"].decode()
            annotations.append({"id": len(annotations), "image_id": 100 + number, "category_id": category,
                                "iscrowd": 0, "segmentation": code})  # fmt: skip
    categories = [{"id": numbers[value], "name": name} for value, name in enumerate(CLASSES, 1)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folders / "coco.json").write_text(json.dumps(tree))
    assert COCO(str(folders / "coco.json")).getCatIds() == list(numbers.values())
    assert all(np.array_equal(mask, masks()[name]) for name, mask in read(folders / "coco.json").items())


def test_label_studios_converter_decodes_our_brush(written: Any) -> None:
    tasks = json.loads(written("labelstudio", ".json").read_text())
    for task in tasks:
        mask = np.zeros((90, 120), np.uint8)
        for one in task["predictions"][0]["result"]:
            alpha = brush.decode_rle(one["value"]["rle"]).reshape(90, 120, 4)[..., 3]
            mask[alpha > 0] = CLASSES.index(one["value"]["brushlabels"][0]) + 1
        assert np.array_equal(mask, masks()[Path(task["data"]["image"]).stem])


def test_we_read_the_brush_of_label_studios_converter(folders: Path, read: Any) -> None:
    tasks = []
    for name, mask in masks().items():
        results = []
        for value, label in enumerate(CLASSES, 1):
            pixels = np.repeat((255 * (mask == value)).astype(np.uint8)[..., None], 4, 2)
            packed = [int(byte) for byte in brush.encode_rle(pixels.ravel())]
            results.append({"original_width": 120, "original_height": 90, "type": "brushlabels",
                            "value": {"format": "rle", "rle": packed, "brushlabels": [label]}})  # fmt: skip
        tasks.append(
            {"data": {"image": f"/data/upload/2/0a1b2c3d-{name}.jpg"}, "annotations": [{"result": results}]}
        )
    (folders / "ls.json").write_text(json.dumps(tasks))
    assert all(np.array_equal(mask, masks()[name]) for name, mask in read(folders / "ls.json").items())


@pytest.mark.parametrize("kind", ["json_min", "csv"])
def test_we_read_the_tags_of_label_studios_converter(folders: Path, command: Any, kind: str) -> None:
    tags = {"photo0": ["cat", "dog"], "photo1": ["hen"], "photo2": []}
    tree = [label_studio_task(name, tags[name], number) for number, name in enumerate(tags)]
    (folders / "export.json").write_text(json.dumps(tree))
    converter = Converter(LABELLING, str(folders))
    places = [str(folders / name) for name in ("export.json", "converted")]
    if kind == "csv":
        converter.convert_to_csv(*places, is_dir=False, sep=",", header=True)
    else:
        converter.convert_to_json_min(*places, is_dir=False)
    (source,) = (folders / "converted").iterdir()
    done = command("data", "import", source, folders / "set", "--photos", folders / "photos")
    assert done.status == 0, done.err
    rows = (folders / "set" / "labels.csv").read_text().splitlines()[1:]
    assert rows == [f"{name},{';'.join(labels)}" for name, labels in tags.items()]


# -- datumaro ---------------------------------------------------------------------------------------


def test_datumaro_reads_our_cvat_and_we_read_datumaros(folders: Path, written: Any, read: Any) -> None:
    """It is no extra of ours: it needs an older OpenCV. Run this where it is installed."""
    datumaro = pytest.importorskip("datumaro")
    annotations, packed = written("cvat", ".xml"), written("cvat-mask", ".zip")
    (folders / "cvat").mkdir()
    annotations.rename(folders / "cvat" / "annotations.xml")
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folders / "voc")
    for place in ("cvat/images", "voc/JPEGImages"):
        (folders / place).symlink_to(folders / "photos")
    for name, form in (("cvat", "cvat"), ("voc", "voc_segmentation")):
        data = datumaro.Dataset.import_from(str(folders / name), form)
        labels = data.categories()[datumaro.AnnotationType.label]
        for item in data:
            mask = np.zeros((90, 120), np.uint8)
            for one in item.annotations:
                label = labels[one.label].name
                mask[np.asarray(one.image) > 0] = CLASSES.index(label) + 1 if label in CLASSES else 0
            assert np.array_equal(mask, masks()[item.id])
    items = [
        datumaro.DatasetItem(
            name,
            media=datumaro.components.media.Image.from_file(str(folders / "photos" / f"{name}.jpg")),
            annotations=[datumaro.Mask(mask == value, label=value - 1, id=value, group=value)
                         for value in np.unique(mask).tolist() if value],
        )
        for name, mask in masks().items()
    ]  # fmt: skip
    data = datumaro.Dataset.from_iterable(items, categories=CLASSES)
    for form, words in (("cvat", ["--unlabelled", "none"]), ("coco_instances", ["--crowds", "objects"]),
                        ("voc_segmentation", [])):  # fmt: skip
        data.export(str(folders / form / "theirs"), form)
        found = read(folders / form / "theirs", *words)
        assert all(np.array_equal(mask, masks()[name]) for name, mask in found.items())
        for path in (folders / "back").iterdir():
            path.unlink()


# -- a person ---------------------------------------------------------------------------------------

LABELLING = """<View><Image name="img" value="$image"/><Choices name="tags" toName="img" choice="multiple">
<Choice value="cat"/><Choice value="dog"/><Choice value="hen"/></Choices></View>"""


def label_studio_task(name: str, labels: list[str], number: int) -> dict[str, Any]:
    """As Label Studio exports it."""
    result = {
        "id": "x",
        "from_name": "tags",
        "to_name": "img",
        "type": "choices",
        "value": {"choices": labels},
    }
    annotation = {"id": number + 1, "was_cancelled": False, "completed_by": 1, "lead_time": 1.5, "ground_truth": False,
                  "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
                  "result": [result] if labels else []}  # fmt: skip
    image = f"/data/upload/3/1a2b3c4d-{name}.jpg"
    return {"id": number, "data": {"image": image}, "annotations": [annotation], "predictions": []}


def cvat_tags(tags: dict[str, list[str]]) -> str:
    """CVAT for images 1.1."""
    names = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
    images = "".join(
        f'<image id="{number}" name="{name}.jpg" width="64" height="48">'
        + "".join(f'<tag label="{label}" source="manual"></tag>' for label in labels)
        + "</image>"
        for number, (name, labels) in enumerate(tags.items())
    )
    return f"<annotations><meta><task><labels>{names}</labels></task></meta>{images}</annotations>"


TAGS = {f"p{number:02d}": [CLASSES[number % 3], *CLASSES[: number % 2]] for number in range(12)}
RUN = (
    *("--data.kind", "folder", "--classifier.architecture", "resnet18", "--classifier.weights", "none"),
    *("--classifier.epochs", "1", "--classifier.crop", "32", "--classifier.long_side", "[32,32]"),
    *("--classifier.batch_size", "4", "--saliency.scales", "[1.0]", "--segmenter.architecture", "light"),
    *("--segmenter.weights", "none", "--segmenter.epochs", "1", "--segmenter.crop", "32"),
    *("--segmenter.batch_size", "4", "--evaluate.ms_flip", "false", "--evaluate.crf", "false"),
    *("--runtime.workers", "0", "--runtime.progress", "false", "--runtime.accelerator", "cpu"),
)  # fmt: skip


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, the tags as both tools export them, both imports, and one run on what they agree on."""
    root = tmp_path_factory.mktemp("person")
    (root / "photos").mkdir()
    for number, name in enumerate(TAGS):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 48)).save(root / "photos" / f"{name}.jpg")
    (root / "cvat.xml").write_text(cvat_tags(TAGS))
    tasks = [label_studio_task(name, labels, number) for number, (name, labels) in enumerate(TAGS.items())]
    (root / "labelstudio.json").write_text(json.dumps(tasks))
    for source in ("cvat.xml", "labelstudio.json"):
        words = [
            "data",
            "import",
            root / source,
            root / source.partition(".")[0],
            "--photos",
            root / "photos",
        ]
        assert main([str(word) for word in words]) == 0
    assert (root / "cvat" / "labels.csv").read_text() == (root / "labelstudio" / "labels.csv").read_text()
    assert main(["run", *RUN, "--data.root", str(root / "cvat"), "--output", str(root / "run")]) == 0
    path = root / "run" / "segmenter" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)  # as if it had learnt something
    weights = checkpoint["state_dict"]
    last = [name for name, value in weights.items() if name.endswith("weight") and value.ndim == 4][-1]
    weights[last] = 50 * torch.randn(weights[last].shape, generator=torch.Generator().manual_seed(0))
    torch.save(checkpoint, path)
    formats = [word for kind in ("cvat", "labelstudio", "coco", "yolo") for word in ("--format", kind)]
    words = [
        root / "photos",
        "--checkpoint",
        root / "run",
        "--output",
        root / "masks",
        "--accelerator",
        "cpu",
    ]
    assert main(["predict", *(str(word) for word in words), *formats]) == 0
    return root


def predicted(root: Path) -> dict[str, Mask]:
    found = {name: read_mask(root / "masks" / f"{name}.png") for name in TAGS}
    assert len(set(np.unique(np.stack(list(found.values()))).tolist())) > 2  # not only background
    return found


@pytest.mark.parametrize("tool", ["cvat", "labelstudio"])
def test_what_a_person_does_from_tags_to_a_corrected_run(
    tool: str, person: Path, tmp_path: Path, command: Any
) -> None:
    """Import, run, predict and export are in the fixture; here the masks are read, corrected, and trained on."""
    expected = predicted(person)
    if tool == "labelstudio":
        tasks = json.loads((person / "masks" / "labelstudio.json").read_text())
        for task in tasks:
            name = Path(task["data"]["image"]).stem
            task["annotations"] = [{"result": task.pop("predictions")[0]["result"]}]  # accepted
            for one in task["annotations"][0]["result"]:
                part = brush.decode_rle(one["value"]["rle"]).reshape(48, 64, 4)[..., 3] > 0
                assert np.array_equal(
                    part, expected[name] == CLASSES.index(one["value"]["brushlabels"][0]) + 1
                )
        source = tmp_path / "export.json"
        source.write_text(json.dumps(tasks))
    else:
        source = tmp_path / "export.xml"
        text = (person / "masks" / "cvat.xml").read_text()
        corrected = '<polygon label="hen" points="0,0;64,0;64,48;0,48" z_order="9"></polygon></image>'
        at = text.index("</image>", text.index('name="p03.jpg"'))
        source.write_text(text[:at] + corrected + text[at + len("</image>") :])
        expected["p03"] = np.full((48, 64), 3, np.uint8)
    words = ["--photos", person / "cvat" / "images", "--classes", person / "cvat" / "classes.txt"]
    done = command("data", "import-masks", source, tmp_path / "true", *words, "--unlabelled", "none")
    assert done.status == 0, done.err
    assert all(
        np.array_equal(read_mask(tmp_path / "true" / f"{name}.png"), mask) for name, mask in expected.items()
    )
    run = Path(shutil.copytree(person / "run", tmp_path / "run"))
    words = [
        *RUN,
        "--data.root",
        person / "cvat",
        "--output",
        run,
        "--segmenter.true_masks",
        tmp_path / "true",
    ]
    assert "validation photos" in command("segment", *words, "--overwrite").sentence
    for path in (run / "predictions").iterdir():
        (tmp_path / "true" / path.name).unlink()
    done = command("segment", *words, "--overwrite")
    assert done.status == 0, done.err
    done = command("evaluate", *words)
    assert done.status == 0, done.err
    facts = json.loads((run / "manifest.json").read_text())["stages"]["segment"]
    assert facts["true_masks"] == len(TAGS) - len(list((run / "predictions").iterdir()))


def test_the_other_formats_of_a_prediction_are_read_by_their_libraries(person: Path) -> None:
    expected = predicted(person)
    coco = COCO(str(person / "masks" / "coco.json"))
    for image in coco.loadImgs(coco.getImgIds()):
        mask = np.zeros((48, 64), np.uint8)
        for one in coco.imgToAnns[image["id"]]:
            mask[coco.annToMask(one) > 0] = one["category_id"]
        assert np.array_equal(mask, expected[Path(image["file_name"]).stem])
    root = person / "masks" / "yolo"
    places = (root / "images" / "train", root / "labels" / "train", root / "data.yaml")
    data = supervision.DetectionDataset.from_yolo(*map(str, places), force_masks=True)
    for path, _, detections in data:
        mask = np.zeros((48, 64), np.uint8)
        for part, index in zip(detections.mask, detections.class_id, strict=True):
            mask[np.asarray(part, bool)] = index + 1
        assert np.array_equal(mask, expected[Path(path).stem])
