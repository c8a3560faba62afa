"""Names with values as text, such as `sess(gradcam@layer3, pool=max)` or `crf(iterations=5)`.

Saliency methods and refiners share it. Standard library only.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from wsss.errors import UserError

K = TypeVar("K")

DEEPEST = 50
"""Levels of brackets and operators that an expression may have."""

_PLUS = "_plus_plus"  # "gradcam++" is no Python name; expressions are parsed as Python


@dataclass(frozen=True)
class Grammar(Generic[K]):
    """What the expressions for one kind of thing may contain, and the words for it."""

    noun: str
    """"saliency method": what one expression names."""
    plural: str
    """"methods", of the list of names in messages."""
    example: str
    """The example that a message gives."""
    known: Mapping[str, type[K]]
    """The classes under their names; a class may also be called by its own name, as in its `repr`."""
    parameters: Callable[[type[K]], Mapping[str, Any]]
    """Names and types of the values that a class takes, in order."""

    def parse(self, text: str, source: str | None = None) -> ast.expr:
        """The syntax tree of an expression. Nothing in it is executed.

        Args:
            text: the expression, which messages repeat.
            source: the expression in Python, if that is a different text.

        Raises:
            UserError: it is not an expression.
        """
        try:
            tree = ast.parse((source or text).strip().replace("++", _PLUS), mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise UserError(f"'{text}' is not a {self.noun}; write for example {self.example}") from error
        except (RecursionError, MemoryError) as error:
            raise UserError(self._too_deep(text)) from error
        level: list[ast.AST] = [tree]
        for _ in range(DEEPEST):
            level = [child for node in level for child in ast.iter_child_nodes(node)]
        if level:
            raise UserError(self._too_deep(text))
        return tree

    def _too_deep(self, text: str) -> str:
        return f"'{text[:40]} …' is nested too deeply for a {self.noun}; write for example {self.example}"

    def read(
        self, tree: ast.expr, text: str, nested: Mapping[str, Callable[[ast.expr], Any]] | None = None
    ) -> tuple[str, type[K], dict[str, Any]]:
        """Read a name, or a call with values.

        Args:
            tree: of `parse`.
            text: the whole expression, which messages repeat.
            nested: readers of the values that are expressions themselves. The others are numbers, strings, words
                without quotes, booleans, None and tuples of them; a list becomes a tuple.

        Returns:
            The name, its class, and the values by the names of its parameters.

        Raises:
            UserError: a name is unknown (the closest one is suggested) or given twice, or a value has the wrong type.
        """
        match tree:
            case ast.Name(id=name):
                return _shown(name), self._look_up(_shown(name)), {}
            case ast.Call(func=ast.Name(id=name), args=positional, keywords=keywords):
                kind = self._look_up(_shown(name))
                hints = self.parameters(kind)
                pairs = _pairs(_shown(name), positional, keywords, hints, text)
                values = {key: (nested or {}).get(key, _reader(text))(value) for key, value in pairs.items()}
                for key, value in values.items():
                    if not (nested and key in nested) and not _fits(value, hints[key]):
                        raise UserError(
                            f"'{text}' gives '{key}' the value {value!r}; it takes {_spelt(hints[key])}"
                        )
                return _shown(name), kind, values
        raise UserError(
            f"'{_shown(ast.unparse(tree))}' in '{text}' is not a {self.noun}; "
            f"the {self.plural} are {', '.join(self.known)}"
        )

    def _look_up(self, name: str) -> type[K]:
        """The class of a name of the command line, or of a class name."""
        for kind in self.known.values():
            if name == kind.__name__:
                return kind
        if name not in self.known:
            hint = _near(name.lower(), self.known, f"the {self.plural} are {', '.join(self.known)}")
            raise UserError(f"there is no {self.noun} '{name}'; {hint}")
        return self.known[name]


def _shown(name: str) -> str:
    return name.replace(_PLUS, "++")


def _near(name: str, known: Mapping[str, Any], otherwise: str) -> str:
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else otherwise


def _pairs(
    name: str,
    positional: Sequence[ast.expr],
    keywords: Sequence[ast.keyword],
    hints: Mapping[str, Any],
    text: str,
) -> dict[str, ast.expr]:
    """The values of a call by the names of its parameters."""
    takes = f"it takes {', '.join(hints) or 'none'}"
    if len(positional) > len(hints):
        raise UserError(f"'{name}' in '{text}' has too many values; {takes}")
    pairs = dict(zip(hints, positional, strict=False))
    for word in keywords:
        key = str(word.arg)
        if key not in hints:
            raise UserError(f"'{name}' in '{text}' has no parameter '{key}'; {_near(key, hints, takes)}")
        if key in pairs:
            raise UserError(f"'{name}' in '{text}' gives '{key}' twice; remove one")
        pairs[key] = word.value
    return pairs


def _reader(text: str) -> Callable[[ast.expr], Any]:
    """Reads a number, string, boolean, None or (nested) tuple; lists become tuples."""

    def read(tree: ast.expr) -> Any:
        if isinstance(tree, ast.Name):  # a word without quotes: gradcam(layer3), sess(gradcam, pool=max)
            return tree.id
        if isinstance(tree, (ast.Tuple, ast.List)):
            return tuple(map(read, tree.elts))
        try:
            return ast.literal_eval(tree)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"'{ast.unparse(tree)}' in '{text}' must be a number, a word or a tuple of them"
            ) from error

    return read


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of its parameter. Whole numbers are floats too; a single value is not a tuple."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return value in options
    if get_origin(hint) is UnionType:
        return any(_fits(value, option) for option in options)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, options[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _spelt(hint: Any) -> str:
    """A type in the words of someone who does not write Python."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return " or ".join(options)
    if get_origin(hint) is UnionType:
        return " or ".join(_spelt(option) for option in options)
    if get_origin(hint) is tuple:
        return f"values in brackets, (a, b), each {_spelt(options[0])}"
    names = {str: "a word", bool: "True or False", int: "a whole number", float: "a number"}
    return names.get(hint, "None")
