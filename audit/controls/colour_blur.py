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
import numpy.typing as npt
import torch
from scipy import stats
from timm.models.vision_transformer import VisionTransformer

from audit.controls.sets import ControlSet, Role
from audit.controls.training import ControlModels, spoil
from audit.controls.verdict import judge, mean_interval
from audit.data.pixels import Pixels
from audit.models.predict import batches, classify
from audit.models.transforms import as_input
from audit.patching.engine import Donor, add_to_stream, patch_attention, patch_layer
from audit.patching.sites import Site, Trace, head_writes, record, same_up_to
from audit.patching.sweep import class_log_odds
from audit.records import Control, Estimate, HeadGrid

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
BATCH = 32
MEASUREMENTS = 6
CHOOSE_AT_MOST = 200  # images on which every head is tried, to rank them; at most half of all
HALF = 0.5  # a joint patch must carry more than this share; a null must carry less
RESAMPLES = 2000
MORE_TRAINING = "raise controls.condition_epochs or controls.train_images, or choose other control images"
QUIET = "raise controls.eval_images or controls.donor_seeds; if it stays, head effects here cannot be told from noise"


@dataclass(frozen=True)
class Channel:
    """Colour or blur: its models, images, and the words for it.

    Parameters
    ----------
    clean, null : tuple of VisionTransformer
        The donors, trained on clean and on corrupted images; those at the same place are of one seed.
    corrupted : VisionTransformer
        The recipient, of a seed of its own.
    untrained : VisionTransformer
        Of the same architecture, weights drawn by lot.
    """

    name: Role  # "colour" | "blur"
    carries: str  # "colour" | "fine detail"
    corruption: str  # "gray" | "blur"
    clean: tuple[VisionTransformer, ...]
    corrupted: VisionTransformer
    null: tuple[VisionTransformer, ...]
    untrained: VisionTransformer
    pixels: Pixels
    targets: Index
    layers: range


def channels(
    models: ControlModels, images: ControlSet, layers: range, *, untrained: VisionTransformer
) -> list[Channel]:
    """Return the colour and the blur channel."""
    named: Sequence[tuple[Role, str, str]] = (("colour", "colour", "gray"), ("blur", "fine detail", "blur"))
    return [
        Channel(
            name=role,
            carries=carries,
            corruption=corruption,
            clean=tuple(models.models[n] for n in models.donors(role, "clean")),
            corrupted=models.models[corruption],
            null=tuple(models.models[n] for n in models.donors(role, corruption)),
            untrained=untrained,
            pixels=images.evaluate,
            targets=images.targets[role][1],
            layers=layers,
        )
        for role, carries, corruption in named
    ]


@dataclass(frozen=True)
class Giver:
    """A donor model and the images that it looks at."""

    model: VisionTransformer
    pixels: Pixels


@dataclass(frozen=True)
class Shift:
    """How patching moves the true class's log-odds (nats), image by image.

    Parameters
    ----------
    joint : numpy.ndarray (N,)
        All heads of the layers patched together.
    total : numpy.ndarray (N,)
        The donor's own log-odds minus the recipient's: what patching everything would give.
    single : numpy.ndarray (N,)
        One head patched.
    """

    joint: Array
    total: Array
    single: Array

    def __neg__(self) -> Shift:
        return Shift(-self.joint, -self.total, -self.single)

    def __sub__(self, other: Shift) -> Shift:
        return Shift(self.joint - other.joint, self.total - other.total, self.single - other.single)

    @staticmethod
    def mean(shifts: Sequence[Shift]) -> Shift:
        """Average image by image."""
        columns = zip(*((s.joint, s.total, s.single) for s in shifts), strict=True)
        joint, total, single = (np.mean(c, axis=0) for c in columns)
        return Shift(joint, total, single)


def measure_heads(
    recipient: VisionTransformer, pixels: Pixels, givers: Mapping[str, Giver], targets: Index, layers: range
) -> dict[str, Array]:
    """Patch every head of ``layers`` by itself, image i of a giver donating to image i.

    Returns
    -------
    dict of str to numpy.ndarray (N, layers, heads)
        Shift of the true class's log-odds in nats, for each giver.
    """
    parts: dict[str, list[Array]] = {name: [] for name in givers}
    sharing = _sharing(recipient, pixels, givers, layers.start)
    for part in batches(len(targets), BATCH):
        truth = torch.from_numpy(targets[part])
        own = record(recipient, as_input(recipient, pixels[part]))
        base = _true_class(_finish(recipient, own), truth)
        for name, giver in givers.items():
            donor = _donor(giver, part, own if name in sharing else None, layers.start)
            shifts = [_true_class(patch_layer(recipient, own, donor, i), truth) - base for i in layers]
            parts[name].append(np.stack(shifts).transpose(2, 0, 1))
    return {name: np.concatenate(p) for name, p in parts.items()}


def measure_shifts(
    recipient: VisionTransformer,
    pixels: Pixels,
    givers: Mapping[str, Giver],
    targets: Index,
    layers: range,
    site: Site,
) -> dict[str, Shift]:
    """Patch all heads of ``layers`` jointly, and that of ``site`` by itself, image i of a giver donating to image i."""
    parts: dict[str, list[Shift]] = {name: [] for name in givers}
    sharing = _sharing(recipient, pixels, givers, layers.start)
    for part in batches(len(targets), BATCH):
        truth = torch.from_numpy(targets[part])
        own = record(recipient, as_input(recipient, pixels[part]))
        base = _true_class(_finish(recipient, own), truth)
        for name, giver in givers.items():
            donor = _donor(giver, part, own if name in sharing else None, layers.start)
            joint = _true_class(patch_attention(recipient, own, donor, layers), truth)
            total = _true_class(_finish(giver.model, donor.trace), truth)
            single = _true_class(patch_layer(recipient, own, donor, site.layer, [site.head])[0], truth)
            parts[name].append(Shift(joint - base, total - base, single - base))
    return {
        name: Shift(*(np.concatenate([getattr(s, f) for s in p]) for f in ("joint", "total", "single")))
        for name, p in parts.items()
    }


def measure_random_direction(
    recipient: VisionTransformer, pixels: Pixels, donor: VisionTransformer, targets: Index, site: Site, *, seed: int
) -> Array:
    """Change what ``site`` writes by as much as the donor's head would, token by token, but in a random direction.

    Returns
    -------
    numpy.ndarray (N,)
        Shift of the true class's log-odds in nats.
    """
    lot = torch.Generator().manual_seed(seed)
    parts: list[Array] = []
    for part in batches(len(targets), BATCH):
        truth = torch.from_numpy(targets[part])
        own = record(recipient, as_input(recipient, pixels[part]))
        theirs = record(donor, as_input(donor, pixels[part]))
        base = _true_class(_finish(recipient, own), truth)
        ours, given = (
            head_writes(m, site.layer, t.z[site.layer])[site.head] for m, t in ((recipient, own), (donor, theirs))
        )
        aside = torch.randn(ours.shape, generator=lot)
        aside *= (given - ours).norm(dim=-1, keepdim=True) / aside.norm(dim=-1, keepdim=True)
        logits = add_to_stream(recipient, own, site.layer, aside.unsqueeze(0))[0]
        parts.append(_true_class(logits, truth) - base)
    return np.concatenate(parts)


def _sharing(recipient: VisionTransformer, pixels: Pixels, givers: Mapping[str, Giver], start: int) -> set[str]:
    """Name the givers that look at the recipient's own images through the same frozen blocks."""
    return {n for n, g in givers.items() if g.pixels is pixels and same_up_to(recipient, g.model, start)}


def _donor(giver: Giver, part: slice, prefix: Trace | None, start: int) -> Donor:
    images = as_input(giver.model, giver.pixels[part])
    return Donor(giver.model, record(giver.model, images, prefix=prefix, start=start))


@torch.inference_mode()
def _finish(model: VisionTransformer, trace: Trace) -> torch.Tensor:
    return classify(model, trace.leaving)


def _true_class(logits: torch.Tensor, truth: torch.Tensor) -> Array:
    picked = class_log_odds(logits.double()).gather(-1, truth.expand(logits.shape[:-1]).unsqueeze(-1))
    return picked.squeeze(-1).numpy()


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
        *_form_controls(channel, effect, rest, site, form="models"),
        *_form_controls(channel, on_input, rest, input_site, form="input"),
        _noising(channel, _beyond_null(loss), site, form="models"),
        _noising(channel, -loss["input"], site, form="input"),
        _quiet(channel, "other_seed", _odd_one_out(seen).joint, joint_limit),
        _quiet(channel, "shuffled", seen["shuffled"].joint, joint_limit),
        _quiet(channel, "untrained", seen["untrained"].joint, joint_limit),
        _quiet(channel, "nothing_to_carry", _beyond_null(blind).joint, joint_limit),
        _quiet(channel, "nothing_to_carry_head", _beyond_null(blind).single[rest], head_limit, site),
        _quiet(channel, "random_direction", aside, head_limit, site),
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


def _odd_one_out(shifts: Mapping[str, Shift]) -> Shift:
    """Return the first null donor's shift minus the mean of the other ones': two sides that know equally little."""
    first, *others = [s for name, s in shifts.items() if name.startswith("null")]
    return first - Shift.mean(others)


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


def _share(joint: Array, total: Array) -> Estimate:
    """Return a ratio of means with its bootstrap interval over images; no value where the whole may be 0 or less."""
    if not (mean_interval(total).low or 0.0) > 0:
        return Estimate(value=None)

    def ratio(x: Array, y: Array, axis: int = -1) -> Array:
        share: Array = x.mean(axis=axis) / y.mean(axis=axis)
        return share

    drawn = stats.bootstrap(
        (joint, total), ratio, paired=True, vectorized=True, n_resamples=RESAMPLES, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Estimate(value=float(joint.mean() / total.mean()), low=float(drawn.low), high=float(drawn.high), level=0.95)


def _form_controls(channel: Channel, shift: Shift, rest: Index, site: Site, *, form: str) -> list[Control]:
    """Judge total gap, joint patch and the best head of one form."""
    name, carries = channel.name, channel.carries
    setting = f"{name} control, " + (
        f"clean model into {channel.corruption} model" if form == "models" else f"clean into {channel.corruption} image"
    )
    total, joint = mean_interval(shift.total), mean_interval(shift.joint)
    single = mean_interval(shift.single[rest])
    beyond = f"minus the same for null donors ({len(channel.null)} seeds), " if form == "models" else ""
    return [
        judge(
            id=f"{name}_gap_{form}",
            title=f"There is an effect of {carries} to find",
            kind="effect",
            setting=setting,
            statistic=f"lower end of the log-odds of the true class, donor minus recipient, {beyond}nats",
            estimate=total,
            judged=total.low,
            relation=">",
            threshold=0.0,
            n=len(shift.total),
            meaning=f"With {carries} the model knows something that it does not know without; the interval excludes 0.",
            mend=MORE_TRAINING,
        ),
        judge(
            id=f"{name}_joint_{form}",
            title=f"The attention heads together carry most of the effect of {carries}",
            kind="effect",
            setting=setting,
            statistic=f"lower end of the shift by all heads jointly ({joint.value:.2f} nats) as a share of the whole "
            "effect",
            estimate=(share := _share(shift.joint, shift.total)),
            judged=share.low,
            relation=">",
            threshold=HALF,
            n=len(shift.joint),
            meaning="Patching attention is a way to move this information at all.",
            mend=MORE_TRAINING,
        ),
        judge(
            id=f"{name}_head_{form}",
            title=f"A single head is found to carry {carries}",
            kind="effect",
            setting=setting,
            statistic=f"lower end of the shift by {site} alone, {beyond}on images not used to choose it, nats",
            estimate=single,
            judged=single.low,
            relation=">",
            threshold=0.0,
            n=len(rest),
            meaning=f"A search over heads finds {carries}, and the find holds on other images.",
            mend=MORE_TRAINING,
        ),
    ]


def _noising(channel: Channel, loss: Shift, site: Site, *, form: str) -> Control:
    """Judge what all heads jointly take away when the donor lacks what the recipient has."""
    name, carries, corruption = channel.name, channel.carries, channel.corruption
    setting = f"{corruption} model into clean model" if form == "models" else f"{corruption} image into clean image"
    beyond = "beyond what another clean donor takes, " if form == "models" else ""
    share = _share(loss.joint, loss.total)
    return judge(
        id=f"{name}_noising_{form}",
        title=f"The attention heads together can take {carries} away again",
        kind="effect",
        setting=f"{name} control, {setting}",
        statistic=f"lower end of the loss of log-odds by all heads jointly ({loss.joint.mean():.2f} nats, {beyond}"
        f"{site} alone {loss.single.mean():.3f}) as a share of the whole loss",
        estimate=share,
        judged=share.low,
        relation=">",
        threshold=HALF,
        n=len(loss.joint),
        meaning="What patching shows to be enough in one direction is needed in the other.",
        mend=MORE_TRAINING,
    )


def _quiet(channel: Channel, which: str, shift: Array, limit: Array, site: Site | None = None) -> Control:
    """Judge a null: it must carry less than ``limit``, half of the true effect on the same images."""
    carries, corruption = channel.carries, channel.corruption
    words = {
        "other_seed": (
            f"A donor that knows no more about {carries} carries less than half of its effect",
            f"one seed of the {corruption} condition as donor, minus the same for its other seeds",
        ),
        "shuffled": (
            "Donors that show other images help less than half as much",
            "the clean model as donor, looking at images of other classes",
        ),
        "untrained": (
            "A donor that has learned nothing helps less than half as much",
            "a model of random weights as donor",
        ),
        "nothing_to_carry": (
            f"Where the images hold no {carries}, patching helps less than half as much",
            f"all models looking at {corruption} images, minus the same for null donors",
        ),
        "nothing_to_carry_head": (
            f"Where the images hold no {carries}, the head that was found helps less than half as much",
            f"all models looking at {corruption} images, minus the same for null donors",
        ),
        "random_direction": (
            "A random change as large as the head's helps less than half as much",
            f"at {site}, a random direction as long as the true change",
        ),
    }
    title, setting = words[which]
    # Another seed is above or below by lot, so both ways count; the others can only help, or harm, which is no effect.
    margins = [limit - shift, limit + shift] if which == "other_seed" else [limit - shift]
    below = min(map(mean_interval, margins), key=lambda e: -np.inf if e.low is None else e.low)
    means = f"{shift.mean():.3f} against {limit.mean() / HALF:.3f}"
    moved = "all heads jointly" if site is None else f"{site} alone"
    return judge(
        id=f"{channel.name}_null_{which}",
        title=title,
        kind="null",
        setting=f"{channel.name} control, {setting}",
        statistic=f"lower end of half of the true effect minus this one, {moved}, nats (effects: {means})",
        estimate=below,
        judged=below.low,
        relation=">",
        threshold=0.0,
        n=len(shift),
        meaning="What is reported as an effect is more than twice what shows up without its cause.",
        mend=QUIET,
    )


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
