"""The pretended device refuses what CUDA refuses, and allows what it allows."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.pretend import Mixed, pretending

REFUSED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "sum": lambda there, here: there + here,
    "in place": lambda there, here: there.add_(here),
    "matrix product": lambda there, here: there @ here,
    "concatenation": lambda there, here: torch.cat([there, here]),
    "where": lambda there, here: torch.where(here > 0, there, 0.0),
    "index of a CPU tensor": lambda there, here: here[there.long()],
    "CPU value into a CUDA tensor": lambda there, here: there.__setitem__(slice(None), here),
    "numpy": lambda there, here: there.numpy(),
    "np.asarray": lambda there, here: np.asarray(there),
    "pinning": lambda there, here: there.pin_memory(),
    "generator": lambda there, here: torch.rand(3, device="cuda", generator=torch.Generator()),
    "network elsewhere": lambda there, here: nn.Linear(3, 3)(there),
    "images elsewhere": lambda there, here: nn.Linear(3, 3).to("cuda")(here),
    "einsum": lambda there, here: torch.einsum("ij,jk->ik", there, here),
}
ALLOWED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "a number on the CPU": lambda there, here: there * torch.tensor(2.0),
    "CPU indices": lambda there, here: there[torch.tensor([0, 2])],
    "CPU mask": lambda there, here: there[here > 0],
    "copy": lambda there, here: here.copy_(there),
    "CUDA value into a CPU tensor": lambda there, here: here.__setitem__(0, there[0]),
    "moved": lambda there, here: there.cpu() + here,
    "moved by another": lambda there, here: here.to(there) + there,
    "to numpy by the CPU": lambda there, here: there.detach().cpu().numpy(),
    "factory": lambda there, here: torch.zeros(3, 3, device="cuda") + there,
    "like": lambda there, here: torch.ones_like(there) + there,
    "network": lambda there, here: nn.Linear(3, 3).to("cuda")(there),
    "constant for a CUDA tensor": lambda there, here: there.new_tensor([1.0, 2.0, 3.0]) + there,
}


def tensors() -> tuple[Tensor, Tensor]:
    there, here = (torch.arange(9.0).view(3, 3) - 4 for _ in range(2))
    return there.to("cuda"), here


@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses_raises(name: str) -> None:
    with pretending(), pytest.raises(Mixed):
        REFUSED[name](*tensors())


@pytest.mark.parametrize("name", ALLOWED)
def test_what_cuda_allows_passes(name: str) -> None:
    with pretending():
        ALLOWED[name](*tensors())


def test_results_say_where_they_are_and_gradients_pass() -> None:
    with pretending():
        weight = torch.ones(3, 3, device="cuda", requires_grad=True)
        loss = (tensors()[0] @ weight).square().sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        assert loss.device == gradient.device == torch.device("cuda", 0)
        assert gradient.is_cuda
        assert not gradient.cpu().is_cuda
    expected = torch.ones(3, 3, requires_grad=True)
    ((torch.arange(9.0).view(3, 3) - 4) @ expected).square().sum().backward()
    assert torch.equal(gradient.cpu(), expected.grad)


def test_waits_are_counted() -> None:
    with pretending() as counts:
        there, here = tensors()
        bool((there > 0).any())
        float(there.sum())
        there.cpu()
        there.nonzero()
        here.nonzero()
    assert counts["nonzero"] == counts["cpu"] == 1
    assert 2 <= sum(counts.values()) - 2 <= 4


def test_all_is_as_before_afterwards() -> None:
    autocast, to = torch.autocast, nn.Module.to
    with pytest.raises(ZeroDivisionError), pretending():
        raise ZeroDivisionError
    assert (torch.autocast, nn.Module.to) == (autocast, to)
    assert torch.zeros(1).device.type == "cpu"
