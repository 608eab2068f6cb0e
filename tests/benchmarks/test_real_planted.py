"""The benchmark's own arithmetic on a tiny random model and made-up images; photographs and weights are not needed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from audit.models.transforms import as_input
from audit.patching.parts import parse_part
from audit.patching.sites import Site
from benchmarks.planted.rivals import TOOL
from benchmarks.real_planted import ledgers, measure, models, nulls, photographs, rivals, run, summary, truth
from benchmarks.real_planted.audit_heads import AUDITED, answer, judge, make_plans, sweep_plans
from tests.benchmarks.noise import photographs_of_noise, whole

pytestmark = pytest.mark.unit

SIZE = measure.Size(
    passes=1, side=32, blocks=2, train=200, audit=160, truth=200, steps=models.Steps(20, 20, 5), recipients=60,
    permutations=200, bootstrap=200, trained=60, carried=30, at_points=20, strata=72, at_once=6, null_audits=2,
    null_draws=1,
)  # fmt: skip


@cache
def bench() -> measure.Bench:
    pixels, frame = photographs_of_noise(SIZE.splits)
    with TemporaryDirectory() as folder:
        return measure.prepare(photographs.make_world(whole(), pixels, frame, SIZE.blocks), SIZE, 1, Path(folder))


def test_splits_are_apart_and_alike() -> None:
    _, frame = photographs_of_noise(SIZE.splits)
    assert frame["split"].value_counts().to_dict() == SIZE.splits
    assert frame["subject"].is_unique
    shares = pd.crosstab(frame["split"], [frame["label"], frame[photographs.ATTRIBUTE]], normalize="index")
    assert (shares.max() - shares.min() < 0.02).all()


@torch.inference_mode()
def test_the_tail_answers_as_the_whole_model() -> None:
    pixels, frame = photographs_of_noise(SIZE.splits)
    model = whole()
    world = photographs.make_world(model, pixels, frame, SIZE.blocks)
    expected = model(as_input(model, pixels[:8]))
    found = world.base(as_input(world.base, world.features[np.arange(8)]))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)  # features are rounded to float16
    assert [name for name in world.base.state_dict() if name.startswith("blocks.0.")]


def test_planting_trains_the_values_and_outputs_of_the_head_alone() -> None:
    shared = bench()
    model = models.make_base(shared.world, models.Steps(10, 0, 0), 0)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    models.plant(model, shared.world, [parse_part("L1H2")], 4.0, steps=20, seed=0)
    changed = {name: (t != before[name]) for name, t in model.state_dict().items() if (t != before[name]).any()}
    assert set(changed) == {f"blocks.1.attn.{name}" for name in ("qkv.weight", "qkv.bias", "proj.weight")}
    own, values = slice(16, 24), slice(2 * 24 + 16, 2 * 24 + 24)
    for name, where in {"qkv.weight": (values,), "qkv.bias": (values,), "proj.weight": (slice(None), own)}.items():
        difference = changed[f"blocks.1.attn.{name}"].clone()
        difference[where] = False
        assert not difference.any()


def test_the_sample_goes_with_the_group_as_the_dose_says() -> None:
    shared, rng = bench(), np.random.default_rng(0)
    for dose in (0.0, 2.0):
        drawn = shared.world.frame.loc[models.draw_rows(shared.world, dose, 4000, rng)]
        assert set(drawn["split"]) == {"train"}
        of = (
            drawn.assign(outcome=drawn["label"] == photographs.OUTCOME).groupby(photographs.ATTRIBUTE)["outcome"].mean()
        )
        odds = np.log(of / (1 - of))
        assert odds["male"] - odds["female"] == pytest.approx(dose, abs=0.3)


def test_every_kind_comes_first_once_and_heads_take_turns() -> None:
    made = models.plans(passes=run.FULL.passes, seed=11, layers=3, heads=6)
    assert len({p.name for p in made}) == len({p.seed for p in made}) == len(made)
    first = made[: len(made) // run.FULL.passes]
    kinds = {(p.kind, p.dose) for p in made}
    assert {(p.kind, p.dose) for p in first} == kinds
    assert len({p.parts for p in made[: 3 * len(first)] if p.kind == "one head"}) == 12
    assert len({p.parts[0][:2] for p in made if p.kind == "one head"}) == 3
    assert run.FULL.passes * 2 * run.FULL.null_audits >= 100
    assert not {p.seed for p in made} & {p.seed for p in models.plans(passes=9, seed=1, layers=3, heads=6)}


def test_an_audit_from_the_bank_is_the_audit_that_patches() -> None:
    shared = bench()
    world, frame = shared.world, shared.frame
    bank = nulls.fill_bank(shared.base, world, images=72, at_once=6, seed=0)
    strata = pd.Series(bank.stratum, index=bank.rows)
    banked = nulls.permuted(frame, 3).loc[np.sort(bank.rows)]
    banked = banked.assign(**{nulls.STRATUM: strata.loc[banked.index].astype(str)})
    plans = make_plans(banked, recipients=None, seed=3, nuisance=(nulls.STRATUM,))
    keys = ["split", "position", "donor_kind", "layer", "head"]
    patched = sweep_plans(shared.base, world, plans).sort_values(keys, ignore_index=True)
    read = pd.concat([nulls.read_bank(bank, plan) for plan in plans.values()]).sort_values(keys, ignore_index=True)
    assert len(read) > 500
    pd.testing.assert_frame_equal(read[patched.columns], patched, check_dtype=False, atol=1e-5)


def test_groups_are_permuted_within_split_and_label() -> None:
    frame = bench().frame
    found = nulls.permuted(frame, 5)
    cells = ["split", "label", photographs.ATTRIBUTE]
    pd.testing.assert_series_equal(found.groupby(cells).size(), frame.groupby(cells).size())
    assert (found[photographs.ATTRIBUTE] != frame[photographs.ATTRIBUTE]).mean() > 0.3


def test_swapping_donor_pairs_turns_the_sign_of_their_contributions() -> None:
    table = pd.DataFrame({"unit": [0, 0, 1, 1], "donor_kind": ["cross", "placebo"] * 2, "p": [1.0, 2.0, 3.0, 4.0]})
    found = nulls.swapped(table, 1)
    turned = found["donor_kind"] != table["donor_kind"]
    assert turned.groupby(table["unit"]).nunique().eq(1).all()
    assert set(found["p"]) == set(table["p"])


def test_the_standardised_gap_by_hand() -> None:
    values = np.array([1.0, 3.0, 0.0, 1.0, 5.0, 7.0, 2.0, 2.0])
    is_group, is_outcome = np.array([1, 1, 0, 0, 1, 1, 0, 0], bool), np.array([0, 0, 0, 0, 1, 1, 1, 1], bool)
    found = truth.standardised_gap(values, is_group, is_outcome, {"under 40": 0.75, "over 40": 0.25})
    assert found.value == pytest.approx(0.75 * (2.0 - 0.5) + 0.25 * (6.0 - 2.0))
    assert found.error == pytest.approx(np.sqrt(0.75**2 * (2.0 / 2 + 0.5 / 2) + 0.25**2 * (2.0 / 2)))


def test_the_truth_is_what_the_audit_of_many_photographs_comes_to() -> None:
    shared = bench()
    model = models.make_base(shared.world, models.Steps(30, 0, 0), 4)
    frame = shared.world.frame.assign(split=np.where(shared.world.frame["split"] == "truth", AUDITED[0], AUDITED[1]))
    plans = make_plans(frame, recipients=None, seed=0)
    known = truth.measure(model, shared.world, [parse_part("L1H0")], {"under 40": 0.5, "over 40": 0.5}, seed=0)
    one = plans[AUDITED[0]]
    patched = sweep_plans(model, shared.world, {one.split: one}).query("layer == 1 and head == 0")
    wide = patched.pivot(index="position", columns="donor_kind", values=f"p:{photographs.OUTCOME}")
    difference = (wide["cross"] - wide["placebo"]).to_numpy()
    is_group, is_outcome = one.rows["side"] == "group", one.rows["label"] == photographs.OUTCOME
    by_hand = truth.standardised_gap(
        difference, is_group.to_numpy(), is_outcome.to_numpy(), {"under 40": 0.5, "over 40": 0.5}
    )
    found = known.mediated["L1H0"]
    assert found.error > 0
    assert abs(found.value + by_hand.value / 2) < 4 * np.hypot(found.error, by_hand.error / 2)


def test_integrated_gradients_from_an_image_to_itself_are_nothing() -> None:
    shared = bench()
    rows = make_plans(shared.frame, recipients=20, seed=0)["confirmation"].rows
    same = rows.assign(cross=rows["recipient"], placebo=rows["recipient"])
    found = rivals.rank_by_integrated_gradients(shared.base, shared.world, same)
    assert set(found) == {(layer, head) for layer in range(2) for head in range(3)}
    assert max(found.values()) == 0.0


def test_one_model_of_a_kind_and_its_figures() -> None:
    shared = bench()
    (plan,) = [p for p in models.plans(passes=1, seed=1, layers=2, heads=3) if p.kind == "one head" and p.dose == 6]
    (null, *_) = [p for p in models.plans(passes=1, seed=1, layers=2, heads=3) if p.kind == "permuted groups"]
    rows = [measure.measure(shared, p) for p in (plan, null)]
    assert rows[0]["planted"] == list(plan.parts)
    assert len(rows[0]["covered"]) == 2
    assert rows[0]["closure"]["written, image by image"] < 1e-4
    assert rows[0]["closure"]["trained, in rates"] < 1e-9
    assert len(rows[1]["audits"]) == SIZE.null_audits
    results = summary.summarise(rows)
    assert results["false_positive_rate"]["n"] == SIZE.null_audits
    assert results["coverage"]["n"] == 2
    assert {"written", "trained", "carried"} <= set(results)
    assert "planted head first" in summary.table(results)


def planted_row(**changes: Any) -> dict[str, Any]:
    part = {"value": 0.3, "low": 0.1, "high": 0.5}
    return {
        "kind": "one head", "dose": 4.0, "planted": ["L1H0"], "detected": True, "named": ["L1H0", "L2H1"],
        "true_gap": {"value": 0.2, "error": 0.01}, "gap_covered": True, "covered": [True, False],
        "true_mediated": {"L1H0": {"value": 0.1, "error": 0.01}, "L2H1": {"value": 0.01, "error": 0.01}},
        "closure": {"written, nats": 1e-6},
        "written": {"rows": {"L1H0": part, "L2 MLP": {**part, "value": -0.4}}, "covered": [True]},
        "trained": {"paths": {"L1 attention": -0.2, "L1 MLP": 0.1}, "orders": {"L1": 0.2, "L2": 0.1},
                    "heads": {"L1H0": 0.1, "L1H1": 0.0}, "covered": [True, None], "covered_log_odds": [False]},
        "carried": {"rows": {"L1 attention": part, "L2 MLP": {**part, "value": 0.2}}, "covered": [True]},
        "by_chance": {"written": [[False, True]], "trained": [[False]], "carried": [[False, False]]},
        "scores": {TOOL: {"L1H0": 0.3, "L2H1": 0.1}, "random": {"L1H0": 0.1, "L2H1": 0.2}},
    } | changes  # fmt: skip


def test_figures_by_hand() -> None:
    quiet: dict[str, Any] = {"enough": True, "detected": False, "named": [], "confirmed": []}
    audits = [{**quiet, "detected": True, "named": ["L0H0"], "confirmed": ["L0H0"], "discovered": ["L0H0"]}]
    audits += [{**quiet, "discovered": ["L0H0"]}] * 3 + [{**quiet, "enough": False, "discovered": []}]
    mlp = planted_row(kind="one MLP", planted=["L1 MLP"], named=["L2H1"])
    rows = [
        planted_row(),
        planted_row(detected=False, covered=[True, True]),
        mlp,
        {"kind": "permuted groups", "audits": audits},
    ]
    found = summary.summarise(rows)
    assert found["false_positive_rate"]["estimate"] == pytest.approx(1 / 5)
    assert found["false_positive_rate_where_a_gap_is_detected_by_chance"]["estimate"] == 1.0
    assert found["false_positive_rate_without_a_gap_gate"]["confirmed"]["estimate"] == 0.25
    assert found["false_positive_rate_without_a_gap_gate"]["discovered"]["estimate"] == pytest.approx(4 / 5)
    assert found["hit_at_1"] == {"estimate": 1.0, "low": pytest.approx(0.025), "high": 1.0, "n": 1}
    assert found["coverage"]["estimate"] == pytest.approx(4 / 6)
    assert found["planted_mlps"]["a_head_is_named"]["estimate"] == 1.0
    assert found["planted_mlps"]["named_heads_that_carry_something"]["estimate"] == 0.0
    assert found["written"]["hit_at_1"]["estimate"] == 0.0  # the MLP's row is larger
    assert found["trained"]["hit_at_1_by_kind"]["one head"]["estimate"] == 1.0
    assert found["trained"]["hit_at_1_by_kind"]["one MLP"]["estimate"] == 0.0
    assert found["trained"]["coverage"] == pytest.approx(found["trained"]["coverage"] | {"estimate": 1.0, "n": 3})
    assert found["carried"]["hit_at_1_by_kind"]["one head"]["estimate"] == 1.0
    assert found["written"]["false_positive_rate"]["estimate"] == 0.5
    assert found["rivals"]["random"]["hit_at_1"]["estimate"] == 0.0
    assert found["ledger_closure_max_abs"] == {"written, nats": 1e-6}


def test_the_bank_holds_every_pair_of_a_stratum_and_no_other() -> None:
    shared = bench()
    bank = nulls.fill_bank(shared.base, shared.world, images=12, at_once=3, seed=0)
    assert len(bank.rows) == 2 * 12
    held = bank.place >= 0
    assert (held == ((bank.stratum[:, None] == bank.stratum) & ~np.eye(24, dtype=bool))).all()
    assert len(bank.answers["predicted"]) == held.sum() * 6
    assert [Site(*site) for site in bank.sites] == [Site(layer, head) for layer in range(2) for head in range(3)]


def test_ledgers_name_their_parts_as_plans_do() -> None:
    assert [summary.part_of(name) for name in ("L1H2", "L2 MLP")] == ["L1 attention", "L2 MLP"]
    assert summary.layer_of("L2 MLP") == "L2"
    assert [str(part) for part in ledgers.parts_carried(bench().base)] == [
        "L0 attention", "L0 MLP", "L1 attention", "L1 MLP",
    ]  # fmt: skip


def test_judging_is_the_tools_own() -> None:
    shared = bench()
    answers = answer(shared.base, shared.world)
    plans = make_plans(shared.frame, recipients=40, seed=0)
    found = judge(shared.frame, answers, sweep_plans(shared.base, shared.world, plans), shared.settings(0))
    assert {row.name for row in found.rows} == {f"L{layer}H{head}" for layer in range(2) for head in range(3)}
    assert set(found.named) <= set(found.confirmed) <= set(found.discovered)
