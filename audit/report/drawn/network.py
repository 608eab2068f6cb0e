"""The picture of a network from input to output, with what each ledger has of a gap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from audit.records import Audit, CarriedKind, CarriedRow, Estimate, HybridOrder, LedgerRow, PartFamily, TrainedRow
from audit.report import formats
from audit.report.drawn.base import (
    EFFECT,
    GROUP,
    INK,
    MUTED,
    REFERENCE,
    REFERENCE_MODEL,
    RULE,
    Picture,
    clear_figure,
    drawn_name,
    drawn_once,
    for_both,
)
from audit.report.text import Sentences, network_in_words
from audit.units import layers_in

INPUT = -1
_SERIES = {"attention": GROUP, "slices": GROUP, "MLP": EFFECT, "layer": REFERENCE_MODEL}
LEFT, BROAD = 0.8, 5.0  # inches beside the Axes; width from which the names of all parts stand in one row
LAYER_NAME, LONG_NAME = 0.32, 0.45  # inches that the name of a layer, or of another place, takes
LAYERS = (CarriedKind.LAYER, CarriedKind.ATTENTION)  # the latter where layers do not write apart
LAST = (PartFamily.BIASES, PartFamily.HELD, PartFamily.CLIPPED)  # at no place: right of the end


def picture(audit: Audit, text: Sentences, contrast: str, outcome: str, title: str) -> Picture | None:
    """Draw all that is known of where a gap runs; None where nothing is."""
    return network_picture(*ledger_panels(audit, text, contrast, outcome), title)


def ledger_panels(
    audit: Audit, text: Sentences, contrast: str, outcome: str
) -> tuple[tuple[LedgerPanel, ...], tuple[str, ...]]:
    """Return what each ledger has of a gap, and what the places of the network are called, from the input on."""
    own = (contrast, outcome)
    totals = [t for t in audit.ledgers if (t.contrast, t.outcome) == own and t.why_not is None]
    near = [t for t in totals if t.among != "all" and (t.kept or 0.0) < 1] or totals
    written = audit.parts_of(near[0], "family in layer") if near else []
    shared = [r for r in audit.trained_parts if (r.contrast, r.outcome, r.order) == (*own, HybridOrder.SHAPLEY)]
    carried = [
        r for r in audit.carried_of(contrast, outcome) if r.layer is not None and r.part in ("layer", "attention")
    ]
    depth = _depth(written, shared, carried)
    here = [family for family in LAST if any(row.family == family for row in written)]
    places = [text.words["places"]["embedding"], *(f"L{i}" for i in range(depth))]
    places += [text.words["places"][family] for family in (PartFamily.BEHIND, *here)]
    words = text.words["panels"]
    panels = (
        LedgerPanel(words["carried"], "points", tuple(_carried(text, row) for row in carried)),
        LedgerPanel(words["written"], "nats", tuple(_written(text, row, depth, here) for row in written)),
        LedgerPanel(words["trained"], "points", tuple(_trained(text, row, depth) for row in shared if row.player)),
    )
    known = tuple(panel for panel in panels if any(bar.gap.value is not None for bar in panel.bars))
    return known, tuple(map(str, places))


def _depth(written: list[LedgerRow], shared: list[TrainedRow], carried: list[CarriedRow]) -> int:
    """Return how many layers the network has, as far as its ledgers tell."""
    spans = [span for row in shared if (span := layers_in(row.player)) is not None]
    layers = [layer for layer in [*(r.layer for r in written), *(r.layer for r in carried)] if layer is not None]
    return 1 + max([*layers, *(last for _, last in spans)], default=-1)


def _carried(text: Sentences, row: CarriedRow) -> PartBar:
    assert row.layer is not None
    return PartBar(text.ledger("carrier", row), row.layer, row.layer, str(row.part), row.denoised_rate)


def _written(text: Sentences, row: LedgerRow, depth: int, here: list[PartFamily]) -> PartBar:
    if row.layer is not None:
        place = row.layer
    elif row.family in here:
        place = depth + 1 + here.index(row.family)
    else:
        place = INPUT if row.family == PartFamily.EMBEDDING else depth
    series = str(row.family) if row.layer is not None else "other"
    return PartBar(text.ledger("name", row), place, place, series, row.gap)


def _trained(text: Sentences, row: TrainedRow, depth: int) -> PartBar:
    span = layers_in(row.player)
    start, stop = span or ((INPUT, INPUT) if row.player == "embedding" else (depth, depth))
    return PartBar(text.ledger("player", row), start, stop, "layer" if span else "other", row.rate)


@dataclass(frozen=True)
class PartBar:
    """One part of a ledger, from layer ``start`` to ``stop``: -1 is the input, the depth what follows the layers.

    Beyond the depth are parts that are at no place.
    """

    name: str
    start: int
    stop: int
    series: str  # "attention", "MLP" or another
    gap: Estimate


@dataclass(frozen=True)
class LedgerPanel:
    """One ledger of a picture; in points estimates are fractions, in nats they are as they are."""

    label: str
    unit: Literal["nats", "points"]
    bars: tuple[PartBar, ...]


@drawn_once
def network_picture(panels: tuple[LedgerPanel, ...], places: tuple[str, ...], title: str) -> Picture | None:
    """Draw a network from input to output, and below each other what each ledger has of its parts, with intervals.

    Parameters
    ----------
    panels : tuple of LedgerPanel
    places : tuple of str
        What the places are called, from the input on.
    title : str

    Returns
    -------
    Picture or None
        None where there is no part.
    """
    alt = network_in_words(title, panels)
    return for_both(partial(_draw, panels, places), title, alt) if panels else None


def _draw(panels: Sequence[LedgerPanel], places: Sequence[str], is_narrow: bool) -> Figure:
    width, height = network_size(len(panels))
    figure = clear_figure(3.4, height + 0.25) if is_narrow else clear_figure(width, height)
    draw_network(figure, panels, places)
    return figure


def network_size(panels: int) -> tuple[float, float]:
    """Return width and height, in inches, of the picture of a network with so many ledgers."""
    return 6.6, 0.7 + 1.55 * panels


def draw_network(figure: Figure, panels: Sequence[LedgerPanel], places: Sequence[str]) -> list[Axes]:
    """Draw each ledger into an Axes of its own, below each other; all share the network's places."""
    width = figure.get_size_inches()[0]
    series = dict.fromkeys(bar.series for panel in panels for bar in panel.bars)
    every: list[Axes] = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0])
    for axes, panel in zip(every, panels, strict=True):
        _draw_ledger(axes, panel)
    _name_places(every[-1], places, (width - LEFT) / len(places))
    figure.legend(
        handles=[Patch(label=name, **_filled(name)) for name in series],
        frameon=False,
        ncols=len(series) if width > BROAD else 2,
        loc="outside upper left",
    )
    return every


def _filled(series: str) -> dict[str, Any]:
    """Return how the bars of one kind of part are filled: MLPs are hatched, so that a grey print tells them apart."""
    hatch = {"hatch": "////", "edgecolor": RULE} if series == "MLP" else {}
    return {"facecolor": _SERIES.get(series, REFERENCE), "linewidth": 0, **hatch}


def _name_places(axes: Axes, places: Sequence[str], room: float) -> None:
    """Name the places below the last Axes, as many layers as there is room for; ``room`` is that of one, in inches."""
    layers = [place for place, name in enumerate(places, start=INPUT) if place >= 0 and name == f"L{place}"]
    step = math.ceil(LAYER_NAME / room)
    named = {place: name for place, name in enumerate(places, start=INPUT) if place not in layers}
    named |= {place: f"L{place}" for place in layers[::step] if step == 1 or place}
    axes.set_xticks(sorted(named), [drawn_name(named[place]) for place in sorted(named)])
    for place, name in zip(sorted(named), axes.get_xticklabels(), strict=True):
        if place not in layers and room < LONG_NAME:
            name.set(rotation=40, ha="right", rotation_mode="anchor")


def _draw_ledger(axes: Axes, panel: LedgerPanel) -> None:
    """Draw the parts of one ledger; those of one place side by side."""
    axes.patch.set_alpha(0)
    drawn, scale = [bar for bar in panel.bars if bar.gap.value is not None], 100 if panel.unit == "points" else 1
    whiskers: list[tuple[float, float, float]] = []
    for place in dict.fromkeys((bar.start, bar.stop) for bar in drawn):
        here = [bar for bar in drawn if (bar.start, bar.stop) == place]
        width = 0.8 * (place[1] - place[0] + 1) / len(here)
        for number, bar in enumerate(here):
            x = sum(place) / 2 + (number - (len(here) - 1) / 2) * width
            axes.bar(x, scale * (bar.gap.value or 0.0), width=0.9 * width, **_filled(bar.series))
            if bar.gap.low is not None and bar.gap.high is not None:
                whiskers.append((x, scale * bar.gap.low, scale * bar.gap.high))
    if whiskers:
        axes.vlines(*zip(*whiskers, strict=True), color=INK, linewidth=1.1)
    axes.axhline(0, color=MUTED, linewidth=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", length=0)
    axes.set_title(panel.label, loc="left", fontsize=8.5, color=INK)
    axes.set_ylabel(panel.unit)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}".replace("-", formats.MINUS)))
