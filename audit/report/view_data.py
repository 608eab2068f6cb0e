"""Sections "Data" and "Rates by group" as tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from audit.data.samples import SPLITS
from audit.records import Audit, ContrastRow, CountRow, ExcludedRow, HeadRow, LabelShareRow, Metric, RateRow, State
from audit.report import figures, formats, wording
from audit.report.svg import (
    Cell,
    Column,
    Picture,
    Place,
    Table,
    TableGroup,
    badge_cell,
    header_cell,
    number_cell,
    places,
)

EXAMPLES = 5

RateName = Literal["selection_rate", "standardised_rate", "true_positive_rate", "false_positive_rate"]
# What each rate is a share of, as "Share of ... predicted so".
RATES: Mapping[RateName, str] = {
    "selection_rate": "images",
    "standardised_rate": "images, at equal labels,",
    "true_positive_rate": "images labelled so",
    "false_positive_rate": "images labelled otherwise",
}
RATE_OF: Mapping[str, RateName] = {  # the rate whose difference a contrast's metric is
    "standardised_gap": "standardised_rate",
    "tpr_gap": "true_positive_rate",
    "fpr_gap": "false_positive_rate",
}


def data_tables(audit: Audit) -> list[Table]:
    """Return who assigned each attribute, the splits, and what was left out."""
    data, place = audit.data, places({"/data/attributes": audit.data.attributes})
    return [
        Table(
            id="attributes",
            caption="Group annotations: where they come from",
            columns=(
                Column("Attribute"),
                Column("Assigned by"),
                Column("Groups"),
                Column("Reference"),
                Column("Unknown", "images", True),
            ),
            rows=tuple(
                (
                    header_cell(formats.label(a.attribute), a.note, source=place(a)),
                    Cell(a.assigned_by),
                    Cell(", ".join(formats.label(group) for group in a.groups)),
                    Cell(formats.label(a.reference)),
                    number_cell(formats.count(a.unknown_images)),
                )
                for a in data.attributes
            ),
            note=wording.PERCEPTIONS,
        ),
        _left_out("excluded", "Excluded: readable, but not part of the question", data.excluded),
        _left_out("quarantined", "Quarantined: could not be read", data.quarantined),
    ]


def _left_out(table_id: str, caption: str, rows: Sequence[ExcludedRow]) -> Table:
    listed = tuple(
        (
            header_cell(row.reason, source=f"/data/{table_id}/{number}"),
            number_cell(formats.count(row.images)),
            Cell(", ".join(formats.label(example) for example in row.examples[:EXAMPLES]) or "–"),
        )
        for number, row in enumerate(rows)
    )
    nothing = ((header_cell("None"), number_cell("0"), Cell("–")),)
    columns = (
        Column("Reason"),
        Column("Images", is_number=True),
        Column("Examples", f"at most {EXAMPLES}; every unreadable file: tables/excluded.csv"),
    )
    return Table(id=table_id, caption=caption, columns=columns, rows=listed or nothing)


def label_tables(audit: Audit) -> list[Table]:
    """Return for each column that donors are matched on how often its values carry each label."""
    place = places({"/data/label_shares": audit.data.label_shares})
    columns = dict.fromkeys(row.column for row in audit.data.label_shares)
    return [_label_table(c, [row for row in audit.data.label_shares if row.column == c], place) for c in columns]


def _label_table(column: str, shares: Sequence[LabelShareRow], place: Place) -> Table:
    return Table(
        id=f"labels-{formats.slug(column)}",
        caption=f"Labels by {formats.label(column)}: share of images with each label",
        columns=(
            Column(formats.label(column).capitalize()),
            Column("Images", is_number=True),
            *(Column(formats.label(label), is_number=True) for label in shares[0].shares),
        ),
        rows=tuple(
            (
                header_cell(formats.label(row.value), source=place(row)),
                number_cell(formats.count(row.images)),
                *(number_cell(formats.percent(share)) for share in row.shares.values()),
            )
            for row in shares
        ),
        note=f"Donors are matched on {formats.label(column)}. Rates by group are not, so where its values differ here "
        "and in their groups, part of a gap may be theirs.",
    )


def count_tables(audit: Audit) -> list[Table]:
    """Return one table of images by group x label x split for each attribute; "unknown" has its own rows."""
    attributes = dict.fromkeys(row.attribute for row in audit.data.counts)
    every = list(enumerate(audit.data.counts))
    return [
        _count_table(attribute, {f"/data/counts/{i}": row for i, row in every if row.attribute == attribute})
        for attribute in attributes
    ]


def _count_table(attribute: str, placed: Mapping[str, CountRow]) -> Table:
    counts = placed.values()
    splits = [*SPLITS, *dict.fromkeys(row.split for row in counts if row.split not in SPLITS)]
    shown = [split for split in splits if any(row.split == split for row in counts)]
    cells = {(row.group, row.label, row.split): row for row in counts}
    sources = {(row.group, row.label, row.split): place for place, row in placed.items()}
    pairs = dict.fromkeys((row.group, row.label) for row in counts)
    return Table(
        id=f"counts-{formats.slug(attribute)}",
        caption=f"Images by {formats.label(attribute)}, label and split (subjects in brackets)",
        columns=(
            Column("Group"),
            Column("Label"),
            *(Column(split.capitalize(), is_number=True) for split in shown),
            Column("All", is_number=True),
        ),
        rows=tuple(
            _count_row(
                group,
                label,
                [cells.get((group, label, split)) for split in shown],
                " ".join(sources[where] for split in shown if (where := (group, label, split)) in sources),
            )
            for group, label in pairs
        ),
    )


def _count_row(group: str, label: str, rows: Sequence[CountRow | None], source: str) -> tuple[Cell, ...]:
    unknown = group == "unknown"
    total = sum(row.images for row in rows if row)
    return (
        Cell(formats.label(group), tone="unknown" if unknown else "", is_header=True, source=source),
        Cell(formats.label(label)),
        *(number_cell(f"{formats.count(row.images)} ({formats.count(row.subjects)})" if row else "0") for row in rows),
        number_cell(formats.count(total)),
    )


def rate_groups(audit: Audit, with_verdicts: bool) -> list[TableGroup]:
    """Return one block for each attribute (or intersection) and outcome.

    Parameters
    ----------
    audit : Audit
        The record.
    with_verdicts : bool
        False where the instrument is invalid: rates are shown, comparisons are withheld.
    """
    blocks = dict.fromkeys((row.attribute, row.outcome) for row in audit.rates)
    blocks |= dict.fromkeys((row.attribute, row.outcome) for row in audit.contrasts)
    return [_rate_group(audit, attribute, outcome, with_verdicts) for attribute, outcome in blocks]


def _rate_group(audit: Audit, attribute: str, outcome: str, with_verdicts: bool) -> TableGroup:
    place = places({"/rates": audit.rates, "/contrasts": audit.contrasts})
    rates = [row for row in audit.rates if (row.attribute, row.outcome) == (attribute, outcome)]
    contrasts = [row for row in audit.contrasts if (row.attribute, row.outcome) == (attribute, outcome)]
    key = formats.slug(f"{attribute}:{outcome}")
    title = f"{formats.label(attribute)}: predicted “{formats.label(outcome)}”"
    picture = group_picture(audit, attribute, outcome, "selection_rate")
    tables = [_rate_table(key, title, rates, place)]
    if with_verdicts and contrasts:
        tables.append(_contrast_table(key, title, contrasts, rates, place))
        tables += _range_table(audit, attribute, outcome, key, title)
    return TableGroup(id=f"rates-{key}", title=title, tables=tuple(tables), pictures=(picture,) if picture else ())


def group_picture(audit: Audit, attribute: str, outcome: str, rate: RateName, compact: bool = False) -> Picture | None:
    """Draw one kind of rate of an attribute's groups for one outcome; None where nothing can be drawn."""
    bars = [
        figures.Bar(row.group, getattr(row, rate), row.is_reference)
        for row in audit.rates
        if (row.attribute, row.outcome) == (attribute, outcome)
    ]
    title = (
        f"Share of {RATES[rate]} predicted “{formats.label(outcome)}”, by {formats.label(attribute)}, with intervals"
    )
    return figures.rates_picture(bars, title, compact)


def _rate_table(key: str, title: str, rates: Sequence[RateRow], place: Place) -> Table:
    return Table(
        id=f"table-{key}",
        caption=f"Rates - {title}",
        columns=(
            Column("Group"),
            Column("n", "images (subjects)", True),
            Column("Positives", "labelled so", True),
            Column("Selection rate", "predicted so", True),
            Column("True-positive rate", is_number=True),
            Column("False-positive rate", is_number=True),
            Column("At equal label mix", "standardised rate", True),
            Column("Mean probability", is_number=True),
            Column("Accuracy", is_number=True),
            Column("Impact ratio", "to the reference", True),
            Column("Impact ratio", "to the highest", True),
        ),
        rows=tuple(_rate_row(row, place(row)) for row in rates),
        note=formats.level_note(row.selection_rate for row in rates),
        kind="dense",
    )


def _rate_row(row: RateRow, source: str) -> tuple[Cell, ...]:
    note = "; ".join(part for part in ("reference" if row.is_reference else "", row.note) if part)
    estimates = (
        row.selection_rate,
        row.true_positive_rate,
        row.false_positive_rate,
        row.standardised_rate,
        row.mean_probability,
        row.accuracy,
    )
    return (
        header_cell(formats.label(row.group), note, source=source),
        number_cell(f"{formats.count(row.images)} ({formats.count(row.subjects)})"),
        number_cell(formats.count(row.positives)),
        *(number_cell(formats.percent(e.value), formats.rate_interval(e)) for e in estimates),
        number_cell(formats.ratio(row.impact_ratio)),
        number_cell(formats.ratio(row.impact_ratio_highest)),
    )


def _contrast_table(
    key: str, title: str, contrasts: Sequence[ContrastRow], rates: Sequence[RateRow], place: Place
) -> Table:
    sizes = sorted({row.family_size for row in contrasts if row.family_size})
    family = f" Adjusted over a family of {', '.join(map(formats.count, sizes))} tests." if sizes else ""
    return Table(
        id=f"contrasts-{key}",
        caption=f"Compared with the reference - {title}",
        columns=(
            Column("Group against reference"),
            Column("Question"),
            Column("Answer"),
            Column("Gap", "points, with interval", True),
            Column("Ratio", is_number=True),
            Column("p", "raw", True),
            Column("p", "adjusted", True),
            Column("Detectable", "points, 80% power", True),
            seeds_column(contrasts),
        ),
        rows=(
            *(_contrast_row(row, place(row)) for row in contrasts),
            *(r for row in rates for r in _described_rows(row, contrasts[0].reference, place(row))),
        ),
        note=f"{formats.level_note(row.estimate for row in contrasts)}{family}",
        kind="dense",
    )


def _contrast_row(row: ContrastRow, source: str) -> tuple[Cell, ...]:
    name, meaning = wording.METRICS[row.metric]
    return (
        header_cell(
            f"{formats.label(row.group)} − {formats.label(row.reference)}",
            f"n = {formats.count(row.n_group)} and {formats.count(row.n_reference)}",
            source=source,
        ),
        Cell(name, note=meaning),
        badge_cell(wording.STATES[row.state], _state_note(row)),
        number_cell(formats.points(row.estimate.value), formats.interval_of(row.estimate)),
        number_cell("–" if row.metric != Metric.STANDARDISED_GAP else formats.ratio(row.ratio)),
        number_cell(formats.p_value(row.p_raw)),
        number_cell(formats.p_value(row.p_adjusted)),
        number_cell(formats.points(row.smallest_detectable, signed=False)),
        seeds_cell(row),
    )


def _described_rows(row: RateRow, reference: str, source: str) -> Iterator[tuple[Cell, ...]]:
    """Yield what is told of a group beside the tested gaps: raw difference and equalised odds."""
    if row.difference is None:
        return
    names = header_cell(f"{formats.label(row.group)} − {formats.label(reference)}", source=source)
    told = [
        ("Raw difference", wording.RAW_DIFFERENCE, row.difference.value, formats.interval_of(row.difference)),
        ("Equalised odds", wording.EQUALISED_ODDS, row.equalised_odds, ""),
    ]
    nothing = (number_cell("–"),) * 5
    for name, meaning, value, interval in told:
        yield (
            names,
            Cell(name, note=meaning),
            Cell("not tested"),
            number_cell(formats.points(value, signed=name != "Equalised odds"), interval),
            *nothing,
        )


def _equivalence(row: ContrastRow) -> str:
    """Say whether the gap was shown to be within the policy's margin, which not detecting one does not show."""
    margin = formats.points(row.equivalence_margin, 0, signed=False)
    shown = "shown" if row.within_margin else "not shown"
    return f"{shown} to be under {margin} points (two one-sided tests, p {formats.p_value(row.equivalence_p)})"


def seeds_column(rows: Sequence[ContrastRow] | Sequence[HeadRow]) -> Column:
    """Head the column of ``seeds_cell``."""
    together = any(row.over_seeds is not None for row in rows)
    return Column("By seed", "points; mean of seeds; raw p" if together else "points")


def seeds_cell(row: ContrastRow | HeadRow, places: int = 1) -> Cell:
    """Show an estimate under each training seed and, with seeds enough, what they say together."""
    each = ", ".join(formats.points(value, places) for value in row.by_seed) or "–"
    if row.over_seeds is None:
        return Cell(each)
    mean = f"{formats.points(row.over_seeds.value, places)} {formats.interval_of(row.over_seeds, places)}"
    return Cell(each, note=f"{mean}; {formats.p_value(row.p_over_seeds)}")


def _range_table(audit: Audit, attribute: str, outcome: str, key: str, title: str) -> tuple[Table, ...]:
    """Return the widest difference between any two groups, where there are more than two to choose from."""
    rows = [r for r in audit.ranges if (r.attribute, r.outcome) == (attribute, outcome) and r.groups > 2]
    if not rows:
        return ()
    place = places({"/ranges": audit.ranges})
    table = Table(
        id=f"range-{key}",
        caption=f"Widest difference between groups - {title}",
        columns=(
            Column("Highest and lowest"),
            Column("Groups", is_number=True),
            Column("Widest difference", "points", True),
            Column("By chance", "points", True),
            Column("Corrected", "points", True),
            Column("p", "raw", True),
        ),
        rows=tuple(
            (
                header_cell(f"{formats.label(row.highest)}, {formats.label(row.lowest)}", source=place(row)),
                number_cell(formats.count(row.groups)),
                number_cell(formats.points(row.widest, signed=False)),
                number_cell(formats.points(row.by_chance, signed=False)),
                number_cell(formats.points(row.corrected, signed=False)),
                number_cell(formats.p_value(row.p)),
            )
            for row in rows
        ),
        note=wording.RANGE,
    )
    return (table,)


def _state_note(row: ContrastRow) -> str:
    if row.state == State.NOT_DETECTED and row.smallest_detectable is not None:
        smallest = formats.points(row.smallest_detectable, 0, signed=False)
        note = f"with n = {formats.count(row.n_group)} this audit could detect gaps of {smallest} points or more"
        return f"{note}; {_equivalence(row)}" if row.equivalence_p is not None else note
    if row.state == State.DISPARITY:
        return "above policy" if row.above_policy else "below the policy threshold"
    return row.reason
