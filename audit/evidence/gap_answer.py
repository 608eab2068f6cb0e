"""Where a gap runs: one answer from what carries it, who writes it, and which trained weights put it there.

The finest level that the data support comes first. Heads: the smallest set, where it is confirmed beyond random sets,
or else heads that are confirmed one by one, while they are few; where they are most heads of their layers, the layers
say as much. Layers, then attention, MLPs or tokens as a whole: those that carry beyond their noise. Where no part
carries it beyond noise, but one of the last third of the layers writes more of the gap in log-odds than any other, it
is written late and not localised, however many heads are confirmed by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from audit.evidence.stats import excludes_zero
from audit.records import (
    AnswerLevel,
    CarriedKind,
    CarriedRow,
    Estimate,
    GapAnswer,
    HeadRow,
    HybridOrder,
    JointRow,
    LedgerRow,
    LedgerTotal,
    Localisation,
    LocalisationStatus,
    Reading,
    SmallestSetRow,
    TrainedRow,
    WhyNotTrained,
)
from audit.units import layers_in, parse_name

NONE = Estimate(value=None)
LAYERS = (CarriedKind.LAYER, CarriedKind.ATTENTION)  # the latter where layers do not write apart
MOST = 1 / 2  # of the heads of their layers: more of them are no finer an answer than the layers
FEW = 1 / 8  # of all heads: more of them, each confirmed by itself, say that it is spread, not where it is
LATE = 2 / 3  # of the depth: layers from there on are late


@dataclass(frozen=True)
class Ledgers:
    """All that is known of where gaps run; rows of any question."""

    localisation: Mapping[str, Localisation]
    heads: Sequence[HeadRow]
    joint: Sequence[JointRow]
    smallest: Sequence[SmallestSetRow]
    carried: Sequence[CarriedRow]
    totals: Sequence[LedgerTotal]
    written: Sequence[LedgerRow]
    trained: Sequence[TrainedRow]


@dataclass(frozen=True)
class Pairs:
    """Donor pairs of the discovery split, and with how many a head that carries half of the gap would show."""

    here: int | None = None
    needed: int | None = None


@dataclass(frozen=True)
class _Carrier:
    """What carries a gap, at one level."""

    level: AnswerLevel
    rows: Sequence[CarriedRow] = ()
    heads: Sequence[str] = ()
    jointly: bool = False
    share: Estimate = NONE

    @property
    def layers(self) -> list[int]:
        """Return the layers, of heads or of whole layers."""
        if self.level is AnswerLevel.LAYERS:
            return sorted(row.layer for row in self.rows if row.layer is not None)
        return sorted({parse_name(name)[0] for name in self.heads})


def answer(
    ledgers: Ledgers,
    key: str,
    contrast: str,
    outcome: str,
    pairs: Pairs,
    *,
    why_not_trained: WhyNotTrained | None = None,
) -> GapAnswer:
    """Answer one question.

    Parameters
    ----------
    ledgers : Ledgers
    key : str
        Of the question in ``Ledgers.localisation``.
    contrast, outcome : str
    pairs : Pairs
        Said where the answer is not of heads.
    why_not_trained : WhyNotTrained, optional
        Why there is no ledger of what training put there; said where there is none.
    """
    where = ledgers.localisation[key]
    assert where.metric is not None  # of a question in which a gap was detected
    own = _of_question(ledgers, contrast, outcome)
    heads = _by_heads(own, where)
    few = heads if heads is not None and _are_few(heads, own) else None
    carrier = few if few is not None and _are_finer(few, own) else _by_parts(own) or few
    written, share = _writer(own)
    trained = _trained(own)
    if carrier is None:
        depth = 1 + max((r.layer for r in own.written if r.layer is not None), default=0)
        late = written is not None and written >= LATE * depth - 1e-9
        carrier = _Carrier(AnswerLevel.WRITTEN_LATE, share=share) if late else heads
    carrier = carrier or _Carrier(AnswerLevel.NOT_LOCALISABLE)
    at_heads = carrier.level is AnswerLevel.HEADS
    return GapAnswer(
        contrast=contrast,
        outcome=outcome,
        metric=where.metric,
        level=carrier.level,
        heads=list(carrier.heads),
        jointly=carrier.jointly,
        one_by_one=len(where.heads),
        layers=carrier.layers,
        parts=[row.part for row in carrier.rows] if carrier.level is AnswerLevel.PARTS else [],
        share=carrier.share,
        not_attributed=_rest(carrier.share) if len(carrier.rows) <= 1 else NONE,
        written_in=written,
        trained_in=None if trained is None else trained.player,
        patched=where.was_asked,
        why_not_trained=None if own.trained else why_not_trained,
        reading=_reading(carrier.layers, written, None if trained is None else layers_in(trained.player)),
        pairs=None if at_heads else pairs.here,
        pairs_needed=None if at_heads else pairs.needed,
    )


def _of_question(ledgers: Ledgers, contrast: str, outcome: str) -> Ledgers:
    """Keep the rows of one question."""

    def own(rows: Sequence[Any]) -> list[Any]:
        return [row for row in rows if (row.contrast, row.outcome) == (contrast, outcome)]

    return Ledgers(
        ledgers.localisation,
        own(ledgers.heads),
        own(ledgers.joint),
        own(ledgers.smallest),
        own(ledgers.carried),
        own(ledgers.totals),
        own(ledgers.written),
        own(ledgers.trained),
    )


def _by_heads(own: Ledgers, where: Localisation) -> _Carrier | None:
    """Return the smallest set that is confirmed, or the heads that are, one by one."""
    for row in own.smallest:
        if row.confirmed:
            return _Carrier(AnswerLevel.HEADS, heads=row.heads, jointly=True, share=row.share_of_gap)
    if where.status is not LocalisationStatus.LOCALISED:
        return None
    shares = [row.share_of_gap for row in own.joint if set(row.heads) == set(where.heads)]
    shares += [row.share_of_gap for row in own.heads if [row.name] == where.heads]
    return _Carrier(AnswerLevel.HEADS, heads=where.heads, share=shares[0] if shares else NONE)


def _are_few(carrier: _Carrier, own: Ledgers) -> bool:
    """Tell whether heads are a place: confirmed as a set, or few of all."""
    every = {(row.layer, row.head) for row in own.heads}
    return carrier.jointly or len(carrier.heads) <= max(1.0, FEW * len(every))


def _are_finer(carrier: _Carrier, own: Ledgers) -> bool:
    """Tell whether heads are no more than half of those of their layers."""
    every = {(row.layer, row.head) for row in own.heads if row.layer in carrier.layers}
    return len(carrier.heads) <= MOST * len(every)


def _by_parts(own: Ledgers) -> _Carrier | None:
    """Return the layers, or else the larger parts, that carry beyond noise."""
    carrying = [row for row in own.carried if row.beyond_noise]
    layers = [row for row in carrying if row.layer is not None and row.part in LAYERS]
    for level, rows in ((AnswerLevel.LAYERS, layers), (AnswerLevel.PARTS, carrying)):
        if rows:
            most = max(rows, key=lambda row: abs(row.denoised.value or 0.0))
            return _Carrier(level, rows=rows, share=most.share_of_gap)
    return None


def _writer(own: Ledgers) -> tuple[int | None, Estimate]:
    """Return the layer that writes most of the gap in log-odds, and its share; near the decision, if known."""
    among = [total.among for total in own.totals if total.why_not is None]
    asked = "near the decision" if "near the decision" in among else "all"
    rows = [r for r in own.written if r.level == "layer" and r.among == asked and excludes_zero(r.share)]
    most = max(rows, key=lambda row: row.share.value or 0.0, default=None)
    return (None, NONE) if most is None or (most.share.value or 0.0) <= 0 else (most.layer, most.share)


def _trained(own: Ledgers) -> TrainedRow | None:
    """Return the part that training changed most, in the mean over orders, where its interval excludes 0."""
    rows = [r for r in own.trained if r.order is HybridOrder.SHAPLEY and r.player and excludes_zero(r.rate)]
    return max(rows, key=lambda row: abs(row.rate.value or 0.0), default=None)


def _rest(share: Estimate) -> Estimate:
    """Return what is left of the whole."""
    if share.value is None or share.low is None or share.high is None:
        return NONE
    return Estimate(value=1 - share.value, low=1 - share.high, high=1 - share.low, level=share.level)


def _reading(carried: Sequence[int], written: int | None, trained: tuple[int, int] | None) -> Reading | None:
    """Compare the places that the ledgers name; None where what carries is no place, or nothing else is known."""
    if not carried or (written is None and trained is None):
        return None
    conduit = written is not None and max(carried) < written
    origin = trained is not None and not any(trained[0] <= layer <= trained[1] for layer in carried)
    if conduit and origin:
        return Reading.BOTH
    return Reading.CONDUIT if conduit else Reading.ORIGIN if origin else Reading.SAME
