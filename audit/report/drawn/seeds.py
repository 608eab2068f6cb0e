"""How far a gap differs between trainings of the same model on the same images, which differ in their seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from audit.records import Audit, Estimate
from audit.report import formats
from audit.report.drawn.base import (
    EFFECT,
    GROUP,
    INK,
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

MOST_GROUPS = 8  # whose gaps fit on a page; the table has all of them


@dataclass(frozen=True)
class SeedRow:
    """One gap of this run, and that of each seed, the audited model's first; fractions in [-1, 1]."""

    name: str
    gap: Estimate
    by_seed: tuple[float, ...]
    over_seeds: Estimate | None

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the largest of all seeds."""
        return min(self.by_seed), max(self.by_seed)


@dataclass(frozen=True)
class SeedBlock:
    """The gaps of one group."""

    name: str
    rows: tuple[SeedRow, ...]


def picture(audit: Audit, text: Sentences, attribute: str, outcome: str) -> Picture | None:
    """Draw the gaps of an attribute's groups by seed; None where there was one seed, or nothing may be said."""
    own = [c for c in audit.contrasts if (c.attribute, c.outcome) == (attribute, outcome) and len(c.by_seed) > 1]
    if audit.is_invalid or not own:
        return None
    groups = list(dict.fromkeys((row.group, row.reference) for row in own))
    widest = {pair: max(abs(row.estimate.value or 0.0) for row in own if (row.group, row.reference) == pair)
              for pair in groups}  # fmt: skip
    shown = first_of(groups, MOST_GROUPS, lambda pair: -widest[pair])
    blocks = tuple(
        SeedBlock(
            text.picture("seed_block", *(text.group(attribute, name) for name in pair)),
            tuple(
                SeedRow(text.picture("metric_short", row.metric), row.estimate, tuple(row.by_seed), row.over_seeds)
                for row in own
                if (row.group, row.reference) == pair
            ),
        )
        for pair in shown
    )
    gap = audit.method.thresholds.get("policy.gap_above")
    words = tuple(text.picture("seeds_key", part, gap) for part in ("audited", "other", "mean", "zone"))
    title = text.picture("seeds_title", outcome, attribute)
    alt = text.picture("seeds", title, blocks, len(groups) - len(shown))
    return seeds_picture(blocks, gap, words, title, alt)


@drawn_once
def seeds_picture(
    blocks: tuple[SeedBlock, ...], gap: float | None, words: tuple[str, ...], title: str, alt: str
) -> Picture:
    """Draw a row a gap: the audited model's with its interval, those of other seeds, and their mean where it is known.

    Parameters
    ----------
    blocks : tuple of SeedBlock
    gap : float or None
        Of the policy, a fraction.
    words : tuple of str
        What is said of the audited model, of other seeds, of the mean, and of the zone where the policy is met.
    title, alt : str
    """
    return for_both(partial(_draw, blocks, gap, words), title, alt)


def _draw(blocks: Sequence[SeedBlock], gap: float | None, words: Sequence[str], is_narrow: bool) -> Figure:
    lines: list[SeedRow | str] = []
    for block in blocks:
        lines += [block.name, *block.rows]
    high = (0.31 if is_narrow else 0.26) * len(lines)
    figure = clear_figure(3.4, 1.3 + high) if is_narrow else clear_figure(6.6, 0.85 + high)
    axes = bare(figure.add_subplot())
    axes.axvline(0, color=MUTED, linewidth=1)
    handles: list[Line2D | Patch] = [_sign("audited", words[0]), _sign("other", words[1])]
    if any(isinstance(line, SeedRow) and line.over_seeds is not None for line in lines):
        handles.append(_sign("mean", words[2]))
    if gap is not None:
        axes.axvspan(-gap, gap, facecolor=ZONE, edgecolor=MUTED, linewidth=0.6, linestyle=(0, (3, 2)), zorder=0)
        handles.append(Patch(facecolor=ZONE, edgecolor=MUTED, linestyle=(0, (3, 2)), label=words[3]))
    for position, line in enumerate(lines):
        if isinstance(line, SeedRow):
            _draw_row(axes, position, line)
    axes.margins(x=0.04)
    names = [line.name if isinstance(line, SeedRow) else line for line in lines]
    name_blocks(axes, names, [row for row, line in enumerate(lines) if isinstance(line, str)], is_narrow)
    in_points(axes)
    key_above(figure, handles, 1 if is_narrow else 2)
    return figure


def _draw_row(axes: Axes, position: int, row: SeedRow) -> None:
    for value in row.by_seed[1:]:
        _put(axes, "other", value, position + 0.18)
    if row.over_seeds is not None:
        _put_estimate(axes, "mean", row.over_seeds, position + 0.18)
    _put_estimate(axes, "audited", row.gap, position - 0.14)
    low, high = row.spread
    beside(axes, position, f"{formats.points(low)} to {formats.points(high)}")


def _put_estimate(axes: Axes, kind: str, estimate: Estimate, y: float) -> None:
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [y, y], color=_sign(kind, "_").get_color(), linewidth=1.8)
    if estimate.value is not None:
        _put(axes, kind, estimate.value, y)


def _put(axes: Axes, kind: str, x: float, y: float) -> None:
    sign = _sign(kind, "_")
    sign.set_data([x], [y])
    sign.set_linestyle("none")
    axes.add_line(sign)


def _sign(kind: str, label: str) -> Line2D:
    """Return the sign of the audited model (a dot on a line), of another seed (a ring) or of the mean (a diamond)."""
    if kind == "other":
        return Line2D(
            [], [], marker="o", color=INK, markerfacecolor="none", markersize=4.5, linestyle="none", label=label
        )
    marker, colour = ("o", GROUP) if kind == "audited" else ("D", EFFECT)
    return Line2D([], [], marker=marker, color=colour, markersize=5.5, linewidth=1.8, label=label)
