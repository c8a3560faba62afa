"""Self-training: a trained segmenter labels the training photos again, for the next training to learn from.

    1. the network's probabilities of a photo, mean of the photo and its mirror image
    2. restricted to the background and the classes on the photo's image label, and renormalised
    3. dense CRF (``refine.soft_crf``); what its posterior is not sure of becomes 255 (``refine.posterior_limit``)

One scale: several would repeat what the augmentation of the training has taught the network to ignore, at several
times the cost, and hurt where it was trained at one scale (`configs/shapes.yaml`). No true mask takes part.

Round t of N trains on the masks of round t - 1 (round 0: of the refinement) from the initial weights. It writes
``rounds/t/``, with the layout of a run directory; the last one only trains and writes ``segmenter/``.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsss import runtime
from wsss.config import Config, RuntimeConfig
from wsss.data.dataset import Record
from wsss.data.labels import BACKGROUND
from wsss.data.modules import Photo, same_size_batches
from wsss.data.transforms import normalize_image
from wsss.models.segmenter import Segmenter, predict_probabilities
from wsss.parallel import unordered
from wsss.refine import stage as refine
from wsss.rundir import ROUNDS, RunDirectory

SMALLEST_PROBABILITY = 1e-12
"""Keeps the renormalisation finite where the network gives everything to classes that are not on the label."""


def restrict(probabilities: Tensor, labels: Sequence[int]) -> Tensor:
    """Probabilities given that the photo holds nothing but the classes on its label.

    Args:
        probabilities: (C, H, W), background first.
        labels: the K mask indices (1..C - 1) on the photo's image label.

    Returns:
        (K + 1, H, W) float32, background first, sums to one.
    """
    chosen = probabilities[[BACKGROUND, *labels]].float().clamp(min=SMALLEST_PROBABILITY)
    return chosen / chosen.sum(0, keepdim=True)


def relabel(
    network: Segmenter, records: Sequence[Record], run: RunDirectory, config: Config, title: str
) -> None:
    """Write ``pseudo_labels/`` and ``pseudo_masks/`` of every record that lacks them, as the refinement does.

    Args:
        network: trained on these photos; none of their masks is read.
        records: training photos with image labels.
        run: of the round.
        config: of the run, with a chosen background rule. ``segmenter.confidence_weighted`` also writes
            ``pseudo_confidence/``.
        title: of the progress bar.
    """
    hardware, weighted = config.runtime, config.segmenter.confidence_weighted
    todo = [record for record in records if not refine.is_done(run, record, weighted)]
    device, workers = runtime.device(hardware), runtime.workers(hardware)
    gpu = str(device) if device.type == "cuda" and config.refine.backend != "pydensecrf" else None
    settings = refine.parameters(config.refine)
    write = partial(refine.write_probabilities, run, settings, config.refine.backend, gpu, weighted)
    with (
        runtime.bar(hardware, title, len(records), len(records) - len(todo)) as bar,
        refine.crf_pool(min(workers, len(todo)), gpu) as executor,
    ):
        for _ in unordered(executor, write, _predicted(network, todo, hardware), ahead=2 * workers):
            bar.update(1)


def _predicted(
    network: Segmenter, records: Sequence[Record], hardware: RuntimeConfig
) -> Iterator[tuple[Record, npt.NDArray[np.float32]]]:
    """Every record with its restricted probabilities (K + 1, H, W).

    One photo at a time: the rounding of its probabilities must not depend on which other photos are still to do.
    """
    network = runtime.prepare(network, hardware)  # type: ignore[assignment]
    for photos in same_size_batches(records, 1, workers=runtime.loader_workers(hardware)):
        for photo in photos:
            found = restrict(_probabilities(network, photo, hardware), photo.record.labels or ())
            yield photo.record, found.cpu().numpy()


def _probabilities(network: Segmenter, photo: Photo, hardware: RuntimeConfig) -> Tensor:
    images = normalize_image(photo.image[None].to(runtime.device(hardware)))
    with torch.inference_mode(), runtime.autocast(hardware):
        return predict_probabilities(network, images, flip=True)[0]


def is_done(records: Sequence[Record], run: RunDirectory, config: Config) -> bool:
    """Whether all masks of a round are there."""
    return all(refine.is_done(run, record, config.segmenter.confidence_weighted) for record in records)


# -- another number of rounds ----------------------------------------------------------------------


def keep_networks(run: RunDirectory, published: int, rounds: Mapping[int, str], self_train: str) -> list[str]:
    """Move the networks to where this number of rounds looks for them, so that none is trained twice.

    Round t's training is the same whatever their number: of t rounds it is ``segmenter/``, of more
    ``rounds/t/segmenter/``. Cut off between two steps, the next call ends in the same state.

    Args:
        run: the run directory.
        published: the number of rounds.
        rounds: round -> fingerprint that the stage `segment` has where it is the last.
        self_train: fingerprint of the stage `self_train`.

    Returns:
        Sentences for the user about what was moved.
    """
    folder = run.root / "segmenter"
    stored = run.read_manifest().get("stages", {}).get("segment", {})
    made = next((turn for turn, value in rounds.items() if value == stored.get("fingerprint")), None)
    told = []
    if made is not None and made != published and folder.is_dir():
        if run.stage_state("self_train", self_train) in ("missing", "stale"):
            run.clear((ROUNDS,))
            entry = {"fingerprint": self_train, "state": "running", "seconds": stored.get("seconds", 0.0)}
            run.replace("self_train", entry)
        target = run.round(made).root / "segmenter"
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
        told.append(f"the network of round {made} moves to {target}")
    earlier = run.round(published).root / "segmenter"
    known = run.stage_state("self_train", self_train) not in ("missing", "stale")
    needed = made != published or not folder.is_dir()
    if known and needed and earlier.is_dir():
        run.clear(("segmenter",))
        run.replace("segment", {"fingerprint": rounds[published], "state": "running"})
        earlier.rename(folder)
        told.append(f"the network of round {published} moves to {folder}")
    return told
