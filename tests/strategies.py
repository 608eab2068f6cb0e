"""Hypothesis strategies that several rooms share."""

from __future__ import annotations

from typing import Any

import pandas as pd
from hypothesis import strategies as st

NAMES = st.text(alphabet="abcdefghij", min_size=1, max_size=6)


@st.composite
def subject_tables(draw: st.DrawFn, *, min_subjects: int = 8, max_subjects: int = 40) -> pd.DataFrame:
    """Draw a table of images: 1 to 4 a subject, two labels, two attributes of which one is often unknown."""
    subjects = draw(st.integers(min_subjects, max_subjects))
    rows = []
    for subject in range(subjects):
        gender = draw(st.sampled_from(["female", "male"]))
        tone = draw(st.sampled_from(["light", "dark", "unknown"]))
        for image in range(draw(st.integers(1, 4))):
            label = draw(st.sampled_from(["neutral", "happiness"]))
            rows.append((f"{subject:03d}-{image}.png", label, f"s{subject:03d}", gender, tone))
    return pd.DataFrame(rows, columns=["image", "label", "subject", "gender", "tone"])


@st.composite
def split_shares(draw: st.DrawFn) -> tuple[float, float, float]:
    """Draw shares of train, discovery and confirmation; each at least a fifth."""
    weights = [draw(st.integers(20, 60)) for _ in range(3)]
    first, second = weights[0] / sum(weights), weights[1] / sum(weights)
    return first, second, 1 - first - second


@st.composite
def card_mappings(draw: st.DrawFn) -> dict[str, Any]:
    """Draw what a valid card holds, as plain YAML values."""
    labels = draw(st.lists(NAMES, min_size=2, max_size=4, unique=True))
    groups = draw(st.lists(NAMES.filter(lambda n: n != "image"), min_size=1, max_size=3, unique=True))
    card: dict[str, Any] = {
        "data": {"path": draw(NAMES) + ".csv", "labels": labels},
        "groups": {name: {"column": name} for name in groups},
    }
    if draw(st.booleans()):
        card["training"] = {"epochs": draw(st.integers(1, 9)), "seeds": draw(st.just([0, 1]))}
    if draw(st.booleans()):
        card["policy"] = {"gap_above": draw(st.floats(0, 1))}
    if len(groups) > 1 and draw(st.booleans()):
        card["intersections"] = [groups[:2]]
    return card
