"""`wsss compare`: measures saliency methods on a data set's images and writes the leaderboard.

<run>/compare/
  leaderboard.json, leaderboard.csv, index.html
  values/<method>/<image>.json     what was measured; not measured again with the same settings
  maps/<method>/<image>.npz        the maps of the images on the page
  sanity/<method>/<stage>.json     rank correlations of the sanity check
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from wsss import runtime
from wsss.comparison import board, sanity
from wsss.comparison.measure import Subject, explain, is_smoothed, measure
from wsss.comparison.plan import Comparison, Contestant, plan
from wsss.comparison.results import write_results
from wsss.comparison.store import save
from wsss.config import ComparisonConfig
from wsss.data.dataset import Record, evenly
from wsss.data.files import Saliency, write_saliency
from wsss.errors import UserError
from wsss.metrics.perturbation import Scorer, scorer
from wsss.rundir import RunDirectory, file_stamp, fingerprint
from wsss.saliency import normalize


def compare(config: ComparisonConfig, command: Sequence[str] = ()) -> None:
    """Measures what has not been measured yet, and writes the leaderboard to `<output>/compare`.

    Raises:
        UserError: an unknown method, no classifier, no labelled image, or results that cannot be written.
    """
    comparison = plan(config)
    with RunDirectory(comparison.folder).locked():
        measure_all(comparison)
        checked = check_sanity(comparison) if config.compare.sanity else None
        rows = write_results(comparison, checked, command)
    print(board.table(rows))
    if checked is not None:
        methods = {name: values["correlation"] for name, values in checked["methods"].items()}
        print(f"\n{board.sanity_table(checked['stages'], methods)}\n")
    print(
        f"  page     {comparison.folder / 'index.html'}\n  numbers  {comparison.folder / 'leaderboard.json'}"
    )


# -- measuring --------------------------------------------------------------------------------------


def measure_all(comparison: Comparison) -> None:
    """Measures every method on every image whose values are not stored yet, method after method."""
    todo = {
        contestant: [record for record in comparison.records if comparison.stored(contestant, record) is None]
        for contestant in comparison.contestants
    }
    for contestant, records in todo.items():
        if records:  # warms up before the timing, and finds a method that does not fit before hours of others
            _explain(comparison, contestant, comparison.judge.model, comparison.subject(records[0]))
    total = len(comparison.contestants) * len(comparison.records)
    done = total - sum(len(records) for records in todo.values())
    score = scorer(comparison.judge.model, comparison.judge.score, comparison.settings.batch_size)
    with runtime.bar(comparison.config.runtime, "compare", total, done) as bar:
        for contestant, records in todo.items():
            for record in records:
                measure_one(comparison, contestant, record, score)
                bar.update(1)


def measure_one(comparison: Comparison, contestant: Contestant, record: Record, score: Scorer) -> None:
    """Measures one method on one image, and stores the values and the page's maps."""
    subject = comparison.subject(record)
    maps, milliseconds = _explain(comparison, contestant, comparison.judge.model, subject)
    targets = measure(
        maps,
        subject,
        score,
        comparison.settings,
        smooth=is_smoothed(contestant.method),
        insertion=record.id in comparison.with_insertion,
    )
    if record.id in comparison.on_page:
        small = normalize(maps).cpu().numpy().astype(np.float16)
        labels = np.array(subject.labels, np.int16)
        write_saliency(comparison.maps(contestant, record), Saliency(labels, small, subject.size))
    else:
        comparison.maps(contestant, record).unlink(missing_ok=True)  # made with other settings
    expected = comparison.expected(contestant, record)
    values = {"milliseconds": milliseconds, "truth": subject.truth.kind, "targets": targets}
    save(comparison.values(contestant, record), expected, values)


def _explain(
    comparison: Comparison, contestant: Contestant, model: nn.Module, subject: Subject
) -> tuple[Tensor, float]:
    try:
        return explain(contestant.method, model, subject, comparison.config.runtime)
    except UserError as error:
        raise UserError(f"{contestant.name}: {error}") from error


# -- sanity -----------------------------------------------------------------------------------------


def check_sanity(comparison: Comparison) -> dict[str, Any]:
    """Rank correlations under cascading randomisation: stages, images, and a list for each method."""
    settings, model = comparison.settings, comparison.judge.model
    records = evenly(list(comparison.records), settings.sanity_images)
    subjects = [comparison.subject(record) for record in records]
    stages = [stage.name for stage in sanity.randomization_stages(model)]

    def explainer(contestant: Contestant) -> sanity.Explain:
        return lambda classifier, index: _explain(comparison, contestant, classifier, subjects[index])[0]

    def files(contestant: Contestant) -> Callable[[str], Path]:
        return lambda stage: comparison.folder / "sanity" / contestant.slug / f"{stage}.json"

    stamps = [(record.id, record.labels, file_stamp(record.image)) for record in records]
    known = sorted(comparison.known.items())
    total = len(stages) * len(comparison.contestants) * len(records)
    with runtime.bar(comparison.config.runtime, "sanity", total, 0) as bar:
        found = sanity.correlations(
            model,
            [explainer(contestant) for contestant in comparison.contestants],
            [files(contestant) for contestant in comparison.contestants],
            [
                fingerprint("sanity", *comparison.setting(c), settings.seed, stamps, known)
                for c in comparison.contestants
            ],
            len(records),
            settings.seed,
            bar.update,
        )
    methods = {
        contestant.name: {
            "correlation": [found[stage][number].correlation for stage in stages],
            "flat": [found[stage][number].flat for stage in stages],
        }
        for number, contestant in enumerate(comparison.contestants)
    }
    targets = sum(len(subject.labels) for subject in subjects)
    return {"stages": stages, "images": len(records), "targets": targets, "methods": methods}
