"""From pairing to verdict on simulated images: wrong no more often than it says, donors shared or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from audit.evidence.effects_store import Settings, StoredEffects
from audit.evidence.heads import localise
from audit.patching.plans import plan_group_swap
from audit.records import Contrast, HeadRow
from tests.evidence.simulate import plausible

pytestmark = pytest.mark.property

TONE = Contrast("tone", "dark", "light")
SETTINGS = Settings(alpha=0.05, permutations=199, bootstrap=200, seed=0, min_group_size=30)
HEADS = [(layer, head) for layer in range(2) for head in range(3)]
STRENGTH = 0.3  # mean change of p per unit of what a donor's head carries
Sizes = tuple[int, int]


def audited(
    rng: np.random.Generator, sizes: Sizes, *, images_each: int, carried: float = 0.0, mixed: float = 0.0
) -> list[HeadRow]:
    """Audit images that are each both recipient and donor, in one split or the other.

    An image's heads carry something, alike for images of one subject in part; how much a recipient's answer depends on
    it goes with what its own heads carry. The first head's content is ``carried`` higher in the group. Of a share
    ``mixed`` of the people the images may differ in label, so that they receive from several donor pairs.
    """
    parts, swaps = [], []
    for number, split in enumerate(("discovery", "confirmation")):
        people = sum(sizes)
        subject = np.repeat(np.arange(people), images_each)
        of_person, of_image = (rng.choice(["frown", "smile"], n) for n in (people, len(subject)))
        frame = pd.DataFrame(
            {
                "subject": [f"{split}-{s}" for s in subject],
                "tone": np.repeat(["dark", "light"], np.array(sizes) * images_each),
                "label": np.where(rng.random(people)[subject] < mixed, of_image, of_person[subject]),
                "split": split,
            },
            index=10_000 * number + np.arange(len(subject)),
        )
        content = rng.normal(0, 0.7, (people, len(HEADS)))[subject] + rng.normal(0, 0.7, (len(subject), len(HEADS)))
        leaning = STRENGTH + 0.1 * content + rng.normal(0, 0.05, content.shape)
        content[:, 0] += carried * (frame["tone"] == "dark")
        own = 0.5 + 0.1 * content.mean(1) + rng.normal(0, 0.1, len(subject))
        frame = frame.assign(own=own)
        plan = plan_group_swap(frame, TONE, [], seed=number).rows
        at = {kind: plan[kind].to_numpy() - 10_000 * number for kind in ("recipient", "cross", "placebo")}
        for kind in ("cross", "placebo"):
            change = leaning[at["recipient"]] * (content[at[kind]] - content[at["recipient"]])
            patched = own[at["recipient"]][:, None] + change + rng.normal(0, 0.02, change.shape)
            for k, (layer, head) in enumerate(HEADS):
                about = plan[["recipient", "unit", "side", "label"]].reset_index(names="position")
                values = {"p:smile": patched[:, k], "m:smile": 4 * patched[:, k], "predicted": "smile"}
                where = {"donor_kind": kind, "layer": layer, "head": head, "split": split}
                swaps.append(about.assign(**values, **where))
        parts.append(frame)
    frame = pd.concat(parts)
    unpatched = frame.assign(seed=0, recipient=frame.index, predicted=frame["label"])
    unpatched = unpatched.rename(columns={"own": "p:smile"}).assign(**{"m:smile": 4 * frame["own"]})
    swap = pd.concat(swaps, ignore_index=True).assign(seed=0, contrast=str(TONE))
    heads, _ = localise(StoredEffects(swap, None, unpatched, frame), [TONE], ["smile"], [0], SETTINGS)
    return heads


SHARING = {
    "each pair serves one image of each group": {"sizes": (70, 70), "images_each": 1},
    "each pair serves six images": {"sizes": (40, 200), "images_each": 1},
    "three images a person": {"sizes": (50, 60), "images_each": 3},
    "two images a person, for some of either label": {"sizes": (110, 110), "images_each": 2, "mixed": 0.15},
}

LONG = tuple(name for name in SHARING if "some of either label" not in name)  # the hardest is tried each time
CASES = [pytest.param(SHARING[name], marks=[pytest.mark.long] if name in LONG else [], id=name) for name in SHARING]


@pytest.mark.parametrize("sharing", CASES)
def test_where_heads_carry_nothing_of_the_group_none_is_found_too_often(sharing: dict[str, Any]) -> None:
    rng, runs = np.random.default_rng(4), 30
    found = confirmed = 0
    covered: list[bool] = []
    for _ in range(runs):
        heads = audited(rng, **sharing)
        assert {h.verdict for h in heads} != {"too little data"}
        found += min(h.discovery_p_adjusted for h in heads) <= SETTINGS.alpha
        confirmed += any(h.verdict == "confirmed" for h in heads)
        covered += [covers(h, 0.0) for h in heads]
    assert plausible(found, runs, 0.02, SETTINGS.alpha)
    assert plausible(confirmed, runs, 0.0, 0.01)
    assert plausible(sum(covered), len(covered), 0.92, 0.97)


@pytest.mark.parametrize("sharing", CASES)
def test_a_head_that_carries_something_is_found_and_its_interval_covers(sharing: dict[str, Any]) -> None:
    rng, runs, carried = np.random.default_rng(5), 15, 1.2
    named: list[set[str]] = []
    covered: list[bool] = []
    for _ in range(runs):
        heads = audited(rng, **sharing, carried=carried)
        named.append({h.name for h in heads if h.verdict == "confirmed"})
        covered.append(covers(heads[0], STRENGTH * carried))
    assert sum("L0H0" in n for n in named) > 0.8 * runs
    assert sum(bool(n - {"L0H0"}) for n in named) <= 1
    assert plausible(sum(covered), len(covered), 0.92, 0.97)


def covers(head: HeadRow, true: float) -> bool:
    found = head.confirmation
    return found.low is not None and found.high is not None and found.low <= true <= found.high
