"""The command line: ``wsss COMMAND ...``. Nothing heavy is imported before a command runs."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

from wsss import __version__
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
    except OSError as error:
        if debug:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"wsss {name}: error: {error.strerror or error}{where}; mend that and run it again",
            file=sys.stderr,
        )
        return 1


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


def _config_files(words: Sequence[str]) -> list[Path]:
    """The files given with ``--config``."""
    files = [Path(after) for word, after in pairwise(words) if word == "--config"]
    return files + [Path(word.removeprefix("--config=")) for word in words if word.startswith("--config=")]


def _check_config_file(path: Path, options: Iterable[str]) -> None:
    """Raises UserError where a configuration file is missing, no YAML, or has a key that does not exist."""
    import yaml

    from wsss.data.labels import read_text

    try:
        tree = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or "it cannot be parsed"
        raise UserError(f"{path}{where} is not valid YAML ({what}); correct it there") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no configuration; write `key: value` lines (see configs/shapes.yaml)")
    for key in _keys(tree):
        if key not in options:
            raise UserError(f"{path}: {_no_option(key, options)}")


def _keys(tree: dict[Any, Any], prefix: str = "") -> Iterable[str]:
    """Dotted names of the leaves of a nested dictionary."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


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


# -- tools ------------------------------------------------------------------------------------------


def _compare(name: str, words: list[str]) -> int:
    config = parse_config(name, words)
    from wsss.comparison.compare import compare

    compare(config, ["wsss", name, *words])
    return 0


def _score(name: str, words: list[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser(
        prog="wsss score",
        description="PASCAL VOC mIoU, precision and recall of a folder of predicted masks against a folder of true "
        "masks.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "predictions", type=Path, help="folder of <id>.png: palette or grey, 0..C, 255 = no answer"
    )
    parser.add_argument(
        "truth", type=Path, help="folder of <id>.png: palette or grey, 0..C, 255 = not counted"
    )
    parser.add_argument(
        "--ids", type=Path, help="list of the ids to score (default: every PNG of the predictions)"
    )
    parser.add_argument(
        "--classes", type=Path, help="class names, one a line, without background (default: VOC's 20)"
    )
    parser.add_argument(
        "--ignored-as-background",
        action="store_true",
        help="count a predicted 255 as background (IRN's convention)",
    )
    parser.add_argument(
        "--boundary",
        action="store_true",
        help="also boundary F-scores, within 0.75 %% of the image diagonal (Csurka et al. 2013); slower",
    )
    parser.add_argument(
        "--confusion", action="store_true", help="also list which classes are taken for which most often"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes (default: this one)")
    parser.add_argument(
        "--json", action="store_true", help="print JSON, with the whole confusion matrix, instead of a table"
    )
    options = parser.parse_args(words)
    from wsss.data.labels import read_classes, read_ids
    from wsss.metrics.segmentation import score_folder
    from wsss.metrics.table import score_table

    for folder in (options.predictions, options.truth):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give the folder that holds the <id>.png masks")
    result = score_folder(
        options.predictions,
        options.truth,
        read_ids(options.ids) if options.ids else None,
        ("background", *read_classes(options.classes)),
        ignored_as_background=options.ignored_as_background,
        boundary=options.boundary,
        confusion=options.confusion or options.json,
        workers=options.workers,
        progress=sys.stderr.isatty(),
    )
    print(json.dumps(result, indent=2) if options.json else score_table(result, options.confusion))
    return 0


_PREDICT_EXAMPLES = """\
examples:
  wsss predict holiday.jpg photos/ --checkpoint runs/voc/segmenter/last.ckpt --output masks --overlay
  wsss predict photos/ --checkpoint runs/voc/segmenter/last.ckpt --output masks --ms-flip --crf --skip-existing

JPEG, PNG, WebP, BMP and TIFF; grey, CMYK, transparent (laid on white), 16-bit; turned as their EXIF orientation
says. Masks have the photo's size: 0 is background, 1 the first class; the table at the end names the indices.
A network knows objects at the size at which it was trained: for photos of a phone or a camera try --long-side 1024.
"""


def _predict(name: str, words: list[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser(
        prog="wsss predict",
        description="Masks for new photos of any size.",
        epilog=_PREDICT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="photos, or folders of photos")
    parser.add_argument("--checkpoint", type=Path, required=True, help="runs/<name>/segmenter/last.ckpt")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for <name>.png (palette, size of the photo)"
    )
    parser.add_argument(
        "--ms-flip", action="store_true", help="several scales and mirrored: better, 17 times slower"
    )
    parser.add_argument("--crf", action="store_true", help="refine along edges with a dense CRF")
    parser.add_argument(
        "--long-side",
        type=int,
        metavar="PIXELS",
        help="predict larger photos reduced to this longer side, then enlarge (default: at their own size)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        default=1024,
        metavar="PIXELS",
        help="beyond this longer side predict in overlapping, blended tiles; smaller takes less memory "
        "(default: %(default)s)",
    )
    parser.add_argument("--overlay", action="store_true", help="also write <name>_overlay.jpg")
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="also write <name>.npz: probabilities float16 (classes, height, width), classes (names)",
    )
    parser.add_argument(
        "--skip-existing",
        action="store_true",
        help="keep what is in the folder and predict the rest, to continue (default: write everything anew)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="where to compute")
    options = parser.parse_args(words)
    from wsss.predict import PredictOptions, predict_files

    chosen = PredictOptions(
        ms_flip=options.ms_flip,
        crf=options.crf,
        tile=options.tile,
        long_side=options.long_side,
        overlay=options.overlay,
        probabilities=options.probabilities,
        skip_existing=options.skip_existing,
    )
    print(predict_files(options.images, options.checkpoint, options.output, chosen, options.device))
    return 0


def _export(name: str, words: list[str]) -> int:
    from wsss.export.command import main as export

    return export(words)


_EXPLAIN_EXAMPLES = """\
examples:
  wsss explain dog.jpg --architecture resnet50 --class "golden retriever" --output why.png
  wsss explain street.jpg --checkpoint runs/voc/classifier/last.ckpt --class person --class car \\
      --method gradcam --method global_guidance@layer3 --method "sess(gradcam, prefilter=0.5)" --output why.png

A METHOD is a name with parameters as in Python, in quotes: gradcam, gradcam@layer3 (the layer),
"groupcam(groups=16)"; around it "sess(...)", "subtraction(...)", "multiscale(...)". An unknown name lists all.

Beside FILE.png comes FILE.npy: the raw maps (neither normalised nor clipped), upsampled to the size at which
the photo was explained, float32 (methods, classes, height, width) in the order of the figure.
"""


def _explain_parser() -> Any:
    import argparse

    parser = argparse.ArgumentParser(
        prog="wsss explain",
        description="Draws where a classifier sees a class: saliency of one photo, a row for each class and a "
        "column for each method.",
        epilog=_EXPLAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a photo")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png", help="the figure")
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar="NAME",
        help="class, repeatable; for ImageNet also its index (default: the most probable)",
    )
    parser.add_argument(
        "--method",
        dest="methods",
        action="append",
        metavar="METHOD",
        help="saliency method, repeatable (default: gradcam)",
    )
    parser.add_argument("--layer", help="of methods that name none (default: the last convolutional one)")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--checkpoint", type=Path, metavar="CKPT", help="runs/<name>/classifier/last.ckpt: its classes"
    )
    model.add_argument(
        "--architecture",
        metavar="NAME",
        help="an ImageNet classifier of torchvision: resnet18, resnet34, resnet50, resnet101, vgg16, vgg16_bn",
    )
    parser.add_argument(
        "--weights", metavar="PATH", help="state dict of --architecture (default: torchvision's, downloaded)"
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="shorter side (default: the photo's, its longer at most 1024)",
    )
    parser.add_argument(
        "--patches",
        action="store_true",
        help="also draw the map of every crop of sess(...), with the weight it has: FILE.patches-1.png ...",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="where to compute")
    return parser


def _explain(name: str, words: list[str]) -> int:
    parser = _explain_parser()
    options = parser.parse_args(words)
    if options.weights and not options.architecture:
        parser.error("--weights belongs to --architecture; a checkpoint has its own")
    if options.size is not None and options.size < 1:
        parser.error(f"--size is {options.size}, but must be at least 1 pixel")
    from wsss.explain import explain, imagenet_subject, trained_subject

    if options.checkpoint:
        subject = trained_subject(options.checkpoint, options.layer)
    else:
        subject = imagenet_subject(options.architecture, options.weights or "imagenet", options.layer)
    explain(
        options.image,
        options.output,
        subject,
        options.methods or ["gradcam"],
        options.classes,
        size=options.size,
        patches=options.patches,
        accelerator=options.device,
    )
    return 0


def _data(name: str, words: list[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser(
        prog="wsss data", description="Make and check data sets.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = commands.add_parser(
        "check", help="the doctor: ids, sizes, palettes, labels, splits, duplicates", allow_abbrev=False
    )
    check.add_argument("root", type=Path, help="data set in VOC or folder layout")
    check.add_argument(
        "--classes", type=Path, help="class names, one a line (default: classes.txt in ROOT, or VOC's)"
    )
    check.add_argument("--labels", help="`xml` or a label CSV (default: what ROOT holds)")
    shapes = commands.add_parser("shapes", help="write the procedural data set", allow_abbrev=False)
    shapes.add_argument("root", type=Path, help="folder to write to")
    from wsss.config import ShapesConfig

    defaults = ShapesConfig()
    for key, text in (
        ("train", "training images"),
        ("val", "validation images"),
        ("size", "pixels a side"),
        ("seed", "seed"),
    ):
        shapes.add_argument(
            f"--{key}", type=int, default=getattr(defaults, key), help=f"{text} (default %(default)s)"
        )
    options = parser.parse_args(words)
    if options.action == "check":
        from wsss.data.check import check_dataset

        report = check_dataset(options.root, options.classes, options.labels)
        print(report)
        return 1 if any(problem.severity == "error" for problem in report.problems) else 0
    from wsss.data.shapes import write_shapes

    write_shapes(
        options.root,
        train=options.train,
        val=options.val,
        size=options.size,
        seed=options.seed,
        progress=sys.stderr.isatty(),
    )
    print(options.root)
    return 0


Command = Callable[[str, list[str]], int | None]
COMMANDS: dict[str, tuple[Command, str]] = {
    **{name: (_stage, text) for name, text in _STAGES.items()},
    "compare": (_compare, "leaderboard of saliency methods"),
    "score": (_score, "VOC mIoU of any two folders of masks"),
    "predict": (_predict, "masks for new photos"),
    "export": (_export, "a segmenter as ONNX or for torch alone; an archive for the VOC test server"),
    "explain": (_explain, "where a classifier sees a class in a photo"),
    "data": (_data, "make or check a data set"),
}
"""Command -> (function of the command's name and the words after it, one line of help)."""
