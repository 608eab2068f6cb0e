"""What is expected of colour and blur, judged: effects must be there, and nulls must stay below half of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from audit.controls.identities import ENGINE_TOLERANCE
from audit.controls.measure import Array, Index, Shift
from audit.controls.spec import ChannelSpec
from audit.controls.verdict import judge, mean_interval
from audit.patching.sites import Site
from audit.records import Bound, Control, Estimate
from audit.units import name_of

HALF = 0.5  # a joint patch must carry more than this share; a null must carry less
ROUNDING = 2 * ENGINE_TOLERANCE  # nats of log-odds, a difference of two logits: an effect must be more than this
RESAMPLES = 2000


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
    """Judge total gap, joint patch and the best head of one form, by the lower ends of their intervals."""
    of = {"kind": "effect", "channel": channel.name, "form": form, "figures": {"seeds": channel.seeds}}
    joint = {"joint": float(shift.joint.mean())}
    return [
        _judge(mean_interval(shift.total), ROUNDING, **of, check="gap", n=len(shift.total)),
        _judge(share_of(shift.joint, shift.total), HALF, **of | {"figures": joint}, check="joint", n=len(shift.joint)),
        _judge(
            mean_interval(shift.single[rest]), ROUNDING, **of, check="head", head=_named(channel, site), n=len(rest)
        ),
    ]


def judge_noising(channel: ChannelSpec, loss: Shift, site: Site, *, form: str) -> Control:
    """Judge what all heads jointly take away when the donor lacks what the recipient has."""
    return _judge(
        share_of(loss.joint, loss.total),
        HALF,
        check="noising",
        kind="effect",
        channel=channel.name,
        form=form,
        head=_named(channel, site),
        figures={"joint": float(loss.joint.mean()), "single": float(loss.single.mean())},
        n=len(loss.joint),
    )


def judge_null(channel: ChannelSpec, which: str, shift: Array, limit: Array, site: Site | None = None) -> Control:
    """Judge a null: it must carry less than ``limit``, half of the true effect on the same images."""
    # Another seed is above or below at random, so both ways count; the others can only help: harm is no effect.
    margins = [limit - shift, limit + shift] if which == "other_seed" else [limit - shift]
    below = min(map(mean_interval, margins), key=lambda e: -np.inf if e.low is None else e.low)
    return _judge(
        below,
        0.0,
        check=f"null_{which}",
        kind="null",
        channel=channel.name,
        head=_named(channel, site),
        figures={"null": float(shift.mean()), "effect": float(limit.mean() / HALF)},
        n=len(shift),
    )


def _judge(lower: Estimate, threshold: float, **about: Any) -> Control:
    """Ask that the lower end of an interval be above a threshold."""
    form = f"_{about['form']}" if about.get("form") else ""
    about["id"] = f"{about['channel']}_{about['check']}{form}"
    return judge(lower, ">", threshold, judged=Bound.LOW, **about)
