"""Weakly supervised semantic segmentation from image-level labels.

    run = wsss.load("runs/photos")            # a run directory or a checkpoint
    result = run.predict("holiday.jpg")       # result.mask, result.classes, result.probabilities
    run.explain("holiday.jpg", "dog")         # where the classifier sees the dog

Nothing heavy is imported here: ``import wsss`` takes milliseconds. The pieces live in
``wsss.saliency``, ``wsss.refine``, ``wsss.metrics`` and ``wsss.pipeline``.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsss.inference import load as load

# Read when torch is imported: its threads sleep while they wait for each other. By default they spin, and where other
# processes want the cores, the loaders of a training for example, one with two threads is many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Likewise: on an Apple GPU, operations that it lacks run on the CPU.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load`, imported when it is first used."""
    if name == "load":
        return import_module("wsss.inference").load
    raise AttributeError(f"module 'wsss' has no attribute {name!r}")
