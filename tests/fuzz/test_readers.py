"""Whatever a file of the user's holds: its reader gives a value or a UserError, and no id leaves its folder."""

import io
import json
import posixpath
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from wsss.config import ClassifierConfig, SegmenterConfig
from wsss.data.boxes import read_boxes
from wsss.data.check import check_dataset
from wsss.data.coco import coco_mask, read_instances
from wsss.data.files import (
    check_mask_header,
    image_size,
    read_image,
    read_mask,
    read_saliency,
    read_truth,
)
from wsss.data.folder import load_folder
from wsss.data.imagenet import load_imagenet, read_indices
from wsss.data.labels import read_ids, xml_names
from wsss.data.names import read_classes
from wsss.data.shapes import write_shapes
from wsss.data.tags import read_csv_classes, read_label_csv, read_label_rows
from wsss.errors import UserError
from wsss.models.backbone import BACKBONES
from wsss.models.weights import load_into, load_weights
from wsss.predict import _differences
from wsss.rundir import RunDirectory
from wsss.stages.calibrate import _stored
from wsss.stages.extend import read_layer
from wsss.tasks import classification, segmentation

CLASSES = ("cat", "dog", "traffic light")
FEWER = settings(max_examples=max(4, settings.default.max_examples // 20))
"""Where a case builds a network."""

TOKENS = (
    *b"\0|\xff\xfe|\xef\xbb\xbf|\x85|\xe2\x80\xa8|e\xcc\x81|\xed\xa0\x80|\t|\r\n|\n|\r| |.jpg|..|../|/|\\|C:/".split(
        b"|"
    ),
    *b"""-1|0|1e999|nan|null|true|<|&|{|[|"|'|;|,|=""".split(b"|"),
    b"9" * 400,
    b"x" * 300,
)
"""Byte order marks, line ends, accents, a surrogate, paths, numbers, quotes, and what is too long."""


@st.composite
def changed(draw: st.DrawFn, valid: bytes) -> bytes:
    """Arbitrary bytes; or a valid file in which some bytes are removed, repeated or replaced, or the end is cut off."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        stop = draw(st.integers(start, min(len(content), start + 20)))
        new = draw(st.sampled_from(TOKENS) | st.binary(max_size=4) | st.just(bytes(content[start:stop]) * 2))
        content[start:stop] = new
    return bytes(content[: draw(st.just(len(content)) | st.integers(0, len(content)))])


def assert_inside(identifiers: Iterable[str]) -> None:
    """Every file that is written for them lies in the folder that it is written to."""
    for identifier in identifiers:
        path = posixpath.normpath(f"/run/masks/{identifier}.png")
        assert path.startswith("/run/masks/"), identifier
        assert "\0" not in identifier


# -- text -------------------------------------------------------------------------------------------


def rows(path: Path) -> Iterable[str]:
    return [row.identifier for row in read_label_rows(path)]


def annotated(path: Path) -> Iterable[str]:
    read_boxes(path, CLASSES)
    xml_names(path)
    return [path.stem]


def instances(path: Path) -> Iterable[str]:
    images = read_instances(path)
    for image in images:
        coco_mask(image.annotations, image.size, image.id)
    return [image.id for image in images]


def without_ids(call: Callable[[Path], Any]) -> Callable[[Path], Iterable[str]]:
    def read(path: Path) -> Iterable[str]:
        call(path)
        return ()

    return read


INSTANCES = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 6, "width": 8}],
    "categories": [{"id": 17, "name": "cat"}],
    "annotations": [
        {"image_id": 1, "category_id": 17, "iscrowd": 0, "segmentation": [[0, 0, 2, 0, 2.5, 2, 0, 2]]},
        {"image_id": 1, "category_id": 17, "iscrowd": 1, "segmentation": {"size": [6, 8], "counts": [8, 40]}},
        {"image_id": 1, "category_id": 17, "segmentation": {"size": [6, 8], "counts": "=3300000005"}},
    ],
}
ROWS = b'\xef\xbb\xbfimage,labels\na.jpg,cat;dog\n"b/c d",traffic light\ne,\n'
ONE_HOT = b"image,dog,cat\na.jpg,0,1\nb/c,1,1\n"
SEMICOLONS = b"image;labels\r\na.jpg;cat;dog\r\nb;\r\n"
ANNOTATION = (
    b"<annotation><object><name>cat</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>2.5</ymin>"
    b"<xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"
)

CSVS = {"tags": ROWS, "columns": ONE_HOT, "semicolons": SEMICOLONS}
TEXTS: dict[str, tuple[Callable[[Path], Iterable[str]], bytes]] = {
    **{f"rows, {name}": (rows, text) for name, text in CSVS.items()},
    **{f"labels, {name}": (lambda path: read_label_csv(path, CLASSES), text) for name, text in CSVS.items()},
    **{f"classes, {name}": (without_ids(read_csv_classes), text) for name, text in CSVS.items()},
    "classes": (without_ids(read_classes), b"cat\r\ndog\n\ntraffic light\n"),
    "ids": (read_ids, b"a.jpg\n2007_000032\n\nb/c d\n"),
    "flat ids": (lambda path: read_ids(path, nested=False), b"a.jpg\n2007_000032\n"),
    "flagged ids": (read_ids, b"a 1\nb -1\n"),
    "pairs": (read_ids, b"/JPEGImages/a.jpg /SegmentationClassAug/a.png\n"),
    "indices": (read_indices, b"a.JPEG 1\nb/c.JPEG 999\n"),
    "annotation": (annotated, ANNOTATION),
    "instances": (instances, json.dumps(INSTANCES).encode()),
}


@pytest.mark.parametrize("name", TEXTS)
@given(data=st.data())
def test_text_gives_ids_inside_or_a_sentence(name: str, data: st.DataObject, tmp_path: Path) -> None:
    read, valid = TEXTS[name]
    path = tmp_path / "file.xml"
    path.write_bytes(data.draw(changed(valid)))
    with suppress(UserError):
        assert_inside(read(path))


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_from_which_the_cases_are_made_is_read(name: str, tmp_path: Path) -> None:
    read, valid = TEXTS[name]
    (tmp_path / "file.xml").write_bytes(valid)
    read(tmp_path / "file.xml")


# -- JSON -------------------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["..", "/etc/x", "a/b", "a.jpg"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def replaced(draw: st.DrawFn, valid: Any) -> Any:
    """The same tree of dictionaries and lists with another value at one place, or without it."""
    if not isinstance(valid, dict | list) or not valid or draw(st.integers(0, 6)) == 0:
        return draw(VALUES)
    keys = list(valid) if isinstance(valid, dict) else list(range(len(valid)))
    key, copy = draw(st.sampled_from(keys)), valid.copy()
    if draw(st.integers(0, 6)) == 0:
        del copy[key]
    else:
        copy[key] = draw(replaced(valid[key]))
    return copy


@given(value=replaced(INSTANCES))
def test_instances_of_any_form_are_read_or_refused(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(value))
    with suppress(UserError):
        assert_inside(instances(path))


@given(value=SCALARS | st.lists(SCALARS, max_size=3))
def test_json_that_wsss_wrote_and_that_was_replaced_is_refused(value: Any, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for path, read in (
        (run.manifest, lambda: run.stage_state("saliency", "f")),
        (run.metrics, lambda: run.update_metrics(val=None)),
        (run.calibration, lambda: _stored(run)),
        (tmp_path / "predictions.json", lambda: _differences(tmp_path / "predictions.json", {})),
        (tmp_path / "shapes.json", lambda: write_shapes(tmp_path, train=1, val=1, size=64)),
    ):
        path.write_text(json.dumps(value))
        with pytest.raises(UserError):
            read()


# -- images -----------------------------------------------------------------------------------------


def encoded(mode: str, form: str, **options: Any) -> bytes:
    """A picture of 12 x 9 pixels."""
    pixels, stream = np.random.default_rng(0).integers(0, 5, (9, 12, 3), np.uint8), io.BytesIO()
    image = Image.fromarray(pixels if mode in ("RGB", "RGBA", "CMYK") else pixels[..., 0])
    image.convert(mode).save(stream, form, **options)
    return stream.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
PICTURES = {
    **{f"{mode}.png": encoded(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    **{f"{mode}.jpg": encoded(mode, "JPEG", exif=EXIF) for mode in ("L", "RGB", "CMYK")},
    **{f"{mode}.tif": encoded(mode, "TIFF", exif=EXIF) for mode in ("L", "RGB", "F", "I;16")},
    **{f"{mode}.webp": encoded(mode, "WEBP", exif=EXIF) for mode in ("RGB", "RGBA")},
    **{f"{mode}.bmp": encoded(mode, "BMP") for mode in ("L", "RGB")},
    "P.gif": encoded("P", "GIF"),
}


@pytest.mark.filterwarnings("ignore")  # Pillow's of damaged files
@pytest.mark.parametrize("name", PICTURES)
@given(data=st.data())
def test_pictures_are_read_whole_or_refused(name: str, data: st.DataObject, tmp_path: Path) -> None:
    path, photo, found = tmp_path / name, tmp_path / "photo.png", {}
    path.write_bytes(data.draw(changed(PICTURES[name])))
    photo.write_bytes(PICTURES["RGB.png"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
        for read in (read_image, image_size, read_mask):
            with suppress(UserError):
                found[read] = read(path)
        for check in (check_mask_header, read_truth):
            with suppress(UserError):
                check(path, photo)
    if read_image in found:
        assert (found[read_image].dtype, found[read_image].shape) == (np.uint8, (*found[image_size], 3))
    if read_mask in found:
        assert (found[read_mask].dtype, found[read_mask].ndim) == (np.uint8, 2)


# -- folders ----------------------------------------------------------------------------------------


@given(data=st.data())
def test_a_folder_of_anything_is_loaded_or_refused_and_always_checked(
    data: st.DataObject, tmp_path: Path
) -> None:
    files = {
        "images/a.jpg": PICTURES["RGB.jpg"], "images/b/c d.png": PICTURES["RGB.png"], "masks/a.png": PICTURES["P.png"],
        "labels.csv": b"image,labels\na,cat\nb/c d,dog\n", "classes.txt": b"cat\ndog\n", "val.txt": b"a\n",
    }  # fmt: skip
    damaged = data.draw(st.sets(st.sampled_from(sorted(files)), min_size=1, max_size=2))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data.draw(changed(content)) if name in damaged else content)
    assert str(check_dataset(tmp_path, None, None))
    with suppress(UserError):
        dataset = load_folder(tmp_path, "xml", None, None, "val")
        assert_inside(record.id for record in (*dataset.train, *dataset.val))


@given(order=changed(b"n01440764 tench\nn01443537 goldfish\n"))
def test_an_order_of_class_folders_is_read_or_refused(order: bytes, tmp_path: Path) -> None:
    (tmp_path / "n01440764").mkdir(exist_ok=True)
    (tmp_path / "n01440764" / "a.JPEG").write_bytes(PICTURES["RGB.jpg"])
    (tmp_path / "order.txt").write_bytes(order)
    with suppress(UserError):
        load_imagenet(tmp_path, "xml", tmp_path / "order.txt", None, None)


# -- arrays -----------------------------------------------------------------------------------------


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def stored(array: Any, shape: tuple[int, ...] | None = None) -> bytes:
    """A .npy file, whose header may tell another shape."""
    stream = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(
        stream, {**header, "shape": header["shape"] if shape is None else shape}
    )
    return stream.getvalue() + array.tobytes()


ARRAYS = st.one_of(
    *(
        arrays.arrays(kind, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
        for kind in (np.int16, np.int32, np.float16, np.float32, np.bool_, np.complex64, "U3", "M8[s]")
    )
)
SHAPES = (
    st.none() | st.tuples(st.integers(-1, 2**62)) | st.tuples(*[st.sampled_from([0, 1, 3, 2**20, 2**40])] * 3)
)
MEMBERS = st.fixed_dictionaries(
    {},
    optional={
        name: st.builds(stored, ARRAYS, SHAPES) for name in ("classes", "maps", "size", "weight", "bias")
    },
)
SALIENCY = {
    "classes": stored(np.array([1, 2], np.int16)),
    "maps": stored(np.zeros((2, 3, 4), np.float16)),
    "size": stored(np.array([9, 12], np.int32)),
    "weight": stored(np.zeros((2, 3), np.float32)),
    "bias": stored(np.zeros(2, np.float32)),
}


@given(content=changed(zipped(SALIENCY)) | st.builds(lambda part: zipped({**SALIENCY, **part}), MEMBERS))
def test_archives_of_arrays_are_read_or_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with suppress(UserError):
        saliency = read_saliency(path)
        assert len(saliency.classes) == len(saliency.maps)
    with suppress(UserError):
        assert read_layer(path).weight.dtype == torch.float32


# -- checkpoints ------------------------------------------------------------------------------------


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def checkpoint(task: Any) -> dict[str, Any]:
    return {"hyper_parameters": dict(task.hparams), "state_dict": task.state_dict()}


@pytest.fixture(scope="module", params=["classifier", "segmenter"])
def trained(request: pytest.FixtureRequest) -> tuple[Callable[[Path], Any], dict[str, Any]]:
    """How a checkpoint is read, and a valid one."""
    if request.param == "segmenter":
        light = SegmenterConfig(architecture="light", weights="none")
        return segmentation.load_trained, checkpoint(segmentation.new_task(light, ("background", "cat")))
    resnet = ClassifierConfig(architecture="resnet18", weights="none")
    return classification.load_classifier, checkpoint(classification.new_task(resnet, ("cat", "dog")))


@FEWER
@given(data=st.data())
def test_checkpoints_of_any_form_are_read_or_refused(
    data: st.DataObject, trained: tuple[Callable[[Path], Any], dict[str, Any]], tmp_path: Path
) -> None:
    load, valid = trained
    value = data.draw(replaced(valid))
    (tmp_path / "a.ckpt").write_bytes(saved(value))
    with suppress(UserError):
        load(tmp_path / "a.ckpt")


@given(content=changed(saved({"hyper_parameters": {"config": {"kind": "segmenter"}}, "state_dict": {}})))
def test_checkpoints_of_any_content_are_read_or_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    with suppress(UserError):
        segmentation.load_trained(tmp_path / "a.ckpt")


STATE = {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2), "gone": torch.zeros(1)}


@given(value=replaced(STATE) | st.dictionaries(st.integers(), st.just(torch.zeros(2)), min_size=1))
def test_weights_of_any_form_are_loaded_or_refused(value: Any, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(saved(value))
    model = torch.nn.Sequential()
    model.add_module("fc", torch.nn.Linear(3, 2))
    with suppress(UserError):
        state = load_weights(str(tmp_path / "a.pth"), BACKBONES["resnet18"], "classifier.weights")
        assert state is not None
        load_into(model, state, ignore=(), source="the file")
