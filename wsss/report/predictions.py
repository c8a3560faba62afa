"""What `wsss predict` shows of a folder of photos: a list and a page, what to look at first at the top."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsss.data.confidence import Confidence
from wsss.data.files import atomic_path, image_size, write_csv, write_text
from wsss.data.labels import BACKGROUND
from wsss.data.palette import colour_of
from wsss.data.working import shrink
from wsss.metrics.table import DASH, percent
from wsss.report.html import (
    BESIDE,
    THUMBNAIL_SIDE,
    Facts,
    Gallery,
    GalleryRow,
    Linked,
    gallery_section,
    page,
    run_section,
    thumbnail,
    warning_list,
)
from wsss.report.overlay import Mask, Picture

THUMBNAILS = "predictions_files"
"""Folder beside the page, for the small pictures in it."""

PHOTO, MASK = "_photo.jpg", "_mask.jpg"
"""Endings of a photo's small pictures."""


@dataclass(frozen=True)
class Predicted:
    """A photo that was given, and what is known of its mask."""

    name: str
    """Of its files, without ending, "/" between folders."""
    classes: tuple[int, ...] = ()
    """Mask indices that have pixels, without background."""
    confidence: Confidence | None = None
    """None: unknown, because the mask was there before and does not say it."""
    problem: str = ""
    """Tags without a pixel, or why there is no mask."""
    failed: bool = False
    """There is no mask."""

    @property
    def order(self) -> tuple[bool, bool, float, str]:
        """Problems first, then the least certain, then the unknown."""
        sure = 2.0 if self.confidence is None else self.confidence.photo
        return not self.failed, not self.problem, sure, self.name

    def described(self, names: Sequence[str], form: Callable[[float], str]) -> list[str]:
        """Each class with its confidence, where it is known."""
        sure = {} if self.confidence is None else self.confidence.classes
        return [names[index] + (f" {form(sure[index])}" if index in sure else "") for index in self.classes]


def write_review(path: Path, photos: Iterable[Predicted], names: Sequence[str]) -> None:
    """A row for every photo: image, confidence, confidence of each class that has pixels, and what is wrong."""
    rows = [
        [
            one.name,
            "" if one.confidence is None else f"{one.confidence.photo:.4f}",
            "; ".join(one.described(names, "{:.3f}".format)),
            one.problem,
        ]
        for one in sorted(photos, key=lambda one: one.order)
    ]
    write_csv(path, [["image", "confidence", "classes", "problem"], *rows])


def write_thumbnails(
    output: Path, name: str, photo: Picture, mask: Mask, draw: Callable[[Picture, Mask], Picture]
) -> None:
    """The small pictures of a photo in ``output/THUMBNAILS``; ``draw`` makes the overlay."""
    small, labels = shrink(photo, THUMBNAIL_SIDE), shrink(mask, THUMBNAIL_SIDE)
    for ending, picture in ((PHOTO, small), (MASK, draw(small, labels))):
        with atomic_path(output / THUMBNAILS / f"{name}{ending}") as temporary:
            temporary.write_bytes(thumbnail(picture)[0])


def write_page(
    path: Path,
    photos: Sequence[Predicted],
    names: Sequence[str],
    others: Sequence[str],
    facts: Sequence[tuple[str, str]],
    ending: str,
) -> None:
    """The page of a folder's predictions. Its pictures are in ``THUMBNAILS`` beside it, see `write_thumbnails`.

    Args:
        path: the HTML file, in the folder of the masks.
        photos: all that were given.
        names: class names by index, background first.
        others: files in the given folders that are no photos.
        facts: what made the masks, for the table at the end.
        ending: of the file that a photo's name leads to.
    """
    masks = sorted((one for one in photos if not one.failed), key=lambda one: one.order)
    failed = [one.problem for one in photos if one.failed]
    sure = [one.confidence.photo for one in masks if one.confidence is not None]
    subtitle = (
        f"{len(photos)} photos: {len(masks)} predicted, {len(failed)} not; {len(others)} other files. "
        f"Mean confidence {percent(float(np.mean(sure)) if sure else None)} %."
    )
    gallery = Gallery(
        "Photos",
        ("photo", "prediction"),
        tuple(_row(path.parent, one, names, ending) for one in masks),
        "Problems first, then the least certain. Confidence: mean probability of the preferred class, over all pixels "
        "of the photo, and over those of each class, in percent.",
        cards=True,
    )
    legend = tuple((name, colour_of(index)) for index, name in enumerate(names) if index)
    found = [(name, _of_class(masks, index)) for index, name in enumerate(names) if index != BACKGROUND]
    sections = [
        ("failed", "Not predicted", warning_list(failed)),
        ("photos", gallery.title, gallery_section(gallery, legend, heat=False)),
        ("classes", "Classes", run_section([Facts("Photos with the class", tuple(found))])),
        ("others", "Not a photo", warning_list(others)),
        ("run", "Run", run_section([Facts("What made the masks", tuple(facts))])),
    ]
    footer = "Made by wsss predict."
    write_text(path, page(f"Predictions: {path.parent.name}", subtitle, sections, footer, images=BESIDE))


def _row(folder: Path, one: Predicted, names: Sequence[str], ending: str) -> GalleryRow:
    small = [f"{THUMBNAILS}/{one.name}{end}" for end in (PHOTO, MASK)]
    pictures = tuple(Linked(name, image_size(folder / name)) for name in small)
    sure = DASH if one.confidence is None else f"{percent(one.confidence.photo)} %"
    note = f"confidence {sure}" + (f"; {one.problem}" if one.problem else "")
    return GalleryRow(one.name, tuple(one.described(names, percent)), pictures, note, f"{one.name}{ending}")


def _of_class(masks: Sequence[Predicted], index: int) -> str:
    having = [one for one in masks if index in one.classes]
    sure = [
        one.confidence.classes[index] for one in having if one.confidence and index in one.confidence.classes
    ]
    return f"{len(having)}" + (f", confidence {percent(float(np.mean(sure)))} %" if sure else "")
