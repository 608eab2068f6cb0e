"""Colour and blur measured: in three looks, each of which any number of processes can share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from audit.controls.colour_blur import FIELDS, Measured, shifts_of
from audit.controls.control_models import corrupt
from audit.controls.looks import Found, Look, Measurement, measure_here
from audit.controls.measure import (
    Array,
    ControlDonor,
    Exchange,
    Index,
    Shift,
    measure_exchanges,
    measure_random_direction,
)
from audit.controls.ranking import HeadEffects, Ranking, measure_rankings
from audit.controls.spec import Channel
from audit.data.pixels import Pixels
from audit.models.adapters.registry import Model
from audit.patching.sites import Site

CHOOSE_AT_MOST = 100  # images on which every head is tried, to rank them; at most half of all


def measure_channels(tried: Sequence[Channel], *, seed: int = 0, look: Look = measure_here) -> list[Measured]:
    """Measure channels in both forms with their nulls, in three looks that all of them take together.

    Parameters
    ----------
    tried : sequence of Channel
    seed : int
        Of which images heads are ranked on, and of the random direction.
    look : callable
        How a look is taken; by default one measurement after the other, in this process.
    """
    trials = [_Trial(channel, seed) for channel in tried]
    ranked = measure_rankings([r for trial in trials for r in trial.rankings()], look)
    effects = [(*on_models, *on_input) for on_models, on_input in zip(ranked[::2], ranked[1::2], strict=True)]
    last = [trial.last_look(heads, on_input) for trial, (heads, _, on_input) in zip(trials, effects, strict=True)]
    found = look("all images", [m for asked in last for m in asked])
    return [trial.measured(of_heads, found) for trial, of_heads in zip(trials, effects, strict=True)]


@dataclass(frozen=True)
class _Trial:
    """A channel on its way through the looks."""

    channel: Channel
    seed: int

    @cached_property
    def parts(self) -> tuple[Index, Index]:
        """Places of the images that heads are ranked on, and of the others."""
        order = np.random.default_rng(self.seed).permutation(len(self.channel.targets))
        choose, rest = np.split(order, [min(len(order) // 2, CHOOSE_AT_MOST)])
        return choose, rest

    @cached_property
    def corrupted_pixels(self) -> Pixels:
        """The images as the recipient was trained on them."""
        return corrupt(self.channel.pixels, self.channel.spec.corruption)

    def _name(self, what: str) -> str:
        return f"{self.channel.spec.name}, {what}"

    def rankings(self) -> tuple[Ranking, Ranking]:
        """Return what heads are ranked by, between models and from image to image."""
        channel, (choose, _) = self.channel, self.parts
        some, targets, layers = channel.pixels[choose], channel.targets[choose], channel.spec.layers
        recipient, donors = ControlDonor(channel.corrupted, some), _twins(channel, some)
        receiving = ControlDonor(channel.clean[0], self.corrupted_pixels[choose])
        whole = {"clean": ControlDonor(channel.clean[0], some)}
        sums = _effect_of_twins, _null_of_twins
        return (
            Ranking(self._name("models"), recipient, donors, targets, layers, sums),
            Ranking(self._name("input"), receiving, whole, targets, layers, (lambda found: found["clean"],)),
        )

    def last_look(self, heads: HeadEffects, on_input: HeadEffects) -> list[Measurement]:
        """Return what is measured once the best heads are known."""
        channel, rest = self.channel, self.parts[1]
        layers, targets, model = channel.spec.layers, channel.targets, channel.corrupted
        site, input_site = heads.best(layers), on_input.best(layers)
        exchanges = _exchanges(channel, self.corrupted_pixels, site, input_site)
        pairs = [f"{name}/{donor}" for name, exchange in exchanges.items() for donor in exchange.donors]
        others = channel.pixels[rest], channel.clean[0], targets[rest]
        aside = partial(_random_direction, model, *others, site, seed=self.seed)
        best = {"best": [[s.layer, s.head] for s in (site, input_site)]}
        shapes, every = dict.fromkeys(pairs, (len(FIELDS),)), range(len(targets))
        return [
            Measurement(
                self._name("exchanges"), model, every, shapes, partial(_shifts, exchanges, targets, layers),
                patches=2 * len(pairs), made_of=best,
            ),
            Measurement(
                self._name("random direction"), model, range(len(rest)), {"shift": ()}, aside,
                patches=3, made_of=best, whole=True,
            ),
        ]  # fmt: skip

    def measured(self, effects: Sequence[HeadEffects], found: Mapping[str, Found]) -> Measured:
        """Return what was found of heads, and at the last look."""
        heads, null_heads, input_heads = effects
        every = found[self._name("exchanges")]
        shifts = {name: Shift(*np.ascontiguousarray(columns.T)) for name, columns in every.items()}
        return Measured(
            self.channel.spec,
            heads,
            null_heads,
            input_heads,
            self.parts[1],
            found[self._name("random direction")]["shift"],
            clean=shifts_of("clean", shifts),
            corrupted=shifts_of("corrupted", shifts),
            noising=shifts_of("noising", shifts),
            on_input=shifts["input/clean"],
        )


def _shifts(exchanges: Mapping[str, Exchange], targets: Index, layers: range, *, images: range) -> Found:
    """Return the shifts of exchanges (images, FIELDS), by exchange and donor."""
    found = measure_exchanges(exchanges, targets, layers, images=images)
    return {
        f"{name}/{donor}": np.stack([getattr(shift, f) for f in FIELDS], axis=1)
        for name, shifts in found.items()
        for donor, shift in shifts.items()
    }


def _random_direction(
    recipient: Model, pixels: Pixels, donor: Model, targets: Index, site: Site, *, seed: int, images: range
) -> Found:
    """Return the shift by a random direction, of all images."""
    assert len(images) == len(targets)
    return {"shift": measure_random_direction(recipient, pixels, donor, targets, site, seed=seed)}


def _exchanges(channel: Channel, corrupted_pixels: Pixels, site: Site, input_site: Site) -> dict[str, Exchange]:
    """Return who gives to whom: on clean images, on corrupted ones, from one into the other, and the other way round.

    The other way round the first clean model receives, so the twins of its own seed are no donors.
    """
    pixels, one_clean = channel.pixels, channel.clean[0]
    others = {
        "shuffled": ControlDonor(one_clean, pixels[others_of_another_class(channel.targets)]),
        "untrained": ControlDonor(channel.untrained, pixels),
    }
    corrupted_inputs = {"input": ControlDonor(one_clean, corrupted_pixels)}
    return {
        "clean": Exchange(ControlDonor(channel.corrupted, pixels), _twins(channel, pixels) | others, site),
        "corrupted": Exchange(
            ControlDonor(channel.corrupted, corrupted_pixels), _twins(channel, corrupted_pixels), site
        ),
        "input": Exchange(
            ControlDonor(one_clean, corrupted_pixels), {"clean": ControlDonor(one_clean, pixels)}, input_site
        ),
        "noising": Exchange(ControlDonor(one_clean, pixels), _twins(channel, pixels, start=1) | corrupted_inputs, site),
    }


def _null_of_twins(found: Mapping[str, Array]) -> Array:
    null: Array = np.mean([v for name, v in found.items() if name.startswith("null")], axis=0)
    return null


def _effect_of_twins(found: Mapping[str, Array]) -> Array:
    clean: Array = np.mean([v for name, v in found.items() if name.startswith("clean")], axis=0)
    return clean - _null_of_twins(found)


def _twins(channel: Channel, pixels: Pixels, *, start: int = 0) -> dict[str, ControlDonor]:
    """Return clean donors and their null twins, from the ``start``-th seed on, all looking at ``pixels``."""
    named = [("clean", channel.clean), ("null", channel.null)]
    return {
        f"{kind}-{k}": ControlDonor(m, pixels) for kind, models in named for k, m in enumerate(models) if k >= start
    }


def others_of_another_class(targets: Index) -> Index:
    """Return for each image another one of a different class, as far as possible."""
    order = np.argsort(targets, kind="stable")
    jump = int(np.bincount(targets).max())
    partner = np.empty_like(order)
    partner[order] = np.roll(order, -jump)
    return partner
