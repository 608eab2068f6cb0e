"""The ledger of what training put there: sums worked by hand, exact zeros, Shapley values that are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from audit.errors import InputError
from audit.evidence.disparity import Question, Thresholds, contrasts
from audit.evidence.trained import (
    NOTHING,
    SCALES,
    Along,
    Compared,
    OfSets,
    Trained,
    Values,
    compare,
    draw_images,
    ledger_of_paths,
    ledger_of_sets,
)
from audit.records import Contrast, Metric
from tests.evidence.simulate import plausible

pytestmark = pytest.mark.unit
Floats = npt.NDArray[np.float64]
CONTRAST = Contrast("gender", "women", "men")
PLAYERS = ("L0", "L1", "classifier")


def people(n: int = 200, seed: int = 0, per_subject: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    subjects = np.arange(n) // per_subject
    gender = np.where(rng.random(n // per_subject + 1) < 0.4, "women", "men")[subjects]
    label = np.where(rng.random(n) < 0.3, "smile", "frown")
    return pd.DataFrame({"gender": gender, "label": label, "subject": [f"s{k}" for k in subjects]})


def values(log_odds: Floats, labels: Sequence[str]) -> Values:
    p = 1 / (1 + np.exp(-log_odds))
    right = (log_odds > 0) == (np.asarray(labels) == "smile")[:, None]
    return Values(called=log_odds > 0, probability=p, log_odds=log_odds, right=right)


def walk(frame: pd.DataFrame, seed: int = 0, same: Sequence[bool] = (False,) * 3, players: Any = PLAYERS) -> Along:
    """Draw log-odds along a path: each player moves every image by chance, and not at all where weights are equal."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, 1, (len(frame), len(players))) * ~np.asarray(same)
    start = rng.normal(0, 1, (len(frame), 1))
    log_odds = np.concatenate([start, start + steps.cumsum(axis=1)], axis=1)
    return Along(tuple(players), tuple(same), values(log_odds, frame["label"].tolist()))


def gap_by_hand(frame: pd.DataFrame, v: Floats) -> float:
    """Return the label-standardised gap, cell by cell."""
    of = frame.assign(v=v)
    means = of.groupby(["gender", "label"])["v"].mean()
    shares = of["label"].value_counts(normalize=True)
    return float(sum(share * (means["women", y] - means["men", y]) for y, share in shares.items()))


def numbers(found: Trained, scale: Any = "log_odds") -> dict[str, float | None]:
    every = [*found.rows, found.by_training, found.total]
    return {row.name: row.on(scale).estimate.value for row in every}


def test_rows_are_the_gaps_of_what_changes_and_sum_to_the_audited_models() -> None:
    frame = people()
    path = walk(frame)
    found = ledger_of_paths([path], compare(frame, CONTRAST, "smile"))
    for scale in SCALES:
        v = path.values.on(scale)
        wanted = [gap_by_hand(frame, v[:, 0]), *(gap_by_hand(frame, v[:, k + 1] - v[:, k]) for k in range(3))]
        rows = [row.on(scale).estimate for row in found.rows]
        np.testing.assert_allclose([row.value for row in rows], wanted, atol=1e-12)
        total, trained = found.total.on(scale).estimate.value, found.by_training.on(scale).estimate.value
        assert total == pytest.approx(gap_by_hand(frame, v[:, -1]), abs=1e-12)
        assert trained == pytest.approx(sum(wanted[1:]), abs=1e-12)
        assert found.closure[scale] == pytest.approx(0, abs=1e-12)
        assert all(row.low < row.value < row.high for row in rows)  # type: ignore[operator]
    assert [row.name for row in found.rows] == ["already in the reference", *PLAYERS]


def test_the_total_is_the_gap_of_the_audit() -> None:
    frame = people(seed=3)
    path = walk(frame)
    audited = frame.assign(**{"called:smile": path.values.called[:, -1], "p:smile": path.values.probability[:, -1]})
    audited["predicted"] = np.where(audited["called:smile"], "smile", "frown")
    limits = Thresholds(alpha=0.05, min_group_size=2, impact_ratio_below=0.8, gap_above=0.1)
    rows = contrasts(audited, [Question("gender", "men", ["women", "men"])], ["smile"], limits)
    for row in rows:
        found = ledger_of_paths([path], compare(frame, CONTRAST, "smile", metric=row.metric))
        assert found.total.rate.estimate.value == pytest.approx(row.estimate.value, abs=1e-12)
        width = [e.high - e.low for e in (found.total.rate.estimate, row.estimate)]  # type: ignore[operator]
        assert width[0] == pytest.approx(width[1], rel=0.15)  # normal there, drawn here
    assert {row.metric for row in rows} == set(Metric)


def test_any_order_sums_to_the_same_and_other_groups_weigh_nothing() -> None:
    frame = people()
    path = walk(frame)
    steps = np.diff(path.values.log_odds)[:, ::-1]
    log_odds = np.concatenate([path.values.log_odds[:, :1], path.values.log_odds[:, :1] + steps.cumsum(axis=1)], axis=1)
    other = Along(PLAYERS[::-1], path.same, values(log_odds, frame["label"].tolist()))
    one, two = (ledger_of_paths([p], compare(frame, CONTRAST, "smile")) for p in (path, other))
    assert one.total.log_odds.estimate.value == pytest.approx(two.total.log_odds.estimate.value, abs=1e-12)
    for name in PLAYERS:  # of log-odds that add up, each has the same row in any order
        assert numbers(one)[name] == pytest.approx(numbers(two)[name], abs=1e-12)

    more = pd.concat([frame, frame.assign(gender="unknown", subject=frame["subject"] + "x")], ignore_index=True)
    doubled = np.concatenate([path.values.log_odds, 100 + path.values.log_odds])
    wider = Along(PLAYERS, path.same, values(doubled, more["label"].tolist()))
    found = ledger_of_paths([wider], compare(more, CONTRAST, "smile", audited=frame))
    assert numbers(found) == pytest.approx(numbers(one), abs=1e-12)


def test_permuting_the_groups_flips_every_sign() -> None:
    frame = people()
    path = walk(frame)
    swapped = frame.assign(gender=frame["gender"].map({"women": "men", "men": "women"}))
    one, two = (ledger_of_paths([path], compare(f, CONTRAST, "smile")) for f in (frame, swapped))
    for scale in SCALES:
        for a, b in zip([*one.rows, one.total], [*two.rows, two.total], strict=True):
            assert a.on(scale).estimate.value == -b.on(scale).estimate.value  # type: ignore[operator]


def test_where_nothing_is_exchanged_rows_are_exactly_nothing() -> None:
    frame = people()
    found = ledger_of_paths([walk(frame, same=(True,) * 3)], compare(frame, CONTRAST, "smile"))
    for row in (*found.players, found.by_training):
        assert row.same_weights
        assert {row.on(scale).estimate for scale in SCALES} == {NOTHING}
    for scale in SCALES:
        assert found.closure[scale] == pytest.approx(0, abs=1e-15)
        ends = (row.on(scale).estimate.value for row in (found.total, found.rows[0]))
        assert next(ends) == pytest.approx(next(ends), abs=1e-15)


def test_one_player_that_differs_has_all_of_the_difference() -> None:
    frame = people()
    found = ledger_of_paths([walk(frame, same=(True, False, True))], compare(frame, CONTRAST, "smile"))
    assert [row.same_weights for row in found.rows] == [False, True, False, True]
    for scale in SCALES:
        rows = [row.on(scale).estimate for row in found.players]
        assert rows[0] == rows[2] == NOTHING
        whole = found.by_training.on(scale).estimate
        for a, b in ((rows[1].value, whole.value), (rows[1].low, whole.low), (rows[1].high, whole.high)):
            assert a == pytest.approx(b, abs=1e-12)


def test_a_player_that_changes_no_answer_may_still_change_one() -> None:
    """Weights differ and no image is called otherwise: the rate's row is 0, with what so few images cannot show."""
    frame = people()
    path = walk(frame, same=(True, True, True))
    moved = path.values.log_odds.copy()
    moved[:, 1:] *= 1.01
    found = ledger_of_paths([Along(PLAYERS, (False,) * 3, values(moved, frame["label"].tolist()))],
                            compare(frame, CONTRAST, "smile"))  # fmt: skip
    row = found.players[0]
    assert row.rate.estimate.value == 0
    assert row.rate.estimate.low < 0 < row.rate.estimate.high  # type: ignore[operator]
    assert row.log_odds.estimate.value != 0
    assert found.players[1].log_odds.estimate.value == found.players[1].log_odds.estimate.low == 0


def test_of_several_references_the_mean_and_their_spread_are_told() -> None:
    frame = people()
    walks, compared = [walk(frame, seed) for seed in range(3)], compare(frame, CONTRAST, "smile")
    found = ledger_of_paths(walks, compared)
    singles = [ledger_of_paths([w], compared) for w in walks]
    for k, row in enumerate([*found.rows, found.total]):
        own = [[*one.rows, one.total][k].probability.estimate.value for one in singles]
        np.testing.assert_allclose(row.probability.by_reference, own, atol=1e-12)
        assert row.probability.estimate.value == pytest.approx(np.mean(own), abs=1e-12)
        assert row.probability.between == pytest.approx(np.std(own, ddof=1), abs=1e-12)
    assert singles[0].rows[1].rate.between is None


def test_the_null_is_the_size_of_rows_between_models_trained_alike() -> None:
    frame = people()
    compared, nulls = compare(frame, CONTRAST, "smile"), [walk(frame, seed) for seed in (7, 8)]
    found = ledger_of_paths([walk(frame)], compared, nulls=nulls)
    of_nulls = [ledger_of_paths([n], compared) for n in nulls]
    for scale in SCALES:
        for k, row in enumerate(found.players):
            own = np.array([n.players[k].on(scale).estimate.value for n in of_nulls], dtype=np.float64)
            assert row.on(scale).null == pytest.approx(np.sqrt((own**2).mean()), abs=1e-12)
        together = np.array([n.by_training.on(scale).estimate.value for n in of_nulls], dtype=np.float64)
        assert found.by_training.on(scale).null == pytest.approx(np.sqrt((together**2).mean()), abs=1e-12)
        assert found.rows[0].on(scale).null is None
    assert ledger_of_paths([walk(frame)], compared).players[0].rate.null is None


def test_accuracy_is_told_of_every_model_on_the_way() -> None:
    frame = people()
    walks = [walk(frame, seed) for seed in range(2)]
    found = ledger_of_paths(walks, compare(frame, CONTRAST, "smile")).accuracy
    assert [row.after for row in found] == ["", *PLAYERS]
    for k, row in enumerate(found):
        own = [w.values.right[:, k].mean() for w in walks]
        assert row.by_reference == pytest.approx(own)
        assert row.estimate.value == pytest.approx(np.mean(own))
        assert 0 <= row.estimate.low < row.estimate.value < row.estimate.high <= 1  # type: ignore[operator]


def test_a_label_that_one_group_lacks_leaves_no_number_and_no_crash() -> None:
    frame = people().assign(label=lambda f: np.where(f["gender"] == "women", "smile", "frown"))
    found = ledger_of_paths([walk(frame)], compare(frame, CONTRAST, "smile"))
    assert set(numbers(found).values()) == {None}
    assert set(found.closure.values()) == {None}


def test_rows_of_one_image_a_side_have_no_interval() -> None:
    frame = pd.DataFrame({"gender": ["women", "men"], "label": ["smile"] * 2, "subject": ["a", "b"]})
    found = ledger_of_paths([walk(frame)], compare(frame, CONTRAST, "smile"))
    assert found.total.probability.estimate.value is not None
    assert found.total.probability.estimate.low is None


def test_what_cannot_be_put_together_is_refused_in_a_line() -> None:
    frame = people()
    compared = compare(frame, CONTRAST, "smile")
    with pytest.raises(InputError, match="references: there is none; give at least one"):
        ledger_of_paths([], compared)
    with pytest.raises(InputError, match="references: there is none"):
        ledger_of_sets([], compared)
    with pytest.raises(InputError, match=r"references: have other players \(L1, L0, classifier\)"):
        ledger_of_paths([walk(frame), walk(frame, players=("L1", "L0", "classifier"))], compared)
    with pytest.raises(InputError, match="references: have other players"):
        ledger_of_paths([walk(frame)], compared, nulls=[walk(frame, same=(False, False), players=PLAYERS[:2])])


# Shapley values

Game = Callable[[npt.NDArray[np.bool_]], Floats]  # from members (H, players) to values (images, H)


def every_set(players: int) -> npt.NDArray[np.bool_]:
    return np.array(list(product((False, True), repeat=players)), dtype=np.bool_)


def orders_of(players: int, pairs: int, seed: int) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    return np.array([o for _ in range(pairs) for d in [rng.permutation(players)] for o in (d, d[::-1])])


def played(game: Game, frame: pd.DataFrame, players: int, orders: Any = None, names: Any = None) -> OfSets:
    members = every_set(players)
    of = tuple(names or (f"L{k}" for k in range(players)))
    return OfSets(of, members, orders, values(game(members), frame["label"].tolist()))


def additive(frame: pd.DataFrame, players: int, seed: int = 0) -> Floats:
    """Return what each player adds to the log-odds of each image."""
    return np.random.default_rng(seed).normal(0, 1, (len(frame), players))


@pytest.mark.parametrize("drawn", [False, True])
def test_of_an_additive_game_shapley_values_are_the_parts(drawn: bool) -> None:
    frame = people()
    parts, compared = additive(frame, 4), compare(frame, CONTRAST, "smile")
    orders = orders_of(4, 3, seed=0) if drawn else None
    found = ledger_of_sets([played(lambda s: 0.3 + parts @ s.T, frame, 4, orders)], compared)
    for k, row in enumerate(found.players):
        assert row.log_odds.estimate.value == pytest.approx(gap_by_hand(frame, parts[:, k]), abs=1e-12)
        assert row.log_odds.order_error == pytest.approx(0, abs=1e-12)
    assert found.rows[0].log_odds.estimate.value == pytest.approx(0, abs=1e-12)
    assert found.closure["log_odds"] == pytest.approx(0, abs=1e-12)
    assert found.accuracy == ()


def test_gloves_are_shared_as_theory_has_it() -> None:
    """One left glove, two right ones, a pair is worth 1: 2/3, 1/6, 1/6."""
    frame = people()
    women = (frame["gender"] == "women").to_numpy(dtype=np.float64)
    found = ledger_of_sets(
        [played(lambda s: np.outer(women, s[:, 0] & (s[:, 1] | s[:, 2])), frame, 3)], compare(frame, CONTRAST, "smile")
    )
    shares = [row.log_odds.estimate.value for row in found.players]
    np.testing.assert_allclose(shares, [2 / 3, 1 / 6, 1 / 6], atol=1e-12)
    assert found.total.log_odds.estimate.value == pytest.approx(1)


def rough(frame: pd.DataFrame, players: int) -> Game:
    """Return a game in which every set has a value of its own, the same for a set whatever the players are called."""
    parts = additive(frame, players)
    return lambda s: np.tanh(parts @ s.T) * 2 + (parts @ s.T) ** 2 * 0.2 - 0.4


@pytest.mark.parametrize("pairs", [0, 5])
def test_shapley_values_do_not_depend_on_what_players_are_called(pairs: int) -> None:
    frame = people()
    game, compared, place = rough(frame, 4), compare(frame, CONTRAST, "smile"), np.array([2, 0, 3, 1])
    orders = orders_of(4, pairs, seed=1) if pairs else None
    one = ledger_of_sets([played(game, frame, 4, orders)], compared)
    other = ledger_of_sets(
        [played(lambda s: game(s[:, place]), frame, 4, None if orders is None else place[orders])], compared
    )
    for k in range(4):
        for scale in SCALES:
            a, b = one.players[k].on(scale), other.players[int(place[k])].on(scale)
            assert a.estimate.value == pytest.approx(b.estimate.value, abs=1e-12)
            assert a.order_error == pytest.approx(b.order_error, abs=1e-12)
    for scale in SCALES:
        assert one.closure[scale] == pytest.approx(0, abs=1e-12)


def test_a_player_that_does_nothing_has_nothing() -> None:
    frame = people()
    parts = additive(frame, 3)
    parts[:, 1] = 0
    found = ledger_of_sets([played(lambda s: np.tanh(parts @ s.T), frame, 3)], compare(frame, CONTRAST, "smile"))
    assert numbers(found)["L1"] == pytest.approx(0, abs=1e-12)
    assert {row.rate.order_error for row in found.players} == {0.0}


def test_the_error_of_drawn_orders_is_how_far_they_are_off() -> None:
    frame = people(60)
    game, compared = rough(frame, 5), compare(frame, CONTRAST, "smile", resamples=20)
    exact = numbers(ledger_of_sets([played(game, frame, 5)], compared))
    off = []
    for seed in range(60):
        found = ledger_of_sets([played(game, frame, 5, orders_of(5, 8, seed))], compared)
        off += [(row.log_odds.estimate.value - exact[row.name]) / row.log_odds.order_error for row in found.players]
    assert 0.8 < np.std(off) < 1.4  # as Student's t of 7 degrees of freedom; players of one draw are not independent
    assert abs(np.mean(off)) < 0.2
    single = ledger_of_sets([played(game, frame, 5, orders_of(5, 1, 0))], compared)
    assert single.players[0].log_odds.order_error is None


def test_several_references_are_averaged_set_by_set() -> None:
    frame = people()
    compared = compare(frame, CONTRAST, "smile")
    games = [rough(frame, 3), lambda s: additive(frame, 3, seed=1) @ s.T]
    found = ledger_of_sets([played(g, frame, 3) for g in games], compared)
    own = [numbers(ledger_of_sets([played(g, frame, 3)], compared)) for g in games]
    for row in found.rows:
        assert row.log_odds.by_reference == pytest.approx([one[row.name] for one in own], abs=1e-12)
    fewer = played(games[0], frame, 3)
    fewer = OfSets(fewer.players, fewer.members[::-1], None, fewer.values)
    with pytest.raises(InputError, match="different sets"):
        ledger_of_sets([played(games[0], frame, 3), fewer], compared)


# Sampling


def test_images_are_drawn_in_the_shares_of_groups_and_labels() -> None:
    frame = people(1000)
    drawn = draw_images(frame, "gender", 250, seed=0)
    assert len(drawn) == len(set(drawn.tolist())) == 250
    assert (np.diff(drawn) > 0).all()
    every, some = (f.value_counts(["gender", "label"]) for f in (frame, frame.iloc[drawn]))
    assert (abs(every / 4 - some) <= 1).all()
    np.testing.assert_array_equal(drawn, draw_images(frame, "gender", 250, seed=0))
    assert (drawn != draw_images(frame, "gender", 250, seed=1)).any()
    np.testing.assert_array_equal(draw_images(frame, "gender", 2000, seed=0), np.arange(1000))


def test_some_images_weigh_labels_as_all_do() -> None:
    frame = people(400)
    some = frame[(frame["label"] == "smile") | (np.arange(400) % 3 == 0)]
    path = walk(some)
    found = ledger_of_paths([path], compare(some, CONTRAST, "smile", audited=frame))
    means = some.assign(v=path.values.probability[:, -1]).groupby(["gender", "label"])["v"].mean()
    shares = frame["label"].value_counts(normalize=True)
    wanted = sum(share * (means["women", y] - means["men", y]) for y, share in shares.items())
    assert found.total.probability.estimate.value == pytest.approx(wanted, abs=1e-12)


def one_more(rng: np.random.Generator) -> tuple[Compared, Along]:
    """Draw people with several images each; the second player moves women's log-odds by 0.5, the others nobody's."""
    n = 240
    frame = people(n, seed=int(rng.integers(1 << 30)), per_subject=3)
    women = (frame["gender"] == "women").to_numpy(dtype=np.float64)
    person = pd.factorize(frame["subject"])[0]
    own = rng.normal(0, 0.5, (person.max() + 1, 3))[person]
    steps = rng.normal(0, 0.5, (n, 3)) + own
    steps[:, 1] += 0.5 * women
    start = rng.normal(0, 3, (n, 1))
    log_odds = np.concatenate([start, start + steps.cumsum(axis=1)], axis=1)
    compared = compare(frame, CONTRAST, "smile", resamples=400, seed=int(rng.integers(1 << 30)))
    return compared, Along(PLAYERS, (False,) * 3, values(log_odds, frame["label"].tolist()))


def test_intervals_hold_the_truth_and_pairing_makes_them_narrow() -> None:
    rng = np.random.default_rng(0)
    held = np.zeros(3, dtype=np.int64)
    runs, narrower = 200, []
    for _ in range(runs):
        compared, path = one_more(rng)
        found = ledger_of_paths([path], compared)
        for k, (row, truth) in enumerate(zip(found.players, (0.0, 0.5, 0.0), strict=True)):
            estimate = row.log_odds.estimate
            held[k] += estimate.low <= truth <= estimate.high  # type: ignore[operator]
        total, row_width = (e.high - e.low for e in (found.total.log_odds.estimate, estimate))  # type: ignore[operator]
        narrower.append(row_width / total)
    assert all(plausible(int(h), runs, 0.93, 0.97) for h in held)
    assert np.mean(narrower) < 0.5
