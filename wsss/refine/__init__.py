"""From saliency maps to pseudo-masks: background scores, dense CRF, uncertain pixels."""

from typing import TYPE_CHECKING, Any

from wsss.refine.parameters import CRFParameters

if TYPE_CHECKING:
    from wsss.refine.crf import dense_crf

__all__ = ["CRFParameters", "dense_crf"]


def __getattr__(name: str) -> Any:
    """Import `dense_crf` only when it is used: `wsss.config` imports the parameters and needs no numpy."""
    if name == "dense_crf":
        from wsss.refine.crf import dense_crf

        return dense_crf
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
