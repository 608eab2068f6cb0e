"""Colour and blur: effects that are known to be there, and that the instrument must find, and find where they are.

Two forms. *Models*: heads of a model trained on clean images are patched into one trained on corrupted images, both
looking at clean images. *Input*: in one clean model, heads are patched from the clean image into its corrupted copy.
Scalar: log-odds of the true class, in nats. Another seed of the corrupted condition as donor moves it a little
too, so the effect of colour or detail is the paired difference to that null donor. The head is chosen on one half of
the images and judged on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.controls.sets import ControlSet, Role
from audit.controls.training import ControlModels, spoil
from audit.controls.verdict import judge, mean_interval
from audit.data.pixels import Pixels
from audit.models.predict import batches
from audit.models.transforms import as_input
from audit.patching.engine import Donor, patch_layer
from audit.patching.hooks import donor_writes, patch_with_hooks
from audit.patching.sites import Trace, record, sites_of
from audit.patching.sweep import class_log_odds
from audit.records import Control, Estimate, HeadGrid

Array = npt.NDArray[np.float64]
BATCH = 32
MEASUREMENTS = 6
JUDGING_VERSION = 2  # raise when what is measured or judged below changes: kept verdicts are then made anew
HALF = 0.5  # a joint patch must carry more than this share; a null must carry less
MORE_TRAINING = "raise controls.condition_epochs or controls.train_images, or choose other control images"
QUIET = "raise controls.eval_images; if it stays, head-level effects in this model cannot be told from noise"


@dataclass(frozen=True)
class Shift:
    """How patching moves the true class's log-odds (nats), image by image.

    Parameters
    ----------
    heads : numpy.ndarray (N, layers, heads)
        One head patched at a time; empty where only the joint patch was asked for.
    joint : numpy.ndarray (N,)
        All heads of those layers patched together.
    total : numpy.ndarray (N,)
        The donor's own log-odds minus the recipient's: what patching everything would give.
    """

    heads: Array
    joint: Array
    total: Array


def measure_shift(
    recipient: VisionTransformer,
    donor: VisionTransformer,
    recipient_pixels: Pixels,
    donor_pixels: Pixels,
    targets: npt.NDArray[np.int64],
    layers: range,
    *,
    singly: bool = True,
) -> Shift:
    """Patch the heads of ``layers`` jointly and, if asked, singly, image i donating to image i."""
    heads, joint, total = [], [], []
    for part in batches(len(targets), BATCH):
        truth = torch.from_numpy(targets[part])
        ours, theirs = as_input(recipient, recipient_pixels[part]), as_input(donor, donor_pixels[part])
        base, best = _log_odds(recipient, ours, truth), _log_odds(donor, theirs, truth)
        writes = donor_writes(donor, theirs, sites_of(donor, layers))
        joint.append(_true_class(patch_with_hooks(recipient, ours, writes), truth) - base)
        total.append(best - base)
        if singly:
            own, given = record(recipient, ours), Donor(donor, record(donor, theirs))
            heads.append(_single(recipient, own, given, layers, truth) - base[:, None, None])
    none = np.empty((0, len(layers), 0))
    return Shift(np.concatenate(heads) if singly else none, np.concatenate(joint), np.concatenate(total))


def _true_class(logits: torch.Tensor, truth: torch.Tensor) -> Array:
    picked = class_log_odds(logits.double()).gather(-1, truth.expand(logits.shape[:-1]).unsqueeze(-1))
    return picked.squeeze(-1).numpy()


@torch.inference_mode()
def _log_odds(model: VisionTransformer, images: torch.Tensor, truth: torch.Tensor) -> Array:
    return _true_class(model(images), truth)


def _single(model: VisionTransformer, own: Trace, donor: Donor, layers: range, truth: torch.Tensor) -> Array:
    per_layer = [_true_class(patch_layer(model, own, donor, i), truth) for i in layers]
    return np.stack(per_layer).transpose(2, 0, 1)


@dataclass(frozen=True)
class Channel:
    """Colour or blur: its models, images, and the words for it."""

    name: Role  # "colour" | "blur"
    carries: str  # "colour" | "fine detail"
    corruption: str  # "gray" | "blur"
    clean: VisionTransformer
    corrupted: VisionTransformer
    null: VisionTransformer
    pixels: Pixels
    targets: npt.NDArray[np.int64]
    layers: range


def channels(models: ControlModels, images: ControlSet, layers: range) -> list[Channel]:
    """Return the colour and the blur channel."""
    clean_blur = "clean_colour" if images.one_task else "clean_blur"
    named: Sequence[tuple[Role, str, str, str]] = (
        ("colour", "colour", "gray", "clean_colour"),
        ("blur", "fine detail", "blur", clean_blur),
    )
    return [
        Channel(
            name=role,
            carries=carries,
            corruption=corruption,
            clean=models.models[clean],
            corrupted=models.models[corruption],
            null=models.models[f"{corruption}_null"],
            pixels=images.evaluate,
            targets=images.targets[role][1],
            layers=layers,
        )
        for role, carries, corruption, clean in named
    ]


@dataclass(frozen=True)
class ChannelResult:
    """Controls and grids of one channel."""

    controls: list[Control]
    grids: list[HeadGrid]


def run_channel(channel: Channel, *, seed: int = 0, tick: Callable[[], None] | None = None) -> ChannelResult:
    """Measure one channel in both forms with its nulls, and judge it; ``tick`` is called MEASUREMENTS times."""
    clean, corrupted, null_donor = channel.clean, channel.corrupted, channel.null
    whole, spoilt = channel.pixels, spoil(channel.pixels, channel.corruption)

    def measure(
        recipient: VisionTransformer,
        donor: VisionTransformer,
        images: Pixels,
        donor_images: Pixels,
        *,
        singly: bool = True,
    ) -> Shift:
        shift = measure_shift(recipient, donor, images, donor_images, channel.targets, channel.layers, singly=singly)
        if tick is not None:
            tick()
        return shift

    effect = measure(corrupted, clean, whole, whole)
    null = measure(corrupted, null_donor, whole, whole)
    on_input = measure(clean, clean, spoilt, whole)
    shuffled = measure(corrupted, clean, whole, whole[_elsewhere(channel.targets)], singly=False)
    blind = measure(corrupted, clean, spoilt, spoilt, singly=False)
    blind_null = measure(corrupted, null_donor, spoilt, spoilt, singly=False)
    order = np.random.default_rng(seed).permutation(len(channel.targets))
    choose, judge_on = order[: len(order) // 2], order[len(order) // 2 :]
    specific = Shift(effect.heads - null.heads, effect.joint - null.joint, effect.total - null.total)
    controls = [
        *_form_controls(channel, specific, choose, judge_on, form="models"),
        *_form_controls(channel, on_input, choose, judge_on, form="input"),
        _quiet(channel, "other_seed", null.joint, effect.total),
        _quiet(channel, "shuffled", shuffled.joint, effect.total),
        _quiet(channel, "nothing_to_carry", blind.joint - blind_null.joint, effect.total),
    ]
    return ChannelResult(controls, _grids(channel, specific, null, on_input))


def _elsewhere(targets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
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


def _form_controls(
    channel: Channel, shift: Shift, choose: npt.NDArray[np.int64], rest: npt.NDArray[np.int64], *, form: str
) -> list[Control]:
    """Judge total gap, joint patch and the best head of one form."""
    name, carries = channel.name, channel.carries
    setting = f"{name} control, " + (
        f"clean model into {channel.corruption} model" if form == "models" else f"clean into {channel.corruption} image"
    )
    total, joint = mean_interval(shift.total), mean_interval(shift.joint)
    row, head = best_head(shift.heads[choose])
    single = mean_interval(shift.heads[rest, row, head])
    share = float(shift.joint.mean() / shift.total.mean()) if shift.total.mean() > 0 else float("nan")
    site = f"L{channel.layers[row]}H{head}"
    beyond = "minus the same for the null donor, " if form == "models" else ""
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
            statistic=f"shift by all heads jointly ({joint.value:.2f} nats) as a share of the whole effect",
            estimate=Estimate(value=share if np.isfinite(share) else None),
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


def _quiet(channel: Channel, which: str, joint: Array, total: Array) -> Control:
    """Judge a null: all heads patched jointly must carry less than half of the true effect."""
    words = {
        "other_seed": (
            f"A donor that knows no more about {channel.carries} carries none",
            f"another seed of the {channel.corruption} condition as donor",
        ),
        "shuffled": (
            "Donors that show other images carry no help",
            "the clean model as donor, looking at images of other classes",
        ),
        "nothing_to_carry": (
            f"Where the images hold no {channel.carries}, none is carried",
            f"both models looking at {channel.corruption} images, minus the same for the null donor",
        ),
    }
    title, setting = words[which]
    found = mean_interval(joint)
    whole = float(total.mean())
    return judge(
        id=f"{channel.name}_null_{which}",
        title=title,
        kind="null",
        setting=f"{channel.name} control, {setting}",
        statistic="upper end of the shift by all heads jointly, nats (limit: half of the true effect)",
        estimate=found,
        judged=found.high,
        relation="<",
        threshold=HALF * max(whole, 0.0),
        n=len(joint),
        meaning="No effect is reported where there is none.",
        mend=QUIET,
    )


def _grids(channel: Channel, specific: Shift, null: Shift, on_input: Shift) -> list[HeadGrid]:
    corruption = channel.corruption
    pictures = [
        (channel.name, f"{channel.name.capitalize()}: what each head carries", specific,
         f"Heads of the clean model patched into the {corruption} model, minus the same for the null donor."),
        (f"{channel.name}_null", f"{channel.name.capitalize()}, null: a donor that knows no more", null,
         f"Heads of another {corruption} model patched into the {corruption} model."),
        (f"{channel.name}_input", f"{channel.name.capitalize()}: clean image into its {corruption} copy", on_input,
         "One clean model; heads patched from the clean image into the corrupted one."),
    ]  # fmt: skip
    return [_grid(channel, *picture) for picture in pictures]


def _grid(channel: Channel, name: str, title: str, shift: Shift, caption: str) -> HeadGrid:
    means = shift.heads.mean(0)
    errors = shift.heads.std(0, ddof=1) / np.sqrt(len(shift.heads))
    marks = [["beyond null" if m - 3 * e > 0 else "" for m, e in zip(*rows, strict=True)]
             for rows in zip(means, errors, strict=True)]  # fmt: skip
    return HeadGrid(
        id=name,
        title=title,
        unit="nats of the true class's log-odds",
        values=[[float(v) for v in row] for row in means],
        marks=marks,
        layers=list(channel.layers),
        caption=f"{caption} Marked: at least three standard errors above zero.",
    )
