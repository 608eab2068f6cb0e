"""Colour and blur: effects that are known to be there, and that the instrument must find, and find where they are.

Two forms. *Models*: heads of a model trained on clean images are patched into one trained on corrupted images, both
looking at clean images. *Input*: in one clean model, heads are patched from the clean image into its corrupted copy.
Both forms are run the other way too, from corrupted to clean: what a patch can bring, a patch must be able to take.
Scalar: log-odds of the true class, in nats. A donor of another seed moves it a little too, whatever it was trained
on. So each clean donor has a twin, a null donor: trained with the same seed, in the same order, but on corrupted
images as the recipient was. The effect of colour or detail is the difference between the two, image by image, averaged
over several such seeds. Heads are ranked on some images, and the best is judged on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from audit.controls.channel import Channel
from audit.controls.expected import HALF, judge_form, judge_noising, judge_null
from audit.controls.shifts import Array, Giver, Index, Shift, measure_heads, measure_random_direction, measure_shifts
from audit.controls.training import spoil
from audit.data.pixels import Pixels
from audit.patching.sites import Site
from audit.records import Control, HeadGrid

MEASUREMENTS = 6
CHOOSE_AT_MOST = 200  # images on which every head is tried, to rank them; at most half of all


@dataclass(frozen=True)
class ChannelResult:
    """Controls and grids of one channel."""

    controls: list[Control]
    grids: list[HeadGrid]


def run_channel(channel: Channel, *, seed: int = 0, tick: Callable[[], None] | None = None) -> ChannelResult:
    """Measure one channel in both forms with its nulls, and judge it; ``tick`` is called MEASUREMENTS times."""
    tick = tick or (lambda: None)
    whole, spoilt = channel.pixels, spoil(channel.pixels, channel.corruption)
    one_clean = channel.clean[0]
    order = np.random.default_rng(seed).permutation(len(channel.targets))
    choose, rest = np.split(order, [min(len(order) // 2, CHOOSE_AT_MOST)])

    some = whole[choose]
    by_donor = measure_heads(channel.corrupted, some, _twins(channel, some), channel.targets[choose], channel.layers)
    null_heads = np.mean([v for name, v in by_donor.items() if name.startswith("null")], axis=0)
    heads = np.mean([v for name, v in by_donor.items() if name.startswith("clean")], axis=0) - null_heads
    tick()
    input_heads = measure_heads(
        one_clean, spoilt[choose], {"clean": Giver(one_clean, some)}, channel.targets[choose], channel.layers
    )["clean"]
    tick()
    site, input_site = _best_site(heads, channel.layers), _best_site(input_heads, channel.layers)

    others = {
        "shuffled": Giver(one_clean, whole[_elsewhere(channel.targets)]),
        "untrained": Giver(channel.untrained, whole),
    }
    seen = measure_shifts(
        channel.corrupted, whole, _twins(channel, whole) | others, channel.targets, channel.layers, site
    )
    aside = measure_random_direction(channel.corrupted, whole[rest], one_clean, channel.targets[rest], site, seed=seed)
    tick()
    blind = measure_shifts(channel.corrupted, spoilt, _twins(channel, spoilt), channel.targets, channel.layers, site)
    tick()
    on_input = measure_shifts(
        one_clean, spoilt, {"clean": Giver(one_clean, whole)}, channel.targets, channel.layers, input_site
    )["clean"]
    tick()
    # The other way round: the first clean model receives, so the twins of its own seed are no donors.
    loss = measure_shifts(
        one_clean, whole, _twins(channel, whole, start=1) | {"input": Giver(one_clean, spoilt)}, channel.targets,
        channel.layers, site,
    )  # fmt: skip
    tick()

    effect = _beyond_null(seen)
    joint_limit, head_limit = HALF * effect.total, HALF * effect.single[rest]
    controls = [
        *judge_form(channel, effect, rest, site, form="models"),
        *judge_form(channel, on_input, rest, input_site, form="input"),
        judge_noising(channel, _beyond_null(loss), site, form="models"),
        judge_noising(channel, -loss["input"], site, form="input"),
        _worst([judge_null(channel, "other_seed", odd.joint, joint_limit) for odd in _odd_ones_out(seen)]),
        judge_null(channel, "shuffled", seen["shuffled"].joint, joint_limit),
        judge_null(channel, "untrained", seen["untrained"].joint, joint_limit),
        judge_null(channel, "nothing_to_carry", _beyond_null(blind).joint, joint_limit),
        judge_null(channel, "nothing_to_carry_head", _beyond_null(blind).single[rest], head_limit, site),
        judge_null(channel, "random_direction", aside, head_limit, site),
    ]
    grids = _grids(channel, heads, null_heads, input_heads)
    return ChannelResult(controls, grids)


def _twins(channel: Channel, pixels: Pixels, *, start: int = 0) -> dict[str, Giver]:
    """Return clean donors and their null twins, from the ``start``-th seed on, all looking at ``pixels``."""
    named = [("clean", channel.clean), ("null", channel.null)]
    return {f"{kind}-{k}": Giver(m, pixels) for kind, models in named for k, m in enumerate(models) if k >= start}


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


def _elsewhere(targets: Index) -> Index:
    """Return for each image another one of a different class, as far as possible."""
    order = np.argsort(targets, kind="stable")
    jump = int(np.bincount(targets).max())
    partner = np.empty_like(order)
    partner[order] = np.roll(order, -jump)
    return partner


def best_head(heads: Array) -> tuple[int, int]:
    """Return (row, head) of the largest mean of heads (N, layers, heads)."""
    row, head = np.unravel_index(int(heads.mean(0).argmax()), heads.shape[1:])
    return int(row), int(head)


def _best_site(heads: Array, layers: range) -> Site:
    row, head = best_head(heads)
    return Site(layers[row], head)


def _grids(channel: Channel, heads: Array, null: Array, on_input: Array) -> list[HeadGrid]:
    corruption = channel.corruption
    pictures = [
        (channel.name, f"{channel.name.capitalize()}: what each head carries", heads,
         f"Heads of clean models patched into the {corruption} model, minus the same for the null donors."),
        (f"{channel.name}_null", f"{channel.name.capitalize()}, null: donors that know no more", null,
         f"Heads of other {corruption} models patched into the {corruption} model."),
        (f"{channel.name}_input", f"{channel.name.capitalize()}: clean image into its {corruption} copy", on_input,
         "One clean model; heads patched from the clean image into the corrupted one."),
    ]  # fmt: skip
    return [_grid(channel, *picture) for picture in pictures]


def _grid(channel: Channel, name: str, title: str, heads: Array, caption: str) -> HeadGrid:
    means = heads.mean(0)
    errors = heads.std(0, ddof=1) / np.sqrt(len(heads))
    marks = [["above zero" if m - 3 * e > 0 else "" for m, e in zip(*rows, strict=True)]
             for rows in zip(means, errors, strict=True)]  # fmt: skip
    return HeadGrid(
        id=name,
        title=title,
        unit="nats of the true class's log-odds",
        values=[[float(v) for v in row] for row in means],
        marks=marks,
        layers=list(channel.layers),
        caption=f"{caption} {len(heads)} images. Marked: at least three standard errors above zero.",
    )
