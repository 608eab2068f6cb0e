"""The printed rule, case by case."""

from __future__ import annotations

import math

import pytest

from audit.evidence.confidence import confidence_of
from audit.records import Confidence

pytestmark = pytest.mark.unit
SURE = {"excludes_zero": True, "p_adjusted": 0.001, "seeds_agreeing": 3, "seeds": 3, "sampled": False, "alpha": 0.05}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, Confidence.HIGH),
        ({"excludes_zero": False}, Confidence.LOW),
        ({"p_adjusted": None}, Confidence.LOW),
        ({"p_adjusted": math.nan}, Confidence.LOW),
        ({"p_adjusted": 0.06}, Confidence.LOW),
        ({"p_adjusted": 0.011}, Confidence.MODERATE),
        ({"p_adjusted": 0.01}, Confidence.HIGH),
        ({"seeds_agreeing": 2}, Confidence.MODERATE),
        ({"seeds_agreeing": 1}, Confidence.LOW),
        ({"seeds_agreeing": 1, "seeds": 1}, Confidence.MODERATE),
        ({"seeds_agreeing": 2, "seeds": 2}, Confidence.HIGH),
        ({"seeds_agreeing": 0, "seeds": 0}, Confidence.MODERATE),
        ({"sampled": True}, Confidence.MODERATE),
    ],
)
def test_rule(change: dict[str, float | None], expected: Confidence) -> None:
    assert confidence_of(**(SURE | change)) == expected  # type: ignore[arg-type]
