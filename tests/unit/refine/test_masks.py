from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from wsss.refine import CRFParameters, dense_crf
from wsss.refine.background import seed_mask
from wsss.refine.grabcut import grabcut_labels
from wsss.refine.masks import (
    RefinedMask,
    hard_seeds,
    label_probabilities,
    most_probable,
    score_probabilities,
)
from wsss.refine.pamr import pamr
from wsss.refine.parameters import BackgroundParameters, RefineParameters, Uncertainty
from wsss.refine.refiners import build_refiner

# Its unary_from_labels is the reference of the hard seeds.
reference = pytest.importorskip("pydensecrf.utils")
pydensecrf = pytest.importorskip("pydensecrf.densecrf")

RULE = BackgroundParameters("constant", 0.15)

Scene = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def scene() -> Scene:
    """Two coloured squares (classes 3 and 12) on grey, with blurry saliency that is shifted and too small."""
    generator = np.random.default_rng(0)
    truth = np.zeros((60, 90), np.uint8)
    truth[15:45, 8:38], truth[20:50, 52:82] = 3, 12
    image = np.full((60, 90, 3), 120, np.uint8)
    image[truth == 3], image[truth == 12] = (200, 40, 40), (40, 60, 210)
    image += generator.integers(0, 8, image.shape, dtype=np.uint8)
    y, x = np.mgrid[:60, :90]
    maps = [np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 11**2)) for cy, cx in ((28, 20), (36, 69))]
    return np.array(maps, np.float32), image, truth


def refined(
    maps: npt.NDArray[np.float32],
    classes: tuple[int, ...],
    image: npt.NDArray[np.uint8],
    parameters: RefineParameters | None = None,
) -> RefinedMask:
    return build_refiner(parameters or RefineParameters(background=RULE))(maps, classes, image)


def noise_like(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A photo without edges: it leaves the CRF in doubt, so that some pixels become 255."""
    return np.random.default_rng(1).integers(0, 256, image.shape, dtype=np.uint8)


@pytest.mark.parametrize("uncertainty", ["agreement", "posterior", "none"])
def test_refined_labels_follow_the_objects_better_than_the_seed(uncertainty: Uncertainty) -> None:
    maps, image, truth = scene()
    found = refined(maps, (3, 12), image, RefineParameters(background=RULE, uncertainty=uncertainty))
    seed_accuracy = (seed_mask(maps, (3, 12), 0.15) == truth).mean()
    assert (found.labels == truth).mean() > max(0.97, seed_accuracy)
    assert found.labels.dtype == found.mask.dtype == np.uint8
    assert set(np.unique(found.labels)) == {0, 3, 12}


@pytest.mark.parametrize("uncertainty", ["agreement", "posterior"])
def test_mask_equals_labels_where_it_is_certain(uncertainty: Uncertainty) -> None:
    maps, image, _ = scene()
    image = noise_like(image)
    labels, mask, _ = refined(
        maps, (3, 12), image, RefineParameters(background=RULE, uncertainty=uncertainty)
    )
    certain = mask != 255
    assert 0.1 < certain.mean() < 1
    np.testing.assert_array_equal(mask[certain], labels[certain])
    assert 255 not in labels


def test_without_an_uncertainty_rule_nothing_is_left_out() -> None:
    maps, image, _ = scene()
    labels, mask, _ = refined(maps, (3, 12), image, RefineParameters(background=RULE, uncertainty="none"))
    np.testing.assert_array_equal(labels, mask)


def test_agreement_is_the_intersection_of_two_crfs_from_hard_labels() -> None:
    maps, image, _ = scene()
    image = noise_like(image)
    background = BackgroundParameters("constant", 0.2)
    parameters = RefineParameters(background=background, low_factor=0.5, high_factor=1.5)
    _, mask, confidence = refined(maps, (3, 12), image, parameters)
    results, total = [], 0
    for threshold in (0.1, 0.3):
        padded = np.concatenate([np.full((1, 60, 90), threshold, np.float32), maps]).argmax(axis=0)
        energy = reference.unary_from_labels(padded, 3, gt_prob=0.7, zero_unsure=False)
        posterior = dense_crf(np.exp(-energy).reshape(3, 60, 90), image)
        results.append(np.array([0, 3, 12])[posterior.argmax(axis=0)])
        total = total + posterior / 2
    np.testing.assert_allclose(confidence, total.max(axis=0), atol=1e-5)
    np.testing.assert_array_equal(mask, np.where(results[0] == results[1], results[0], 255))
    assert (mask == 255).any()


def test_posterior_limit_decides_how_much_is_kept() -> None:
    maps, image, _ = scene()
    image = noise_like(image)
    kept = []
    for limit in (0.0, 0.9, 0.9999):
        parameters = RefineParameters(background=RULE, uncertainty="posterior", posterior_limit=limit)
        kept.append(refined(maps, (3, 12), image, parameters).mask != 255)
    assert kept[0].all()
    assert kept[0].sum() > kept[1].sum() > kept[2].sum()
    assert (kept[1] | ~kept[2]).all()


def test_an_image_without_classes_is_certain_background() -> None:
    labels, mask, _ = refined(np.zeros((0, 5, 6), np.float32), (), np.zeros((5, 6, 3), np.uint8))
    assert labels.tolist() == mask.tolist() == [[0] * 6] * 5


def test_an_empty_map_gives_background_and_not_a_crash() -> None:
    maps, image, _ = scene()
    for uncertainty in ("agreement", "posterior", "none"):
        labels, _, _ = refined(
            np.zeros_like(maps), (3, 12), image, RefineParameters(background=RULE, uncertainty=uncertainty)
        )
        assert (labels == 0).all(), uncertainty


def test_the_order_of_the_classes_does_not_matter() -> None:
    maps, image, _ = scene()
    parameters = RefineParameters(background=RULE)
    straight = refined(maps, (3, 12), image, parameters)
    turned = refined(np.ascontiguousarray(maps[::-1]), (12, 3), image, parameters)
    assert (straight.labels == turned.labels).mean() > 0.999
    assert (straight.mask == turned.mask).mean() > 0.999


def test_inputs_are_not_changed() -> None:
    maps, image, _ = scene()
    before = maps.copy(), image.copy()
    refined(maps, (3, 12), image, RefineParameters(background=RULE, uncertainty="posterior"))
    np.testing.assert_array_equal(maps, before[0])
    np.testing.assert_array_equal(image, before[1])


def test_a_pixel_at_the_limit_is_certain() -> None:
    posterior = np.array([[[0.5, 0.25]], [[0.5, 0.25]], [[0.0, 0.5]]], np.float32)
    indices = np.array([0, 3, 12], np.uint8)
    assert most_probable(posterior, indices, 0.5).mask.tolist() == [[0, 12]]
    above = float(np.nextafter(np.float32(0.5), np.float32(1)))
    assert most_probable(posterior, indices, above).mask.tolist() == [[255, 255]]


def test_the_peak_of_a_map_is_a_seed_however_high_the_threshold() -> None:
    maps = np.array([[[1.0, 0.96, 0.9, 0.0]]], np.float32)
    parameters = RefineParameters(background=BackgroundParameters("constant", 0.9))
    generous, strict = hard_seeds(maps, parameters)
    assert generous.argmax(axis=0).tolist() == [[1, 1, 1, 0]]  # 0.7 * 0.9
    assert strict.argmax(axis=0).tolist() == [[1, 1, 0, 0]]  # 0.95 instead of 1.35


def test_probabilities_of_hard_labels_are_those_of_pydensecrf() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (6, 7))
    expected = np.exp(-reference.unary_from_labels(labels, 4, gt_prob=0.7, zero_unsure=False))
    np.testing.assert_allclose(label_probabilities(labels, 4, 0.7), expected.reshape(4, 6, 7), rtol=1e-5)


def test_probabilities_of_soft_scores_are_those_of_pydensecrf() -> None:
    scores = np.random.default_rng(0).random((3, 6, 7), dtype=np.float32) + 0.01
    expected = np.exp(-reference.unary_from_softmax(scores / scores.sum(axis=0), scale=0.7))
    np.testing.assert_allclose(score_probabilities(scores, 0.7), expected.reshape(3, 6, 7), rtol=1e-5)


def test_scores_of_zero_are_uniform() -> None:
    np.testing.assert_allclose(score_probabilities(np.zeros((4, 2, 2), np.float32), 0.7), 0.25)


@pytest.mark.parametrize(
    ("maps", "classes", "message"),
    [
        (np.zeros((2, 4, 5), np.float64), (1, 2), "float32, not"),
        (np.zeros((4, 5), np.float32), (1,), r"\(K, H, W\)"),
        (
            np.zeros((2, 4, 5), np.float32),
            (),
            "2 maps for 0 classes: give one per class, or put one for the background first",
        ),
        (np.zeros((1, 4, 5), np.float32), (1, 2), "1 maps for 2 classes"),
        (np.zeros((2, 4, 6), np.float32), (1, 2), r"maps are \(4, 6\).* image is \(4, 5\).*prepare_maps"),
        (np.zeros((2, 4, 5), np.float32), (1, 1), "different mask indices"),
        (np.zeros((2, 4, 5), np.float32), (0, 1), "from 1 to 254"),
        (np.zeros((2, 4, 5), np.float32), (1, 255), "from 1 to 254"),
    ],
)
def test_wrong_arguments_are_refused(
    maps: npt.NDArray[np.float32], classes: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        refined(maps, classes, np.zeros((4, 5, 3), np.uint8))


def test_grabcut_stands_in_for_the_crf() -> None:
    maps, image, _ = scene()
    labels, mask, confidence = refined(maps, (3, 12), image, RefineParameters(method="grabcut"))
    np.testing.assert_array_equal(labels, grabcut_labels(maps, (3, 12), image))
    np.testing.assert_array_equal(mask, labels)
    assert (confidence == 1).all()


def averaged(scores: npt.NDArray[np.float32], image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    photo = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    return pamr(torch.from_numpy(scores), photo).numpy()


def test_local_averages_stand_in_for_the_crf() -> None:
    maps, image, _ = scene()
    rule = BackgroundParameters("constant", 0.2)
    labels, mask, _ = refined(maps, (3, 12), image, RefineParameters(background=rule, method="pamr"))
    scores = np.concatenate([np.full((1, 60, 90), 0.2, np.float32), maps])
    np.testing.assert_array_equal(labels, np.array([0, 3, 12])[averaged(scores, image).argmax(axis=0)])
    np.testing.assert_array_equal(mask, labels)
    probabilities = scores / scores.sum(axis=0)
    found = refined(probabilities, (3, 12), image, RefineParameters(method="pamr"))
    expected = averaged(probabilities, image).argmax(axis=0)
    np.testing.assert_array_equal(found.labels, np.array([0, 3, 12])[expected])


def test_probabilities_are_refined_with_their_own_background() -> None:
    maps, image, _ = scene()
    probabilities = np.concatenate([np.full((1, 60, 90), 0.3, np.float32), maps])
    probabilities /= probabilities.sum(axis=0)
    parameters = RefineParameters(posterior_limit=0.9)
    found = refined(probabilities, (3, 12), image, parameters)
    posterior = dense_crf(probabilities, image, parameters.soft_crf)
    np.testing.assert_array_equal(found.labels, np.array([0, 3, 12])[posterior.argmax(axis=0)])
    np.testing.assert_array_equal(found.mask == 255, posterior.max(axis=0) < 0.9)
    empty = refined(np.ones((1, 60, 90), np.float32), (), image)
    assert (empty.labels == 0).all()


def test_maps_can_be_the_unary_potentials_themselves() -> None:
    maps, image, _ = scene()
    # as configs/voc2012_dcsm.yaml: -log of the maps, and of 1 - max for the background
    crf = CRFParameters(bilateral_sxy=80, bilateral_srgb=13)
    kernels = pydensecrf.DenseCRF2D(90, 60, 3)
    potentials = -np.log(np.maximum(np.concatenate([1 - maps.max(axis=0, keepdims=True), maps]), 1e-3))
    kernels.setUnaryEnergy(np.ascontiguousarray(potentials.reshape(3, -1), np.float32))
    kernels.addPairwiseGaussian(sxy=3, compat=3)
    kernels.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
    expected = np.reshape(kernels.inference(10), (3, 60, 90))

    rule = BackgroundParameters(rule="power", alpha=1)
    parameters = RefineParameters(background=rule, uncertainty="none", confidence=0.999, crf=crf)
    labels, mask, confidence = refined(maps, (3, 12), image, parameters)
    assert (labels == np.array([0, 3, 12])[expected.argmax(axis=0)]).mean() > 0.995
    assert np.abs(confidence - expected.max(axis=0)).mean() < 0.01
    np.testing.assert_array_equal(mask, labels)
