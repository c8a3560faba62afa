"""The archive of masks that PASCAL VOC's test server expects (development kit of 2012, section "Submission")."""

import gzip
import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsss.data.dataset import index_images
from wsss.data.files import atomic_path, image_size, read_mask
from wsss.data.labels import IGNORE, VOC_CLASSES, read_ids
from wsss.data.names import check_recorded
from wsss.data.palette import voc_palette
from wsss.errors import UserError

FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
"""comp6: trained on data beyond VOC's own, as every network with an ImageNet backbone is; comp5 allows none."""

TEST_IMAGES = 1456
"""Photos of the segmentation test set of VOC 2012."""


def export_archive(
    source: Path, output: Path, kind: str = "predictions", ids: Path | None = None, photos: Path | None = None
) -> str:
    """Packs the masks of a run directory, or of a folder, into one tar.gz.

    Args:
        source: a run directory with the folder `kind`, or a folder of <id>.png masks.
        output: the archive; written only if every mask is valid.
        kind: folder in a run directory.
        ids: list of ids, each of which must have a mask; no other mask is packed. None = every PNG of the folder.
        photos: folder of the photos, whose sizes the masks must have; None = sizes are not checked.

    Returns:
        A summary for the user.

    Raises:
        UserError: naming the first id or mask: no mask, a value that is not 0..20, another size than the photo; or the
            masks were made with other classes than VOC's.
    """
    folder = _mask_folder(source, kind)
    check_recorded(folder, ("background", *VOC_CLASSES), "VOC's test server")
    masks = index_images(folder, nested=False)
    chosen = read_ids(ids, nested=False) if ids else tuple(masks)
    _check_all_there(chosen, masks, folder, ids, "mask")
    sizes = index_images(photos, nested=False) if photos else None
    if sizes is not None:
        _check_all_there(chosen, sizes, photos, ids, "photo")
    members = (
        (f"{FOLDER}/{name}.png", _packed_mask(masks[name], sizes[name] if sizes is not None else None))
        for name in sorted(chosen)
    )
    write_archive(output, members)
    return _summary(output, len(chosen), ids, photos)


def _mask_folder(source: Path, kind: str) -> Path:
    """Its folder `kind`, or `source` itself if it holds masks."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: give a run directory or a folder of <id>.png masks")
    if (source / kind).is_dir():
        return source / kind
    if any(source.glob("*.png")):
        return source
    raise UserError(
        f"{source} holds neither masks (<id>.png) nor the folder {kind}: run `wsss evaluate` or `wsss predict` first"
    )


def _check_all_there(
    ids: Sequence[str], files: Mapping[str, Path], folder: Path | None, source: Path | None, what: str
) -> None:
    missing = [name for name in ids if name not in files]
    if missing:
        raise UserError(
            f"{folder} has no {what} of {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + (f" of the {len(ids)} ids in {source}" if source else "")
            + "; the archive must be complete, so add what is missing"
        )


def _packed_mask(path: Path, photo: Path | None) -> bytes:
    """The mask as 8-bit palette PNG. Raises UserError for values and sizes that the server refuses."""
    mask = read_mask(path)
    if (wrong := mask[mask > len(VOC_CLASSES)]).size:
        what = "255 (no answer)" if IGNORE in wrong else f"the class index {wrong.max()}"
        raise UserError(
            f"{path} holds {what}, but the server accepts only 0..{len(VOC_CLASSES)}: "
            "predict with a network of VOC's 20 classes (pseudo-masks with 255 are not predictions)"
        )
    if photo is not None and mask.shape != (size := image_size(photo)):
        raise UserError(
            f"{path} has {mask.shape[1]}x{mask.shape[0]} pixels but {photo} has {size[1]}x{size[0]}: "
            "predict at the photo's own size"
        )
    return encode_mask(mask)


def encode_mask(mask: npt.NDArray[np.uint8]) -> bytes:
    """(H, W) uint8 -> PNG of 8 bits a pixel with the whole VOC palette.

    Pillow would store few colours in 1, 2 or 4 bits, for which MATLAB's `imread` returns another class of numbers.
    """
    image = Image.fromarray(np.ascontiguousarray(mask))
    image.putpalette(voc_palette().tobytes())
    stream = io.BytesIO()
    image.save(stream, format="PNG", bits=8)
    return stream.getvalue()


def write_archive(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes (name, content) as tar.gz, atomically; the same members always give the same bytes.

    Raises:
        UserError: the file cannot be written. If making a member raises, nothing is written.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as stream,
        gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in members:
            entry = tarfile.TarInfo(name)  # no owner, 1970, mode 0644
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _summary(output: Path, masks: int, ids: Path | None, photos: Path | None) -> str:
    lines = [f"{output}: {masks} masks in {FOLDER}"]
    if ids is None and masks != TEST_IMAGES:
        lines.append(
            f"the test set of VOC 2012 has {TEST_IMAGES} photos; --ids test.txt names the missing ones"
        )
    if photos is None:
        lines.append("sizes were not compared with the photos; use --photos JPEGImages to compare them")
    return "\n".join(lines)
