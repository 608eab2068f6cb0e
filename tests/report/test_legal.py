from datetime import date

import pytest

from audit.report import LEGAL_SCREEN, answers
from audit.report.legal import checked_on
from audit.report.text import data_file

pytestmark = pytest.mark.unit


def test_emotion_is_asked_more_than_action() -> None:
    emotion = {row.clause for row in answers({}, "emotion")}
    action = {row.clause for row in answers({}, "action")}
    assert emotion - action == {"eu-ai-act-5-1-f", "eu-ai-act-annex-iii-1-c", "eu-ai-act-50-3"}
    assert {"gdpr-9", "gdpr-35", "eu-ai-act-4a", "eu-ai-act-27"} <= action


def test_silence_is_recorded_as_silence() -> None:
    assert {row.answer for row in answers({"gdpr-9": "  "}, "other")} == {"not answered"}


def test_answers_are_kept_word_for_word_and_none_is_dropped() -> None:
    rows = {row.clause: row.answer for row in answers({"gdpr-9": "consent", "own-rule": "yes"}, "other")}
    assert rows["gdpr-9"] == "consent"
    assert rows["own-rule"] == "yes"


def test_every_clause_says_what_it_asks_and_from_when() -> None:
    assert len({clause.id for clause in LEGAL_SCREEN}) == len(LEGAL_SCREEN)
    assert all(clause.question.endswith("?") and clause.summary and clause.applies for clause in LEGAL_SCREEN)


def test_a_card_of_an_older_version_still_answers_under_the_former_id() -> None:
    rows = answers({"eu-ai-act-10-5": "deleted after a year"}, "other")
    assert {row.clause: row.answer for row in rows}["eu-ai-act-4a"] == "deleted after a year"
    assert "eu-ai-act-10-5" not in {row.clause for row in rows}


def test_every_row_of_law_says_where_and_when_it_was_read() -> None:
    rows = [*data_file("legal.yaml")["clauses"], *data_file("crosswalk.yaml")["rows"]]
    assert all(row["source"] and isinstance(row["checked_on"], date) for row in rows)
    assert checked_on() == str(min(row["checked_on"] for row in rows)) == "2026-11-27"


def test_the_table_has_the_law_as_it_is() -> None:
    """Regulation (EU) 2026/1744 moved the duties for high-risk systems; SB 26-189 and SR 26-2 took others' places."""
    applies = {clause.id: clause.applies for clause in LEGAL_SCREEN}
    assert "2 December 2027" in applies["eu-ai-act-annex-iii-1-c"]
    assert "2 August 2028" in applies["eu-ai-act-annex-iii-1-c"]
    assert applies["eu-ai-act-50-3"] == "since 2 August 2026"
    assert "recital 18" in {c.id: c.summary for c in LEGAL_SCREEN}["eu-ai-act-5-1-f"]
    rows = data_file("crosswalk.yaml")["rows"]
    text = " ".join(f"{row['clause']} {row['missing']}" for row in rows)
    for named in ("13(3)(b)", "Articles 26 and 27", "Article 4a", "Article 35", "SB 26-189", "SR 26-2", "prEN 18283"):
        assert named in text
    assert "Rescission" in next(row["missing"] for row in rows if row["clause"].startswith("29 CFR"))
