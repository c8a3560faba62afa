"""What holds for any input: photos and masks stay aligned, what is written is read, sums are those of their parts."""

import csv
import io
import tarfile
import unicodedata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from wsss.data.agreement import indices
from wsss.data.dataset import evenly
from wsss.data.files import Saliency, read_mask, read_saliency, write_mask, write_saliency
from wsss.data.labels import read_ids, xml_names
from wsss.data.modules import multi_hot
from wsss.data.palette import voc_palette
from wsss.data.tags import read_label_csv
from wsss.data.transforms import MEAN, STD, RandomScale, TrainTransform
from wsss.export.archive import encode_mask, write_archive
from wsss.metrics.confusion import ConfusionMatrix
from wsss.metrics.sweep import ThresholdSweep
from wsss.models.tiling import blended_rows
from wsss.predict import enlarged_rows
from wsss.refine.background import seed_mask
from wsss.refine.crf import dense_crf, pydensecrf_is_installed
from wsss.refine.parameters import CRFParameters
from wsss.saliency import SESS, GradCAM, normalize, upsample

SIDES = st.integers(1, 24)


def masks(values: int = 256) -> st.SearchStrategy[npt.NDArray[np.uint8]]:
    return arrays.arrays(np.uint8, st.tuples(SIDES, SIDES), elements=st.integers(0, values - 1))


def drawn(data: st.DataObject, *shape: int) -> npt.NDArray[np.float32]:
    """Random numbers in [0, 1): hypothesis chooses only the seed."""
    return np.random.default_rng(data.draw(st.integers(0, 10**6))).random(shape, np.float32)


# -- transforms -------------------------------------------------------------------------------------


@given(
    size=st.tuples(st.integers(2, 60), st.integers(2, 60)), share=st.floats(0, 1), factor=st.floats(0.3, 3),
    crop=st.integers(8, 64), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_photo_and_mask_stay_aligned(
    size: tuple[int, int], share: float, factor: float, crop: int, seed: int
) -> None:
    """Black where the mask is 0, white where it is 1: they may differ next to the border between them."""
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[:, round(share * size[1]) :] = 1
    torch.manual_seed(seed)
    photo, moved = TrainTransform(RandomScale(factor, factor), crop)(255 * mask.expand(3, *size), mask)
    assert moved is not None
    assert photo.shape == (3, crop, crop)
    assert moved.shape == (crop, crop)
    grey = (photo * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)).mean(0)
    known = moved != 255
    wrong = ((grey > 0.5) != (moved == 1)) & known
    assert int(wrong.any(0).sum()) <= 1
    assert int(known.any(1).sum()) == min(crop, max(1, round(size[0] * factor)))
    assert int(known.any(0).sum()) == min(crop, max(1, round(size[1] * factor)))


# -- files ------------------------------------------------------------------------------------------


@given(mask=masks())
def test_a_mask_survives_the_disk_and_the_archive(mask: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), mask)
    write_archive(tmp_path / "a.tgz", [("a/b.png", encode_mask(mask))])
    with tarfile.open(tmp_path / "a.tgz") as archive:
        (member,) = archive.getmembers()
        stream = archive.extractfile(member)
        assert stream is not None
        content = stream.read()
    for source in (tmp_path / "a.png", io.BytesIO(content)):
        with Image.open(source) as image:
            np.testing.assert_array_equal(np.asarray(image), mask)
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), voc_palette()[mask])


@given(
    maps=arrays.arrays(
        np.float16, st.tuples(st.integers(0, 3), SIDES, SIDES), elements=st.floats(0, 1, width=16)
    ),
    size=st.tuples(st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1)),
)
def test_saliency_survives_the_disk(
    maps: npt.NDArray[np.float16], size: tuple[int, int], tmp_path: Path
) -> None:
    classes = np.arange(len(maps), dtype=np.int16)
    write_saliency(tmp_path / "a.npz", Saliency(classes, maps, size))
    found = read_saliency(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.maps, maps)
    np.testing.assert_array_equal(found.classes, classes)
    assert found.size == size


# -- ids and labels ---------------------------------------------------------------------------------

NAMES = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="/\\;,\"'<&"), min_size=1, max_size=8
)
IDS = st.lists(NAMES.map(lambda name: f"{name}_"), min_size=1, max_size=2).map("/".join)


@given(data=st.data())
def test_labels_and_ids_survive_every_file_that_lists_them(data: st.DataObject, tmp_path: Path) -> None:
    classes = tuple(data.draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)))
    parts = st.sets(st.integers(1, len(classes))).map(lambda found: tuple(sorted(found)))
    labels = data.draw(st.dictionaries(IDS, parts, min_size=1, max_size=4))
    labels = {unicodedata.normalize("NFC", name): value for name, value in labels.items()}
    stream = io.StringIO()
    rows = [(name, ";".join(classes[index - 1] for index in value)) for name, value in labels.items()]
    csv.writer(stream).writerows([("image", "labels"), *rows])
    (tmp_path / "tags.csv").write_text(stream.getvalue(), encoding="utf-8", newline="")
    assert read_label_csv(tmp_path / "tags.csv", classes) == labels
    (tmp_path / "list.txt").write_text("\n".join(labels), encoding="utf-8")
    assert read_ids(tmp_path / "list.txt") == tuple(labels)
    for name, value in labels.items():
        root = ElementTree.Element("annotation")
        for index in value:
            ElementTree.SubElement(ElementTree.SubElement(root, "object"), "name").text = classes[index - 1]
        path = tmp_path / f"{name}.xml"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(ElementTree.tostring(root, "utf-8"))
        hot = multi_hot(value, len(classes))
        assert tuple((hot.nonzero()[:, 0] + 1).tolist()) == value
    assert indices({name: xml_names(tmp_path / f"{name}.xml") for name in labels}, classes) == labels


@given(length=st.integers(0, 200), count=st.integers(0, 220))
def test_evenly_spaced_means_that_no_gap_is_larger_by_more_than_one(length: int, count: int) -> None:
    records: Any = list(range(length))
    chosen = evenly(records, count)
    assert len(chosen) == (min(count, length) or length)
    gaps = np.diff([*chosen, length])
    assert not len(gaps) or (chosen[0] == 0 and gaps.max() - gaps.min() <= 1)


# -- metrics ----------------------------------------------------------------------------------------


@given(data=st.data(), classes=st.integers(1, 5))
def test_a_confusion_matrix_counts_every_pair_and_is_the_sum_of_its_parts(
    data: st.DataObject, classes: int
) -> None:
    values = np.array([*range(classes), 255], np.uint8)
    pairs = [
        values[
            data.draw(
                arrays.arrays(
                    np.uint8, (2, *data.draw(st.tuples(SIDES, SIDES))), elements=st.integers(0, classes)
                )
            )
        ]
        for _ in range(2)
    ]
    parts, total, expected = [], ConfusionMatrix(classes), np.zeros((classes, classes + 1), np.int64)
    for prediction, truth in pairs:
        part = ConfusionMatrix(classes)
        part.update(prediction, truth)
        parts.append(part)
        total.update(prediction, truth)
        for predicted, true in zip(prediction.ravel(), truth.ravel(), strict=True):
            if true != 255:
                expected[true, min(predicted, classes)] += 1
    np.testing.assert_array_equal(total.counts, expected)
    np.testing.assert_array_equal((parts[0] + parts[1]).counts, expected)


@given(data=st.data(), count=st.integers(0, 3), size=st.tuples(SIDES, SIDES))
def test_a_sweep_is_the_seed_at_each_of_its_thresholds(
    data: st.DataObject, count: int, size: tuple[int, int]
) -> None:
    maps, classes = np.round(drawn(data, count, *size) * 20) / np.float32(20), range(1, count + 1)
    truth = data.draw(arrays.arrays(np.uint8, size, elements=st.sampled_from([*range(count + 1), 255])))
    sweep = ThresholdSweep(count + 1, (0.05, 0.2, 0.5))
    sweep.update(maps, classes, truth)
    for threshold, matrix in zip(sweep.thresholds, sweep.matrices(), strict=True):
        expected = ConfusionMatrix(count + 1)
        expected.update(seed_mask(maps, classes, float(threshold)), truth)
        np.testing.assert_array_equal(matrix.counts, expected.counts)


# -- CRF --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backend",
    [
        "torch",
        pytest.param(
            "pydensecrf", marks=pytest.mark.skipif(not pydensecrf_is_installed(), reason="not installed")
        ),
    ],
)
@given(data=st.data(), classes=st.integers(2, 20), size=st.tuples(SIDES, SIDES))
def test_a_crf_treats_all_classes_alike(
    data: st.DataObject, classes: int, size: tuple[int, int], backend: str
) -> None:
    probabilities = drawn(data, classes, *size) + np.float32(0.01)
    image = (255 * drawn(data, *size, 3)).astype(np.uint8)
    order = data.draw(st.permutations(range(classes)))
    constants = CRFParameters(iterations=3)
    straight = dense_crf(probabilities, image, constants, backend)
    turned = dense_crf(np.ascontiguousarray(probabilities[order]), image, constants, backend)
    np.testing.assert_allclose(turned, straight[order], atol=1e-3)


# -- saliency and prediction ------------------------------------------------------------------------


class Toy(nn.Module):
    """Sees strides of four pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images).mean((2, 3)))
        return logits


@given(data=st.data(), size=st.tuples(st.integers(8, 48), st.integers(8, 48)), cls=st.integers(0, 2))
def test_sess_of_one_window_is_its_method(data: st.DataObject, size: tuple[int, int], cls: int) -> None:
    side = min(size)
    image, target = torch.from_numpy(drawn(data, 1, 3, side, side)), torch.tensor([[0, cls]])
    base, model = GradCAM("features"), Toy()
    sess = SESS(base, window=side, step=side, scales=(side,), smooth=False)
    found = sess(model, image, target)
    expected = normalize(upsample(base(model, image, target), (side, side)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@given(size=st.tuples(st.integers(1, 400), st.integers(1, 400)), tile=st.integers(128, 256))
def test_tiles_that_change_nothing_give_the_photo(size: tuple[int, int], tile: int) -> None:
    image = torch.rand(2, *size)
    strips = list(blended_rows(image, lambda part: part, tile))
    torch.testing.assert_close(torch.cat([strip for _, strip in strips], 1), image)


@given(
    source=st.tuples(SIDES, SIDES),
    more=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    rows=st.integers(1, 300),
)
def test_enlarging_in_strips_is_bilinear(source: tuple[int, int], more: tuple[int, int], rows: int) -> None:
    maps, size = torch.rand(2, *source), (source[0] + more[0], source[1] + more[1])
    found = torch.cat([strip for _, strip in enlarged_rows(maps, size, rows)], 1)
    expected = functional.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, expected)
