"""Law as dated data: whole rows, what the screens ask, how old the table is, and that nothing claims conformity."""

import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from audit.report import answers, law
from audit.report.html import render_html
from audit.report.legal import Clause, applies_sentence, checked_on, checked_sentence, crosswalk
from audit.report.text import data_file
from audit.resources import resource_dir
from audit.terminal import law_is_old, law_line
from tests.report.examples import examples

pytestmark = pytest.mark.unit
ROW: dict[str, Any] = next(row for row in data_file("law.yaml")["rows"] if row["id"] == "eu-ai-act-5-1-f")
ROWS = {row.id: row for row in law()}


def test_emotion_is_asked_more_than_action() -> None:
    emotion = {row.clause for row in answers({}, "emotion")}
    action = {row.clause for row in answers({}, "action")}
    assert emotion - action == {"eu-ai-act-5-1-f", "eu-ai-act-annex-iii-1-c", "eu-ai-act-50-3"}
    everyone = {"eu-ai-act-26", "eu-ai-act-27", "gdpr-9", "gdpr-35", "eu-ai-act-4a"}
    assert everyone | {"colorado-sb-26-189", "nyc-ll-144"} <= action


def test_silence_is_recorded_as_silence() -> None:
    assert {row.answer for row in answers({"gdpr-9": "  "}, "other")} == {"not answered"}


def test_answers_are_kept_word_for_word_and_none_is_dropped() -> None:
    rows = {row.clause: row.answer for row in answers({"gdpr-9": "consent", "own-rule": "yes"}, "other")}
    assert rows["gdpr-9"] == "consent"
    assert rows["own-rule"] == "yes"


def test_a_card_of_an_older_version_still_answers_under_the_former_id() -> None:
    rows = answers({"eu-ai-act-10-5": "deleted after a year"}, "other")
    assert {row.clause: row.answer for row in rows}["eu-ai-act-4a"] == "deleted after a year"
    assert "eu-ai-act-10-5" not in {row.clause for row in rows}


def test_every_row_says_where_and_when_it_was_read_and_from_when_it_applies() -> None:
    assert Clause.model_validate({**ROW, "screen": ("emotion",)}).applies_from[0].since == date(2025, 2, 2)
    for name in ("clause", "jurisdiction", "summary", "question", "source", "checked_on", "applies_from"):
        with pytest.raises(ValidationError, match=name if name != "applies_from" else "from which it applies"):
            Clause.model_validate({key: value for key, value in ROW.items() if key != name})
    for wrong in ({"source": ""}, {"checked_on": "some day"}, {"question": "No question."}, {"voluntary": True}):
        with pytest.raises(ValidationError):
            Clause.model_validate({**ROW, **wrong})
    with pytest.raises(ValidationError, match="neither asked"):
        Clause.model_validate({key: value for key, value in ROW.items() if key != "screen"})
    assert checked_on() == min(row.checked_on for row in law())


FROM_2027 = "from 2 December 2027 (Annex III), 2 August 2028 (Annex I)"
CORRECTIONS = [
    ("eu-ai-act-annex-iii-1-c", "applies", "from 2 December 2027 (Annex III)"),
    ("eu-ai-act-annex-iii-1-c", "summary", "2026/1744, in force since 27 July 2026"),
    ("eu-ai-act-4a", "applies", "since 27 July 2026"),
    ("eu-ai-act-4a", "summary", "Providers and deployers"),
    ("eu-ai-act-4a", "summary", "whether that paragraph was deleted was not found verbatim"),
    ("eu-ai-act-50-3", "applies", "since 2 August 2026"),
    ("eu-ai-act-5-1-f", "summary", "workplace or in education institutions"),
    (
        "eu-ai-act-5-1-f",
        "question",
        "a plainly visible expression, such as a smile, is none unless it is used to infer",
    ),
    ("eu-ai-act-5-1-f", "clause", "recital 18"),
    ("eu-ai-act-13-3-b", "applies", FROM_2027),
    ("eu-ai-act-26", "applies", FROM_2027),
    ("eu-ai-act-27", "summary", "fundamental rights"),
    ("gdpr-35", "question", "impact of the processing on data protection"),
    ("pren-18283", "clause", "draft"),
    ("colorado-sb-26-189", "clause", "in the place of SB 24-205"),
    ("colorado-sb-26-189", "applies", "from 1 January 2027"),
    ("29-cfr-1607-4-d", "summary", "Rescission of the guidelines by the EEOC is at the final-rule stage"),
    ("sr-26-2", "clause", "17 April 2026; in the place of SR 11-7"),
    ("nyc-ll-144", "applies", "since 5 July 2023"),
]


@pytest.mark.parametrize(("row", "part", "said"), CORRECTIONS)
def test_the_table_has_the_law_as_it_was_on_the_day_of_the_check(row: str, part: str, said: str) -> None:
    text = applies_sentence(ROWS[row], "2026-11-29") if part == "applies" else getattr(ROWS[row], part)
    assert said in text


def test_a_clause_applies_from_a_day_and_since_it() -> None:
    row = ROWS["colorado-sb-26-189"]
    assert applies_sentence(row, "2026-12-31T23:59:59+00:00") == "from 1 January 2027"
    assert applies_sentence(row, "2027-01-01T00:00:00+00:00") == "since 1 January 2027"
    assert applies_sentence(ROWS["model-cards"], "2027-01-01") == "binds nobody by itself"
    half = applies_sentence(ROWS["eu-ai-act-26"], "2028-01-01")
    assert half == "since 2 December 2027 (Annex III), from 2 August 2028 (Annex I)"


def test_the_age_of_the_table_is_that_of_the_day_of_the_audit() -> None:
    """So that a report that is printed again next year says what it said; the terminal alone speaks of today."""
    checked = checked_on()

    def said(days: int) -> str:
        return checked_sentence(f"{date.fromordinal(checked.toordinal() + days)}T10:00:00+00:00")

    assert "last checked on 27 November 2026; a lawyer must check it." in said(2)
    assert "On the day of this audit, 29 November 2026, it was 2 days old." in said(2)
    assert "it was 1 day old." in said(1)
    assert "it was 0 days old." in said(0)
    assert "after the day of this audit, 24 November 2026; a lawyer must check it." in said(-3)
    assert "older than" not in said(180)
    assert "it was 181 days old: older than 180 days" in said(181)
    assert checked_sentence("some day").endswith("27 November 2026; a lawyer must check it.")


def test_the_terminal_says_it_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for days, is_old in ((-1, False), (1, False), (180, False), (181, True)):
        today = datetime.fromordinal(checked_on().toordinal() + days).replace(tzinfo=UTC)
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(int(today.timestamp())))
        assert law_is_old() == is_old
        told.append(law_line())
    first = "law: the table was last checked on 27 November 2026"
    assert told[:2] == [f"{first}; a lawyer must check it", f"{first}, 1 day ago; a lawyer must check it"]
    assert told[2] == f"{first}, 180 days ago; a lawyer must check it"
    assert told[3] == f"{first}, 181 days ago; compare it with its sources (templates/law.yaml)"


def test_a_report_says_that_its_table_was_old() -> None:
    audit = examples()["passed"]
    late = audit.model_copy(update={"provenance": audit.provenance.model_copy(update={"started": "2027-11-27"})})
    assert "it was 365 days old: older than 180 days" in render_html(late, "d" * 64)


CLAIMS = re.compile(
    r"\b(conform(?:s|ity|ance|ant)?|compl(?:y|ies|iant)|in compliance|fulfil(?:s|led)?|lawful)\b", re.IGNORECASE
)


def test_nothing_asserts_conformity() -> None:
    """Neither the table of law nor what is said of it; the one sentence that denies a claim is `no_certificate`."""
    texts = [resource_dir("templates") / "law.yaml", *Path(resource_dir("templates")).rglob("*.j2")]
    found = {path.name: CLAIMS.findall(path.read_text(encoding="utf-8")) for path in texts}
    assert {name: words for name, words in found.items() if words} == {}
    assert CLAIMS.search("This system conforms to Article 10") is not None
    page = render_html(examples()["disparity"], "d" * 64)
    assert "This report does not certify legal compliance." in page
    assert "A row says that there is something to read, not that a duty is met." in page
    assert any(row.evidence == () for row in crosswalk())
