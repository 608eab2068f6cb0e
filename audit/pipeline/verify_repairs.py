"""The repairs that a run keeps, judged again by their own numbers.

What a repair measured lies in its own folder, so a run alone shows whether its answers follow from its lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from audit.data.sealed import OPENINGS, count_openings
from audit.evidence.certificate import state_of_lines
from audit.pipeline.print_again import Fault
from audit.records.repair_json import CertificateLine, LineKind, LineState
from audit.records.repair_run import Judgement, RepairState, best_of, state_of_repair
from audit.report.repairs import Kept, kept_name

ROUNDING = 1e-9


def repair_faults(run: Path, kept: Sequence[Kept]) -> list[Fault]:
    """Say where a kept repair contradicts itself, its plan, or how often the run's sealed images were opened."""
    try:
        return [fault for one in kept for fault in _faults(run, one)]
    except (ValueError, AttributeError) as error:  # of a file that is no list of openings
        return [Fault(OPENINGS, f"is damaged ({error})")]


def _faults(run: Path, kept: Kept) -> Iterator[Fault]:
    record = kept.record
    if kept.file != kept_name(kept.plan):
        yield Fault(kept.file, "has not the name that its plan gives it")
    opened = count_openings(run, table=kept.plan.sealed_table)
    for judged in record.certificates:
        yield from _certificate_faults(kept.file, judged)
        if judged.certificate.sealed_openings > opened:
            told = judged.certificate.sealed_openings
            yield Fault(kept.file, f"tells of {told} openings of sealed images, {OPENINGS} of {opened}")
    certified = {RepairState.CERTIFIED, RepairState.NOT_SHOWN, RepairState.FAILED}
    if (record.state in certified) != bool(record.certificates):
        yield Fault(kept.file, f"says {record.state}, with {len(record.certificates)} certificates")
    elif record.certificates:
        state = state_of_repair(best_of(record.certificates).certificate, record.reaudit)
        if state != record.state:
            yield Fault(kept.file, f"says {record.state}, its certificate gives {state}")


def _certificate_faults(file: str, judged: Judgement) -> Iterator[Fault]:
    certificate = judged.certificate
    state = state_of_lines(certificate.lines)
    if state != certificate.state:
        yield Fault(file, f"says {certificate.state} of {judged.method}, its lines give {state}")
    for number, line in enumerate(certificate.lines):
        place = f"{file}, {judged.method}, line {number}"
        if (line.state == LineState.SHOWN) != (line.p is not None and line.p <= certificate.alpha + ROUNDING):
            yield Fault(place, f"is {line.state} with p = {line.p} at {certificate.alpha}")
        expected = _compared(line)
        if not _same(line.estimate.value, expected):
            yield Fault(place, f"is {line.estimate.value}, before and after give {expected}")


def _compared(line: CertificateLine) -> float | None:
    """Return the number that a line compares with its margin, from the rates or gaps before and after."""
    if line.before is None or line.after is None:
        return None
    if line.kind == LineKind.GAP:
        return line.after
    if line.kind == LineKind.OTHER_GAP:
        return abs(line.after) - abs(line.before)
    return line.after - line.before


def _same(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else math.isclose(a, b, rel_tol=0, abs_tol=ROUNDING)
