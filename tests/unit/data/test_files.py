"""Disk formats: atomic writes, photos of every mode, masks, saliency archives."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, features

from wsss.data.files import (
    Saliency,
    _register_heif,
    atomic_path,
    check_photo,
    image_size,
    read_arrays,
    read_image,
    read_json,
    read_mask,
    read_saliency,
    write_arrays,
    write_json,
    write_mask,
    write_photo,
    write_saliency,
    write_text,
)
from wsss.errors import UserError

RANDOM = np.random.default_rng(0)


def pixels(*shape: int) -> npt.NDArray[np.uint8]:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_makes_the_folder_and_leaves_only_the_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "é")
    assert names(tmp_path / "a" / "b") == ["c.txt"]
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "é".encode()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failed_write_keeps_the_old_file_and_removes_the_temporary_one(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:  # noqa: PT012 (the block is what fails)
        assert temporary.parent == tmp_path
        temporary.write_text("half")
        raise error
    assert names(tmp_path) == ["a.txt"]
    assert path.read_text() == "old"


def test_two_processes_that_write_one_file_do_not_share_its_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    code = (
        "import sys, pathlib, wsss.data.files as files; files.write_text(pathlib.Path(sys.argv[1]), 'theirs')"
    )
    with atomic_path(path) as temporary:
        temporary.write_text("ours")
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_a_user_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with (
        pytest.raises(UserError, match=r"cannot write .*a\.bin \(No space left.*free some disk space"),
        atomic_path(path),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert names(tmp_path) == []


def test_permission_and_blocked_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="may write to"), atomic_path(tmp_path / "a"):
        raise PermissionError(13, "Permission denied")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is in the way"):
        write_text(tmp_path / "file" / "a.txt", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*folder"):
        write_text(tmp_path / "folder", "")
    assert names(tmp_path) == ["file", "folder"]


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"miou": 0.5, "é": None})
    assert read_json(path) == {"miou": 0.5, "é": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, float("nan"))
    path.write_text('{"a": ')
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_json(path)
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "b.json")


def test_rgb_and_grey_photos_are_read_exactly(tmp_path: Path) -> None:
    rgb, grey = pixels(5, 7, 3), pixels(5, 7)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.png"), rgb)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, axis=2))
    read = read_image(tmp_path / "rgb.png")
    assert read.dtype == np.uint8
    assert read.flags.c_contiguous
    assert read.flags.writeable


def test_sixteen_bit_photo_keeps_its_high_byte(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256], [1000, 32768, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name)[..., 0], values // 256)


@pytest.mark.parametrize(("top", "bits"), [(200, 8), (1000, 10), (4095, 12), (4096, 16), (16383, 16)])
def test_sixteen_bits_of_which_a_corner_is_used(tmp_path: Path, top: int, bits: int) -> None:
    values = np.array([[0, 100, top]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    remarks: list[str] = []
    read = read_image(tmp_path / "a.png", remarks)
    np.testing.assert_array_equal(read[..., 0], values >> (bits - 8))
    assert remarks == [f"uses {top.bit_length()} of its 16 bits, and is read as {bits}-bit"]


def test_ordinary_sixteen_bits_need_no_remark(tmp_path: Path) -> None:
    for name, top in (("black", 0), ("bright", 40000)):
        Image.fromarray(np.array([[0, top]], np.uint16)).save(tmp_path / f"{name}.png")
        remarks: list[str] = []
        assert read_image(tmp_path / f"{name}.png", remarks)[0, 1, 0] == top // 256
        assert remarks == []


@pytest.mark.parametrize("top", [0, 4095, 65535])
def test_sixteen_bit_colours_that_would_be_black_are_refused(tmp_path: Path, top: int) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((2, 2, 3), top, np.uint16))  # Pillow cannot write such files
    if top == 4095:
        with pytest.raises(
            UserError, match=r"a\.png has 16-bit colours that use only the lowest 12 bits.*8-bit"
        ):
            read_image(tmp_path / "a.png")
    else:
        assert (read_image(tmp_path / "a.png") == top // 256).all()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_the_first_frame_of_several_is_read_with_a_remark(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    remarks: list[str] = []
    red, green, _ = read_image(tmp_path / f"a.{suffix}", remarks)[1, 1]
    assert (red > 200, green < 50) == (True, True)
    assert remarks == ["has 3 frames, of which the first is used"]
    frames[0].save(tmp_path / f"a.{suffix}")
    remarks.clear()
    read_image(tmp_path / f"a.{suffix}", remarks)
    assert remarks == []


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)


@pytest.mark.parametrize("name", ["a.HEIC", "renamed.jpg"])
def test_heic_without_its_plug_in_says_what_to_install(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it raises ImportError
    monkeypatch.setattr("wsss.data.files._register_heif", _register_heif.__wrapped__)
    Image.init()  # loads Pillow's own formats, which would get lost with the list below
    monkeypatch.setattr(Image, "ID", [kind for kind in Image.ID if kind != "HEIF"])
    (tmp_path / name).write_bytes(HEIC)
    for read in (read_image, image_size, check_photo):
        with pytest.raises(
            UserError, match=rf'{name} is a photo in HEIC.* pip install "wsss\[heic\]", or save it'
        ):
            read(tmp_path / name)


def test_heic_is_read_where_its_plug_in_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    rgb = np.kron(pixels(2, 3, 3), np.ones((16, 16, 1), np.uint8))
    heif.from_pillow(Image.fromarray(rgb)).save(tmp_path / "a.HEIC", quality=-1)
    np.testing.assert_allclose(read_image(tmp_path / "a.HEIC").astype(int), rgb, atol=16)
    (tmp_path / "broken.heic").write_bytes(HEIC)
    with pytest.raises(UserError, match=r"broken\.heic is (damaged|not an image)"):
        read_image(tmp_path / "broken.heic")


def test_avif_that_pillow_cannot_read_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "a.avif").write_bytes(HEIC.replace(b"heic", b"avix").replace(b"mif1", b"avif"))
    with pytest.raises(UserError, match=r'a\.avif is (a photo in AVIF.* pip install "Pillow|damaged)'):
        read_image(tmp_path / "a.avif")


def test_big_endian_sixteen_bit_tiff_is_not_byte_swapped(tmp_path: Path) -> None:
    values = np.array([[0, 1000], [40000, 65535]], np.uint16)
    Image.frombytes("I;16B", (2, 2), values.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 1], values // 256)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_become_white_and_opaque_ones_stay(tmp_path: Path, mode: str) -> None:
    channels = np.zeros((1, 2, len(mode)), np.uint8)
    channels[..., :-1] = 40
    channels[0, 1, -1] = 255
    Image.fromarray(channels).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0].tolist() == [[255] * 3, [40] * 3]


def test_palette_photos_are_looked_up_and_their_transparent_index_is_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert read_image(tmp_path / "plain.png")[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    assert read_image(tmp_path / "clear.png")[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_bilevel_and_cmyk_photos_are_converted(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "one.png")
    assert read_image(tmp_path / "one.png")[0].tolist() == [[255] * 3, [0] * 3]
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = read_image(tmp_path / "a.jpg")[4, 4]
    assert red > 240
    assert max(green, blue) < 15


def test_float_photo_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif has 32-bit pixels"):
        read_image(tmp_path / "a.tif")


# EXIF 2.3, 4.6.4: which visual corner the stored first row and first column belong to.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "grey.tif", "webp", "avif"])
def test_exif_orientation_is_applied_to_pixels_and_size(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    stored = np.kron(pixels(2, 3, 1), np.ones((16, 16, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = Image.fromarray(stored).convert("L" if suffix == "grey.tif" else "RGB")
    image.save(path, exif=exif, **({} if suffix.endswith(("png", "tif")) else {"quality": 100}))
    upright = UPRIGHT[orientation](stored)
    read = read_image(path)
    np.testing.assert_allclose(
        read.astype(int), upright.astype(int), atol=6 if suffix in ("webp", "avif") else 3
    )
    assert image_size(path) == upright.shape[:2] == read.shape[:2]


def test_damaged_exif_does_not_hide_a_good_photo(tmp_path: Path) -> None:
    Image.fromarray(pixels(4, 6, 3)).save(tmp_path / "a.jpg", exif=b"Exif\0\0garbage-no-tiff")
    assert read_image(tmp_path / "a.jpg").shape == (4, 6, 3)
    assert image_size(tmp_path / "a.jpg") == (4, 6)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_truncated_photo_is_refused_by_name(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(pixels(64, 64, 3)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match=rf"photo\.{suffix} is (damaged|not an image).*: replace the file"):
        read_image(path)


def test_corrupt_png_chunk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pixels(32, 32, 3)).save(path)
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.png is damaged"):
        read_image(path)


def test_photo_of_absurd_size_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(pixels(32, 32, 3)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"a\.png has more pixels than Pillow will decode: replace"):
        read_image(tmp_path / "a.png")


def test_missing_empty_and_foreign_files_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    for read in (read_image, image_size, read_mask):
        with pytest.raises(UserError, match=r"none\.jpg does not exist"):
            read(tmp_path / "none.jpg")
        with pytest.raises(UserError, match=r"empty\.jpg is an empty file"):
            read(tmp_path / "empty.jpg")
        with pytest.raises(UserError, match=r"text\.jpg is not an image"):
            read(tmp_path / "text.jpg")
        with pytest.raises(UserError, match="cannot be read"):
            read(tmp_path)


def test_mask_round_trip_keeps_all_256_indices_in_palette_mode(tmp_path: Path) -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    write_mask(tmp_path / "m.png", mask.T)  # not contiguous on purpose
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask.T)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[: 3 * 16][45:] == [192, 128, 128]  # VOC's colour of person, index 15
    assert names(tmp_path) == ["m.png"]


def test_grey_masks_are_read_as_indices(tmp_path: Path) -> None:
    mask = np.array([[0, 3, 255]], np.uint8)
    Image.fromarray(mask).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask)


def test_masks_that_hold_no_indices_are_refused(tmp_path: Path) -> None:
    Image.fromarray(pixels(4, 4, 3)).save(tmp_path / "rgb.png")
    Image.fromarray(pixels(4, 4)).save(tmp_path / "lossy.jpg")
    Image.fromarray(np.ones((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"rgb\.png is a mask of mode RGB.*data/README\.md"):
        read_mask(tmp_path / "rgb.png")
    with pytest.raises(UserError, match=r"lossy\.jpg is a JPEG file.*save masks as PNG"):
        read_mask(tmp_path / "lossy.jpg")
    with pytest.raises(UserError, match=r"deep\.png is a mask of mode I;16"):
        read_mask(tmp_path / "deep.png")


@pytest.mark.parametrize("mask", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 1), np.uint8)])
def test_writing_something_else_than_indices_is_a_bug(tmp_path: Path, mask: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"\(H, W\) uint8"):
        write_mask(tmp_path / "m.png", mask)
    assert names(tmp_path) == []


def saliency(count: int = 2) -> Saliency:
    maps = RANDOM.random((count, 3, 4)).astype(np.float16)
    return Saliency(np.arange(1, count + 1, dtype=np.int16), maps, (30, 40))


@pytest.mark.parametrize("count", [0, 2])
def test_saliency_round_trip(tmp_path: Path, count: int) -> None:
    written = saliency(count)
    write_saliency(tmp_path / "deep" / "a.npz", written)
    read = read_saliency(tmp_path / "deep" / "a.npz")
    np.testing.assert_array_equal(read.maps, written.maps)
    np.testing.assert_array_equal(read.classes, written.classes)
    assert (read.size, read.maps.dtype, read.classes.dtype) == ((30, 40), np.float16, np.int16)
    assert names(tmp_path / "deep") == ["a.npz"]


def test_saliency_that_breaks_its_contract_is_refused() -> None:
    good = saliency()
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Saliency(good.classes, good.maps * np.float16(np.nan), good.size)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Saliency(good.classes, good.maps + np.float16(1), good.size)
    with pytest.raises(ValueError, match="int16 and float16"):
        Saliency(good.classes, good.maps.astype(np.float32), good.size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(K,\)"):
        Saliency(good.classes[:1], good.maps, good.size)


@pytest.mark.parametrize("keep", [0, 10, 100, -1])
def test_truncated_saliency_names_the_file_and_the_fix(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.npz"
    write_saliency(path, saliency())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        UserError, match=r"a\.npz is not a complete saliency archive.*run the saliency stage again"
    ):
        read_saliency(path)


class Intruder:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_saliency_archive_is_not_run(tmp_path: Path) -> None:
    intruder = np.array([Intruder(tmp_path / "hacked")], object)
    np.savez(tmp_path / "a.npz", classes=intruder, maps=intruder, size=np.array([1, 1]))
    with pytest.raises(UserError, match="not a complete saliency archive"):
        read_saliency(tmp_path / "a.npz")
    assert names(tmp_path) == ["a.npz"]


def test_pickles_foreign_arrays_and_missing_archives_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with (tmp_path / "b.npz").open("wb") as stream:
        np.savez(stream, classes=np.array([{}], object), maps=np.zeros(1), size=np.array([1, 1]))
    np.savez(tmp_path / "c.npz", other=np.zeros(1))
    for name in ("a.npy", "b.npz", "c.npz"):
        with pytest.raises(UserError, match="not a complete saliency archive"):
            read_saliency(tmp_path / name)
    with pytest.raises(UserError, match=r"d\.npz does not exist: run the saliency stage"):
        read_saliency(tmp_path / "d.npz")


def test_arrays_that_are_gone_or_damaged_name_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.npz does not exist: run the stage that writes it"):
        read_arrays(tmp_path / "a.npz", ("weight",))
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"a\.npz is damaged .* remove it and run the stage"):
        read_arrays(tmp_path / "a.npz", ("weight",))
    write_arrays(tmp_path / "a.npz", {"bias": np.zeros(2)})
    with pytest.raises(UserError, match=r"a\.npz is damaged"):
        read_arrays(tmp_path / "a.npz", ("weight",))


def test_json_that_may_not_be_read_is_explained(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(
        UserError, match=r"folder\.json cannot be read \(Is a directory\): check its permissions"
    ):
        read_json(tmp_path / "folder.json")


def test_photos_are_written_with_little_loss(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:40, :60]
    image = np.stack([rows * 5, columns * 4, 255 - rows * 3], axis=2).astype(np.uint8)
    write_photo(tmp_path / "a" / "b.jpg", image)
    assert np.abs(read_image(tmp_path / "a" / "b.jpg").astype(int) - image).max() <= 6
    assert names(tmp_path / "a") == ["b.jpg"]


@pytest.mark.parametrize("read", [read_saliency, lambda path: read_arrays(path, ("maps",))])
def test_a_small_archive_of_huge_arrays_is_refused_before_they_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any
) -> None:
    maps = np.zeros((1, 400, 500), np.float16)
    np.savez_compressed(
        tmp_path / "a.npz", classes=np.ones(1, np.int16), maps=maps, size=np.array([400, 500], np.int32)
    )
    assert (tmp_path / "a.npz").stat().st_size < 2000
    read(tmp_path / "a.npz")
    monkeypatch.setattr("wsss.data.files.ARCHIVE_BYTES", maps.nbytes)
    with pytest.raises(UserError, match=r"a\.npz is .*\(its arrays would take 0 GB of memory\): remove it"):
        read(tmp_path / "a.npz")
