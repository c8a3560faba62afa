"""Exported segmenters: any size, the normalisation inside, and refusals. The real networks are in test_export.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss.config import SegmenterConfig
from wsss.data.transforms import normalize_image
from wsss.errors import UserError
from wsss.export import network
from wsss.export.network import (
    SMALLEST_SIDE,
    PhotoSegmenter,
    capture,
    check_outputs,
    export_onnx,
    onnx_bytes,
    onnx_runner,
)
from wsss.models.segmenter import predict_probabilities
from wsss.tasks.segmentation import Trained


class Tiny(nn.Module):
    """Three classes at stride 4, upsampled as the segmenters do."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W)."""
        return functional.interpolate(
            self.features(images), size=images.shape[-2:], mode="bilinear", align_corners=False
        )


class FixedSize(nn.Module):
    """Reads its input's height as a number, so that no other height can be exported."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the same."""
        return images.reshape(images.shape[0], 3, 97, images.shape[3])


@pytest.fixture(scope="module")
def tiny() -> PhotoSegmenter:
    torch.manual_seed(0)
    return PhotoSegmenter(Tiny()).eval()


@pytest.fixture(scope="module")
def onnx_file(tiny: PhotoSegmenter) -> bytes:
    pytest.importorskip("onnx")
    return onnx_bytes(capture(tiny), {"classes": ["background", "é", "b"], "smallest_side": 33}, 18)


def test_the_exported_network_takes_photos_as_they_are(tiny: PhotoSegmenter) -> None:
    photo = torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8)
    with torch.no_grad():
        expected = predict_probabilities(tiny.network, normalize_image(photo))
        torch.testing.assert_close(tiny(photo.float() / 255), expected)


def test_the_metadata_tell_what_the_network_expects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Trained(Tiny(), ("background", "cat", "dog"), SegmenterConfig(), long_side=640)  # type: ignore[arg-type]
    monkeypatch.setattr(network, "load_trained", lambda path: trained)
    model, metadata = network._load(tmp_path / "last.ckpt", tmp_path / "model.pt2")
    assert not model.training
    assert (metadata["classes"], metadata["long_side"]) == (["background", "cat", "dog"], 640)


def test_a_captured_network_takes_any_batch_and_size(tiny: PhotoSegmenter) -> None:
    program = capture(tiny).module()
    for size in ((1, SMALLEST_SIDE, SMALLEST_SIDE), (3, 64, 200), (1, 301, 34)):
        images = torch.rand(size[0], 3, *size[1:])
        with torch.no_grad():
            torch.testing.assert_close(program(images), tiny(images))


def test_a_network_of_one_size_is_refused() -> None:
    with pytest.raises(UserError, match="cannot export this network"):
        capture(FixedSize())


def test_onnx_names_its_axes_states_its_opset_and_carries_the_metadata(onnx_file: bytes) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(onnx_file)
    assert [(entry.domain, entry.version) for entry in model.opset_import if not entry.domain] == [("", 18)]
    for value, name, channels in (
        (model.graph.input[0], "image", 3),
        (model.graph.output[0], "probabilities", 3),
    ):
        axes = value.type.tensor_type.shape.dim
        assert value.name == name
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert axes[1].dim_value == channels
        assert [axes[axis].dim_param for axis in (0, 2, 3)] == ["batch", "height", "width"]
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "classes": '["background", "é", "b"]',
        "smallest_side": "33",
    }


def test_onnxruntime_computes_what_torch_does_at_any_size(tiny: PhotoSegmenter, onnx_file: bytes) -> None:
    pytest.importorskip("onnxruntime")
    run = onnx_runner(onnx_file)
    for size in ((1, 33, 33), (2, 64, 201), (1, 500, 37)):
        images = torch.rand(size[0], 3, *size[1:])
        with torch.no_grad():
            np.testing.assert_allclose(run(images.numpy()), tiny(images).numpy(), atol=1e-5)


def test_an_opset_that_the_exporter_does_not_have_is_refused(tiny: PhotoSegmenter) -> None:
    pytest.importorskip("onnx")
    with pytest.raises(UserError, match=r"opset (9|18)"):
        onnx_bytes(capture(tiny), {}, 9)


@pytest.mark.parametrize(
    "wrong",
    [lambda p: p + 2e-4, lambda p: p * np.nan, lambda p: p[:, :, 1:]],
    ids=["other numbers", "nan", "other size"],
)
def test_a_file_that_differs_from_the_network_is_refused(tiny: PhotoSegmenter, wrong: Any) -> None:
    def run(images: Any) -> Any:
        with torch.no_grad():
            return wrong(tiny(torch.from_numpy(images)).numpy())

    with pytest.raises(UserError, match=r"m\.onnx is not written: the exported network differs"):
        check_outputs(tiny, run, Path("m.onnx"))


def test_the_largest_difference_is_reported(tiny: PhotoSegmenter) -> None:
    def run(images: Any) -> Any:
        with torch.no_grad():
            return tiny(torch.from_numpy(images)).numpy() + np.float32(5e-5)

    assert check_outputs(tiny, run, Path("m.onnx")) == pytest.approx(5e-5, rel=0.01)


def test_missing_packages_are_named_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "find_spec", lambda name: None if name.startswith("onnxs") else name)
    with pytest.raises(UserError, match=r'ONNX needs onnxscript; .*pip install "wsss\[onnx\]"'):
        export_onnx(tmp_path / "last.ckpt", tmp_path / "m.onnx")
