"""Does the certificate keep its level where a margin is just missed, and is it given where a repair works?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from audit.evidence.certificate import certify
from audit.evidence.reachable import reachable
from audit.records import Aim, CertificateState, Expected, HarmfulError, Margins
from benchmarks.repair.worlds import AIM, GENDERS, LABELS, QUESTIONS, TONES, Cell, World

MARGINS = Margins(gap=0.05, accuracy=0.02, error=0.02, alpha=0.05)
MISSED = AIM.model_copy(update={"harm": HarmfulError.MISSED})
MIN_SUBJECTS = 30
SETS = 1000
SPARE = 2  # how many times the planned people, so that lines which hold are shown and only the boundary decides
Figures = dict[str, Any]

# Of women who smile as many more are wrong as the margin allows; twice as many were before the repair.
GAP_AT_MARGIN = {("female", "", "smile"): Cell(wrong=0.05 + MARGINS.gap, lost=0.0, gained=0.10)}
# Cells of women lose what the margin allows: all of it newly wrong images, or more of them against newly right ones.
LOST = {("female", "", "frown"): Cell(wrong=0.06, lost=MARGINS.accuracy, gained=0.0)}
LOST_AND_GAINED = {("female", "", "frown"): Cell(wrong=0.06, lost=0.01 + MARGINS.accuracy, gained=0.01)}
# Smiling men are missed as often as women were: levelling down by just the margin.
LEVELLED = {("male", "", "smile"): Cell(wrong=0.05, lost=MARGINS.error, gained=0.0)}


def boundaries() -> dict[str, tuple[World, Aim, Margins]]:
    """Return the worlds in which exactly one margin is just missed, with the margins of their certificate.

    Where a cell's accuracy is at its margin, the other margins are wider, so that no other line keeps a certificate
    from being given: what is measured is the line at its boundary.
    """
    wide = MARGINS.model_copy(update={"error": 0.1, "gap": 0.1})
    other = {("", "dark", "smile"): Cell(wrong=0.10, lost=0.055, gained=0.005)}
    return {
        "gap, one image a person": (World(cells=GAP_AT_MARGIN), MISSED, MARGINS),
        "gap, four alike images a person": (World(4, 0.7, GAP_AT_MARGIN), MISSED, MARGINS),
        "cell that only loses, one image a person": (World(cells=LOST), MISSED, wide),
        "cell that loses and gains, two alike images a person": (World(2, 0.7, LOST_AND_GAINED), MISSED, wide),
        "error of a group, two alike images a person": (
            World(2, 0.7, LEVELLED),
            MISSED,
            MARGINS.model_copy(update={"accuracy": 0.1}),
        ),
        "gap of another attribute, two alike images a person": (
            World(2, 0.7, other),
            MISSED,
            MARGINS.model_copy(update={"accuracy": 0.2, "error": 0.2}),
        ),
    }


def planned_people(world: World, aim: Aim, margins: Margins) -> int:
    """Return how many people of each gender and tone ``reachable`` asks for, if the repair has no effect but chance."""
    layout = world.layout(MIN_SUBJECTS)
    expected = Expected(
        changed=world.plain.lost + world.plain.gained, error=world.plain.wrong, within_subject=world.within_subject
    )
    plan = reachable(layout, QUESTIONS, aim, margins, expected, min_subjects=MIN_SUBJECTS)
    assert plan.needed_images is not None
    each = len(GENDERS) * len(TONES) * len(LABELS) * world.images_each
    return max(MIN_SUBJECTS, -(-plan.needed_images // each))


def count_certified(world: World, aim: Aim, margins: Margins, *, people: int, sets: int, seed: int) -> Figures:
    """Count how many of the sealed sets drawn from a world are certified.

    Returns
    -------
    dict
        ``n`` sets, ``estimate`` (share), ``low`` and ``high`` (Clopper & Pearson, 95%), ``images`` of each set,
        ``people`` in each gender and tone.
    """
    layout, rng = world.layout(people), np.random.default_rng(seed)
    states = [
        certify(*world.draw(layout, rng), QUESTIONS, aim, margins, min_subjects=MIN_SUBJECTS).state for _ in range(sets)
    ]
    return share(states.count(CertificateState.CERTIFIED), sets) | {"images": len(layout), "people": people}


def share(hits: int, n: int) -> Figures:
    """Return a share with its exact 95% interval."""
    found = stats.binomtest(hits, n).proportion_ci(0.95, method="exact")
    return {"n": n, "estimate": hits / n, "low": float(found.low), "high": float(found.high)}


def boundary_certified(sets: int = SETS, seed: int = 26) -> Figures:
    """Count how often a model that just misses one margin is certified.

    Returns
    -------
    dict
        ``n``, ``estimate``, ``low``, ``high`` of the situation with most certificates, its name in ``situation``, and
        all of them in ``situations``.
    """
    found = {}
    for number, (name, (world, aim, margins)) in enumerate(boundaries().items()):
        people = SPARE * planned_people(world, aim, margins)
        found[name] = count_certified(world, aim, margins, people=people, sets=sets, seed=seed + number)
    return _extreme(found, max(found, key=lambda name: found[name]["estimate"]))


def null_gap_certified(sets: int = SETS, seed: int = 126) -> Figures:
    """Count how often a repair that leaves no gap and costs nothing is certified with the planned images.

    Returns
    -------
    dict
        As of :func:`boundary_certified`, of the situation with the fewest certificates.
    """
    worlds = {
        "one image a person": World(),
        "four alike images a person": World(4, 0.7),
        "one answer in ten changes": World(plain=Cell(wrong=0.1, lost=0.05, gained=0.05)),
    }
    found = {}
    for number, (name, world) in enumerate(worlds.items()):
        people = planned_people(world, AIM, MARGINS)
        found[name] = count_certified(world, AIM, MARGINS, people=people, sets=sets, seed=seed + number)
    return _extreme(found, min(found, key=lambda name: found[name]["estimate"]))


def _extreme(found: Mapping[str, Figures], name: str) -> Figures:
    return {k: found[name][k] for k in ("n", "estimate", "low", "high")} | {
        "situation": name,
        "situations": dict(found),
    }
