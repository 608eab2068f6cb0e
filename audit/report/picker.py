"""What can be picked on the page, as JSON: the numbers of groups and heads, written as the tables write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from markupsafe import Markup

from audit.records import ContrastRow, Estimate, HeadRow, Metric, RateRow
from audit.report.formats import NOT_AVAILABLE, count, difference, rate
from audit.report.page import Page

Row = list[str | int]  # where in its list of the record a row is, its name, and the texts to show
TEXTS_OF_RATES = 6
IN_HTML = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
)  # so that no name can end the block or begin markup


@dataclass
class _Label:
    """What is known of a pair of groups for one label."""

    name: str
    groups: list[int]  # their places among the rates, the reference last
    gaps: list[str]  # a text for each metric, "" where it was not asked
    heads: list[Row]
    largest: int  # which of the heads carries most, confirmed ones before others


@dataclass
class _Pair:
    """A group and its reference, or all groups of an attribute where none is compared."""

    name: str
    labels: list[_Label] = field(default_factory=list)


def picker_json(page: Page) -> Markup:
    """Return what the script of a page shows of what is picked, as a JSON object that can stand in HTML.

    Parameters
    ----------
    page : Page
        Of an audit; of one that is invalid rates alone can be picked, as in its tables.

    Returns
    -------
    Markup
        The script finds every number written out, and writes none itself. "" where the record has no rates.
    """
    pairs: dict[tuple[str, ...], _Pair] = {}
    verdicts: dict[str, int] = {}  # a few texts, which many heads share
    for attribute, outcome in page.rate_blocks():
        gaps = page.contrasts(attribute, outcome)
        for group, reference in dict.fromkeys((c.group, c.reference) for c in gaps) or [("", "")]:
            own = [c for c in gaps if (c.group, c.reference) == (group, reference)]
            pair = pairs.setdefault((attribute, group, reference), _Pair(page.text.pick("pair", attribute, own)))
            pair.labels.append(_label(page, attribute, outcome, own, verdicts))
    if not page.audit.rates:
        return Markup()
    content = {
        "rates": [_rates(page, place, row) for place, row in enumerate(page.audit.rates)],
        "verdicts": list(verdicts),
        "pairs": [asdict(pair) for pair in pairs.values()],
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.translate(IN_HTML))  # noqa: S704 - nothing in it is markup


def _label(page: Page, attribute: str, outcome: str, gaps: Sequence[ContrastRow], verdicts: dict[str, int]) -> _Label:
    """Return what is known of one label; ``gaps`` are those of the pair, none where all groups can be picked."""
    asked = [name for gap in gaps[:1] for name in (gap.group, gap.reference)]
    places = {
        row.group: place
        for place, row in enumerate(page.audit.rates)
        if (row.attribute, row.outcome) == (attribute, outcome)
    }
    texts = {gap.metric: page.text.pick("gap", gap) for gap in gaps}
    heads = page.heads(f"{attribute}:{'-'.join(asked)}", outcome) if gaps else []
    return _Label(
        page.text.label(outcome),
        [places[name] for name in asked or places if name in places],
        [texts.get(metric, "") for metric in Metric],
        [_head(page, row, verdicts) for row in heads],
        heads.index(page.strongest(heads)[0]) if heads else 0,
    )


def _rates(page: Page, place: int, row: RateRow) -> Row:
    """Return how many images of a group there are and how often each answer and each error is given to them."""
    name = page.text.pick("group", row)
    if not row.images:
        return [place, name, *["no data"] * TEXTS_OF_RATES]
    return [
        place,
        name,
        f"{count(row.images)} ({count(row.subjects)})",
        rate(row.selection_rate),
        f"{count(row.false_negatives)} of {count(row.positives)}: {rate(row.false_negative_rate)}",
        f"{count(row.false_positives)} of {count(row.negatives)}: {rate(row.false_positive_rate)}",
        rate(row.standardised_rate),
        rate(row.accuracy),
    ]


def _head(page: Page, row: HeadRow, verdicts: dict[str, int]) -> Row:
    """Return what a head carries, with its placebo; its verdict is a place in ``verdicts``, which may grow."""
    place = int(page.place(row).rpartition("/")[2])
    verdict = verdicts.setdefault(page.text.pick("verdict", row), len(verdicts))
    return [place, row.name, verdict, *map(_effect, (row.confirmation, row.confirmation_rate, row.placebo))]


def _effect(estimate: Estimate | None) -> str:
    """Write an effect as the table of heads does, in percentage points."""
    return NOT_AVAILABLE if estimate is None else difference(estimate, 2)
