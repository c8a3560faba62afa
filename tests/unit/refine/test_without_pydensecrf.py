"""The refinement where pydensecrf cannot be built: no compiler, or a Python that it does not support."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wsss
from wsss.config import RuntimeConfig
from wsss.data.dataset import Record
from wsss.data.files import Saliency, read_mask, write_saliency
from wsss.refine.parameters import BackgroundParameters, CRFParameters, RefineParameters
from wsss.refine.refiners import build_refiner
from wsss.rundir import LABELS, MASKS, SALIENCY, RunDirectory
from wsss.stages.refine import write_all


def write_photo(folder: Path, run: RunDirectory) -> Record:
    """A bright square whose saliency is coarse."""
    image = np.random.default_rng(0).integers(0, 40, (30, 41, 3), dtype=np.uint8)
    image[8:22, 12:30] += 150
    Image.fromarray(image).save(folder / "photo.png")
    maps = np.zeros((1, 5, 7), np.float16)
    maps[0, 1:4, 2:5] = 1
    write_saliency(run.saliency("photo"), Saliency(np.array([2], np.int16), maps, (30, 41)))
    return Record("photo", folder / "photo.png", (2,), None)


def refined(folder: Path) -> list[Any]:
    folder.mkdir()
    run = RunDirectory(folder / "run")
    record = write_photo(folder, run)
    config = RefineParameters(
        background=BackgroundParameters(rule="constant"), crf=CRFParameters(iterations=5)
    )
    hardware = RuntimeConfig(accelerator="cpu", workers=1, progress=False)
    write_all([record], run, build_refiner(config), SALIENCY, hardware)
    return [read_mask(run.mask(name, "photo")) for name in (LABELS, MASKS)]


def test_refinement_writes_the_same_masks_without_pydensecrf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = refined(tmp_path / "with")
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    for mask, reference in zip(refined(tmp_path / "without"), expected, strict=True):
        assert (mask == 2).any()
        assert (mask == reference).mean() > 0.999


def test_nothing_of_ours_imports_pydensecrf_but_its_backend() -> None:
    package = Path(wsss.__file__).parent
    importers = [path for path in package.rglob("*.py") if "import pydensecrf" in path.read_text("utf-8")]
    assert [path.name for path in importers] == ["crf.py"]
