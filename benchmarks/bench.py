"""Every benchmark with its peer, in one table: `make bench`.

    python benchmarks/bench.py runs/bench --photos VOC2012/JPEGImages
    python benchmarks/bench.py runs/bench --photos DIR --masks DIR --classes FILE       the export of masks too

Each part is a script of its own, run briefly; alone they have more cases and options. Then curves of our side: Grad-CAM
over the size of the image and the number of classes, SESS over the number of crops, the pseudo-label stage over the
number of processes. Run it on an idle machine. WORK gets bench.json and bench.md.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # for both sides

Row = tuple[str, float, float, str]
"""What, seconds of ours, seconds of the peer, name of the peer."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--photos", type=Path, required=True, help="folder of JPEG photos")
    parser.add_argument("--masks", type=Path, help="folder of masks of these photos")
    parser.add_argument("--classes", type=Path, help="their class list")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    begin, rows = time.perf_counter(), []
    for part in (start, stages, saliency, crf, score, loading, *([export] if options.masks else [])):
        for row in part(options):
            print(f"{row[0]:<58}{row[1]:>10.3f}{row[2]:>10.3f}{row[2] / row[1]:>8.1f}  {row[3]}", flush=True)
            rows.append(row)
    lines = list(curves(options.repeats))
    page = "\n".join([*head(time.perf_counter() - begin), *table(rows), "", *lines, ""])
    (options.work / "bench.md").write_text(page, encoding="utf-8")
    (options.work / "bench.json").write_text(json.dumps({"rows": rows}, indent=1), encoding="utf-8")
    print("\n".join(lines), f"\n{options.work / 'bench.md'}")


def head(seconds: float) -> list[str]:
    machine, load = f"{os.cpu_count()} cores, {platform.machine()}", os.getloadavg()[0]
    return [
        f"`make bench` on {machine}, load {load:.1f} at the end, {seconds / 60:.0f} minutes. Seconds are medians; ours "
        "and its peer take turns.",
        "",
    ]


def table(rows: list[Row]) -> list[str]:
    lines = ["| what | ours, s | peer, s | **ratio** | peer |", "|---|---|---|---|---|"]
    return lines + [
        f"| {w} | {own:.3g} | {peer:.3g} | **{peer / own:.1f}** | {name} |" for w, own, peer, name in rows
    ]


def script(name: str, work: Path, *words: object) -> Any:
    """The JSON that a benchmark writes."""
    output = work / f"{Path(name).stem}.json"
    command = [sys.executable, str(HERE / name), *map(str, words), "--output", str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads(output.read_text())


# -- parts --------------------------------------------------------------------------------------------


def start(options: argparse.Namespace) -> Iterator[Row]:
    python = [sys.executable, "-c", "pass"]
    for title, words in (
        ("import wsss", ["-c", "import wsss"]),
        ("wsss run --help", ["-m", "wsss", "run", "--help"]),
    ):
        times = [(seconds_of([sys.executable, *words]), seconds_of(python)) for _ in range(options.repeats)]
        own, peer = (median(side) for side in zip(*times, strict=True))
        yield title, own, peer, "python -c pass"


def seconds_of(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def stages(options: argparse.Namespace) -> Iterator[Row]:
    titles = {
        "masks": ("pseudo-label stage, 12 photos", "grad-cam and pydensecrf, photo after photo"),
        "training": ("8 training steps, ResNet-50, 16x320x320", "float32 Lightning"),
        "predict": ("predict, 40 photos, DeepLabV3-ResNet-50", "float32, photo after photo"),
    }
    found = script("pipeline.py", options.work, "--photos", options.photos, "--repeats", options.repeats)
    for kind, row in found.items():
        yield titles[kind][0], row["ours"], row["plain"], titles[kind][1]


def saliency(options: argparse.Namespace) -> Iterator[Row]:
    cases = ["gradcam", "gradcam++", "fullgrad", "sess"]
    words = ["--cases", *cases, "--architectures", "resnet50", "--sizes", 224, "--repeats", options.repeats]
    for row in script("saliency.py", options.work, *words, "--budget", 10)["rows"]:
        title = f"{row['case']}, {row['architecture']}, {row['size']} px, three classes"
        yield title, row["ours_ms"] / 1000, row["peer_ms"] / 1000, row["peer"]


def crf(options: argparse.Namespace) -> Iterator[Row]:
    words = [
        "--photos",
        options.photos,
        "--images",
        24,
        "--labels",
        4,
        "--different",
        2,
        "--repeats",
        options.repeats,
    ]
    found = script("crf.py", options.work, *words)
    one = found["one image"][0]
    own, peer = one["torch: ms an image"] / 1000, one["pydensecrf: ms an image"] / 1000
    yield "dense CRF in torch, 500x375, 4 labels", own, peer, "pydensecrf"
    for row in found["stage"]:
        peer, own = (row["images"] / value for name, value in row.items() if name.endswith("images a second"))
        yield (
            f"refine, {row['images']} photos, from {row['from']}",
            own,
            peer,
            "pydensecrf, photo after photo",
        )


def score(options: argparse.Namespace) -> Iterator[Row]:
    for row in script("score.py", options.work, "--images", 400, "--repeats", options.repeats)["rows"]:
        title = f"score 400 pairs, {row['workers']} processes"
        yield title, row["seconds"]["score"], row["seconds"]["decode"], "only decoding the PNGs"


def loading(options: argparse.Namespace) -> Iterator[Row]:
    row = script("loading.py", options.work, options.work / "photos", "--repeats", options.repeats)
    yield f"load and fingerprint {row['photos']:,} photos", row["ours"], row["plain"], "csv and pathlib only"


def export(options: argparse.Namespace) -> Iterator[Row]:
    row = script("export.py", options.work, options.masks, options.photos, options.classes, "--count", 300)
    yield f"{row['masks']} masks to COCO", row["export"], row["encoding"], "pycocotools' encoding alone"


# -- curves -------------------------------------------------------------------------------------------


def curves(repeats: int) -> Iterator[str]:
    import torch
    from torchvision.models import resnet50

    from wsss.saliency import SESS, GradCAM

    network = resnet50().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    gradcam = GradCAM("layer4")

    def milliseconds(method: Callable[..., object], size: int, classes: int) -> str:
        image = torch.rand(1, 3, size, size)
        targets = torch.tensor([[0, index] for index in range(classes)])
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            method(network, image, targets)
            times.append(1000 * (time.perf_counter() - begin))
        return f"{median(times):.0f}"

    yield "Our side, ResNet-50, float32, milliseconds of one image:"
    yield ""
    sizes = [(size, milliseconds(gradcam, size, 3)) for size in (224, 448, 896)]
    yield "- Grad-CAM, three classes: " + ", ".join(f"{size} px {ms}" for size, ms in sizes)
    numbers = [(count, milliseconds(gradcam, 448, count)) for count in (1, 3, 10, 20)]
    yield "- Grad-CAM, 448 px: " + ", ".join(f"{count} classes {ms}" for count, ms in numbers)
    steps = [
        (step, milliseconds(SESS(gradcam, step=step, scales=(224, 448)), 448, 3)) for step in (224, 112, 56)
    ]
    yield "- SESS, scales 224 and 448: " + ", ".join(f"step {step} {ms}" for step, ms in steps)


if __name__ == "__main__":
    main()
