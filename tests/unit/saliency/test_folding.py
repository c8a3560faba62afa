"""Batch normalisation folded into convolutions: the same logits, and a classifier that is left as it was."""

import copy
import gc
import weakref

import pytest
import torch
import torchvision
from torch import nn

from wsss.models.vgg import VGG16
from wsss.saliency.folding import adjacent_pairs, folded


def norm_with_statistics(channels):
    norm = nn.BatchNorm2d(channels, eps=0.1)
    for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        nn.init.uniform_(values, 0.2, 2.0)
    return norm


class Network(nn.Module):
    """Called as it is registered, or with the norm elsewhere than its place says."""

    def __init__(self, elsewhere=False):
        super().__init__()
        torch.manual_seed(2)
        self.convolution, self.norm = nn.Conv2d(3, 6, 3, stride=2), norm_with_statistics(6)
        self.second = nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=2), norm_with_statistics(6)
        )
        self.classes = nn.Linear(6, 4)
        self.elsewhere = elsewhere

    def forward(self, images):
        hidden = self.convolution(images)
        hidden = self.norm(hidden.relu()) if self.elsewhere else self.norm(hidden).relu()
        return self.classes(self.second(hidden).relu().mean((2, 3)))


@pytest.fixture
def images():
    return torch.randn(2, 3, 40, 33, generator=torch.Generator().manual_seed(1))


def calls_of_batch_norm(monkeypatch, action):
    """How many times batch normalisation is computed, and what `action` returns."""
    calls, compute = [], nn.functional.batch_norm
    monkeypatch.setattr(nn.functional, "batch_norm", lambda *a, **k: calls.append(1) or compute(*a, **k))
    result = action()
    monkeypatch.setattr(nn.functional, "batch_norm", compute)
    return len(calls), result


@torch.no_grad()
def test_a_folded_network_gives_the_same_logits_without_batch_normalisation(images, monkeypatch):
    model = Network().eval()
    expected = model(images)
    with folded(model, images[0]):
        count, logits = calls_of_batch_norm(monkeypatch, lambda: model(images))
    assert count == 0
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert calls_of_batch_norm(monkeypatch, lambda: model(images))[0] == 2


@torch.no_grad()
def test_all_of_a_resnet_is_folded(resnet, images, monkeypatch):
    resnet = copy.deepcopy(resnet).float()
    expected = resnet(images)
    with folded(resnet, images[0]):
        count, logits = calls_of_batch_norm(monkeypatch, lambda: resnet(images))
    assert count == 0
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("name", "count"), [("resnet50", 53), ("vgg16_bn", 13), ("vgg16", 0)])
def test_every_norm_of_torchvisions_networks_has_its_convolution(name, count):
    with torch.device("meta"):
        assert len(adjacent_pairs(torchvision.models.get_model(name, weights=None))) == count


@torch.no_grad()
def test_a_network_without_batch_normalisation_runs_unchanged(images):
    with torch.device("meta"):
        model = VGG16(3)
    with folded(model, images[0]):  # not even tried: it could not run on the meta device
        assert not any("forward" in vars(module) for module in model.modules())


@torch.no_grad()
def test_norms_that_are_not_called_where_they_are_registered_are_not_folded(images):
    model = Network(elsewhere=True).eval()
    expected = model(images)
    with folded(model, images[0]):
        assert not any("forward" in vars(module) for module in model.modules())
        assert torch.equal(model(images), expected)


@torch.no_grad()
def test_a_network_in_other_precision_is_not_folded(images):
    model = Network().eval().double()
    with folded(model, images[0].double()):
        assert not any("forward" in vars(module) for module in model.modules())


def folded_then_error(model, image):
    with folded(model, image):
        assert "forward" in vars(model.norm)
        raise KeyError


def test_flags_parameters_and_forward_are_restored_also_after_an_error(images):
    model = Network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyError):
        folded_then_error(model, images[0])
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_nothing_is_left_over_and_the_garbage_collector_is_not_needed(images):
    model = Network().eval()
    gc.disable()
    try:
        with folded(model, images[0]):
            left = weakref.ref(model.convolution.forward)
            assert left() is not None
        assert left() is None
    finally:
        gc.enable()
