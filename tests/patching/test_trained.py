"""Hybrids of two models: ends that are known, one player that differs, and every hybrid run whole."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from audit.errors import InputError, ModelError
from audit.models.adapters.registry import Model, adapter
from audit.models.readout import Readout, with_readout
from audit.models.transforms import as_input
from audit.patching.players import Player, merge, players_of, split_heads
from audit.patching.trained import Coalitions, Path, draw_orders, hybrid, path, paths, shapley
from tests.models.test_named import KINDS, images_for
from tests.models_for_tests import hooks_left, noise_images, noise_pixels, tiny
from tests.patching.test_players import EVERY, images_for_tiny, made

pytestmark = pytest.mark.unit
OUTCOMES = {"calm": 0, "glad": 1, "sad": 2}  # all classes, so that all logits are kept


def images_of(family: str, model: Model) -> torch.Tensor:
    return images_for(model, 3) if family in KINDS else images_for_tiny(model)


@torch.inference_mode()
def run_whole(reference: Model, audited: Model, players: Sequence[Player], images: torch.Tensor) -> torch.Tensor:
    """Return the logits of a model that loads a state dict put together piece by piece."""
    tensors = {name: t.clone() for name, t in reference.state_dict().items()}
    ours = audited.state_dict()
    for player in players:
        for piece in player.pieces:
            piece.of(tensors).copy_(piece.of(ours))
    model = copy.deepcopy(reference)
    model.load_state_dict(tensors)
    logits: torch.Tensor = model.eval()(images)
    return logits


def logits_of(found: Path | Coalitions) -> torch.Tensor:
    """Return the logits (N, hybrids, classes)."""
    return torch.from_numpy(np.stack([found.answers.logits[name] for name in OUTCOMES], axis=-1))


def gaps(found: Path) -> list[float]:
    """Return by how much each player moves the largest logit."""
    steps = logits_of(found).diff(dim=1).abs().amax(dim=(0, 2))
    return [float(step) for step in steps]


@torch.inference_mode()
@pytest.mark.parametrize("family", EVERY)
def test_a_path_is_every_hybrid_run_whole_and_ends_at_the_audited_model_to_the_bit(family: str) -> None:
    reference, audited = made(family), made(family, seed=1)
    images, order = images_of(family, audited), players_of(audited)
    drawn = [order[k] for k in draw_orders(len(order), 1, seed=0)[0]]
    found = paths(reference, audited, images, [order, order[::-1], drawn], OUTCOMES)
    for own, by in zip(found, (order, order[::-1], drawn), strict=True):
        logits = logits_of(own)
        assert own.players == tuple(p.name for p in by)
        assert not any(own.same)
        assert torch.equal(logits[:, 0], reference(images))
        assert torch.equal(logits[:, -1], audited(images))
        for number in range(len(by) + 1):
            torch.testing.assert_close(
                logits[:, number], run_whole(reference, audited, by[:number], images), rtol=0, atol=1e-6
            )
        assert min(gaps(own)) > 0
    assert hooks_left(reference) == hooks_left(audited) == 0


@torch.inference_mode()
@pytest.mark.parametrize("family", ["class token", "swin", "resnet, basic", "plain"])
def test_a_hybrid_is_a_model_of_its_own(family: str) -> None:
    reference, audited = made(family), made(family, seed=1)
    images, players = images_of(family, audited), players_of(audited)
    before = [m(images) for m in (reference, audited)]
    made_of = hybrid(reference, audited, players[1:3])
    assert torch.equal(made_of(images), run_whole(reference, audited, players[1:3], images))
    for parameter in made_of.parameters():
        parameter.mul_(2)
    assert all(torch.equal(m(images), logits) for m, logits in zip((reference, audited), before, strict=True))
    assert torch.equal(hybrid(reference, audited, [])(images), before[0])
    assert torch.equal(hybrid(reference, audited, players)(images), before[1])


@pytest.mark.parametrize("family", EVERY)
def test_between_a_model_and_itself_every_row_is_nothing(family: str) -> None:
    model = made(family)
    found = path(model, copy.deepcopy(model), images_of(family, model), players_of(model), OUTCOMES)
    assert all(found.same)
    assert set(gaps(found)) == {0.0}
    assert logits_of(found).shape[1] == len(found.players) + 1
    for values in found.answers.probability.values():
        assert not np.diff(values, axis=1).any()


@pytest.mark.parametrize("family", ["LayerScale", "swin", "resnet, basic", "convnext", "transformer"])
def test_where_one_player_differs_it_has_all_of_the_difference(family: str) -> None:
    reference = made(family)
    for player in players_of(reference):
        audited = copy.deepcopy(reference)
        tensors = audited.state_dict()
        for piece in player.pieces:
            if tensors[piece.name].is_floating_point():
                piece.of(tensors).mul_(1.25)
        images = images_of(family, audited)
        for order in (players_of(audited), players_of(audited)[::-1]):
            found = path(reference, audited, images, order, OUTCOMES)
            moved = dict(zip(found.players, gaps(found), strict=True))
            assert {name for name, by in moved.items() if by} == {player.name}
            assert [name for name, same in zip(found.players, found.same, strict=True) if not same] == [player.name]
            with torch.inference_mode():
                assert torch.equal(logits_of(found)[:, -1], audited(images))


def test_any_order_sums_to_the_same_total() -> None:
    reference, audited, images = tiny(), tiny(seed=1), noise_images(4)
    players = players_of(audited)
    orders = [[players[k] for k in order] for order in draw_orders(len(players), 3, seed=0)]
    totals = [
        np.diff(p.answers.log_odds["sad"]).sum(axis=1) for p in paths(reference, audited, images, orders, OUTCOMES)
    ]
    for total in totals:
        np.testing.assert_allclose(total, totals[0], rtol=0, atol=1e-12)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["class token", "qk norm", "beit", "eva02, rotary", "swin v2"])
def test_heads_of_a_block_share_out_what_its_attention_does(family: str) -> None:
    reference, audited = tiny(family), tiny(family, seed=1)
    images, players = images_for_tiny(audited), players_of(audited)
    whole = path(reference, audited, images, players, OUTCOMES)
    split = path(reference, audited, images, split_heads(audited, players, [1]), OUTCOMES)
    after = [split.players.index(name) + 1 for name in whole.players if name != "L1 attention"]
    kept = [whole.players.index(name) + 1 for name in whole.players if name != "L1 attention"]
    assert torch.equal(logits_of(split)[:, [0, *after]], logits_of(whole)[:, [0, *kept]])
    heads = [name for name in split.players if name.startswith("L1") and name not in whole.players]
    assert heads[:-1] == [f"L1H{h}" for h in range(adapter(audited).units(1))]
    assert min(gaps(split)) > 0


def counted(model: Model, calls: list[int]) -> Any:
    for number, block in enumerate(adapter(model).blocks):
        block.register_forward_pre_hook(lambda _m, _a, number=number: calls.append(number))
    return model


def test_a_path_takes_the_forward_passes_that_it_says() -> None:
    """A copy keeps its hooks, so blocks that run can be counted; frozen ones run once."""
    calls: list[int] = []
    reference = counted(tiny(depth=6), calls)
    audited = copy.deepcopy(reference)
    with torch.no_grad():
        for block in adapter(audited).blocks[3:]:
            for parameter in block.parameters():
                parameter.mul_(1.1)
        audited.head.weight.mul_(1.1)
    players = players_of(audited)
    for order in (players, players[::-1]):
        calls.clear()
        path(reference, audited, noise_images(2), order, OUTCOMES)
        assert len(calls) == 6 + 3 * 4
    calls.clear()
    both = paths(reference, audited, noise_images(2), [players, players[::-1]], OUTCOMES)
    assert len(calls) <= 6 + 2 * 3 * 4
    assert torch.equal(logits_of(both[0])[:, -1], logits_of(both[1])[:, -1])
    calls.clear()
    found = shapley(reference, audited, noise_images(2), merge(differing(players)), OUTCOMES, seed=0)
    assert found.orders is None
    assert len(calls) == 6 + sum(2**k for k in (1, 2, 3)) - 3  # the first pass has one of each


def differing(players: Sequence[Player]) -> list[Player]:
    return [p for p in players if p.first >= 3]


def test_images_are_made_as_the_model_reads_them_and_batches_do_not_matter() -> None:
    reference, audited = tiny(), tiny(seed=1)
    pixels, rows = noise_pixels(70), np.array([3, 69, 0, *range(4, 69)])
    from_pixels = path(reference, audited, pixels, players_of(audited), OUTCOMES, rows=rows)
    images = as_input(audited, pixels)
    from_images = path(reference, audited, images, players_of(audited), OUTCOMES, rows=rows)
    assert torch.equal(logits_of(from_pixels), logits_of(from_images))
    seen: list[tuple[int, int]] = []
    path(reference, audited, images, players_of(audited), OUTCOMES, progress=lambda *at: seen.append(at))
    assert seen == [(64, 70), (70, 70)]


def test_answers_are_read_as_the_audited_models_are() -> None:
    reference = tiny()
    audited = with_readout(tiny(seed=1), Readout(output="sigmoid", decision="threshold", threshold=0.3))
    found = path(reference, audited, noise_images(5), players_of(audited), OUTCOMES)
    answers = found.answers
    for name, number in OUTCOMES.items():
        logits = logits_of(found)[..., number].double()
        np.testing.assert_allclose(answers.probability[name], logits.sigmoid().numpy(), rtol=1e-12)
        np.testing.assert_array_equal(answers.called[name], answers.probability[name] >= 0.3)
        np.testing.assert_array_equal(answers.log_odds[name], logits.numpy())
    np.testing.assert_array_equal(answers.predicted, logits_of(found).argmax(-1).numpy())
    softmax = path(reference, tiny(seed=1), noise_images(5), players_of(reference), OUTCOMES).answers
    np.testing.assert_array_equal(softmax.called["sad"], softmax.predicted == 2)


@torch.inference_mode()
def test_all_sets_of_players_are_measured_where_that_costs_no_more() -> None:
    reference, audited, images = tiny(), tiny(seed=1), noise_images(3)
    players = merge(players_of(audited))
    found = shapley(reference, audited, images, players, OUTCOMES, seed=0)
    assert found.players == ("embedding", "L0", "L1", "classifier")
    assert found.orders is None
    assert len(found.members) == len({tuple(row) for row in found.members.tolist()}) == 16
    for row, logits in zip(found.members, logits_of(found).unbind(1), strict=True):
        members = [p for p, is_member in zip(players, row, strict=True) if is_member]
        torch.testing.assert_close(logits, run_whole(reference, audited, members, images), rtol=0, atol=1e-6)


def test_more_players_are_measured_along_drawn_orders_and_their_reverse() -> None:
    reference, audited, images = tiny(depth=4), tiny(depth=4, seed=1), noise_images(2)
    players = players_of(audited)
    found = shapley(reference, audited, images, players, OUTCOMES, seed=5, pairs=2)
    assert found.orders is not None
    assert found.orders.shape == (4, 10)
    np.testing.assert_array_equal(found.orders[1::2], found.orders[::2, ::-1])
    held = {tuple(row) for row in found.members.tolist()}
    for order in found.orders:
        for k in range(11):
            assert tuple(p in order[:k] for p in range(10)) in held
    again = shapley(reference, audited, images, players, OUTCOMES, seed=5, pairs=2)
    assert torch.equal(logits_of(found), logits_of(again))
    few = shapley(reference, audited, images, merge(players, 6), OUTCOMES, seed=5, pairs=1)
    assert few.orders is not None  # one pair is cheaper than all 64 sets
    assert math.prod(found.members[-1]) == 1


def test_what_cannot_be_walked_is_refused_in_a_line() -> None:
    reference, audited, images = tiny(), tiny(seed=1), noise_images(2)
    players = players_of(audited)
    with pytest.raises(ModelError, match="reference: no reference model is given"):
        path(None, audited, images, players, OUTCOMES)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"blocks\.1\.norm1\.weight"):
        path(tiny(depth=1), audited, images, players, OUTCOMES)
    with pytest.raises(InputError, match=r"players: leave out norm\.weight, which differs"):
        path(reference, audited, images, players[:-1], OUTCOMES)
    with pytest.raises(InputError, match=r"players: exchange cls_token twice"):
        path(reference, audited, images, [players[0], *players], OUTCOMES)
    with pytest.raises(InputError, match=r"players: exchange blocks.1.attn.qkv.weight twice"):
        path(reference, audited, images, [*players, split_heads(audited, players, [1])[3]], OUTCOMES)
    with pytest.raises(InputError, match="images: there are none"):
        path(reference, audited, images[:0], players, OUTCOMES)
    with pytest.raises(InputError, match="images: are 501; draw 500 or less"):
        shapley(reference, audited, noise_images(501), merge(players), OUTCOMES, seed=0)
    with pytest.raises(InputError, match="pairs: are 0"):
        shapley(reference, audited, images, merge(players), OUTCOMES, seed=0, pairs=0)


def test_frozen_blocks_are_left_out_and_may_be() -> None:
    """Players with equal weights may be given or not: the others' answers are the same."""
    reference = tiny("three layers")
    audited = copy.deepcopy(reference)
    with torch.no_grad():
        audited.blocks[2].mlp.fc1.weight.mul_(1.5)
        audited.head.bias.add_(1)
    players, images = players_of(audited), noise_images(3)
    given = path(reference, audited, images, players, OUTCOMES)
    only = path(reference, audited, images, [p for p in players if p.name in ("L2 MLP", "classifier")], OUTCOMES)
    assert [n for n, same in zip(given.players, given.same, strict=True) if not same] == ["L2 MLP", "classifier"]
    assert torch.equal(logits_of(given)[:, [0, -2, -1]], logits_of(only))
