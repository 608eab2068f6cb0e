"""What is said, and drawn, of how wrong annotations may be."""

from __future__ import annotations

import pytest

from audit.records import Audit, ContrastRow
from audit.report import formats
from audit.report.page import Page
from audit.report.text import Sentences

from .examples import changed, examples

pytestmark = pytest.mark.unit


def gap_of(audit: Audit) -> ContrastRow:
    return next(row for row in audit.contrasts if audit.sensitivity_of(row))


def told(audit: Audit, part: str) -> str:
    return Sentences(audit).sensitivity(part, gap_of(audit))


def without(audit: Audit, **update: object) -> Audit:
    return changed(audit, sensitivity=[row.model_dump() | update for row in audit.sensitivity])


def test_tipping_points_of_gap_and_interval_are_in_one_sentence() -> None:
    said = told(examples()["disparity"], "answer")
    for number in ("at least 6.1%", "4.1%", "3.1%", "2.1%", "1.31 times", "1.19 times"):
        assert number in said


def test_what_no_error_tips_is_said_to_take_more_than_half() -> None:
    audit = without(examples()["disparity"], tipping=None, tipping_of_interval=None)
    said = told(audit, "answer")
    assert said.count("more than 50%") == 4
    assert said.count("more than 1,000 times") == 2
    assert "at least" not in said


@pytest.mark.parametrize(("survives", "words"), [(True, "it survives the errors"), (False, "it does not survive the")])
def test_what_the_card_estimates_is_said_to_be_survived_or_not(survives: bool, words: str) -> None:
    audit = without(examples()["disparity"], survives=survives)
    assert words in told(audit, "short")
    sentence = told(audit, "declared")
    assert ("so the finding survives;" in sentence) == survives
    assert ("does not survive" in sentence) != survives
    assert "4.0% of the annotations of gender are wrong where they say “female”, and 2.0%" in sentence


def test_nothing_is_said_of_errors_that_the_card_does_not_estimate() -> None:
    audit = without(examples()["disparity"], declared=None, survives=None)
    assert told(audit, "declared") == ""
    assert "survive" not in told(audit, "short")


def test_a_gap_that_was_not_detected_has_neither_sentence_nor_picture() -> None:
    audit = examples()["passed"]
    assert {Sentences(audit).sensitivity("answer", row) for row in audit.contrasts} == {""}
    assert {Page(audit, "0" * 64).sensitivity_picture(row) for row in audit.contrasts} == {None}


def test_the_picture_says_its_numbers() -> None:
    audit = examples()["disparity"]
    picture = Page(audit, "0" * 64).sensitivity_picture(gap_of(audit))
    assert picture is not None
    gap = formats.points(gap_of(audit).estimate.value)
    for words in (f"{gap} points", "reached at 6.1%", "by the interval at 2.1%", "the card estimates 4.0%"):
        assert words in picture.alt
