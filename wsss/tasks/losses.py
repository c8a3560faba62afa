"""Losses of a segmenter on masks that may be wrong: pure functions of logits and masks.

Everywhere: logits (B, classes, H, W) float32; masks (B, H, W) int64, 0..classes - 1 or 255, which is left out;
label_smoothing in [0, 1), the share of a pixel's label that is spread evenly over all classes. The result is a scalar,
the mean over the pixels that count; zero (not NaN) if none does.
"""

from torch import Tensor
from torch.nn import functional

from wsss.data.labels import IGNORE

# Trust in the label: the values in the experiments of Reed et al.
HARD_BETA, SOFT_BETA = 0.8, 0.95


def pixel_cross_entropy(logits: Tensor, masks: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy."""
    return _mean(_losses(logits, masks, label_smoothing), masks)


def bootstrapped_cross_entropy(
    logits: Tensor, masks: Tensor, label_smoothing: float = 0.0, *, hard: bool = True
) -> Tensor:
    """Cross entropy with labels mixed with the network's own prediction (Reed et al. 2014, "Training deep neural
    networks on noisy labels with bootstrapping").

    ``-sum over k of (beta t_k + (1 - beta) z_k) log q_k`` with the label t, the predicted probabilities q, and the
    prediction z: hard, one for the most probable class and zero for the others, beta 0.8; soft, q itself, beta 0.95,
    whose second term is the entropy of q. Soft gradients go through both q.
    """
    beta = HARD_BETA if hard else SOFT_BETA
    logarithms = functional.log_softmax(logits, dim=1)
    own = -logarithms.max(1).values if hard else -(logarithms.exp() * logarithms).sum(1)
    losses = beta * _losses(logits, masks, label_smoothing) + (1 - beta) * own
    return _mean(losses, masks)


def _losses(logits: Tensor, masks: Tensor, label_smoothing: float) -> Tensor:
    """(B, H, W) cross entropy of every pixel, zero where the mask is 255."""
    return functional.cross_entropy(
        logits, masks, ignore_index=IGNORE, label_smoothing=label_smoothing, reduction="none"
    )


def _mean(losses: Tensor, masks: Tensor) -> Tensor:
    counted = (masks != IGNORE).float()
    total = counted.sum()
    return (losses * counted).sum() / total.where(total > 0, 1.0)
