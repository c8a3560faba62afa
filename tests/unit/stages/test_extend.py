"""The extension stage: what is learnt, what is written, what is left alone."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

from wsss.config import ExtendConfig, RuntimeConfig
from wsss.data.dataset import Record
from wsss.data.files import Saliency, read_image, read_saliency, write_saliency
from wsss.data.transforms import normalize_image, to_tensor
from wsss.errors import UserError
from wsss.extension import affinity, pixels
from wsss.rundir import RunDirectory
from wsss.saliency import normalize, upsample
from wsss.stages import extend
from wsss.stages.extend import (
    Features,
    PixelExtension,
    read_layer,
    sample,
    write_layer,
    write_pixels,
    write_walks,
)
from wsss.stages.workers import has_background

CPU = RuntimeConfig(accelerator="cpu", precision="float32", workers=0, progress=False)
CONFIG = ExtendConfig(rounds=2, photos=3, steps=4, radius=3, power=15.0)
LAYERS = ("layer2", "layer3", "layer4")
SIZES = ((64, 96), (96, 64), (64, 96), (64, 96))
LABELS: tuple[tuple[int, ...], ...] = ((1, 2), (2,), (1,), ())


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None, num_classes=2).eval()


@pytest.fixture
def features(network: torch.nn.Module) -> Features:
    return Features([(network, LAYERS)], CPU)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def records(tmp_path: Path, run: RunDirectory) -> list[Record]:
    """Photos with a red and a blue half where they have the classes 1 and 2, and saliency that marks the spot."""
    found, random = [], np.random.default_rng(0)
    for index, (size, labels) in enumerate(zip(SIZES, LABELS, strict=True)):
        photo = random.integers(90, 130, (*size, 3), dtype=np.uint8)
        maps = np.zeros((len(labels), size[0] // 16, size[1] // 16), np.float16)
        for place, label in enumerate(labels):
            half = np.s_[:, : size[1] // 2] if label == 1 else np.s_[:, size[1] // 2 :]
            photo[half] = (200, 30, 30) if label == 1 else (30, 30, 200)
            maps[place][1:3, (0 if label == 1 else -1)] = 1
        path = tmp_path / f"{index}.png"
        Image.fromarray(photo).save(path)
        found.append(Record(f"set/{index}", path, labels, None))
        write_saliency(run.saliency(found[-1].id), Saliency(np.array(labels, np.int16), maps, size))
    return found


def restated(network: torch.nn.Module, records: list[Record], run: RunDirectory) -> torch.nn.Linear:
    """Two rounds, photo by photo, without the bookkeeping of one matrix for all."""
    seen = []
    for record in records:
        image = normalize_image(to_tensor(read_image(record.image)))[None]
        cells = affinity.features(network, image, LAYERS, stride=16)[0].half().float()
        depth = 128 + 256
        transition = affinity.affinity(F.normalize(cells[:depth], dim=0), 6, CONFIG.power)
        maps = torch.from_numpy(read_saliency(run.saliency(record.id)).maps.astype(np.float32))
        maps = normalize(upsample(maps, cells.shape[-2:]), "max")
        maps = normalize(affinity.random_walk(maps, transition, CONFIG.steps), "max")
        labels = pixels.seed_labels(maps, record.labels or (), CONFIG.low, CONFIG.high)
        seen.append((record, cells, transition, labels))
    order = sorted(range(len(seen)), key=lambda index: SIZES[index] != SIZES[0])  # photos come by size
    seen = [seen[index] for index in order]
    features = torch.cat([cells.flatten(1).T for _, cells, _, _ in seen])
    layer = pixels.fit(
        features, torch.cat([labels.flatten() for *_, labels in seen]), 3, CONFIG.balance, seed=5
    )
    again = []
    for record, cells, transition, _ in seen:
        found = pixels.probabilities(layer, cells, record.labels or ())
        found = affinity.random_walk(found, transition, CONFIG.steps // 2)
        again.append(pixels.probable_labels(found, record.labels or ()).flatten())
    return pixels.fit(features, torch.cat(again), 3, CONFIG.balance, seed=5)


def test_learning_is_that_of_plain_rounds(network, features, records, run):
    layer = PixelExtension(features, CONFIG, CPU).learn(records[:3], run, 3, seed=5)
    expected = restated(network, records[:3], run)
    assert expected.weight.abs().max() > 0
    torch.testing.assert_close(layer.weight, expected.weight, rtol=1e-3, atol=1e-4)


def test_every_photo_gets_probabilities_of_its_classes_and_the_background(features, records, run):
    extension = PixelExtension(features, CONFIG, CPU)
    layer = extension.learn(records[:3], run, 3, seed=0)
    write_pixels(extension, layer, records, run)
    for record, size, labels in zip(records, SIZES, LABELS, strict=True):
        stored = read_saliency(run.maps("extended", record.id))
        assert has_background(stored)
        assert stored.classes.tolist() == [0, *labels]
        assert stored.size == size
        assert stored.maps.shape == (len(labels) + 1, size[0] // 8, size[1] // 8)
        np.testing.assert_allclose(stored.maps.astype(np.float32).sum(0), 1, atol=5e-3)


def test_probabilities_are_those_of_the_cells_after_a_fine_walk(network, features, records, run):
    """Step 4 for one photo, by the functions that have references of their own."""
    extension = PixelExtension(features, CONFIG, CPU)
    layer = extension.learn(records[:3], run, 3, seed=0)
    write_pixels(extension, layer, records[:1], run)
    image = normalize_image(to_tensor(read_image(records[0].image)))[None]
    coarse = affinity.features(network, image, LAYERS, stride=16)[0]
    found = pixels.probabilities(layer, coarse, LABELS[0])
    assert found.std() > 0.01
    fine = affinity.features(network, image, ("layer2", "layer3"), stride=8)[0]
    transition = affinity.affinity(fine, CONFIG.radius, CONFIG.power)
    expected = affinity.random_walk(upsample(found, (8, 12)), transition, CONFIG.steps // 2)
    assert (expected - upsample(found, (8, 12))).abs().max() > 0.01
    stored = read_saliency(run.maps("extended", records[0].id)).maps.astype(np.float32)
    np.testing.assert_allclose(stored, expected.numpy(), atol=2e-3)


def test_what_is_there_is_not_made_again(features, records, run):
    extension = PixelExtension(features, CONFIG, CPU)
    write_pixels(extension, torch.nn.Linear(128 + 256 + 512, 3), records[:2], run)
    before = {record.id: run.maps("extended", record.id).stat().st_mtime_ns for record in records[:2]}
    write_pixels(extension, torch.nn.Linear(128 + 256 + 512, 3), records, run)
    for record in records[:2]:
        assert run.maps("extended", record.id).stat().st_mtime_ns == before[record.id]
    assert run.maps("extended", records[3].id).is_file()


def test_walked_saliency_keeps_its_classes_and_its_maximum(features, records, run):
    write_walks(features, CONFIG, records, run, CPU)
    for record, labels in zip(records, LABELS, strict=True):
        stored = read_saliency(run.maps("extended", record.id))
        assert stored.classes.tolist() == list(labels)
        assert not has_background(stored)
        if labels:
            assert stored.maps.max() == 1
            before = read_saliency(run.saliency(record.id)).maps
            assert (stored.maps > 0.2).mean() > (before > 0.2).mean()


def test_walked_saliency_is_the_walk_with_the_configured_constants(network, features, records, run):
    config = ExtendConfig(steps=3, radius=2, power=4.0)
    write_walks(features, config, records[:1], run, CPU)
    image = normalize_image(to_tensor(read_image(records[0].image)))
    before = torch.from_numpy(read_saliency(run.saliency(records[0].id)).maps.astype(np.float32))
    expected = affinity.walk(before, network, image, affinity.WalkParameters(radius=2, power=4.0, steps=3))
    found = read_saliency(run.maps("extended", records[0].id)).maps
    np.testing.assert_allclose(found.astype(np.float32), expected.numpy(), atol=2e-3)


def test_saliency_without_a_clear_cell_is_explained(features, records, run):
    for record in records[:3]:
        stored = read_saliency(run.saliency(record.id))
        write_saliency(
            run.saliency(record.id), Saliency(stored.classes, stored.maps * 0 + np.float16(0.5), stored.size)
        )
    config = ExtendConfig(rounds=1, low=0.1, high=1.0, power=15.0)
    with pytest.raises(UserError, match="no cell of the saliency is clear enough"):
        PixelExtension(features, config, CPU).learn(records[:3], run, 3, seed=0)


def test_only_labelled_photos_are_learnt_from_evenly_spaced(records):
    assert sample(records, ExtendConfig(photos=2)) == [records[0], records[1]]
    assert sample(records * 2, ExtendConfig(photos=2)) == [records[0], records[0]]  # three of the six apart
    assert sample(records, ExtendConfig(photos=500)) == records[:3]


def test_the_classifier_of_cells_survives_the_disk(tmp_path):
    layer, path = torch.nn.Linear(5, 3), tmp_path / "extension.npz"
    write_layer(path, layer)
    for name, value in read_layer(path).state_dict().items():
        assert torch.equal(value, layer.state_dict()[name])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"extension\.npz is damaged"):
        read_layer(path)


def test_objects_that_shrink_while_learning_are_told(features, records, run, monkeypatch, capsys):
    extension = PixelExtension(features, CONFIG, CPU)
    extension.learn(records[:3], run, 3, seed=0)
    assert "shrank" not in capsys.readouterr().err

    def only_background(layer, features, depth, lesson):
        return torch.zeros(lesson.rows.stop - lesson.rows.start, dtype=torch.long)

    monkeypatch.setattr(extension, "_next_labels", only_background)
    extension.learn(records[:3], run, 3, seed=0)
    assert re.search(
        r"objects shrank while learning, from \d+% of the clear cells to 0%.*walk", capsys.readouterr().err
    )


# -- other networks ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other() -> torch.nn.Module:
    torch.manual_seed(1)
    return torchvision.models.resnet34(weights=None, num_classes=2).eval()


def test_several_networks_are_joined_and_each_layer_counts_the_same(network, other, records):
    joined = Features([(network, LAYERS), (other, ("layer1", "layer2"))], CPU)
    image = to_tensor(read_image(records[0].image))[None]
    compared, others = joined(image)
    plain = normalize_image(image)
    expected = [affinity.activations(network, plain, [name])[0] for name in ("layer2", "layer3")]
    expected += affinity.activations(other, plain, ["layer1"])
    for found, one in zip(compared, expected, strict=True):
        torch.testing.assert_close(found, one)
    assert [part.shape[1] for part in others] == [512, 128]
    cells = affinity.cells(compared, (4, 6))[0]
    units = [F.normalize(affinity.cells([one], (4, 6))[0], dim=0) for one in expected]
    cosines = torch.stack([torch.einsum("dij,dkl->ijkl", unit, unit) for unit in units]).mean(0)
    torch.testing.assert_close(torch.einsum("dij,dkl->ijkl", cells, cells), cosines, rtol=1e-4, atol=1e-5)


def test_a_network_with_one_layer_is_compared_by_it(network, records):
    compared, others = Features([(network, ("layer3",))], CPU)(to_tensor(read_image(records[0].image))[None])
    assert ([part.shape[1] for part in compared], others) == ([256], [])


def test_learning_takes_no_more_photos_than_have_room(features, records, run, monkeypatch, capsys):
    one = 2 * (128 + 256 + 512) * 24
    monkeypatch.setattr(extend, "MEMORY", 2 * one)
    extension = PixelExtension(features, CONFIG, CPU)
    matrix, lessons, depth = extension._read(records[:3], run)
    assert (len(matrix), depth) == (2 * 24, 128 + 256)
    assert [record.id for record, _ in lessons] == ["set/0", "set/1"]
    assert "learns from 2 photos instead of 3: more features do not fit in 8 GB" in capsys.readouterr().err
    monkeypatch.setattr(extend, "MEMORY", 3 * one)
    assert len(extension._read(records[:3], run)[1]) == 3


def test_the_power_is_that_with_which_a_step_reaches_the_known_share(features, network, records):
    power = features.power(records)
    samples = []
    for record in records:
        image = normalize_image(to_tensor(read_image(record.image)))[None]
        samples.append(affinity.similarity(affinity.features(network, image, LAYERS[:2], stride=16)[0], 6))
    shares = [
        sum(affinity.reach(one, value) for one in samples) / 4
        for value in (power * 1.02, power, power * 0.98)
    ]
    assert shares[0] < affinity.REACH < shares[2]
    assert shares[1] == pytest.approx(affinity.REACH, rel=0.02)
