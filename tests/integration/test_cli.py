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
from wsss import cli, usage
from wsss.config import ComparisonConfig, Config, to_dict
from wsss.options import parse_config

REPOSITORY = Path(__file__).parents[2]
STAGES = ("run", "classify", "saliency", "refine", "segment", "evaluate", "report")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        *([name, "--help"] for name in cli.COMMANDS),
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


@pytest.mark.parametrize("stage", [*STAGES, "compare"])
def test_help_of_a_stage_is_short(command: Any, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = command(stage, "--help").out.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 100  # an option with its values may be longer than a line of text
    for option in (
        "--config FILE",
        "--output TEXT (runs/default)",
        "--seed N (0)",
        "--runtime.workers N|null",
    ):
        assert any(line.strip().startswith(option) for line in lines)


@pytest.mark.parametrize(
    ("stage", "own", "foreign"),
    [
        ("classify", "--classifier.optimizer.lr X (0.01)", "--segmenter.epochs"),
        ("saliency", "--saliency.flip true|false (true)", "--classifier.epochs"),
        ("refine", "--refine.background.rule calibrated|constant|power|otsu (calibrated)", "--data.root"),
        ("segment", "--segmenter.output_stride 8|16|null (null)", "--saliency.method"),
        ("evaluate", "--evaluate.scales [X,...] ([0.5,0.75,1,1.25,1.5,1.75])", "--refine.method"),
        ("run", "--data.kind TEXT (shapes)", "--classifier.optimizer.lr"),
        ("compare", "--compare.threshold X|null (null)", "--segmenter.epochs"),
    ],
)
def test_help_of_a_stage_shows_its_options_and_on_request_all(
    command: Any, stage: str, own: str, foreign: str
) -> None:
    short, long = command(stage, "--help").out, command(stage, "--help", "all").out
    assert own in short
    assert foreign not in short
    assert own in long
    assert foreign in long


def test_help_of_all_options_shows_every_leaf_with_its_text(command: Any) -> None:
    out = command("run", "--help", "all").out
    assert "Passes over the training images." in " ".join(out.split())
    shown = [name for name in re.findall(r"^  --([\w.]+)", out, re.MULTILINE) if "." in name]
    assert sorted(shown) == sorted(name for name in leaves(to_dict(Config())) if "." in name)
    assert all(option.text for option in usage._options(ComparisonConfig()))


def leaves(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names."""
    return [
        name
        for key, value in tree.items()
        for name in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"])
    ]


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_answers_help(command: Any, name: str) -> None:
    done = command(name, "--help")
    assert done.status == 0
    assert f"wsss {name}" in done.out


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    words = [sys.executable, "-m", "wsss", "run", "--help", "all"]
    with subprocess.Popen(
        words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as done:
        assert done.stdout
        assert done.stderr
        done.stdout.close()
        assert done.stderr.read() == ""


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


def test_the_first_words_may_be_configurations(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("classifier: {epochs: 9, crop: 64}\noutput: runs/a\n")
    (tmp_path / "b.yaml").write_text("classifier: {epochs: 8}\n")
    words = [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "--seed", "2"]
    config = parse_config("run", words)
    assert (config.classifier.epochs, config.classifier.crop, config.output) == (8, 64, "runs/a")
    assert config.seed == 2


def test_a_run_directory_stands_for_its_configuration_wherever_it_was_moved(tmp_path: Path) -> None:
    run = tmp_path / "moved"
    run.mkdir()
    (run / "config.yaml").write_text("classifier: {epochs: 9}\noutput: runs/before\n")
    config = parse_config("evaluate", [str(run), "--evaluate.ms-flip", "false"])
    assert (config.classifier.epochs, config.output, config.evaluate.ms_flip) == (9, str(run), False)
    assert parse_config("report", [str(run), "--output", "runs/c"]).output == "runs/c"


def test_report_of_a_run_directory(command: Any, run: Path) -> None:
    (run / "report.html").unlink()
    done = command("report", run)
    assert done.status == 0, done.err
    assert (run / "report.html").is_file()


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
    if name in STAGES and not {"-h", "--help"} & set(rest):
        assert isinstance(parse_config(name, rest), Config)


def test_makefile_help_lists_its_targets() -> None:
    done = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for target in ("install", "demo", "test"):
        assert f"make {target}" in done.stdout
