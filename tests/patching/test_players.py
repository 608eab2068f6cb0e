"""Players: each tensor in exactly one, at the place where it first counts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from audit.errors import AuditError, InputError, ModelError
from audit.models.adapters.registry import Model, adapter
from audit.patching.players import Player, are_same, check_reference, merge, players_of, split_heads
from tests.models.test_named import KINDS, images_for, net
from tests.models_for_tests import CONVOLUTIONAL, FAMILIES, tiny

pytestmark = pytest.mark.unit
EVERY = [*FAMILIES, *KINDS]


def made(family: str, seed: int = 0) -> Any:
    return net(family, seed).module if family in KINDS else tiny(family, seed=seed)


def times_covered(model: Model, players: list[Player]) -> dict[str, torch.Tensor]:
    """Return for each number of a state dict in how many players it is."""
    counts = {name: torch.zeros(t.shape) for name, t in model.state_dict().items()}
    for player in players:
        for piece in player.pieces:
            piece.of(counts).add_(1)
    return counts


@pytest.mark.parametrize("family", EVERY)
def test_each_tensor_is_in_exactly_one_player(family: str) -> None:
    model = made(family)
    players = players_of(model)
    assert all(bool((n == 1).all()) for n in times_covered(model, players).values())
    assert len({player.name for player in players}) == len(players)
    assert [p.first for p in players] == sorted(p.first for p in players)
    assert all(bool((n == 1).all()) for n in times_covered(model, merge(players)).values())


@pytest.mark.parametrize("family", EVERY)
def test_a_player_counts_from_its_own_block_on_and_no_earlier(family: str) -> None:
    """What enters a player's block does not depend on it; what leaves the block, or the logits, does."""
    model = made(family)
    images = images_for(model, 2) if family in KINDS else images_for_tiny(model)
    body = adapter(model)

    @torch.inference_mode()
    def streams(of: Model) -> list[torch.Tensor]:
        own = adapter(of)
        found = [own.embed(images)]
        for layer in range(own.depth):
            found.append(own.run(layer, found[-1].clone()))
        return [*found, own.classify(found[-1].clone())]

    before = streams(model)
    for player in players_of(model):
        other = copy.deepcopy(model)
        tensors = other.state_dict()
        for piece in player.pieces:
            if tensors[piece.name].is_floating_point():
                piece.of(tensors).mul_(1.25)
        after = streams(other)
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert all(same[: player.first + 1]), player.name
        assert not same[min(player.first + 1, body.depth + 1)] or player.kind == "embedding", player.name
        assert not same[-1], player.name


def images_for_tiny(model: Model) -> torch.Tensor:
    return torch.randn(2, 3, *[adapter(model).side] * 2, generator=torch.Generator().manual_seed(0))


def test_attention_and_mlp_take_their_norms_and_scales_along() -> None:
    players = {p.name: [piece.name for piece in p.pieces] for p in players_of(tiny("LayerScale"))}
    assert list(players) == [
        "embedding", "L0 attention", "L0 MLP", "L1 attention", "L1 MLP", "classifier",
    ]  # fmt: skip
    own = {name.removeprefix("blocks.1.").split(".")[0] for name in players["L1 attention"]}
    assert own == {"norm1", "attn", "ls1"}
    own = {name.removeprefix("blocks.1.").split(".")[0] for name in players["L1 MLP"]}
    assert own == {"norm2", "mlp", "ls2"}
    assert players["classifier"] == ["norm.weight", "norm.bias", "head.weight", "head.bias"]


@pytest.mark.parametrize("family", [*CONVOLUTIONAL, *KINDS])
def test_where_blocks_are_not_parted_a_block_is_a_player(family: str) -> None:
    model = made(family)
    kinds = [p.kind for p in players_of(model)]
    assert kinds.count("block") == adapter(model).depth
    assert set(kinds) <= {"embedding", "block", "classifier"}


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in CONVOLUTIONAL])
def test_heads_and_a_rest_make_up_the_attention(family: str) -> None:
    """A head's slices are those that its own write depends on, and no other head's does."""
    model = tiny(family)
    body, layer = adapter(model), adapter(model).depth - 1
    players = split_heads(model, players_of(model), [layer])
    assert all(bool((n == 1).all()) for n in times_covered(model, players).values())
    heads = [p for p in players if p.kind == "head"]
    assert [p.name for p in heads] == [f"L{layer}H{h}" for h in range(body.units(layer))]
    images = images_for_tiny(model)

    @torch.inference_mode()
    def written(of: Model) -> torch.Tensor:
        own = adapter(of)
        z: list[torch.Tensor] = []
        handles = own.listen(layer, z, [], images=len(images))
        own.model(images)
        for handle in handles:
            handle.remove()
        return own.head_outputs(layer, z[0])

    before = written(model)
    for number, player in enumerate(heads):
        other = copy.deepcopy(model)
        tensors = other.state_dict()
        for piece in player.pieces:
            piece.of(tensors).mul_(1.25)
        changed = [not torch.equal(a, b) for a, b in zip(before, written(other), strict=True)]
        assert changed == [h == number for h in range(len(heads))]


def test_a_block_without_attention_has_no_heads() -> None:
    model = tiny("resnet, basic")
    with pytest.raises(InputError, match="block 1: is not parted into heads"):
        split_heads(model, players_of(model), [1])


def test_merging_keeps_embedding_and_classifier_and_joins_adjacent_blocks() -> None:
    players = players_of(tiny("class token", depth=12))
    assert [p.name for p in merge(players)] == [
        "embedding", "L0 to L2", "L3 to L5", "L6 to L7", "L8 to L9", "L10 to L11", "classifier",
    ]  # fmt: skip
    assert [p.name for p in merge(players[13:])] == ["L6", "L7", "L8", "L9", "L10", "L11", "classifier"]
    assert [p.first for p in merge(players)] == [-1, 0, 3, 6, 8, 10, 12]
    apart = [p for p in players if p.first in (1, 4, 5)]
    assert [p.name for p in merge(apart, 2)] == ["L1, L4", "L5"]


def test_weights_are_compared_to_the_bit_and_counters_of_batches_are_not() -> None:
    model = tiny("resnet, basic")
    other = copy.deepcopy(model)
    players = players_of(model)
    other.layer2[0].bn1.num_batches_tracked += 5
    assert are_same(model, other, players) == [True] * len(players)
    with torch.no_grad():
        other.layer2[0].bn1.running_mean[0] = torch.nextafter(other.layer2[0].bn1.running_mean[0], torch.tensor(9.0))
    assert [p.name for p, same in zip(players, are_same(model, other, players), strict=True) if not same] == ["L1"]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (None, "reference: no reference model is given"),
        (tiny(embed_dim=16), r"cls_token: is \(1, 1, 32\) in the audited model, is \(1, 1, 16\) in the reference"),
        (tiny(depth=1), r"blocks.1.norm1.weight: is \(32,\) in the audited model, is missing in the reference"),
        (tiny("LayerScale"), r"blocks.0.ls1.gamma: is missing in the audited model, is \(32,\) in the reference"),
        (tiny(classes=5), r"head.weight: is \(3, 32\) in the audited model, is \(5, 32\) in the reference"),
        (tiny(num_heads=2), "block 0: has 4 heads in the audited model, 2 in the reference"),
    ],
)
def test_what_is_no_reference_is_refused_in_a_line(reference: Model | None, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        check_reference(reference, tiny())
    assert isinstance(caught.value, AuditError)
    assert "\n" not in str(caught.value)


def test_a_model_of_the_same_build_is_a_reference() -> None:
    check_reference(tiny(seed=1), tiny())


def test_what_no_half_of_a_block_holds_leaves_the_block_whole() -> None:
    model = tiny()
    model.blocks[1].gain = nn.Parameter(torch.ones(32))
    assert [p.name for p in players_of(model)][1:] == ["L0 attention", "L0 MLP", "L1", "classifier"]
