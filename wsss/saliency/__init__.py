"""Class-discriminative saliency: `method(classifier, images, targets)`, and wrappers around methods."""

from wsss.saliency.attention import AttentionRollout, GradientAttention, LeGrad
from wsss.saliency.base import Evidence, SaliencyMethod, normalize, upsample
from wsss.saliency.cam import GradCAM, GradCAMPlusPlus, XGradCAM
from wsss.saliency.cameras import CAMERAS
from wsss.saliency.dcsm import DCSM
from wsss.saliency.fullgrad import FullGrad, SmoothFullGrad
from wsss.saliency.gradient import Gradient, GuidedBackprop
from wsss.saliency.guidance import GlobalGuidanceCAM
from wsss.saliency.integrated import IntegratedGradCAM
from wsss.saliency.layers import last_layer
from wsss.saliency.multiscale import MultiScale
from wsss.saliency.perturbation import GroupCAM, ScoreCAM
from wsss.saliency.relevance import RelevanceCAM
from wsss.saliency.sess import SESS
from wsss.saliency.subtraction import ClassSubtraction

METHODS: dict[str, type[SaliencyMethod]] = {
    "gradient": Gradient,
    "guided_backprop": GuidedBackprop,
    "dcsm": DCSM,
    "gradcam": GradCAM,
    "gradcam++": GradCAMPlusPlus,
    "xgradcam": XGradCAM,
    "integrated_gradcam": IntegratedGradCAM,
    "cameras": CAMERAS,
    "relevance_cam": RelevanceCAM,
    "scorecam": ScoreCAM,
    "groupcam": GroupCAM,
    "fullgrad": FullGrad,
    "smooth_fullgrad": SmoothFullGrad,
    "global_guidance": GlobalGuidanceCAM,
    "rollout": AttentionRollout,
    "gradient_attention": GradientAttention,
    "legrad": LeGrad,
}
"""The methods under the names of the command line."""

__all__ = [
    "CAMERAS",
    "DCSM",
    "METHODS",
    "SESS",
    "AttentionRollout",
    "ClassSubtraction",
    "Evidence",
    "FullGrad",
    "GlobalGuidanceCAM",
    "GradCAM",
    "GradCAMPlusPlus",
    "Gradient",
    "GradientAttention",
    "GroupCAM",
    "GuidedBackprop",
    "IntegratedGradCAM",
    "LeGrad",
    "MultiScale",
    "RelevanceCAM",
    "SaliencyMethod",
    "ScoreCAM",
    "SmoothFullGrad",
    "XGradCAM",
    "last_layer",
    "normalize",
    "upsample",
]
