"""The benchmark of power: its truths, its plans, its verdicts beside those of an audit, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from audit.evidence.effects import SwapEffects, mediated_gaps
from audit.evidence.effects_store import StoredEffects
from audit.evidence.heads import localise
from audit.evidence.stats import components
from audit.records import Verdict
from benchmarks.power import run
from benchmarks.power.count import SETTINGS, Arm, one_draw
from benchmarks.power.decide import RULES, decide, decide_at_once, judge_halves
from benchmarks.power.effects import GROUPS, MLPS, PARTS, World, draw, heads_alone, people, shares, tree
from benchmarks.power.plans import by_recipient, more_where_answers_move, one_pair, several_pairs
from tests.evidence.simulate import plausible

pytestmark = pytest.mark.unit

SIX = heads_alone()[:, :6]
TWO_TRUE = World(((1, 0.6), (4, 0.45)))


def test_effects_have_the_mediated_gap_and_the_spread_that_they_are_given() -> None:
    half, sets = people(1_500), np.stack([heads_alone()[:, 0], heads_alone()[:, 1], np.ones(PARTS)], axis=1)
    world = World(((0, 0.5), (80, 20.0)))
    effects = draw(world, half, one_pair(half, 0), sets, np.random.default_rng(0))
    truth = world.truth(sets)
    assert truth == pytest.approx([0.5, 0.0, 20.5 / np.sqrt(0.5 * PARTS**2 + 0.5 * PARTS)])
    assert mediated_gaps(effects) == pytest.approx(truth, abs=0.15)
    assert shares(effects)["of_pair"] == pytest.approx(0.1, abs=0.05)


def test_what_is_redundant_shows_less_alone_than_together() -> None:
    both = heads_alone()[:, [0]] + heads_alone()[:, [1]]
    world = World(((0, 1.0), (1, 1.0)), alone=0.25)
    assert world.truth(heads_alone())[:3].tolist() == [0.25, 0.25, 0.0]
    assert world.truth(both).tolist() == pytest.approx([2 / np.sqrt(3)])


def test_the_tree_holds_each_head_once_on_every_level() -> None:
    sets, levels = tree()
    of = np.array(levels)
    assert sets.shape == (PARTS, 106)
    assert {level: int((of == level).sum()) for level in levels} == {
        "head": 72, "layer": 24, "third": 6, "kind": 3, "whole": 1,
    }  # fmt: skip
    for level in levels:
        assert (sets[:MLPS, of == level].sum(axis=1) == 1).all()
    assert sets[:, of == "whole"].all()


@pytest.mark.parametrize("donors", [2, 4])
@pytest.mark.parametrize("images_each", [1, 3])
def test_several_pairs_are_of_one_block_and_never_a_recipients_own(donors: int, images_each: int) -> None:
    half = people(24, images_each)
    rows = several_pairs(half, donors, 5)
    subject, group, label = (half[name] for name in ("subject", "group", "label"))
    assert (rows.groupby("recipient").size() == donors).all()
    assert not rows.duplicated(["recipient", "unit"]).any()
    assert rows["recipient"].nunique() == len(half)
    own = group.loc[rows["recipient"]].to_numpy()
    for kind, same in (("cross", False), ("placebo", True)):
        assert ((group.loc[rows[kind]].to_numpy() == own) == same).all()
        assert (label.loc[rows[kind]].to_numpy() == label.loc[rows["recipient"]].to_numpy()).all()
        assert (subject.loc[rows[kind]].to_numpy() != subject.loc[rows["recipient"]].to_numpy()).all()
    clusters = components(
        subject.loc[rows["recipient"]].to_numpy(dtype=np.int64), rows["unit"].to_numpy(dtype=np.int64)
    )
    assert clusters.max() + 1 == rows["unit"].nunique() // donors


def test_a_pair_of_its_own_for_each_where_there_are_enough() -> None:
    half = people(40)
    assert one_pair(half, 0, 80)["unit"].nunique() < 60
    assert several_pairs(half, 1, 0, 80, shared=False)["unit"].nunique() >= 72


def test_more_pairs_go_where_answers_move() -> None:
    rows = pd.DataFrame({"recipient": np.repeat([7, 8, 9], 4)})
    kept = more_where_answers_move(rows, np.repeat([0.5, 0.9, 0.999], 4), 2)
    assert kept.reshape(3, 4).sum(axis=1).tolist() == [4, 1, 1]
    assert kept.reshape(3, 4)[:, 0].all()


def test_means_by_recipient_keep_the_estimate_and_swap_whole_blocks() -> None:
    half = people(24)
    rows = several_pairs(half, 2, 1)
    effects = draw(TWO_TRUE, half, rows, SIX, np.random.default_rng(2))
    together = by_recipient(effects, rows["recipient"].to_numpy(dtype=np.int64))
    assert len(together.unit) == len(half)
    assert len(np.unique(together.unit)) == len(np.unique(effects.unit)) // 2
    assert mediated_gaps(together) == pytest.approx(mediated_gaps(effects))


def stored(halves: list[tuple[pd.DataFrame, pd.DataFrame, SwapEffects]]) -> StoredEffects:
    """Return effects as an audit stores them; images of the second half come after those of the first."""
    swaps, frames, unpatched = [], [], []
    for half, rows, effects in halves:
        split, apart = ("discovery", 0) if not frames else ("confirmation", 10_000)
        frames.append(half.assign(split=split, subject=split + half["subject"]).set_index(half.index + apart))
        about = rows[["unit", "side", "label"]].assign(recipient=rows["recipient"] + apart, split=split)
        own = about[["recipient"]].assign(**{"p:x": effects.unpatched})
        unpatched.append(own)
        for kind, patched in (("cross", effects.cross), ("placebo", effects.placebo)):
            for k, (layer, head) in enumerate(effects.heads):
                values = {"p:x": patched[:, k], "m:x": patched[:, k], "layer": layer, "head": head, "donor_kind": kind}
                swaps.append(about.assign(**values).reset_index(names="position"))
    swap = pd.concat(swaps, ignore_index=True).assign(seed=0, contrast=str(GROUPS), predicted="x")
    alone = pd.concat(unpatched, ignore_index=True).assign(seed=0, predicted="x")
    return StoredEffects(swap, None, alone.assign(**{"m:x": alone["p:x"]}), pd.concat(frames))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_todays_rule_says_what_an_audit_says(seed: int) -> None:
    half, rng = people(20), np.random.default_rng(seed)
    halves = []
    for number in range(2):
        rows = one_pair(half, number)
        halves.append((half, rows, draw(World(((1, 1.4), (4, 0.9))), half, rows, SIX, rng)))
    told = decide(judge_halves(halves[0][2], halves[1][2], SETTINGS), RULES["today"])
    rows_of_heads, _ = localise(stored(halves), [GROUPS], ["x"], [0], SETTINGS)
    verdicts = [row.verdict for row in rows_of_heads]
    assert [v == Verdict.CONFIRMED for v in verdicts] == told.confirmed.tolist()
    assert [v in (Verdict.CONFIRMED, Verdict.NOT_CONFIRMED) for v in verdicts] == told.found.tolist()
    assert [row.confirmation.low for row in rows_of_heads] == pytest.approx(told.each[0].tolist())


def test_both_roles_do_not_mind_which_half_is_first_but_in_what_is_quoted() -> None:
    rng, half = np.random.default_rng(6), people(20)
    first, second = (draw(World(((1, 1.0),)), half, one_pair(half, k), SIX, rng) for k in range(2))
    ahead, back = (judge_halves(*pair, SETTINGS) for pair in ((first, second), (second, first)))
    rule = RULES["both roles, 5% in all"]
    roles = decide(ahead, rule)
    assert decide(back, rule).confirmed.tolist() == roles.confirmed.tolist()
    assert roles.confirmed[1]
    assert (decide(ahead, RULES["one role, 5% in all"]).each[0] == ahead.each[1][0]).all()


def test_bounds_of_rules() -> None:
    assert {name: round(rule.bound, 10) for name, rule in RULES.items()} == {
        "today": 0.0025,
        "both roles, today's bound": 0.0025,
        "one role, 5% in all": 0.05,
        "both roles, 5% in all": 0.05,
        "all images in one test": 0.05,
    }


@pytest.mark.parametrize("arm", [Arm(33), Arm(62, donors=4, on_average=2)], ids=["one pair", "more where answers move"])
def test_false_heads_are_confirmed_no_more_often_than_a_rule_allows(arm: Arm) -> None:
    world, draws = World(((1, 0.8),)), 60
    told = [one_draw(arm, world, SIX, (3,), number, pooled=True) for number in range(draws)]
    for name, rule in RULES.items():
        wrong = sum(any(k != 1 for k in one[name]["confirmed"]) for one in told)
        assert plausible(wrong, draws, 0.0, rule.bound)
        missed = sum(len(one[name]["missed"]) for one in told)
        assert missed / (6 * draws) < 0.12
    right = {name: sum(1 in one[name]["confirmed"] for one in told) for name in RULES}
    assert right["both roles, 5% in all"] >= right["today"]
    assert right["today"] > 0


def test_too_few_clusters_confirm_nothing() -> None:
    half, rng = people(20), np.random.default_rng(0)
    rows = several_pairs(half, 4, 0)
    halves = judge_halves(*(draw(World(((0, 9.0),)), half, rows, SIX, rng) for _ in range(2)), SETTINGS)
    assert not halves.enough
    assert not any(decide(halves, rule).confirmed.any() for rule in RULES.values() if rule.roles)
    assert not decide_at_once(halves).confirmed.any()


@pytest.mark.long
def test_a_small_run_fills_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "AT_ONCE", {True: 2, False: 2})
    out = tmp_path / "results.json"
    asked = ["--parts", "1", "--seed", "1", "--work", str(tmp_path), "--json", str(out)]
    result = CliRunner().invoke(run.main, asked, catch_exceptions=False)
    assert result.exit_code == 0
    text = run.tables(json.loads(out.read_text(encoding="utf-8")))
    assert text.count(f"| {run.TODAY} |") == len(run.DONORS)
    assert text.count(": tree, all recipients |") == len(run.OF_PARTS)
    assert "nan" not in text


def test_the_published_page_has_the_figures_of_its_results() -> None:
    page = (run.HERE / "README.md").read_text(encoding="utf-8")
    results = json.loads((run.HERE / "results.json").read_text(encoding="utf-8"))
    assert run.tables(results) in page
