"""Control models that came from a store: which files they are, and that they still are these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from audit.errors import InputError
from audit.store import file_hash

MADE_OF = "made-of.json"  # beside control models: all that makes them what they are
MARKS = "imported-*.json"  # likewise, of each import: what came along


@dataclass(frozen=True)
class Imported:
    """Control models of a store: the SHA-256 of their manifest there, and the key that it was signed with."""

    sha256: str
    signed_by: str


def mark_of(folder: Path, what: Imported) -> Path:
    """Return the file that says what came into a folder with an import."""
    return folder / MARKS.replace("*", what.sha256[:24])


def written_mark(what: Imported, files: Mapping[str, str]) -> str:
    """Return what such a file holds; ``files`` are hashes by name."""
    return json.dumps({"sha256": what.sha256, "signed_by": what.signed_by, "files": dict(files)}, indent=1) + "\n"


def check_imported(folder: Path) -> list[Imported]:
    """Return what came from stores into a folder of control models, none where all were trained here.

    Raises
    ------
    InputError
        If a file has another hash than the one that was imported.
    """
    found = []
    for path in sorted(folder.glob(MARKS)):
        fix = f"remove {folder}, and import them again"
        try:
            mark = json.loads(path.read_bytes())
            what, files = Imported(str(mark["sha256"]), str(mark["signed_by"])), dict(mark["files"])
        except (ValueError, KeyError, TypeError):
            raise InputError(str(path), "is damaged, so that nothing tells which models were imported", fix) from None
        for name, digest in sorted(files.items()):
            if (folder / name).is_file() and file_hash(folder / name) != digest:
                raise InputError(str(folder / name), "was imported from a store, and has another hash now", fix)
        found.append(what)
    return found
