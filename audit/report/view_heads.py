"""Section "Heads": every head with its numbers, heads together, and how far rankings agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from audit.records import Agreement, Audit, Estimate, HeadRow, JointRow, Verdict
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
    spelled,
)
from audit.report.view_data import seeds_cell, seeds_column
from audit.report.view_instrument import every_grid, grid_table, scale
from audit.units import Unit, said_of

FOREST_HEADS = 12  # heads drawn; the table lists all of them
SHARES = "Share of the gap: single heads, then heads together"
SPREAD = "Confirmed on people not used to find them; so many heads say little about where."
PRINTED_HEADS = 36  # rows of the table in the PDF, found heads aside
FOUND = ("confirmed", "confirmed, no gap", "found, not confirmed")
SET_NAMED = 6  # heads of a set that are named one by one; larger sets are counted


def estimate_text(estimate: Estimate) -> str:
    """Write an estimate of a difference with its interval, in points."""
    if estimate.value is None:
        return formats.NOT_AVAILABLE
    level = f", {formats.percent(estimate.level, 0)} interval" if estimate.low is not None else ""
    return f"{points_text(estimate.value)} {formats.interval_of(estimate)}".strip() + level


def points_text(value: float) -> str:
    """Write a difference with its unit: "+3.1 points"."""
    return f"{formats.points(value)} points"


def forest(rows: Sequence[HeadRow], title: str, compact: bool = False) -> Picture | None:
    """Draw heads beside their placebo and what chance does; nothing where there are none."""
    heads = [
        figures.HeadEffect(
            row.name, wording.VERDICTS[row.verdict].symbol, headline(row), row.placebo, row.design_c, row.null_bound
        )
        for row in rows
    ]
    return figures.forest_picture(heads, title, compact)


def headline(row: HeadRow) -> Estimate:
    """Return the estimate to show: on the confirmation split where there is one."""
    return row.confirmation if row.confirmation.value is not None else row.discovery


def head_groups(audit: Audit) -> list[TableGroup]:
    """Return one block for each contrast and outcome: answer, grid, forest plot, whole table."""
    blocks = dict.fromkeys((row.contrast, row.outcome) for row in audit.heads)
    place = places({"/heads": audit.heads, "/grids": audit.grids, "/pairs": audit.pairs})
    return [_head_group(audit, contrast, outcome, place) for contrast, outcome in blocks]


def _head_group(audit: Audit, contrast: str, outcome: str, place: Place) -> TableGroup:
    rows = [row for row in audit.heads if (row.contrast, row.outcome) == (contrast, outcome)]
    strongest = sorted(rows, key=lambda row: (row.verdict != Verdict.CONFIRMED, -abs(headline(row).value or 0.0)))
    key, unit = formats.slug(f"{contrast}:{outcome}"), audit.model.unit
    title = f"{contrast_name(audit, contrast)}, predicted “{formats.label(outcome)}”"
    grids = [grid for grid in audit.grids if grid.id in {f"bias:{contrast}", f"bias:{contrast}:{outcome}"}]
    drawn = strongest[:FOREST_HEADS]
    picture = forest(drawn, f"The {_counted(unit, len(drawn), 'strongest head')} beside the placebo - {title}")
    answer = audit.localisation.get(f"{contrast}:{outcome}", "")
    return TableGroup(
        id=f"heads-{key}",
        title=title,
        paragraphs=(_answer(unit, answer, rows), *_pairs(audit, contrast, outcome)),
        source=spelled(
            [
                "/localisation",
                *(place(row) for row in audit.pairs if (row.contrast, row.outcome) == (contrast, outcome)),
            ]
        ),
        tables=(
            *(grid_table(audit, grid, place(grid)) for grid in grids),
            *_together_table(audit, key, title, contrast, outcome),
        ),
        scale=scale(grids, every_grid(audit)) if grids else None,
        pictures=tuple(p for p in (picture, _shares(audit, title, contrast, outcome, strongest)) if p),
        folded=(_head_table(unit, key, title, rows, strongest, place),),
    )


def _pairs(audit: Audit, contrast: str, outcome: str) -> tuple[str, ...]:
    """Say what changes when the same pictures are shown in the other group; nothing if there are no such pictures."""
    rows = [row for row in audit.pairs if (row.contrast, row.outcome) == (contrast, outcome)]
    return tuple(
        f"On {formats.plural(row.pairs, 'picture')} that exist in both groups, all else equal, the mean probability of "
        f"“{formats.label(outcome)}” changes by {estimate_text(row.total)} from the reference’s version to the group’s."
        for row in rows
    )


def _shares(audit: Audit, title: str, contrast: str, outcome: str, rows: Sequence[HeadRow]) -> Picture | None:
    """Draw what share of the gap confirmed heads carry singly, and sets of them jointly; nothing where none does."""
    singly = [
        figures.Bar(row.name, row.share_of_gap, is_reference=False) for row in rows if row.verdict == Verdict.CONFIRMED
    ][:FOREST_HEADS]
    sets = [row for row in audit.joint if (row.contrast, row.outcome) == (contrast, outcome)]
    unit = audit.model.unit
    jointly = [figures.Bar(_set_name(unit, row), row.share_of_gap, is_reference=True) for row in sets]
    if not singly:
        return None
    return figures.shares_picture([*singly, *jointly], f"{said_of(unit, SHARES)} - {title}")


def _together_table(audit: Audit, key: str, title: str, contrast: str, outcome: str) -> tuple[Table, ...]:
    """Return what sets of heads carry together, beside the sum of their single effects; nothing if none was tried."""
    rows = [row for row in audit.joint if (row.contrast, row.outcome) == (contrast, outcome)]
    if not rows:
        return ()
    rows = sorted(rows, key=lambda row: (-len(row.heads), row.heads))
    place, unit = places({"/joint": audit.joint}), audit.model.unit
    table = Table(
        id=f"together-{key}",
        caption=f"{said_of(unit, 'Heads patched together')} - {title}",
        columns=(
            Column(said_of(unit, "Heads")),
            Column("Together", "mediated gap, points", True),
            Column(said_of(unit, "Sum of single heads"), "points", True),
            Column("Together beyond the sum", "points", True),
            Column("Share of gap", "together", True),
            Column("Share of gap", "sum", True),
        ),
        rows=tuple(
            (
                header_cell(_set_name(unit, row), source=place(row)),
                stacked(row.together),
                stacked(row.sum_of_singles),
                stacked(row.beyond_sum),
                number_cell(formats.rate(row.share_of_gap)),
                number_cell(formats.rate(row.sum_share_of_gap)),
            )
            for row in rows
        ),
        note=f"{formats.level_note(row.together for row in rows)} {said_of(unit, wording.TOGETHER)}",
    )
    return (table,)


def _set_name(unit: Unit, row: JointRow) -> str:
    number, several = len(row.heads), len(row.heads) > SET_NAMED
    named = said_of(unit, f"{number} confirmed heads") if several else ", ".join(row.heads)
    return said_of(unit, f"All {number} heads that were tested") if row.all_heads else named


def _counted(unit: Unit, number: int, what: str) -> str:
    return said_of(unit, formats.plural(number, what))


def contrast_name(audit: Audit, contrast: str) -> str:
    """Write a contrast in words, "gender: female against male"; its id where the record holds no such rates."""
    for row in audit.contrasts:
        if contrast == f"{row.attribute}:{row.group}-{row.reference}":
            groups = f"{formats.label(row.group)} against {formats.label(row.reference)}"
            return f"{formats.label(row.attribute)}: {groups}"
    return formats.label(contrast)


def _answer(unit: Unit, answer: str, rows: Sequence[HeadRow]) -> str:
    heads = len(rows)
    tested = _counted(unit, heads, "head")
    if answer.startswith("localised"):
        named = formats.clean(answer.partition(":")[2]).strip()
        count = len(named.split(", "))
        if count > heads / 2:
            spread = f"Spread over {count} of {tested}: {named}."
            return f"{spread} {said_of(unit, SPREAD)}"
        return f"Localised: {named}. Confirmed on people not used to find it, out of {tested}."
    if answer.startswith("not localisable"):
        return (
            f"Not localisable: none of {tested} carries a part of the gap that stands out "
            "from the placebo after adjustment. The gap may be spread over many parts of the model."
        )
    moving = [row.name for row in rows if row.verdict == Verdict.CONFIRMED_NO_GAP]
    cancel = f" {wording.NO_GAP_TO_CARRY.format(heads=', '.join(moving))}" if moving else ""
    return f"{formats.clean(answer).capitalize() or 'No answer was recorded'}: {tested} tested.{cancel}"


def _optional(unit: Unit, rows: Sequence[HeadRow]) -> list[tuple[Column, Callable[[HeadRow], Cell]]]:
    """Return the columns that only some audits have, with what fills them."""
    every: list[tuple[bool, Column, Callable[[HeadRow], Cell]]] = [
        (
            any(row.natural_indirect is not None for row in rows),
            Column("Exact pairs", said_of(unit, "by the head; past it, points"), True),
            _pair_cell,
        ),
        (
            any(row.design_c is not None for row in rows),
            Column("Design C", "points", True),
            lambda row: stacked(row.design_c),
        ),
        (
            any(row.transplant is not None for row in rows),
            Column("Weights", "transplanted, points", True),
            lambda row: stacked(row.transplant),
        ),
        (any(len(row.by_seed) > 1 for row in rows), seeds_column(rows), lambda row: seeds_cell(row, 2)),
        (
            any(row.patched_share < 1 for row in rows),
            Column("Patched", "share of images; agreement of first order", True),
            _patched_cell,
        ),
    ]
    return [(column, fill) for shown, column, fill in every if shown]


def _patched_cell(row: HeadRow) -> Cell:
    agreement = row.first_order_correlation
    if row.patched_share == 1 or agreement is None:
        return number_cell(formats.percent(row.patched_share, 0))
    return number_cell(formats.percent(row.patched_share, 0), formats.decimal(agreement, 3))


def _head_table(
    unit: Unit, key: str, title: str, rows: Sequence[HeadRow], strongest: Sequence[HeadRow], place: Place
) -> Table:
    optional = _optional(unit, rows)
    cells = {
        row.name: (*_head_row(row, place(row)), *(fill(row) for _, fill in optional), _detectable_cell(row))
        for row in rows
    }
    shown = [row.name for row in strongest if row.verdict in FOUND]
    shown += [row.name for row in strongest if row.verdict not in FOUND][: max(0, PRINTED_HEADS - len(shown))]
    left = len(rows) - len(shown)
    return Table(
        id=f"all-heads-{key}",
        caption=f"All {_counted(unit, len(rows), 'head')} - {title}",
        columns=(
            Column(said_of(unit, "Head")),
            Column("Verdict"),
            Column("Discovery", "mediated gap, points", True),
            Column("p", "raw; adjusted", True),
            Column("Confirmation", "mediated gap, points", True),
            Column("p", "raw; adjusted", True),
            Column("Reference takes group’s", "points", True),
            Column("Group takes reference’s", "points", True),
            Column("Placebo", "points", True),
            Column("Other scales", "rate, points; log-odds, nats", True),
            Column("Share of gap", is_number=True),
            Column("In layer", "percentile", True),
            Column("Accuracy", "points", True),
            *(column for column, _ in optional),
            Column("Detectable", "points", True),
        ),
        rows=tuple(cells.values()),
        printed=tuple(cells[name] for name in shown) if left else None,
        printed_note=f"{wording.LEFT_OUT_HEADS.format(left=_counted(unit, left, 'head'))}" if left else "",
        note=f"{formats.level_note(row.confirmation for row in rows)} {said_of(unit, wording.NOT_SHOWN_HEADS)}",
        kind="dense heads",
    )


def _head_row(row: HeadRow, source: str) -> tuple[Cell, ...]:
    percentile = row.percentile_in_layer
    return (
        header_cell(row.name, source=source),
        badge_cell(wording.VERDICTS[row.verdict]),
        stacked(row.discovery),
        _p_pair(row.discovery_p, row.discovery_p_adjusted),
        stacked(row.confirmation),
        _p_pair(row.confirmation_p, row.confirmation_p_adjusted),
        stacked(row.iie_forward),
        stacked(row.iie_backward),
        stacked(row.placebo),
        _other_scales(row),
        number_cell(formats.rate(row.share_of_gap)),
        number_cell(formats.NOT_AVAILABLE if percentile is None else formats.decimal(percentile, 0)),
        number_cell(formats.points(row.accuracy_change, 2)),
    )


def _detectable_cell(row: HeadRow) -> Cell:
    return number_cell(formats.points(row.smallest_detectable, 2, signed=False), _shown_small(row))


def _shown_small(row: HeadRow) -> str:
    if not row.within_margin or row.verdict == Verdict.TOO_LITTLE_DATA:
        return ""
    return f"shown to be under {formats.points(row.equivalence_margin, 2, signed=False)}"


def _other_scales(row: HeadRow) -> Cell:
    if row.confirmation_rate is None or row.confirmation_log_odds is None:
        return number_cell(formats.NOT_AVAILABLE)
    log_odds = formats.decimal(row.confirmation_log_odds.value or 0.0, 3, signed=True)
    return number_cell(f"{formats.points(row.confirmation_rate.value, 2)}; {log_odds}")


def _pair_cell(row: HeadRow) -> Cell:
    if row.natural_indirect is None or row.natural_direct is None:
        return number_cell(formats.NOT_AVAILABLE)
    past = formats.points(row.natural_direct.value, 2)
    return number_cell(
        f"{formats.points(row.natural_indirect.value, 2)}; {past}", formats.interval_of(row.natural_indirect, 2)
    )


def stacked(estimate: Estimate | None) -> Cell:
    """Write an estimate in points, its interval below it."""
    if estimate is None:
        return number_cell(formats.NOT_AVAILABLE)
    return number_cell(formats.points(estimate.value, 2), formats.interval_of(estimate, 2))


def _p_pair(raw: float | None, adjusted: float | None) -> Cell:
    if raw is None and adjusted is None:
        return number_cell("–")
    return number_cell(f"{formats.p_value(raw)}; {formats.p_value(adjusted)}")


def agreement_table(audit: Audit) -> Table:
    """Return how far other designs rank the heads as Design A does, a row for each question and design."""
    place = places({"/agreement": audit.agreement})
    return Table(
        id="agreement-table",
        caption="How far other ways to look agree with Design A",
        columns=(
            Column("Contrast"),
            Column("Outcome"),
            Column("Other design"),
            Column("Rank correlation", said_of(audit.model.unit, "over all heads"), True),
            Column("Same sign", "of the ten largest", True),
            Column("Found again", "of the ten largest", True),
        ),
        rows=tuple(
            (
                header_cell(contrast_name(audit, row.contrast), source=place(row)),
                Cell(formats.label(row.outcome)),
                Cell(row.design),
                number_cell(formats.ratio(row.rank_correlation)),
                number_cell(formats.percent(row.sign_agreement, 0)),
                number_cell(formats.percent(row.top10_recall, 0), _by_chance(row)),
            )
            for row in audit.agreement
        ),
        note=said_of(audit.model.unit, wording.AGREEMENT),
    )


def _by_chance(row: Agreement) -> str:
    return "" if row.top10_by_chance is None else f"{formats.percent(row.top10_by_chance, 0)} by chance"


def stability_table(audit: Audit) -> Table:
    """Return how far the ranking of heads repeats itself, a row for each contrast and outcome."""
    place = places({"/stability": audit.stability})
    return Table(
        id="stability-table",
        caption=said_of(audit.model.unit, "How far the ranking of heads repeats itself"),
        columns=(
            Column("Contrast"),
            Column("Outcome"),
            Column("Split-half rank correlation", is_number=True),
            Column("Top ten in common", is_number=True),
            Column("Rank correlation over seeds", is_number=True),
            Column("In words"),
        ),
        rows=tuple(
            (
                header_cell(contrast_name(audit, row.contrast), source=place(row)),
                Cell(formats.label(row.outcome)),
                number_cell(formats.ratio(row.split_half_rank_correlation)),
                number_cell(formats.percent(row.top10_overlap, 0)),
                number_cell(formats.ratio(row.seeds_rank_correlation)),
                Cell(row.note),
            )
            for row in audit.stability
        ),
        note="1 means the same order again, 0 means no relation.",
    )
