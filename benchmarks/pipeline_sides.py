"""The two sides of `pipeline.py`. It imports this file late, because the processes of a pool import the script."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydensecrf.densecrf as densecrf
import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from PIL import Image
from pydensecrf.utils import unary_from_labels
from pytorch_grad_cam import GradCAM as PeerGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import normalize as peer_normalize
from torchvision.transforms.functional import to_tensor as peer_to_tensor

from wsss import runtime
from wsss.config import ClassifierConfig, RuntimeConfig, SegmenterConfig
from wsss.data.dataset import Record, evenly
from wsss.data.files import read_mask
from wsss.data.labels import VOC_CLASSES, image_id
from wsss.data.modules import same_size_batches
from wsss.predict import predict_files
from wsss.refine.parameters import BackgroundParameters, RefineParameters
from wsss.refine.refiners import build_refiner
from wsss.rundir import LABELS, SALIENCY, RunDirectory
from wsss.saliency import GradCAM, MultiScale
from wsss.stages import refine, saliency
from wsss.tasks import classification, segmentation
from wsss.tasks.fit import _trainer, quiet_lightning

SCALES = (0.5, 1.0, 1.5, 2.0)
THRESHOLD, STRICT, GENEROUS = 0.2, 1.5, 0.7
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HARDWARE = RuntimeConfig(accelerator="cpu", progress=False)

Pair = tuple[Callable[[], object], Callable[[], object], Callable[[], str]]
"""Our side, the plain side, and what to say of their results."""


def photos_of(folder: Path, count: int) -> list[Record]:
    """Records with one or two labels, drawn at random."""
    draw, files = random.Random(0), sorted(folder.glob("*.jpg"))
    records = [
        Record(image_id(path.name), path, tuple(sorted(draw.sample(range(1, 21), draw.randint(1, 2)))), None)
        for path in files
    ]
    return list(evenly(records, count))


# -- masks --------------------------------------------------------------------------------------------


def masks(records: list[Record], work: Path) -> Pair:
    network = classification.new_task(ClassifierConfig(weights="none"), VOC_CLASSES).model.eval()
    method = MultiScale(GradCAM("layer4"), scales=SCALES, flip=False, balance="max")
    background = BackgroundParameters(rule="constant", threshold=THRESHOLD)
    parameters = RefineParameters(
        background=background,
        uncertainty="agreement",
        low_factor=GENEROUS,
        high_factor=STRICT,
        backend="pydensecrf",
    )
    made: list[RunDirectory] = []

    def ours() -> None:
        made.append(RunDirectory(work / f"ours{len(made)}"))
        model = runtime.prepare(network, HARDWARE)
        saliency.write_all(model, method, same_size_batches(records, 4), made[-1], HARDWARE)
        refine.write_all(records, made[-1], build_refiner(parameters), SALIENCY, HARDWARE)

    def plain() -> None:
        network.to(memory_format=torch.contiguous_format)
        (work / "plain").mkdir(exist_ok=True)
        with PeerGradCAM(network, [network.get_submodule("layer4")]) as cam:
            for record in records:
                write_plain_mask(cam, record, work / "plain" / f"{record.id}.png")

    def agreement() -> str:
        pairs = [
            (
                read_mask(made[-1].mask(LABELS, record.id)),
                np.array(Image.open(work / "plain" / f"{record.id}.png")),
            )
            for record in records
        ]
        same = sum(int((np.where(two == 255, one, two) == one).sum()) for one, two in pairs)
        return f"{same / sum(one.size for one, _ in pairs):.1%} of the pixels are the same"

    return ours, plain, agreement


def write_plain_mask(cam: PeerGradCAM, record: Record, path: Path) -> None:
    photo = Image.open(record.image).convert("RGB")
    pixels = np.array(photo)
    maps = np.zeros((len(record.labels or ()), photo.height, photo.width), np.float32)
    for scale in SCALES:
        small = photo.resize(
            (round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BILINEAR
        )
        image = peer_normalize(peer_to_tensor(small), MEAN, STD)[None]
        for number, label in enumerate(record.labels or ()):
            found = torch.from_numpy(cam(image, [ClassifierOutputTarget(label - 1)]))
            maps[number] += F.interpolate(found[None], maps.shape[1:], mode="bilinear")[0, 0].numpy()
    maps /= maps.max(axis=(1, 2), keepdims=True).clip(1e-5)
    strict, generous = (plain_crf(maps, pixels, THRESHOLD * factor) for factor in (STRICT, GENEROUS))
    names = np.array([0, *(record.labels or ())], np.uint8)
    mask = names[strict]
    mask[(strict == 0) & (generous != 0)] = 255
    Image.fromarray(mask).save(path)


def plain_crf(maps: np.ndarray, pixels: np.ndarray, threshold: float) -> np.ndarray:  # type: ignore[type-arg]
    """IRN's `crf_inference_label` from arg-max seeds."""
    seeds = np.concatenate([np.full_like(maps[:1], threshold), maps]).argmax(0)
    labels = len(maps) + 1
    field = densecrf.DenseCRF2D(pixels.shape[1], pixels.shape[0], labels)
    field.setUnaryEnergy(unary_from_labels(seeds, labels, gt_prob=0.7, zero_unsure=False))
    field.addPairwiseGaussian(sxy=3, compat=3)
    field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=pixels, compat=10)
    return np.argmax(field.inference(10), axis=0).reshape(seeds.shape)


# -- training -----------------------------------------------------------------------------------------


def training(records: list[Record], work: Path) -> Pair:
    """Eight steps on batches of 16 crops of 320 pixels."""
    images = torch.rand(16 * 8, 3, 320, 320)
    loader = DataLoader(TensorDataset(images, torch.randint(0, 2, (len(images), 20)).float()), batch_size=16)

    def task() -> LightningModule:
        return classification.new_task(ClassifierConfig(weights="none", frozen_stages=2), VOC_CLASSES)

    def ours() -> None:
        with quiet_lightning():
            trainer = _trainer(HARDWARE, [], False, max_epochs=1, enable_checkpointing=False)
            trainer.fit(task().to(memory_format=torch.channels_last), loader)  # type: ignore[call-overload]

    def plain() -> None:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        with quiet_lightning():
            Trainer(accelerator="cpu", max_epochs=1, enable_checkpointing=False, **quiet).fit(task(), loader)

    return ours, plain, lambda: f"precision {runtime.precision(HARDWARE)[0]}"


# -- predict ------------------------------------------------------------------------------------------


def predict(records: list[Record], work: Path) -> Pair:
    settings = SegmenterConfig(architecture="deeplabv3_resnet50", weights="none")
    task = segmentation.new_task(settings, ("background", *VOC_CLASSES))
    torch.save({"hyper_parameters": dict(task.hparams), "state_dict": task.state_dict()}, work / "last.ckpt")
    network = task.model.eval()
    (work / "predicted").mkdir()

    def ours() -> None:
        predict_files([r.image for r in records], work / "last.ckpt", work / "masks", hardware=HARDWARE)

    @torch.inference_mode()
    def plain() -> None:
        for record in records:
            photo = Image.open(record.image).convert("RGB")
            scores: Tensor = network(peer_normalize(peer_to_tensor(photo), MEAN, STD)[None])
            large = F.interpolate(scores, (photo.height, photo.width), mode="bilinear", align_corners=False)
            labels = large.argmax(1)[0].to(torch.uint8).numpy()
            Image.fromarray(labels).save(work / "predicted" / f"{record.id}.png")

    def agreement() -> str:
        pairs = [
            (
                read_mask(work / "masks" / f"{r.id}.png"),
                np.array(Image.open(work / "predicted" / f"{r.id}.png")),
            )
            for r in records
        ]
        same = sum(int((one == two).sum()) for one, two in pairs)
        return f"{same / sum(one.size for one, _ in pairs):.1%} of the pixels are the same"

    return ours, plain, agreement
