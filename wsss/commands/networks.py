"""``wsss networks``."""

from collections.abc import Sequence

from wsss.usage import ToolParser


def main(words: Sequence[str]) -> int:
    """List the networks of timm that a name finds."""
    parser = ToolParser(
        prog="wsss networks",
        description="Networks of timm for classifier.architecture, segmenter.architecture (HEAD_timm:NAME), "
        "extend.backbone and `wsss explain --architecture`, as timm:NAME. Convolutional networks and transformers "
        "work; one that cannot be used is refused by name.",
    )
    parser.add_argument("word", metavar="WORD", help="part of the names, such as convnext or lite2")
    options = parser.parse_args(words)
    from wsss.models.timm_networks import networks

    print("\n".join(networks(options.word)))
    return 0
