"""From saliency maps to pseudo-masks: background scores, dense CRF, uncertain pixels."""

from wsss.refine.crf import CRFParameters, dense_crf

__all__ = ["CRFParameters", "dense_crf"]
