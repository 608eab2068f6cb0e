"""Where a gap runs: the finest level that the ledgers support, and what it means where they name different places."""

from __future__ import annotations

from typing import Any

import pytest

from audit.evidence.gap_answer import Ledgers, Pairs, answer
from audit.records import (
    AnswerLevel,
    CarriedKind,
    CarriedRow,
    Estimate,
    GapAnswer,
    HybridOrder,
    LedgerRow,
    LedgerTotal,
    Localisation,
    LocalisationStatus,
    Metric,
    Reading,
    SmallestSetRow,
    TrainedRow,
    WhyNotTrained,
    WhyStopped,
)
from tests.report.examples import head_rows

pytestmark = pytest.mark.unit
KEY: dict[str, Any] = {"contrast": "gender:female-male", "outcome": "happy"}
METRIC = Metric.STANDARDISED_GAP
SURE, UNSURE = Estimate(value=0.6, low=0.4, high=0.8), Estimate(value=0.1, low=-0.1, high=0.3)
LAYERS, HEADS = 6, 4


def set_of(*heads: str, confirmed: bool = True) -> SmallestSetRow:
    return SmallestSetRow(
        **KEY, metric=METRIC, heads=list(heads), steps=[], stopped=WhyStopped.NOISE, tried=8, patched=7, recipients=90,
        share_of_gap=SURE, confirmed=confirmed,
    )  # fmt: skip


def carried(part: str, layer: int | None, *, beyond: bool = True) -> CarriedRow:
    return CarriedRow(
        **KEY, metric=METRIC, part=CarriedKind(part), layer=layer, recipients=90, denoised=SURE, denoised_rate=SURE,
        share_of_gap=SURE, noised=SURE, apart=UNSURE, beyond_noise=beyond,
    )  # fmt: skip


def written(layer: int, share: Estimate = SURE) -> LedgerRow:
    return LedgerRow(**KEY, among="all", level="layer", layer=layer, gap=share, share=share)


def trained(player: str) -> TrainedRow:
    return TrainedRow(
        **KEY, order=HybridOrder.SHAPLEY, player=player, rate=SURE, probability=SURE, log_odds=SURE
    )  # fmt: skip


def answered(
    status: LocalisationStatus = LocalisationStatus.NOT_LOCALISABLE, heads: tuple[str, ...] = (), **rows: Any
) -> GapAnswer:
    every = head_rows(KEY["contrast"], KEY["outcome"], LAYERS, HEADS, planted=False, design_c=False)
    total = LedgerTotal(**KEY, metric=METRIC, among="all", gap=SURE)
    given: dict[str, Any] = {"smallest": [], "carried": [], "written": [], "trained": []} | rows
    where = {"q": Localisation(status=status, metric=METRIC, heads=list(heads))}
    known = Ledgers(localisation=where, heads=every, joint=[], totals=[total], **given)
    return answer(known, "q", KEY["contrast"], KEY["outcome"], Pairs(100, 400))


def test_a_confirmed_small_set_comes_first() -> None:
    found = answered(
        LocalisationStatus.LOCALISED, ("L0H0", "L1H1"), smallest=[set_of("L3H1", "L3H2")], carried=[carried("layer", 3)]
    )
    assert (found.level, found.heads, found.jointly, found.layers) == (AnswerLevel.HEADS, ["L3H1", "L3H2"], True, [3])
    rest = found.not_attributed
    assert (rest.value, rest.low, rest.high) == (pytest.approx(0.4), pytest.approx(0.2), pytest.approx(0.6))
    assert (found.pairs, found.pairs_needed) == (None, None)


def test_without_a_confirmed_set_it_is_the_heads_that_are_confirmed_one_by_one() -> None:
    found = answered(LocalisationStatus.LOCALISED, ("L0H0",), smallest=[set_of("L3H1", confirmed=False)])
    assert (found.level, found.heads, found.jointly) == (AnswerLevel.HEADS, ["L0H0"], False)


def test_most_heads_of_their_layers_say_no_more_than_the_layers() -> None:
    most = set_of("L3H0", "L3H1", "L3H2")
    assert answered(smallest=[most], carried=[carried("layer", 3)]).level is AnswerLevel.LAYERS
    assert answered(smallest=[most], carried=[carried("layer", 3, beyond=False)]).level is AnswerLevel.HEADS


@pytest.mark.parametrize(
    ("rows", "level"),
    [
        ({"carried": [carried("attention", None), carried("layer", 2)]}, AnswerLevel.LAYERS),
        ({"carried": [carried("attention", None), carried("layer", 2, beyond=False)]}, AnswerLevel.PARTS),
        ({"carried": [carried("class token", 3)]}, AnswerLevel.PARTS),
        ({"written": [written(5), written(1, UNSURE)]}, AnswerLevel.WRITTEN_LATE),
        ({"written": [written(5, UNSURE), written(1)]}, AnswerLevel.NOT_LOCALISABLE),
        ({}, AnswerLevel.NOT_LOCALISABLE),
    ],
)
def test_the_answer_falls_back_a_level(rows: dict[str, Any], level: AnswerLevel) -> None:
    found = answered(**rows)
    assert (found.level, found.pairs, found.pairs_needed) == (level, 100, 400)


@pytest.mark.parametrize(
    ("written_in", "trained_in", "reading"),
    [
        (3, "L3", Reading.SAME),
        (1, "L2 to L4", Reading.SAME),
        (5, "L3", Reading.CONDUIT),
        (3, "L0 to L1", Reading.ORIGIN),
        (5, "classifier", Reading.CONDUIT),
        (5, "L0", Reading.BOTH),
    ],
)
def test_ledgers_that_differ_are_read(written_in: int, trained_in: str, reading: Reading) -> None:
    found = answered(
        carried=[carried("layer", 3)],
        written=[written(i, SURE if i == written_in else UNSURE) for i in range(LAYERS)],
        trained=[trained(""), trained(trained_in)],
    )
    assert (found.written_in, found.trained_in, found.reading) == (written_in, trained_in, reading)


def test_where_too_few_have_donors_who_writes_it_is_the_answer() -> None:
    late = answered(LocalisationStatus.TOO_LITTLE_DATA, written=[written(5)])
    assert (late.level, late.patched, late.written_in) == (AnswerLevel.WRITTEN_LATE, False, 5)
    nothing = answered(LocalisationStatus.TOO_LITTLE_DATA)
    assert (nothing.level, nothing.patched) == (AnswerLevel.NOT_LOCALISABLE, False)
    assert answered(written=[written(5)]).patched


def test_why_training_is_not_told_of_is_said_where_it_is_not() -> None:
    every = head_rows(KEY["contrast"], KEY["outcome"], LAYERS, HEADS, planted=False, design_c=False)
    where = {"q": Localisation(status=LocalisationStatus.NOT_LOCALISABLE, metric=METRIC)}
    for rows, why in ([], WhyNotTrained.NO_TRAINING), ([trained("L2")], None):
        known = Ledgers(where, every, [], [], [], [], [], rows)
        found = answer(known, "q", *KEY.values(), Pairs(), why_not_trained=WhyNotTrained.NO_TRAINING)
        assert found.why_not_trained is why


def test_many_heads_that_are_confirmed_by_themselves_are_no_place() -> None:
    many = ("L0H1", "L1H0", "L2H1", "L4H2")
    spread = answered(LocalisationStatus.LOCALISED, many, written=[written(5)])
    assert (spread.level, spread.one_by_one, spread.heads) == (AnswerLevel.WRITTEN_LATE, 4, [])
    assert answered(LocalisationStatus.LOCALISED, many, carried=[carried("layer", 2)]).level is AnswerLevel.LAYERS
    assert answered(LocalisationStatus.LOCALISED, many).heads == list(many)
    assert answered(LocalisationStatus.LOCALISED, many[:3], written=[written(5)]).heads == list(many[:3])
    jointly = answered(smallest=[set_of(*many)], written=[written(5)])
    assert (jointly.level, jointly.heads) == (AnswerLevel.HEADS, list(many))


def test_a_confirmed_set_of_most_heads_of_its_layer_comes_before_who_writes_it_late() -> None:
    most = ("L0H0", "L0H1", "L0H2")
    found = answered(smallest=[set_of(*most)], written=[written(5)])
    assert (found.level, found.heads, found.jointly) == (AnswerLevel.HEADS, list(most), True)
