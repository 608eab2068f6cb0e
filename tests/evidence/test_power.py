"""What is said to be estimable before a run is estimable, and what is not is never patched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.card.schema import AuditSpec, Card
from audit.data.samples import Samples
from audit.evidence.disparity import Question, Thresholds, contrasts
from audit.evidence.effects_store import Settings, StoredEffects
from audit.evidence.heads import localise
from audit.evidence.power import Feasibility, detectable_head_effects, feasibility, plan_contrast
from audit.pipeline.context import Scope
from audit.pipeline.run_sweeps import make_plans
from audit.records import AttributeInfo, Contrast, Metric, Shortfall, State, Verdict
from tests.evidence.rows import contrast_row

TONE = Contrast("tone", "dark", "light")
SPEC = AuditSpec(min_group_size=10, permutations=200, bootstrap=200)
LIMITS = Thresholds(SPEC.alpha, SPEC.min_group_size, impact_ratio_below=0.8, gap_above=0.1)


def table(rng: np.random.Generator, *, images: int, labels: int, several: float, rare: float) -> pd.DataFrame:
    """Draw samples: label 0 is the commonest, the last ones are rare; some people have images of several labels."""
    shares = np.linspace(1.0, rare, labels)
    subject = np.where(rng.random(images) < several, rng.integers(0, max(1, images // 4), images), np.arange(images))
    tone, split = rng.choice(["dark", "light", "unknown"], images, p=[0.45, 0.45, 0.1]), rng.random(images) < 0.5
    frame = pd.DataFrame({"subject": subject, "tone": tone[subject], "split": np.where(split[subject], *AUDIT)})
    frame["label"] = [f"y{k}" for k in rng.choice(labels, images, p=shares / shares.sum())]
    return frame.assign(subject=frame["subject"].map("s{}".format), image=[f"i{k}" for k in range(images)])


AUDIT = ("discovery", "confirmation")


def what_sweeps_leave(frame: pd.DataFrame, rng: np.random.Generator) -> tuple[StoredEffects, pd.DataFrame]:
    """Patch two heads at random, for the recipients and donors of the audit's own plans."""
    own = frame.assign(recipient=frame.index, seed=0, predicted=rng.permutation(frame["label"]))
    own = own.assign(**{"p:y0": rng.random(len(own)), "m:y0": rng.normal(0, 1, len(own))})
    parts = []
    for split, plan in plan_contrast(frame, TONE, [], SPEC, {}).items():
        about = plan.rows[["recipient", "unit", "side", "label"]].reset_index(names="position")
        for kind in ("cross", "placebo"):
            for head in range(2):
                p = np.clip(own["p:y0"].loc[about["recipient"]].to_numpy() + rng.normal(0, 0.05, len(about)), 0, 1)
                values = {"p:y0": p, "m:y0": p, "predicted": np.where(p > 0.5, "y0", "y1")}
                parts.append(about.assign(**values, donor_kind=kind, layer=0, head=head, split=split))
    swap = pd.concat(parts, ignore_index=True).assign(seed=0, contrast=str(TONE))
    return StoredEffects(swap, None, own, frame), own


@pytest.mark.property
@settings(max_examples=6, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(20, 500), st.integers(2, 12), st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.02, 1.0]),
)  # fmt: skip
def test_what_is_estimable_gives_finite_intervals_and_nothing_else_is_patched(
    seed: int, images: int, labels: int, several: float, rare: float
) -> None:
    rng = np.random.default_rng(seed)
    frame = table(rng, images=images, labels=labels, several=several, rare=rare)
    found = {f.metric: f for f in feasibility(frame, [TONE], ["y0"], [], SPEC, {})}
    assert set(found) == set(Metric)
    stored, own = what_sweeps_leave(frame, rng)
    question = Question("tone", "light", ["dark", "light"])
    for row in contrasts(own.drop(columns=["recipient", "seed"]), [question], ["y0"], LIMITS):
        state = row.state in (State.DISPARITY, State.NOT_DETECTED)
        assert state == (found[row.metric].gap is None)
        assert not state or np.isfinite([row.estimate.low or np.nan, row.estimate.high or np.nan]).all()
    if stored.swap.groupby("split").ngroups == 2:
        for metric, feasible in found.items():
            check_heads(stored, metric, feasible)
    plans, _ = make_plans(scope(frame))
    assert bool(plans) == any(f.heads is None for f in found.values())


def check_heads(stored: StoredEffects, metric: Metric, feasible: Feasibility) -> None:
    gaps = {feasible.key: contrast_row(metric=metric)}
    asked = StoredEffects(stored.swap, None, stored.unpatched, stored.frame, gaps=gaps)
    sizes = Settings(SPEC.alpha, SPEC.permutations, SPEC.bootstrap, SPEC.seed, SPEC.min_group_size)
    for row in localise(asked, [TONE], ["y0"], [0], sizes)[0]:
        assert (row.verdict != Verdict.TOO_LITTLE_DATA) == (feasible.heads is None)
        if feasible.heads is None:
            for estimate in (row.discovery, row.confirmation, row.confirmation_rate):
                assert estimate is not None
                assert np.isfinite([estimate.value or 0.0, estimate.low or 0.0, estimate.high or 0.0]).all()
                assert estimate.low is not None and estimate.high is not None and estimate.low < estimate.high


def scope(frame: pd.DataFrame) -> Scope:
    info = AttributeInfo(
        attribute="tone", assigned_by="", reference="light", groups=["dark", "light"], unknown_images=0
    )
    labels = tuple(sorted(frame["label"].unique()))
    samples = Samples(frame, None, labels, {"tone": info})  # type: ignore[arg-type]
    card = Card.model_validate(
        {
            "data": {"reader": "folder", "path": "."},
            "groups": {"tone": {"column": "tone", "reference": "light"}},
            "audit": {**SPEC.model_dump(), "outcomes": [labels[0]]},
        }
    )
    return Scope(card, Path("run"), samples, "head")


def plenty() -> pd.DataFrame:
    """Forty people of either group and split, each with one image, half of either label."""
    rows = [(s, t, y) for s in AUDIT for t in ("dark", "light") for y in ("y0", "y1") for _ in range(20)]
    frame = pd.DataFrame(rows, columns=["split", "tone", "label"])
    return frame.assign(subject=[f"s{k}" for k in range(len(frame))], image=[f"i{k}" for k in range(len(frame))])


def shortfalls(frame: pd.DataFrame) -> dict[Metric, tuple[Shortfall | None, Shortfall | None]]:
    return {f.metric: (f.gap, f.heads) for f in feasibility(frame, [TONE], ["y0"], [], SPEC, {})}


@pytest.mark.unit
def test_where_there_is_enough_of_all_every_question_can_be_asked() -> None:
    found = shortfalls(plenty())
    assert found[Metric.STANDARDISED_GAP] == (None, None)
    assert found[Metric.TPR_GAP] == found[Metric.FPR_GAP] == (None, Shortfall.CLUSTERS)  # twenty pairs of one label
    (limit,) = detectable_head_effects(scope(plenty()).samples, SPEC, "head")
    assert (limit.shortfall, limit.clusters, limit.clusters_needed) == (None, (40, 40), 30)


@pytest.mark.unit
def test_a_label_without_images_in_a_group_leaves_what_does_not_need_it() -> None:
    frame = plenty()
    frame = frame[(frame["label"] == "y0") | (frame["tone"] == "dark")].reset_index(drop=True)
    found = shortfalls(frame)
    assert found[Metric.STANDARDISED_GAP] == (Shortfall.LABELS, Shortfall.LABELS)
    assert found[Metric.FPR_GAP] == (Shortfall.LABELS, Shortfall.LABELS)
    assert found[Metric.TPR_GAP] == (None, Shortfall.CLUSTERS)


@pytest.mark.unit
def test_a_label_missing_from_one_split_leaves_the_gap_but_no_heads() -> None:
    frame = plenty()
    gone = (frame["label"] == "y1") & (frame["tone"] == "dark") & (frame["split"] == "confirmation")
    assert shortfalls(frame[~gone].reset_index(drop=True))[Metric.STANDARDISED_GAP] == (None, Shortfall.LABELS)


@pytest.mark.unit
def test_too_few_people_are_too_little() -> None:
    frame = plenty()
    few = frame[(frame["tone"] == "light") | (frame.groupby(["tone", "split", "label"]).cumcount() < 2)]
    found = shortfalls(few.reset_index(drop=True))
    assert found[Metric.STANDARDISED_GAP] == (Shortfall.SUBJECTS, Shortfall.SUBJECTS)
    assert make_plans(scope(few.reset_index(drop=True)))[0] == []
