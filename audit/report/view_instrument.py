"""Section "Is the instrument valid?": controls and head grids as tables."""

from __future__ import annotations

from collections.abc import Sequence

from audit.records import Audit, Control, HeadGrid
from audit.report import formats, wording
from audit.report.svg import (
    Cell,
    Column,
    Scale,
    Swatch,
    Table,
    TableGroup,
    badge_cell,
    header_cell,
    number_cell,
    places,
)
from audit.units import LETTERS, said_of

STEPS = 5  # colour steps on each side of zero
_RELATIONS = {"==": "=", "<=": "≤", ">=": "≥", "<": "<", ">": ">"}


def controls_table(audit: Audit) -> Table:
    """Return every control with statistic, interval, threshold and verdict; failed ones first."""
    ordered = sorted(audit.controls.controls, key=lambda control: control.passed)
    place = places({"/controls/controls": audit.controls.controls})
    return Table(
        id="controls-table",
        caption="Controls: checks of the instrument with a known answer",
        columns=(
            Column("Result"),
            Column("Check"),
            Column("Where it ran"),
            Column("Measured", "with interval", True),
            Column("Required", is_number=True),
            Column("n", "images", True),
        ),
        rows=tuple(_control_row(control, place(control)) for control in ordered),
        note=formats.level_note(control.estimate for control in ordered),
        kind="dense",
    )


def _control_row(control: Control, source: str) -> tuple[Cell, ...]:
    result = wording.PASSED_CHECK if control.passed else wording.FAILED_CHECK
    return (
        badge_cell(result),
        header_cell(
            control.title,
            control.meaning if control.passed else f"{_not_shown(control)} Fix: {control.fix}",
            source=source,
        ),
        Cell(control.setting),
        number_cell(formats.measured(control.estimate), control.statistic),
        number_cell(f"{_RELATIONS[control.relation]} {formats.quantity(control.threshold)}"),
        number_cell("–" if control.n is None else formats.count(control.n)),
    )


def _not_shown(control: Control) -> str:
    """Say what a failed control would have shown: its meaning holds only where it passed."""
    return f"Not shown, because the check failed: {control.meaning}"


def failed_controls(audit: Audit) -> list[tuple[str, str, str, str]]:
    """Return title, what was measured against what, meaning and fix of each control that failed."""
    return [
        (
            f"{control.title} ({control.setting})",
            (
                f"{control.statistic}: {formats.measured(control.estimate)}, required "
                f"{_RELATIONS[control.relation]} {formats.quantity(control.threshold)}"
            ),
            _not_shown(control),
            control.fix,
        )
        for control in audit.controls.controls
        if not control.passed and control.gates == "audit"
    ]


def control_grids(audit: Audit) -> TableGroup | None:
    """Return the control grids side by side, on the scale of all grids of their unit, or None where there are none."""
    grids = audit.controls.grids
    place = places({"/controls/grids": grids})
    if not grids:
        return None
    return TableGroup(
        id="control-grids",
        title=said_of(audit.model.unit, "Head grids of the controls, each beside its null"),
        paragraphs=(said_of(audit.model.unit, wording.CONTROL_GRIDS),),
        tables=tuple(grid_table(audit, grid, place(grid)) for grid in grids),
        scale=scale(grids, every_grid(audit)),
    )


def every_grid(audit: Audit) -> list[HeadGrid]:
    """Return all grids of an audit; those of one unit are drawn on one scale, wherever they stand."""
    return [*audit.controls.grids, *audit.grids]


def largest(grids: Sequence[HeadGrid], unit: str) -> float:
    """Return the largest absolute value over all grids of one unit; 0 where there is none."""
    values = (v for grid in grids if grid.unit == unit for row in grid.values for v in row if v is not None)
    return max((abs(value) for value in values), default=0.0)


def grid_table(audit: Audit, grid: HeadGrid, source: str) -> Table:
    """Write a layer x head grid as a table whose cells carry value, colour step and symbol.

    Parameters
    ----------
    audit : Audit
        All of whose grids of one unit share a scale.
    grid : HeadGrid
        The values and marks.
    source : str
        Where the grid stands in ``audit.json``.
    """
    width = max((len(row) for row in grid.values), default=0)
    limit, letter = largest(every_grid(audit), grid.unit), LETTERS[audit.model.unit]
    return Table(
        id=f"grid-{formats.slug(grid.id)}",
        caption=grid.title,
        columns=(Column("Layer"), *(Column(f"{letter}{head}", is_number=True) for head in range(width))),
        rows=tuple(
            (
                header_cell(f"L{layer}", source=f"{source}/values/{row}"),
                *(_grid_cell(grid, row, head, limit) for head in range(width)),
            )
            for row, layer in enumerate(grid.layers)
        ),
        note=f"{grid.caption} Unit: {unit_name(grid.unit)}.".strip(),
        kind="grid",
    )


def _grid_cell(grid: HeadGrid, row: int, head: int, limit: float) -> Cell:
    value = grid.values[row][head] if head < len(grid.values[row]) else None
    if value is None:
        return Cell(formats.NOT_AVAILABLE, tone="step-none", is_number=True)
    mark = grid.marks[row][head] if row < len(grid.marks) and head < len(grid.marks[row]) else ""
    return Cell(
        grid_number(value, grid.unit),
        tone=f"step-{_step(value, limit)}",
        symbol=mark_symbol(mark),
        is_number=True,
    )


def grid_number(value: float, unit: str) -> str:
    """Write a grid value: two decimals, in points where the unit says so (the record holds fractions)."""
    return formats.points(value, 2) if is_points(unit) else formats.decimal(value, 2, signed=True)


def is_points(unit: str) -> bool:
    """Tell whether a grid's values are differences of rates, recorded as fractions and shown in points."""
    return "point" in unit.lower()


def unit_name(unit: str) -> str:
    """Name a unit in full."""
    return "percentage points" if is_points(unit) else formats.clean(unit)


def mark_symbol(mark: str) -> str:
    """Return the symbol of a mark, "" for none."""
    if not mark:
        return ""
    return wording.MARKS[mark][0] if mark in wording.MARKS else wording.OTHER_MARK


def _step(value: float, limit: float) -> str:
    step = round(STEPS * value / limit) if limit else 0
    return f"{'neg' if step < 0 else 'pos'}{abs(step)}" if step else "zero"


def scale(grids: Sequence[HeadGrid], every: Sequence[HeadGrid]) -> Scale:
    """Return the colour and symbol legend of grids that are shown together; ``every`` grid shares its colours."""
    units = list(dict.fromkeys(grid.unit for grid in grids))
    ends = [(largest(every, unit), unit) for unit in units]
    swatches = []
    for step in range(-STEPS, STEPS + 1):
        text = ""
        if step in (-STEPS, 0, STEPS):
            text = " / ".join(grid_number(limit * step / STEPS, unit) for limit, unit in ends)
        tone = f"{'neg' if step < 0 else 'pos'}{abs(step)}" if step else "zero"
        swatches.append(Swatch(f"step-{tone}", text))
    return Scale(unit=" / ".join(unit_name(unit) for unit in units), swatches=tuple(swatches), symbols=_symbols(grids))


def _symbols(grids: Sequence[HeadGrid]) -> tuple[tuple[str, str], ...]:
    marks = dict.fromkeys(mark for grid in grids for row in grid.marks for mark in row if mark)
    known = [symbol for mark, symbol in wording.MARKS.items() if mark in marks]
    return (*known, *((wording.OTHER_MARK, mark) for mark in marks if mark not in wording.MARKS))
