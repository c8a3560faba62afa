"""The constants of the refinement: their ranges, named as on the command line, and their defaults."""

import re
from dataclasses import replace
from typing import Any

import pytest

from wsss.config import Config
from wsss.errors import UserError
from wsss.options import parse_config
from wsss.refine.parameters import BackgroundParameters, CRFParameters, RefineParameters

NAN, INFINITY = float("nan"), float("inf")


def test_the_configuration_is_made_of_these_very_classes() -> None:
    config = Config()
    assert type(config.refine) is RefineParameters
    assert type(config.refine.background) is BackgroundParameters
    assert config.refine.crf == CRFParameters(10, 3, 3, 50, 5, 10)  # IRN's
    assert config.refine.soft_crf == CRFParameters(10, 1, 3, 67, 3, 4)  # DeepLab's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uncertainty": "luck"},
         "refine.uncertainty is 'luck', but must be one of auto, agreement, posterior, none"),
        ({"backend": "numpy"}, "refine.backend is 'numpy', but must be one of auto, pydensecrf, torch"),
        ({"low_factor": 1.5}, "refine.low_factor is 1.5 and refine.high_factor is 1.5, but 0 < low_factor"),
        ({"low_factor": 0}, "refine.low_factor is 0 and"),
        ({"high_factor": 0.9}, "refine.high_factor is 0.9, but 0 < low_factor <= 1 <= high_factor is needed"),
        ({"posterior_limit": 1.5}, "refine.posterior_limit is 1.5, but must be in [0, 1]"),
        ({"posterior_limit": NAN}, "refine.posterior_limit is nan"),
        ({"confidence": 0.5}, "refine.confidence is 0.5, but must be above 0.5 and below 1"),
        ({"confidence": 1.0}, "refine.confidence is 1.0, but must be above 0.5 and below 1"),
        ({"crf": CRFParameters(iterations=-1)}, "refine.crf.iterations is -1, but must be 0 or more"),
        ({"soft_crf": CRFParameters(bilateral_srgb=1e-8)},
         "refine.soft_crf.bilateral_srgb is 1e-08, but must be 0.1 or more"),
        ({"soft_crf": CRFParameters(gaussian_compat=-1)}, "refine.soft_crf.gaussian_compat is -1, but must be 0"),
    ],
)  # fmt: skip
def test_values_without_a_meaning_are_refused_by_their_option(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        RefineParameters(**change)
    with pytest.raises(UserError, match=re.escape(message)):
        replace(Config(), refine=replace(Config().refine, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "magic"},
         "refine.background.rule is 'magic', but must be one of calibrated, constant, power, otsu"),
        ({"threshold": 0.0}, "refine.background.threshold is 0.0, but must be above 0 and below 1"),
        ({"threshold": 1.0}, "refine.background.threshold is 1.0, but must be above 0 and below 1"),
        ({"alpha": 0.0}, "refine.background.alpha is 0.0, but must be above 0"),
        ({"alpha": INFINITY}, "refine.background.alpha is inf"),
    ],
)  # fmt: skip
def test_background_values_without_a_meaning_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        BackgroundParameters(**change)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("refine.crf.iterations", "-1", "refine.crf.iterations is -1, but must be 0 or more"),
        (
            "refine.soft_crf.bilateral_sxy",
            "0",
            "refine.soft_crf.bilateral_sxy is 0.0, but must be 0.1 or more",
        ),
        ("refine.background.threshold", "1", "refine.background.threshold is 1.0, but must be above 0"),
    ],
)
def test_the_command_line_refuses_them_before_anything_else(option: str, value: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse_config("refine", [f"--{option}", value])
