"""A network whose only path of the group is one head: all ledgers that patch or sum name it, with the whole gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from audit.evidence.carried_parts import judge_parts
from audit.evidence.disparity import Question
from audit.evidence.effects_store import Settings, StoredEffects
from audit.evidence.joint_patching import HeadSet
from audit.evidence.ledgers import WrittenLedger, written_ledger
from audit.evidence.smallest import judge_smallest
from audit.evidence.stats import Codes
from audit.models.transforms import as_input
from audit.patching.contributions import Component
from audit.patching.plans import plan_group_swap
from audit.patching.sites import Site, parts_swept, sites_of
from audit.patching.sweep import DonorKind, measure_unpatched, sweep, sweep_parts, sweep_together
from audit.patching.written import written
from audit.records import CarriedRow, Contrast, Estimate, PartKind, SmallestSetRow
from tests.models_for_tests import noise_pixels, tiny

pytestmark = pytest.mark.unit
LAYER, HEAD, EACH = 1, 2, 80
SETTINGS = Settings(alpha=0.05, permutations=99, bootstrap=400, seed=0, min_group_size=10)
OUTCOMES = {"b": 1}


@cache
def network() -> VisionTransformer:
    """Return a network in which nothing but one head tells images apart at the class token, and groups by it."""
    model = tiny("class token", classes=2)
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            width = block.attn.proj.in_features // block.attn.num_heads
            for h in range(block.attn.num_heads):
                if (i, h) != (LAYER, HEAD):
                    block.attn.proj.weight[:, h * width : (h + 1) * width] = 0.0
            block.mlp.fc2.weight.zero_()
        model.norm = nn.Identity()  # with it, what differs in its held scale would be a row of its own
        pixels, side = images()
        tokens = model.forward_features(as_input(model, pixels))[:, 0]
        ours, theirs = tokens[side == 1].mean(0), tokens[side == 0].mean(0)
        along = 6.0 * (ours - theirs) / (ours - theirs).square().sum()  # so that the groups are 6 nats apart
        model.head.weight.copy_(torch.stack([-along / 2, along / 2]))
        model.head.bias.copy_(torch.stack([along, -along]) @ (ours + theirs) / 4)
    return model


@cache
def images() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return noise, brighter on the left where an image is of the group."""
    side = (np.arange(2 * EACH) % 2).astype(np.int64)
    pixels = 60 + noise_pixels(2 * EACH).astype(np.float64) / 4
    pixels[side == 1, :, :16] += 120
    return pixels.astype(np.uint8), side


@dataclass(frozen=True)
class Answers:
    """What the ledgers say."""

    smallest: SmallestSetRow
    carried: Sequence[CarriedRow]
    written: WrittenLedger


@cache
def answers(group: str = "left", reference: str = "right") -> Answers:
    model, (pixels, side) = network(), images()
    contrast = Contrast("side", group, reference)
    frame = pd.DataFrame(
        {
            "subject": np.arange(len(side)).astype(str),
            "side": np.where(side == 1, "left", "right"),
            "label": "any",
            "split": np.where(np.arange(len(side)) < EACH, "discovery", "confirmation"),
        }
    )
    plans = {s: plan_group_swap(frame[frame["split"] == s], contrast, [], seed=0).rows for s in frame["split"].unique()}
    kinds = {
        s: [DonorKind(k, model, plan[k].to_numpy(np.int64)) for k in ("cross", "placebo")] for s, plan in plans.items()
    }

    def described(table: pd.DataFrame, split: str) -> pd.DataFrame:
        named = table.join(plans[split][["unit", "side", "label"]], on="position")
        called = np.array(["a", "b"])[named["predicted"].to_numpy(np.int64)]
        return named.assign(contrast=str(contrast), split=split, seed=0, predicted=called)

    def recipients(split: str) -> npt.NDArray[np.int64]:
        return plans[split]["recipient"].to_numpy(np.int64)

    swap = pd.concat(
        described(sweep(model, pixels, recipients(s), kinds[s], layers=range(2), outcomes=OUTCOMES), s) for s in plans
    )
    own = measure_unpatched(model, pixels, np.arange(len(side)), OUTCOMES)
    own = own.assign(seed=0, predicted=np.array(["a", "b"])[own["predicted"].to_numpy(np.int64)])
    stored = StoredEffects(swap, None, own, frame)

    def look(_contrast: Contrast, split: str, positions: Codes, sets: Sequence[HeadSet]) -> pd.DataFrame:
        assert list(positions) == list(range(len(plans[split])))
        asked = {str(s): [Site(*head) for head in s.heads] for s in sets}
        return described(
            sweep_together(model, pixels, recipients(split), kinds[split], sets=asked, outcomes=OUTCOMES), split
        )

    (smallest,) = judge_smallest(stored, [(contrast, "b")], 0, SETTINGS, look)
    of_parts = sweep_parts(
        model, pixels, recipients("confirmation"), kinds["confirmation"], parts=parts_swept(model), outcomes=OUTCOMES
    )
    carried = judge_parts(stored, described(of_parts, "confirmation"), [contrast], ["b"], 0, SETTINGS)
    sign = 1.0 if group == "left" else -1.0
    found = written(model, as_input(model, pixels), OUTCOMES, np.zeros(len(side), dtype=np.int64)).centred()
    ledger = written_ledger(
        found,
        "b",
        frame,
        Question("side", reference, ["left", "right"]),
        group,
        rate_gap=sign,
        resamples=400,
        seed=0,
    )
    assert ledger is not None
    return Answers(smallest, carried, ledger)


def holds(estimate: Estimate, value: float) -> bool:
    return estimate.low is not None and estimate.high is not None and estimate.low <= value <= estimate.high


def test_the_smallest_set_is_that_head_with_all_of_the_gap() -> None:
    found = answers().smallest
    assert found.heads == [f"L{LAYER}H{HEAD}"]
    assert found.confirmed
    assert holds(found.share_of_gap, 1.0)
    assert all(abs(carried) < 1e-6 for carried in found.random)
    assert len(found.random) == len(sites_of(network(), range(1))) - 1


def test_its_layer_and_all_attention_carry_the_gap_in_both_directions_and_nothing_else_does() -> None:
    for row in answers().carried:
        has_it = row.part == "attention" or (row.part, row.layer) in (("layer", LAYER), ("patch tokens", 1))
        assert row.beyond_noise is has_it
        assert holds(row.share_of_gap, 1.0) if has_it else abs(row.denoised.value or 0.0) < 1e-6
        assert row.denoised.value == pytest.approx(row.noised.value, abs=1e-6)


def test_it_writes_all_of_the_gap() -> None:
    ledger = answers().written.whole
    gaps = {row.component: row.gap for row in ledger.components}
    head = gaps.pop(Component(PartKind.HEAD, LAYER, HEAD))
    assert all(abs(gap.value or 0.0) < 1e-5 for gap in gaps.values())
    assert head.value == pytest.approx(ledger.total.value, abs=1e-5)
    share = next(row.share for row in ledger.components if row.component == Component(PartKind.HEAD, LAYER, HEAD))
    assert share.value == pytest.approx(1.0, abs=1e-5)


def test_relabelled_groups_turn_every_sign() -> None:
    there, back = answers(), answers("right", "left")
    assert back.smallest.heads == there.smallest.heads
    assert (back.smallest.together.value or 0.0) * (there.smallest.together.value or 0.0) < 0
    for one, other in zip(there.carried, back.carried, strict=True):
        assert (one.part, one.layer) == (other.part, other.layer)
    assert back.written.whole.total.value == pytest.approx(-(there.written.whole.total.value or 0.0), rel=1e-9)
