from __future__ import annotations

import dataclasses
import sys

import numpy as np
import numpy.typing as npt
import pytest
import torch

from wsss.errors import UserError
from wsss.refine import CRFParameters, dense_crf
from wsss.refine.crf import (
    crf_probabilities,
    dense_crf_batch,
    dense_crfs,
    pydensecrf_is_installed,
)

BACKENDS = ("pydensecrf", "torch")
needs_pydensecrf = pytest.mark.skipif(not pydensecrf_is_installed(), reason="pydensecrf is not installed")
each_backend = pytest.mark.parametrize(
    "backend", [pytest.param("pydensecrf", marks=needs_pydensecrf), "torch"]
)
TEST_TIME = CRFParameters(10, 1, 3, 67, 3, 4)  # DeepLab's


def random_input(
    classes: int, height: int, width: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    generator = np.random.default_rng(0)
    scores = generator.random((classes, height, width), dtype=np.float32) + 0.05
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return scores / scores.sum(axis=0), image


def synthetic_photo(
    classes: int, height: int, width: int, noise: float = 4
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Smooth colours with noise, and smooth scores that follow them in part."""
    generator = np.random.default_rng(height * width + classes)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [
        sum(
            np.sin(2 * np.pi * (generator.normal(0, 2) * x + generator.normal(0, 2) * y + generator.random()))
            for _ in range(3)
        )
        for _ in range(3 + classes)
    ]
    colour = 128 + 40 * np.stack(waves[:3], axis=2) + generator.normal(0, noise, (height, width, 3))
    image = np.clip(colour, 0, 255).astype(np.uint8)
    prototypes = generator.integers(0, 256, (classes, 3))
    distance = ((image[None].astype(float) - prototypes[:, None, None]) ** 2).sum(axis=3)
    scores = np.exp(np.stack(waves[3:]) - distance / 150**2)
    return (scores / scores.sum(axis=0)).astype(np.float32), image


def exact_mean_field(
    probabilities: npt.NDArray[np.float32], image: npt.NDArray[np.uint8], parameters: CRFParameters
) -> npt.NDArray[np.float64]:
    """All N^2 pairs, straight from the paper, symmetrically normalised (with self-edges, as the lattice)."""
    classes, height, width = probabilities.shape
    y, x = np.divmod(np.arange(height * width), width)
    position = np.stack([x, y], axis=1).astype(float)
    colour = image.reshape(-1, 3).astype(float)

    def kernel(features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        distance = ((features[:, None] - features[None]) ** 2).sum(axis=2)
        raw = np.exp(-distance / 2)
        norm = 1 / np.sqrt(raw.sum(axis=1) + 1e-20)
        return raw * norm[:, None] * norm[None]

    appearance = np.concatenate(
        [position / parameters.bilateral_sxy, colour / parameters.bilateral_srgb], axis=1
    )
    weights = parameters.gaussian_compat * kernel(position / parameters.gaussian_sxy)
    weights = weights + parameters.bilateral_compat * kernel(appearance)
    logits = np.log(probabilities.reshape(classes, -1).astype(float))
    marginals = np.exp(logits) / np.exp(logits).sum(axis=0)
    for _ in range(parameters.iterations):
        energy = logits + marginals @ weights
        marginals = np.exp(energy - energy.max(axis=0))
        marginals /= marginals.sum(axis=0)
    return marginals.reshape(classes, height, width)


def test_crf_follows_exact_mean_field_on_a_small_photo_with_one_edge() -> None:
    # Two smooth halves with noise in the unary: wide kernels, which the lattice approximates well.
    generator = np.random.default_rng(1)
    image = np.full((12, 18, 3), 60, np.uint8)
    image[:, 8:] = (200, 150, 90)
    image += generator.integers(0, 6, image.shape, dtype=np.uint8)
    foreground = np.where(np.arange(18) >= 8, 0.65, 0.35) + generator.normal(0, 0.15, (12, 18))
    foreground = np.clip(foreground, 0.05, 0.95)
    probabilities = np.stack([1 - foreground, foreground]).astype(np.float32)
    parameters = CRFParameters(
        iterations=5,
        gaussian_sxy=2,
        gaussian_compat=1,
        bilateral_sxy=10,
        bilateral_srgb=15,
        bilateral_compat=2,
    )
    ours = dense_crf(probabilities, image, parameters)
    exact = exact_mean_field(probabilities, image, parameters)
    assert (ours.argmax(axis=0) == exact.argmax(axis=0)).mean() > 0.98
    assert np.abs(ours - exact).mean() < 0.05
    # The noise was real: before the CRF many pixels were wrong, so this test can fail.
    assert (probabilities.argmax(axis=0) == exact.argmax(axis=0)).mean() < 0.95


@needs_pydensecrf
@pytest.mark.parametrize("classes", [2, 6])
@pytest.mark.parametrize("parameters", [CRFParameters(), TEST_TIME, CRFParameters(5, 2, 1, 10, 15, 2)])
def test_torch_is_as_close_to_exact_mean_field_as_pydensecrf(classes: int, parameters: CRFParameters) -> None:
    probabilities, image = synthetic_photo(classes, 16, 16)
    exact = exact_mean_field(probabilities, image, parameters)
    errors = {
        backend: np.abs(dense_crf(probabilities, image, parameters, backend) - exact).mean()
        for backend in BACKENDS
    }
    assert errors["torch"] <= errors["pydensecrf"] + 1e-3, errors


@needs_pydensecrf
@pytest.mark.parametrize("parameters", [CRFParameters(), TEST_TIME], ids=["irn", "deeplab"])
@pytest.mark.parametrize("size", [(61, 83), (40, 64), (1, 57), (57, 1), (1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("classes", [2, 3, 8, 21])
def test_both_backends_agree(classes: int, size: tuple[int, int], parameters: CRFParameters) -> None:
    probabilities, image = synthetic_photo(classes, *size)
    ours, reference = (dense_crf(probabilities, image, parameters, backend) for backend in BACKENDS)
    assert ours.shape == reference.shape
    assert ours.dtype == reference.dtype
    assert np.abs(ours - reference).mean() < 1e-5
    assert (ours.argmax(axis=0) == reference.argmax(axis=0)).mean() > 0.999


@needs_pydensecrf
@pytest.mark.parametrize("colour", [0, 255])
def test_both_backends_agree_on_a_constant_image(colour: int) -> None:
    probabilities, _ = synthetic_photo(4, 31, 45)
    image = np.full((31, 45, 3), colour, np.uint8)
    ours, reference = (dense_crf(probabilities, image, backend=backend) for backend in BACKENDS)
    np.testing.assert_allclose(ours, reference, atol=1e-3)


@needs_pydensecrf
def test_both_backends_agree_on_noise() -> None:
    # Undecided pixels amplify the last bit of a sum: single ones differ in the third decimal.
    probabilities, image = random_input(5, 45, 50)
    ours, reference = (dense_crf(probabilities, image, backend=backend) for backend in BACKENDS)
    assert np.abs(ours - reference).max() < 5e-3
    assert np.abs(ours - reference).mean() < 1e-5


@needs_pydensecrf
@pytest.mark.gpu
@pytest.mark.parametrize("classes", [2, 21])
def test_a_gpu_agrees_with_pydensecrf(classes: int) -> None:
    probabilities, image = synthetic_photo(classes, 120, 161)
    ours = dense_crf(probabilities, image, device="cuda")
    assert np.abs(ours - dense_crf(probabilities, image, backend="pydensecrf")).mean() < 1e-4


@each_backend
def test_a_batch_of_different_sizes_and_labels_is_as_one_by_one(backend: str) -> None:
    inputs = [synthetic_photo(2, 20, 31), synthetic_photo(5, 17, 9), synthetic_photo(3, 20, 31)]
    together = dense_crf_batch([pair[0] for pair in inputs], [pair[1] for pair in inputs], backend=backend)
    for (probabilities, image), result in zip(inputs, together, strict=True):
        assert result.shape == probabilities.shape
        np.testing.assert_allclose(result, dense_crf(probabilities, image, backend=backend), atol=1e-4)


def test_half_precision_is_refined_in_float32() -> None:
    probabilities, image = synthetic_photo(3, 20, 31)
    half = torch.from_numpy(probabilities).bfloat16()
    found = dense_crf(half, image)
    assert found.dtype == torch.float32
    assert torch.equal(found, dense_crf(half.float(), image))


def test_an_empty_batch_is_empty() -> None:
    assert dense_crf_batch([], []) == []
    with pytest.raises(ValueError, match="got 1 arrays of probabilities for 0 images"):
        dense_crf_batch([random_input(2, 3, 4)[0]], [])


@each_backend
@pytest.mark.parametrize("classes", [2, 5])
def test_several_starts_of_one_photo_are_bit_for_bit_as_one_by_one(classes: int, backend: str) -> None:
    probabilities, image = synthetic_photo(classes, 45, 62)
    starts = [probabilities, probabilities[::-1], np.full_like(probabilities, 0.5), probabilities]
    together = dense_crfs(starts, image, TEST_TIME, backend)
    assert len(together) == len(starts)
    for start, result in zip(starts, together, strict=True):
        np.testing.assert_array_equal(result, dense_crf(start, image, TEST_TIME, backend))


@pytest.mark.parametrize("starts", [[], [np.ones((2, 3, 4), np.float32), np.ones((3, 3, 4), np.float32)]])
def test_starts_must_be_of_one_shape(starts: list[npt.NDArray[np.float32]]) -> None:
    with pytest.raises(ValueError, match="starts must be arrays of one shape"):
        dense_crfs(starts, np.zeros((3, 4, 3), np.uint8))


@each_backend
def test_images_may_be_read_only(backend: str) -> None:
    probabilities, image = random_input(2, 8, 9)
    expected = dense_crf(probabilities, image, backend=backend)
    image.flags.writeable = probabilities.flags.writeable = False
    np.testing.assert_array_equal(dense_crf(probabilities, image, backend=backend), expected)


def test_crf_moves_the_border_of_a_seed_to_the_edge_of_the_photo() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 255
    foreground = np.full((40, 60), 0.3, np.float32)
    foreground[:, 40:] = 0.7
    posterior = dense_crf(np.stack([1 - foreground, foreground]), image)
    expected = np.zeros((40, 60))
    expected[:, 30:] = 1
    assert (posterior.argmax(axis=0) == expected).mean() > 0.99


@each_backend
@pytest.mark.parametrize("classes", [2, 5])
def test_posterior_is_a_distribution_of_the_input_shape(classes: int, backend: str) -> None:
    probabilities, image = random_input(classes, 13, 29)
    posterior = dense_crf(probabilities, image, backend=backend)
    assert posterior.shape == probabilities.shape
    assert posterior.dtype == np.float32
    np.testing.assert_allclose(posterior.sum(axis=0), 1, atol=1e-5)


@each_backend
def test_without_iterations_the_probabilities_come_back(backend: str) -> None:
    probabilities, image = random_input(3, 9, 14)
    np.testing.assert_allclose(
        dense_crf(probabilities, image, CRFParameters(iterations=0), backend=backend),
        probabilities,
        atol=1e-6,
    )


@each_backend
def test_small_probabilities_count_down_to_a_hundred_millionth(backend: str) -> None:
    probabilities, image = random_input(2, 4, 5)
    probabilities[1], probabilities[0] = 1e-6, 1 - 1e-6
    probabilities[:, 0] = np.float32([[1], [0]])
    found = dense_crf(probabilities, image, CRFParameters(iterations=0), backend=backend)[1]
    np.testing.assert_allclose(found[0], 1e-8, rtol=1e-3)
    np.testing.assert_allclose(found[1:], 1e-6, rtol=1e-3)


@each_backend
def test_only_ratios_within_a_pixel_matter(backend: str) -> None:
    probabilities, image = random_input(3, 11, 17)
    scaled = probabilities * np.linspace(0.1, 1, 17, dtype=np.float32)
    np.testing.assert_allclose(
        dense_crf(scaled, image, backend=backend), dense_crf(probabilities, image, backend=backend), atol=1e-4
    )


@each_backend
def test_a_class_takes_part_where_one_pixel_may_be_of_it(backend: str) -> None:
    _, image = random_input(4, 9, 14)
    probabilities = np.zeros((4, 9, 14), np.float32)
    probabilities[0] = 1
    probabilities[:, 4, 7] = (0.4, 0, 0.51, 0.09)
    refined = crf_probabilities(probabilities, image, TEST_TIME, backend)
    np.testing.assert_array_equal(
        refined[[0, 2]], dense_crf(probabilities[[0, 2]], image, TEST_TIME, backend)
    )
    assert not refined[[1, 3]].any()


@each_backend
def test_zero_probabilities_stay_finite(backend: str) -> None:
    probabilities = np.zeros((2, 6, 7), np.float32)
    probabilities[0] = 1
    posterior = dense_crf(probabilities, np.zeros((6, 7, 3), np.uint8), backend=backend)
    assert np.isfinite(posterior).all()
    assert (posterior[0] > 0.99).all()


@each_backend
def test_inputs_are_not_changed_and_need_not_be_contiguous(backend: str) -> None:
    probabilities, image = random_input(3, 16, 12)
    turned, turned_image = probabilities.transpose(0, 2, 1), image.transpose(1, 0, 2)
    before, image_before = probabilities.copy(), image.copy()
    posterior = dense_crf(turned, turned_image, backend=backend)
    np.testing.assert_array_equal(probabilities, before)
    np.testing.assert_array_equal(image, image_before)
    np.testing.assert_array_equal(
        posterior,
        dense_crf(np.ascontiguousarray(turned), np.ascontiguousarray(turned_image), backend=backend),
    )


@each_backend
def test_each_constant_reaches_the_backend(backend: str) -> None:
    probabilities, image = random_input(2, 20, 24)
    image = (image // 8).astype(np.uint8)
    reference = dense_crf(probabilities, image, backend=backend)
    for name in (field.name for field in dataclasses.fields(CRFParameters)):
        changed = dataclasses.replace(CRFParameters(), **{name: 2})
        assert np.abs(dense_crf(probabilities, image, changed, backend=backend) - reference).max() > 1e-3, (
            name
        )


@needs_pydensecrf
def test_auto_is_pydensecrf_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, image = random_input(2, 8, 9)
    monkeypatch.setitem(sys.modules, "torch", None)  # auto imports no torch then
    np.testing.assert_array_equal(
        dense_crf(probabilities, image, backend="auto"), dense_crf(probabilities, image, backend="pydensecrf")
    )


def test_auto_is_torch_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wsss.refine.meanfield", None)
    with pytest.raises(ImportError, match="meanfield"):
        dense_crf(*random_input(2, 8, 9), device="cuda")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": np.zeros((2, 4, 5))}, "float32, not .* float64"),
        ({"probabilities": np.zeros((4, 5), np.float32)}, r"\(C, H, W\)"),
        ({"probabilities": np.zeros((1, 4, 5), np.float32)}, "at least two classes"),
        ({"probabilities": np.zeros((2, 5, 4), np.float32)}, r"\(5, 4\) pixels .* the image is \(4, 5\)"),
        ({"probabilities": np.full((2, 4, 5), np.nan, np.float32)}, "NaN"),
        ({"image": np.zeros((4, 5, 3), np.float32)}, "uint8 RGB"),
        ({"image": np.zeros((4, 5), np.uint8)}, r"\(H, W, 3\)"),
        (
            {"image": np.zeros((0, 5, 3), np.uint8), "probabilities": np.zeros((2, 0, 5), np.float32)},
            "image is empty",
        ),
        ({"backend": "pydensecrf", "device": "cuda"}, "works on the CPU only, not on cuda: choose torch"),
        ({"backend": "cuda"}, "unknown CRF backend 'cuda': choose one of auto, pydensecrf, torch"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "probabilities": np.full((2, 4, 5), 0.5, np.float32),
        "image": np.zeros((4, 5, 3), np.uint8),
    }
    with pytest.raises(ValueError, match=message):
        dense_crf(**(arguments | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": -1}, "crf.iterations is -1, but must be 0 or more"),
        ({"bilateral_srgb": 0}, "crf.bilateral_srgb is 0, but must be 0.1 or more"),
        ({"bilateral_srgb": 1e-8}, "crf.bilateral_srgb is 1e-08, but must be 0.1 or more"),  # crashed both
        ({"bilateral_sxy": 1e-8}, "crf.bilateral_sxy is 1e-08, but must be 0.1 or more"),
        ({"gaussian_sxy": 1e-8}, "crf.gaussian_sxy is 1e-08, but must be 0.1 or more"),
        ({"gaussian_compat": -1}, "crf.gaussian_compat is -1, but must be 0 or more"),
        ({"bilateral_compat": float("nan")}, "crf.bilateral_compat is nan"),
        ({"bilateral_compat": float("inf")}, "crf.bilateral_compat is inf"),
    ],
)
@each_backend
def test_meaningless_constants_are_refused_by_both_backends(
    change: dict[str, float], message: str, backend: str
) -> None:
    probabilities, image = random_input(2, 20, 24)
    with pytest.raises(UserError, match=message):
        dense_crf(probabilities, image, CRFParameters(**change), backend)  # type: ignore[arg-type]


def test_meaningless_constants_are_refused_for_tensors() -> None:
    probabilities, image = random_input(2, 20, 24)
    with pytest.raises(UserError, match=r"crf\.bilateral_srgb is 1e-08, but must be 0\.1 or more"):
        dense_crf(torch.from_numpy(probabilities), image, CRFParameters(bilateral_srgb=1e-8))


@each_backend
@pytest.mark.parametrize("size", [(20, 24), (1, 3000)])
def test_the_narrowest_kernels_that_are_allowed_leave_noise_as_it_is(
    size: tuple[int, int], backend: str
) -> None:
    probabilities, image = random_input(2, *size)
    image[0, 0], image[0, 1] = 0, 255  # the longest way in each colour
    for narrow in (
        {"gaussian_sxy": 0.1, "bilateral_compat": 0},
        {"bilateral_srgb": 0.1, "gaussian_compat": 0},
        {"bilateral_sxy": 0.1, "gaussian_compat": 0},
    ):
        # A pixel that hears of itself alone grows surer of what it is.
        marginals = dense_crf(probabilities, image, CRFParameters(**narrow), backend)
        np.testing.assert_array_equal(marginals.argmax(axis=0), probabilities.argmax(axis=0))


@pytest.fixture
def without_pydensecrf(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a C++ compiler."""
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)


@pytest.mark.usefixtures("without_pydensecrf")
def test_missing_pydensecrf_says_how_to_install_it() -> None:
    with pytest.raises(UserError, match="pip install pydensecrf2`, or choose the backend torch"):
        dense_crf(*random_input(2, 4, 4), backend="pydensecrf")


@pytest.mark.usefixtures("without_pydensecrf")
def test_auto_is_torch_where_pydensecrf_is_missing() -> None:
    probabilities, image = random_input(3, 9, 8)
    expected = dense_crf(probabilities, image, backend="torch")
    np.testing.assert_array_equal(dense_crf(probabilities, image), expected)
    np.testing.assert_array_equal(
        crf_probabilities(probabilities, image, CRFParameters()).argmax(0), expected.argmax(axis=0)
    )


def test_a_tensor_of_probabilities_gives_the_same_as_an_array_and_can_be_trained_through() -> None:
    scores, image = random_input(3, 10, 12)
    expected = dense_crf(scores, image, backend="torch")
    start = torch.from_numpy(scores).requires_grad_()
    marginals = dense_crf(start, image)
    np.testing.assert_allclose(marginals.detach().numpy(), expected, atol=1e-6)
    (gradient,) = torch.autograd.grad(marginals[1, 4:6, 4:6].sum(), start)
    step = torch.zeros_like(start)
    step[1, 5, 5] = 1e-2
    rise = (dense_crf(start + step, image)[1, 4:6, 4:6].sum() - marginals[1, 4:6, 4:6].sum()).item()
    assert rise > 0
    assert rise == pytest.approx(1e-2 * gradient[1, 5, 5].item(), rel=0.1)


def test_the_reference_backend_refuses_tensors() -> None:
    scores, image = random_input(3, 4, 5)
    with pytest.raises(ValueError, match="pydensecrf takes arrays, not tensors"):
        dense_crf(torch.from_numpy(scores), image, backend="pydensecrf")
