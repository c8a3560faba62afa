"""Where a run computes: device, precision, number of processes."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from wsss import runtime
from wsss.config import ClassifierConfig, RuntimeConfig
from wsss.errors import UserError
from wsss.tasks.classification import new_task


def cuda(monkeypatch: pytest.MonkeyPatch, there: bool, capability: tuple[int, int] = (9, 0)) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(there))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)


@pytest.mark.parametrize(
    ("accelerator", "there", "expected"),
    [("cpu", True, "cpu"), ("auto", True, "cuda"), ("gpu", True, "cuda"), ("auto", False, "cpu")],
)
def test_device_is_the_gpu_unless_there_is_none_or_the_cpu_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, accelerator: Any, there: bool, expected: str
) -> None:
    cuda(monkeypatch, there)
    assert runtime.device(RuntimeConfig(accelerator=accelerator)).type == expected


@pytest.fixture
def tf32() -> Iterator[None]:
    """TF32 is on; afterwards it is as before."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("process", ["stage", "training"])
def test_float32_is_float32_on_a_gpu(monkeypatch: pytest.MonkeyPatch, process: str) -> None:
    """cuDNN's default rounds the inputs of convolutions to TF32. A training may run in processes of its own."""
    cuda(monkeypatch, True)
    if process == "stage":
        runtime.device(RuntimeConfig())
    else:
        new_task(ClassifierConfig("resnet18", weights="none"), ("cat",)).setup("fit")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_missing_gpu_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, False)
    with pytest.raises(UserError, match=r"no CUDA device; use cpu or auto"):
        runtime.device(RuntimeConfig(accelerator="gpu"))


@pytest.mark.parametrize(
    ("precision", "capability", "expected"),
    [
        ("auto", (8, 0), "bf16"),
        ("auto", (7, 5), "fp16"),
        ("auto", (6, 1), "float32"),
        ("bf16", (7, 5), "bf16"),
        ("fp16", (9, 0), "fp16"),
        ("float32", (9, 0), "float32"),
    ],
)
def test_gpus_compute_in_what_is_fast_and_gradients_not_in_fp16(
    monkeypatch: pytest.MonkeyPatch, precision: Any, capability: tuple[int, int], expected: str
) -> None:
    cuda(monkeypatch, True, capability)
    started: list[torch.dtype] = []
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: started.append(dtype))
    config = RuntimeConfig(precision=precision)
    assert runtime.precision(config)[0] == expected
    runtime.autocast(config)
    runtime.autocast(config, gradients=True)
    types = {"bf16": [torch.bfloat16] * 2, "fp16": [torch.float16], "float32": []}
    assert started == types[expected]


def test_what_this_machine_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match=r"fp16, but that is for CUDA GPUs; use auto"):
        runtime.precision(RuntimeConfig(accelerator="cpu", precision="fp16"))
    with pytest.raises(UserError, match=r"mps, but torch sees no Apple GPU; use cpu or auto"):
        runtime.device(RuntimeConfig(accelerator="mps"))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx2 avx512_bf16", True), ("amx_bf16", True), ("avx2 avx512f", False), (None, False)],
)
def test_cpus_use_bf16_where_they_compute_it(
    monkeypatch: pytest.MonkeyPatch, flags: str | None, expected: bool
) -> None:
    def read(path: Path, *args: Any, **kwargs: Any) -> str:
        if flags is None:
            raise FileNotFoundError
        return f"flags : {flags}\n"

    monkeypatch.setattr(Path, "read_text", read)
    found, reason = runtime.precision(RuntimeConfig(accelerator="cpu"))
    assert (found == "bf16") == expected
    assert "CPU" in reason


def test_autocast_computes_as_configured() -> None:
    layer, value = nn.Linear(4, 4), torch.ones(1, 4)
    for precision, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        with runtime.autocast(RuntimeConfig(accelerator="cpu", precision=precision)):  # type: ignore[arg-type]
            assert layer(value).dtype == dtype


def test_prepared_network_is_in_eval_mode_and_channels_last() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).train()
    prepared = runtime.prepare(network, RuntimeConfig(accelerator="cpu"))
    assert not any(module.training for module in prepared.modules())
    assert prepared[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index]


def test_workers_are_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    config = RuntimeConfig(accelerator="cpu")
    assert runtime.workers(config) == 3
    assert runtime.loader_workers(config) == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert runtime.loader_workers(config) == 1
    for count in (0, 5):
        given = RuntimeConfig(accelerator="cpu", workers=count)
        assert runtime.workers(given) == runtime.loader_workers(given) == count


def test_progress_counts_and_can_be_silent(capsys: pytest.CaptureFixture[str]) -> None:
    silent = RuntimeConfig(progress=False)
    assert list(runtime.progress(iter("abc"), silent, "title", 3)) == ["a", "b", "c"]
    with runtime.bar(silent, "title", 5, 2) as bar:
        bar.update(1)
    assert capsys.readouterr().err == ""
    with runtime.bar(RuntimeConfig(), "title", 5, 2) as bar:
        bar.update(3)
        bar.refresh()
    assert "title" in (shown := capsys.readouterr().err)
    assert "5/5" in shown


def test_more_gpus_than_there_are_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"runtime\.devices is 4, but torch sees 2 GPU\(s\) here"):
        runtime.device(RuntimeConfig(devices=4))
    assert runtime.device(RuntimeConfig(devices=2)).type == "cuda"


@pytest.mark.parametrize(("cores", "processes", "expected"), [(64, 1, 16), (64, 8, 8), (2, 4, 1)])
def test_loaders_are_shared_among_devices_and_bounded(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, expected: int
) -> None:
    cuda(monkeypatch, True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda process: range(cores))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert runtime.loader_workers(RuntimeConfig()) == expected
    assert runtime.loader_workers(RuntimeConfig(workers=40)) == 40
