"""Backbones by name, wherever they come from."""

from collections.abc import Callable
from difflib import get_close_matches

from wsss.errors import UserError
from wsss.models.backbone import BACKBONES, Backbone
from wsss.models.timm_networks import PREFIX, timm_backbone


def find_backbone(name: str, option: str, fits: Callable[[Backbone], bool]) -> Backbone:
    """The record of this name.

    Args:
        name: of `BACKBONES`, or ``timm:NAME``.
        option: the option that gives the name, for the message.
        fits: what the backbone must be able to do.

    Raises:
        UserError: there is no such backbone; the message suggests close names.
    """
    if name.startswith(PREFIX):
        return timm_backbone(name, option)
    names = [other for other, backbone in BACKBONES.items() if fits(backbone)]
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{option} is {name}, but must be one of {', '.join(names)}, or timm:NAME{hint}")
    return BACKBONES[name]
