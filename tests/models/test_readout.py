"""How logits are read: probabilities, log-odds and what an image is called, by hand; effects on either scale."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from audit.card.schema import ModelSpec
from audit.models.readout import Readout, class_log_odds, readout_of, readout_of_card, with_readout
from audit.patching.api import attribution, patch_heads
from audit.patching.first_order import sweep_first_order
from audit.patching.hooks import donor_head_outputs, patch_with_hooks
from audit.patching.sites import Site
from audit.patching.sweep import DonorKind, measure_logits, measure_unpatched, sweep
from tests.models_for_tests import noise_images, noise_pixels, tiny
from tests.patching.test_first_order import KINDS, plan

pytestmark = pytest.mark.unit
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-3.0, -1.0, -2.0], [1.0, 1.5, -0.2]])
SIGMOIDS = Readout("sigmoid", "threshold", 0.5)


def test_a_softmax_is_read_as_ever() -> None:
    readout = Readout()
    torch.testing.assert_close(readout.probabilities(LOGITS), LOGITS.softmax(-1), rtol=0, atol=0)
    torch.testing.assert_close(readout.log_odds(LOGITS), class_log_odds(LOGITS), rtol=0, atol=0)
    assert readout.predicted(LOGITS).tolist() == [0, 1, 1]
    assert readout.called(LOGITS) is None


def test_sigmoids_are_read_one_by_one() -> None:
    readout = replace(SIGMOIDS, decision="argmax", threshold=None)
    np.testing.assert_allclose(readout.probabilities(LOGITS), expit(LOGITS.numpy()), rtol=1e-6)
    torch.testing.assert_close(readout.log_odds(LOGITS), LOGITS, rtol=0, atol=0)
    assert readout.predicted(LOGITS).tolist() == [0, 1, 1]
    assert readout.called(LOGITS) is None


def test_at_a_threshold_an_image_is_called_several_classes_or_none() -> None:
    assert SIGMOIDS.called(LOGITS).tolist() == [[True, False, True], [False] * 3, [True, True, False]]  # type: ignore[union-attr]
    high = replace(SIGMOIDS, threshold=0.75)  # a logit of 1.0986
    assert high.called(LOGITS).tolist() == [[True, False, False], [False] * 3, [False, True, False]]  # type: ignore[union-attr]
    assert high.predicted(LOGITS).tolist() == [0, 1, 1]
    certain = Readout("softmax", "threshold", 0.7)  # of three classes: one or none
    assert certain.called(LOGITS).tolist() == [[True, False, False], [False] * 3, [False] * 3]  # type: ignore[union-attr]


def test_a_threshold_that_is_reached_exactly_is_reached() -> None:
    assert SIGMOIDS.called(torch.zeros(1, 3)).all()  # type: ignore[union-attr]


def test_of_two_classes_that_exclude_each_other_the_threshold_is_on_the_second() -> None:
    pair = Readout("softmax", "threshold", 0.3)
    logits = torch.log(torch.tensor([[0.8, 0.2], [0.69, 0.31], [0.1, 0.9]]))
    assert pair.called(logits) is None
    assert pair.predicted(logits).tolist() == [0, 1, 1]
    assert replace(pair, output="sigmoid", one_logit=True).predicted(logits).tolist() == [0, 1, 1]
    alone = replace(pair, output="sigmoid")  # two questions of their own
    assert alone.called(torch.full((1, 2), 3.0)).tolist() == [[True, True]]  # type: ignore[union-attr]


def test_one_logit_is_the_softmax_of_nought_and_it() -> None:
    z = torch.linspace(-30, 30, 25, dtype=torch.float64)
    pair = torch.stack([torch.zeros_like(z), z], dim=1)
    readout = Readout("sigmoid", "argmax", one_logit=True)
    np.testing.assert_allclose(readout.probabilities(pair)[:, 1], expit(z.numpy()), rtol=1e-12)
    torch.testing.assert_close(readout.log_odds(pair)[:, 1], z, rtol=0, atol=0)
    torch.testing.assert_close(readout.log_odds(pair)[:, 0], -z, rtol=0, atol=1e-12)
    half = replace(readout, decision="threshold", threshold=0.5)
    assert (half.predicted(pair[z != 0]) == readout.predicted(pair[z != 0])).all()


@pytest.mark.parametrize(
    ("card", "own", "wanted"),
    [
        ({}, "softmax", Readout()),
        ({}, "sigmoid", SIGMOIDS),
        ({"output": "sigmoid"}, "softmax", SIGMOIDS),
        ({"output": "softmax"}, "sigmoid", Readout()),
        ({"decision": "argmax"}, "sigmoid", Readout("sigmoid", "argmax")),
        ({"output": "sigmoid", "threshold": 0.4}, "softmax", Readout("sigmoid", "threshold", 0.4)),
        ({"threshold": 0.9}, "softmax", Readout("softmax", "threshold", 0.9)),
        ({"decision": "threshold"}, "softmax", Readout("softmax", "threshold", 0.5)),
    ],
)
def test_the_card_comes_first_then_the_checkpoint(card: dict[str, object], own: str, wanted: Readout) -> None:
    assert readout_of_card(ModelSpec(**card), own=own) == wanted  # type: ignore[arg-type]


def test_a_table_says_what_images_are_called_only_where_it_is_not_one_class() -> None:
    columns = measure_logits(LOGITS, {"b": 1}, SIGMOIDS)
    assert list(columns) == ["predicted", "p:b", "m:b", "called:b"]
    assert columns["called:b"].tolist() == [False, False, True]
    np.testing.assert_allclose(columns["p:b"], expit([-1, -1, 1.5]))
    assert columns["m:b"].tolist() == [-1, -1, 1.5]
    assert list(measure_logits(LOGITS, {"b": 1})) == ["predicted", "p:b", "m:b"]


def test_a_model_is_read_by_softmax_until_it_says_otherwise() -> None:
    model = tiny()
    assert readout_of(model) == Readout()
    assert readout_of(copy.deepcopy(with_readout(model, SIGMOIDS))) == SIGMOIDS


@pytest.mark.parametrize("family", ["class token", "swin", "resnet, basic"])
def test_effects_on_sigmoids_are_those_of_plain_hooks(family: str) -> None:
    model = with_readout(tiny(family), SIGMOIDS)
    recipients, donors, site = noise_images(4), noise_images(4, seed=1), Site(1, 1)
    with torch.inference_mode():
        before = model(recipients).double()
    after = patch_with_hooks(model, recipients, donor_head_outputs(model, donors, [site])).double()
    odds, p = (patch_heads(model, recipients, donors, [site], scale=s)[:, 0] for s in ("log_odds", "probability"))
    torch.testing.assert_close(odds, after - before, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(p, after.sigmoid() - before.sigmoid(), rtol=1e-3, atol=1e-4)
    for scale in ("log_odds", "probability"):
        assert patch_heads(model, recipients, recipients, scale=scale).abs().max() == 0.0


def test_a_stored_sweep_of_sigmoids_is_that_of_its_logits() -> None:
    """Log-odds are the logits, p their sigmoid; what the same patches give under a softmax is something else."""
    model, pixels, outcomes = tiny(), noise_pixels(6), {"a": 0, "c": 2}
    rows, donors = np.arange(3), np.arange(3, 6)
    own = with_readout(copy.deepcopy(model), SIGMOIDS)
    table = sweep(own, pixels, rows, [DonorKind("cross", own, donors)], layers=range(2), outcomes=outcomes)
    plain = sweep(model, pixels, rows, [DonorKind("cross", model, donors)], layers=range(2), outcomes=outcomes)
    assert (table["predicted"] == plain["predicted"]).all()
    for name in outcomes:
        np.testing.assert_allclose(logit(table[f"p:{name}"]), table[f"m:{name}"], rtol=1e-9, atol=1e-9)
        assert (table[f"called:{name}"] == (table[f"m:{name}"] >= 0)).all()
    assert not np.allclose(table["m:a"], plain["m:a"])


def test_first_order_follows_the_sigmoid() -> None:
    """Donors a shade brighter: the sigmoids' probabilities move as exact patches move them."""
    model, pixels, outcomes = with_readout(tiny(), SIGMOIDS), noise_pixels(4), {"a": 0, "c": 2}
    both = np.concatenate([pixels, np.clip(pixels.astype(int) + 1, 0, 255).astype(np.uint8)])
    own = plan().assign(cross=[4, 5, 6, 7], placebo=[0, 1, 2, 3])
    keys = ["position", "layer", "head", "donor_kind"]
    found = sweep_first_order(model, both, own, np.arange(8), KINDS, layers=range(2), outcomes=outcomes)
    donors = [DonorKind(kind, model, own[kind].to_numpy()) for kind in KINDS]
    exact = sweep(model, both, own["recipient"].to_numpy(), donors, layers=range(2), outcomes=outcomes).set_index(keys)
    unpatched = measure_unpatched(model, both, np.arange(4), outcomes).set_index("recipient")
    for name in outcomes:
        estimated = found.set_index(keys)[f"own:{name}"].loc[exact.index]
        change = exact[f"p:{name}"] - unpatched.loc[exact["recipient"], f"p:{name}"].to_numpy()
        assert float(change.abs().max()) > 1e-4
        np.testing.assert_allclose(estimated, change, atol=0.1 * float(change.abs().max()))


def test_attribution_of_a_sigmoid_is_that_of_its_logit() -> None:
    model = with_readout(tiny(), SIGMOIDS)
    images, others = noise_images(3), noise_images(3, seed=1)
    odds, raw = (attribution(model, images, others, scale=s) for s in ("log_odds", "logit"))
    torch.testing.assert_close(odds, raw, rtol=0, atol=0)


def test_the_decision_lies_at_the_log_odds_of_the_threshold() -> None:
    at = math.log(0.2 / 0.8)
    several = Readout("sigmoid", "threshold", 0.2)
    pair = Readout("softmax", "threshold", 0.2)
    assert [several.decision_at(place, 3) for place in range(3)] == pytest.approx([at] * 3)
    assert [pair.decision_at(place, 2) for place in range(2)] == pytest.approx([-at, at])
    assert Readout().decision_at(0, 5) == 0.0
    logits = torch.tensor([[0.0, at + 0.01], [0.0, at - 0.01]])
    assert pair.predicted(logits).tolist() == [1, 0]
