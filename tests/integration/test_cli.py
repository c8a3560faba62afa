"""The command line itself: help, overview, print_config, the shim, README's commands."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import wsss
from wsss import cli
from wsss.config import Config, to_dict
from wsss.options import parse_config

REPOSITORY = Path(__file__).parents[2]
STAGES = ("run", "classify", "saliency", "refine", "segment", "evaluate", "report")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        *([name, "--help"] for name in ("score", "data", "predict", "explain", "export")),
    ],
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from wsss.cli import main; status = main(sys.argv[1:]); "
        "heavy = {'torch', 'numpy', 'lightning', 'cv2', 'PIL', 'torchvision', 'jsonargparse'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_of_the_stages_explains_the_options_without_torch() -> None:
    code = (
        "import sys; from wsss.cli import main; status = main(['run', '--help']); "
        "heavy = {'torch', 'lightning', 'cv2', 'torchvision'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Passes over the training images." in " ".join(done.stdout.split())


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_answers_help(command: Any, name: str) -> None:
    done = command(name, "--help")
    assert done.status == 0
    assert f"wsss {name}" in done.out


def test_overview_lists_every_command(command: Any) -> None:
    done = command("--help")
    assert done.status == 0
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} ", done.out, re.MULTILINE)
    assert command().status == 2


def test_version(command: Any) -> None:
    assert command("--version").out == f"wsss {wsss.__version__}\n"


def test_misspelt_command_is_refused_with_the_nearest(command: Any) -> None:
    done = command("clasify")
    assert done.status == 2
    assert "did you mean `wsss classify`?" in done.err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(cli.UserError, match="does not exist"):
        cli.main(["run", "--debug", "--config", str(tmp_path / "no.yaml")])


@pytest.mark.parametrize("stage", STAGES)
def test_print_config_round_trips(command: Any, tmp_path: Path, stage: str) -> None:
    done = command(stage, "--print_config")
    assert done.status == 0
    path = tmp_path / "printed.yaml"
    path.write_text(done.out)
    assert parse_config(stage, ["--config", str(path)]) == Config()
    assert yaml.safe_load(done.out) == to_dict(Config())


def test_print_config_holds_the_overrides(command: Any, tmp_path: Path) -> None:
    words = ["--classifier.epochs", "7", "--saliency.scales", "[1.0]", "--refine.crf.iterations", "3"]
    path = tmp_path / "printed.yaml"
    path.write_text(command("run", *words, "--print_config").out)
    config = parse_config("run", ["--config", str(path)])
    assert config == parse_config("run", words)
    assert (config.classifier.epochs, config.saliency.scales, config.refine.crf.iterations) == (7, (1.0,), 3)


def test_options_after_a_configuration_file_override_it(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("classifier: {epochs: 9, crop: 64}\nseed: 4\n")
    config = parse_config("run", ["--config", str(path), "--classifier.epochs", "2"])
    assert (config.classifier.epochs, config.classifier.crop, config.seed) == (2, 64, 4)


@pytest.mark.parametrize("name", ["allow_mask_pretraining", "allow-mask-pretraining"])
@pytest.mark.parametrize("glue", [" ", "="])
def test_options_may_be_spelt_with_hyphens(name: str, glue: str) -> None:
    config = parse_config("run", f"--segmenter.{name}{glue}true --output runs/a-b".split())
    assert config.segmenter.allow_mask_pretraining
    assert config.output == "runs/a-b"


def test_a_key_with_hyphens_in_a_file_is_refused_with_the_right_one(tmp_path: Path, command: Any) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("segmenter: {allow-mask-pretraining: true}\n")
    sentence = command("run", "--config", path).sentence
    assert f"{path}: there is no option segmenter.allow-mask-pretraining" in sentence
    assert "did you mean segmenter.allow_mask_pretraining?" in sentence


def test_a_parsed_configuration_is_hashable_and_has_tuples() -> None:
    config = parse_config("run", ["--saliency.scales", "[0.5,1]", "--classifier.long_side", "[64,96]"])
    assert config.saliency.scales == (0.5, 1.0)
    assert config.classifier.long_side == (64, 96)
    hash(config)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["run", "--config", str(REPOSITORY / "configs" / "shapes.yaml")]),
        (["--seed", "3"], ["run", "--seed", "3"]),
    ],
)
def test_train_py_is_a_shim_of_run(
    monkeypatch: pytest.MonkeyPatch, words: list[str], expected: list[str]
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(cli, "main", lambda arguments: called.append(arguments) or 7)
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(REPOSITORY / "train.py"), run_name="__main__")
    assert called == [expected]
    assert stop.value.code == 7


def test_python_m_wsss_passes_the_status_on() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wsss", "nothing"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "there is no command nothing" in done.stderr


def readme_commands() -> list[str]:
    """The ``wsss ...`` and ``make ...`` lines in README's code blocks, without prompt and comment."""
    path = REPOSITORY / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines: list[str] = []
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        lines += [line.strip() for line in block.replace("\\\n", " ").splitlines()]
    lines = [re.sub(r"^(\$ )?(\.venv/bin/)?", "", line) for line in lines]
    return [line for line in lines if line.startswith(("wsss ", "make ", "python train.py"))]


@pytest.mark.parametrize("line", readme_commands())
def test_commands_of_the_readme_exist(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
        return
    name, rest = ("run", words[2:]) if words[0] == "python" else (words[1], words[2:])
    assert name in cli.COMMANDS
    if name in STAGES:
        assert isinstance(parse_config(name, rest), Config)


def test_makefile_help_lists_its_targets() -> None:
    done = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for target in ("install", "demo", "test"):
        assert f"make {target}" in done.stdout
