"""``wsss export``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from wsss.usage import ToolParser

NAMES = ("coco", "png", "yolo", "cvat", "cvat-mask", "labelstudio", "labelme", "cutout", "csv")
"""Formats of masks, see `wsss.export.masks.FORMATS`."""

_EXAMPLES = """\
examples:
  wsss export onnx --checkpoint runs/voc --output model.onnx
  wsss export torch --checkpoint runs/voc --output model.pt2
  wsss export voc-server runs/voc --kind predictions_crf --output results.tgz
  wsss export masks masks --photos photos --format coco --output masks.json
`wsss export WHAT --help` shows its options and how to use the file.
"""

_ONNX_USE = """\
The network takes `image`, float32 (N, 3, H, W), RGB in 0..1 (the photo divided by 255; ImageNet's mean and
deviation are inside), and gives `probabilities`, float32 (N, classes, H, W), background first. N, H and W are free;
H and W must be at least the `smallest_side` in the metadata. If its `long_side` is a number, first shrink larger
photos to that longer side, as the training did. Needs the extra: pip install "wsss[onnx]".

  import json, numpy, onnxruntime
  session = onnxruntime.InferenceSession("model.onnx")
  classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
  image = photo.transpose(2, 0, 1)[None].astype(numpy.float32) / 255    # photo: (H, W, 3) uint8 RGB
  mask = session.run(None, {"image": image})[0][0].argmax(0)
"""

_TORCH_USE = """\
The file is an exported program (torch.export), which torch loads without wsss. It takes float32 (N, 3, H, W),
RGB in 0..1 (the photo divided by 255; ImageNet's mean and deviation are inside), and gives probabilities
(N, classes, H, W), background first. N, H and W are free; H and W must be at least the `smallest_side` in the metadata.
If its `long_side` is a number, first shrink larger photos to that longer side, as the training did.

  import json, torch
  extra = {"wsss.json": ""}
  network = torch.export.load("model.pt2", extra_files=extra).module()
  classes = json.loads(extra["wsss.json"])["classes"]
  image = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255  # photo: (H, W, 3) uint8 RGB
  mask = network(image)[0].argmax(0)
"""

_SERVER_USE = """\
The archive holds results/VOC2012/Segmentation/comp6_test_cls/<id>.png, 8-bit palette PNGs with the values 0..20. The
same masks always give the same bytes. For the test set, predict its photos and then pass its list.

  wsss predict VOCdevkit/VOC2012/JPEGImages --checkpoint runs/voc --output masks
  wsss export voc-server masks --ids VOCdevkit/VOC2012/ImageSets/Segmentation/test.txt \\
      --photos VOCdevkit/VOC2012/JPEGImages --output results.tgz
"""


_MASKS_USE = """\
formats:
  coco         one JSON, compressed RLE (exact, with holes); needs pip install "wsss[coco]"
  png          grey PNGs beside the photos, data.yaml (Ultralytics) and metadata.jsonl (Hugging Face); keeps 255
  yolo         polygons, a text file a photo; a cut of no width joins each hole to the outline
  cvat         CVAT for images 1.1, XML with RLE
  cvat-mask    CVAT's Segmentation mask 1.1, a zip with classes and objects
  labelstudio  predictions as brush RLE; the labelling configuration is written beside the JSON
  labelme      a JSON a photo, exact masks
  cutout       every object as RGBA PNG, cropped, and cutouts.csv
  csv          a row for each photo and class: pixels, share, confidence (of masks by wsss), components, box
Background is no object. Pixels with 255 (not decided) become background where the format has no value for them;
the last line says how many. Cells of a CSV that a spreadsheet would take for a formula begin with an apostrophe.
"""


def main(words: Sequence[str]) -> int:
    """Run ``wsss export WORDS``; returns the exit status. Raises UserError where the input is at fault."""
    options = _parser().parse_args(words)
    if options.what == "voc-server":
        from wsss.export.archive import export_archive

        print(export_archive(options.source, options.output, options.kind, options.ids, options.photos))
        return 0
    if options.what == "masks":
        from wsss.export.masks import export_folder

        chosen = {
            "components": options.objects == "components",
            "min_area": options.min_area,
            "prefix": options.image_prefix,
        }
        source, photos = options.source, options.photos
        print(export_folder(source, photos, options.classes, options.format, options.output, chosen))
        return 0
    from wsss.export.network import export_onnx, export_torch
    from wsss.plugins import load_installed
    from wsss.rundir import find_checkpoint

    load_installed()
    checkpoint = find_checkpoint(options.checkpoint, "segmenter")
    if options.what == "onnx":
        print(export_onnx(checkpoint, options.output, options.opset))
    else:
        print(export_torch(checkpoint, options.output))
    return 0


def _parser() -> ToolParser:
    parser = ToolParser(
        prog="wsss export",
        description="Export a trained segmenter, or its masks, for use elsewhere.",
        epilog=_EXAMPLES,
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    onnx = _network_parser(commands, "onnx", "the segmenter as ONNX, checked with onnxruntime", _ONNX_USE)
    onnx.add_argument(
        "--opset",
        type=int,
        default=18,
        metavar="N",
        help="version of ONNX's operators (default: %(default)s)",
    )
    _network_parser(commands, "torch", "the segmenter as one file that torch loads without wsss", _TORCH_USE)
    server = commands.add_parser(
        "voc-server",
        help="an archive of masks for PASCAL VOC's test server",
        description="Pack masks in the format of PASCAL VOC's test server.",
        epilog=_SERVER_USE,
    )
    server.add_argument(
        "source", type=Path, metavar="RUN", help="run directory, or a folder of <id>.png masks"
    )
    server.add_argument("--output", type=Path, required=True, metavar="FILE.tgz", help="the archive")
    server.add_argument(
        "--kind",
        choices=("predictions", "predictions_ms_flip", "predictions_crf"),
        default="predictions",
        help="which masks of a run directory (default: %(default)s)",
    )
    server.add_argument(
        "--ids",
        type=Path,
        metavar="FILE",
        help="list of ids; each must have a mask (default: pack every mask)",
    )
    server.add_argument(
        "--photos", type=Path, metavar="DIR", help="JPEGImages: check that every mask has its photo's size"
    )
    masks = commands.add_parser(
        "masks",
        help="masks for other tools: COCO, YOLO, CVAT, Label Studio, LabelMe, ...",
        description="Write a folder of masks in the format of another tool.",
        epilog=_MASKS_USE,
    )
    masks.add_argument("source", type=Path, metavar="MASK_DIR", help="folder of <id>.png masks")
    masks.add_argument("--photos", type=Path, required=True, metavar="DIR", help="folder of their photos")
    masks.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class names, one a line, index 1 first (default: those that came with the masks, or VOC's)",
    )
    masks.add_argument("--format", required=True, choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    masks.add_argument("--output", type=Path, required=True, metavar="PATH", help="file or folder")
    masks.add_argument(
        "--objects",
        choices=("classes", "components"),
        default="classes",
        help="coco, labelstudio, cutout: an object for each class of a photo, or for each connected part of it "
        "(default: %(default)s)",
    )
    masks.add_argument(
        "--min_area",
        type=int,
        default=1,
        metavar="PIXELS",
        help="leave out smaller objects (default: %(default)s)",
    )
    masks.add_argument(
        "--image_prefix",
        default="",
        metavar="TEXT",
        help="put before the photos' names, such as a URL or a folder",
    )
    return parser


def _network_parser(
    commands: "argparse._SubParsersAction[ToolParser]", name: str, text: str, use: str
) -> ToolParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=f"Write {text}.",
        epilog=use,
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a run directory, or a checkpoint file"
    )
    suffix = "onnx" if name == "onnx" else "pt2"
    parser.add_argument("--output", type=Path, required=True, metavar=f"FILE.{suffix}", help="the file")
    return parser
