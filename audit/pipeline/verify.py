"""A run checked from the outside: hashes, every figure derived again from stored effects, every page printed again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from audit.errors import InputError
from audit.pipeline.print_again import Fault, printing_again
from audit.pipeline.verify_repairs import repair_faults
from audit.progress import Step
from audit.records import Audit, SharedCopy
from audit.report.exports import statement
from audit.report.manifest import (
    MANIFEST,
    PDF,
    SIGNATURE,
    SIGNED_PDF,
    check_signature,
    hash_files,
    is_signed_pdf,
    manifest_rows,
)
from audit.report.render import read_run
from audit.report.shareable import MARK, mark_of, read_mark


@dataclass(frozen=True)
class Verified:
    """What was checked, and what is wrong; ``figures`` counts all numbers that were compared."""

    faults: Sequence[Fault]
    files: int
    figures: int
    signed: bool
    shared: SharedCopy | None = None  # what it lacks on purpose, where it is a copy that was made to be handed on

    @property
    def holds(self) -> bool:
        """Tell whether everything is as it was written."""
        return not self.faults


def verify_run(run: Path, step: Step, *, key: Path | None = None) -> Verified:
    """Check a run directory, as :func:`vit_audit.verify` describes it.

    Faults of files come first, then those of figures, then those of pages, which are printed from the start on.
    """
    try:
        source = read_run(run)
    except InputError as error:  # what its hash says of it comes first
        files = hash_files(run, step("verify: files"))
        unreadable = [*_changed_files(run, None, files), *_signature(run, key), Fault(error.where, error.what)]
        return Verified(unreadable, len(files), 0, (run / SIGNATURE).is_file())
    with printing_again(run, source) as wait_for_pages:
        files = hash_files(run, step("verify: files"))
        faults = [*_changed_files(run, source.audit, files), *_signature(run, key), *_marked(run)]
        faults += repair_faults(run, source.repairs)
        tick = step("verify: figures")
        from audit.pipeline.derive import check_figures  # torch takes seconds to import, in which pages are printed

        figures = check_figures(run, source.audit, tick)
        faults += figures.faults
        faults += wait_for_pages(step("verify: pages"))
    return Verified(faults, len(files), figures.compared, (run / SIGNATURE).is_file(), mark_of(run))


def _marked(run: Path) -> Iterator[Fault]:
    """Name what a shareable copy says it lacks and holds all the same."""
    try:
        mark = read_mark(run)
    except InputError as error:
        yield Fault(MARK, error.what)
        return
    for name in sorted(mark.left_out) if mark is not None else ():
        if (run / name).exists():
            yield Fault(name, f"is here, and {MARK} says that it was left out")


def _changed_files(run: Path, audit: Audit | None, files: Mapping[str, str]) -> Iterator[Fault]:
    """Compare every file with the manifest, and the manifest with what it would be for a record."""
    path = run / MANIFEST
    if not path.is_file():
        yield Fault(MANIFEST, "missing")
        return
    content = path.read_bytes()
    try:
        rows = manifest_rows(content)
    except ValueError:
        yield Fault(MANIFEST, "is no manifest")
        return
    for link in sorted(p for p in run.rglob("*") if p.is_symlink()):
        yield Fault(link.relative_to(run).as_posix(), "is a link, and what it leads to is not of this run")
    for name in sorted(rows.keys() | files.keys()):
        if name not in files:
            yield Fault(name, f"missing, but in {MANIFEST}")
        elif name not in rows:
            yield Fault(name, f"not in {MANIFEST}")
        elif files[name] != rows[name]:
            yield Fault(name, f"changed: its SHA-256 is not that of {MANIFEST}")
    if audit is not None and content.decode("utf-8", "replace") != statement(audit, rows):
        yield Fault(MANIFEST, "changed: the tool would not have written it so")


def _signature(run: Path, key: Path | None) -> Iterator[Fault]:
    if (run / SIGNED_PDF).exists() and not is_signed_pdf(run):
        yield Fault(SIGNED_PDF, f"does not begin with {PDF}, so it was signed of another one")
    if key is not None or (run / SIGNATURE).is_file():
        wrong = check_signature(run, key)
        if wrong is not None:
            yield Fault(SIGNATURE, wrong)
