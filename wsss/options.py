"""A configuration from the words of a command line and the YAML files that they name."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import jsonargparse
import yaml

from wsss import plugins
from wsss.config import CompareConfig, ComparisonConfig, Config, leaves
from wsss.data.labels import read_text
from wsss.errors import UsageError, UserError
from wsss.usage import near

C = TypeVar("C", bound=Config)

_SESS = {
    "window": 224,
    "step": 224,
    "scales": tuple(range(224, 929, 64)),
    "prefilter": 0.0,
    "theta": 0.0,
    "pool": "mean",
    "smooth": True,
}
"""The options of `saliency.sess` besides `enabled`, with their defaults, which are those of "sess(...)"."""
_EXPRESSION = 'write saliency.method: "{method}"'
_SOFT_CRF = "predictions are refined with the CRF of refine.soft_crf; set that instead"

GONE: dict[str, tuple[Any, str]] = {
    "segmenter.confidence_weighted": (False, "all pixels of a mask count alike; remove the option"),
    "segmenter.ema": (0.0, "the weights of the last epoch are kept; remove the option"),
    "segmenter.rounds": (
        1,
        "train again on the network's own masks with two commands: `wsss predict PHOTOS --checkpoint RUN --crf "
        "--output MASKS`, then `wsss segment` with segmenter.masks: MASKS and another output",
    ),
    "refine.pamr_first": (
        False,
        "`refine.method: pamr` runs PAMR instead of the CRF; remove the option",
    ),
    "saliency.sess.enabled": (False, _EXPRESSION),
    **{f"saliency.sess.{name}": (value, _EXPRESSION) for name, value in _SESS.items()},
    "saliency.subtraction": ("none", _EXPRESSION),
    "saliency.layer": (None, _EXPRESSION),
    "evaluate.crf_parameters.iterations": (10, _SOFT_CRF),
    "evaluate.crf_parameters.gaussian_sxy": (1.0, _SOFT_CRF),
    "evaluate.crf_parameters.gaussian_compat": (3.0, _SOFT_CRF),
    "evaluate.crf_parameters.bilateral_sxy": (67.0, _SOFT_CRF),
    "evaluate.crf_parameters.bilateral_srgb": (3.0, _SOFT_CRF),
    "evaluate.crf_parameters.bilateral_compat": (4.0, _SOFT_CRF),
    "runtime.num_nodes": (1, "training on several machines is not supported yet; remove the option"),
}
"""Removed option -> its old default, which is silently accepted, and what to use instead."""

GONE_VALUES: dict[tuple[str, Any], str] = {
    ("segmenter.loss", "balanced"): "write cross_entropy (or remove the option)",
}
"""Option and a removed value -> what to use instead."""


def parse_config(command: str, words: Sequence[str]) -> Config:
    """The configuration of a stage, from what follows its name on the command line.

    Args:
        command: its name, for the error messages.
        words: configuration files and run directories, then ``--config FILE`` and dotted overrides.

    Raises:
        UsageError: unknown option, wrong type.
        UserError: a configuration file that is missing or invalid, an option that was removed, or a value out of range.
    """
    return _configuration(command, words, Config)


def parse_comparison(words: Sequence[str]) -> ComparisonConfig:
    """The configuration of ``wsss compare``; otherwise the same as `parse_config`."""
    return _configuration("compare", words, ComparisonConfig)


def _configuration(command: str, words: Sequence[str], kind: type[C]) -> C:
    parser = jsonargparse.ArgumentParser(
        prog=f"wsss {command}",
        exit_on_error=False,
        allow_abbrev=False,  # a misspelt option must not match one that it is a prefix of
    )
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(kind, None, as_group=False)
    spelt = (name.removeprefix("--") for name in parser._option_string_actions if name.startswith("--"))
    options = [
        name
        for name in spelt
        if not name.endswith(".help") and name not in ("config", "help", "print_config")
    ]
    plugins.load_installed()
    given = _understand(words, options, command)
    _refuse_gone(given, options)
    for name in _listed(given.values.get("plugins")):
        plugins.load(name)
    if plugins.files():
        given.words.append(f"--plugins={json.dumps(plugins.files())}")
    try:
        namespace = parser.parse_args(given.words)
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        text = _sentence(str(error))
        if unknown := re.search(r"unrecognized arguments: --([\w.+-]+)", text):
            text = _no_option(unknown[1], options)
        elif stray := re.search(r"unrecognized arguments: (.+)", text):
            text = (
                f"{stray[1]} is not an option; write a configuration file or run directory before the options"
            )
        elif text.startswith("--") and given.files and not _is_given(text.split(":")[0], given.words):
            text = f"{given.files[-1]}: {text.removeprefix('--')}"
        raise UsageError(f"{text} (see `{parser.prog} --help`)") from error
    values = parser.instantiate(namespace).as_dict()
    values.pop("config", None)
    return kind(**values)


# -- words ------------------------------------------------------------------------------------------


@dataclass
class _Given:
    """What a command line says."""

    words: list[str] = field(default_factory=list)
    """For the parser, without the options that were removed."""
    values: dict[str, Any] = field(default_factory=dict)
    """Dotted name -> value, from files and from removed options; the last value of a name counts."""
    files: list[Path] = field(default_factory=list)
    """The configuration files."""


def _understand(words: Sequence[str], options: Sequence[str], command: str) -> _Given:
    """Read the files, and drop what is allowed although this command's parser does not know it."""
    elsewhere = {f"compare.{one.name}" for one in fields(CompareConfig)} - set(options)
    given, left = _Given(), _with_first_words(words)
    while left:
        name, equals, value = _underscored(left.pop(0), [*options, *GONE]).partition("=")
        key = name.removeprefix("--")
        if name == "--config" and (equals or left):
            path = Path(value if equals else left.pop(0))
            tree = _read(path, [*options, *elsewhere])
            plugins.load_configured(_listed(tree.pop("plugins", None)), path)
            given.files.append(path)
            given.values |= dict(leaves(tree))
            kept = _without(tree, lambda key: key in elsewhere or _is_gone(key, options))
            if kept:
                given.words.append(f"--config={path if kept == tree else yaml.safe_dump(kept)}")
        elif name.startswith("--") and _is_gone(key, options):
            text = value if equals else left.pop(0) if left else ""
            given.values |= dict(leaves({key: _parsed(text)}))
        elif key in elsewhere:
            raise UsageError(f"{name} is an option of `wsss compare` only; `wsss {command}` does not take it")
        else:
            given.words.append(f"{name}{equals}{value}")
            if name.startswith("--") and not equals and left and not left[0].startswith("--"):
                given.values[key] = _parsed(left[0])
                given.words.append(left.pop(0))
            elif equals:
                given.values[key] = _parsed(value)
    return given


def _listed(value: Any) -> list[str]:
    """The paths of ``plugins``. Raises UsageError if it is no list of them."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise UsageError(f"plugins is {value!r}, but must be a list of Python files, such as [mine.py]")
    return value


def _with_first_words(words: Sequence[str]) -> list[str]:
    """Replace ``FILE.yaml`` and ``RUN`` before the options by the options that they stand for."""
    result: list[str] = []
    rest = list(words)
    while rest and not rest[0].startswith("-"):
        path = Path(rest.pop(0))
        if path.is_dir():
            config = path / "config.yaml"
            if not config.is_file():
                runs = sorted(str(found.parent) for found in path.glob("*/config.yaml"))
                raise UserError(
                    f"{path} is not a run directory (it has no config.yaml){near(f'{path}/', runs)}"
                )
            result += ["--config", str(config), f"--output={path}"]
        else:
            result += ["--config", str(path)]
    return result + rest


def _underscored(word: str, options: Iterable[str]) -> str:
    """The option with underscores if it is spelt with hyphens, as in other programs (--segmenter.val-every)."""
    name, equals, value = word.partition("=")
    spelt = name.removeprefix("--").replace("-", "_")
    return f"--{spelt}{equals}{value}" if name.startswith("--") and spelt in options else word


def _parsed(text: str) -> Any:
    """The value that an option's text stands for."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


# -- configuration files ----------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """Refuses duplicate keys. YAML's own loader would keep the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # a list as a key, which the base class refuses
            if key.value in names:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key.value}", key.start_mark
                )
            names.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path, options: Sequence[str]) -> dict[str, Any]:
    """A configuration file as a tree.

    Raises:
        UserError: it is missing, is not YAML, or has a key that does not exist.
    """
    if not path.exists():
        beside = [*path.parent.glob("*.yaml"), *(run.parent for run in path.parent.glob("*/config.yaml"))]
        hint = near(str(path), sorted(map(str, beside)))
        raise UserError(f"{path} does not exist{hint or '; give a configuration (YAML) or a run directory'}")
    try:
        tree = yaml.load(read_text(path), _StrictLoader)
    except RecursionError as error:
        raise UserError(f"{path} refers to itself; write its values out") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or "it cannot be parsed"
        raise UserError(f"{path}{where} is not valid YAML ({what}); correct it there") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no configuration; write `key: value` lines (see configs/shapes.yaml)")
    for key in _empty_sections(tree):
        if not any(option.startswith(f"{key}.") for option in options):
            raise UserError(f"{path}: {_no_option(key, options)}")
    for key, value in leaves(tree):
        if _is_gone(key, options):
            continue
        if any(option.startswith(f"{key}.") for option in options):
            raise UserError(
                f"{path}: {key} is a section: write its `key: value` lines below it, or remove it"
            )
        if key not in options:
            raise UserError(f"{path}: {_no_option(key, options)}")
        if value is None and not _may_be_null(key):
            raise UserError(f"{path}: {key} is empty; give a value or remove the line")
    return tree


def _empty_sections(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the sections without a key, of which `leaves` says nothing."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _empty_sections(value, f"{prefix}{key}.") if value else (f"{prefix}{key}",)


def _without(tree: Mapping[Any, Any], unwanted: Any, prefix: str = "") -> dict[Any, Any]:
    """A nested dictionary without the leaves whose dotted names are unwanted, and without sections that become
    empty."""
    kept = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            inside = _without(value, unwanted, f"{prefix}{key}.")
            if inside or not value:
                kept[key] = inside
        elif not unwanted(f"{prefix}{key}"):
            kept[key] = value
    return kept


def _may_be_null(key: str) -> bool:
    """Whether the field of the configuration with this dotted name takes null."""
    hint: Any = ComparisonConfig
    for part in key.split("."):
        hint = get_type_hints(hint)[part]
    return type(None) in get_args(hint)


# -- removed options --------------------------------------------------------------------------------


def _is_gone(key: str, options: Iterable[str]) -> bool:
    """Whether this is a removed option, or a section that had only removed options."""
    return key not in options and any(name == key or name.startswith(f"{key}.") for name in GONE)


def _refuse_gone(given: _Given, options: Sequence[str]) -> None:
    """Raises UserError if removed options have other values than their old defaults; it names all of them."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in given.values.items()}
    found: dict[str, list[str]] = {}
    for key, (default, instead) in GONE.items():
        if key in options or values.get(key, default) == default:
            continue
        if key.startswith("saliency.sess.") and not values.get("saliency.sess.enabled"):
            continue  # it had no effect
        found.setdefault(instead, []).append(key)
    for (key, value), instead in GONE_VALUES.items():
        if values.get(key) == value and value not in _choices(key):
            found.setdefault(instead, []).append(f"{key}: {value}")
    if not found:
        return
    sentences = [
        f"{', '.join(keys)} {'was' if len(keys) == 1 else 'were'} removed: "
        + (instead.format(method=_expression(values)) if instead == _EXPRESSION else instead)
        for instead, keys in found.items()
    ]
    raise UserError("; ".join(sentences))


def _choices(key: str) -> tuple[Any, ...]:
    """The values that a field of the configuration accepts, if it has a fixed list."""
    hint: Any = Config
    for part in key.split("."):
        hint = get_type_hints(hint)[part]
    return get_args(hint)


_BASE = re.compile(r"^((?:(?:sess|subtraction|multiscale)\(\s*)*)(\w+(?:\+\+)?)(?![\w@])")


def _expression(values: Mapping[str, Any]) -> str:
    """The `saliency.method` that replaces `saliency.sess`, `saliency.subtraction` and `saliency.layer`."""
    from wsss.saliency import SESS, ClassSubtraction, MultiScale
    from wsss.saliency.parse import parse_method

    def value(name: str, default: Any) -> Any:
        return values.get(f"saliency.{name}", default)

    text = str(value("method", "gradcam"))
    if layer := value("layer", None):
        at_layer = _BASE.sub(rf"\1\2@{layer}", text)
        text = at_layer if "layer=" in repr(parse_method(text, layer)) else text
    method = parse_method(text, "any")  # the layer does not matter here
    if value("sess.enabled", False):
        chosen = {name: value(f"sess.{name}", default) for name, default in _SESS.items()}
        changed = [f"{name}={one!r}" for name, one in chosen.items() if one != _SESS[name]]
        text = f"sess({', '.join([text, *changed])})"
    subtraction = value("subtraction", "none")
    if subtraction == "none":
        return text
    scales = (1.0,) if method.own_scales else tuple(value("scales", (0.5, 1.0, 1.5, 2.0)))
    flip, balance = value("flip", True), value("balance", "auto")
    inner = method.base if isinstance(method, ClassSubtraction) else method
    plain = not isinstance(inner, SESS | MultiScale) and not value("sess.enabled", False)
    if plain and (scales != (1.0,) or flip):
        if balance == "auto":
            balance = method.scale_balance if len(scales) > 1 else "none"
        text = f"multiscale({text}, scales={scales!r}, flip={flip}, balance={balance!r})"
    return f"subtraction({text})" if subtraction == "sum" else f"subtraction({text}, reduce={subtraction!r})"


# -- messages ---------------------------------------------------------------------------------------


def _no_option(name: str, options: Iterable[str]) -> str:
    return f"there is no option {name}{near(name, options)}"


def _is_given(option: str, words: Sequence[str]) -> bool:
    return any(word == option or word.startswith(f"{option}=") for word in words)


def _sentence(text: str) -> str:
    """jsonargparse's message on one line, without the names of Python types."""
    text = " ".join(text.split())
    text = re.sub(r'^Parser key "([^"]+)":', r"--\1:", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    text = re.sub(r"a typing\.Literal\[([^]]*)\]", r"one of \1", text)
    return re.sub(r"Expected a? ?(.*?)\. Got value:", r"expected \1, got", text)
