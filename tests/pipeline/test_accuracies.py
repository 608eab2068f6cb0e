"""Accuracy of a model with more classes than the audited labels."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from audit.pipeline.build_record import accuracies

pytestmark = pytest.mark.unit


def test_a_class_that_no_image_has_is_an_error_and_no_warning(tmp_path: Path) -> None:
    (tmp_path / "effects").mkdir()
    rows = pd.DataFrame({"seed": 0, "recipient": [0, 1, 2, 3], "predicted": ["calm", "angry", "glad", "glad"]})
    rows.to_parquet(tmp_path / "effects" / "unpatched.parquet")
    frame = pd.DataFrame({"label": ["calm", "calm", "glad", "glad"]})
    scope: Any = SimpleNamespace(run=tmp_path, seeds=[0], samples=SimpleNamespace(frame=frame))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert accuracies(scope) == ([0.75], [0.75])
