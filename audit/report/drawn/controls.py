"""The controls: known effects and nulls as shares of the effect that there is to find, and the other checks counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from audit.records import Audit, Control, Estimate
from audit.report import formats
from audit.report.drawn.base import (
    EFFECT,
    GROUP,
    MUTED,
    ZONE,
    Picture,
    bare,
    beside,
    clear_figure,
    drawn_once,
    for_both,
    key_above,
    name_blocks,
    name_rows,
    percents,
    row_name,
)
from audit.report.text import Sentences

LEAST, MOST = -0.3, 1.3  # shares that are drawn where they are; others at the edge
FEWEST = 24  # signs of checks that there is room for


@dataclass(frozen=True)
class ControlRow:
    """One control of a channel; a share is of the effect that the control is compared with.

    ``passes_above`` says on which side of the ``threshold``, a share too, the control passes; ``share`` has no value
    where there is no effect to compare with.
    """

    block: str
    name: str
    share: Estimate
    threshold: float
    passes_above: bool
    passed: bool


@dataclass(frozen=True)
class ControlPanel:
    """What was tried of one channel, colour or fine detail."""

    name: str
    rows: tuple[ControlRow, ...]


@dataclass(frozen=True)
class Tally:
    """How many checks of a kind passed, in their order."""

    name: str
    passed: tuple[bool, ...]


def picture(audit: Audit, text: Sentences) -> Picture | None:
    """Draw the controls of an audit; None where there are none."""
    every = audit.controls.controls
    measured = [c for c in every if c.kind in ("effect", "null") and c.channel is not None]
    panels = tuple(
        ControlPanel(
            text.picture("channel", channel),
            tuple(_row(text, every, c) for c in measured if c.channel == channel),
        )
        for channel in dict.fromkeys(c.channel for c in measured)
    )
    others = [c for c in every if c not in measured]
    tallies = tuple(
        Tally(text.picture("control_kind", kind), tuple(c.passed for c in others if c.kind == kind))
        for kind in dict.fromkeys(c.kind for c in others)
    )
    if not every:
        return None
    words = tuple(text.picture("controls_key", part) for part in ("passed", "failed", "side"))
    title = text.picture("controls_title")
    alt = text.picture("controls", title, panels, tallies)
    return controls_picture(panels, tallies, words, title, alt)


def _row(text: Sentences, every: Sequence[Control], control: Control) -> ControlRow:
    estimate, effect = control.estimate, _effect(every, control)
    above, threshold = control.kind == "effect", 0.5
    share = Estimate(value=None)
    if control.check in ("joint", "noising"):  # shares as they are
        share, threshold = estimate, control.threshold
    elif effect is not None and effect > 0:
        scaled = [None if v is None else v / effect for v in (estimate.value, estimate.low, estimate.high)]
        if above:
            threshold = control.threshold / effect
        else:  # half of the true effect minus the null, which must be positive
            scaled = [None if v is None else 0.5 - v for v in (scaled[0], scaled[2], scaled[1])]
        share = Estimate(value=scaled[0], low=scaled[1], high=scaled[2], level=estimate.level)
    elif above:
        threshold = 0.0
    block = text.picture("control_block", control)
    return ControlRow(block, text.picture("control_name", control), share, threshold, above, control.passed)


def _effect(every: Sequence[Control], control: Control) -> float | None:
    """Return the effect that a control is compared with, in nats."""
    if control.kind == "null":
        return control.figures.get("effect")
    own = (control.channel, control.form)
    return next((c.estimate.value for c in every if c.check == "gap" and (c.channel, c.form) == own), None)


@drawn_once
def controls_picture(
    panels: tuple[ControlPanel, ...], tallies: tuple[Tally, ...], words: tuple[str, ...], title: str, alt: str
) -> Picture:
    """Draw a panel a channel, and below them one sign for each of the other checks.

    Parameters
    ----------
    panels : tuple of ControlPanel
    tallies : tuple of Tally
    words : tuple of str
        What is said of a control that passed, of one that failed, and of the side on which it passes.
    title, alt : str
    """
    return for_both(partial(_draw, panels, tallies, words), title, alt)


def _draw(panels: Sequence[ControlPanel], tallies: Sequence[Tally], words: Sequence[str], is_narrow: bool) -> Figure:
    beside_each_other = [[panel] for panel in panels] if is_narrow else [list(panels)]
    stacks = [stack for stack in beside_each_other if stack]
    lines = [_lines(stack) for stack in stacks]
    row = 0.27 if is_narrow else 0.215
    heights = [0.55 + row * len(names) for names in lines] + ([0.2 + row * len(tallies)] if tallies else [])
    figure = clear_figure(3.4 if is_narrow else 6.6, sum(heights) + (0.65 if is_narrow else 0.3))
    grid = figure.add_gridspec(len(heights), max(map(len, stacks), default=1), height_ratios=heights)
    for down, (stack, names) in enumerate(zip(stacks, lines, strict=True)):
        for across, panel in enumerate(stack):
            axes = bare(figure.add_subplot(grid[down, across]))
            _draw_panel(axes, panel, names, is_narrow, is_named=across == 0)
    if tallies:
        _draw_tallies(bare(figure.add_subplot(grid[-1, :])), tallies, is_narrow)
    side = Patch(facecolor=ZONE, edgecolor=MUTED, linewidth=0.6, label=words[2])
    key_above(figure, [_sign(True, words[0]), _sign(False, words[1]), side], 1 if is_narrow else 3)
    return figure


def _lines(panels: Sequence[ControlPanel]) -> list[tuple[str, str]]:
    """Return blocks, each as ("", its name) before its rows as (block, name), of all panels together."""
    names: dict[str, dict[str, None]] = {}
    for panel in panels:
        for row in panel.rows:
            names.setdefault(row.block, {})[row.name] = None
    return [line for block, own in names.items() for line in (("", block), *((block, name) for name in own))]


def _draw_panel(
    axes: Axes, panel: ControlPanel, lines: Sequence[tuple[str, str]], is_narrow: bool, *, is_named: bool
) -> None:
    axes.set_xlim(LEAST, MOST)
    axes.set_xticks([0, 0.5, 1])
    percents(axes)
    axes.set_title(panel.name, loc="left", fontsize=8.5, fontweight="bold")
    if is_named:
        headings = [position for position, line in enumerate(lines) if not line[0]]
        name_blocks(axes, [name for _, name in lines], headings, is_narrow)
    else:
        name_rows(axes, [""] * len(lines))
    places = {line: position for position, line in enumerate(lines)}
    for row in panel.rows:
        _draw_row(axes, places[row.block, row.name], row)


def _draw_row(axes: Axes, y: int, row: ControlRow) -> None:
    start, stop = (row.threshold, MOST) if row.passes_above else (LEAST, row.threshold)
    axes.add_patch(Rectangle((start, y - 0.4), stop - start, 0.8, facecolor=ZONE, linewidth=0, zorder=0))
    axes.plot([row.threshold, row.threshold], [y - 0.4, y + 0.4], color=MUTED, linewidth=1.6)
    if row.share.low is not None and row.share.high is not None:
        ends = [_inside(row.share.low), _inside(row.share.high)]
        axes.plot(ends, [y, y], color=GROUP if row.passed else EFFECT, linewidth=1.8)
    x = row.threshold if row.share.value is None else _inside(row.share.value)
    axes.add_line(
        _sign(row.passed, "_", (x, y), "<" if row.share.value is not None and row.share.value < LEAST else "")
    )
    beside(axes, y, formats.percent(row.share.value, 0))


def _inside(share: float) -> float:
    return min(MOST, max(LEAST, share))


def _sign(passed: bool, label: str, place: tuple[float, float] | None = None, other: str = "") -> Line2D:
    marker, colour = ("o", GROUP) if passed else ("X", EFFECT)
    x, y = ([], []) if place is None else ([place[0]], [place[1]])
    size = 5 if passed else 8
    return Line2D(
        x, y, marker=other or marker, color=colour, markersize=size, linestyle="none", label=label, clip_on=False
    )


def _draw_tallies(axes: Axes, tallies: Sequence[Tally], is_narrow: bool) -> None:
    axes.set_xlim(0, max(FEWEST, *(len(tally.passed) for tally in tallies)))
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    name_rows(axes, [row_name(tally.name, is_narrow) for tally in tallies])
    for y, tally in enumerate(tallies):
        for x, passed in enumerate(sorted(tally.passed)):  # what failed comes first
            axes.add_line(_sign(passed, "_", (x + 0.5, y)))
        beside(axes, y, f"{sum(tally.passed)} of {len(tally.passed)}")
