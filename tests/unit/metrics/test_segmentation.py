from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex, MulticlassPrecision, MulticlassRecall

from wsss.errors import UserError
from wsss.metrics.segmentation import (
    BoundaryScore,
    ConfusionMatrix,
    boundary_score,
    confusion_of_pairs,
    score,
    score_folder,
)
from wsss.metrics.table import score_table

Mask = npt.NDArray[np.uint8]
NAMES = ("background", "cat", "dog", "sofa")


def random_pairs(
    images: int = 3, classes: int = 4, ignore_truth: float = 0.1, ignore_prediction: float = 0.1
) -> list[tuple[Mask, Mask]]:
    """Predictions and truths of different sizes that agree on about half of their pixels."""
    generator = np.random.default_rng(0)
    pairs = []
    for index in range(images):
        shape = (7 + index, 11 - index)
        truth = generator.integers(0, classes, shape, dtype=np.uint8)
        guess = generator.integers(0, classes, shape, dtype=np.uint8)
        prediction = np.where(generator.random(shape) < 0.5, truth, guess)
        prediction[generator.random(shape) < ignore_prediction] = 255
        truth[generator.random(shape) < ignore_truth] = 255
        pairs.append((prediction, truth))
    return pairs


def matrix_of(pairs: list[tuple[Mask, Mask]], classes: int = 4) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes)
    for prediction, truth in pairs:
        matrix.update(prediction, truth)
    return matrix


def brute_force_iou(pairs: list[tuple[Mask, Mask]], classes: int) -> list[float]:
    """TP / (TP + FP + FN) with one Python loop over pixels; NaN without ground truth."""
    hit, false_positive, false_negative, true = ([0] * classes for _ in range(4))
    for prediction, truth in pairs:
        for y, x in itertools.product(*map(range, truth.shape)):
            t, p = int(truth[y, x]), int(prediction[y, x])
            if t == 255:
                continue
            true[t] += 1
            if t == p:
                hit[t] += 1
                continue
            false_negative[t] += 1
            if p != 255:
                false_positive[p] += 1
    return [
        hit[c] / (hit[c] + false_positive[c] + false_negative[c]) if true[c] else float("nan")
        for c in range(classes)
    ]


def as_mask(*rows: list[int]) -> Mask:
    return np.array(rows, dtype=np.uint8)


def write_pairs(root: Path, pairs: list[tuple[Mask, Mask]]) -> tuple[Path, Path]:
    folders = root / "predictions", root / "truth"
    for folder, position in zip(folders, (0, 1), strict=True):
        folder.mkdir()
        for index, pair in enumerate(pairs):
            image = Image.fromarray(pair[position])
            image.putpalette([value for colour in range(256) for value in (colour, 0, 0)])
            image.save(folder / f"{index}.png")
    return folders


def test_iou_agrees_with_a_loop_over_pixels() -> None:
    pairs = random_pairs()
    matrix = matrix_of(pairs)
    np.testing.assert_allclose(matrix.iou(), brute_force_iou(pairs, 4))
    assert matrix.miou() == pytest.approx(np.mean(brute_force_iou(pairs, 4)))
    assert matrix.images == 3


def test_iou_agrees_with_torchmetrics_where_predictions_have_no_255() -> None:
    pairs = random_pairs(ignore_prediction=0)
    peer = MulticlassJaccardIndex(num_classes=4, average="none", ignore_index=255)
    for prediction, truth in pairs:
        peer.update(torch.from_numpy(prediction).long(), torch.from_numpy(truth).long())
    np.testing.assert_allclose(matrix_of(pairs).iou(), peer.compute().numpy(), rtol=1e-6)


def test_precision_and_recall_agree_with_torchmetrics() -> None:
    pairs = random_pairs(ignore_prediction=0)
    options: dict[str, Any] = {"num_classes": 4, "average": "none", "ignore_index": 255}
    precision, recall = MulticlassPrecision(**options), MulticlassRecall(**options)
    for prediction, truth in pairs:
        for peer in (precision, recall):
            peer.update(torch.from_numpy(prediction).long(), torch.from_numpy(truth).long())
    np.testing.assert_allclose(matrix_of(pairs).precision(), precision.compute().numpy(), rtol=1e-6)
    np.testing.assert_allclose(matrix_of(pairs).recall(), recall.compute().numpy(), rtol=1e-6)


def test_precision_and_recall_of_classes_that_nobody_predicts_or_sees_are_undefined() -> None:
    result = score(matrix_of([(as_mask([0, 2, 255]), as_mask([0, 1, 1]))]), NAMES)
    # A predicted 255 is a missed pixel of the cat, and no prediction of any class.
    assert result["precision"] == {"background": 1, "cat": None, "dog": 0, "sofa": None}
    assert result["recall"] == {"background": 1, "cat": 0, "dog": None, "sofa": None}


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (40, 50), (0, 5)])
@pytest.mark.parametrize("classes", [1, 4, 255])
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_counts_agree_with_a_histogram_of_pairs(shape: tuple[int, int], classes: int, share: float) -> None:
    """Flat masks, masks with a few changes, and noise."""
    generator = np.random.default_rng(0)
    values = np.append(np.arange(classes), 255).astype(np.uint8)
    truth, prediction = (np.full(shape, generator.choice(values)) for _ in range(2))
    for mask in (truth, prediction):
        changed = generator.random(shape) < share
        mask[changed] = generator.choice(values, int(changed.sum()))
    table = np.zeros((256, 256), np.int64)
    np.add.at(table, (truth.ravel(), prediction.ravel()), 1)
    counts = matrix_of([(prediction, truth)], classes).counts
    np.testing.assert_array_equal(counts[:, :-1], table[:classes, :classes])
    np.testing.assert_array_equal(counts[:, -1], table[:classes, 255])


def test_masks_need_not_be_contiguous() -> None:
    prediction, truth = random_pairs(1)[0]
    expected = matrix_of([(prediction[::2, ::-1].copy(), truth[::2, ::-1].copy())])
    np.testing.assert_array_equal(
        matrix_of([(prediction[::2, ::-1], truth[::2, ::-1])]).counts, expected.counts
    )


def test_miou_is_global_and_not_a_mean_over_images() -> None:
    right, wrong = as_mask([0, 1, 1, 1]), as_mask([1])
    pairs = [(right, right), (as_mask([0]), wrong)]
    # Over all pixels: background 1/2, class 1 3/4. Per image it would be (1 + 0) / 2 and so on.
    assert matrix_of(pairs, 2).iou().tolist() == [0.5, 0.75]


def test_255_in_a_prediction_is_wrong_and_never_dropped() -> None:
    matrix = matrix_of([(as_mask([0, 255, 1, 255]), as_mask([0, 0, 1, 1]))], 2)
    assert matrix.iou().tolist() == [0.5, 0.5]
    assert matrix.accuracy() == matrix.coverage() == 0.5
    assert matrix.counts.tolist() == [[1, 0, 1], [0, 1, 1]]


def test_255_in_the_truth_is_dropped() -> None:
    matrix = matrix_of([(as_mask([0, 1, 1, 255]), as_mask([0, 255, 1, 255]))], 2)
    assert matrix.iou().tolist() == [1, 1]
    assert matrix.counts.sum() == 2


def test_kept_leaves_predictions_of_255_out() -> None:
    matrix = matrix_of([(as_mask([0, 255, 1, 0]), as_mask([0, 0, 1, 1]))], 2)
    assert matrix.kept().iou().tolist() == [0.5, 0.5]
    assert matrix.kept().coverage() == 1
    assert matrix.coverage() == 0.75


def test_a_class_without_ground_truth_is_left_out_of_the_mean_even_if_predicted() -> None:
    matrix = matrix_of([(as_mask([0, 1, 2, 2]), as_mask([0, 1, 1, 0]))])
    result = score(matrix, NAMES)
    assert result["absent"] == ["dog", "sofa"]
    assert result["per_class"] == {"background": 0.5, "cat": 0.5, "dog": None, "sofa": None}
    assert result["miou"] == 0.5


def test_a_missed_class_counts_as_zero() -> None:
    matrix = matrix_of([(as_mask([0, 0]), as_mask([0, 2]))])
    assert matrix.iou()[2] == 0
    assert matrix.miou() == pytest.approx(0.25)


def test_a_matrix_without_pixels_has_no_numbers() -> None:
    result = score(matrix_of([(as_mask([0]), as_mask([255]))]), NAMES)
    assert result["miou"] is result["accuracy"] is result["coverage"] is None
    assert result["images"] == 1
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_sum_of_matrices_is_the_matrix_of_all_images() -> None:
    pairs = random_pairs(4)
    merged = matrix_of(pairs[:1]) + matrix_of(pairs[1:])
    np.testing.assert_array_equal(merged.counts, matrix_of(pairs).counts)
    assert merged.images == 4


def test_large_images_do_not_overflow() -> None:
    prediction = np.full((3000, 1500), 20, np.uint8)
    matrix = matrix_of([(prediction, prediction)] * 2, 21)
    assert matrix.counts[20, 20] == 9_000_000


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (as_mask([0, 0]), as_mask([0, 0], [0, 0]), r"prediction is \(1, 2\).*ground truth \(2, 2\)"),
        (as_mask([0, 4]), as_mask([0, 0]), "prediction has the value 4, but the classes are 0..3"),
        (as_mask([0, 0]), as_mask([0, 200]), "ground truth has the value 200"),
        (np.zeros((1, 2), np.int64), as_mask([0, 0]), "prediction must be .*uint8, not .*int64"),
        (as_mask([0, 0]), np.zeros((1, 2, 3), np.uint8), r"ground truth must be \(H, W\)"),
    ],
)
def test_masks_that_cannot_be_scored_are_refused(prediction: Mask, truth: Mask, message: str) -> None:
    matrix = ConfusionMatrix(4)
    with pytest.raises(ValueError, match=message):
        matrix.update(prediction, truth)
    assert matrix.images == matrix.counts.sum() == 0


def test_wrong_numbers_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="between 1 and 255, not 256"):
        ConfusionMatrix(256)
    with pytest.raises(ValueError, match="cannot add matrices of 2 and 3 classes"):
        ConfusionMatrix(2) + ConfusionMatrix(3)
    with pytest.raises(ValueError, match="4 class names for a matrix of 2 classes"):
        score(ConfusionMatrix(2), NAMES)


def test_scoring_folders_gives_the_numbers_of_the_arrays(tmp_path: Path) -> None:
    pairs = random_pairs()
    predictions, truth = write_pairs(tmp_path, pairs)
    assert score_folder(predictions, truth, None, NAMES) == score(matrix_of(pairs), NAMES)
    assert score_folder(predictions, truth, ["1"], NAMES, progress=True) == score(
        matrix_of(pairs[1:2]), NAMES
    )


def test_boundaries_and_the_matrix_are_given_on_request(tmp_path: Path) -> None:
    pairs = random_pairs()
    predictions, truth = write_pairs(tmp_path, pairs)
    result = score_folder(predictions, truth, None, NAMES, boundary=True, confusion=True)
    scores = BoundaryScore(4)
    for prediction, true in pairs:
        scores.update(prediction, true)
    assert result.pop("boundary") == boundary_score(scores, NAMES)
    assert result.pop("confusion") == matrix_of(pairs).counts.tolist()
    assert result == score(matrix_of(pairs), NAMES)


def test_workers_do_not_change_the_result(tmp_path: Path) -> None:
    predictions, truth = write_pairs(tmp_path, random_pairs() * 7)
    alone = score_folder(predictions, truth, None, NAMES, boundary=True)
    assert alone["images"] == 21
    assert score_folder(predictions, truth, None, NAMES, boundary=True, workers=2) == alone


def test_pairs_may_lie_in_different_folders_with_different_names(tmp_path: Path) -> None:
    pairs = random_pairs(2)
    predictions, truth = write_pairs(tmp_path, pairs)
    (truth / "1.png").rename(tmp_path / "other.png")
    files = [(predictions / "0.png", truth / "0.png"), (predictions / "1.png", tmp_path / "other.png")]
    np.testing.assert_array_equal(confusion_of_pairs(files, 4).counts, matrix_of(pairs).counts)
    assert confusion_of_pairs([], 4, workers=2).images == 0


def test_255_can_be_read_as_background(tmp_path: Path) -> None:
    pairs = random_pairs()
    predictions, truth = write_pairs(tmp_path, pairs)
    expected = matrix_of([(np.where(p == 255, 0, p).astype(np.uint8), t) for p, t in pairs])
    result = score_folder(predictions, truth, None, NAMES, ignored_as_background=True)
    assert result == score(expected, NAMES)
    assert result["coverage"] == 1


def test_nested_ids_are_found(tmp_path: Path) -> None:
    predictions, truth = write_pairs(tmp_path, random_pairs(1))
    for folder in (predictions, truth):
        (folder / "cats").mkdir()
        (folder / "0.png").rename(folder / "cats" / "a.png")
    (predictions / "cats" / "._a.png").write_bytes(b"what macOS leaves")
    assert score_folder(predictions, truth, None, NAMES)["images"] == 1
    assert score_folder(predictions, truth, ["cats/a"], NAMES)["images"] == 1


def test_errors_name_the_file(tmp_path: Path) -> None:
    predictions, truth = write_pairs(tmp_path, random_pairs())
    with pytest.raises(UserError, match=r"predictions/9\.png: the predicted mask of image 9 is missing"):
        score_folder(predictions, truth, ["0", "9"], NAMES)
    with pytest.raises(UserError, match=r"predictions/\d\.png .*has the value 3, but the classes are 0\.\.2"):
        score_folder(predictions, truth, None, NAMES[:3])
    Image.fromarray(as_mask([0, 0])).save(truth / "1.png")
    with pytest.raises(UserError, match=r"predictions/1\.png .*truth/1\.png\): the prediction is \(8, 10\)"):
        score_folder(predictions, truth, None, NAMES)
    (truth / "2.png").unlink()
    with pytest.raises(UserError, match=r"truth/2\.png: the ground-truth mask of image 2 is missing"):
        score_folder(predictions, truth, ["2"], NAMES)
    with pytest.raises(UserError, match=r"truth/2\.png: the ground-truth mask"):
        score_folder(predictions, truth, ["0"] * 20 + ["2"], NAMES, workers=2)


def test_nothing_to_score_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no masks to score"):
        score_folder(tmp_path, tmp_path, None, NAMES)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        score_folder(tmp_path / "nowhere", tmp_path, None, NAMES)


def test_background_alone_is_no_score(tmp_path: Path) -> None:
    matrix = matrix_of([(as_mask([0, 0]), as_mask([0, 255]))], 2)
    result = score(matrix, NAMES[:2])
    assert (result["miou"], result["per_class"]["background"], result["absent"]) == (None, 1, ["cat"])
    head, reason, *_ = score_table(result).splitlines()
    assert head.startswith("mIoU undefined over 1 images, 1 of 2 classes")
    assert reason.startswith(
        "no class but the background has a true pixel (255 is not counted; the first class is"
    )
    assert (
        score(matrix_of([(as_mask([0]), as_mask([0]))], 1), NAMES[:1])["miou"] == 1
    )  # nothing else was asked


def test_a_run_that_shrank_its_photos_says_where_its_masks_are(tmp_path: Path) -> None:
    predictions, truth = write_pairs(tmp_path, [(as_mask([0]), as_mask([0, 0]))])
    with pytest.raises(UserError, match=r"; score masks that are as large as their photo$"):
        score_folder(predictions, truth, None, NAMES)
    copies = tmp_path / "resized/masks"
    copies.mkdir(parents=True)
    with pytest.raises(UserError, match=rf"\(data\.long_side\): score against its copies .* in {copies}, or"):
        score_folder(predictions, truth, None, NAMES)
