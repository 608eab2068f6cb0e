"""Colour and blur: effects that are known to be there, and that the instrument must find, and find where they are.

Two forms. *Models*: heads of a model trained on clean images are patched into one trained on corrupted images, both
looking at clean images. *Input*: in one clean model, heads are patched from the clean image into its corrupted copy.
Both forms are run the other way too, from corrupted to clean: what a patch can bring, a patch must be able to take.
Scalar: log-odds of the true class, in nats. A donor of another seed moves it a little too, whatever it was trained
on. So each clean donor has a twin, a null donor: trained with the same seed, in the same order, but on corrupted
images as the recipient was. The effect of colour or detail is the difference between the two, image by image, averaged
over several such seeds. Heads are ranked on some images (``ranking``), and the best is judged on the others.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from audit.controls.control_images import Role
from audit.controls.control_models import corrupt
from audit.controls.criteria import HALF, judge_form, judge_noising, judge_null
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
from audit.controls.spec import CALLED, Channel, ChannelSpec
from audit.data.pixels import Pixels
from audit.models.adapters.registry import Model
from audit.patching.sites import Site
from audit.records import Control, HeadGrid
from audit.store import write_bytes

GridKind = Literal["effect", "null", "input"]
HEADS = ("heads", "null_heads", "input_heads")
SHIFTS, FIELDS = ("clean", "corrupted", "noising"), ("joint", "total", "single")
CHOOSE_AT_MOST = 100  # images on which every head is tried, to rank them; at most half of all


@dataclass(frozen=True)
class ChannelResult:
    """Controls and grids of one channel."""

    controls: list[Control]
    grids: list[HeadGrid]


@dataclass(frozen=True)
class Measured:
    """What was measured of one channel, image by image: all that its controls and grids are computed from.

    Parameters
    ----------
    spec : ChannelSpec
    heads, null_heads, input_heads : HeadEffects
        Shifts on the images that heads are ranked on: by clean donors beyond their twins, by the twins, and from clean
        into corrupted images.
    rest : numpy.ndarray of int
        Places of the other images, on which the best head is judged.
    random_direction : numpy.ndarray
        Shift of each of those by a random direction.
    clean, corrupted, noising : mapping of str to Shift
        By donor: on clean images, on corrupted ones, and with the first clean model receiving.
    on_input : Shift
        From clean into corrupted images.
    """

    spec: ChannelSpec
    heads: HeadEffects
    null_heads: HeadEffects
    input_heads: HeadEffects
    rest: Index
    random_direction: Array
    clean: Mapping[str, Shift]
    corrupted: Mapping[str, Shift]
    noising: Mapping[str, Shift]
    on_input: Shift

    def save(self, path: Path) -> None:
        """Write all arrays to one file, whole or not at all."""
        shifts = {f"{part}/{name}": s for part in SHIFTS for name, s in getattr(self, part).items()}
        shifts["on_input"] = self.on_input
        columns = {f"{name}/{f}": getattr(s, f) for name, s in shifts.items() for f in FIELDS}
        plain = {f"{name}/{f}": getattr(getattr(self, name), f) for name in HEADS for f in HeadEffects.FIELDS}
        plain |= {"rest": self.rest, "random_direction": self.random_direction}
        layers = np.array([self.spec.layers.start, self.spec.layers.stop])
        page = io.BytesIO()
        seeds, unit = np.array(self.spec.seeds), np.array(self.spec.unit)
        np.savez_compressed(page, layers=layers, seeds=seeds, unit=unit, **plain, **columns)
        write_bytes(path, page.getvalue())

    @staticmethod
    def load(path: Path, role: Role) -> Measured:
        """Read what ``save`` wrote of the channel ``role``."""
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
        shifts = {
            name.removesuffix("/joint"): Shift(*(held[name.removesuffix("joint") + f] for f in FIELDS))
            for name in held
            if name.endswith("/joint")
        }

        return Measured(
            spec=ChannelSpec(
                role, *CALLED[role], range(*held["layers"].tolist()), int(held["seeds"]), held["unit"].item()
            ),
            **{name: _heads_of(held, name) for name in HEADS},
            rest=held["rest"],
            random_direction=held["random_direction"],
            clean=_of("clean", shifts),
            corrupted=_of("corrupted", shifts),
            noising=_of("noising", shifts),
            on_input=shifts["on_input"],
        )


def _of(part: str, shifts: Mapping[str, Shift]) -> dict[str, Shift]:
    """Return the shifts of one exchange, by donor."""
    return {n.removeprefix(f"{part}/"): s for n, s in shifts.items() if n.startswith(f"{part}/")}


def _heads_of(held: Mapping[str, npt.NDArray[Any]], name: str) -> HeadEffects:
    """Return the effects of heads from a file; one of a version that patched all on all images has values alone."""
    if name in held:
        values = held[name]
        return HeadEffects(values, np.where(np.isnan(values).all(0), 0, len(values)))
    return HeadEffects(*(held[f"{name}/{f}"] for f in HeadEffects.FIELDS))


def measure_channels(tried: Sequence[Channel], *, seed: int = 0, look: Look = measure_here) -> list[Measured]:
    """Measure channels in both forms with their nulls, in three looks that all of them take together."""
    trials = [_Trial(channel, seed) for channel in tried]
    ranked = measure_rankings([r for trial in trials for r in trial.rankings()], look)
    effects = [(*on_models, *on_input) for on_models, on_input in zip(ranked[::2], ranked[1::2], strict=True)]
    last = [trial.last_look(heads, on_input) for trial, (heads, _, on_input) in zip(trials, effects, strict=True)]
    found = look("all images", [m for asked in last for m in asked])
    return [trial.measured(of_heads, found) for trial, of_heads in zip(trials, effects, strict=True)]


@dataclass(frozen=True)
class _Trial:
    """A channel that is measured: the images that heads are ranked on, and the rest."""

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
        others = channel.pixels[rest], channel.clean[0], targets[rest]
        aside = partial(_random_direction, model, *others, site, seed=self.seed)
        pairs = [f"{name}/{donor}" for name, exchange in exchanges.items() for donor in exchange.donors]
        best = {"best": [[s.layer, s.head] for s in (site, input_site)]}
        return [
            Measurement(
                self._name("exchanges"),
                model,
                range(len(targets)),
                dict.fromkeys(pairs, (len(FIELDS),)),
                partial(_shifts, exchanges, targets, layers),
                patches=2 * len(pairs),
                made_of=best,
            ),
            Measurement(
                self._name("random direction"),
                model,
                range(len(rest)),
                {"shift": ()},
                aside,
                patches=3,
                made_of=best,
                whole=True,
            ),
        ]

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
            clean=_of("clean", shifts),
            corrupted=_of("corrupted", shifts),
            noising=_of("noising", shifts),
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


def judge_channel(measured: Measured) -> ChannelResult:
    """Judge what was measured of one channel."""
    spec, clean, rest = measured.spec, measured.clean, measured.rest
    site, input_site = measured.heads.best(spec.layers), measured.input_heads.best(spec.layers)
    effect = _beyond_null(clean)
    joint_limit, head_limit = HALF * effect.total, HALF * effect.single[rest]
    corrupted = _beyond_null(measured.corrupted)
    controls = [
        *judge_form(spec, effect, rest, site, form="models"),
        *judge_form(spec, measured.on_input, rest, input_site, form="input"),
        judge_noising(spec, _beyond_null(measured.noising), site, form="models"),
        judge_noising(spec, -measured.noising["input"], site, form="input"),
        _worst([judge_null(spec, "other_seed", odd.joint, joint_limit) for odd in _odd_ones_out(clean)]),
        judge_null(spec, "shuffled", clean["shuffled"].joint, joint_limit),
        judge_null(spec, "untrained", clean["untrained"].joint, joint_limit),
        judge_null(spec, "nothing_to_carry", corrupted.joint, joint_limit),
        judge_null(spec, "nothing_to_carry_head", corrupted.single[rest], head_limit, site),
        judge_null(spec, "random_direction", measured.random_direction, head_limit, site),
    ]
    grids = _grids(spec, measured.heads, measured.null_heads, measured.input_heads)
    return ChannelResult(controls, grids)


def _twins(channel: Channel, pixels: Pixels, *, start: int = 0) -> dict[str, ControlDonor]:
    """Return clean donors and their null twins, from the ``start``-th seed on, all looking at ``pixels``."""
    named = [("clean", channel.clean), ("null", channel.null)]
    return {
        f"{kind}-{k}": ControlDonor(m, pixels) for kind, models in named for k, m in enumerate(models) if k >= start
    }


def _beyond_null(shifts: Mapping[str, Shift]) -> Shift:
    """Return the clean donors' mean shift minus their null twins'."""
    clean, null = ([s for name, s in shifts.items() if name.startswith(kind)] for kind in ("clean", "null"))
    return Shift.mean(clean) - Shift.mean(null)


def _odd_ones_out(shifts: Mapping[str, Shift]) -> list[Shift]:
    """Return each null donor's shift minus the mean of the other ones': two sides that know equally little."""
    nulls = [s for name, s in shifts.items() if name.startswith("null")]
    return [odd - Shift.mean([s for s in nulls if s is not odd]) for odd in nulls]


def _worst(controls: Sequence[Control]) -> Control:
    """Return the control that comes closest to failing; one without a number first."""
    return min(controls, key=lambda c: -np.inf if c.estimate.low is None else c.estimate.low)


def others_of_another_class(targets: Index) -> Index:
    """Return for each image another one of a different class, as far as possible."""
    order = np.argsort(targets, kind="stable")
    jump = int(np.bincount(targets).max())
    partner = np.empty_like(order)
    partner[order] = np.roll(order, -jump)
    return partner


def _grids(channel: ChannelSpec, heads: HeadEffects, null: HeadEffects, on_input: HeadEffects) -> list[HeadGrid]:
    pictures: list[tuple[GridKind, str, HeadEffects]] = [
        ("effect", channel.name, heads),
        ("null", f"{channel.name}_null", null),
        ("input", f"{channel.name}_input", on_input),
    ]
    return [_grid(channel, *picture) for picture in pictures]


def _grid(channel: ChannelSpec, kind: GridKind, name: str, heads: HeadEffects) -> HeadGrid:
    values = heads.values
    means = values.mean(0)
    errors = values.std(0, ddof=1) / np.sqrt(len(values))
    return HeadGrid(
        id=name,
        kind=kind,
        channel=channel.name,
        unit="log-odds",
        values=[[None if np.isnan(v) else float(v) for v in row] for row in means],
        marks=[["above zero" if m - 3 * e > 0 else "" for m, e in zip(*rows, strict=True)]
               for rows in zip(means, errors, strict=True)],
        layers=list(channel.layers),
        images=len(values),
        patched=heads.fewest,
    )  # fmt: skip
