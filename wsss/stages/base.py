"""What a stage is, what it gets, and the stamps of its input files for its fingerprint.

A stage's fingerprint is a hash of what it reads and of the fingerprints of the stages that it follows (see
``rundir``); ``runner`` decides by it what to run.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from wsss import runtime
from wsss.config import Config
from wsss.data.dataset import Dataset, Record, evenly
from wsss.data.files import image_size
from wsss.data.modules import Augmented, train_loader
from wsss.parallel import rank_and_world
from wsss.rundir import RunDirectory, StageState, content_digest, file_stamp
from wsss.runtime import say


@dataclass(frozen=True)
class Context:
    """What every stage gets."""

    config: Config
    dataset: Dataset
    run: RunDirectory


def _nothing(context: Context) -> Iterable[Path]:
    return ()


def _needs_nothing(context: Context, state: StageState) -> int:
    return 0


def _always(config: Config) -> bool:
    return True


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline."""

    title: str
    work: Callable[[Context], dict[str, Any]]
    """Does the work. Returns facts for the manifest, including the number of ``images``."""
    reads: Callable[[Config, Dataset], Any]
    """The part of the configuration and of the data set that its result depends on (JSON)."""
    follows: Callable[[Config], tuple[str, ...]]
    """The stages whose results it builds on."""
    writes: tuple[str, ...] = ()
    """Its files and folders in the run directory. They are removed when it becomes stale."""
    files: Callable[[Context], Iterable[Path]] = _nothing
    """The files that must exist when it is done."""
    wanted: Callable[[Config], bool] = _always
    """Whether this configuration asks for it at all."""
    check: Callable[[Context, StageState], int] = _needs_nothing
    """Raises UserError if it could not succeed. Returns how many bytes it will write, roughly and at least. Called with
    its state, unless it is done, before anything is written."""
    trains: bool = False
    """Whether it trains a network. A finished one is replaced only with ``--overwrite``."""
    shared: bool = False
    """Whether several processes write its files (see ``shards``). A training is always shared."""


def after(*names: str) -> Callable[[Config], tuple[str, ...]]:
    """``Stage.follows`` of a stage that follows the same stages under every configuration."""
    return lambda config: names


def tell(sentences: Iterable[str]) -> None:
    """Print what the user should know of a stage, below its title; process 0 speaks for all (see ``shards``)."""
    if rank_and_world()[0] == 0:
        for sentence in sentences:
            say(f"  {sentence}")


def unused(section: str, values: Any, names: Iterable[str], reason: str) -> list[str]:
    """One sentence for every named setting of a section that was changed from its default and has no effect."""
    default = type(values)()
    return [
        f"{section}.{name} is {getattr(values, name)}, but has no effect: {reason}"
        for name in names
        if getattr(values, name) != getattr(default, name)
    ]


def batches(context: Context, data: Augmented, size: int) -> DataLoader[Any]:
    """Loader of augmented training batches, as `runtime` says; ``size`` counts all devices together."""
    hardware = context.config.runtime
    return train_loader(
        data,
        size,
        context.config.seed,
        runtime.loader_workers(hardware),
        rank_and_world()[1],
        pin=runtime.device(hardware).type == "cuda",
    )


# -- stamps -----------------------------------------------------------------------------------------


def train_inputs(dataset: Dataset) -> list[Any]:
    """The training photos and their image labels."""
    return [[record.id, record.labels, file_stamp(record.image)] for record in dataset.train]


def train_truth(dataset: Dataset) -> list[Any]:
    """The true masks of the training photos."""
    return [[record.id, file_stamp(record.mask)] for record in dataset.train if record.mask is not None]


def val_inputs(dataset: Dataset) -> list[Any]:
    """The validation photos and their true masks."""
    return [[r.id, file_stamp(r.image), r.mask and file_stamp(r.mask)] for r in dataset.val]


def weights_stamp(config: Config, value: str) -> Any:
    """A weights file counts with its content, because all files of one architecture have the same size.

    What is trained needs its initial weights no more: if the file is gone, it counts as the run directory remembers it.
    """
    if value in ("imagenet", "none", "classifier"):
        return value
    remembered = RunDirectory(Path(config.output)).read_manifest().get("weights", {})
    return [value, content_digest(Path(value)) or remembered.get(value)]


def weights_digests(config: Config) -> dict[str, str]:
    """File of initial weights -> SHA-256 of its content, for the manifest."""
    files = {config.classifier.weights, config.segmenter.weights}
    files |= {other.weights for other in config.extend.networks if other.architecture != "classifier"}
    return {name: digest for name in sorted(files) if (digest := content_digest(Path(name)))}


# -- disk -------------------------------------------------------------------------------------------

MASK_BYTES = 0.02
"""Bytes per pixel of a mask as PNG."""


def bytes_of_masks(records: Sequence[Record], folders: int) -> int:
    """Roughly the size of a mask for each photo in so many folders."""
    some = evenly(records, 20)
    pixels = sum(height * width for height, width in (image_size(record.image) for record in some))
    return int(MASK_BYTES * pixels / max(1, len(some)) * len(records) * folders)


def bytes_of_training(task: nn.Module) -> int:
    """Size of ``last.ckpt`` and ``best.ckpt``, and of a third that is being written: weights and momentum."""
    return 3 * sum(
        value.numel() * value.element_size() * (2 if value.requires_grad else 1)
        for value in (*task.parameters(), *task.buffers())
    )
