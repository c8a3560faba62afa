from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wsss.metrics.boundary import BoundaryScore
from wsss.metrics.confusion import ConfusionMatrix
from wsss.metrics.segmentation import boundary_score, score
from wsss.metrics.table import NO_ANSWER, confusion_table, score_table, top_confusions

NAMES = ("background", "cat", "dog")


@pytest.fixture
def result() -> dict[str, Any]:
    """Background 2 of 4 right; cat 1 of 4; no dog in the truth."""
    truth = np.array([[0, 0, 0, 0, 1, 1, 1, 1]], np.uint8)
    prediction = np.array([[0, 0, 1, 255, 1, 2, 2, 0]], np.uint8)
    matrix, boundary = ConfusionMatrix(3), BoundaryScore(3)
    matrix.update(prediction, truth)
    boundary.update(truth, truth)
    return {
        **score(matrix, NAMES),
        "boundary": boundary_score(boundary, NAMES),
        "confusion": matrix.counts.tolist(),
    }


def test_the_table_has_a_row_for_each_class(result: dict[str, Any]) -> None:
    rows = score_table(result).splitlines()
    assert rows[0] == "mIoU 30.00 % over 1 images, 2 of 3 classes, boundary F 100.00 %"
    assert rows[1].split() == ["IoU", "precision", "recall", "boundary", "F"]
    assert rows[2].split() == ["background", "40.00", "66.67", "50.00", "100.00"]
    assert rows[3].split() == ["cat", "20.00", "50.00", "25.00", "100.00"]
    assert rows[4].split() == ["dog", "absent"]
    assert rows[5] == "pixels with an answer (not 255): 87.50 %"
    assert len(rows) == 6


def test_boundaries_and_confusions_are_left_out_unless_asked_for(result: dict[str, Any]) -> None:
    del result["boundary"]
    assert "boundary" not in score_table(result)
    assert "cat                  as dog                    50.00 % of its pixels" in score_table(result, True)


def test_confusions_are_shares_of_the_true_class_and_fall(result: dict[str, Any]) -> None:
    found = top_confusions(result["confusion"], NAMES, 10)
    assert found == [
        (0.5, "cat", "dog"),
        (0.25, "background", "cat"),
        (0.25, "background", NO_ANSWER),
        (0.25, "cat", "background"),
    ]
    assert top_confusions(result["confusion"], NAMES, 1) == found[:1]


def test_right_masks_have_no_confusions(result: dict[str, Any]) -> None:
    result["confusion"] = [[4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0]]
    assert confusion_table(result) == ["no pixel is confused with another class"]


def test_without_pixels_the_table_says_so() -> None:
    assert score_table(score(ConfusionMatrix(3), NAMES)).startswith("mIoU undefined over 0 images, 0 of 3")
