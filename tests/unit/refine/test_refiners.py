"""Refiners by name: the expressions, what each one needs to run, one that is added from outside, unused settings."""

from __future__ import annotations

import inspect
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from wsss.errors import UserError
from wsss.refine.background import seed_mask
from wsss.refine.crf import dense_crf
from wsss.refine.grabcut import grabcut_labels
from wsss.refine.masks import RefinedMask, mask_indices
from wsss.refine.pamr import pamr
from wsss.refine.parameters import BackgroundParameters, CRFParameters, RefineParameters
from wsss.refine.refiners import REFINERS, Refiner, build_refiner, refiner_class, unused_settings

RULE = BackgroundParameters("constant", 0.2)
CLASSES = (3, 12)


def scene() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Saliency of two blobs, probabilities of the same with a background, and a photo that leaves the CRF in doubt."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (31, 40, 3), dtype=np.uint8)
    y, x = np.mgrid[:31, :40]
    maps = np.array(
        [np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 90) for cy, cx in ((12, 10), (20, 28))], np.float32
    )
    scores = np.concatenate([np.full((1, 31, 40), 0.3, np.float32), maps])
    return maps, scores / scores.sum(axis=0), image


def refined(method: str, probabilities: bool = False, **settings: Any) -> RefinedMask:
    maps, soft, image = scene()
    parameters = RefineParameters(method=method, background=RULE, **settings)
    return build_refiner(parameters)(soft if probabilities else maps, CLASSES, image)


def same(one: RefinedMask, other: RefinedMask) -> bool:
    return all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


# -- expressions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("probabilities", [False, True], ids=["seeds", "probabilities"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("crf(iterations=1)", {"crf": CRFParameters(1), "soft_crf": CRFParameters(1, 1, 3, 67, 3, 4)}),
        (
            "crf(bilateral_srgb=20, uncertainty=posterior, posterior_limit=0.8)",
            {
                "crf": CRFParameters(bilateral_srgb=20),
                "soft_crf": CRFParameters(10, 1, 3, 67, 20, 4),
                "uncertainty": "posterior",
                "posterior_limit": 0.8,
            },
        ),
        ("crf(low_factor=0.3, high_factor=2)", {"low_factor": 0.3, "high_factor": 2.0}),
        ("crf(confidence=0.9, uncertainty=none)", {"confidence": 0.9, "uncertainty": "none"}),
        ("crf(backend=torch)", {"backend": "torch"}),
        ("DenseCRF(iterations=3)", {"crf": CRFParameters(3), "soft_crf": CRFParameters(3, 1, 3, 67, 3, 4)}),
    ],
)
def test_an_expression_goes_before_the_settings(
    method: str, settings: dict[str, Any], probabilities: bool
) -> None:
    found = refined(method, probabilities, crf=CRFParameters(), confidence=0.7)
    assert same(found, refined("crf", probabilities, **settings))


def test_the_constants_of_an_expression_are_those_of_the_crf_that_runs() -> None:
    _, soft, image = scene()
    crf = CRFParameters(2, 1, 3, 67, 3, 4)
    posterior = dense_crf(soft, image, crf)
    np.testing.assert_array_equal(refined("crf(iterations=2)", True).confidence, posterior.max(axis=0))
    assert not same(refined("crf(iterations=2)", True), refined("crf", True))
    assert not same(refined("crf(iterations=2)"), refined("crf"))


def test_pamr_and_grabcut_take_values_of_their_own() -> None:
    maps, soft, image = scene()
    photo = torch.from_numpy(image.copy()).permute(2, 0, 1).float()
    expected = pamr(torch.from_numpy(soft), photo, 3).numpy()
    found = refined("pamr(iterations=3)", probabilities=True)
    np.testing.assert_array_equal(found.labels, np.array([0, *CLASSES])[expected.argmax(axis=0)])
    assert not same(found, refined("pamr", probabilities=True))
    found = refined("grabcut(foreground=0.2, background=0.5, iterations=2)")
    np.testing.assert_array_equal(found.labels, grabcut_labels(maps, CLASSES, image, 0.2, 0.5, 2))
    assert not same(found, refined("grabcut"))


def test_what_is_not_given_is_the_default_of_the_function() -> None:
    assert inspect.signature(pamr).parameters["iterations"].default == REFINERS["pamr"].iterations  # type: ignore[attr-defined]
    maps, _, image = scene()
    np.testing.assert_array_equal(refined("grabcut").labels, grabcut_labels(maps, CLASSES, image))


def test_grabcut_reads_the_classes_of_probabilities() -> None:
    _, soft, image = scene()
    found = refined("grabcut", probabilities=True)
    np.testing.assert_array_equal(found.labels, grabcut_labels(soft[1:], CLASSES, image))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("crff", "refine.method: there is no refinement 'crff'; did you mean crf?"),
        ("snake", "refine.method: there is no refinement 'snake'; the refinements are crf, pamr, grabcut"),
        ("crf(iteration=5)", "'crf' in 'crf(iteration=5)' has no parameter 'iteration'; did you mean iterations?"),
        ("crf(iterations=0.5)", "gives 'iterations' the value 0.5; it takes a whole number"),
        ("crf(uncertainty=sure)", "it takes auto or agreement or posterior or none"),
        ("crf(iterations=-1)", "refine.crf.iterations is -1, but must be 0 or more"),
        ("crf(confidence=2)", "refine.confidence is 2, but must be above 0.5"),
        ("pamr(uncertainty=none)", "'pamr' in 'pamr(uncertainty=none)' has no parameter 'uncertainty'"),
        ("pamr(iterations=-1)", "refine.method: pamr(iterations=-1): iterations must be 0 or more, not -1"),
        ("grabcut(iterations=0)", "refine.method: grabcut(iterations=0): iterations must be at least 1, got 0"),
        ("grabcut(foreground=0.9)", "sum to at most 1, got 0.9 and 0.3"),
        ("crf(", "refine.method: 'crf(' is not a refinement; write for example crf, crf(iterations=5"),
        ("", "refine.method: '' is not a refinement; write for example crf"),
        ("crf + pamr", "'crf + pamr' in 'crf + pamr' is not a refinement; the refinements are crf, pamr, grabcut"),
        ("crf(1, 2, 3, 4, 5, 6, auto, 1, 1, 1, 0.7, auto, 1)", "has too many values; it takes iterations, "),
    ],
)  # fmt: skip
def test_a_wrong_expression_is_explained(method: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        build_refiner(RefineParameters(method=method))
    assert message in str(raised.value)


# -- what a stage must know ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "device", "backend", "place"),
    [
        ("crf", None, "auto", "processes"),
        ("crf", "cuda", "auto", "threads"),
        ("crf", "cuda", "pydensecrf", "processes"),
        ("crf(backend=pydensecrf)", "cuda", "auto", "processes"),
        ("pamr", "cuda", "auto", "processes"),
        ("grabcut", "cuda", "auto", "processes"),
    ],
)
def test_refiners_know_where_they_may_run(method: str, device: str | None, backend: Any, place: str) -> None:
    refiner = build_refiner(RefineParameters(method=method, backend=backend), device)
    assert refiner.place == place


@pytest.mark.parametrize("method", ["crf(iterations=2)", "pamr(iterations=1)", "grabcut"])
def test_what_may_be_sent_to_a_process_arrives_as_it_was(method: str) -> None:
    maps, _, image = scene()
    refiner = build_refiner(RefineParameters(method=method, background=RULE))
    assert refiner.place == "processes"
    sent = pickle.loads(pickle.dumps(refiner))
    assert same(sent(maps, CLASSES, image), refiner(maps, CLASSES, image))


def test_grabcut_alone_takes_the_saliency_without_extension() -> None:
    for method, expected in (("crf", False), ("pamr(iterations=2)", False), ("grabcut(iterations=3)", True)):
        assert refiner_class(RefineParameters(method=method)).from_saliency is expected


def test_torch_stays_out_of_the_processes_of_the_crf(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pydensecrf")
    monkeypatch.setitem(sys.modules, "torch", None)
    refined("crf(iterations=1)")


@pytest.mark.parametrize("method", REFINERS)
def test_a_photo_without_classes_is_certain_background(method: str) -> None:
    image = scene()[2]
    refiner = build_refiner(RefineParameters(method=method))
    for maps in (np.zeros((0, 31, 40), np.float32), np.ones((1, 31, 40), np.float32)):
        found = refiner(maps, (), image)
        assert (found.labels == 0).all()
        assert (found.mask == 0).all()
        assert (found.confidence == 1).all()


@pytest.mark.parametrize("method", REFINERS)
def test_maps_that_do_not_fit_are_refused(method: str) -> None:
    maps, _, image = scene()
    with pytest.raises(ValueError, match="2 maps for 0 classes"):
        build_refiner(RefineParameters(method=method))(maps, (), image)


def test_a_rule_that_is_not_chosen_yet_is_refused() -> None:
    maps, soft, image = scene()
    refiner = build_refiner(RefineParameters())
    with pytest.raises(ValueError, match="`calibrated` must be chosen first"):
        refiner(maps, CLASSES, image)
    assert refiner(soft, CLASSES, image).labels.any()  # these have a background


# -- one more --------------------------------------------------------------------------------------


class Networked(Refiner):
    """Holds a network on a device, as one that segments from prompts would; a stand-in with one convolution."""

    from_saliency: ClassVar[bool] = True
    settings: ClassVar[tuple[str, ...]] = ("posterior_limit",)
    loaded: ClassVar[list[str]] = []

    def __init__(
        self,
        parameters: RefineParameters,
        device: str | None = None,
        size: int = 3,
        scales: tuple[float, ...] = (1.0,),
        weights: str | None = None,
    ) -> None:
        if size % 2 == 0:
            raise ValueError(f"size must be odd, not {size}")
        self.limit, self.device, self.size = parameters.posterior_limit, device or "cpu", size
        self.scales, self.weights, self.network = scales, weights, None

    def __call__(
        self, maps: Any, classes: Sequence[int] | npt.NDArray[np.integer], image: npt.NDArray[np.uint8]
    ) -> RefinedMask:
        indices = mask_indices(maps, classes, image)
        if self.network is None:
            type(self).loaded.append(self.device)
            self.network = nn.AvgPool2d(self.size, stride=1, padding=self.size // 2).to(self.device)
        with torch.inference_mode():
            smooth = self.network(torch.from_numpy(maps).to(self.device)).cpu().numpy()
        labels = seed_mask(smooth, indices[1:], 0.5)
        mask = np.where(smooth.max(axis=0) >= self.limit, labels, np.uint8(255))
        return RefinedMask(labels, mask, smooth.max(axis=0))


def test_a_refiner_with_a_network_is_a_class_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REFINERS, "networked", Networked)
    monkeypatch.setattr(Networked, "loaded", [])
    parameters = RefineParameters(
        method="networked(size=5, scales=[1, 2], posterior_limit=0.4, weights='x.pt')"
    )
    assert refiner_class(parameters).from_saliency
    refiner = build_refiner(parameters, "cpu")
    assert isinstance(refiner, Networked)
    assert (
        refiner.place == "main"
    )  # nothing says that it may be sent to a process, or called by several threads
    assert (refiner.size, refiner.scales, refiner.weights, refiner.limit) == (5, (1, 2), "x.pt", 0.4)
    assert not Networked.loaded  # the network waits for the first photo
    maps, _, image = scene()
    first, second = refiner(maps, CLASSES, image), refiner(maps, CLASSES, image)
    assert Networked.loaded == ["cpu"]
    assert same(first, second)
    assert {0, *CLASSES} == set(np.unique(first.labels))
    assert (first.mask == 255).any()
    assert unused_settings(parameters, probabilities=False) == []


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("networkd", "no refinement 'networkd'; did you mean networked?"),
        ("networked(sice=5)", "has no parameter 'sice'; did you mean size?"),
        ("networked(size=big)", "gives 'size' the value 'big'; it takes a whole number"),
        ("networked(size=4)", r"refine.method: networked\(size=4\): size must be odd, not 4"),
    ],
)
def test_its_expressions_are_explained_as_those_of_ours(
    monkeypatch: pytest.MonkeyPatch, method: str, message: str
) -> None:
    monkeypatch.setitem(REFINERS, "networked", Networked)
    with pytest.raises(UserError, match=message):
        build_refiner(RefineParameters(method=method))


def test_a_dataclass_is_a_refiner_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REFINERS, "painted", Painted)
    maps, _, image = scene()
    found = build_refiner(RefineParameters(method="painted(index=7)"))(maps, CLASSES, image)
    assert (found.labels == 7).all()


@dataclass(frozen=True)
class Painted(Refiner):
    """One index everywhere."""

    parameters: RefineParameters
    device: str | None = None
    index: int = 1

    def __call__(self, maps: Any, classes: Any, image: npt.NDArray[np.uint8]) -> RefinedMask:
        labels = np.full(image.shape[:2], self.index, np.uint8)
        return RefinedMask(labels, labels, np.ones(labels.shape, np.float32))


# -- settings without effect -----------------------------------------------------------------------

OTHER = "but has no effect: it belongs to the"
SEEDLESS = "after `extend.method: pixels` the CRF starts from probabilities, not from seeds"


def unused(probabilities: bool, predictions: bool = True, **settings: Any) -> list[str]:
    return unused_settings(RefineParameters(**settings), probabilities, predictions)


@pytest.mark.parametrize("method", REFINERS)
@pytest.mark.parametrize("probabilities", [False, True])
def test_defaults_are_nothing_to_talk_about(method: str, probabilities: bool) -> None:
    assert unused(probabilities, predictions=False, method=method) == []


@pytest.mark.parametrize(
    ("probabilities", "settings", "expected"),
    [
        (True, {"uncertainty": "agreement"},
         [f"refine.uncertainty is agreement, but has no effect: {SEEDLESS}, and the rule is posterior"]),
        (True, {"uncertainty": "posterior", "posterior_limit": 0.9}, []),
        (True, {"uncertainty": "none"}, []),
        (True, {"uncertainty": "none", "posterior_limit": 0.9},
         [f"refine.posterior_limit is 0.9, {OTHER} uncertainty rule posterior, not to none"]),
        (True, {"low_factor": 0.5},
         [f"refine.low_factor is 0.5, {OTHER} uncertainty rule agreement, not to posterior"]),
        (True, {"confidence": 0.9}, [f"refine.confidence is 0.9, but has no effect: {SEEDLESS}"]),
        (True, {"crf": CRFParameters(5)},
         [f"refine.crf.iterations is 5, but has no effect: {SEEDLESS}, with the constants of refine.soft_crf"]),
        (True, {"soft_crf": CRFParameters(5, 1, 3, 67, 3, 4)}, []),
        (True, {"backend": "torch"}, []),
        (False, {"uncertainty": "agreement", "low_factor": 0.5, "confidence": 0.9, "crf": CRFParameters(5)}, []),
        (False, {"posterior_limit": 0.9},
         [f"refine.posterior_limit is 0.9, {OTHER} uncertainty rule posterior, "
          "not to agreement"]),
        (False, {"uncertainty": "posterior", "posterior_limit": 0.9, "high_factor": 2.0},
         [f"refine.high_factor is 2.0, {OTHER} uncertainty rule agreement, not to posterior"]),
        (False, {"uncertainty": "none", "posterior_limit": 0.9, "confidence": 0.99},
         [f"refine.posterior_limit is 0.9, {OTHER} uncertainty rule posterior, not to none"]),
        (False, {"background": BackgroundParameters("otsu", 0.3)},
         [f"refine.background.threshold is 0.3, {OTHER} background rule constant, not to otsu"]),
        (False, {"background": BackgroundParameters("constant", 0.3, 4.0)},
         [f"refine.background.alpha is 4.0, {OTHER} background rule power, not to constant"]),
        (False, {"background": BackgroundParameters("power", alpha=4.0)}, []),
        (False, {"background": BackgroundParameters("calibrated", 0.3)}, []),  # where nothing can be calibrated
        (False, {"method": "crf(iterations=5)"}, []),
        (False, {"method": "crf(iterations=5)", "crf": CRFParameters(3)},
         ["refine.crf.iterations is 3, but has no effect: refine.method gives another value"]),
        (False, {"method": "crf(uncertainty=none)", "uncertainty": "posterior"},
         ["refine.uncertainty is posterior, but has no effect: refine.method gives another value"]),
        (False, {"method": "crf(posterior_limit=0.9)"},
         ["refine.method gives posterior_limit, which has no effect: it belongs to the uncertainty rule posterior, "
          "not to agreement"]),
        (True, {"method": "crf(uncertainty=agreement)"},
         [f"refine.method gives uncertainty, which has no effect: {SEEDLESS}, and the rule is posterior"]),
        (False, {"method": "pamr", "uncertainty": "none", "crf": CRFParameters(bilateral_srgb=4), "backend": "torch"},
         [f"refine.{name}, but has no effect: pamr uses no CRF and leaves no pixel out"
          for name in ("uncertainty is none", "crf.bilateral_srgb is 4", "backend is torch")]),
        (True, {"method": "grabcut(iterations=3)", "low_factor": 0.5, "background": RULE},
         ["refine.low_factor is 0.5, but has no effect: grabcut uses no CRF and leaves no pixel out"]),
    ],
)  # fmt: skip
def test_a_changed_setting_without_effect_is_reported(
    probabilities: bool, settings: dict[str, Any], expected: list[str]
) -> None:
    assert unused(probabilities, **settings) == expected


def test_the_crf_of_predictions_uses_the_constants_for_probabilities() -> None:
    changed = {"soft_crf": replace(RefineParameters().soft_crf, iterations=5)}
    for method in REFINERS:
        assert unused(False, predictions=True, method=method, **changed) == []
    assert unused(False, predictions=False, **changed) == [
        "refine.soft_crf.iterations is 5, but has no effect: "
        "the CRF starts from seeds, with the constants of refine.crf"
    ]
    assert unused(False, predictions=False, method="pamr", **changed) == [
        "refine.soft_crf.iterations is 5, but has no effect: pamr uses no CRF and leaves no pixel out"
    ]
    assert unused(True, predictions=False, method="crf(iterations=2)", **changed) == [
        "refine.soft_crf.iterations is 5, but has no effect: refine.method gives another value"
    ]


@pytest.mark.parametrize("probabilities", [False, True], ids=["seeds", "probabilities"])
@pytest.mark.parametrize("uncertainty", ["auto", "agreement", "posterior", "none"])
@pytest.mark.parametrize("method", REFINERS)
def test_a_setting_is_told_exactly_where_the_masks_do_not_change_with_it(
    method: str, uncertainty: Any, probabilities: bool
) -> None:
    """Each number of the refinement, moved: either a mask changes, or the setting is told."""
    start = RefineParameters(method=method, background=RULE, uncertainty=uncertainty)
    maps, soft, image = scene()
    given = soft if probabilities else maps
    before = build_refiner(start)(given, CLASSES, image)
    moved: dict[str, RefineParameters] = {
        "low_factor": replace(start, low_factor=0.2),
        "high_factor": replace(start, high_factor=3.0),
        "posterior_limit": replace(start, posterior_limit=0.999),
        "confidence": replace(start, confidence=0.95),
        "crf.iterations": replace(start, crf=CRFParameters(1)),
        "soft_crf.iterations": replace(start, soft_crf=CRFParameters(1, 1, 3, 67, 3, 4)),
    }
    for name, parameters in moved.items():
        told = any(
            sentence.startswith(f"refine.{name} ")
            for sentence in unused_settings(parameters, probabilities, False)
        )
        assert told == same(before, build_refiner(parameters)(given, CLASSES, image)), name


def test_names_of_the_grammar_are_settings_that_exist() -> None:
    for kind in REFINERS.values():
        for name in kind.settings:
            assert hasattr(RefineParameters(), name) or hasattr(CRFParameters(), name)
