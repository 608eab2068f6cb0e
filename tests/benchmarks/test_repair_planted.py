"""Repairs at a planted head against random ones: the benchmark's own arithmetic, on a small model and noise."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from audit.models.transforms import as_input
from audit.records.repair_methods import AT_HEADS
from benchmarks.real_planted.models import Steps
from benchmarks.repair.planted import BESIDE, Ground, Sizes, ground_of, planted, planted_told
from tests.benchmarks.noise import photographs_of_noise, whole

pytestmark = pytest.mark.unit
SMALL = Sizes(
    planted=1, side=32, blocks=2, heads=3, steps=Steps(20, 20, 5), train=200, audited=80, fit=160, judged=120,
    recipients=20, permutations=200, draws=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def given() -> Ground:
    return ground_of(whole(), *photographs_of_noise(SMALL.splits), SMALL, 1)


@torch.inference_mode()
def test_the_whole_model_answers_as_its_trained_blocks_do(given: Ground) -> None:
    model = given.model(given.base)
    found = model(as_input(model, given.pixels[:8]))
    expected = given.base(as_input(given.base, given.world.features[slice(0, 8)]))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)  # features are rounded to float16


def test_every_edit_is_compared_with_the_same_edit_at_random_heads(given: Ground, tmp_path: Path) -> None:
    steps: list[str] = []
    found = planted(given, tmp_path, lambda step, _done, _total: steps.append(step))
    (row,) = found["models"]
    assert len(steps) == len(row["planted"]) == 1
    layer, head = (int(part) for part in row["planted"][0][1:].split("H"))
    assert (layer in (1, 2), head in range(3)) == (True, True)  # of the whole model, whose first block is frozen
    assert list(row["methods"]) == [str(method) for method in (*BESIDE, *AT_HEADS)]
    assert list(row["methods_wide"]) == [str(method) for method in BESIDE]
    untouched = row["methods"]["untouched"]
    assert untouched["largest_loss"] == 0
    assert row["undone"]["gap"] != untouched["gap"]
    assert list(row["at_planted_heads"]) == [str(edit) for edit in AT_HEADS]
    for edit, one in row["at_planted_heads"].items():
        assert one["draws"] == 2
        as_good = one["p"] * 3 - 1
        assert as_good == pytest.approx(round(as_good), abs=1e-3)
        assert (as_good < 0.5) == (abs(one["gap"]) < one["smallest"])
        assert found["beats_all"][edit] == {"models": 1, "beaten_by_none": int(as_good < 0.5)}
    assert planted(given, tmp_path, lambda step, _done, _total: steps.append(step)) == found
    assert len(steps) == 1  # what is done is taken up
    said = "\n".join(planted_told(found))
    assert f"| {row['planted'][0]} | {row['planted'][0]} | `heads_shifted` |" in said


def test_random_sets_as_good_as_the_planted_head_are_told(given: Ground) -> None:
    one: dict[str, Any] = {"gap": 0.1, "gap_error": 0.01, "largest_loss": -0.02, "accuracy": 0.8, "seconds": 1.0}
    edit = {**one, "draws": 20, "layers_apart": 0, "smallest": 0.05, "median": 0.12, "p": 0.1429}
    row = {
        "planted": ["L11H0"],
        "named": ["L10H3"],
        "undone": {**one, "gap": 0.01},
        "methods": {"untouched": one, "heads_finetuned": {**one, "gap": 0.09}},
        "methods_wide": {"untouched": one, "dfr": {**one, "gap": 0.08}},
        "at_planted_heads": {"heads_finetuned": edit},
        "at_named_heads": {"heads_to_reference": {**edit, "p": 0.0476}},
    }
    told = {
        "models": [row],
        "images": dataclasses.replace(given.sizes, fit=900, judged=2000).splits,
        "margins": [0.02, 0.15],
        "draws": 20,
        "smallest_p": 0.0476,
        "beats_all": {"heads_finetuned": {"models": 1, "beaten_by_none": 0}},
    }
    said = planted_told(told)
    assert "| audited model |  | +10.0 ± 2.0 [-2.0] |" in said
    assert "| planted head as it was before |  | +1.0 ± 2.0 [-2.0] |" in said
    assert "| `heads_finetuned` | 2 | +9.0 ± 2.0 [-2.0] |" in said
    assert "| `dfr` | 15 | +8.0 ± 2.0 [-2.0] |" in said
    assert "| L11H0 | L11H0 | `heads_finetuned` | +10.0 ± 2.0 | 5.0 | 12.0 | 0.143 |" in said
    assert "| L11H0 | L10H3 | `heads_to_reference` | +10.0 ± 2.0 | 5.0 | 12.0 | 0.048 |" in said
    assert "`heads_finetuned` 0 of 1." in said[-2]
