"""Parts of a network that training leaves as they are."""

from torch import nn

from wsss.models.backbone import Layout

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def freeze_stages(model: nn.Module, layout: Layout, count: int) -> None:
    """Switch off the gradients of everything up to the ``count``-th stage (of a ResNet 1: the stem, 2: and layer1)."""
    if count == 0:
        return
    stage, inside = layout.stages[:count][-1], False
    for name, module in model.named_modules():  # in the order in which they were added
        within = f"{name}.".startswith(f"{stage}.")
        if inside and not within:
            break
        inside |= within
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)


def freeze_batchnorm(model: nn.Module) -> None:
    """Keep every BatchNorm at its statistics (eval) and its affine weights untrained.

    Call it after every ``model.train()``, which switches the statistics on again.
    """
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.eval()
            module.requires_grad_(False)
