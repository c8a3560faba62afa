"""A segmenter as one file for other programs: ONNX, or an exported program for torch alone.

Both come from one capture of the network (torch.export), with the normalisation inside: ``image`` float32
(N, 3, H, W), RGB in 0..1, to ``probabilities`` float32 (N, classes, H, W), background first. TorchScript and the ONNX
exporter built on it need fewer packages, but torch has deprecated both.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from wsss import __version__
from wsss.config import NOT_WEAK
from wsss.data.files import atomic_path
from wsss.data.transforms import MEAN, STD
from wsss.errors import UserError
from wsss.tasks.segmentation import load_trained

METADATA = "wsss.json"
"""Name of the metadata in an exported program."""

TOLERANCE = 1e-4
"""Largest allowed difference of a probability between the written file and its network."""

# torch.export takes a side of one cell for a constant; at this side the coarsest maps (stride 32) have two cells.
SMALLEST_SIDE = 33

# Batches and sizes on which the written file is checked: unlike the example's, odd and even.
_CHECKED = ((1, 64, 96), (2, 75, 50), (1, SMALLEST_SIDE, 131))
_EXAMPLE = (2, 97, 130)

Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


class PhotoSegmenter(nn.Module):
    """From ordinary photos to probabilities: normalisation, network, softmax."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(STD).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) float32 RGB in 0..1 -> probabilities (N, classes, H, W), sums to one over classes."""
        logits: Tensor = self.network((image - self.mean) / self.deviation)
        return logits.softmax(1)


def export_torch(checkpoint: Path, output: Path) -> str:
    """Writes a segmenter as an exported program, which ``torch.export.load`` reads without this package.

    Args:
        checkpoint: of a segmenter.
        output: the file, usually ``*.pt2``.

    Returns:
        A summary for the user, with the largest difference from the network.

    Raises:
        UserError: unreadable checkpoint, a network that cannot be captured, a difference above ``TOLERANCE``.
    """
    model, metadata = _load(checkpoint, output)
    with _quiet():
        program = capture(model)
        with atomic_path(output) as temporary, temporary.open("wb") as stream:
            torch.export.save(program, stream, extra_files={METADATA: json.dumps(metadata)})
            stream.flush()
            with temporary.open("rb") as written:
                loaded = torch.export.load(written).module()
            difference = check_outputs(model, lambda image: loaded(torch.from_numpy(image)).numpy(), output)
    return f"{output}: {_facts(metadata)}; differs from the checkpoint by at most {difference:.1e}"


def export_onnx(checkpoint: Path, output: Path, opset: int = 18) -> str:
    """Writes a segmenter as ONNX and compares onnxruntime's results with torch's.

    Args:
        checkpoint: of a segmenter.
        output: the file, usually ``*.onnx``; weights are inside.
        opset: version of ONNX's operators.

    Returns:
        A summary for the user, with the largest difference from the network.

    Raises:
        UserError: packages are missing, unreadable checkpoint, a network or an opset that cannot be exported, a
            difference above ``TOLERANCE``.
    """
    check_onnx_packages()
    model, metadata = _load(checkpoint, output)
    with _quiet():
        content = onnx_bytes(capture(model), metadata, opset)
    difference = check_outputs(model, onnx_runner(content), output)
    with atomic_path(output) as temporary:
        temporary.write_bytes(content)
    return (
        f"{output}: opset {opset}, {_facts(metadata)}; "
        f"onnxruntime differs from torch by at most {difference:.1e} (allowed: {TOLERANCE:.0e})"
    )


def check_onnx_packages() -> None:
    """Raises UserError if packages of the extra ``onnx`` are missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f'ONNX needs {", ".join(missing)}; install them with: pip install "wsss[onnx]"')


def _load(checkpoint: Path, output: Path) -> tuple[PhotoSegmenter, dict[str, Any]]:
    if output.resolve() == checkpoint.resolve():
        raise UserError(
            f"{output} is the checkpoint itself and would be overwritten; choose another --output"
        )
    trained = load_trained(checkpoint)
    metadata = {
        "classes": list(trained.classes),
        "input": "image: float32 (N, 3, H, W), RGB in 0..1",
        "output": "probabilities: float32 (N, classes, H, W), background first",
        "smallest_side": SMALLEST_SIDE,
        "long_side": trained.long_side,
        "mask_pretraining": trained.config.mask_pretraining,
        "made_by": f"wsss {__version__}, torch {torch.__version__}",
    }
    return PhotoSegmenter(trained.network).eval(), metadata


def _facts(metadata: dict[str, Any]) -> str:
    warning = f", {NOT_WEAK}" if metadata["mask_pretraining"] else ""
    return f"{len(metadata['classes'])} classes with background{warning}"


def capture(model: nn.Module) -> ExportedProgram:
    """The computation of a network, for any batch size and for any height and width from ``SMALLEST_SIDE`` on.

    Raises:
        UserError: torch.export cannot follow the network, or would fix its input to one size.
    """
    sides = {axis: Dim(name, min=SMALLEST_SIDE) for axis, name in ((2, "height"), (3, "width"))}
    try:
        return torch.export.export(
            model, (_photos(_EXAMPLE),), dynamic_shapes=({0: Dim("batch", min=1), **sides},)
        )
    except Exception as error:  # torch raises exceptions of many private types here
        raise UserError(
            f"torch {torch.__version__} cannot export this network ({_first_line(error)}): "
            "try a newer torch, or another segmenter.architecture"
        ) from error


def onnx_bytes(program: ExportedProgram, metadata: dict[str, Any], opset: int) -> bytes:
    """The ONNX file of a captured network.

    Raises:
        UserError: the exporter fails, or has no such opset.
    """
    import onnx

    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=["image"],
            output_names=["probabilities"],
            verbose=False,
        )
        assert exported is not None  # it is None only where a file name is given
        model = exported.model_proto
    except Exception as error:  # likewise
        raise UserError(
            f"this network cannot be exported with opset {opset} ({_first_line(error)}): "
            "try --opset 18, or a newer torch and onnxscript"
        ) from error
    made = next(entry.version for entry in model.opset_import if entry.domain == "")
    if made != opset:
        raise UserError(f"the exporter wrote opset {made} instead of {opset}: use --opset {made}")
    _describe(model, metadata)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _describe(model: Any, metadata: dict[str, Any]) -> None:
    """Names the free axes of an ONNX model and adds the metadata; values that are not text become JSON."""
    from onnx.helper import set_model_props

    for value in (*model.graph.input, *model.graph.output):
        for axis, name in ((0, "batch"), (2, "height"), (3, "width")):
            value.type.tensor_type.shape.dim[axis].dim_param = name
    del model.graph.value_info[:]  # shapes of inner values, in the names that torch had for the three
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in metadata.items()
    }
    set_model_props(model, texts)


def onnx_runner(content: bytes) -> Run:
    """What onnxruntime computes from an ONNX file, on the CPU."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    return lambda image: session.run(["probabilities"], {"image": image})[0]


def check_outputs(model: nn.Module, run: Run, output: Path) -> float:
    """The largest difference on several batches and sizes. Raises UserError if it is above ``TOLERANCE``."""
    largest = 0.0
    with torch.no_grad():
        for size in _CHECKED:
            images = _photos(size)
            expected, found = model(images).numpy(), run(images.numpy())
            difference = float(np.abs(expected - found).max()) if found.shape == expected.shape else np.inf
            if not difference <= TOLERANCE:  # also finds NaN
                raise UserError(
                    f"{output} is not written: the exported network differs from the checkpoint's by "
                    f"{difference:.1e} at (N, H, W) = {size}, but {TOLERANCE:.0e} is allowed; "
                    "try a newer torch, or report it"
                )
            largest = max(largest, difference)
    return largest


def _photos(size: tuple[int, int, int]) -> Tensor:
    """(N, 3, H, W) float32 in 0..1: blots and noise, the same in every call."""
    batch, height, width = size
    random = torch.Generator().manual_seed(0)
    blots = nn.functional.interpolate(
        torch.rand(batch, 3, 5, 5, generator=random), (height, width), mode="bilinear"
    )
    return (blots + 0.1 * torch.rand(batch, 3, height, width, generator=random)).clamp(0, 1)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the messages of torch's exporters, about which the user can do nothing."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
