"""What is expected of colour and blur, judged: effects must be there, and nulls must stay below half of them."""

from __future__ import annotations

import numpy as np
from scipy import stats

from audit.controls.identities import ENGINE_TOLERANCE
from audit.controls.measure import Array, Index, Shift
from audit.controls.spec import ChannelSpec
from audit.controls.verdict import judge, mean_interval
from audit.patching.sites import Site
from audit.records import Control, Estimate
from audit.units import name_of

HALF = 0.5  # a joint patch must carry more than this share; a null must carry less
ROUNDING = 2 * ENGINE_TOLERANCE  # nats of log-odds, a difference of two logits: an effect must be more than this
RESAMPLES = 2000
MORE_TRAINING = "raise controls.condition_epochs or controls.train_images, or choose other control images"
QUIET = "raise controls.eval_images or controls.donor_seeds; if it stays, head effects here cannot be told from noise"


def share_of(joint: Array, total: Array) -> Estimate:
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


def _named(channel: ChannelSpec, site: Site | None) -> str:
    return "" if site is None else name_of(channel.unit, site.layer, site.head)


def judge_form(channel: ChannelSpec, shift: Shift, rest: Index, site: Site, *, form: str) -> list[Control]:
    """Judge total gap, joint patch and the best head of one form."""
    name, carries = channel.name, channel.carries
    setting = f"{name} control, " + (
        f"clean model into {channel.corruption} model" if form == "models" else f"clean into {channel.corruption} image"
    )
    total, joint = mean_interval(shift.total), mean_interval(shift.joint)
    single = mean_interval(shift.single[rest])
    beyond = f"minus the same for null donors ({channel.seeds} seeds), " if form == "models" else ""
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
            threshold=ROUNDING,
            n=len(shift.total),
            meaning=f"With {carries} the model knows something that it does not know without; the interval excludes 0.",
            fix=MORE_TRAINING,
        ),
        judge(
            id=f"{name}_joint_{form}",
            title=f"The attention heads together carry most of the effect of {carries}",
            kind="effect",
            setting=setting,
            statistic=f"lower end of the shift by all heads jointly ({joint.value:.2f} nats) as a share of the whole "
            "effect",
            estimate=(share := share_of(shift.joint, shift.total)),
            judged=share.low,
            relation=">",
            threshold=HALF,
            n=len(shift.joint),
            meaning="Patching attention is a way to move this information at all.",
            fix=MORE_TRAINING,
        ),
        judge(
            id=f"{name}_head_{form}",
            title=f"A single head is found to carry {carries}",
            kind="effect",
            setting=setting,
            statistic=f"lower end of the shift by {_named(channel, site)} alone, {beyond}"
            "on images not used to choose it, nats",
            estimate=single,
            judged=single.low,
            relation=">",
            threshold=ROUNDING,
            n=len(rest),
            meaning=f"A search over heads finds {carries}, and the find holds on other images.",
            fix=MORE_TRAINING,
        ),
    ]


def judge_noising(channel: ChannelSpec, loss: Shift, site: Site, *, form: str) -> Control:
    """Judge what all heads jointly take away when the donor lacks what the recipient has."""
    name, carries, corruption = channel.name, channel.carries, channel.corruption
    setting = f"{corruption} model into clean model" if form == "models" else f"{corruption} image into clean image"
    beyond = "beyond what another clean donor takes, " if form == "models" else ""
    share = share_of(loss.joint, loss.total)
    return judge(
        id=f"{name}_noising_{form}",
        title=f"The attention heads together can take {carries} away again",
        kind="effect",
        setting=f"{name} control, {setting}",
        statistic=f"lower end of the loss of log-odds by all heads jointly ({loss.joint.mean():.2f} nats, {beyond}"
        f"{_named(channel, site)} alone {loss.single.mean():.3f}) as a share of the whole loss",
        estimate=share,
        judged=share.low,
        relation=">",
        threshold=HALF,
        n=len(loss.joint),
        meaning="What patching shows to be enough in one direction is needed in the other.",
        fix=MORE_TRAINING,
    )


def judge_null(channel: ChannelSpec, which: str, shift: Array, limit: Array, site: Site | None = None) -> Control:
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
            f"at {_named(channel, site)}, a random direction as long as the true change",
        ),
    }
    title, setting = words[which]
    # Another seed is above or below at random, so both ways count; the others can only help: harm is no effect.
    margins = [limit - shift, limit + shift] if which == "other_seed" else [limit - shift]
    below = min(map(mean_interval, margins), key=lambda e: -np.inf if e.low is None else e.low)
    means = f"{shift.mean():.3f} against {limit.mean() / HALF:.3f}"
    moved = "all heads jointly" if site is None else f"{_named(channel, site)} alone"
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
        fix=QUIET,
    )
