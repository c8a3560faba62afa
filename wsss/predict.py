"""Masks for anybody's photos, with a trained segmenter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from wsss import runtime
from wsss.config import EvaluateConfig, RuntimeConfig
from wsss.data.dataset import walk_images
from wsss.data.files import atomic_path, read_image, write_mask
from wsss.data.transforms import normalize_image, to_tensor
from wsss.errors import UserError
from wsss.evaluation import label_map
from wsss.models.segmenter import predict_probabilities
from wsss.report.overlay import overlay_mask
from wsss.tasks.segmentation import load_segmenter


def find_photos(paths: Sequence[Path]) -> dict[str, Path]:
    """Photos named on the command line, folders searched: output name -> file.

    Raises:
        UserError: a path does not exist, a folder holds no photo, or two photos would get one name.
    """
    photos: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            found = walk_images(path, nested=True)
            if not found:
                raise UserError(f"{path} holds no photos (jpg, png, webp, bmp, tif)")
        elif path.is_file():
            found = [(path.stem, path)]
        else:
            raise UserError(f"{path} does not exist; give photos or folders of photos")
        for name, file in found:
            if photos.get(name, file) != file:
                raise UserError(
                    f"{photos[name]} and {file} would both be written as {name}.png; run them separately"
                )
            photos[name] = file
    return photos


def predict_files(
    paths: Sequence[Path],
    checkpoint: Path,
    output: Path,
    *,
    ms_flip: bool = False,
    overlay: bool = False,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
) -> None:
    """Write ``output/<name>.png`` (palette, size of the photo) for every photo.

    Args:
        paths: photos or folders of photos.
        checkpoint: of a segmenter.
        output: folder; made if it is missing.
        ms_flip: predict at the scales of ``evaluate.scales`` and mirrored.
        overlay: also write ``<name>_overlay.jpg``.
        accelerator: device.

    Raises:
        UserError: unreadable checkpoint or photos; the readable photos are predicted all the same.
    """
    photos = find_photos(paths)
    _check_targets(photos, output, overlay)
    model, _ = load_segmenter(checkpoint)
    hardware = RuntimeConfig(accelerator=accelerator)
    model = runtime.prepare(model, hardware)  # type: ignore[assignment]
    scales = EvaluateConfig().scales if ms_flip else (1.0,)
    broken: list[str] = []
    with torch.inference_mode(), runtime.autocast(hardware):
        for name, path in runtime.progress(photos.items(), hardware, "predict", len(photos)):
            try:
                image = read_image(path)
            except UserError as error:
                broken.append(str(error))
                continue
            batch = normalize_image(to_tensor(image)[None].to(runtime.device(hardware)))
            mask = label_map(predict_probabilities(model, batch, scales, flip=ms_flip)[0])
            write_mask(output / f"{name}.png", mask)
            if overlay:
                _write_jpeg(output / f"{name}_overlay.jpg", overlay_mask(image, mask))
    if broken:
        raise UserError(f"{len(broken)} of {len(photos)} photos could not be read: {'; '.join(broken)}")


def _check_targets(photos: Mapping[str, Path], output: Path, overlay: bool) -> None:
    """Raises UserError where a mask or an overlay would replace one of the photos."""
    originals = {path.resolve() for path in photos.values()}
    endings = (".png", "_overlay.jpg") if overlay else (".png",)
    for name in photos:
        for ending in endings:
            target = output / f"{name}{ending}"
            if target.resolve() in originals:
                raise UserError(
                    f"{target} is one of the photos and would be overwritten; choose another --output"
                )


def _write_jpeg(path: Path, image: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="JPEG", quality=90)
