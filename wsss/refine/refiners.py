"""Refiners: the maps and the photo in, labels, mask and confidence out. `refine.method` chooses one.

    >>> parameters = RefineParameters(background=BackgroundParameters("constant"), method="crf(iterations=5)")
    >>> labels, mask, confidence = build_refiner(parameters)(maps, classes, image)

To add one, write a class and set `REFINERS["mine"] = Mine`; `Refiner` says what it needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Protocol, get_type_hints

import numpy as np
import numpy.typing as npt

from wsss.errors import UserError
from wsss.grammar import Grammar
from wsss.refine import grabcut
from wsss.refine.background import Maps, background_scores
from wsss.refine.crf import dense_crfs
from wsss.refine.masks import (
    RefinedMask,
    agreement,
    empty_mask,
    hard_seeds,
    mask_indices,
    most_probable,
    soft_seed,
)
from wsss.refine.parameters import CRFParameters, RefineParameters

Place = Literal["processes", "threads", "main"]

CRF_CONSTANTS = tuple(constant.name for constant in fields(CRFParameters))


class Refiner(Protocol):
    """A class whose constructor takes the parameters, a device, and what its expression may say.

    Constructing is cheap and raises ValueError for values without a meaning. A network is loaded at the first call. The
    types of the further arguments are the grammar of the expression: `mine(strength=0.5)` needs
    `def __init__(self, parameters, device=None, strength: float = 1.0)`, or the fields of a dataclass.
    """

    from_saliency: ClassVar[bool] = False
    """Whether it takes the saliency itself: then the maps are those before the extension."""
    uses_background: ClassVar[bool] = True
    """Whether it cuts saliency by the background rule, which must then be chosen before."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Settings of `refine.*` (and constants of its CRFs) that the expression may say, too."""

    def __init__(self, parameters: RefineParameters, device: str | None = None, **values: Any) -> None: ...

    @property
    def place(self) -> Place:
        """Where it may be called. processes: it is pickled and works on a CPU; threads: in the main process, by
        several threads at once; main: there, one call at a time, as fits a network or a GPU."""
        return "main"

    def __call__(
        self, maps: Maps, classes: Sequence[int] | npt.NDArray[np.integer], image: npt.NDArray[np.uint8]
    ) -> RefinedMask:
        """Make the pseudo-mask of one image. Only its own classes and the background take part.

        Args:
            maps: `(K, H, W)` float32 in [0, 1], each class's maximum is 1 (`prepare_maps`): saliency. Or
                `(K + 1, H, W)` float32, sums to one (`prepare_probabilities`): probabilities, background first.
            classes: the K mask indices (1..C) of the image-level labels, in the order of the maps. Without any
                class the whole image is (certain) background.
            image: `(H, W, 3)` uint8 RGB.

        Raises:
            ValueError: sizes, types or class indices that do not fit, or a background rule that is not chosen yet.
        """
        ...

    @classmethod
    def ignores(cls, parameters: RefineParameters, probabilities: bool) -> Mapping[str, str]:
        """Settings and sections of `refine.*` that have no effect under these parameters, with the reason."""
        return {}


@dataclass(frozen=True)
class DenseCRF(Refiner):
    """Dense CRFs (see `dense_crf`) from seeds or from probabilities.

    The label is arg max_c Q(c), Q the marginals (agreement: the mean of two CRFs). `uncertainty` says where it is sure:

    - agreement, from the seeds that a background rule cuts: where two CRFs, from a generous and a strict seed, agree.
      IRN: Ahn, Cho and Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations",
      CVPR 2019, https://arxiv.org/abs/1904.05044
    - posterior: where max_c Q(c) >= `posterior_limit`, of one CRF from the soft scores or from probabilities. CLIP-ES:
      Lin et al., "CLIP is Also an Efficient Segmenter", CVPR 2023, https://arxiv.org/abs/2212.09506
    - none: everywhere.

    Example:
        >>> DenseCRF(RefineParameters(background=BackgroundParameters("constant")))(maps, classes, image).mask.shape
        (64, 64)
    """

    parameters: RefineParameters
    device: str | None = None

    settings: ClassVar[tuple[str, ...]] = (
        *CRF_CONSTANTS,
        *("uncertainty", "low_factor", "high_factor", "posterior_limit", "confidence", "backend"),
    )

    @property
    def place(self) -> Place:
        """Threads that read and write while one of them has the GPU; pydensecrf holds the GIL."""
        return "threads" if self._device else "processes"

    @property
    def _device(self) -> str | None:
        return None if self.parameters.backend == "pydensecrf" else self.device

    def __call__(
        self, maps: Maps, classes: Sequence[int] | npt.NDArray[np.integer], image: npt.NDArray[np.uint8]
    ) -> RefinedMask:
        """See `Refiner`. Raises a UserError where the CRF backend is not installed."""
        indices, settings = mask_indices(maps, classes, image), self.parameters
        if len(indices) == 1:
            return empty_mask(image)
        if len(maps) == len(classes) and settings.uncertainty in ("auto", "agreement"):
            mean, certain = agreement(*self._crfs(hard_seeds(maps, settings), image, settings.crf))
            return most_probable(mean, indices, certain)
        if len(maps) == len(classes):
            (posterior,) = self._crfs([soft_seed(maps, settings)], image, settings.crf)
        else:
            (posterior,) = self._crfs([maps], image, settings.soft_crf)
        limit = 0.0 if settings.uncertainty == "none" else settings.posterior_limit
        return most_probable(posterior, indices, limit)

    def _crfs(
        self, starts: Sequence[Maps], image: npt.NDArray[np.uint8], constants: CRFParameters
    ) -> list[Maps]:
        return dense_crfs(starts, image, constants, self.parameters.backend, self._device)

    @classmethod
    def ignores(cls, parameters: RefineParameters, probabilities: bool) -> Mapping[str, str]:
        """See `Refiner`."""
        rule = parameters.uncertainty
        if rule in ("auto", "agreement"):
            rule = "posterior" if probabilities else "agreement"
        ignored: dict[str, str] = {}
        if rule != "agreement":
            of_seeds = f"it belongs to the uncertainty rule agreement, not to {rule}"
            ignored |= dict.fromkeys(("low_factor", "high_factor"), of_seeds)
        if rule != "posterior":
            ignored["posterior_limit"] = f"it belongs to the uncertainty rule posterior, not to {rule}"
        if not probabilities:
            return {**ignored, "soft_crf": "the CRF starts from seeds, with the constants of refine.crf"}
        seedless = "after `extend.method: pixels` the CRF starts from probabilities, not from seeds"
        if parameters.uncertainty == "agreement":
            ignored["uncertainty"] = f"{seedless}, and the rule is posterior"
        return {
            **ignored,
            "confidence": seedless,
            "crf": f"{seedless}, with the constants of refine.soft_crf",
        }


@dataclass(frozen=True)
class PAMR(Refiner):
    """Scores m averaged over neighbours of similar colour (see `pamr`); the label is arg max_c m_c.

    Averages are never sharp, so every pixel counts. Paper: Araslanov and Roth, "Single-Stage Semantic Segmentation from
    Image Labels", CVPR 2020, https://arxiv.org/abs/2005.08104

    Example:
        >>> PAMR(RefineParameters(background=BackgroundParameters("constant")))(maps, classes, image).labels.shape
        (64, 64)
    """

    parameters: RefineParameters
    device: str | None = None
    iterations: int = 10

    place: ClassVar[Place] = "processes"

    def __post_init__(self) -> None:
        """Refuse what `pamr` would."""
        if self.iterations < 0:
            raise ValueError(f"iterations must be 0 or more, not {self.iterations}")

    def __call__(
        self, maps: Maps, classes: Sequence[int] | npt.NDArray[np.integer], image: npt.NDArray[np.uint8]
    ) -> RefinedMask:
        """See `Refiner`."""
        indices = mask_indices(maps, classes, image)
        if len(indices) == 1:
            return empty_mask(image)
        import torch  # only here: worker processes of the CRF do without its seconds and memory

        from wsss.refine.pamr import pamr

        if len(maps) == len(classes):
            maps = background_scores(maps, self.parameters.background)
        photo = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        averaged: Maps = pamr(torch.from_numpy(np.ascontiguousarray(maps)), photo, self.iterations).numpy()
        total = averaged.sum(axis=0, keepdims=True)
        posterior = np.divide(averaged, total, out=np.zeros_like(averaged), where=total > 0)
        return most_probable(posterior, indices)

    @classmethod
    def ignores(cls, parameters: RefineParameters, probabilities: bool) -> Mapping[str, str]:
        """See `Refiner`."""
        return _without_crf("pamr")


@dataclass(frozen=True)
class GrabCut(Refiner):
    """GrabCut from the most and the least salient pixels (see `grabcut_labels`).

    From probabilities it takes those of the classes. It needs no score of the background and leaves no pixel out.
    Paper: Rother, Kolmogorov and Blake, "GrabCut: Interactive Foreground Extraction using Iterated Graph Cuts",
    SIGGRAPH 2004, https://doi.org/10.1145/1015706.1015720

    Example:
        >>> GrabCut(RefineParameters())(maps, classes, image).labels.shape
        (64, 64)
    """

    parameters: RefineParameters
    device: str | None = None
    foreground: float = grabcut.FOREGROUND
    background: float = grabcut.BACKGROUND
    iterations: int = grabcut.ITERATIONS

    from_saliency: ClassVar[bool] = True
    uses_background: ClassVar[bool] = False
    place: ClassVar[Place] = "processes"

    def __post_init__(self) -> None:
        """Refuse what `grabcut_labels` would."""
        grabcut.check_settings(self.foreground, self.background, self.iterations)

    def __call__(
        self, maps: Maps, classes: Sequence[int] | npt.NDArray[np.integer], image: npt.NDArray[np.uint8]
    ) -> RefinedMask:
        """See `Refiner`."""
        indices = mask_indices(maps, classes, image)
        if len(indices) == 1:
            return empty_mask(image)
        labels = grabcut.grabcut_labels(
            maps[-len(classes) :], classes, image, self.foreground, self.background, self.iterations
        )
        return RefinedMask(labels, labels.copy(), np.ones(labels.shape, dtype=np.float32))

    @classmethod
    def ignores(cls, parameters: RefineParameters, probabilities: bool) -> Mapping[str, str]:
        """See `Refiner`."""
        return _without_crf("grabcut")


def _without_crf(name: str) -> dict[str, str]:
    """What refiners without a CRF and without 255 ignore. The background rule still scores the seeds."""
    return dict.fromkeys(
        (*DenseCRF.settings, "crf", "soft_crf"), f"{name} uses no CRF and leaves no pixel out"
    )


REFINERS: dict[str, type[Refiner]] = {"crf": DenseCRF, "pamr": PAMR, "grabcut": GrabCut}
"""The refiners under their names in `refine.method`."""


def _own_values(kind: type[Refiner]) -> dict[str, Any]:
    """Names and types of what a refiner's constructor takes besides the parameters and the device."""
    hints = get_type_hints(kind.__init__)
    names = [
        name
        for name, taken in inspect.signature(kind).parameters.items()
        if taken.kind is not taken.VAR_KEYWORD
    ]
    return {name: hints[name] for name in names if name not in ("parameters", "device")}


def _values(kind: type[Refiner]) -> dict[str, Any]:
    """Names and types of all that a refiner's expression may say."""
    shared = get_type_hints(RefineParameters) | get_type_hints(CRFParameters)
    return {**{name: shared[name] for name in kind.settings}, **_own_values(kind)}


GRAMMAR = Grammar[Refiner](
    noun="refinement",
    plural="refinements",
    example="crf, crf(iterations=5, uncertainty=posterior), or pamr(iterations=20)",
    known=REFINERS,
    parameters=_values,
)


def refiner_class(parameters: RefineParameters) -> type[Refiner]:
    """The class that `refine.method` names, which knows `from_saliency`.

    Raises:
        UserError: as `build_refiner`.
    """
    return _read(parameters)[0]


def build_refiner(parameters: RefineParameters, device: str | None = None) -> Refiner:
    """The refiner that `refine.method` names, with the values that it gives instead of those of `refine.*`.

    Args:
        parameters: of the refinement.
        device: of a GPU, as in "cuda"; None: the CPU.

    Raises:
        UserError: there is no such refiner, or a value has no meaning.
    """
    kind, given = _read(parameters)
    own = {name: value for name, value in given.items() if name in _own_values(kind)}
    try:
        return kind(_overridden(parameters, kind, given), device, **own)
    except ValueError as error:
        raise UserError(f"refine.method: {parameters.method}: {error}") from error


def _read(parameters: RefineParameters) -> tuple[type[Refiner], dict[str, Any]]:
    """The class that `refine.method` names, and the values that it gives."""
    try:
        _, kind, given = GRAMMAR.read(GRAMMAR.parse(parameters.method), parameters.method)
    except UserError as error:
        raise UserError(f"refine.method: {error}") from error
    return kind, given


def _overridden(
    parameters: RefineParameters, kind: type[Refiner], given: Mapping[str, Any]
) -> RefineParameters:
    """The parameters with the values that the expression gives. Constants of a CRF go to both CRFs, of which one
    runs."""
    shared = {name: value for name, value in given.items() if name not in _own_values(kind)}
    constants = {name: shared.pop(name) for name in CRF_CONSTANTS if name in shared}
    crf, soft_crf = (replace(crf, **constants) for crf in (parameters.crf, parameters.soft_crf))
    return replace(parameters, crf=crf, soft_crf=soft_crf, **shared)


def unused_settings(parameters: RefineParameters, probabilities: bool, predictions: bool = True) -> list[str]:
    """One sentence for every setting that differs from its default and has no effect.

    Args:
        parameters: as configured, before a background rule is chosen for `calibrated`.
        probabilities: whether the maps are probabilities (`extend.method: pixels`); else they are saliency.
        predictions: whether predictions are refined as well (`evaluate.crf`); they use `refine.soft_crf`.

    Raises:
        UserError: as `build_refiner`.
    """
    kind, given = _read(parameters)
    shared = [name for name in given if name not in _own_values(kind)]
    used = _overridden(parameters, kind, given)
    reasons = {**kind.ignores(used, probabilities), **_ignored_background(parameters)}
    overridden = ["", "crf", "soft_crf"]
    if predictions:
        reasons.pop("soft_crf", None)
        overridden.remove("soft_crf")
    sentences = []
    for name, value in _changed(parameters, RefineParameters()).items():
        section, _, leaf = name.rpartition(".")
        reason = reasons.get(name) or reasons.get(section)
        if reason is None and leaf in shared and section in overridden:
            reason = "refine.method gives another value"
        if reason:
            sentences.append(f"refine.{name} is {value}, but has no effect: {reason}")
    sentences += [
        f"refine.method gives {name}, which has no effect: {reasons[name]}"
        for name in shared
        if name in reasons
    ]
    return sentences


def _ignored_background(parameters: RefineParameters) -> dict[str, str]:
    """Constants of background rules that are not the chosen one; `calibrated` falls back to the threshold."""
    rule, ignored = parameters.background.rule, {}
    if rule not in ("constant", "calibrated"):
        ignored["background.threshold"] = f"it belongs to the background rule constant, not to {rule}"
    if rule != "power":
        ignored["background.alpha"] = f"it belongs to the background rule power, not to {rule}"
    return ignored


def _changed(parameters: Any, default: Any, prefix: str = "") -> dict[str, Any]:
    """The values that differ from the defaults, by dotted names."""
    changed: dict[str, Any] = {}
    for field in fields(default):
        value, usual = getattr(parameters, field.name), getattr(default, field.name)
        if field.name in ("background", "crf", "soft_crf"):
            changed |= _changed(value, usual, f"{field.name}.")
        elif value != usual and field.name != "method":
            changed[f"{prefix}{field.name}"] = value
    return changed
