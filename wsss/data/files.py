"""The only code that touches disk formats: atomic writes, photos, masks, saliency archives, JSON.

Needs numpy and Pillow only. Photos are (H, W, 3) uint8 RGB, masks (H, W) uint8 class indices, both in
pixels of the original image (after EXIF orientation). Every write goes to a temporary file in the same
folder and is renamed, so a reader sees a complete file or none.
"""

import csv
import errno
import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from wsss.data.confidence import CHUNK, Confidence, from_text
from wsss.data.labels import BACKGROUND, IGNORE
from wsss.data.palette import voc_palette
from wsss.errors import UserError

_TURN = Image.Transpose
_ORIENTATIONS = {
    2: _TURN.FLIP_LEFT_RIGHT,
    3: _TURN.ROTATE_180,
    4: _TURN.FLIP_TOP_BOTTOM,
    5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270,
    7: _TURN.TRANSVERSE,
    8: _TURN.ROTATE_90,
}
"""EXIF tag 0x0112 -> the operation that turns the photo upright (EXIF 2.3, section 4.6.4)."""

ARCHIVE_BYTES = 4 * 10**9
"""Most bytes of the arrays in an archive: a small file of zeros can stand for any number of them."""

_ORIENTATION_TAG, _WIDTH_TAG, _HEIGHT_TAG = 0x0112, 0x0100, 0x0101
_SWAPS_SIDES = (5, 6, 7, 8)

# What Pillow's decoders raise on damaged files; SyntaxError is how its PNG plugin reports broken chunks.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    Image.DecompressionBombError,
)

# What zipfile and numpy raise on damaged archives; MemoryError: a header that tells of more than there is.
ARCHIVE_ERRORS = (*DECODE_ERRORS, zipfile.BadZipFile, NotImplementedError, RuntimeError, MemoryError)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; renames it to `path` if the block succeeds.

    The folder is made if missing. On any failure the temporary file is removed and an existing `path`
    keeps its content. No fsync: after a power cut a file may be missing, after a killed process never.

    Raises:
        UserError: an OSError in the block or in the renaming (disk full, no permission, …).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error}): {_write_fix(error)}") from error
    finally:
        _remove(temporary)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, which becomes `path` if the block succeeds and is removed if not.

    Args:
        path: does not exist, or is an empty folder, but not the current one.

    Raises:
        UserError: an OSError in the block or in the renaming; the current folder, which cannot be exchanged below the
            shell that is in it.
    """
    path = path.resolve()  # of a link, where it leads
    if path == Path.cwd():
        raise UserError(f"{path} is the current folder; give the name of a new one")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error}): {_write_fix(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # its folder does not exist or is not ours: then there is no temporary file either


def _write_fix(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some disk space and run again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose a folder that you may write to"
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return "a file or folder of that name is in the way, move it"
    return "check the path and the disk"


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, atomically; bytes of file names that are no UTF-8 become \\udcXX.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table for people and spreadsheets, atomically.

    Text that a spreadsheet would take for a formula gets an apostrophe in front, so lists that are read back are
    written otherwise.

    Raises:
        UserError: the file cannot be written.
    """
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerows([_no_formula(cell) for cell in row] for row in rows)
    write_text(path, content.getvalue())


def _no_formula(cell: Any) -> Any:
    is_formula = isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{cell}" if is_formula else cell


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically.

    Raises:
        ValueError: `value` contains NaN or infinity, which JSON does not have (write None).
        UserError: the file cannot be written.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is missing, not readable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check the path") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore or remove it") from error


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file whose outermost value is an object.

    Raises:
        UserError: as `read_json`, or the value is another one.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object, {{...}}: restore or remove it")
    return value


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Yields the opened Pillow image; whatever damaged files raise in the block becomes a UserError."""
    try:
        # A stream: Pillow maps a file of raw pixels into memory if it has its name, and then turns it wrongly.
        with path.open("rb") as stream, _open(path, stream) as image:
            yield image
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check the path") from error
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): check the path and its permissions"
        ) from error
    except DECODE_ERRORS as error:
        raise UserError(f"{path} {_damage(path, error)}") from error


def _open(path: Path, stream: BinaryIO) -> Image.Image:
    try:
        return Image.open(stream)
    except UnidentifiedImageError:
        if _heif_kind(path) == "HEIC" and _register_heif():
            return Image.open(stream)  # which goes to the start of the stream first
        raise


@cache
def _register_heif() -> bool:
    """Teaches Pillow HEIC; False if pillow-heif (the extra `heic`) is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _heif_kind(path: Path) -> str | None:
    """HEIC or AVIF, by the brands at the start of the file, whatever its name; None for another format."""
    with path.open("rb") as file:
        start = file.read(64)
    if start[4:8] != b"ftyp":
        return None
    return "AVIF" if b"avif" in start else "HEIC" if b"hei" in start or b"mif1" in start else None


def _damage(path: Path, error: Exception) -> str:
    """What is wrong with the file, and the fix."""
    if path.stat().st_size == 0:
        problem = "is an empty file"
    elif isinstance(error, UnidentifiedImageError):
        kind = _heif_kind(path)
        if kind == "AVIF" or (kind == "HEIC" and not _register_heif()):
            extra = 'pip install "wsss[heic]"' if kind == "HEIC" else 'pip install "Pillow>=11.3"'
            return f"is a photo in {kind}, which cannot be read here: run {extra}, or save it as JPEG"
        problem = "is not an image of a known format"
    elif isinstance(error, Image.DecompressionBombError):
        problem = "has more pixels than Pillow will decode"
    else:
        problem = f"is damaged or truncated and cannot be decoded ({error})"
    return f"{problem}: replace the file or remove it from the data set"


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8. It is 1 if there is none or the EXIF block is damaged, as in image viewers."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except DECODE_ERRORS:
        return 1
    return value if value in _ORIENTATIONS else 1


def read_image(path: Path, remarks: list[str] | None = None) -> npt.NDArray[np.uint8]:
    """Reads a photo, decoded fully, so that a truncated file is found here.

    Grey becomes three equal channels; CMYK is converted; transparency is laid on white, as a browser shows it. The
    first frame of several is taken. Grey values of 16 bits lose their low byte, unless all of them are below 4096: then
    they are values of 8, 10 or 12 bits in a larger type, and lose what these have more than 8.

    Args:
        path: the photo.
        remarks: gets what someone should know who wonders how the photo was read, as ends of a sentence.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous, EXIF orientation applied.

    Raises:
        UserError: naming the file: missing, empty, no image, truncated, 32-bit values of unknown range, or 16-bit
            colours that use only the low bits.
    """
    remarks = [] if remarks is None else remarks
    with _opened(path) as image:
        deep = ";16" in str(getattr(image, "tile", ""))
        if getattr(image, "is_animated", False) and image.format in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
            remarks.append(f"has {getattr(image, 'n_frames', 'several')} frames, of which the first is used")
        image.load()
        upright = _ORIENTATIONS.get(_orientation(image))
        if image.mode in ("I", "F"):
            raise UserError(f"{path} has 32-bit pixels (mode {image.mode}): save it as 8-bit or 16-bit")
        turned = image if upright is None else image.transpose(upright)
        pixels = np.array(_to_rgb(turned, remarks), dtype=np.uint8, order="C")
        if deep and not image.mode.startswith("I;16") and 0 < pixels.max() < 16:  # Pillow drops the low byte
            raise UserError(
                f"{path} has 16-bit colours that use only the lowest 12 bits, and would be black: save it as 8-bit"
            )
        return pixels


def to_pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of an image that someone else opened, as `read_image`: EXIF orientation, transparency on
    white."""
    image.load()
    upright = _ORIENTATIONS.get(_orientation(image))
    turned = image if upright is None else image.transpose(upright)
    return np.array(_to_rgb(turned, []), dtype=np.uint8, order="C")


def _to_rgb(image: Image.Image, remarks: list[str]) -> Image.Image:
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        used = int(values.max()).bit_length()
        bits = next((bits for bits in (8, 10, 12) if used <= bits), 16)
        if 0 < used <= 14:
            remarks.append(f"uses {used} of its 16 bits, and is read as {bits}-bit")
        return Image.fromarray((values >> (bits - 8)).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        if image.mode in ("RGBa", "La"):
            image = image.convert(image.mode.upper())
        front = image.convert("RGBA")
        white = Image.new("RGBA", front.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, front).convert("RGB")
    return image.convert("RGB")


def write_photo(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Writes (H, W, 3) uint8 RGB as JPEG with little loss (quality 95, full colour resolution), atomically.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="JPEG", quality=95, subsampling=0)


def check_photo(path: Path) -> None:
    """Reads the header of a photo. Raises UserError, naming the file: missing, empty, no image, or damaged there."""
    with _opened(path):
        pass


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of a photo after EXIF orientation; reads the header only (PNG with late EXIF: all).

    Raises:
        UserError: naming the file: missing, empty or no image.
    """
    with _opened(path) as image:
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # newer versions turn its `size`
            width, height = image.tag_v2[_WIDTH_TAG], image.tag_v2[_HEIGHT_TAG]
        return (width, height) if _orientation(image) in _SWAPS_SIDES else (height, width)


def read_mask(path: Path) -> npt.NDArray[np.uint8]:
    """Reads a mask as palette (or grey) index: 0 = background, 1..C = classes, 255 = ignore.

    Returns:
        (H, W) uint8, C-contiguous. No EXIF orientation: masks are arrays, not photos.

    Raises:
        UserError: naming the file: missing, damaged, not of mode P or L (RGB, for example), or stored lossily.
    """
    with _opened(path) as image:
        _check_indices(path, image)
        return np.array(image, dtype=np.uint8, order="C")


def read_confidence(path: Path) -> Confidence | None:
    """The confidence that `write_mask` put into a mask's file; None if there is none.

    Raises:
        UserError: naming the file: see `read_mask`; or the confidence is damaged.
    """
    with _opened(path) as image:
        text = image.info.get(CHUNK)
    try:
        return from_text(text) if isinstance(text, str) else None
    except ValueError as error:
        raise UserError(f'{path} has a damaged text "{CHUNK}": predict this photo again') from error


def classes_in(mask: npt.NDArray[np.uint8]) -> list[int]:
    """The classes (neither background nor 255) that have at least one pixel of a mask, rising."""
    found = np.flatnonzero(np.bincount(mask.ravel())).tolist()
    return [index for index in found if index not in (BACKGROUND, IGNORE)]


def _check_indices(path: Path, image: Image.Image) -> None:
    """Raises UserError if an opened mask cannot hold class indices."""
    if image.format in ("JPEG", "MPO", "WEBP"):
        raise UserError(f"{path} is a {image.format} file, which changes class indices: save masks as PNG")
    if image.mode not in ("P", "L"):
        raise UserError(
            f"{path} is a mask of mode {image.mode}, which holds no class indices: save it as an 8-bit palette or "
            'grey PNG with values 0..C and 255 (data/README.md, "RGB masks", has a script)'
        )


def check_mask_header(path: Path, photo: Path) -> None:
    """Check what `read_truth` checks, from the headers of both files: mode, format and size.

    Raises:
        UserError: naming the file.
    """
    with _opened(path) as image:
        _check_indices(path, image)
        width, height = image.size
    _check_same_size(path, (height, width), photo)


def _check_same_size(path: Path, size: tuple[int, ...], photo: Path) -> None:
    expected = image_size(photo)
    if size != expected:
        raise UserError(
            f"{path} has {size[1]}x{size[0]} pixels but {photo} has {expected[1]}x{expected[0]}; "
            "a mask must be as large as its photo"
        )


def read_truth(path: Path, photo: Path, classes: int | None = None) -> npt.NDArray[np.uint8]:
    """Reads the mask of a photo and checks that it belongs to it.

    Args:
        path: the mask.
        photo: the photo, of which only the header is read.
        classes: number of classes, background included; None = values are not checked.

    Returns:
        (H, W) uint8, as `read_mask`.

    Raises:
        UserError: naming the file: as `read_mask`; another size than the photo's; an index beyond the classes.
    """
    mask = read_mask(path)
    _check_same_size(path, mask.shape, photo)
    if classes is not None and (wrong := mask[(mask >= classes) & (mask != IGNORE)]).size:
        raise UserError(
            f"{path} holds the class index {wrong.max()}, but the class list has {classes - 1} names: "
            "correct the mask or data.classes"
        )
    return mask


def write_mask(path: Path, mask: npt.NDArray[np.uint8], confidence: Confidence | None = None) -> None:
    """Writes class indices as a mode-P PNG with the VOC palette, atomically.

    Args:
        path: the PNG file.
        mask: (H, W) uint8, 0 = background, 1..C = classes, 255 = ignore.
        confidence: of the network that made it; kept in the file, see `read_confidence`.

    Raises:
        ValueError: another shape or dtype.
        UserError: the file cannot be written.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"a mask is (H, W) uint8, got {mask.shape} {mask.dtype}")
    image = Image.fromarray(np.ascontiguousarray(mask))
    image.putpalette(voc_palette().tobytes())  # turns the grey image into mode P, indices unchanged
    notes = PngImagePlugin.PngInfo()
    if confidence is not None:
        notes.add_text(CHUNK, confidence.to_text())
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=notes)


@dataclass(frozen=True, eq=False)
class Saliency:
    """The saliency maps of one photo, one per class in its labels.

    Attributes:
        classes: (K,) int16 mask indices 1..C, K may be 0. Index 0 first: the maps are probabilities.
        maps: (K, h, w) float16 in [0, 1], h and w are the method's own resolution.
        size: (H, W) of the photo.
    """

    classes: npt.NDArray[np.int16]
    maps: npt.NDArray[np.float16]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.classes.dtype != np.int16 or self.maps.dtype != np.float16:
            raise ValueError(f"saliency is int16 and float16, got {self.classes.dtype} and {self.maps.dtype}")
        if self.classes.ndim != 1 or self.maps.ndim != 3 or len(self.classes) != len(self.maps):
            raise ValueError(
                f"saliency is (K,) and (K, h, w), got {self.classes.shape} and {self.maps.shape}"
            )
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size is (H, W) of the photo, got {self.size}")
        if not ((self.maps >= 0) & (self.maps <= 1)).all():  # also finds NaN
            raise ValueError("saliency maps lie in [0, 1]")


def write_saliency(path: Path, saliency: Saliency) -> None:
    """Writes one photo's saliency as a compressed .npz without pickles, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    size = np.array(saliency.size, dtype=np.int32)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:  # a stream: savez would add a suffix
        np.savez_compressed(stream, classes=saliency.classes, maps=saliency.maps, size=size)


def read_saliency(path: Path) -> Saliency:
    """Reads what `write_saliency` wrote; pickles are refused.

    Raises:
        UserError: naming the file: missing, truncated, or not such an archive.
    """
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as archive:
            height, width = (int(value) for value in archive["size"])
            return Saliency(archive["classes"], archive["maps"], (height, width))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: run the saliency stage (wsss saliency)") from error
    except ARCHIVE_ERRORS as error:
        raise UserError(
            f"{path} is not a complete saliency archive ({error}): remove it and run the saliency stage again"
        ) from error


def check_archive(path: Path) -> None:
    """Refuse what numpy would guess to be something else (a bare .npy, a pickle), and what would fill the memory.

    Raises:
        zipfile.BadZipFile: it is no zip file.
        ValueError: its arrays have more than ``ARCHIVE_BYTES``.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > ARCHIVE_BYTES:
        raise ValueError(f"its arrays would take {size / 1e9:.0f} GB of memory")


def write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Writes numeric arrays as an .npz without pickles, atomically. Raises UserError if the file cannot be written."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for its flag


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """Reads arrays of an .npz; pickles are refused.

    Raises:
        UserError: the file is missing, truncated, or lacks one of `names`.
    """
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: run the stage that writes it") from error
    except ARCHIVE_ERRORS as error:
        raise UserError(f"{path} is damaged ({error}): remove it and run the stage that writes it") from error
