"""Other names for people and images: the same for the same, and not to be looked up.

A name is HMAC-SHA-256 of the old one with a key that is drawn for one copy and written nowhere (RFC 2104; NIST SP
800-107). Without the key nobody can tell which name a guess would get, not even who made the copy.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import pandas as pd

from audit.data.samples import UNKNOWN
from audit.errors import InputError

KEY_BYTES = 32
DIGITS = 20  # hexadecimal ones of a name: two of a million names are alike once in 10^12 copies
LEAST = 4  # characters of a name that is looked for in running text; among examples any is
IMAGE, SUBJECT, PAIR, VALUE = "image", "subject", "pair", "value"
RECORD = "record"  # the hash of an audit.json
NAMING = {"image": IMAGE, "donor_image": IMAGE, "subject": SUBJECT}  # columns of effects
# Columns of effects with text that names nobody.
PLAIN = {
    "asked", "contrast", "control", "direction", "donor_kind", "exchanged", "form", "gates", "group", "judged",
    "label", "order", "orders", "part", "players", "predicted", "read_part", "reduced", "reference", "relation",
    "set", "setting", "side", "split", "version",
}  # fmt: skip
_PLAIN_WORD = re.compile(r"[a-z]+|[\d\W]+")  # a word or number of any sentence, which is no name in it


@dataclass(frozen=True)
class Pseudonyms:
    """Draws other names, and remembers whom it gave one."""

    # secret; drawn again unless given
    key: bytes = field(default_factory=lambda: secrets.token_bytes(KEY_BYTES), repr=False)
    given: dict[tuple[str, str], str] = field(default_factory=dict, repr=False)

    def of(self, kind: str, name: str) -> str:
        """Return the other name of an image, a subject, a pair or a value."""
        if (kind, name) not in self.given:
            self.given[kind, name] = f"{kind.split(':')[0]}-{self.digits(kind, name)}"
        return self.given[kind, name]

    def digits(self, kind: str, name: str) -> str:
        """Return the digits of another name."""
        digest = hmac.new(self.key, f"{kind}\0{name}".encode("utf-8", "surrogatepass"), hashlib.sha256)
        return digest.hexdigest()[:DIGITS]

    def column(self, kind: str, names: pd.Series) -> pd.Series:
        """Return a column under other names; what says that there is none stays."""
        other = {name: name if name in ("", UNKNOWN) else self.of(kind, name) for name in names.dropna().unique()}
        return names.map(other)

    def table(
        self, table: pd.DataFrame, kinds: Mapping[str, str], where: str, *, plain: Collection[str] = PLAIN
    ) -> pd.DataFrame:
        """Return a table under other names.

        Parameters
        ----------
        table : pandas.DataFrame
        kinds : mapping of str to str
            Of the columns that name somebody or something, what they name.
        where : str
            The file, for the message.
        plain : collection of str
            Columns of text that name nobody.

        Raises
        ------
        InputError
            If a column of text is of neither: it might name people.
        """
        for column in table.columns:
            known = column in kinds or column in plain or pd.api.types.is_numeric_dtype(table[column])
            if not known and table[column].notna().any():  # of a table without rows no type is known
                what = f"column '{column}' holds text that may name people"
                raise InputError(where, what, "share the report alone, and report this")
        return table.assign(**{c: self.column(kinds[c], table[c]) for c in table.columns if c in kinds})

    def counts(self) -> dict[str, int]:
        """Return how many names of each kind were given."""
        kinds = [kind.split(":")[0] for kind, _ in self.given]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}

    def in_text(self, text: str) -> str:
        """Return a sentence with the names in it replaced that are no common word or number."""
        known = {name: other for name, other in self._people().items() if not _PLAIN_WORD.fullmatch(name)}
        return _replaced(text, known, LEAST)

    def _people(self) -> Mapping[str, str]:
        """Return the names of people and images that were replaced; images count where both have the same."""
        people = {name: other for (kind, name), other in self.given.items() if kind == SUBJECT}
        return people | {name: other for (kind, name), other in self.given.items() if kind == IMAGE}


def _replaced(text: str, known: Mapping[str, str], least: int) -> str:
    """Replace names that are words of their own, longer ones first."""
    found = sorted((n for n in known if len(n) >= least and n in text), key=lambda n: (-len(n), n))
    if not found:
        return text
    pattern = r"(?<!\w)(?:" + "|".join(map(re.escape, found)) + r")(?!\w)"
    return re.sub(pattern, lambda match: known[match[0]], text)
