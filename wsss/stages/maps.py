"""The stored maps of a training photo, as the refinement and the scores read them."""

from wsss.data.dataset import Record
from wsss.data.files import Saliency, read_saliency
from wsss.data.labels import BACKGROUND
from wsss.refine.background import Maps, prepare_maps, prepare_probabilities
from wsss.rundir import SALIENCY, RunDirectory


def load_maps(run: RunDirectory, record: Record, source: str = SALIENCY) -> tuple[Saliency, Maps]:
    """The stored maps of a photo, as stored and at the photo's size.

    Returns:
        The archive; and (K, H, W) saliency of maximum 1, or (K + 1, H, W) probabilities with the background first
        (`has_background`).
    """
    stored = read_saliency(run.maps(source, record.id))
    prepare = prepare_probabilities if has_background(stored) else prepare_maps
    return stored, prepare(stored.maps, stored.size)


def has_background(stored: Saliency) -> bool:
    """Whether the maps are probabilities with the background as their first class."""
    return len(stored.classes) > 0 and int(stored.classes[0]) == BACKGROUND
