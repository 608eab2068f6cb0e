"""The sealed split: rows that nothing reads but a certificate, and a count of how often it did."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from audit.data.samples import Samples
from audit.store import write_text

OPENINGS = "sealed.jsonl"  # of a run: one line for each time that its sealed rows were read


def open_sealed(samples: Samples, run: Path, *, purpose: str) -> pd.DataFrame:
    """Return the sealed rows, after the opening is written down.

    Parameters
    ----------
    samples : Samples
        The data, as they were split.
    run : Path
        The run directory that keeps the count.
    purpose : str
        What they are read for, in a few words.

    Returns
    -------
    pandas.DataFrame
        Rows of ``samples.frame``, index kept; empty where ``data.shares.sealed`` is 0.
    """
    note_opening(run, purpose=purpose)
    return samples.frame[samples.frame["split"] == "sealed"]


def note_opening(run: Path, *, purpose: str, table: str = "") -> None:
    """Write down that sealed rows are read: a run's own, or those of a table (its SHA-256)."""
    path = run / OPENINGS
    before = path.read_text("utf-8") if path.is_file() else ""
    line = {"opened": datetime.now(UTC).isoformat(timespec="seconds"), "purpose": purpose}
    write_text(path, f"{before}{json.dumps(line | ({'table': table} if table else {}))}\n")


def count_openings(run: Path, *, table: str = "") -> int:
    """Return how often the sealed rows of a run, or of a table (its SHA-256), were read."""
    path = run / OPENINGS
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return sum(json.loads(line).get("table", "") == table for line in lines)
