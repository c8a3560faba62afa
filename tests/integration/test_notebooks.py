"""The notebooks in examples/ and the service in docs/python.md run as they stand there, on the tiny run."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wsss
from wsss.cli import main

REPOSITORY = Path(__file__).parents[2]
NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))


@pytest.fixture
def there(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory as the notebooks and the service expect it."""
    photos = ["--layout", "folder", "--train", "6", "--val", "3", "--size", "64"]
    assert main(["data", "shapes", str(tmp_path / "data" / "photos"), *photos]) == 0
    assert main(["data", "shapes", str(tmp_path / "data" / "scored"), *photos, "--masks"]) == 0
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "photos").symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def execute(there: Path) -> Callable[[Path], dict[str, Any]]:
    """Runs the code cells of a notebook in order and returns its names."""

    def call(path: Path) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "__main__"}
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"{path.name}, {cell['id']}", "exec"), names)
        return names

    return call


def test_there_are_two_and_they_are_clean() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["maps_of_a_classifier", "tags_to_masks"]
    for path in NOTEBOOKS:
        tree = json.loads(path.read_text(encoding="utf-8"))
        assert (tree["nbformat"], tree["nbformat_minor"]) == (4, 5)
        for cell in tree["cells"]:
            assert cell.get("outputs", []) == []
            assert cell.get("execution_count") is None
            for target in re.findall(
                r"\]\(([^)]+)\)", "".join(cell["source"]) * (cell["cell_type"] == "markdown")
            ):
                assert (path.parent / target).exists(), target


def test_tags_become_masks(execute: Any, there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = execute(REPOSITORY / "examples" / "tags_to_masks.ipynb")
    said = capfd.readouterr().out
    assert "3 photos predicted, masks in masks" in said
    assert said.count("precision") == len(names["agreement"]["per_class"]) > 0
    assert (there / "masks" / "predictions.html").is_file()
    confidences = [names["results"][photo].confidence for photo in names["in_order"]]
    assert len(confidences) == 3
    assert confidences == sorted(confidences)


def test_methods_are_explained_and_compared(execute: Any, capfd: pytest.CaptureFixture[str]) -> None:
    names = execute(REPOSITORY / "examples" / "maps_of_a_classifier.ipynb")
    lines = [line for line in capfd.readouterr().out.splitlines() if " energy " in line]
    assert [line.split("  ")[0].split(" pointing")[0] for line in lines] == names["METHODS"]
    for line in lines:
        pointing, energy = re.findall(r"\d\.\d\d", line.partition("pointing")[2])
        assert 0 <= float(pointing) <= 1
        assert 0 < float(energy) <= 1
    assert all(len(row.pictures) == 1 + len(names["METHODS"]) for row in names["rows"])


def test_the_service_of_the_docs_answers_with_a_mask(there: Path) -> None:
    from fastapi.testclient import TestClient

    text = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    block = next(one for one in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "FastAPI" in one)
    service: dict[str, Any] = {"__name__": "service"}
    exec(compile(block, "service.py", "exec"), service)
    client = TestClient(service["app"])
    photo = next((there / "data" / "photos" / "images").glob("*.jpg"))
    answer = client.post("/mask", files={"photo": (photo.name, photo.read_bytes(), "image/jpeg")})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    expected = wsss.load(there / "runs" / "photos").predict(photo)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), expected.mask)
    assert answer.headers["x-classes"] == ",".join(expected.found)
    assert float(answer.headers["x-confidence"]) == pytest.approx(expected.confidence)
    for content in (b"no photo", photo.read_bytes()[:400]):
        refused = client.post("/mask", files={"photo": ("a.jpg", content, "image/jpeg")})
        assert refused.status_code == 400
        assert refused.json()["detail"].startswith("not a photo: ")
