"""Which trained weights put a gap there: hybrids of a reference and the audited model, player by player.

A hybrid has the weights of some players of the audited model and those of the reference elsewhere. Along a path the
players are exchanged one after the other, on the same images, until the model is the audited one. One scratch copy
walks from hybrid to hybrid: only what differs from the hybrid before is copied, and the pass of a batch is taken up
where the stream that enters the first block that is exchanged was kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from audit.batching import in_batches, max_batch_size
from audit.data.ahead import in_image_batches
from audit.data.pixels import Images, Pixels, Rows
from audit.errors import InputError
from audit.models.adapters.registry import Model, adapter
from audit.models.device import device_of, in_double, memory_of
from audit.models.load import COUNTED
from audit.models.named import NamedNetwork
from audit.models.readout import Readout, readout_of
from audit.models.transforms import as_input
from audit.patching.players import MOST_PLAYERS, Player, are_same, check_reference
from audit.patching.sites import trace_bytes
from audit.progress import Progress

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int64]
Taken = frozenset[int]  # numbers of the players whose weights are the audited model's
BATCH = 64  # images, as where the audited model is measured as it is
PAIRS = 8  # of an order and its reverse
MOST_IMAGES = 500  # of a Shapley average


@dataclass(frozen=True)
class Answers:
    """What H hybrids answer to N images, for each audited outcome."""

    predicted: Codes  # (N, H), class numbers
    called: Mapping[str, Mask]  # (N, H), whether the image is called the outcome
    probability: Mapping[str, Array]  # (N, H)
    log_odds: Mapping[str, Array]  # (N, H), nats
    logits: Mapping[str, npt.NDArray[np.float32]]  # (N, H), the outcome's own

    def take(self, hybrids: Sequence[int]) -> Answers:
        """Return the answers of some hybrids, in their order."""
        columns = list(hybrids)
        return Answers(
            predicted=self.predicted[:, columns],
            called={name: values[:, columns] for name, values in self.called.items()},
            probability={name: values[:, columns] for name, values in self.probability.items()},
            log_odds={name: values[:, columns] for name, values in self.log_odds.items()},
            logits={name: values[:, columns] for name, values in self.logits.items()},
        )


@dataclass(frozen=True)
class Path:
    """Answers along a path: of the reference, then with one player after the other exchanged."""

    players: tuple[str, ...]  # in the order in which they are exchanged
    same: tuple[bool, ...]  # of each player, whether both models have its weights, so that exchanging it is nothing
    answers: Answers  # of players + 1 hybrids; the last is the audited model


@dataclass(frozen=True)
class Coalitions:
    """Answers of hybrids with sets of players exchanged, from which Shapley values are made."""

    players: tuple[str, ...]
    members: Mask  # (H, players), which are exchanged in each hybrid
    orders: Codes | None  # (orders, players), each followed by its reverse; None where all 2^players hybrids are there
    answers: Answers


def hybrid(reference: Model, audited: Model, players: Sequence[Player]) -> Model:
    """Return a model of its own with the audited model's weights of some players, and the reference's elsewhere.

    Raises
    ------
    ModelError
        If there is no reference, or it is built otherwise.
    """
    walker = _Walker(reference, audited, players)
    walker.exchange(frozenset(range(len(players))))
    return walker.model


def path(
    reference: Model,
    audited: Model,
    images: torch.Tensor | Images,
    order: Sequence[Player],
    outcomes: Mapping[str, int],
    *,
    rows: Rows | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return what one order of :func:`paths` gives."""
    (found,) = paths(reference, audited, images, [order], outcomes, rows=rows, progress=progress)
    return found


def paths(
    reference: Model,
    audited: Model,
    images: torch.Tensor | Images,
    orders: Sequence[Sequence[Player]],
    outcomes: Mapping[str, int],
    *,
    rows: Rows | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Exchange all players one after the other, in each of some orders; the images pass once.

    Parameters
    ----------
    reference, audited : Model
        Built alike, in evaluation mode. How answers are read is the audited model's.
    images : torch.Tensor (N, channels, side, side), or Images
        Tensors as the model reads them; images are made so.
    orders : sequence of sequence of Player
        Each holds all weights that differ, such as ``players_of(audited)``, input first, or the same reversed. With
        attention and MLP of the last d of D blocks exchanged, a path takes ``1 + d (d + 1) / D`` forward passes.
    outcomes : mapping of str to int
        Audited outcomes and their class numbers.
    rows : numpy.ndarray, optional
        Which of the images, in order.
    progress : callable, optional
        Called with the images done and in all.

    Returns
    -------
    list of Path

    Raises
    ------
    ModelError
        If there is no reference, or it is built otherwise.
    InputError
        If an order leaves weights out, or has some twice, or there is no image.
    """
    every = list(dict.fromkeys(player for order in orders for player in order))
    walker = _Walker(reference, audited, every)
    same = dict(zip(every, are_same(reference, audited, every), strict=True))
    chains: list[list[Taken]] = []
    for order in orders:
        walker.check_whole(order)
        taken: list[Taken] = [frozenset()]
        for player in order:
            taken.append(taken[-1] if same[player] else taken[-1] | {every.index(player)})
        chains.append(taken)
    # Every other path is walked back, from the model where the one before ends.
    walk = [taken for number, chain in enumerate(chains) for taken in chain[:: -1 if number % 2 else 1]]
    place = {taken: number for number, taken in enumerate(dict.fromkeys(walk))}
    answers = _answers(walker, list(place), images, rows, outcomes, progress)
    return [
        Path(
            tuple(player.name for player in order),
            tuple(same[player] for player in order),
            answers.take([place[taken] for taken in chain]),
        )
        for order, chain in zip(orders, chains, strict=True)
    ]


def shapley(
    reference: Model,
    audited: Model,
    images: torch.Tensor | Images,
    players: Sequence[Player],
    outcomes: Mapping[str, int],
    *,
    seed: int,
    pairs: int = PAIRS,
    rows: Rows | None = None,
    progress: Progress | None = None,
) -> Coalitions:
    """Measure the hybrids that Shapley values of the players need.

    Parameters
    ----------
    reference, audited, images, outcomes, rows, progress
        As of :func:`paths`; at most 500 images.
    players : sequence of Player
        Input first; all weights that differ, such as ``merge`` gives them.
    seed : int
        Of the orders, where some are drawn.
    pairs : int
        How many orders are drawn, each beside its reverse. Where there are at most 7 players, and all sets of them
        cost no more blocks than these orders would, all are measured and no order is drawn.

    Raises
    ------
    ModelError
        If there is no reference, or it is built otherwise.
    InputError
        If the players leave weights out, or there are too many images, or none, or no pairs.
    """
    walker, number = _Walker(reference, audited, players), len(players)
    walker.check_whole(players)
    if (n := len(images) if rows is None else len(rows)) > MOST_IMAGES:
        raise InputError("images", f"are {n}", f"draw {MOST_IMAGES} or less")
    if pairs < 1:
        raise InputError("pairs", f"are {pairs}", "draw one or more")
    orders = draw_orders(number, pairs, seed)
    chains = [frozenset(order[:k].tolist()) for order in orders for k in range(number + 1)]
    sets = chains
    if number <= MOST_PLAYERS:
        every = [frozenset(compress(range(number), row)) for row in product((False, True), repeat=number)]
        if walker.blocks_run(every) <= walker.blocks_run(chains):
            sets = every
    held = sorted({tuple(k in taken for k in range(number)) for taken in sets})  # the last players change most often
    walk = [frozenset(compress(range(number), row)) for row in held]
    answers = _answers(walker, walk, images, rows, outcomes, progress)
    members = np.array(held, dtype=np.bool_).reshape(len(held), number)
    return Coalitions(tuple(p.name for p in players), members, orders if sets is chains else None, answers)


def draw_orders(players: int, pairs: int, seed: int) -> Codes:
    """Return orders (2 * pairs, players), each followed by its reverse; the same for the same seed."""
    rng = np.random.default_rng([seed, players])
    drawn = [rng.permutation(players) for _ in range(pairs)]
    both: Codes = np.array([order for d in drawn for order in (d, d[::-1])], dtype=np.int64)
    return both.reshape(2 * pairs, players)


class _Walker:
    """A scratch copy of the reference that becomes one hybrid after the other."""

    def __init__(self, reference: Model, audited: Model, players: Sequence[Player]) -> None:
        check_reference(reference, audited)
        self.model: Model = copy.deepcopy(reference).eval()
        self.readout = readout_of(audited)
        self.model.readout = self.readout
        self.players = list(players)
        self._own, self._theirs, self._ours = (m.state_dict() for m in (self.model, reference, audited))
        self._taken: Taken = frozenset()

    @property
    def depth(self) -> int:
        """Blocks of the model."""
        return adapter(self.model).depth

    @torch.no_grad()
    def exchange(self, taken: Taken) -> None:
        """Become the hybrid with these players of the audited model: only what differs from before is copied."""
        for number in taken ^ self._taken:
            given = self._ours if number in taken else self._theirs
            for piece in self.players[number].pieces:
                piece.of(self._own).copy_(piece.of(given))
        self._taken = taken

    def check_whole(self, order: Sequence[Player]) -> None:
        """Raise unless exchanging these players, one by one, makes the audited model of the reference."""
        held = dict.fromkeys(self._own, 0)
        for piece in (piece for player in order for piece in player.pieces):
            held[piece.name] += piece.of(self._own).numel()
        if twice := next((name for name, numbers in held.items() if numbers > self._own[name].numel()), None):
            raise InputError("players", f"exchange {twice} twice", "give each player once")
        self.exchange(frozenset(self.players.index(player) for player in order))
        left = next((n for n, t in self._own.items() if not (n.endswith(COUNTED) or torch.equal(t, self._ours[n]))), "")
        self.exchange(frozenset())
        if left:
            raise InputError("players", f"leave out {left}, which differs", "give all players that differ")

    def first_changed(self, before: Taken, after: Taken) -> int:
        """Return the first block that must be run again between two hybrids; past the depth where none."""
        return min((self.players[number].first for number in before ^ after), default=self.depth + 1)

    def blocks_run(self, walk: Sequence[Taken]) -> int:
        """Return how many blocks run of each image where these hybrids follow each other."""
        changed = (self.first_changed(a, b) for a, b in pairwise(walk))
        return self.depth + sum(max(0, self.depth - max(0, first)) for first in changed)

    @torch.inference_mode()
    def logits(self, images: torch.Tensor, walk: Sequence[Taken]) -> Iterator[torch.Tensor]:
        """Yield the logits (B, classes) of each hybrid, those of the last one to the bit where nothing is exchanged."""
        body = adapter(self.model)
        kept: dict[int, torch.Tensor] = {}
        starts = {self.first_changed(before, after) for before, after in pairwise(walk)}
        given: torch.Tensor | None = None
        for taken in walk:
            first = -1 if given is None else self.first_changed(self._taken, taken)
            self.exchange(taken)
            if given is None or first <= self.depth:
                stream = body.embed(images) if first < 0 else kept[first]
                for layer in range(max(0, first), self.depth + 1):
                    if layer in starts:
                        kept[layer] = self._set_aside(stream)
                    stream = body.run(layer, stream) if layer < self.depth else body.classify(stream)
                given = stream
            yield given

    def _set_aside(self, stream: torch.Tensor) -> torch.Tensor:
        """Keep a stream; a network of somebody else's may write over what it is given."""
        return stream.clone() if isinstance(self.model, NamedNetwork) else stream


def _answers(
    walker: _Walker,
    walk: Sequence[Taken],
    images: torch.Tensor | Images,
    rows: Rows | None,
    outcomes: Mapping[str, int],
    progress: Progress | None,
) -> Answers:
    """Return what the hybrids of a walk answer, image by image."""
    total, done = len(images) if rows is None else len(rows), 0
    if not total:
        raise InputError("images", "there are none", "give one at least")
    device = device_of(walker.model)
    size = max_batch_size(BATCH, trace_bytes(walker.model), share=0.5, free=memory_of(device))

    def answers_to(part: torch.Tensor) -> list[Answers]:
        nonlocal done
        found = [_read(logits, outcomes, walker.readout) for logits in walker.logits(part, walk)]
        done += len(part)
        if progress is not None:
            progress(done, total)
        return found

    def of_pixels(pixels: Pixels) -> list[Answers]:
        return answers_to(as_input(walker.model, pixels))

    if isinstance(images, torch.Tensor):
        given = images if rows is None else images[torch.from_numpy(rows)]
        parts = in_batches(lambda part: answers_to(given[part].to(device)), total, size)
    else:
        parts = in_image_batches(of_pixels, images, rows, size=size)
    return _put_together(parts, outcomes)


def _read(logits: torch.Tensor, outcomes: Mapping[str, int], readout: Readout) -> Answers:
    """Read the logits (B, classes) of one hybrid."""
    exact = in_double(logits)
    predicted, called = readout.predicted(exact), readout.called(exact)
    p, m = readout.probabilities(exact), readout.log_odds(exact)

    def is_called(number: int) -> torch.Tensor:
        return predicted == number if called is None else called[:, number]

    return Answers(
        predicted=predicted.numpy(),
        called={name: is_called(number).numpy() for name, number in outcomes.items()},
        probability={name: p[:, number].numpy() for name, number in outcomes.items()},
        log_odds={name: m[:, number].numpy() for name, number in outcomes.items()},
        logits={name: logits[:, number].float().cpu().numpy() for name, number in outcomes.items()},
    )


def _put_together(parts: Sequence[Sequence[Answers]], outcomes: Mapping[str, int]) -> Answers:
    """Put the answers of each batch and hybrid side by side."""

    def laid_out(of: Callable[[Answers], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.concatenate([np.stack([of(answers) for answers in part], axis=1) for part in parts])

    def by_outcome(of: Callable[[Answers], Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
        def of_one(name: str) -> npt.NDArray[Any]:
            return laid_out(lambda answers: of(answers)[name])

        return {name: of_one(name) for name in outcomes}

    return Answers(
        predicted=laid_out(lambda answers: answers.predicted),
        called=by_outcome(lambda answers: answers.called),
        probability=by_outcome(lambda answers: answers.probability),
        log_odds=by_outcome(lambda answers: answers.log_odds),
        logits=by_outcome(lambda answers: answers.logits),
    )
