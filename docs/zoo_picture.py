"""Draws docs/zoo.jpg: every method of the zoo on one picture with two classes."""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from wsss.explain import explain, imagenet_subject
from wsss.saliency import METHODS
from wsss.saliency.attention import AttentionMethod

WRAPPED = ("sess(gradcam)", "subtraction(gradcam)", "multiscale(gradcam, scales=(0.5, 1, 1.5, 2))")
ROWS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--weights", default="imagenet", help="torchvision's ResNet-50: `imagenet` or a state dict"
    )
    parser.add_argument("--classes", nargs=2, default=["palace", "daisy"])
    parser.add_argument("--output", type=Path, default=Path("docs/zoo.jpg"))
    options = parser.parse_args()
    names = [name for name, kind in METHODS.items() if not issubclass(kind, AttentionMethod)]
    names += WRAPPED
    subject = imagenet_subject("resnet50", options.weights, None)
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.png"
        both().save(photo)
        strips = []
        for start in range(0, len(names), -(-len(names) // ROWS)):
            some = names[start : start + -(-len(names) // ROWS)]
            picture = Path(folder) / f"{start}.png"
            explain(photo, picture, subject, some, options.classes)
            strips.append(Image.open(picture).convert("RGB"))
        sheet = stack(strips)
        smaller = sheet.resize(
            (round(0.62 * sheet.width), round(0.62 * sheet.height)), Image.Resampling.LANCZOS
        )
        smaller.save(options.output, quality=80, optimize=True)


def both() -> Image.Image:
    """The temple and the flower, side by side, 224 x 448."""
    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    squares = [
        Image.fromarray(photo[:, 110:537]).resize((224, 224), Image.Resampling.BICUBIC) for photo in photos
    ]
    return Image.fromarray(np.concatenate([np.asarray(square) for square in squares], axis=1))


def stack(strips: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


if __name__ == "__main__":
    main()
