"""The procedural data set `shapes`: drawn from a seed in seconds, in the layout of PASCAL VOC or as a folder of tagged
photos.

Seven cartoon classes, each with a form, an interior texture and a hue range that overlaps those of its
neighbours, so that no single cue decides a class. Objects differ in size by more than 1:5 and hide each
other; distractors of no class share their hues; `boat` is tied to water, as boats are in VOC.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from tqdm import tqdm

from wsss.data.files import atomic_path, read_json, write_json, write_mask, write_text
from wsss.data.shape_scenes import SHAPES_CLASSES, SPLITS, Scene, draw_scene
from wsss.errors import UserError

__all__ = ["SHAPES_CLASSES", "Scene", "draw_scene", "write_shapes"]

Layout = Literal["voc", "folder"]

MARKER = "shapes.json"
VERSION = 1
"""Increase this when the drawing changes, so that a folder with older drawings does not count as finished."""


def write_shapes(
    root: Path,
    *,
    train: int = 2000,
    val: int = 200,
    size: int = 96,
    seed: int = 0,
    layout: Layout = "voc",
    masks: bool = False,
    progress: bool = False,
) -> None:
    """Writes the data set; a finished one of the same parameters is left as it is.

    Photo i of a split depends on (seed, split, i, size) only, and every file is written to a temporary name
    and renamed, so that a call after an interrupted one completes it. Beside the files of the layout there is
    shapes.json: the parameters; "finished" is set last.

    Args:
        root: Folder to fill.
        train: Number of photos in the training split.
        val: Number of photos in the validation split.
        size: Height and width in pixels, at least 64.
        seed: Seed of the drawing.
        layout: "voc": JPEGImages, SegmentationClass, Annotations, ImageSets/Segmentation, labels.csv and
            classes.txt. "folder": what someone with tagged photos has: the training photos in images/, with labels.csv
        and classes.txt. The validation photos are in untagged/, for `wsss predict`. masks: Whether to write masks/ of
        the tagged photos in the folder layout (the voc layout always has them). progress: Whether to show a progress
        bar.

    Raises:
        UserError: If a number is out of range, or `root` holds other data or other parameters.
    """
    parameters: dict[str, Any] = {"version": VERSION, "train": train, "val": val, "size": size, "seed": seed}
    _check_parameters(parameters)
    parameters |= {"layout": layout, "masks": masks if layout == "folder" else None}
    if _is_finished(root, parameters):
        return
    write_json(root / MARKER, {**parameters, "finished": False})
    labels: dict[str, str] = {}
    jobs = [(split, index) for split, count in (("train", train), ("val", val)) for index in range(count)]
    for split, index in tqdm(jobs, desc="drawing shapes", unit="photo", disable=not progress):
        scene = draw_scene(seed, split, index, size)
        if layout == "voc":
            identifier = f"{split}_{index:06d}"
            _write_voc_scene(root, identifier, scene)
        elif split == "train":
            identifier = f"photo_{index:04d}"
            _write_photo(root / "images" / f"{identifier}.jpg", scene)
            if masks:
                write_mask(root / "masks" / f"{identifier}.png", scene.mask)
        else:
            _write_photo(root / "untagged" / f"new_{index:04d}.jpg", scene)
            continue
        labels[identifier] = ";".join(SHAPES_CLASSES[label - 1] for label in scene.labels)
    if layout == "voc":
        _write_lists(root, labels)
    rows = "".join(f"{identifier},{names}\n" for identifier, names in labels.items())
    write_text(root / "labels.csv", "image,labels\n" + rows)
    write_text(root / "classes.txt", "".join(f"{name}\n" for name in SHAPES_CLASSES))
    write_json(root / MARKER, {**parameters, "finished": True})


def _check_parameters(parameters: dict[str, int]) -> None:
    for name, least in (("train", 1), ("val", 1), ("size", 64), ("seed", 0)):
        if parameters[name] < least:
            raise UserError(f"shapes: {name} is {parameters[name]}; choose {least} or more.")


def _is_finished(root: Path, parameters: dict[str, Any]) -> bool:
    """Whether `root` holds the finished set; refuses a folder that holds anything else."""
    if not (root / MARKER).exists():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UserError(f"{root} is not empty and not a shapes data set: choose a new or empty folder.")
        return False
    found = read_json(root / MARKER)
    found = {"layout": "voc", "masks": None, **(found if isinstance(found, dict) else {})}
    differing = [name for name, value in parameters.items() if found.get(name) != value]
    if differing:
        both = ", ".join(f"{name} {found.get(name)} instead of {parameters[name]}" for name in differing)
        raise UserError(
            f"{root} holds shapes made with different parameters ({both}): delete it or choose another folder."
        )
    return found.get("finished") is True


def _write_voc_scene(root: Path, identifier: str, scene: Scene) -> None:
    _write_photo(root / "JPEGImages" / f"{identifier}.jpg", scene)
    write_mask(root / "SegmentationClass" / f"{identifier}.png", scene.mask)
    write_text(root / "Annotations" / f"{identifier}.xml", _annotation(identifier, scene))


def _write_photo(path: Path, scene: Scene) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(scene.image).save(temporary, format="JPEG", quality=95)


def _write_lists(root: Path, ids: Iterable[str]) -> None:
    """The splits of the voc layout."""
    for split in SPLITS:
        own = [identifier for identifier in ids if identifier.startswith(f"{split}_")]
        write_text(root / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(f"{i}\n" for i in own))


def _annotation(identifier: str, scene: Scene) -> str:
    """The photo's VOC annotation."""
    height, width = scene.mask.shape
    lines = [
        "<annotation>",
        f"\t<filename>{identifier}.jpg</filename>",
        f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "\t<segmented>1</segmented>",
    ]
    for index, (left, top, right, bottom) in scene.objects:
        box = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        lines.append(f"\t<object><name>{SHAPES_CLASSES[index - 1]}</name><bndbox>{box}</bndbox></object>")
    return "\n".join([*lines, "</annotation>\n"])
