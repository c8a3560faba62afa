"""DCSM against plain loops over scales, layers and classes, and the algebra of its definition."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from wsss.errors import UserError
from wsss.models.vgg import VGG16
from wsss.saliency import DCSM, SESS, dcsm
from wsss.saliency.base import upsample
from wsss.saliency.dcsm import caffe_term, default_layers, guided_maps, paper_term

SCALES = (1.0, 1.3)


class FullyConvolutional(nn.Module):
    """A small VGG with a score map, laid out as wsss's own: (B, 5, H / 8, W / 8)."""

    def __init__(self):
        super().__init__()
        blocks: list[list[nn.Module]] = [
            [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True), *pool]
            for channels, width, pool in (
                (3, 8, [nn.MaxPool2d(2)]),
                (8, 16, [nn.MaxPool2d(2)]),
                (16, 32, []),
                (32, 32, [nn.MaxPool2d(2)]),
                (32, 32, []),
            )
        ]
        self.features = nn.Sequential(*(module for block in blocks for module in block))
        self.fc8 = nn.Conv2d(32, 5, 3, padding=1)
        for parameter in self.parameters():
            parameter.data *= 1.5

    def score_map(self, images):
        return self.fc8(self.features(images))

    def forward(self, images):
        return self.score_map(images).amax((2, 3))


@pytest.fixture(scope="module")
def network(seed):
    torch.manual_seed(seed + 5)
    return FullyConvolutional().double().eval()


@pytest.fixture
def photos(seed):
    return torch.randn(3, 3, 40, 48, generator=torch.Generator().manual_seed(seed + 2)).double()


@pytest.fixture
def pairs():
    return torch.tensor([[2, 4], [0, 1], [1, 0], [0, 3], [2, 2], [0, 4]])


def resized(image, height, width):
    """(3, H, W) -> (3, height, width), by torchvision."""
    return torchvision.transforms.functional.resize(image, [height, width], antialias=True)


def plain_gradients(network, image, cls, side):
    """{layer: (k, u, v)} of one image and class by one backward pass with module hooks."""
    model, kept = copy.deepcopy(network), {}

    def rectify(module, grad_input, grad_output):
        return (grad_input[0].clamp(min=0) * (grad_output[0] > 0),)

    for name, module in model.features.named_children():
        if isinstance(module, nn.ReLU):
            fresh = nn.ReLU()  # not in place, and not shared
            fresh.register_full_backward_hook(rectify)
            setattr(model.features, name, fresh)

    hidden = image[None].clone().requires_grad_()
    for name, module in model.features.named_children():
        before, hidden = hidden, module(hidden)
        for tensor, key in ((before, ("input", name)), (hidden, ("output", name))):
            tensor.retain_grad()
            kept[key] = tensor
    model.fc8(hidden)[0, cls].sum().backward()
    return {name: t.grad[0].numpy() for (where, name), t in kept.items() if where == side}


def enlarged(values, size):
    return upsample(torch.from_numpy(np.ascontiguousarray(values))[None], size)[0].numpy()


def paper_by_loops(network, image, cls, others, alpha=3.0, scales=SCALES):
    height, width = image.shape[1:]
    total = np.zeros((height, width))
    for scale in scales:
        scaled = resized(image, round(height * scale), round(width * scale))
        gradients = {c: plain_gradients(network, scaled, c, "output") for c in (cls, *others)}
        for layer in ("7", "9", "12"):
            maps = {}
            for c in gradients:
                strongest = np.abs(gradients[c][layer]).max(0)
                maps[c] = enlarged(strongest / strongest.max(), (height, width))
            for y, x in np.ndindex(height, width):
                excess = sum(max(maps[cls][y, x] - maps[c][y, x], 0) for c in others)
                total[y, x] += np.tanh(alpha * (excess if others else maps[cls][y, x]))
    return total / (3 * len(scales))


def caffe_by_loops(network, image, cls, others, side, alpha=3.0):
    square = resized(image, side, side)
    gradients = {c: plain_gradients(network, square, c, "input") for c in (cls, *others)}
    total = np.zeros((side, side))
    for layer in ("6", "8", "11"):
        maps = {c: enlarged(gradients[c][layer].max(0), (side, side)) for c in gradients}
        differences = np.zeros((side, side))
        for c in others:
            difference = maps[cls] - maps[c]
            if difference.max() > 0:
                differences += difference * alpha / difference.max()
        if differences.max() > 0:
            total += np.tanh(differences * alpha / differences.max())
    return np.maximum(total / total.max(), 0) if total.max() > 0 else np.zeros_like(total)


def others_of(pairs, image, cls):
    return [c for i, c in pairs.tolist() if i == image and c != cls]


def test_paper_variant_is_that_of_plain_loops(network, photos, pairs):
    maps = DCSM(scales=SCALES, batch_size=2)(network, photos, pairs)
    assert maps.shape == (6, 40, 48)
    for row, (image, cls) in enumerate(pairs.tolist()):
        expected = paper_by_loops(network, photos[image], cls, others_of(pairs, image, cls))
        assert expected.max() > 0.1
        np.testing.assert_allclose(maps[row].numpy(), expected, atol=1e-4)


def test_caffe_variant_is_that_of_plain_loops(network, photos, monkeypatch):
    assert dcsm.CAFFE_SIDE == 512
    monkeypatch.setattr(dcsm, "CAFFE_SIDE", 96)  # a twentieth of the time
    best = network(resized(photos[0], 96, 96)[None])[0].argsort(descending=True).tolist()
    inside, outside = best[1], best[4]  # of the three highest scores, and not
    maps = DCSM(variant="caffe")(network, photos[:1], torch.tensor([[0, inside], [0, outside]]))
    assert maps.shape == (2, 96, 96)
    for ours, cls in zip(maps, (inside, outside), strict=True):
        expected = caffe_by_loops(network, photos[0], cls, [c for c in best[:3] if c != cls], 96)
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-4)


def test_with_two_classes_the_sum_of_maps_is_the_absolute_difference(network, photos):
    """tanh is odd: max(a - b, 0) + max(b - a, 0) = |a - b|, layer by layer."""
    own, other = torch.rand(2, 7, 5)
    both = paper_term(own, other[None], 3.0) + paper_term(other, own[None], 3.0)
    torch.testing.assert_close(both, (3 * (own - other).abs()).tanh())
    maps = DCSM(scales=(1.0,))(network, photos[:1], torch.tensor([[0, 1], [0, 3]]))
    assert maps.amin() >= 0
    assert maps.amax() <= 1


def test_is_linear_in_a_small_alpha(network, photos, pairs):
    small, half = (DCSM(scales=(1.0,), alpha=alpha)(network, photos, pairs) / alpha for alpha in (1e-3, 5e-4))
    torch.testing.assert_close(small, half, rtol=1e-4, atol=1e-5)


def test_a_class_alone_is_not_subtracted_from(network, photos):
    alone = DCSM(scales=(1.0,))(network, photos[:1], torch.tensor([[0, 1]]))
    np.testing.assert_allclose(
        alone[0].numpy(), paper_by_loops(network, photos[0], 1, [], scales=(1.0,)), atol=1e-4
    )


def test_candidates_of_the_classifier_are_rivals_too(network, photos):
    probabilities = network(photos)[0].detach().sigmoid()
    threshold = float(probabilities.sort().values[-3:-1].mean())  # the two highest are above it
    confident = (probabilities > threshold).nonzero()[:, 0].tolist()
    cls = int(probabilities.argmin())
    maps = DCSM(scales=(1.0,), candidates="classifier", threshold=threshold)(
        network, photos, torch.tensor([[0, cls]])
    )
    named = DCSM(scales=(1.0,))(network, photos, torch.tensor([[0, cls], *([0, c] for c in confident)]))
    assert len(confident) == 2
    torch.testing.assert_close(maps[0], named[0])


def test_softmax_probabilities_choose_other_candidates(network, photos):
    targets = torch.tensor([[0, 1]])
    maps = [
        DCSM(scales=(1.0,), candidates="classifier", threshold=0.3, score=score)(network, photos, targets)
        for score in ("sigmoid", "softmax")
    ]
    assert not torch.allclose(*maps)


def test_a_class_that_loses_everywhere_makes_zeros_in_both_variants():
    own, others = torch.zeros(4, 4), torch.ones(2, 4, 4)
    for term in (paper_term, caffe_term):
        assert torch.equal(term(own, others, 3.0), torch.zeros(4, 4))


def test_a_convolution_is_also_guided_by_its_own_relu(network, photos):
    targets = torch.tensor([[0, 1]])
    before, after = (guided_maps(network, photos[:1], [layer], "output", targets, absolute=True)[0]
                     for layer in ("features.8", "features.9"))  # fmt: skip
    gradient = plain_gradients(network, photos[0], 1, "output")["8"]
    torch.testing.assert_close(before[0], torch.from_numpy(gradient).abs().amax(0).float())
    assert not torch.allclose(before, after)


def test_order_repetition_and_company_of_images_do_not_matter(network, photos, pairs):
    method = DCSM(scales=SCALES, batch_size=1)
    together = method(network, photos, pairs)
    again = method(network, photos, torch.cat((pairs.flip(0), pairs[:1])))
    torch.testing.assert_close(again[:6], together.flip(0))
    torch.testing.assert_close(again[6], together[0])
    torch.testing.assert_close(method(network, photos[1:2], torch.tensor([[0, 0]]))[0], together[2])


def test_the_layers_of_vgg_and_resnet_are_found_by_structure():
    relus = tuple(f"features.{n}" for n in (11, 13, 15, 18, 20, 22, 25, 27, 29))
    convolutions = tuple(f"features.{n}" for n in (10, 12, 14, 17, 19, 21, 24, 26, 28))
    with torch.device("meta"):
        vgg, vgg_bn, own = torchvision.models.vgg16(), torchvision.models.vgg16_bn(), VGG16(3)
        resnet, other = torchvision.models.resnet18(), torchvision.models.mobilenet_v2()
    for model in (vgg, own):
        assert default_layers(model, "output") == relus
        assert default_layers(model, "input") == convolutions
    found = default_layers(vgg_bn, "output")
    assert len(found) == 9
    assert found[0] == "features.16"
    assert default_layers(resnet, "output") == ("layer2", "layer3", "layer4")
    with pytest.raises(UserError, match="VGG and ResNet classifiers only: name this one's"):
        default_layers(other, "output")


def test_one_forward_for_each_scale(resnet, images, targets, monkeypatch):
    forwards, backwards, differentiate = [], [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: backwards.append(1) or differentiate(*a, **k))
    handle = resnet.register_forward_pre_hook(lambda module, inputs: forwards.append(inputs[0].shape[-2:]))
    try:
        DCSM(scales=(0.5, 0.7))(resnet, images, targets)
    finally:
        handle.remove()
    assert forwards == [(48, 40), (67, 56)]
    assert len(backwards) == 6  # image 0 has three targets


def test_brings_its_own_scales_and_describes_itself():
    assert DCSM().own_scales
    assert "scales=(1.0, 1.2, 1.4, 1.6), alpha=3.0" in repr(DCSM())
    assert DCSM(layers=["layer4"], scales=[1.0]) == DCSM(layers=("layer4",), scales=(1.0,))


def test_the_crops_of_sess_may_be_explained_by_it(network, photos):
    sess = SESS(DCSM(scales=(1.0,)), window=32, step=32, scales=(32, 48), smooth=False)
    maps = sess(network, photos, torch.tensor([[0, 1], [0, 3]]))
    assert maps.shape == (2, 40, 48)
    assert maps.amax((1, 2)).min() > 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"variant": "torch"}, "variant must be 'paper' or 'caffe'"),
        ({"candidates": "all"}, "candidates 'targets' or 'classifier'"),
        ({"score": "tanh"}, "'sigmoid' or 'softmax', got 'tanh'"),
        ({"layers": ()}, "at least one layer"),
        ({"scales": (1.0, 0.0)}, "only positive scales"),
        ({"alpha": 0.0}, "a positive alpha"),
        ({"threshold": 1.0}, r"a threshold in \[0, 1\)"),
        ({"batch_size": 0}, "batch_size of at least 1"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, message):
    with pytest.raises(UserError, match=message):
        DCSM(**parameters)


def test_layers_and_classes_that_do_not_fit_are_refused(network, resnet, photos):
    target = torch.tensor([[0, 1]])
    with pytest.raises(UserError, match=r"layer 'fc' must give feature maps .* shape \(1, 12\)"):
        DCSM(layers=("fc",))(resnet, photos, target)
    idle = copy.deepcopy(network)
    idle.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(UserError, match="do not depend on layer 'spare'"):
        DCSM(layers=("features.9", "spare"))(idle, photos, target)
    with pytest.raises(ValueError, match=r"class index 5 is out of range: there are 5, 0\.\.4"):
        DCSM()(network, photos, torch.tensor([[0, 5]]))


def test_a_score_map_that_is_none_is_refused(network, photos):
    wrong = copy.deepcopy(network)
    wrong.score_map = lambda images: images.mean((2, 3))
    with pytest.raises(UserError, match=r"score_map must return a tensor \(images, classes, h, w\)"):
        DCSM()(wrong, photos, torch.tensor([[0, 1]]))
