"""Every number in metrics.json. One table says what each is, which stage measures it and how it is shown.

`measure` fills metrics.json from the table; the summary on the terminal and the report's rows read the same table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wsss.config import NOT_WEAK, Config
from wsss.data.dataset import with_masks
from wsss.metrics.table import percent
from wsss.rundir import CRF, MS_FLIP, PLAIN, SUPERVISED_PLAIN
from wsss.stages.base import Context, Stage, after, train_truth
from wsss.stages.measures import (
    Entry,
    Measure,
    extended_entry,
    mask_entry,
    prediction_entry,
    retention,
    seed_entry,
    tags_entry,
)

SHOWN_CLASSES = 10
"""At most this many classes are listed on the terminal; metrics.json and the report have all."""


@dataclass(frozen=True)
class Metric:
    """An entry of metrics.json: a dictionary with a headline number, or a number."""

    title: str
    """Its row of the summary on the terminal."""
    stages: tuple[str, ...]
    """The stages that measure it."""
    measure: Measure | None = None
    """None: the stage itself writes the entry."""
    wanted: Callable[[Config], bool] = field(default=lambda config: True)
    headline: str = "miou"
    """Key of the number that is shown; unused if the entry is a number itself."""
    name: str = ""
    """Its name in the report's tables of IoU; empty: not in them."""
    protocol: Callable[[Config], str] = field(default=lambda config: "")
    """What is scored and how, for the report."""
    notes: Callable[[Entry], str] = field(default=lambda entry: "")
    """What the report says about this entry besides the protocol."""
    tile: tuple[str, str] | None = None
    """Title and note of its tile at the top of the report."""
    optional: bool = False
    """Whether its tile is left out if the entry is missing (otherwise the tile shows that it is missing)."""
    details: Callable[[Mapping[str, Any]], list[str]] = field(default=lambda metrics: [])
    """Lines of the summary below its row, from all entries."""
    oracle: str = ""
    """Title of the summary's row for ``oracle_<headline>``; empty: no row."""

    def value(self, entry: Any) -> float | None:
        """The number that is shown of an entry."""
        number = entry.get(self.headline) if isinstance(entry, dict) else entry
        return None if number is None else float(number)


def _best(config: Config) -> str:
    """The prediction that the CRF refines."""
    return "multi-scale + flip" if config.evaluate.ms_flip else "single scale"


def _mask_notes(entry: Entry) -> str:
    kept = "" if entry.get("kept_miou") is None else f" with mIoU {percent(entry['kept_miou'])}"
    return (
        f"training keeps {percent(entry['coverage'])} % of the pixels{kept}; oracle: best background on "
        f"{entry['oracle_images']} photos (this run there: {percent(entry['miou_on_oracle_images'])})"
    )


def with_true_masks(entry: Any) -> str:
    """ "with 12 true masks", where the segmenter was also trained on such (``segmenter.true_masks``)."""
    count = entry.get("true_masks") if isinstance(entry, dict) else None
    return f"with {count} true mask{'s' * (count != 1)}" if count else ""


def training_notes(entry: Any) -> str:
    """What must stand beside a number of a segmenter that has seen masks."""
    weak = NOT_WEAK if isinstance(entry, dict) and entry.get("mask_pretraining") else ""
    return "; ".join(note for note in (with_true_masks(entry), weak) if note)


def tags_without_pixel(entry: Entry) -> str:
    """The classes whose tags have no pixel, with numbers of photos; the most frequent first."""
    lost = sorted((item for item in entry["without_pixel"].items() if item[1]), key=lambda item: -item[1])
    return ", ".join(f"{name} {count} of {entry['tagged'][name]}" for name, count in lost) or "none"


def _tag_details(metrics: Mapping[str, Any]) -> list[str]:
    """Precision and recall of the classes with the lowest F1, where no true mask says more."""
    entry = metrics["tags"]
    if metrics.get("val"):
        return []
    known = sorted((f1, name) for name, f1 in entry["per_class"].items() if f1 is not None)
    rows = [
        f"{name:<20}{percent(entry['precision'][name]):>12}{percent(entry['recall'][name]):>10}"
        f"{entry['without_pixel'][name]:>12} of {entry['tagged'][name]}"
        for _, name in known[:SHOWN_CLASSES]
    ]
    head = f"{'class':<20}{'precision, %':>12}{'recall, %':>10}  tags without a pixel"
    return [head, *rows, *([f"{len(known) - SHOWN_CLASSES} more"] if len(known) > SHOWN_CLASSES else [])]


METRICS: dict[str, Metric] = {
    "classifier": Metric(
        "classifier mAP, val",
        ("score_classifier",),
        headline="mAP",
        tile=("classifier mAP", "val, image labels"),
    ),
    "seed": Metric(
        "seed mIoU, train (saliency, no CRF)",
        ("score_masks",),
        seed_entry,
        name="seeds",
        protocol=lambda config: "train photos; saliency with background threshold, no CRF",
        notes=lambda entry: f"mean threshold {entry['threshold']:.3f}; oracle: best threshold",
        tile=("seed mIoU", "train, no CRF"),
        oracle="   oracle threshold (uses masks)",
    ),
    "extended": Metric(
        "extended seed mIoU, train (no CRF)",
        ("score_masks",),
        extended_entry,
        name="extended seeds",
        protocol=lambda config: "train photos; after the extension to whole objects, no CRF",
    ),
    "mask": Metric(
        "pseudo-mask mIoU, train (CRF)",
        ("score_masks",),
        mask_entry,
        name="pseudo-masks",
        protocol=lambda config: "train photos; after the CRF, arg-max labels",
        notes=_mask_notes,
        tile=("pseudo-mask mIoU", "train, CRF"),
    ),
    "val": Metric(
        "val mIoU, single scale, no CRF",
        ("evaluate",),
        prediction_entry(PLAIN),
        name="val",
        protocol=lambda config: "val photos; single scale, no CRF",
        notes=training_notes,
        tile=("val mIoU", "single scale, no CRF"),
    ),
    "val_ms_flip": Metric(
        "val mIoU, multi-scale + flip",
        ("evaluate",),
        prediction_entry(MS_FLIP),
        wanted=lambda config: config.evaluate.ms_flip,
        name="val, multi-scale + flip",
        protocol=lambda config: "val photos; multi-scale and mirrored, no CRF",
        notes=training_notes,
    ),
    "val_crf": Metric(
        "val mIoU, {best} + CRF",
        ("evaluate",),
        prediction_entry(CRF),
        wanted=lambda config: config.evaluate.crf,
        name="val, CRF",
        protocol=lambda config: f"val photos; {_best(config)}, then CRF",
        notes=training_notes,
    ),
    "tags": Metric(
        "val tags in the predictions, F1 (no masks)",
        ("score_tags",),
        tags_entry,
        headline="f1",
        tile=("tags in predictions", "val, F1 of image labels, mean over classes"),
        optional=True,
        notes=training_notes,
        details=_tag_details,
    ),
    "supervised": Metric(
        "val mIoU, trained on true masks (oracle)",
        ("evaluate_supervised",),
        prediction_entry(SUPERVISED_PLAIN),
        name="supervised",
        protocol=lambda config: (
            "val photos; same network trained on true masks, single scale, no CRF (oracle)"
        ),
        notes=training_notes,
    ),
    "retention": Metric(
        "retention (val / oracle)",
        ("evaluate", "evaluate_supervised"),
        retention,
        tile=("retention", "val mIoU / same network on true masks"),
        optional=True,
    ),
}
"""Entry of metrics.json -> what it is, in the order of the summary and the report."""


def metrics_of(stage: str) -> tuple[str, ...]:
    """The entries of metrics.json that a stage measures."""
    return tuple(key for key, metric in METRICS.items() if stage in metric.stages)


def measure(context: Context, stage: str) -> None:
    """Write the stage's entries of metrics.json, and remove what this configuration does not ask for."""
    found: dict[str, Any] = {}
    for key in metrics_of(stage):
        metric = METRICS[key]
        if metric.measure is not None:
            known = {**context.run.read_metrics(), **found}
            found[key] = metric.measure(context, known) if metric.wanted(context.config) else None
    context.run.update_metrics(**found)


def summary(config: Config, metrics: Mapping[str, Any]) -> list[str]:
    """A line for every known number, for the terminal."""
    lines = []
    for key, metric in METRICS.items():
        entry = metrics.get(key)
        oracle = entry.get(f"oracle_{metric.headline}") if isinstance(entry, dict) else None
        titles = (metric.title.format(best=_best(config)), metric.value(entry)), (metric.oracle, oracle)
        true = with_true_masks(metrics.get("val") if key == "retention" else entry)
        lines += [
            f"  {title:<44}{value:.4f}  {true}".rstrip()
            for title, value in titles
            if title and value is not None
        ]
        lines += [
            f"     {line}" for line in (metric.details(metrics) if metric.value(entry) is not None else [])
        ]
    if any(isinstance(entry, dict) and entry.get("mask_pretraining") for entry in metrics.values()):
        lines.append(f"  {NOT_WEAK}")
    return lines


# -- the stage --------------------------------------------------------------------------------------


def score_masks(context: Context) -> dict[str, Any]:
    """``seed``, ``extended`` and ``mask`` in metrics.json."""
    measure(context, "score_masks")
    return {"images": len(with_masks(context.dataset.train))}


def score_tags(context: Context) -> dict[str, Any]:
    """``tags`` in metrics.json."""
    measure(context, "score_tags")
    return {"images": sum(record.labels is not None for record in context.dataset.val)}


SCORE_TAGS = Stage(
    "compare the predictions with the tags",
    score_tags,
    reads=lambda config, data: [[record.id, record.labels] for record in data.val],
    follows=after("evaluate"),
)

SCORE_MASKS = Stage(
    "score seeds and pseudo-masks",
    score_masks,
    reads=lambda config, data: [config.evaluate.oracle_images, train_truth(data)],
    follows=after("refine"),
)
