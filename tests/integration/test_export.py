"""``wsss export``: files that other programs take, from checkpoints as training writes them."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.config import SegmenterConfig
from wsss.data.files import read_image
from wsss.data.labels import VOC_CLASSES
from wsss.data.transforms import normalize_image, to_tensor
from wsss.export.archive import FOLDER
from wsss.models.segmenter import predict_probabilities
from wsss.tasks.segmentation import load_segmenter, new_task

# What `wsss export torch --help` shows, in a process that has neither wsss nor torchvision.
_OUTSIDE = """
import sys
sys.modules["wsss"] = sys.modules["torchvision"] = None  # importing them raises ImportError
import json, numpy, torch
torch.set_num_threads(1)
extra = {"wsss.json": ""}
network = torch.export.load(sys.argv[1], extra_files=extra).module()
photo = numpy.load(sys.argv[2])
image = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
numpy.save(sys.argv[3], network(image).detach().numpy())
print(json.dumps(json.loads(extra["wsss.json"])["classes"]))
"""


@pytest.fixture(scope="module")
def photo(shapes: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(50, 64, 3): no multiple of the network's stride."""
    return read_image(sorted((shapes / "JPEGImages").glob("val_*.jpg"))[0])[:50]


def torch_probabilities(checkpoint: Path, photo: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, Any]:
    model, _ = load_segmenter(checkpoint)
    with torch.no_grad():
        return predict_probabilities(model, normalize_image(to_tensor(photo)[None])).numpy()


def test_the_exported_program_runs_where_wsss_is_not_installed(
    finished: Path, photo: np.ndarray[Any, Any], tmp_path: Path, command: Any
) -> None:
    checkpoint, output = finished / "segmenter" / "last.ckpt", tmp_path / "model.pt2"
    done = command("export", "torch", "--checkpoint", checkpoint, "--output", output)
    assert done.status == 0, done.err
    assert done.out.startswith(f"{output}: 8 classes with background; differs from the checkpoint by at most")
    np.save(tmp_path / "photo.npy", photo)
    words = [sys.executable, "-I", "-c", _OUTSIDE, output, tmp_path / "photo.npy", tmp_path / "p.npy"]
    outside = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert outside.returncode == 0, outside.stderr
    assert tuple(json.loads(outside.stdout)) == load_segmenter(checkpoint)[1]
    expected = torch_probabilities(checkpoint, photo)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), expected, atol=1e-5)


def test_onnxruntime_predicts_what_the_checkpoint_does(
    finished: Path, photo: np.ndarray[Any, Any], tmp_path: Path, command: Any
) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    checkpoint, output = finished / "segmenter" / "last.ckpt", tmp_path / "model.onnx"
    done = command("export", "onnx", "--checkpoint", checkpoint, "--output", output)
    assert done.status == 0, done.err
    assert "opset 18, 8 classes with background; onnxruntime differs from torch by at most" in done.out
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    assert tuple(classes) == load_segmenter(checkpoint)[1]
    image = photo.transpose(2, 0, 1)[None].astype(np.float32) / 255
    found = session.run(None, {"image": image})[0]
    np.testing.assert_allclose(found, torch_probabilities(checkpoint, photo), atol=1e-4)


@pytest.mark.parametrize("what", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_backbone_that_saw_masks_is_printed_and_recorded(
    mask_pretrained: Path, tmp_path: Path, command: Any, what: str
) -> None:
    output = tmp_path / "model"
    if what == "onnx":
        onnx = pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")
    done = command("export", what, "--checkpoint", mask_pretrained, "--output", output)
    assert "not weakly supervised: the segmenter's backbone may have seen masks" in done.out
    if what == "onnx":
        recorded = {entry.key: entry.value for entry in onnx.load(output).metadata_props}["mask_pretraining"]
        assert recorded == "true"
    else:
        extra = {"wsss.json": ""}
        with output.open("rb") as stream:
            torch.export.load(stream, extra_files=extra)
        assert json.loads(extra["wsss.json"])["mask_pretraining"] is True


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    ["deeplabv3_resnet18", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large"],
)
@pytest.mark.parametrize("what", ["onnx", "torch"])
def test_every_network_can_be_exported(tmp_path: Path, command: Any, architecture: Any, what: str) -> None:
    task = new_task(SegmenterConfig(architecture=architecture, weights="none"), ("background", "a"))
    checkpoint = tmp_path / "last.ckpt"
    torch.save({"hyper_parameters": dict(task.hparams), "state_dict": task.state_dict()}, checkpoint)
    done = command("export", what, "--checkpoint", checkpoint, "--output", tmp_path / "model")
    assert done.status == 0, done.err
    assert (tmp_path / "model").stat().st_size > 1e6


def test_voc_server_packs_the_predictions_of_a_run(
    run: Path, shapes: Path, tmp_path: Path, command: Any
) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "classes": VOC_CLASSES}))
    ids = tmp_path / "test.txt"
    names = sorted(path.stem for path in (run / "predictions").glob("*.png"))
    ids.write_text("\n".join(names[:4]) + "\n")
    words = ["--photos", shapes / "JPEGImages", "--ids", ids, "--kind", "predictions_crf"]
    output = tmp_path / "results.tgz"
    done = command("export", "voc-server", run, "--output", output, *words)
    assert done.status == 0, done.err
    assert done.out == f"{output}: 4 masks in {FOLDER}\n"
    with tarfile.open(output) as archive:
        archive.extractall(tmp_path / "server", filter="data")
    for name in names[:4]:
        with Image.open(tmp_path / "server" / FOLDER / f"{name}.png") as mask:
            assert mask.mode == "P"
            with Image.open(run / "predictions_crf" / f"{name}.png") as source:
                np.testing.assert_array_equal(np.asarray(mask), np.asarray(source))


def test_voc_server_refuses_masks_of_other_classes(finished: Path, tmp_path: Path, command: Any) -> None:
    sentence = command("export", "voc-server", finished, "--output", tmp_path / "r.tgz").sentence
    assert f"{finished / 'predictions'} was made with 7 classes" in sentence
    assert 'VOC\'s test server has 20: index 1 is "ball" there and "aeroplane" here' in sentence
    assert not (tmp_path / "r.tgz").exists()


def test_voc_server_refuses_pseudo_masks(finished: Path, tmp_path: Path, command: Any) -> None:
    folder = tmp_path / "pseudo"
    folder.mkdir()
    Image.new("L", (4, 4), 255).save(folder / "a.png")
    sentence = command("export", "voc-server", folder, "--output", tmp_path / "r.tgz").sentence
    assert "a.png holds 255 (no answer), but the server accepts only 0..20" in sentence
    assert not (tmp_path / "r.tgz").exists()


@pytest.mark.parametrize("what", ["onnx", "torch"])
def test_what_is_no_segmenter_is_refused(finished: Path, tmp_path: Path, command: Any, what: str) -> None:
    if what == "onnx":
        pytest.importorskip("onnxscript")
    words = ["--output", tmp_path / "m", "--checkpoint"]
    sentence = command("export", what, *words, finished / "classifier" / "last.ckpt").sentence
    assert "a wsss segmenter checkpoint is needed" in sentence
    assert "there is no checkpoint" in command("export", what, *words, tmp_path / "none.ckpt").sentence


def test_export_is_listed_and_explains_itself(command: Any) -> None:
    assert "\n  export " in command("--help").out
    done = command("export", "--help")
    assert done.status == 0
    for word in ("onnx", "torch", "voc-server", "examples:"):
        assert word in done.out
    assert "onnxruntime.InferenceSession" in command("export", "onnx", "--help").out
    assert "torch.export.load" in command("export", "torch", "--help").out
    assert "comp6_test_cls" in command("export", "voc-server", "--help").out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "required: WHAT"),
        (("tflite",), "invalid choice: 'tflite'"),
        (("onnx", "--output", "m.onnx"), "required: --checkpoint"),
        (("voc-server", "runs/voc", "--output", "r.tgz", "--kind", "best"), "invalid choice: 'best'"),
        (("onnx", "--checkpoint", "c", "--output", "m", "--opset", "new"), "invalid int value"),
    ],
)
def test_bad_usage_exits_with_2(command: Any, words: tuple[str, ...], part: str) -> None:
    done = command("export", *words)
    assert done.status == 2
    assert part in done.err
