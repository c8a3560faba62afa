"""How far our maps are from those of the public libraries, on photos and with trained weights.

    python benchmarks/agreement.py --weights resnet18.pth --architecture resnet18 --photos JPEGImages

Ours are made in one call, all photos and classes at once; theirs one photo and class at a time. The classes
are those with the highest logits of each photo. Both are upsampled to the photo and min-max normalised.
Printed are the largest and the mean absolute difference over all pixels of all maps, and the smallest
correlation of two maps of one target.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import pytorch_grad_cam as grad_cam
import saliency_peers as peers
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from wsss.data.transforms import normalize_image
from wsss.saliency import normalize, upsample
from wsss.saliency.parse import parse_method

Peer = Callable[[nn.Module, Tensor, Sequence[int]], Tensor]


def library(method: type) -> Peer:
    return lambda model, image, classes: peers.with_grad_cam(method, model, image, classes)


CASES: dict[str, tuple[str, Peer, str]] = {
    "gradient": ("gradient", peers.gradient, "captum"),
    "guided_backprop": ("guided_backprop", peers.guided_backprop, "captum"),
    "gradcam": ("gradcam@layer4", library(grad_cam.GradCAM), "grad-cam"),
    "gradcam++": ("gradcam++@layer4(eps=1e-6)", library(grad_cam.GradCAMPlusPlus), "grad-cam"),
    "xgradcam": ("xgradcam@layer4", library(grad_cam.XGradCAM), "grad-cam"),
    "fullgrad": ("fullgrad(psi=per_channel)", library(grad_cam.FullGrad), "grad-cam"),
    "scorecam": ("scorecam@layer4(weights=channel_softmax)", library(grad_cam.ScoreCAM), "grad-cam"),
    "sess": ("sess(gradcam@layer4, score=softmax)", peers.sess, "grad-cam"),
}
"""Name -> (our method, its peer, where the peer is from)."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--weights", type=Path, required=True, help="torchvision state dict")
    parser.add_argument("--architecture", required=True, help="torchvision's name of a ResNet, e.g. resnet18")
    parser.add_argument("--photos", type=Path, required=True, help="folder of .jpg files")
    parser.add_argument("--count", type=int, default=4, help="photos, spread over the folder (default 4)")
    parser.add_argument("--classes", type=int, default=2, help="classes a photo (default 2)")
    parser.add_argument("--size", type=int, default=224, help="side of the centre crop (default 224)")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE")
    options = parser.parse_args()
    model = torchvision.models.get_model(options.architecture, weights=None)
    model.load_state_dict(torch.load(options.weights, map_location="cpu", weights_only=True))
    model.eval()
    images = load_photos(options.photos, options.count, options.size)
    with torch.no_grad():
        best = model(images).topk(options.classes).indices
    targets = torch.tensor([(index, int(cls)) for index, row in enumerate(best) for cls in row])
    print(f"{options.architecture}, {len(images)} photos of {options.size} pixels, {len(targets)} maps")
    print(f"{'case':<17}{'largest':>10}{'mean':>10}{'correlation':>14}  peer")
    for case in options.cases:
        largest, mean, correlation = compare(case, model, images, targets)
        print(f"{case:<17}{largest:>10.1e}{mean:>10.1e}{correlation:>14.6f}  {CASES[case][2]}", flush=True)


def load_photos(folder: Path, count: int, size: int) -> Tensor:
    """Normalised centre crops (count, 3, size, size), photos evenly spread over the sorted folder."""
    paths = sorted(folder.glob("*.jpg"))
    chosen = paths[:: max(1, len(paths) // count)][:count]
    photos = []
    for path in chosen:
        with Image.open(path) as photo:
            pixels = pil_to_tensor(photo.convert("RGB"))
        photos.append(
            normalize_image(center_crop(resize(pixels, size * 8 // 7, antialias=True), [size, size]))
        )
    return torch.stack(photos)


def compare(case: str, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[float, float, float]:
    """Largest and mean difference, and the smallest correlation, of the normalised maps of a case."""
    expression, peer, _ = CASES[case]
    maps = parse_method(expression)(model, images, targets)
    ours = normalize(upsample(maps, (images.shape[-2], images.shape[-1])))
    rows = [peer(model, images[image][None], [cls]) for image, cls in targets.tolist()]
    theirs = normalize(torch.cat(rows).detach().float())
    difference = (ours - theirs).abs()
    pairs = zip(ours.flatten(1), theirs.flatten(1), strict=True)
    correlation = min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs)
    return float(difference.max()), float(difference.mean()), correlation


if __name__ == "__main__":
    main()
