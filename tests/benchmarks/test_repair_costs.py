"""The costs of repairs: that what is timed is what is told, on a model that is small."""

from __future__ import annotations

import pytest

from audit.patching.sites import Site
from audit.records.repair_methods import AT_HEADS, Method
from benchmarks.repair.costs import LAST_LAYER, Sizes, costs, costs_told

pytestmark = pytest.mark.unit
SMALL = Sizes(
    training=64, fit=96, name="vit_tiny_patch16_224", overrides=(("depth", 2), ("embed_dim", 24), ("num_heads", 3)),
    side=32, heads=(Site(1, 1),),
)  # fmt: skip


def test_every_method_that_trains_nothing_on_is_timed_beside_the_fine_tuning() -> None:
    steps: list[str] = []
    found = costs(SMALL, lambda step, _done, _total: steps.append(step))
    timed = [str(method) for method in (*LAST_LAYER, *AT_HEADS)]
    assert list(found["methods"]) == timed
    assert steps == ["fine-tuning", "features", *timed, str(Method.RANDOM_HEADS)]
    assert found["finetuning_seconds"] > 0
    shares = [found["methods"][str(method)]["share"] for method in AT_HEADS]
    assert found["heads_share"] == max(shares) > 0
    assert found["all_seconds"] == pytest.approx(sum(one["seconds"] for one in found["methods"].values()), abs=0.06)
    said = "\n".join(costs_told(found))
    assert "64 images for 3 epochs" in said
    for method in timed:
        assert f"| `{method}` |" in said
