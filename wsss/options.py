"""A configuration from the words of a command line and the YAML files that they name."""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonargparse
import yaml

from wsss.config import Config
from wsss.data.labels import read_text
from wsss.errors import UsageError, UserError
from wsss.usage import near


def parse_config(
    command: str, words: Sequence[str], description: str | None = None, epilog: str | None = None
) -> Config:
    """The configuration from ``--config`` and dotted overrides.

    Args:
        command: whose help and errors these are.
        words: what follows the command.
        description: of the command, above the options in its help.
        epilog: below them.

    Raises:
        UsageError: unknown option, wrong type.
        UserError: a configuration file that is missing or not one, or a value out of range.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=f"wsss {command}",
        description=description,
        epilog=epilog,
        exit_on_error=False,
        allow_abbrev=False,  # a misspelt option must not be taken for the one it begins
    )
    parser.add_argument(
        "--config", action="config", help="YAML file of this configuration; options after it override it."
    )
    parser.add_class_arguments(Config, None, as_group=False)
    namespace = _parse(parser, words)
    values = parser.instantiate(namespace).as_dict()
    values.pop("config", None)
    return Config(**values)


def _parse(parser: jsonargparse.ArgumentParser, words: Sequence[str]) -> Any:
    """Parse, turning every complaint into one sentence."""
    options = [name.removeprefix("--") for name in parser._option_string_actions if name.startswith("--")]
    words = [_underscored(word, options) for word in words]
    files = _config_files(words)
    for path in files:
        _check_config_file(path, options)
    try:
        return parser.parse_args(list(words))
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        text = _sentence(str(error))
        if unknown := re.search(r"unrecognized arguments: --([\w.+-]+)", text):
            text = _no_option(unknown[1], options)
        elif text.startswith("--") and files and not _is_given(text.split(":")[0], words):
            text = f"{files[-1]}: {text.removeprefix('--')}"
        raise UsageError(f"{text} (see `{parser.prog} --help`)") from error


def _underscored(word: str, options: Iterable[str]) -> str:
    """An option that is spelt with hyphens, as in other programs (--segmenter.val-every), with underscores."""
    name, equals, value = word.partition("=")
    spelt = name.removeprefix("--").replace("-", "_")
    return f"--{spelt}{equals}{value}" if name.startswith("--") and spelt in options else word


def _config_files(words: Sequence[str]) -> list[Path]:
    """The files given with ``--config``."""
    files = [Path(after) for word, after in pairwise(words) if word == "--config"]
    return files + [Path(word.removeprefix("--config=")) for word in words if word.startswith("--config=")]


# -- configuration files ----------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """Refuses a duplicate key, of which YAML's own loader keeps the last."""

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


def _check_config_file(path: Path, options: Iterable[str]) -> None:
    """Raises UserError where a configuration file is missing, no YAML, or has a key that does not exist."""
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
    for key, value in _leaves(tree):
        if any(option.startswith(f"{key}.") for option in options):
            raise UserError(
                f"{path}: {key} is a section: write its `key: value` lines below it, or remove it"
            )
        if key not in options:
            raise UserError(f"{path}: {_no_option(key, options)}")
        if value is None and not _may_be_null(key):
            raise UserError(f"{path}: {key} is empty; give a value or remove the line")


def _leaves(tree: dict[Any, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted names and values of the leaves of a nested dictionary."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _may_be_null(key: str) -> bool:
    """Whether the field of the configuration with this dotted name takes null."""
    hint: Any = Config
    for part in key.split("."):
        hint = get_type_hints(hint)[part]
    return type(None) in get_args(hint)


# -- complaints -------------------------------------------------------------------------------------


def _no_option(name: str, options: Iterable[str]) -> str:
    return f"there is no option {name}{near(name, options)}"


def _is_given(option: str, words: Sequence[str]) -> bool:
    return any(word == option or word.startswith(f"{option}=") for word in words)


def _sentence(text: str) -> str:
    """jsonargparse's complaint on one line, without the names of Python's types."""
    text = " ".join(text.split())
    text = re.sub(r'^Parser key "([^"]+)":', r"--\1:", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    text = re.sub(r"a typing\.Literal\[([^]]*)\]", r"one of \1", text)
    return re.sub(r"Expected a? ?(.*?)\. Got value:", r"expected \1, got", text)
