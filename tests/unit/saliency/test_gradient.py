"""Gradient and guided backpropagation against captum's own and a plain-loop oracle, and their cost."""

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from wsss.errors import UserError
from wsss.saliency import SESS, Gradient, GuidedBackprop
from wsss.saliency.gradient import graph_nodes, guide

PEERS = {Gradient: captum.attr.Saliency, GuidedBackprop: captum.attr.GuidedBackprop}
METHODS = [Gradient(), GuidedBackprop()]


def peer_gradients(method, model, images, targets):
    """(N, 3, H, W), signed, one forward and backward per target."""
    peer = PEERS[type(method)](model)
    options = {} if isinstance(method, GuidedBackprop) else {"abs": False}
    return torch.cat(
        [
            peer.attribute(images[i : i + 1].clone().requires_grad_(), target=int(c), **options)
            for i, c in targets
        ]
    ).detach()


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["resnet", "vgg"])
def test_is_exactly_that_of_captum(request, images, targets, method, name):
    model = request.getfixturevalue(name)
    images, targets = images[:, :, :64, :48], targets[:4]
    expected = peer_gradients(method, model, images, targets)
    signed = method.gradients(model, images, targets)
    assert signed.shape == (4, 3, 64, 48)
    assert expected.abs().max() > 0
    # `gradients` casts its result to float32.
    torch.testing.assert_close(signed.double(), expected, rtol=1e-6, atol=float(1e-9 * expected.abs().max()))
    maps = method(model, images, targets)
    torch.testing.assert_close(maps, signed.abs().amax(1), rtol=0, atol=0)
    alone = method.gradients(model, images[:1], targets[1:2])
    assert torch.equal(alone, expected[1:2].float())


def guided_by_hand(linears, image, cls):
    """Guided gradient of a multilayer perceptron, neuron by neuron."""
    outputs, hidden = [], image
    for number, linear in enumerate(linears):
        hidden = [
            sum(w * h for w, h in zip(row, hidden, strict=True)) + b
            for row, b in zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)
        ]
        if number < len(linears) - 1:
            hidden = [max(value, 0.0) for value in hidden]
        outputs.append(hidden)
    gradient = [float(index == cls) for index in range(len(hidden))]
    for number in reversed(range(len(linears))):
        if number < len(linears) - 1:
            gradient = [
                g if g > 0 and out > 0 else 0.0 for g, out in zip(gradient, outputs[number], strict=True)
            ]
        gradient = [
            sum(g * row[j] for g, row in zip(gradient, linears[number].weight.tolist(), strict=True))
            for j in range(linears[number].in_features)
        ]
    return torch.tensor(gradient)


class Perceptron(nn.Module):
    """Three linear layers with the ReLU given."""

    def __init__(self, rectify):
        super().__init__()
        torch.manual_seed(3)
        self.linears = nn.ModuleList([nn.Linear(12, 9), nn.Linear(9, 9), nn.Linear(9, 3)])
        self.rectify = rectify

    def forward(self, images):
        hidden = images.flatten(1)
        for linear in self.linears[:-1]:
            hidden = self.rectify(linear(hidden))
        return self.linears[-1](hidden)


@pytest.mark.parametrize(
    "rectify", [nn.ReLU(), nn.ReLU(inplace=True), torch.relu, F.relu, torch.relu_, lambda h: h.relu()]
)
def test_guides_every_kind_of_relu_as_by_hand(rectify):
    model, images = Perceptron(rectify), torch.randn(2, 3, 2, 2)
    targets = torch.tensor([[1, 2], [0, 0], [0, 1], [1, 0]])
    guided = GuidedBackprop().gradients(model, images, targets)
    for row, (image, cls) in enumerate(targets.tolist()):
        expected = guided_by_hand(model.linears, images[image].flatten().tolist(), cls)
        torch.testing.assert_close(guided[row].flatten(), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(guided, Gradient().gradients(model, images, targets))


def test_guides_a_non_reentrant_checkpoint(images):
    model = Perceptron(torch.relu)

    def checkpointed(hidden):
        return checkpoint(torch.relu, hidden, use_reentrant=False)

    targets = torch.tensor([[0, 1], [0, 2]])
    other = Perceptron(checkpointed)
    images = images[:1, :, :2, :2].float()
    assert torch.equal(GuidedBackprop()(model, images, targets), GuidedBackprop()(other, images, targets))


def test_finds_all_relus_of_a_network(resnet, vgg, images):
    for model, count in ((resnet, 17), (vgg, 14)):
        assert guide(model(images.requires_grad_())) == count


def test_each_node_of_a_graph_is_visited_once():
    leaf = torch.ones(2, requires_grad=True)
    twice = leaf.relu()
    assert len([node for node in graph_nodes(twice * twice + twice) if node.name() == "ReluBackward0"]) == 1


def rectify_view(hidden):
    return F.relu(hidden[:, :], inplace=True)


class Sealed(torch.autograd.Function):
    """A ReLU that the graph does not show, as in what torch.compile makes."""

    @staticmethod
    def forward(ctx, hidden):
        ctx.save_for_backward(hidden)
        return hidden.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (ctx.saved_tensors[0] > 0)


@pytest.mark.parametrize(
    ("rectify", "message"),
    [
        (rectify_view, "cannot see into .*CopySlices.* in-place ReLUs on views"),
        (Sealed.apply, "cannot see into .*SealedBackward"),
        (F.gelu, "found no ReLU .* use Gradient"),
    ],
)
def test_a_model_whose_relus_cannot_be_caught_is_refused(rectify, message):
    model, images, targets = Perceptron(rectify), torch.randn(1, 3, 2, 2), torch.tensor([[0, 1]])
    with pytest.raises(UserError, match=message):
        GuidedBackprop()(model, images, targets)
    assert Gradient()(model, images, targets).shape == (1, 2, 2)


@pytest.mark.parametrize("method", METHODS)
def test_hooks_of_the_callers_change_nothing(resnet, images, targets, method):
    expected, seen = method(resnet, images, targets), []
    handles = [
        module.register_full_backward_hook(lambda *values: seen.append(values))
        for module in (resnet.layer4, resnet)
    ]
    try:
        assert torch.equal(method(resnet, images, targets), expected)
    finally:
        for handle in handles:
            handle.remove()
    assert seen


@pytest.mark.parametrize("method", METHODS)
def test_a_classifier_without_a_graph_is_refused(method):
    with pytest.raises(UserError, match=f"{type(method).__name__} needs logits that can be differentiated"):
        method(Perceptron(torch.detach), torch.randn(1, 3, 2, 2), torch.tensor([[0, 1]]))


@pytest.mark.parametrize("method", METHODS)
def test_a_classifier_may_change_its_input_in_place(resnet, images, targets, method):
    class Normalizing(nn.Module):
        def forward(self, images):
            return resnet(images.mul_(0.5))

    before = images.clone()
    maps = method(Normalizing(), images, targets)
    torch.testing.assert_close(maps, method(resnet, images / 2, targets) / 2)
    assert torch.equal(images, before)


@pytest.mark.parametrize("method", METHODS)
def test_one_forward_and_as_many_backwards_as_classes_on_one_image(
    resnet, images, targets, monkeypatch, method
):
    forwards, backwards, differentiate = [], [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: backwards.append(1) or differentiate(*a, **k))
    handle = resnet.register_forward_pre_hook(lambda module, inputs: forwards.append(len(inputs[0])))
    try:
        method(resnet, images, targets[1:])  # image 0 has three targets
        method.gradients(resnet, images, targets[targets[:, 0] != 1])
        method.gradients(resnet, images, targets[:0])
    finally:
        handle.remove()
    assert forwards == [3, 2]
    assert len(backwards) == 6


@pytest.mark.parametrize("call", [GuidedBackprop(), GuidedBackprop().gradients])
def test_a_class_out_of_range_is_refused(resnet, images, call):
    with pytest.raises(ValueError, match=r"class index 12 is out of range: there are 12, 0\.\.11"):
        call(resnet, images, torch.tensor([[0, 12]]))


def test_every_crop_of_sess_is_guided(resnet, images):
    targets = torch.tensor([[0, 3]])
    sess = SESS(GuidedBackprop(), window=48, step=48, scales=(64, 96), smooth=False)
    plain = SESS(Gradient(), window=48, step=48, scales=(64, 96), smooth=False)
    guided = sess(resnet, images, targets)
    assert not torch.allclose(guided, plain(resnet, images, targets))
    assert torch.equal(guided, sess(resnet, images, targets))


def test_the_logits_are_those_of_the_forward(resnet, images):
    evidence = GuidedBackprop().forward(resnet, images)
    assert not evidence.logits.requires_grad
    torch.testing.assert_close(evidence.logits, resnet(images).detach().float())
    assert repr(GuidedBackprop()) == "GuidedBackprop()"


@pytest.mark.parametrize("other", [nn.SiLU(), nn.Hardswish(), nn.ReLU6(), nn.GELU()])
def test_guiding_some_of_the_non_linearities_is_pointed_out(images, other):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), other, nn.Flatten(), nn.Linear(4 * 92 * 76, 3)
    )
    model = model.double().eval()
    with pytest.warns(UserWarning, match="only 1 of this classifier's 2 non-linearities are ReLUs"):
        GuidedBackprop()(model, images, torch.tensor([[0, 1]]))
