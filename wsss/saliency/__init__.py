"""Class-discriminative saliency: `method(classifier, images, targets)`, and wrappers around methods."""

from wsss.saliency.attention import AttentionRollout, GradientAttention, LeGrad
from wsss.saliency.attributions import InputXGradient, IntegratedGradients, SmoothGrad
from wsss.saliency.augmented import AugmentedGradCAM
from wsss.saliency.base import Evidence, SaliencyMethod, normalize, upsample
from wsss.saliency.cam import GradCAM, GradCAMPlusPlus, XGradCAM
from wsss.saliency.cameras import CAMERAS
from wsss.saliency.dcsm import DCSM
from wsss.saliency.deeplift import DeepLIFT
from wsss.saliency.excitation import ExcitationBackprop
from wsss.saliency.finer import FinerCAM
from wsss.saliency.fullgrad import FullGrad, SmoothFullGrad
from wsss.saliency.fusion import Maximum, Mean, Product, RefineCAM
from wsss.saliency.gradient import Gradient, GuidedBackprop
from wsss.saliency.guidance import GlobalGuidanceCAM, HiResCAM
from wsss.saliency.integrated import IntegratedGradCAM
from wsss.saliency.layercam import EigenCAM, EigenGradCAM, LayerCAM
from wsss.saliency.layers import last_layer
from wsss.saliency.multiscale import MultiScale
from wsss.saliency.occlusion import RISE, Occlusion
from wsss.saliency.optimised import ExtremalPerturbation, MeaningfulPerturbation
from wsss.saliency.perturbation import GroupCAM, ScoreCAM
from wsss.saliency.pooled import CAM, AblationCAM
from wsss.saliency.relevance import RelevanceCAM
from wsss.saliency.sess import SESS
from wsss.saliency.sise import SISE, AdaSISE
from wsss.saliency.smooth import SmoothGradCAMPlusPlus
from wsss.saliency.subtraction import ClassSubtraction
from wsss.saliency.winsor import WinsorCAM
from wsss.saliency.xrai import XRAI

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
    "cam": CAM,
    "hirescam": HiResCAM,
    "layercam": LayerCAM,
    "eigencam": EigenCAM,
    "eigengradcam": EigenGradCAM,
    "ablationcam": AblationCAM,
    "smooth_gradcam++": SmoothGradCAMPlusPlus,
    "augmented_gradcam": AugmentedGradCAM,
    "finercam": FinerCAM,
    "refinecam": RefineCAM,
    "winsorcam": WinsorCAM,
    "smoothgrad": SmoothGrad,
    "integrated_gradients": IntegratedGradients,
    "input_x_gradient": InputXGradient,
    "deeplift": DeepLIFT,
    "excitation_backprop": ExcitationBackprop,
    "occlusion": Occlusion,
    "rise": RISE,
    "sise": SISE,
    "ada_sise": AdaSISE,
    "extremal_perturbation": ExtremalPerturbation,
    "meaningful_perturbation": MeaningfulPerturbation,
    "xrai": XRAI,
    "rollout": AttentionRollout,
    "gradient_attention": GradientAttention,
    "legrad": LeGrad,
}
"""The methods under the names of the command line."""

__all__ = [
    "CAM",
    "CAMERAS",
    "DCSM",
    "METHODS",
    "RISE",
    "SESS",
    "SISE",
    "XRAI",
    "AblationCAM",
    "AdaSISE",
    "AttentionRollout",
    "AugmentedGradCAM",
    "ClassSubtraction",
    "DeepLIFT",
    "EigenCAM",
    "EigenGradCAM",
    "Evidence",
    "ExcitationBackprop",
    "ExtremalPerturbation",
    "FinerCAM",
    "FullGrad",
    "GlobalGuidanceCAM",
    "GradCAM",
    "GradCAMPlusPlus",
    "Gradient",
    "GradientAttention",
    "GroupCAM",
    "GuidedBackprop",
    "HiResCAM",
    "InputXGradient",
    "IntegratedGradCAM",
    "IntegratedGradients",
    "LayerCAM",
    "LeGrad",
    "Maximum",
    "Mean",
    "MeaningfulPerturbation",
    "MultiScale",
    "Occlusion",
    "Product",
    "RefineCAM",
    "RelevanceCAM",
    "SaliencyMethod",
    "ScoreCAM",
    "SmoothFullGrad",
    "SmoothGrad",
    "SmoothGradCAMPlusPlus",
    "WinsorCAM",
    "XGradCAM",
    "last_layer",
    "normalize",
    "upsample",
]
