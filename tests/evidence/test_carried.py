"""What sets carry: games whose answer is known, and a formula worked by hand."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import stats

from audit.evidence.bootstrap import draw_bootstrap
from audit.evidence.carried import (
    SmallestSet,
    carried_jointly,
    confirm_set,
    noising,
    random_sets_like,
    smallest_set,
)
from audit.evidence.effects import SwapEffects, mediated_gaps
from audit.records import WhyStopped
from tests.evidence.simulate import Floats, plausible

pytestmark = pytest.mark.unit
Head = tuple[int, int]
HEADS: list[Head] = [(layer, head) for layer in range(3) for head in range(4)]
GAP = 0.2


@dataclass
class Game:
    """Patching of sets of heads whose mediated gap is ``worth`` of the set.

    Each head of each donor pair has noise of its own, the same in every set that it is in, and each patch some more.
    """

    worth: Callable[[frozenset[Head]], float]
    seed: int = 0
    units: int = 60
    noise: float = 0.03
    sign: float = 1.0
    counts: bool = False
    patched: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.unit = np.repeat(np.arange(self.units), 4)
        self.is_group = np.tile([True, True, False, False], self.units)
        self.label = self.unit % 2
        self.pair = rng.normal(0, self.noise, (self.units, len(HEADS)))
        self.unpatched = 0.4 + self.sign * GAP * self.is_group + 0.1 * self.label

    def __call__(self, sets: Sequence[tuple[Head, ...]]) -> SwapEffects:
        """Patch each set for all recipients."""
        self.patched += len(sets)
        cross = np.stack([self._patched(frozenset(s)) for s in sets], axis=1)
        return SwapEffects(
            cross=cross,
            placebo=np.repeat(self.unpatched[:, None], len(sets), axis=1),
            unpatched=self.unpatched,
            is_group=self.is_group,
            label=self.label.astype(np.int64),
            subject=np.arange(len(self.unit)),
            unit=self.unit,
            heads=[],
            counts=self.counts,
        )

    def _patched(self, heads: frozenset[Head]) -> Floats:
        rng = np.random.default_rng([self.seed, zlib.crc32(str(sorted(heads)).encode())])
        own = self.pair[:, [HEADS.index(h) for h in sorted(heads)]].sum(axis=1)
        away = np.where(self.is_group, -1.0, 1.0)  # donors of the reference for the group, and back
        found: Floats = (
            self.unpatched
            + away * (self.sign * self.worth(heads) + own[self.unit])
            + rng.normal(0, self.noise / 5, len(self.unit))
        )
        return found

    def singles(self) -> SwapEffects:
        """Patch each head alone."""
        return self([(h,) for h in HEADS])

    def chosen(self, **options: int) -> SmallestSet[Head]:
        """Build up the smallest set."""
        return smallest_set(self, self.singles(), HEADS, **options)


def additive(values: dict[Head, float]) -> Callable[[frozenset[Head]], float]:
    return lambda heads: sum(values.get(h, 0.0) for h in heads)


def redundant(heads: frozenset[Head]) -> float:
    """Two heads that carry the same."""
    return 0.06 * bool(heads & {(1, 1), (2, 2)})


def saturating(heads: frozenset[Head]) -> float:
    """Each of five heads carries 8 points alone, and together they carry no more than 12."""
    return min(0.12, 0.08 * len(heads & {(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)}))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_two_planted_heads_of_twelve_are_the_set(sign: float) -> None:
    game = Game(additive({(2, 3): 0.08, (0, 1): 0.05}), sign=sign)
    found = game.chosen()
    assert found.members == ((2, 3), (0, 1))
    assert found.stopped is WhyStopped.NOISE
    assert [step.joint for step in found.steps] == pytest.approx([0.08, 0.13], abs=0.02)
    assert [step.gain for step in found.steps] == pytest.approx([0.08, 0.05], abs=0.02)


def test_of_two_heads_that_carry_the_same_one_is_enough() -> None:
    found = Game(redundant).chosen()
    assert len(found.members) == 1
    assert found.members[0] in {(1, 1), (2, 2)}
    assert found.stopped is WhyStopped.NOISE


def test_a_set_that_saturates_stops_there() -> None:
    found = Game(saturating).chosen()
    assert len(found.members) == 2
    assert found.stopped is WhyStopped.NOISE
    assert found.steps[-1].joint == pytest.approx(0.12, abs=0.02)


def test_a_set_that_carries_all_of_the_gap_stops_there() -> None:
    game = Game(additive({(0, 0): 0.15, (0, 1): 0.1, (0, 2): 0.1}))
    found = game.chosen()
    assert found.members == ((0, 0), (0, 1))
    assert found.stopped is WhyStopped.WHOLE
    assert smallest_set(game, game.singles(), HEADS, whole=0.1).members == ((0, 0),)


def test_heads_that_carry_the_gap_away_are_never_added() -> None:
    found = Game(additive({(0, 0): -0.08, (1, 1): 0.06})).chosen()
    assert found.members == ((1, 1),)


def test_heads_that_matter_only_with_another_are_found_once_it_is_there() -> None:
    """Self-repair: the second does nothing alone."""
    found = Game(lambda heads: 0.05 * ((0, 0) in heads) + 0.08 * (heads >= {(0, 0), (1, 1)})).chosen()
    assert found.members == ((0, 0), (1, 1))


def test_where_nothing_is_there_the_set_is_empty() -> None:
    exact = Game(lambda _heads: 0.0, noise=0.0).chosen()
    assert (exact.members, exact.stopped, exact.patched) == ((), WhyStopped.NOISE, 0)


@pytest.mark.property
def test_in_noise_alone_the_set_is_empty() -> None:
    empty = sum(not Game(lambda _heads: 0.0, seed=seed).chosen().members for seed in range(200))
    assert empty >= 190


@pytest.mark.property
def test_noise_is_seldom_added_to_what_is_there() -> None:
    planted = additive({(2, 3): 0.08, (0, 1): 0.06})
    exact = sum(set(Game(planted, seed=seed).chosen().members) == {(2, 3), (0, 1)} for seed in range(100))
    assert exact >= 90


def test_how_much_is_patched_is_known_beforehand() -> None:
    game = Game(additive({(2, 3): 0.08, (0, 1): 0.05}))
    singles = game.singles()
    game.patched = 0
    found = smallest_set(game, singles, HEADS, strongest=6)
    assert len(found.tried) == 6
    assert found.patched == game.patched == (6 - 1) + (6 - 2)
    assert found.limit == pytest.approx(stats.t.ppf(1 - 0.05 / 24, 60 - 2))


def test_candidates_may_run_out() -> None:
    found = Game(additive({(2, 3): 0.05, (0, 1): 0.05})).chosen(strongest=2)
    assert (len(found.members), found.stopped, found.patched) == (2, WhyStopped.NONE_LEFT, 1)


def test_of_one_cluster_nothing_is_chosen() -> None:
    found = Game(additive({(0, 0): 0.1}), units=1).chosen()
    assert (found.members, found.stopped) == ((), WhyStopped.TOO_LITTLE)


def test_joint_singles_and_redundancy_by_hand() -> None:
    game = Game(redundant)
    sets: list[tuple[Head, ...]] = [((1, 1), (2, 2)), ((1, 1),), ((0, 0), (1, 1))]
    joint, singles = game(sets), game.singles()
    bootstrap = draw_bootstrap(joint, resamples=2000, seed=0)
    found = carried_jointly(joint, singles, [[HEADS.index(h) for h in s] for s in sets], bootstrap)
    alone = dict(zip(HEADS, mediated_gaps(singles), strict=True))
    for carried, members, gap in zip(found, sets, mediated_gaps(joint), strict=True):
        summed = sum(alone[h] for h in members)
        assert carried.joint.value == pytest.approx(gap)
        assert carried.sum_of_singles.value == pytest.approx(summed)
        assert carried.redundancy.value == pytest.approx(summed - gap)
        assert carried.share_of_gap.value == pytest.approx(gap / GAP)
    same, one, apart = (carried.redundancy for carried in found)
    assert same.low is not None and same.low > 0
    assert (one.low, one.high) == (0.0, 0.0)  # what is patched alone is its own sum, in every resample
    assert apart.low is not None and apart.high is not None and apart.low < 0 < apart.high


def test_the_interval_of_the_difference_is_that_of_paired_numbers() -> None:
    """Noise that single and joint patches share does not widen it."""
    game = Game(redundant, noise=0.1)
    joint = game([((1, 1), (2, 2))])
    (found,) = carried_jointly(
        joint,
        game.singles(),
        [[HEADS.index((1, 1)), HEADS.index((2, 2))]],
        draw_bootstrap(joint, resamples=2000, seed=0),
    )
    wide, narrow = (e.high - e.low for e in (found.joint, found.redundancy) if e.high is not None and e.low is not None)
    assert narrow < wide / 3


def test_changes_of_class_have_an_interval_though_none_is_seen() -> None:
    game = Game(lambda _heads: 0.0, noise=0.0, counts=True)
    joint = game([((1, 1), (2, 2))])
    (found,) = carried_jointly(joint, game.singles(), [[5, 10]], draw_bootstrap(joint, resamples=500, seed=0))
    assert found.joint.value == 0.0
    assert found.joint.low is not None and found.joint.low < 0


@pytest.mark.property
def test_intervals_of_a_confirmed_set_hold_the_truth() -> None:
    held = {"joint": 0, "redundancy": 0}
    trials = 200
    for seed in range(trials):
        game = Game(redundant, seed=seed)
        joint = game([((1, 1), (2, 2))])
        bootstrap = draw_bootstrap(joint, resamples=500, seed=seed)
        (found,) = carried_jointly(joint, game.singles(), [[5, 10]], bootstrap)
        for name, truth in (("joint", 0.06), ("redundancy", 0.06)):
            estimate = getattr(found, name)
            held[name] += estimate.low <= truth <= estimate.high
    assert all(plausible(hits, trials, 0.92, 0.98) for hits in held.values())


def test_a_set_that_carries_the_gap_stands_out_from_random_ones() -> None:
    game = Game(additive({(2, 3): 0.08, (0, 1): 0.05}))
    singles = game.singles()
    game.patched = 0
    bootstrap = draw_bootstrap(singles, resamples=500, seed=0)
    found = confirm_set(game, [(2, 3), (0, 1)], singles, HEADS, bootstrap, layer_of=lambda h: h[0], random_sets=10)
    assert game.patched == 1 + len(found.random) == 11
    assert found.carried.joint.value == pytest.approx(0.13, abs=0.02)
    assert found.reached == 0
    assert found.p == pytest.approx(1 / 11)
    assert found.beyond_random.low is not None and found.beyond_random.low > 0
    nothing = confirm_set(game, [(1, 0), (1, 1)], singles, HEADS, bootstrap, layer_of=lambda h: h[0])
    assert nothing.beyond_random.low is not None and nothing.beyond_random.low < 0.02
    assert len(nothing.random) == 5  # all other pairs of a layer of four
    turned = Game(additive({(2, 3): 0.08, (0, 1): 0.05}), sign=-1.0)
    singles = turned.singles()
    found = confirm_set(turned, [(2, 3), (0, 1)], singles, HEADS, bootstrap, layer_of=lambda h: h[0])
    assert found.reached == 0
    assert found.beyond_random.high is not None and found.beyond_random.high < 0


@pytest.mark.parametrize("members", [[(0, 1)], [(0, 1), (2, 3)], [(1, 0), (1, 2), (1, 3), (2, 0)]])
def test_random_sets_are_of_equal_size_and_layers_and_all_different(members: list[Head]) -> None:
    found = random_sets_like(members, HEADS, layer_of=lambda h: h[0], number=12, seed=0)
    layers = sorted(layer for layer, _ in members)
    assert all(sorted(layer for layer, _ in s) == layers for s in found)
    assert all(len(set(s)) == len(s) for s in found)
    assert len({frozenset(s) for s in found}) == len(found)
    assert frozenset(members) not in {frozenset(s) for s in found}
    assert len(found) == {1: 3, 2: 12, 4: 12}[len(members)]
    assert found == random_sets_like(members, HEADS, layer_of=lambda h: h[0], number=12, seed=0)


def test_a_set_of_whole_layers_has_no_other_beside_it() -> None:
    members = [h for h in HEADS if h[0] == 1]
    assert random_sets_like(members, HEADS, layer_of=lambda h: h[0], number=20, seed=0) == []
    game = Game(additive({(1, 0): 0.05}))
    singles = game.singles()
    bootstrap = draw_bootstrap(singles, resamples=100, seed=0)
    found = confirm_set(game, members, singles, HEADS, bootstrap, layer_of=lambda h: h[0])
    assert (found.random, found.p, found.beyond_random.value) == ([], 1.0, None)


def test_noising_is_denoising_where_paths_add_up() -> None:
    """p = what the part says + the rest, of recipient, cross-group donor and placebo."""
    rng = np.random.default_rng(0)
    game = Game(lambda _heads: 0.0, noise=0.0)
    like = game([((0, 0),)])
    n = len(like.unpatched)
    part = {who: rng.normal(size=n) for who in ("own", "cross", "placebo")}
    rest = {who: rng.normal(size=n) for who in part}
    p = {who: part[who] + rest[who] for who in part}
    denoised = replace(
        like,
        unpatched=p["own"],
        cross=(part["cross"] + rest["own"])[:, None],
        placebo=(part["placebo"] + rest["own"])[:, None],
    )
    found = noising(
        denoised,
        (p["cross"], p["placebo"]),
        ((part["own"] + rest["cross"])[:, None], (part["own"] + rest["placebo"])[:, None]),
    )
    np.testing.assert_allclose(found.difference, denoised.difference, atol=1e-12)
    np.testing.assert_allclose(mediated_gaps(found), mediated_gaps(denoised))
