"""Repairs of the last layer alone: what folding must give, exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from audit.models.predict import predict_logits
from audit.models.readout import Readout, with_readout
from audit.records.repair_methods import Method
from audit.repair.base import RepairData, Repaired, RepairInput, Split, state_of
from audit.repair.choice import called, gap_of
from audit.repair.last_layer import balanced_for_erasure, erased
from audit.repair.registry import repair
from audit.repair.seen import last_layer_of, with_state
from tests.models_for_tests import tiny
from tests.repair.planted import World, planted_model, planted_world

pytestmark = pytest.mark.unit
WORLD = planted_world(accuracy_margin=0.15)
SMALL = planted_world(96).given.data
FOLDED = [Method.GLOBAL_THRESHOLD, Method.DFR, Method.OXONFAIR, Method.LEACE]


def gap_after(made: Repaired, world: World = WORLD) -> float:
    """Return the gap on images that no repair has seen."""
    logits = made.answer(world.given.see(world.pixels))
    return float(gap_of(called(world.given.readout, logits, 1), world.split, world.given.aim))


def test_a_folded_shift_is_the_shifted_logit() -> None:
    model = WORLD.given.model
    last = last_layer_of(model)
    assert last is not None
    repaired = with_state(model, last.shifted(1, 0.7, Readout()).folded_into(state_of(model)))
    before, after = predict_logits(model, WORLD.pixels), predict_logits(repaired, WORLD.pixels)
    assert np.allclose(after[:, 1] - before[:, 1], 0.7, atol=1e-5)
    assert np.array_equal(after[:, 0], before[:, 0])


def test_the_global_threshold_is_one_shift_of_the_outcome() -> None:
    made = repair(Method.GLOBAL_THRESHOLD, WORLD.given)
    before, after = WORLD.given.seen.logits, made.answer(WORLD.given.seen)
    assert made.settings["shift"] != 0
    assert np.allclose(after[:, 1] - before[:, 1], made.settings["shift"], atol=1e-5)
    assert np.array_equal(after[:, 0], before[:, 0])


@pytest.mark.parametrize("method", FOLDED)
def test_only_the_last_layer_changes_and_the_weights_answer_alike(method: Method) -> None:
    made, audited = repair(method, WORLD.given), state_of(WORLD.given.model)
    assert made.state is not None
    changed = {name for name, tensor in made.state.items() if not torch.equal(tensor, audited[name])}
    assert changed
    assert changed <= {"head.weight", "head.bias"}
    whole = predict_logits(with_state(WORLD.given.model, made.state), WORLD.pixels)
    assert np.allclose(made.answer(WORLD.given.see(WORLD.pixels)), whole, atol=1e-4)


@pytest.mark.parametrize("method", [Method.DFR, Method.OXONFAIR, Method.LEACE])
def test_a_group_that_the_features_tell_apart_is_taken_out(method: Method) -> None:
    untouched = gap_after(repair(Method.UNTOUCHED, WORLD.given))
    assert untouched > 0.3
    assert abs(gap_after(repair(method, WORLD.given))) < untouched / 2


def test_without_the_group_every_group_has_the_same_mean_logits() -> None:
    given = WORLD.given
    rows = np.arange(len(given.data.repair))
    last = erased(given, rows)
    some = balanced_for_erasure(given, rows)
    logits = last.logits(given.seen.features[torch.from_numpy(some)]).double().numpy()
    groups = given.data.repair.groups[some]
    means = [logits[groups == group].mean(0) for group in (0, 1)]
    assert np.allclose(*means, atol=1e-5)
    before = given.seen.logits[some]
    assert np.abs(before[groups == 0].mean(0) - before[groups == 1].mean(0)).max() > 1
    assert np.allclose(logits.mean(0), before.mean(0), atol=1e-4)


def test_dfr_unlearns_a_feature_that_goes_with_the_label_in_training_alone() -> None:
    made = repair(Method.DFR, WORLD.given)
    assert made.settings["retrains"] == 10
    logits = made.answer(WORLD.given.see(WORLD.pixels))
    right = logits.argmax(1) == WORLD.split.targets
    before = WORLD.given.see(WORLD.pixels).logits.argmax(1) == WORLD.split.targets
    assert right.mean() > before.mean() + 0.05


def test_more_than_two_classes_and_more_than_two_groups() -> None:
    given, draw = WORLD.given, np.random.default_rng(0)
    targets, groups = draw.integers(0, 3, 160), draw.integers(-1, 3, 160)
    split = Split(given.data.repair.images[:160], targets, groups, np.arange(160))
    model = tiny()
    given = RepairInput(model, RepairData(split), given.aim, 0.2)
    for method in FOLDED:
        made = repair(method, given)
        assert made.state is not None
        assert made.answer(given.seen).shape == (160, 3)
        assert made.settings["largest_loss"] <= 0.2 + 1e-9


def test_a_model_of_one_logit_keeps_the_first_at_zero() -> None:
    model = planted_model()
    with torch.no_grad():
        model.head.weight[1] -= model.head.weight[0]
        model.head.bias[1] -= model.head.bias[0]
        model.head.weight[0], model.head.bias[0] = 0.0, 0.0
    with_readout(model, Readout("sigmoid", "threshold", 0.5, one_logit=True))
    given = RepairInput(model, SMALL, replace(WORLD.given.aim, outcome=0), 0.15)
    for method in FOLDED:
        made = repair(method, given)
        assert made.state is not None
        assert not made.state["head.weight"][0].any()
        assert made.state["head.bias"][0] == 0


def test_classes_that_do_not_exclude_each_other() -> None:
    model = with_readout(planted_model(), Readout("sigmoid", "threshold", 0.5))
    given = RepairInput(model, SMALL, WORLD.given.aim, 0.15)
    for method in FOLDED:
        made = repair(method, given)
        assert abs(float(str(made.settings["gap_on_repair"]))) <= abs(float(str(made.settings["gap_before"])))
