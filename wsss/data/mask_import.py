"""`wsss data import-masks`: masks that people drew or corrected in other tools, as a folder of palette PNGs."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsss.data.dataset import index_images
from wsss.data.files import image_size, new_folder, write_json, write_mask
from wsss.data.importing import Source, check_places, fitting, resolve
from wsss.data.labels import IGNORE, check_classes, is_background
from wsss.data.mask_formats import (
    MASK_FORMATS,
    PLAIN_FOLDER,
    MaskFormat,
    paint,
    read_drawing,
)
from wsss.data.names import IMPORTED, check_recorded, listed, read_classes
from wsss.data.regions import Drawing, Drawn, indices_of, names_of
from wsss.data.tools import Options, candidates
from wsss.errors import UserError


def import_masks(
    source: Path,
    target: Path,
    kind: str = "auto",
    classes: Path | None = None,
    photos: Path | None = None,
    options: Options | None = None,
) -> str:
    """Make a folder of palette PNGs of masks in the format of another tool.

    Args:
        source: a file, or a folder with it.
        target: the new folder: <id>.png, and masks.json with the class names. It is complete, or it is not there.
        kind: a name of `MASK_FORMATS`, ``folder``, or auto.
        classes: the class list of the masks to write; None: the export's own.
        photos: where the photos are, whose names below it are the ids; None: at the source.
        options: what the export does not say itself.

    Returns:
        A summary for the user.

    Raises:
        UserError: no format fits, or two; a class that the list lacks, or no list; a photo is missing, ambiguous, named
            twice, or of another size than its mask; see the readers.
    """
    check_places(source, target)
    wanted = None if classes is None else read_classes(classes)
    options = replace(options or Options(), classes=wanted)
    found = find_masks(source, kind)
    drawings = [read_drawing(found.format, path, options) for path in found.files]
    drawn = [one for drawing in drawings for one in drawing.photos]
    names = _class_names(drawings, source, wanted, classes)
    folder = photos or _own_photos(source, found.name)
    index = index_images(folder, nested=True)
    placed = resolve(drawn, index, folder, uploads=found.name == "labelstudio")
    known = {name: one for name, one in placed.items() if one.draw is not None}
    if not known:
        raise UserError(f"{source} has no photo with a mask")
    with new_folder(target) as staged:
        counts = _write(staged, known, index, names, found)
    skipped = sum(one.skipped for one in placed.values())
    left = len(placed) - len(known) - skipped
    return "\n".join(
        [
            f"{source} is {found.title}",
            f"{target}: {len(known)} masks, {counts[0]} of them with none of the classes",
            f"left out: {left} photos that nobody looked at, {skipped} that were skipped, {len(index) - len(placed)} "
            "that it does not name",
            "masks with each class: "
            + ", ".join(f"{name} {counts[number]}" for number, name in enumerate(names, 1)),
            f"next: wsss run ... --segmenter.true_masks {target}",
        ]
    )


def find_masks(source: Path, kind: str) -> Source[MaskFormat]:
    """The format of the masks and their files.

    Raises:
        UserError: nothing fits, or files of two formats do.
    """
    found = fitting(source, tuple(candidates(source)), MASK_FORMATS, kind)
    if found is not None:
        return found
    if kind in ("auto", "folder") and PLAIN_FOLDER.fits(source):
        return Source("folder", PLAIN_FOLDER, (source,))
    wanted = "of a format that wsss knows" if kind == "auto" else f"of the format {kind}"
    raise UserError(f"{source} has no masks {wanted} ({', '.join([*MASK_FORMATS, 'folder'])})")


def _class_names(
    drawings: list[Drawing], source: Path, wanted: tuple[str, ...] | None, path: Path | None
) -> tuple[str, ...]:
    """The class list, background left out, which has every name that the masks use."""
    own = tuple(dict.fromkeys(name for drawing in drawings for name in drawing.classes or ()))
    names = wanted or tuple(name for name in own if not is_background(name))
    if not names:
        raise UserError(
            f"{source} has no list of its classes: give the one of your data set as --classes FILE"
        )
    photos = [one for drawing in drawings for one in drawing.photos]
    counts = Counter(name for one in photos for name in names_of(one) if name not in names)
    if counts:
        raise UserError(
            f"{source} has names that {path or 'its own class list'} lacks: {listed(counts, names)}; write each name "
            "in one way, or give the list of your data set as --classes FILE"
        )
    if wanted and source.is_dir():
        check_recorded(source, ("background", *names), f"--classes {path}")
    return check_classes(names, str(path or source))


def _own_photos(source: Path, kind: str) -> Path:
    """Where an export has its photos: those of one split, of all splits, or beside it."""
    if kind == "folder":
        raise UserError(f"{source} has masks only: give the folder of their photos as --photos")
    root = source if source.is_dir() else source.parent
    if kind not in ("png", "yolo"):
        return root
    splits = [path.name for path in (root / "images").glob("*") if path.is_dir()]
    return root / "images" / "train" if splits == ["train"] else root / "images"


def _write(
    target: Path,
    known: dict[str, Drawn],
    photos: dict[str, Path],
    names: tuple[str, ...],
    found: Source[MaskFormat],
) -> Counter[int]:
    """Write the masks and the record of their classes; returns how many have each index, 0 for those with no class."""
    index, counts = indices_of(("background", *names)), Counter[int]()
    for identifier, one in known.items():
        mask = paint(one, image_size(photos[identifier]), index, found.files[0], found.format.title)
        write_mask(target / f"{identifier}.png", mask)
        values = [value for value in np.unique(mask).tolist() if value not in (0, IGNORE)]
        counts.update(values or [0])
    write_json(target / IMPORTED, {"classes": ["background", *names], "format": found.name})
    return counts
