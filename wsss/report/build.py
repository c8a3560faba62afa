"""Collects from a run directory what ``report.html`` shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsss.config import NOT_WEAK, Config
from wsss.data.dataset import Dataset, Record
from wsss.data.files import read_image, read_mask, read_saliency
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
    percent,
    write_report,
)
from wsss.report.overlay import overlay_mask, overlay_saliency
from wsss.report.palette import voc_palette
from wsss.rundir import RunDirectory

GALLERY_ROWS = 12


Picture = npt.NDArray[np.uint8]


def dry_run_note(metrics: dict[str, Any]) -> str:
    """What is said beside every number of a run on a few photos (``data.limit``); empty for other runs."""
    limit = metrics.get("data_limit")
    return "" if limit is None else f"DRY RUN on {limit} photos of each split (data.limit): no result"


def size_note(metrics: dict[str, Any]) -> str:
    """What is said where large photos were worked on as copies (``data.long_side``); empty for other runs."""
    side = metrics.get("data_long_side")
    return (
        ""
        if side is None
        else f"photos over {side} pixels shrunk to that, also for the scores (data.long_side)"
    )


def build_report(config: Config, dataset: Dataset, run: RunDirectory) -> None:
    """Write ``report.html`` from what the run directory holds so far."""
    metrics, manifest = run.read_metrics(), run.read_manifest()
    protocol = protocols(config)
    entries = [name for name in protocol if isinstance(metrics.get(name), dict)]
    dry = f"; {note}" if (note := dry_run_note(metrics)) else ""
    size = f"; {note}" if (note := size_note(metrics)) else ""
    report = Report(
        title=f"wsss: {Path(config.output).name}{' (dry run)' if dry else ''}",
        subtitle=(
            f"{len(dataset.train)} training photos with image labels, {len(dataset.val)} validation photos, "
            f"{len(dataset.classes)} classes, seed {config.seed}{size}{dry}"
        ),
        tiles=_tiles(metrics, dry),
        summary=tuple(
            SummaryRow(
                protocol[name][0],
                metrics[name].get("miou"),
                protocol[name][1] + _mask_note(name, metrics[name]) + dry,
                metrics[name].get("oracle_miou"),
            )
            for name in entries
        ),
        classes=_class_table(dataset, metrics, entries, protocol),
        legend=tuple((name, _colour(index)) for index, name in enumerate(dataset.class_names) if index),
        charts=_charts(metrics.get("mask") or {}),
        galleries=tuple(gallery for gallery in _galleries(config, dataset, run) if gallery.rows),
        facts=_facts(manifest),
        config=run.config.read_text(encoding="utf-8") if run.config.is_file() else "",
    )
    write_report(run.report, report)


def protocols(config: Config) -> dict[str, tuple[str, str]]:
    """Entry of metrics.json -> (its name, the protocol behind it)."""
    best = "multi-scale + flip" if config.evaluate.ms_flip else "single scale"
    return {
        "seed": ("seeds", "train photos; saliency with background threshold, no CRF"),
        "extended": ("extended seeds", "train photos; after the extension to whole objects, no CRF"),
        "mask": ("pseudo-masks", "train photos; after the CRF, arg-max labels"),
        "relabelled": (
            "re-labelled masks",
            "train photos; by the network of the round before among the classes on the label, CRF, arg-max labels",
        ),
        "val": ("val", "val photos; single scale, no CRF"),
        "val_ms_flip": ("val, multi-scale + flip", "val photos; multi-scale and mirrored, no CRF"),
        "val_crf": ("val, CRF", f"val photos; {best}, then CRF"),
        "supervised": (
            "supervised",
            "val photos; same network trained on true masks, single scale, no CRF (oracle)",
        ),
    }


def _mask_note(name: str, entry: dict[str, Any]) -> str:
    if name == "seed":
        return f"; mean threshold {entry['threshold']:.3f}; oracle: best threshold"
    if entry.get("mask_pretraining"):
        return f"; {NOT_WEAK}"
    if name not in ("mask", "relabelled"):
        return ""
    kept = "" if entry.get("kept_miou") is None else f" with mIoU {percent(entry['kept_miou'])}"
    seen = f"; training keeps {percent(entry['coverage'])} % of the pixels{kept}"
    if name == "relabelled":
        rounds = ", ".join(percent(value) for value in entry["by_round"])
        return f"{seen}; round by round: {rounds}"
    return (
        f"{seen}; oracle: best background on {entry['oracle_images']} photos "
        f"(this run there: {percent(entry['miou_on_oracle_images'])})"
    )


def _tiles(metrics: dict[str, Any], dry: str) -> tuple[Tile, ...]:
    rows = (
        ("classifier mAP", "classifier", "mAP", "val, image labels"),
        ("seed mIoU", "seed", "miou", "train, no CRF"),
        ("pseudo-mask mIoU", "mask", "miou", "train, CRF"),
        *(
            [("re-labelled mIoU", "relabelled", "miou", "train, network and CRF")]
            if metrics.get("relabelled")
            else []
        ),
        ("val mIoU", "val", "miou", "single scale, no CRF"),
    )
    tiles = [
        Tile(label, values.get(key), note + (f"; {NOT_WEAK}" if values.get("mask_pretraining") else "") + dry)
        for label, entry, key, note in rows
        for values in [metrics.get(entry) or {}]
    ]
    if metrics.get("retention") is not None:
        tiles.append(Tile("retention", metrics["retention"], f"val mIoU / same network on true masks{dry}"))
    return tuple(tiles)


def _charts(mask: dict[str, Any]) -> tuple[Chart, ...]:
    """The curve of the pseudo-masks' confidence, with the point that the run's own rule reaches."""
    curve = mask.get("reliability")
    if not curve or not curve["coverage"]:
        return ()
    rule = None if mask.get("kept_accuracy") is None else (mask["coverage"], mask["kept_accuracy"])
    return (
        Chart(
            "Which pixels can be trusted",
            "share of the pixels that is kept",
            "share of those that is right",
            tuple(zip(curve["coverage"], curve["accuracy"], strict=True)),
            rule,
            f"Pseudo-masks of {curve['images']} training photos with ground truth, pixels ordered by the CRF's "
            "posterior; the dot is what the run's own rule (255 elsewhere) keeps on all of them. "
            "Ground truth only draws this chart.",
        ),
    )


def _class_table(
    dataset: Dataset, metrics: dict[str, Any], entries: Sequence[str], protocol: dict[str, tuple[str, str]]
) -> ClassTable | None:
    if not entries:
        return None
    rows = tuple(
        (name, _colour(index), tuple(metrics[entry]["per_class"].get(name) for entry in entries))
        for index, name in enumerate(dataset.class_names)
    )
    means = tuple(metrics[entry]["miou"] for entry in entries)
    return ClassTable(tuple(protocol[entry][0] for entry in entries), rows, means)


def _galleries(config: Config, dataset: Dataset, run: RunDirectory) -> tuple[Gallery, Gallery]:
    labelled = [record for record in dataset.train if record.labels]
    rounds = range(1, config.segmenter.rounds)
    train = Gallery(
        "Training photos: from saliency to pseudo-mask",
        (
            "photo",
            "saliency",
            "pseudo-mask",
            *(f"re-labelled, round {turn}" for turn in rounds),
            "ground truth",
        ),
        tuple(_train_row(record, dataset, run, rounds) for record in _evenly(labelled)),
        "Evenly spaced over the training list. Saliency: the strongest class of the label at each pixel; "
        "hatched: uncertain, not trained on. Ground truth is never trained on.",
    )
    val = Gallery(
        "Validation photos: predictions",
        ("photo", "prediction", "multi-scale + flip", "CRF", "ground truth"),
        tuple(_val_row(record, dataset, run) for record in _evenly(dataset.val)),
        "Evenly spaced over the validation list; no image label is used here.",
    )
    return train, val


def _evenly(records: Sequence[Record]) -> list[Record]:
    count = min(GALLERY_ROWS, len(records))
    return [records[index * len(records) // count] for index in range(count)]


def _train_row(record: Record, dataset: Dataset, run: RunDirectory, rounds: Sequence[int]) -> GalleryRow:
    image = read_image(record.image)
    path, heat = run.saliency(record.id), None
    if path.is_file():
        stored = read_saliency(path)
        heat = overlay_saliency(image, prepare_maps(stored.maps, stored.size).max(axis=0))
    pictures = (
        image,
        heat,
        *(_overlay(image, run.round(turn).mask("pseudo_masks", record.id)) for turn in (0, *rounds)),
        _overlay(image, record.mask),
    )
    return GalleryRow(record.id, _names(record, dataset), pictures)


def _val_row(record: Record, dataset: Dataset, run: RunDirectory) -> GalleryRow:
    image = read_image(record.image)
    folders = ("predictions", "predictions_ms_flip", "predictions_crf")
    drawn = tuple(_overlay(image, run.mask(folder, record.id)) for folder in folders)
    return GalleryRow(record.id, _names(record, dataset), (image, *drawn, _overlay(image, record.mask)))


def _overlay(image: Picture, mask: Path | None) -> Picture | None:
    return overlay_mask(image, read_mask(mask)) if mask is not None and mask.is_file() else None


def _names(record: Record, dataset: Dataset) -> tuple[str, ...]:
    return tuple(dataset.class_names[label] for label in record.labels or ())


def _colour(index: int) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in voc_palette()[index])
    return red, green, blue


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
