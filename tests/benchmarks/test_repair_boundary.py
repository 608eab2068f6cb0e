"""The simulated sealed sets: that they are what their worlds say, and a few of the certificates."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.repair.boundary import (
    MARGINS,
    boundaries,
    boundary_certified,
    count_certified,
    null_gap_certified,
    planned_people,
    share,
)
from benchmarks.repair.worlds import AIM, LABELS, Cell, World
from tests.evidence.simulate import plausible

pytestmark = pytest.mark.unit


def test_cells_are_as_wrong_and_change_as_often_as_their_world_says() -> None:
    cell = Cell(wrong=0.2, lost=0.1, gained=0.05)
    world = World(images_each=2, alike=0.7, cells={("female", "dark", "smile"): cell})
    layout = world.layout(4000)
    before, after = world.draw(layout, np.random.default_rng(1))
    among = ((layout["gender"] == "female") & (layout["tone"] == "dark") & (layout["label"] == "smile")).to_numpy()
    assert among.sum() == 8000
    was, now = ((frame["predicted"] == frame["label"]).to_numpy() for frame in (before, after))
    assert (~now[among]).mean() == pytest.approx(0.2, abs=0.02)
    assert (was & ~now)[among].mean() == pytest.approx(0.1, abs=0.015)
    assert (~was & now)[among].mean() == pytest.approx(0.05, abs=0.015)
    assert (~now[~among]).mean() == pytest.approx(world.plain.wrong, abs=0.005)
    pairs = now[among].reshape(-1, 2)  # a person's two images of the label
    assert np.corrcoef(pairs.T)[0, 1] == pytest.approx(world.within_subject, abs=0.05)
    assert set(after["predicted"]) == set(LABELS)


@pytest.mark.parametrize("name", boundaries())
def test_in_every_situation_one_number_is_at_its_margin(name: str) -> None:
    world, aim, margins = boundaries()[name]
    cells = {
        (g, t, label): world.cell(g, t, label)
        for g in ("female", "male")
        for t in ("dark", "light")
        for label in LABELS
    }

    def missed(place: int, value: str, part: str) -> float:
        own = [cell for key, cell in cells.items() if key[place] == value and key[2] == "smile"]
        before = sum(c.wrong - c.lost + c.gained for c in own) / len(own)
        return before if part == "before" else sum(c.wrong for c in own) / len(own)

    gap = abs(missed(0, "female", "after") - missed(0, "male", "after"))
    of_tone = [abs(missed(1, "dark", part) - missed(1, "light", part)) for part in ("before", "after")]
    loss = max(c.lost - c.gained for c in cells.values())
    risen = max(missed(0, g, "after") - missed(0, g, "before") for g in ("female", "male"))
    at = [
        gap == pytest.approx(margins.gap),
        of_tone[1] - of_tone[0] == pytest.approx(margins.gap),
        loss == pytest.approx(margins.accuracy),
        risen == pytest.approx(margins.error),
    ]
    assert sum(at) == 1
    assert gap <= margins.gap + 1e-9
    assert loss <= margins.accuracy + 1e-9
    assert risen <= margins.error + 1e-9
    assert aim.outcome == "smile"


@pytest.mark.parametrize("name", ["gap, one image a person", "cell that loses and gains, two alike images a person"])
def test_models_that_just_miss_a_margin_are_seldom_certified(name: str) -> None:
    world, aim, margins = boundaries()[name]
    people = planned_people(world, aim, margins)
    found = count_certified(world, aim, margins, people=people, sets=80, seed=2)
    assert plausible(round(found["estimate"] * 80), 80, 0.0, margins.alpha)


def test_a_repair_without_a_gap_is_mostly_certified_with_the_planned_images() -> None:
    people = planned_people(World(), AIM, MARGINS)
    found = count_certified(World(), AIM, MARGINS, people=people, sets=60, seed=3)
    assert plausible(round(found["estimate"] * 60), 60, 0.8, 1.0)
    fewer = count_certified(World(), AIM, MARGINS, people=people // 3, sets=20, seed=4)
    assert fewer["estimate"] < found["estimate"]


def test_the_interval_of_a_share_is_exact() -> None:
    found = share(0, 1000)
    assert (found["n"], found["estimate"], found["low"]) == (1000, 0.0, 0.0)
    assert found["high"] == pytest.approx(1 - 0.025 ** (1 / 1000))


def test_the_worst_situation_speaks_for_all() -> None:
    at_margin, at_zero = boundary_certified(sets=2), null_gap_certified(sets=2)
    assert at_margin["estimate"] == max(found["estimate"] for found in at_margin["situations"].values())
    assert at_zero["estimate"] == min(found["estimate"] for found in at_zero["situations"].values())
    assert set(at_margin["situations"]) == set(boundaries())
    for found in (at_margin, at_zero):
        assert found["situations"][found["situation"]]["estimate"] == found["estimate"]
        assert found["low"] <= found["estimate"] <= found["high"]


@pytest.mark.long
def test_at_full_size_the_level_is_kept_and_working_repairs_are_certified() -> None:
    at_margin, at_zero = boundary_certified(), null_gap_certified()
    assert at_margin["n"] == at_zero["n"] == 1000
    for found in at_margin["situations"].values():
        assert plausible(round(found["estimate"] * 1000), 1000, 0.0, MARGINS.alpha)
    assert at_zero["low"] >= 0.75 and at_zero["estimate"] >= 0.8
