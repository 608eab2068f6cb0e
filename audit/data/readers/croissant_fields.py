"""What Croissant metadata say of records: their fields, and from where each takes its values.

The metadata are a stranger's: whatever is not understood is left out, with the reason in words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from audit.errors import DataError

# A pattern can be written that takes years: no repeated groups, no flags, few repetitions, on short texts.
HARMLESS = re.compile(r"(?s)(?!.*(\)[*+?{]|\(\?))(?:[^*+?{]*[*+?{]){0,3}[^*+?{]*")
LONGEST_PATTERN, LONGEST_TEXT = 200, 300
PROPERTIES: Mapping[str, Callable[[str], str]] = {
    "filename": lambda key: PurePosixPath(key).name,
    "fullpath": lambda key: key,
    "content": lambda key: key,
}


@dataclass(frozen=True)
class Source:
    """Where a field's values come from: a column of the file ``of``, or a property of each file of the set ``of``."""

    of: str
    column: str | None
    file_property: str | None
    pattern: str | None

    def values(self, texts: pd.Series) -> pd.Series:
        """Return texts as the field's pattern cuts them; missing where it does not fit."""
        if self.pattern is None:
            return texts
        return texts.where(texts.str.len() <= LONGEST_TEXT).str.extract(self.pattern, expand=True)[0]


@dataclass(frozen=True)
class Field:
    """A field that can be read; ``refers_to`` is as the metadata have it."""

    name: str
    identifier: str
    source: Source
    refers_to: Any


def nodes_of(meta: Mapping[str, Any], key: str, file: Path) -> list[dict[str, Any]]:
    """Return the named nodes under a key; raise ``DataError`` where one has no name."""
    found = meta.get(key, [])
    nodes = found if isinstance(found, list) else [found]
    if not all(isinstance(node, dict) and identity(node) for node in nodes):
        raise DataError(str(file), f"'{key}' holds something without a name", "correct the metadata")
    return nodes


def identity(node: Any) -> str:
    """Return what others call a node by, or what a reference to one names."""
    if isinstance(node, dict):
        node = node.get("@id") or node.get("name")
    return " ".join(node.split()) if isinstance(node, str) else ""  # names are printed in messages of one line


def short_name(node: Mapping[str, Any]) -> str:
    """Return the name of a field without that of its record set."""
    return identity({"name": node.get("name")}) or identity(node).rpartition("/")[2]


def fields_of(record_set: Mapping[str, Any], file: Path) -> tuple[list[Field], dict[str, str]]:
    """Return the fields that can be read, and why the others cannot."""
    fields, left_out = [], {}
    for node in nodes_of(record_set, "field", file):
        source = _source(node)
        if isinstance(source, str):
            left_out[short_name(node)] = source
        else:
            fields.append(Field(short_name(node), identity(node), source, node.get("references")))
    return fields, left_out


def _source(node: Mapping[str, Any]) -> Source | str:
    """Return a field's source, or in words what about it is not supported."""
    source = node.get("source")
    if not isinstance(source, dict) or "subField" in node or node.get("repeated"):
        return "has no single source"
    extract, transform = source.get("extract"), source.get("transform", {})
    transform = transform[0] if isinstance(transform, list) and len(transform) == 1 else transform
    pattern = transform.get("regex") if isinstance(transform, dict) else None
    if transform and (not isinstance(transform, dict) or set(transform) - {"@type", "@id"} != {"regex"}):
        return "is transformed by more than a pattern"
    if pattern is not None and not is_harmless(pattern):
        return "has a pattern without one group, or with repetitions that may take for ever"
    extract = extract if isinstance(extract, dict) else {}
    column, file_property = extract.get("column"), extract.get("fileProperty")
    if isinstance(column, str) and "fileObject" in source:
        return Source(identity(source["fileObject"]), column, None, pattern)
    if isinstance(file_property, str) and file_property in PROPERTIES and "fileSet" in source:
        return Source(identity(source["fileSet"]), None, file_property, pattern)
    hint = " (of a Hugging Face set? use reader: huggingface)" if "fileSet" in source and column else ""
    return f"is neither a column of a file nor a name of files{hint}"


def is_harmless(pattern: Any) -> bool:
    """Tell whether a regular expression compiles, and is of a kind that cannot run for ever."""
    if not isinstance(pattern, str) or len(pattern) > LONGEST_PATTERN or not HARMLESS.fullmatch(pattern):
        return False
    try:
        return re.compile(pattern).groups == 1
    except (re.error, OverflowError, RecursionError):
        return False
