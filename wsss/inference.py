"""A trained run in Python: masks of photos, and why its classifier names a class. `wsss.load` is `load` here."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import Literal, TypedDict, Unpack, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from wsss import runtime
from wsss.config import RuntimeConfig
from wsss.data.files import classes_in, read_image, to_pixels
from wsss.data.transforms import normalize_image, to_tensor
from wsss.errors import UserError
from wsss.explain import Subject, find_class, resize_photo, trained_subject
from wsss.plugins import load_installed
from wsss.predict import PredictOptions, decide, photo_strips, tile_predictor
from wsss.rundir import find_checkpoint
from wsss.saliency import normalize, upsample
from wsss.saliency.parse import parse_method
from wsss.tasks.segmentation import Trained, load_trained


class Shaping(TypedDict, total=False):
    """The options of `wsss predict` that shape a mask, see `wsss.predict.PredictOptions`."""

    ms_flip: bool
    crf: bool
    scales: tuple[float, ...]
    tile: int
    long_side: int | None
    unsure: float | None


Pixels = npt.NDArray[np.uint8]
Picture = str | PathLike[str] | Image.Image | Pixels
"""A photo: its path, a PIL image, or (H, W, 3) uint8 RGB."""


@dataclass(frozen=True)
class Prediction:
    """What a segmenter says about one photo."""

    mask: Pixels
    """(H, W) uint8: the index of the most probable class of each pixel, 0 is the background; 255 where `unsure` says
    so."""
    classes: tuple[str, ...]
    """Names by index, background first."""
    confidence: float
    """Mean probability of the preferred class, over all pixels."""
    per_class: dict[str, float]
    """The same over the pixels of each class in the mask, by name, background included."""
    compute: Callable[[], npt.NDArray[np.float32]] = field(repr=False)
    """Makes `probabilities`."""

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """(C, H, W) float32 in [0, 1], sums to one over the classes. Made when asked for: predicts once more."""
        return self.compute()

    @property
    def found(self) -> tuple[str, ...]:
        """Names of the classes that have pixels, without the background."""
        return tuple(self.classes[index] for index in classes_in(self.mask))


class Run:
    """A trained run, see `load`. Several threads may call it."""

    def __init__(self, path: Path, device: Literal["auto", "cpu", "cuda"] = "auto") -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"device is {device}, but must be auto, cpu or cuda")
        if not path.exists():
            raise UserError(f"{path} does not exist; give a run directory or a checkpoint")
        self.path = path
        self._hardware = RuntimeConfig(accelerator="gpu" if device == "cuda" else device)
        self._exact = replace(self._hardware, precision="float32")
        self._lock = RLock()
        self._trained: Trained | None = None
        self._subject: Subject | None = None

    def __repr__(self) -> str:
        return f"wsss.load({str(self.path)!r})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the segmenter's classes by mask index, background first."""
        return self._segmenter().classes

    @overload
    def predict(self, images: Picture, **options: Unpack[Shaping]) -> Prediction: ...

    @overload
    def predict(
        self, images: list[Picture] | tuple[Picture, ...], **options: Unpack[Shaping]
    ) -> list[Prediction]: ...

    def predict(
        self, images: Picture | list[Picture] | tuple[Picture, ...], **options: Unpack[Shaping]
    ) -> Prediction | list[Prediction]:
        """Masks of photos, as `wsss predict` makes them.

        Args:
            images: a photo, or a list of photos.
            options: see `Shaping`.

        Returns:
            A `Prediction`, or a list of them for a list.

        Raises:
            UserError: no segmenter, an unreadable photo, or an unknown option.
        """
        trained = self._segmenter()
        known = Shaping.__annotations__
        if other := sorted(set(options) - set(known)):
            raise UserError(
                f"predict: {', '.join(other)} has no effect here; the options are {', '.join(known)}"
            )
        try:
            chosen = PredictOptions(**{"long_side": trained.long_side, **options})  # type: ignore[arg-type]
        except TypeError as error:  # a value of another type
            raise UserError(f"predict: {error}; see wsss.predict.PredictOptions for the options") from error
        if isinstance(images, list | tuple):
            return [self._predict(trained, image, chosen) for image in images]
        return self._predict(trained, images, chosen)

    def explain(self, image: Picture, name: str, method: str = "gradcam") -> npt.NDArray[np.float32]:
        """Where the run's classifier sees a class.

        Args:
            image: a photo.
            name: of the class.
            method: as on the command line, such as ``sess(gradcam)``.

        Returns:
            (H, W) float32 in [0, 1]: the map at the photo's size, divided by its maximum. As for `wsss explain`, a
            photo with a longer side of more than 1024 pixels is shrunk first.

        Raises:
            UserError: no classifier, an unknown class or method, or an unreadable photo.
        """
        pixels = to_tensor(read_picture(image))[None]
        with self._lock:  # a method puts hooks on the network while it works
            subject = self._classifier()
            chosen = parse_method(method, subject.layer, subject.score)
            images = normalize_image(resize_photo(pixels).to(runtime.device(self._exact)))
            targets = torch.tensor([[0, find_class(name, subject)]])
            maps = chosen(subject.network, images, targets)
        size = (pixels.shape[-2], pixels.shape[-1])
        found: npt.NDArray[np.float32] = normalize(upsample(maps, size).clamp(min=0), "max")[0].cpu().numpy()
        return found

    def _predict(self, trained: Trained, image: Picture, options: PredictOptions) -> Prediction:
        pixels = to_tensor(read_picture(image))
        predict = tile_predictor(trained.network, runtime.device(self._hardware), options)

        def compute() -> npt.NDArray[np.float32]:
            with torch.inference_mode(), runtime.autocast(self._hardware):
                return torch.cat([part for _, part in photo_strips(pixels, predict, options)], dim=1).numpy()

        with torch.inference_mode(), runtime.autocast(self._hardware):
            strips = photo_strips(pixels, predict, options)
            mask, confidence = decide(strips, tuple(pixels.shape[1:]), options.unsure)
        per_class = {trained.classes[index]: value for index, value in confidence.classes.items()}
        return Prediction(mask, trained.classes, confidence.photo, per_class, compute)

    def _segmenter(self) -> Trained:
        if self._trained is not None:
            return self._trained
        load_installed()
        with self._lock:
            if self._trained is None:
                trained = load_trained(find_checkpoint(self.path, "segmenter"))
                runtime.prepare(trained.network, self._hardware)
                self._trained = trained
            return self._trained

    def _classifier(self) -> Subject:
        if self._subject is None:
            load_installed()
            subject = trained_subject(find_checkpoint(self.path, "classifier"))
            runtime.prepare(subject.network, self._exact)
            self._subject = subject
        return self._subject


def load(path: str | PathLike[str], device: Literal["auto", "cpu", "cuda"] = "auto") -> Run:
    """A trained run, for notebooks and services.

        import wsss
        run = wsss.load("runs/photos")
        result = run.predict("holiday.jpg")
        result.mask, result.classes, result.probabilities
        run.explain("holiday.jpg", "dog", method="sess(gradcam)")

    Networks are read when they are first needed.

    Args:
        path: a run directory, or a checkpoint of one of its networks.
        device: auto: a GPU if there is one.

    Raises:
        UserError: there is nothing at the path.
    """
    return Run(Path(path), device)


def read_picture(image: Picture) -> Pixels:
    """(H, W, 3) uint8 RGB of a photo. Raises UserError if it is something else, or unreadable."""
    if isinstance(image, str | PathLike):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        try:
            return to_pixels(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"the photo cannot be decoded ({error})") from error
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise UserError(f"a photo is a path, a PIL image or uint8 (H, W, 3) RGB, not {kind}")
