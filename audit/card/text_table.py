"""How a text file is written that holds a table: its encoding, and the sign between its columns."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from audit.errors import DataError
from audit.records import Separator, TextEncoding

LOOKED_AT = 100  # rows that every sign splits, to see which one fits
SNIFFED_BYTES = 1000
_MARKS = (
    (codecs.BOM_UTF8, TextEncoding.UTF_8_MARKED),
    (codecs.BOM_UTF32_LE, TextEncoding.UTF_32_MARKED),  # begins as UTF-16 does
    (codecs.BOM_UTF32_BE, TextEncoding.UTF_32_MARKED),
    (codecs.BOM_UTF16_LE, TextEncoding.UTF_16_MARKED),
    (codecs.BOM_UTF16_BE, TextEncoding.UTF_16_MARKED),
)
_NO_TEXT = "\0\1\2\3\4\5\6\7\x08"


def decoded(path: Path) -> tuple[str, TextEncoding]:
    """Return the text of a file, and the encoding that it was taken for.

    That of its mark; else UTF-16 where every other byte is zero, UTF-8 where it is that, windows-1252 where it is not,
    latin-1 where it is neither.

    Raises
    ------
    DataError
        If it is no text.
    """
    content = path.read_bytes()
    encoding = _encoding_of(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        what = f"is no {encoding.upper()} text (byte {error.start + 1:,})"
        raise DataError(str(path), what, "save the table as UTF-8") from None
    if any(sign in text for sign in _NO_TEXT):
        raise DataError(str(path), "is no text", "save the table as UTF-8, or give it the suffix of its format")
    return text, encoding


def _encoding_of(content: bytes) -> TextEncoding:
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return encoding
    begun = content[:SNIFFED_BYTES]
    zeros = [begun[start::2].count(0) for start in (0, 1)]
    if max(zeros) > len(begun) // 4 and min(zeros) == 0:
        return TextEncoding.UTF_16_LE if zeros[1] else TextEncoding.UTF_16_BE
    for encoding in (TextEncoding.UTF_8, TextEncoding.WINDOWS_1252):
        try:
            content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return TextEncoding.LATIN_1


def separator_of(lines: Sequence[str], usual: Separator) -> Separator:
    """Return the sign that separates the columns of a table.

    Each sign splits the header and the first rows. The one counts that gives the most rows as many columns as the
    header; of several, the one with the most columns, then the one that comes first.

    Parameters
    ----------
    lines : sequence of str
        With their ends, the header first.
    usual : Separator
        Where the header has one column whatever the sign.
    """
    text = "".join(lines[:LOOKED_AT])
    fits = {sign: _fit(lines, sign) for sign in Separator}
    candidates = [sign for sign in Separator if fits[sign][1] > 1]
    return max(candidates, key=lambda sign: (*fits[sign], -text.index(sign)), default=usual)


def _fit(lines: Sequence[str], sign: Separator) -> tuple[int, int]:
    """Return how many rows have as many columns as the header, and how many these are."""
    found = columns = 0
    try:
        for row in islice(csv.reader(lines, delimiter=sign, strict=True), LOOKED_AT):
            columns = columns or len(row)
            found += len(row) == columns
    except csv.Error:  # an open quote: what came before it counts
        pass
    return found, columns
