"""CUDA without a GPU: CPU tensors that say they live on cuda:0, and refuse what real ones refuse.

    with pretending() as counts:
        model.to("cuda"); ...

Mixing such tensors with others, numpy of them, and a CPU generator for them raise `Mixed`. Factories with a device,
`to`, `cpu` and `Module.to` move. `counts` has how often each operation made the CPU wait for the device. It cannot show
kernels, CUDA's own autocast lists, memory or speed. Thread pools must work inline, for torch's modes are per thread.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
WAITS = frozenset(
    ("item", "tolist", "nonzero", "cpu", "__bool__", "__int__", "__float__", "__index__", "equal", "unique")
)
"""Operations that wait for the device."""

_INDEXING = ("__getitem__", "index")  # indices may be on the CPU
_FREE = ("grad", "backward", "copy_", "type_as", "set_data", "__set__")


class Mixed(RuntimeError):
    """What CUDA would refuse."""


class Pretended(Tensor):
    """A CPU tensor that says it is on cuda:0."""

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _handle(func, args, kwargs or {}, Counter())

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended{tuple(self.shape)}"


def _as(kind: type[Tensor], tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor if type(tensor) is kind else tensor.as_subclass(kind)  # type: ignore[no-any-return]


def _become(tensor: Tensor) -> Tensor:
    """A fresh result. Its class is exchanged, because `as_subclass` would add a view to the autograd graph."""
    if type(tensor) is Tensor:
        tensor.__class__ = Pretended
    return tensor


def _raw(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def _handle(func: Any, args: Any, kwargs: dict[str, Any], counts: Counter[str]) -> Any:
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        value = _raw(func, args, kwargs)
        return tree_map_only(Tensor, _become, value) if isinstance(args[0], Pretended) else value
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    if there and name in WAITS:
        counts[name] += 1
    if there and name in ("numpy", "__array__", "pin_memory"):
        raise Mixed(f"{name} of a CUDA tensor")
    match name:
        case "cpu":
            return _as(Tensor, args[0])
        case "cuda":
            return _as(Pretended, args[0])
        case "to":
            return _to(args, kwargs)
    target = kwargs.get("device")
    result_there = bool(there) if target is None else torch.device(target).type == "cuda"
    if target is not None:
        kwargs = {**kwargs, "device": CPU}
    _refuse_mixing(name, args, tensors, there)
    generator = kwargs.get("generator")
    if result_there and isinstance(generator, torch.Generator) and generator.device.type == "cpu":
        raise Mixed(f"{name}: a CPU generator for a CUDA tensor")
    if name == "embedding_bag":  # it makes tensors of its own on the true device
        args, kwargs = tree_map_only(Pretended, lambda one: _as(Tensor, one), (args, kwargs))
    result = _raw(func, args, kwargs)
    return tree_map_only(Tensor, _become if result_there else lambda one: _as(Tensor, one), result)


def _to(args: Any, kwargs: dict[str, Any]) -> Tensor:
    rest, target = list(args[1:]), kwargs.get("device")
    for position, value in enumerate(rest):
        if isinstance(value, Tensor):
            target, rest[position] = value.device, value.dtype
            break
        if isinstance(value, torch.device | str):
            target = rest.pop(position)
            break
    others = {key: value for key, value in kwargs.items() if key != "device"}
    out = _as(Tensor, args[0])
    out = _raw(Tensor.to, (out, *rest), others) if rest or others else out
    there = isinstance(args[0], Pretended) if target is None else torch.device(target).type == "cuda"
    return _as(Pretended if there else Tensor, out)


def _refuse_mixing(name: str, args: Any, tensors: list[Tensor], there: list[Tensor]) -> None:
    if not there or name in _FREE:
        return
    here = [tensor for tensor in tensors if not isinstance(tensor, Pretended) and tensor.ndim > 0]
    if name in _INDEXING:
        if not isinstance(args[0], Pretended):
            raise Mixed("a CPU tensor indexed by CUDA indices")
        return
    if name == "__setitem__":
        if isinstance(args[0], Pretended):  # indices may be on the CPU, the value may not
            here = [value for value in here if value is args[2]]
        elif not any(isinstance(leaf, Pretended) for leaf in tree_leaves(args[1])):
            return  # a CUDA value is copied into a CPU tensor
    if here:
        shapes = [[tuple(tensor.shape) for tensor in some] for some in (there, here)]
        raise Mixed(f"{name}: CUDA tensors {shapes[0]} with CPU tensors {shapes[1]}")


class _World(TorchFunctionMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _handle(func, args, kwargs or {}, self.counts)


def _moved(module: nn.Module) -> nn.Module:
    """What `module.to("cuda")` does."""
    for part in module.modules():
        for name, value in list(part._parameters.items()):
            if value is not None:
                data = _as(Pretended, value.detach())
                part._parameters[name] = nn.Parameter(data, requires_grad=value.requires_grad)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = _as(Pretended, buffer)
    return module


@contextmanager
def pretending() -> Iterator[Counter[str]]:
    """In the block, "cuda" means pretended tensors, and autocast for CUDA is the CPU's. Yields the counts of waits."""
    autocast, to = torch.autocast, nn.Module.to

    class Autocast(autocast):  # type: ignore[misc]
        def __init__(
            self, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None
        ) -> None:
            super().__init__("cpu", dtype=torch.bfloat16 if dtype is None else dtype, enabled=enabled)

    def module_to(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        named = [value for value in args if isinstance(value, torch.device | str)]
        target = kwargs.get("device", named[0] if named else None)
        if target is None or torch.device(target).type != "cuda":
            return to(self, *args, **kwargs)
        rest = [value for value in args if not isinstance(value, torch.device | str)]
        others = {key: value for key, value in kwargs.items() if key != "device"}
        return _moved(to(self, *rest, **others) if rest or others else self)

    counts: Counter[str] = Counter()
    torch.autocast, nn.Module.to = Autocast, module_to  # type: ignore[misc,assignment,method-assign]
    try:
        with _World(counts):
            yield counts
    finally:
        torch.autocast, nn.Module.to = autocast, to  # type: ignore[misc,method-assign]
