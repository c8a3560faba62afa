"""`wsss.load`: a run from Python."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wsss
from wsss.data.files import read_image, read_mask
from wsss.errors import UserError
from wsss.inference import Prediction, Run, Shaping, read_picture


@pytest.fixture
def photo(shapes: Path) -> Path:
    return sorted(shapes.glob("JPEGImages/*"))[0]


@pytest.fixture(scope="module")
def loaded(finished: Path) -> Run:
    return wsss.load(finished, device="cpu")


def test_masks_are_those_of_the_command(
    loaded: Run, finished: Path, photo: Path, tmp_path: Path, command
) -> None:
    words = ["--checkpoint", finished, "--output", tmp_path, "--accelerator", "cpu", "--probabilities"]
    assert command("predict", photo, *words).status == 0
    result = loaded.predict(str(photo))
    assert isinstance(result, Prediction)
    assert np.array_equal(result.mask, read_mask(tmp_path / f"{photo.stem}.png"))
    assert result.classes == loaded.classes
    assert result.classes[0] == "background"
    with np.load(tmp_path / f"{photo.stem}.npz") as stored:
        np.testing.assert_allclose(result.probabilities, stored["probabilities"], atol=1e-3)
    assert result.probabilities.dtype == np.float32
    assert np.array_equal(result.probabilities.argmax(0), result.mask)
    assert set(result.found) == {result.classes[index] for index in np.unique(result.mask)} - {"background"}


def test_a_photo_is_a_path_an_image_or_pixels(loaded: Run, photo: Path) -> None:
    pixels = read_image(photo)
    results = loaded.predict([photo, Image.open(photo), pixels])
    assert isinstance(results, list)
    assert all(np.array_equal(one.mask, results[0].mask) for one in results)
    flipped = loaded.predict(np.flip(pixels, 1))  # not contiguous
    assert flipped.mask.shape == pixels.shape[:2]


def test_pictures_of_pillow_are_read_as_files_are(photo: Path, tmp_path: Path) -> None:
    """Turned, with transparency on white; and what is damaged is one sentence."""
    pixels = np.array(Image.open(photo).convert("RGB"))
    alpha = np.zeros((*pixels.shape[:2], 1), np.uint8)
    Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    for name in ("clear.png", "turned.png"):
        path = tmp_path / name
        assert np.array_equal(read_picture(Image.open(path)), read_image(path))
    (tmp_path / "cut.jpg").write_bytes(photo.read_bytes()[:900])
    with pytest.raises(UserError, match="the photo cannot be decoded"):
        read_picture(Image.open(tmp_path / "cut.jpg"))


def test_options_are_those_of_the_command(loaded: Run, photo: Path) -> None:
    plain, best = loaded.predict(photo), loaded.predict(photo, ms_flip=True, scales=(0.5, 1.0), crf=True)
    assert best.mask.shape == plain.mask.shape
    assert not np.allclose(best.probabilities, plain.probabilities)
    with pytest.raises(UserError, match="predict: flipped has no effect here; the options are ms_flip"):
        loaded.predict(photo, flipped=True)


def test_maps_are_those_of_the_command(
    loaded: Run, finished: Path, photo: Path, tmp_path: Path, command
) -> None:
    figure, method = tmp_path / "why.png", "multiscale(gradcam, scales=(1, 1.5))"
    words = ["--checkpoint", finished, "--accelerator", "cpu", "--class", "ball", "--output", figure]
    assert command("explain", photo, *words, "--method", method).status == 0
    raw = np.load(tmp_path / "why.npy")[0, 0]
    found = loaded.explain(photo, "ball", method=method)
    assert (found.dtype, found.shape) == (np.float32, raw.shape)
    assert 0 <= found.min() <= found.max() <= 1
    np.testing.assert_allclose(found, raw / max(raw.max(), 1e-12), atol=1e-5)


def test_large_photos_are_shrunk_for_their_maps(
    finished: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsss.explain.LONGEST_SIDE", 48)
    run, sizes = wsss.load(finished, device="cpu"), []
    picture = Image.open(photo).resize((96, 72))
    run.explain(picture, "ball")
    assert run._subject is not None
    run._subject.network.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape[2:])))
    found = run.explain(picture, "ball")
    assert (found.shape, set(sizes)) == ((72, 96), {(36, 48)})


def test_a_checkpoint_is_enough(finished: Path, photo: Path) -> None:
    run = wsss.load(finished / "segmenter" / "last.ckpt", device="cpu")
    assert run.predict(photo).mask.shape == read_image(photo).shape[:2]
    with pytest.raises(UserError, match="classifier checkpoint is needed"):
        run.explain(photo, "ball")
    assert wsss.load(finished / "classifier" / "last.ckpt", device="cpu").explain(photo, "ball").max() <= 1


def test_threads_share_a_run(finished: Path, shapes: Path, checkpoint: Path) -> None:
    """Many at once, with several options, while others explain: the same as one after the other."""
    photos = sorted(shapes.glob("JPEGImages/*"))[:6]
    words: list[Shaping] = [{}, {"ms_flip": True, "scales": (0.5, 1.0)}, {"unsure": 0.36}, {"crf": True}]
    jobs = [(photo, options) for photo in photos for options in words]
    run, alone = wsss.load(checkpoint, device="cpu"), wsss.load(checkpoint, device="cpu")
    why, why_alone = wsss.load(finished, device="cpu"), wsss.load(finished, device="cpu")
    maps = [why_alone.explain(photo, "ball") for photo in photos]
    expected = [alone.predict(photo, **options) for photo, options in jobs]
    assert len({one.mask.tobytes() for one in expected}) > len(photos)  # not all the same
    with ThreadPoolExecutor(8) as pool:  # networks are read by whichever comes first
        masks = [pool.submit(run.predict, photo, **options) for photo, options in jobs]
        explained = [pool.submit(why.explain, photo, "ball") for photo in photos]
        again = [pool.submit(lambda one: one.probabilities, future.result()) for future in masks[:4]]
    for future, one in zip(masks, expected, strict=True):
        assert np.array_equal(future.result().mask, one.mask)
        assert (future.result().confidence, future.result().per_class) == (one.confidence, one.per_class)
    for future, map_ in zip(explained, maps, strict=True):
        np.testing.assert_allclose(future.result(), map_, atol=1e-6)
    for future, one in zip(again, expected[:4], strict=True):
        np.testing.assert_allclose(future.result(), one.probabilities, atol=1e-6)


def test_the_confidence_is_the_mean_of_the_highest_probabilities(loaded: Run, photo: Path) -> None:
    result = loaded.predict(photo)
    best = result.probabilities.max(0)
    assert result.confidence == pytest.approx(best.mean(), abs=1e-5)
    assert set(result.per_class) == {"background", *result.found}
    for name, value in result.per_class.items():
        assert value == pytest.approx(best[result.mask == result.classes.index(name)].mean(), abs=1e-5)


@pytest.mark.parametrize(
    ("image", "kind"),
    [(np.zeros((4, 5, 4), np.uint8), r"uint8 \(4, 5, 4\)"), (np.zeros((4, 5, 3)), r"float64"), (7, "int")],
)
def test_what_is_no_photo_is_refused(loaded: Run, image: object, kind: str) -> None:
    with pytest.raises(UserError, match=f"a photo is a path, a PIL image or uint8 .* not {kind}"):
        loaded.predict(image)  # type: ignore[call-overload]


def test_errors_name_what_is_wrong(loaded: Run, photo: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; give a run directory or a checkpoint"):
        wsss.load(tmp_path / "gone")
    with pytest.raises(UserError, match="device is mps, but must be auto, cpu or cuda"):
        wsss.load(tmp_path, device="mps")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="there is no class 'bal'; did you mean ball"):
        loaded.explain(photo, "bal")
    with pytest.raises(UserError, match="there is no checkpoint"):
        wsss.load(tmp_path).predict(photo)
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        wsss.lod  # noqa: B018


def test_importing_the_package_is_light() -> None:
    code = "import sys, wsss; print(sorted({'torch', 'numpy', 'lightning', 'cv2'} & set(sys.modules)), dir(wsss))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[]")
