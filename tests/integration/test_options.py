"""Options and configuration files that cannot be: one sentence that names them and what to do."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from wsss.config import CompareConfig, ComparisonConfig, Config, to_dict
from wsss.errors import UserError
from wsss.options import GONE, parse_comparison, parse_config
from wsss.saliency import DCSM, SESS, ClassSubtraction, GlobalGuidanceCAM, GradCAM, Gradient, MultiScale
from wsss.saliency.base import SaliencyMethod
from wsss.stages.saliency import build_method


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
            ["--saliency.balance", "sheep"],
            "--saliency.balance: expected one of 'auto', 'none', 'area', 'max', got sheep",
        ),
        (["--segmenter.supervised", "perhaps"], "--segmenter.supervised: expected bool, got perhaps"),
        (["--output"], "--output"),
        (
            ["--seed", "1", "a.yaml"],
            "a.yaml is not an option; write a configuration file or run directory before the options",
        ),
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
    for words in (["--config", path], [f"--config={path}"], [path]):
        sentence = command("run", *words).sentence
        assert f"{path} does not exist; give a configuration (YAML) or a run directory" in sentence


def test_a_configuration_or_run_that_is_nearly_named_is_proposed(tmp_path: Path, command: Any) -> None:
    (tmp_path / "shapes.yaml").touch()
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "config.yaml").touch()
    sentence = command("run", tmp_path / "shpes.yaml").sentence
    assert f"does not exist; did you mean {tmp_path / 'shapes.yaml'}?" in sentence
    first = tmp_path / "runs" / "first"
    assert f"does not exist; did you mean {first}?" in command("report", tmp_path / "runs" / "frst").sentence
    sentence = command("report", tmp_path / "runs").sentence
    assert (
        f"{tmp_path / 'runs'} is not a run directory (it has no config.yaml); did you mean {first}?"
        in sentence
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("classifier:\n  epochs:\n", "classifier.epochs is empty; give a value or remove the line"),
        ("classifier:\n", "classifier is a section: write its `key: value` lines below it"),
        ("refine:\n  crf:\n", "refine.crf is a section"),
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
    path.write_text("data: {long_side: null}\nsaliency: {output_stride: null}\nruntime: {workers: null}\n")
    assert parse_config("run", ["--config", str(path)]).saliency.output_stride is None


# -- options of other commands, and options that are gone ---------------------------------------------


def test_a_section_of_the_comparison_is_accepted_by_the_stages_and_checked_for_names(
    tmp_path: Path, command: Any
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 7\ncompare: {images: 9, threshold: null}\n")
    assert parse_config("run", [str(path)]) == Config(seed=7)
    assert parse_comparison([str(path)]) == ComparisonConfig(seed=7, compare=CompareConfig(images=9))
    path.write_text("compare: {image: 9}\n")
    assert "there is no option compare.image; did you mean compare.images?" in command("run", path).sentence
    refused(command("run", "--compare.images", 9), "--compare.images is an option of `wsss compare` only")


def old_defaults() -> dict[str, Any]:
    """The options that are gone, as a configuration had them that gave none of them."""
    tree: dict[str, Any] = {"seed": 3, "compare": {"images": 0}, "segmenter": {"loss": "cross_entropy"}}
    for name, (default, _) in GONE.items():
        *sections, leaf = name.split(".")
        section = tree
        for part in sections:
            section = section.setdefault(part, {})
        section[leaf] = list(default) if isinstance(default, tuple) else default
    return tree


def test_an_old_configuration_with_default_values_loads_without_a_word(tmp_path: Path, command: Any) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(old_defaults()))
    assert parse_config("run", [str(path)]) == Config(seed=3)
    words = ["--saliency.sess.enabled", "false", "--runtime.num-nodes=1", "--seed", "3"]
    assert parse_config("run", words) == Config(seed=3)
    path.write_text("saliency: {sess: {enabled: false, window: 64, pool: max}}\n")  # without effect
    assert parse_config("run", [str(path)]) == Config()


def test_options_that_are_gone_are_refused_all_at_once_with_what_takes_their_place(
    tmp_path: Path, command: Any
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("runtime: {num_nodes: 2}\nsaliency: {subtraction: min}\n")
    sentence = command("run", path, "--saliency.layer", "layer3", "--seed", 1).sentence
    assert "runtime.num_nodes was removed: training on several machines is not supported yet" in sentence
    assert "saliency.subtraction, saliency.layer were removed: write saliency.method: " in sentence


def test_a_value_that_is_gone_is_refused_with_what_takes_its_place(
    tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsss.options._choices", lambda key: ("cross_entropy", "bootstrap"))
    path = tmp_path / "config.yaml"
    path.write_text("segmenter: {loss: balanced}\n")
    for words in ([path], ["--segmenter.loss", "balanced"]):
        sentence = command("run", *words).sentence
        assert "segmenter.loss: balanced was removed: write cross_entropy (or remove the option)" in sentence


def test_wrong_types_beside_options_that_are_gone_still_name_the_file(tmp_path: Path, command: Any) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("runtime: {num_nodes: 1}\nclassifier: {epochs: two}\n")
    refused(command("run", path), f"{path}: classifier.epochs: expected int, got two")


def test_every_option_that_is_gone_says_what_takes_its_place() -> None:
    options = leaves(to_dict(Config()))
    for name, (default, instead) in GONE.items():
        assert instead
        if name not in options and not name.startswith("saliency.sess."):
            with pytest.raises(UserError, match=re.escape(name)):
                parse_config("run", [f"--{name}", "min" if isinstance(default, str) else "7"])


def leaves(tree: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted names."""
    return {
        name
        for key, value in tree.items()
        for name in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"])
    }


def composed(
    method: SaliencyMethod,
    sess: dict[str, Any] | None = None,
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0),
    flip: bool = True,
    subtraction: Any = "none",
) -> SaliencyMethod:
    """What the options that are gone made of a method."""
    if sess is not None:
        method = SESS(method, **sess)
    elif scales != (1.0,) or flip:
        method = MultiScale(method, scales, flip, method.scale_balance if len(scales) > 1 else "none")
    return method if subtraction == "none" else ClassSubtraction(method, subtraction)


SESS_WORDS = [
    "--saliency.sess.enabled",
    "true",
    "--saliency.sess.window",
    "48",
    "--saliency.sess.scales",
    "[64,80]",
]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (SESS_WORDS, composed(GradCAM("layer4"), {"window": 48, "scales": (64, 80)})),
        (
            [*SESS_WORDS, "--saliency.sess.pool", "max", "--saliency.subtraction", "min"],
            composed(GradCAM("layer4"), {"window": 48, "scales": (64, 80), "pool": "max"}, subtraction="min"),
        ),
        (["--saliency.layer", "layer3"], composed(GradCAM("layer3"))),
        (
            ["--saliency.method", "global_guidance(smooth=2)", "--saliency.layer", "layer2", *SESS_WORDS],
            composed(GlobalGuidanceCAM("layer2", smooth=2), {"window": 48, "scales": (64, 80)}),
        ),
        (["--saliency.subtraction", "sum"], composed(GradCAM("layer4"), subtraction="sum")),
        (
            ["--saliency.subtraction", "min", "--saliency.scales", "[1.0]", "--saliency.flip", "true"],
            composed(GradCAM("layer4"), scales=(1.0,), subtraction="min"),
        ),
        (
            ["--saliency.subtraction", "sum", "--saliency.scales", "[1.0]", "--saliency.flip", "false"],
            composed(GradCAM("layer4"), scales=(1.0,), flip=False, subtraction="sum"),
        ),
        (
            ["--saliency.method", "gradient", "--saliency.layer", "layer3", "--saliency.subtraction", "sum"],
            composed(Gradient(), subtraction="sum"),
        ),
        (
            ["--saliency.method", "dcsm", "--saliency.subtraction", "sum"],
            composed(DCSM(), scales=(1.0,), subtraction="sum"),
        ),
    ],
)
def test_the_expression_that_is_proposed_is_the_very_method_of_the_options_that_are_gone(
    words: list[str], expected: SaliencyMethod
) -> None:
    with pytest.raises(UserError, match=r"removed: write saliency\.method") as refusal:
        parse_config("run", words)
    method = re.search('write saliency.method: "(.*)"', str(refusal.value))
    assert method
    names, rest = ("saliency.sess", "saliency.layer", "saliency.subtraction"), []
    for name, value in zip(words[::2], words[1::2], strict=True):
        if not name.removeprefix("--").startswith(names):
            rest += [name, value]
    config = parse_config("run", [*rest, "--saliency.method", method[1]])
    assert build_method(config.saliency, "layer4") == expected


@pytest.mark.parametrize("key", ["config", "help", "print_config"])
def test_options_of_the_command_line_are_no_keys_of_a_file(key: str, tmp_path: Path, command: Any) -> None:
    for value in ("null", "{}", "{a: 1}"):
        (tmp_path / "own.yaml").write_text(f"{key}: {value}\n")
        assert f"own.yaml: there is no option {key}" in command("run", tmp_path / "own.yaml").sentence
