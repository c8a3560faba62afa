"""Every constant of the refinement, defined once: a configuration's sections `refine.*` are these classes.

The string below an attribute is its help text on the command line. Standard library only.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from wsss.errors import UserError

SMALLEST_DEVIATION = 0.1
"""Smallest standard deviation of a CRF's kernel, in pixels or grey levels. Half of it already connects only equal
colours. From 1e-5 down the lattice's coordinates exceed the integers that float32 can tell apart, and both backends
read memory that is not theirs."""

Uncertainty = Literal["auto", "agreement", "posterior", "none"]
Backend = Literal["auto", "pydensecrf", "torch"]
Rule = Literal["calibrated", "constant", "power", "otsu"]


@dataclass(frozen=True)
class CRFParameters:
    """Fully connected CRF. `crf` starts from seeds; `soft_crf` starts from probabilities, including predictions.

    The defaults are IRN's, for seeds (Ahn et al., CVPR 2019). DeepLab's, for probabilities, are
    `CRFParameters(10, 1, 3, 67, 3, 4)`.
    """

    iterations: int = 10
    """Mean-field iterations; 0 returns the probabilities themselves."""
    gaussian_sxy: float = 3.0
    """Standard deviation of the smoothness kernel (pixels)."""
    gaussian_compat: float = 3.0
    """Weight of the smoothness kernel."""
    bilateral_sxy: float = 50.0
    """Spatial standard deviation of the appearance kernel (pixels)."""
    bilateral_srgb: float = 5.0
    """Colour standard deviation of the appearance kernel (0..255)."""
    bilateral_compat: float = 10.0
    """Weight of the appearance kernel."""

    def check(self, section: str = "crf") -> None:
        """Refuse values that make no sense. `section` is the name that the message gives to these constants.

        Raises:
            UserError: a value is out of range.
        """
        for name, least in (
            ("iterations", 0),
            ("gaussian_compat", 0),
            ("bilateral_compat", 0),
            ("gaussian_sxy", SMALLEST_DEVIATION),
            ("bilateral_sxy", SMALLEST_DEVIATION),
            ("bilateral_srgb", SMALLEST_DEVIATION),
        ):
            value = getattr(self, name)
            if not (value >= least and math.isfinite(value)):
                raise UserError(f"{section}.{name} is {value}, but must be {least} or more")


@dataclass(frozen=True)
class BackgroundParameters:
    """The background's score, which competes with the classes' saliency (maximum 1 per class). No rule reads a mask.

    After `extend.method: pixels`, whose probabilities include the background, it only scores the seeds.
    """

    rule: Rule = "calibrated"
    """constant: `threshold`; power: (1 - max)^alpha; otsu: the threshold that best splits each image's own saliency;
    calibrated: the one of these that the classifier's response to the seeds favours. After `extend.method: pixels` it
    only scores the seeds."""
    threshold: float = 0.2
    """Background score of the constant rule; papers use 0.15 to 0.30."""
    alpha: float = 8.0
    """Exponent of the power rule. Larger means more foreground."""

    def __post_init__(self) -> None:
        """Refuse unknown rules and values out of range."""
        _check_choice("refine.background.rule", self.rule, Rule)
        if not 0 < self.threshold < 1:
            raise UserError(
                f"refine.background.threshold is {self.threshold}, but must be above 0 and below 1"
            )
        if not 0 < self.alpha < math.inf:
            raise UserError(f"refine.background.alpha is {self.alpha}, but must be above 0")


@dataclass(frozen=True)
class RefineParameters:
    """From saliency to pseudo-masks."""

    method: str = "crf"
    """crf: dense CRF; pamr: local averages that follow colours, cheaper; grabcut: the baseline of Simonyan et al., from
    each class's saliency (without extension). Values in brackets override those of `refine.*`: crf(iterations=5,
    uncertainty=posterior), pamr(iterations=20), grabcut(iterations=3)."""
    background: BackgroundParameters = field(default_factory=BackgroundParameters)
    uncertainty: Uncertainty = "auto"
    """Which pixels become 255 (uncertain). agreement: those where CRFs from a generous and a strict seed disagree
    (IRN); posterior: those below `posterior_limit`; none: no pixel; auto: agreement, or posterior after `extend.method:
    pixels`, which has no seeds. pamr and grabcut leave no pixel out."""
    low_factor: float = 0.7
    """Agreement: the generous seed uses this many times the background threshold."""
    high_factor: float = 1.5
    """Agreement: the strict seed uses this many times the background threshold."""
    posterior_limit: float = 0.95
    """Posterior: pixels whose most probable class is less probable than this become 255 (CLIP-ES: 0.95)."""
    confidence: float = 0.7
    """How far the CRF trusts the saliency, between 0.5 and 1: the probability of a seed's label (agreement; IRN's
    gt_prob), or the weight of the scores against a uniform distribution. Unused after `extend.method: pixels`."""
    crf: CRFParameters = field(default_factory=CRFParameters)
    soft_crf: CRFParameters = field(
        default_factory=lambda: CRFParameters(
            gaussian_sxy=1.0, bilateral_sxy=67.0, bilateral_srgb=3.0, bilateral_compat=4.0
        )
    )
    backend: Backend = "auto"
    """What computes the CRF; the backends agree. auto: torch on a GPU, else pydensecrf in processes, else torch.
    Predictions are always refined as auto does on a CPU."""

    def __post_init__(self) -> None:
        """Refuse unknown rules and values out of range."""
        _check_choice("refine.uncertainty", self.uncertainty, Uncertainty)
        _check_choice("refine.backend", self.backend, Backend)
        if not 0 < self.low_factor <= 1 <= self.high_factor < math.inf:
            raise UserError(
                f"refine.low_factor is {self.low_factor} and refine.high_factor is {self.high_factor}, "
                "but 0 < low_factor <= 1 <= high_factor is needed"
            )
        if not 0 <= self.posterior_limit <= 1:
            raise UserError(f"refine.posterior_limit is {self.posterior_limit}, but must be in [0, 1]")
        if not 0.5 < self.confidence < 1:
            raise UserError(f"refine.confidence is {self.confidence}, but must be above 0.5 and below 1")
        self.crf.check("refine.crf")
        self.soft_crf.check("refine.soft_crf")


def _check_choice(name: str, value: str, choices: Any) -> None:
    """Python does not enforce a Literal; the command line does."""
    if value not in get_args(choices):
        raise UserError(f"{name} is {value!r}, but must be one of {', '.join(get_args(choices))}")
