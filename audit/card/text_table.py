"""How a text file is written that holds a table: its encoding, and the sign between its columns."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from audit.errors import DataError
from audit.records import Separator, TextEncoding
from audit.remote import Place

LOOKED_AT = 100  # rows that every sign splits, to see which one fits
SNIFFED_BYTES = 1000
DECODED_AT_ONCE = 1 << 20
_MARKS = (
    (codecs.BOM_UTF8, TextEncoding.UTF_8_MARKED),
    (codecs.BOM_UTF32_LE, TextEncoding.UTF_32_MARKED),  # begins as UTF-16 does
    (codecs.BOM_UTF32_BE, TextEncoding.UTF_32_MARKED),
    (codecs.BOM_UTF16_LE, TextEncoding.UTF_16_MARKED),
    (codecs.BOM_UTF16_BE, TextEncoding.UTF_16_MARKED),
)
_NO_TEXT = "\0\1\2\3\4\5\6\7\x08"


@dataclass(frozen=True)
class TextFile:
    """A file of text that is read line by line, so that no more than a line of it is held."""

    path: Place
    encoding: TextEncoding
    newline: str = ""  # what ends a line, as ``open`` takes it
    skipped: int = 0  # lines at the beginning that are passed over

    def __iter__(self) -> Iterator[str]:
        """Yield the lines with their ends."""
        with self.path.open(encoding=self.encoding, newline=self.newline) as file:
            yield from islice(file, self.skipped, None)


def open_text(path: Place, *, newline: str = "") -> TextFile:
    """Find out how a file of text is written.

    Its encoding is that of its mark; else UTF-16 where every other byte is zero, UTF-8 where it is that, windows-1252
    where it is not, latin-1 where it is neither.

    Raises
    ------
    DataError
        If it is no text.
    """
    possible = _encodings_of(path)
    for encoding in possible:
        try:
            _check_text(path, encoding)
        except UnicodeDecodeError:
            continue
        return TextFile(path, encoding, newline)
    try:
        path.read_bytes().decode(possible[-1])  # whole, to say where it fails
    except UnicodeDecodeError as error:
        what = f"is no {possible[-1].upper()} text (byte {error.start + 1:,})"
        raise DataError(str(path), what, "save the table as UTF-8") from None
    return TextFile(path, possible[-1], newline)


def _check_text(path: Place, encoding: TextEncoding) -> None:
    """Decode a file piece by piece; raise ``DataError`` where it holds signs that no text does."""
    decoder = codecs.getincrementaldecoder(encoding)()
    with path.open("rb") as file:
        while piece := file.read(DECODED_AT_ONCE):
            text = decoder.decode(piece)
            if any(sign in text for sign in _NO_TEXT):
                fix = "save the table as UTF-8, or give it the suffix of its format"
                raise DataError(str(path), "is no text", fix)
        decoder.decode(b"", final=True)


def _encodings_of(path: Place) -> Sequence[TextEncoding]:
    """Return the encodings that a file may have, the likeliest first."""
    with path.open("rb") as file:
        begun = file.read(SNIFFED_BYTES)
    for mark, encoding in _MARKS:
        if begun.startswith(mark):
            return [encoding]
    zeros = [begun[start::2].count(0) for start in (0, 1)]
    if max(zeros) > len(begun) // 4 and min(zeros) == 0:
        return [TextEncoding.UTF_16_LE if zeros[1] else TextEncoding.UTF_16_BE]
    return [TextEncoding.UTF_8, TextEncoding.WINDOWS_1252, TextEncoding.LATIN_1]


def separator_of(lines: Iterable[str], usual: Separator) -> Separator:
    """Return the sign that separates the columns of a table.

    Each sign splits the header and the first rows. The one counts that gives the most rows as many columns as the
    header; of several, the one with the most columns, then the one that comes first.

    Parameters
    ----------
    lines : iterable of str
        With their ends, the header first; more than one pass is made.
    usual : Separator
        Where the header has one column whatever the sign.
    """
    text = "".join(islice(lines, LOOKED_AT))
    fits = {sign: _fit(lines, sign) for sign in Separator}
    candidates = [sign for sign in Separator if fits[sign][1] > 1]
    return max(candidates, key=lambda sign: (*fits[sign], -text.index(sign)), default=usual)


def _fit(lines: Iterable[str], sign: Separator) -> tuple[int, int]:
    """Return how many rows have as many columns as the header, and how many these are."""
    found = columns = 0
    try:
        for row in islice(csv.reader(lines, delimiter=sign, strict=True), LOOKED_AT):
            columns = columns or len(row)
            found += len(row) == columns
    except csv.Error:  # an open quote: what came before it counts
        pass
    return found, columns
