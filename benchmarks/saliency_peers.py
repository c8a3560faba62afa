"""What `saliency.py` and `agreement.py` compare with: grad-cam, captum, and plain loops as authors run them.

Every function gives maps (N, H, W) of the classes of one image (1, 3, H, W). The libraries take one class
a call, so that is what is timed.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pytorch_grad_cam as grad_cam
import torch
import torch.nn.functional as F
from captum.attr import GuidedBackprop, Saliency
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from wsss.saliency import EigenCAM, last_layer


def with_grad_cam(method: type, model: nn.Module, image: Tensor, classes: Sequence[int]) -> Tensor:
    """A method of the grad-cam package, class by class, at our layer. Of transformers with its reshape transform."""
    layer = last_layer(model, (image.shape[-2], image.shape[-1]))
    with method(model, [model.get_submodule(layer)], reshape_transform=reshape_of(model, image)) as cam:
        cam.batch_size = 32  # of Score-CAM; its default of 16 is slower
        return torch.cat([torch.from_numpy(cam(image, [ClassifierOutputTarget(c)])) for c in classes])


def eigen_cam(model: nn.Module, image: Tensor, classes: Sequence[int]) -> Tensor:
    """grad-cam's Eigen-CAM. Its sign is the solver's: the one of ours is taken, so that the maps can be compared."""
    ours = EigenCAM("layer4")(model, image, torch.tensor([[0, classes[0]]]))[0]
    with grad_cam.EigenCAM(model, [model.get_submodule("layer4")]) as cam:
        whole = cam.get_cam_image

        def signed(*values: object) -> np.ndarray:
            found = whole(*values)
            return found if (found[0] * ours.numpy()).sum() > 0 else -found

        cam.get_cam_image = signed
        return torch.cat([torch.from_numpy(cam(image, [ClassifierOutputTarget(c)])) for c in classes])


def ablation_cam_at(layer: str) -> Callable[[nn.Module, Tensor, Sequence[int]], Tensor]:
    """grad-cam's Ablation-CAM at a layer."""

    def run(model: nn.Module, image: Tensor, classes: Sequence[int]) -> Tensor:
        with grad_cam.AblationCAM(model, [model.get_submodule(layer)]) as cam:
            cam.batch_size = 32
            return torch.cat([torch.from_numpy(cam(image, [ClassifierOutputTarget(c)])) for c in classes])

    return run


def rise(model: nn.Module, image: Tensor, classes: Sequence[int]) -> Tensor:
    """RISE as its authors run it: 4000 masks, made first (with the random numbers of ours), then 32 images in a forward
    pass, for all classes."""
    height, width = image.shape[-2:]
    drawn = torch.rand((4000, 51), generator=torch.Generator().manual_seed(0))
    cells = [-(-side // 7) for side in (height, width)]
    masks = torch.empty((4000, height, width))
    for number, (down, right, *grid) in enumerate(drawn.tolist()):
        small = (torch.tensor(grid) < 0.5).float().view(1, 1, 7, 7)
        large = F.interpolate(small, size=(8 * cells[0], 8 * cells[1]), mode="bilinear")[0, 0]
        top, left = int(down * cells[0]), int(right * cells[1])
        masks[number] = large[top : top + height, left : left + width]
    with torch.no_grad():
        scores = torch.cat([model(image * some[:, None]).softmax(1) for some in masks.split(32)])
    return torch.einsum("nk,nhw->khw", scores[:, list(classes)], masks) / (4000 * 0.5)


def reshape_of(model: nn.Module, image: Tensor) -> Callable[[Tensor], Tensor] | None:
    """What grad-cam's documentation writes for a ViT and a Swin Transformer."""
    if hasattr(model, "patch_embed") and hasattr(model, "blocks"):
        side = image.shape[-1] // model.patch_embed.patch_size[0]
        return lambda output: output[:, 1:].reshape(len(output), side, side, -1).permute(0, 3, 1, 2)
    return (lambda output: output.permute(0, 3, 1, 2)) if hasattr(model, "layers") else None


def sess(model: nn.Module, image: Tensor, classes: Sequence[int]) -> Tensor:
    """grad-cam's SESS around its Grad-CAM: 12 scales, windows of 224 whatever the image's size."""
    method = grad_cam.SESS(model, [model.get_submodule("layer4")], window_size=224)
    return torch.cat([torch.from_numpy(method(image, [ClassifierOutputTarget(c)])) for c in classes])


def gradient(model: nn.Module, image: Tensor, classes: Sequence[int]) -> Tensor:
    """captum's saliency, class by class."""
    method = Saliency(model)
    return torch.cat([method.attribute(image.clone().requires_grad_(), target=c) for c in classes]).amax(1)


def guided_backprop(model: nn.Module, image: Tensor, classes: Sequence[int]) -> Tensor:
    """captum's guided backpropagation, class by class."""
    method = GuidedBackprop(model)
    gradients = [method.attribute(image.clone().requires_grad_(), target=c) for c in classes]
    return torch.cat(gradients).abs().amax(1)


def activation_and_gradient(model: nn.Module, image: Tensor, cls: int) -> tuple[Tensor, Tensor]:
    """A and dz/dA at layer4, by hooks and a backward pass through the whole network, as scripts do it."""
    kept: list[Tensor] = []
    handle = model.get_submodule("layer4").register_forward_hook(lambda _, __, output: kept.append(output))
    logits = model(image)
    handle.remove()
    kept[0].retain_grad()
    model.zero_grad()
    logits[0, cls].backward()
    assert kept[0].grad is not None
    return kept[0].detach(), kept[0].grad


def cameras(model: nn.Module, image: Tensor, classes: Sequence[int]) -> Tensor:
    """CAMERAS in a plain loop over classes and resolutions, everything upsampled and summed."""
    size = (image.shape[-2], image.shape[-1])
    maps = []
    for cls in classes:
        activations, gradients = torch.zeros(()), torch.zeros(())
        for step in range(8):
            scaled = [side + round(100 * step * side / 224) for side in size]
            larger = F.interpolate(image, scaled, mode="bicubic", align_corners=False)
            activation, gradient = activation_and_gradient(model, larger, cls)
            activations = activations + F.interpolate(activation, size, mode="bilinear") / 8
            gradients = gradients + F.interpolate(gradient, size, mode="bilinear") / 8
        maps.append((activations * gradients).sum(1).relu())
    return torch.cat(maps)


def group_cam(model: nn.Module, image: Tensor, classes: Sequence[int], batch_size: int = 32) -> Tensor:
    """Group-CAM in a plain loop over classes, 32 groups, `batch_size` of their masked images in a forward pass."""
    size = (image.shape[-2], image.shape[-1])
    blurred = torch.from_numpy(cv2.GaussianBlur(image[0].permute(1, 2, 0).numpy(), (51, 51), 50))
    blurred = blurred.permute(2, 0, 1)[None]
    maps = []
    for cls in classes:
        activation, gradient = activation_and_gradient(model, image, cls)
        weighted = activation * gradient.mean((2, 3), keepdim=True)
        groups = torch.stack([part.sum(1) for part in weighted.chunk(32, dim=1)], dim=1).relu()
        upsampled = F.interpolate(groups, size, mode="bilinear")[0]
        low, high = upsampled.amin((1, 2), keepdim=True), upsampled.amax((1, 2), keepdim=True)
        masks = ((upsampled - low) / (high - low).clamp(min=1e-12))[:, None]
        with torch.no_grad():
            mixed = (image * mask + blurred * (1 - mask) for mask in masks.split(batch_size))
            score = torch.cat([model(some).sigmoid()[:, cls] for some in mixed])
            base = model(blurred).sigmoid()[0, cls]
        maps.append(((score - base).relu()[:, None, None] * upsampled * (high > low)).sum(0))
    return torch.stack(maps)


def group_cam_one_by_one(model: nn.Module, image: Tensor, classes: Sequence[int]) -> Tensor:
    """As the authors' `cam/groupcam.py` runs it: a forward pass for every masked image (it also blurs the image anew
    for each of them; here once)."""
    return group_cam(model, image, classes, batch_size=1)


def normalized(maps: Tensor) -> np.ndarray:
    """Each map min-max normalised, as grad-cam returns them."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low).clamp(min=1e-12)).detach().float().numpy()
