"""``wsss explain``."""

from collections.abc import Sequence
from pathlib import Path

from wsss.usage import FLAG, ToolParser

_EXAMPLES = """\
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


def _parser() -> ToolParser:
    parser = ToolParser(
        prog="wsss explain",
        description="Draw where a classifier sees a class: saliency of one photo, one row per class and one "
        "column per method.",
        epilog=_EXAMPLES,
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
        "--accelerator", choices=("auto", "cpu", "gpu", "mps"), default="auto", help="where to compute"
    )
    return parser


def main(words: Sequence[str]) -> int:
    """Draw the saliency of one photo."""
    parser = _parser()
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
