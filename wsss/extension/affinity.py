"""From seeds to object extent without training: a random walk on the classifier's own mid-level features.

Saliency marks the parts that tell a class from the others. The walk spreads it over whole objects: `walk` has the
equation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.models.backbone import layout_of
from wsss.models.maps import kept
from wsss.saliency.base import evaluating, exact, normalize, upsample


@dataclass(frozen=True)
class WalkParameters:
    """The constants of the random walk."""

    layers: tuple[str, ...] = ()
    """Paths of the layers that are compared; empty means `default_layers` of the classifier."""
    radius: int = 12
    """Distance in cells of the grid (8 pixels each) over which affinity counts."""
    power: float = 15.0
    """Exponent beta of the affinity: the larger, the fewer cells take part."""
    steps: int = 16
    """Steps t of the walk; 0 leaves the maps as they are."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.radius < 1:
            raise UserError(f"affinity.radius must be 1 or more cells, not {self.radius}")
        if not self.power > 0:
            raise UserError(f"affinity.power must be positive, not {self.power}")
        if self.steps < 0:
            raise UserError(f"affinity.steps must be 0 or more, not {self.steps}")


def walk(maps: Tensor, classifier: nn.Module, image: Tensor, parameters: WalkParameters) -> Tensor:
    """Spread the saliency of one photo over whole objects: `features`, `affinity`, `random_walk`.

        M* = T^t M,    T_ij = a_ij^beta / sum over j' in N(i) of a_ij'^beta,    a_ij = max(cos(f_i, f_j), 0)

    M are the maps on a grid of stride 8, M* the result, N(i) the cells within a radius of i (i itself included). The
    power beta suppresses weak affinities a, and t is the number of steps. f_i is the feature of cell i from
    intermediate layers of the classifier; cos is their cosine similarity, averaged over the layers.

    Papers: Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised
    Semantic Segmentation" (AffinityNet), CVPR 2018, https://arxiv.org/abs/1803.10464; Ahn, Cho and Kwak, "Weakly
    Supervised Learning of Instance Segmentation with Inter-pixel Relations" (IRN), CVPR 2019,
    https://arxiv.org/abs/1904.05044

    Deviations: both papers train a second network for the affinities. Here nothing is trained. The radius is a
    Euclidean distance in cells that may be reached exactly (IRN's paths end before it). The t steps are taken one by
    one instead of by squaring a dense T.

    Args:
        maps: `(K, h, w)` float, non-negative, of any resolution; K may be 0.
        classifier: maps images to logits; left as it was.
        image: `(3, H, W)` float, the photo as the classifier expects it, on the classifier's device.
        parameters: the constants.

    Returns:
        `(K, u, v)` float32 on the features' grid (H / 8, W / 8), each map divided by its maximum.

    Example:
        >>> walk(torch.from_numpy(maps), classifier, images[0], WalkParameters()).shape
        torch.Size([2, 8, 8])
    """
    if len(maps) == 0 or parameters.steps == 0:
        return normalize(maps.float(), "max")
    layers = parameters.layers or default_layers(classifier)
    cells = features(classifier, image[None], layers)[0]
    with torch.no_grad(), exact(maps.device):
        transition = affinity(cells, parameters.radius, parameters.power)
        seeds = upsample(maps.float(), (cells.shape[-2], cells.shape[-1]))
        return normalize(random_walk(seeds, transition, parameters.steps), "max")


def default_layers(classifier: nn.Module) -> tuple[str, ...]:
    """The two stages before the last: strides 8 and 16 of a ResNet, 4 and 8 of VGG16 (conv3_3 and conv4_3).

    Raises:
        UserError: another architecture.
    """
    return last_stages(classifier)[:-1]


def last_stages(classifier: nn.Module) -> tuple[str, ...]:
    """The last three stages, fine to coarse; errors as `default_layers`."""
    layout = layout_of(classifier)
    if layout is None or len(layout.stages) < 3:
        raise UserError(
            "the last three stages of this classifier are not known: name the layers to compare "
            "(WalkParameters.layers), or train another classifier"
        )
    return layout.stages[-3:]


def features(classifier: nn.Module, images: Tensor, layers: Sequence[str], stride: int = 8) -> Tensor:
    """One feature vector per cell of the grid, from one forward: `cells` of the `activations`.

    Args:
        classifier: maps images (B, 3, H, W) to logits; run once in eval mode without gradients, left as it was.
        images: `(B, 3, H, W)` float, normalised as the classifier expects.
        layers: `get_submodule` paths of layers whose output is `(B, k, u, v)`.
        stride: pixels per cell of the grid.

    Returns:
        `(B, D, ceil(H / stride), ceil(W / stride))` float32, of length 1 over D (less where a layer is silent).

    Raises:
        UserError: a layer is unknown, does not run, or gives no feature maps.
    """
    return cells(activations(classifier, images, layers), grid(images, stride))


def activations(classifier: nn.Module, images: Tensor, layers: Sequence[str]) -> list[Tensor]:
    """The outputs `(B, k, u, v)` float32 of some layers in one forward; arguments and errors as `features`."""
    with evaluating(classifier), torch.no_grad(), kept(classifier, layers, images) as outputs:
        classifier(images)
    return [outputs[layer].float() for layer in layers]


def grid(images: Tensor, stride: int) -> tuple[int, int]:
    """Rows and columns of cells of `stride` pixels that cover images `(B, 3, H, W)`."""
    return -(-images.shape[-2] // stride), -(-images.shape[-1] // stride)


def cells(activations: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """One unit vector per cell of a grid, in which every layer counts the same.

    Each layer's activation is divided by its length in every cell, resized bilinearly to the grid, and divided
    by its length again. Then the layers are concatenated. So the scalar product of two cells is the mean of the layers'
    cosine similarities.

    Args:
        activations: `(B, k, u, v)` each, of one or more layers.
        size: rows and columns of the grid.

    Returns:
        `(B, D, *size)` float32, D the sum of the channels.
    """
    with torch.no_grad(), exact(activations[0].device):
        parts = [_unit(_resized(_unit(part), size)) for part in activations]
        return torch.cat(parts, dim=1) / math.sqrt(len(parts))


def affinity(features: Tensor, radius: int, power: float) -> Tensor:
    """Transition probabilities between the cells of a grid.

    They are computed row by row of the grid, so that the largest intermediate is the result itself. Compared with a
    dense matrix it saves the rows that are further away than the radius.

    Args:
        features: `(D, u, v)` float32, unit vectors over D; a cell of zeros only reaches itself.
        radius: in cells; offsets (dy, dx) with dy^2 + dx^2 <= radius^2 count.
        power: the exponent of the cosine similarity; negative similarities count as 0.

    Returns:
        `(u, v, 2 radius + 1, v)` float32: from cell (y, x) to cell (y + i - radius, x'), 0 outside the radius
        or the grid; each `[y, x]` sums to one.
    """
    result = similarity(features, radius).pow_(power)
    return result.div_(result.sum((2, 3), keepdim=True))


def similarity(features: Tensor, radius: int) -> Tensor:
    """Cosine similarities between the cells of a grid, negative ones 0; arguments and shape as `affinity`.

    That of a cell with itself is 1 by definition: a cell of zeros, which resembles none, keeps what it has.
    """
    depth, rows, columns = features.shape
    offsets = torch.arange(-radius, radius + 1, device=features.device)
    across = torch.arange(columns, device=features.device)
    distance = (across[:, None] - across).square()[:, None, :] + offsets.square()[:, None]
    far = distance > radius**2
    padded = F.pad(features, (0, 0, radius, radius)).permute(1, 2, 0).contiguous()
    result = features.new_empty((rows, columns, 2 * radius + 1, columns))
    for row in range(rows):
        window = padded[row : row + 2 * radius + 1].reshape(-1, depth)
        cosine = (padded[row + radius] @ window.T).view_as(far)
        result[row] = cosine.clamp_(min=0).masked_fill_(far, 0)
    result[:, across, radius, across] = 1
    return result


REACH = 0.09
"""Share of the cells within the radius that a step of the walk reaches in effect, see `calibrated_power`."""


def reach(similarities: Tensor, power: float) -> float:
    """Mean over the cells of exp(entropy of the step from there), divided by the number of cells in the radius.

    exp(entropy) is the number of cells among which the step would have to be even to be as uncertain.

    Args:
        similarities: of `similarity`.
        power: as in `affinity`.
    """
    raw = similarities.pow(power)
    shares = raw / raw.sum((2, 3), keepdim=True)
    entropy = torch.special.entr(shares).sum((2, 3))
    across = torch.arange(similarities.shape[1], device=similarities.device)
    offsets = torch.arange(similarities.shape[2], device=similarities.device) - similarities.shape[2] // 2
    rows = torch.arange(len(similarities), device=similarities.device)
    near = (across[:, None] - across).square()[:, None, :] + offsets.square()[:, None] <= int(
        offsets[-1]
    ) ** 2
    inside = (rows[:, None] + offsets >= 0) & (rows[:, None] + offsets < len(rows))
    count = torch.einsum("ro,cod->rc", inside.float(), near.float())
    return float((entropy.exp() / count).mean())


def calibrated_power(samples: Sequence[Tensor]) -> float:
    """The power with which a step of the walk reaches the share `REACH` of the cells in the radius. No mask is read.

    Networks differ in how alike they find any two cells. With the same power, the walk on one would spread over whole
    photos and stay in place on another.

    Args:
        samples: of `similarity`, of some photos, all with the same radius.

    Returns:
        Between 1 and 200, two digits after the point.
    """
    low, high = 1.0, 200.0
    for _ in range(16):  # bisection on a logarithmic scale
        middle = math.sqrt(low * high)
        if sum(reach(one, middle) for one in samples) / len(samples) > REACH:
            low = middle
        else:
            high = middle
    return round(math.sqrt(low * high), 2)


def random_walk(maps: Tensor, transition: Tensor, steps: int) -> Tensor:
    """T^steps applied to each map. Every step is a weighted mean over neighbours, so values stay in range.

    Args:
        maps: `(K, u, v)` float32.
        transition: of `affinity`, `(u, v, 2 radius + 1, v)`.
        steps: 0 or more.

    Returns:
        `(K, u, v)` float32.
    """
    rows, columns, height, _ = transition.shape
    if tuple(maps.shape[-2:]) != (rows, columns):
        raise ValueError(f"maps {tuple(maps.shape)} do not fit a grid of {rows} x {columns} cells")
    matrices = transition.view(rows, columns, height * columns)
    for _ in range(steps):
        padded = F.pad(maps, (0, 0, height // 2, height // 2))
        # (u, 2 radius + 1, v, K): the rows that each row of the grid can reach.
        windows = padded.unfold(1, height, 1).permute(1, 3, 2, 0)
        maps = (matrices @ windows.reshape(rows, height * columns, -1)).permute(2, 0, 1)
    return maps.contiguous()


def _unit(vectors: Tensor) -> Tensor:
    """Each cell's vector divided by its length; zeros stay zeros."""
    return F.normalize(vectors, dim=1)


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear to `(B, k, *size)`, antialiased where the grid is coarser."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    finer = maps.shape[-2] > size[0] or maps.shape[-1] > size[1]
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=finer)
