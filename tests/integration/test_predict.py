"""``wsss predict`` on photos as people have them: formats, orientation, sizes, and continuing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.config import SegmenterConfig
from wsss.data.names import RECORD
from wsss.tasks.segmentation import new_task

CLASSES = ("background", "disc", "square")


@pytest.fixture
def predict(command: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Calls ``wsss predict WORDS...`` in float32."""
    monkeypatch.setattr("wsss.runtime.cpu_has_bf16", lambda: False)
    return lambda *words: command("predict", *words, "--checkpoint", checkpoint, "--accelerator", "cpu")


@pytest.fixture(scope="module")
def scene() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(60, 90, 3) without any symmetry."""
    y, x = np.mgrid[:60, :90]
    pixels = np.stack([x * 2, y * 4, (x * y) % 251], axis=-1).astype(np.uint8)
    pixels[10:25, 50:80] = (230, 20, 40)
    return pixels


def read(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.asarray(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_predicted_upright_whatever_their_exif_orientation(
    predict: Any, scene: np.ndarray[Any, Any], tmp_path: Path, orientation: int
) -> None:
    turn = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Image.Transpose that undoes it
    upright = Image.fromarray(scene)
    stored = upright if turn is None else upright.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    done = predict(tmp_path / "turned.png", tmp_path / "upright.png", "--output", tmp_path / "m")
    assert done.status == 0, done.err
    np.testing.assert_array_equal(read(tmp_path / "m" / "turned.png"), read(tmp_path / "m" / "upright.png"))


def test_every_kind_of_pixel_is_predicted_as_what_it_shows(
    predict: Any, scene: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    grey = scene[..., 0]
    photos = {
        "rgb.png": Image.fromarray(scene),
        "rgba.png": Image.fromarray(np.dstack([scene, np.full(grey.shape, 255, np.uint8)])),
        "rgb.tif": Image.fromarray(scene),
        "grey.png": Image.fromarray(grey),
        "grey_in_rgb.png": Image.fromarray(np.repeat(grey[..., None], 3, 2)),
        "sixteen.png": Image.fromarray(grey.astype(np.uint16) * 256 + 77),
        "cmyk.tif": Image.fromarray(scene).convert("CMYK"),
        "cmyk_in_rgb.png": Image.fromarray(scene).convert("CMYK").convert("RGB"),
    }
    for name, image in photos.items():
        folder = tmp_path / name.rpartition(".")[2]
        folder.mkdir(exist_ok=True)
        image.save(folder / name)
    for folder in ("png", "tif"):
        assert predict(tmp_path / folder, "--output", tmp_path / "m" / folder).status == 0
    masks = {name: read(tmp_path / "m" / name[-3:] / f"{name[:-4]}.png") for name in photos}
    for one, other in (
        ("rgb.png", "rgba.png"),
        ("rgb.png", "rgb.tif"),
        ("grey.png", "grey_in_rgb.png"),
        ("grey.png", "sixteen.png"),
        ("cmyk.tif", "cmyk_in_rgb.png"),
    ):
        np.testing.assert_array_equal(masks[one], masks[other], err_msg=f"{one} {other}")
    assert (masks["rgb.png"] != masks["grey.png"]).any()


def test_the_classes_and_what_made_the_masks_are_recorded_beside_them(
    predict: Any, checkpoint: Path, scene: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    Image.fromarray(scene).save(tmp_path / "a.png")
    done = predict(tmp_path / "a.png", "--output", tmp_path / "m", "--long_side", 50)
    assert "weakly supervised" not in done.out
    record = json.loads((tmp_path / "m" / "predictions.json").read_text())
    assert tuple(record["classes"]) == CLASSES
    assert record["checkpoint"] == str(checkpoint)
    assert record["mask_pretraining"] is False
    assert record["options"]["long_side"] == 50


def test_masks_of_a_segmenter_whose_backbone_saw_masks_say_so(
    command: Any, mask_pretrained: Path, scene: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    Image.fromarray(scene).save(tmp_path / "a.png")
    words = ["--checkpoint", mask_pretrained, "--output", tmp_path / "m", "--accelerator", "cpu"]
    done = command("predict", tmp_path / "a.png", *words)
    said = "not weakly supervised: the segmenter's backbone may have seen masks"
    assert done.out.splitlines()[-1] == said
    assert json.loads((tmp_path / "m" / "predictions.json").read_text())["mask_pretraining"] is True


def test_probabilities_belong_to_the_mask(predict: Any, scene: np.ndarray[Any, Any], tmp_path: Path) -> None:
    Image.fromarray(scene).save(tmp_path / "a.png")
    done = predict(tmp_path / "a.png", "--output", tmp_path / "m", "--probabilities")
    assert done.status == 0, done.err
    with np.load(tmp_path / "m" / "a.npz", allow_pickle=False) as archive:
        probabilities, classes = archive["probabilities"], archive["classes"]
    assert (probabilities.dtype, probabilities.shape) == (np.float16, (3, 60, 90))
    assert tuple(classes) == CLASSES
    np.testing.assert_allclose(probabilities.astype(np.float32).sum(0), 1, atol=2e-3)
    assert (probabilities.argmax(0) == read(tmp_path / "m" / "a.png")).mean() > 0.99  # float16 makes ties


def test_the_table_counts_photos_of_each_class(
    predict: Any, scene: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    Image.fromarray(scene).save(tmp_path / "a.png")
    Image.fromarray(scene[::-1].copy()).save(tmp_path / "b.png")
    done = predict(tmp_path / "a.png", tmp_path / "b.png", "--output", tmp_path / "m")
    head, _, *rows = done.out.splitlines()
    assert head == f"2 photos predicted, masks in {tmp_path / 'm'}"
    masks = [read(tmp_path / "m" / f"{name}.png") for name in "ab"]
    expected = [
        [str(index), name, str(sum(bool((mask == index).any()) for mask in masks))]
        for index, name in enumerate(CLASSES)
        if any((mask == index).any() for mask in masks)
    ]
    assert [row.split() for row in rows] == expected


def test_skip_existing_keeps_whole_results_and_completes_the_others(
    predict: Any, scene: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    for name in "abc":
        Image.fromarray(scene).save(tmp_path / f"{name}.png")
    photos = [tmp_path / f"{name}.png" for name in "abc"]
    output = tmp_path / "m"
    output.mkdir()
    for name in ("a.png", "a_overlay.jpg", "b.png"):  # of b the overlay is missing
        (output / name).write_text("kept")
    refused = predict(*photos, "--output", output, "--overlay", "--skip_existing")
    assert "b.png exists, and wsss predict did not write it" in refused.sentence
    assert (output / "b.png").read_text() == "kept"
    (output / RECORD).write_text("{}")
    done = predict(*photos, "--output", output, "--overlay", "--skip_existing")
    assert done.out.startswith(f"2 photos predicted, masks in {output}; 1 were there already")
    assert (output / "a.png").read_text() == "kept"
    np.testing.assert_array_equal(read(output / "b.png"), read(output / "c.png"))
    assert predict(*photos, "--output", output).out.startswith("3 photos predicted")
    np.testing.assert_array_equal(read(output / "a.png"), read(output / "c.png"))


def test_tags_that_cannot_be_used_delete_no_mask(
    predict: Any, scene: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    Image.fromarray(scene).save(tmp_path / "a.png")
    words = [tmp_path / "a.png", "--output", tmp_path / "m"]
    assert predict(*words).status == 0
    assert "gone.csv does not exist" in predict(*words, "--tags", tmp_path / "gone.csv").sentence
    (tmp_path / "tags.csv").write_text("image,labels\nb,disc\n")
    assert (
        "tags.csv names none of the photos (a)" in predict(*words, "--tags", tmp_path / "tags.csv").sentence
    )
    assert (tmp_path / "m" / "a.png").is_file()


def test_a_kept_mask_of_other_classes_is_one_sentence(
    predict: Any, scene: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    Image.fromarray(scene).save(tmp_path / "a.png")
    (tmp_path / "m").mkdir()
    Image.fromarray(np.full((60, 90), 20, np.uint8)).save(tmp_path / "m" / "a.png")
    words = [tmp_path / "a.png", "--output", tmp_path / "m", "--skip_existing", "--review"]
    assert "m/a.png holds the class index 20, but the segmenter has 2 classes" in predict(*words).sentence


def test_skip_existing_refuses_masks_of_another_network_or_other_options(
    predict: Any, command: Any, scene: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    Image.fromarray(scene).save(tmp_path / "a.png")
    words = [tmp_path / "a.png", "--output", tmp_path / "m"]
    assert predict(*words).status == 0
    assert predict(*words, "--skip_existing", "--overlay").status == 0
    refused = predict(*words, "--skip_existing", "--crf", "--tile", 128, "--long_side", 40)
    assert refused.status == 1
    assert (
        f"the masks in {tmp_path / 'm'} were made with a different --crf and --tile and --long_side"
        in refused.err
    )
    torch.manual_seed(1)
    task = new_task(SegmenterConfig(architecture="light", weights="none"), CLASSES)
    torch.save({"hyper_parameters": dict(task.hparams), "state_dict": task.state_dict()}, tmp_path / "b.ckpt")
    refused = command("predict", *words, "--skip_existing", "--checkpoint", tmp_path / "b.ckpt")
    assert refused.status == 1
    assert "were made with a different --checkpoint" in refused.err


def test_cut_off_with_other_options_it_leaves_no_mask_of_before(
    predict: Any, scene: np.ndarray[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    Image.fromarray(scene).save(tmp_path / "a.png")
    words = [tmp_path / "a.png", "--output", tmp_path / "m"]
    assert predict(*words).status == 0
    with monkeypatch.context() as patch:
        patch.setattr("wsss.predict.read_image", interrupt)
        assert predict(*words, "--crf").status == 130
    assert predict(*words, "--crf", "--skip_existing").out.startswith("1 photos predicted")


def test_an_interrupted_prediction_says_how_to_continue(
    predict: Any, scene: np.ndarray[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    Image.fromarray(scene).save(tmp_path / "a.png")
    monkeypatch.setattr("wsss.predict.read_image", interrupt)
    done = predict(tmp_path / "a.png", "--output", tmp_path / "m")
    assert done.status == 130
    assert "interrupted; the same command with --skip_existing continues" in done.err


def test_large_photos_are_tiled_and_crf_and_long_side_keep_their_size(
    predict: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsss.predict.OVERLAY_SIDE", 111)
    y, x = np.mgrid[:200, :333]
    Image.fromarray(np.stack([x % 256, y, (x + y) % 256], -1).astype(np.uint8)).save(tmp_path / "a.png")
    for words in (["--tile", 128], ["--tile", 128, "--crf"], ["--long_side", 100, "--overlay"]):
        done = predict(tmp_path / "a.png", "--output", tmp_path / "m", *words)
        assert done.status == 0, done.err
        assert read(tmp_path / "m" / "a.png").shape == (200, 333)
    with Image.open(tmp_path / "m" / "a_overlay.jpg") as overlay:
        assert overlay.width == 111
        assert overlay.height > 67  # the legend is below


def test_bf16_can_be_turned_off(
    predict: Any, scene: np.ndarray[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(scene).save(tmp_path / "a.png")
    found = []
    for fast, words in ((False, []), (True, ["--precision", "float32"]), (True, [])):
        monkeypatch.setattr("wsss.runtime.cpu_has_bf16", lambda fast=fast: fast)
        output = tmp_path / f"m{len(found)}"
        assert predict(tmp_path / "a.png", "--output", output, "--probabilities", *words).status == 0
        found.append(np.load(output / "a.npz")["probabilities"])
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize(
    ("words", "part"),
    [(["--tile", "64"], "--tile is 64, but a tile needs"), (["--long_side", "-1"], "--long_side is -1")],
)
def test_impossible_sizes_are_one_sentence(
    predict: Any, scene: np.ndarray[Any, Any], tmp_path: Path, words: list[str], part: str
) -> None:
    Image.fromarray(scene).save(tmp_path / "a.png")
    assert part in predict(tmp_path / "a.png", "--output", tmp_path / "m", *words).sentence


def test_masks_below_the_photos_are_no_photos(
    predict: Any, scene: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    Image.fromarray(scene).save(tmp_path / "a.jpg")
    for words in (["masks"], ["masks", "--skip_existing"], ["others"]):
        done = predict(tmp_path, "--output", tmp_path / words[0], *words[1:])
        assert done.status == 0, done.err
        assert [path.name for path in (tmp_path / words[0]).rglob("*.png")] == ["a.png"]


def test_masks_never_replace_photos_whatever_else_is_written(
    predict: Any, scene: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    Image.fromarray(scene).save(tmp_path / "a.png")
    assert "would be overwritten" in predict(tmp_path, "--output", tmp_path, "--probabilities").sentence


def test_processes_make_what_one_makes(predict: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    for number in range(3):
        pixels = generator.integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "x.jpg").write_bytes(b"no photo")
    for many, output in ((99, "one"), (2, "several")):
        monkeypatch.setattr("wsss.predict.MANY", many)
        monkeypatch.setattr("wsss.runtime.workers", lambda _: 2)
        done = predict(tmp_path, "--output", tmp_path / output, "--precision", "float32", "--crf")
        assert "1 of 4 photos could not be read" in done.sentence
    for number in range(3):
        one, several = (read(tmp_path / output / f"{number}.png") for output in ("one", "several"))
        np.testing.assert_array_equal(several, one)
