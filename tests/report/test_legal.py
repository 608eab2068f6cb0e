import pytest

from audit.report import LEGAL_SCREEN, answers

pytestmark = pytest.mark.unit


def test_emotion_is_asked_more_than_action() -> None:
    emotion = {row.clause for row in answers({}, "emotion")}
    action = {row.clause for row in answers({}, "action")}
    assert emotion - action == {"eu-ai-act-5-1-f", "eu-ai-act-annex-iii-1-c", "eu-ai-act-50-3"}
    assert {"gdpr-9", "eu-ai-act-10-5"} <= action


def test_silence_is_recorded_as_silence() -> None:
    assert {row.answer for row in answers({"gdpr-9": "  "}, "other")} == {"not answered"}


def test_answers_are_kept_word_for_word_and_none_is_dropped() -> None:
    rows = {row.clause: row.answer for row in answers({"gdpr-9": "consent", "own-rule": "yes"}, "other")}
    assert rows["gdpr-9"] == "consent"
    assert rows["own-rule"] == "yes"


def test_every_clause_says_what_it_asks_and_from_when() -> None:
    assert len({clause.id for clause in LEGAL_SCREEN}) == len(LEGAL_SCREEN)
    assert all(clause.question.endswith("?") and clause.summary and clause.applies for clause in LEGAL_SCREEN)
