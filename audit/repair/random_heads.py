"""The control of an edit at named heads: heads drawn at random, alike in layer and in how much they write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import torch

from audit.models.adapters.registry import adapter
from audit.models.device import in_double
from audit.patching.sites import Site
from audit.repair.base import RepairInput
from audit.repair.heads import activations

MEASURED = 64  # images on which it is measured how much heads write
ROUNDING = 1e-9
TRIES = 200  # draws for each set that is asked for, before it is taken that there is no other


@dataclass(frozen=True)
class MatchedSets:
    """Sets of heads drawn at random, no two alike."""

    sets: tuple[tuple[Site, ...], ...]
    # Layers between a named head and one that may stand for it: 0 where its own layer has heads enough.
    layers_apart: int
    alone: tuple[Site, ...]  # named heads whose own layer has no other head

    @property
    def smallest_p(self) -> float:
        """The p-value of named heads that do better than every set."""
        return 1 / (len(self.sets) + 1)


def p_value(left: float, random: Sequence[float]) -> float | None:
    """Return how surely named heads leave less of a gap than random ones: the rank of theirs among all, as a share.

    Parameters
    ----------
    left : float
        Absolute gap that the edit leaves at the named heads.
    random : sequence of float
        Likewise at each set of random ones; None is returned where there is none.
    """
    as_good = sum(gap <= left + ROUNDING for gap in random)
    return (1 + as_good) / (1 + len(random)) if random else None


def matched_sets(given: RepairInput, draws: int) -> MatchedSets:
    """Draw sets of heads that are as many in each layer as the named ones, and write about as much.

    A named head's stand-in is drawn from its layer, the more often the nearer the norms of what both write are (with
    the smaller over the larger as the weight). Where that allows of fewer different sets than are asked for, layers
    one apart count as well, then two apart, and so on. No set holds a named head.

    Parameters
    ----------
    given : RepairInput
        Model, repair split, named heads and seed.
    draws : int
        How many sets are asked for; there may be fewer.
    """
    body, named = adapter(given.model), given.heads
    others = [Site(i, h) for i in range(body.depth) for h in range(body.units(i)) if Site(i, h) not in named]
    alone = tuple(site for site in named if body.units(site.layer) == sum(s.layer == site.layer for s in named))
    apart = next((reach for reach in range(body.depth) if _possible(named, others, reach) >= draws), body.depth - 1)
    norms = write_norms(given, sorted({s.layer for s in others if any(abs(s.layer - n.layer) <= apart for n in named)}))
    draw, found = np.random.default_rng([given.seed, 7]), dict[frozenset[Site], tuple[Site, ...]]()
    for _ in range(draws * TRIES):
        drawn = _drawn(named, others, apart, norms, draw)
        if drawn is not None:
            found.setdefault(frozenset(drawn), drawn)
        if len(found) == draws:
            break
    return MatchedSets(tuple(found.values()), apart, alone)


def _possible(named: tuple[Site, ...], others: list[Site], reach: int) -> int:
    """Return how many sets there are at least, if every named head's layer is looked at for itself."""
    sets = 1
    for layer in {site.layer for site in named}:
        wanted = sum(site.layer == layer for site in named)
        sets *= comb(sum(abs(site.layer - layer) <= reach for site in others), wanted)
    return sets if reach == 0 or len({site.layer for site in named}) == 1 else sets // len(named)


def _drawn(
    named: tuple[Site, ...], others: list[Site], reach: int, norms: dict[Site, float], draw: np.random.Generator
) -> tuple[Site, ...] | None:
    """Draw a stand-in for each named head; None where none is left for one of them."""
    chosen: list[Site] = []
    for site in named:
        left = [s for s in others if abs(s.layer - site.layer) <= reach and s not in chosen]
        if not left:
            return None
        pairs = [sorted((norms[site], norms[s])) for s in left]
        weights = np.array([(low + 1e-12) / (high + 1e-12) for low, high in pairs])
        chosen.append(left[int(draw.choice(len(left), p=weights / weights.sum()))])
    return tuple(sorted(chosen))


@torch.inference_mode()
def write_norms(given: RepairInput, layers: list[int]) -> dict[Site, float]:
    """Return how much the heads of some layers, and the named ones, write: the root mean square norm over tokens."""
    body, norms = adapter(given.model), dict[Site, float]()
    rows = np.arange(min(MEASURED, len(given.data.repair)), dtype=np.int64)
    for layer in sorted({*layers, *(site.layer for site in given.heads)}):
        squares, tokens = torch.zeros(body.units(layer), dtype=torch.float64), 0
        for z in activations(given, given.model, layer, rows):
            written = body.head_outputs(layer, z).flatten(1, -2)  # (heads, images * tokens, width)
            squares += in_double(written).square().sum((1, 2))
            tokens += written.shape[1]
        norms |= {Site(layer, head): float((squares[head] / tokens).sqrt()) for head in range(body.units(layer))}
    return norms
