"""SESS against a plain loop in numpy and OpenCV, and against grad-cam's SESS."""

import cv2
import numpy as np
import pytest
import torch
from pytorch_grad_cam import SESS as PeerSESS
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchvision.transforms.functional import resize

from wsss.errors import UserError
from wsss.saliency import SESS, ClassSubtraction, GlobalGuidanceCAM, GradCAM, MultiScale, normalize, upsample
from wsss.saliency.sess import covered, crop_scores, keep_highest, normalized_crops, resizer

OPTIONS = {"window": 64, "step": 48, "scales": (64, 83, 110)}


def grad_cam(model, layer, crop, cls, oracle):
    activation, gradient = oracle(model, layer, crop, cls)
    found = np.maximum((gradient.mean((1, 2))[:, None, None] * activation).sum(0).float().numpy(), 0)
    return cv2.resize(found, (crop.shape[2], crop.shape[1]), interpolation=cv2.INTER_LINEAR)


def by_loops(model, layer, image, cls, oracle, method):
    """Every crop by itself, in the order of the paper; maps are pasted into full frames."""
    height, width = image.shape[1:]
    places, crops = [], []
    for scale in method.scales:
        scaled = resize(image, scale, antialias=True)
        h, w = scaled.shape[1:]
        y = 0
        while True:
            top, x = min(y, h - method.window), 0
            while True:
                left = min(x, w - method.window)
                places.append((h, w, top, left))
                crops.append(scaled[:, top : top + method.window, left : left + method.window])
                if left + method.window >= w:
                    break
                x += method.step
            if top + method.window >= h:
                break
            y += method.step
    with torch.no_grad():
        logits = np.concatenate([model(crop[None]).numpy() for crop in crops])
    if method.score == "sigmoid":
        scores = 1 / (1 + np.exp(-logits[:, cls]))
    else:
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        scores = shifted[:, cls] / shifted.sum(1)
    full = []
    for index in np.argsort(scores)[int(len(crops) * method.prefilter) :]:
        h, w, top, left = places[index]
        local = grad_cam(model, layer, crops[index], cls, oracle)
        if local.max() == local.min():
            continue
        local = (local - local.min()) / (local.max() - local.min())
        local = np.where(local > 1e-6, local, 0) * scores[index] / scores.max()
        frame = np.zeros((h, w), np.float32)
        frame[top : top + method.window, left : left + method.window] = local
        full.append(cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR))
    stack = np.array(full)
    if method.pool == "max":
        fused = stack.max(0)
    else:
        above = stack > method.theta
        fused = (stack * above).sum(0) / np.maximum(above.sum(0), 1)
    return (cv2.GaussianBlur(fused, (11, 11), 5.0) if method.smooth else fused), len(crops)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefilter": 0.4, "smooth": False},
        {"theta": 0.3, "prefilter": 0.75, "batch_size": 4},
        {"pool": "max", "smooth": False, "batch_size": 9},
        {"score": "softmax", "prefilter": 0.5},
        {"step": 64, "scales": (64, 100), "batch_size": 100},
        {"scales": (64, 200), "step": 90, "smooth": False},
    ],
)
def test_equals_a_loop_over_crops(resnet, images, targets, oracle, options):
    method = SESS(GradCAM("layer3"), **OPTIONS | options)
    targets = targets[[1, 3]] if method.batch_size < 8 else targets[1:2]
    maps = method(resnet, images, targets)
    assert maps.shape == (len(targets), 96, 80)
    for row, (image, cls) in enumerate(targets.tolist()):
        expected, crops = by_loops(resnet, "layer3", images[image], cls, oracle, method)
        assert crops == len(method.windows(96, 80))
        assert expected.max() > 0.1
        difference = np.abs(maps[row].numpy() - expected)
        # Rounding decides whether a value next to theta counts, so single pixels may differ before smoothing.
        assert np.quantile(difference, 0.995) < 1e-4
        assert difference.mean() < 1e-4


def test_agrees_with_grad_cams_sess(resnet, images):
    options = {"scales": [64, 96, 128], "window_size": 64, "step_size": 64}
    peer = PeerSESS(resnet, [resnet.layer4], **options)
    expected = torch.from_numpy(peer(images[:2], [ClassifierOutputTarget(7), ClassifierOutputTarget(5)]))
    method = SESS(GradCAM("layer4"), 64, 64, (64, 96, 128), score="softmax")
    maps = normalize(method(resnet, images[:2], torch.tensor([[0, 7], [1, 5]])))
    for found, wanted in zip(maps, expected, strict=True):
        assert np.corrcoef(found.flatten().numpy(), wanted.flatten().numpy())[0, 1] > 0.999


@pytest.mark.parametrize(("size", "count"), [((224, 224), 122), ((375, 500), 157), ((500, 375), 157)])
def test_the_papers_defaults_have_the_papers_number_of_crops(size, count):
    assert len(SESS(GradCAM("layer4")).windows(*size)) == count


def test_windows_are_row_major_and_the_last_ends_at_the_border():
    windows = SESS(GradCAM("layer4"), window=4, step=3, scales=(5,)).windows(10, 16)
    assert [(w.top, w.left) for w in windows] == [(t, x) for t in (0, 1) for x in (0, 3, 4)]
    assert {w.frame for w in windows} == {(5, 8)}


@pytest.mark.parametrize("size", [(96, 80), (40, 33), (7, 50)])
def test_scales_below_the_window_use_the_whole_frame(resnet, size):
    method = SESS(GradCAM("layer3"), window=64, step=64, scales=(16, 32, 64, 70))
    assert method.windows(*size)[0].size[0] <= 64
    maps = method(resnet, torch.randn(2, 3, *size).double(), torch.tensor([[0, 7], [1, 1]]))
    assert maps.shape == (2, *size)
    assert maps.isfinite().all()
    assert 0 <= maps.min() <= maps.max() <= 1


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("prefilter", [0.0, 0.6])
def test_batches_do_not_change_maps_and_stay_within_bounds(resnet, images, targets, batch_size, prefilter):
    sizes = []
    expected = SESS(GradCAM("layer4"), **OPTIONS, prefilter=prefilter, batch_size=16)(resnet, images, targets)
    handle = resnet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    try:
        method = SESS(GradCAM("layer4"), **OPTIONS, prefilter=prefilter, batch_size=batch_size)
        maps = method(resnet, images, targets)
    finally:
        handle.remove()
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=0)
    assert max(sizes) <= batch_size
    assert sum(sizes) == 3 * len(method.windows(96, 80))  # each crop once, whatever the number of classes


def test_prefiltered_crops_cost_no_backward_pass(resnet, images, monkeypatch):
    rounds, differentiate = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: rounds.append(1) or differentiate(*a, **k))
    method = SESS(GradCAM("layer4"), **OPTIONS, prefilter=0.9, batch_size=1)
    method(resnet, images[:1], torch.tensor([[0, 7]]))
    crops = len(method.windows(96, 80))
    assert len(rounds) == crops - int(crops * 0.9)


def test_a_crop_without_evidence_contributes_nothing(images):
    """A classifier whose evidence is the positive pixels of the left half: right crops have none."""
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    picture = images[:1].abs()
    picture[..., 40:] = 0
    maps = SESS(GradCAM("0"), window=40, step=40, scales=(80,), smooth=False)(
        model, picture, torch.tensor([[0, 0]])
    )
    assert maps[..., 42:].max() == 0
    assert maps[..., :40].max() > 0.4


def test_a_map_that_is_constant_but_for_rounding_contributes_nothing_and_a_faint_one_all():
    constant, faint = torch.full((1, 4, 4), 0.3), torch.zeros(1, 4, 4)
    rounded = constant * (1 + 2e-7 * torch.rand(1, 4, 4))
    assert upsample(constant, (64, 48)).unique().numel() > 1  # resizing blurs it
    for maps in (constant, -constant, rounded, torch.zeros(1, 4, 4)):
        assert torch.equal(normalized_crops(maps, (64, 48)), torch.zeros(1, 64, 48))
    faint[0, 1, 2] = 1e-12
    large = upsample(faint, (64, 48))
    torch.testing.assert_close(normalized_crops(faint, (64, 48)), large / large.max())
    torch.testing.assert_close(normalized_crops(5 + 1e12 * faint, (64, 48)), large / large.max())


def test_saturated_and_vanishing_probabilities_still_weigh_crops(resnet, images):
    model = nn.Sequential(resnet, nn.Linear(12, 1, dtype=torch.float64))
    model[1].weight.data.mul_(1e-3)
    for bias in (-300.0, 300.0):
        model[1].bias.data.fill_(bias)
        maps = SESS(GradCAM("0.layer3"), **OPTIONS, prefilter=0.5)(model, images[:1], torch.tensor([[0, 0]]))
        assert maps.isfinite().all()
        assert maps.max() > 0.1


def test_scores_are_log_odds_and_log_probabilities():
    logits = torch.randn(5, 2, 4)
    classes = torch.tensor([3, 1])
    odds, log_probability = crop_scores(logits, classes, "softmax")
    expected = logits.softmax(2)[:, [0, 1], classes].T
    torch.testing.assert_close(log_probability.exp(), expected)
    torch.testing.assert_close(odds.sigmoid(), expected)
    odds, log_probability = crop_scores(logits, classes, "sigmoid")
    torch.testing.assert_close(odds, logits[:, [0, 1], classes].T)
    torch.testing.assert_close(log_probability.exp(), odds.sigmoid())


def test_prefilter_drops_the_lowest_of_each_class():
    kept = keep_highest(torch.tensor([[3.0, 1, 2, 0, 9], [0, 0, 0, 0, 0]]), 0.5)
    assert kept.tolist() == [[True, False, True, False, True], [False, False, True, True, True]]


@pytest.mark.parametrize(("length", "target"), [(17, 40), (40, 17), (9, 9), (224, 31)])
def test_a_region_outside_the_covered_pixels_gets_nothing(length, target):
    matrix = resizer(length, target, torch.device("cpu"))
    signal = np.random.default_rng(0).random(length, dtype=np.float32)
    expected = cv2.resize(signal[None], (target, 1), interpolation=cv2.INTER_LINEAR)[0]
    np.testing.assert_allclose((matrix @ torch.from_numpy(signal)).numpy(), expected, atol=2e-5)
    for start in range(0, length - 3, 3):
        outside = torch.ones(target, dtype=torch.bool)
        outside[covered(start, 4, length, target)] = False
        assert matrix[outside, start : start + 4].abs().sum() == 0


@pytest.mark.parametrize("prefilter", [0.0, 0.4])
def test_crops_are_the_normalised_base_maps_of_the_kept_windows_and_weigh_by_score(
    resnet, images, targets, prefilter
):
    method = SESS(GradCAM("layer3"), **OPTIONS, prefilter=prefilter)
    crops = method.crops(resnet, images, targets)
    assert crops.windows == method.windows(96, 80)
    assert (~crops.kept).sum(1).tolist() == [int(len(crops.windows) * prefilter)] * len(targets)
    for row, (image, cls) in enumerate(targets.tolist()):
        maps = crops.maps(row)
        assert sorted(maps) == crops.kept[row].nonzero()[:, 0].tolist()
        scores = []
        for index, (frame, top, left, (height, width)) in enumerate(crops.windows):
            scaled = resize(images[image], frame, antialias=True)
            crop = scaled[None, :, top : top + height, left : left + width]
            scores.append(resnet(crop)[0, cls].sigmoid().item())
            if index in maps:
                raw = GradCAM("layer3")(resnet, crop, torch.tensor([[0, cls]]))[0].numpy()
                large = cv2.resize(raw, (width, height), interpolation=cv2.INTER_LINEAR)
                expected = (large - large.min()) / max(large.max() - large.min(), 1e-30)
                np.testing.assert_allclose(maps[index], expected, atol=1e-5)
        np.testing.assert_allclose(crops.weights[row], np.divide(scores, max(scores)), rtol=1e-6)


def test_nests_with_the_other_wrappers(resnet, images, targets):
    method = ClassSubtraction(MultiScale(SESS(GlobalGuidanceCAM("layer3"), **OPTIONS), scales=(0.5, 1.0)))
    maps = method(resnet, images, targets)
    assert maps.shape == (6, 96, 80)
    assert maps.max() > 0
    assert eval(repr(method)) == method


def test_a_class_out_of_range_is_refused(resnet, images):
    for prefilter in (0.0, 0.5):
        with pytest.raises(ValueError, match="class index 12"):
            SESS(GradCAM("layer4"), **OPTIONS, prefilter=prefilter)(resnet, images, torch.tensor([[0, 12]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "at least 1"),
        ({"step": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"prefilter": 1.0}, "prefilter and theta"),
        ({"theta": -0.1}, "prefilter and theta"),
        ({"pool": "sum"}, "got 'sum', 'sigmoid'"),
        ({"score": "logit"}, "got 'mean', 'logit'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SESS(GradCAM("layer4"), **options)
