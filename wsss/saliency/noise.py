"""Noisy copies of an image, for methods that average over them."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from wsss.errors import UserError


def noisy_copies(image: Tensor, samples: int, noise: float, seed: int, batch_size: int) -> Iterator[Tensor]:
    """Batches of copies (b, 3, H, W) of an image (3, H, W) with Gaussian noise.

    Args:
        image: normalised.
        samples: number of copies in all.
        noise: standard deviation of the noise as a share of the image's range of values.
        seed: of the noise. It is the same for every image, device and batch size.
        batch_size: most copies in a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    deviation = noise * (image.max() - image.min())
    for start in range(0, samples, batch_size):
        count = min(batch_size, samples - start)
        # Copy by copy: what a call draws depends on how much it draws.
        drawn = [torch.randn(image.shape, dtype=torch.float32, generator=generator) for _ in range(count)]
        yield image + deviation * torch.stack(drawn).to(image)


def check_noise(samples: int, noise: float, batch_size: int) -> None:
    """UserError unless there are copies, a batch holds something, and the noise is a share."""
    if samples < 1 or batch_size < 1:
        raise UserError(f"samples and batch_size must be at least 1, got {samples} and {batch_size}")
    if not 0 <= noise < math.inf:
        raise UserError(f"noise must be a share of at least 0, got {noise}")
