"""What all commands share: how options are spelt, which name was meant, and the parser of the tools.

Only the standard library is imported.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from wsss.errors import UsageError

RENAMED = {"--device": "--accelerator"}
"""Old spelling of a tool's option -> the new one; the old one works, with a note."""

SHARED_SECTIONS = ("data", "evaluate", "runtime")
"""Sections of the configuration whose options the tools take too: `--runtime.precision` is `--precision` there."""


def near(name: str, known: Iterable[str], form: str = "{}") -> str:
    """``; did you mean NAME?`` with the most similar of the known names, else one that it begins; or nothing."""
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
"""Arguments of ``add_argument`` for an option that is on when it is named alone."""


class ToolParser(argparse.ArgumentParser):
    """The parser of a tool.

    An option has the name of the same setting in the configuration. It may be spelt with hyphens, or with the section
    of the configuration in front (see ``SHARED_SECTIONS``). Every complaint is one sentence: a ``UsageError``.
    """

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As of the base class, which calls it for each sub-command too."""
        return super().parse_known_args(self._spelt(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"{message} (see `{self.prog} --help`)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is not among the choices, and name the nearest."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += near(str(value), map(str, action.choices or ()))
            raise

    def _spelt(self, words: Sequence[str]) -> list[str]:
        """The words with every option as it was added; a flag gets its value, so that it takes no word after it."""
        left = list(words)
        result: list[str] = []
        while left:
            word = left.pop(0)
            if word == "--" or (self._subparsers and not word.startswith("-")):
                return [*result, word, *left]  # the rest is the sub-command's
            name, equals, value = word.partition("=")
            if name.startswith("--"):
                name = self._option(name)
                if self._option_string_actions[name].nargs == "?" and not equals:
                    equals, value = "=", left.pop(0) if left and left[0] in ("true", "false") else "true"
            result.append(f"{name}{equals}{value}")
        return result

    def _option(self, name: str) -> str:
        """The option that is meant; raises UsageError where there is none."""
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
