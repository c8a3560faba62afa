"""The examples in the docstrings run, and every public method has one, with a link to its paper.

An example is the line that a user would type. It makes no network and no photo, but finds them under these names,
beside those of its own module, the public methods, the classes of their parameters, and `torch`:

    classifier     a small random ResNet, images (B, 3, H, W) -> logits (B, 2); its layers are named as torchvision's
    images         (2, 3, 64, 64) float32, two photos as the classifier expects them
    targets        tensor([[0, 1], [1, 0]]), rows (image, class)
    image          (64, 64, 3) uint8 RGB, the first photo
    maps           (2, 64, 64) float32 in [0, 1], the saliency of its two classes, maximum 1 each
    probabilities  (3, 64, 64) float32, background first, sums to one
    classes        [1, 2], the mask indices of its two classes
"""

import copy
import doctest
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

import wsss.extension
import wsss.refine
import wsss.saliency
from wsss.data.transforms import normalize_image
from wsss.extension.affinity import WalkParameters, walk
from wsss.refine.background import background_scores
from wsss.refine.crf import dense_crf
from wsss.refine.grabcut import grabcut_labels
from wsss.refine.pamr import pamr
from wsss.refine.parameters import BackgroundParameters, RefineParameters
from wsss.refine.refiners import REFINERS
from wsss.saliency import METHODS, normalize, upsample
from wsss.saliency.parse import WRAPPERS

PUBLIC: tuple[Callable[..., Any], ...] = (
    *METHODS.values(),
    *WRAPPERS.values(),
    *REFINERS.values(),
    *(upsample, normalize, dense_crf, pamr, grabcut_labels, walk),
)
"""Methods that a user calls: each one has an example and names its paper."""

MODULES = [
    importlib.import_module(f"{package.__name__}.{found.name}")
    for package in (wsss.saliency, wsss.refine, wsss.extension)
    for found in pkgutil.iter_modules(package.__path__)
]

EXAMPLES = [found for module in MODULES for found in doctest.DocTestFinder().find(module) if found.examples]


def thin_resnet(classes: int) -> nn.Module:
    """torchvision's ResNet with one block a stage and few channels."""
    with torch.device("meta"):
        model = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])
    model.inplanes = 8
    model.conv1, model.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
    for number, width in enumerate((8, 16, 24, 32), start=1):
        stage = model._make_layer(BasicBlock, width, 1, stride=1 if number == 1 else 2)
        setattr(model, f"layer{number}", stage)
    model.fc = nn.Linear(32, classes)
    return model.eval()


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    """What examples may use, see above."""
    torch.manual_seed(0)
    rows, columns = np.mgrid[:64, :64].astype(np.float32) / 63
    photos = [np.stack((rows, columns, rows * columns), axis=2), np.stack((columns, rows, 1 - rows), axis=2)]
    photos = [(255 * photo).astype(np.uint8) for photo in photos]
    maps = np.stack((rows * columns, (1 - rows) * (1 - columns)))
    scores = background_scores(maps, BackgroundParameters("power"))
    return {
        "torch": torch,
        "RefineParameters": RefineParameters,
        "BackgroundParameters": BackgroundParameters,
        "WalkParameters": WalkParameters,
        **{public.__name__: public for public in PUBLIC},
        "classifier": thin_resnet(2),
        "transformer": torchvision.models.VisionTransformer(64, 16, 2, 2, 8, 8, num_classes=2).eval(),
        "torchvision": torchvision,
        "images": torch.stack(
            [normalize_image(torch.from_numpy(photo).permute(2, 0, 1)) for photo in photos]
        ),
        "targets": torch.tensor([[0, 1], [1, 0]]),
        "image": photos[0],
        "maps": maps,
        "probabilities": scores / scores.sum(axis=0),
        "classes": [1, 2],
    }


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example_gives_what_its_docstring_says(example: doctest.DocTest, namespace: dict[str, Any]) -> None:
    test, said = copy.copy(example), []
    test.globs = example.globs | namespace
    result = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.__name__)
def test_public_method_links_its_paper_and_has_an_example(public: Callable[..., Any]) -> None:
    documentation = public.__doc__ or ""
    assert "https://" in documentation, f"{public.__name__} links no paper"
    name = f"{public.__module__}.{public.__name__}"
    assert name in {example.name for example in EXAMPLES}, f"{name} has no example `>>> ...`"
