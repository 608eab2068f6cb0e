"""Writes a page of every field of each record that a tool's file holds, with its JSON Schema, before pages are read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, get_args

from code_comments import cell, own_lines, summary
from pydantic import BaseModel
from sphinx.application import Sphinx

from audit.records import Audit, RunComparison
from audit.records.repair_run import Repair
from audit.records.review_json import Review
from audit.records.shareable_json import SharedCopy

FILES: dict[str, type[BaseModel]] = {
    "audit.json": Audit,
    "diff.json": RunComparison,
    "repair.json": Repair,
    "review.json": Review,
    "shareable.json": SharedCopy,
}


def records_in(model: type[Any]) -> Iterator[type[Any]]:
    """Yield a record, and every record and enumeration that its fields name, each once, in the order of first use."""
    seen: list[type[Any]] = []

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, (BaseModel, Enum)) and annotation not in seen:
            seen.append(annotation)
            for field in getattr(annotation, "model_fields", {}).values():
                visit(field.annotation)
        for inner in get_args(annotation):
            visit(inner)

    visit(model)
    yield from seen


def rows_of(record: type[Any], known: Mapping[str, type[Any]]) -> Iterator[str]:
    """Yield a row of the table for each field of a record, or each value of an enumeration."""
    types: dict[str, str] = {}
    meanings: dict[str, str] = {}
    for base in reversed([base for base in record.__mro__ if base.__module__.startswith("audit.")]):
        for found, own in zip((types, meanings), own_lines(base), strict=True):
            found.update(own)
    if issubclass(record, Enum):
        yield "| value | meaning |\n|---|---|"
        for member in record:
            yield f"| `{member.value}` | {cell(meanings[member.name])} |"
        return
    yield "| field | type | meaning |\n|---|---|---|"
    for name in record.model_fields:
        named = [known[word] for word in re.findall(r"\w+", types[name]) if word in known]
        meaning = meanings[name] or (summary(named[0]) if named else "")
        linked = re.sub(
            r"\w+", lambda word: f"[{word[0]}](#{word[0].lower()})" if word[0] in known else word[0], cell(types[name])
        )
        yield f"| `{name}` | {linked} | {cell(meaning)} |"


def page_of(file: str, model: type[BaseModel]) -> str:
    """Return the page of a file."""
    schema = f"{file.removesuffix('.json')}.schema.json"
    parts = [
        f"# Every field of {file}",
        f"Written from the code of this version. As JSON Schema: [{schema}]({schema}).",
    ]
    known = {record.__name__: record for record in records_in(model)}
    for name, record in known.items():
        parts += [f"## {name}", summary(record), "\n".join(rows_of(record, known))]
    return "\n\n".join(parts) + "\n"


def write_pages(app: Sphinx) -> None:
    """Write page and schema of every file to docs/generated."""
    folder = Path(app.srcdir) / "docs" / "generated"
    folder.mkdir(exist_ok=True)
    for file, model in FILES.items():
        stem = file.removesuffix(".json")
        (folder / f"{stem}-json.md").write_text(page_of(file, model), encoding="utf-8")
        schema = json.dumps(model.model_json_schema(mode="serialization"), indent=2)
        (folder / f"{stem}.schema.json").write_text(schema + "\n", encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for them."""
    app.connect("builder-inited", write_pages, priority=100)
    return {"parallel_read_safe": True}
