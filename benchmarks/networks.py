"""Every saliency method on a network of every family: works, is refused and why, and seconds for three classes.

    python benchmarks/networks.py                          a quarter of an hour on two cores
    python benchmarks/networks.py --networks timm:convnext_atto --methods gradcam dcsm
    python benchmarks/networks.py --page docs/networks.md  writes the table into the page, between its marks

Networks have random weights, for what works does not depend on them. The image is noise, which networks of one size
resize. Seconds are those of the second of two calls, on this machine; compare them within a row.
"""

import argparse
import platform
import time
import warnings
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from torch import nn

from wsss.config import ClassifierConfig
from wsss.errors import UserError
from wsss.models.classifier import build_classifier
from wsss.saliency import METHODS
from wsss.saliency.parse import parse_method

NETWORKS = (
    "resnet18",
    "vgg16",
    "timm:resnext26ts",
    "timm:regnetx_002",
    "timm:densenet121",
    "timm:efficientnet_b0",
    "timm:tf_efficientnet_lite0",
    "timm:mobilenetv3_small_050",
    "timm:mobilenetv4_conv_small_035",
    "timm:convnext_atto",
    "timm:vit_tiny_patch16_224",
    "timm:deit_tiny_distilled_patch16_224",
    "timm:vit_small_patch14_reg4_dinov2",
    "timm:vit_small_patch16_dinov3",
    "timm:swin_tiny_patch4_window7_224",
    "timm:maxvit_nano_rw_256",
    "timm:coatnet_nano_rw_224",
    "timm:cait_xxs24_224",
    "timm:mixer_s32_224",
)
COSTLY = (
    "augmented_gradcam",
    "rise",
    "sise",
    "ada_sise",
    "extremal_perturbation",
    "meaningful_perturbation",
    "xrai",
)
"""Methods of hundreds of passes, which work on any network or say what they need: only on request."""
MARK = "<!-- made by benchmarks/networks.py -->"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--methods", nargs="+", default=[name for name in METHODS if name not in COSTLY])
    parser.add_argument("--size", type=int, default=160, help="side of the image in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--page", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    reasons: list[str] = []
    lines = [f"| network | {' | '.join(options.methods)} |", "|---" * (1 + len(options.methods)) + "|"]
    for line in lines:
        print(line)
    for network in options.networks:
        cells = row(network, options.methods, options.size, reasons)
        lines.append(f"| `{network}` | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))]
    print("\n".join(lines[-len(reasons) - 1 :]))
    if options.page:
        before, _, rest = options.page.read_text().partition(f"{MARK}\n")
        after = rest.partition(f"{MARK}\n")[2]
        made = f"{date.today()}, {options.threads} threads, torch {torch.__version__}, {platform.machine()}."
        table = "\n".join([*lines, "", made])
        options.page.write_text(f"{before}{MARK}\n\n{table}\n\n{MARK}\n{after}")


def row(network: str, methods: Sequence[str], size: int, reasons: list[str]) -> list[str]:
    """Seconds, or the number of the reason, for every method."""
    torch.manual_seed(0)
    model = build_classifier(ClassifierConfig(network, weights="none", output_stride=32), 3).eval()
    for parameter in model.parameters():
        if not parameter.any():  # heads that start at 0
            nn.init.normal_(parameter, std=0.1)
    image = torch.randn(1, 3, size, size)
    targets = torch.tensor([(0, 0), (0, 1), (0, 2)])
    cells = []
    for name in methods:
        method = parse_method(name)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                for _ in range(2):
                    started = time.perf_counter()
                    method(model, image, targets)
                    seconds = time.perf_counter() - started
                    if seconds > 3:  # the first call is slow for other reasons only where it is short
                        break
        except UserError as error:
            cells.append(f"no ({number_of(str(error), reasons)})")
        else:
            notes = {str(one.message) for one in caught if "wsss" in one.filename}
            marks = ", ".join(str(number_of(note, reasons)) for note in sorted(notes))
            cells.append(f"{seconds:.2g}" + (f" ({marks})" if marks else ""))
    return cells


def number_of(reason: str, reasons: list[str]) -> int:
    """Of a reason in the list; a new one is added. Names of layers and numbers do not make it new."""
    short = reason.split(":")[0] if len(reason) > 200 else reason
    if short not in reasons:
        reasons.append(short)
    return reasons.index(short) + 1


if __name__ == "__main__":
    main()
