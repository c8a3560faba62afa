"""``wsss data``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wsss.config import ShapesConfig
from wsss.usage import FLAG, ToolParser

IMPORTS = (
    *("cvat-imagenet", "labelstudio", "labelstudio-min", "cvat", "coco", "roboflow", "yolo", "huggingface"),
    *("fiftyone", "labelme", "fastai", "vertex", "sagemaker", "openimages", "csv", "folders"),
)
"""Formats of tags, see `wsss.data.tools.FORMATS`."""

MASK_IMPORTS = ("coco", "png", "yolo", "cvat", "cvat-mask", "labelstudio", "labelme", "folder")
"""Formats of masks, see `wsss.data.mask_formats.MASK_FORMATS`."""


def main(words: Sequence[str]) -> int:
    """``check`` a data set (status 1 if it has errors), write the procedural one (``shapes``), or ``import`` tags or
    masks."""
    parser = ToolParser(prog="wsss data", description="Make, check and import data sets.")
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _check_parser(commands)
    _shapes_parser(commands)
    _import_parser(commands)
    _import_masks_parser(commands)
    options = parser.parse_args(words)
    run = {"check": _check, "shapes": _shapes, "import": _import, "import-masks": _import_masks}
    return run[options.action](options)


def _check_parser(commands: "argparse._SubParsersAction[ToolParser]") -> None:
    check = commands.add_parser("check", help="find errors: ids, sizes, palettes, labels, splits, duplicates")
    check.add_argument("root", type=Path, help="data set in VOC or folder layout")
    check.add_argument(
        "--classes",
        type=Path,
        help="class names, one per line (default: classes.txt in ROOT, or VOC's; folder: the labels of the CSV)",
    )
    check.add_argument("--labels", help="`xml` or a label CSV (default: whichever ROOT has)")


def _check(options: argparse.Namespace) -> int:
    from wsss.data.check import check_dataset

    report = check_dataset(options.root, options.classes, options.labels)
    print(report)
    return 0 if report.ok else 1


def _shapes_parser(commands: "argparse._SubParsersAction[ToolParser]") -> None:
    shapes = commands.add_parser("shapes", help="write the procedural data set")
    shapes.add_argument("root", type=Path, help="folder to write to")
    defaults = ShapesConfig()
    for key, text in (
        ("train", "training images"),
        ("val", "validation images"),
        ("size", "height and width in pixels"),
        ("seed", "seed"),
    ):
        shapes.add_argument(
            f"--{key}", type=int, default=getattr(defaults, key), help=f"{text} (default %(default)s)"
        )
    shapes.add_argument(
        "--layout",
        choices=("voc", "folder"),
        default="voc",
        help="voc: PASCAL VOC's; folder: a folder of tagged photos, with the validation images untagged "
        "(default %(default)s)",
    )
    shapes.add_argument("--masks", **FLAG, help="with layout folder: also write true masks, for scoring only")


def _shapes(options: argparse.Namespace) -> int:
    from wsss.data.shapes import write_shapes

    write_shapes(
        options.root,
        train=options.train,
        val=options.val,
        size=options.size,
        seed=options.seed,
        layout=options.layout,
        masks=options.masks,
        progress=sys.stderr.isatty(),
    )
    print(options.root)
    return 0


def _import_parser(commands: "argparse._SubParsersAction[ToolParser]") -> None:
    parser = commands.add_parser(
        "import",
        help="tags of a labelling tool to photos, labels.csv and classes.txt",
        description="Read the tags of photos as a labelling tool exports them, and make a folder for "
        "`--data.kind folder`: links to the photos, labels.csv, classes.txt, and lists of the splits where the export "
        "has them. Of videos, frames at an interval.",
    )
    _add_places(parser, (*IMPORTS, "video"))
    parser.add_argument("--copy", **FLAG, help="copy the photos instead of linking to them")
    parser.add_argument("--field", metavar="NAME", help="of several groups of tags, the one to take")
    parser.add_argument(
        "--annotators",
        choices=("newest", "union"),
        help="what counts where people disagree (default: an error)",
    )
    _add_unlabelled(parser)
    parser.add_argument("--threshold", type=float, metavar="X", help="confidence from which a tag counts")
    parser.add_argument("--label_separator", metavar="TEXT", help="between the labels of a cell of a table")
    parser.add_argument(
        "--every",
        type=float,
        metavar="SECONDS",
        help="between the frames that are taken of videos (default 1)",
    )


def _add_places(parser: ToolParser, formats: Sequence[str]) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the export: a file, or a folder with it")
    parser.add_argument("target", type=Path, metavar="DEST", help="the new folder")
    parser.add_argument(
        "--format",
        choices=("auto", *formats),
        default="auto",
        metavar="NAME",
        help="auto (by the content of the files), " + ", ".join(formats),
    )
    parser.add_argument(
        "--photos", type=Path, metavar="DIR", help="where the photos are (default: at SOURCE)"
    )


def _add_unlabelled(parser: ToolParser) -> None:
    parser.add_argument(
        "--unlabelled",
        choices=("none", "unknown"),
        help="what a photo without a tag (or a mask) is where the format does not say: it shows none of the classes, "
        "or nobody knows",
    )


def _import(options: argparse.Namespace) -> int:
    from wsss.data.importing import import_tags
    from wsss.data.tools import Options
    from wsss.data.video import EVERY, import_videos, only_videos, videos_in
    from wsss.errors import UserError

    source = options.source
    if options.format == "video" or (options.format == "auto" and only_videos(source)):
        print(import_videos(source, options.target, EVERY if options.every is None else options.every))
        return 0
    if options.every is not None:
        raise UserError(
            f"--every is for videos, and {source} has photos, too: say --format video for its videos alone"
        )
    own = Options(
        options.field, options.annotators, options.unlabelled, options.threshold, options.label_separator
    )
    print(import_tags(source, options.target, options.format, options.photos, own, options.copy))
    if videos := videos_in(source):
        print(f"left out: {len(videos)} videos, such as {videos[0].name}; --format video takes their frames")
    return 0


def _import_masks_parser(commands: "argparse._SubParsersAction[ToolParser]") -> None:
    parser = commands.add_parser(
        "import-masks",
        help="masks that were drawn or corrected in a labelling tool, as a folder of palette PNGs",
        description="Read masks in the formats of `wsss export masks`, and write <id>.png with class indices, which "
        "`--segmenter.true_masks` trains on. Ids are the names of the photos below --photos.",
    )
    _add_places(parser, MASK_IMPORTS)
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="the class list of your data set (default: the export's own; Label Studio and LabelMe have none)",
    )
    parser.add_argument(
        "--annotators", choices=("newest",), help="which annotation of a photo counts (default: an error)"
    )
    _add_unlabelled(parser)
    parser.add_argument(
        "--crowds",
        choices=("objects", "ignore"),
        help="what COCO's regions with iscrowd 1 are (default: an error)",
    )


def _import_masks(options: argparse.Namespace) -> int:
    from wsss.data.mask_import import import_masks
    from wsss.data.tools import Options

    own = Options(annotators=options.annotators, unlabelled=options.unlabelled, crowds=options.crowds)
    source, target = options.source, options.target
    print(import_masks(source, target, options.format, options.classes, options.photos, own))
    return 0
