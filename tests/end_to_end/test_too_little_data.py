"""What the table alone shows to be too little is answered before anything is trained or measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from audit.exit_codes import ExitCode
from tests.end_to_end.conftest import TABLE, TONE, Invoke, write_card
from tests.small_world import without_pdf

pytestmark = pytest.mark.end_to_end


def test_nothing_is_trained_for_an_answer_that_is_known_before(invoke: Invoke, tmp_path: Path) -> None:
    card = write_card(tmp_path / "card.yaml", audit={"min_group_size": 5000})
    result = invoke("run", card, "--out", tmp_path / "out")
    assert result.exit_code == ExitCode.TOO_LITTLE_DATA, result.output
    assert "nothing was trained or measured" in result.stdout
    (run,) = (tmp_path / "out").iterdir()
    assert not (run / "models").exists()
    assert [path.name for path in (run / "effects").iterdir()] == ["samples.parquet"]
    record = json.loads((run / "audit.json").read_text(encoding="utf-8"))
    assert [reason["code"] for reason in record["reasons"]] == ["nothing compared"]
    assert "nothing was trained or measured" in (run / "report.html").read_text(encoding="utf-8")
    with without_pdf():
        assert invoke("verify", run).stdout.startswith("verified: ")


def test_a_card_that_trains_ends_there_too_where_one_declared_group_is_left(
    face_folder: Path, invoke: Invoke, tmp_path: Path
) -> None:
    shutil.copytree(face_folder, tmp_path / "data")
    table = pd.read_csv(tmp_path / "data" / "faces.csv", dtype=str, encoding="utf-8-sig")
    table.assign(tone="lighter").to_csv(tmp_path / "data" / "faces.csv", index=False)
    groups = {"skin_tone": {**TONE["skin_tone"], "values": ["lighter", "darker"]}}
    card = write_card(tmp_path / "data" / "card.yaml", data=TABLE, groups=groups)
    result = invoke("run", card, "--out", tmp_path / "out", "--no-report")
    assert result.exit_code == ExitCode.TOO_LITTLE_DATA, result.output
    assert "nothing was trained or measured" in result.stdout
