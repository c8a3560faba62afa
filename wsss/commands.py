"""The tools besides the pipeline: ``wsss score, predict, export, explain, data``.

Each function takes the command's name and the words after it, and returns the exit status. Nothing heavy is imported
before the words are parsed.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from wsss.errors import UserError
from wsss.export.command import NAMES
from wsss.usage import FLAG, ToolParser, numbers


def score(name: str, words: list[str]) -> int:
    """Score a folder of masks against another; prints a table or JSON."""
    parser = ToolParser(
        prog="wsss score",
        description="PASCAL VOC mIoU, precision and recall of a folder of predicted masks against a folder of true "
        "masks.",
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
        "--classes",
        type=Path,
        help="class names, one per line, without background (default: those recorded with the masks, else VOC's 20)",
    )
    parser.add_argument(
        "--ignored_as_background",
        **FLAG,
        help="count a predicted 255 as background (IRN's convention)",
    )
    parser.add_argument(
        "--boundary",
        **FLAG,
        help="also boundary F-scores, tolerance 0.75 %% of the image diagonal (Csurka et al. 2013); slower",
    )
    parser.add_argument("--confusion", **FLAG, help="also list which classes are confused most often")
    parser.add_argument("--workers", type=int, default=0, help="worker processes (default: none)")
    parser.add_argument(
        "--json", **FLAG, help="print JSON, with the whole confusion matrix, instead of a table"
    )
    options = parser.parse_args(words)
    from wsss.data.labels import read_ids
    from wsss.data.names import classes_of
    from wsss.metrics.segmentation import score_folder
    from wsss.metrics.table import score_table

    for folder in (options.predictions, options.truth):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give the folder that holds the <id>.png masks")
    result = score_folder(
        options.predictions,
        options.truth,
        read_ids(options.ids) if options.ids else None,
        classes_of((options.predictions, options.truth), options.classes),
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
  wsss predict holiday.jpg photos/ --checkpoint runs/voc --output masks --overlay
  wsss predict photos/ --checkpoint runs/voc --output masks --ms_flip --crf --skip_existing

Reads JPEG, PNG, WebP, BMP, TIFF, GIF and AVIF, and HEIC with pip install "wsss[heic]"; grey, CMYK, 16-bit
and transparent ones (laid on white); EXIF orientation is applied. Masks have the photo's size: 0 is
background, 1 the first class. The table that is printed at the end names the indices.
A network recognises objects at the size at which it was trained, so photos are shrunk as those of the
training were (data.long_side). If those were not, try --long_side 640 for photos from a phone or a camera.
"""


def _predict_parser() -> ToolParser:
    parser = ToolParser(
        prog="wsss predict",
        description="Predict masks for new photos of any size.",
        epilog=_PREDICT_EXAMPLES,
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="photos, or folders of photos")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a run directory, or a checkpoint file"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for <name>.png (palette, size of the photo)"
    )
    parser.add_argument(
        "--ms_flip", **FLAG, help="also predict at several scales and mirrored: better, 17 times slower"
    )
    parser.add_argument(
        "--scales",
        type=numbers,
        metavar="X,...",
        help="scales of --ms_flip (default: 0.5,0.75,1,1.25,1.5,1.75)",
    )
    parser.add_argument("--crf", **FLAG, help="refine along edges with a dense CRF (DeepLab's constants)")
    parser.add_argument(
        "--long_side",
        type=int,
        metavar="PIXELS",
        help="shrink larger photos to this longer side and enlarge the result (default: as in the training; 0: "
        "predict at full size)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        default=1024,
        metavar="PIXELS",
        help="predict larger photos in overlapping, blended tiles of this side; smaller tiles take less memory "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--unsure",
        type=float,
        metavar="P",
        help="pixels whose most probable class has less than this probability become 255",
    )
    parser.add_argument(
        "--tags",
        metavar="CSV",
        help="image,labels: the classes that a photo may have; photos that it does not name may have all",
    )
    parser.add_argument(
        "--review",
        **FLAG,
        help="also write review.csv: photos whose tags and masks disagree (with --tags), then the least certain",
    )
    parser.add_argument("--overlay", **FLAG, help="also write <name>_overlay.jpg")
    parser.add_argument(
        "--probabilities",
        **FLAG,
        help="also write <name>.npz: probabilities float16 (classes, height, width), classes (names)",
    )
    parser.add_argument(
        "--format",
        dest="formats",
        action="append",
        choices=NAMES,
        default=[],
        metavar="NAME",
        help="also write the masks as OUTPUT/NAME for another tool, repeatable: " + ", ".join(NAMES),
    )
    parser.add_argument(
        "--skip_existing",
        **FLAG,
        help="continue: keep the masks in the folder and predict the rest "
        "(default: overwrite the masks that wsss predict wrote; other files there are an error)",
    )
    parser.add_argument(
        "--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="where to compute"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bf16"),
        default="auto",
        help="auto: bf16 if it is fast here, else float32",
    )
    return parser


def predict(name: str, words: list[str]) -> int:
    """Write masks for new photos; prints which classes were found."""
    options = _predict_parser().parse_args(words)
    from wsss.config import EvaluateConfig, RuntimeConfig
    from wsss.plugins import load_installed
    from wsss.predict import PredictOptions, predict_files
    from wsss.rundir import find_checkpoint

    load_installed()
    chosen = PredictOptions(
        ms_flip=options.ms_flip,
        scales=options.scales or EvaluateConfig().scales,
        crf=options.crf,
        tile=options.tile,
        long_side=options.long_side,
        unsure=options.unsure,
        tags=options.tags,
        review=options.review,
        overlay=options.overlay,
        probabilities=options.probabilities,
        skip_existing=options.skip_existing,
    )
    hardware = RuntimeConfig(accelerator=options.accelerator, precision=options.precision)
    checkpoint = find_checkpoint(options.checkpoint, "segmenter")
    print(predict_files(options.images, checkpoint, options.output, chosen, hardware))
    if options.formats:
        from wsss.data.names import classes_of
        from wsss.export.masks import ENDINGS, export_masks
        from wsss.predict import find_photos

        photos = find_photos(options.images, options.output)
        folder = common_folder(list(photos.values()))
        pairs = [(key, options.output / f"{key}.png", path) for key, path in photos.items()]
        for kind in options.formats:
            output = options.output / f"{kind}{ENDINGS.get(kind, '')}"
            print(export_masks(pairs, folder, classes_of([options.output], None), kind, output))
    return 0


def common_folder(photos: list[Path]) -> Path:
    """The deepest folder that holds all photos."""
    parents = [Path(os.path.abspath(photo)).parent for photo in photos]
    return Path(os.path.commonpath(parents))


def export(name: str, words: list[str]) -> int:
    """Export a segmenter or its masks; see ``wsss.export.command``."""
    from wsss.export.command import main as export

    return export(words)


_EXPLAIN_EXAMPLES = """\
examples:
  wsss explain dog.jpg --architecture resnet50 --class "golden retriever" --output why.png
  wsss explain street.jpg --checkpoint runs/voc --class person --class car \\
      --method gradcam --method global_guidance@layer3 --method "sess(gradcam, prefilter=0.5)" --output why.png

A METHOD is a name with parameters as in Python, in quotes: gradcam, gradcam@layer3 (its layer),
"groupcam(groups=16)". "sess(...)", "subtraction(...)" and "multiscale(...)" wrap a method. An unknown name
lists all methods.

FILE.npy is written next to FILE.png. It holds the raw maps (neither normalised nor clipped), upsampled to the
size at which the photo was explained: float32 (methods, classes, height, width) in the order of the figure.
"""


def _explain_parser() -> ToolParser:
    parser = ToolParser(
        prog="wsss explain",
        description="Draw where a classifier sees a class: saliency of one photo, one row per class and one "
        "column per method.",
        epilog=_EXPLAIN_EXAMPLES,
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a photo")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png", help="the figure")
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar="NAME",
        help="class, repeatable; for ImageNet also its index (default: the most probable one; with --checkpoint all "
        "that are more probable than not, up to five)",
    )
    parser.add_argument(
        "--method",
        dest="methods",
        action="append",
        metavar="METHOD",
        help="saliency method, repeatable (default: gradcam)",
    )
    parser.add_argument(
        "--layer", help="layer of methods that name none (default: the last one with feature maps)"
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--checkpoint", type=Path, metavar="CKPT", help="a run directory, or a file: explain its classifier"
    )
    model.add_argument(
        "--architecture",
        metavar="NAME",
        help="an ImageNet classifier: resnet18, resnet34, resnet50, resnet101, vgg16, vgg16_bn, or timm:NAME "
        "(default, without --checkpoint: resnet50)",
    )
    parser.add_argument(
        "--weights",
        metavar="PATH",
        help="state dict of --architecture (default: torchvision's or timm's, downloaded)",
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="shorter side of the photo (default: its own, with a longer side of at most 1024)",
    )
    parser.add_argument(
        "--patches",
        **FLAG,
        help="also draw the map of every crop of sess(...), with its weight: FILE.patches-1.png ...",
    )
    parser.add_argument(
        "--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="where to compute"
    )
    return parser


def explain(name: str, words: list[str]) -> int:
    """Draw the saliency of one photo."""
    parser = _explain_parser()
    options = parser.parse_args(words)
    if options.weights and options.checkpoint:
        parser.error("--weights goes with --architecture; a checkpoint has its own weights")
    if options.size is not None and options.size < 1:
        parser.error(f"--size is {options.size}, but must be at least 1 pixel")
    from wsss.explain import explain, imagenet_subject, trained_subject
    from wsss.plugins import load_installed
    from wsss.rundir import find_checkpoint

    load_installed()

    if options.checkpoint:
        subject = trained_subject(find_checkpoint(options.checkpoint, "classifier"), options.layer)
    else:
        subject = imagenet_subject(
            options.architecture or "resnet50", options.weights or "imagenet", options.layer
        )
    explain(
        options.image,
        options.output,
        subject,
        options.methods or ["gradcam"],
        options.classes,
        size=options.size,
        patches=options.patches,
        accelerator=options.accelerator,
    )
    return 0


IMPORTS = (
    *("cvat-imagenet", "labelstudio", "labelstudio-min", "cvat", "coco", "roboflow", "yolo", "huggingface"),
    *("fiftyone", "labelme", "fastai", "vertex", "sagemaker", "openimages", "csv", "folders"),
)
"""Formats of tags, see `wsss.data.tools.FORMATS`."""


def _import_parser(commands: "argparse._SubParsersAction[ToolParser]") -> None:
    parser = commands.add_parser(
        "import",
        help="tags of a labelling tool to photos, labels.csv and classes.txt",
        description="Read the tags of photos as a labelling tool exports them, and make a folder for "
        "`--data.kind folder`: links to the photos, labels.csv, classes.txt, and lists of the splits where the export "
        "has them.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the export: a file, or a folder with it")
    parser.add_argument("target", type=Path, metavar="DEST", help="the new folder")
    parser.add_argument(
        "--format",
        choices=("auto", *IMPORTS),
        default="auto",
        metavar="NAME",
        help="auto (by the content of the files), " + ", ".join(IMPORTS),
    )
    parser.add_argument(
        "--photos", type=Path, metavar="DIR", help="where the photos are (default: at SOURCE)"
    )
    parser.add_argument("--copy", **FLAG, help="copy the photos instead of linking to them")
    parser.add_argument("--field", metavar="NAME", help="of several groups of tags, the one to take")
    parser.add_argument(
        "--annotators",
        choices=("newest", "union"),
        help="what counts where people disagree (default: an error)",
    )
    parser.add_argument(
        "--unlabelled",
        choices=("none", "unknown"),
        help="what a photo without a tag is where the format does not say: it shows none of the classes, or nobody "
        "knows",
    )
    parser.add_argument("--threshold", type=float, metavar="X", help="confidence from which a tag counts")
    parser.add_argument("--label_separator", metavar="TEXT", help="between the labels of a cell of a table")


def data(name: str, words: list[str]) -> int:
    """``check`` a data set (status 1 if it has errors) or write the procedural one (``shapes``)."""
    parser = ToolParser(prog="wsss data", description="Make and check data sets.")
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = commands.add_parser("check", help="find errors: ids, sizes, palettes, labels, splits, duplicates")
    check.add_argument("root", type=Path, help="data set in VOC or folder layout")
    check.add_argument(
        "--classes",
        type=Path,
        help="class names, one per line (default: classes.txt in ROOT, or VOC's; folder: the labels of the CSV)",
    )
    check.add_argument("--labels", help="`xml` or a label CSV (default: whichever ROOT has)")
    shapes = commands.add_parser("shapes", help="write the procedural data set")
    shapes.add_argument("root", type=Path, help="folder to write to")
    from wsss.config import ShapesConfig

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
    _import_parser(commands)
    options = parser.parse_args(words)
    if options.action == "import":
        from wsss.data.importing import import_tags
        from wsss.data.tools import Options

        own = (
            options.field,
            options.annotators,
            options.unlabelled,
            options.threshold,
            options.label_separator,
        )
        given = Options(*own)
        source, target = options.source, options.target
        print(import_tags(source, target, options.format, options.photos, given, options.copy))
        return 0
    if options.action == "check":
        from wsss.data.check import check_dataset

        report = check_dataset(options.root, options.classes, options.labels)
        print(report)
        return 0 if report.ok else 1
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


def networks(name: str, words: list[str]) -> int:
    """List the networks of timm that a name finds."""
    parser = ToolParser(
        prog="wsss networks",
        description="Networks of timm for classifier.architecture and `wsss explain --architecture`, as timm:NAME. "
        "Convolutional ones work; what cannot be used is refused by name.",
    )
    parser.add_argument("word", metavar="WORD", help="part of the names, such as convnext or lite2")
    options = parser.parse_args(words)
    from wsss.models.timm_networks import networks as listed

    print("\n".join(listed(options.word)))
    return 0
