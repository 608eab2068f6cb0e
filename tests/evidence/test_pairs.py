"""Exact pairs: total, indirect and direct effects by hand, in sign and by label."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from audit.evidence.pairs import Natural, judge_pairs, with_natural
from tests.evidence.rows import head_row
from tests.evidence.test_heads import HAIR, SETTINGS, TONE

pytestmark = pytest.mark.unit


def table(*, total: float, indirect: float, direct: float) -> pd.DataFrame:
    """Store pairs in which the group's version of each picture has ``total`` more, by head L1H0 ``indirect`` of it."""
    rng = np.random.default_rng(0)
    rows = []
    for pair in range(60):
        side, label = ("group", "reference")[pair % 2], ("smile", "frown")[pair % 3 == 0]
        sign = 1.0 if side == "reference" else -1.0  # edited towards the group, or away from it
        before = rng.uniform(0.3, 0.6)
        about = {"contrast": str(TONE), "pair": pair, "side": side, "label": label, "subject": f"s{pair // 2}"}
        values = [("own", -1, -1, before), ("edited", -1, -1, before + sign * total),
                  ("own", 1, 0, before + sign * indirect), ("edited", 1, 0, before + sign * direct),
                  ("own", 1, 1, before), ("edited", 1, 1, before + sign * total)]  # fmt: skip
        rows += [{**about, "version": v, "layer": layer, "head": h, "p:smile": p} for v, layer, h, p in values]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def judged(**effects: float) -> Natural:
    (found,) = judge_pairs(table(**effects), [TONE, HAIR], ["smile"], SETTINGS)
    return found


def test_effects_are_signed_from_the_reference_to_the_group() -> None:
    found = judged(total=0.2, indirect=0.15, direct=0.06)
    assert (found.row.contrast, found.row.pairs, found.row.subjects) == (str(TONE), 60, 30)
    assert found.row.total.value == pytest.approx(0.2)
    assert found.indirect[(1, 0)].value == pytest.approx(0.15)
    assert found.direct[(1, 0)].value == pytest.approx(0.06)
    assert found.indirect[(1, 1)].value == pytest.approx(0.0)
    assert found.direct[(1, 1)].value == pytest.approx(0.2)


def test_pairs_of_one_side_only_are_not_judged() -> None:
    half = table(total=0.2, indirect=0.1, direct=0.1)
    assert judge_pairs(half[half["side"] == "group"], [TONE], ["smile"], SETTINGS) == []


def test_heads_of_other_questions_stay_without() -> None:
    rows = [head_row(contrast=str(c), outcome="smile", layer=1, head=0) for c in (TONE, HAIR)]
    updated = with_natural(rows, [judged(total=0.2, indirect=0.15, direct=0.06)])
    assert updated[0].natural_indirect is not None
    assert updated[0].natural_indirect.value == pytest.approx(0.15)
    assert updated[1] == rows[1]
