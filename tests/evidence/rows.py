"""Rows as the evidence makes them, to be graded: with sensible defaults, and drawn at random."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from audit.evidence.findings import Context
from audit.records import (
    ContrastRow,
    Control,
    ControlReport,
    Direction,
    Estimate,
    HeadRow,
    Metric,
    Shortfall,
    State,
    Verdict,
)
from tests.strategies import NAMES

CONTEXT = Context(
    name="card",
    model="vit",
    matched_on=["hair_length"],
    calipers={},
    unknown={"tone": 7},
    alpha=0.05,
    gap_above=0.1,
    head_share_above=0.05,
    hashes={"data": "d" * 64},
)


def around(value: float | None, half: float = 0.02) -> Estimate:
    return Estimate(value=value) if value is None else Estimate(value=value, low=value - half, high=value + half)


def contrast_row(**changes: Any) -> ContrastRow:
    """Return a disparity of 15 points, above policy, alike in both seeds, with ``changes``."""
    values: dict[str, Any] = {
        "attribute": "tone",
        "group": "dark",
        "reference": "light",
        "outcome": "smiling",
        "metric": "standardised_gap",
        "estimate": around(-0.15),
        "ratio": 0.7,
        "p_raw": 0.0001,
        "p_adjusted": 0.0003,
        "family_size": 3,
        "smallest_detectable": 0.05,
        "state": "disparity",
        "above_policy": True,
        "by_seed": [-0.15, -0.12],
        "n_group": 300,
        "n_reference": 310,
    } | changes
    parts = (values[k] for k in ("attribute", "group", "reference", "outcome", "metric"))
    return ContrastRow(id="{}:{}-{}:{}:{}".format(*parts), **values)


def head_row(**changes: Any) -> HeadRow:
    """Return a confirmed head that carries 30% of the gap of :func:`contrast_row`, with ``changes``."""
    values: dict[str, Any] = {
        "contrast": "tone:dark-light",
        "outcome": "smiling",
        "layer": 2,
        "head": 1,
        "name": "L2H1",
        "discovery": around(-0.04),
        "discovery_p": 0.0002,
        "discovery_p_adjusted": 0.001,
        "confirmation": around(-0.045),
        "confirmation_rate": around(-0.06),
        "direction": "widens",
        "confirmation_p": 0.0004,
        "confirmation_p_adjusted": 0.0008,
        "iie_forward": around(-0.04),
        "iie_backward": around(0.05),
        "placebo": around(0.001),
        "share_of_gap": around(0.3),
        "percentile_in_layer": 87.5,
        "accuracy_change": -0.01,
        "design_c": None,
        "by_seed": [-0.045, -0.03],
        "verdict": "confirmed",
        "smallest_detectable": 0.01,
    } | changes
    return HeadRow(**values)


def controls(*, failed: int = 0, valid: bool | None = None) -> ControlReport:
    """Return a report of three controls, the first ``failed`` of which did not pass."""
    rows = [
        Control(
            id=f"c{i}",
            check="self_patch",
            kind="identity",
            estimate=Estimate(value=0.0),
            relation="==",
            threshold=0.0,
            passed=i >= failed,
        )
        for i in range(3)
    ]
    return ControlReport(valid=failed == 0 if valid is None else valid, controls=rows, grids=[])


SIZES = st.floats(-1, 1).map(lambda v: round(v, 3))
P_VALUES = st.floats(0, 1)


@st.composite
def contrast_rows(draw: st.DrawFn) -> ContrastRow:
    """Draw any row that the comparison of groups could leave."""
    state: State = draw(st.sampled_from(list(State)))
    tested = state in ("disparity", "no disparity detected")
    return contrast_row(
        attribute=draw(NAMES),
        group=draw(NAMES),
        reference=draw(NAMES),
        outcome=draw(NAMES),
        metric=draw(st.sampled_from(list(Metric))),
        estimate=around(None if state == "not estimable" else draw(SIZES)),
        ratio=draw(st.none() | st.floats(0, 5)),
        p_raw=draw(P_VALUES) if tested else None,
        p_adjusted=draw(P_VALUES) if tested else None,
        smallest_detectable=draw(st.floats(0.001, 1)) if tested else None,
        state=state,
        above_policy=state == "disparity" and draw(st.booleans()),
        by_seed=draw(st.lists(SIZES, max_size=3)),
        shortfall=None if tested else Shortfall.LABELS if state == "not estimable" else Shortfall.SUBJECTS,
        fewest_subjects=12 if state == "too little data" else None,
        subjects_needed=30 if state == "too little data" else None,
    )


@st.composite
def head_rows(draw: st.DrawFn, row: ContrastRow) -> HeadRow:
    """Draw a head of the contrast and outcome of ``row``."""
    return head_row(
        contrast=f"{row.attribute}:{row.group}-{row.reference}",
        outcome=row.outcome,
        confirmation=around(draw(SIZES)),
        confirmation_rate=around(draw(SIZES)),
        direction=draw(st.sampled_from(list(Direction))),
        share_of_gap=around(draw(st.none() | st.floats(-2, 2))),
        by_seed=draw(st.lists(SIZES, max_size=3)),
        verdict=draw(st.sampled_from(list(Verdict))),
    )
