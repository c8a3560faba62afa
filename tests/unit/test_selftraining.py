"""Labelling training photos again with a trained segmenter, and where the networks of the rounds lie."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from wsss import selftraining
from wsss.config import BackgroundConfig, Config, CRFConfig, RefineConfig, RuntimeConfig, SegmenterConfig
from wsss.data.dataset import Record
from wsss.data.files import read_confidence, read_image, read_mask
from wsss.data.transforms import normalize_image, to_tensor
from wsss.models.segmenter import Segmenter
from wsss.refine.crf import CRFParameters, dense_crf
from wsss.rundir import RunDirectory
from wsss.selftraining import keep_networks, relabel, restrict

CONFIG = Config(
    refine=RefineConfig(
        background=BackgroundConfig("constant"),
        posterior_limit=0.8,
        soft_crf=CRFConfig(2, 1.0, 3.0, 67.0, 3.0, 4.0),
    ),
    segmenter=SegmenterConfig(rounds=2),
    runtime=RuntimeConfig(accelerator="cpu", precision="float32", workers=0, progress=False),
)
SIZES = ((16, 20), (20, 16), (16, 20), (18, 18))
LABELS = ((1,), (2, 3), (1, 2, 3), ())


class Colours(nn.Module):
    """Four classes from the colours of a pixel; it likes class 1 best nearly everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        red, green, blue = images.unbind(1)
        return torch.stack([0.5 * red, 3 + green, green - blue, blue], 1)


@pytest.fixture
def network() -> Segmenter:
    return Segmenter(Colours(), nn.Identity())


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run").round(1)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    random = np.random.default_rng(0)
    found = []
    for index, (size, labels) in enumerate(zip(SIZES, LABELS, strict=True)):
        blocks = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize(size[::-1], Image.Resampling.NEAREST).save(tmp_path / f"{index}.png")
        found.append(Record(f"p/{index}", tmp_path / f"{index}.png", labels, None))
    return found


def plain_probabilities(network: Segmenter, record: Record) -> npt.NDArray[np.float32]:
    """Softmax of the photo and of its mirror image, restricted pixel by pixel."""
    image = normalize_image(to_tensor(read_image(record.image)))[None]
    logits = network(image)[0].numpy().astype(np.float64)
    mirrored = network(image.flip(3))[0].numpy().astype(np.float64)[:, :, ::-1]
    indices = [0, *(record.labels or ())]
    result = np.zeros((len(indices), *logits.shape[1:]), np.float32)
    for y, x in np.ndindex(*logits.shape[1:]):
        both = [np.exp(part[:, y, x]) / np.exp(part[:, y, x]).sum() for part in (logits, mirrored)]
        chosen = [(both[0][index] + both[1][index]) / 2 for index in indices]
        result[:, y, x] = np.array(chosen) / sum(chosen)
    return result


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_are_those_of_the_crf_among_the_classes_on_the_label(
    network: Segmenter, records: list[Record], run: RunDirectory, workers: int
) -> None:
    relabel(network, records, run, replace(CONFIG, runtime=replace(CONFIG.runtime, workers=workers)), "")
    crf = CRFParameters(2, 1, 3, 67, 3, 4)
    for record in records:
        labels, mask = (
            read_mask(run.mask(folder, record.id)) for folder in ("pseudo_labels", "pseudo_masks")
        )
        assert set(np.unique(labels)) <= {0, *(record.labels or ())}
        if not record.labels:
            assert not mask.any()
            continue
        posterior = dense_crf(plain_probabilities(network, record), read_image(record.image), crf)
        expected = np.array([0, *record.labels], np.uint8)[posterior.argmax(0)]
        sure = np.abs(np.sort(posterior, axis=0)[-1] - np.sort(posterior, axis=0)[-2]) > 1e-4
        assert np.array_equal(labels[sure], expected[sure])
        clear = np.abs(posterior.max(0) - 0.8) > 1e-4
        assert np.array_equal((mask == 255)[clear], (posterior.max(0) < 0.8)[clear])
        assert np.array_equal(mask[mask != 255], labels[mask != 255])
    free = network(normalize_image(to_tensor(read_image(records[1].image)))[None]).argmax(1)
    assert (free == 1).float().mean() > 0.5  # what is not on the label would win, and never appears
    assert {1} != set(np.unique(read_mask(run.mask("pseudo_labels", records[1].id))))


def test_restricted_probabilities_are_those_given_the_label() -> None:
    probabilities = torch.rand(5, 4, 6, generator=torch.Generator().manual_seed(0)).softmax(0)
    found = restrict(probabilities, (2, 4))
    chosen = probabilities.numpy()[[0, 2, 4]]
    assert np.allclose(found.numpy(), chosen / chosen.sum(0), atol=1e-6)


def test_nothing_is_undefined_where_the_network_sees_only_classes_off_the_label() -> None:
    probabilities = torch.zeros(3, 2, 2)
    probabilities[2] = 1
    assert torch.equal(restrict(probabilities, (1,)), torch.full((2, 2, 2), 0.5))


def test_only_missing_masks_are_made_and_equal_those_of_one_go(
    network: Segmenter, records: list[Record], run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(run.root.rglob("*.png"))}

    relabel(network, records, run, CONFIG, "")
    whole = read()
    assert len(whole) == 2 * len(records)
    assert selftraining.is_done(records, run, CONFIG)
    run.mask("pseudo_masks", records[1].id).unlink()
    run.mask("pseudo_labels", records[2].id).unlink()
    assert not selftraining.is_done(records, run, CONFIG)
    seen = []
    original = selftraining._probabilities
    monkeypatch.setattr(
        selftraining, "_probabilities", lambda *words: seen.append(words[1].record.id) or original(*words)
    )
    relabel(network, records, run, CONFIG, "")
    assert sorted(seen) == ["p/1", "p/2"]
    assert read() == whole


def test_weighted_training_gets_the_confidence_of_the_new_masks(
    network: Segmenter, records: list[Record], run: RunDirectory
) -> None:
    relabel(network, records, run, CONFIG, "")
    weighted = replace(CONFIG, segmenter=replace(CONFIG.segmenter, confidence_weighted=True))
    assert not selftraining.is_done(records, run, weighted)
    relabel(network, records, run, weighted, "")
    assert selftraining.is_done(records, run, weighted)
    for record, size in zip(records, SIZES, strict=True):
        confidence = read_confidence(run.mask("pseudo_confidence", record.id), size)
        mask = read_mask(run.mask("pseudo_masks", record.id))
        assert (confidence[mask == 255] <= 0.8 * 255 + 1).all()
        assert (confidence[mask != 255] >= 0.8 * 255 - 1).all()


# -- where the networks lie ------------------------------------------------------------------------

AS_LAST = {1: "one", 2: "two", 3: "three"}


@pytest.fixture
def trained(tmp_path: Path) -> RunDirectory:
    """A run of one round, trained."""
    run = RunDirectory(tmp_path / "run")
    put(run, "first")
    run.record("segment", fingerprint="one", state="done", seconds=7.0)
    return run


def put(run: RunDirectory, text: str) -> None:
    path = run.checkpoint("segmenter")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def networks(run: RunDirectory) -> dict[str, str]:
    return {
        str(path.relative_to(run.root).parent): path.read_text() for path in sorted(run.root.rglob("*.ckpt"))
    }


def test_more_rounds_keep_the_network_that_is_there(trained: RunDirectory) -> None:
    assert "round 1 moves to" in keep_networks(trained, 2, AS_LAST, "self")[0]
    assert networks(trained) == {"rounds/1/segmenter": "first"}
    entry = trained.read_manifest()["stages"]["self_train"]
    assert entry == {"fingerprint": "self", "state": "running", "seconds": 7.0}
    assert keep_networks(trained, 2, AS_LAST, "self") == []


def test_fewer_rounds_take_the_earlier_network_back(trained: RunDirectory) -> None:
    keep_networks(trained, 3, AS_LAST, "self")
    put(trained.round(2), "second")
    put(trained, "third")
    trained.replace("segment", {"fingerprint": "three", "state": "done"})
    assert len(keep_networks(trained, 1, AS_LAST, "self")) == 2
    assert networks(trained) == {
        "segmenter": "first",
        "rounds/2/segmenter": "second",
        "rounds/3/segmenter": "third",
    }
    assert trained.stage_state("segment", "one") == "partial"  # the stage looks at it once more
    keep_networks(trained, 3, AS_LAST, "self")
    assert networks(trained) == {
        "rounds/1/segmenter": "first",
        "rounds/2/segmenter": "second",
        "segmenter": "third",
    }


def test_a_network_of_other_settings_is_not_taken_for_a_round(trained: RunDirectory) -> None:
    put(trained.round(1), "of other settings")
    trained.record("self_train", fingerprint="other", state="done")
    assert keep_networks(trained, 1, {1: "uno", 2: "due"}, "self") == []
    assert networks(trained)["segmenter"] == "first"
    assert keep_networks(trained, 2, AS_LAST, "self")
    assert networks(trained) == {"rounds/1/segmenter": "first"}


def test_a_move_that_was_cut_off_is_finished(trained: RunDirectory) -> None:
    keep_networks(trained, 2, AS_LAST, "self")
    put(trained, "second")
    trained.replace("segment", {"fingerprint": "two", "state": "done"})
    trained.round(2).root.mkdir()  # cut off after the first of the two moves that one round takes
    (trained.root / "segmenter").rename(trained.round(2).root / "segmenter")
    keep_networks(trained, 1, AS_LAST, "self")
    assert networks(trained) == {"segmenter": "first", "rounds/2/segmenter": "second"}
    (trained.root / "segmenter").rename(trained.round(1).root / "segmenter")  # marked, but not yet moved
    keep_networks(trained, 1, AS_LAST, "self")
    assert networks(trained) == {"segmenter": "first", "rounds/2/segmenter": "second"}
