"""Prediction of one photo: strips, enlarging, tiles and files. The command is in tests/integration/test_predict.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss.data.transforms import normalize_image, resize_long_side
from wsss.errors import UserError
from wsss.models.segmenter import predict_probabilities
from wsss.predict import PredictOptions, enlarged_rows, photo_strips, tile_predictor, write_probabilities
from wsss.refine.crf import CRFParameters, crf_probabilities

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Looks two pixels far; three classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)).eval()


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """(3, 300, 410) uint8 with smooth and with sharp places."""
    random = torch.Generator().manual_seed(1)
    blots = functional.interpolate(torch.rand(1, 3, 6, 8, generator=random), (300, 410), mode="bicubic")[0]
    blots[:, 100:200, 150:260] *= 0.3
    return blots.clamp(0, 1).mul(255).to(torch.uint8)


def whole(photo: Tensor, network: nn.Module, options: PredictOptions) -> Tensor:
    with torch.inference_mode():
        strips = list(photo_strips(photo, tile_predictor(network, CPU, options), options))
    assert [top for top, _ in strips] == np.cumsum([0, *(len(strip[0]) for _, strip in strips)])[:-1].tolist()
    return torch.cat([strip for _, strip in strips], 1)


def test_a_photo_that_fits_is_predicted_as_a_whole(network: nn.Module, photo: Tensor) -> None:
    with torch.inference_mode():
        expected = predict_probabilities(network, normalize_image(photo[None]))[0]
    torch.testing.assert_close(whole(photo, network, PredictOptions()), expected)


@pytest.mark.parametrize("tile", [128, 256])
def test_tiles_change_nothing_for_a_network_that_looks_nearer_than_their_margin(
    network: nn.Module, photo: Tensor, tile: int
) -> None:
    tiled = whole(photo, network, PredictOptions(tile=tile))
    torch.testing.assert_close(tiled, whole(photo, network, PredictOptions()), atol=1e-6, rtol=0)


def test_multi_scale_prediction_is_tiled_too(network: nn.Module, photo: Tensor) -> None:
    plain = whole(photo, network, PredictOptions(ms_flip=True))
    with torch.inference_mode():
        expected = predict_probabilities(
            network, normalize_image(photo[None]), PredictOptions().scales, flip=True
        )
    torch.testing.assert_close(plain, expected[0])
    tiled = whole(photo, network, PredictOptions(ms_flip=True, tile=256))
    assert (plain - tiled).abs().max() < 0.02  # scaled tiles are sampled at other places
    torch.testing.assert_close(tiled.sum(0), torch.ones(300, 410))


def test_the_crf_gives_the_labels_of_the_evaluation(network: nn.Module, photo: Tensor) -> None:
    small = photo[:, 60:160, 100:220].contiguous()
    with torch.inference_mode():
        plain = predict_probabilities(network, normalize_image(small[None]))[0].numpy()
    constants = CRFParameters(10, 1, 3, 67, 3, 4)
    expected = crf_probabilities(plain, small.permute(1, 2, 0).numpy().copy(), constants).argmax(0)
    np.testing.assert_array_equal(whole(small, network, PredictOptions(crf=True)).argmax(0).numpy(), expected)


def test_larger_photos_are_predicted_at_the_long_side_and_enlarged(network: nn.Module, photo: Tensor) -> None:
    with torch.inference_mode():
        small = predict_probabilities(network, normalize_image(resize_long_side(photo, 200)[None]))
    expected = functional.interpolate(small, (300, 410), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(whole(photo, network, PredictOptions(long_side=200)), expected)
    same = whole(photo, network, PredictOptions(long_side=410))
    torch.testing.assert_close(same, whole(photo, network, PredictOptions()))


@pytest.mark.parametrize("size", [(37, 53), (20, 31), (21, 400), (500, 31), (1000, 777)])
@pytest.mark.parametrize("source", [(20, 31), (1, 1), (2, 1), (1, 9)])
def test_enlarging_in_strips_is_bilinear_interpolation(
    size: tuple[int, int], source: tuple[int, int]
) -> None:
    maps = torch.rand(3, *source)
    strips = list(enlarged_rows(maps, size, rows=64))
    assert max(strip.shape[1] for _, strip in strips) <= 64
    expected = functional.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(torch.cat([strip for _, strip in strips], 1), expected)


def test_probabilities_are_read_without_pickles(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2, 3, 4)).astype(np.float16)
    write_probabilities(tmp_path / "a.npz", values, ("background", "café"))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["probabilities"], values)
        assert archive["classes"].tolist() == ["background", "café"]


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"tile": 127}, "--tile is 127, but a tile needs at least 128"),
        ({"long_side": -1}, "--long_side is -1"),
        ({"scales": (0.5, 0.0)}, r"--scales is \[0.5, 0.0\], but must be scales above 0"),
    ],
)
def test_impossible_sizes_are_refused(values: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        PredictOptions(**values)


def test_the_mask_is_the_last_of_a_photos_files() -> None:
    assert PredictOptions().files("a") == ("a.png",)
    assert PredictOptions(overlay="filled", html=True, probabilities=True).files("a") == (
        "a_overlay.jpg",
        "predictions_files/a_photo.jpg",
        "predictions_files/a_mask.jpg",
        "a.npz",
        "a.png",
    )
