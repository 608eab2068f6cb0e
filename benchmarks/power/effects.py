"""Effects of patches whose truth is known, drawn for a plan.

An image's parts carry something of its own. What a patch does to a recipient goes with how far its answer can move:

    p(patched) = p + lean * ( content of the donor + what only this recipient sees in it )

``lean`` goes with ``p (1 - p)``, and its mean is 1. In the group the content of true parts is higher by ``carried``, so
their mediated gap is ``carried``, in standard deviations of what a single head carries. All spreads are of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import integrate, stats
from scipy.special import expit

from audit.evidence.effects import SwapEffects
from audit.evidence.stats import Array
from audit.records import Contrast

GROUPS = Contrast("group", "a", "b")
LAYERS, HEADS = 12, 6
MLPS = LAYERS * HEADS  # the first of them
EMBEDDING = MLPS + LAYERS
PARTS = EMBEDDING + 1

# Set by the audit in reports/sample, whose shares stand beside those of the simulation in the page
OF_DONOR = 0.30  # of the variance of contents: what every recipient sees in a donor
COMMON = 0.5  # what all parts of an image have in common
LOG_ODDS, SPREAD = 4.0, 2.5  # of the answers: mean by label, up or down, and standard deviation
UNKNOWN = 0.3  # standard deviation of the logarithm of what p (1 - p) does not say of the lean
# Assumed: the sample has an image a person
OF_SUBJECT = 0.5  # of what an image's parts carry, and of its answer's spread
LINK = 0.3  # correlation of an image's answer with what its parts have in common


@dataclass(frozen=True)
class World:
    """What carries something: by part (`PARTS`) how much, and what share of that patches of a single part show."""

    carried: tuple[tuple[int, float], ...] = ()
    alone: float = 1.0

    def truth(self, sets: Array) -> Array:
        """Return the mediated gap (S,) of patching each set of parts (`PARTS`, S) at once.

        Divided, as are the sets' effects, by the spread of what the set carries.
        """
        of_part = np.zeros(PARTS)
        for part, much in self.carried:
            of_part[part] = much
        shown = np.where(sets.sum(axis=0) == 1, self.alone, 1.0)
        truth: Array = shown * (of_part @ sets) / spread_of(sets)
        return truth


def spread_of(sets: Array) -> Array:
    """Return the standard deviation (S,) of what each set carries, a single part's being 1."""
    size = sets.sum(axis=0)
    spread: Array = np.sqrt(COMMON * size**2 + (1 - COMMON) * size)
    return spread


def people(each: int, images_each: int = 1) -> pd.DataFrame:
    """Return the images of one half: ``each`` people of either label and group, with ``images_each`` images."""
    person = np.repeat(np.arange(4 * each), images_each)
    return pd.DataFrame(
        {
            "subject": person.astype(str),
            "label": np.where(person % 4 < 2, "x", "y"),
            "group": np.where(person % 2 == 0, "a", "b"),
        }
    )


def _mean_of_slopes() -> float:
    """Return the mean of p (1 - p) over the answers."""

    def weighted(z: float) -> float:
        p = float(expit(LOG_ODDS + SPREAD * z))
        return p * (1 - p) * float(stats.norm.pdf(z))

    return float(integrate.quad(weighted, -8, 8)[0])


MEAN_LEAN = _mean_of_slopes() * float(np.exp(UNKNOWN**2 / 2))


def draw(world: World, half: pd.DataFrame, rows: pd.DataFrame, sets: Array, rng: np.random.Generator) -> SwapEffects:
    """Draw what the images of a half carry, and the effects of patching sets of parts by a plan.

    Parameters
    ----------
    world : World
    half : pandas.DataFrame
        As `people` makes it.
    rows : pandas.DataFrame
        As a plan has them: ``recipient``, ``cross``, ``placebo``, ``unit``, ``side``, ``label``.
    sets : numpy.ndarray (`PARTS`, S)
        1 where a part is in a set.
    rng : numpy.random.Generator
    """
    subject = half["subject"].to_numpy(dtype=np.int64)
    spread, truth = spread_of(sets), world.truth(sets)
    used = np.flatnonzero(sets.any(axis=1))
    sets, parts = sets[used], len(used)
    common, own = _by_person(rng, subject, 1), _by_person(rng, subject, parts)
    content = np.sqrt(OF_DONOR) * (np.sqrt(COMMON) * common + np.sqrt(1 - COMMON) * own) @ sets / spread
    content[(half["group"] == "a").to_numpy()] += truth
    z = LINK * common[:, 0] + np.sqrt(1 - LINK**2) * _by_person(rng, subject, 1)[:, 0]
    own_p = expit(np.where(half["label"] == "x", LOG_ODDS, -LOG_ODDS) + SPREAD * z)
    lean = own_p * (1 - own_p) * np.exp(UNKNOWN * rng.standard_normal(len(half))) / MEAN_LEAN
    at = {kind: rows[kind].to_numpy(dtype=np.int64) for kind in ("recipient", "cross", "placebo")}
    patched = {}
    for kind in ("cross", "placebo"):
        seen = np.sqrt(COMMON) * rng.standard_normal((len(rows), 1))
        seen = np.sqrt(1 - OF_DONOR) * (seen + np.sqrt(1 - COMMON) * rng.standard_normal((len(rows), parts)))
        moved = lean[at["recipient"], None] * (content[at[kind]] + seen @ sets / spread)
        patched[kind] = own_p[at["recipient"], None] + moved
    return SwapEffects(
        cross=patched["cross"],
        placebo=patched["placebo"],
        unpatched=own_p[at["recipient"]],
        is_group=(rows["side"] == "group").to_numpy(),
        label=(rows["label"] == "y").to_numpy().astype(np.int64),
        subject=subject[at["recipient"]],
        unit=rows["unit"].to_numpy(dtype=np.int64),
        heads=[(k // HEADS, k % HEADS) for k in range(sets.shape[1])],
    )


def _by_person(rng: np.random.Generator, subject: npt.NDArray[np.int64], columns: int) -> Array:
    """Draw standard normal numbers (N, columns), of which the images of a person share ``OF_SUBJECT``."""
    of_person = rng.standard_normal((subject.max() + 1, columns))[subject]
    of_image = rng.standard_normal((len(subject), columns))
    drawn: Array = np.sqrt(OF_SUBJECT) * of_person + np.sqrt(1 - OF_SUBJECT) * of_image
    return drawn


def heads_alone() -> Array:
    """Return the sets (`PARTS`, heads) of one head each."""
    return np.eye(PARTS)[:, :MLPS]


def tree() -> tuple[Array, list[str]]:
    """Return the sets (`PARTS`, nodes) of the tree, heads first, and the level that each node is of.

    Whole; attention, MLPs, embedding; thirds of the depth of attention and of MLPs; their layers; heads.
    """
    layer = np.concatenate([np.arange(MLPS) // HEADS, np.arange(LAYERS), [-1]])
    kind = np.repeat([0, 1, 2], [MLPS, LAYERS, 1])
    inside: list[tuple[str, npt.NDArray[np.bool_]]] = [("head", np.arange(PARTS) == k) for k in range(MLPS)]
    for number in range(LAYERS):
        inside += [("layer", (layer == number) & (kind == of)) for of in (0, 1)]
    for third in range(3):
        inside += [("third", (layer // (LAYERS // 3) == third) & (kind == of)) for of in (0, 1)]
    inside += [("kind", kind == of) for of in range(3)] + [("whole", np.full(PARTS, True))]
    return np.stack([mask for _, mask in inside], axis=1).astype(np.float64), [level for level, _ in inside]


def shares(effects: SwapEffects) -> dict[str, float]:
    """Return what the spread of effects is made of, medians over what is patched.

    Of the variance within label and side what recipients of one donor pair share; the mean correlation of two columns;
    the coefficient of variation of p (1 - p); its correlation with the size of effects; their kurtosis.
    """
    side = np.where(effects.is_group, -1.0, 1.0)[:, None]
    rest = pd.DataFrame(side * effects.difference)
    cell = 2 * effects.label + effects.is_group
    rest = rest - rest.groupby(cell).transform("mean")
    by_unit = rest.groupby(effects.unit)
    size = by_unit.size().to_numpy()[:, None]
    together = (
        (by_unit.sum() ** 2 - (rest**2).groupby(effects.unit).sum()).sum() / (size * (size - 1)).sum()
    ).to_numpy()
    variance = (rest**2).mean().to_numpy()
    slope = effects.unpatched * (1 - effects.unpatched)
    size_of = np.abs(rest.to_numpy())
    pairs: Any = np.triu_indices(rest.shape[1], 1)
    return {
        "of_pair": float(np.median(together / variance)),
        "between_columns": float(np.corrcoef(rest.to_numpy().T)[pairs].mean()),
        "slope_variation": float(slope.std() / slope.mean()),
        "size_with_slope": float(np.median([np.corrcoef(slope, s)[0, 1] for s in size_of.T])),
        "kurtosis": float(np.median((rest**4).mean().to_numpy() / variance**2)),
    }
