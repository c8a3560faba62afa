"""Collects from a run directory what ``report.html`` shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsss.config import Config
from wsss.data.dataset import Dataset, Record, evenly
from wsss.data.files import classes_in, read_confidence, read_image, read_mask, read_saliency
from wsss.data.palette import colour_of
from wsss.metrics.table import DASH, percent
from wsss.refine.background import prepare_maps
from wsss.report.chart import Chart
from wsss.report.html import (
    ClassTable,
    Facts,
    Gallery,
    GalleryRow,
    Report,
    SummaryRow,
    Tile,
    write_report,
)
from wsss.report.overlay import Picture, overlay_mask, overlay_saliency
from wsss.rundir import CRF, MASKS, MS_FLIP, PLAIN, RunDirectory
from wsss.stages.score import METRICS, Metric, tags_without_pixel, training_notes

GALLERY_ROWS, LEAST_CERTAIN = 12, 6


def dry_run_note(metrics: dict[str, Any]) -> str:
    """The note next to every number of a run on a few photos (``data.limit``); empty for other runs."""
    limit = metrics.get("data_limit")
    return "" if limit is None else f"DRY RUN on {limit} photos of each split (data.limit): not a result"


def size_note(metrics: dict[str, Any]) -> str:
    """The note of a run that shrank large photos (``data.long_side``); empty for other runs."""
    side = metrics.get("data_long_side")
    return (
        ""
        if side is None
        else f"photos above {side} pixels shrunk to that size, for the scores too (data.long_side)"
    )


def warnings_of(manifest: Mapping[str, Any]) -> list[str]:
    """Signs of a bad training or of bad masks, "stage: sentence", that the finished stages left (`stages.signs`)."""
    return [
        f"{name}: {sentence}"
        for name, entry in manifest.get("stages", {}).items()
        if entry.get("state") == "done"
        for sentence in entry.get("warnings", ())
    ]


def build_report(config: Config, dataset: Dataset, run: RunDirectory) -> None:
    """Write ``report.html`` from what the run directory holds so far."""
    metrics, manifest = run.read_metrics(), run.read_manifest()
    dry, size = dry_run_note(metrics), size_note(metrics)
    described = (
        f"{len(dataset.train)} training photos with image labels, {len(dataset.val)} validation photos, "
        f"{len(dataset.classes)} classes, seed {config.seed}"
    )
    report = Report(
        title=f"wsss: {Path(config.output).name}{' (dry run)' if dry else ''}",
        subtitle=_joined(described, size, dry),
        warnings=tuple(warnings_of(manifest)),
        tiles=_tiles(metrics, dry),
        summary=tuple(
            SummaryRow(
                metric.name,
                metric.value(entry),
                _joined(metric.protocol(config), metric.notes(entry), dry),
                entry.get(f"oracle_{metric.headline}"),
            )
            for metric, entry in _scored(metrics)
        ),
        tables=(*_class_table(dataset, metrics), *_tag_table(dataset, metrics)),
        legend=tuple((name, colour_of(index)) for index, name in enumerate(dataset.class_names) if index),
        charts=_charts(metrics.get("mask") or {}),
        galleries=tuple(gallery for gallery in _galleries(dataset, run) if gallery.rows),
        facts=_facts(manifest),
        config=run.config.read_text(encoding="utf-8") if run.config.is_file() else "",
    )
    write_report(run.report, report)


def _scored(metrics: Mapping[str, Any]) -> list[tuple[Metric, dict[str, Any]]]:
    """The metrics in the tables of IoU, with the entries that are known."""
    found = [(metric, metrics.get(key)) for key, metric in METRICS.items() if metric.name]
    return [(metric, entry) for metric, entry in found if isinstance(entry, dict)]


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _tiles(metrics: Mapping[str, Any], dry: str) -> tuple[Tile, ...]:
    tiles = []
    for key, metric in METRICS.items():
        if metric.tile and (key in metrics or not metric.optional):
            entry = metrics.get(key)
            seen = training_notes(metrics.get("val") if key == "retention" else entry)
            title, note = metric.tile
            tiles.append(Tile(title, metric.value(entry), _joined(note, seen, dry)))
    return tuple(tiles)


def _charts(mask: dict[str, Any]) -> tuple[Chart, ...]:
    """The curve of the pseudo-masks' confidence, with the point that the run's own rule gives."""
    curve = mask.get("reliability")
    if not curve or not curve["coverage"]:
        return ()
    rule = None if mask.get("kept_accuracy") is None else (mask["coverage"], mask["kept_accuracy"])
    return (
        Chart(
            "Which pixels can be trusted",
            "share of the pixels that are kept",
            "share of those that are right",
            tuple(zip(curve["coverage"], curve["accuracy"], strict=True)),
            rule,
            f"Pseudo-masks of {curve['images']} training photos with ground truth, pixels ordered by the CRF's "
            "posterior; the dot is what the run's own rule (255 elsewhere) keeps on all of them. "
            "Ground truth only draws this chart.",
        ),
    )


def _class_table(dataset: Dataset, metrics: Mapping[str, Any]) -> list[ClassTable]:
    scored = _scored(metrics)
    if not scored:
        return []
    rows = tuple(
        (name, colour_of(index), tuple(entry["per_class"].get(name) for _, entry in scored))
        for index, name in enumerate(dataset.class_names)
    )
    means = tuple(metric.value(entry) for metric, entry in scored)
    note = f"Intersection over union in percent; {DASH} = the class does not occur in the ground truth."
    return [ClassTable("Per class", tuple(metric.name for metric, _ in scored), rows, means, note)]


def _tag_table(dataset: Dataset, metrics: Mapping[str, Any]) -> list[ClassTable]:
    """How well the predictions agree with the tags of the validation photos."""
    entry = metrics.get("tags")
    if not entry:
        return []
    parts = [entry[key] for key in ("per_class", "precision", "recall")]
    rows = tuple(
        (name, colour_of(index), tuple(part[name] for part in parts))
        for index, name in enumerate(dataset.classes, 1)
    )
    note = (
        f"Single-scale predictions of {entry['images']} validation photos against their tags, in percent; no mask is "
        "used. A class is predicted if it has a pixel. Precision: of the photos where it is predicted, the share with "
        f"the tag. Recall: of the photos with the tag, the share where it is predicted. {DASH} = no such photo. Tags "
        f"without a pixel: {tags_without_pixel(entry)}."
    )
    return [ClassTable("Tags in the predictions", ("F1", "precision", "recall"), rows, (), note)]


def _galleries(dataset: Dataset, run: RunDirectory) -> tuple[Gallery, ...]:
    labelled = [record for record in dataset.train if record.labels]
    train = Gallery(
        "Training photos: from saliency to pseudo-mask",
        ("photo", "saliency", "pseudo-mask", "ground truth"),
        tuple(_train_row(record, dataset, run) for record in evenly(labelled, GALLERY_ROWS)),
        "Evenly spaced over the training list. Saliency: the strongest class of the label at each pixel; "
        "hatched: uncertain, not trained on. Ground truth is never trained on, unless segmenter.true_masks is it.",
    )
    val = Gallery(
        "Validation photos: predictions",
        ("photo", "prediction", "multi-scale + flip", "CRF", "ground truth"),
        tuple(_val_row(record, dataset, run) for record in evenly(dataset.val, GALLERY_ROWS)),
        "Evenly spaced over the validation list; no image label is used here.",
    )
    return train, val, _least_certain(dataset, run)


def _least_certain(dataset: Dataset, run: RunDirectory) -> Gallery:
    """The validation photos of whose prediction the network is least sure."""
    paths = {record: run.mask(PLAIN, record.id) for record in dataset.val}
    sure = {record: read_confidence(path) for record, path in paths.items() if path.is_file()}
    known = sorted((one.photo, record.id, record, one) for record, one in sure.items() if one is not None)
    rows = []
    for value, name, record, one in known[:LEAST_CERTAIN]:
        image, mask = read_image(record.image), read_mask(paths[record])
        per_class = [
            f"{dataset.class_names[index]} {percent(one.classes.get(index))}" for index in classes_in(mask)
        ]
        absent = [
            dataset.class_names[label] for label in record.labels or () if label not in classes_in(mask)
        ]
        note = _joined(
            f"confidence {percent(value)} %",
            ", ".join(per_class),
            f"no pixel of {', '.join(absent)}" * bool(absent),
        )
        rows.append(GalleryRow(name, _names(record, dataset), (image, overlay_mask(image, mask)), note))
    return Gallery(
        "Validation photos to look at first",
        ("photo", "prediction"),
        tuple(rows),
        "The single-scale predictions with the lowest confidence: the mean probability of the preferred class, over "
        "all pixels and over those of each class.",
        cards=True,
    )


def _train_row(record: Record, dataset: Dataset, run: RunDirectory) -> GalleryRow:
    image = read_image(record.image)
    path, heat = run.saliency(record.id), None
    if path.is_file():
        stored = read_saliency(path)
        heat = overlay_saliency(image, prepare_maps(stored.maps, stored.size).max(axis=0))
    drawn = (_overlay(image, mask) for mask in (run.mask(MASKS, record.id), record.mask))
    return GalleryRow(record.id, _names(record, dataset), (image, heat, *drawn))


def _val_row(record: Record, dataset: Dataset, run: RunDirectory) -> GalleryRow:
    image = read_image(record.image)
    drawn = tuple(_overlay(image, run.mask(folder, record.id)) for folder in (PLAIN, MS_FLIP, CRF))
    return GalleryRow(record.id, _names(record, dataset), (image, *drawn, _overlay(image, record.mask)))


def _overlay(image: Picture, mask: Path | None) -> Picture | None:
    return overlay_mask(image, read_mask(mask)) if mask is not None and mask.is_file() else None


def _names(record: Record, dataset: Dataset) -> tuple[str, ...]:
    return tuple(dataset.class_names[label] for label in record.labels or ())


def _facts(manifest: dict[str, Any]) -> tuple[Facts, ...]:
    stages = manifest.get("stages", {})
    times = Facts(
        "Stages",
        tuple(
            (name, f"{entry.get('seconds', 0.0):.1f} s, {entry.get('images', '?')} photos ({entry['state']})")
            for name, entry in stages.items()
        ),
    )
    packages = manifest.get("packages", {})
    keys = ("wsss", "commit", "python", "device", "precision", "cpu", "cores")
    machine = [(key, str(manifest[key])) for key in keys if manifest.get(key) is not None]
    machine += [("GPUs", ", ".join(manifest["gpus"]))] if manifest.get("gpus") else []
    machine += [(name, str(version)) for name, version in packages.items()]
    machine += [("command", " ".join(manifest.get("command", [])))]
    method = stages.get("saliency", {}).get("method")
    return (
        times,
        Facts("Machine and versions", tuple(machine)),
        *((Facts("Saliency method", (("method", method),)),) if method else ()),
    )
