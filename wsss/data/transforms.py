"""Joint geometric transforms of photo and mask (torchvision v2), and the input normalisation.

A photo is a uint8 RGB tensor (3, H, W); networks see ``(photo / 255 - MEAN) / STD``. Padding is done
after normalisation in effect: it has the mean colour, so the network sees zeros there.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from wsss.data.labels import IGNORE

# Of the ImageNet photos, as every torchvision classification model expects them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_FILL = tuple(round(255 * value) for value in MEAN)


def to_tensor(image: npt.NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 RGB array -> (3, H, W) uint8 tensor, contiguous, own memory."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def normalize_image(image: Tensor) -> Tensor:
    """(..., 3, H, W) uint8 RGB -> float32, zero mean and unit variance over ImageNet."""
    mean = torch.tensor(MEAN, device=image.device).view(3, 1, 1)
    std = torch.tensor(STD, device=image.device).view(3, 1, 1)
    return (image.float() / 255 - mean) / std


def resize_long_side(image: Tensor, long_side: int) -> Tensor:
    """Resize (3, H, W) so that its longer side is ``long_side`` pixels, aspect ratio kept."""
    height, width = image.shape[-2:]
    factor = long_side / max(height, width)
    size = [max(1, round(height * factor)), max(1, round(width * factor))]
    return _averaged(image, size)


def _averaged(image: Tensor, size: list[int]) -> Tensor:
    """(3, H, W) bilinear, antialiased, as (3, *size)."""
    if size == [1, 1]:  # where torch's kernel for uint8 fails with an internal assert
        return image.float().mean((1, 2), keepdim=True).round().to(image.dtype)
    resized: Tensor = functional.resize(image, size, antialias=True)
    return resized


class RandomLongSide:
    """Resize photo (and mask) to a longer side that is uniform in ``[low, high]`` pixels."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def __call__(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        long_side = int(torch.randint(self.low, self.high + 1, ()))
        return _resize(image, mask, long_side / max(image.shape[-2:]))


class RandomScale:
    """Resize photo (and mask) by a uniform factor in ``[low, high]``."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return _resize(image, mask, self.low + (self.high - self.low) * float(torch.rand(())))


def _resize(image: Tensor, mask: Tensor | None, factor: float) -> tuple[Tensor, Tensor | None]:
    height, width = image.shape[-2:]
    size = [max(1, round(height * factor)), max(1, round(width * factor))]
    image = _averaged(image, size)
    if mask is not None:
        # torchvision's own resizing of a Mask takes the upper left of the nearest pixels (NEAREST), which shifts it
        # against the photo by up to half a pixel.
        mask = functional.resize(mask[None], size, v2.InterpolationMode.NEAREST_EXACT)[0]
    return image, mask


class TrainTransform:
    """Resize, crop (padded where the photo is smaller), mirror, colour jitter, normalise.

    Args:
        resize: RandomLongSide or RandomScale.
        crop: side of the crop in pixels.
        color_jitter: strength of brightness, contrast and saturation changes.

    Called with a photo (3, H, W) uint8 and optionally its mask (H, W) uint8, it returns
    (3, crop, crop) float32 and the mask (crop, crop) uint8, padded with 255. Several maps of a photo can go through
    as one mask (K, H, W).
    """

    def __init__(self, resize: RandomLongSide | RandomScale, crop: int, color_jitter: float = 0.0) -> None:
        self.resize = resize
        steps: list[torch.nn.Module] = [
            v2.RandomCrop(
                crop,
                pad_if_needed=True,
                fill={tv_tensors.Mask: IGNORE, tv_tensors.Image: _FILL},
            ),
            v2.RandomHorizontalFlip(),
        ]
        if color_jitter > 0:
            steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
        self.steps = v2.Compose(steps)

    def __call__(self, image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        image, mask = self.resize(image, mask)
        if mask is None:
            return normalize_image(self.steps(tv_tensors.Image(image)).as_subclass(Tensor)), None
        cropped, target = self.steps(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return normalize_image(cropped.as_subclass(Tensor)), target.as_subclass(Tensor)


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(H, W) times ``scale``, rounded, at least one pixel."""
    return max(1, math.floor(size[0] * scale + 0.5)), max(1, math.floor(size[1] * scale + 0.5))
