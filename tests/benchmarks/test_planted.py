"""The benchmark's own arithmetic, on answers known by hand; the models themselves are made by ``--quick``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.planted import models, rivals, summary, truth
from tests.models_for_tests import enlarged, noise_pixels

pytestmark = pytest.mark.unit


def tiny_base() -> models.VisionTransformer:
    spec = models.SPEC.model_copy(update={"weights": "none"})
    return enlarged(models.Backbone(spec, None).build(2), 0).eval()


def stream_of(model: models.VisionTransformer, n: int = 4, seed: int = 0) -> torch.Tensor:
    found = models.make_views(model, [noise_pixels(n, seed=seed, size=64)], models.SPEC.train_blocks).data[0]
    assert isinstance(found, torch.Tensor)
    return found


def test_the_published_run_is_large_enough_and_its_models_differ() -> None:
    made = models.plans(per_dose=8, per_null=25, seed=7)
    assert sum(not p.is_null for p in made) >= 60
    assert sum(p.is_null for p in made) >= 100
    assert len({p.name for p in made}) == len({p.seed for p in made}) == len(made)
    assert {len(p.heads) for p in made if p.kind == "two heads"} == {2}
    assert {p.dose for p in made if not p.is_null} == set(models.DOSES)
    assert not {p.seed for p in made} & {p.seed for p in models.plans(per_dose=8, per_null=25, seed=8)}
    assert made == models.plans(per_dose=8, per_null=25, seed=7)


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
    trace, donor = (rivals._record_all(model, p) for p in (own_pixels, other_pixels))
    change = rivals.head_writes(model, layer, donor.z[layer] - trace.z[layer])[2]
    torch.testing.assert_close(
        patched, rivals.add_to_stream(model, trace, layer, change[None])[0], atol=1e-4, rtol=1e-4
    )


def test_donors_agree_in_label_and_hair_and_differ_in_group_where_they_should() -> None:
    rng = np.random.default_rng(0)
    columns = [rng.random(400) < 0.5 for _ in range(3)]
    crowd = truth.Crowd(torch.zeros(400, 1, 1), *columns)
    for other in (True, False):
        donors = truth._donors(crowd, rng, other=other)
        assert (crowd.smiling[donors] == crowd.smiling).all()
        assert (crowd.long_hair[donors] == crowd.long_hair).all()
        assert ((crowd.darker[donors] != crowd.darker) == other).all()
        assert (donors != np.arange(400)).all()


def test_truth_is_that_of_plain_swaps() -> None:
    model, n, rng = tiny_base(), 64, np.random.default_rng(0)
    columns = [np.arange(n) // k % 2 == 0 for k in (1, 2, 4)]
    crowd = truth.Crowd(stream_of(model, n).half(), *columns)
    heads = [(1, 2), (2, 0), (3, 1)]
    found = truth.measure(model, crowd, heads, seed=3)
    rng = np.random.default_rng(3)
    stream = crowd.stream.float()
    with torch.inference_mode():
        logits, written = models.run_tail(model, stream)
        change = {head: np.zeros(n) for head in heads}
        for sign in (1, -1):
            donors = torch.from_numpy(truth._donors(crowd, rng, other=sign > 0))
            for layer, head in heads:
                taken = torch.zeros(n, len(models.LAYERS), models.HEADS, dtype=torch.bool)
                taken[:, layer - models.LAYERS.start, head] = True
                patched = models.run_tail(model, stream, [z[donors] for z in written], taken)[0]
                change[(layer, head)] += sign * patched.double().softmax(-1)[:, 1].numpy()
    gap = truth._standardised(logits.double().softmax(-1)[:, 1].numpy(), crowd.darker, crowd.smiling)
    assert found.mean == pytest.approx(gap, abs=1e-3)
    for head in heads:
        by_hand = -truth._standardised(change[head], crowd.darker, crowd.smiling) / 2
        assert found.mediated[head] == pytest.approx(by_hand, abs=1e-3)
        assert abs(by_hand) > 0
        assert 0 < found.error[head] < 0.5


def test_ranking_by_hand() -> None:
    scores = {"a": 0.1, "b": 0.9, "c": 0.5, "d": 0.3}
    assert summary.ranking(scores, ["b"]) == {"auroc": 1.0, "hit_at_1": 1.0, "hit_at_3": 1.0, "mrr": 1.0}
    found = summary.ranking(scores, ["d"])
    assert found == {"auroc": pytest.approx(1 / 3), "hit_at_1": 0.0, "hit_at_3": 1.0, "mrr": pytest.approx(1 / 3)}
    assert summary.ranking(scores, ["b", "c"])["auroc"] == 1.0


def row(**changes: Any) -> dict[str, Any]:
    good, bad = {"L1H0": 0.9, "L1H1": 0.1, "L2H0": 0.2}, {"L1H0": 0.1, "L1H1": 0.9, "L2H0": 0.2}
    return {
        "kind": "one head", "dose": 2.0, "null": False, "planted": ["L1H0"], "localised": ["L1H0"],
        "outcome": "DISPARITY FOUND", "confirmed": ["L1H0"], "discovered": ["L1H0"],
        "disparity": True, "scores": {summary.TOOL: good, "random": bad}, "probe": 0.9, "covered": [True, False],
        "gap_covered": True,
    } | changes  # fmt: skip


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
    }
    rows = [
        row(),
        row(dose=4.0, localised=["L1H0", "L2H0"]),
        row(dose=0.5, localised=[]),
        row(kind="two heads", planted=["L1H0", "L2H0"], localised=["L1H0"]),
        row(kind="unused", **quiet),
        row(kind="balanced", **{**quiet, "localised": ["L1H1"], "gap_covered": None}),
        {"name": "unused-01", "kind": "unused", "null": True, "outcome": "INVALID", "planted": [], "dose": 0.0},
    ]
    found = summary.summarise(rows)
    assert found["models"] == {"planted": 4, "null": 2, "invalid": 1}
    ungated = found["false_positive_rate_without_a_gap_gate"]
    assert [ungated[k]["unused"]["estimate"] for k in ("confirmed", "discovered")] == [0.0, 1.0]
    assert (found["false_positive_rate"]["estimate"], found["false_positive_rate"]["n"]) == (0.5, 2)
    assert found["false_positive_rate_by_kind"]["unused"]["estimate"] == 0.0
    assert {d: f["estimate"] for d, f in found["power"].items()} == {"0.5": 0.0, "2.0": 1.0, "4.0": 1.0}
    assert found["power_two_heads"]["2.0"]["estimate"] == 0.0
    assert found["hit_at_1"] == summary.share([True, True])
    assert found["auroc"]["estimate"] == 1.0
    assert found["rivals"]["random"]["auroc"]["estimate"] < 1.0
    assert found["rivals"]["random"]["auroc_tool_minus_rival"]["estimate"] > 0.5
    assert found["coverage"]["estimate"] == pytest.approx(6 / 10)
    assert found["coverage_of_gaps"]["n"] == 5
    assert found["other_heads_named"]["estimate"] == pytest.approx(1 / 4)
    assert found["probe_on_unused"]["accuracy"]["estimate"] == 0.9
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
    for scores in found.values():
        assert set(scores) == {(layer, head) for layer in models.LAYERS for head in range(models.HEADS)}
    assert min(found["linear probe"].values()) > 0.9
    assert min(found["write difference"].values()) > 0
    same = rivals.rank_rivals(model, pixels, np.random.default_rng(0).permutation(is_group), smiling, seed=0)
    assert np.mean(list(same["linear probe"].values())) < 0.75
    assert found["random"] == same["random"]
