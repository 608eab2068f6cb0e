import csv
import io
import json

import pytest

from audit.report.csv_files import csv_tables

from .examples import HOSTILE, examples

pytestmark = pytest.mark.unit
AUDITS = examples()


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_numbers_keep_full_precision() -> None:
    audit = AUDITS["disparity"]
    tables = csv_tables(audit)
    heads = read(tables["heads.csv"])
    assert [float(row["confirmation"]) for row in heads] == [row.confirmation.value for row in audit.heads]
    assert [float(row["design_c_low"]) for row in heads] == [row.design_c.low for row in audit.heads]
    contrasts = read(tables["contrasts.csv"])
    assert json.loads(contrasts[0]["by_seed"]) == audit.contrasts[0].by_seed
    assert [row["estimate"] for row in contrasts if row["state"] == "not estimable"] == [""]


def test_rows_are_complete() -> None:
    audit = AUDITS["many"]
    sizes = {name: len(read(text)) for name, text in csv_tables(audit).items()}
    assert sizes == {
        "rates.csv": len(audit.rates),
        "contrasts.csv": len(audit.contrasts),
        "ranges.csv": 1,
        "adjusted.csv": 2,
        "heads.csv": 72,
        "heads_together.csv": 2,
        "ledger.csv": len(audit.ledger),
        "ledger_totals.csv": 2,
        "trained.csv": 16,
        "trained_totals.csv": 4,
        "carried.csv": len(audit.carried),
        "smallest_sets.csv": 1,
        "where.csv": 1,
        "sensitivity.csv": 5,
        "read_writers.csv": 6,
        "read.csv": len(audit.read),
        "read_maps.csv": 2,
        "exact_pairs.csv": 1,
        "agreement.csv": 4,
        "attention.csv": len(audit.attention),
        "counts.csv": len(audit.data.counts),
        "label_shares.csv": len(audit.data.label_shares),
        "detection.csv": len(audit.data.detection),
        "accuracy.csv": len(audit.accuracy),
        "controls.csv": 15,
        "findings.csv": 13,
        "excluded.csv": 2,
    }


def test_every_row_that_was_left_out_says_why_in_data_and_in_words() -> None:
    rows = read(csv_tables(AUDITS["disparity"])["excluded.csv"])
    assert [(row["list"], row["kind"], row["reason"]) for row in rows] == [
        ("excluded", "label not kept", "label 'surprise' is not in data.labels"),
        ("quarantined", "damaged or truncated image", "damaged or truncated image"),
    ]


def test_invalid_leaves_only_headers() -> None:
    tables = csv_tables(AUDITS["invalid"])
    for name in ("contrasts.csv", "ranges.csv", "heads.csv", "heads_together.csv", "agreement.csv", "findings.csv"):
        assert tables[name].count("\n") == 1
    assert read(tables["controls.csv"])


def test_formulas_are_defused_and_numbers_are_not() -> None:
    audit = AUDITS["hostile"]
    rates = read(csv_tables(audit)["rates.csv"])
    assert rates[2]["group"] == "'" + HOSTILE[3]
    assert rates[4 - 1]["group"] == HOSTILE[4]
    negative = [row["accuracy_change"] for row in read(csv_tables(audit)["heads.csv"])]
    assert set(negative) == {"-0.0012"}


@pytest.mark.parametrize("start", ["=1", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_every_dangerous_start_is_defused(start: str) -> None:
    audit = AUDITS["disparity"]
    row = audit.rates[0].model_copy(update={"group": start})
    rates = read(csv_tables(audit.model_copy(update={"rates": [row]}))["rates.csv"])
    assert rates[0]["group"] == "'" + start
