"""Options and configuration files that cannot be: one sentence that names them and what to do."""

from pathlib import Path
from typing import Any

import pytest

from wsss.options import parse_config


def refused(outcome: Any, *parts: str) -> None:
    assert outcome.status == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    for part in parts:
        assert part in outcome.err


def test_unknown_option_is_refused_with_the_nearest_one(command: Any) -> None:
    refused(
        command("run", "--classifier.epoch", 3),
        "no option classifier.epoch",
        "did you mean classifier.epochs",
    )


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--classifier.epochs", "two"], "--classifier.epochs: expected int, got two"),
        (
            ["--data.kind", "sheep"],
            "--data.kind: expected one of 'shapes', 'voc', 'folder', 'coco', 'imagenet', got sheep",
        ),
        (["--segmenter.supervised", "perhaps"], "--segmenter.supervised: expected bool, got perhaps"),
        (["--output"], "--output"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_impossible_value_names_the_option(command: Any, words: list[str], part: str) -> None:
    refused(command("run", *words), part, "wsss run --help")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--classifier.epochs", "0"], "classifier.epochs is 0, but must be at least 1"),
        (["--saliency.scales", "[]"], "saliency.scales is empty"),
        (["--output", ""], "output is empty"),
        (["--evaluate.scales", "[]"], "evaluate.scales is empty"),
        (["--classifier.long_side", "[200,100]"], "classifier.long_side"),
        (["--segmenter.scale", "[2.0,1.0]"], "segmenter.scale"),
    ],
)
def test_value_out_of_range_names_the_option(
    shapes: Path, tiny: list[str], tmp_path: Path, command: Any, words: list[str], part: str
) -> None:
    assert part in command("run", *tiny, "--output", tmp_path / "r", *words).sentence
    assert not (tmp_path / "r").exists()


# -- configuration files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("classifier: [1\n", ":2 is not valid YAML"),
        ("classifier:\n  epoch: 3\n", "there is no option classifier.epoch; did you mean classifier.epochs?"),
        ("clasifier:\n  epochs: 3\n", "there is no option clasifier.epochs; did you mean classifier.epochs?"),
        ("just text\n", "holds no configuration"),
        ("", "holds no configuration"),
    ],
)
def test_bad_configuration_file_is_named(tmp_path: Path, command: Any, text: str, part: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    sentence = command("run", "--config", path).sentence
    assert str(path) in sentence
    assert part in sentence


def test_wrong_type_in_a_configuration_file_names_the_file(tmp_path: Path, command: Any) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("classifier:\n  epochs: two\n")
    refused(command("run", "--config", path), f"{path}: classifier.epochs: expected int, got two")


def test_missing_configuration_file_is_named(tmp_path: Path, command: Any) -> None:
    path = tmp_path / "missing.yaml"
    assert f"{path} does not exist" in command("run", "--config", path).sentence
    assert f"{path} does not exist" in command("run", f"--config={path}").sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("classifier:\n  epochs:\n", "classifier.epochs is empty; give a value or remove the line"),
        ("classifier:\n", "classifier is a section: write its `key: value` lines below it"),
        ("saliency:\n  sess:\n", "saliency.sess is a section"),
        ("classifier:\n  - epochs: 1\n", "classifier is a section"),
        ("classifier: {optimizer: 5}\n", "classifier.optimizer is a section"),
        (
            "classifier: {epochs: 7}\nclassifier: {crop: 64}\n",
            ":2 is not valid YAML (duplicate key classifier)",
        ),
        ("seed: &a [*a]\n", "seed"),
        ("? [a, b]\n: 1\n", "is not valid YAML (found unhashable key)"),
    ],
)
def test_a_configuration_file_that_would_be_half_read_is_refused(
    tmp_path: Path, command: Any, text: str, words: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    done = command("run", "--config", path, "--output", tmp_path / "r")
    assert done.status in (1, 2)
    assert "Traceback" not in done.err
    assert words in done.err
    assert not (tmp_path / "r").exists()


def test_values_that_may_be_null_stay_so(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {long_side: null}\nsaliency: {layer: null}\nruntime: {workers: null}\n")
    assert parse_config("run", ["--config", str(path)]).saliency.layer is None
