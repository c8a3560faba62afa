"""What is compared, decided before anything is computed or written."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from wsss import runtime
from wsss.comparison.judge import Judge, load_judge, match_classes
from wsss.comparison.measure import Subject, load_subject
from wsss.comparison.regions import annotation
from wsss.comparison.store import load, slug
from wsss.config import CompareConfig, ComparisonConfig
from wsss.data.dataset import Record, evenly
from wsss.data.names import listed
from wsss.errors import UserError
from wsss.rundir import RunDirectory, file_stamp, fingerprint
from wsss.runtime import say
from wsss.saliency import SaliencyMethod
from wsss.saliency.parse import parse_method
from wsss.stages.prepare import prepare_dataset


@dataclass(frozen=True)
class Contestant:
    """A method on the leaderboard: its name as the user wrote it, its folder, and the method itself."""

    name: str
    slug: str
    method: SaliencyMethod


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is compared.

    Attributes:
        config: the whole configuration.
        folder: of the results.
        classes: names of the data set's classes, index 1 first.
        records: the compared images.
        judge: the classifier, on its device.
        known: mask index -> index of the classifier, of the compared classes.
        contestants: the methods.
    """

    config: ComparisonConfig
    folder: Path
    classes: tuple[str, ...]
    records: tuple[Record, ...]
    judge: Judge
    known: Mapping[int, int]
    contestants: tuple[Contestant, ...]

    @property
    def settings(self) -> CompareConfig:
        """The section `compare` of the configuration."""
        return self.config.compare

    @cached_property
    def page_records(self) -> list[Record]:
        """The images on the page."""
        return evenly(list(self.records), self.settings.page_images) if self.settings.page_images else []

    @cached_property
    def on_page(self) -> frozenset[str]:
        """Ids of the images on the page."""
        return frozenset(record.id for record in self.page_records)

    @cached_property
    def with_insertion(self) -> frozenset[str]:
        """Ids of the images that get insertion and deletion."""
        settings = self.settings
        chosen = evenly(list(self.records), settings.insertion_images) if settings.insertion_steps else []
        return frozenset(record.id for record in chosen)

    def subject(self, record: Record) -> Subject:
        """A photo on the classifier's device."""
        device = runtime.device(self.config.runtime)
        return load_subject(record, self.classes, self.known, self.settings.size, device)

    # -- files --------------------------------------------------------------------------------------

    def values(self, contestant: Contestant, record: Record) -> Path:
        """File of what was measured."""
        return self.folder / "values" / contestant.slug / f"{record.id}.json"

    def maps(self, contestant: Contestant, record: Record) -> Path:
        """File of the maps for the page."""
        return self.folder / "maps" / contestant.slug / f"{record.id}.npz"

    def stored(self, contestant: Contestant, record: Record) -> dict[str, Any] | None:
        """What was measured for one method and image; None if it is missing or was made with other settings."""
        if record.id in self.on_page and not self.maps(contestant, record).is_file():
            return None
        return load(self.values(contestant, record), self.expected(contestant, record))

    def expected(self, contestant: Contestant, record: Record) -> str:
        """Fingerprint of all that the values of one method and image depend on."""
        files = (record.image, record.mask, annotation(record))
        return fingerprint(
            *self.setting(contestant),
            self.settings.threshold,
            (self.settings.insertion_steps, "blur", "mean") if record.id in self.with_insertion else 0,
            [(label, self.known.get(label)) for label in record.labels or ()],
            [file and file_stamp(file) for file in files],
        )

    def setting(self, contestant: Contestant) -> list[Any]:
        """What the maps depend on, apart from the image."""
        return [
            repr(contestant.method),
            self.judge.digest,
            self.judge.source,
            self.judge.score,
            self.settings.size,
            *self.hardware,
        ]

    @cached_property
    def hardware(self) -> tuple[str, str]:
        """Device and precision of the maps; the scores are always computed in float32."""
        config = self.config.runtime
        name = runtime.precision(config)[0]
        return str(runtime.device(config)), "float32" if name == "fp16" else name  # see `runtime.autocast`


def plan(config: ComparisonConfig) -> Comparison:
    """Reads classifier, methods and data set. Errors come before anything is computed or written."""
    runtime.device(config.runtime)
    judge = load_judge(config)
    contestants = parse_contestants(config.compare.methods, judge)
    # No copies (data.long_side) are needed: `compare.size` says what the classifier sees.
    dataset = prepare_dataset(replace(config, data=replace(config.data, long_side=None)))
    known = match_classes(dataset.classes, judge)
    split = dataset.val if config.compare.split == "val" else dataset.train
    if missing := [name for label, name in enumerate(dataset.classes, 1) if label not in known]:
        photos = Counter(dataset.classes[label - 1] for record in split for label in record.labels or ())
        names = listed({name: photos[name] for name in missing}, judge.names)
        say(f"compare: left out classes that the classifier does not know: {names}")
    labelled = [record for record in split if any(label in known for label in record.labels or ())]
    if not labelled:
        raise UserError(
            f"no image of {config.compare.split} has a label that the classifier knows; "
            f"choose --compare.split {'train' if config.compare.split == 'val' else 'val'}, or check data.labels"
        )
    records = tuple(evenly(labelled, config.compare.images))
    runtime.prepare(judge.model, config.runtime)
    folder = RunDirectory(Path(config.output)).compare
    return Comparison(config, folder, dataset.classes, records, judge, known, contestants)


def parse_contestants(methods: Sequence[str], judge: Judge) -> tuple[Contestant, ...]:
    """The methods of the expressions.

    Raises:
        UserError: one is unknown, or two are the same.
    """
    found: dict[str, Contestant] = {}
    for text in methods:
        try:
            method = parse_method(text, judge.layer, judge.score)
        except UserError as error:
            cut = text.count("(") != text.count(")")
            hint = """; quote entries that hold a comma: '["sess(gradcam, prefilter=0.5)"]'""" if cut else ""
            raise UserError(f"compare.methods: {error}{hint}") from error
        if (name := slug(method)) in found:
            raise UserError(f"compare.methods: {text} and {found[name].name} are the same; remove one")
        found[name] = Contestant(text, name, method)
    return tuple(found.values())
