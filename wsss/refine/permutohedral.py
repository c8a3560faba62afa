"""High-dimensional Gaussian filtering on the permutohedral lattice (Adams, Baek & Davis, Eurographics 2010).

    out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j      approximately, for all i, in time linear in their number

Points f of dimension d are lifted to the hyperplane x_0 + ... + x_d = 0 of d + 1 dimensions, which is tiled by
simplices. Each point gives its value to the d + 1 vertices of its simplex in proportion to its barycentric
coordinates (splat), the vertices are blurred with (1/2, 1, 1/2) along each of the d + 1 lattice directions
(blur), and each point collects from its vertices with the same coordinates (slice).

Everything here is plain PyTorch. The arithmetic is that of Krähenbühl's densecrf, operation for operation in
float32, so that a point falls into the same simplex in both: same vertices, same coordinates. It also pads the points
with zeros to a multiple of four as densecrf does, because a blur reaches the padding's vertices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.errors import UserError

PADDED_TO = 4
"""densecrf handles four points at once and pads with points at the origin."""

DIGIT_BITS = 16
"""Digit of the radix sort: numpy sorts 16-bit integers by counting, many times faster than wider ones."""


@dataclass(frozen=True)
class Lattice:
    """The simplices of N points of dimension d and the M lattice vertices that they touch.

    Vertices are numbered by remainder (0..d, the "colour" of a vertex in the paper), then by code. All
    index tensors are int32, all weights float32.
    """

    vertices: Tensor
    """`(N, d + 1)`, the vertices of each point's simplex."""
    weights: Tensor
    """`(N, d + 1)`, what a point gives to each vertex and takes from it: barycentric coordinates, scaled."""
    members: Tensor
    """`(N * (d + 1),)`, the points that touch vertex 0, then those of vertex 1, and so on."""
    offsets: Tensor
    """`(M + 1,)`, where each vertex's points begin in `members`."""
    member_weights: Tensor
    """`(N * (d + 1),)`, the weight of each of `members` at the vertex."""
    blurs: tuple[tuple[Tensor, Tensor], ...]
    """Per direction: `(M, 3)` vertices (itself, before, after) and their weights, 0 where there is none."""

    def scaled(self, factors: Tensor) -> Lattice:
        """The filter with values multiplied by `factors`, `(N,)`, both before and after."""
        return replace(
            self,
            weights=self.weights * factors[:, None],
            member_weights=self.member_weights * factors.index_select(0, self.members),
        )


def lattice_filter(values: Tensor, lattice: Lattice) -> Tensor:
    """Filter values over the points of a lattice.

    Differentiable in `values`, any number of times.

    Args:
        values: `(N, C)` float32 or float64, on the lattice's device.
        lattice: of N points.

    Returns:
        `(N, C)`, the sum over all points weighted with the Gaussian of their distance.
    """
    result: Tensor = _Filter.apply(values, lattice, False)
    return result


def build_lattice(features: Sequence[Tensor]) -> Lattice:
    """The lattice of several sets of points (one per image) that do not see each other.

    Args:
        features: `(d, N_i)` float32 each, in units of the Gaussian's standard deviation. N_i must be a multiple
            of four; see `pad_points`.

    Returns:
        The lattice over all points, in order. Values at different sets never mix.

    Raises:
        UserError: the points lie too far apart for 64-bit codes.
    """
    counts = [part.shape[1] for part in features]
    rounded, rank, coordinates = _simplices(torch.cat(tuple(features), dim=1))
    codes, steps = _vertex_codes(rounded, rank, counts)
    order = _argsort_rows(codes)
    ordered = codes.gather(1, order)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[:, 1:], ordered[:, :-1], out=is_first[:, 1:])
    numbers = is_first.flatten().cumsum(0, dtype=torch.int32).sub_(1)
    begins = is_first.flatten().nonzero().squeeze(1)
    vertices = torch.empty_like(order, dtype=torch.int32).scatter_(1, order, numbers.view(order.shape))
    dimension = len(codes) - 1
    per_plane = is_first.sum(dim=1).tolist()
    # The blur's gain, half of it in the splat and half in the slice.
    coordinates *= (1 + 2.0**-dimension) ** -0.5
    return Lattice(
        vertices=vertices.T.contiguous(),
        weights=coordinates.T.contiguous(),
        members=order.flatten().int(),
        offsets=F.pad(begins, (0, 1), value=order.numel()).int(),
        member_weights=coordinates.gather(1, order).flatten(),
        blurs=_blurs(ordered.flatten().index_select(0, begins), per_plane, steps),
    )


def pad_points(points: Tensor) -> Tensor:
    """Fill the last dimension up with zeros to a multiple of four."""
    return F.pad(points, (0, -points.shape[-1] % PADDED_TO))


class _Filter(torch.autograd.Function):
    """Splat, blur, slice. The transpose, which the backward pass needs, blurs in the reverse order."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lattice: Lattice, transpose: bool) -> Tensor:
        ctx.lattice, ctx.transpose = lattice, transpose
        blurs = lattice.blurs[::-1] if transpose else lattice.blurs
        on_lattice = _splat(values, lattice)
        for neighbours, weights in blurs:
            on_lattice = _weighted_sum(on_lattice, neighbours, weights)
        return _weighted_sum(on_lattice, lattice.vertices, lattice.weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Filter.apply(gradient, ctx.lattice, not ctx.transpose), None, None


def _weighted_sum(values: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """`(R, C)`: row r is the sum over k of `weights[r, k] * values[index[r, k]]`."""
    # On CPUs embedding_bag gathers, weighs and sums in one vectorised loop: several times faster than indexing.
    return F.embedding_bag(index, values, mode="sum", per_sample_weights=weights.to(values.dtype))


def _splat(values: Tensor, lattice: Lattice) -> Tensor:
    """`(M, C)`: what the points give to each vertex."""
    return _splat_by_point(values, lattice) if values.is_cuda else _splat_by_vertex(values, lattice)


def _splat_by_vertex(values: Tensor, lattice: Lattice) -> Tensor:
    """Every vertex collects from its points, for CPUs."""
    return F.embedding_bag(
        lattice.members,
        values.contiguous(),
        lattice.offsets,
        mode="sum",
        per_sample_weights=lattice.member_weights.to(values.dtype),
        include_last_offset=True,
    )


def _splat_by_point(values: Tensor, lattice: Lattice) -> Tensor:
    """Every point adds to its vertices, for GPUs: a vertex with thousands of points would keep one core busy.

    The order of the additions, and with it the last bits, change from run to run.
    """
    shares = (lattice.weights.to(values.dtype)[:, :, None] * values[:, None, :]).flatten(0, 1)
    on_lattice = values.new_zeros(len(lattice.offsets) - 1, values.shape[1])
    return on_lattice.index_add_(0, lattice.vertices.flatten(), shares)


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find each point's simplex (Adams et al., sections 3.1 and 3.2).

    Args:
        features: `(d, N)` float32.

    Returns:
        The simplex's vertex of remainder 0, divided by d + 1, `(d + 1, N)` float32 with whole numbers; the
        rank of each coordinate in it, 0 for the largest difference, `(d + 1, N)` int8; the barycentric
        coordinates by remainder, `(d + 1, N)` float32.
    """
    elevated = _elevate(features)
    side = len(elevated)
    inverse = float(np.float32(1) / np.float32(side))
    rounded = (elevated * inverse).round_()
    difference = elevated - rounded * side
    rank = torch.zeros(elevated.shape, dtype=torch.int8, device=features.device)
    for i in range(side):
        for j in range(i + 1, side):
            smaller = difference[i] < difference[j]
            rank[i] += smaller
            rank[j] += ~smaller
    # Off the hyperplane by this many steps: move the coordinates with the smallest or largest ranks back.
    rank += rounded.sum(0).to(torch.int8)
    wrap = (rank < 0).to(torch.int8) - (rank >= side).to(torch.int8)
    rank += wrap * side
    rounded += wrap
    difference = (elevated - rounded * side) * inverse
    by_rank = torch.empty_like(difference).scatter_(0, rank.long(), difference)
    coordinates = by_rank.flip(0)
    coordinates[1:] -= by_rank[1:].flip(0)
    coordinates[0] += 1 - by_rank[0]
    return rounded, rank, coordinates


def _elevate(features: Tensor) -> Tensor:
    """Lift `(d, N)` to the hyperplane, `(d + 1, N)`, scaled so that the lattice's blur has deviation one."""
    dimension, points = features.shape
    deviation = float(np.float32(math.sqrt(2 / 3) * (dimension + 1)))
    elevated = features.new_empty(dimension + 1, points)
    total = features.new_zeros(points)
    for j in range(dimension, 0, -1):
        scale = float(np.float32(1 / math.sqrt(j * (j + 1)) * deviation))
        scaled = features[j - 1] * scale
        torch.sub(total, scaled * j, out=elevated[j])
        total = total + scaled
    elevated[0] = total
    return elevated


def _vertex_codes(
    rounded: Tensor, rank: Tensor, counts: Sequence[int]
) -> tuple[Tensor, tuple[list[int], int]]:
    """One integer for each vertex of each point, unique within its remainder.

    A vertex of remainder k has coordinates k + (d + 1) q. Its code is the number with the digits q_0..q_{d-1}
    (q_d follows from them) and the image, in a mixed base that leaves room for neighbours outside.

    Returns:
        `(d + 1, N)` int64, row k for remainder k; what a step by one in each q adds to the code, and all together.
    """
    digits = rounded[:-1]
    low, high = (bound.long().tolist() for bound in (digits.amin(1), digits.amax(1)))
    # q reaches from low - 1 to high over all remainders; a neighbour is one further.
    sizes = [top - bottom + 4 for bottom, top in zip(low, high, strict=True)]
    strides = [math.prod(sizes[:i]) for i in range(len(sizes))]
    if len(rounded) * math.prod(sizes) * len(counts) >= 2**60:  # `_blurs` puts all remainders in one number
        raise UserError(
            "the CRF's kernels are too narrow for this image: raise crf.gaussian_sxy, crf.bilateral_sxy or "
            "crf.bilateral_srgb"
        )
    steps = torch.tensor([*strides, 0], device=rounded.device)
    by_rank = torch.empty(rank.shape, dtype=torch.int64, device=rank.device)
    by_rank.scatter_(0, rank.long(), steps[:, None].expand(rank.shape))
    codes = torch.empty_like(by_rank)
    origin = sum(stride * (2 - bottom) for stride, bottom in zip(strides, low, strict=True))
    torch.sum(digits.long() * steps[:-1, None], dim=0, out=codes[0])
    codes[0] += origin
    if len(counts) > 1:
        image = torch.arange(len(counts), device=rank.device) * math.prod(sizes)
        codes[0] += image.repeat_interleave(torch.tensor(counts, device=rank.device))
    for k in range(1, len(codes)):
        torch.sub(codes[k - 1], by_rank[len(codes) - k], out=codes[k])
    return codes, (steps.tolist(), sum(strides))


def _argsort_rows(codes: Tensor) -> Tensor:
    """The stable order `(R, N)` int64 of each row of non-negative integers."""
    if codes.device.type != "cpu":
        return codes.argsort(dim=1, stable=True)
    bits = max(1, int(codes.max()).bit_length())
    orders = np.empty(codes.shape, dtype=np.int64)
    for row, order in zip(codes.numpy(), orders, strict=True):
        order[:] = np.argsort(row.astype(np.uint16), kind="stable")
        for shift in range(DIGIT_BITS, bits, DIGIT_BITS):
            digit = (row >> shift).astype(np.uint16)[order]
            order[:] = order[np.argsort(digit, kind="stable")]
    return torch.from_numpy(orders)


def _blurs(
    codes: Tensor, per_plane: Sequence[int], steps: tuple[list[int], int]
) -> tuple[tuple[Tensor, Tensor], ...]:
    """The neighbours of all vertices in the d + 1 directions.

    A step forward in direction j subtracts one from every coordinate and adds d + 1 to coordinate j: from
    remainder k to k - 1, or from 0 to d.

    Args:
        codes: `(M,)` of the vertices, sorted within each remainder.
        per_plane: number of vertices with remainder 0..d.
        steps: of `_vertex_codes`.
    """
    strides, all_strides = steps
    zeros = per_plane[0]
    planes = torch.arange(len(per_plane), device=codes.device).repeat_interleave(
        torch.tensor(per_plane, device=codes.device)
    )
    top = int(codes.max()) + 2 * all_strides + 1
    keys = codes + planes * top
    # Where a step leads: rotated by one remainder, so that these are sorted, too.
    ahead = torch.cat([keys[zeros:] - top, keys[:zeros] - all_strides + (len(per_plane) - 1) * top])
    itself = torch.arange(len(codes), device=codes.device, dtype=torch.int32)
    return tuple(_blur(keys, ahead + stride, itself, itself.roll(-zeros)) for stride in strides)


def _blur(keys: Tensor, wanted: Tensor, itself: Tensor, seeker: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours `(M, 3)` and weights of one direction; `seeker[i]` looks for `wanted[i]` among the keys."""
    together = torch.cat([keys, wanted])
    order = _argsort(together)
    ordered = together.index_select(0, order)
    # Both lists have no duplicates: equal codes are a vertex and, right behind, the one that looks for it.
    pairs = (ordered[1:] == ordered[:-1]).nonzero().squeeze(1)
    there = order.index_select(0, pairs)
    here = seeker.index_select(0, order.index_select(0, pairs + 1) - len(keys)).long()
    neighbours = itself[:, None].repeat(1, 3)
    weights = itself.new_tensor([1.0, 0.0, 0.0], dtype=torch.float32).repeat(len(keys), 1)
    neighbours[:, 1].scatter_(0, here, there.int())
    neighbours[:, 2].scatter_(0, there, here.int())
    weights[:, 1].scatter_(0, here, 0.5)
    weights[:, 2].scatter_(0, there, 0.5)
    return neighbours, weights


def _argsort(keys: Tensor) -> Tensor:
    """The stable order `(N,)` int64 of integers that consist of few sorted runs."""
    if keys.device.type != "cpu":
        return keys.argsort(stable=True)
    return torch.from_numpy(np.argsort(keys.numpy(), kind="stable"))  # merges runs, unlike PyTorch's
