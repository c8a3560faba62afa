"""Masks for any photos, from a trained segmenter."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from wsss import __version__, plugins, runtime
from wsss.config import NOT_WEAK, EvaluateConfig, RuntimeConfig, to_dict
from wsss.data.confidence import Confidence, Tally
from wsss.data.dataset import first, left_out, other_files, walk_images
from wsss.data.files import (
    atomic_path,
    classes_in,
    read_confidence,
    read_image,
    read_mask,
    read_object,
    write_json,
    write_mask,
)
from wsss.data.labels import BACKGROUND, IGNORE, PHOTO_KINDS
from wsss.data.names import RECORD
from wsss.data.palette import colour_of
from wsss.data.tags import read_label_csv
from wsss.data.transforms import normalize_image, resize_long_side, to_tensor
from wsss.data.working import shrink
from wsss.errors import UserError
from wsss.models.segmenter import predict_probabilities
from wsss.models.tiling import SMALLEST_TILE, blended_rows
from wsss.parallel import pool, unordered
from wsss.refine.crf import crf_probabilities
from wsss.refine.parameters import CRFParameters, RefineParameters
from wsss.report.figure import with_legend
from wsss.report.overlay import overlay_contour, overlay_mask
from wsss.report.predictions import (
    MASK,
    PHOTO,
    THUMBNAILS,
    Predicted,
    write_page,
    write_review,
    write_thumbnails,
)
from wsss.rundir import content_digest
from wsss.tasks.checkpoints import weights_digest
from wsss.tasks.segmentation import load_trained

OVERLAY = "_overlay.jpg"
"""Ending of an overlay."""

OVERLAY_SIDE = 2048
"""Longest side of an overlay in pixels: enough for a screen."""

PAGE = "predictions.html"
"""The page of ``html``."""

OVERLAYS: dict[str, Callable[..., npt.NDArray[np.uint8]]] = {
    "filled": overlay_mask,
    "contour": overlay_contour,
}
"""How masks are drawn over photos."""

GPU_THREADS = 4
"""Threads: enough to read and write while one of them uses the GPU."""

MOST_PROCESSES = 8
"""Each has a copy of the network, and of its activations."""

MANY = 64
"""From this many photos on it pays to start processes for the CRF, which uses one core. Without it they do not pay."""

SHOWN = 8
"""At most this many unreadable photos are named; all are counted."""

REVIEW = "review.csv"
"""What to look at first: image, confidence (mean probability of the chosen classes), per class, and what disagrees."""

Strips = Iterator[tuple[int, Tensor]]


class Unreadable(UserError):
    """Some photos, by the names of their outputs, could not be read. The others are predicted."""

    def __init__(self, message: str, names: Iterable[str]) -> None:
        super().__init__(message)
        self.names = frozenset(names)


@dataclass(frozen=True)
class PredictOptions:
    """What is predicted and what is written."""

    ms_flip: bool = False
    """Predict at several scales and mirrored."""
    scales: tuple[float, ...] = EvaluateConfig().scales
    """Scales of ``ms_flip``. The default is that of ``evaluate.scales``, not the run's own value."""
    crf: bool = False
    """Refine with the dense CRF, DeepLab's constants (the default of ``refine.soft_crf``), tile by tile."""
    tile: int = 1024
    """Photos with a longer side than this many pixels are predicted in overlapping tiles."""
    long_side: int | None = None
    """Shrink larger photos to this longer side for predicting; results have the photo's own size. None: as the
    training's photos were shrunk (``data.long_side``), if they were; 0: never shrink."""
    overlay: Literal["none", "filled", "contour"] = "none"
    """Also write ``<name>_overlay.jpg`` with a legend, the photo's longer side at most ``OVERLAY_SIDE``."""
    probabilities: bool = False
    """Also write ``<name>.npz``."""
    unsure: float | None = None
    """Pixels whose most probable class has less than this probability become 255."""
    tags: str | None = None
    """A label CSV: the classes that a photo may have. Photos that it does not name may have all."""
    review: bool = False
    """Also write ``REVIEW``: photos by confidence, the least certain first."""
    html: bool = False
    """Also write ``PAGE``, which shows all of them in that order, and its pictures in ``THUMBNAILS``."""
    skip_existing: bool = False
    """Skip photos whose files all exist; they must come from the same network and options."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        if self.tile < SMALLEST_TILE:
            raise UserError(
                f"--tile is {self.tile}, but a tile needs at least {SMALLEST_TILE} pixels per side"
            )
        if not self.scales or min(self.scales) <= 0:
            raise UserError(
                f"--scales is {list(self.scales)}, but must be scales above 0, for example [0.5,1]"
            )
        if self.long_side is not None and self.long_side < 0:
            raise UserError(
                f"--long_side is {self.long_side}, but must be a number of pixels, or 0 for the photo's own size"
            )

        if self.unsure is not None and not 0 < self.unsure <= 1:
            raise UserError(f"--unsure is {self.unsure}, but must be a probability above 0 and at most 1")

    def files(self, name: str) -> tuple[str, ...]:
        """The files of a photo, in the output. The mask comes last, because it is written last."""
        return (
            *((f"{name}{OVERLAY}",) if self.overlay != "none" else ()),
            *((f"{THUMBNAILS}/{name}{ending}" for ending in (PHOTO, MASK)) if self.html else ()),
            *((f"{name}.npz",) if self.probabilities else ()),
            f"{name}.png",
        )


def find_photos(paths: Sequence[Path], output: Path) -> dict[str, Path]:
    """Photos named on the command line, folders searched: output name -> file.

    Args:
        paths: photos or folders of photos; folders that `wsss predict` wrote are skipped.
        output: skipped too, even if nothing was written to it yet.

    Raises:
        UserError: a path does not exist, a folder has no photos, or two photos would get the same name.
    """
    photos: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            found = walk_images(path, nested=True, exclude=_no_photos(path, output))
            if not found:
                others = left_out(path, nested=True, exclude=_no_photos(path, output))
                raise UserError(f"{path} holds no photos ({others[0] if others else PHOTO_KINDS})")
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


def _no_photos(folder: Path, output: Path) -> list[Path]:
    """The folders in it that are not searched for photos: the output, and what `wsss predict` wrote before."""
    return [output, *(record.parent for record in folder.rglob(RECORD) if record.parent != folder)]


def predict_files(
    paths: Sequence[Path],
    checkpoint: Path,
    output: Path,
    options: PredictOptions | None = None,
    hardware: RuntimeConfig | None = None,
) -> str:
    """Write ``output/<name>.png`` (palette, size of the photo) for every photo, the files that ``options`` ask for, and
    ``RECORD``.

    Args:
        paths: photos or folders of photos.
        checkpoint: of a segmenter.
        output: folder; made if it is missing.
        options: what to predict and to write; None means ``PredictOptions()``.
        hardware: device and precision; None means ``RuntimeConfig()``.

    Returns:
        A table of the classes that were found and the number of photos with each; and whether the segmenter's backbone
        may have seen masks.

    Raises:
        UserError: unreadable checkpoint.
        Unreadable: unreadable photos; the others are predicted first.
    """
    options = options or PredictOptions()
    photos = find_photos(paths, output)
    _check_targets(photos, output, options)
    _check_strangers(photos, output, options)
    for folder in (path for path in paths if path.is_dir()):
        for note in left_out(folder, nested=True, exclude=_no_photos(folder, output)):
            runtime.say(note)
    trained = load_trained(checkpoint)
    classes, config = trained.classes, trained.config
    model: torch.nn.Module = trained.network
    options = replace(
        options, long_side=trained.long_side if options.long_side is None else options.long_side
    )
    record = _record(checkpoint, model, classes, config.mask_pretraining, options)
    tags = read_label_csv(Path(options.tags), classes[1:]) if options.tags else {}
    if options.tags and not tags.keys() & photos.keys():
        raise UserError(
            f"{options.tags} names none of the photos ({first(list(photos))}); its ids are the photos' names in their "
            "folder, without ending"
        )
    hardware = hardware or RuntimeConfig()
    todo = _to_do(photos, output, options, record)  # may delete masks, so all input was read before
    if todo:
        write_json(output / RECORD, record)
    found: Counter[int] = Counter()
    broken: dict[str, str] = {}
    odd: list[str] = []
    jobs = [(name, path, tags.get(name)) for name, path in todo.items()]
    with (
        runtime.bar(hardware, "predict", len(photos), len(photos) - len(todo)) as bar,
        closing(_predict_all(_Work(model, classes, output, options, hardware), checkpoint, jobs)) as done,
    ):
        for one in done:
            found.update(one.indices)
            broken |= {one.name: one.error} if one.error else {}
            odd += one.remarks
            bar.update(1)
    broken, odd = {name: broken[name] for name in todo if name in broken}, sorted(odd)
    if options.review or options.html:
        _write_lists(
            [_predicted(output, name, tags.get(name), classes, broken.get(name)) for name in photos],
            [file for path in paths if path.is_dir() for file in other_files(path, _no_photos(path, output))],
            record,
            output,
            options,
        )
    if odd:
        runtime.say(f"{len(odd)} odd photos: {first(odd)}")
    if broken:
        named = "; ".join(list(broken.values())[:SHOWN]) + "; …" * (len(broken) > SHOWN)
        raise Unreadable(f"{len(broken)} of {len(photos)} photos could not be read: {named}", broken)
    text = _summary(found, classes, len(todo), len(photos) - len(todo), output)
    return f"{text}\n{NOT_WEAK}" if config.mask_pretraining else text


@dataclass(frozen=True)
class _Done:
    """What is known of a photo when its files are written."""

    name: str
    indices: tuple[int, ...] = ()
    """The classes in its mask, background included."""
    remarks: tuple[str, ...] = ()
    """What is odd about the file."""
    error: str = ""
    """Why it could not be read."""


_Job = tuple[str, Path, Sequence[int] | None]
"""Name of the output, photo, and the classes that it may have (None: all)."""


class _Work:
    """Predicts one photo after the other and writes their files."""

    def __init__(
        self,
        model: torch.nn.Module,
        classes: Sequence[str],
        output: Path,
        options: PredictOptions,
        hardware: RuntimeConfig,
    ) -> None:
        self.model = runtime.prepare(model, hardware)
        self.classes, self.output, self.options, self.hardware = classes, output, options, hardware

    def __call__(self, job: _Job) -> _Done:
        name, path, allowed = job
        remarks: list[str] = []
        try:
            image = read_image(path, remarks)
        except UserError as error:
            return _Done(name, error=str(error))
        with torch.inference_mode(), runtime.autocast(self.hardware):
            predict = tile_predictor(self.model, runtime.device(self.hardware), self.options, allowed)
            mask = _predict_file(image, predict, self.classes, self.output, name, self.options)
        indices = (index for index in np.unique(mask).tolist() if index != IGNORE)
        return _Done(name, tuple(indices), tuple(f"{path} {remark}" for remark in remarks))


def _predict_all(work: _Work, checkpoint: Path, jobs: Sequence[_Job]) -> Generator[_Done]:
    """Predict all photos, in any order: in threads that share a GPU; on a CPU here, or, with the CRF, in processes."""
    hardware, options = work.hardware, work.options
    if runtime.device(hardware).type != "cpu":
        with ThreadPoolExecutor(GPU_THREADS) as threads:
            yield from unordered(threads, work, jobs, ahead=2 * GPU_THREADS)
        return
    workers = min(runtime.workers(hardware), MOST_PROCESSES) if options.crf and len(jobs) >= MANY else 0
    threads_each = max(1, runtime.workers(hardware) // max(1, workers))
    with pool(workers, threads_each) as processes:
        modules = tuple(Path(name).stem for name in plugins.files())
        there = partial(_work_there, modules, checkpoint, work.output, options, hardware)
        yield from unordered(processes, there if processes else work, jobs, ahead=2 * MOST_PROCESSES)


def _work_there(
    modules: tuple[str, ...],
    checkpoint: Path,
    output: Path,
    options: PredictOptions,
    hardware: RuntimeConfig,
    job: _Job,
) -> _Done:
    return _loaded(modules, checkpoint, output, options, hardware)(job)


@cache  # of a process that lives for one command
def _loaded(
    modules: tuple[str, ...],
    checkpoint: Path,
    output: Path,
    options: PredictOptions,
    hardware: RuntimeConfig,
) -> _Work:
    for module in modules:
        import_module(module)
    trained = load_trained(checkpoint)
    return _Work(trained.network, trained.classes, output, options, hardware)


def _write_lists(
    photos: Sequence[Predicted],
    others: Sequence[Path],
    record: Mapping[str, Any],
    output: Path,
    options: PredictOptions,
) -> None:
    """``REVIEW`` and ``PAGE``, as asked for; ``others`` are the files in the given folders that are no photos."""
    classes = record["classes"]
    if options.review:
        write_review(output / REVIEW, photos, classes)
    if options.html:
        facts = {"checkpoint": record["checkpoint"], "weights, SHA-256": record["weights_sha256"]}
        facts |= {name: str(value) for name, value in record["options"].items()}
        facts |= {"note": NOT_WEAK} if record["mask_pretraining"] else {}
        ending = ".png" if options.overlay == "none" else OVERLAY
        write_page(
            output / PAGE, photos, classes, [str(path) for path in others], list(facts.items()), ending
        )


def _record(
    checkpoint: Path,
    model: torch.nn.Module,
    classes: Sequence[str],
    mask_pretraining: bool,
    options: PredictOptions,
) -> dict[str, Any]:
    # The tags count with their content, whatever their file is called.
    tags = None if options.tags is None else content_digest(Path(options.tags))
    return {
        "classes": list(classes),
        "checkpoint": str(checkpoint),
        "weights_sha256": weights_digest(model),
        "mask_pretraining": mask_pretraining,
        "options": {**to_dict(options), "tags": tags},
        "made_by": f"wsss {__version__}",
    }


def _to_do(
    photos: Mapping[str, Path], output: Path, options: PredictOptions, record: dict[str, Any]
) -> Mapping[str, Path]:
    """The photos that are left to predict. Masks of another network or other options are refused, or deleted."""
    other = _differences(output / RECORD, record)
    if options.skip_existing:
        if other:
            raise UserError(
                f"the masks in {output} were made with a different {' and '.join(other)} (see {RECORD}): drop "
                "--skip_existing to make them again, or choose another --output"
            )
        return {name: path for name, path in photos.items() if not _is_done(name, output, options)}
    if other:  # otherwise, if this run is interrupted, the record would claim old masks as its own
        for name in photos:
            (output / f"{name}.png").unlink(missing_ok=True)
    return photos


def _differences(path: Path, record: dict[str, Any]) -> list[str]:
    """The options in which the existing masks, whose record is at ``path``, differ from ``record``."""
    if not path.is_file():
        return []
    before = read_object(path)
    made, wanted = before.get("options", {}), record["options"]
    shaping = (
        "ms_flip",
        *(("scales",) if wanted["ms_flip"] else ()),
        "crf",
        "tile",
        "long_side",
        "unsure",
        "tags",
        *(("overlay",) if "none" not in (made.get("overlay", "none"), wanted["overlay"]) else ()),
    )
    other = [f"--{key}" for key in shaping if made.get(key, wanted[key]) != wanted[key]]
    if before.get("weights_sha256", record["weights_sha256"]) != record["weights_sha256"]:
        other.insert(0, "--checkpoint")
    return other


def _is_done(name: str, output: Path, options: PredictOptions) -> bool:
    return all((output / file).is_file() for file in options.files(name))


def _check_targets(photos: Mapping[str, Path], output: Path, options: PredictOptions) -> None:
    """Raises UserError if an output file would replace one of the photos."""
    originals = {path.resolve() for path in photos.values()}
    for name in photos:
        for file in options.files(name):
            target = output / file
            if target.resolve() in originals:
                raise UserError(
                    f"{target} is one of the photos and would be overwritten; choose another --output"
                )


def _check_strangers(photos: Mapping[str, Path], output: Path, options: PredictOptions) -> None:
    """Raises UserError if `wsss predict` would replace a file that it did not write: a true mask, perhaps."""
    if (output / RECORD).is_file():
        return
    kept = {name for name in photos if options.skip_existing and _is_done(name, output, options)}
    lists = [*([REVIEW] if options.review else []), *([PAGE] if options.html else [])]
    for file in chain(lists, *(options.files(name) for name in photos if name not in kept)):
        target = output / file
        if target.is_file():
            rest = "or remove it" if options.skip_existing else "remove it, or keep it with --skip_existing"
            raise UserError(
                f"{target} exists, and wsss predict did not write it ({output} has no {RECORD}); choose another "
                f"--output, {rest}"
            )


def _summary(found: Mapping[int, int], classes: Sequence[str], new: int, kept: int, output: Path) -> str:
    """The number of photos, and below it a row for each class that was found: index, name, number of photos."""
    rows = [f"{index:5}  {classes[index]:<20}{found[index]:6}" for index in sorted(found)]
    head = f"{new} photos predicted, masks in {output}" + (f"; {kept} were there already" if kept else "")
    return "\n".join([head, *(["index  class               photos", *rows] if rows else [])])


# -- one photo --------------------------------------------------------------------------------------


def tile_predictor(
    model: torch.nn.Module,
    device: torch.device,
    options: PredictOptions,
    allowed: Sequence[int] | None = None,
) -> Callable[[Tensor], Tensor]:
    """The function (3, h, w) uint8 RGB -> (C, h, w) float32 probabilities that every tile goes through.

    ``allowed`` are the classes that the photo may have besides the background, None: all.
    """
    scales = options.scales if options.ms_flip else (1.0,)
    constants = RefineParameters().soft_crf

    def predict(tile: Tensor) -> Tensor:
        images = normalize_image(tile[None].to(device))
        probabilities = predict_probabilities(model, images, scales, flip=options.ms_flip)[0].float().cpu()
        if allowed is not None:
            kept = torch.zeros(len(probabilities), 1, 1)
            kept[[BACKGROUND, *allowed]] = 1
            probabilities = probabilities * kept
            probabilities = probabilities / probabilities.sum(0).clamp(min=1e-12)
        return _refined(probabilities, tile, constants) if options.crf else probabilities

    return predict


def _refined(probabilities: Tensor, tile: Tensor, constants: CRFParameters) -> Tensor:
    photo = np.ascontiguousarray(tile.permute(1, 2, 0).numpy())
    return torch.from_numpy(crf_probabilities(probabilities.numpy(), photo, constants))


def decide(
    strips: Strips,
    size: tuple[int, ...],
    unsure: float | None,
    stored: npt.NDArray[np.float16] | None = None,
) -> tuple[npt.NDArray[np.uint8], Confidence]:
    """The mask (H, W) of a photo from its probabilities, and how sure it is.

    Args:
        strips: of `photo_strips`.
        size: (H, W) of the photo.
        unsure: pixels whose highest probability is below it become 255.
        stored: (C, H, W), gets the probabilities; None: nobody needs them.
    """
    mask, tally = np.empty(size, np.uint8), Tally()
    for top, probabilities in strips:
        rows = slice(top, top + probabilities.shape[1])
        best, labels = probabilities.max(0)
        mask[rows] = labels.to(torch.uint8).masked_fill(best < (unsure or 0), IGNORE).numpy()
        tally.add(best.numpy(), mask[rows])
        if stored is not None:
            stored[:, rows] = probabilities.numpy()
    return mask, tally.confidence()


def _predict_file(
    image: npt.NDArray[np.uint8],
    predict: Callable[[Tensor], Tensor],
    classes: Sequence[str],
    output: Path,
    name: str,
    options: PredictOptions,
) -> npt.NDArray[np.uint8]:
    """Predict one photo and write its files; returns the mask."""
    size = image.shape[:2]
    stored = np.empty((len(classes), *size), np.float16) if options.probabilities else None
    strips = photo_strips(to_tensor(image), predict, options)
    mask, confidence = decide(strips, size, options.unsure, stored)
    draw = OVERLAYS.get(options.overlay, overlay_mask)
    if options.overlay != "none":
        drawn = draw(shrink(image, OVERLAY_SIDE), shrink(mask, OVERLAY_SIDE))
        _write_jpeg(output / f"{name}{OVERLAY}", with_legend(drawn, _legend_of(mask, classes)))
    if options.html:
        write_thumbnails(output, name, image, mask, draw)
    if stored is not None:
        write_probabilities(output / f"{name}.npz", stored, classes)
    write_mask(output / f"{name}.png", mask, confidence)
    return mask


def _legend_of(
    mask: npt.NDArray[np.uint8], classes: Sequence[str]
) -> list[tuple[str, tuple[int, int, int] | None]]:
    """Names and colours of what is in a mask; 255 has no colour."""
    found: list[tuple[str, tuple[int, int, int] | None]] = [
        (classes[index], colour_of(index)) for index in classes_in(mask)
    ]
    return found + ([("not decided", None)] if IGNORE in mask else [])


def _predicted(
    output: Path, name: str, tags: Sequence[int] | None, classes: Sequence[str], error: str | None
) -> Predicted:
    """What is known of a photo, from its mask's file."""
    if error is not None:
        return Predicted(name, problem=error, failed=True)
    path = output / f"{name}.png"
    found = classes_in(read_mask(path))
    if found and found[-1] >= len(classes):
        raise UserError(
            f"{path} holds the class index {found[-1]}, but the segmenter has {len(classes) - 1} classes, so wsss "
            "predict did not write it; move it away, or choose another --output"
        )
    absent = [classes[index] for index in tags or () if index not in found]
    problem = f"no pixel of {', '.join(absent)}" if absent else ""
    return Predicted(name, tuple(found), read_confidence(path), problem)


def photo_strips(image: Tensor, predict: Callable[[Tensor], Tensor], options: PredictOptions) -> Strips:
    """Probabilities of a photo from top to bottom, at its own size.

    Args:
        image: (3, H, W) uint8 RGB.
        predict: of a tile, see `tile_predictor`.
        options: ``tile`` and ``long_side`` are used.

    Yields:
        (first row, (C, rows, W) float32): strips that follow each other without gap and cover the photo.
    """
    side = options.long_side
    if not side or max(image.shape[-2:]) <= side:
        yield from blended_rows(image, predict, options.tile)
        return
    small = resize_long_side(image, side)
    strips = [strip for _, strip in blended_rows(small, predict, options.tile)]
    yield from enlarged_rows(torch.cat(strips, dim=1), (image.shape[-2], image.shape[-1]))


def enlarged_rows(probabilities: Tensor, size: tuple[int, int], rows: int = 256) -> Strips:
    """Bilinear upsampling to ``size``, in strips, so that the whole is never in memory.

    Args:
        probabilities: (C, h, w) float32.
        size: (H, W), at least (h, w).
        rows: height of a strip.

    Yields:
        (first row, (C, at most rows, W) float32), together what ``interpolate(align_corners=False)`` gives.
    """
    wide = functional.interpolate(
        probabilities, size=size[1], mode="linear", align_corners=False
    )  # rows act as channels: only the width grows
    height = wide.shape[1]
    centre = ((torch.arange(size[0]) + 0.5) * (height / size[0]) - 0.5).clamp(0, height - 1)
    upper = centre.floor().long().clamp(max=max(0, height - 2))
    lower, share = (upper + 1).clamp(max=height - 1), (centre - upper)[:, None]
    for top in range(0, size[0], rows):
        part = slice(top, top + rows)
        yield top, torch.lerp(wide[:, upper[part]], wide[:, lower[part]], share[part])


# -- files ------------------------------------------------------------------------------------------


def write_probabilities(path: Path, probabilities: npt.NDArray[np.float16], classes: Sequence[str]) -> None:
    """Writes a compressed .npz without pickles, atomically.

    It holds ``probabilities`` float16 (C, H, W), background first, and ``classes``, the C names (str).

    Raises:
        UserError: the disk refuses.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as stream:  # a stream: savez would add a suffix
        np.savez_compressed(stream, probabilities=probabilities, classes=np.array(classes, dtype=np.str_))


def _write_jpeg(path: Path, image: npt.NDArray[np.uint8]) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="JPEG", quality=90)
