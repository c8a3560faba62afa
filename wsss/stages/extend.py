"""The extension stage: grows what the saliency marks to whole objects, without masks.

`walk` spreads each photo's saliency by a random walk. It goes between cells that look alike to the inner layers of the
classifier, or of other frozen networks (`extension.affinity`). `pixels` first learns what the seeds have in common
(`extension.pixels`):

    1. on some photos, the saliency is walked, and its clear cells become labels
    2. a linear classifier of cells is trained on them, on frozen features
    3. its probabilities, restricted to each photo's labels, are walked, and the clear cells become the new labels
    4. steps 2 and 3 are repeated; then every photo gets the probabilities of its cells, after a finer walk

The CRF then starts from these probabilities instead of thresholded saliency.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wsss import runtime
from wsss.config import Config, ExtendConfig, FeatureConfig, RuntimeConfig, to_dict
from wsss.data.dataset import Record, evenly
from wsss.data.files import Saliency, image_size, read_arrays, read_saliency, write_arrays, write_saliency
from wsss.data.labels import BACKGROUND, IGNORE
from wsss.data.modules import Photo, load_batches, same_size_batches
from wsss.data.transforms import normalize_image
from wsss.errors import UserError
from wsss.extension.affinity import (
    activations,
    affinity,
    calibrated_power,
    cells,
    grid,
    last_stages,
    random_walk,
    similarity,
)
from wsss.extension.pixels import fit, probabilities, probable_labels, seed_labels
from wsss.models.imagenet_classifier import load_features
from wsss.models.maps import find_layer
from wsss.parallel import rank_and_world
from wsss.rundir import CALIBRATION, CLASSIFIER, EXTENDED, EXTENSION, RunDirectory, StageState
from wsss.saliency import normalize, upsample
from wsss.stages.base import Context, Stage, after, tell, unused, weights_stamp
from wsss.stages.shards import shares, wait_for_file
from wsss.tasks.classification import load_classifier

LEARN_STRIDE, WALK_STRIDE = 16, 8
"""Pixels per cell: on which the classifier of cells learns and answers, and of the last walk."""
LEARN_RADIUS = 6
"""Radius of the walks on the coarse grid, in its cells. In pixels it is the default radius on the fine grid."""

READ = {
    "none": (),
    "walk": ("backbone", "radius", "power", "steps"),
    "pixels": ("backbone", "photos", "rounds", "low", "high", "balance", "radius", "power", "steps"),
}
"""Method -> the settings of ``extend`` that it reads."""

SHRUNK = 0.5
"""Share of the objects' clear cells that must be left after the rounds. Below it the user is warned."""


MEMORY = 8 * 2**30
"""Bytes of features that the classifier of cells learns from, at most."""

CALIBRATED_ON = 24
"""Photos on which the power of the walk is chosen."""


class Features:
    """Frozen networks, and the layers of each that are looked at."""

    def __init__(self, networks: Sequence[tuple[nn.Module, Sequence[str]]], hardware: RuntimeConfig) -> None:
        """Move the networks to the device."""
        self.networks = [(runtime.prepare(network, hardware), tuple(layers)) for network, layers in networks]
        self.hardware = hardware

    def __call__(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Photos (B, 3, H, W) in [0, 1] -> maps of the layers that the walk compares, and of the others.

        Of each network the walk compares all layers but the last.
        """
        images = normalize_image(images.to(runtime.device(self.hardware)))
        compared, others = [], []
        with runtime.autocast(self.hardware):
            for network, layers in self.networks:
                maps = activations(network, images, layers)
                compared += maps[:-1] or maps
                others += maps[-1:] if len(maps) > 1 else []
        return compared, others

    def power(self, records: Sequence[Record]) -> float:
        """The power of the walk for these networks, chosen on some of the photos without masks."""
        samples = []
        some = evenly(records, CALIBRATED_ON)
        for photos in load_batches(
            [[record] for record in some], workers=runtime.loader_workers(self.hardware)
        ):
            images = photos[0].image[None]
            compared = cells(self(images)[0], grid(images, LEARN_STRIDE))[0]
            samples.append(similarity(compared, LEARN_RADIUS))
        return calibrated_power(samples)


@dataclass
class Lesson:
    """A photo that the classifier of cells learns from."""

    rows: slice
    """Its cells in the matrix of all features."""
    size: tuple[int, int]
    classes: tuple[int, ...]


class PixelExtension:
    """Frozen networks and the constants; ``config.power`` is a number."""

    def __init__(self, features: Features, config: ExtendConfig, hardware: RuntimeConfig) -> None:
        self.features, self.config, self.hardware = features, config, hardware

    def learn(self, records: Sequence[Record], run: RunDirectory, classes: int, seed: int) -> nn.Linear:
        """Steps 1 to 3: the classifier of cells.

        Raises:
            UserError: the saliency marks nothing to learn from.
        """
        features, lessons, depth = self._read(records, run)
        labels = torch.cat([self._first_labels(run, features, depth, *pair) for pair in lessons])
        objects = _objects(labels)
        title, rounds = "learn cells", range(self.config.rounds)
        for turn in runtime.progress(rounds, self.hardware, title, len(rounds), unit="round"):
            if not bool((labels != IGNORE).any()):
                raise UserError(
                    "no cell of the saliency is clear enough to learn from; lower --extend.high, raise "
                    "--extend.low, or set --extend.method none"
                )
            layer = fit(features, labels, classes, self.config.balance, seed)
            if turn + 1 < self.config.rounds:
                labels = torch.cat([self._next_labels(layer, features, depth, one) for _, one in lessons])
        if _objects(labels) < SHRUNK * objects:
            print(
                f"  the objects shrank while learning, from {objects:.0%} of the clear cells to "
                f"{_objects(labels):.0%}: "
                "the masks will be mostly background. Are the maps in saliency/ right? If so, try --extend.method walk",
                file=sys.stderr,
            )
        return layer

    def _read(
        self, records: Sequence[Record], run: RunDirectory
    ) -> tuple[Tensor, list[tuple[Record, Lesson]], int]:
        """Features (N, D) float16 of all cells of the photos, where each photo's cells are, and how many of the D
        features belong to the layers of the walk."""
        records = self._affordable(records)
        features, lessons, end, depth = torch.zeros(0), [], 0, 0
        total = sum(_cells(image_size(record.image)) for record in records)
        with runtime.bar(self.hardware, "read cells", len(records), 0) as bar:
            for photos in load_batches(
                same_size_batches(records, 4), workers=runtime.loader_workers(self.hardware)
            ):
                images = torch.stack([photo.image for photo in photos])
                compared, others = self.features(images)
                depth = sum(part.shape[1] for part in compared)
                found = cells([*compared, *others], grid(images, LEARN_STRIDE))
                if end == 0:
                    features = torch.empty((total, found.shape[1]), dtype=torch.float16)
                for photo, part in zip(photos, found, strict=True):
                    rows = slice(end, end + part[0].numel())
                    features[rows] = part.flatten(1).T.cpu()
                    size = (part.shape[-2], part.shape[-1])
                    lessons.append((photo.record, Lesson(rows, size, tuple(photo.record.labels or ()))))
                    end = rows.stop
                bar.update(len(photos))
        return features, lessons, depth

    def _affordable(self, records: Sequence[Record]) -> Sequence[Record]:
        """As many of the photos, evenly spaced, as have room in memory."""
        (first,) = next(load_batches([[records[0]]]))
        compared, others = self.features(first.image[None])
        depth = sum(part.shape[1] for part in (*compared, *others))
        size = 2 * depth * sum(_cells(image_size(record.image)) for record in records)
        if size <= MEMORY:
            return records
        count = max(1, int(len(records) * MEMORY / size))
        tell([f"learns from {count} photos instead of {len(records)}: more features do not fit in 8 GB"])
        return evenly(records, count)

    def _first_labels(
        self, run: RunDirectory, features: Tensor, depth: int, record: Record, lesson: Lesson
    ) -> Tensor:
        stored = read_saliency(run.saliency(record.id))
        maps = normalize(upsample(torch.from_numpy(stored.maps.astype(np.float32)), lesson.size), "max")
        maps = self._walk(features, depth, lesson, maps, self.config.steps)
        classes = [int(index) for index in stored.classes]
        return seed_labels(normalize(maps, "max"), classes, self.config.low, self.config.high).flatten()

    def _next_labels(self, layer: nn.Linear, features: Tensor, depth: int, lesson: Lesson) -> Tensor:
        found = probabilities(layer, _image(features[lesson.rows], lesson.size), lesson.classes)
        found = self._walk(features, depth, lesson, found, self.config.steps // 2)
        return probable_labels(found, lesson.classes).flatten()

    def _walk(self, features: Tensor, depth: int, lesson: Lesson, maps: Tensor, steps: int) -> Tensor:
        """A walk on the coarse grid of one of the photos to learn from; maps (K, h, w)."""
        if len(maps) == 0 or steps == 0:
            return maps
        compared = nn.functional.normalize(_image(features[lesson.rows, :depth], lesson.size), dim=0)
        return random_walk(maps, affinity(compared, LEARN_RADIUS, _number(self.config.power)), steps)

    @torch.no_grad()
    def apply(self, layer: nn.Linear, photo: Photo) -> Saliency:
        """Step 4: probabilities of one photo, background first, on the fine grid."""
        classes = tuple(photo.record.labels or ())
        images = photo.image[None]
        size = (photo.image.shape[1], photo.image.shape[2])
        if not classes:
            return _archive((), torch.ones((1, *grid(images, WALK_STRIDE))), size)
        inner, others = self.features(images)
        found = probabilities(layer, cells([*inner, *others], grid(images, LEARN_STRIDE))[0], classes)
        compared = cells(inner, grid(images, WALK_STRIDE))[0]
        transition = affinity(compared, self.config.radius, _number(self.config.power))
        found = upsample(found, (compared.shape[-2], compared.shape[-1]))
        return _archive(classes, random_walk(found, transition, self.config.steps // 2), size)


def write_pixels(
    extension: PixelExtension, layer: nn.Linear, records: Sequence[Record], run: RunDirectory
) -> None:
    """Write ``extended/<id>.npz`` for every record that lacks it: probabilities."""
    layer = layer.to(runtime.device(extension.hardware))
    _write(records, run, extension.hardware, lambda photo: extension.apply(layer, photo))


@torch.no_grad()
def write_walks(
    features: Features,
    config: ExtendConfig,
    records: Sequence[Record],
    run: RunDirectory,
    hardware: RuntimeConfig,
) -> None:
    """Write ``extended/<id>.npz`` for every record that lacks it: saliency after the walk."""

    def extend(photo: Photo) -> Saliency:
        stored = read_saliency(run.saliency(photo.record.id))
        maps = torch.from_numpy(stored.maps.astype(np.float32)).to(runtime.device(hardware))
        if len(maps) and config.steps:
            images = photo.image[None]
            compared = cells(features(images)[0], grid(images, WALK_STRIDE))[0]
            transition = affinity(compared, config.radius, _number(config.power))
            maps = random_walk(
                upsample(maps, (compared.shape[-2], compared.shape[-1])), transition, config.steps
            )
        maps = normalize(maps, "max").clamp(0, 1)
        return Saliency(stored.classes, maps.cpu().numpy().astype(np.float16), stored.size)

    _write(records, run, hardware, extend)


def _write(
    records: Sequence[Record], run: RunDirectory, hardware: RuntimeConfig, extend: Callable[[Photo], Saliency]
) -> None:
    todo = [record for record in records if not run.maps(EXTENDED, record.id).is_file()]
    with runtime.bar(hardware, "extend", len(records), len(records) - len(todo)) as bar:
        for photos in load_batches(same_size_batches(todo, 1), workers=runtime.loader_workers(hardware)):
            for photo in photos:
                path = run.maps(EXTENDED, photo.record.id)
                if (
                    not path.is_file()
                ):  # another process may have written it meanwhile (see `wsss.stages.shards`)
                    write_saliency(path, extend(photo))
            bar.update(len(photos))


def sample(records: Sequence[Record], config: ExtendConfig) -> list[Record]:
    """The photos to learn from."""
    return evenly([record for record in records if record.labels], config.photos)


def write_layer(path: Path, layer: nn.Linear) -> None:
    """The classifier of cells, without pickles."""
    write_arrays(path, {name: value.detach().cpu().numpy() for name, value in layer.state_dict().items()})


def read_layer(path: Path) -> nn.Linear:
    """What `write_layer` wrote. Raises UserError if the file is damaged, or holds something else."""
    arrays = read_arrays(path, ("weight", "bias"))
    weight, bias = arrays["weight"], arrays["bias"]
    fits = weight.ndim == 2 and weight.size and bias.shape == weight.shape[:1]
    if not fits or not weight.dtype == bias.dtype == np.float32:
        raise UserError(f"{path} holds no classifier of cells: remove it and run `wsss refine` again")
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return layer.requires_grad_(False)


def _objects(labels: Tensor) -> float:
    """Share of object cells among the cells with a label."""
    clear = labels[labels != IGNORE]
    return float((clear != BACKGROUND).float().mean()) if len(clear) else 0.0


def _archive(classes: tuple[int, ...], maps: Tensor, size: tuple[int, int]) -> Saliency:
    indices = np.array([BACKGROUND, *classes], dtype=np.int16)
    return Saliency(indices, maps.clamp(0, 1).cpu().numpy().astype(np.float16), size)


def _image(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """(h * w, D) of any precision -> (D, h, w) float32."""
    return rows.float().T.reshape(-1, *size)


def _cells(size: tuple[int, int]) -> int:
    return -(-size[0] // LEARN_STRIDE) * -(-size[1] // LEARN_STRIDE)


def extend(context: Context) -> dict[str, Any]:
    """Maps of all training photos that cover whole objects."""
    config, run, records = context.config, context.run, context.dataset.train
    settings, hardware = config.extend, config.runtime
    names = [
        field.name for field in fields(settings) if field.name not in ("method", *READ[config.extension])
    ]
    tell(unused("extend", settings, names, f"the extension is {config.extension} (extend.method)"))
    if config.extension == "none":
        return {"images": 0}
    features = Features([frozen_network(context, one) for one in settings.networks], hardware)
    power = settings.power or features.power(records)
    facts: dict[str, Any] = {"images": len(records), "power": power}
    settings = replace(settings, power=power)
    if config.extension == "walk":
        for part in shares(records):
            write_walks(features, settings, part, run, hardware)
        return facts
    pixels = PixelExtension(features, settings, hardware)
    if not run.extension.is_file():
        if rank_and_world()[0] == 0:
            layer = pixels.learn(
                sample(records, settings), run, len(context.dataset.class_names), config.seed
            )
            write_layer(run.extension, layer)
        else:
            wait_for_file(run.extension)
    layer = read_layer(run.extension)
    for part in shares(records):
        write_pixels(pixels, layer, part, run)
    return facts


def frozen_network(context: Context, settings: FeatureConfig) -> tuple[nn.Module, Sequence[str]]:
    """A frozen network and its layers."""
    if settings.architecture == "classifier":
        path = context.run.checkpoint(CLASSIFIER, context.config.saliency.checkpoint)
        network = load_classifier(path)[0]
    else:
        network = load_features(settings.architecture, settings.weights, "extend.backbone")
    for layer in settings.layers:
        find_layer(network, layer)
    return network, settings.layers or last_stages(network)


def _number(power: float | None) -> float:
    if power is None:
        raise ValueError("the power of the walk has not been chosen yet")
    return power


def _check(context: Context, state: StageState) -> int:
    """Builds the other networks, so that an error in them is reported before hours of training."""
    if context.config.extension != "none":
        for other in context.config.extend.networks:
            if other.architecture != "classifier":
                frozen_network(context, other)
    return 0


def _settings(config: Config) -> list[Any]:
    """The extension's method, and the settings that this method reads."""
    settings, kind = to_dict(config.extend), config.extension
    read = {name: settings[name] for name in READ[kind]}
    if "backbone" in read:
        read["backbone"] = [
            [other.architecture, other.layers]
            if other.architecture == "classifier"
            else [other.architecture, weights_stamp(config, other.weights), other.layers]
            for other in config.extend.networks
        ]
    return [kind, read, config.seed] if kind == "pixels" else [kind, read]


EXTEND = Stage(
    "from the saliency to whole objects",
    extend,
    reads=lambda config, data: _settings(config),
    follows=after("saliency"),
    writes=(EXTENDED, EXTENSION, CALIBRATION),
    shared=True,
    files=lambda context: [
        context.run.maps(EXTENDED, record.id)
        for record in context.dataset.train
        if context.config.extension != "none"
    ],
    check=_check,
)
