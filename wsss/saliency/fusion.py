"""Maps of several methods or layers as one: their mean, maximum or product, and RefineCAM."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.models.backbone import layout_of
from wsss.saliency.base import Evidence, SaliencyMethod, as_tuple, check_base, normalize, upsample
from wsss.saliency.cam import GradCAMPlusPlus, LayerMethod, layer_evidence


@dataclass(frozen=True)
class Fusion(SaliencyMethod):
    """Several methods whose maps become one.

    Each map is scaled, then resized bilinearly to the finest grid among them.

    Cost: that of the methods. Those that take one layer and its gradients share one forward pass.

    Args:
        bases: the methods; in an expression just one after the other.
        scale: how each map is scaled first: divided by its maximum ("max"), between its minimum and maximum ("minmax"),
            or not at all ("none").
    """

    bases: tuple[SaliencyMethod, ...]
    scale: Literal["max", "minmax", "none"] = "max"

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "bases", as_tuple(self.bases, "bases", "(GradCAM('layer3'), GradCAM('layer4'))")
        )
        if not self.bases:
            raise UserError(f"{type(self).__name__} needs at least one method")
        for base in self.bases:
            check_base(self, base)
        if self.scale not in ("max", "minmax", "none"):
            raise UserError(f"scale must be 'max', 'minmax' or 'none', got {self.scale!r}")

    @property
    def own_scales(self) -> bool:
        return any(base.own_scales for base in self.bases)

    @property
    def class_free(self) -> bool:
        return all(base.class_free for base in self.bases)

    @abstractmethod
    def fuse(self, maps: Tensor) -> Tensor:
        """(methods, N, h, w) -> (N, h, w)."""

    def forward(self, classifier: nn.Module, images: Tensor) -> "FusionEvidence":
        sharing = [
            base
            for base in self.bases
            if isinstance(base, LayerMethod) and type(base).forward is LayerMethod.forward
        ]
        shared = iter(layer_evidence(sharing, classifier, images) if sharing else ())
        evidence = [
            next(shared) if base in sharing else base.forward(classifier, images) for base in self.bases
        ]
        return FusionEvidence(self, evidence)


@dataclass(frozen=True)
class FusionEvidence:
    """The evidence of each of the methods."""

    method: Fusion
    evidence: Sequence[Evidence]

    @property
    def logits(self) -> Tensor:
        return self.evidence[0].logits

    def maps(self, targets: Tensor) -> Tensor:
        maps = [one.maps(targets) for one in self.evidence]
        if self.method.scale != "none":
            maps = [normalize(one, self.method.scale) for one in maps]
        height, width = max(
            ((one.shape[-2], one.shape[-1]) for one in maps), key=lambda size: size[0] * size[1]
        )
        return self.method.fuse(torch.stack([upsample(one, (height, width)) for one in maps]))


@dataclass(frozen=True)
class Mean(Fusion):
    """The mean of several maps: `mean(gradcam@layer3, gradcam@layer4)`. See `Fusion` for scaling, cost and arguments.

    Jiang et al. combine shallow and deep layers so, LayerCAM, IEEE Transactions on Image Processing 30, 2021,
    https://doi.org/10.1109/TIP.2021.3089943

    Example:
        >>> Mean((GradCAM("layer3"), GradCAM("layer4")))(classifier, images, targets).shape
        torch.Size([2, 4, 4])
    """

    def fuse(self, maps: Tensor) -> Tensor:
        return maps.mean(0)


@dataclass(frozen=True)
class Maximum(Fusion):
    """The largest of several maps at each place: `max(layercam@layer3, layercam@layer4)`. See `Fusion` for the rest.

    Jiang et al. combine the layers of LayerCAM so, IEEE Transactions on Image Processing 30, 2021, section III-D,
    https://doi.org/10.1109/TIP.2021.3089943

    Example:
        >>> Maximum((LayerCAM("layer3"), LayerCAM("layer4")))(classifier, images, targets).shape
        torch.Size([2, 4, 4])
    """

    def fuse(self, maps: Tensor) -> Tensor:
        return maps.amax(0)


@dataclass(frozen=True)
class Product(Fusion):
    """The product of several maps: `product(gradcam@layer3, gradcam@layer4)`. See `Fusion` for scaling, cost and
    arguments. `RefineCAM` is one: https://arxiv.org/abs/2605.14641

    Example:
        >>> Product((GradCAM("layer3"), GradCAM("layer4")))(classifier, images, targets).shape
        torch.Size([2, 4, 4])
    """

    def fuse(self, maps: Tensor) -> Tensor:
        return maps.prod(0)


@dataclass(frozen=True)
class RefineCAM(SaliencyMethod):
    """RefineCAM: the product of the Grad-CAM++ maps of several stages, so that fine ones sharpen coarse ones.

        M = prod_l up(mm(M_l))

    M_l is Grad-CAM++ at stage l, mm min-max normalisation, `up` bilinear resizing to the finest stage.

    Paper: https://arxiv.org/abs/2605.14641

    Deviation: the authors' code makes the map at the size of the image.

    Cost: one forward. For each class of an image a backward pass from the logits to each of the stages.

    Args:
        layers: the stages; None: the last four of the network, where they are known (layer1 to layer4 of a ResNet).

    Example:
        >>> RefineCAM()(classifier, images, targets).shape
        torch.Size([2, 16, 16])
    """

    layers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", as_tuple(self.layers, "layers", "('layer3', 'layer4')"))

    def forward(self, classifier: nn.Module, images: Tensor) -> FusionEvidence:
        layers = stages_of(classifier)[-4:] if self.layers is None else self.layers
        return Product(tuple(map(GradCAMPlusPlus, layers)), scale="minmax").forward(classifier, images)


def stages_of(classifier: nn.Module) -> tuple[str, ...]:
    """The layers that end the stages of a network, fine to coarse.

    Raises:
        UserError: they are not known.
    """
    layout = layout_of(classifier)
    if layout is None:
        raise UserError(
            f"the stages of {type(classifier).__name__} are not known: name layers, such as "
            "layers=('layer3', 'layer4')"
        )
    return layout.stages
