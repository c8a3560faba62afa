"""A training whose numbers are no numbers any more."""

import torch
from torch import Tensor

from wsss.errors import UserError


def check_finite(values: Tensor, what: str, kind: str) -> None:
    """Raises UserError, with the mend, where a value is infinite or not a number.

    Args:
        values: of any shape.
        what: "its loss in epoch 3 is", for the message.
        kind: of the task, "classifier" or "segmenter".
    """
    if not bool(torch.isfinite(values).all()):
        raise UserError(
            f"the training of the {kind} diverged: {what} infinite or not a number; lower --{kind}.optimizer.lr or "
            f"raise --{kind}.optimizer.warmup"
        )
