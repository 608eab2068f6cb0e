"""How numbers and foreign text are written in the report: one place, so that no two tables differ."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Iterable
from datetime import date

from audit.records import Estimate
from audit.store import folder_name

MINUS = "\N{MINUS SIGN}"
NOT_AVAILABLE = "n/a"
LABEL_CHARACTERS = 60
_KEPT_FORMAT_CHARACTERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"
_MARKUP = re.compile(r"[\\`*_{}\[\]<>#|~@!$&]|(?<=:)/")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def clean(text: str) -> str:
    r"""Make invisible and direction-changing characters visible, so that hostile text cannot mislead.

    Parameters
    ----------
    text : str
        Anything from a card, a table or a path.

    Returns
    -------
    str
        The same text; control, format and unpaired surrogate characters appear as ``\u202e``. Line feeds and
        tabs become spaces.
    """
    if text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in "\n\t\r":
        return " "
    hidden = unicodedata.category(character) in {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}
    if hidden and character not in _KEPT_FORMAT_CHARACTERS:
        return f"\\u{ord(character):04x}"
    return character


def markdown(text: str) -> str:
    """Write foreign text in Markdown: cleaned, and every sign of markup, HTML or a link taken as it is."""
    return _MARKUP.sub(r"\\\g<0>", clean(text))


def label(text: str, limit: int = LABEL_CHARACTERS) -> str:
    """Write the name of a group, a class or a file: cleaned, and shortened where it is very long.

    Parameters
    ----------
    text : str
        The name as it is in the data.
    limit : int
        Most characters to show; the full name stays in ``audit.json`` and the CSV tables.

    Returns
    -------
    str
        The name, or its beginning with its length; "(blank)" for an empty name.
    """
    shown = clean(text).strip()
    if not shown:
        return "(blank)"
    return shown if len(shown) <= limit else f"{cut(shown, limit)} ({len(text):,} characters)"


def cut(text: str, limit: int) -> str:
    """Return a text, or its beginning where it is longer than ``limit`` characters."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def decimal(value: float, digits: int, signed: bool = False) -> str:
    """Write a number with fixed decimals, a true minus sign and no negative zero."""
    rounded = round(value, digits) + 0.0
    text = f"{rounded:+,.{digits}f}" if signed and rounded else f"{rounded:,.{digits}f}"
    return text.replace("-", MINUS)


def count(value: int) -> str:
    """Write a whole number with thousands separated by commas."""
    return f"{value:,}"


def percent(value: float | None, digits: int = 1) -> str:
    """Write a fraction in [0, 1] as a percentage; "n/a" for None."""
    return NOT_AVAILABLE if value is None else f"{decimal(100 * value, digits)}%"


def ratio(value: float | None) -> str:
    """Write a ratio with two decimals; "n/a" for None."""
    return NOT_AVAILABLE if value is None else decimal(value, 2)


def points(value: float | None, digits: int = 1, signed: bool = True) -> str:
    """Write a difference of rates, a fraction in [-1, 1], in percentage points; "n/a" for None."""
    return NOT_AVAILABLE if value is None else decimal(100 * value, digits, signed)


def p_value(value: float | None) -> str:
    """Write a p-value with three decimals, "< 0.001" below that; "n/a" for None."""
    if value is None:
        return NOT_AVAILABLE
    return "< 0.001" if value < 0.001 else decimal(value, 3)


def quantity(value: float | None) -> str:
    """Write a number of unknown scale with three significant digits, powers of ten for the very small."""
    if value is None or math.isnan(value):
        return NOT_AVAILABLE
    if value == 0 or math.isinf(value):
        return "0" if value == 0 else ("∞" if value > 0 else f"{MINUS}∞")
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -3 or exponent > 5:
        mantissa, power = f"{value:.2e}".split("e")
        return f"{_trimmed(mantissa).replace('-', MINUS)} × 10{str(int(power)).translate(_SUPERSCRIPTS)}"
    return _trimmed(decimal(value, max(0, 2 - exponent)))


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def rate(estimate: Estimate) -> str:
    """Write a rate with its interval: "31.2% [27.1, 35.6]"."""
    return percent(estimate.value) + _interval(estimate, lambda bound: decimal(100 * bound, 1))


def difference(estimate: Estimate, digits: int = 1) -> str:
    """Write a difference of rates in percentage points with its interval: "+3.1 [+1.2, +4.9]"."""
    return points(estimate.value, digits) + _interval(estimate, lambda bound: points(bound, digits))


def measured(estimate: Estimate) -> str:
    """Write an estimate of unknown scale with its interval."""
    return quantity(estimate.value) + _interval(estimate, quantity)


def rate_interval(estimate: Estimate) -> str:
    """Write only the interval of a rate: "[27.1, 35.6]", or "" where there is none."""
    return _interval(estimate, lambda bound: decimal(100 * bound, 1)).strip()


def interval_of(estimate: Estimate, digits: int = 1) -> str:
    """Write only the interval of a difference in points: "[+1.2, +4.9]", or "" where there is none."""
    return _interval(estimate, lambda bound: points(bound, digits)).strip()


def _interval(estimate: Estimate, write: Callable[[float], str]) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    return f" [{write(estimate.low)}, {write(estimate.high)}]"


def level_note(estimates: Iterable[Estimate]) -> str:
    """Say what the square brackets of a table hold.

    Parameters
    ----------
    estimates : iterable of Estimate
        The estimates that the table prints.

    Returns
    -------
    str
        One sentence naming the coverage, or each coverage where they differ.
    """
    levels = sorted({e.level for e in estimates if e.low is not None})
    if not levels:
        return "No intervals could be computed for this table."
    return f"Square brackets hold {' or '.join(percent(level, 0) for level in levels)} intervals."


def plural(number: int, one: str, many: str = "") -> str:
    """Write a count with its noun: "1 finding", "12 findings"."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def day(value: date) -> str:
    """Write a day, in English whatever the locale: "2 August 2026"."""
    return f"{value.day} {MONTHS[value.month - 1]} {value.year}"


def short_hash(digest: str) -> str:
    """Return the first twelve characters of a hash."""
    return clean(digest)[:12]


def slug(text: str) -> str:
    """Turn an id of a record into an HTML id: letters, digits and hyphens, distinct for distinct texts.

    Parameters
    ----------
    text : str
        Any text, hostile or not.

    Returns
    -------
    str
        Readable ASCII, with a digest.
    """
    return f"{folder_name(text)}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def size(value: float | None, digits: int = 1) -> str:
    """Write a difference of rates without its sign, in percentage points."""
    return NOT_AVAILABLE if value is None else decimal(100 * abs(value), digits)


def magnitude(estimate: Estimate) -> str:
    """Write a difference that is not 0 without its sign: "3.1 points [1.2, 4.9]"."""
    if estimate.value is None or estimate.value >= 0:
        return spread(estimate).replace("+", "")
    low, high = (None if end is None else -end for end in (estimate.high, estimate.low))
    return spread(Estimate(value=-estimate.value, low=low, high=high, level=estimate.level)).replace("+", "")


def spread(estimate: Estimate | None) -> str:
    """Write "+3.1 points [+1.2, +4.9]"."""
    if estimate is None or estimate.value is None:
        return NOT_AVAILABLE
    return f"{points(estimate.value)} points {interval_of(estimate)}".strip()
