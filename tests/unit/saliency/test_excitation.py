"""Excitation backprop against plain loops with the rule written out, its closed form and the conservation of mass."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsss.errors import UserError
from wsss.models.vgg import VGG16
from wsss.saliency import ExcitationBackprop
from wsss.saliency.parse import parse_method

TARGETS = torch.tensor([[1, 4], [0, 3], [1, 0], [2, 7]])


def passed(function, x, share):
    """x * f'(W+)^T[P / (W+ x)] of a function with W+ already in it."""
    x = x.detach().requires_grad_()
    z = function(x)
    (gradient,) = torch.autograd.grad(
        z, x, torch.where(z > 0, share.reshape(z.shape) / z.where(z > 0, 1), 0).detach()
    )
    return x.detach() * gradient


def test_a_vgg_agrees_with_the_rule_module_by_module(vgg, images):
    image, cls = images[1], 4
    outputs = [image[None]]
    path = [*vgg.features, vgg.avgpool, nn.Flatten(), *vgg.classifier]
    with torch.no_grad():
        for module in path:
            outputs.append(module(outputs[-1].clone()))
    for contrastive in (False, True):
        share = F.one_hot(torch.tensor([cls]), 12).double()
        for module, x in reversed(list(zip(path[23:], outputs[23:-1], strict=True))):
            if isinstance(module, nn.Linear):
                winning = passed(lambda x, m=module: F.linear(x, m.weight.clamp(min=0)), x, share)
                if contrastive and module is vgg.classifier[-1]:
                    winning -= passed(lambda x, m=module: F.linear(x, (-m.weight).clamp(min=0)), x, share)
                share = winning
            elif isinstance(module, nn.Conv2d):
                share = passed(lambda x, m=module: F.conv2d(x, m.weight.clamp(min=0), None, 1, 1), x, share)
            elif isinstance(module, (nn.MaxPool2d, nn.AdaptiveAvgPool2d)):
                share = passed(module, x, share)
            share = share.reshape(x.shape)
        method = ExcitationBackprop("features.22", contrastive=contrastive)
        maps = method(vgg, images, TARGETS)
        torch.testing.assert_close(maps[0], share.sum(1)[0].relu().float(), rtol=1e-3, atol=1e-7)
        if not contrastive:
            mass = maps.sum((1, 2))
            assert (mass <= 1 + 1e-4).all()
            assert mass.max() > 0.9  # less where a neuron has no excited input


@pytest.mark.parametrize("variant", ["folded", "torchray"])
def test_the_closed_form_below_a_pooled_linear_head(resnet, images, variant):
    maps = ExcitationBackprop("layer4", contrastive=False, variant=variant)(resnet, images, TARGETS)
    with torch.no_grad():
        features = nn.Sequential(*list(resnet.children())[:-2])(images)[TARGETS[:, 0]]
        weights = resnet.fc.weight[TARGETS[:, 1]].clamp(min=0)
    means = (weights * features.mean((2, 3))).sum(1)[:, None, None]
    expected = torch.einsum("nk,nkuv->nuv", weights, features) / features[0, 0].numel() / means
    torch.testing.assert_close(maps, expected.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(len(TARGETS)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["folded", "torchray"])
def test_a_residual_block_agrees_with_the_rule_written_out(resnet, images, variant):
    """From layer4 to what enters its last block."""
    block, image, cls = resnet.layer4[1], images[1], 4
    with torch.no_grad():
        x = nn.Sequential(*list(resnet.children())[:-3], resnet.layer4[0])(image[None])
        hidden = block.relu(block.bn1(block.conv1(x)))
        branch = block.bn2(block.conv2(hidden))
        means = (branch + x).relu().mean((2, 3))
        weights = resnet.fc.weight[cls].clamp(min=0)
    share = weights * means / (weights * means).sum()
    above = (branch + x).relu()
    share = share[..., None, None] * above / above.sum((2, 3), keepdim=True).clamp(min=1e-30)

    def weight(convolution, norm):
        factor = (
            norm.weight / (norm.running_var + norm.eps).sqrt() if variant == "folded" else torch.ones(128)
        )
        return (convolution.weight * factor[:, None, None, None]).clamp(min=0)

    parts = (branch.relu(), x.relu()) if variant == "folded" else (branch, x)
    total = parts[0] + parts[1]
    down, across = (torch.where(total != 0, part / total.where(total != 0, 1), 0) * share for part in parts)
    for convolution, norm, entering in ((block.conv2, block.bn2, hidden), (block.conv1, block.bn1, x)):
        down = passed(lambda v, c=convolution, n=norm: F.conv2d(v, weight(c, n), None, 1, 1), entering, down)
    maps = ExcitationBackprop("layer4.0", contrastive=False, variant=variant)(resnet, images, TARGETS)
    expected = (down + across).sum(1)[0].relu()
    torch.testing.assert_close(maps[0], expected.float(), rtol=1e-3, atol=1e-6)


def test_layers_with_negative_values_and_bad_arguments_are_refused(images, seed):
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = VGG16(4)
    model.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    model.fc6, model.fc7, model.fc8 = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
    with pytest.raises(UserError, match="excitation backprop needs layers whose input is at least 0"):
        ExcitationBackprop("features.2")(model.double().eval(), images, TARGETS[:1] % 4)
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        ExcitationBackprop(batch_size=0)
    with pytest.raises(UserError, match="it takes folded or torchray"):
        parse_method("excitation_backprop(variant=caffe)")
