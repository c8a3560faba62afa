"""The stages on a device that refuses mixed tensors (tests/pretend.py): they run, and write what the CPU writes."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.pretend import CUDA, pretending
from wsss import predict as prediction
from wsss import runtime
from wsss.cli import main
from wsss.config import ClassifierConfig, SegmenterConfig
from wsss.data.files import read_mask
from wsss.stages import refine
from wsss.tasks import classification, segmentation


class Inline(Executor):
    """Works at once in this thread: torch's modes are per thread."""

    def __init__(self, workers: int) -> None: ...

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(runtime, "device", lambda config: CUDA)
    monkeypatch.setattr(runtime, "precision", lambda config: ("float32", ""))
    for module in (refine, prediction):
        monkeypatch.setattr(module, "ThreadPoolExecutor", Inline)
    with pretending():
        yield


@pytest.fixture(scope="module")
def on_cpu(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose CRFs are torch's, with an extension."""
    output = tmp_path_factory.mktemp("cpu") / "run"
    words = ["--extend.method", "pixels", "--extend.photos", "8", "--refine.backend", "torch"]
    assert main(["run", *tiny, *words, "--output", str(output)]) == 0
    return output


def test_the_stages_write_what_they_write_on_a_cpu(on_cpu: Path, tmp_path: Path, on_cuda: None) -> None:
    run = tmp_path / "run"
    shutil.copytree(on_cpu, run)
    for name in ("saliency", "extended", "pseudo_masks", "pseudo_labels", "predictions", "predictions_crf"):
        shutil.rmtree(run / name)
    (run / "extension.npz").unlink()
    for command in ("saliency", "refine", "evaluate"):
        assert main([command, str(run)]) == 0
    for folder, limit in (("saliency", 5e-3), ("extended", 2e-2)):
        for path in (on_cpu / folder).glob("*.npz"):
            with np.load(path) as expected, np.load(run / folder / path.name) as found:
                np.testing.assert_allclose(found["maps"], expected["maps"], atol=limit)
    for folder in ("pseudo_labels", "predictions", "predictions_crf"):
        shares = [
            (read_mask(path) == read_mask(run / folder / path.name)).mean()
            for path in (on_cpu / folder).glob("*.png")
        ]
        assert len(shares) > 4
        assert np.mean(shares) > 0.99, folder


def test_new_photos_are_predicted_and_explained(
    on_cpu: Path, shapes: Path, tmp_path: Path, on_cuda: None
) -> None:
    photo = str(next(shapes.glob("JPEGImages/*")))
    words = ["--checkpoint", str(on_cpu), "--output"]
    assert (
        main(["predict", photo, *words, str(tmp_path / "masks"), "--ms_flip", "--crf", "--probabilities"])
        == 0
    )
    assert (
        main(["explain", photo, *words, str(tmp_path / "why.png"), "--method", "sess(gradcam, scales=(64,))"])
        == 0
    )


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_a_step_of_training_has_no_tensor_elsewhere(kind: str, on_cuda: None) -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 64, 64).to("cuda")
    if kind == "classifier":
        task: Any = classification.new_task(ClassifierConfig("resnet18", "none"), ("cat", "dog"))
        batch = (images, torch.eye(2).repeat(2, 1).to("cuda"))
    else:
        task = segmentation.new_task(
            SegmenterConfig("light", "none", loss="bootstrap"), ("background", "cat")
        )
        batch = (images, torch.randint(0, 2, (4, 64, 64)).to("cuda"))
    assert isinstance(task, nn.Module)
    task.log = lambda *_, **__: None  # type: ignore[assignment]
    task = task.to("cuda")
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(3):
        loss = task.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
