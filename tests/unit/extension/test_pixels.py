from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.extension.pixels import SCALE, fit, probabilities, probable_labels, seed_labels


def cells_of_three_kinds(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(3, 20, generator=generator), dim=1)
    kinds = torch.randint(0, 3, (count,), generator=generator)
    return F.normalize(centres[kinds] + 0.1 * torch.randn(count, 20, generator=generator), dim=1), kinds


def test_it_learns_what_noisy_seeds_have_in_common() -> None:
    features, kinds = cells_of_three_kinds(3000)
    generator = torch.Generator().manual_seed(1)
    wrong = torch.rand(3000, generator=generator) < 0.3
    seeds = torch.where(wrong, torch.zeros_like(kinds), kinds)  # a third of the objects is missed
    layer = fit(features, seeds, classes=3, balance=0.65)
    assert (layer(features * SCALE).argmax(1) == kinds).float().mean() > 0.98


def test_unsure_cells_teach_nothing() -> None:
    features, kinds = cells_of_three_kinds(600)
    unsure = torch.arange(600) % 2 == 0
    labels = torch.where(unsure, 255, kinds)
    changed = torch.where(unsure[:, None], features.flip(1), features)
    assert torch.equal(fit(features, labels, 3, 0.65).weight, fit(changed, labels, 3, 0.65).weight)


def test_the_order_of_the_cells_is_that_of_the_seed() -> None:
    features, kinds = cells_of_three_kinds(600)
    first, again, other = (fit(features, kinds, 3, 0.65, seed).weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_it_also_learns_from_half_precision_in_inference_mode() -> None:
    features, kinds = cells_of_three_kinds(300)
    with torch.inference_mode():
        layer = fit(features.half(), kinds, 3, 0.65)
    assert not layer.weight.requires_grad
    assert layer.weight.abs().max() > 0


def test_probabilities_are_those_of_the_photos_labels_only() -> None:
    layer = torch.nn.Linear(5, 4)
    features = F.normalize(torch.randn(5, 3, 2), dim=0)
    with torch.no_grad():
        result = probabilities(layer, features, classes=[3, 1])
        logits = layer(features[:, 2, 1] * SCALE)
    assert result.shape == (3, 3, 2)
    assert torch.allclose(result[:, 2, 1], logits[[0, 3, 1]].softmax(0), atol=1e-6)


def test_seeds_between_the_two_thresholds_are_unsure() -> None:
    maps = torch.tensor([[[0.1, 0.3, 0.9, 0.4]], [[0.1, 0.1, 0.5, 0.8]]])
    assert seed_labels(maps, [4, 2]).tolist() == [[0, 255, 4, 2]]
    assert seed_labels(torch.zeros(0, 1, 3), []).tolist() == [[0, 0, 0]]


def test_improbable_cells_are_unsure() -> None:
    given = torch.tensor([[[0.8, 0.5, 0.1]], [[0.2, 0.5, 0.9]]])
    assert probable_labels(given, [7]).tolist() == [[0, 255, 7]]


def test_without_any_label_there_is_nothing_to_learn() -> None:
    with pytest.raises(ValueError, match="no cell has a label"):
        fit(torch.zeros(4, 3), torch.full((4,), 255), 2, 0.65)


def test_balance_decides_how_much_a_rare_class_counts() -> None:
    """Two kinds of cells that look alike, nine to one: what is said of them follows the weights."""
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.rand(4000, 6, generator=generator), dim=1)
    labels = (torch.rand(4000, generator=generator) < 0.1).long()
    share = {
        balance: float((fit(features, labels, 2, balance)(features * SCALE).softmax(1)[:, 1]).mean())
        for balance in (0.0, 0.5, 1.0)
    }
    # Weighted by (number of cells)^-balance, the best constant answer is n1^(1-b) / (n0^(1-b) + n1^(1-b)).
    for balance, value in share.items():
        common, rare = 0.9 ** (1 - balance), 0.1 ** (1 - balance)
        assert value == pytest.approx(rare / (common + rare), abs=0.05)
