"""Which methods are offered, and why the others are not."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from audit.errors import InputError
from audit.models.checkpoint import hash_state
from audit.patching.sites import Site
from audit.records.repair_methods import AT_HEADS, Method, WhyNotOffered
from audit.repair.base import RepairInput, state_of
from audit.repair.registry import MAKERS, OFFERS, offered, repair
from tests.models_for_tests import tiny
from tests.repair.planted import planted_world

pytestmark = pytest.mark.unit
WORLD = planted_world(64, legal_basis="stated")


def reasons(**changes: object) -> dict[Method, WhyNotOffered]:
    given: RepairInput = replace(WORLD.given, **changes)  # type: ignore[arg-type]
    return {method: why for method, why in offered(given).items() if why is not None}


def test_all_are_offered_where_nothing_lacks() -> None:
    assert reasons() == {}


def test_every_method_says_what_it_must_be_told_and_can_be_made() -> None:
    assert set(OFFERS) == set(Method)
    assert set(Method) - set(MAKERS) == {Method.THRESHOLD_OPTIMIZER, Method.RANDOM_HEADS}
    assert [m for m in Method if OFFERS[m].supervision.group_at_prediction] == [Method.THRESHOLD_OPTIMIZER]
    blind = {m for m in Method if not OFFERS[m].supervision.group_at_training}
    assert blind == {Method.UNTOUCHED}  # all others choose by groups how far they go


def test_without_a_confirmed_head_none_at_heads_is() -> None:
    assert reasons(heads=()) == dict.fromkeys((*AT_HEADS, Method.RANDOM_HEADS), WhyNotOffered.NO_CONFIRMED_HEAD)


def test_where_every_head_is_named_none_is_left_to_draw() -> None:
    named = tuple(Site(layer, head) for layer in range(2) for head in range(4))
    assert reasons(heads=named) == {Method.RANDOM_HEADS: WhyNotOffered.NO_OTHER_HEAD}
    with pytest.raises(ValueError, match="many repairs"):
        repair(Method.RANDOM_HEADS, WORLD.given)


def test_without_a_reference_none_is_moved_to() -> None:
    assert reasons(reference=None) == {Method.HEADS_TO_REFERENCE: WhyNotOffered.NO_REFERENCE}


def test_a_model_that_is_audited_as_it_is_is_not_trained_on() -> None:
    trained = (Method.CONTINUED, Method.GROUP_DRO)
    for changes in ({"recipe": None}, {"data": replace(WORLD.given.data, training=None)}):
        assert reasons(**changes) == dict.fromkeys(trained, WhyNotOffered.NO_TRAINING_IMAGES)


def test_pixels_that_are_no_bytes_cannot_be_augmented() -> None:
    training = WORLD.given.data.training
    assert training is not None
    normalised = replace(training, images=np.zeros((64, 32, 32, 3), np.float32))
    data = replace(WORLD.given.data, training=normalised)
    assert reasons(data=data) == {Method.CONTINUED: WhyNotOffered.PIXELS_NOT_BYTES}


def test_slices_of_channels_have_no_values_to_edit() -> None:
    found = reasons(model=tiny("resnet, basic", classes=2), reference=tiny("resnet, basic", classes=2, seed=1))
    assert found == dict.fromkeys((*AT_HEADS, Method.RANDOM_HEADS), WhyNotOffered.HEADS_NOT_SEPARABLE)


def test_a_classifier_that_cannot_be_shifted_leaves_what_needs_none() -> None:
    model = tiny(classes=2)
    model.head = torch.nn.Linear(32, 2, bias=False)
    last = (Method.GLOBAL_THRESHOLD, Method.DFR, Method.OXONFAIR, Method.LEACE)
    assert reasons(model=model, reference=model) == dict.fromkeys(last, WhyNotOffered.NO_LINEAR_CLASSIFIER)


def test_a_cell_that_is_too_small_leaves_the_model_as_it_is() -> None:
    split = WORLD.given.data.repair
    groups = np.where((split.groups == 1) & (split.targets == 1) & (np.arange(64) > 8), -1, split.groups)
    found = reasons(data=replace(WORLD.given.data, repair=replace(split, groups=groups)))
    assert set(found) == set(Method) - {Method.UNTOUCHED}
    assert set(found.values()) == {WhyNotOffered.CELL_TOO_SMALL}


def test_a_package_that_lacks_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "concept_erasure", None)
    assert reasons() == {Method.LEACE: WhyNotOffered.EXTRA_MISSING}
    with pytest.raises(InputError, match=r"repair.methods: leace is not offered \(package is missing\); leave it out"):
        repair(Method.LEACE, WORLD.given)


@pytest.mark.parametrize("method", [m for m in Method if m is not Method.RANDOM_HEADS])
def test_no_method_changes_the_audited_model(method: Method) -> None:
    before, of_reference = (
        hash_state(m.state_dict()) for m in (WORLD.given.model, WORLD.given.reference or WORLD.given.model)
    )
    made = repair(method, WORLD.given)
    assert made.method is method
    assert made.seconds > 0 or method is Method.UNTOUCHED
    assert hash_state(WORLD.given.model.state_dict()) == before
    assert hash_state((WORLD.given.reference or WORLD.given.model).state_dict()) == of_reference
    if made.state is not None:
        assert {n: t.shape for n, t in made.state.items()} == {
            n: t.shape for n, t in state_of(WORLD.given.model).items()
        }
        own = {t.data_ptr() for t in WORLD.given.model.state_dict().values()}
        assert not own & {t.data_ptr() for t in made.state.values()}


@pytest.mark.parametrize("method", [m for m in MAKERS if m is not Method.UNTOUCHED])
def test_the_same_seed_gives_the_same_bytes(method: Method) -> None:
    first, again = (repair(method, replace(WORLD.given)) for _ in range(2))
    assert first.state is not None
    assert again.state is not None
    assert hash_state(first.state) == hash_state(again.state)
    assert first.settings == again.settings


def test_untouched_is_the_audited_model_to_the_bit() -> None:
    made = repair(Method.UNTOUCHED, WORLD.given)
    assert made.state is not None
    assert hash_state(made.state) == hash_state(WORLD.given.model.state_dict())
    assert np.array_equal(made.answer(WORLD.given.seen), WORLD.given.seen.logits)
