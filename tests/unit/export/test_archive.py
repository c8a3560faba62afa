"""The archive for VOC's test server, read with tarfile and Pillow as the development kit would."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data.files import write_mask
from wsss.data.palette import voc_palette
from wsss.errors import UserError
from wsss.export.archive import FOLDER, encode_mask, export_archive

SIZES = {"2008_000001": (5, 7), "2008_000002": (6, 4), "2009_000003": (3, 9)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A JPEGImages with one photo more than there are masks."""
    folder = tmp_path / "JPEGImages"
    folder.mkdir()
    for name, (height, width) in {**SIZES, "2010_000004": (8, 8)}.items():
        Image.new("RGB", (width, height)).save(folder / f"{name}.jpg")
    return folder


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Masks of 21 values, of few values and a grey one."""
    random = np.random.default_rng(0)
    for name, size in SIZES.items():
        write_mask(tmp_path / "masks" / f"{name}.png", random.integers(0, 21, size, dtype=np.uint8))
    Image.fromarray(np.ones((6, 4), np.uint8)).save(tmp_path / "masks" / "2008_000002.png")
    return tmp_path / "masks"


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "test.txt"
    path.write_text("2009_000003\n2008_000001\n2008_000002\n")
    return path


def test_the_archive_is_what_the_devkit_expects(masks: Path, ids: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.tgz"
    said = export_archive(masks, output, ids=ids, photos=photos)
    assert said == f"{output}: 3 masks in {FOLDER}"
    with tarfile.open(output, "r:gz") as archive:
        entries = archive.getmembers()
        expected = [f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png" for name in sorted(SIZES)]
        assert [entry.name for entry in entries] == expected
        for entry, name in zip(entries, sorted(SIZES), strict=True):
            assert entry.isreg()
            assert entry.mode & 0o444 == 0o444
            stream = archive.extractfile(entry)
            assert stream is not None
            content = stream.read()
            assert content[24:26] == bytes([8, 3])  # IHDR: 8 bits a pixel, colour type palette
            with Image.open(io.BytesIO(content)) as mask, Image.open(photos / f"{name}.jpg") as photo:
                assert (mask.format, mask.mode, mask.size) == ("PNG", "P", photo.size)
                assert mask.getpalette() == voc_palette().flatten().tolist()
                values = np.asarray(mask)
            assert values.max() <= 20
            with Image.open(masks / f"{name}.png") as source:
                np.testing.assert_array_equal(values, np.asarray(source))


def test_the_same_masks_give_the_same_bytes(masks: Path, ids: Path, tmp_path: Path) -> None:
    export_archive(masks, tmp_path / "a.tgz", ids=ids)
    export_archive(masks, tmp_path / "other name.tar.gz")
    first = (tmp_path / "a.tgz").read_bytes()
    assert first == (tmp_path / "other name.tar.gz").read_bytes()
    assert first[4:8] == bytes(4)  # gzip's time of writing
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(first))) as archive:
        assert {(entry.mtime, entry.uid, entry.uname) for entry in archive} == {(0, 0, "")}


@pytest.mark.parametrize("values", [1, 2, 3, 16, 21])
def test_masks_have_eight_bits_a_pixel_however_few_values(values: int) -> None:
    mask = np.arange(values, dtype=np.uint8)[None]
    content = encode_mask(mask)
    assert content[24:26] == bytes([8, 3])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), mask)


def test_a_run_directory_has_masks_of_each_kind(masks: Path, tmp_path: Path) -> None:
    masks.rename(tmp_path / "predictions_crf")
    said = export_archive(tmp_path, tmp_path / "r.tgz", "predictions_crf")
    assert "3 masks" in said
    assert "the test set of VOC 2012 has 1456 photos" in said
    assert "--photos JPEGImages" in said
    with pytest.raises(UserError, match=r"neither masks .* nor the folder predictions_ms_flip"):
        export_archive(tmp_path, tmp_path / "r.tgz", "predictions_ms_flip")


def test_a_missing_mask_is_named(masks: Path, ids: Path, tmp_path: Path) -> None:
    (masks / "2009_000003.png").unlink()
    with pytest.raises(
        UserError, match=r"masks has no mask of 2009_000003 of the 3 ids in .*test\.txt; the archive"
    ):
        export_archive(masks, tmp_path / "r.tgz", ids=ids)
    (masks / "2008_000001.png").unlink()
    with pytest.raises(UserError, match="no mask of 2009_000003 and 1 more"):
        export_archive(masks, tmp_path / "r.tgz", ids=ids)


@pytest.mark.parametrize(("value", "what"), [(255, r"255 \(no answer\)"), (21, "the class index 21")])
def test_values_beyond_twenty_are_refused_and_nothing_is_written(
    masks: Path, tmp_path: Path, value: int, what: str
) -> None:
    write_mask(masks / "2009_000003.png", np.full((3, 9), value, np.uint8))
    (tmp_path / "r.tgz").write_text("mine")
    with pytest.raises(
        UserError, match=rf"2009_000003\.png holds {what}, but the server accepts only 0\.\.20"
    ):
        export_archive(masks, tmp_path / "r.tgz")
    assert (tmp_path / "r.tgz").read_text() == "mine"
    assert not list(tmp_path.glob(".r.tgz*"))


def test_a_mask_of_another_size_than_its_photo_is_refused(masks: Path, photos: Path, tmp_path: Path) -> None:
    write_mask(masks / "2009_000003.png", np.zeros((9, 3), np.uint8))
    with pytest.raises(UserError, match=r"2009_000003\.png has 3x9 pixels but .*2009_000003\.jpg has 9x3"):
        export_archive(masks, tmp_path / "r.tgz", photos=photos)


def test_a_mask_without_photo_is_refused(masks: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "2008_000001.jpg").unlink()
    with pytest.raises(UserError, match="JPEGImages has no photo of 2008_000001"):
        export_archive(masks, tmp_path / "r.tgz", photos=photos)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none is not a folder"):
        export_archive(tmp_path / "none", tmp_path / "r.tgz")
