"""The command line: ``wsss COMMAND ...``. Nothing heavy is imported before a command runs."""

import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

from wsss import __version__, plugins
from wsss.commands import data, explain, export, networks, predict, score
from wsss.errors import UsageError, UserError, escaped
from wsss.usage import near, stage_help

Command = Callable[[str, list[str]], int | None]

_STAGES = {
    "run": "all stages: image labels in, mIoU out",
    "classify": "train the multi-label classifier",
    "saliency": "write the saliency of the training photos",
    "refine": "turn saliency into pseudo-masks (background, dense CRF)",
    "segment": "train the segmenter on the pseudo-masks",
    "evaluate": "score seeds, pseudo-masks and predictions; write the report",
    "report": "write report.html again",
}

CALIBRATE = "--calibrate"
CALIBRATE_HELP = "--calibrate is short for --refine.background.rule calibrated."

OVERWRITE = "--overwrite"

OUT_OF_MEMORY = {
    "run": "ran out of memory; use a smaller --classifier.batch_size, --segmenter.batch_size, --saliency.batch_size or "
    "crop, or --data.long_side for large photos (finished work is kept)",
    "predict": "ran out of memory; use a smaller --tile or --long_side",
    "explain": "ran out of memory; use a smaller --size",
    "compare": "ran out of memory; use a smaller --compare.batch_size or --compare.size (finished work is kept)",
}
"""Command -> what it says when memory runs out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 1 bad input, 2 bad usage, 130 interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names outside the terminal's encoding
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"wsss {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        hint = near(name, COMMANDS, "`wsss {}`") or "; `wsss --help` lists the commands"
        print(f"wsss: error: there is no command {name}{hint}", file=sys.stderr)
        return 2
    try:
        if any(word.startswith(plugins.OPTION) for word in rest):
            rest = plugins.take(rest)
        if name not in _STAGES and _is_helper():
            return 0
        status = COMMANDS[name][0](name, rest) or 0
        sys.stdout.flush()
        return status
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
        way = "the same command with --skip_existing" if name == "predict" else "the same command"
        print(f"\nwsss {name}: interrupted; {way} continues where it stopped", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        sentence = OUT_OF_MEMORY.get(name, OUT_OF_MEMORY["run"]) if _out_of_memory(error) else ""
        if re.search(r"DataLoader worker .*(killed|exited)", str(error)):
            from wsss.parallel import WORKER_GONE as sentence
        if re.search(r"Connection (closed|reset) by peer|NCCL", str(error)):
            sentence = (
                "another process of this command failed; its own message says why (finished work is kept)"
            )
        if debug or not sentence:
            raise
        print(f"wsss {name}: error: {sentence}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of `wsss run --help | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if debug:
            raise
        where = escaped(f" ({error.filename})") if error.filename else ""
        print(
            f"wsss {name}: error: {error.strerror or error}{where}; fix that and run it again",
            file=sys.stderr,
        )
        return 1


def _is_helper() -> bool:
    """Whether torchrun or srun started this command several times, and this is not process 0, which does the tools."""
    if not {"RANK", "SLURM_PROCID"} & os.environ.keys():
        return False
    from wsss.parallel import rank_and_world

    return rank_and_world()[0] > 0


def _out_of_memory(error: BaseException) -> bool:
    """Whether this is what Python, torch on a CPU or torch on a GPU raises when memory runs out."""
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
            "Stages take a YAML file or a run directory first, then dotted overrides (--classifier.epochs 5).",
            "--plugin FILE.py runs a file that adds methods, networks, refiners or kinds of data. --debug shows the "
            "traceback of an error.",
        ]
    )


# -- stages -----------------------------------------------------------------------------------------


def _stage(name: str, words: list[str]) -> int:
    if _helped(name, words):
        return 0
    options, overwrite = [word for word in words if word != OVERWRITE], OVERWRITE in words
    if name == "refine" and CALIBRATE in words:  # last, so that it overrides any --config
        options = [word for word in options if word != CALIBRATE] + ["--refine.background.rule=calibrated"]
    from wsss.options import parse_config

    config = parse_config(name, options)
    from wsss.runner import run_command

    run_command(config, name, ["wsss", name, *words], overwrite=overwrite)
    return 0


def _compare(name: str, words: list[str]) -> int:
    if _helped(name, words):
        return 0
    from wsss.options import parse_comparison

    config = parse_comparison(words)
    from wsss.comparison.compare import compare

    compare(config, ["wsss", name, *words])
    return 0


def _helped(name: str, words: list[str]) -> bool:
    """Print the help of a stage if the words ask for it."""
    asked = [index for index, word in enumerate(words) if word in ("-h", "--help")]
    if asked:
        about = COMMANDS[name][1]
        print(stage_help(name, f"{about[0].upper()}{about[1:]}.", words[asked[0] + 1 :][:1] == ["all"]))
        if name == "refine":
            print(f"\n{CALIBRATE_HELP}")
    return bool(asked)


def _tool(module: ModuleType) -> Command:
    return lambda name, words: module.main(words)


COMMANDS: dict[str, tuple[Command, str]] = {
    **{name: (_stage, text) for name, text in _STAGES.items()},
    "compare": (_compare, "leaderboard of saliency methods"),
    "score": (_tool(score), "VOC mIoU of any two folders of masks"),
    "predict": (_tool(predict), "masks for new photos"),
    "export": (
        _tool(export),
        "a segmenter as ONNX or as a torch program; masks for other tools; an archive for the VOC test server",
    ),
    "explain": (_tool(explain), "where a classifier sees a class in a photo"),
    "data": (_tool(data), "make, check or import a data set"),
    "networks": (_tool(networks), "networks of timm by name"),
}
"""Command -> (function of the command's name and the words after it, one line of help)."""
