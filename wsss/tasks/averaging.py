"""A running mean of a network's weights over the training steps."""

import copy

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """Exponential moving average of all weights and statistics of a network.

    After update n the mean moves by ``max(1 / n, 1 - decay)`` of the way to the weights: a plain mean of the first
    steps, so that the initial weights have no part in it, then the exponential one (Tarvainen and Valpola 2017,
    "Mean teachers", and their code's ramp). Integers (BatchNorm's counters) are copied.

    Mean and counter are part of the state dict, so that a continued training goes on exactly.
    """

    updates: Tensor

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights after a step."""
        self.updates += 1
        share = (1 / self.updates).clamp(min=1 - self.decay)
        for mean, value in zip(
            self.network.state_dict().values(), network.state_dict().values(), strict=True
        ):
            if mean.is_floating_point():
                mean.lerp_(value, share.to(mean.dtype))
            else:
                mean.copy_(value)
