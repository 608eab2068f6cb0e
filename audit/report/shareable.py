"""A copy of a run that may be handed on: people and images under other names, this machine and the models left out.

What the statistics need stays, row by row, so that ``vit-audit verify`` derives every figure of the copy again. So the
copy is pseudonymous and not anonymous: whoever has the images can tell whose rows they are, by order, label and group.
"""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pandas as pd
import yaml
from pydantic import ValidationError

from audit.card.load import load_card
from audit.card.schema import Card
from audit.data.samples import OTHERS, UNKNOWN, pair_column
from audit.errors import InputError
from audit.records import Audit, DataWarning, Decision, ExcludedRow, LabelShareRow, LeftOut, Removed, SharedCopy
from audit.report.manifest import MANIFEST, SIGNATURE, SIGNED_PDF, manifest_rows, write_manifest
from audit.report.pseudonyms import IMAGE, NAMING, PAIR, RECORD, SUBJECT, VALUE, Pseudonyms
from audit.report.render import Source, printed, read_run, write_files
from audit.report.reviews import DECISIONS, chained
from audit.store import SAMPLES, UNDETECTED, UNFINISHED, file_hash, not_written, write_bytes, write_table, write_text

MARK = "shareable.json"
AS_THEY_ARE = ("effects/*.npz", "effects/effort-seed-*.json", "log.jsonl")  # numbers and hashes only
TABLES, MODELS = "effects/*.parquet", "models/*"
PRINTED = ("report.*", "tables/*", "exports/*", "audit.schema.json")  # made again
WRITTEN_AGAIN = ("audit.json", "card.yaml", "preregistration.json", DECISIONS)
PATHS = (
    ("data", "path"), ("data", "not_detected_list"), ("model", "path"), ("model", "weights"), ("controls", "card"),
    ("controls", "path"), ("controls", "weights"),
)  # fmt: skip


def share_run(run: Path, out: Path, *, models: bool = False) -> SharedCopy:
    """Write a copy of a finished run that may be handed on. The run itself is not touched.

    Parameters
    ----------
    run : pathlib.Path
        A finished run, as its manifest has it.
    out : pathlib.Path
        The copy, which must not be there yet; it is there whole or not at all.
    models : bool
        Take the weights along; a model may give away what it was trained on.

    Returns
    -------
    SharedCopy
        What the copy has lost, which is also what its ``shareable.json`` says.

    Raises
    ------
    UnfinishedError
        If the copy cannot be written.
    InputError
        If ``out`` is there or lies in the run, or a file of the run is not as its manifest has it.
    """
    if out.exists() or out.is_symlink():
        raise InputError(str(out), "exists already", "remove it, or name another folder")
    if out.resolve().is_relative_to(run.resolve()):
        raise InputError(str(out), "lies in the run that is copied", "name a folder elsewhere")
    if (run / MARK).is_file():
        raise InputError(str(run), "is a shareable copy already", "copy the folder as it is, or name the run itself")
    files = _checked(run)
    source = read_run(run)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=UNFINISHED))
    except OSError as error:
        raise not_written(out, error) from error
    try:
        mark = _write(run, place, source, files, models=models)
        place.chmod(0o755)
        place.replace(out)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return mark


def read_mark(run: Path) -> SharedCopy | None:
    """Read what a shareable copy has lost; None where a run is none.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    path = run / MARK
    if not path.is_file():
        return None
    try:
        return SharedCopy.model_validate_json(path.read_bytes())
    except ValidationError:
        raise InputError(str(path), "damaged", "ask for the copy once more") from None


def mark_of(run: Path) -> SharedCopy | None:
    """Read what a shareable copy has lost; None where a run is none, or does not say so legibly."""
    try:
        return read_mark(run)
    except InputError:
        return None


def refuse_copy(run: Path, fix: str) -> None:
    """Refuse to measure in a shareable copy.

    Raises
    ------
    InputError
        If the run is one.
    """
    if (run / MARK).is_file():
        raise InputError(str(run), "is a shareable copy, in which images have other names", fix)


def _checked(run: Path) -> dict[str, str]:
    """Return the hashes of a run's files, once they are known to be those of its manifest."""
    try:
        rows = manifest_rows((run / MANIFEST).read_bytes())
    except (OSError, ValueError):
        raise InputError(str(run / MANIFEST), "missing or no manifest", "name a finished run") from None
    for name, digest in rows.items():
        path = run / name
        if not path.resolve().is_relative_to(run.resolve()):
            raise InputError(str(run / MANIFEST), f"names '{name}', which is not in the run", "name a finished run")
        if not path.is_file() or path.is_symlink() or file_hash(path) != digest:
            what = f"is not as {MANIFEST} has it"
            raise InputError(str(path), what, "'vit-audit verify' names all that differs; share a run that it verifies")
    if SAMPLES not in rows:
        raise InputError(str(run / SAMPLES), "missing", "runs of older versions have none: audit again")
    return rows


def _write(run: Path, place: Path, source: Source, files: Mapping[str, str], *, models: bool) -> SharedCopy:
    """Write the whole copy; the record last but for what is printed from it."""
    names, card = Pseudonyms(), load_card(run / "card.yaml")
    kept = [*AS_THEY_ARE, *([MODELS] if models else [])]
    for name in _matching(files, kept):
        write_bytes(place / name, (run / name).read_bytes())
    for name in _matching(files, [TABLES]):
        write_table(place / name, _table(run, name, names, card))
    _write_card(run, place)
    audit = _record(source.audit, names, place)
    content = (audit.model_dump_json(indent=1) + "\n").encode()
    write_bytes(place / "audit.json", content)
    copied = Source(audit, content, _decisions(source.decisions, names))
    if copied.decisions:
        write_text(place / DECISIONS, "".join(chained(copied.decisions, copied.digest)))
    gone = set(files) - set(_matching(files, [*kept, TABLES, *PRINTED])) - set(WRITTEN_AGAIN)
    mark = SharedCopy(
        other_names=names.counts(),
        left_out={name: files[name] if name in _matching(gone, [MODELS]) else "" for name in sorted(gone)},
        removed=_removed(run, source, card),
    )
    write_text(place / MARK, mark.model_dump_json(indent=1) + "\n")
    if "report.html" in files:
        write_files(place, printed(copied))
    write_manifest(place)
    return mark


def _matching(files: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the names that one of some patterns holds; ``*`` takes folders in, too."""
    return [name for name in sorted(files) if any(_fits(PurePosixPath(name), pattern) for pattern in patterns)]


def _fits(name: PurePosixPath, pattern: str) -> bool:
    folder, _, last = pattern.rpartition("/")
    if last == "*":
        return folder in map(str, name.parents)
    return str(name.parent) == (folder or ".") and name.match(last)


def _table(run: Path, name: str, names: Pseudonyms, card: Card) -> pd.DataFrame:
    """Return a table of effects under other names; of the samples only what statistics need."""
    table = pd.read_parquet(run / name)
    if name == UNDETECTED:
        return names.table(table, NAMING, str(run / name), plain=["label", *card.groups])
    if name != SAMPLES:
        return names.table(table, NAMING, str(run / name))
    kinds = {"image": IMAGE, "subject": SUBJECT}
    kinds |= {column: f"{VALUE}:{column}" for column in card.categories}  # who labelled an image, say
    kinds |= {pair_column(name): f"{PAIR}:{name}" for name, group in card.groups.items() if group.pair}
    plain = ["label", "split", *card.groups, *card.calipers]  # of covariates, the gaps adjusted for them depend
    return names.table(table[[*kinds, *plain]], kinds, str(run / name), plain=plain)


def _write_card(run: Path, place: Path) -> None:
    """Write the card without comments, folders and who ran it, and what was registered of it likewise."""
    written = yaml.safe_load((run / "card.yaml").read_text(encoding="utf-8-sig"))
    text = yaml.safe_dump(_without_machine(written), sort_keys=False, allow_unicode=True)
    write_text(place / "card.yaml", text)
    registered = (run / "preregistration.json").read_bytes()
    fixed = json.loads(registered)
    card = _without_machine(fixed["card"])
    if card != fixed["card"]:  # else its hash, which may be recorded elsewhere too, stays what it is
        registered = (json.dumps({**fixed, "card": card}, indent=1, sort_keys=True) + "\n").encode()
    write_bytes(place / "preregistration.json", registered)


def _without_machine(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a card holds without the folders of its paths, and without who ran the audit."""
    changed = {name: dict(part) if isinstance(part, dict) else part for name, part in card.items()}
    for part, key in PATHS:
        if isinstance(changed.get(part), dict) and isinstance(changed[part].get(key), str):
            changed[part][key] = bare(changed[part][key])
    model, data = changed.get("model"), changed.get("data")
    if isinstance(model, dict) and isinstance(model.get("overrides"), dict):
        model["overrides"] = {k: bare(v) if isinstance(v, str) else v for k, v in model["overrides"].items()}
    if isinstance(data, dict) and isinstance(data.get("download"), list):  # an address may hold a key after its "?"
        data["download"] = [
            {k: v.partition("?")[0] if k == "url" and isinstance(v, str) else v for k, v in each.items()}
            if isinstance(each, dict)
            else each
            for each in data["download"]
        ]
    if isinstance(changed.get("report"), dict):
        changed["report"] |= {part: "" for part in ("run_by", "owner") if changed["report"].get(part)}
    return changed


def bare(path: str) -> str:
    """Return a path as it may be handed on: only its last part where it is absolute or climbs out of its folder."""
    parts = PurePosixPath(path.replace("\\", "/"))
    tells = parts.is_absolute() or path.startswith("~") or ".." in parts.parts or bool(PureWindowsPath(path).drive)
    return (PureWindowsPath(path).name or "folder") if tells else path


def _record(audit: Audit, names: Pseudonyms, place: Path) -> Audit:
    """Return the record under other names, with the hashes of what was written again."""
    examples = {
        part: [_left_out(row, names) for row in rows]
        for part, rows in (("excluded", audit.data.excluded), ("quarantined", audit.data.quarantined))
    }
    source = audit.data.source
    data = audit.data.model_copy(
        update={
            **examples,
            "source": source.model_copy(update={"path": bare(source.path)}) if source.path else source,
            "label_shares": [row.model_copy(update={"value": _value(row, names)}) for row in audit.data.label_shares],
            "warnings": [_warning(warning, names) for warning in audit.data.warnings],
        }
    )
    registered = file_hash(place / "preregistration.json")
    hashes = {"card": file_hash(place / "card.yaml"), "preregistration": registered}
    provenance = audit.provenance.model_copy(
        update={
            "command": shlex.join(map(bare, _words(audit.provenance.command))),
            "run_by": None,
            "hashes": audit.provenance.hashes | hashes,
        }
    )
    method = audit.method.model_copy(update={"preregistration_sha256": registered})
    return audit.model_copy(update={"owner": "", "data": data, "provenance": provenance, "method": method})


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a record that was written by hand
        return []


def _left_out(row: ExcludedRow, names: Pseudonyms) -> ExcludedRow:
    """Return images that were left out under other names, without what libraries said, which may name files."""
    examples = [names.of(IMAGE, key) for key in row.examples]
    detail = "" if row.kind == LeftOut.NOT_OPENED else row.detail
    return row.model_copy(update={"examples": examples, "detail": detail})


def _value(row: LabelShareRow, names: Pseudonyms) -> str:
    return row.value if row.value in (UNKNOWN, OTHERS) else names.of(f"{VALUE}:{row.column}", row.value)


def _warning(warning: DataWarning, names: Pseudonyms) -> DataWarning:
    """Return a warning without the names of people, images and annotators."""
    return warning.model_copy(
        update={
            "examples": [names.of(IMAGE, key) for key in warning.examples],
            "subjects": [names.of(SUBJECT, key) for key in warning.subjects],
            "values": [names.of(f"{VALUE}:{warning.of}", value) for value in warning.values],
        }
    )


def _decisions(decisions: Iterable[Decision], names: Pseudonyms) -> list[Decision]:
    """Return reviewers' decisions with numbers for the names of reviewers and owners."""
    number: dict[str, int] = {}
    owners: dict[str, int] = {}
    return [
        d.model_copy(
            update={
                "name": f"reviewer {number.setdefault(d.name, len(number) + 1)}",
                "owner": d.owner and f"owner {owners.setdefault(d.owner, len(owners) + 1)}",
                "carried_from": d.carried_from and names.digits(RECORD, d.carried_from),
                **{part: names.in_text(getattr(d, part)) for part in ("role", "reason", "remedy")},
            }
        )
        for d in decisions
    ]


def _removed(run: Path, source: Source, card: Card) -> list[Removed]:
    """Say what was taken out besides names and files."""
    paths = [getattr(getattr(card, part), key) for part, key in PATHS]
    paths += _words(source.audit.provenance.command)
    there = {
        Removed.COMMENTS: True,
        Removed.FOLDERS: any(path is not None and bare(path) != path for path in paths),
        Removed.RUN_BY: bool(card.report.run_by or card.report.owner),
        Removed.MESSAGES: any(r.kind == LeftOut.NOT_OPENED and r.detail for r in source.audit.data.quarantined),
        Removed.REVIEWERS: bool(source.decisions),
        Removed.SIGNATURE: (run / SIGNATURE).is_file() or (run / SIGNED_PDF).is_file(),
    }
    return [what for what, is_there in there.items() if is_there]
