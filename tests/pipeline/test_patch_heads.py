"""All patches or some: what is chosen, and what is said of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from audit.pipeline.patch_heads import AFFORDABLE, Cost, choose_patches
from audit.pipeline.run_sampled import sweep_sampled
from audit.pipeline.run_sweeps import Plan
from audit.records import Contrast, PatchChoice

pytestmark = pytest.mark.unit
TONE = Contrast("tone", "dark", "light")


def context(patches: str) -> Any:
    return SimpleNamespace(
        card=SimpleNamespace(audit=SimpleNamespace(patches=patches)), seeds=[0], outcomes={"smile": 1}
    )


def cost(every: float, sampled: float) -> Cost:
    """Count in operations of which the limit allows 1,000."""
    return Cost(every, sampled, AFFORDABLE / 1000)


@pytest.mark.parametrize(
    ("patches", "every", "sampled", "expected"),
    [
        ("auto", 999, 100, False),
        ("auto", 1001, 100, True),
        ("auto", 5000, 6000, False),  # dear, but a sample would be dearer
        ("all", 5000, 100, False),
        ("sampled", 10, 100, True),
    ],
)
def test_a_sample_is_taken_where_all_patches_are_dear_and_it_is_not(
    patches: str, every: float, sampled: float, expected: bool
) -> None:
    found = choose_patches(context(patches), cost(every, sampled))
    assert found == PatchChoice(sampled=expected, asked=patches, every=every, sample=sampled, affordable=1000)


@pytest.mark.parametrize("split", ["discovery", "confirmation"])
def test_a_contrast_with_donors_in_one_split_only_is_not_patched(split: str) -> None:
    plans = [Plan(TONE, split, pd.DataFrame({"recipient": [0]}))]
    done = sweep_sampled(context("sampled"), SimpleNamespace(), plans, {TONE: ["smile"]}, pd.DataFrame(), {})  # type: ignore[arg-type]
    assert done.swap.empty
    assert done.heads == done.effort == []
