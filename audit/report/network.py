"""The picture of a network from input to output, with what each ledger has of a gap."""

from __future__ import annotations

from audit.records import Audit, CarriedKind, CarriedRow, HybridOrder, LedgerRow, PartFamily, TrainedRow
from audit.report.drawn.base import Picture
from audit.report.figures import LedgerPanel, PartBar, network_picture
from audit.report.text import Sentences
from audit.units import layers_in

INPUT = -1
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
