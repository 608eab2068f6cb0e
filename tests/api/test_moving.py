"""The mean-shift patch as a caller meets it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vit_audit as va
from audit.errors import InputError
from tests.models_for_tests import noise_images, tiny

pytestmark = pytest.mark.unit
IMAGES, LABELS, GROUPS = noise_images(48), [0, 1] * 24, (["a"] * 2 + ["b"] * 2) * 12
ASKED: dict[str, Any] = {"outcomes": {"happy": 1, "sad": 2}, "parts": ["L1 attention", (0, 1)], "resamples": 50}


def test_each_part_and_outcome_has_a_row_that_relabelling_turns() -> None:
    images = IMAGES.clone()
    images[torch.tensor([g == "b" for g in GROUPS])] += 0.5
    moved = va.shift_means(tiny(), images, LABELS, GROUPS, **ASKED, reference="a")
    frame = moved.to_frame()
    assert frame["part"].tolist() == ["L1 attention", "L0H1"] * 2
    assert frame["outcome"].tolist() == ["happy"] * 2 + ["sad"] * 2
    assert set(frame["contrast"]) == {"b-a"}
    assert set(frame["moved"]) == set(frame["donors"]) == {48}
    assert (frame["probability_low"] < frame["probability_high"]).all()
    assert (frame["off_first_order"] >= 0).all()
    difference = frame["probability"] - frame["placebo"] - frame["beyond"]
    assert difference.abs().max() < 1e-12
    turned = va.shift_means(tiny(), images, LABELS, GROUPS, **ASKED, reference="b").to_frame()
    assert set(turned["contrast"]) == {"a-b"}
    assert len(moved.plot().get_lines()) > 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"groups": ["a"] * 48}, "groups: are 1"),
        ({"groups": ["a", "b", "c"] * 16}, "groups: are 3"),
        ({"labels": [0] * 47}, "labels: are"),
        ({"subjects": [None] * 48}, "subjects: are"),
        ({"subjects": [0] * 48}, "no label has two subjects"),
        ({"reference": "c"}, "reference: is 'c'"),
        ({"outcomes": {"glad": 3}}, "outcomes: are"),
        ({"parts": ["all attention"]}, "is of all layers"),
        ({"parts": "L1 attention"}, "parts"),
        ({"shuffles": -1}, "shuffles: is -1"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], said: str) -> None:
    asked = {"labels": LABELS, "groups": GROUPS, **ASKED, **given}
    with pytest.raises(InputError, match=said):
        va.shift_means(tiny(), IMAGES, **asked)
