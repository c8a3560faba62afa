"""Saliency against its peers: seconds and peak memory, ours and theirs in one run, and that the maps agree.

    python benchmarks/saliency.py                      every case; the perturbation peers take many minutes
    python benchmarks/saliency.py --cases gradcam sess --architectures resnet18 --sizes 224

Networks have the architecture of torchvision or timm (timm:NAME) and random weights (time does not depend on them), the
image is noise with structure, three of its classes are asked for. The libraries compute one class a call. Ours and
theirs run in turns; medians. bf16 is ours under autocast, a column of its own: compare it with nothing but
ours in float32. Memory is the peak of resident memory above what was resident before the call, each in a
process of its own. Agreement is the largest difference after min-max normalisation (for sess: correlation).
On a machine that other jobs keep busy, `--threads 1 --clock cpu` counts what the process itself computed.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytorch_grad_cam as grad_cam
import saliency_peers as peers
import torch
import torchvision
from torch import Tensor, nn

from wsss.models.timm_networks import PREFIX, create
from wsss.saliency import SaliencyMethod, normalize, upsample
from wsss.saliency.parse import parse_method

CLASSES = (3, 141, 592)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Peer = Callable[[nn.Module, Tensor, Sequence[int]], Tensor]


def library(method: type) -> Peer:
    return lambda model, image, classes: peers.with_grad_cam(method, model, image, classes)


CASES: dict[str, tuple[str, Peer, str]] = {
    "gradcam": ("gradcam", library(grad_cam.GradCAM), "grad-cam"),
    "gradcam++": ("gradcam++(eps=1e-6)", library(grad_cam.GradCAMPlusPlus), "grad-cam"),
    "xgradcam": ("xgradcam", library(grad_cam.XGradCAM), "grad-cam"),
    "eigencam": ("eigencam@layer4", peers.eigen_cam, "grad-cam"),
    "layercam": ("layercam@layer4", library(grad_cam.LayerCAM), "grad-cam"),
    "hirescam": ("hirescam@layer4", library(grad_cam.HiResCAM), "grad-cam"),
    "ablationcam": ("ablationcam@layer4", library(grad_cam.AblationCAM), "grad-cam"),
    "ablationcam-3": ("ablationcam@layer3", peers.ablation_cam_at("layer3"), "grad-cam"),
    "rise": ("rise(masks=4000, score=softmax)", peers.rise, "plain batched loop"),
    "sess": ("sess(gradcam@layer4, score=softmax)", peers.sess, "grad-cam"),
    "fullgrad": ("fullgrad(psi=per_channel)", library(grad_cam.FullGrad), "grad-cam"),
    "guided_backprop": ("guided_backprop", peers.guided_backprop, "captum"),
    "cameras": ("cameras@layer4", peers.cameras, "plain loop"),
    "groupcam": ("groupcam@layer4", peers.group_cam, "plain loop"),
    "groupcam-1": ("groupcam@layer4", peers.group_cam_one_by_one, "plain loop of batches of 1"),
    "scorecam": ("scorecam@layer4(weights=channel_softmax)", library(grad_cam.ScoreCAM), "grad-cam"),
}
"""Name -> (our method, its peer, where the peer is from)."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE")
    parser.add_argument("--architectures", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 448])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="wall time or the process's CPU time")
    parser.add_argument("--repeats", type=int, default=5, help="most runs of each side (default 5)")
    parser.add_argument(
        "--budget", type=float, default=60, help="seconds after which no further run of a side is begun"
    )
    parser.add_argument(
        "--peer-classes",
        type=int,
        default=len(CLASSES),
        choices=range(1, len(CLASSES) + 1),
        metavar="N",
        help="ask the peer for N of the three classes and multiply its time by 3 / N: it computes class after class",
    )
    parser.add_argument("--output", type=Path, help="JSON of all figures")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        case, side, architecture, size = options.memory_of
        print(peak_memory(case, side, architecture, int(size)))
        return
    rows = []
    print(f"{'case':<16}{'network':<32}{'size':>5}{'ours ms':>10}{'bf16 ms':>10}{'peer ms':>11}{'ratio':>7}"
          f"{'ours MB':>9}{'peer MB':>9}{'runs':>6}  agreement  peer")  # fmt: skip
    for case in options.cases:
        for architecture in options.architectures:
            for size in options.sizes:
                rows.append(measure(case, architecture, size, options))
                print(line(rows[-1]), flush=True)
                if options.output:
                    write(options.output, rows, options.threads, options.clock)


def measure(case: str, architecture: str, size: int, options: argparse.Namespace) -> dict[str, object]:
    """One row: both sides in turns, once unmeasured, then until `repeats` or `budget` is used up."""
    expression, peer, source = CASES[case]
    clock = CLOCKS[options.clock]
    method, (model, image) = parse_method(expression), prepare(architecture, size)
    sides = {
        "ours": lambda: ours(method, model, image),
        "bf16": lambda: ours(method, model, image, torch.bfloat16),
        "peer": lambda: peer(model, image, CLASSES[: options.peer_classes]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, Tensor] = {}
    for name in ("ours", "bf16"):
        sides[name]()  # warm-up; the peers' first call is dropped below where there are several
    while len(seconds["peer"]) < options.repeats + 1 and sum(seconds["peer"]) < options.budget:
        for name, run in sides.items():
            start = clock()
            results[name] = run()
            seconds[name].append(clock() - start)
    median = {name: statistics.median(times[1:] or times) for name, times in seconds.items()}
    median["peer"] *= len(CLASSES) / options.peer_classes
    return {
        "case": case, "architecture": architecture, "size": size, "peer": source, "ours": repr(method),
        "runs": max(1, len(seconds["peer"]) - 1),
        **{f"{name}_ms": 1000 * value for name, value in median.items()},
        "ratio": median["peer"] / median["ours"],
        **{f"{side}_mb": memory_in_own_process(case, side, architecture, size, options.threads)
           for side in ("ours", "peer")},
        "peer_classes": options.peer_classes,
        "agreement": agreement(case, results["ours"][: options.peer_classes], results["peer"]),
    }  # fmt: skip


def ours(method: SaliencyMethod, model: nn.Module, image: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Three maps, upsampled to the image as the peers do."""
    targets = torch.tensor([(0, cls) for cls in CLASSES])
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        return upsample(method(model, image, targets), (image.shape[-2], image.shape[-1]))


def prepare(architecture: str, size: int) -> tuple[nn.Module, Tensor]:
    """A network in eval mode, and an image (1, 3, size, size) with structure at several scales."""
    torch.manual_seed(0)
    if architecture.startswith(PREFIX):
        model = create(architecture.removeprefix(PREFIX), 1000)
        nn.init.normal_(model.get_classifier().weight, std=0.1)  # some start at 0
    else:
        model = torchvision.models.get_model(architecture, weights=None)
    coarse = (torch.randn(1, 3, side, side) for side in (4, 16, 64))
    image = sum(
        (nn.functional.interpolate(part, size=size, mode="bicubic") for part in coarse), torch.zeros(())
    )
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:  # at the statistics of images, or activations vanish
        module.momentum = None
    if norms:
        with torch.no_grad():
            model(torch.randn(4, 3, 112, 112) + image[..., :112, :112])
    return model.eval(), image


def agreement(case: str, mine: Tensor, theirs: Tensor) -> str:
    """Of the float32 results."""
    left, right = normalize(mine).numpy(), peers.normalized(theirs)
    if case == "sess":
        return f"r {np.corrcoef(left.ravel(), right.ravel())[0, 1]:.4f}"
    return f"{np.abs(left - right).max():.1e}"


def memory_in_own_process(case: str, side: str, architecture: str, size: int, threads: int) -> float:
    command = [sys.executable, __file__, "--threads", str(threads), "--memory-of", case, side, architecture]
    done = subprocess.run([*command, str(size)], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def peak_memory(case: str, side: str, architecture: str, size: int) -> float:
    """Megabytes above what was resident before the call (Linux)."""
    expression, peer, _ = CASES[case]
    model, image = prepare(architecture, size)
    with torch.no_grad():
        model(image)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
    before = resident("VmRSS")
    if side == "ours":
        ours(parse_method(expression), model, image)
    else:
        # One class is the peak: the libraries compute class after class.
        peer(model, image, CLASSES[:1])
    return resident("VmHWM") - before


def resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def line(row: dict[str, object]) -> str:
    return (
        f"{row['case']:<16}{row['architecture']:<32}{row['size']:>5}{row['ours_ms']:>10.0f}{row['bf16_ms']:>10.0f}"
        f"{row['peer_ms']:>11.0f}{row['ratio']:>7.1f}{row['ours_mb']:>9.0f}{row['peer_mb']:>9.0f}"
        f"{row['runs']:>6}  {row['agreement']:<9}  {row['peer']}"
    )


def write(path: Path, rows: Sequence[dict[str, object]], threads: int, clock: str) -> None:
    """The figures so far, so that a run that is cut off keeps them."""
    facts = {
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
        "threads": threads,
        "clock": clock,
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({**facts, "rows": list(rows)}, indent=1))
    temporary.replace(path)


if __name__ == "__main__":
    main()
