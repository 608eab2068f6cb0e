"""The control of an edit at heads: other heads, alike in layer and in how much they write."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from audit.models.adapters.registry import adapter
from audit.patching.sites import Site
from audit.records.repair_methods import Method
from audit.repair.base import Repaired
from audit.repair.choice import called, gap_of
from audit.repair.random_heads import matched_sets, p_value, write_norms
from audit.repair.registry import repair, repair_at_random
from tests.models_for_tests import tiny
from tests.repair.planted import PLANTED, planted_world

pytestmark = pytest.mark.unit
WORLD = planted_world(accuracy_margin=0.15)
WIDE = planted_world(160, accuracy_margin=0.15, heads_each=24)


def gap_after(made: Repaired) -> float:
    """Return the gap on images that no repair has seen."""
    logits = made.answer(WORLD.given.see(WORLD.pixels))
    return float(gap_of(called(WORLD.given.readout, logits, 1), WORLD.split, WORLD.given.aim))


@pytest.mark.parametrize("edit", [Method.HEADS_TO_REFERENCE, Method.HEADS_SHIFTED])
def test_the_named_head_halves_the_gap_and_no_random_head_does(edit: Method) -> None:
    sets = matched_sets(WORLD.given, 5)
    before = gap_after(repair(Method.UNTOUCHED, WORLD.given))
    assert abs(gap_after(repair(edit, WORLD.given))) < before / 2
    made = list(repair_at_random(edit, WORLD.given, sets))
    assert [one.heads for one in made] == list(sets.sets)
    assert {one.method for one in made} == {Method.RANDOM_HEADS}
    assert {one.settings["edit"] for one in made} == {edit.value}
    assert min(abs(gap_after(one)) for one in made) > before / 2


@pytest.mark.parametrize("edit", [Method.HEADS_TO_REFERENCE, Method.HEADS_SHIFTED])
def test_a_head_that_beats_all_twenty_random_ones_has_the_smallest_p_there_is(edit: Method) -> None:
    given = replace(WIDE.given, data=replace(WIDE.given.data))
    sets = matched_sets(given, 20)
    assert (len(sets.sets), sets.layers_apart) == (20, 0)  # its layer has heads enough

    def left(made: Repaired) -> float:
        logits = made.answer(given.see(WIDE.pixels))
        return abs(float(gap_of(called(given.readout, logits, 1), WIDE.split, given.aim)))

    random = [left(made) for made in repair_at_random(edit, given, sets)]
    assert p_value(left(repair(edit, given)), random) == pytest.approx(1 / 21)
    assert sets.smallest_p == pytest.approx(1 / 21)
    assert p_value(left(repair(Method.UNTOUCHED, given)), random) == 1  # as good as a head that carries nothing


def test_a_random_head_that_is_as_good_counts_against_the_named_one() -> None:
    assert p_value(0.1, [0.1, 0.2, 0.3]) == 2 / 4
    assert p_value(0.1, [0.05, 0.1]) == 1
    assert p_value(0.1, []) is None


def test_sets_are_of_the_same_layer_where_it_has_heads_enough() -> None:
    sets = matched_sets(WORLD.given, 3)
    assert sets.layers_apart == 0
    assert sorted(sets.sets) == [(Site(1, 0),), (Site(1, 1),), (Site(1, 3),)]
    assert sets.alone == ()
    assert sets.smallest_p == 1 / 4


def test_where_the_layer_has_too_few_heads_others_stand_in_and_it_is_said() -> None:
    sets = matched_sets(WORLD.given, 20)
    assert sets.layers_apart == 1
    assert len(sets.sets) == len({frozenset(one) for one in sets.sets}) == 7  # all there are
    assert not any(PLANTED in one for one in sets.sets)


def test_several_heads_are_matched_layer_by_layer() -> None:
    named = (Site(0, 1), Site(1, 0), Site(1, 2))
    sets = matched_sets(replace(WORLD.given, heads=named), 3)
    assert len(sets.sets) == 3
    for one in sets.sets:
        assert [site.layer for site in one] == [0, 1, 1]
        assert not set(one) & set(named)


def test_a_layer_without_another_head_is_named() -> None:
    whole = tuple(Site(1, head) for head in range(4))
    sets = matched_sets(replace(WORLD.given, heads=whole), 1)
    assert sets.alone == whole
    assert sets.layers_apart == 1
    assert sets.sets == (tuple(Site(0, head) for head in range(4)),)
    only = replace(WORLD.given, model=tiny("one layer", classes=2, num_heads=1), heads=(Site(0, 0),))
    assert matched_sets(only, 5).sets == ()


def test_heads_that_write_as_much_are_drawn_more_often() -> None:
    model = tiny(classes=2)
    with torch.no_grad():
        model.blocks[1].attn.proj.weight[:, 8:16] *= 30.0  # head 1 of the last layer
    given = replace(WORLD.given, model=model)
    first = [matched_sets(replace(given, seed=seed), 1).sets[0][0].head for seed in range(60)]
    assert set(first) <= {0, 1, 3}
    assert first.count(1) < min(first.count(0), first.count(3))


def test_norms_are_those_of_what_heads_write() -> None:
    model, given = tiny(classes=2), WORLD.given
    norms = write_norms(replace(given, model=model), [0])
    found: list[torch.Tensor] = []
    handles = adapter(model).listen(0, found, [], images=4)
    few = replace(given.data, repair=replace(given.data.repair, images=given.data.repair.images[:64]))
    replace(given, model=model, data=few).seen.logits  # noqa: B018
    for handle in handles:
        handle.remove()
    z = found[-1].reshape(-1, 32)  # of the one batch of images
    weight = model.blocks[0].attn.proj.weight.detach()
    written = z[:, 8:16] @ weight[:, 8:16].T
    assert norms[Site(0, 1)] == pytest.approx(float(written.square().sum(1).mean().sqrt()), rel=1e-4)
    assert {site.layer for site in norms} == {0, 1}  # the named head's layer too


def test_the_same_seed_draws_the_same_sets() -> None:
    named = replace(WORLD.given, heads=(Site(1, 2), Site(0, 0)))
    one, two, other = (matched_sets(replace(named, seed=seed), 4) for seed in (1, 1, 2))
    assert one == two
    assert one != other
    assert np.unique([len(found) for found in one.sets]).tolist() == [2]
