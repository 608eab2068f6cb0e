"""Repairs at named heads: what they change, and that they reach the one head that carries the group."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from audit.errors import ModelError
from audit.models.adapters.registry import Model, adapter
from audit.patching.sites import Site
from audit.records.repair_methods import AT_HEADS, Method
from audit.repair.base import Repaired, RepairInput, state_of
from audit.repair.choice import called, gap_of
from audit.repair.head_weights import head_pieces, mixed, output_piece, separates_heads, value_pieces
from audit.repair.heads import activations, emptied
from audit.repair.registry import repair
from audit.repair.seen import State, with_state
from tests.models_for_tests import CONVOLUTIONAL, noise_images, tiny
from tests.repair.planted import LABEL, PLANTED, planted_world

pytestmark = pytest.mark.unit
WORLD = planted_world(accuracy_margin=0.15)
FAMILIES = ["class token", "LayerScale", "no bias", "beit", "eva", "eva02, rotary", "dinov3", "swin", "swin v2"]
HEAD = Site(1, 1)


def gap_after(made: Repaired) -> float:
    """Return the gap on images that no repair has seen."""
    logits = made.answer(WORLD.given.see(WORLD.pixels))
    return float(gap_of(called(WORLD.given.readout, logits, 1), WORLD.split, WORLD.given.aim))


def untouched_but(state: State, model: Model, sites: tuple[Site, ...]) -> State:
    """Return weights with the pieces of some heads put back to those of a model."""
    pieces = [piece for site in sites for piece in head_pieces(model, site)]
    return mixed(state, state_of(model), pieces, 1.0)


def same(a: State, b: State) -> bool:
    """Tell whether two sets of weights are one, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pieces_of_a_head_are_all_that_it_holds_and_writes_and_nothing_of_another(family: str) -> None:
    model = tiny(family)
    assert separates_heads(model)
    body, images = adapter(model), noise_images(2)

    def held(state: State) -> torch.Tensor:
        found: list[torch.Tensor] = []
        changed = with_state(model, state)
        handles = adapter(changed).listen(HEAD.layer, found, [], images=2)
        changed(images)
        for handle in handles:
            handle.remove()
        return found[0].unflatten(-1, (body.units(HEAD.layer), -1))

    own, emptied_of = state_of(model), state_of(model)
    for piece in value_pieces(model, HEAD):
        piece.of(emptied_of).zero_()
    before, after = held(own), held(emptied_of)
    assert before[..., HEAD.head, :].abs().max() > 0.01
    assert not after[..., HEAD.head, :].any()
    others = [h for h in range(body.units(HEAD.layer)) if h != HEAD.head]
    assert torch.equal(before[..., others, :], after[..., others, :])

    silent = state_of(model)
    output_piece(model, HEAD).of(silent).zero_()
    changed = with_state(model, silent)
    z = before.flatten(-2)
    old, new = (adapter(m).head_outputs(HEAD.layer, z.reshape(2, -1, z.shape[-1])) for m in (model, changed))
    assert not new[HEAD.head].any()
    assert torch.equal(old[others], new[others])


@pytest.mark.parametrize("family", CONVOLUTIONAL[:2])
def test_slices_of_channels_are_no_heads(family: str) -> None:
    assert not separates_heads(tiny(family))


def test_between_two_models_the_ends_are_theirs_to_the_bit() -> None:
    model, reference = tiny(seed=0), tiny(seed=1)
    own, other = state_of(model), state_of(reference)
    pieces = head_pieces(model, HEAD)
    assert same(mixed(own, other, pieces, 0.0), own)
    whole = mixed(own, other, pieces, 1.0)
    assert all(torch.equal(piece.of(whole), piece.of(other)) for piece in pieces)
    half = mixed(own, other, pieces, 0.5)
    for made in (whole, half):
        assert not same(made, own)
        assert same(untouched_but(made, model, (HEAD,)), own)
    for piece in pieces:
        assert torch.allclose(piece.of(half), (piece.of(own) + piece.of(other)) / 2, atol=1e-6)


@pytest.mark.parametrize("method", AT_HEADS)
def test_an_edit_halves_the_gap_and_changes_the_heads_slices_alone(method: Method) -> None:
    made = repair(method, WORLD.given)
    assert made.state is not None
    assert made.settings["strength"] != 0
    before = gap_after(repair(Method.UNTOUCHED, WORLD.given))
    assert before > 0.3
    assert abs(gap_after(made)) < before / 2
    audited = state_of(WORLD.given.model)
    rest = dict(untouched_but(made.state, WORLD.given.model, (PLANTED,)))
    assert not torch.equal(made.state["blocks.1.attn.qkv.weight"], audited["blocks.1.attn.qkv.weight"])
    shift = rest["head.bias"] - audited["head.bias"]
    assert torch.allclose(shift, torch.tensor([0.0, float(str(made.settings["shift"]))]), atol=1e-5)
    rest["head.bias"] = audited["head.bias"]
    assert same(rest, audited)


def test_all_images_keep_their_accuracy_within_the_margin() -> None:
    strict = replace(WORLD.given, accuracy_margin=0.001)
    for method in AT_HEADS:
        assert float(str(repair(method, strict).settings["largest_loss"])) <= 0.001 + 1e-9


def held_gaps(given: RepairInput, state: State, site: Site) -> tuple[float, float]:
    """Return the largest gap of what a head holds on the class token, and its largest spread."""
    rows = np.arange(len(given.data.repair))
    z = torch.cat(activations(given, with_state(given.model, state), site.layer, rows))
    own = z.unflatten(-1, (4, -1))[:, 0, site.head].double().numpy()
    return float(np.abs(gap_of(own, given.data.repair, given.aim)).max()), float(own.std(0).max())


@pytest.mark.parametrize("sites", [(PLANTED,), (PLANTED, LABEL), (Site(0, 1), PLANTED)])
def test_what_is_emptied_holds_no_difference_of_the_groups(sites: tuple[Site, ...]) -> None:
    given = replace(WORLD.given, model=tiny(classes=2), heads=sites)
    rows = np.arange(len(given.data.repair))
    state = emptied(given, rows)
    assert same(untouched_but(state, given.model, sites), state_of(given.model))
    for site in sites:
        gap, spread = held_gaps(given, state, site)
        assert gap < 1e-3 * spread
    before, spread = held_gaps(given, state_of(given.model), PLANTED)
    assert before > 0.05 * spread


def test_a_head_that_holds_no_difference_is_left_as_it_is() -> None:
    given = replace(WORLD.given, data=replace(WORLD.given.data))
    repair_split = given.data.repair
    twins = np.repeat(repair_split.images[::2], 2, axis=0)  # of each image one in either group
    targets, groups = np.repeat(repair_split.targets[::2], 2), np.arange(len(twins)) % 2
    split = replace(repair_split, images=twins, targets=targets, groups=groups)
    given = replace(given, data=replace(given.data, repair=split))
    state = emptied(given, np.arange(len(split)))
    assert all(torch.allclose(state[name], tensor, atol=1e-6) for name, tensor in state_of(given.model).items())


def test_a_reference_of_another_shape_is_refused() -> None:
    given = replace(WORLD.given, reference=tiny(classes=2, depth=1))
    with pytest.raises(ModelError, match="missing in the reference"):
        repair(Method.HEADS_TO_REFERENCE, given)
