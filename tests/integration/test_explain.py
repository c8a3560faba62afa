"""`wsss explain`: figure, raw maps and crops of one photo, as a user calls it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image
from torch import nn
from torchvision import models

from wsss.config import ClassifierConfig
from wsss.data.files import read_image
from wsss.data.transforms import normalize_image, to_tensor
from wsss.explain import _top_classes
from wsss.models.imagenet_classifier import imagenet_classes
from wsss.saliency import GlobalGuidanceCAM, GradCAM, upsample
from wsss.tasks.classification import new_task

Outcome = Any
CLASSES = ("red", "blue", "green square")
SESS = "sess(gradcam, window=64, step=48, scales=(64, 96), prefilter=0.4)"


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 x 80 pixels."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return models.resnet18(weights=None).eval()


@pytest.fixture(scope="module")
def weights(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three classes, untrained, as Lightning saves it."""
    torch.manual_seed(0)
    task = new_task(ClassifierConfig(architecture="resnet18", weights="none"), CLASSES)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(task)
    path = tmp_path_factory.mktemp("classifier") / "last.ckpt"
    trainer.save_checkpoint(path, weights_only=True)
    return path


@pytest.fixture
def explain(photo: Path, weights: Path, tmp_path: Path, command: Any) -> Callable[..., Outcome]:
    """`wsss explain` of the photo with the random ImageNet network; the figure is `why.png`."""

    def call(*words: object) -> Outcome:
        model = ["--architecture", "resnet18", "--weights", weights, "--accelerator", "cpu"]
        return command("explain", photo, *model, "--output", tmp_path / "why.png", *words)

    return call


def test_maps_are_those_of_the_methods_row_by_row(
    explain: Any, photo: Path, network: nn.Module, tmp_path: Path
) -> None:
    methods = ("--method", "gradcam", "--method", "global_guidance@layer3")
    done = explain(*methods, "--class", "golden retriever", "--class", "517")
    assert done.status == 0, done.err
    maps = np.load(tmp_path / "why.npy", allow_pickle=False)
    assert (maps.shape, maps.dtype) == ((2, 2, 80, 100), np.float32)
    image = normalize_image(to_tensor(read_image(photo)))[None]
    targets = torch.tensor([[0, 207], [0, 517]])
    for found, method in zip(maps, (GradCAM("layer4"), GlobalGuidanceCAM("layer3")), strict=True):
        expected = upsample(method(network, image, targets), (80, 100)).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6 * expected.max())
    with Image.open(tmp_path / "why.png") as figure:
        assert figure.format == "PNG"
        assert figure.width > 3 * 240  # photo and two overlays, enlarged
    assert str(tmp_path / "why.npy") in done.out


def test_without_a_class_the_most_probable_one_is_explained(
    explain: Any, photo: Path, network: nn.Module, tmp_path: Path
) -> None:
    image = normalize_image(to_tensor(read_image(photo)))[None]
    with torch.no_grad():
        probability, index = network(image)[0].softmax(0).max(0)
    done = explain()
    assert f"most probable: {imagenet_classes()[int(index)]} {probability:.3f}" in done.out
    best = np.load(tmp_path / "why.npy")
    assert explain("--class", str(int(index))).status == 0
    np.testing.assert_array_equal(np.load(tmp_path / "why.npy"), best)


def test_of_a_multi_label_classifier_all_probable_classes_are_explained_up_to_five() -> None:
    assert _top_classes([0.1, 0.9, 0.4, 0.6], "sigmoid") == [1, 3]
    assert _top_classes([0.1, 0.3, 0.2], "sigmoid") == [1]
    assert _top_classes([0.6, 0.7, 0.8, 0.9, 0.95, 0.99], "sigmoid") == [5, 4, 3, 2, 1]
    assert _top_classes([0.1, 0.9, 0.8], "softmax") == [1]


def test_warnings_of_methods_are_plain_sentences(explain: Any) -> None:
    done = explain("--method", "xgradcam", "--class", "tench")
    assert done.status == 0
    assert done.err.startswith("wsss explain: note: XGrad-CAM is Grad-CAM itself at this layer")
    assert "UserWarning" not in done.err


def test_patches_draw_the_crops_of_every_class(explain: Any, tmp_path: Path) -> None:
    words = ("--method", "gradcam", "--method", SESS, "--patches", "--class", "tench", "--class", "goldfish")
    done = explain(*words)
    assert done.status == 0, done.err
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"why.png", "why.npy", "why.patches-1.png", "why.patches-2.png"}
    with Image.open(tmp_path / "why.patches-1.png") as figure:
        red = (np.asarray(figure) == (190, 30, 45)).all(-1)
    assert red.any()  # dropped crops are crossed out


def test_patches_without_sess_are_refused_before_anything_is_written(explain: Any, tmp_path: Path) -> None:
    sentence = explain("--patches").sentence
    assert "--patches draws the crops of SESS, which is not among the methods (gradcam)" in sentence
    assert "--method 'sess(gradcam)'" in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_trained_classifier_brings_its_classes(
    photo: Path, checkpoint: Path, tmp_path: Path, command: Any
) -> None:
    words = ("--checkpoint", checkpoint, "--output", tmp_path / "w.png", "--accelerator", "cpu")
    done = command("explain", photo, *words, "--class", "Red", "--class", "green square", "--method", SESS)
    assert done.status == 0, done.err
    assert np.load(tmp_path / "w.npy").shape == (1, 2, 80, 100)
    sentence = command("explain", photo, *words, "--class", "1").sentence
    assert "there is no class '1'; the classes are red, blue, green square" in sentence
    assert "did you mean green square?" in command("explain", photo, *words, "--class", "square").sentence


def test_a_checkpoint_of_something_else_is_refused(
    photo: Path, weights: Path, tmp_path: Path, command: Any
) -> None:
    words = ("--checkpoint", weights, "--output", tmp_path / "w.png")
    assert "a wsss classifier checkpoint is needed" in command("explain", photo, *words).sentence


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("golden retreiver", "did you mean golden retriever"),
        ("retriever", "did you mean flat-coated retriever or curly-coated retriever or golden retriever"),
        ("1000", "give another word of the name, or an index 0..999"),
        ("-1", "index 0..999"),
    ],
)
def test_unknown_classes_get_a_proposal(explain: Any, name: str, part: str) -> None:
    sentence = explain(f"--class={name}").sentence
    assert f"there is no class '{name}'; " in sentence
    assert part in sentence


def test_a_name_that_begins_another_is_said_to_be_one_of_several(explain: Any) -> None:
    assert "crane is class 517; there is also crane bird (134)" in explain("--class", "crane").out
    assert "maillot is class 638; there is also maillot tank suit (639)" in explain("--class", "maillot").out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--method", "gradcan"], "there is no saliency method 'gradcan'; did you mean gradcam?"),
        (["--layer", "layer9"], "the classifier has no layer 'layer9'"),
        (["--output", "figure.jpg"], "--output is figure.jpg, but must end with .png"),
        (["--weights", "nothing.pth"], "--weights: there is no file nothing.pth"),
        (["--architecture", "vgg16"], "has no classifier.6.weight"),
        (["--architecture", "resnet"], "--architecture is resnet, but must be one of resnet18"),
    ],
)
def test_errors_are_one_sentence_and_leave_no_file(
    explain: Any, tmp_path: Path, words: list[str], part: str
) -> None:
    assert part in explain(*words).sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--size", "0"], "--size is 0, but must be at least 1 pixel"),
        (["--checkpoint", "a.ckpt"], "not allowed with argument"),
        (["--methods", "gradcam"], "there is no option --methods; did you mean --method?"),
    ],
)
def test_bad_usage_is_status_2(explain: Any, words: list[str], part: str) -> None:
    done = explain(*words)
    assert done.status == 2
    assert part in done.err


def test_weights_without_architecture_are_bad_usage(photo: Path, tmp_path: Path, command: Any) -> None:
    words = ("--checkpoint", "a.ckpt", "--weights", "w.pth", "--output", tmp_path / "w.png")
    done = command("explain", photo, *words)
    assert done.status == 2
    assert "--weights goes with --architecture" in done.err


def test_the_photo_is_never_overwritten_and_a_missing_one_is_named(
    photo: Path, weights: Path, tmp_path: Path, command: Any
) -> None:
    before = photo.read_bytes()
    link = tmp_path / "link.png"
    os.symlink(photo, link)
    model = ("--architecture", "resnet18", "--weights", weights)
    for output in (photo, link):
        assert "is the photo itself" in command("explain", photo, *model, "--output", output).sentence
    assert photo.read_bytes() == before
    sentence = command("explain", tmp_path / "none.jpg", *model, "--output", tmp_path / "w.png").sentence
    assert "none.jpg does not exist" in sentence


def test_a_failed_download_says_what_to_do(
    photo: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    words = ("--architecture", "resnet18", "--output", tmp_path / "w.png")
    sentence = command("explain", photo, *words).sentence
    assert "cannot get the ImageNet weights of resnet18" in sentence
    assert "give its path as --weights PATH" in sentence


@pytest.mark.parametrize(
    ("size", "words", "shown"),
    [
        ((2048, 96), [], (1024, 48)),
        ((10, 20), [], (32, 64)),
        ((80, 100), ["--size", "40"], (40, 50)),
        ((1100, 30), ["--size", "30"], (1100, 30)),
    ],
)
def test_photos_are_brought_into_bounds_or_to_the_size_asked_for(
    weights: Path,
    tmp_path: Path,
    command: Any,
    size: tuple[int, int],
    words: list[str],
    shown: tuple[int, int],
) -> None:
    Image.new("L", size[::-1], 90).save(tmp_path / "p.jpg")
    model = ("--architecture", "resnet18", "--weights", weights, "--class", "tench", "--accelerator", "cpu")
    done = command("explain", tmp_path / "p.jpg", *model, "--output", tmp_path / "w.png", *words)
    assert done.status == 0, done.err
    assert np.load(tmp_path / "w.npy").shape[-2:] == shown
    assert ("resized the photo from" in done.out) == (not words)


def test_a_photo_on_its_side_is_explained_upright(weights: Path, tmp_path: Path, command: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (90, 60), (200, 30, 30)).save(tmp_path / "p.jpg", exif=exif)
    model = ("--architecture", "resnet18", "--weights", weights, "--accelerator", "cpu")
    assert command("explain", tmp_path / "p.jpg", *model, "--output", tmp_path / "w.png").status == 0
    assert np.load(tmp_path / "w.npy").shape[-2:] == (90, 60)


def test_an_existing_figure_survives_a_failure_and_is_replaced_by_a_success(
    explain: Any, tmp_path: Path
) -> None:
    (tmp_path / "why.png").write_bytes(b"old")
    assert explain("--class", "nothing of the kind").status == 1
    assert (tmp_path / "why.png").read_bytes() == b"old"
    assert explain().status == 0
    assert (tmp_path / "why.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.glob(".*tmp"))
