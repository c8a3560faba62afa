"""The command line: ``wsss COMMAND ...``. Nothing heavy is imported before a command runs."""

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

from wsss import __version__, commands
from wsss.errors import UsageError, UserError

_STAGES = {
    "run": "all stages: image labels in, mIoU out",
    "classify": "train the multi-label classifier",
    "saliency": "write the saliency of the training photos",
    "refine": "turn saliency into pseudo-masks (background, dense CRF)",
    "segment": "train the segmenter on the pseudo-masks",
    "evaluate": "score seeds, pseudo-masks and predictions; write the report",
    "report": "write report.html anew",
}


CALIBRATE = "--calibrate"
OUT_OF_MEMORY = {
    "run": "memory ran out; take a smaller --classifier.batch_size, --segmenter.batch_size, --saliency.batch_size or "
    "crop, or --data.long_side for large photos (what is done is kept)",
    "predict": "memory ran out; take a smaller --tile or --long-side",
    "explain": "memory ran out; take a smaller --size",
    "compare": "memory ran out; take a smaller --compare.batch_size or --compare.size (what is done is kept)",
}
"""Command -> what it says then."""
CALIBRATE_HELP = "--calibrate is short for --refine.background.rule calibrated."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 1 bad input, 2 bad usage, 130 interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"wsss {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `wsss {near[0]}`?" if near else "`wsss --help` lists the commands"
        print(f"wsss: error: there is no command {name}; {hint}", file=sys.stderr)
        return 2
    try:
        return COMMANDS[name][0](name, rest) or 0
    except UserError as error:
        if debug:
            raise
        print(f"wsss {name}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except SystemExit as stop:  # argparse: after --help, --print_config, or a complaint about usage
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except KeyboardInterrupt:
        if debug:
            raise
        way = "the same command with --skip-existing" if name == "predict" else "the same command"
        print(f"\nwsss {name}: interrupted; {way} continues where it stopped", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if debug or not _out_of_memory(error):
            raise
        print(f"wsss {name}: error: {OUT_OF_MEMORY.get(name, OUT_OF_MEMORY['run'])}", file=sys.stderr)
        return 1
    except OSError as error:
        if debug:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"wsss {name}: error: {error.strerror or error}{where}; mend that and run it again",
            file=sys.stderr,
        )
        return 1


def _out_of_memory(error: BaseException) -> bool:
    """Whether it is what Python, torch on a CPU, or torch on a GPU raise where memory is not enough."""
    name, text = type(error).__name__, str(error)
    return name in ("MemoryError", "OutOfMemoryError") or "allocate memory" in text or "out of memory" in text


def _overview() -> str:
    lines = [f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            f"wsss {__version__}: semantic segmentation from image-level labels",
            "",
            "usage: wsss COMMAND [options]      wsss COMMAND --help",
            "",
            *lines,
            "",
            "Stages take --config FILE, dotted overrides (--classifier.epochs 5) and --print_config.",
            "--debug shows the traceback of an error.",
        ]
    )


# -- stages -----------------------------------------------------------------------------------------


def _stage(name: str, words: list[str]) -> int:
    options = words
    if name == "refine" and CALIBRATE in words:  # last, so that it also goes before a --config after it
        options = [word for word in words if word != CALIBRATE] + ["--refine.background.rule=calibrated"]
    config = parse_config(name, options)
    from wsss.runner import run_command

    run_command(config, name, ["wsss", name, *words])
    return 0


def _compare(name: str, words: list[str]) -> int:
    config = parse_config(name, words)
    from wsss.comparison.compare import compare

    compare(config, ["wsss", name, *words])
    return 0


def parse_config(command: str, words: Sequence[str]) -> Any:
    """The configuration from ``--config`` and dotted overrides.

    Raises:
        UsageError: unknown option, wrong type.
        UserError: a configuration file that is missing or not one, or a value out of range.
    """
    import jsonargparse

    from wsss.config import Config

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=f"wsss {command}",
        description=f"{COMMANDS[command][1][0].upper()}{COMMANDS[command][1][1:]}.",
        epilog=CALIBRATE_HELP if command == "refine" else None,
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


def _parse(parser: Any, words: Sequence[str]) -> Any:
    """Parse, turning every complaint into one sentence."""
    from jsonargparse import ArgumentError

    options = [name.removeprefix("--") for name in parser._option_string_actions if name.startswith("--")]
    words = [_underscored(word, options) for word in words]
    files = _config_files(words)
    for path in files:
        _check_config_file(path, options)
    try:
        return parser.parse_args(list(words))
    except (ArgumentError, TypeError, ValueError) as error:
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


def _check_config_file(path: Path, options: Iterable[str]) -> None:
    """Raises UserError where a configuration file is missing, no YAML, or has a key that does not exist."""
    import yaml

    from wsss.data.labels import read_text

    class Loader(yaml.SafeLoader):
        """Refuses a key that is there twice, of which YAML's own loader keeps the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names: set[Any] = set()
            for key, _ in node.value:
                if key.value in names:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value} is there twice", key.start_mark
                    )
                names.add(key.value)
            return super().construct_mapping(node, deep)

    try:
        tree = yaml.load(read_text(path), Loader)
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
    from wsss.config import Config

    hint: Any = Config
    for part in key.split("."):
        hint = get_type_hints(hint)[part]
    return type(None) in get_args(hint)


def _no_option(name: str, options: Iterable[str]) -> str:
    near = get_close_matches(name, list(options), n=1)
    return f"there is no option {name}" + (f"; did you mean {near[0]}?" if near else "")


def _is_given(option: str, words: Sequence[str]) -> bool:
    return any(word == option or word.startswith(f"{option}=") for word in words)


def _sentence(text: str) -> str:
    """jsonargparse's complaint on one line, without the names of Python's types."""
    text = " ".join(text.split())
    text = re.sub(r'^Parser key "([^"]+)":', r"--\1:", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    text = re.sub(r"a typing\.Literal\[([^]]*)\]", r"one of \1", text)
    return re.sub(r"Expected a? ?(.*?)\. Got value:", r"expected \1, got", text)


Command = Callable[[str, list[str]], int | None]
COMMANDS: dict[str, tuple[Command, str]] = {
    **{name: (_stage, text) for name, text in _STAGES.items()},
    "compare": (_compare, "leaderboard of saliency methods"),
    "score": (commands.score, "VOC mIoU of any two folders of masks"),
    "predict": (commands.predict, "masks for new photos"),
    "export": (commands.export, "a segmenter as ONNX or for torch alone; an archive for the VOC test server"),
    "explain": (commands.explain, "where a classifier sees a class in a photo"),
    "data": (commands.data, "make or check a data set"),
}
"""Command -> (function of the command's name and the words after it, one line of help)."""
