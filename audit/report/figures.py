"""Pictures of rates with intervals, of heads with their placebo, of a network and of repairs; ``drawn`` has others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from audit.records import Estimate
from audit.report import formats
from audit.report.drawn.base import (
    EFFECT,
    GROUP,
    INK,
    MUTED,
    REFERENCE,
    REFERENCE_MODEL,
    RULE,
    SETTINGS,
    Picture,
    as_picture,
    drawn_name,
    drawn_once,
    name_rows,
    pixels_as_picture,
    plain_axes,
)
from audit.report.text import bars_in_words, bounds_in_words, forest_in_words, trades_in_words

TRADE_MARKS = "os^vDP*X<>hp"  # of methods
SQUARE = 10  # pixels of a patch where attention is drawn


@dataclass(frozen=True)
class Bar:
    """One group of a rates picture; ``rate`` in [0, 1]."""

    name: str
    rate: Estimate
    is_reference: bool


@dataclass(frozen=True)
class HeadEffect:
    """One head of a forest plot; estimates are fractions in [-1, 1]."""

    name: str
    symbol: str
    effect: Estimate
    placebo: Estimate
    design_c: Estimate | None
    null_bound: float | None = None  # chance alone stays within +- this, over all heads


@dataclass(frozen=True)
class ErrorLine:
    """Bounds on a gap, fractions in [-1, 1], by the share of annotations that are wrong."""

    name: str
    shares: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    tipping: float | None
    tipping_of_interval: float | None
    declared: float | None


@drawn_once
def rates_picture(bars: tuple[Bar, ...], title: str, compact: bool = False) -> Picture | None:
    """Draw one horizontal bar a group with its interval.

    Parameters
    ----------
    bars : tuple of Bar
        Groups in the order of the table; those without an estimate are named in ``alt`` and not drawn.
    title : str
        What the rates are, for the description.
    compact : bool
        A smaller picture for page one.

    Returns
    -------
    Picture or None
        None where no group has an estimate.
    """
    drawn = [bar for bar in bars if bar.rate.value is not None]
    if not drawn:
        return None
    with mpl.rc_context(SETTINGS):
        height = 0.42 + 0.34 * len(drawn)
        figure, axes = plain_axes(3.5 if compact else 5.6, height)
        for position, bar in enumerate(drawn):
            _draw_bar(axes, position, bar)
        top = max(bar.rate.high or bar.rate.value or 0.0 for bar in drawn)
        axes.set_xlim(0, min(1.0, max(top * 1.04, 0.02)) if top < 0.96 else 1.0)
        name_rows(axes, [drawn_name(bar.name) for bar in drawn])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.3g}%"))
        return as_picture(figure, title, bars_in_words(title, bars))


@drawn_once
def shares_picture(bars: tuple[Bar, ...], title: str) -> Picture | None:
    """Draw what share of a gap heads carry, one bar per head or set, with its interval; as ``rates_picture``.

    A share may be negative (the head narrows the gap) or above 1.
    """
    drawn = [bar for bar in bars if bar.rate.value is not None]
    if not drawn:
        return None
    with mpl.rc_context(SETTINGS):
        figure, axes = plain_axes(6.6, 0.42 + 0.34 * len(drawn))
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for position, bar in enumerate(drawn):
            _draw_bar(axes, position, bar)
        name_rows(axes, [drawn_name(bar.name) for bar in drawn])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.3g}%".replace("-", formats.MINUS)))
        return as_picture(figure, title, bars_in_words(title, bars))


@dataclass(frozen=True)
class Trade:
    """One way to repair a model: the gap that is left, and what the group and label that pay most pay; fractions."""

    name: str
    gap: Estimate
    paid: Estimate  # change of accuracy, below 0 where it is lower
    is_recommended: bool


@drawn_once
def trade_picture(trades: tuple[Trade, ...], margin: float, title: str) -> Picture | None:
    """Draw what each repair leaves of a gap against what it costs, with intervals, and the best at each price."""
    drawn = [trade for trade in trades if trade.gap.value is not None and trade.paid.value is not None]
    if not drawn:
        return None
    with mpl.rc_context(SETTINGS):
        figure, axes = plain_axes(6.6, 3.4)
        axes.spines["left"].set_visible(True)
        axes.axhline(-100 * margin, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        placed = [(100 * abs(t.gap.value or 0.0), 100 * (t.paid.value or 0.0), t) for t in drawn]
        best = sorted(
            (x, y) for x, y, _ in placed if not any(a <= x and b >= y and (a, b) != (x, y) for a, b, _ in placed)
        )
        axes.plot(*zip(*best, strict=True), color=RULE, linewidth=1.4, zorder=0)
        marks = cycle(TRADE_MARKS)
        for (x, y, trade), mark in zip(sorted(placed, key=lambda one: one[:2]), marks, strict=False):
            colour = EFFECT if trade.is_recommended else GROUP
            if trade.paid.low is not None and trade.paid.high is not None:
                axes.plot([x, x], [100 * trade.paid.low, 100 * trade.paid.high], color=colour, linewidth=0.7)
            if trade.gap.low is not None and trade.gap.high is not None:
                ends = sorted((abs(trade.gap.low), abs(trade.gap.high)))
                nearest = 0.0 if trade.gap.low <= 0 <= trade.gap.high else ends[0]
                axes.plot([100 * nearest, 100 * ends[1]], [y, y], color=colour, linewidth=0.4, alpha=0.6)
            axes.plot([x], [y], mark, color=colour, markersize=5.5, label=drawn_name(trade.name))
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, fontsize=8)
        axes.set_xlabel("gap that is left, absolute, points")
        axes.set_ylabel("largest loss of a group and label, points")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}".replace("-", formats.MINUS)))
        axes.margins(x=0.06)
        return as_picture(figure, title, trades_in_words(title, drawn))


@drawn_once
def bounds_picture(gap: Estimate, lines: tuple[ErrorLine, ...], title: str) -> Picture:
    """Draw a gap with its interval, and between what bounds it lies by how much is wrong, with the tipping points."""
    styles = ((EFFECT, "-", "o"), (GROUP, (0, (5, 2)), "s"))
    with mpl.rc_context(SETTINGS):
        figure, axes = plain_axes(5.6, 2.7)
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.spines["left"].set_visible(True)
        for line, (colour, dashes, marker) in zip(lines, styles, strict=False):
            axes.fill_between(line.shares, line.low, line.high, color=colour, alpha=0.14, linewidth=0)
            axes.plot(line.shares, line.low, color=colour, linestyle=dashes, linewidth=1.5, label=drawn_name(line.name))
            axes.plot(line.shares, line.high, color=colour, linestyle=dashes, linewidth=1.5)
            if line.tipping is not None and line.tipping <= line.shares[-1]:
                axes.plot([line.tipping], [0], marker, color=colour, markersize=5)
            if line.declared is not None:
                axes.axvline(
                    line.declared, color=colour, linewidth=1, linestyle=(0, (1, 2)), label="the card's estimate"
                )
        if gap.low is not None and gap.high is not None:
            axes.plot([0, 0], [gap.low, gap.high], color=INK, linewidth=2.2, clip_on=False)
        axes.plot([0], [gap.value or 0.0], "o", color=INK, markersize=4.6, clip_on=False)
        axes.set_xlim(0, None)
        axes.set_xlabel("share that is wrong")
        axes.set_ylabel("gap, points")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.3g}%"))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g}".replace("-", formats.MINUS)))
        axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1)
        return as_picture(figure, title, bounds_in_words(title, gap, lines))


def attention_picture(weights: Sequence[Sequence[float]], largest: float, title: str, alt: str) -> Picture:
    """Draw where a head looks, one square per patch, from dark (nothing) to light (``largest``), in cividis."""
    return _squares(np.array(weights, dtype=np.float64) / (largest or 1.0), "cividis", title, alt)


def difference_picture(values: Sequence[Sequence[float]], largest: float, title: str, alt: str) -> Picture:
    """Draw a difference by patch, one square each, from violet (-``largest``) over white (0) to orange."""
    return _squares(0.5 + np.array(values, dtype=np.float64) / (2 * largest or 1.0), "PuOr_r", title, alt)


def _squares(shares: npt.NDArray[np.float64], colours: str, title: str, alt: str) -> Picture:
    """Draw numbers from 0 to 1 as squares."""
    painted = (255 * mpl.colormaps[colours](shares)[..., :3]).round().astype(np.uint8)
    squares = Image.fromarray(painted).resize(
        (SQUARE * shares.shape[1], SQUARE * shares.shape[0]), Image.Resampling.NEAREST
    )
    return pixels_as_picture(np.asarray(squares), title, alt)


def _draw_bar(axes: Axes, position: int, bar: Bar) -> None:
    value = bar.rate.value or 0.0
    colour = REFERENCE if bar.is_reference else GROUP
    axes.barh(position, value, height=0.56, color=colour, linewidth=0)
    if bar.rate.low is not None and bar.rate.high is not None:
        axes.plot([bar.rate.low, bar.rate.high], [position, position], color=INK, linewidth=1.3)
        for end in (bar.rate.low, bar.rate.high):
            axes.plot([end, end], [position - 0.13, position + 0.13], color=INK, linewidth=1.3)


@drawn_once
def forest_picture(heads: tuple[HeadEffect, ...], title: str, compact: bool = False) -> Picture | None:
    """Draw heads with their effect, the placebo, where it ran Design C, and the range of chance, in points.

    Parameters
    ----------
    heads : tuple of HeadEffect
        In the order to draw, top first.
    title : str
        What is drawn, for the description.
    compact : bool
        A smaller picture for page one.

    Returns
    -------
    Picture or None
        None where no head has an estimate.
    """
    drawn = [head for head in heads if head.effect.value is not None]
    if not drawn:
        return None
    has_c = any(head.design_c is not None for head in drawn)
    with mpl.rc_context(SETTINGS):
        figure, axes = plain_axes(3.5 if compact else 6.6, (1.12 if compact else 0.92) + 0.36 * len(drawn))
        axes.axvline(0, color=MUTED, linewidth=1)
        for position, head in enumerate(drawn):
            _draw_head(axes, position, head, has_c)
        name_rows(axes, [f"{head.symbol} {head.name}" for head in drawn])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: formats.decimal(x, 1, signed=True)))
        axes.set_xlabel("points of mean probability")
        axes.margins(x=0.06)
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=2 if compact else 4,  # a small picture has no room for four names in a row
            frameon=False,
            fontsize=8,
            handletextpad=0.3,
            columnspacing=1.2,
            borderaxespad=0.2,
            labelcolor=INK,
        )
        return as_picture(figure, title, forest_in_words(title, drawn))


def _draw_head(axes: Axes, position: int, head: HeadEffect, has_c: bool) -> None:
    spread = 0.24 if has_c else 0.16
    first = position == 0
    bound = 100 * (head.null_bound or 0.0)
    axes.barh(position, 2 * bound, left=-bound, height=0.8, color=RULE, linewidth=0, label="chance" if first else "_")
    _draw_estimate(axes, position - spread, head.effect, EFFECT, "o", "effect" if first else None)
    _draw_estimate(
        axes,
        position if has_c else position + spread,
        head.placebo,
        REFERENCE,
        "s",
        "placebo" if first else None,
    )
    if has_c:
        design_c = head.design_c or Estimate(value=None)
        _draw_estimate(axes, position + spread, design_c, REFERENCE_MODEL, "^", "Design C" if first else None)


def _draw_estimate(axes: Axes, y: float, estimate: Estimate, colour: str, marker: str, name: str | None) -> None:
    # A missing value is drawn off the data, so that the legend is the same in every picture.
    x = [] if estimate.value is None else [100 * estimate.value]
    axes.plot(x, [y] * len(x), marker, color=colour, markersize=4.6, label=name or "_", linestyle="none")
    if x and estimate.low is not None and estimate.high is not None:
        axes.plot([100 * estimate.low, 100 * estimate.high], [y, y], color=colour, linewidth=1.5)
