"""Signs of bad trainings and bad masks: each is told when it is there, and only then."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsss.data.dataset import Record
from wsss.data.files import Saliency, write_mask, write_saliency
from wsss.rundir import LABELS, MASKS, SALIENCY, RunDirectory
from wsss.stages import signs
from wsss.tasks.fit import rising_loss

NAMES = ("background", "cat", "dog")
SIZE = (8, 10)


def rows(*losses: float) -> list[dict[str, str]]:
    return [{"epoch": f"{epoch}", "train_loss": f"{loss:.5f}"} for epoch, loss in enumerate(losses, 1)]


def test_a_loss_that_rose_is_told() -> None:
    assert rising_loss(rows(0.7, 0.9, 0.6), "segmenter") == []
    assert rising_loss(rows(0.7), "segmenter") == []
    assert rising_loss(rows(0.7, 0.76), "segmenter") == []
    assert rising_loss(rows(0.7, 0.6, 0.9), "segmenter") == [
        "the training loss rose from 0.700 in epoch 1 to 0.900 in epoch 3: try a lower --segmenter.optimizer.lr"
    ]


def record(name: str, *labels: int) -> Record:
    return Record(name, Path(f"{name}.jpg"), labels, None)


def test_shares_are_of_the_labelled_photos() -> None:
    photos = [record("a", 1), record("b", 1, 2), replace(record("c"), labels=None), record("d")]
    assert signs.shares_of(photos, 2) == pytest.approx([2 / 3, 1 / 3])


def test_a_classifier_that_guesses_is_told() -> None:
    entropy = (0.56233514 + 0.37677016) / 2  # of a quarter: -(0.25 ln 0.25 + 0.75 ln 0.75), and of an eighth
    shares = [0.25, 0.125]
    assert signs.of_guessing(0.9 * entropy, None, shares, []) == []
    (sentence,) = signs.of_guessing(1.01 * entropy, None, shares, [])
    assert sentence.startswith(
        f"the classifier's loss is {1.01 * entropy:.3f}, and guessing gives {entropy:.3f}: "
    )
    assert "--classifier.weights imagenet" in sentence
    assert signs.of_guessing(0.9 * entropy, 0.4, shares, [0.2, 0.4, 0]) == []
    (sentence,) = signs.of_guessing(0.9 * entropy, 0.34, shares, [0.2, 0.4, 0])
    assert sentence.startswith(
        "the classifier's mAP on val is 0.34, and guessing gives 0.30: are the labels right?"
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


RAMP = np.tile(np.linspace(0, 1, SIZE[1]), (SIZE[0], 1))
"""Above half of its maximum in half of the photo."""


def write(run: RunDirectory, one: Record, mask: float, uncertain: float = 0.0, evidence: float = 1.0) -> None:
    """Maps of the labels, and a mask whose last columns, a share of ``mask``, are the first label."""
    labels = one.labels or ()
    maps = np.stack([evidence * RAMP] * len(labels)).astype(np.float16)
    write_saliency(run.saliency(one.id), Saliency(np.array(labels, np.int16), maps, SIZE))
    found = np.zeros(SIZE, np.uint8)
    found[:, round(SIZE[1] * (1 - mask)) :] = labels[0]
    write_mask(run.mask(LABELS, one.id), found)
    found[:, : round(SIZE[1] * uncertain)] = 255
    write_mask(run.mask(MASKS, one.id), found)


def of_masks(
    run: RunDirectory, photos: list[Record], absent: dict[int, tuple[int, int]] | None = None
) -> list[str]:
    return signs.of_masks(photos, run, SALIENCY, absent or {}, NAMES)


def test_good_masks_are_not_told(run: RunDirectory) -> None:
    photos = [record(f"{index}", 1 + index % 2) for index in range(8)]
    for one in photos:
        write(run, one, mask=0.4, uncertain=0.2)
    assert of_masks(run, photos, {1: (2, 4), 2: (0, 4)}) == []
    assert signs.of_maps(photos, run, NAMES) == []


@pytest.mark.parametrize(
    ("mask", "uncertain", "told"),
    [
        (0.0, 0.0, ["38% of the masks are all background", "in the masks these objects are much smaller"]),
        (1.0, 0.0, []),
        (0.4, 1.0, ["38% of the masks are all 255, so they teach nothing: try --refine.uncertainty none"]),
    ],
)
def test_masks_without_content_are_told(
    run: RunDirectory, mask: float, uncertain: float, told: list[str]
) -> None:
    """Of three of eight photos, the only ones with a cat."""
    photos = [record(f"{index}", 1 if index < 3 else 2) for index in range(8)]
    for one in photos:
        write(run, one, *((mask, uncertain) if one.labels == (1,) else (0.4, 0.0)))
    found = of_masks(run, photos)
    assert len(found) == len(told)
    assert all(sentence.startswith(start) for sentence, start in zip(found, told, strict=True))
    if len(found) == 2:
        assert "cat (0.0% of the photo, 50.0% in the maps); try --refine.background.rule" in found[1]


def test_masks_without_background_are_told(run: RunDirectory) -> None:
    photos = [record(f"{index}", 1) for index in range(4)]
    for index, one in enumerate(photos):
        write(run, one, 1.0 if index else 0.4)
    (sentence,) = of_masks(run, photos)
    assert sentence.startswith(
        "75% of the masks have no background: is the background too weak? Try --refine"
    )


def test_a_class_that_its_masks_lack_is_told(run: RunDirectory) -> None:
    photos = [record("a", 1)]
    write(run, photos[0], 0.4)
    (sentence,) = of_masks(run, photos, {1: (3, 4), 2: (2, 4)})
    assert (
        sentence == "most masks of photos with the label cat (3 of 4) lack the class: are these labels right?"
    )


def test_empty_maps_are_told(run: RunDirectory) -> None:
    photos = [record(f"{index}", 1 + index % 2) for index in range(8)]
    for one in photos:
        write(run, one, 0.4, evidence=0.0 if one.id in ("1", "3") else 1.0)
    (sentence,) = signs.of_maps(photos, run, NAMES)
    assert sentence.startswith(
        "25% of the maps are empty (most often dog 2), because the classifier sees no evidence"
    )


def test_predictions_of_one_class_are_told() -> None:
    empty, mixed = np.zeros(SIZE, np.uint8), np.eye(*SIZE, dtype=np.uint8)
    assert signs.of_predictions([empty] * 9 + [mixed], NAMES) == []
    assert signs.of_predictions([], NAMES) == []
    (sentence,) = signs.of_predictions([empty] * 19 + [mixed], NAMES)
    assert sentence.startswith(
        "the segmenter predicts nothing but background on 19 of 20 photos: look at its masks"
    )
    (sentence,) = signs.of_predictions([empty + 2], NAMES)
    assert "nothing but dog on 1 of 1" in sentence
