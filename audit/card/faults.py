"""Faults of a card in plain words: where in the file, what is wrong, what was probably meant."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from audit.given import said_of

PathParts = tuple[str | int, ...]

# pydantic's error types, in the words of somebody who writes YAML
_EXPECTED = {
    "string_type": "text",
    "string_pattern_mismatch": "an entry of torchvision's weights (as IMAGENET1K_V1)",  # the one pattern of a card
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
}

_RELATIONS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return a hint at the closest choice, or the list of choices where none is close.

    Parameters
    ----------
    word : str
        What was written.
    choices : iterable of str
        What could have been meant.

    Returns
    -------
    str
        ``did you mean 'column'?``, or ``choose from a, b``, or "" where there are no choices.
    """
    known = [str(choice) for choice in choices]
    close = closest(word, known)
    if close is not None:
        return f"did you mean '{close}'?"
    return f"choose from {', '.join(known)}" if known else ""


def closest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that a misspelt word is closest to; None where none is close."""
    lowered = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.65)
    return lowered[close[0]] if close else None


class Lines:
    """Where each key and value of a YAML document is.

    Parameters
    ----------
    root : yaml.Node or None
        The composed document.
    """

    def __init__(self, root: yaml.Node | None) -> None:
        self._of: dict[PathParts, int] = {}
        self.duplicates: list[tuple[PathParts, int, int]] = []  # path, line, line of the first
        if root is not None:
            self._of[()] = root.start_mark.line + 1
            self._walk(root, ())

    def _walk(self, node: yaml.Node, path: PathParts) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = (*path, str(getattr(key, "value", "")))
                line = key.start_mark.line + 1
                if here in self._of:
                    self.duplicates.append((here, line, self._of[here]))
                self._of[here] = line
                self._walk(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for position, value in enumerate(node.value):
                self._of[*path, position] = value.start_mark.line + 1
                self._walk(value, (*path, position))

    def line(self, path: PathParts) -> int:
        """Return the 1-based line of ``path``, or of its nearest parent that is in the file."""
        while path and path not in self._of:
            path = path[:-1]
        return self._of.get(path, 1)


def spell(path: PathParts) -> str:
    """Return a path as it is written in messages: ``data.labels[1]``; the card itself is ``card``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".") or "card"


def faults_of(error: ValidationError, model: type[BaseModel], data: Mapping[str, Any]) -> list[tuple[PathParts, str]]:
    """Return the faults of a validation in plain words.

    Parameters
    ----------
    error : pydantic.ValidationError
        What pydantic found.
    model : type of pydantic.BaseModel
        What it was validated against.
    data : mapping
        What was validated.

    Returns
    -------
    list of (path, str)
        Where, and what is wrong there with the fix; each place once.
    """
    by_path: dict[PathParts, list[ErrorDetails]] = {}
    for found in error.errors():
        by_path.setdefault(_path_in_file(found, data), []).append(found)
    # a union complains once for each of its members: what is deeper in the file says more
    deepest = [
        path for path in by_path if not any(len(other) > len(path) and other[: len(path)] == path for other in by_path)
    ]
    return [(path, _message(by_path[path], path, model)) for path in deepest]


def _path_in_file(found: ErrorDetails, data: Any) -> PathParts:
    """Drop from an error's location what names a member of a union and so is in no file."""
    path: list[str | int] = []
    here = data
    for part in found["loc"]:
        if _holds(here, part):
            here = here[part]
        elif not (found["type"] == "missing" and part == found["loc"][-1]):
            continue
        path.append(part)
    return tuple(path)


def _holds(container: Any, part: str | int) -> bool:
    if isinstance(container, list):
        return isinstance(part, int) and part < len(container)
    return isinstance(container, Mapping) and part in container


def _message(found: list[ErrorDetails], path: PathParts, model: type[BaseModel]) -> str:
    first = found[0]
    kind = first["type"]
    if kind == "extra_forbidden":
        return _join(f"unknown key '{path[-1]}'", did_you_mean(str(path[-1]), keys_at(model, path[:-1])))
    if kind == "missing":
        return f"required key is missing; write '{path[-1]}: ...'"
    if kind == "value_error":
        return said_of(first)
    if kind == "literal_error" and len(found) == 1:
        choices = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected", "")))
        return _join(f"{_shown(first['input'])} is not one of {', '.join(choices)}", _close(first, choices))
    for each in found:
        if each["type"] in _RELATIONS:  # of the right type: another member of a union asks for another one
            return _bounds(each)
    if expected := _expected(found):
        return _join(f"expected {expected}, got {_shown(first['input'])}", _fix_of_type(found))
    return _bounds(first)


def _expected(found: list[ErrorDetails]) -> str:
    words: list[str] = []
    for each in found:
        if each["type"] == "literal_error":
            words.append(str(each.get("ctx", {}).get("expected", "")))
        elif each["type"] in _EXPECTED:
            words.append(_EXPECTED[each["type"]])
    return " or ".join(dict.fromkeys(words))


def _fix_of_type(found: list[ErrorDetails]) -> str:
    wants_text = any(each["type"] == "string_type" for each in found)
    if wants_text and not isinstance(found[0]["input"], (Mapping, list, type(None))):
        return "put it in quotes"
    return ""


def _bounds(found: ErrorDetails) -> str:
    given = _shown(found["input"])
    ctx: Mapping[str, Any] = found.get("ctx", {})
    if found["type"] in _RELATIONS:
        relation, key = _RELATIONS[found["type"]]
        return f"{given} is out of range; it must be {relation} {ctx.get(key)}"
    if found["type"] == "too_short":
        return f"too few entries ({ctx.get('actual_length')}); give at least {ctx.get('min_length')}"
    if found["type"] == "too_long":
        return f"too many entries ({ctx.get('actual_length')}); give at most {ctx.get('max_length')}"
    return found["msg"]


def _close(found: ErrorDetails, choices: list[str]) -> str:
    close = closest(str(found["input"]), choices)
    return "" if close is None else f"did you mean '{close}'?"  # the message names the choices


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping (key: value)"
    if isinstance(value, list):
        return "a list"
    text = f"the number {value}" if isinstance(value, (int, float)) else f"'{value}'"
    return text if len(text) <= 80 else text[:76] + "...'"


def _join(what: str, fix: str) -> str:
    return f"{what}; {fix}" if fix else what


def keys_at(model: type[BaseModel], path: PathParts) -> list[str]:
    """Return the keys that the schema knows at ``path``, or an empty list where any key may be."""
    annotation: object = model
    for part in path:
        annotation = inside(annotation, part)
    found = model_in(annotation)
    return list(found.model_fields) if found else []


def inside(annotation: object, part: str | int) -> object:
    """Return the annotation of what lies under a key or place of a value; None where anything may."""
    model = model_in(annotation)
    if model is not None:
        field = model.model_fields.get(str(part))
        return field.annotation if field else None
    for member in members(annotation):
        if get_origin(member) in (dict, list, tuple):
            return get_args(member)[-1]
    return None


def model_in(annotation: object) -> type[BaseModel] | None:
    """Return the pydantic model that a field's annotation names, if it names one."""
    for member in members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def members(annotation: object) -> list[object]:
    """Return the types that an annotation allows."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in members(member)]
    return [annotation]
