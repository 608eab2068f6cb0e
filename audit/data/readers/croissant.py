"""``reader: croissant``: a dataset that lies on disk beside its Croissant metadata (MLCommons, version 1, JSON-LD).

Format: https://docs.mlcommons.org/croissant/docs/croissant-spec.html. Read are record sets whose fields are columns of
one table (CSV, TSV, Parquet) or names of the files of a file set, joined where a field refers to the other. Anything
else is left out, and named. Nothing is downloaded: files are looked for beside the metadata, out of their archives.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd

from audit.card.faults import did_you_mean
from audit.card.read_table import read_table
from audit.card.schema import DataSpec
from audit.data.readers.croissant_fields import PROPERTIES, Field, fields_of, identity, nodes_of, short_name
from audit.data.readers.layout import json_of
from audit.data.readers.raw import About, RawTable
from audit.data.readers.table import with_safe_paths
from audit.data.sources import FileSource, safe_key
from audit.errors import DataError
from audit.store import file_hash

NAMES = ("croissant.json", "metadata.json")
MAX_BYTES = 10_000_000
VERSION = re.compile(r"https?://mlcommons\.org/croissant/1\.\d+")
SHA256 = re.compile(r"[0-9a-f]{64}")
LONGEST_SAYING, LONGEST_PATTERN = 1000, 200
_FIX = "write a table, and use reader: table"


def read_croissant(spec: DataSpec, path: Path) -> RawTable:
    """Read a dataset by its Croissant metadata.

    Parameters
    ----------
    spec : DataSpec
        ``image`` and ``label`` are names of fields; the one record set that has both is read.
    path : pathlib.Path
        The metadata, or the folder of ``croissant.json`` or ``metadata.json``.

    Returns
    -------
    RawTable
        A column for each field, and what the metadata say of licence and citation.

    Raises
    ------
    DataError
        If it is not Croissant of version 1, has no such record set or one that is not supported, or names a file that
        is missing, lies elsewhere or has another SHA-256.
    """
    file = next((path / name for name in NAMES if (path / name).is_file()), path / NAMES[0]) if path.is_dir() else path
    meta = _opened(file)
    fields, left_out = fields_of(_record_set(meta, spec, file), file)
    for wanted in (spec.image, spec.label):
        if wanted in left_out:
            raise DataError(str(file), f"field '{wanted}' {left_out[wanted]}, which is not read here", _FIX)
    parts = {identity(node): node for node in nodes_of(meta, "distribution", file)}
    frame = _rows(fields, parts, file)
    if not frame[spec.image].notna().any():
        raise DataError(str(file), f"no record has a file for '{spec.image}'", "put the files beside the metadata")
    where = str(file) + (f" (left out: {'; '.join(f'{k} {v}' for k, v in left_out.items())})" if left_out else "")
    frame = with_safe_paths(frame, spec.image, file)
    return RawTable(frame, FileSource(file.parent), where, about=_about(meta))


def _opened(file: Path) -> dict[str, Any]:
    meta = json_of(file, most=MAX_BYTES)
    stated = meta.get("conformsTo") if isinstance(meta, dict) else None
    versions = stated if isinstance(stated, list) else [stated]
    if not any(isinstance(version, str) and VERSION.fullmatch(version.rstrip("/")) for version in versions):
        what = "is not Croissant of version 1 ('conformsTo' does not say so)"
        raise DataError(str(file), what, "name the set's Croissant metadata, or convert it with mlcroissant")
    assert isinstance(meta, dict)
    return meta


def _about(meta: Mapping[str, Any]) -> About:
    return About(
        name=_text(meta.get("name")),
        licence=_text(meta.get("license")),
        citation=_text(meta.get("citeAs")) or _text(meta.get("citation")),
    )


def _text(value: Any) -> str:
    """Return a text, one of several, or the name or address of a thing, in one line."""
    if isinstance(value, list):
        return "; ".join(filter(None, map(_text, value)))[:LONGEST_SAYING]
    if isinstance(value, dict):
        return next(filter(None, (_text(value.get(key)) for key in ("name", "url", "@id", "@value"))), "")
    return " ".join(value.split())[:LONGEST_SAYING] if isinstance(value, str) else ""


def _record_set(meta: Mapping[str, Any], spec: DataSpec, file: Path) -> Mapping[str, Any]:
    sets = nodes_of(meta, "recordSet", file)
    names = {identity(each): [short_name(field) for field in nodes_of(each, "field", file)] for each in sets}
    fitting = [each for each in sets if {spec.image, spec.label} <= set(names[identity(each)])]
    if len(fitting) == 1:
        return fitting[0]
    asked = f"'{spec.image}' (data.image) and '{spec.label}' (data.label)"
    if fitting:
        listed = ", ".join(map(identity, fitting))
        raise DataError(str(file), f"several record sets have the fields {asked}: {listed}", "keep one of them")
    known = sorted({name for fields in names.values() for name in fields})
    absent = next((name for name in (spec.image, spec.label) if name not in known), spec.label)
    raise DataError(str(file), f"no record set has the fields {asked}", did_you_mean(absent, known))


def _rows(fields: list[Field], parts: Mapping[str, Mapping[str, Any]], file: Path) -> pd.DataFrame:
    """Return one column per field: of the table's rows where there is a table, else of the files."""
    tables = sorted({field.source.of for field in fields if field.source.column is not None})
    sets = sorted({field.source.of for field in fields if field.source.column is None})
    if len(tables) > 1 or len(sets) > 1:
        one = ", ".join(tables if len(tables) > 1 else sets)
        raise DataError(str(file), f"the record set joins several files or file sets ({one})", _FIX)
    listed = pd.Series(_listed(parts, sets[0], file), dtype=object) if sets else None
    of_files = [field for field in fields if field.source.column is None]
    if listed is not None and listed.empty:
        raise DataError(
            str(file), f"file set '{sets[0]}' has no file here", "put its files beside the metadata, unpacked"
        )
    if not tables:
        assert listed is not None
        return pd.DataFrame({field.name: _of_files(field, listed) for field in of_files})
    table = _table(parts, tables[0], file)
    columns = {f.name: f.source.values(_column(table, f, file)) for f in fields if f.source.column is not None}
    frame = pd.DataFrame(columns, dtype=object)
    if listed is None:
        return frame
    keys, names = _join(fields, frame, listed, table, file)
    place = pd.Series(names.index, index=names.array).reindex(keys).to_numpy()
    for field in of_files:
        frame[field.name] = _of_files(field, listed).reindex(place).to_numpy()
    return frame.astype(object).where(frame.notna(), None)


def _of_files(field: Field, listed: pd.Series) -> pd.Series:
    assert field.source.file_property is not None
    return field.source.values(listed.map(PROPERTIES[field.source.file_property]))


def _join(
    fields: list[Field], frame: pd.DataFrame, listed: pd.Series, table: pd.DataFrame, file: Path
) -> tuple[pd.Series, pd.Series]:
    """Return what names each row's file, and what files are named by, as one field refers to the other."""
    by_id = {field.identifier: field for field in fields}
    for field in fields:
        refers = field.refers_to if isinstance(field.refers_to, dict) else {}
        other = by_id.get(identity(refers.get("field")))
        column = refers["extract"].get("column") if isinstance(refers.get("extract"), dict) else None
        if field.source.column is None and other is None and isinstance(column, str) and column in table:
            keys, names = table[column], _of_files(field, listed)
        elif other is None or (other.source.column is None) == (field.source.column is None):
            continue
        else:
            of_file, of_row = (field, other) if field.source.column is None else (other, field)
            keys, names = frame[of_row.name], _of_files(of_file, listed)
        known = names[names.notna()]
        if known.duplicated().any():
            what = f"two files are named '{known[known.duplicated()].iloc[0]}' by field '{field.name}'"
            raise DataError(str(file), what, "remove one of them")
        return keys, known
    raise DataError(str(file), "no field of the table refers to one of the files, or the other way round", _FIX)


def _column(table: pd.DataFrame, field: Field, file: Path) -> pd.Series:
    if field.source.column not in table:
        what = f"field '{field.name}' names column '{field.source.column}', which '{field.source.of}' has not"
        raise DataError(str(file), what, did_you_mean(str(field.source.column), table.columns))
    return table[field.source.column]


def _table(parts: Mapping[str, Mapping[str, Any]], name: str, file: Path) -> pd.DataFrame:
    node = _part(parts, name, file)
    address = node.get("contentUrl")
    if not isinstance(address, str):
        raise DataError(str(file), f"file '{name}' has no contentUrl", "correct the metadata")
    remote = "://" in address
    key = safe_key(PurePosixPath(unquote(urlsplit(address).path)).name if remote else address, str(file))
    path = file.parent / key
    if not path.is_file():
        fix = f"download {address} and put it there" if remote else "put it there, out of its archive"
        raise DataError(str(path), f"no such file, which {file.name} names", fix)
    digest = node.get("sha256")
    if digest is not None:
        _check_sha256(path, digest, file)
    return read_table(path).frame


def _check_sha256(path: Path, stated: Any, file: Path) -> None:
    if not isinstance(stated, str) or not SHA256.fullmatch(stated.lower()):
        raise DataError(str(file), f"the sha256 of '{path.name}' is not 64 hexadecimal digits", "correct the metadata")
    if file_hash(path) != stated.lower():
        raise DataError(str(path), f"its SHA-256 is not the one that {file.name} states", "download it again")


def _part(parts: Mapping[str, Mapping[str, Any]], name: str, file: Path) -> Mapping[str, Any]:
    if name not in parts:
        raise DataError(str(file), f"'distribution' has no '{name}'", did_you_mean(name, parts))
    return parts[name]


def _listed(parts: Mapping[str, Mapping[str, Any]], name: str, file: Path) -> list[str]:
    """Return the files of a set, by the patterns that it includes and excludes; those below the folder alone."""
    node = _part(parts, name, file)
    wanted, unwanted = (list(_patterns(node.get(key), name, file)) for key in ("includes", "excludes"))
    root = file.parent
    keys = [p.relative_to(root).as_posix() for p in sorted(root.rglob("*")) if p.is_file() and p != file]
    return [key for key in keys if _fits(key, wanted) and not _fits(key, unwanted)]


def _patterns(found: Any, name: str, file: Path) -> Iterator[str]:
    for pattern in found if isinstance(found, list) else [found] if found is not None else []:
        if not isinstance(pattern, str) or len(pattern) > LONGEST_PATTERN or pattern.count("*") > 4:
            raise DataError(str(file), f"file set '{name}' has a pattern that cannot be read", "correct the metadata")
        yield safe_key(pattern, str(file))


def _fits(key: str, patterns: list[str]) -> bool:
    """Tell whether a path fits a pattern; what an archive holds may lie in a folder of the archive's name."""
    ends = [key, *(key[place + 1 :] for place, sign in enumerate(key) if sign == "/")]
    return any(fnmatch.fnmatchcase(end, pattern) for pattern in patterns for end in ends)
