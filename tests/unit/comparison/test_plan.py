"""What is compared: methods from text, and what makes stored values stale."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from wsss.comparison.judge import Judge
from wsss.comparison.plan import Comparison, parse_contestants
from wsss.comparison.store import load, save
from wsss.config import CompareConfig, ComparisonConfig, RuntimeConfig
from wsss.data.dataset import Record
from wsss.errors import UserError
from wsss.saliency import METHODS


def judge_of(layer: str = "layer4") -> Judge:
    return Judge(nn.Identity(), ("cat", "dog"), "sigmoid", layer, "a test", "digest")


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    records = []
    for name in "abcd":
        (tmp_path / f"{name}.jpg").write_bytes(b"photo")
        records.append(Record(name, tmp_path / f"{name}.jpg", (1,), None))
    settings = CompareConfig(methods=("gradcam",), insertion_images=2, page_images=0)
    hardware = RuntimeConfig(accelerator="cpu", precision="float32")
    config = ComparisonConfig(compare=settings, runtime=hardware, output=str(tmp_path))
    contestants = parse_contestants(settings.methods, judge_of())
    return Comparison(config, tmp_path / "compare", ("cat",), tuple(records), judge_of(), {1: 0}, contestants)


@pytest.mark.parametrize("layer", ["layer4", "features.29"])
def test_the_default_methods_fit_every_classifier(layer: str) -> None:
    contestants = parse_contestants(CompareConfig().methods, judge_of(layer))
    assert len({contestant.slug for contestant in contestants}) == len(CompareConfig().methods)
    assert layer in repr(contestants[-1].method)


def test_every_method_has_a_folder_of_its_own() -> None:
    contestants = parse_contestants(tuple(METHODS), judge_of())
    assert len({contestant.slug for contestant in contestants}) == len(METHODS)
    assert all(contestant.slug.replace("-", "").isalnum() for contestant in contestants)


def test_methods_take_score_and_layer_of_the_classifier() -> None:
    softmax = replace(judge_of("layer2"), score="softmax")
    (contestant,) = parse_contestants(("sess(gradcam)",), softmax)
    assert "score='softmax'" in repr(contestant.method)
    assert "layer='layer2'" in repr(contestant.method)


def test_the_same_method_twice_is_refused() -> None:
    with pytest.raises(UserError, match=r"gradcam\(layer='layer4'\) and gradcam are the same"):
        parse_contestants(("gradcam", "gradcam(layer='layer4')"), judge_of())


def test_stored_values_are_those_of_the_same_settings_only(comparison: Comparison) -> None:
    contestant, record = comparison.contestants[0], comparison.records[0]
    save(
        comparison.values(contestant, record), comparison.expected(contestant, record), {"milliseconds": 1.0}
    )
    assert comparison.stored(contestant, record) is not None
    settings = comparison.settings
    changes = {
        "size": replace(settings, size=100),
        "threshold": replace(settings, threshold=0.3),
        "steps": replace(settings, insertion_steps=7),
    }
    for name, changed in changes.items():
        other = replace(comparison, config=replace(comparison.config, compare=changed))
        assert other.stored(contestant, record) is None, name
    same = replace(settings, images=2, batch_size=3, sanity=True, seed=1)
    kept = replace(comparison, config=replace(comparison.config, compare=same))
    assert kept.stored(contestant, record) is not None
    for other in (
        replace(comparison, judge=replace(comparison.judge, digest="another")),
        replace(comparison, known={1: 1}),
    ):
        assert other.stored(contestant, record) is None
    record.image.write_bytes(b"another photo")
    assert comparison.stored(contestant, record) is None


def test_an_image_on_the_page_needs_its_maps_too(comparison: Comparison) -> None:
    contestant, record = comparison.contestants[0], comparison.records[0]
    save(comparison.values(contestant, record), comparison.expected(contestant, record), {})
    shown = replace(comparison.settings, page_images=1)
    other = replace(comparison, config=replace(comparison.config, compare=shown))
    assert other.on_page == {"a"}
    assert other.stored(contestant, record) is None


def test_images_of_insertion_are_evenly_spaced(comparison: Comparison) -> None:
    assert comparison.with_insertion == {"a", "c"}
    none = replace(comparison.settings, insertion_steps=0)
    assert not replace(comparison, config=replace(comparison.config, compare=none)).with_insertion


def test_what_is_saved_is_loaded_with_its_fingerprint_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    assert load(path, "x") is None
    assert save(path, "x", {"value": 1}) == load(path, "x") == {"fingerprint": "x", "value": 1}
    assert load(path, "y") is None
