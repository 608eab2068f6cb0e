"""From a run directory's ``audit.json`` to every file that people read."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from audit.errors import InputError
from audit.records import Audit
from audit.report.html import render_html
from audit.report.pdf import render_pdf
from audit.report.tables import csv_tables
from audit.report.view import build_view

DOCUMENTS = 4  # figures and tables, HTML, PDF, files: steps of progress
_MEND = "restore it from a copy, or run the audit again"


def load_audit(path: Path) -> Audit:
    """Read ``audit.json``.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Returns
    -------
    Audit
        The checked record.

    Raises
    ------
    InputError
        If the file is missing, is not JSON, or is not a record of this version; it names the first fault.
    """
    return _parsed(_read(path), path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(str(path), "no such file", "name a run directory that holds an audit.json") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "check its permissions") from None


def _parsed(content: bytes, path: Path) -> Audit:
    try:
        return Audit.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        what = f"damaged at {place}: {first['msg']}" if place else f"damaged: {first['msg']}"
        raise InputError(str(path), " ".join(what.split()), _MEND) from None


def audit_schema() -> str:
    """Return the JSON Schema of ``audit.json`` as text."""
    schema = Audit.model_json_schema(mode="serialization")
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def render_run(run_dir: Path, *, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Print report.html, report.pdf, audit.schema.json and tables/*.csv from a run's ``audit.json``.

    Parameters
    ----------
    run_dir : pathlib.Path
        A run directory.
    progress : callable, optional
        Called with the documents done and in all.

    Returns
    -------
    list of pathlib.Path
        The files written. All are computed before the first is written, and each replaces its old version
        in one step, so that a reader never sees half a file.

    Raises
    ------
    InputError
        If ``audit.json`` is missing or damaged.
    UnfinishedError
        If the PDF library cannot be loaded.
    """
    path = run_dir / "audit.json"
    content = _read(path)
    audit = _parsed(content, path)
    digest = hashlib.sha256(content).hexdigest()
    tell = progress or (lambda _done, _total: None)
    view = build_view(audit, digest)
    tell(1, DOCUMENTS)
    page = render_html(view).encode()
    tell(2, DOCUMENTS)
    pdf = render_pdf(render_html(view, for_print=True), content, digest, audit.provenance.started)
    tell(3, DOCUMENTS)
    files = {
        run_dir / "report.html": page,
        run_dir / "report.pdf": pdf,
        run_dir / "audit.schema.json": audit_schema().encode(),
    }
    files |= {run_dir / "tables" / name: text.encode() for name, text in csv_tables(audit).items()}
    for target, data in files.items():
        _replace(target, data)
    tell(DOCUMENTS, DOCUMENTS)
    return list(files)


def _replace(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
