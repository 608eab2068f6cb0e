"""The benchmark's own arithmetic, on answers known by hand; the models themselves are made by ``--quick``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from scipy import stats

from audit.card.schema import Card
from audit.data.pixels import centred_square, load_pixels
from audit.data.synthetic import SyntheticSource
from audit.data.synthetic.sampling import sample_faces
from audit.models.preprocessing import preprocessing_of
from audit.store import write_text
from benchmarks.planted import measure, models, rivals, run, summary, truth
from tests.models_for_tests import enlarged, noise_pixels

pytestmark = pytest.mark.unit


def tiny_base() -> models.VisionTransformer:
    spec = models.SPEC.model_copy(update={"weights": "none"})
    return enlarged(models.Backbone(spec, None).build(2), 0).eval()


def stream_of(model: models.VisionTransformer, n: int = 4, seed: int = 0) -> torch.Tensor:
    pixels = [noise_pixels(n, seed=seed, size=64)]
    found = models.make_views(model, pixels, models.SPEC.train_blocks, dtype=torch.float32).data[0]
    assert isinstance(found, torch.Tensor)
    return found


def test_the_published_run_is_large_enough_and_its_models_differ() -> None:
    made = models.plans(per_dose=8, per_null=25, seed=7)
    assert sum(not p.is_null for p in made) >= 60
    assert sum(p.is_null for p in made) >= 100
    assert len({p.name for p in made}) == len({p.seed for p in made}) == len(made)
    assert {len(p.heads) for p in made if p.kind == "redundant heads"} == {2}
    for plan in made:
        assert (plan.decoy is not None) == (plan.kind in (*models.PLANTED, "unused"))
        assert plan.decoy not in plan.heads
    assert {p.dose for p in made if not p.is_null} == set(models.DOSES)
    assert not {p.seed for p in made} & {p.seed for p in models.plans(per_dose=8, per_null=25, seed=8)}
    assert made == models.plans(per_dose=8, per_null=25, seed=7)


def test_an_audit_shows_a_model_the_pixels_that_it_was_made_on() -> None:
    (plan, *_) = models.plans(per_dose=1, per_null=1, seed=1)
    spec = Card.model_validate(measure.card_of(plan, Path("weights"), run.QUICK, "all")).model
    faces = sample_faces(6, 0, association=0.5, attribute="skin_tone", split="train")
    source, keys = SyntheticSource(faces), faces["image"].tolist()
    audited = load_pixels(source, keys, preprocessing_of(spec, tiny_base()).geometry)
    np.testing.assert_array_equal(audited, load_pixels(source, keys, centred_square(64)))


@torch.inference_mode()
def test_the_tail_is_the_model() -> None:
    model = tiny_base()
    pixels = noise_pixels(4, size=64)
    logits, written = models.run_tail(model, stream_of(model))
    torch.testing.assert_close(logits, model(models_input(model, pixels)), atol=1e-4, rtol=1e-4)
    assert [tuple(z.shape) for z in written] == [(4, models.HEADS, n, 32) for n in (17, 17, 1)]


def models_input(model: models.VisionTransformer, pixels: np.ndarray) -> torch.Tensor:
    return rivals.as_input(model, pixels)


@torch.inference_mode()
def test_a_head_that_takes_its_own_output_changes_nothing_and_another_ones_is_a_patch() -> None:
    model = tiny_base()
    own, other = stream_of(model), stream_of(model, seed=1)
    logits, written = models.run_tail(model, own)
    everything = torch.ones(4, len(models.LAYERS), models.HEADS, dtype=torch.bool)
    torch.testing.assert_close(models.run_tail(model, own, written, everything)[0], logits, atol=1e-4, rtol=1e-4)
    given = models.run_tail(model, other)[1]
    one = torch.zeros_like(everything)
    one[:, 1, 2] = True
    patched = models.run_tail(model, own, given, one)[0]
    own_pixels, other_pixels = noise_pixels(4, size=64), noise_pixels(4, seed=1, size=64)
    layer = models.LAYERS[1]
    trace, donor = (rivals.record_all(model, p) for p in (own_pixels, other_pixels))
    change = rivals.head_outputs(model, layer, donor.head_activations[layer] - trace.head_activations[layer])[2]
    torch.testing.assert_close(
        patched, rivals.add_to_stream(model, trace, layer, change[None])[0], atol=1e-4, rtol=1e-4
    )


def test_donors_agree_in_label_and_hair_and_differ_in_group_where_they_should() -> None:
    rng = np.random.default_rng(0)
    columns = [rng.random(400) < 0.5 for _ in range(3)]
    crowd = truth.Crowd(torch.zeros(400, 1, 1), *columns)
    for other in (True, False):
        donors = truth.draw_donors(crowd, rng, other=other)
        assert (crowd.smiling[donors] == crowd.smiling).all()
        assert (crowd.long_hair[donors] == crowd.long_hair).all()
        assert ((crowd.darker[donors] != crowd.darker) == other).all()
        assert (donors != np.arange(400)).all()


@pytest.mark.parametrize("metric", ["standardised_gap", "fpr_gap", "tpr_gap"])
def test_truth_is_that_of_plain_swaps_in_the_metric_that_was_localised(metric: str) -> None:
    labels = truth.LABELS_OF[metric]
    model, n, rng = tiny_base(), 64, np.random.default_rng(0)
    columns = [np.arange(n) < n // 2, *(np.arange(n) // k % 2 == 0 for k in (2, 4))]
    crowd = truth.Crowd(stream_of(model, n).half(), *columns)
    heads = [(1, 2), (2, 0), (3, 1)]
    found = truth.measure(model, crowd, heads, labels=labels, seed=3)
    rng = np.random.default_rng(3)
    stream = crowd.stream.float()
    with torch.inference_mode():
        logits, written = models.run_tail(model, stream)
        change = {head: np.zeros(n) for head in heads}
        for sign in (1, -1):
            donors = torch.from_numpy(truth.draw_donors(crowd, rng, other=sign > 0))
            for layer, head in heads:
                taken = torch.zeros(n, len(models.LAYERS), models.HEADS, dtype=torch.bool)
                taken[:, layer - models.LAYERS.start, head] = True
                patched = models.run_tail(model, stream, [z[donors] for z in written], taken)[0]
                change[(layer, head)] += sign * patched.double().softmax(-1)[:, 1].numpy()
    gap = truth.standardised_gap(logits.double().softmax(-1)[:, 1].numpy(), crowd.darker, crowd.smiling)
    assert found.mean == pytest.approx(gap, abs=1e-3)
    for head in heads:
        of_label = [
            change[head][crowd.darker & (crowd.smiling == y)].mean()
            - change[head][~crowd.darker & (crowd.smiling == y)].mean()
            for y in labels
        ]
        by_hand = -np.mean(of_label) / 2
        assert found.mediated[head] == pytest.approx(by_hand, abs=1e-3)
        assert abs(by_hand) > 0
        assert 0 < found.error[head] < 0.5


def test_the_crowd_holds_every_face_in_both_tones() -> None:
    crowd = truth.make_crowd(tiny_base(), 16, seed=1)
    assert len(crowd.stream) == 16
    assert (crowd.darker[:8] != crowd.darker[8:]).all()
    assert (crowd.smiling[:8] == crowd.smiling[8:]).all()
    assert (crowd.long_hair[:8] == crowd.long_hair[8:]).all()
    assert (crowd.stream[:8] != crowd.stream[8:]).flatten(1).any(1).all()


def test_the_error_of_the_truth_is_that_of_a_paired_difference() -> None:
    rng = np.random.default_rng(0)
    face, extra = rng.normal(0, 1, 100), rng.normal(0.3, 0.1, 100)
    label = np.arange(200) % 2 == 0
    side = np.append(np.arange(100) < 60, np.arange(100) >= 60)
    values = np.tile(face, 2)
    values[side] += extra
    by_label = [extra[label[:100] == y].mean() for y in (False, True)]
    assert truth.standardised_gap(values, side, label) == pytest.approx(np.mean(by_label))
    error = np.sqrt(sum(extra[label[:100] == y].var(ddof=1) / 50 for y in (False, True))) / 2
    assert truth.standard_error(values, side, label) == pytest.approx(error)


def test_ranking_by_hand() -> None:
    scores = {"a": 0.1, "b": 0.9, "c": 0.5, "d": 0.3}
    assert summary.ranking(scores, ["b"]) == {"auroc": 1.0, "hit_at_1": 1.0, "hit_at_3": 1.0, "mrr": 1.0}
    found = summary.ranking(scores, ["d"])
    assert found == {"auroc": pytest.approx(1 / 3), "hit_at_1": 0.0, "hit_at_3": 1.0, "mrr": pytest.approx(1 / 3)}
    assert summary.ranking(scores, ["b", "c"])["auroc"] == 1.0
    assert summary.ranking(dict.fromkeys("abcd", 0.5), ["a"]) == {
        "auroc": 0.5, "hit_at_1": 0.0, "hit_at_3": 0.0, "mrr": 0.25,
    }  # fmt: skip


def row(**changes: Any) -> dict[str, Any]:
    good, bad = {"L1H0": 0.9, "L1H1": 0.1, "L2H0": 0.2}, {"L1H0": 0.1, "L1H1": 0.9, "L2H0": 0.2}
    return {
        "kind": "one head", "dose": 2.0, "null": False, "planted": ["L1H0"], "decoy": "L1H1", "localised": ["L1H0"],
        "outcome": "DISPARITY FOUND", "confirmed": ["L1H0"], "discovered": ["L1H0"], "beyond_sum": None,
        "disparity": True, "gap_within_margin": False,
        "scores": {summary.TOOL: good, "random": bad, summary.PROBE: bad},
        "named": {summary.TOOL: ["L1H0"], summary.PROBE: ["L1H0", "L1H1"]}, "covered": [True, False],
        "gap_covered": True, "true_gap": 0.2, "patching_seconds": 12.0, "sampled": sampled(["L1H0"]),
    } | changes  # fmt: skip


def sampled(localised: list[str], **changes: Any) -> dict[str, Any]:
    return {
        "localised": localised, "confirmed": localised, "patching_seconds": 2.0, "patches": 20, "patches_in_all": 100,
        "covered": [True], "half_widths": {"L1H0": 1.0},
    } | changes  # fmt: skip


def test_a_sample_of_the_patches_is_compared_with_all() -> None:
    nothing = sampled([], patches=0, patches_in_all=0, covered=[], half_widths={}, patching_seconds=1.0)
    quiet = {"null": True, "planted": [], "localised": [], "dose": 0.0, "kind": "unused", "decoy": None}
    rows = [
        row(),
        row(
            localised=["L1H0", "L1H1"],
            sampled=sampled(["L1H0", "L2H0", "L2H1"], half_widths={"L1H0": 0.8, "L1H1": 1.1}),
        ),
        row(sampled=sampled([])),
        row(**quiet, sampled=nothing),
        row(**quiet, sampled=sampled(["L1H1"], covered=[False])),
    ]
    found = summary.summarise(rows)["sampled"]
    assert found["times_cheaper"] == pytest.approx(60 / 9)
    assert found["times_cheaper_planted"] == pytest.approx(6.0)
    assert found["times_fewer_patches_where_a_gap_is"] == pytest.approx(5.0)
    estimates = {k: found[k]["estimate"] for k in found if isinstance(found[k], dict) and "estimate" in found[k]}
    assert estimates == pytest.approx(
        {
            "same_heads_named": 2 / 5, "same_heads_named_planted": 1 / 3, "same_answer": 3 / 5,
            "planted_heads_kept": 2 / 3,
            "false_positive_rate": 0.5, "coverage": 3 / 4, "heads_lost": 0.5, "heads_gained": 1.0,
        }
    )  # fmt: skip
    assert found["half_width"] == {"median": 1.0, "largest": 1.1}


def beyond(low: float, high: float) -> dict[str, Any]:
    return {"together": {"value": -0.2}, "beyond": {"low": low, "high": high}}


def test_figures_by_hand() -> None:
    quiet = {
        "null": True,
        "planted": [],
        "localised": [],
        "confirmed": [],
        "discovered": ["L1H1"],
        "disparity": False,
        "dose": 0.0,
        "covered": [True],
        "named": {summary.TOOL: [], summary.PROBE: ["L1H1"]},
        "true_gap": -0.01,
        "decoy": None,
    }
    rows = [
        row(),
        row(dose=4.0, localised=["L1H0", "L2H0"]),
        row(dose=0.5, localised=[]),
        row(kind="redundant heads", planted=["L1H0", "L2H0"], localised=["L1H0"], beyond_sum=beyond(-0.2, -0.1)),
        row(kind="redundant heads", planted=["L1H0", "L2H0"], localised=[], beyond_sum=beyond(-0.2, 0.1)),
        row(kind="redundant heads", planted=["L1H0", "L2H0"], localised=[], dose=4.0),
        row(kind="unused", **(quiet | {"decoy": "L1H1"})),
        row(
            kind="balanced",
            **{**quiet, "localised": ["L1H1"], "confirmed": ["L1H1"], "disparity": True, "gap_covered": None},
        ),
        {"name": "unused-01", "kind": "unused", "null": True, "outcome": "INVALID", "planted": [], "dose": 0.0},
    ]
    found = summary.summarise(rows)
    assert found["models"] == {"planted": 6, "null": 2, "invalid": 1}
    ungated = found["false_positive_rate_without_a_gap_gate"]
    assert [ungated[k]["unused"]["estimate"] for k in ("confirmed", "discovered")] == [0.0, 1.0]
    assert (found["false_positive_rate"]["estimate"], found["false_positive_rate"]["n"]) == (0.5, 2)
    assert found["false_positive_rate_by_kind"]["unused"]["estimate"] == 0.0
    assert {d: f["estimate"] for d, f in found["power"].items()} == {"0.5": 0.0, "2.0": 1.0, "4.0": 1.0}
    power = found["power_redundant_heads"]
    assert [power[k]["2.0"]["estimate"] for k in ("any", "both", "shown to make up for each other")] == [0.5, 0.0, 0.5]
    assert power["shown to make up for each other"]["4.0"]["estimate"] == 0.0  # its heads were not tried together
    assert (found["decoy_named"]["estimate"], found["decoy_named"]["n"]) == (0.0, 7)
    assert found["largest_true_gap_of_null_models"] == {"balanced": 0.01, "unused": 0.01}
    probe = found["tests"][summary.PROBE]
    assert {kind: f["estimate"] for kind, f in probe["null_models"].items()} == {"balanced": 1.0, "unused": 1.0}
    assert (probe["null_models_with_a_gap"]["estimate"], probe["null_models_with_a_gap"]["n"]) == (0.5, 2)
    assert probe["planted_head_named"]["estimate"] == 1.0
    assert probe["other_heads_named"]["estimate"] == 1.0
    own = found["tests"][summary.TOOL]  # its confirmed heads, gap or no gap
    assert {kind: f["estimate"] for kind, f in own["null_models"].items()} == {"balanced": 1.0, "unused": 0.0}
    assert own["null_models_with_a_gap"]["estimate"] == 0.5
    assert found["rivals"]["random"]["decoy_first"]["estimate"] == 1.0
    assert found["auroc_by_method_and_dose"][summary.TOOL]["2.0"]["estimate"] == 1.0
    assert found["hit_at_1"] == summary.share([True, True])
    assert found["auroc"]["estimate"] == 1.0
    assert found["rivals"]["random"]["auroc"]["estimate"] < 1.0
    assert found["rivals"]["random"]["auroc_tool_minus_rival"]["estimate"] > 0.5
    assert found["coverage"]["estimate"] == pytest.approx(8 / 14)
    assert found["coverage_of_gaps"]["n"] == 7
    assert found["other_heads_named"]["estimate"] == pytest.approx(1 / 6)
    assert found["decodable_but_unused"]["best_probe_accuracy"]["estimate"] == 0.9
    assert found["decodable_but_unused"]["probe_fires"]["estimate"] == 1.0
    assert found["decodable_but_unused"]["tool_shows_the_gap_to_be_small"]["estimate"] == 0.0
    assert "| AUROC over heads | 1.000 |" in summary.table(found)
    for key in ("false_positive_rate", "auroc", "hit_at_1", "coverage"):
        assert set(found[key]) == {"estimate", "low", "high", "n"}
    for figures in (found["power"], *found["rivals"].values()):
        assert all(set(f) == {"estimate", "low", "high", "n"} for f in figures.values())


def test_no_model_of_a_kind_has_no_figure() -> None:
    assert summary.share([]) == summary.mean([]) == {"estimate": None, "low": None, "high": None, "n": 0}
    only = summary.summarise([row(kind="unused", null=True, planted=[], localised=[], disparity=False)])
    assert only["auroc"]["n"] == 0
    assert "| MRR | none | | 0 |" in summary.table(only)


def test_rivals_see_a_group_that_is_plainly_there() -> None:
    """Half of the images are all black, half all white: every head writes differently, and a probe tells them apart."""
    model = tiny_base()
    pixels = noise_pixels(40, size=64) // 8
    is_group = np.arange(40) % 2 == 0
    pixels[is_group] += 200
    smiling = np.arange(40) % 4 < 2
    found = rivals.rank_rivals(model, pixels, is_group, smiling, seed=0)
    assert set(found) == {"random", "write difference", "attention weight", "linear probe", "ablation"}
    for ranking in found.values():
        assert set(ranking.scores) == set(rivals.EVERY)
    assert min(found["linear probe"].scores.values()) > 0.9
    assert found["linear probe"].named == rivals.EVERY
    assert min(found["write difference"].scores.values()) > 0
    same = rivals.rank_rivals(model, pixels, np.random.default_rng(0).permutation(is_group), smiling, seed=0)
    assert np.mean(list(same["linear probe"].scores.values())) < 0.75
    assert found["random"] == same["random"]
    assert {m for m, ranking in found.items() if ranking.named is None} == {
        "random",
        "write difference",
        "attention weight",
    }


def test_a_test_that_takes_faces_as_independent_by_hand() -> None:
    is_group, smiling = np.arange(80) % 2 == 0, np.arange(80) % 4 < 2
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, 80)
    assert rivals.contrast_p(noise + 0.5 * is_group, is_group, smiling) < 1e-6
    assert rivals.contrast_p(np.zeros(80), is_group, smiling) == 1.0
    one_label = np.zeros(80, dtype=bool)
    apart = [noise[is_group == side] for side in (True, False)]
    error = np.sqrt(sum(x.var() / len(x) for x in apart))
    expected = 2 * stats.norm.sf(abs(apart[0].mean() - apart[1].mean()) / error)
    assert rivals.contrast_p(noise, is_group, one_label) == pytest.approx(expected)


def test_attribution_as_the_audit_stores_it() -> None:
    """One head's estimates differ between donors, for recipients of both groups, in opposite ways."""
    rng, rows = np.random.default_rng(0), []
    for position in range(80):
        side, label = ("group", "reference")[position % 2], ("smiling", "neutral")[position // 2 % 2]
        for layer, head in rivals.EVERY:
            effect = (0.1 if side == "reference" else -0.1) * ((layer, head) == (2, 1))
            for kind, lift in (("cross", effect), ("placebo", 0.0)):
                value = lift + rng.normal(0, 0.01)
                about = {"position": position, "side": side, "label": label, "donor_kind": kind}
                rows.append({**about, "layer": layer, "head": head, "own:smiling": value})
    found = rivals.rank_by_attribution(pd.DataFrame(rows).sample(frac=1, random_state=0))
    assert found.named is not None
    assert (2, 1) in found.named
    assert max(found.scores, key=lambda h: found.scores[h]) == (2, 1)
    assert found.scores[(2, 1)] == pytest.approx(0.1, abs=0.01)


def test_truth_of_a_head_that_carries_all_is_the_gap_itself() -> None:
    """Where a donor's head decides the whole answer, the mediated gap is the gap, sign and all."""
    model, n, head = tiny_base(), 64, (1, 0)
    columns = [np.arange(n) < n // 2, *(np.arange(n) // k % 2 == 0 for k in (2, 4))]
    darker, stream = torch.from_numpy(columns[0]), stream_of(model, n).clone()
    tone = 10 * stream.std() * torch.randn(stream.shape[2], generator=torch.Generator().manual_seed(0))
    stream[:, 1:] += torch.where(darker, 1, -1)[:, None, None] * tone
    stream[:, 0] = 0  # the class token is what is written into it
    with torch.no_grad():
        for layer in models.LAYERS:
            attn, mlp = model.blocks[layer].attn, model.blocks[layer].mlp
            attn.proj.weight[:, attn.head_dim if layer == head[0] else 0 :] = 0
            for part in (mlp.fc2.weight, mlp.fc2.bias, attn.proj.bias):
                part.zero_()
        apart = models.run_tail(model, stream)[0].diff(dim=1)[:, 0]
        slope = 2 / (apart[darker].mean() - apart[~darker].mean())
        model.head.weight *= slope
        model.head.bias *= slope
        model.head.bias[1] -= slope * apart.mean()
    found = truth.measure(model, truth.Crowd(stream.half(), *columns), [head, (2, 1)])
    assert found.mean > 0.1
    assert found.mediated[head] == pytest.approx(found.mean, abs=3 * found.error[head])
    assert found.mediated[(2, 1)] == pytest.approx(0, abs=1e-6)  # it writes nothing


def test_an_interval_is_widened_by_what_is_not_known_of_the_truth() -> None:
    interval = {"value": 0.10, "low": 0.06, "high": 0.13}
    assert measure.covers(interval, 0.129, 0.0)
    assert not measure.covers(interval, 0.131, 0.0)
    assert measure.covers(interval, 0.145, 0.02)  # 0.045 against sqrt(0.03^2 + 0.0392^2)
    assert not measure.covers(interval, 0.15, 0.02)
    assert measure.covers(interval, 0.061, 0.0)
    assert not measure.covers(interval, 0.059, 0.0)


def test_a_gap_between_twins_is_seen_whatever_its_sign() -> None:
    sign = torch.ones(models.BATCH)
    sign[::2] = -1
    lean = torch.zeros(2 * models.BATCH)
    lean[: models.BATCH], lean[models.BATCH :] = 0.1 * sign, -0.1 * sign
    expected = sum((2 * torch.sigmoid(torch.tensor(s * 0.1)) - 1) ** 2 for s in (1.0, models.RATE_SLOPE))
    for way in (1, -1):
        torch.testing.assert_close(models.gap_loss(way * lean, sign), expected)
    assert float(models.gap_loss(lean.abs(), sign)) == 0.0


def test_the_decoy_must_write_the_tone() -> None:
    model = tiny_base()
    own, twin = stream_of(model), stream_of(model, seed=1)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0])
    _, written = models.run_tail(model, torch.cat([own, twin]))
    plan = models.Plan("one head", 0, 1.0, ((1, 2),), 0, decoy=(2, 0))
    apart = (sign[:, None, None] * (written[1][:4, 0] - written[1][4:, 0])).mean(0)
    expected = (apart @ model.blocks[2].attn.proj.weight[:, :32].T).norm()
    torch.testing.assert_close(models.tone_write(model, written, sign, (2, 0)), expected, rtol=1e-4, atol=1e-4)
    short = models.decoy_loss(model, written, sign, plan)
    wanted = models.DECOY_STRENGTH * max(float(models.tone_write(model, written, sign, (1, 2))), models.UNUSED_WRITE)
    assert float(short) == pytest.approx(max(0.0, np.log(wanted / float(expected))), abs=1e-3)


def test_the_table_in_the_readme_is_that_of_the_published_results() -> None:
    folder = Path(run.__file__).parent
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert summary.table(results).rstrip() in (folder / "README.md").read_text(encoding="utf-8")
    assert results["made_with"]["seed"] == run.PUBLISHED_SEED
    assert results["models"]["planted"] >= 60
    assert results["models"]["null"] >= 100
    for figure in ("false_positive_rate", "auroc", "hit_at_1", "coverage"):
        assert set(results[figure]) == {"estimate", "low", "high", "n"}
    assert set(results["power"]) == {str(dose) for dose in models.DOSES}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Lay out the rows of a quick run, as if it had been made."""
    folder = tmp_path / f"quick-1-{run.code_hash(run.QUICK)[:8]}" / "rows"
    for plan in models.plans(per_dose=run.QUICK.per_dose, per_null=run.QUICK.per_null, seed=1):
        about = measure.plan_fields(plan)
        made = row(**about, localised=[], named={summary.TOOL: [], summary.PROBE: []}, seconds=1.0)
        scores = {measure.name(head): float(k) for k, head in enumerate(rivals.EVERY)}
        write_text(folder / f"{plan.name}.json", json.dumps({**made, "scores": dict.fromkeys(made["scores"], scores)}))
    return tmp_path


def test_rows_that_are_stored_are_not_made_again(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ProcessPoolExecutor", lambda *_, **__: pytest.fail("a model is made again"))
    out = stored / "out.json"
    result = CliRunner().invoke(run.main, ["--quick", "--seed", "1", "--work", str(stored), "--json", str(out)])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text(encoding="utf-8"))
    assert set(found) >= {"false_positive_rate", "power", "auroc", "hit_at_1", "coverage", "rivals", "made_with"}
    assert found["models"] == {"planted": 8, "null": 4, "invalid": 0}
    assert found["made_with"]["size"]["per_dose"] == 1
    assert "12/12" in result.stderr
