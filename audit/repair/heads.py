"""Repairs at given heads: their weights moved to a balanced reference, trained alone, or emptied of the group.

What is edited are a head's values and output (``head_weights``); all other weights stay as they are, to the bit.
The edits take the heads from what they are given, confirmed ones or random ones alike. Beside
them the outcome's bias may be shifted, as ``choice`` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from audit.errors import DivergedError
from audit.models.adapters.registry import Model, adapter
from audit.models.device import in_double
from audit.models.predict import finish
from audit.patching.sites import Site
from audit.repair.base import Plain, RepairInput, Split, state_of
from audit.repair.choice import cell_of, choose_strength, gap_of, halves, label_weights
from audit.repair.head_weights import head_pieces, mixed, value_pieces
from audit.repair.seen import Rows, State, run_as_read, run_blocks, with_state

Made = tuple[State, dict[str, Plain]]
Array = npt.NDArray[np.float64]
STEPS = 80  # at least; whole epochs are trained
BATCH = 32
STEP = 0.05  # of the learning rate, in root mean squares of the tensor that is trained
GAP_WEIGHT = 4.0  # of the gap penalty, by that of staying as one was
RIDGE = 1e-4  # of the mean variance, added to what a head holds before it is inverted
NO_DIFFERENCE = 1e-9  # squared, in units of the spread


def named(given: RepairInput) -> dict[str, Plain]:
    """Return which heads are edited, as plain data."""
    return {"heads": [f"L{site.layer}H{site.head}" for site in given.heads]}


def heads_to_reference(given: RepairInput) -> Made:
    """Move the weights of the heads towards those of the balanced reference, which shares the audited model's start.

    Nothing is fitted: the whole repair split chooses how far.
    """
    assert given.reference is not None  # which the registry has checked
    own, other = state_of(given.model), state_of(given.reference)
    return _between(given, own, other, np.arange(len(given.data.repair), dtype=np.int64))


def _between(given: RepairInput, own: State, other: State, rows: Rows) -> Made:
    """Choose how far the heads go from the audited weights to others."""
    pieces = [piece for site in given.heads for piece in head_pieces(given.model, site)]

    def made(strength: float) -> State:
        return mixed(own, other, pieces, strength)

    chosen = choose_strength(given, made, rows)
    return chosen.of(given, made), chosen.told | named(given)


# Removal of the difference of groups


def heads_shifted(given: RepairInput) -> Made:
    """Take the difference of the groups' means out of what the heads hold, and so out of what they write.

    With D the differences of the means of z at equal labels, one of the prefix tokens and one of the others, and C the
    covariance of z, z becomes ``z - M (z - mean)`` with ``M = D (D' C^-1 D)^+ D' C^-1``: the least change, measured by
    C, after which no difference is left (as LEACE, Belrose et al. 2023, in closed form). A shift by group would need
    the group; this one is linear, and since the shares of attention sum to 1 it is folded into weights and bias of the
    head's values. Layer by layer, each fitted on what the layers before it have become, on half of the subjects.
    """
    fit, held = halves(given.data.repair, given.seed)
    return _between(given, state_of(given.model), emptied(given, fit), held)


def emptied(given: RepairInput, rows: Rows) -> State:
    """Return weights of which the heads hold no difference of the groups, as rows of the repair split show it."""
    state = state_of(given.model)
    for layer in sorted({site.layer for site in given.heads}):
        sites = [site for site in given.heads if site.layer == layer]
        for site, (removed, mean) in zip(sites, _differences(given, state, sites, rows), strict=True):
            _fold(given.model, state, site, removed, mean)
    return state


def _fold(model: Model, state: State, site: Site, removed: Array, mean: Array) -> None:
    """Take M (z - mean) out of a head, in weights in place; of a head without a bias of values, M z."""
    take = torch.from_numpy(np.eye(len(removed)) - removed)
    for piece in value_pieces(model, site):
        values = piece.of(state)
        if values.ndim == 2:
            values.copy_(take @ in_double(values))
        else:
            values.copy_(take @ in_double(values) + torch.from_numpy(removed @ mean))


def _differences(given: RepairInput, state: State, sites: list[Site], rows: Rows) -> list[tuple[Array, Array]]:
    """Return for heads of one layer what is to be removed, M (head width, head width), and the mean of z."""
    split = given.data.repair.take(rows)
    held = _held(given, state, sites, rows)
    of_image = np.concatenate([by_kind for _, by_kind in held])  # (N, kinds, heads, head width)
    count = sum(len(z) for z, _ in held)
    total = np.sum([z.sum(0) for z, _ in held], axis=0)
    second = np.sum([np.einsum("nhi,nhj->hij", z, z) for z, _ in held], axis=0)
    found = []
    for place in range(len(sites)):
        mean = total[place] / count
        spread = second[place] / count - np.outer(mean, mean)
        differences = gap_of(of_image[:, :, place], split, given.aim).T  # (head width, kinds)
        found.append((_removing(differences, spread), of_image[:, :, place].mean((0, 1))))
    return found


def _removing(differences: Array, spread: Array) -> Array:
    """Return the oblique projection M (d, d) onto differences (d, kinds), along what is uncorrelated with them."""
    size = max(float(np.trace(spread)) / len(spread), np.finfo(np.float64).tiny)
    along = np.linalg.solve(spread + RIDGE * size * np.eye(len(spread)), differences)
    inner = differences.T @ along
    if float(np.trace(inner)) < NO_DIFFERENCE:
        return np.zeros_like(spread)
    removed: Array = differences @ np.linalg.pinv(inner, rcond=1e-6, hermitian=True) @ along.T
    return removed


def _held(given: RepairInput, state: State, sites: list[Site], rows: Rows) -> list[tuple[Array, Array]]:
    """Return batches of z of every token (tokens, heads, head width), and its mean by image and kind of token."""
    layer, heads = sites[0].layer, [site.head for site in sites]
    model, body = with_state(given.model, state), adapter(given.model)
    found = []
    for z in activations(given, model, layer, rows):
        own = in_double(z.unflatten(-1, (body.units(layer), -1))[:, :, heads]).numpy()
        prefix = min(body.prefix_tokens, own.shape[1])
        kinds = [own[:, :prefix], own[:, prefix:]]
        by_kind = np.stack([kind.mean(1) for kind in kinds if kind.shape[1]], axis=1)
        found.append((own.reshape(-1, *own.shape[2:]), by_kind))
    return found


@torch.inference_mode()
def activations(given: RepairInput, model: Model, layer: int, rows: Rows) -> list[torch.Tensor]:
    """Return z (B, tokens, inner) of one layer, batch by batch, of rows of the repair split.

    ``model`` is the audited one up to the first of the heads, and may differ from there on.
    """
    first = min([layer, *(site.layer for site in given.heads)])
    found: list[torch.Tensor] = []
    for _, entering in given.seen.entering(first, rows):
        stream = run_blocks(model, entering, first, layer)
        handles = adapter(model).listen(layer, found, [], images=len(stream))
        try:
            run_as_read(model, layer, stream)
        finally:
            for handle in handles:
                handle.remove()
    return found


# Training of heads alone


def heads_finetuned(given: RepairInput) -> Made:
    """Train the heads' values and output alone, until both groups have the same mean log-odds at equal labels.

    The gap penalty is the squared gap of mean log-odds. All else is distilled from the audited model: how far each
    image's log-odds are from its group's mean, the mean of both groups together, and how other classes share the rest.
    Trained on half of the subjects; how far to go from the audited weights is chosen on the other half.
    """
    own, split = state_of(given.model), given.data.repair
    fit, held = halves(split, given.seed)
    model = with_state(given.model, own)
    losses = _train(given, model, fit, _Distilled(given, fit))
    state, told = _between(given, own, state_of(model), held)
    trained: dict[str, Plain] = {"epochs": len(losses), "losses": losses}
    return state, told | trained


class _Distilled:
    """The loss of heads that are trained: moved log-odds, distillation, and the penalty of what gap is left."""

    def __init__(self, given: RepairInput, rows: Rows) -> None:
        split, aim = given.data.repair.take(rows), given.aim
        logits = torch.from_numpy(given.seen.logits[rows])
        log_odds = in_double(given.readout.log_odds(logits)[:, aim.outcome]).numpy()
        self.goal = torch.from_numpy(_levelled(log_odds, split, given)).float()
        self.scale = max(float(np.var(log_odds)), 1e-12)
        self.logits, self.readout, self.outcome = logits, given.readout, aim.outcome
        self.side = torch.from_numpy((split.groups == aim.group).astype(np.int64) - (split.groups == aim.reference))
        self.targets, self.weights = torch.from_numpy(split.targets), label_weights(split, aim)
        self.others = [k for k in range(logits.shape[1]) if k != aim.outcome]

    def __call__(self, logits: torch.Tensor, places: Rows) -> torch.Tensor:
        """Return the loss of logits (B, classes) of places among the rows."""
        some = torch.from_numpy(places)
        goal, before = self.goal[some].to(logits), self.logits[some].to(logits)
        off = self.readout.log_odds(logits)[:, self.outcome] - goal
        loss = off.square().mean() / self.scale
        if self.readout.exclusive and len(self.others) > 1:
            shares = before[:, self.others].log_softmax(-1)
            given = logits[:, self.others].log_softmax(-1)
            loss = loss + F.kl_div(given, shares, reduction="batchmean", log_target=True)
        elif not self.readout.exclusive:
            loss = loss + (logits - before)[:, self.others].square().mean()
        return loss + GAP_WEIGHT * self._gap(off, self.side[some], self.targets[some]) / self.scale

    def _gap(self, off: torch.Tensor, side: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the squared gap that is left in a batch, over its labels with both groups."""
        total = off.new_zeros(())
        for label, weight in self.weights.items():
            both = [off[((side == s) & (targets == label)).to(off.device)] for s in (1, -1)]
            if all(len(one) for one in both):
                total = total + weight * (both[0].mean() - both[1].mean()).square()
        return total


def _levelled(log_odds: Array, split: Split, given: RepairInput) -> Array:
    """Return log-odds of which both groups' means are moved to the midpoint, label by label."""
    aim, level = given.aim, log_odds.copy()
    for label in label_weights(split, aim):
        cells = [cell_of(split, group, label) for group in (aim.group, aim.reference)]
        half = (log_odds[cells[0]].mean() - log_odds[cells[1]].mean()) / 2
        level[cells[0]] -= half
        level[cells[1]] += half
    return level


def _train(
    given: RepairInput, model: Model, rows: Rows, loss_of: Callable[[torch.Tensor, Rows], torch.Tensor]
) -> list[float]:
    """Train the heads' pieces of a model in place; return the mean loss of each epoch."""
    pieces = [piece for site in given.heads for piece in head_pieces(model, site)]
    held = dict(model.named_parameters())
    tensors = {name: held[name].requires_grad_(True) for name in sorted({piece.name for piece in pieces})}
    own = [nn.Parameter(piece.of(tensors).detach().clone()) for piece in pieces]
    rates = [STEP * float(part.detach().square().mean().sqrt()) for part in own]
    optimizer = torch.optim.Adam([{"params": [part], "lr": rate} for part, rate in zip(own, rates, strict=True)])
    parts = [slice(start, start + BATCH) for start in range(0, len(rows), BATCH)]
    epochs = -(-STEPS // len(parts))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(parts))
    order, first = np.random.default_rng([given.seed, 6]), min(site.layer for site in given.heads)
    losses: list[float] = []
    for epoch in range(epochs):
        drawn, total = order.permutation(len(rows)), 0.0
        for part in parts:
            places = drawn[part]
            ((_, stream),) = given.seen.entering(first, rows[places])
            loss = loss_of(finish(model, stream, first), places)
            gradient = dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))
            for piece, leaf in zip(pieces, own, strict=True):
                leaf.grad = piece.of(gradient).clone()
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                for piece, leaf in zip(pieces, own, strict=True):
                    piece.of(tensors).copy_(leaf)
            total += float(loss.detach()) * len(places)
        losses.append(total / len(rows))
        if not np.isfinite(losses[-1]):
            raise DivergedError(epoch + 1, losses[-1], "repair")
    model.requires_grad_(False)
    return losses


def at(given: RepairInput, sites: tuple[Site, ...]) -> RepairInput:
    """Return the same question at other heads; what was computed of the images is kept."""
    other = replace(given, heads=sites)
    other.__dict__.update(seen=given.seen, last=given.last)
    return other
