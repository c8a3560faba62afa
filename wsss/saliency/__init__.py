"""Class-discriminative saliency: `method(classifier, images, targets)`, and wrappers around methods."""

from wsss.saliency.base import Evidence, SaliencyMethod, normalize, upsample
from wsss.saliency.cam import GradCAM
from wsss.saliency.gradient import Gradient, GuidedBackprop
from wsss.saliency.guidance import GlobalGuidanceCAM
from wsss.saliency.multiscale import MultiScale
from wsss.saliency.sess import SESS
from wsss.saliency.subtraction import ClassSubtraction

METHODS: dict[str, type[SaliencyMethod]] = {
    "gradient": Gradient,
    "guided_backprop": GuidedBackprop,
    "gradcam": GradCAM,
    "global_guidance": GlobalGuidanceCAM,
}
"""The methods under the names of the command line."""

__all__ = [
    "METHODS",
    "SESS",
    "ClassSubtraction",
    "Evidence",
    "GlobalGuidanceCAM",
    "GradCAM",
    "Gradient",
    "GuidedBackprop",
    "MultiScale",
    "SaliencyMethod",
    "normalize",
    "upsample",
]
