"""Values of a card that are text by the schema, as they are written: ``no``, ``1.0`` and ``007`` are names, too."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

import yaml

from audit.card.faults import inside, members

_TAG = "tag:yaml.org,2002:"
_TEXT = f"{_TAG}str"
# What YAML makes of a word without quotes; ``<<`` stays what it is.
_GUESSED = {f"{_TAG}{kind}" for kind in ("bool", "int", "float", "null", "timestamp", "value")}
_NOT_TEXT = (bool, int, float)


def keep_text(node: yaml.Node, annotation: object) -> None:
    """Take the scalars of a document for text where the schema asks for text and for no number or truth.

    Keys are always text. Where a value may be left out, ``null`` and ``~`` leave it out; nothing is never text.

    Parameters
    ----------
    node : yaml.Node
        Composed, not constructed; its tags are changed.
    annotation : object
        What the schema allows there.
    """
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag in _GUESSED:
                key.tag = _TEXT
            keep_text(value, inside(annotation, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            keep_text(value, inside(annotation, place))
    elif node.tag in _GUESSED and _is_text(annotation):
        may_be_absent = type(None) in members(annotation)
        is_absent = node.tag == f"{_TAG}null" and (may_be_absent or not node.value)
        node.tag = node.tag if is_absent else _TEXT


def _is_text(annotation: object) -> bool:
    allowed = members(annotation)
    return any(map(_holds_text, allowed)) and not any(kind in allowed for kind in _NOT_TEXT)


def _holds_text(kind: object) -> bool:
    return kind is str or (get_origin(kind) is Literal and all(isinstance(value, str) for value in get_args(kind)))
