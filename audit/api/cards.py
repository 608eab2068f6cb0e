"""Cards: read from a file, or built in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import PrivateAttr

import audit.card.first
import audit.card.load
import audit.card.schema
from audit.card.load import find_card
from audit.given import as_path, check_kind
from audit.store import write_text

__all__ = ["Card", "built_in_cards", "first_card", "load_card"]


class Card(audit.card.schema.Card):
    """What is audited, and how strictly: the sections of ``dataset.yaml`` as keyword arguments.

    Parameters
    ----------
    **sections
        ``data``, ``groups``, ``model``, ``training``, ``audit``, ``policy`` and so on, as docs/card.md lists them, each
        a dict. Relative paths start at the current folder.

    Raises
    ------
    CardError
        With every fault found, one line each.

    Examples
    --------
    >>> import vit_audit as va
    >>> card = va.Card(data={"path": "faces.csv"}, groups={"gender": {"column": "gender"}})
    >>> card.audit.alpha
    0.05
    >>> va.Card(data={"path": "faces.csv"}, groups={"gender": {"colum": "gender"}})
    Traceback (most recent call last):
        ...
    audit.errors.CardError: Card groups.gender.column: required key is missing; write 'column: ...'
    Card groups.gender.colum: unknown key 'colum'; did you mean 'column'?
    """

    _path: Path | None = PrivateAttr(default=None)  # the file it was read from
    _content: bytes | None = PrivateAttr(default=None)  # of that file

    def __init__(self, **sections: Any) -> None:
        audit.card.load.check_card(sections, "Card")
        super().__init__(**sections)

    @property
    def path(self) -> Path:
        """The file that it was read from, or ``card.yaml`` in the current folder: where relative paths start."""
        return self._path or Path.cwd() / "card.yaml"

    @property
    def content(self) -> bytes:
        """The bytes of that file, or the card as YAML."""
        return self._content if self._content is not None else self.to_yaml().encode()

    def to_yaml(self) -> str:
        """Return the card as the text of a YAML file; what has its default is left out.

        Examples
        --------
        >>> import vit_audit as va
        >>> print(va.Card(data={"path": "faces.csv"}, groups={"gender": {"column": "gender"}}).to_yaml())
        data:
          path: faces.csv
        groups:
          gender:
            column: gender
        <BLANKLINE>
        """
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)

    def save(self, path: str | Path) -> Path:
        """Write the card to a YAML file, whole or not at all.

        Examples
        --------
        >>> import vit_audit as va
        >>> card = va.load_card("synthetic-expressions")
        >>> va.load_card(card.save("mine.yaml")).to_yaml() == card.to_yaml()
        True
        """
        place = as_path("path", path)
        write_text(place, self.to_yaml())
        return place


def built_in_cards() -> dict[str, Path]:
    """Return the cards that come with the tool.

    Returns
    -------
    dict of str to pathlib.Path
        The file of each name.

    Examples
    --------
    >>> import vit_audit as va
    >>> "synthetic-expressions" in va.built_in_cards()
    True
    """
    return audit.card.load.built_in_cards()


def load_card(card: str | Path) -> Card:
    """Read and check a card.

    Parameters
    ----------
    card : str or pathlib.Path
        A YAML file, or the name of a built-in card.

    Returns
    -------
    Card
        Complete, with every default filled in. Relative paths in it start at its folder.

    Raises
    ------
    CardError
        With every fault found, one line each with its place and its fix.
    InputError
        If there is no such card.

    Examples
    --------
    >>> import vit_audit as va
    >>> va.load_card("synthetic-expressions").task
    'emotion'
    """
    check_kind("card", card, (str, Path), "give a file, or the name of a built-in card")
    path = find_card(card)
    read = Card(**audit.card.load.load_card(path).model_dump(exclude_unset=True))
    read._path, read._content = path, path.read_bytes()
    return read


def first_card(path: str | Path, *, out: str | Path | None = None) -> str:
    r"""Write the text of a first card for a table of images or a folder of class folders.

    Parameters
    ----------
    path : str or pathlib.Path
        A CSV, TSV or Parquet table, or a folder with one folder per class.
    out : str or pathlib.Path, optional
        File to write it to, which the paths in it are relative to; by default it is returned only.

    Returns
    -------
    str
        YAML, with a comment on every line that is guessed.

    Raises
    ------
    DataError
        If no image, label or group column can be recognised.

    Examples
    --------
    >>> import pathlib, tempfile, vit_audit as va
    >>> table = pathlib.Path(tempfile.mkdtemp()) / "faces.csv"
    >>> rows = [f"{i}.png,{'smile' if i % 2 else 'neutral'},{'female' if i % 3 else 'male'}" for i in range(12)]
    >>> _ = table.write_text("\n".join(["image,expression,gender", *rows]))
    >>> "label: expression" in va.first_card(table)
    True
    """
    table, file = as_path("path", path), None if out is None else as_path("out", out)
    text = audit.card.first.first_card(table, card_folder=None if file is None else file.absolute().parent)
    if file is not None:
        write_text(file, text)
    return text
