"""The saliency stage: composition of methods, archives, resume."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from wsss.config import RuntimeConfig, SaliencyConfig
from wsss.data.dataset import Record
from wsss.data.files import Saliency, read_saliency
from wsss.data.modules import Photo, same_size_batches
from wsss.data.transforms import normalize_image
from wsss.errors import UserError
from wsss.rundir import RunDirectory
from wsss.saliency import (
    CAMERAS,
    DCSM,
    SESS,
    ClassSubtraction,
    GlobalGuidanceCAM,
    GradCAM,
    GradCAMPlusPlus,
    MultiScale,
    upsample,
)
from wsss.saliency.base import DeferredEvidence, SaliencyMethod
from wsss.stages.saliency import build_method, to_archive, write_all

CPU = RuntimeConfig(accelerator="cpu", precision="float32", workers=0, progress=False)
SIZES = ((48, 64), (64, 48), (48, 64), (48, 64), (48, 64))
LABELS: tuple[tuple[int, ...] | None, ...] = ((1, 4), (2,), (), (3, 4, 7), None)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    random = np.random.default_rng(0)
    found = []
    for index, (size, labels) in enumerate(zip(SIZES, LABELS, strict=True)):
        path = tmp_path / f"{index}.png"
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
        found.append(Record(f"set/{index}", path, labels, None))
    return found


@pytest.fixture(scope="module")
def resnet(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return torchvision.models.resnet18(num_classes=12).double().eval()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


# -- composition -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "layer", "expected"),
    [
        (SaliencyConfig(scales=(1.0,), flip=False), "layer4", GradCAM(layer="layer4")),
        (SaliencyConfig(scales=(1.0,), flip=False), "features.29", GradCAM(layer="features.29")),
        (SaliencyConfig("gradcam@layer3", scales=(1.0,), flip=False), "layer4", GradCAM(layer="layer3")),
        (
            SaliencyConfig(scales=(1.0,), flip=True, balance="max"),
            "layer4",
            MultiScale(GradCAM(layer="layer4"), scales=(1.0,), flip=True, balance="max"),
        ),
        (
            SaliencyConfig(method="global_guidance", scales=(0.5, 2.0), flip=False, balance="area"),
            "layer4",
            MultiScale(GlobalGuidanceCAM(layer="layer4"), scales=(0.5, 2.0), flip=False, balance="area"),
        ),
        (
            SaliencyConfig(method="global_guidance@layer3(smooth=2)", scales=(1.0,), flip=False),
            "layer4",
            GlobalGuidanceCAM(layer="layer3", smooth=2),
        ),
        (  # it brings its own scales: only mirrored
            SaliencyConfig(method="cameras", scales=(0.5, 2.0), flip=True),
            "layer4",
            MultiScale(CAMERAS("layer4"), scales=(1.0,), flip=True, balance="none"),
        ),
        *(  # wrapped by its expression: taken as it is
            (SaliencyConfig(method=text, scales=(0.5, 2.0), flip=True), "layer4", method)
            for text, method in (
                ("sess(gradcam, scales=(64, 96))", SESS(GradCAM("layer4"), scales=(64, 96))),
                ("multiscale(gradcam)", MultiScale(GradCAM("layer4"))),
                ("subtraction(multiscale(gradcam))", ClassSubtraction(MultiScale(GradCAM("layer4")))),
            )
        ),
        *(  # subtraction asks its base
            (
                SaliencyConfig(method=f"subtraction({base})", scales=(0.5, 2.0), flip=False),
                "layer4",
                ClassSubtraction(method),
            )
            for base, method in (
                ("sess(gradcam, scales=(64, 96))", SESS(GradCAM(layer="layer4"), scales=(64, 96))),
                ("cameras", CAMERAS(layer="layer4")),
                ("dcsm", DCSM()),
                ("multiscale(gradcam)", MultiScale(GradCAM(layer="layer4"))),
            )
        ),
        (  # values that are no means over positions weigh by their maximum
            SaliencyConfig(method="gradcam++", scales=(0.5, 1.0), flip=False),
            "layer4",
            MultiScale(GradCAMPlusPlus(layer="layer4"), scales=(0.5, 1.0), flip=False, balance="max"),
        ),
        (
            SaliencyConfig("subtraction(multiscale(gradcam, balance='area'), reduce='min')"),
            "layer4",
            ClassSubtraction(
                MultiScale(GradCAM(layer="layer4"), scales=(0.5, 1.0, 1.5, 2.0), flip=True, balance="area"),
                reduce="min",
            ),
        ),
        (
            SaliencyConfig(
                "subtraction(sess(gradcam, window=96, step=48, scales=(96, 128), prefilter=0.5, theta=0.1, pool='max', "
                "smooth=False))"
            ),
            "layer4",
            ClassSubtraction(
                SESS(
                    GradCAM(layer="layer4"),
                    window=96,
                    step=48,
                    scales=(96, 128),
                    prefilter=0.5,
                    theta=0.1,
                    pool="max",
                    smooth=False,
                    score="sigmoid",
                ),
                reduce="sum",
            ),
        ),
    ],
)
def test_configuration_becomes_the_composed_method(
    config: SaliencyConfig, layer: str, expected: SaliencyMethod
) -> None:
    assert build_method(config, layer) == expected


def test_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(
        UserError, match=r"saliency\.method: there is no saliency method 'gradcan'; did you mean gradcam"
    ):
        build_method(SaliencyConfig(method="gradcan"))


# -- archives --------------------------------------------------------------------------------------


def photo(labels: tuple[int, ...] | None, size: tuple[int, int] = (6, 9)) -> Photo:
    return Photo(Record("a", Path("a.png"), labels, None), torch.zeros(3, *size, dtype=torch.uint8))


def test_archive_holds_each_map_divided_by_its_maximum_without_negative_evidence() -> None:
    maps = (
        torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-6, 1, 1e6])[:, None, None]
    )
    archive = to_archive(photo((1, 5, 20)), maps)
    assert archive.classes.tolist() == [1, 5, 20]
    assert archive.size == (6, 9)
    positive = np.maximum(maps.numpy(), 0)
    expected = positive / positive.max((1, 2), keepdims=True)
    np.testing.assert_allclose(archive.maps, expected, atol=1e-3)
    assert (archive.maps.max((1, 2)) == 1).all()


def test_map_without_evidence_stays_zero() -> None:
    assert not to_archive(photo((1,)), -torch.ones(1, 2, 3)).maps.any()


@pytest.mark.parametrize("labels", [(), None])
def test_photo_without_labels_has_an_archive_without_maps(labels: tuple[int, ...] | None) -> None:
    archive = to_archive(photo(labels), torch.zeros(0, 2, 3))
    assert archive.maps.shape == (0, 2, 3)
    assert archive.classes.shape == (0,)


# -- the stage -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe(SaliencyMethod):
    """A map that encodes its photo and its class: the blurred photo, sharpened by the class index."""

    seen: tuple[list[int], ...] = ()

    def forward(self, classifier: nn.Module, images: Tensor) -> Any:
        return DeferredEvidence(classifier, images, lambda targets: self._maps(images, targets))

    def _maps(self, images: Tensor, targets: Tensor) -> Tensor:
        for log in self.seen:
            log.append(len(images))
        return torch.stack([encode(images[image], int(cls)) for image, cls in targets.tolist()])


def encode(image: Tensor, cls: int) -> Tensor:
    """(3, H, W) normalised -> (H / 8, W / 8)."""
    small = nn.functional.avg_pool2d(image[None], 8)[0]
    return small[cls % 3] * (1 + cls)


def expected(record: Record, size: tuple[int, int]) -> Saliency:
    pixels = torch.from_numpy(np.asarray(Image.open(record.image)).copy()).permute(2, 0, 1)
    labels = record.labels or ()
    maps = [encode(normalize_image(pixels), label - 1) for label in labels]
    stacked = torch.stack(maps) if maps else torch.zeros(0, 1, 1)
    return to_archive(Photo(record, pixels), stacked)


def stage(records: Sequence[Record], run: RunDirectory, method: SaliencyMethod, batch_size: int = 2) -> None:
    write_all(nn.Conv2d(3, 7, 1), method, same_size_batches(records, batch_size), run, CPU)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_photo_gets_the_maps_of_its_own_labels(
    records: list[Record], run: RunDirectory, batch_size: int
) -> None:
    stage(records, run, Probe(), batch_size)
    for record, size in zip(records, SIZES, strict=True):
        found, wanted = read_saliency(run.saliency(record.id)), expected(record, size)
        assert found.classes.tolist() == list(record.labels or ())
        assert found.size == size
        assert len(found.maps) == len(found.classes)
        if len(found.maps):
            np.testing.assert_allclose(found.maps, wanted.maps, atol=1e-3)


def test_only_missing_archives_are_written(records: list[Record], run: RunDirectory) -> None:
    seen: list[int] = []
    records = [replace(record, labels=(1,)) for record in records]
    stage(records, run, Probe())
    times = {record.id: run.saliency(record.id).stat().st_mtime_ns for record in records}
    lost = same_size_batches(records, 2)[0][1]
    run.saliency(lost.id).unlink()
    stage(records, run, Probe((seen,)))
    assert seen == [2]  # in the company of a run without interruption, which decides the last bits
    written = {
        record.id for record in records if run.saliency(record.id).stat().st_mtime_ns != times[record.id]
    }
    assert written == {lost.id}
    seen.clear()
    stage(records, run, Probe((seen,)))
    assert seen == []


def test_stage_is_the_method_on_the_normalised_photo(
    records: list[Record], run: RunDirectory, resnet: nn.Module
) -> None:
    config = SaliencyConfig(scales=(1.0, 1.5), flip=True)
    method = build_method(config, "layer4")
    resnet = copy.deepcopy(resnet)  # which is in float64: a photo in a batch has the maps of the photo alone
    resnet.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    write_all(resnet, method, same_size_batches(records, 3), run, CPU)
    for record in records[:2]:
        pixels = torch.from_numpy(np.asarray(Image.open(record.image)).copy()).permute(2, 0, 1)
        targets = torch.tensor([[0, label - 1] for label in record.labels or ()])
        maps = method(resnet, normalize_image(pixels)[None], targets)
        found = torch.from_numpy(read_saliency(run.saliency(record.id)).maps).float()
        assert found.shape == maps.shape
        wanted = maps / maps.amax((1, 2), keepdim=True)
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)
        assert upsample(found, (48, 64)).shape[-2:] == (48, 64)


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_stage_needs_no_gradient_of_its_caller(
    records: list[Record], run: RunDirectory, resnet: nn.Module, precision: Literal["bf16", "float32"]
) -> None:
    config = SaliencyConfig(scales=(1.0,), flip=False)
    hardware, resnet = replace(CPU, precision=precision), copy.deepcopy(resnet).float()
    with torch.no_grad():
        write_all(resnet, build_method(config, "layer4"), [records[:1]], run, hardware)
    assert read_saliency(run.saliency(records[0].id)).maps.max() == 1
