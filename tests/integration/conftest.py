"""A tiny finished run that the integration tests share, and how they call the command line."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.cli import main
from wsss.data.files import read_saliency, write_saliency

TRAIN, VAL, SIZE = 16, 6, 64

SETTINGS = {
    "classifier": {
        "architecture": "resnet18",
        "weights": "none",
        "output_stride": 32,
        "epochs": 3,
        "batch_size": 8,
        "long_side": [64, 72],
        "crop": 64,
    },
    "saliency": {"scales": [0.5, 1.0], "batch_size": 1},
    "extend": {"method": "none"},
    "refine": {"background": {"rule": "constant"}},
    "segmenter": {
        "architecture": "light",
        "weights": "classifier",
        "epochs": 2,
        "batch_size": 8,
        "crop": 64,
    },
    "evaluate": {"scales": [0.75, 1.0], "oracle_images": 4},
    "runtime": {"accelerator": "cpu", "precision": "float32", "workers": 0, "progress": False},
}
"""Small and exactly repeatable: every stage is real, no number is good."""


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The message of a refused command: its only ``error:`` line, without a traceback."""
        assert self.status == 1, (self.status, self.err)
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if ": error: " in line]
        assert len(lines) == 1, self.err
        assert self.err.rstrip().endswith(lines[0]), f"more than one line: {self.err}"
        if log := os.environ.get("WSSS_FAULTS"):  # for the table in docs/faults.md, see benchmarks/torture.py
            with open(log, "a") as file:
                name = os.environ["PYTEST_CURRENT_TEST"].removesuffix(" (call)")
                file.write(json.dumps([name, lines[0]]) + "\n")
        return lines[0]


Command = Callable[..., Outcome]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Calls ``wsss WORDS...`` in this process."""

    def call(*words: object) -> Outcome:
        capfd.readouterr()
        status = main([str(word) for word in words])
        captured = capfd.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shapes data set, to be read only."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    assert (
        main(["data", "shapes", str(root), "--train", f"{TRAIN}", "--val", f"{VAL}", "--size", f"{SIZE}"])
        == 0
    )
    return root


@pytest.fixture
def shapes_copy(shapes: Path, tmp_path: Path) -> Path:
    """The shapes data set, to be damaged; load it with ``voc_words``."""
    return Path(shutil.copytree(shapes, tmp_path / "photos"))


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything tiny, without data set and output (JSON is YAML)."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(json.dumps(SETTINGS))
    return path


@pytest.fixture(scope="session")
def tiny(tiny_config: Path, shapes: Path) -> list[str]:
    """Options of the shared run; add ``--output``."""
    options = {"train": TRAIN, "val": VAL, "size": SIZE}
    words = [word for key, value in options.items() for word in (f"--data.shapes.{key}", str(value))]
    return ["--config", str(tiny_config), "--data.root", str(shapes), *words]


@pytest.fixture(scope="session")
def finished(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole finished run, to be read only."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["run", *tiny, "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained segmenter, saved as Lightning saves it: quick to make, and as sensitive to its input."""
    from wsss.config import SegmenterConfig
    from wsss.tasks.segmentation import new_task

    torch.manual_seed(0)
    task = new_task(SegmenterConfig(architecture="light", weights="none"), ("background", "disc", "square"))
    path = tmp_path_factory.mktemp("predict") / "last.ckpt"
    torch.save({"hyper_parameters": dict(task.hparams), "state_dict": task.state_dict()}, path)
    return path


@pytest.fixture(scope="session")
def mask_pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of an untrained segmenter whose configuration allowed weights that had seen masks."""
    from wsss.config import SegmenterConfig
    from wsss.tasks.segmentation import new_task

    task = new_task(SegmenterConfig(architecture="light", weights="none"), ("background", "disc", "square"))
    allowed = {**task.hparams["config"], "weights": "deeplab.pth", "allow_mask_pretraining": True}
    path = tmp_path_factory.mktemp("pretrained") / "last.ckpt"
    hyper_parameters = {**task.hparams, "config": allowed}
    torch.save({"hyper_parameters": hyper_parameters, "state_dict": task.state_dict()}, path)
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, modification times kept."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def with_evidence(run: Path) -> Path:
    """A copy of the finished run whose classifier finds every class everywhere, however its training went."""
    for path in (run / "classifier").glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        head = [value for name, value in checkpoint["state_dict"].items() if name.endswith("weight")][-1]
        head.abs_()
        torch.save(checkpoint, path)
    return run


@pytest.fixture
def with_ramps(run: Path) -> Path:
    """A copy of the finished run, before its masks; each class's saliency runs from 0 to 1 across the photo."""
    for path in (run / "saliency").iterdir():
        archive = read_saliency(path)
        ramp = np.linspace(0, 1, 16, dtype=np.float16)
        ramps = [np.tile(ramp if index % 2 else ramp[::-1], (16, 1)) for index in range(len(archive.classes))]
        maps = np.stack(ramps) if ramps else archive.maps
        write_saliency(path, replace(archive, maps=maps))
    for name in ("pseudo_masks", "pseudo_labels"):
        shutil.rmtree(run / name)
    return run


@pytest.fixture
def stages() -> Callable[[Path], dict[str, Any]]:
    """Reads the stages of a run's manifest."""

    def read(output: Path) -> dict[str, Any]:
        entries: dict[str, Any] = json.loads((output / "manifest.json").read_text())["stages"]
        return entries

    return read


@pytest.fixture(scope="session")
def voc_words(tiny_config: Path) -> Callable[[Path], list[str]]:
    """Options for a (damaged) copy of the shapes as a data set of one's own in VOC layout."""

    def words(root: Path) -> list[str]:
        kind = ["--data.kind", "voc", "--data.labels", "labels.csv", "--data.classes", "classes.txt"]
        return ["--config", str(tiny_config), "--data.root", str(root), *kind]

    return words


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos of two tags in a folder of one's own; nested, of several sizes, without masks."""
    root = tmp_path / "own"
    (root / "images" / "beach").mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = ["image,labels"]
    for index in range(12):
        name = f"beach/{index}" if index % 4 == 0 else f"{index}"
        pixels = random.integers(0, 255, (40 + 8 * (index % 3), 56, 3), dtype=np.uint8)
        pixels[8:24, 8:24] = (250, 10, 10) if index % 2 else (10, 10, 250)
        Image.fromarray(pixels).save(root / "images" / f"{name}.jpg")
        rows.append(f"{name},{'red' if index % 2 else 'blue;square'}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="session")
def folder_words(tiny_config: Path) -> Callable[[Path], list[str]]:
    """Options for ``folder``."""

    def words(root: Path) -> list[str]:
        return ["--config", str(tiny_config), "--data.kind", "folder", "--data.root", str(root)]

    return words
