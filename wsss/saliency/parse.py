"""Saliency methods as text, for the command line and configurations, and back."""

import ast
import re
from collections import ChainMap
from dataclasses import MISSING, Field, fields
from typing import Any, get_type_hints

from wsss.errors import UserError
from wsss.grammar import Grammar
from wsss.saliency import METHODS, SESS, ClassSubtraction, Maximum, Mean, MultiScale, Product, SaliencyMethod

WRAPPERS: dict[str, type[SaliencyMethod]] = {
    "sess": SESS,
    "subtraction": ClassSubtraction,
    "multiscale": MultiScale,
    "mean": Mean,
    "max": Maximum,
    "product": Product,
}
"""Methods around one other method, or around several, under their names on the command line."""

_AT = re.compile(r"(\w+(?:\+\+)?)@([\w.]+)(\s*\()?")


def _parameters(kind: type[SaliencyMethod]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


GRAMMAR = Grammar[SaliencyMethod](
    noun="saliency method",
    plural="methods",
    example="gradcam, gradcam@layer3, or sess(gradcam, prefilter=0.5)",
    known=ChainMap(WRAPPERS, METHODS),  # not a copy: a method that is added later is one, too
    parameters=_parameters,
)


def parse_method(text: str, layer: str | None = None, score: str | None = None) -> SaliencyMethod:
    """The method that an expression names.

    An expression is a name of `METHODS` ("gradcam", "gradcam++"), with the layer after an "@" where wanted
    ("gradcam@layer3"), with parameters as in Python ("sess(gradcam@layer3, prefilter=0.5)"), or the `repr`
    of a method. The wrappers are "sess(...)", "subtraction(...)" and "multiscale(...)"; the method that they
    wrap comes first. "mean(...)", "max(...)" and "product(...)" take several methods. Nothing is executed: values are
    numbers, strings, booleans, None and tuples of them.

    Args:
        text: the expression.
        layer: for methods that take a layer and were given none.
        score: "sigmoid" or "softmax", likewise.

    Raises:
        UserError: the text is no expression, a name is unknown (the closest one is named), or a value is
            out of range.
    """
    tree = GRAMMAR.parse(text, _to_python(text))
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
    bases = ([base] if base else []) + list(values.pop("bases", ()))
    words = [to_expression(base) for base in bases] + [f"{key}={value!r}" for key, value in values.items()]
    return f"{name}{at}({', '.join(words)})" if words else f"{name}{at}"


def _is_set(method: SaliencyMethod, field: "Field[Any]") -> bool:
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return bool(getattr(method, field.name) != default)


def _to_python(text: str) -> str:
    """`name@layer` becomes `name(layer='layer')`."""
    return _AT.sub(lambda found: f"{found[1]}(layer={found[2]!r}" + (", " if found[3] else ")"), text)


def _build(tree: ast.expr, text: str, defaults: dict[str, str | None]) -> SaliencyMethod:
    """The method of a syntax tree: a name, or a call with keyword values."""

    def nested(part: ast.expr) -> SaliencyMethod:
        return _build(part, text, defaults)

    def several(part: ast.expr) -> tuple[SaliencyMethod, ...]:
        return tuple(map(nested, part.elts if isinstance(part, (ast.Tuple, ast.List)) else [part]))

    name, kind, given = GRAMMAR.read(_gathered(tree), text, {"base": nested, "bases": several})
    if given.get("layer") == "":
        raise UserError(f"'{name}' in '{text}' has an empty layer; name one, or leave it out")
    for field in fields(kind):
        fallback = defaults.get(field.name)
        if field.name not in given and fallback is not None:
            given[field.name] = fallback
        if field.name not in given and field.default is MISSING and field.default_factory is MISSING:
            examples = {"base": "sess(gradcam)", "bases": "mean(gradcam@layer3, gradcam@layer4)"}
            example = examples.get(field.name, f"{name}(layer='layer4')")
            raise UserError(f"'{name}' in '{text}' needs its {field.name}, for example {example}")
    return kind(**given)


def _gathered(tree: ast.expr) -> ast.expr:
    """The call of a method around several, with those as one tuple: `mean(a, b)` becomes `mean((a, b))`."""
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or len(tree.args) < 2:
        return tree
    kind = WRAPPERS.get(tree.func.id) or next(
        (k for k in WRAPPERS.values() if k.__name__ == tree.func.id), None
    )
    if kind is None or "bases" not in _parameters(kind):
        return tree
    return ast.Call(tree.func, [ast.Tuple(tree.args, ast.Load())], tree.keywords)
