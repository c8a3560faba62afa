"""Score-CAM against grad-cam's and plain loops, Group-CAM against plain loops, and their cost."""

import copy

import cv2
import numpy as np
import pytest
import torch
from pytorch_grad_cam import ScoreCAM as PeerScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from wsss.errors import UserError
from wsss.saliency import GroupCAM, ScoreCAM, normalize, upsample
from wsss.saliency.perturbation import group_sums, images_per_pass


@pytest.fixture
def images(seed):
    """Blobs: the blur of Group-CAM would turn noise into grey, whatever the mask."""
    blobs = 2 * torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(seed + 1))
    return nn.functional.interpolate(blobs, scale_factor=8, mode="bicubic")


@pytest.fixture
def targets():
    return torch.tensor([[1, 4], [0, 3], [1, 0]])


class Tiny(nn.Module):
    """Few channels, some of them constant, and a head that is not linear in the input."""

    def __init__(self, channels=7):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 5, stride=4, padding=2), nn.ReLU(inplace=True))
        with torch.no_grad():
            self.stem[0].weight[[1, 4]] = 0
            self.stem[0].bias[1], self.stem[0].bias[4] = 0.7, -1.0
        self.head = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.5)
        )
        self.classes = nn.Linear(8, 5)
        with torch.no_grad():  # opposite classes: a mask that lowers the score of one raises the other's
            self.classes.weight[1::2] = -self.classes.weight[:4:2]
            self.classes.bias.zero_()

    def forward(self, images):
        return 20 * self.classes(self.head(self.stem(images)).mean((2, 3)))


@pytest.fixture
def tiny(seed):
    torch.manual_seed(seed + 3)
    return Tiny().eval()


def stretched(channel, size):
    """A channel resized by OpenCV and min-max normalised; None if it is constant."""
    wide = cv2.resize(channel, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return None if channel.max() == channel.min() else (wide - wide.min()) / (wide.max() - wide.min())


def probability(model, image, cls, score):
    with torch.no_grad():
        logits = model(torch.from_numpy(image).to(next(model.parameters()).dtype)[None])[0]
    return float(logits.sigmoid()[cls] if score == "sigmoid" else logits.softmax(0)[cls])


def score_cam_loop(model, layer, oracle, image, cls, score):
    activation = oracle(model, layer, image, cls)[0].numpy()
    result = np.zeros(activation.shape[1:])
    for channel in activation:
        mask = stretched(channel, image.shape[1:])
        if mask is not None:
            result += probability(model, image.numpy() * mask, cls, score) * channel
    return np.maximum(result, 0)


def group_cam_loop(model, layer, oracle, image, cls, score, groups):
    activation, gradient = (t.numpy() for t in oracle(model, layer, image, cls))
    channels = gradient.mean((1, 2))[:, None, None] * activation
    blurred = np.stack([cv2.GaussianBlur(plane, (51, 51), 50.0) for plane in image.numpy()])
    floor = probability(model, blurred, cls, score)
    result = np.zeros(activation.shape[1:])
    width = -(-len(channels) // groups)
    for start in range(0, len(channels), width):
        group = np.maximum(channels[start : start + width].sum(0), 0)
        mask = stretched(group, image.shape[1:])
        if mask is not None:
            mixed = image.numpy() * mask + blurred * (1 - mask)
            result += max(probability(model, mixed, cls, score) - floor, 0) * group
    return result


def counted(model, action):
    """How many images passed the model, in how many forwards, and the largest batch."""
    sizes = []
    handle = model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    try:
        action()
    finally:
        handle.remove()
    return sum(sizes), len(sizes), max(sizes)


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet", "layer1"), pytest.param("vgg", "features.3", marks=pytest.mark.slow)]
)  # 64 channels
def test_score_cam_agrees_with_the_grad_cam_package(request, images, name, layer, monkeypatch):
    monkeypatch.setattr("tqdm.tqdm", lambda rows: rows)
    model, targets = request.getfixturevalue(name), torch.tensor([[0, 5]])
    images = images[:1, :, :32].double()
    with PeerScoreCAM(model, [model.get_submodule(layer)]) as cam:
        wanted = [ClassifierOutputTarget(int(cls)) for cls in targets[:, 1]]
        expected = torch.from_numpy(cam(images[targets[:, 0]], targets=wanted))
    maps = upsample(ScoreCAM(layer, "channel_softmax")(model, images, targets), (32, 40))
    assert expected.amax((1, 2)).min() > 0.99
    assert (normalize(maps) - normalize(expected)).abs().max() < 1e-4


def test_constant_channels_score_the_black_image_as_in_the_grad_cam_package(tiny, images):
    targets = torch.tensor([[0, 2], [1, 4]])
    with PeerScoreCAM(tiny, [tiny.stem]) as cam:
        wanted = [ClassifierOutputTarget(int(cls)) for cls in targets[:, 1]]
        expected = torch.from_numpy(cam(images, targets=wanted))
    maps = upsample(ScoreCAM("stem", "channel_softmax", batch_size=3)(tiny, images, targets), (48, 40))
    assert (normalize(maps) - normalize(expected)).abs().max() < 1e-4


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_score_cam_is_the_loop_over_channels(tiny, images, oracle, score):
    targets = torch.tensor([[1, 2], [0, 4], [1, 0]])
    maps = ScoreCAM("stem", score=score, batch_size=2)(tiny, images, targets)
    for row, (image, cls) in enumerate(targets.tolist()):
        expected = score_cam_loop(tiny, "stem", oracle, images[image], cls, score)
        assert expected.max() > 0
        np.testing.assert_allclose(maps[row].numpy(), expected, atol=1e-4 * expected.max())


def test_score_cam_is_the_loop_over_channels_of_a_resnet(resnet, images, oracle):
    resnet, images = copy.deepcopy(resnet).float(), images[:, :, :32]  # float32 is folded
    maps = ScoreCAM("layer1")(resnet, images, torch.tensor([[1, 6]]))
    expected = score_cam_loop(resnet, "layer1", oracle, images[1], 6, "sigmoid")
    np.testing.assert_allclose(maps[0].numpy(), expected, atol=1e-4 * expected.max())


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
@pytest.mark.parametrize("groups", [1, 3, 7, 32])
def test_group_cam_is_the_loop_over_groups(tiny, images, oracle, groups, score):
    targets = torch.tensor([[image, cls] for cls in (2, 4, 0, 3, 1) for image in (1, 0)])
    maps = GroupCAM("stem", groups, score, batch_size=4)(tiny, images, targets)
    assert (maps.amax((1, 2)) > 0).sum() >= 2
    for row, (image, cls) in enumerate(targets.tolist()):
        expected = group_cam_loop(tiny, "stem", oracle, images[image], cls, score, groups)
        np.testing.assert_allclose(maps[row].numpy(), expected, atol=1e-4 * max(expected.max(), 1e-3))


@pytest.mark.parametrize(("name", "layer"), [("resnet", "layer3"), ("vgg", "features.29")])
def test_group_cam_is_the_loop_over_groups_of_a_deep_network(request, images, oracle, name, layer):
    model, images = request.getfixturevalue(name), images.double()
    targets = torch.tensor(
        [[1, 7], *([0, cls] for cls in range(8))]
    )  # of most classes no mask raises the score
    maps = GroupCAM(layer, groups=5)(model, images, targets)
    largest = 0.0
    for row, (image, cls) in enumerate(targets.tolist()):
        expected = group_cam_loop(model, layer, oracle, images[image], cls, "sigmoid", 5)
        largest = max(largest, expected.max())
        np.testing.assert_allclose(maps[row].numpy(), expected, atol=1e-4 * max(expected.max(), 1e-9))
    assert largest > 0


@pytest.mark.parametrize(("channels", "groups"), [(10, 4), (7, 32), (9, 3), (100, 32), (1, 1)])
def test_groups_are_those_of_chunk(channels, groups):
    values = torch.randn(2, channels, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([part.sum(1).relu() for part in values.chunk(groups, 1)], dim=1)
    sums = group_sums(values, groups)
    assert sums.shape[1] == groups
    torch.testing.assert_close(sums[:, : expected.shape[1]], expected)
    assert (sums[:, expected.shape[1] :] == 0).all()


def test_one_set_of_masked_forwards_serves_all_classes_and_skips_constant_channels(tiny, images):
    targets = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 3]])
    passed, _, largest = counted(tiny, lambda: ScoreCAM("stem", batch_size=2)(tiny, images, targets))
    # The image, the masks of the channels that are not constant, and the image twice to try the folding.
    assert passed == 1 + 5 + 2
    assert largest == 2


def test_group_cam_scores_the_image_the_blurred_image_and_live_groups(tiny, images):
    targets = torch.tensor([[0, 0], [0, 1], [0, 2]])
    passed, _, largest = counted(
        tiny, lambda: GroupCAM("stem", groups=7, batch_size=4)(tiny, images, targets)
    )
    assert 4 < passed <= 4 + 3 * 5  # two of seven channels are constant, two passes try the folding
    assert largest <= 4


@pytest.mark.parametrize("method", [ScoreCAM("stem"), ScoreCAM("stem", "channel_softmax"), GroupCAM("stem")])
def test_a_dead_layer_gives_zeros(tiny, images, method):
    with torch.no_grad():
        tiny.stem[0].weight.zero_()
        tiny.stem[0].bias.fill_(-1)
    maps = method(tiny, images, torch.tensor([[0, 1], [1, 2]]))
    assert torch.equal(maps, torch.zeros(2, 12, 10))


def test_without_any_gain_group_cam_is_zero(images):
    class Indifferent(Tiny):
        def forward(self, images):
            logits = super().forward(images)
            return logits - logits.detach()  # a gradient, but always the same score

    maps = GroupCAM("stem")(Indifferent().eval(), images, torch.tensor([[0, 1], [1, 2]]))
    assert torch.equal(maps, torch.zeros(2, 12, 10))


def test_on_a_cpu_a_pass_holds_about_a_million_pixels():
    sizes = [(16, 16), (224, 224), (448, 448), (3000, 2000)]
    assert [images_per_pass(32, torch.zeros(1, 1, *size)) for size in sizes] == [32, 20, 5, 1]
    assert images_per_pass(32, torch.zeros(1, 3, 448, 448, device="meta")) == 32


METHODS = [ScoreCAM("stem"), ScoreCAM("stem", "channel_softmax", batch_size=3), GroupCAM("stem", 6)]


@pytest.mark.parametrize("method", METHODS)
def test_order_company_and_batch_size_do_not_matter(tiny, images, targets, method):
    together = method(tiny, images, targets)
    alone = type(method)(**{**vars(method), "batch_size": 64})(tiny, images[1:], torch.tensor([[0, 0]]))
    torch.testing.assert_close(together[2], alone[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", [ScoreCAM("stem"), GroupCAM("stem")])
def test_a_class_out_of_range_is_refused(tiny, images, method):
    with pytest.raises(ValueError, match="class index 5 is out of range"):
        method(tiny, images, torch.tensor([[0, 5]]))


def test_unfit_layers_are_refused(tiny, images):
    with pytest.raises(UserError, match="no layer 'steam'; close names: stem"):
        ScoreCAM("steam")(tiny, images, torch.tensor([[0, 1]]))
    tiny.idle = nn.Conv2d(3, 3, 1)
    with pytest.raises(UserError, match="does not run in the forward pass"):
        ScoreCAM("idle")(tiny, images, torch.tensor([[0, 1]]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScoreCAM("x", "gradient"), "weights must be 'posterior' or 'channel_softmax'"),
        (lambda: ScoreCAM("x", score="logit"), "score must be 'sigmoid' or 'softmax', got 'logit'"),
        (lambda: ScoreCAM("x", batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: GroupCAM("x", groups=0), "groups must be at least 1"),
        (lambda: GroupCAM("x", blur_kernel=50), "odd blur_kernel"),
        (lambda: GroupCAM("x", blur_sigma=0.0), "blur_sigma above 0"),
    ],
)
def test_impossible_parameters_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
