"""What whole parts carry of a gap: all attention, all MLPs, each layer, and tokens at a depth, in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd

from audit.evidence.bootstrap import draw_bootstrap, share_of_gap, weighted_estimates
from audit.evidence.carried import beyond_noise, noising
from audit.evidence.effects import Scalar, SwapEffects, lay_out
from audit.evidence.effects_store import Settings, StoredEffects
from audit.evidence.stats import Array
from audit.evidence.stored_rows import Rows, distinct, some
from audit.patching.parts import Part, parse_part
from audit.records import CarriedKind, CarriedRow, Contrast

ORDER = {kind: place for place, kind in enumerate(CarriedKind)}


def judge_parts(
    stored: StoredEffects,
    table: Rows,
    contrasts: Sequence[Contrast],
    outcomes: Sequence[str],
    seed: int,
    settings: Settings,
) -> list[CarriedRow]:
    """Estimate what parts carry, on the confirmation split.

    Parameters
    ----------
    stored : StoredEffects
        Answers to images as they are, and the weights of labels.
    table : Rows
        Rows of :func:`audit.patching.sweep.sweep_parts`, with ``contrast``, ``unit``, ``side`` and ``label``.
    contrasts, outcomes
        The questions.
    seed : int
        Of the audited model.
    settings : Settings
    """
    rows: list[CarriedRow] = []
    for contrast in contrasts:
        part = some(table, contrast=str(contrast))
        names = sorted(distinct(part, ["set"])["set"])
        for outcome in outcomes if names else ():
            rows += _rows(stored, part, [parse_part(name) for name in names], contrast, outcome, seed, settings)
    return rows


def _rows(
    stored: StoredEffects,
    table: Rows,
    parts: Sequence[Part],
    contrast: Contrast,
    outcome: str,
    seed: int,
    settings: Settings,
) -> list[CarriedRow]:
    """Estimate in mean probability, in both directions, and in the rate of being called so what is denoised."""

    def laid_out(direction: Direction, scalar: Scalar) -> SwapEffects:
        return _laid_out(stored, table, contrast, outcome, seed, direction, scalar)

    denoised, noised, rate = laid_out("denoising", "p"), laid_out("noising", "p"), laid_out("denoising", "called")
    bootstrap = draw_bootstrap(denoised, resamples=settings.bootstrap, seed=settings.seed + 1)
    weights, n = denoised.mediated_weights(), len(parts)
    columns = np.hstack([denoised.difference, noised.difference, denoised.difference - noised.difference])
    estimates = weighted_estimates(columns, weights, denoised, bootstrap)
    rates = weighted_estimates(rate.difference, weights, rate, bootstrap)
    shares, beyond = share_of_gap(rate, bootstrap), dict(_beyond_noise(denoised, parts, settings))
    return [
        CarriedRow(
            contrast=str(contrast),
            outcome=outcome,
            metric=stored.metric(contrast, outcome),
            part=CarriedKind(parts[k].kind.value),
            layer=parts[k].layer,
            recipients=int(denoised.weighted.sum()),
            denoised=estimates[k],
            denoised_rate=rates[k],
            share_of_gap=shares[k],
            noised=estimates[n + k],
            apart=estimates[2 * n + k],
            beyond_noise=beyond[k],
        )
        for k in sorted(range(n), key=lambda k: (parts[k].layer is not None, *_place(parts[k])))
    ]


Direction = Literal["denoising", "noising"]


def _place(part: Part) -> tuple[int, int]:
    return ORDER[CarriedKind(part.kind.value)], part.layer or 0


def _laid_out(
    stored: StoredEffects,
    table: Rows,
    contrast: Contrast,
    outcome: str,
    seed: int,
    direction: Direction,
    scalar: Scalar,
) -> SwapEffects:
    """Lay out one direction; of noising what is lost is counted as gained."""
    rows, own, subjects = some(table, direction=direction), stored.own(seed), stored.frame["subject"]
    shares = stored.label_shares(contrast, outcome)
    found = lay_out(rows, own, subjects, outcome, by=["set"], scalar=scalar, **shares)
    if direction == "denoising":
        return found
    as_they_are = pd.Series(own[f"p:{outcome}"].to_numpy(dtype=np.float64), index=own["recipient"])
    return noising(
        found,
        (_donors(rows, "cross", as_they_are), _donors(rows, "placebo", as_they_are)),
        (
            found.cross,
            found.placebo,
        ),
    )


def _donors(rows: Rows, kind: str, answers: pd.Series) -> Array:
    """Return the answers (R,) to each recipient's donor of a kind."""
    given = distinct(some(rows, donor_kind=kind), ["position", "donor"], by=["position"]).sort_values("position")
    return answers.loc[given["donor"]].to_numpy(dtype=np.float64)


def _beyond_noise(effects: SwapEffects, parts: Sequence[Part], settings: Settings) -> Iterator[tuple[int, bool]]:
    """Test parts of one kind together: those of all layers, single layers, tokens."""
    bootstrap = draw_bootstrap(effects, resamples=0, seed=0)
    kinds = [(part.layer is None, part.kind if part.layer is not None else None) for part in parts]
    for kind in dict.fromkeys(kinds):
        of_kind = [k for k, other in enumerate(kinds) if other == kind]
        some_parts = replace(effects, cross=effects.cross[:, of_kind], placebo=effects.placebo[:, of_kind])
        yield from zip(of_kind, beyond_noise(some_parts, bootstrap, settings.alpha), strict=True)
