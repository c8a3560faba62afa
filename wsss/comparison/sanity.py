"""Do the maps depend on what the classifier has learned? Cascading randomisation (Adebayo et al. 2018).

The weights are replaced stage by stage from the head down, each stage on top of the ones before. A map that
stays as it was does not show what the classifier knows, but what the image looks like.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wsss.comparison.store import load, save
from wsss.metrics.saliency import rank_correlation
from wsss.models.backbone import layout_of

Explain = Callable[[nn.Module, int], Tensor]
"""(classifier, number of the image) -> raw maps (K, h, w)."""


@dataclass(frozen=True)
class Part:
    """Modules that lose their weights together."""

    name: str
    modules: tuple[nn.Module, ...]


class Agreement(NamedTuple):
    """Of maps before and after: mean rank correlation over targets, share of flat maps (constant) after."""

    correlation: float
    flat: float


def randomization_stages(classifier: nn.Module) -> list[Part]:
    """The steps of a classifier's forward pass that have weights, from the head down: fc, layer4, ..., conv1; or
    each layer of a VGG; or the children of a network whose forward pass is not known.

    A BatchNorm layer belongs to the convolution before it.
    """
    layout = layout_of(classifier)
    path = layout.path if layout is not None else ()
    stages: list[Part] = []
    for name in dict.fromkeys(path or (name for name, _ in classifier.named_children())):
        module = classifier.get_submodule(name)
        if not any(True for _ in module.parameters()):
            continue
        if isinstance(module, nn.BatchNorm2d) and stages:
            stages[-1] = Part(stages[-1].name, (*stages[-1].modules, module))
        else:
            stages.append(Part(name, (module,)))
    return stages[::-1]


def randomize(stage: Part, seed: int) -> None:
    """Redraws every weight of a stage at random, in place.

    Each tensor becomes normal with its own mean and standard deviation, so that activations keep their
    scale; statistics of BatchNorm stay. (A fresh initialisation lets activations fade from layer to layer
    here, since BatchNorm does not normalise in eval mode.)
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in stage.modules:
            for weight in module.parameters():
                deviation, mean = torch.std_mean(weight.detach().float().cpu(), correction=0)
                weight.copy_(torch.randn(weight.shape, generator=generator) * deviation + mean)


def cascade(classifier: nn.Module, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """(stage, a copy of the classifier in which this stage and those before it are randomised)."""
    broken = copy.deepcopy(classifier)
    for number, stage in enumerate(randomization_stages(broken)):
        randomize(stage, seed + number)
        yield stage.name, broken


def correlations(
    classifier: nn.Module,
    methods: Sequence[Explain],
    files: Sequence[Callable[[str], Path]],
    expected: Sequence[str],
    images: int,
    seed: int,
    tick: Callable[[int], Any],
) -> dict[str, list[Agreement]]:
    """How each method's maps agree with the original ones, stage by stage.

    Args:
        classifier: with its trained weights.
        methods: the compared methods.
        files: for each method, the file of a stage's results; existing results are not computed again.
        expected: for each method, the fingerprint of its results.
        images: number of images.
        seed: of the weights.
        tick: called with the number of images that are done.

    Returns:
        Stage -> the agreement of each method, over all targets of the images.
    """
    originals: dict[int, list[Tensor]] = {}
    result: dict[str, list[Agreement]] = {}
    for stage, broken in cascade(classifier, seed):
        found = []
        for number, (explain, file) in enumerate(zip(methods, files, strict=True)):
            stored = load(file(stage), expected[number])
            if stored is not None:
                tick(images)
            else:
                if number not in originals:
                    originals[number] = [explain(classifier, index).cpu() for index in range(images)]
                agreement = _compare(partial(explain, broken), originals[number], tick)
                stored = save(file(stage), expected[number], agreement._asdict())
            found.append(Agreement(stored["correlation"], stored["flat"]))
        result[stage] = found
    return result


def _compare(
    explain: Callable[[int], Tensor], originals: Sequence[Tensor], tick: Callable[[int], Any]
) -> Agreement:
    """The agreement of all targets' maps, each in the method's own resolution."""
    values, flat = [], []
    for index, before in enumerate(originals):
        after = explain(index).cpu()
        values += [rank_correlation(first, second) for first, second in zip(before, after, strict=True)]
        flat += [bool(saliency.min() == saliency.max()) for saliency in after]
        tick(1)
    return Agreement(fmean(values), fmean(flat))
