"""`wsss predict --unsure, --tags, --review`: where the network is not sure, and what to look at first."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wsss
from wsss.data.files import read_mask


@pytest.fixture
def photos(shapes: Path) -> list[Path]:
    return sorted(shapes.glob("JPEGImages/*"))[:4]


@pytest.fixture
def predict(finished: Path, photos: list[Path], tmp_path: Path, command: Any) -> Any:
    def call(*words: object, folder: str = "m") -> Path:
        given = [*photos, "--checkpoint", finished, "--output", tmp_path / folder, "--accelerator", "cpu"]
        done = command("predict", *given, *words)
        assert done.status == 0, done.err
        return tmp_path / folder

    return call


def best_of(folder: Path, name: str) -> tuple[Any, Any]:
    with np.load(folder / f"{name}.npz") as stored:
        probabilities = stored["probabilities"].astype(np.float32)
    return probabilities.max(0), probabilities.argmax(0)


def test_pixels_below_a_probability_are_not_decided(predict: Any, photos: list[Path], finished: Path) -> None:
    folder = predict("--probabilities")
    limit = float(np.median(np.concatenate([best_of(folder, photo.stem)[0].ravel() for photo in photos])))
    unsure = predict("--unsure", limit, folder="u")
    for photo in photos:
        best, labels = best_of(folder, photo.stem)
        mask = read_mask(unsure / f"{photo.stem}.png")
        clear = np.abs(best - limit) > 2e-3  # the stored ones are float16
        expected = np.where(best < limit, 255, labels)
        assert np.array_equal(mask[clear], expected[clear])
        assert 255 in mask or best.min() >= limit - 2e-3
        from_python = wsss.load(finished, device="cpu").predict(photo, unsure=limit)
        assert np.array_equal(from_python.mask, mask)
        assert 255 not in from_python.found


def test_a_photo_has_only_the_classes_of_its_tags(
    predict: Any, photos: list[Path], tmp_path: Path, finished: Path
) -> None:
    classes = wsss.load(finished, device="cpu").classes
    rows = [f"{photos[0].stem},{classes[2]};{classes[3]}", f"{photos[1].stem},"]
    (tmp_path / "tags.csv").write_text("image,labels\n" + "\n".join(rows) + "\n")
    plain = predict("--probabilities")
    folder = predict("--probabilities", "--tags", tmp_path / "tags.csv", "--review", folder="t")
    for photo, allowed in zip(photos, ([0, 2, 3], [0], None, None), strict=True):
        mask = read_mask(folder / f"{photo.stem}.png")
        if allowed is None:
            assert np.array_equal(mask, read_mask(plain / f"{photo.stem}.png"))
            continue
        assert set(np.unique(mask)) <= set(allowed)
        with np.load(plain / f"{photo.stem}.npz") as before, np.load(folder / f"{photo.stem}.npz") as after:
            expected = before["probabilities"].astype(np.float32)
            expected[[index for index in range(len(expected)) if index not in allowed]] = 0
            np.testing.assert_allclose(after["probabilities"], expected / expected.sum(0), atol=5e-3)
    rows_by = {row["image"]: row for row in csv.DictReader((folder / "review.csv").open())}
    missing = [
        name
        for name in (classes[2], classes[3])
        if classes.index(name) not in read_mask(folder / f"{photos[0].stem}.png")
    ]
    assert rows_by[photos[0].stem]["problem"] == (f"no pixel of {', '.join(missing)}" if missing else "")


def test_the_review_has_the_least_certain_first(predict: Any, photos: list[Path]) -> None:
    folder = predict("--review", "--probabilities")
    rows = list(csv.DictReader((folder / "review.csv").open()))
    assert {row["image"] for row in rows} == {photo.stem for photo in photos}
    values = [float(row["confidence"]) for row in rows]
    assert values == sorted(values)
    for row in rows:
        best, _ = best_of(folder, row["image"])
        assert float(row["confidence"]) == pytest.approx(best.mean(), abs=2e-3)
    (folder / f"{photos[0].stem}.png").unlink()
    again = predict("--review", "--probabilities", "--skip_existing")
    assert len(list(csv.DictReader((again / "review.csv").open()))) == len(photos)


def test_other_tags_are_other_masks(
    predict: Any, finished: Path, photos: list[Path], tmp_path: Path, command: Any
) -> None:
    folder = predict("--unsure", 0.5)
    given = [*photos, "--checkpoint", finished, "--output", folder, "--accelerator", "cpu", "--skip_existing"]
    assert "were made with a different --unsure" in command("predict", *given).sentence
    refused = command("predict", *given, "--unsure", 1.5).sentence
    assert "--unsure is 1.5, but must be a probability above 0 and at most 1" in refused
    tags = tmp_path / "tags.csv"
    tags.write_text(f"image,labels\n{photos[0].stem},\n")
    tagged = [*photos, "--checkpoint", finished, "--output", tmp_path / "y", "--accelerator", "cpu", "--tags"]
    assert command("predict", *tagged, tags).status == 0
    assert command("predict", *tagged, tags.rename(tmp_path / "same.csv"), "--skip_existing").status == 0
    tags.write_text(f"image,labels\n{photos[0].stem},\n{photos[1].stem},\n")
    assert (
        "were made with a different --tags" in command("predict", *tagged, tags, "--skip_existing").sentence
    )
    (tmp_path / "tags.csv").write_text(f"image,labels\n{photos[0].stem},unicorn\n")
    words = [*photos, "--checkpoint", finished, "--output", tmp_path / "x", "--tags", tmp_path / "tags.csv"]
    assert "unicorn" in command("predict", *words).sentence
