"""Gaps of a zero-shot model with each text alone: known answers."""

from __future__ import annotations

import pandas as pd
import pytest

from audit.evidence.disparity import Question, Thresholds, contrasts
from audit.evidence.prompts import prompt_sensitivity, why_not_alone
from audit.records import WhyNoSensitivity

pytestmark = pytest.mark.unit
LIMITS = Thresholds(alpha=0.05, min_group_size=2, impact_ratio_below=0.8, gap_above=0.1)
QUESTION = Question("tone", "light", ["light", "dark"])


def frame(dark: int, light: int) -> pd.DataFrame:
    """Return 20 smiling people of each tone, of whom so many are called so, and 20 that are not and are not."""
    rows = [
        {
            "subject": f"{tone}-{label}-{i}",
            "tone": tone,
            "label": label,
            "predicted": "smiling" if label == "smiling" and i < called else "neutral",
        }
        for tone, called in (("dark", dark), ("light", light))
        for label in ("smiling", "neutral")
        for i in range(20)
    ]
    return pd.DataFrame(rows).assign(**{"p:smiling": 0.5})


def test_the_spread_is_that_of_the_gaps_of_each_text() -> None:
    frames = [frame(10, 20), frame(20, 20), frame(16, 12)]
    compared = contrasts(frame(15, 19), [QUESTION], ["smiling"], LIMITS)
    prompts = {"smiling": ["a", "b", "c"], "neutral": ["d", "e", "f"]}
    found = prompt_sensitivity(prompts, frames, compared, [QUESTION], ["smiling"], LIMITS)
    (gap,) = found.gaps
    assert [e.value for e in gap.alone] == pytest.approx([-0.25, 0.0, 0.1])
    assert gap.spread == pytest.approx(0.35)
    assert gap.together.value == pytest.approx(-0.1)
    assert found.left_out is None


@pytest.mark.parametrize(
    ("prompts", "reason"),
    [
        ({"a": ["x"], "b": ["y"]}, WhyNoSensitivity.ONE_TEXT),
        ({"a": ["x", "z"], "b": ["y"]}, WhyNoSensitivity.UNEQUAL),
        ({"a": ["x", "z"], "b": ["y", "w"]}, None),
    ],
)
def test_texts_go_together_where_classes_have_as_many(
    prompts: dict[str, list[str]], reason: WhyNoSensitivity | None
) -> None:
    assert why_not_alone(prompts) == reason
    if reason is not None:
        assert prompt_sensitivity(prompts, [], [], [QUESTION], ["smiling"], LIMITS).left_out == reason
