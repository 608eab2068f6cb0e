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
    path = run / OPENINGS
    before = path.read_text("utf-8") if path.is_file() else ""
    line = json.dumps({"opened": datetime.now(UTC).isoformat(timespec="seconds"), "purpose": purpose})
    write_text(path, f"{before}{line}\n")
    return samples.frame[samples.frame["split"] == "sealed"]


def count_openings(run: Path) -> int:
    """Return how often the sealed rows of a run were read."""
    path = run / OPENINGS
    return len(path.read_text("utf-8").splitlines()) if path.is_file() else 0
