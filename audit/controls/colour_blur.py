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
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from audit.controls.control_images import Role
from audit.controls.criteria import HALF, judge_form, judge_noising, judge_null
from audit.controls.measure import Array, Index, Shift
from audit.controls.ranking import HeadEffects
from audit.controls.spec import CALLED, ChannelSpec
from audit.records import Control, HeadGrid
from audit.store import write_bytes

GridKind = Literal["effect", "null", "input"]
HEADS = ("heads", "null_heads", "input_heads")
SHIFTS, FIELDS = ("clean", "corrupted", "noising"), ("joint", "total", "single")


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
            clean=shifts_of("clean", shifts),
            corrupted=shifts_of("corrupted", shifts),
            noising=shifts_of("noising", shifts),
            on_input=shifts["on_input"],
        )


def shifts_of(part: str, shifts: Mapping[str, Shift]) -> dict[str, Shift]:
    """Return the shifts of one exchange, by donor."""
    return {n.removeprefix(f"{part}/"): s for n, s in shifts.items() if n.startswith(f"{part}/")}


def _heads_of(held: Mapping[str, npt.NDArray[Any]], name: str) -> HeadEffects:
    """Return the effects of heads from a file; one of a version that patched all on all images has values alone."""
    if name in held:
        values = held[name]
        return HeadEffects(values, np.where(np.isnan(values).all(0), 0, len(values)))
    return HeadEffects(*(held[f"{name}/{f}"] for f in HeadEffects.FIELDS))


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
