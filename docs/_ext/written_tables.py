"""Writes the tables of documents that the code says: ``python docs/_ext/written_tables.py`` after a change of it.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``, and is read in the repository as in the
site. ``--check`` writes nothing and names what differs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from code_comments import own_lines
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import vit_audit as va
from audit import exit_codes
from audit.card import repair_spec, schema
from audit.card.load import built_in_cards, load_card
from audit.card.reader_names import OF_PLACES, PUBLISHED, READERS
from audit.terminal import datasets_table, models_table

DOCS = Path(__file__).parents[1]
MARKED = re.compile(r"(<!-- table: ([\w.-]+) -->\n)(.*?)(\n<!-- end of table -->)", re.DOTALL)
DEFAULT = re.compile(r"[;.] default: (.+)$")  # at the end of a comment: what stands in where nothing is stated
WORDS: Mapping[type, str] = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}
BOUNDS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))  # as pydantic names them
ONE = re.compile(r"^(whole number|number|mapping|list)\b")


def card_table(part: type[BaseModel]) -> str:
    """Return the table of every field of a part of the card: its type, its default, and the comment in the source."""
    _, meanings = own_lines(part)
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in part.model_fields.items():
        stated = DEFAULT.search(meanings[name])
        default = stated[1] if stated else default_of(field)
        meaning = DEFAULT.sub("", meanings[name])
        assert meaning, f"{part.__name__}.{name} has no comment"
        rows.append(f"| `{name}` | {type_of(part, name, field)} | {default} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def default_of(field: FieldInfo) -> str:
    """Return what stands in for a field that a card leaves out."""
    if field.is_required():
        return "required"
    given = field.default
    if isinstance(given, BaseModel):
        given = given.model_dump(exclude_defaults=True)
        return flow(given) if given else "see below"
    if given is None or given in ([], {}):
        return "none"
    return "empty" if given == "" else flow(given)


def flow(value: Any) -> str:
    """Return a value as one writes it in a card."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def type_of(part: type[BaseModel], name: str, field: FieldInfo) -> str:
    """Return what a field takes, in words."""
    if (part, name) == (schema.DataSpec, "reader"):
        return alternatives([*OF_PLACES, *READERS, "synthetic", *PUBLISHED]) + ", or one of another package"
    return words(field.annotation, field.metadata)


def words(annotation: Any, limits: list[Any] | tuple[Any, ...] = ()) -> str:
    """Return what an annotation allows, with its limits."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return words(inner[0], [*limits, *inner[1:]])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(words(kind, limits) for kind in inner if kind is not type(None)))
    if origin is Literal:
        return alternatives(inner)
    if origin is list:
        return f"list of {several(words(inner[0]))}" + counted(limits)
    if origin is dict:
        return f"mapping of names to {several(words(inner[1]))}" + counted(limits)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return WORDS[annotation] + bounded(limits)


def several(kind: str) -> str:
    """Return a kind of value in the plural."""
    return ONE.sub(r"\1s", kind)


def alternatives(values: list[Any] | tuple[Any, ...]) -> str:
    """Return names, one of which is written."""
    named = [f"`{value}`" for value in values]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} or {named[-1]}"


def single(limits: list[Any] | tuple[Any, ...]) -> Iterator[Any]:
    """Yield limits one by one, also those that pydantic's ``Field`` holds."""
    for limit in limits:
        yield from limit.metadata if isinstance(limit, FieldInfo) else [limit]


def bounded(limits: list[Any] | tuple[Any, ...]) -> str:
    """Return the limits of a number."""
    found = {key: getattr(limit, key) for key, _ in BOUNDS for limit in single(limits) if hasattr(limit, key)}
    shown = {key: f"{value:,}" if isinstance(value, int) else f"{value:g}" for key, value in found.items()}
    if shown.keys() >= {"ge", "le"}:
        return f", {shown['ge']} to {shown['le']}"
    return "".join(f", {word} {shown[key]}" for key, word in BOUNDS if key in shown)


def counted(limits: list[Any] | tuple[Any, ...]) -> str:
    """Return how many entries a list or mapping has."""
    least = [limit.min_length for limit in single(limits) if hasattr(limit, "min_length")]
    most = [limit.max_length for limit in single(limits) if hasattr(limit, "max_length")]
    return "".join([*(f", at least {n}" for n in least if n), *(f", at most {n}" for n in most if n)])


def parts() -> dict[str, type[BaseModel]]:
    """Return every part of a card by its name."""
    found = {**vars(schema), **vars(repair_spec)}
    return {
        name: part
        for name, part in found.items()
        if isinstance(part, type) and issubclass(part, BaseModel) and part not in (BaseModel, schema.CardPart)
    }


def tables() -> dict[str, Callable[[], str]]:
    """Return what makes each table, by its name."""
    return {
        **{f"card.{name}": partial(card_table, part) for name, part in parts().items()},
        "exit-codes": exit_codes.as_markdown,
        "datasets": lambda: datasets_table(
            {name: load_card(path) for name, path in built_in_cards().items()}, markdown=True
        ),
        "models": lambda: models_table(va.supported_models(), markdown=True),
    }


def written(text: str, made: Mapping[str, Callable[[], str]]) -> str:
    """Return a document with its tables as the code says them."""
    return MARKED.sub(lambda found: f"{found[1]}{made[found[2]]()}{found[4]}", text)


def main(docs: Path, *, check: bool) -> int:
    """Write, or compare, every document of a folder; return how many differ from the code afterwards."""
    made, differing = tables(), 0
    for path in sorted(docs.glob("*.md")):
        before = path.read_text(encoding="utf-8")
        after = written(before, made)
        if after != before:
            differing += 1
            print(f"{path.name}: {'differs from the code' if check else 'written'}")
            if not check:
                path.write_text(after, encoding="utf-8")
    return differing if check else 0


if __name__ == "__main__":
    raise SystemExit(main(DOCS, check="--check" in sys.argv))
