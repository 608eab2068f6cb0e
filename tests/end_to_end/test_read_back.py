"""One step back in a whole audit: what writers read sums to what they write, and is derived again from the tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import vit_audit as va
from audit.records import LedgerRow, ReadWriter
from tests.end_to_end.conftest import Run

pytestmark = pytest.mark.end_to_end


def row_of(ledger: list[LedgerRow], writer: ReadWriter) -> LedgerRow:
    own = (writer.contrast, writer.outcome, writer.among, "part", writer.part, writer.layer, writer.head)
    (found,) = (r for r in ledger if (r.contrast, r.outcome, r.among, r.level, r.part, r.layer, r.head) == own)
    return found


def test_the_rows_of_a_writer_sum_to_its_row_of_the_ledger(small_run: Run) -> None:
    record = va.open_run(small_run.folder).record
    assert record.read_writers
    for writer in record.read_writers:
        assert writer.why_not is None
        assert writer.gap.value == pytest.approx(row_of(record.ledger, writer).gap.value, abs=1e-6)
        total = sum(r.gap.value or 0.0 for r in record.read_by(writer))
        assert total == pytest.approx(writer.gap.value, abs=1e-4)
        assert writer.closure_of_images is not None and writer.closure_of_images < 1e-4


def test_the_rows_of_an_image_sum_to_what_was_written(small_run: Run) -> None:
    effects, key = small_run.folder / "effects", ["recipient", "part", "layer", "head"]
    read = pd.read_parquet(effects / "read.parquet").groupby(key)["m:smiling"].sum()
    written = pd.read_parquet(effects / "written.parquet").set_index(key)["m:smiling"]
    np.testing.assert_allclose(read, written.loc[read.index], atol=1e-4)


def test_the_map_and_what_is_held_sum_to_the_gap(small_run: Run) -> None:
    record = va.open_run(small_run.folder).record
    for seen in record.read_maps:
        own = (seen.contrast, seen.outcome, "all", seen.part, seen.layer, seen.head)
        rows = [r for r in record.read if (r.contrast, r.outcome, r.among, r.part, r.layer, r.head) == own]
        read = sum(r.gap.value or 0.0 for r in rows if r.source != "what is held")
        assert np.shape(seen.values) == (4, 4)
        assert np.sum(seen.values) + seen.prefix == pytest.approx(read, abs=1e-4)
    assert {(m.part, m.layer, m.head) for m in record.read_maps} == {
        (w.part, w.layer, w.head) for w in record.read_writers
    }


def test_of_where_a_writer_reads_only_means_over_groups_are_stored(small_run: Run) -> None:
    maps = pd.read_parquet(small_run.folder / "effects" / "read_maps.parquet")
    assert "recipient" not in maps and "image" not in maps
    assert maps["images"].min() >= 30
    assert not {"row", "column"} & set(pd.read_parquet(small_run.folder / "effects" / "read.parquet"))


def test_the_report_says_what_writers_read(small_run: Run) -> None:
    page = (small_run.folder / "report.html").read_text(encoding="utf-8")
    assert "What the largest writers read" in page
    assert len(va.open_run(small_run.folder).read.to_frame()) == len(va.open_run(small_run.folder).record.read)


def test_a_card_that_does_not_ask_leaves_nothing_of_it(named_run: Run) -> None:
    record = va.open_run(named_run.folder).record
    assert (record.read_writers, record.read, record.read_maps) == ([], [], [])
    assert not [*(named_run.folder / "effects").glob("read*")]
    assert "What the largest writers read" not in (named_run.folder / "report.html").read_text(encoding="utf-8")
