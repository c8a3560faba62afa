"""Saliency methods as text, for the command line and configurations, and back."""

import ast
import re
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from wsss.errors import UserError
from wsss.saliency import METHODS, SESS, ClassSubtraction, MultiScale, SaliencyMethod

WRAPPERS: dict[str, type[SaliencyMethod]] = {
    "sess": SESS,
    "subtraction": ClassSubtraction,
    "multiscale": MultiScale,
}
"""Methods around another method, under their names on the command line."""

_PLUS = "_plus_plus"  # "gradcam++" is no Python name; the expression is parsed as Python
_AT = re.compile(r"(\w+)@([\w.]+)(\s*\()?")


def parse_method(text: str, layer: str | None = None, score: str | None = None) -> SaliencyMethod:
    """The method that an expression names.

    An expression is a name of `METHODS` ("gradcam", "gradcam++"), with the layer after an "@" where wanted
    ("gradcam@layer3"), with parameters as in Python ("sess(gradcam@layer3, prefilter=0.5)"), or the `repr`
    of a method. The wrappers are "sess(...)", "subtraction(...)" and "multiscale(...)"; the method that they
    wrap comes first. Nothing is executed: values are numbers, strings, booleans, None and tuples of them.

    Args:
        text: the expression.
        layer: for methods that take a layer and were given none.
        score: "sigmoid" or "softmax", likewise.

    Raises:
        UserError: the text is no expression, a name is unknown (the closest one is named), or a value is
            out of range.
    """
    try:
        tree = ast.parse(_to_python(text), mode="eval").body
    except SyntaxError as error:
        raise UserError(
            f"'{text}' is no saliency method; write for example gradcam, gradcam@layer3, "
            "or sess(gradcam, prefilter=0.5)"
        ) from error
    return _build(tree, text, {"layer": layer, "score": score})


def to_expression(method: SaliencyMethod) -> str:
    """The shortest expression of a method: names as on the command line, defaults left out.

    >>> to_expression(parse_method("SESS(base=GradCAM(layer='layer4'), window=112)"))
    'sess(gradcam@layer4, window=112)'
    """
    name = next(name for name, kind in (METHODS | WRAPPERS).items() if kind is type(method))
    values = {field.name: getattr(method, field.name) for field in fields(method) if _is_set(method, field)}
    at = f"@{layer}" if (layer := values.pop("layer", None)) else ""
    base = values.pop("base", None)
    words = ([to_expression(base)] if base else []) + [f"{key}={value!r}" for key, value in values.items()]
    return f"{name}{at}({', '.join(words)})" if words else f"{name}{at}"


def _is_set(method: SaliencyMethod, field: "Field[Any]") -> bool:
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return bool(getattr(method, field.name) != default)


def _to_python(text: str) -> str:
    """`name@layer` becomes `name(layer='layer')`, `++` a word."""
    return _AT.sub(
        lambda found: f"{found[1]}(layer={found[2]!r}" + (", " if found[3] else ")"),
        text.strip().replace("++", _PLUS),
    )


def _build(tree: ast.expr, text: str, defaults: dict[str, str | None]) -> SaliencyMethod:
    """The method of a syntax tree: a name, or a call with keyword values."""
    match tree:
        case ast.Name(id=name):
            kind, given = _kind(name), {}
        case ast.Call(func=ast.Name(id=name), args=positional, keywords=keywords):
            kind = _kind(name)
            given = _arguments(kind, name, positional, keywords, text, defaults)
        case _:
            raise UserError(
                f"'{ast.unparse(tree).replace(_PLUS, '++')}' in '{text}' is no saliency method; "
                f"the methods are {', '.join((*METHODS, *WRAPPERS))}"
            )
    for field in fields(kind):
        fallback = defaults.get(field.name)
        if field.name not in given and fallback is not None:
            given[field.name] = fallback
        if field.name not in given and field.default is MISSING and field.default_factory is MISSING:
            example = "sess(gradcam)" if field.name == "base" else f"{name}(layer='layer4')"
            raise UserError(
                f"'{name.replace(_PLUS, '++')}' in '{text}' needs its {field.name}, for example {example}"
            )
    return kind(**given)


def _kind(name: str) -> type[SaliencyMethod]:
    """The class of a name of the command line, or of a class name."""
    name = name.replace(_PLUS, "++")
    known = METHODS | WRAPPERS
    for kind in known.values():
        if name == kind.__name__:
            return kind
    if name not in known:
        near = get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the methods are {', '.join(known)}"
        raise UserError(f"there is no saliency method '{name}'; {hint}")
    return known[name]


def _arguments(
    kind: type[SaliencyMethod],
    name: str,
    positional: list[ast.expr],
    keywords: list[ast.keyword],
    text: str,
    defaults: dict[str, str | None],
) -> dict[str, Any]:
    """The values of a call by the names of the fields of `kind`."""
    names = [field.name for field in fields(kind) if field.init]
    pairs = [*zip(names, positional, strict=False), *((str(word.arg), word.value) for word in keywords)]
    if len(positional) > len(names):
        raise UserError(f"'{name}' in '{text}' has too many values; it takes {', '.join(names) or 'none'}")
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key not in names:
            near = get_close_matches(key, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(names) or 'none'}"
            raise UserError(f"'{name}' in '{text}' has no parameter '{key}'; {hint}")
        if key in values:
            raise UserError(f"'{name}' in '{text}' gives '{key}' twice; leave one out")
        values[key] = _build(value, text, defaults) if key == "base" else _value(value, text)
    for key, hint in get_type_hints(kind).items():
        if key in values and not _fits(values[key], hint):
            raise UserError(f"'{text}' gives '{key}' the value {values[key]!r}; it takes {_spelt(hint)}")
    return values


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type of its parameter; whole numbers are floats too, single ones no tuples."""
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


def _value(tree: ast.expr, text: str) -> Any:
    """A number, string, boolean, None or (nested) tuple; lists become tuples."""
    if isinstance(tree, ast.Name):  # a word without quotes: gradcam(layer3), sess(gradcam, pool=max)
        return tree.id
    try:
        value = ast.literal_eval(tree)
    except ValueError as error:
        raise UserError(
            f"'{ast.unparse(tree)}' in '{text}' must be a number, a word or a tuple of them"
        ) from error
    return tuple(value) if isinstance(value, list) else value
