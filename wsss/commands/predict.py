"""``wsss predict``."""

import os
from collections.abc import Sequence
from pathlib import Path

from wsss.commands.export import NAMES
from wsss.usage import FLAG, ToolParser, numbers

_EXAMPLES = """\
examples:
  wsss predict holiday.jpg photos/ --checkpoint runs/voc --output masks --overlay contour --html
  wsss predict photos/ --checkpoint runs/voc --output masks --ms_flip --crf --skip_existing

Reads JPEG, PNG, WebP, BMP, TIFF, GIF and AVIF, and HEIC with pip install "wsss[heic]"; grey, CMYK, 16-bit
and transparent ones (laid on white); EXIF orientation is applied. Masks have the photo's size: 0 is
background, 1 the first class. The table that is printed at the end names the indices.
A network recognises objects at the size at which it was trained, so photos are shrunk as those of the
training were (data.long_side). If those were not, try --long_side 640 for photos from a phone or a camera.
"""


def _parser() -> ToolParser:
    parser = ToolParser(
        prog="wsss predict",
        description="Predict masks for new photos of any size.",
        epilog=_EXAMPLES,
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
    parser.add_argument(
        "--overlay",
        nargs="?",
        const="filled",
        default="none",
        type=lambda word: {"true": "filled", "false": "none"}.get(word, word),
        choices=("none", "filled", "contour"),
        help="also write <name>_overlay.jpg with a legend: the classes as colours over the photo, or as contours "
        "(default: none; without a value: filled)",
    )
    parser.add_argument(
        "--html",
        **FLAG,
        help="also write predictions.html: every photo with its mask and confidence, in the order of review.csv, and "
        "every file that was not predicted",
    )
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
        "--accelerator", choices=("auto", "cpu", "gpu", "mps"), default="auto", help="where to compute"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bf16", "fp16"),
        default="auto",
        help="auto: bf16 or fp16 if it is fast here, else float32",
    )
    return parser


def main(words: Sequence[str]) -> int:
    """Write masks for new photos; prints which classes were found."""
    options = _parser().parse_args(words)
    from wsss.config import EvaluateConfig, RuntimeConfig
    from wsss.plugins import load_installed
    from wsss.predict import PredictOptions, Unreadable, predict_files
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
        html=options.html,
        probabilities=options.probabilities,
        skip_existing=options.skip_existing,
    )
    hardware = RuntimeConfig(accelerator=options.accelerator, precision=options.precision)
    checkpoint = find_checkpoint(options.checkpoint, "segmenter")
    unread = None
    try:
        print(predict_files(options.images, checkpoint, options.output, chosen, hardware))
    except Unreadable as error:
        unread = error
    if options.formats:
        from wsss.data.names import classes_of
        from wsss.export.masks import ENDINGS, export_masks
        from wsss.predict import find_photos

        found = find_photos(options.images, options.output)
        photos = {key: path for key, path in found.items() if unread is None or key not in unread.names}
        folder = _common_folder(list(found.values()))
        pairs = [(key, options.output / f"{key}.png", path) for key, path in photos.items()]
        for kind in options.formats if photos else ():
            output = options.output / f"{kind}{ENDINGS.get(kind, '')}"
            print(export_masks(pairs, folder, classes_of([options.output], None), kind, output))
    if unread:
        raise unread
    return 0


def _common_folder(photos: list[Path]) -> Path:
    """The deepest folder that holds all photos."""
    parents = [Path(os.path.abspath(photo)).parent for photo in photos]
    return Path(os.path.commonpath(parents))
