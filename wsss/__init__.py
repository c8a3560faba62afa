"""Weakly supervised semantic segmentation from image-level labels.

Nothing heavy is imported here: ``import wsss`` takes milliseconds. The pieces live in
``wsss.saliency``, ``wsss.refine``, ``wsss.metrics`` and ``wsss.pipeline``.
"""

__version__ = "0.1.0"
