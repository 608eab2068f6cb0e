"""All that a run directory says, wherever it says it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pandas as pd
import pikepdf
import pyarrow.parquet as pq

ADDRESS = re.compile(rb"data:image/([a-z+]+);base64,([A-Za-z0-9+/=]+)")  # of a picture in a page


def files_of(run: Path) -> dict[str, bytes]:
    """Return every file of a run by its name."""
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def words_of(run: Path) -> str:
    """Return all text of a run: files as they are, tables cell by cell, what PDF and pictures hold inside."""
    found = []
    for name, content in files_of(run).items():
        found += [name, content.decode("utf-8", "replace")]
        if name.endswith(".parquet"):
            table = pd.read_parquet(io.BytesIO(content))
            found += [str(pq.read_schema(io.BytesIO(content)).metadata), table.to_csv()]
        elif name.endswith(".html"):
            found += [base64.b64decode(text).decode("utf-8", "replace") for _, text in ADDRESS.findall(content)]
        elif name.endswith(".pdf"):
            with pikepdf.open(io.BytesIO(content)) as pdf:
                streams = [o for o in pdf.objects if isinstance(o, pikepdf.Stream) and o.get("/Subtype") != "/Image"]
                found += [stream.read_bytes().decode("utf-8", "replace") for stream in streams]
                found += [str(pdf.docinfo)]
    return "\n".join(found)
