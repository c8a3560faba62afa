"""Running the stages of a command in a run directory: what is done is skipped, the rest follows in order."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import yaml

from wsss import evaluation, runtime, shards
from wsss.config import NOT_WEAK, Config, to_dict
from wsss.data.dataset import Dataset, check_trainable, load_dataset, resolve_file
from wsss.data.files import image_size, write_json, write_text
from wsss.data.shapes import write_shapes
from wsss.data.working import with_copies
from wsss.errors import UserError
from wsss.pipeline import Context
from wsss.report.build import build_report, dry_run_note, size_note
from wsss.rundir import ROUNDS, RunDirectory, StageState, describe_machine, fingerprint
from wsss.saliency.stage import build_method
from wsss.selftraining import keep_networks
from wsss.stages import STAGES

COMMANDS: dict[str, tuple[str, ...]] = {
    "run": tuple(STAGES),
    "classify": ("classify", "score_classifier"),
    "saliency": ("saliency",),
    "refine": ("extend", "refine"),
    "segment": ("self_train", "segment", "supervise"),
    "evaluate": ("score_masks", "score_relabelled", "evaluate", "evaluate_supervised"),
    "report": (),
}
"""Command -> the stages that it runs; `run`, `evaluate` and `report` also write the report."""

LARGE = 2_500_000
"""Pixels of a photo from which on a run says how to work on smaller copies."""

WITHOUT = {
    "score_relabelled": ("self_train", "no finished self-training of this configuration: skipped"),
    "evaluate": (
        "segment",
        "no finished segmenter of this configuration, so only seeds and pseudo-masks are scored",
    ),
}
"""Stage -> the stage that `wsss evaluate` does not insist on, and what it says where that is not done."""


def run_command(config: Config, command: str, arguments: Sequence[str] = ()) -> None:
    """Run the stages of ``command`` (see ``COMMANDS``) in ``config.output``.

    Raises:
        UserError: bad input, a stage before the asked one is missing, or the directory is in use.
    """
    if command in shards.SHARED and shards.rank_and_world()[0] > 0:
        _help(config, command)
        return
    RunDirectory(Path(config.output)).check_own()
    dataset = prepare_dataset(config)
    check_trainable(dataset)
    if config.data.long_side is None:
        _warn_of_large_photos(dataset)
    context = Context(config, dataset, RunDirectory(Path(config.output)))
    runtime.device(config.runtime)  # complains before anything is written
    with context.run.locked():
        expected = fingerprints(config, dataset)
        stages = [name for name in COMMANDS[command] if STAGES[name].wanted(config)]
        _check_ready(command, stages, context, expected)
        if stages:
            _describe(context, arguments)
            if "segment" in stages:
                _keep_networks(context, expected)
            _retire(context, expected)
            marks = {"data_limit": config.data.limit, "data_long_side": config.data.long_side}
            if any(context.run.read_metrics().get(name) != value for name, value in marks.items()):
                context.run.update_metrics(**marks)
        for name in stages:
            _run_stage(name, context, expected, command)
        if command in ("run", "evaluate", "report"):
            build_report(config, dataset, context.run)
            print_summary(context)


def _help(config: Config, command: str) -> None:
    """Do this process's shard of a stage that process 0 runs (see ``shards``)."""
    dataset = prepare_dataset(config)
    context = Context(config, dataset, RunDirectory(Path(config.output)))
    expected = fingerprints(config, dataset)
    for name in COMMANDS[command]:
        shards.wait_for(name, expected[name], context.run)
        STAGES[name].work(context)


def prepare_dataset(config: Config) -> Dataset:
    """Load the data set: ``data.limit`` photos of each split, large ones as copies of ``data.long_side`` pixels.

    The shapes are made on first use.
    """
    data = config.data
    if data.kind == "shapes":
        shapes = data.shapes
        write_shapes(
            Path(data.root),
            train=shapes.train,
            val=shapes.val,
            size=shapes.size,
            seed=shapes.seed,
            progress=config.runtime.progress and sys.stderr.isatty(),
        )
    root = Path(data.root)
    classes = None if data.classes is None else resolve_file(data.classes, root) or Path(data.classes)
    dataset = load_dataset(data.kind, root, data.labels, classes, data.train, data.val)
    if data.limit is not None:
        splits = (tuple(evaluation.evenly(list(split), data.limit)) for split in (dataset.train, dataset.val))
        train, val = splits
        dataset = replace(dataset, train=train, val=val)
    if data.long_side is None:
        return dataset
    return with_copies(
        dataset,
        Path(config.output),
        data.long_side,
        runtime.workers(config.runtime),
        partial(runtime.bar, config.runtime, "shrink photos"),
    )


def _warn_of_large_photos(dataset: Dataset) -> None:
    """One line where photos of a camera would be worked on at their full size."""
    for record in evaluation.evenly([*dataset.train, *dataset.val], 20):
        height, width = image_size(record.image)
        if height * width > LARGE:
            say(
                f"{record.image} has {width}x{height} pixels: memory and time grow with the photos, and masks do not "
                "get better; --data.long_side 640 works on smaller copies"
            )
            return


def fingerprints(config: Config, dataset: Dataset) -> dict[str, str]:
    """The fingerprint that each stage should have under this configuration."""
    result: dict[str, str] = {}
    for name in STAGES:
        result[name] = _fingerprint(name, config, dataset, result)
    return result


def _fingerprint(name: str, config: Config, dataset: Dataset, others: dict[str, str]) -> str:
    stage = STAGES[name]
    return fingerprint(name, stage.reads(config, dataset), [others[other] for other in stage.after])


def _state(name: str, context: Context, expected: dict[str, str]) -> StageState:
    return context.run.stage_state(name, expected[name], STAGES[name].files(context))


def _check_ready(command: str, stages: Sequence[str], context: Context, expected: dict[str, str]) -> None:
    """Refuse before anything is written where a value has no meaning, or something to build on is not there."""
    if "supervise" in stages and not evaluation.with_masks(context.dataset.train):
        raise UserError(
            "segmenter.supervised needs true masks of training images, and this data set has none; set it to false"
        )
    if {"segment", "supervise"} & set(stages):
        _check_batch(context)
    if "saliency" in stages:  # a misspelt method must not show only after hours of training
        build_method(context.config.saliency, context.config.classifier.architecture)
    needed = {other for name in stages for other in STAGES[name].after} - set(stages)
    if command == "evaluate":
        needed -= {other for other, _ in WITHOUT.values()}
    if command == "report":
        needed = {"classify"}
    for other in [name for name in STAGES if name in needed]:
        state = _state(other, context, expected)
        if state != "done":
            raise UserError(_not_ready(command, other, state, context.run))


def _check_batch(context: Context) -> None:
    """DeepLab's image pooling has one value a channel, which BatchNorm cannot normalise over one image."""
    settings, hardware = context.config.segmenter, context.config.runtime
    images = min(settings.batch_size, len(context.dataset.train)) // (hardware.devices * hardware.num_nodes)
    if settings.architecture != "light" and images < 2:
        raise UserError(
            f"{settings.architecture} cannot be trained on batches of one image a device; use more photos or a larger "
            "--segmenter.batch_size, or --segmenter.architecture light"
        )


def _keep_networks(context: Context, expected: dict[str, str]) -> None:
    """Where only the number of self-training rounds changed, what is trained stays."""
    run, rounds = context.run, context.config.segmenter.rounds
    most = max(rounds, 1 + sum(1 for _ in (run.root / ROUNDS).glob("*")))
    as_last = {}
    for turn in range(1, most + 1):
        config = replace(context.config, segmenter=replace(context.config.segmenter, rounds=turn))
        as_last[turn] = _fingerprint("segment", config, context.dataset, expected)
    for line in keep_networks(run, rounds, as_last, expected["self_train"]):
        say(f"segment: {line}")


def _retire(context: Context, expected: dict[str, str]) -> None:
    """Take out of metrics.json what was measured under another configuration or on other data."""
    stale = [name for name in STAGES if context.run.stage_state(name, expected[name]) == "stale"]
    for name in stale:
        context.run.record(name, state="outdated")
    gone = {entry for name in stale for entry in STAGES[name].metrics}
    if gone & context.run.read_metrics().keys():
        context.run.update_metrics(**dict.fromkeys(gone))


def _run_stage(name: str, context: Context, expected: dict[str, str], command: str) -> None:
    stage, run = STAGES[name], context.run
    if command == "evaluate" and name in WITHOUT and _state(WITHOUT[name][0], context, expected) != "done":
        say(f"{name}: {WITHOUT[name][1]}")
        return
    state = _state(name, context, expected)
    if state == "done":
        say(f"{name}: done before")
        return
    verb = {
        "missing": "",
        "stale": " (its input or configuration changed: again)",
        "partial": " (continued)",
    }[state]
    say(f"{name}: {stage.title}{verb}")
    shared = command in shards.SHARED and shards.rank_and_world()[1] > 1
    with run.running(name, expected[name], stage.outputs, shared=shared) as facts:
        facts.update(stage.work(context))


def _not_ready(name: str, other: str, state: str, run: RunDirectory) -> str:
    command = next(f"wsss {command}" for command, stages in list(COMMANDS.items())[1:] if other in stages)
    if state == "stale":
        return (
            f"{name} needs the stage {other}, but {run.root} holds one made with another configuration or data; "
            f"run `{command}` (or `wsss run`) with this configuration, or pass --config {run.config}"
        )
    return f"{name} needs the stage {other}, which is not finished in {run.root}; run `{command}` first"


def _describe(context: Context, arguments: Sequence[str]) -> None:
    """Write the resolved configuration and what is known of this machine."""
    run, config = context.run, context.config
    write_text(run.config, yaml.safe_dump(to_dict(config), sort_keys=False))
    manifest = {**run.read_manifest(), **describe_machine(), "seed": config.seed, "command": list(arguments)}
    manifest["precision"] = "bf16" if runtime.uses_bf16(config.runtime) else "float32"
    manifest["device"] = str(runtime.device(config.runtime))
    write_json(run.manifest, manifest)


def print_summary(context: Context) -> None:
    """The table of mIoU per stage, and where the report is."""
    metrics = context.run.read_metrics()
    rows = [
        ("classifier mAP, val", "classifier", "mAP"),
        ("seed mIoU, train (saliency, no CRF)", "seed", "miou"),
        ("   oracle threshold (uses masks)", "seed", "oracle_miou"),
        ("extended seed mIoU, train (no CRF)", "extended", "miou"),
        ("pseudo-mask mIoU, train (CRF)", "mask", "miou"),
        ("re-labelled mask mIoU, train (network, CRF)", "relabelled", "miou"),
        ("val mIoU, single scale, no CRF", "val", "miou"),
        ("val mIoU, multi-scale + flip", "val_ms_flip", "miou"),
        (
            f"val mIoU, {'multi-scale + flip' if context.config.evaluate.ms_flip else 'single scale'} + CRF",
            "val_crf",
            "miou",
        ),
        ("val mIoU, trained on true masks (oracle)", "supervised", "miou"),
    ]
    lines = [
        f"  {title:<44}{metrics[entry][key]:.4f}"
        for title, entry, key in rows
        if isinstance(metrics.get(entry), dict) and metrics[entry].get(key) is not None
    ]
    if any(isinstance(entry, dict) and entry.get("mask_pretraining") for entry in metrics.values()):
        lines.append(f"  {NOT_WEAK}")
    if metrics.get("retention") is not None:
        lines.append(f"  {'retention (val / oracle)':<44}{metrics['retention']:.4f}")
    lines = [*(f"  {note}" for note in (dry_run_note(metrics), size_note(metrics)) if note), *lines]
    print("\n".join(lines))
    print(f"  metrics  {context.run.metrics}\n  report   {context.run.report}")


def say(text: str) -> None:
    """One line for the person who watches."""
    print(text, file=sys.stderr, flush=True)
