"""Class subtraction against plain loops."""

import numpy as np
import pytest
import torch

from wsss.errors import UserError
from wsss.saliency import ClassSubtraction, GradCAM
from wsss.saliency.subtraction import subtract_classes


def by_loops(maps, classes, reduce):
    """One image: every pixel of every class against every other class."""
    scaled = [m / m.max() if m.max() > 0 else m * 0 for m in maps]
    result = np.zeros_like(maps)
    for i, y, x in np.ndindex(maps.shape):
        excess = [
            max(scaled[i][y, x] - scaled[classes.index(c)][y, x], 0)
            for c in sorted(set(classes) - {classes[i]})
        ]
        result[i, y, x] = sum(excess) if reduce == "sum" else min(excess)
    return result


@pytest.mark.parametrize("reduce", ["sum", "min"])
@pytest.mark.parametrize("classes", [[4, 0], [4, 0, 9], [3, 1, 3, 2]])
def test_equals_loops_over_pixels(reduce, classes):
    maps = np.random.default_rng(0).random((len(classes), 5, 4)).astype(np.float32) * 7
    maps[1] = 0 if len(classes) == 3 else maps[1]  # a class without evidence
    if classes == [3, 1, 3, 2]:
        maps[2] = maps[0]  # the same class again has the same map, and counts once
    result = subtract_classes(torch.from_numpy(maps), torch.tensor(classes), reduce)
    np.testing.assert_allclose(result.numpy(), by_loops(maps, classes, reduce), atol=1e-6)


@pytest.mark.parametrize("reduce", ["sum", "min"])
def test_candidates_are_the_classes_of_the_same_image(resnet, images, targets, reduce):
    base = GradCAM("layer3")
    raw = base(resnet, images, targets)
    result = ClassSubtraction(base, reduce)(resnet, images, targets)
    for image in range(3):
        rows = (targets[:, 0] == image).nonzero()[:, 0]
        if len(rows) > 1:
            expected = by_loops(raw[rows].numpy(), targets[rows, 1].tolist(), reduce)
            assert expected.max() > 0
            np.testing.assert_allclose(result[rows].numpy(), expected, atol=1e-5)


def test_a_class_alone_on_its_image_stays_as_it_is(resnet, images, targets):
    base = GradCAM("layer3")
    alone = targets[:, 0] == 1
    assert alone.sum() == 1
    assert torch.equal(
        ClassSubtraction(base)(resnet, images, targets)[alone], base(resnet, images, targets)[alone]
    )


def test_costs_no_more_forwards_than_its_base(resnet, images, targets):
    forwards = []
    handle = resnet.register_forward_pre_hook(lambda module, inputs: forwards.append(1))
    try:
        ClassSubtraction(GradCAM("layer4"))(resnet, images, targets)
    finally:
        handle.remove()
    assert len(forwards) == 1


def test_passes_on_the_logits_of_its_base(resnet, images):
    torch.testing.assert_close(
        ClassSubtraction(GradCAM("layer4")).forward(resnet, images).logits, resnet(images).detach().float()
    )


def test_an_unknown_reduction_is_refused():
    with pytest.raises(UserError, match="'sum' or 'min', got 'mean'"):
        ClassSubtraction(GradCAM("layer4"), reduce="mean")
