"""Who gets which error how often: the people of the outcome who are missed, and false alarms among all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from audit.records import Audit, Estimate, RateRow
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
    drawn_name,
    drawn_once,
    first_of,
    for_both,
    key_above,
    name_rows,
    percents,
    row_name,
)
from audit.report.text import Sentences

MOST_GROUPS = 24  # that fit on a page; the table has all of them


@dataclass(frozen=True)
class Dot:
    """How often one group gets an error; ``rate`` in [0, 1], ``wrong`` of ``of`` images."""

    name: str
    rate: Estimate
    wrong: int
    of: int
    is_reference: bool


@dataclass(frozen=True)
class ErrorPanel:
    """One kind of error; the policy is met between the bounds of ``zone``, which are fractions."""

    title: str
    about: str
    dots: tuple[Dot, ...]
    zone: tuple[float, float] | None

    @property
    def is_known(self) -> bool:
        """Tell whether the error of any group could be estimated."""
        return any(dot.rate.value is not None for dot in self.dots)


def picture(audit: Audit, text: Sentences, attribute: str, outcome: str) -> Picture | None:
    """Draw the errors of an attribute's groups; None where none can be estimated."""
    rows = text.rates_of(attribute, outcome)
    gap = None if audit.is_invalid else audit.method.thresholds.get("policy.gap_above")
    shown, short = _shown(rows), formats.cut(text.label(outcome), 16)
    missed, alarms = (
        tuple(
            Dot(
                text.group(attribute, row.group),
                row.false_negative_rate if kind == "missed" else row.false_positive_rate,
                row.false_negatives if kind == "missed" else row.false_positives,
                row.positives if kind == "missed" else row.negatives,
                row.is_reference,
            )
            for row in shown
        )
        for kind in ("missed", "alarms")
    )
    panels = tuple(
        ErrorPanel(text.picture("error_name", kind), text.picture("error_about", kind, short), dots, _zone(dots, gap))
        for kind, dots in (("missed", missed), ("alarms", alarms))
    )
    words = tuple(text.picture("errors_key", part, gap) for part in ("group", "reference", "zone"))
    title = text.picture("errors_title", outcome, attribute)
    return errors_picture(panels, words, title, text.picture("errors", title, panels, gap, len(rows) - len(shown)))


def _shown(rows: Sequence[RateRow]) -> list[RateRow]:
    """Return the rows that fit: the reference, and of many groups those with most images."""
    return first_of(rows, MOST_GROUPS, lambda row: (not row.is_reference, -row.images))


def _zone(dots: Sequence[Dot], gap: float | None) -> tuple[float, float] | None:
    reference = next((dot.rate.value for dot in dots if dot.is_reference), None)
    return None if reference is None or gap is None else (max(0.0, reference - gap), min(1.0, reference + gap))


@drawn_once
def errors_picture(panels: tuple[ErrorPanel, ...], words: tuple[str, ...], title: str, alt: str) -> Picture | None:
    """Draw panels beside each other, a dot with its interval and its numbers for each group.

    Parameters
    ----------
    panels : tuple of ErrorPanel
        Of the same groups.
    words : tuple of str
        What is said of a group's sign, of the reference's, and of the zone.
    title, alt : str

    Returns
    -------
    Picture or None
        None where there is nothing to draw.
    """
    known = tuple(panel for panel in panels if panel.is_known)
    return for_both(partial(_draw, known, words), title, alt) if known else None


def _draw(panels: Sequence[ErrorPanel], words: Sequence[str], is_narrow: bool) -> Figure:
    groups, number = len(panels[0].dots), len(panels)
    high = 0.62 + 0.27 * groups
    figure = clear_figure(3.4, 0.62 + number * high) if is_narrow else clear_figure(6.6, 0.34 + high)
    below, beside = (number, 1) if is_narrow else (1, number)
    every = figure.subplots(below, beside, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, panel in zip(every, panels, strict=True):
        _draw_panel(axes, panel)
    ends = [e for p in panels for d in p.dots for e in (d.rate.value, d.rate.high) if e is not None]
    ends += [zone[1] for p in panels if (zone := p.zone) is not None]
    every[0].set_xlim(0, min(1.0, 1.04 * max(0.05, *ends)))
    name_rows(every[0], [row_name(dot.name, is_narrow) for dot in panels[0].dots])
    signs: list[Line2D | Patch] = [_sign(False, words[0]), _sign(True, words[1])]
    signs += [Patch(facecolor=ZONE, edgecolor=MUTED, linestyle=(0, (3, 2)), label=words[2])] if panels[0].zone else []
    key_above(figure, signs, 1 if is_narrow else len(signs))
    return figure


def _sign(is_reference: bool, label: str) -> Line2D:
    marker, colour = _marked(is_reference)
    return Line2D([], [], marker=marker, color=colour, markersize=5.5, linewidth=1.5, label=label)


def _marked(is_reference: bool) -> tuple[str, str]:
    return ("D", EFFECT) if is_reference else ("o", GROUP)


def _draw_panel(axes: Axes, panel: ErrorPanel) -> None:
    bare(axes)
    percents(axes)
    axes.tick_params(labelbottom=True)
    axes.tick_params(axis="y", pad=8)
    axes.set_title(panel.title, loc="left", fontsize=8.5, fontweight="bold", pad=16)
    about = drawn_name(panel.about, 60)
    said = axes.text(0, 1.03, about, transform=axes.transAxes, fontsize=7.5, color=MUTED, va="bottom")
    said.set_in_layout(False)  # long names of labels would leave no room for what is drawn
    if panel.zone is not None:
        axes.axvspan(*panel.zone, facecolor=ZONE, edgecolor=MUTED, linewidth=0.6, linestyle=(0, (3, 2)), zorder=0)
    for position, dot in enumerate(panel.dots):
        marker, colour = _marked(dot.is_reference)
        if dot.rate.low is not None and dot.rate.high is not None:
            axes.plot([dot.rate.low, dot.rate.high], [position, position], color=colour, linewidth=1.8)
        if dot.rate.value is not None:
            axes.plot([dot.rate.value], [position], marker, color=colour, markersize=5.5, clip_on=False, zorder=5)
        if dot.of:
            beside(axes, position, f"{formats.count(dot.wrong)} of {formats.count(dot.of)}")
