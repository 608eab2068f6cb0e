"""What the source says of each field of a class: the type as it is written, and the comment."""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from typing import Any


def own_lines(record: type[Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return what the source has of each field: its type, and the comment on its lines, or right above them."""
    source = textwrap.dedent(inspect.getsource(record))
    comments, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
            if token.line.lstrip().startswith("#"):
                alone.add(token.start[0])
    types, meanings = {}, {}
    (definition,) = ast.parse(source).body
    for node in definition.body if isinstance(definition, ast.ClassDef) else ():
        if isinstance(node, (ast.AnnAssign, ast.Assign)):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            first = node.lineno
            while first - 1 in alone:
                first -= 1
            lines = range(first, (node.end_lineno or first) + 1)
            meanings[ast.unparse(target)] = " ".join(comments[line] for line in lines if line in comments)
            types[ast.unparse(target)] = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
    return types, meanings


def summary(record: type[Any]) -> str:
    """Return the first line of a record's docstring."""
    return (inspect.getdoc(record) or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")


def cell(text: str) -> str:
    """Return a text as a cell of a table holds it."""
    return re.sub(r"([\[\]|<>*])", r"\\\1", text)
