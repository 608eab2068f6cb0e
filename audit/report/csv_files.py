"""The CSV tables: every field of the records, full precision, harmless in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from audit.records import (
    AccuracyRow,
    AdjustedRow,
    Agreement,
    AttentionMap,
    Audit,
    CarriedRow,
    ContrastRow,
    Control,
    CountRow,
    DetectionRow,
    Estimate,
    ExcludedRow,
    Finding,
    GapAnswer,
    HeadRow,
    JointRow,
    LabelShareRow,
    LedgerRow,
    LedgerTotal,
    PairRow,
    RangeRow,
    RateRow,
    ReadMap,
    ReadRow,
    ReadWriter,
    Record,
    SensitivityRow,
    SmallestSetRow,
    TrainedRow,
    TrainedTotal,
)
from audit.report.text import Sentences, left_out_sentence

Row = TypeVar("Row", bound=Record)

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_tables(audit: Audit) -> dict[str, str]:
    """Write each table of an audit as CSV text.

    Parameters
    ----------
    audit : Audit
        The record. Where the instrument is invalid, contrasts, heads and findings have their header only.

    Returns
    -------
    dict of str to str
        File name to content, lines ending in CR LF as RFC 4180 has it. Missing numbers are empty cells.
    """
    shown, text = not audit.is_invalid, Sentences(audit)
    left_out = [("excluded", row) for row in audit.data.excluded]
    left_out += [("quarantined", row) for row in audit.data.quarantined]
    return {
        "rates.csv": _table(RateRow, audit.rates),
        "contrasts.csv": _table(ContrastRow, audit.contrasts if shown else []),
        "ranges.csv": _table(RangeRow, audit.ranges if shown else []),
        "adjusted.csv": _table(AdjustedRow, audit.adjusted if shown else []),
        "heads.csv": _table(HeadRow, audit.heads if shown else []),
        "heads_together.csv": _table(JointRow, audit.joint if shown else []),
        "ledger.csv": _table(LedgerRow, audit.ledger if shown else []),
        "ledger_totals.csv": _table(LedgerTotal, audit.ledgers if shown else []),
        "trained.csv": _table(TrainedRow, audit.trained_parts if shown else []),
        "trained_totals.csv": _table(TrainedTotal, audit.trained if shown else []),
        "carried.csv": _table(CarriedRow, audit.carried if shown else []),
        "smallest_sets.csv": _table(SmallestSetRow, audit.smallest if shown else []),
        "where.csv": _table(GapAnswer, audit.answers if shown else []),
        "sensitivity.csv": _table(SensitivityRow, audit.sensitivity if shown else []),
        "read_writers.csv": _table(ReadWriter, audit.read_writers if shown else []),
        "read.csv": _table(ReadRow, audit.read if shown else []),
        "read_maps.csv": _table(ReadMap, audit.read_maps if shown else []),
        "exact_pairs.csv": _table(PairRow, audit.pairs if shown else []),
        "agreement.csv": _table(Agreement, audit.agreement if shown else []),
        "attention.csv": _table(AttentionMap, audit.attention if shown else []),
        "counts.csv": _table(CountRow, audit.data.counts),
        "label_shares.csv": _table(LabelShareRow, audit.data.label_shares),
        "detection.csv": _table(DetectionRow, audit.data.detection),
        "accuracy.csv": _table(AccuracyRow, audit.accuracy),
        "controls.csv": _table(Control, audit.controls.controls, ("title", "where", "statistic"), text.control),
        "findings.csv": _table(Finding, audit.findings if shown else [], ("title", "wording"), text.finding),
        "excluded.csv": _csv(
            ["list", *_columns(ExcludedRow), "reason"],
            [[name, *_values(row), left_out_sentence(row)] for name, row in left_out],
        ),
    }


def _table(
    kind: type[Row], rows: Sequence[Row], said: Sequence[str] = (), say: Callable[[str, Row], str] | None = None
) -> str:
    """Write rows, with sentences about each in columns of their own."""
    sentences = [[] if say is None else [say(part, row) for part in said] for row in rows]
    return _csv([*_columns(kind), *said], [_values(row) + s for row, s in zip(rows, sentences, strict=True)])


def _csv(columns: list[str], rows: list[list[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC)  # whatever separator the reader takes it to have
    writer.writerow(columns)
    writer.writerows([_harmless(value) for value in row] for row in rows)
    return buffer.getvalue()


def _columns(kind: type[BaseModel]) -> list[str]:
    columns: list[str] = []
    for name, field in kind.model_fields.items():
        columns += [name, *(f"{name}_{part}" for part in ("low", "high", "level"))] if _is_estimate(field) else [name]
    return columns


def _is_estimate(field: Any) -> bool:
    return field.annotation is Estimate or Estimate in getattr(field.annotation, "__args__", ())


def _values(row: Record) -> list[Any]:
    values: list[Any] = []
    for name, field in type(row).model_fields.items():
        value = getattr(row, name)
        if _is_estimate(field):
            values += [value.value, value.low, value.high, value.level] if value else [None] * 4
        else:
            several = isinstance(value, (list, tuple, dict))
            values.append(json.dumps(value, ensure_ascii=False, default=Record.model_dump) if several else value)
    return values


def _harmless(value: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would run as a formula; numbers stay numbers."""
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return "'" + value
    return value
