"""Decisions go into a finished run, whoever brings them: merged, printed into its pages, held by its manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from audit.errors import InputError
from audit.records import Decision, Review
from audit.report.manifest import check_kept, holds, write_manifest
from audit.report.render import Source, printed, read_run, write_files
from audit.report.reviews import DECISIONS, added, carried, merge
from audit.store import locked


@dataclass(frozen=True)
class CarriedOver:
    """What of an earlier run's decisions was taken over.

    Parameters
    ----------
    added : sequence of Decision
        What is new in the run.
    left : sequence of Decision
        What was not taken over: about findings that the run has not, about sections, about the report as a whole.
    """

    added: Sequence[Decision]
    left: Sequence[Decision]


def add_review(run: Path, review: Review) -> list[Decision]:
    """Add a review's decisions to a run, and write its pages again; returns what is new.

    All is written, or nothing is.

    Raises
    ------
    InputError
        If the review is of another audit, or the record or its decisions were changed.
    UnfinishedError
        If another command is at work in the run, or it cannot be written.
    """
    return _written(run, lambda source: merge(run, review, source.audit, source.digest))


def carry_over(run: Path, earlier: Path) -> CarriedOver:
    """Take over what was decided of an earlier run about findings that this one has, too.

    Raises
    ------
    InputError
        If the earlier run is this one, or the record or the decisions of either were changed.
    UnfinishedError
        If another command is at work in the run, or it cannot be written.
    """
    before = read_run(earlier)
    check_kept(earlier)
    left: list[Decision] = []

    def taken(source: Source) -> tuple[str, list[Decision]]:
        if before.digest == source.digest:
            raise InputError(str(earlier), "has the same record as this run", "name the run of an earlier audit")
        here, others = carried(before.decisions, before.digest, source.audit)
        left.extend(others)
        return added(run, here, source.digest)

    return CarriedOver(_written(run, taken), left)


def _written(run: Path, decide: Callable[[Source], tuple[str, list[Decision]]]) -> list[Decision]:
    with locked(run):
        source = read_run(run)
        check_kept(run)
        text, new = decide(source)
        if new or (source.decisions and not holds(run, DECISIONS)):  # an earlier review was cut short
            pages = printed(replace(source, decisions=[*source.decisions, *new]))
            write_files(run, {DECISIONS: text.encode(), **pages})
            write_manifest(run, only=[DECISIONS, *pages])
    return new
