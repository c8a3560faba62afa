"""Weights of backbones: downloaded, or read from a file."""

from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn

from wsss.errors import UserError
from wsss.models.backbone import Backbone


def load_weights(
    weights: str, backbone: Backbone, option: str, *, optional: bool = True
) -> dict[str, torch.Tensor] | None:
    """State dict for ``weights`` = ``imagenet`` | ``none`` | PATH; None for ``none``.

    Args:
        weights: the configured value.
        backbone: whose weights they are.
        option: name of the configuration key, for messages.
        optional: whether messages may propose `none`.

    Raises:
        UserError: the download failed, or the file is missing or is not a plain state dict.
    """
    if weights == "none":
        return None
    if weights == "imagenet":
        return _download(backbone, option, optional)
    return read_state_dict(Path(weights), option, optional)


def _download(backbone: Backbone, option: str, optional: bool) -> dict[str, torch.Tensor]:
    try:
        return backbone.weights.read()
    except (URLError, OSError, RuntimeError) as error:
        scratch = f", or train from scratch with --{option} none" if optional else ""
        raise UserError(
            f"cannot get the ImageNet weights of {backbone.name} ({error}); download {backbone.weights.url} "
            f"elsewhere and give its path as --{option} PATH{scratch}"
        ) from error


def read_state_dict(path: Path, option: str, optional: bool = True) -> dict[str, torch.Tensor]:
    """Read a torchvision state dict with ``weights_only=True``.

    Raises:
        UserError: missing file, not a checkpoint, or something else than a flat dictionary of tensors.
    """
    if not path.is_file():
        choices = "`imagenet`, `none`" if optional else "`imagenet`"
        raise UserError(f"--{option}: there is no file {path}; give {choices} or the path of a state dict")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"--{option}: {path} is not a state dict that torch can load safely ({type(error).__name__}); "
            "save one with torch.save(model.state_dict(), PATH)"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
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
