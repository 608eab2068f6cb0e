"""Repairs of a run's model: which of them the run keeps, and what is printed of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from audit.errors import InputError
from audit.records.repair_run import Repair, RepairPlan, RepairRow
from audit.report.drawn.base import Picture
from audit.report.figures import Trade, trade_picture
from audit.report.names import AS_IN_THE_DATA, Names
from audit.report.pointers import Place, places
from audit.report.text import data_file, repair_notes, repair_sentence

FOLDER = "repairs"  # of a run: the record of each repair of its model


@dataclass(frozen=True)
class Kept:
    """The record of a repair, as a run keeps it."""

    file: str  # relative to the run
    record: Repair
    plan: RepairPlan
    sha256: str


@dataclass(frozen=True)
class Chapter:
    """What is printed of a repair.

    Parameters
    ----------
    record : Repair
    file : str
        Which it is read from, as the sources of its figures name it.
    sha256 : str
        Of that file; "" on the page that lies beside it.
    key : str
        What the identifiers of its parts begin with.
    names : Names
        What the card of the run calls groups and labels.
    """

    record: Repair
    file: str = "repair.json"
    sha256: str = ""
    key: str = ""
    names: Names = AS_IN_THE_DATA

    @cached_property
    def place(self) -> Place:
        """What tells where in the record a row is."""
        lists: dict[str, Sequence[object]] = {"/rows": self.record.rows}
        for number, judged in enumerate(self.record.certificates):
            of_certificate = f"/certificates/{number}/certificate"
            lists[f"{of_certificate}/lines"] = judged.certificate.lines
            lists[f"{of_certificate}/changed"] = judged.certificate.changed
        return places(lists)

    @property
    def recommended(self) -> RepairRow | None:
        """The method that was chosen, where it was run."""
        return next((r for r in self.record.rows if r.method == self.record.recommended and r.ranked is not None), None)

    @property
    def notes(self) -> list[str]:
        """What a reader must know first."""
        return repair_notes(self.record, self.names)

    @property
    def told(self) -> str:
        """What came of it, in a sentence or two."""
        return repair_sentence(self.record, self.names)

    @cached_property
    def picture(self) -> Picture | None:
        """What each method leaves of the gap, and what it costs."""
        names = data_file("words.yaml")["repair"]["methods"]
        trades = tuple(
            Trade(names[row.method]["name"], row.ranked.gap, row.ranked.worst.change, row is self.recommended)
            for row in self.record.rows
            if row.ranked is not None and row.ranked.worst is not None
        )
        margin = 0.0 if self.record.plan is None else self.record.plan.margins.accuracy
        return trade_picture(trades, margin, "What each method leaves of the gap, and what it costs")


def chapters_of(kept: Sequence[Kept], names: Names) -> list[Chapter]:
    """Return what a report prints of the repairs that a run keeps."""
    return [Chapter(one.record, one.file, one.sha256, f"repair-{k}-", names) for k, one in enumerate(kept, start=1)]


def kept_name(plan: RepairPlan) -> str:
    """Return the file of a run that keeps a repair, by its plan: the same repair again is the same file."""
    fixed = plan.model_copy(update={"reaudit": False})  # an audit may follow
    return f"{FOLDER}/{hashlib.sha256(fixed.model_dump_json().encode()).hexdigest()[:12]}.json"


def read_kept(run: Path, digest: str) -> list[Kept]:
    """Read the repairs that a run keeps, in the order in which they were planned.

    Parameters
    ----------
    run : pathlib.Path
    digest : str
        SHA-256 of its ``audit.json``; repairs of an earlier record are passed over.

    Raises
    ------
    InputError
        If one is damaged.
    """
    files = sorted(path for path in (run / FOLDER).glob("*.json") if path.is_file())
    found = [kept_of(run, path.relative_to(run).as_posix(), path.read_bytes()) for path in files]
    return in_order(kept for kept in found if kept.plan.audit_sha256 == digest)


def in_order(kept: Iterable[Kept]) -> list[Kept]:
    """Return repairs in the order in which they were planned."""
    return sorted(kept, key=lambda one: (one.plan.registered, one.file))


def kept_of(run: Path, file: str, content: bytes) -> Kept:
    """Read one repair that a run keeps, or is to keep.

    Raises
    ------
    InputError
        If its record is damaged.
    """
    try:
        record = Repair.model_validate_json(content)
    except ValidationError as error:
        raise _damaged(run / file, f"{error.error_count()} faults") from None
    if record.plan is None:
        raise _damaged(run / file, "no plan")
    return Kept(file, record, record.plan, hashlib.sha256(content).hexdigest())


def _damaged(path: Path, how: str) -> InputError:
    return InputError(str(path), f"is damaged ({how})", "repair again, or restore it from a copy")
