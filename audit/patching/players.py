"""The players of a model: parts of its weights that are exchanged as one, each tensor in exactly one part.

Per block of a transformer its attention with its norm, and its MLP with its norm; where a block is not parted so, the
block. Before the blocks the embedding, after them the classifier with the last norm. A norm's affine part belongs to
what reads it, a batch norm's weights and statistics to their convolution's block, LayerScale to its branch, what leads
from one stage to the next to the block that it follows, positions that blocks share to the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Literal, get_args

import numpy as np
import torch

from audit.errors import InputError, ModelError
from audit.models.adapters.base import Adapter
from audit.models.adapters.heads import Heads
from audit.models.adapters.registry import Model, adapter
from audit.models.load import COUNTED
from audit.units import name_of

Kind = Literal["embedding", "attention", "mlp", "block", "head", "rest", "classifier"]
Tensors = Mapping[str, torch.Tensor]
KINDS: tuple[Kind, ...] = get_args(Kind)
EMBEDDING: Final = "embedding"
CLASSIFIER: Final = "classifier"
HALVES: tuple[Kind, Kind] = ("attention", "mlp")
MOST_PLAYERS = 7  # of a Shapley average: all hybrids of so many are 128


@dataclass(frozen=True)
class Piece:
    """A tensor of a state dict, or what of it lies between two places along an axis."""

    name: str
    axis: int = 0
    start: int = 0
    stop: int | None = None  # None: the whole tensor

    def of(self, tensors: Tensors) -> torch.Tensor:
        """Return a view of the piece in a state dict."""
        tensor = tensors[self.name]
        return tensor if self.stop is None else tensor.narrow(self.axis, self.start, self.stop - self.start)


@dataclass(frozen=True)
class Player:
    """Tensors that are exchanged as one."""

    name: str  # such as "L9 attention"
    kind: Kind
    first: int  # the first block of which the output depends on it; -1 of the embedding, the depth of the classifier
    pieces: tuple[Piece, ...]


def players_of(model: Model) -> list[Player]:
    """Return the players of a model, input first; each tensor of its state dict is in exactly one."""
    body, names = adapter(model), list(model.state_dict())
    places: dict[str, tuple[int, Kind]] = {f"{name}.": (body.depth, CLASSIFIER) for name in body.last}
    for layer in range(body.depth):
        places |= _places(body, layer, names)
    held: dict[tuple[int, Kind], list[Piece]] = {}
    for name in names:
        begins = [begin for begin in places if name.startswith(begin)]
        place = places[max(begins, key=len)] if begins else (-1, EMBEDDING)
        held.setdefault(place, []).append(Piece(name))
    in_order = sorted(held, key=lambda place: (place[0], KINDS.index(place[1])))
    return [_player(*place, held[place]) for place in in_order]


def _places(body: Adapter, layer: int, names: Sequence[str]) -> dict[str, tuple[int, Kind]]:
    """Return how the names of a block's tensors begin, and which part of it each is of."""
    own, *leading_on = body.names(layer)
    halves: dict[str, tuple[int, Kind]] = {
        f"{own}{begin}": (layer, kind)
        for kind, begins in zip(HALVES, body.halves, strict=False)
        for begin in begins
    }  # fmt: skip
    if halves and all(name.startswith(tuple(halves)) for name in names if name.startswith(own)):
        return halves | dict.fromkeys(leading_on, (layer, HALVES[-1]))
    return dict.fromkeys((own, *leading_on), (layer, "block"))


def _player(layer: int, kind: Kind, pieces: Sequence[Piece]) -> Player:
    names = {"attention": f"L{layer} attention", "mlp": f"L{layer} MLP", "block": f"L{layer}"}
    return Player(names.get(kind, kind), kind, layer, tuple(pieces))


def check_reference(reference: Model | None, audited: Model) -> None:
    """Raise unless there is a reference that is built as the audited model is.

    Raises
    ------
    ModelError
        Naming the first tensor that differs.
    """
    if reference is None:
        fix = "give a model trained from the same start on a sample balanced over groups and labels"
        raise ModelError("reference", "no reference model is given", fix)
    theirs, ours = ({name: tuple(t.shape) for name, t in m.state_dict().items()} for m in (reference, audited))
    fix = "give a reference of the audited model's architecture"
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if ours.get(name) != theirs.get(name):
            here, there = (_shape(shapes.get(name)) for shapes in (ours, theirs))
            raise ModelError(name, f"{here} in the audited model, {there} in the reference", fix)
    bodies = adapter(audited), adapter(reference)
    for layer in range(bodies[0].depth):
        here, there = (str(body.units(layer)) for body in bodies)
        if here != there:  # which no shape tells
            what = f"has {here} {bodies[0].unit}s in the audited model, {there} in the reference"
            raise ModelError(f"block {layer}", what, fix)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "is missing" if shape is None else f"is {shape}"


def are_same(reference: Model, audited: Model, players: Sequence[Player]) -> list[bool]:
    """Tell for each player whether two models have the same weights there, bit for bit."""
    theirs, ours = reference.state_dict(), audited.state_dict()
    return [
        all(torch.equal(p.of(theirs), p.of(ours)) for p in player.pieces if not p.name.endswith(COUNTED))
        for player in players
    ]


def split_heads(model: Model, players: Sequence[Player], layers: Sequence[int]) -> list[Player]:
    """Return players with the attention of some blocks parted into its heads, and a rest.

    A head is its slices of the matrices of queries, keys, values and output; norms, biases, scales and positions are
    shared, and are the rest.

    Raises
    ------
    InputError
        If a block has no attention of its own.
    """
    split: list[Player] = []
    wanted = set(layers)
    for player in players:
        if player.kind == "attention" and player.first in wanted:
            wanted.remove(player.first)
            split += _heads(model, player)
        else:
            split.append(player)
    if wanted:
        raise InputError(f"block {min(wanted)}", "is not parted into heads", "name blocks with an attention player")
    return split


def _heads(model: Model, player: Player) -> list[Player]:
    body, layer = adapter(model), player.first
    assert isinstance(body, Heads)  # what has an attention has heads
    count, tensors = body.units(layer), model.state_dict()
    whole: dict[str, torch.Tensor] = {piece.name: piece.of(tensors) for piece in player.pieces}
    pieces: list[list[Piece]] = [[] for _ in range(count)]
    projection = body.projection(layer).weight
    parts = [(weight, 0) for weight in body.inner_weights(layer)] + [(projection, 1)]
    for weight, axis in parts:
        name = next(
            n for n, t in whole.items() if t.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
        )
        offset = (weight.storage_offset() - whole[name].storage_offset()) // whole[name].stride(0)
        width = weight.shape[axis] // count
        for head, own in enumerate(pieces):
            own.append(Piece(name, axis, offset + head * width, offset + (head + 1) * width))
    shared = tuple(p for p in player.pieces if p.name not in {own.name for own in pieces[0]})
    heads = [Player(name_of(body.unit, layer, h), "head", layer, tuple(own)) for h, own in enumerate(pieces)]
    return [*heads, *([Player(f"{player.name}, rest", "rest", layer, shared)] if shared else [])]


def merge(players: Sequence[Player], most: int = MOST_PLAYERS) -> list[Player]:
    """Merge the parts of each block into a player, and adjacent blocks until there are at most ``most`` players.

    Embedding and classifier stay players of their own. Give only those of which the weights differ.

    Parameters
    ----------
    players : sequence of Player
        Input first.
    most : int
        At least 3.
    """
    blocks = [list(own) for _, own in groupby(players, key=lambda player: player.first)]
    inside = [own for own in blocks if own[0].kind not in (EMBEDDING, CLASSIFIER)]
    room = max(1, most - (len(blocks) - len(inside)))
    if len(inside) > room:
        parts = np.array_split(np.arange(len(inside)), room)
        inside = [[player for place in part for player in inside[place]] for part in parts]
    before, after = ([p for p in players if p.kind == kind] for kind in (EMBEDDING, CLASSIFIER))
    return [*before, *(_together(own) for own in inside), *after]


def _together(players: Sequence[Player]) -> Player:
    layers = sorted({player.first for player in players})
    adjacent = layers[-1] - layers[0] == len(layers) - 1
    names = [f"L{layer}" for layer in layers]
    name = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}" if adjacent else ", ".join(names)
    return Player(name, "block", layers[0], tuple(piece for player in players for piece in player.pieces))
