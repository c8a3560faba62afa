"""Devices, precision, processes and progress: everything about where a run computes, not what."""

import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from wsss.config import RuntimeConfig
from wsss.errors import UserError, escaped
from wsss.parallel import rank_and_world

T = TypeVar("T")

Precision = Literal["float32", "bf16", "fp16"]

MOST_LOADERS = 16
"""Processes that decode photos for a GPU, unless the user gives a number."""


def processes_here() -> int:
    """How many of these processes are on this machine and share its cores."""
    world = rank_and_world()[1]
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    return max(1, world // int(os.environ.get("SLURM_STEP_NUM_NODES", 1)))


def device(config: RuntimeConfig) -> torch.device:
    """The device of the per-image stages.

    Raises:
        UserError: a GPU is asked for, but there is none.
    """
    if config.accelerator == "cpu":
        return torch.device("cpu")
    if config.accelerator == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("runtime.accelerator is mps, but torch sees no Apple GPU; use cpu or auto")
        return torch.device("mps")
    if torch.cuda.is_available():
        no_tf32()
        if config.devices > torch.cuda.device_count():
            there = torch.cuda.device_count()
            raise UserError(
                f"runtime.devices is {config.devices}, but torch sees {there} GPU(s) here; use that many at most"
            )
        local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
        # Each of several processes on one machine (see `shards`) has its own.
        return torch.device("cuda", int(local) % torch.cuda.device_count()) if local else torch.device("cuda")
    if config.accelerator == "gpu":
        raise UserError("a GPU is asked for, but torch sees no CUDA device; use cpu or auto")
    return torch.device("cpu")


def no_tf32() -> None:
    """Let float32 mean float32 on a GPU: cuDNN would otherwise round the inputs of convolutions to 10 bits."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def precision(config: RuntimeConfig) -> tuple[Precision, str]:
    """In what to compute, and why.

    ``auto`` uses what is fast: bf16 on GPUs from Ampere on, and on CPUs with bf16 matrix or dot-product units, where
    channels_last + bf16 runs ResNets 2 to 5 times faster than float32; fp16 on GPUs of compute capability 7, which have
    tensor cores for fp16 only.

    Raises:
        UserError: fp16 is asked for without a GPU.
    """
    kind = device(config).type
    if config.precision != "auto":
        if config.precision == "fp16" and kind != "cuda":
            raise UserError("runtime.precision is fp16, but that is for CUDA GPUs; use auto")
        return config.precision, "as configured"
    if kind == "cuda":
        major = torch.cuda.get_device_capability()[0]
        if major >= 8:
            return "bf16", "the GPU computes it"
        return (
            ("fp16", "the GPU is older than Ampere")
            if major == 7
            else ("float32", "the GPU has no tensor cores")
        )
    if kind == "cpu" and cpu_has_bf16():
        return "bf16", "the CPU computes it"
    return (
        "float32",
        "the CPU has no bf16 units" if kind == "cpu" else "nobody has tried another on this device",
    )


def cpu_has_bf16() -> bool:
    """Whether this CPU computes bf16 natively (AVX512-BF16 or AMX)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(config: RuntimeConfig, *, gradients: bool = False) -> AbstractContextManager[Any]:
    """The autocast context of the per-image stages. With ``gradients`` fp16 becomes float32: gradients of a map are
    often below fp16's smallest numbers."""
    name = precision(config)[0]
    if name == "float32" or (name == "fp16" and gradients):
        return nullcontext()
    return torch.autocast(device(config).type, dtype=torch.bfloat16 if name == "bf16" else torch.float16)


def prepare(model: nn.Module, config: RuntimeConfig) -> nn.Module:
    """Move a network to the device, in the memory format in which convolutions are fastest."""
    return model.to(device(config), memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]


def workers(config: RuntimeConfig) -> int:
    """Number of worker processes."""
    if config.workers is not None:
        return config.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes_here())


def loader_workers(config: RuntimeConfig) -> int:
    """Processes that decode photos for one device.

    Next to a training on the CPU, one core less, because it needs the cores itself. On machines with many cores no more
    than keep a GPU busy: every process holds memory and file descriptors.
    """
    if config.workers is not None:
        return config.workers
    share = workers(config)
    return max(1, share - 1) if device(config).type == "cpu" else max(1, min(share, MOST_LOADERS))


def progress(
    items: Iterable[T], config: RuntimeConfig, title: str, total: int, unit: str = "img"
) -> "tqdm[T]":
    """Iterate with a progress bar on stderr; if stderr is not a terminal, with a line every half minute."""
    return tqdm(items, desc=title, total=total, **{**_style(config), "unit": unit})


def bar(config: RuntimeConfig, title: str, total: int, done: int) -> "tqdm[Any]":
    """The same, as a bar that the caller updates, starting at ``done``."""
    return tqdm(desc=title, total=total, initial=done, **_style(config))


def _style(config: RuntimeConfig) -> dict[str, Any]:
    terminal = os.isatty(2)
    return {
        "unit": "img",
        "disable": not config.progress or rank_and_world()[0] > 0,
        "mininterval": 0.1 if terminal else 30.0,
        "dynamic_ncols": terminal,
    }


def say(text: str) -> None:
    """Print one line for the user, on stderr."""
    print(escaped(text), file=sys.stderr, flush=True)
