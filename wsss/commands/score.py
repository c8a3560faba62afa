"""``wsss score``."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from wsss.errors import UserError
from wsss.usage import FLAG, ToolParser


def main(words: Sequence[str]) -> int:
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
