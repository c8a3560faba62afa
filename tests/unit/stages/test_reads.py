"""What makes a stage stale by itself: every setting of the configuration, and every part of the data set."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from wsss.config import POOLINGS, ClassifierConfig, Config, ExtendConfig, FeatureConfig, SegmenterConfig
from wsss.data.dataset import Dataset, Record
from wsss.pipeline import STAGES

SECTIONS = {
    "classifier": {"classify"},
    "saliency": {"saliency"},
    "extend": {"extend"},
    "refine": {"refine"},
    "segmenter": {"segment", "supervise"},
    "evaluate": {"evaluate"},
    "seed": {"classify", "extend", "segment", "supervise"},
}
"""Section -> the stages that read its settings; nobody reads the others."""

EXCEPTIONS = {
    "saliency.batch_size": set(),
    "saliency.checkpoint": {"saliency", "supervise"},  # the twin starts from it, but follows no saliency
    "refine.soft_crf": {"refine", "evaluate"},
    "segmenter.supervised": set(),
    "segmenter.val_every": set(),
    "segmenter.masks": {"segment"},
    "segmenter.true_masks": {"segment"},
    "evaluate.oracle_images": {"score_masks"},
}
"""Setting, or part of a section -> the same, where it differs from its section."""

CONFIG = Config(
    extend=ExtendConfig(method="pixels"), segmenter=SegmenterConfig("light", "classifier", loss="bootstrap")
)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """One photo with a mask in each split."""
    records = []
    for name in ("train", "val"):
        for path in (tmp_path / f"{name}.jpg", tmp_path / f"{name}.png"):
            path.write_text(name)
        records.append(Record(name, tmp_path / f"{name}.jpg", (1,), tmp_path / f"{name}.png"))
    return Dataset(("cat", "dog"), (records[0],), (records[1],))


def changed(one: tuple[Config, Dataset], other: tuple[Config, Dataset]) -> set[str]:
    """The stages that read something else, whatever happens to the stages that they follow."""
    return {name for name, stage in STAGES.items() if stage.reads(*one) != stage.reads(*other)}


def with_one_change(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, the configuration with another value of it) for every setting."""
    for field in fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if is_dataclass(value):
            for inner, part in with_one_change(value, f"{name}."):
                yield inner, replace(config, **{field.name: part})
        else:
            hint = get_type_hints(type(config))[field.name]
            yield name, replace(config, **{field.name: another(value, hint)})


def another(value: Any, hint: Any) -> Any:
    """A value that the field takes, too."""
    if get_origin(hint) is Literal:
        return next(choice for choice in reversed(get_args(hint)) if choice != value)
    if value is None:
        return "other" if str in get_args(hint) else 32
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "mean" if value in POOLINGS else "other"
    if hint == tuple[FeatureConfig, ...]:
        return (FeatureConfig(layers=("layer2",)),)
    if isinstance(value, tuple):
        return tuple(2 * item for item in value)
    return 0.9 * value + 0.01 if isinstance(value, float) else value + 1


def test_every_setting_makes_those_stages_stale_that_read_it(dataset: Dataset) -> None:
    found, expected = {}, {}
    for name, config in with_one_change(CONFIG):
        found[name] = changed((CONFIG, dataset), (config, dataset))
        parts = [name, name.rpartition(".")[0]]
        expected[name] = next(
            (EXCEPTIONS[part] for part in parts if part in EXCEPTIONS),
            SECTIONS.get(name.partition(".")[0], set()),
        )
    assert found == expected


@pytest.mark.parametrize(
    ("method", "read"),
    [("none", {"method"}), ("walk", {"method", "backbone", "radius", "power", "steps"})],
)
def test_an_extension_is_stale_after_a_change_of_what_its_method_reads(
    dataset: Dataset, method: Any, read: set[str]
) -> None:
    config = replace(CONFIG, extend=ExtendConfig(method=method))
    stale = {
        name
        for name, other in with_one_change(config)
        if "extend" in changed((config, dataset), (other, dataset))
    }
    assert stale == {f"extend.{name}" for name in read}


def test_without_the_bootstrapped_loss_its_kind_plays_no_part(dataset: Dataset) -> None:
    hard, soft = (
        Config(segmenter=SegmenterConfig(loss="cross_entropy", bootstrap=kind)) for kind in ("hard", "soft")
    )
    assert changed((hard, dataset), (soft, dataset)) == set()


def test_without_the_crf_its_constants_play_no_part_in_predictions(dataset: Dataset) -> None:
    config = replace(CONFIG, evaluate=replace(CONFIG.evaluate, crf=False))
    other = replace(config, refine=replace(config.refine, soft_crf=config.refine.crf))
    assert changed((config, dataset), (other, dataset)) == {"refine"}


def test_the_automatic_extension_depends_on_the_classifiers_weights(dataset: Dataset) -> None:
    config = replace(CONFIG, extend=ExtendConfig())
    other = replace(config, classifier=ClassifierConfig(weights="none"))
    assert changed((config, dataset), (other, dataset)) == {"classify", "extend"}


def test_every_part_of_the_data_makes_those_stages_stale_that_read_it(
    dataset: Dataset, tmp_path: Path
) -> None:
    (train,), (val,) = dataset.train, dataset.val
    larger = tmp_path / "larger"
    larger.mkdir()
    for path in (train.image, val.image, train.mask, val.mask):
        assert path is not None
        (larger / path.name).write_text("more than before")
    photo = {"image": larger / "train.jpg"}, {"image": larger / "val.jpg"}
    mask = {"mask": larger / "train.png"}, {"mask": larger / "val.png"}
    predictions = {"evaluate", "evaluate_supervised"}
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"classes": ("cat", "cow")}, {"classify", "supervise"}),
        ({"train": (replace(train, labels=(1, 2)),)}, {"classify", "supervise"}),
        ({"train": (replace(train, **photo[0]),)}, {"classify", "supervise"}),
        ({"train": (train, replace(train, id="other"))}, {"classify", "supervise", "score_masks"}),
        ({"train": (replace(train, **mask[0]),)}, {"supervise", "score_masks"}),
        ({"val": (replace(val, labels=(2,)),)}, {"score_classifier", "score_tags"}),
        ({"val": (replace(val, **photo[1]),)}, {"score_classifier", *predictions}),
        ({"val": (replace(val, **mask[1]),)}, predictions),
        ({"val": (val, replace(val, id="other"))}, {"score_classifier", "score_tags", *predictions}),
    ]
    for change, expected in cases:
        assert changed((CONFIG, dataset), (CONFIG, replace(dataset, **change))) == expected, change


def test_own_masks_bring_what_the_pseudo_masks_would_have_brought(dataset: Dataset, tmp_path: Path) -> None:
    """They are known by their content; classes, photos and the classifier's checkpoint count by themselves."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.png").write_text("mask")
    config = replace(CONFIG, segmenter=replace(CONFIG.segmenter, masks=str(tmp_path / "own")))
    best = replace(config, saliency=replace(config.saliency, checkpoint="best"))
    assert "segment" in changed((config, dataset), (best, dataset))
    for change in ({"classes": ("cat", "cow")}, {"train": (replace(dataset.train[0], labels=(2,)),)}):
        assert "segment" in changed((config, dataset), (config, replace(dataset, **change)))
    before = STAGES["segment"].reads(config, dataset)
    (tmp_path / "own" / "train.png").write_text("another mask")
    assert STAGES["segment"].reads(config, dataset) != before
