"""The manifest of a run: the hash of every file, as an in-toto Statement, and its signature, as a DSSE envelope.

Source: in-toto Attestation Framework v1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from audit.errors import InputError
from audit.progress import Progress
from audit.report.exports import statement
from audit.report.render import load_audit
from audit.report.reviews import DECISIONS
from audit.signing import envelope, is_signed, key_id, payload_of, private_key, public_key
from audit.store import LOCK, WORK, file_hash, write_text

MANIFEST, SIGNATURE = "manifest.json", "manifest.dsse.json"
PDF, SIGNED_PDF = "report.pdf", "report.signed.pdf"


def hash_files(run: Path, progress: Progress | None = None) -> dict[str, str]:
    """Return the SHA-256 of every file of a run by its relative name; manifest, signature and links aside."""
    left_out = {run / name for name in (MANIFEST, SIGNATURE, LOCK)}
    files = sorted(
        p
        for p in run.rglob("*")
        if p.is_file() and not p.is_symlink() and p not in left_out and run / WORK not in p.parents
    )
    hashes = {}
    for done, path in enumerate(files, start=1):
        hashes[path.relative_to(run).as_posix()] = file_hash(path)
        if progress is not None:
            progress(done, len(files))
    return hashes


def manifest_rows(content: bytes) -> dict[str, str]:
    """Return the hashes that a manifest holds, by file name.

    Raises
    ------
    ValueError
        If it is no manifest.
    """
    try:
        rows = {s["name"]: s["digest"]["sha256"] for s in json.loads(content)["subject"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("no manifest") from None
    if not all(isinstance(part, str) for row in rows.items() for part in row):
        raise ValueError("no manifest")
    return rows


def write_manifest(run: Path, *, only: Iterable[str] | None = None) -> None:
    """Write the hash of every file of a run; a signature that was made of another manifest or PDF goes.

    Parameters
    ----------
    run : pathlib.Path
    only : iterable of str, optional
        Names of the files that were written again: of all others the old manifest's hash is kept, so that what was
        changed behind its back is still found. Without an old manifest every file is hashed.
    """
    path = run / MANIFEST
    if not is_signed_pdf(run):
        (run / SIGNED_PDF).unlink(missing_ok=True)
    rows = hash_files(run)
    if only is not None and path.is_file():
        try:
            kept = manifest_rows(path.read_bytes()) | {name: rows[name] for name in only}
            rows = {name: digest for name, digest in kept.items() if name != SIGNED_PDF or name in rows}
        except ValueError:
            raise InputError(str(path), "is no manifest", "restore it from a copy") from None
    text = statement(load_audit(run / "audit.json"), rows)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        (run / SIGNATURE).unlink(missing_ok=True)
    write_text(path, text)


def is_signed_pdf(run: Path) -> bool:
    """Tell whether the PDF with signatures is the run's PDF and what was appended to it."""
    plain, path = run / PDF, run / SIGNED_PDF
    return plain.is_file() and path.is_file() and path.read_bytes().startswith(plain.read_bytes())


def check_kept(run: Path, *, record: bool = True) -> None:
    """Refuse to resume from a record or from decisions that were changed after the manifest was written.

    Decisions may have been added, as by a review that was interrupted before it wrote the manifest. Without a manifest
    all is well.

    Parameters
    ----------
    run : pathlib.Path
    record : bool
        Ask it of audit.json, too; False where that is made again.

    Raises
    ------
    InputError
        If audit.json is not the one that the manifest holds, or decisions that it holds were changed or dropped.
    """
    try:
        rows = manifest_rows((run / MANIFEST).read_bytes())
    except FileNotFoundError:
        return
    except ValueError:
        raise InputError(str(run / MANIFEST), "is no manifest", "restore it from a copy") from None
    fix = f"restore it from a copy; what {MANIFEST} was made of is no longer here"
    if record and rows.get("audit.json", "") != file_hash(run / "audit.json"):
        raise InputError(str(run / "audit.json"), f"was changed after {MANIFEST} was written", fix)
    if DECISIONS in rows:
        path, digest = run / DECISIONS, hashlib.sha256()
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
            digest.update(line)
            if digest.hexdigest() == rows[DECISIONS]:
                return
        raise InputError(str(path), f"decisions were changed or dropped after {MANIFEST} was written", fix)


def holds(run: Path, name: str) -> bool:
    """Tell whether the manifest holds a file as it is."""
    path = run / MANIFEST
    rows = manifest_rows(path.read_bytes()) if path.is_file() else {}
    return (run / name).is_file() and rows.get(name) == file_hash(run / name)


def sign(run: Path, key: Path) -> Path:
    """Sign a run's manifest with an Ed25519 private key (PEM, not encrypted), and return the envelope.

    Raises
    ------
    InputError
        If there is no manifest, or the key is none.
    """
    payload = _read(run / MANIFEST, "render the run again: vit-audit render RUN")
    write_text(run / SIGNATURE, envelope(payload, private_key(key)))
    return run / SIGNATURE


def check_signature(run: Path, key: Path | None) -> str | None:
    """Say what is wrong with the signature of a run's manifest; None if nothing is.

    Without the public key this is whether it is an envelope of this manifest; whose it is, only the key tells.

    Raises
    ------
    InputError
        If the key cannot be read.
    """
    public = None if key is None else public_key(key)
    if not (run / SIGNATURE).is_file():
        return "there is no signature"
    try:
        payload, signatures = payload_of((run / SIGNATURE).read_bytes())
    except ValueError as error:
        return str(error)
    if payload != (run / MANIFEST).read_bytes():
        return f"is of another {MANIFEST}"
    if public is None or is_signed(payload, signatures, public):
        return None
    return f"was not made with the key {key_id(public)[:12]}"


def _read(path: Path, fix: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", fix) from None
