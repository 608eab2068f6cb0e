"""A table as a spreadsheet saves it, with ages and a group that nobody is in, from file to report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.end_to_end.conftest import TABLE, Run, write_card
from tests.small_world import World, without_pdf

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def table_run(world: World, face_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    def prepare(folder: Path) -> Path:
        (folder / "images").symlink_to(face_folder / "images")
        table = pd.read_csv(face_folder / "faces.csv", dtype=str, keep_default_na=False)
        table["tone"] = [tone.upper() if number % 5 == 0 else tone for number, tone in enumerate(table["tone"])]
        table["age"] = [f"{18 + 7 * number % 40},5" for number in range(len(table))]
        (folder / "faces.csv").write_bytes(table.to_csv(index=False, sep=";").encode("utf-16"))
        groups = {
            "skin_tone": {"column": "tone", "values": ["lighter", "darker", "green"], "merge": True},
            "age": {"column": "age", "bins": [18, 40]},
        }
        return write_card(
            folder / "card.yaml", data={**TABLE, "links": True}, groups=groups, audit={"min_group_size": 5}
        )

    with without_pdf():
        return world.audited("tables", prepare, tmp_path_factory.mktemp("tables"))


def test_a_group_without_an_image_is_a_row_without_data(table_run: Run) -> None:
    record = table_run.record
    assert record["outcome"] != "INVALID", record["reasons"]
    assert record["data"]["attributes"][0]["groups"] == ["lighter", "darker", "green"]
    empty = [row for row in record["rates"] if row["group"] in ("green", "under 18")]
    assert len(empty) == 2
    assert all(row["images"] == 0 and row["selection_rate"]["value"] is None for row in empty)
    warnings = record["data"]["warnings"]
    warned = {w["of"]: w["names"] for w in warnings if w["code"] == "groups without an image"}
    assert warned == {"skin_tone": ["green"], "age": ["under 18"]}
    assert not [w for w in warnings if w["code"] == "images without a donor" and "green" in w["of"]]
    about = {row["shortfall"] for row in record["contrasts"] if row["group"] == "green"}
    assert about == {"labels"}
    page = (table_run.folder / "report.html").read_text(encoding="utf-8")
    assert page.count("no data") > 10
    assert "accuracy, skin tone green: no data" in table_run.result.stdout
    assert "Of images of 'green' there are no data." in table_run.result.stdout
    assert "warning: skin_tone: no image of green, which the card names" in table_run.result.stdout


def test_what_the_table_was_taken_for_is_in_record_and_report(table_run: Run) -> None:
    (form,) = table_run.record["data"]["tables"]
    assert (form["encoding"], form["separator"]) == ("utf-16", ";")
    page = (table_run.folder / "report.html").read_text(encoding="utf-8")
    assert "faces.csv: text in UTF-16, columns separated by semicolons" in page
    assert [row["group"] for row in table_run.record["rates"] if row["attribute"] == "age"] == [
        "under 18", "18 to under 40", "40 and over",
    ]  # fmt: skip
