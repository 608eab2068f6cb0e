"""The smallest gap that each comparison could have seen, beside the gap that the policy allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from audit.records import Audit, ContrastRow, Metric
from audit.report import formats
from audit.report.core import is_open
from audit.report.drawn.base import (
    METRIC_SIGNS,
    MUTED,
    ZONE,
    Picture,
    bare,
    beside,
    clear_figure,
    drawn_once,
    first_of,
    for_both,
    in_points,
    key_above,
    name_blocks,
)
from audit.report.text import Sentences

MOST_ROWS = 26  # groups that fit on a page; the table has all of them


@dataclass(frozen=True)
class Cell:
    """One comparison in one metric; ``detectable`` is a fraction in (0, 1], None where no gap could be seen."""

    metric: Metric
    detectable: float | None
    is_undecided: bool


@dataclass(frozen=True)
class PowerRow:
    """One group against the reference of its block, of which all rows stand together."""

    block: str
    name: str
    cells: tuple[Cell, ...]

    @property
    def worst(self) -> float:
        """The largest of the smallest detectable gaps."""
        return max(math.inf if cell.detectable is None else cell.detectable for cell in self.cells)


def picture(audit: Audit, text: Sentences) -> Picture | None:
    """Draw every comparison of an audit; None where nothing was compared, or nothing may be said of groups."""
    gap = audit.method.thresholds.get("policy.gap_above")
    if audit.is_invalid or gap is None or not audit.contrasts:
        return None
    questions: dict[tuple[str, str, str, str], list[ContrastRow]] = {}
    for row in audit.contrasts:
        questions.setdefault((row.attribute, row.outcome, row.reference, row.group), []).append(row)
    rows = [
        PowerRow(
            text.picture("block", attribute, outcome, text.group(attribute, reference)),
            text.group(attribute, group),
            tuple(Cell(row.metric, row.smallest_detectable, is_open(row, gap)) for row in found),
        )
        for (attribute, outcome, reference, group), found in questions.items()
    ]
    shown = tuple(first_of(rows, MOST_ROWS, lambda row: -row.worst))
    metrics = tuple(dict.fromkeys(cell.metric for row in shown for cell in row.cells))
    signs = tuple((metric, text.picture("metric_short", metric)) for metric in metrics)
    words = tuple(text.picture("power_key", part, gap) for part in ("undecided", "zone"))
    title, left_out = text.picture("power_title"), len(rows) - len(shown)
    alt = text.picture("power", title, shown, gap, left_out, dict(signs))
    return power_picture(shown, gap, signs, words, title, alt)


@drawn_once
def power_picture(
    rows: tuple[PowerRow, ...],
    gap: float,
    signs: tuple[tuple[Metric, str], ...],
    words: tuple[str, ...],
    title: str,
    alt: str,
) -> Picture:
    """Draw a row a group, with a sign for each metric at the smallest gap that could be seen.

    Parameters
    ----------
    rows : tuple of PowerRow
        Those of a block in a row.
    gap : float
        Of the policy, a fraction.
    signs : tuple of (Metric, str)
        What each metric is called.
    words : tuple of str
        What is said of an undecided cell, and of the zone where the policy's gap could be seen.
    title, alt : str
    """
    return for_both(partial(_draw, rows, gap, signs, words), title, alt)


def _draw(
    rows: Sequence[PowerRow],
    gap: float,
    signs: Sequence[tuple[Metric, str]],
    words: Sequence[str],
    is_narrow: bool,
) -> Figure:
    blocks = [(block, list(own)) for block, own in groupby(rows, lambda row: row.block)]
    high = (0.31 if is_narrow else 0.26) * (len(rows) + len(blocks))
    keys = len(signs) + len(words)
    figure = clear_figure(3.4, 0.5 + 0.18 * keys + high) if is_narrow else clear_figure(6.6, 0.85 + high)
    axes = bare(figure.add_subplot())
    found = [cell.detectable for row in rows for cell in row.cells if cell.detectable is not None]
    axes.set_xlim(0, min(1.0, 1.08 * max(1.3 * gap, *found, 0.01)))
    axes.axvspan(0, gap, facecolor=ZONE, linewidth=0, zorder=0)
    axes.axvline(gap, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    lines: list[PowerRow | str] = []
    for block, own in blocks:
        lines += [block, *own]
    for position, line in enumerate(lines):
        if isinstance(line, PowerRow):
            _draw_row(axes, position, line)
    names = [line.name if isinstance(line, PowerRow) else line for line in lines]
    name_blocks(axes, names, [row for row, line in enumerate(lines) if isinstance(line, str)], is_narrow)
    in_points(axes)
    handles = [_sign(metric, True, name) for metric, name in signs]
    handles += [Line2D([], [], marker="o", color=MUTED, markerfacecolor="none", linestyle="none", label=words[0])]
    key_above(figure, [*handles, Patch(facecolor=ZONE, label=words[1])], 1 if is_narrow else 3)
    return figure


def _draw_row(axes: Axes, position: int, row: PowerRow) -> None:
    right = axes.get_xlim()[1]
    for number, cell in enumerate(row.cells):
        y = position + 0.22 * (number - (len(row.cells) - 1) / 2)
        if cell.detectable is not None:
            sign = _sign(cell.metric, not cell.is_undecided, "_")
            sign.set_data([min(cell.detectable, right)], [y])
            sign.set_clip_on(False)
            axes.add_line(sign)
    said = [formats.NOT_AVAILABLE if c.detectable is None else formats.size(c.detectable) for c in row.cells]
    beside(axes, position, " / ".join(said))


def _sign(metric: Metric, is_filled: bool, label: str) -> Line2D:
    marker, colour = METRIC_SIGNS[metric]
    face = colour if is_filled else "none"
    return Line2D(
        [], [], marker=marker, color=colour, markerfacecolor=face, markersize=5, linestyle="none", label=label
    )
