"""Whatever a user writes as a method, a refiner or a configuration: it is understood, or a UserError explains it."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss.config import Config
from wsss.errors import UserError
from wsss.grammar import Grammar
from wsss.options import parse_config
from wsss.refine.parameters import RefineParameters
from wsss.refine.refiners import GRAMMAR as REFINERS
from wsss.refine.refiners import build_refiner, unused_settings
from wsss.saliency.parse import GRAMMAR as METHODS
from wsss.saliency.parse import parse_method, to_expression

SYMBOLS = (*"()[]{},=@+-.'\"\\\0\n", "++", "lambda: 0", "1e999", "9" * 5000)


@st.composite
def calls(draw: st.DrawFn, grammar: Grammar[Any], depth: int = 2) -> str:
    """A known name with values of the right types, whether they have a meaning or not."""
    name = draw(st.sampled_from(sorted(grammar.known)))
    parts = []
    for key, hint in grammar.parameters(grammar.known[name]).items():
        if key == "base":
            parts.append(draw(calls(grammar, depth - 1)) if depth else "gradcam")
        elif draw(st.booleans()):
            parts.append(f"{key}={draw(st.from_type(hint))!r}")
    return f"{name}({', '.join(parts)})"


@st.composite
def written(draw: st.DrawFn, grammar: Grammar[Any]) -> str:
    """A call; or one in which something is replaced; or a deep nest; or anything."""
    text = draw(calls(grammar))
    if draw(st.booleans()):
        return text
    place = draw(st.integers(0, len(text)))
    left, right = text[:place], text[place + draw(st.integers(0, 3)) :]
    return draw(
        st.sampled_from((*SYMBOLS, *grammar.known)).map(lambda symbol: left + symbol + right)
        | st.sampled_from(("-", ".a", "(", "sess(", "=[")).map(lambda part: text + part * 600)
        | st.text(max_size=20)
    )


@given(text=written(METHODS))
def test_a_method_is_understood_or_explained(text: str) -> None:
    with suppress(UserError):
        method = parse_method(text, "layer4", "sigmoid")
        assert parse_method(to_expression(method)) == method
        assert parse_method(repr(method)) == method


@given(text=written(REFINERS), probabilities=st.booleans())
def test_a_refiner_is_understood_or_explained(text: str, probabilities: bool) -> None:
    with suppress(UserError):
        parameters = RefineParameters(method=text)
        build_refiner(parameters)
        unused_settings(parameters, probabilities)


OPTIONS = (
    *("seed", "output", "config", "classifier", "compare.images", "data.kind", "data.limit", "data.classes"),
    *("classifier.long_side", "classifier.output_stride", "classifier.optimizer.lr", "saliency.scales"),
    *("saliency.sess.enabled", "saliency.subtraction", "refine.crf.iterations", "refine.background.rule"),
    *("segmenter.scale", "segmenter.ema", "evaluate.scales", "runtime.workers", "unknown"),
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1e-3", "[0.5, 1]", "dog", "!!python/name:os.system"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
YAML_TOKENS = (
    ":",
    "- ",
    "\n",
    "  ",
    "\t",
    "[",
    "]",
    "{",
    "}",
    "&a ",
    "*a",
    "!!python/object/apply:os.system ['true']",
    "? ",
    "|",
    "#",
    "'",
    '"',
    "<<: ",
    "\0",
    "2026-01-01",
)


def tree(pairs: dict[str, object]) -> dict[str, object]:
    """Dotted names as a nested dictionary; a value gives way to a section of its name."""
    result: dict[str, object] = {}
    for name, value in pairs.items():
        *sections, leaf = name.split(".")
        inner = result
        for section in sections:
            if not isinstance(inner.get(section), dict):
                inner[section] = {}
            inner = inner[section]  # type: ignore[assignment]
        inner.setdefault(leaf, value)
    return result


CONFIGURATIONS = st.dictionaries(st.sampled_from(OPTIONS), VALUES, max_size=3).map(
    lambda pairs: yaml.safe_dump(tree(pairs))
)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """YAML of some options, in which some characters are replaced; or anything."""
    text = draw(CONFIGURATIONS | st.text(max_size=40))
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(st.sampled_from(YAML_TOKENS)) + text[place + draw(st.integers(0, 3)) :]
    return text


FEWER = settings(max_examples=settings.default.max_examples // 4)
"""The parser takes a tenth of a second for a configuration."""


@FEWER
@given(text=documents())
def test_a_configuration_file_is_understood_or_explained(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    with suppress(UserError):
        assert isinstance(parse_config("run", [str(path)]), Config)


@FEWER
@given(
    words=st.lists(
        st.builds(lambda name, value: [f"--{name}", str(value)], st.sampled_from(OPTIONS), VALUES), max_size=2
    )
)
def test_options_are_understood_or_explained(words: list[list[str]]) -> None:
    with suppress(UserError):
        parse_config("run", [word for pair in words for word in pair])
