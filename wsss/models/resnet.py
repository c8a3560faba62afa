"""Dilation of torchvision's ResNets."""

from torch import nn


def dilate(stage: nn.Module, dilation: int) -> None:
    """Replace a ResNet stage's stride by dilation, as torchvision's ``replace_stride_with_dilation``.

    That option refuses the basic blocks of ResNet-18 and 34; the arithmetic is the same: the
    strided convolutions get stride 1, every 3x3 kernel after them the new dilation, and the kernel
    that was strided itself the dilation of the stage before it.
    """
    for index, block in enumerate(stage.children()):
        for name, module in block.named_modules():
            if not isinstance(module, nn.Conv2d):
                continue
            first = index == 0 and name == _strided_conv(block)
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                value = max(1, dilation // 2) if first else dilation
                module.dilation = module.padding = (value, value)


def _strided_conv(block: nn.Module) -> str:
    """Name of the 3x3 convolution that carries the stride: conv2 in a bottleneck, conv1 in a basic block."""
    return "conv2" if hasattr(block, "conv3") else "conv1"
