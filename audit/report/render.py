"""From a run directory's ``audit.json`` to every file that people read."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from audit.errors import InputError
from audit.given import said_of
from audit.records import SCHEMA_VERSION, Audit, Decision, RunName
from audit.records.earlier import Earlier, upgraded
from audit.report.csv_files import csv_tables
from audit.report.exports import exports
from audit.report.formats import clean
from audit.report.html import render_html
from audit.report.pdf import render_pdf
from audit.report.repairs import Kept, read_kept
from audit.report.reviews import read_decisions
from audit.store import write_bytes

DOCUMENTS = 4  # figures and tables, HTML, PDF, files: steps of progress
_FIX = "restore it from a copy, or run the audit again"


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
        If the file is missing, is not JSON, or is not a record of this version's form; it names the first fault.
    """
    return _parsed(_read(path), path)


def load_earlier(content: bytes, path: Path) -> tuple[Audit, Earlier | None]:
    """Read the content of an ``audit.json`` of this version's form or of an earlier one, and what it was before.

    Raises
    ------
    InputError
        As of ``load_audit``.
    """
    return _earlier(content) or (_parsed(content, path), None)


def _earlier(content: bytes) -> tuple[Audit, Earlier] | None:
    """Read a record of an earlier form; None where it is none, or cannot be brought to this one."""
    try:
        found = upgraded(json.loads(content))
        return None if found is None else (Audit.model_validate_json(json.dumps(found[0])), found[1])
    except (ValueError, RecursionError):  # a ValidationError is a ValueError
        return None


def refuse_earlier(earlier: Earlier | None, place: Path) -> None:
    """Refuse what takes more than to look at a record, where it is of an earlier form.

    Raises
    ------
    InputError
        If it is.
    """
    if earlier is not None:
        form = "an earlier form of " if earlier.schema == SCHEMA_VERSION else ""
        form += f"schema {clean(earlier.schema)}"
        maker = clean(earlier.version)
        what = f"has {form}, made by vit-audit {maker}; this version can open it to be looked at, and no more"
        raise InputError(str(place), what, f"install vit-audit {maker} for the rest, or run the audit again")


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
        found = _earlier(content)
        refuse_earlier(None if found is None else found[1], path)
        _refuse_other_version(content, path)
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        what = f"damaged at {place}: {said_of(first)}" if place else f"damaged: {said_of(first)}"
        raise InputError(str(path), " ".join(what.split()), _FIX) from None


def _refuse_other_version(content: bytes, path: Path) -> None:
    """Say of a record with another schema which version of the tool made it."""
    try:
        held = json.loads(content)
        schema, versions = str(held["schema_version"]), held["provenance"]["versions"]
        maker = clean(str(versions["vit-audit"]))
    except (ValueError, LookupError, TypeError, RecursionError):
        return
    if schema != SCHEMA_VERSION:
        what = f"has schema {clean(schema)}, made by vit-audit {maker}; this version reads {SCHEMA_VERSION}"
        raise InputError(str(path), what, f"install vit-audit {maker} to read it, or run the audit again") from None


def audit_schema() -> str:
    """Return the JSON Schema of ``audit.json`` as text."""
    schema = Audit.model_json_schema(mode="serialization")
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def render_run(run_dir: Path, *, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Print every file that people and other tools read from a run's ``audit.json``, its reviews and its repairs.

    These are report.html, report.pdf, audit.schema.json, ``tables/`` and ``exports/``.

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
        If ``audit.json`` or the decisions are missing or damaged.
    UnfinishedError
        If the PDF library cannot be loaded.
    """
    tell = progress or (lambda _done, _total: None)
    written = write_files(run_dir, printed(read_run(run_dir), progress=progress))
    tell(DOCUMENTS, DOCUMENTS)
    return written


def write_files(run_dir: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write files by their names in a run directory, each replacing its old version in one step."""
    for name, data in files.items():
        write_bytes(run_dir / name, data)
    return [run_dir / name for name in files]


def clear_pages(run_dir: Path) -> None:
    """Remove what was printed from an earlier record of a run."""
    for name in ("report.html", "report.pdf", "audit.schema.json"):
        (run_dir / name).unlink(missing_ok=True)
    for folder in ("tables", "exports"):
        shutil.rmtree(run_dir / folder, ignore_errors=True)


@dataclass(frozen=True)
class Source:
    """What every file is printed from."""

    audit: Audit
    content: bytes  # of audit.json
    decisions: Sequence[Decision]
    repairs: Sequence[Kept] = ()
    earlier: Earlier | None = None  # what the record was, where it had to be brought to this version's form

    @property
    def digest(self) -> str:
        """SHA-256 of ``audit.json``."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def run_name(self) -> RunName:
        """Which run it is, as records of several runs name it."""
        audit = self.audit
        rows = [] if audit.is_invalid else audit.contrasts
        return RunName(
            audit_id=audit.audit_id,
            audit_sha256=self.digest,
            name=audit.name,
            outcome=audit.outcome,
            started=audit.provenance.started,
            weights_sha256=audit.model.weights_sha256,
            data_fingerprint=audit.data.fingerprint,
            gap_above=next((row.equivalence_margin for row in rows if row.equivalence_margin is not None), None),
            above_policy=None if audit.is_invalid else sum(row.above_policy for row in rows),
        )


def read_run(run_dir: Path, *, to_look: bool = False) -> Source:
    """Read the record of a run, its reviewers' decisions, and the repairs of its model.

    Parameters
    ----------
    run_dir : pathlib.Path
    to_look : bool
        Nothing will be printed, derived or decided of it: records of earlier forms are read, too.

    Raises
    ------
    InputError
        If one of them is damaged, or the record is missing.
    """
    path = run_dir / "audit.json"
    content = _read(path)
    audit, earlier = load_earlier(content, path) if to_look else (_parsed(content, path), None)
    digest = hashlib.sha256(content).hexdigest()
    return Source(audit, content, read_decisions(run_dir, digest), read_kept(run_dir, digest), earlier)


def page_of(source: Source, *, for_print: bool = False, served: bool = False) -> str:
    """Return the report as HTML, for the screen, for paper, or served."""
    shown = (source.audit, source.digest, source.decisions)
    return render_html(*shown, repairs=source.repairs, for_print=for_print, served=served)


def printed(
    source: Source, *, progress: Callable[[int, int], None] | None = None, pages: bool = True, pdf: bool = True
) -> dict[str, bytes]:
    """Return every file by its name in the run directory; without ``pdf`` all but that, without ``pages`` only that."""
    tell = progress or (lambda _done, _total: None)
    tell(1, DOCUMENTS)
    files = {"report.html": page_of(source).encode()} if pages else {}
    tell(2, DOCUMENTS)
    if pdf:
        page = page_of(source, for_print=True)
        files["report.pdf"] = render_pdf(page, source.content, source.digest, source.audit.provenance.started)
    tell(3, DOCUMENTS)
    if pages:
        files["audit.schema.json"] = audit_schema().encode()
        files |= {f"tables/{name}": text.encode() for name, text in csv_tables(source.audit).items()}
        files |= {f"exports/{name}": text.encode() for name, text in exports(source.audit, source.digest).items()}
    return files
