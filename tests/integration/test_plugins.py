"""Plug-ins as a user names them; the files are those of docs/plugins.md."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "plugins.md").read_text()
FILES = {
    text.partition("\n")[0].removeprefix("# "): text
    for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def wsss(*words: Any) -> "subprocess.CompletedProcess[str]":
    """A process of its own: a plug-in stays in the process that imported it."""
    command = [sys.executable, "-m", "wsss", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_every_kind_has_a_whole_plug_in() -> None:
    assert set(FILES) == {"energy.py", "threshold.py", "tiny.py", "flat.py"}


def test_all_kinds_work_together_and_what_they_say_enters_the_run(
    files: Path, tiny: list[str], shapes: Path
) -> None:
    photos, run = files / "photos", files / "run"
    photos.mkdir()
    for number, path in enumerate(sorted(shapes.glob("JPEGImages/*"))[:20]):
        Image.open(path).save(photos / f"{('cat', 'dog', 'cat+dog')[number % 3]}_{number}.png")
    plugs = [word for name in FILES for word in ("--plugin", files / name)]
    words = ["--config", tiny[1], "--data.kind", "flat", "--data.root", photos, "--output", run]
    words += [
        "--classifier.architecture",
        "tiny",
        "--segmenter.architecture",
        "linear_tiny",
        "--runtime.workers",
        2,
    ]
    words += ["--saliency.method", "sess(energy(power=0.5), window=64, scales=(64,))"]
    words += ["--refine.method", "threshold(value=0.2)", "--extend.method", "walk"]
    done = wsss("run", *words, *plugs)
    assert done.returncode == 0, done.stderr
    for name in FILES:
        assert f"running the code of the plug-in {files / name}" in done.stderr
    assert "Energy(layer=" in (run / "manifest.json").read_text()
    assert len(list((run / "predictions").glob("*.png"))) == 2
    assert {Path(name).name for name in yaml.safe_load((run / "config.yaml").read_text())["plugins"]} == set(
        FILES
    )

    refused = wsss("refine", run)
    assert refused.returncode == 1
    assert re.search(
        r"names the plug-in .*energy\.py, whose code is not run without being asked for: add --plugin",
        refused.stderr,
    )
    assert "running the code" not in refused.stderr

    elsewhere = [
        str(word).replace(str(files), f"{files}/../{files.name}") for word in plugs
    ]  # another spelling
    again = wsss("refine", run, *elsewhere)
    assert again.stderr.count("already done") >= 2, again.stderr
    (files / "threshold.py").write_text(FILES["threshold.py"].replace("most salient", "highest"))
    changed = wsss("run", run, *plugs)
    assert changed.returncode == 1
    assert "trained with another content of the plug-in" in changed.stderr


def test_a_method_of_a_plug_in_explains_a_photo(files: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        files / "a.png"
    )
    words = ["--plugin", files / "energy.py", "--plugin", files / "tiny.py", "--architecture", "tiny"]
    done = wsss("explain", files / "a.png", *words, "--method", "energy", "--output", files / "why.png")
    assert done.returncode == 0, done.stderr
    assert np.load(files / "why.npy").shape[0] == 1


def test_a_configuration_of_the_user_names_plug_ins(files: Path, tiny: list[str]) -> None:
    tree = yaml.safe_load(Path(tiny[1]).read_text()) | {"plugins": [str(files / "energy.py")]}
    (files / "own.yaml").write_text(yaml.safe_dump(tree))
    done = wsss("run", files / "own.yaml", "--saliency.method", "energy", "--print_config")
    assert "running the code of the plug-in" in done.stderr
    assert str(files / "energy.py") in done.stdout


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.py", None, r"--plugin .*gone\.py: there is no such Python file"),
        ("broken.py", "1 / 0", r"--plugin .*broken\.py fails: ZeroDivisionError: division by zero \(--debug"),
        ("json.py", "", r"--plugin .*json\.py: .*json/__init__\.py has the same name; rename the file"),
        ("torch.py", "", r"has the same name; rename the file"),
        ("my.own.py", "", r"a name with a dot cannot be imported; rename the file"),
    ],
)
def test_what_is_no_plug_in_is_refused(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    done = wsss("run", "--plugin", tmp_path / name)
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_the_option_needs_a_path() -> None:
    assert "--plugin needs the path of a Python file" in wsss("run", "--plugin").stderr


def test_installed_plug_ins_are_found(tmp_path: Path) -> None:
    """An entry point, as `pip install` writes it."""
    (tmp_path / "installed_energy.py").write_text(FILES["energy.py"])
    metadata = tmp_path / "mine-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[wsss.plugins]\nenergy = installed_energy\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from wsss.cli import main; "
    code += "main(['run', '--print_config'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "running the code of the plug-in energy (installed_energy)" in done.stderr
