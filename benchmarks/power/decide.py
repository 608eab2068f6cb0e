"""What is confirmed: by today's halves, by both in both roles, by all images at once; and which interval is quoted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from audit.evidence.bootstrap import draw_bootstrap, weighted_estimates
from audit.evidence.effects import PermutationResult, SwapEffects, mediated_gaps, permute_donor_labels, unit_sums
from audit.evidence.effects_store import Part, Settings
from audit.evidence.heads import discover
from audit.evidence.stats import Array, holm
from benchmarks.power.effects import GROUPS

Mask = npt.NDArray[np.bool_]
ALPHA = 0.05


@dataclass(frozen=True)
class Rule:
    """How halves are used.

    One role confirms a false head only if it is found on one half, with a probability of at most ``level`` (max-T over
    all), and then confirmed on the other, whose people are others, again at most ``level`` (Holm): ``level ** 2``. Over
    the roles these add up, whatever their dependence.
    """

    level: float  # of discovery, and of confirmation
    roles: int  # 1: the first half finds, the second confirms; 2: and the other way about; 0: one test of all images

    @property
    def bound(self) -> float:
        """Greatest probability that any false head is confirmed."""
        return self.level**2 * self.roles if self.roles else self.level


RULES: Mapping[str, Rule] = {
    "today": Rule(ALPHA, 1),
    "both roles, today's bound": Rule(ALPHA / np.sqrt(2), 2),
    "one role, 5% in all": Rule(np.sqrt(ALPHA), 1),
    "both roles, 5% in all": Rule(np.sqrt(ALPHA / 2), 2),
    "all images in one test": Rule(ALPHA, 0),
}


@dataclass(frozen=True)
class Halves:
    """Both halves with their tests, and intervals (K,) of 95%, and of 95% for all of a half's K at once."""

    effects: tuple[SwapEffects, SwapEffects]
    tests: tuple[PermutationResult, PermutationResult]
    each: tuple[tuple[Array, Array], tuple[Array, Array]]
    at_once: tuple[tuple[Array, Array], tuple[Array, Array]]
    settings: Settings
    enough: bool  # for heads to be judged at all


def judge_halves(first: SwapEffects, second: SwapEffects, settings: Settings) -> Halves:
    """Test both halves, each by its own swaps, and take their intervals."""
    part = Part(GROUPS, "x", first, second)
    (a,) = discover([part], settings)
    (b,) = discover([replace(part, discovery=second, confirmation=first)], replace(settings, seed=settings.seed + 1))
    enough = part.enough(settings.min_group_size)
    each = [_intervals(e, replace(settings, seed=settings.seed + i)) for i, e in enumerate((first, second))]
    at_once = [_at_once(e, test.critical) for e, test in ((first, a), (second, b))]
    return Halves((first, second), (a, b), (each[0], each[1]), (at_once[0], at_once[1]), settings, enough)


def _intervals(effects: SwapEffects, settings: Settings) -> tuple[Array, Array]:
    drawn = draw_bootstrap(effects, resamples=settings.bootstrap, seed=settings.seed)
    found = weighted_estimates(effects.difference, effects.mediated_weights(), effects, drawn)
    nothing = float("nan")
    low, high = np.array([[nothing if v is None else v for v in (e.low, e.high)] for e in found]).T
    return low, high


def _at_once(effects: SwapEffects, critical: float) -> tuple[Array, Array]:
    """Return intervals that hold all truths at once, by the maximum of |T| over all that is tested."""
    value, half = mediated_gaps(effects), critical * np.sqrt((unit_sums(effects) ** 2).sum(axis=0))
    return value - half, value + half


@dataclass(frozen=True)
class Confirmed:
    """What was found and what was confirmed (K,), with the intervals that are quoted."""

    found: Mask
    confirmed: Mask
    each: tuple[Array, Array]
    at_once: tuple[Array, Array]


def decide(halves: Halves, rule: Rule) -> Confirmed:
    """Confirm by halves in one role or in both.

    Quoted is the half that confirmed; the second where both did, or neither.
    """
    nobody = np.zeros(len(halves.tests[0].raw), dtype=bool)
    found, confirmed = [nobody, nobody], [nobody, nobody]
    for first in range(rule.roles):
        found[first], confirmed[first] = _one_role(halves, first, rule.level)
    from_first = confirmed[1] & ~confirmed[0]
    each, at_once = (_quoted(from_first, *of_halves) for of_halves in (halves.each, halves.at_once))
    return Confirmed(found[0] | found[1], confirmed[0] | confirmed[1], each, at_once)


def _quoted(from_first: Mask, first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the ends of the first half's intervals where they are quoted, else of the second's."""
    low, high = (np.where(from_first, a, b) for a, b in zip(first, second, strict=True))
    return low, high


def _one_role(halves: Halves, first: int, level: float) -> tuple[Mask, Mask]:
    """Find on half ``first``, confirm on the other by Holm over what was found, the same sign asked for."""
    a, b = (halves.tests[k] for k in (first, 1 - first))
    found = (a.adjusted <= level) & halves.enough
    confirmed = np.zeros_like(found)
    confirmed[found] = np.array(holm(b.raw[found].tolist())) <= level
    return found, confirmed & (a.statistic * b.statistic > 0)


def decide_at_once(halves: Halves, level: float = ALPHA) -> Confirmed:
    """Confirm what is beyond chance among all images, without a second look at other people."""
    first, second = halves.effects
    apart = {name: getattr(first, name).max() + 1 + getattr(second, name) for name in ("subject", "unit")}
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(first, name), apart.get(name, getattr(second, name))])
        for name in ("cross", "placebo", "unpatched", "is_group", "label", "subject", "unit")
    }
    both, settings = replace(first, **columns), halves.settings
    (test,) = permute_donor_labels(
        [unit_sums(both)], permutations=settings.permutations, seed=settings.seed, alpha=level
    )
    beyond = (test.adjusted <= level) & halves.enough
    return Confirmed(beyond, beyond, _intervals(both, settings), _at_once(both, test.critical))
