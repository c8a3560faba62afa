"""How commands describe their options: the help of the stages, suggestions, and the parser of the tools.

Nothing heavy is imported.
"""

import argparse
import ast
import inspect
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from itertools import pairwise
from types import UnionType
from typing import Any, Literal, NamedTuple, NoReturn, get_args, get_origin, get_type_hints

from wsss.config import ComparisonConfig, Config
from wsss.errors import UsageError

RENAMED = {"--device": "--accelerator"}
"""Old spelling of a tool's option -> the new one. The old one still works, with a note."""

SHARED_SECTIONS = ("data", "evaluate", "runtime")
"""Sections of the configuration whose options the tools take too: `--runtime.precision` means `--precision` there."""


def near(name: str, known: Iterable[str], form: str = "{}") -> str:
    """``; did you mean NAME?`` with the most similar known name, or else one that starts with `name`; or nothing."""
    known = list(known)
    found = get_close_matches(name, known, n=1) or [other for other in known if other.startswith(name)]
    return f"; did you mean {form.format(found[0])}?" if found else ""


def boolean(text: str) -> bool:
    """``true`` or ``false``, as in a configuration."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text}")
    return text == "true"


def numbers(text: str) -> tuple[float, ...]:
    """``[0.5,1]`` as in a configuration, or ``0.5,1``."""
    try:
        return tuple(float(part) for part in text.strip("[] ").split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers such as 0.5,1, got {text}") from error


FLAG: dict[str, Any] = {
    "nargs": "?",
    "const": True,
    "default": False,
    "type": boolean,
    "metavar": "true|false",
}
"""Arguments of ``add_argument`` for an option that is on when it has no value."""


class ToolParser(argparse.ArgumentParser):
    """The parser of a tool.

    An option has the name of the same setting in the configuration. It may be spelt with hyphens, or with the section
    of the configuration as a prefix (see ``SHARED_SECTIONS``). Every error is one sentence: a ``UsageError``.
    """

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See the base class, which calls it for each sub-command too."""
        return super().parse_known_args(self._spelt(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"{message} (see `{self.prog} --help`)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is not among the choices, and suggest the nearest."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += near(str(value), map(str, action.choices or ()))
            raise

    def _spelt(self, words: Sequence[str]) -> list[str]:
        """The words with every option spelt as it was added. A flag gets its value here, so that it does not take the
        next word."""
        left = list(words)
        result: list[str] = []
        while left:
            word = left.pop(0)
            if word == "--" or (self._subparsers and not word.startswith("-")):
                return [*result, word, *left]  # the rest belongs to the sub-command
            name, equals, value = word.partition("=")
            if name.startswith("--"):
                name = self._option(name)
                action = self._option_string_actions[name]
                if action.nargs == "?" and not equals:
                    known = {"true", "false", *(action.choices or ())}
                    equals, value = "=", left.pop(0) if left and left[0] in known else "true"
            result.append(f"{name}{equals}{value}")
        return result

    def _option(self, name: str) -> str:
        """The option that is meant. Raises UsageError if there is none."""
        known = [option for option in self._option_string_actions if option.startswith("--")]
        spelt = f"--{name[2:].replace('-', '_')}"
        section, _, leaf = spelt[2:].rpartition(".")
        if section in SHARED_SECTIONS:
            spelt = f"--{leaf}"
        if spelt not in known and RENAMED.get(spelt) in known:
            print(f"{self.prog}: note: {name} is now {RENAMED[spelt]}", file=sys.stderr)
            spelt = RENAMED[spelt]
        if spelt not in known:
            raise UsageError(f"there is no option {name}{near(spelt, known)} (see `{self.prog} --help`)")
        return spelt


# -- help of the stages -----------------------------------------------------------------------------

STAGE_OPTIONS: dict[str, tuple[str, ...]] = {
    "run": (
        *(
            f"data.{name}"
            for name in ("kind", "root", "labels", "classes", "train", "val", "limit", "long_side")
        ),
        *(f"classifier.{name}" for name in ("architecture", "weights", "epochs", "batch_size")),
        "saliency.method",
        "extend.method",
        "refine.method",
        *(f"segmenter.{name}" for name in ("architecture", "weights", "epochs", "batch_size")),
    ),
    "classify": ("data", "classifier"),
    "saliency": ("data", "saliency"),
    "refine": ("extend", "refine"),
    "segment": ("segmenter",),
    "evaluate": ("evaluate", "refine.soft_crf"),
    "report": (),
    "compare": ("compare", "data", "classifier.architecture", "classifier.weights", "saliency.output_stride"),
}
"""Command -> options, or whole sections, that its help shows in addition to those of `ALWAYS`."""

ALWAYS = ("output", "seed", "plugins", "runtime")


OVERWRITES = "Replace finished networks of this run that were trained with other settings or input."


class Option(NamedTuple):
    """A leaf of the configuration."""

    name: str
    """Dotted."""
    takes: str
    """Which values."""
    default: str
    text: str
    """Its help text: the string below the attribute."""
    section: str
    """What its section is."""


def stage_help(command: str, about: str, everything: bool = False) -> str:
    """The help of a stage: its own options, or all of the configuration. Wrapped to the width of the terminal."""
    options = list(_options(ComparisonConfig() if command == "compare" else Config()))
    wanted = (*STAGE_OPTIONS[command], *ALWAYS)
    shown = [one for one in options if everything or _is_among(one.name, wanted)]
    width = min(max(shutil.get_terminal_size().columns, 80), 120)
    general = [
        (
            "--config FILE",
            "A YAML file. Later options override it. As the first word it needs no --config.",
        ),
        *([("--overwrite", OVERWRITES)] if command in ("run", "classify", "segment") else []),
        ("--print_config", "Print the whole configuration and stop."),
        ("--help all", f"Show all {len(options)} options; every stage accepts them all."),
    ]
    lines = [
        f"usage: wsss {command} [FILE.yaml | RUN] [--OPTION VALUE ...]",
        "",
        about,
        "RUN is a run directory: its configuration is used, and output goes there.",
        "Each option is shown with its values and (default).",
        "",
        *(line for head, text in general for line in _entry(head, text, width)),
    ]
    section = None
    for one in shown:
        if (name := one.name.rpartition(".")[0]) != section and name:
            lines += ["", *textwrap.wrap(f"{name}: {one.section}", width, subsequent_indent="  ")]
        section = name
        lines += _entry(f"--{one.name} {one.takes} ({one.default})", one.text, width)
    return "\n".join(lines)


def _is_among(name: str, wanted: Iterable[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in wanted)


def _entry(head: str, text: str, width: int) -> list[str]:
    """An option on one line if it fits, else with its text below it."""
    if len(line := f"  {head}  {text}") <= width:
        return [line]
    lines = textwrap.wrap(head, width, initial_indent="  ", subsequent_indent=" " * 6, break_long_words=False)
    return [*lines, *textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]


def _options(tree: Any, prefix: str = "") -> Iterator[Option]:
    """The leaves of a configuration, those of a section before those of the sections in it."""
    kind = type(tree)
    hints, texts = get_type_hints(kind), _attribute_texts(kind)
    section = " ".join((kind.__doc__ or "").split())
    values = {one.name: getattr(tree, one.name) for one in fields(kind)}
    for name, value in values.items():
        if not is_dataclass(value):
            takes, default = _takes(hints[name]), _plain(value)
            yield Option(f"{prefix}{name}", takes, default, texts.get(name, ""), section)
    for name, value in values.items():
        if is_dataclass(value):
            yield from _options(value, f"{prefix}{name}.")


def _attribute_texts(kind: type) -> dict[str, str]:
    """Attribute -> the string below it, of a class and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for attribute, below in pairwise(statements):
            match attribute, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split())
    return texts


def _takes(hint: Any) -> str:
    """How the values of a type are written: N is a whole number, X a number."""
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return "|".join(map(str, parts))
    if isinstance(hint, UnionType) or type(None) in parts:
        return "|".join(_takes(part) for part in parts)
    if get_origin(hint) is tuple:
        return "[" + ",".join("..." if part is ... else _takes(part) for part in parts) + "]"
    if is_dataclass(hint):
        return f"{{{', '.join(f'{field.name}: ...' for field in fields(hint))}}}"
    return {int: "N", float: "X", bool: "true|false", str: "TEXT", type(None): "null"}[hint]


def _plain(value: Any) -> str:
    """A default as it is written in a configuration."""
    if isinstance(value, tuple):
        return "[" + ",".join(map(_plain, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
