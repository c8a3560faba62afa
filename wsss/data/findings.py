"""Findings about a data set: the doctor reports them all, and a run stops at the first error."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsss.errors import UserError, escaped

Severity = Literal["error", "warning"]
_SHOWN = 5  # examples of one kind in the text report


@dataclass(frozen=True)
class Problem:
    """One finding.

    Attributes:
        severity: "error" = a run fails or its numbers are worthless; "warning" = check it.
        kind: short headline that similar findings share.
        file: where it is.
        message: the details, and the fix if it is not obvious.
    """

    severity: Severity
    kind: str
    file: Path
    message: str


@dataclass(frozen=True)
class CheckReport:
    """What the doctor found; `str()` gives a text to read.

    Attributes:
        root: the data set's folder.
        layout: "voc" or "folder".
        problems: errors first, similar ones together.
        counts: how many images, masks, labelled images, and images a split ("split train").
        per_class: class name -> number of images with that label.
    """

    root: Path
    layout: str
    problems: tuple[Problem, ...]
    counts: Mapping[str, int]
    per_class: Mapping[str, int]

    @property
    def ok(self) -> bool:
        """No errors (there may be warnings)."""
        return not any(problem.severity == "error" for problem in self.problems)

    def __str__(self) -> str:
        lines = [f"{self.root} ({self.layout} layout)"]
        lines += ["  " + ", ".join(f"{name} {number}" for name, number in self.counts.items())]
        if self.per_class:
            lines += ["  labels: " + ", ".join(f"{name} {n}" for name, n in self.per_class.items())]
        groups: dict[tuple[str, str], list[Problem]] = defaultdict(list)
        for problem in self.problems:
            groups[problem.severity, problem.kind].append(problem)
        for (severity, kind), problems in groups.items():
            lines += ["", f"{severity}: {kind} ({len(problems)})"]
            lines += [f"  {problem.message}" for problem in problems[:_SHOWN]]
            lines += [f"  … and {len(problems) - _SHOWN} more"] * (len(problems) > _SHOWN)
        errors = sum(problem.severity == "error" for problem in self.problems)
        counts = (errors, "error"), (len(self.problems) - errors, "warning")
        lines += ["", ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)]
        return escaped("\n".join(lines))


def settle(problems: Iterable[Problem]) -> tuple[str, ...]:
    """The warnings, for a run to tell.

    Raises:
        UserError: there is an error.
    """
    problems = tuple(problems)
    for problem in problems:
        if problem.severity == "error":
            raise UserError(problem.message)
    return tuple(problem.message for problem in problems)
