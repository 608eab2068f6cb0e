"""A whole audit of a card that holds people back: nobody of them is in what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.end_to_end.conftest import Invoke, write_card

pytestmark = pytest.mark.end_to_end


def test_no_effect_is_of_somebody_held_back(tmp_path: Path, invoke: Invoke) -> None:
    shares = {"train": 0.4, "discovery": 0.2, "confirmation": 0.2, "repair": 0.1, "sealed": 0.1}
    rendered = {"train_images": 400, "audit_images": 160, "association": 0.6}
    card = write_card(tmp_path / "card.yaml", data={"reader": "synthetic", "rendered": rendered, "shares": shares})
    result = invoke("run", card, "--out", tmp_path / "out", "--no-report")
    assert result.exit_code in (0, 1, 3, 4), result.output
    (run,) = (tmp_path / "out").iterdir()
    assert json.loads((run / "audit.json").read_text())["data"]["splits"] == {
        "train": 400, "discovery": 80, "confirmation": 80, "repair": 40, "sealed": 40,
    }  # fmt: skip
    samples = pd.read_parquet(run / "effects" / "samples.parquet")
    unpatched = pd.read_parquet(run / "effects" / "unpatched.parquet")
    measured = samples.loc[unpatched["recipient"].unique(), "split"]
    assert measured.value_counts().to_dict() == {"discovery": 80, "confirmation": 80}
    for path in sorted(run.glob("effects/*.parquet")):
        table = pd.read_parquet(path)
        if "split" in table and path.name != "samples.parquet":
            assert set(table["split"]) <= {"discovery", "confirmation"}, path.name
