"""Backbones from torchvision: weights, output stride, frozen BatchNorm.

Names in these models are torchvision's (``layer4``, ``features.29``), so its state dicts load as
they are and saliency methods find their layer by the usual path.
"""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn
from torchvision import models

from wsss.errors import UserError

RESNETS: dict[str, Any] = {
    "resnet18": models.resnet18,
    "resnet34": models.resnet34,
    "resnet50": models.resnet50,
    "resnet101": models.resnet101,
}
# The weights that the WSSS literature starts from. torchvision's newer V2 recipes reach a higher
# top-1 accuracy but are not comparable.
_IMAGENET = {
    "resnet18": models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": models.ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": models.ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": models.ResNet101_Weights.IMAGENET1K_V1,
    "vgg16": models.VGG16_Weights.IMAGENET1K_V1,
    "vgg16_bn": models.VGG16_BN_Weights.IMAGENET1K_V1,
    "mobilenet_v3_large": models.MobileNet_V3_Large_Weights.IMAGENET1K_V1,
}

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def load_weights(
    weights: str, architecture: str, option: str, *, optional: bool = True
) -> dict[str, torch.Tensor] | None:
    """State dict for ``weights`` = ``imagenet`` | ``none`` | PATH; None for ``none``.

    Args:
        weights: the configured value.
        architecture: torchvision's name of the backbone.
        option: name of the configuration key, for messages.
        optional: whether messages may propose `none`.

    Raises:
        UserError: the download failed, or the file is missing or is not a plain state dict.
    """
    if weights == "none":
        return None
    if weights == "imagenet":
        return _download(architecture, option, optional)
    return read_state_dict(Path(weights), option, optional)


def _download(architecture: str, option: str, optional: bool) -> dict[str, torch.Tensor]:
    entry = _IMAGENET[architecture]
    try:
        state: dict[str, torch.Tensor] = entry.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        scratch = f", or train from scratch with --{option} none" if optional else ""
        raise UserError(
            f"cannot get the ImageNet weights of {architecture} ({error}); download {entry.url} elsewhere and give "
            f"its path as --{option} PATH{scratch}"
        ) from error
    return state


def read_state_dict(path: Path, option: str, optional: bool = True) -> dict[str, torch.Tensor]:
    """Read a torchvision state dict with ``weights_only=True``.

    Raises:
        UserError: missing file, not a checkpoint, or something else than a flat dictionary of tensors.
    """
    if not path.is_file():
        choices = "`imagenet`, `none`" if optional else "`imagenet`"
        raise UserError(f"--{option}: there is no file {path}; give {choices} or the path of a state dict")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"--{option}: {path} is not a state dict that torch can load safely ({type(error).__name__}); "
            "save one with torch.save(model.state_dict(), PATH)"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(
            f"--{option}: {path} holds no flat state dict (name -> tensor) of a torchvision model"
        )
    return state


def load_into(
    model: nn.Module, state: dict[str, torch.Tensor], *, ignore: tuple[str, ...], source: str
) -> None:
    """Load ``state`` into ``model``; only names that start with ``ignore`` may be missing or left over.

    Raises:
        UserError: the state dict belongs to another architecture.
    """
    state = {name: value for name, value in state.items() if not name.startswith(ignore)}
    expected = model.state_dict()
    wrong = [
        name for name, value in state.items() if name in expected and expected[name].shape != value.shape
    ]
    missing = [name for name in expected if name not in state and not name.startswith(ignore)]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    surplus = [name for name in state if name not in expected]
    if wrong or missing or surplus:
        first = (wrong + missing + surplus)[0]
        raise UserError(
            f"{source} belongs to another architecture: {len(missing)} tensors missing, {len(surplus)} unknown, "
            f"{len(wrong)} of another shape (first: {first})"
        )
    model.load_state_dict(state, strict=False)


def resnet(architecture: str, output_stride: int, small_images: bool = False) -> nn.Module:
    """A torchvision ResNet with dilation instead of stride in its last stages.

    Args:
        architecture: resnet18, resnet34, resnet50 or resnet101.
        output_stride: 32, 16 or 8, counted with the full stem.
        small_images: without the stem's max pooling, which halves every stride.
    """
    model: nn.Module = RESNETS[architecture](weights=None)
    if output_stride <= 16:
        dilate(model.get_submodule("layer4"), 2 if output_stride == 16 else 4)
    if output_stride <= 8:
        dilate(model.get_submodule("layer3"), 2)
    if small_images:
        model.maxpool = nn.Identity()
    return model


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


def freeze_stages(model: nn.Module, stages: int) -> None:
    """Switch off the gradients of the first ``stages`` stages (1: stem, 2: stem and layer1 ...)."""
    groups: list[list[str]] = [["conv1", "bn1"], ["layer1"], ["layer2"], ["layer3"], ["layer4"]]
    if not hasattr(model, "layer1"):  # VGG: the convolutions up to each pooling
        features = [f"features.{i}" for i in range(len(model.get_submodule("features")))]  # type: ignore[arg-type]
        pools = [i for i, name in enumerate(features) if isinstance(model.get_submodule(name), nn.MaxPool2d)]
        groups = [features[start:end] for start, end in zip([0, *pools], pools, strict=False)]
    for names in groups[:stages]:
        for name in names:
            model.get_submodule(name).requires_grad_(False)


def freeze_batchnorm(model: nn.Module) -> None:
    """Keep every BatchNorm at its statistics (eval) and its affine weights untrained.

    Call it after every ``model.train()``, which switches the statistics on again.
    """
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.eval()
            module.requires_grad_(False)
