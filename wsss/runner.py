"""Running the stages of a command in a run directory. Finished stages are skipped; the others run in order."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import yaml

from wsss import plugins, runtime
from wsss.config import Config, leaves, to_dict
from wsss.data.dataset import Dataset, check_trainable, first
from wsss.data.files import write_json, write_text
from wsss.data.labels import read_text
from wsss.errors import UserError
from wsss.models.segmenter import check_architecture
from wsss.parallel import rank_and_world
from wsss.pipeline import STAGES
from wsss.refine.refiners import build_refiner
from wsss.report.build import build_report, dry_run_note, size_note, warnings_of
from wsss.rundir import MASKS, RunDirectory, StageState, describe_machine, fingerprint
from wsss.runtime import say
from wsss.stages import shards
from wsss.stages.base import Context, weights_digests
from wsss.stages.prepare import prepare_dataset, warn_of_large_photos
from wsss.stages.saliency import build_method
from wsss.stages.score import metrics_of, summary

STAGES_OF: dict[str, tuple[str, ...]] = {
    "run": tuple(STAGES),
    "classify": ("classify", "score_classifier"),
    "saliency": ("saliency",),
    "refine": ("extend", "refine"),
    "segment": ("segment", "supervise"),
    "evaluate": ("score_masks", "evaluate", "score_tags", "evaluate_supervised"),
    "report": (),
}
"""Command -> the stages that it runs; `run`, `evaluate` and `report` also write the report."""


def run_command(
    config: Config, command: str, arguments: Sequence[str] = (), *, overwrite: bool = False
) -> None:
    """Run the stages of ``command`` (see ``STAGES_OF``) in ``config.output``.

    Args:
        config: the configuration.
        command: its name.
        arguments: the words of the command line, for the manifest.
        overwrite: replace finished networks that were trained with another configuration or other data.

    Raises:
        UserError: bad input, an earlier stage is missing, the directory is in use, or it holds a finished network that
            would be replaced.
    """
    check_names(config)
    if rank_and_world()[0] > 0:
        _help(config, command)
        return
    run = RunDirectory(Path(config.output))
    run.check_own()
    dataset = prepare_dataset(config)
    check_trainable(dataset)
    if config.data.long_side is None:
        warn_of_large_photos(dataset)
    context = Context(config, dataset, run)
    runtime.device(config.runtime)  # fails before anything is written
    if (world := rank_and_world()[1]) > 1:  # likewise, if a batch cannot be split over them
        replace(config, runtime=replace(config.runtime, devices=world))
    with run.locked():
        for name, stage in STAGES.items():
            run.take_back(name, stage.writes)  # a process was killed while it moved them aside
        expected = fingerprints(config, dataset)
        stages = stages_of(command, config)
        _check_ready(command, stages, context, expected, overwrite)
        if stages:
            _describe(context, arguments)
            _retire(context, expected)
            marks = {"data_limit": config.data.limit, "data_long_side": config.data.long_side}
            if any(run.read_metrics().get(name) != value for name, value in marks.items()):
                run.update_metrics(**marks)
        if rank_and_world()[1] == 1:  # before helping processes begin to write
            run.remove_leftovers([output for name in stages for output in STAGES[name].writes])
        joined = any(
            _is_joined(name)
            and not _why_skipped(name, context, expected, command)
            and _state(name, context, expected) != "done"
            for name in stages
        )
        with shards.helpers(command, run, config.plugins, config.runtime.devices if joined else 1):
            for name in stages:
                _run_stage(name, context, expected, command)
        if command in ("run", "evaluate", "report"):
            build_report(config, dataset, run)
            print_summary(context)


def check_names(config: Config) -> None:
    """Check the expressions in the configuration, which only the code behind them understands, before a photo is read.

    Raises:
        UserError: an unknown method, or a parameter that it does not have.
    """
    build_method(config.saliency)
    build_refiner(config.refine)
    check_architecture(config)


def stages_of(command: str, config: Config) -> list[str]:
    """The stages of a command that the configuration asks for, in order.

    `run` with `segmenter.masks` trains on those masks and skips the stages whose output nothing reads.
    """
    asked = STAGES_OF[command]
    if command == "run" and config.segmenter.masks is not None:
        needed = set(STAGES_OF["segment"]) | set(STAGES_OF["evaluate"]) - {"score_masks"}
        for name in reversed(STAGES):
            needed |= set(STAGES[name].follows(config)) if name in needed else set()
        asked = tuple(name for name in STAGES if name in needed)
    return [name for name in asked if STAGES[name].wanted(config)]


def _help(config: Config, command: str) -> None:
    """Do this process's part of the stages that process 0 runs (see ``shards``)."""
    shards.end_with_parent()
    dataset = prepare_dataset(config)
    context = Context(config, dataset, RunDirectory(Path(config.output)))
    expected, patience = fingerprints(config, dataset), shards.PATIENCE
    for name in filter(_is_joined, stages_of(command, config)):
        if _why_skipped(name, context, expected, command):
            continue
        state = partial(_state, name, context, expected)
        if shards.wait_for_stage(name, expected[name], context.run, state, patience):
            STAGES[name].work(context)
        patience = shards.LONG_PATIENCE


def _is_joined(name: str) -> bool:
    """Whether several processes work on a stage."""
    return STAGES[name].shared or STAGES[name].trains


def fingerprints(config: Config, dataset: Dataset) -> dict[str, str]:
    """The fingerprint that each stage should have under this configuration."""
    result: dict[str, str] = {}
    for name, stage in STAGES.items():
        before = [result[other] for other in stage.follows(config)]
        result[name] = fingerprint(
            name, stage.reads(config, dataset), before, *sorted(plugins.LOADED.values())
        )
    return result


def _state(name: str, context: Context, expected: dict[str, str]) -> StageState:
    run = context.run
    state = run.stage_state(name, expected[name], STAGES[name].files(context))
    lost = set(run.stage_entry(name).get("metrics", ())) - run.read_metrics().keys()
    return "partial" if state == "done" and lost else state


def _optional(command: str, config: Config) -> dict[str, tuple[str, str]]:
    """Stage -> the stage without which the command skips it, and the message then."""
    if command != "evaluate":
        return {}
    reason = "no finished segmenter with this configuration, so only seeds and pseudo-masks are scored"
    without = {"evaluate": ("segment", reason), "score_tags": ("segment", "no predictions")}
    if config.segmenter.masks is not None:
        without["score_masks"] = (
            "refine",
            "no pseudo-masks in this run, which trains on segmenter.masks: skipped",
        )
    return without


def _why_skipped(name: str, context: Context, expected: dict[str, str], command: str) -> str:
    """Why the command skips a stage; empty if it does not."""
    other, reason = _optional(command, context.config).get(name, ("", ""))
    return reason if other and _state(other, context, expected) != "done" else ""


def _check_ready(
    command: str, stages: Sequence[str], context: Context, expected: dict[str, str], overwrite: bool
) -> None:
    """Fail before anything is written if a stage could not succeed, would replace a finished network or files that are
    not its own, or if a stage that it builds on is missing."""
    config, run, size = context.config, context.run, 0
    states = {name: _state(name, context, expected) for name in stages}
    todo = [name for name in stages if states[name] != "done"]
    for name in todo:
        size += STAGES[name].check(context, states[name])
        if states[name] == "missing":
            _check_strangers(name, run)
    needed = {other for name in stages for other in STAGES[name].follows(config)} - set(stages)
    needed -= {other for other, _ in _optional(command, config).values()}
    if command == "report":
        needed = {"classify" if config.segmenter.masks is None else "segment"}
    for other in [name for name in STAGES if name in needed]:
        state = _state(other, context, expected)
        if state != "done":
            raise UserError(_not_ready(command, other, state, run))
    for name in todo:
        if states[name] == "stale" and STAGES[name].trains and not overwrite:
            _check_unfinished(name, context)
    free = shutil.disk_usage(run.root).free
    if free < size:
        raise UserError(
            f"{run.root} needs about {size / 1e9:.1f} GB, but its disk has {free / 1e9:.1f} GB free; free some space, "
            "or choose another --output"
        )


def _check_strangers(name: str, run: RunDirectory) -> None:
    """Raises UserError if a stage that never ran here would write into a folder with files."""
    for output in STAGES[name].writes:
        folder = run.root / output
        if folder.is_dir() and any(folder.iterdir()):
            own = " or train on them with --segmenter.masks" if output == MASKS else ""
            raise UserError(
                f"{folder} holds files that no stage of this run wrote; move them elsewhere,{own or ' or'} "
                "choose another --output"
            )


def _check_unfinished(name: str, context: Context) -> None:
    """Raises UserError if the stage has trained a network to the end with other settings or input."""
    run, (folder,) = context.run, STAGES[name].writes
    if run.is_finished(name, STAGES[name].files(context)):
        raise UserError(
            f"{run.root / folder} holds a finished network that was trained with {_difference(context)}; choose "
            "another --output, or replace it with --overwrite"
        )


def _difference(context: Context) -> str:
    """How the configuration differs from the one in the run directory."""
    before = (
        dict(leaves(yaml.safe_load(read_text(context.run.config)))) if context.run.config.is_file() else {}
    )
    now = dict(leaves(to_dict(context.config)))
    changed = [
        f"{key} {before[key]} instead of {now[key]}"
        for key in now
        if key in before and before[key] != now[key] and not key.startswith(("output", "runtime.", "plugins"))
    ]
    classes = context.run.read_manifest().get("classes", list(context.dataset.classes))
    if classes != list(context.dataset.classes):
        changed.append(f"the classes {first(classes)} instead of {first(context.dataset.classes)}")
    stored = context.run.read_manifest().get("plugins", {})
    known = {Path(name).name: digest for name, digest in stored.items()}  # however the path is spelt
    changed += [
        f"another content of the plug-in {name}"
        for name, digest in plugins.LOADED.items()
        if known.get(Path(name).name, digest) != digest
    ]
    return first(changed) or "other photos, labels, masks or weights, or by another version of wsss"


def _not_ready(name: str, other: str, state: str, run: RunDirectory) -> str:
    command = next(f"wsss {command}" for command, stages in list(STAGES_OF.items())[1:] if other in stages)
    if state == "stale":
        return (
            f"{name} needs the stage {other}, but {run.root} holds one made with another configuration or data; "
            f"run `{command}` (or `wsss run`) with this configuration, or pass --config {run.config}"
        )
    return f"{name} needs the stage {other}, which is not finished in {run.root}; run `{command}` first"


def _retire(context: Context, expected: dict[str, str]) -> None:
    """Remove from metrics.json what was measured with another configuration or other data."""
    run = context.run
    stale = [name for name in STAGES if run.stage_state(name, expected[name]) == "stale"]
    for name in [name for name in stale if run.stage_entry(name)["state"] == "done"]:
        run.record(name, state="outdated")
    gone = {entry for name in stale for entry in metrics_of(name)}
    if gone & run.read_metrics().keys():
        run.update_metrics(**dict.fromkeys(gone))


def _run_stage(name: str, context: Context, expected: dict[str, str], command: str) -> None:
    stage, run = STAGES[name], context.run
    if reason := _why_skipped(name, context, expected, command):
        say(f"{name}: {reason}")
        return
    if run.take_back(name, stage.writes, expected[name]):
        say(f"{name}: takes back what it had written with this configuration")
    state = _state(name, context, expected)
    if state == "done":
        say(f"{name}: already done")
        return
    verb = {
        "missing": "",
        "stale": " (again: its input or configuration changed)",
        "partial": " (continued)",
    }[state]
    say(f"{name}: {stage.title}{verb}")
    shared = stage.shared and rank_and_world()[1] > 1
    with run.running(name, expected[name], stage.writes, shared=shared) as facts:
        facts.update(stage.work(context))
        facts["metrics"] = [entry for entry in metrics_of(name) if entry in run.read_metrics()]
    for sentence in facts.get("warnings", ()):
        say(f"  warning: {sentence}")


def _describe(context: Context, arguments: Sequence[str]) -> None:
    """Write the resolved configuration and what is known about this machine."""
    run, config = context.run, context.config
    write_text(run.config, yaml.safe_dump(to_dict(config), sort_keys=False))
    manifest = {**run.read_manifest(), **describe_machine(), "seed": config.seed, "command": list(arguments)}
    manifest["weights"] = {**manifest.get("weights", {}), **weights_digests(config)}
    manifest["plugins"] = plugins.LOADED
    manifest["classes"] = list(context.dataset.classes)
    manifest["looked_at"] = context.dataset.looked_at
    device, (precision, reason) = runtime.device(config.runtime), runtime.precision(config.runtime)
    manifest["precision"], manifest["device"] = precision, str(device)
    say(f"device {device}, {precision} ({reason})")
    write_json(run.manifest, manifest)


def print_summary(context: Context) -> None:
    """Print the table of numbers and the report's path."""
    metrics = context.run.read_metrics()
    notes = [f"  {note}" for note in (dry_run_note(metrics), size_note(metrics)) if note]
    warnings = [f"  warning: {sentence}" for sentence in warnings_of(context.run.read_manifest())]
    print("\n".join([*notes, *summary(context.config, metrics), *warnings]))
    print(f"  metrics  {context.run.metrics}\n  report   {context.run.report}")
