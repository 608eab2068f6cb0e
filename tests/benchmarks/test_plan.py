"""The plan on paper: the page has what the script writes, which counts as the planner and the arithmetic do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scale.plan import (
    MODEL,
    PAGE,
    PHOTOGRAPHS,
    Assumed,
    Measured,
    Model,
    counted,
    measured,
    plan,
    rounded,
    tables,
    walls,
)
from benchmarks.sweep.floor import Sizes

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]
TABLES = ("samples", "unpatched", "swap-seed-0", "first-order-seed-0", "written")
FREE = Measured(  # nothing but passes takes time, and nothing takes room
    1e12, opening=0, decoding=0, tests=0, intervals=0, peak=0, row=dict.fromkeys(TABLES, 0.0), image=0, patched=0.2
)
SMALL = Model(Sizes(4, 3, 5, 8, 2, 8, 16, 4, 2, 1), 1e9, 1000, 1000)  # four layers of two heads


def test_the_page_is_what_the_script_writes() -> None:
    assert tables() in PAGE.read_text(encoding="utf-8"), "python benchmarks/scale/plan.py"


def test_operations_and_parameters_are_those_that_torch_counts() -> None:
    found = counted(MODEL)
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        timm.create_model(MODEL).eval()(torch.zeros(1, 3, 224, 224))
    assert found.forward == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert found.parameters == pytest.approx(632e6, rel=0.01)  # as Dosovitskiy et al. 2021 have it
    assert found.heads == 512


def test_a_plan_is_arithmetic() -> None:
    """1,000 images, halves of 500; each of 8 heads has 2 donors; a patch goes through half of the layers on average."""
    free = replace(Assumed(), ledger_passes=0.0)
    every = plan("", 1000, SMALL, FREE, free, most=None, sampled=False)
    assert (every.recipients, every.patches) == (500, 1000 * 2 * 8)
    passes = 1000 + 2 * (2 * (3.5 + 2.5 + 1.5 + 0.5) / 4) * 1000 + (500 + 500)
    small = replace(SMALL, forward=0.0)
    controls = every.gpu_hours - plan("", 1000, small, FREE, free, most=None, sampled=False).gpu_hours
    assert controls == pytest.approx(every.gpu_hours)  # nothing but passes takes time here
    alone = plan("", 0, SMALL, FREE, free, most=None, sampled=False).gpu_hours  # control models
    assert every.gpu_hours - alone == pytest.approx(passes * 1e9 / 1e12 / 3600)
    assert every.planner_hours == pytest.approx(1000 * 1e9 / 1e12 / 3600)
    some = plan("", 1000, SMALL, FREE, free, most=None, sampled=True)
    assert some.patches == pytest.approx(every.patches / 5)
    few = plan("", 1000, SMALL, FREE, free, most=50, sampled=True)
    assert (few.recipients, few.patches) == (50, some.patches / 10)
    assert few.planner_hours == some.planner_hours


def test_more_of_what_gives_way_first_moves_the_wall() -> None:
    model, m, a = counted(MODEL), measured(), Assumed()
    (first, what), *_ = walls(model, m, a)
    assert "memory" in what
    assert walls(model, m, replace(a, planner_gb=a.planner_gb // 2))[0][0] == pytest.approx(first / 2)
    assert walls(model, m, replace(a, planner_gb=10 * a.planner_gb))[0][1] != what
    at_the_wall = plan("", round(first), model, m, a, most=None, sampled=True)
    assert at_the_wall.memory_gb == pytest.approx(a.planner_gb, rel=1e-3)


def test_what_is_quoted_of_a_page_is_on_it() -> None:
    assert f"{PHOTOGRAPHS:,} photographs" in (ROOT / "benchmarks/whole_audit/README.md").read_text(encoding="utf-8")
    assert measured().image == 481.0


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0"), (0.0123, "0.012"), (1.0, "1.0"), (9.96, "10.0"), (123.4, "120"), (2.3e6, "2,300,000")],
)
def test_figures_have_two_digits(value: float, said: str) -> None:
    assert rounded(value) == said
