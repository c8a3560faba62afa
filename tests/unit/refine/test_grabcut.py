from __future__ import annotations

import cv2
import numpy as np
import pytest

from wsss.refine.grabcut import grabcut_labels, seed_trimap

SIZE = 60


def disc(row: int, column: int, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def blob(row: int, column: int, sigma: float = 6) -> np.ndarray:
    """Blurred saliency with its peak on the disc, which does not know where the disc ends."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    saliency = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * sigma**2))
    return (saliency / saliency.max()).astype(np.float32)


def scene(*discs: tuple[np.ndarray, tuple[int, int, int]]) -> np.ndarray:
    """Coloured discs on noisy grey."""
    image = np.full((SIZE, SIZE, 3), 110)
    for place, colour in discs:
        image[place] = colour
    noise = np.random.default_rng(0).integers(-12, 13, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def overlap(found: np.ndarray, true: np.ndarray) -> float:
    return (found & true).sum() / (found | true).sum()


def test_finds_the_whole_of_a_coloured_disc() -> None:
    place = disc(28, 33, 12)
    labels = grabcut_labels(blob(26, 35)[None], (7,), scene((place, (220, 40, 30))))
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 7}
    assert overlap(labels == 7, place) > 0.97


def test_two_classes_get_their_own_discs() -> None:
    left, right = disc(30, 15, 10), disc(30, 44, 10)
    image = scene((left, (220, 40, 30)), (right, (30, 60, 220)))
    labels = grabcut_labels(np.stack((blob(30, 15), blob(30, 44))), (3, 12), image)
    assert overlap(labels == 3, left) > 0.95
    assert overlap(labels == 12, right) > 0.95


def test_the_most_salient_class_wins_a_contested_pixel() -> None:
    place = disc(30, 30, 14)
    maps = np.stack((blob(30, 24), blob(30, 36)))
    labels = grabcut_labels(maps, (1, 2), scene((place, (220, 40, 30))))
    alone = [grabcut_labels(maps[k : k + 1], (k + 1,), scene((place, (220, 40, 30)))) > 0 for k in (0, 1)]
    both = alone[0] & alone[1]
    assert both.sum() > 300
    assert (labels[both] == np.where(maps[0] >= maps[1], 1, 2)[both]).all()
    assert ((labels > 0) == (alone[0] | alone[1])).all()


def test_seeds_are_the_extreme_shares_of_the_ranking() -> None:
    saliency = np.random.default_rng(1).permutation(2000).reshape(40, 50).astype(np.float32) / 1999
    trimap = seed_trimap(saliency, 0.05, 0.30)
    assert trimap is not None
    order = trimap.ravel()[saliency.ravel().argsort()]
    assert (order[:600] == cv2.GC_BGD).all()
    assert (order[-100:] == cv2.GC_FGD).all()
    assert set(order[600:-100]) == {cv2.GC_PR_BGD, cv2.GC_PR_FGD}
    assert (np.diff(order[600:-100].astype(int)) >= 0).all()  # GC_PR_BGD is 2, GC_PR_FGD is 3


@pytest.mark.parametrize(
    "saliency",
    [
        np.zeros((SIZE, SIZE)),
        np.ones((SIZE, SIZE)),
        np.eye(SIZE)[:1].repeat(SIZE, 0) * (np.arange(SIZE) == 4)[:, None],  # a single pixel
        np.where(np.arange(SIZE * SIZE).reshape(SIZE, SIZE) < 100, 0.5, 1),  # nearly all is the maximum
    ],
)
def test_a_map_without_contrast_makes_background(saliency: np.ndarray) -> None:
    image = scene((disc(30, 30, 9), (220, 40, 30)))
    assert not grabcut_labels(saliency[None].astype(np.float32), (5,), image).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 4), (8, 8)])
def test_tiny_images_make_no_exception(size: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).random((1, *size), dtype=np.float32)
    labels = grabcut_labels(maps, (5,), np.zeros((*size, 3), np.uint8))
    assert labels.shape == size


def test_an_object_smaller_than_the_foreground_share_is_found() -> None:
    place = disc(30, 30, 5)
    saliency = blob(30, 30) * disc(30, 30, 3)  # 0 nearly everywhere, as after a ReLU
    assert (saliency > 0).mean() < 0.05
    labels = grabcut_labels(saliency[None].astype(np.float32), (5,), scene((place, (220, 40, 30))))
    assert overlap(labels == 5, disc(30, 30, 3)) > 0.9


def test_a_degenerate_class_leaves_the_others_alone() -> None:
    image = scene((disc(28, 33, 12), (220, 40, 30)))
    alone = grabcut_labels(blob(28, 33)[None], (2,), image)
    both = grabcut_labels(np.stack((np.ones((SIZE, SIZE), np.float32), blob(28, 33))), (1, 2), image)
    np.testing.assert_array_equal(both, alone)


def test_a_photo_of_one_colour_makes_no_exception() -> None:
    labels = grabcut_labels(blob(30, 30)[None], (4,), np.full((SIZE, SIZE, 3), 90, np.uint8))
    assert set(np.unique(labels)) <= {0, 4}


def test_the_same_input_gives_the_same_mask_and_is_not_changed() -> None:
    maps, image = blob(26, 35)[None], scene((disc(28, 33, 12), (150, 100, 90)))
    before = maps.copy(), image.copy()
    first = grabcut_labels(maps, (7,), image)
    cv2.setRNGSeed(99)
    np.testing.assert_array_equal(first, grabcut_labels(maps, (7,), image))
    np.testing.assert_array_equal(maps, before[0])
    np.testing.assert_array_equal(image, before[1])


def test_the_random_numbers_of_opencv_decide_nothing() -> None:
    """Smooth noise, whose colours have no clear clusters."""
    for number in range(8):
        random = np.random.default_rng(number)
        image = cv2.resize(
            random.integers(0, 256, (12, 12, 3), dtype=np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC
        )
        maps = cv2.resize(random.random((6, 6), dtype=np.float32), (SIZE, SIZE))[None]
        found = []
        for seed in (1, 2, 3):
            cv2.setRNGSeed(seed)
            found.append(grabcut_labels(maps / maps.max(), (7,), image))
        assert all(np.array_equal(found[0], other) for other in found)


def test_no_classes_make_background() -> None:
    labels = grabcut_labels(np.zeros((0, SIZE, SIZE), np.float32), (), scene())
    assert labels.shape == (SIZE, SIZE)
    assert not labels.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((SIZE, SIZE), np.uint8)}, r"must be \(H, W, 3\) uint8, got \(60, 60\)"),
        ({"image": np.zeros((SIZE, SIZE, 3))}, "uint8, got .* float64"),
        ({"maps": np.zeros((1, 9, SIZE), np.float32)}, r"= \(1, 60, 60\), got \(1, 9, 60\)"),
        ({"classes": (1, 2)}, r"= \(2, 60, 60\), got \(1, 60, 60\)"),
        ({"foreground": 0.8}, "sum to at most 1, got 0.8 and 0.3"),
        ({"background": 0.0}, "sum to at most 1, got 0.05 and 0.0"),
        ({"iterations": 0}, "at least 1, got 0"),
    ],
)
def test_input_that_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    arguments = {"maps": blob(30, 30)[None], "classes": (1,), "image": scene()} | change
    with pytest.raises(ValueError, match=message):
        grabcut_labels(**arguments)
