"""A linear classifier of cells on frozen features, trained on the seeds of all photos.

Seeds of a single photo cover some parts and miss others. Over a data set, parts that are missed in one photo
are found in another. A softmax regression maps the features of a cell (of `affinity.features`) to background or
one of the classes. It is trained on confident seeds only, and keeps what the photos agree on. It reads nothing but
seeds: neither masks nor a second network. Its probabilities, restricted to the labels of each photo, may be spread by
`affinity.random_walk`, and may label the cells for another round (self-training).

    loss = sum over labelled cells of w_y * -log softmax(W f + b)_y,    w_c proportional to (count of c)^-balance

f is the unit feature times `SCALE`, y the label of the cell, w_c the weight of class c, W and b what is learnt. AdamW
with a one-cycle learning rate sees each cell once, in `STEPS` steps: some seeds are wrong, and more passes would
learn their mistakes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.data.labels import BACKGROUND, IGNORE

# Unit vectors of thousands of channels have tiny entries; this brings them to the order of one.
SCALE = 14.0

STEPS = 90
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2


def seed_labels(maps: Tensor, classes: Sequence[int], low: float = 0.2, high: float = 0.35) -> Tensor:
    """Labels of the cells whose saliency is clearly high or low.

    Args:
        maps: `(K, h, w)` float in [0, 1], each map's maximum is 1 (after the random walk).
        classes: their K mask indices (1..C).
        low: below it a cell is background.
        high: above it a cell is of its most salient class; between the two it is 255.

    Returns:
        `(h, w)` int64 mask indices, 255 = unsure.
    """
    if len(maps) == 0:
        return torch.full(maps.shape[1:], BACKGROUND, dtype=torch.int64, device=maps.device)
    score, position = maps.max(0)
    labels = torch.tensor(classes, device=maps.device)[position]
    labels = torch.where(score > high, labels, IGNORE)
    return torch.where(score < low, BACKGROUND, labels)


def probable_labels(probabilities: Tensor, classes: Sequence[int], limit: float = 0.6) -> Tensor:
    """Labels of the cells that the classifier of the previous round is sure of.

    Args:
        probabilities: `(K + 1, h, w)`, background first, sums to one.
        classes: the K mask indices.
        limit: cells whose largest probability is not above it are 255.

    Returns:
        `(h, w)` int64 mask indices, 255 = unsure.
    """
    score, position = probabilities.max(0)
    labels = torch.tensor([BACKGROUND, *classes], device=probabilities.device)[position]
    return torch.where(score > limit, labels, IGNORE)


def fit(features: Tensor, labels: Tensor, classes: int, balance: float, seed: int = 0) -> torch.nn.Linear:
    """Train the classifier of cells.

    Args:
        features: `(N, D)` unit vectors, float of any precision (float16 halves the memory of many photos).
        labels: `(N,)` int64 in 0..classes - 1, or 255: not used.
        classes: number of classes, background included.
        balance: exponent of the classes' weights; 0: every cell weighs the same, 1: every class.
        seed: of the order of the cells; the weights start at zero.

    Returns:
        Linear layer D -> classes on the features' device; the same on every run of one machine.

    Raises:
        ValueError: no cell is labelled.
    """
    rows = (labels != IGNORE).nonzero()[:, 0]
    if len(rows) == 0:
        raise ValueError("no cell has a label to learn from")
    counts = torch.bincount(labels[rows], minlength=classes).clamp(min=1).float()
    weight = (counts.sum() / counts) ** balance
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad():
        layer = torch.nn.Linear(features.shape[1], classes, device=features.device)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        order = torch.randperm(len(rows), generator=generator).to(rows.device)
        batches = torch.split(rows[order], -(-len(rows) // STEPS))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=len(batches))
        for batch in batches:
            logits = layer(features[batch].float() * SCALE)
            loss = F.cross_entropy(logits, labels[batch], weight=weight / weight.mean())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return layer.requires_grad_(False)


def probabilities(layer: torch.nn.Linear, features: Tensor, classes: Sequence[int]) -> Tensor:
    """Probabilities of the classes on a photo's label and of the background.

    Args:
        layer: of `fit`.
        features: `(D, h, w)` unit vectors.
        classes: the K mask indices of the photo's labels.

    Returns:
        `(K + 1, h, w)` float32, background first; sums to one.
    """
    cells = features.flatten(1).T.float() * SCALE
    logits: Tensor = layer(cells)[:, [BACKGROUND, *classes]]
    return logits.softmax(1).T.reshape(-1, *features.shape[1:]).contiguous()
