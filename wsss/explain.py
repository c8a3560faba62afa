"""Why a classifier names a class: saliency of one photo, drawn side by side for several methods."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from wsss import runtime
from wsss.config import RuntimeConfig
from wsss.data.files import atomic_path, read_image
from wsss.data.transforms import normalize_image, to_tensor
from wsss.errors import UserError
from wsss.models.imagenet_classifier import load_imagenet_classifier
from wsss.report.figure import Panel, Row, Tile, draw_panels, draw_table, short
from wsss.report.overlay import Picture, overlay_saliency
from wsss.saliency import SESS, SaliencyMethod, last_layer, normalize, upsample
from wsss.saliency.base import resize_images
from wsss.saliency.parse import parse_method
from wsss.saliency.sess import Crops
from wsss.tasks.classification import load_classifier

LONGEST_SIDE, SHORTEST_SIDE = 1024, 32
"""Photos are resized to within these bounds, in pixels, unless a size is given. Larger ones need gigabytes at the first
layers; smaller ones leave nothing for the last layers."""


@dataclass(frozen=True)
class Subject:
    """The classifier that is explained."""

    network: nn.Module
    classes: tuple[str, ...]
    """Names in the order of the logits."""
    layer: str
    """The layer of methods that take one and were given none."""
    score: Literal["sigmoid", "softmax"]
    """What turns its logits into probabilities."""


def trained_subject(checkpoint: Path, layer: str | None = None) -> Subject:
    """A multi-label classifier that `wsss classify` trained. UserError if the file is not one."""
    network, classes, _ = load_classifier(checkpoint)
    return Subject(network, classes, layer or last_layer(network), "sigmoid")


def imagenet_subject(architecture: str, weights: str, layer: str | None = None) -> Subject:
    """torchvision's classifier of the 1000 ImageNet classes. Raises UserError like `load_imagenet_classifier`."""
    network, classes = load_imagenet_classifier(architecture, weights)
    return Subject(network, classes, layer or last_layer(network), "softmax")


def explain(
    photo: Path,
    output: Path,
    subject: Subject,
    methods: Sequence[str],
    classes: Sequence[str] = (),
    *,
    size: int | None = None,
    patches: bool = False,
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto",
) -> None:
    """Write the figure to `output`, the raw maps next to it, and with `patches` the crops of SESS.

    Args:
        photo: the photo.
        output: `<name>.png`; `<name>.npy` gets the raw maps, float32 (methods, classes, H, W), and
            `<name>.patches-<n>.png` the crops of the n-th pair of SESS method and class.
        subject: the classifier.
        methods: expressions of saliency methods, see `wsss.saliency.parse`.
        classes: names (or indices, for ImageNet); none: the classes that the classifier sees.
        size: shorter side of the photo in pixels; None: its own, within bounds.
        patches: also draw the crops of SESS methods; there must be at least one.
        accelerator: device.

    Raises:
        UserError: an unknown class or method, an unreadable photo, an output that would replace it, …
    """
    _check_output(output, photo)
    parsed = {text: parse_method(text, subject.layer, subject.score) for text in methods}
    if patches and not any(isinstance(method, SESS) for method in parsed.values()):
        raise UserError(
            f"--patches draws the crops of SESS, which is not among the methods ({', '.join(parsed)}); "
            f"give for example --method 'sess({next(iter(parsed))})'"
        )
    wanted = list(dict.fromkeys(find_class(name, subject) for name in classes))
    # float32 wherever it runs: maps are compared between methods, machines and papers.
    hardware = RuntimeConfig(accelerator=accelerator, precision="float32")
    pixels = to_tensor(read_image(photo))[None].to(runtime.device(hardware))
    pixels = _resized(pixels, size)
    network, images = runtime.prepare(subject.network, hardware), normalize_image(pixels)
    probabilities = _probabilities(network, images, subject.score)
    wanted = wanted or _top_classes(probabilities, subject.score)
    _print_classes(probabilities, subject.classes)

    targets = torch.tensor([(0, index) for index in wanted], device=images.device)
    extent = (images.shape[-2], images.shape[-1])
    with _notes():
        maps = torch.stack([upsample(method(network, images, targets), extent) for method in parsed.values()])
    titles = [f"{subject.classes[index]}   p = {short(probabilities[index])}" for index in wanted]
    shown = pixels[0].permute(1, 2, 0).cpu().numpy()
    _write_png(output, _figure(shown, list(parsed), titles, maps.cpu()))
    _write_npy(output.with_suffix(".npy"), maps.cpu().numpy())
    if patches:
        _write_patches(output, network, pixels, parsed, targets, titles)


@contextmanager
def _notes() -> Iterator[None]:
    """Print the methods' warnings as sentences, each once, without Python's file and line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"wsss explain: note: {text}", file=sys.stderr)


# -- classes ----------------------------------------------------------------------------------------


def find_class(name: str, subject: Subject) -> int:
    """Index of the class that the user means, by name (upper or lower case) or, for ImageNet, by index.

    Raises:
        UserError: there is no such class; the closest names are listed.
    """
    folded = [other.casefold() for other in subject.classes]
    if name in subject.classes:
        index = subject.classes.index(name)
    elif folded.count(name.casefold()) == 1:
        index = folded.index(name.casefold())
    elif subject.score == "softmax" and name.isascii() and name.isdigit() and int(name) < len(folded):
        return int(name)
    else:
        raise UserError(f"there is no class '{name}'; {_proposal(name.casefold(), folded, subject.classes)}")
    longer = [i for i, other in enumerate(folded) if other.startswith(f"{name.casefold()} ")]
    if longer:  # ImageNet: crane (517, the machine) and crane bird, maillot and maillot tank suit
        others = ", ".join(f"{subject.classes[i]} ({i})" for i in longer)
        print(f"{subject.classes[index]} is class {index}; there is also {others}")
    return index


def _proposal(name: str, folded: Sequence[str], classes: Sequence[str]) -> str:
    """A suggestion for a name that does not exist."""
    inside = [i for i, other in enumerate(folded) if re.search(rf"\b{re.escape(name)}\b", other)]
    near = [folded.index(other) for other in get_close_matches(name, folded, n=3)]
    found = [classes[i] for i in dict.fromkeys([*inside[:5], *near])]
    if found:
        return f"did you mean {' or '.join(found)}?"
    if len(classes) <= 100:
        return f"the classes are {', '.join(classes)}"
    return f"give another word of the name, or an index 0..{len(classes) - 1}"


def _probabilities(network: nn.Module, images: Tensor, score: str) -> list[float]:
    with torch.inference_mode():
        logits = network(images)[0].float()
    values: list[float] = (logits.softmax(0) if score == "softmax" else logits.sigmoid()).tolist()
    return values


def _top_classes(probabilities: Sequence[float], score: str) -> list[int]:
    """The most probable class; for a multi-label classifier all that are more probable than not, up to five."""
    ranked = _ranked(probabilities)
    likely = [index for index in ranked[:5] if probabilities[index] > 0.5]
    return likely if score == "sigmoid" and likely else ranked[:1]


def _print_classes(probabilities: Sequence[float], classes: Sequence[str]) -> None:
    top = _ranked(probabilities)[:5]
    print("most probable: " + ", ".join(f"{classes[index]} {short(probabilities[index])}" for index in top))


def _ranked(probabilities: Sequence[float]) -> list[int]:
    return sorted(range(len(probabilities)), key=lambda index: -probabilities[index])


# -- photo ------------------------------------------------------------------------------------------


def _resized(pixels: Tensor, size: int | None) -> Tensor:
    """As `resize_photo`. Prints a line if it resizes without being told to what size."""
    found = resize_photo(pixels, size)
    (height, width), (new_height, new_width) = pixels.shape[-2:], found.shape[-2:]
    if size is None and (height, width) != (new_height, new_width):
        print(
            f"resized the photo from {width}x{height} to {new_width}x{new_height} pixels; --size sets another size"
        )
    return found


def resize_photo(pixels: Tensor, size: int | None = None) -> Tensor:
    """The photo (1, 3, H, W) uint8, resized to a shorter side of ``size`` pixels; None: to within the bounds."""
    height, width = pixels.shape[-2:]
    shorter, longer = sorted((height, width))
    factor = max(min(1.0, LONGEST_SIDE / longer), SHORTEST_SIDE / shorter) if size is None else size / shorter
    if factor == 1:
        return pixels
    return resize_pixels(pixels, (max(1, round(height * factor)), max(1, round(width * factor))))


def resize_pixels(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing of (B, 3, H, W) uint8, as the saliency methods resize their input."""
    return resize_images(pixels.float(), size).round().clamp(0, 255).byte()


# -- figures ----------------------------------------------------------------------------------------


def _figure(photo: Picture, methods: Sequence[str], titles: Sequence[str], maps: Tensor) -> Picture:
    """Photo and overlays: maps (methods, classes, H, W), each divided by its maximum, negative evidence 0."""
    rows = []
    for title, some in zip(titles, maps.transpose(0, 1), strict=True):
        shown = normalize(some.clamp(min=0), "max").numpy()
        rows.append(Row(title, [photo, *(overlay_saliency(photo, one) for one in shown)]))
    return draw_table(["photo", *methods], rows)


def _write_patches(
    output: Path,
    network: nn.Module,
    pixels: Tensor,
    methods: dict[str, SaliencyMethod],
    targets: Tensor,
    titles: Sequence[str],
) -> None:
    number = 0
    for text, method in methods.items():
        if not isinstance(method, SESS):
            continue
        crops = method.crops(network, normalize_image(pixels), targets)
        for target, title in enumerate(titles):
            number += 1
            panels = _panels(pixels, crops, target)
            _write_png(
                output.with_suffix(f".patches-{number}.png"),
                draw_panels(f"{title}   {text}   (below each crop its weight in the fusion)", panels),
            )


def _panels(pixels: Tensor, crops: Crops, target: int) -> list[Panel]:
    """The normalised maps of one target's crops, at their windows, and their weights."""
    maps, weights = crops.maps(target), crops.weights[target].tolist()
    panels = []
    for frame, same in groupby(enumerate(crops.windows), key=lambda pair: pair[1].frame):
        resized = resize_pixels(pixels, frame)[0].permute(1, 2, 0).cpu().numpy()
        rows: list[list[Tile]] = []
        for _, row in groupby(same, key=lambda pair: pair[1].top):
            rows.append([])
            for index, (_, top, left, (height, width)) in row:
                crop = resized[top : top + height, left : left + width]
                if kept := index in maps:
                    crop = overlay_saliency(crop, maps[index].cpu().numpy())
                rows[-1].append(Tile(crop, weights[index], dropped=not kept))
        panels.append(Panel(f"shorter side {min(frame)}", rows))
    return panels


# -- files ------------------------------------------------------------------------------------------


def _check_output(output: Path, photo: Path) -> None:
    """Raises UserError if the output is not a PNG or would replace the photo."""
    if output.suffix.lower() != ".png":
        raise UserError(f"--output is {output}, but must end with .png")
    if output.resolve() == photo.resolve():
        raise UserError(f"{output} is the photo itself and would be overwritten; choose another --output")


def _write_png(path: Path, picture: Picture) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
    print(path)


def _write_npy(path: Path, maps: npt.NDArray[np.float32]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:  # a stream: save would add a suffix
        np.save(stream, maps, allow_pickle=False)
    print(f"{path}: raw maps, {maps.dtype} {maps.shape} (methods, classes, height, width)")
