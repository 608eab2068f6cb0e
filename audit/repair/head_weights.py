"""Which numbers of a model's weights make what one head writes: its values, and its columns of the output projection.

Queries and keys decide where a head looks and are left as they are. The projection's bias belongs to no head.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from audit.models.adapters.heads import Heads
from audit.models.adapters.registry import Model, adapter
from audit.patching.players import Piece
from audit.patching.sites import Site
from audit.repair.seen import State


def separates_heads(model: Model) -> bool:
    """Tell whether a head's values and output are numbers of its own, that no other head has a part in."""
    body = adapter(model)
    return isinstance(body, Heads) and body.fault() == ""


def value_pieces(model: Model, site: Site) -> list[Piece]:
    """Return the pieces that make a head's values: of the weights (head width, width), of the bias where there is one.

    In the order of the adapter: weights first.
    """
    body = _heads(model)
    width = body.projection(site.layer).in_features // body.units(site.layer)
    found = []
    for made in body.values(site.layer):
        name, whole = _whole(model, made)
        first = (made.storage_offset() - whole.storage_offset()) // whole.stride(0) + site.head * width
        found.append(Piece(name, 0, first, first + width))
    return found


def output_piece(model: Model, site: Site) -> Piece:
    """Return the piece that turns what a head holds into what it writes: (width, head width)."""
    body = _heads(model)
    weight = body.projection(site.layer).weight
    width = weight.shape[1] // body.units(site.layer)
    return Piece(_whole(model, weight)[0], 1, site.head * width, (site.head + 1) * width)


def head_pieces(model: Model, site: Site) -> list[Piece]:
    """Return all pieces of a head: values, then output."""
    return [*value_pieces(model, site), output_piece(model, site)]


def mixed(own: State, other: State, pieces: Iterable[Piece], strength: float) -> dict[str, torch.Tensor]:
    """Return a copy of weights with pieces moved towards other weights: at 1 these are the others', to the bit."""
    new = {name: tensor.clone() for name, tensor in own.items()}
    for piece in pieces if strength else ():
        there = piece.of(other)
        piece.of(new).copy_(there if strength == 1 else piece.of(own).lerp(there, strength))
    return new


def _heads(model: Model) -> Heads:
    body = adapter(model)
    assert isinstance(body, Heads)  # which separates_heads tells beforehand
    return body


def _whole(model: Model, view: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Return the tensor of the state dict that another is a view of, with its name."""
    storage = view.untyped_storage().data_ptr()
    return next((n, t) for n, t in model.state_dict().items() if t.untyped_storage().data_ptr() == storage)
