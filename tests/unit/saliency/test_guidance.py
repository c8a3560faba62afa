"""The global guidance CAM against the paper's form, and its identity."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from wsss.errors import UserError
from wsss.saliency import GlobalGuidanceCAM, GradCAM


def paper_form(activation, gradient):
    """GM = ReLU(sum_k G_k A_k); w_k = mean G_k; ReLU(sum_k w_k (GM * A_k)), loops over everything."""
    guidance = np.zeros(activation.shape[1:])
    for a, g in zip(activation, gradient, strict=True):
        guidance += g * a
    guidance = np.maximum(guidance, 0)
    result = np.zeros_like(guidance)
    for a, g in zip(activation, gradient, strict=True):
        result += g.mean() * (guidance * a)
    return np.maximum(result, 0)


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet", "layer3"), ("resnet", "layer2"), ("vgg", "features.22")]
)
def test_equals_the_papers_formula(request, images, targets, oracle, name, layer):
    model = request.getfixturevalue(name)
    maps = GlobalGuidanceCAM(layer)(model, images, targets)
    assert (maps.amax((1, 2)) > 0).sum() >= 3
    for row, (image, cls) in enumerate(targets.tolist()):
        activation, gradient = oracle(model, layer, images[image], cls)
        expected = paper_form(activation.double().numpy(), gradient.double().numpy())
        np.testing.assert_allclose(maps[row].numpy(), expected, atol=1e-5 * expected.max())


@pytest.mark.filterwarnings("ignore:the global guidance CAM is just")
def test_is_the_square_of_grad_cam_below_a_pooled_head(resnet, images, targets):
    cam = GradCAM("layer4")(resnet, images, targets)
    guided = GlobalGuidanceCAM("layer4")(resnet, images, targets)
    assert (cam > 0).sum() >= 10
    torch.testing.assert_close(guided, cam.square(), rtol=1e-4, atol=1e-6)


def test_differs_from_the_square_on_an_inner_layer(resnet, images, targets):
    cam = GradCAM("layer3")(resnet, images, targets)
    guided = GlobalGuidanceCAM("layer3")(resnet, images, targets)
    correlation = np.corrcoef(cam.square().flatten().numpy(), guided.flatten().numpy())[0, 1]
    assert correlation < 0.999


def test_smoothing_is_a_gaussian_in_cells(resnet, images, targets):
    plain = GlobalGuidanceCAM("layer2")(resnet, images, targets)
    smooth = GlobalGuidanceCAM("layer2", smooth=1.0)(resnet, images, targets)
    expected = np.stack([gaussian_filter(m, 1.0, mode="mirror", radius=3) for m in plain.numpy()])
    np.testing.assert_allclose(smooth.numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf")])
def test_an_impossible_sigma_is_refused(sigma):
    with pytest.raises(UserError, match="sigma of at least 0"):
        GlobalGuidanceCAM("layer4", smooth=sigma)
