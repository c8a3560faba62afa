"""Reading checkpoints safely, and the configuration that they carry."""

import hashlib
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from wsss.errors import UserError

T = TypeVar("T")


def parse_config(cls: type[T], values: dict[str, Any]) -> T:
    """Rebuild a configuration dataclass from the plain dictionary of :func:`wsss.config.to_dict`.

    Unknown keys and choices that no longer exist are dropped, and missing keys take their defaults, so that older
    checkpoints load.
    """
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in values:
            continue
        value, hint = values[field.name], hints[field.name]
        if typing.get_origin(hint) is typing.Literal and value not in typing.get_args(hint):
            continue
        if is_dataclass(hint) and isinstance(value, dict):
            value = parse_config(typing.cast("type[Any]", hint), value)
        elif isinstance(value, list):
            (kind, *_) = typing.get_args(hint) or (None,)
            value = tuple(parse_config(kind, item) if isinstance(item, dict) else item for item in value)
        arguments[field.name] = value
    return cls(**arguments)


def read_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    """Load a checkpoint of this package with ``weights_only=True``.

    Args:
        path: the file.
        kind: ``classifier`` or ``segmenter``.

    Raises:
        UserError: missing, damaged, unsafe, or of another kind.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; train one first (`wsss run`) or give another path")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} cannot be loaded as a checkpoint ({type(error).__name__}): it is damaged, or wsss did not write "
            "it; give another, or remove it and train again"
        ) from error
    found: Any = checkpoint
    for key in ("hyper_parameters", "config", "kind"):
        found = found.get(key) if isinstance(found, dict) else None
    if found != kind:
        raise UserError(
            f"{path} holds {found or 'no wsss model'}, but a wsss {kind} checkpoint is needed here"
        )
    return typing.cast("dict[str, Any]", checkpoint)


def published_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a checkpoint stands for: the mean over the steps if it was trained with ``segmenter.ema``.

    That option was removed. Such checkpoints hold the mean of ``model.`` as ``average.network.``, and a counter.
    """
    prefix = "average.network."
    mean = {f"model.{name.removeprefix(prefix)}": state[name] for name in state if name.startswith(prefix)}
    return mean or state


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of all weights and their names. A network that is trained again has another one."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
