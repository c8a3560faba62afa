"""The running mean of weights, against a plain loop."""

import numpy as np
import pytest
import torch
from torch import nn

from wsss.tasks.averaging import WeightAverage


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


def test_mean_is_plain_at_first_and_exponential_later() -> None:
    trained = network()
    average = WeightAverage(trained, decay=0.75)
    values, mean = np.random.default_rng(0).normal(size=12), 99.0  # the start has no part in it
    for step, value in enumerate(values, start=1):
        nn.init.constant_(trained[0].weight, value)
        average.update(trained)
        share = max(1 / step, 0.25)
        mean = (1 - share) * mean + share * value
        assert average.network[0].weight.flatten().tolist() == pytest.approx([mean, mean], abs=1e-6)
        if step <= 4:
            assert mean == pytest.approx(values[:step].mean())


def test_statistics_are_averaged_and_counters_copied() -> None:
    trained = network().train()
    average = WeightAverage(trained, decay=0.5)
    seen = []
    for step in range(2):
        trained(torch.full((2, 1, 3, 3), float(step)))
        average.update(trained)
        seen.append(trained[1].running_mean.clone())
    torch.testing.assert_close(average.network[1].running_mean, (seen[0] + seen[1]) / 2)
    assert int(average.network[1].num_batches_tracked) == 2


def test_mean_of_weights_that_stand_still_is_exactly_these() -> None:
    trained = network()
    average = WeightAverage(trained, decay=0.999)
    for _ in range(50):
        average.update(trained)
    for name, value in trained.state_dict().items():
        assert torch.equal(average.network.state_dict()[name], value), name


def test_mean_has_its_own_memory_no_gradients_and_leaves_the_network_alone() -> None:
    trained = network().train()
    average = WeightAverage(trained, decay=0.9)
    before = trained[0].weight.clone()
    average.update(trained)
    nn.init.zeros_(average.network[0].weight)
    assert torch.equal(trained[0].weight, before)
    assert not any(value.requires_grad for value in average.parameters())
    assert all(value.requires_grad for value in trained.parameters())
    assert trained.training
    assert not average.network.training


def test_mean_goes_on_from_its_state_dict() -> None:
    trained = network()
    average = WeightAverage(trained, decay=0.6)
    for value in (1.0, 2.0, 3.0):
        nn.init.constant_(trained[0].weight, value)
        average.update(trained)
    other = WeightAverage(network(), decay=0.6)
    other.load_state_dict(average.state_dict())
    nn.init.constant_(trained[0].weight, 4.0)
    for each in (average, other):
        each.update(trained)
    assert torch.equal(average.network[0].weight, other.network[0].weight)
