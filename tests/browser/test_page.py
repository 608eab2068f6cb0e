"""The page in a real browser: accessible, silent on the network, and every thing it offers works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from audit.records import (
    ComparedFinding,
    ComparedGap,
    ComparedHead,
    ComparedRate,
    ComparisonNote,
    Estimate,
    Finding,
    FindingState,
    Metric,
    NoteCode,
    RunComparison,
    RunName,
    Shortfall,
    State,
    Untested,
    Verdict,
    WhyBelow,
    WhyUntested,
)
from audit.report.html import render_diff
from audit.report.reviews import merge, read_decisions, read_review
from audit.report.serve import Served
from audit.report.text import Sentences
from tests.browser.conftest import OF_COLOURS, PHONE, SMALL_PHONE, Opened, Opener, violations
from tests.report.examples import HOSTILE, examples
from tests.report.run_folder import digest_of, write_run

pytestmark = pytest.mark.browser
NAMES = sorted(examples())


# Axe takes minutes over every fold of "many", which has nothing that the smaller pages lack, only more of it: the same
# macros print its findings and heads. So each small page is checked whole, with every fold open, and "many" once, as it
# opens. In the dark the same elements have other colours: what depends on these is checked again, for each outcome.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "many"])
def test_axe_finds_nothing(opened: Opener, name: str) -> None:
    page = opened(name)
    assert violations(page) == []
    assert page.errors == []


@pytest.mark.parametrize("name", ["disparity", "passed", "inconclusive", "invalid"])
def test_axe_finds_nothing_in_the_dark(opened: Opener, name: str) -> None:
    assert violations(opened(name, dark=True), rules=OF_COLOURS) == []


def test_axe_finds_nothing_in_a_large_page_as_it_opens(opened: Opener) -> None:
    page = opened("many")
    assert violations(page, folded=True) == []
    assert page.errors == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_leaves_the_page(opened: Opener, name: str) -> None:
    page = opened(name)
    page.page.wait_for_timeout(200)
    asked = [url for url in page.asked if not url.startswith("data:")]
    assert len(asked) == 1
    assert asked[0].startswith("file:")
    assert page.errors == []


@pytest.mark.parametrize("width", [PHONE, SMALL_PHONE])
@pytest.mark.parametrize("name", NAMES)
def test_a_narrow_page_does_not_scroll_sideways(opened: Opener, name: str, width: int) -> None:
    page = opened(name, width=width).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_scripts_everything_can_be_read_and_nothing_pretends(opened: Opener) -> None:
    page, with_scripts = opened("many", scripts=False), opened("many")
    for fold in page.page.locator("details.nested > summary").all():  # heads of a gap: a fold opens without a script
        fold.click()
    for finding in page.audit.findings:
        assert page.page.get_by_text(Sentences(page.audit).finding("title", finding), exact=True).last.is_visible()
    assert page.page.locator("button:visible, input:visible, select:visible, textarea:visible").count() == 0
    assert page.page.locator(".choices:visible").count() >= 12
    assert with_scripts.page.locator(".paper:visible").count() == 0


def column(opened: Opened, table: str, number: int) -> list[str]:
    texts: list[str] = opened.page.locator(f"#{table} tbody tr:visible > :nth-child({number})").all_inner_texts()
    return [" ".join(text.split()) for text in texts]


def test_tables_sort_by_words_and_by_numbers(opened: Opener) -> None:
    page = opened("many")
    table = page.page.locator("table.heads").first
    table.evaluate("(t) => { t.closest('details').open = true; }")
    name = table.get_attribute("id")
    assert name is not None
    heads = table.locator("thead th")
    heads.nth(0).get_by_role("button").click()
    assert heads.nth(0).get_attribute("aria-sort") == "ascending"
    names = column(page, name, 1)
    assert names == sorted(names, key=lambda text: [int(n) for n in re.findall(r"\d+", text)])
    heads.nth(0).get_by_role("button").click()
    assert column(page, name, 1) == names[::-1]
    heads.nth(4).get_by_role("button").press("Enter")
    assert heads.nth(0).get_attribute("aria-sort") is None
    values = [float(text.split()[0].replace("−", "-")) for text in column(page, name, 5)]
    assert values == sorted(values)
    assert violations(page, within=f"#{name}", folded=True) == []


def test_what_is_not_estimable_is_sorted_last_either_way(opened: Opener) -> None:
    page = opened("disparity")
    table = page.page.locator("table[id^=table-gender-x-race]")  # of groups in which nobody has the label, too
    name = table.get_attribute("id")
    assert name is not None
    head = table.locator("thead th", has_text="True-positive rate")
    number = int(head.evaluate("(h) => h.cellIndex")) + 1
    orders = []
    for _ in range(2):
        head.get_by_role("button").click()
        orders.append(column(page, name, number))
        assert orders[-1][-1].startswith("n/a")
    assert orders[0][:-1] == orders[1][-2::-1]


def test_rows_are_filtered_and_counted(opened: Opener) -> None:
    page = opened("many")
    table = page.page.locator("table.heads").first
    table.evaluate("(t) => { t.closest('details').open = true; }")
    label = table.locator("xpath=ancestor::div[contains(@class,'scroll')]/preceding-sibling::label[1]")
    field, count = label.locator("input"), label.locator("output")
    rows = table.locator("tbody tr")
    every = rows.count()
    assert count.inner_text() == f"{every} rows"
    field.fill("L11h3")
    assert table.locator("tbody tr:visible").count() == 1
    assert count.inner_text() == f"1 of {every} rows"
    field.fill("")
    assert table.locator("tbody tr:visible").count() == every


def test_the_grid_is_walked_with_the_keyboard_and_leads_to_the_table(opened: Opener) -> None:
    page = opened("many")
    block = page.page.locator(".head-block").first
    grid, detail = block.locator("table.grid").first, block.locator(".grid-detail").first
    cells = grid.locator("td")
    assert grid.locator("td[tabindex='0']").count() == 1
    cells.nth(0).focus()
    walk = [("ArrowRight", "L0H1"), ("ArrowDown", "L1H1"), ("End", "L1H5"), ("Home", "L1H0"), ("ArrowUp", "L0H0")]
    for key, expected in [*walk, ("ArrowLeft", "L0H0")]:
        page.page.keyboard.press(key)
        assert detail.inner_text().startswith(f"{expected}: ")
    planted = grid.locator("td", has=page.page.locator(".symbol")).first
    planted.hover()
    assert "confirmed on people not used to find it" in detail.inner_text()
    planted.click()
    page.page.keyboard.press("Enter")
    focused = page.page.evaluate("document.activeElement.textContent")
    assert focused == detail.inner_text().split(":")[0]
    assert page.page.locator("table.heads").first.is_visible()


def test_findings_fold_and_a_link_unfolds_its_own(opened: Opener) -> None:
    page = opened("many").page
    bodies, button = page.locator("details.finding-body"), page.locator("#review-bar button").nth(1)
    assert bodies.nth(0).get_attribute("open") is not None
    button.click()
    assert page.locator("details.finding-body[open]").count() == 0
    assert button.inner_text() == "Unfold all findings"
    page.locator(".contents a[href^='#finding-']").nth(3).click()
    page.locator("details.finding-body[open]").first.wait_for()  # the page hears of the link after the click
    assert page.locator("details.finding-body[open]").count() == 1
    button.click()
    button.click()
    assert page.locator("details.finding-body[open]").count() == bodies.count()


def test_decisions_are_saved_as_a_review_that_the_tool_takes(opened: Opener, tmp_path: Path) -> None:
    page = opened("many")
    status, save = page.page.locator("#review-bar output"), page.page.locator("#review-bar button").nth(0)
    save.click()
    assert "Nothing is decided yet" in status.inner_text()
    cards = page.page.locator("article.finding")
    first, second = cards.nth(0), cards.nth(1)
    first.get_by_label("risk accepted").check()
    save.click()
    assert "name, role and reason are needed" in status.inner_text()
    assert first.get_by_label("Name").get_attribute("aria-invalid") == "true"
    assert page.page.evaluate("document.activeElement.name") == "name"
    for part in (f"[data-finding='{first.get_attribute('data-finding')}']", "#review-bar"):
        assert violations(page, within=part) == []
    first.get_by_label("Name").fill("R. Reader")
    first.get_by_label("Role").fill("compliance")
    first.get_by_label("Reason").fill("known, and accepted until spring 😀")
    second.get_by_label("reject").check()
    assert second.get_by_label("Name").input_value() == "R. Reader"
    second.get_by_label("Reason").fill("<script>alert(1)</script>")
    assert status.inner_text() == f"2 of {cards.count()} findings decided on this page"
    with page.page.expect_download() as download:
        save.click()
    path = tmp_path / "review.json"
    download.value.save_as(path)
    assert download.value.suggested_filename == "review.json"
    review = read_review(path)
    assert [d.decision for d in review.decisions] == ["risk accepted", "reject"]
    assert review.decisions[0].reason == "known, and accepted until spring 😀"
    assert [d.finding for d in review.decisions] == [cards.nth(k).get_attribute("data-finding") for k in (0, 1)]
    assert {d.name for d in review.decisions} == {"R. Reader"}
    _, new = merge(tmp_path, review, page.audit, page.digest)
    assert new == review.decisions
    assert "review.json saved: 2 decisions" in status.inner_text()
    assert page.errors == []


def test_a_passed_audit_is_signed_off_and_a_section_commented_on(opened: Opener, tmp_path: Path) -> None:
    page = opened("passed")
    status, save = page.page.locator("#review-bar output"), page.page.locator("#review-bar button").nth(0)
    page.page.get_by_role("link", name="Comment on: the data").click()
    section = page.page.locator("#review-data")
    section.get_by_label("Reason").wait_for()  # the link opened its fold
    section.get_by_label("Reason").fill("who labelled them?")
    save.click()
    assert status.inner_text() == "data: choose a decision, or empty its fields"
    section.get_by_label("needs more").check()
    section.get_by_label("Name").fill("R. Reader")
    section.get_by_label("Role").fill("compliance")
    section.get_by_label("Independence").select_option(label="outside the organisation")
    section.locator("summary", has_text="What is to be done").click()
    section.get_by_label("To be done").fill("ask the supplier")
    section.get_by_label("Owner").fill("D. Data")
    section.get_by_label("Due").fill("2026-06-30")
    opinion = page.page.locator("[data-subject=report]")
    opinion.get_by_label("signed off, a risk accepted").check()
    assert opinion.get_by_label("Independence").input_value() == "external"
    opinion.get_by_label("Reason").fill("until June")
    assert violations(page) == []
    with page.page.expect_download() as download:
        save.click()
    path = tmp_path / "review.json"
    download.value.save_as(path)
    review = read_review(path)
    asked, signed = review.decisions
    assert (asked.section, asked.decision, asked.owner, asked.due) == ("data", "needs more", "D. Data", "2026-06-30")
    assert (asked.remedy, asked.independence) == ("ask the supplier", "external")
    assert (signed.section, signed.decision, signed.owner) == ("report", "risk accepted", "")
    assert merge(tmp_path, review, page.audit, page.digest)[1] == review.decisions
    assert page.errors == []


@pytest.mark.usefixtures("no_pdf")
def test_a_served_page_saves_to_the_run_and_shows_a_dispute(opened: Opener, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", examples()["single_layer"])
    with Served(run) as served:
        first, second = (opened.address(served.url, examples()["single_layer"], digest_of(run)) for _ in range(2))
        for page, name, made in ((first, "R. Reader", "reject"), (second, "S. Second", "needs more")):
            card = page.page.locator("article.finding").first
            card.get_by_label(made).check()
            card.get_by_label("Name").fill(name)
            card.get_by_label("Role").fill("compliance")
            card.get_by_label("Reason").fill("<img src=x onerror=alert(1)>")
            page.page.locator("#review-bar button").nth(0).click()
            page.page.get_by_text("Saved in the run: 1 decision.").wait_for()
        assert "Reviewers disagree about 1 finding" in second.page.locator("#review-bar output").inner_text()
        assert second.page.locator("#summary").get_by_text("Reviewers disagree about").is_visible()
        assert violations(second) == []
        assert {url.split("/")[2] for url in first.asked + second.asked if not url.startswith("data:")} == {
            served.url.split("/")[2]
        }
    card = second.page.locator("article.finding").first
    card.get_by_label("risk accepted").check()
    card.get_by_label("Name").fill("S. Second")
    card.get_by_label("Role").fill("compliance")
    card.get_by_label("Reason").fill("kept")
    assert first.errors == second.errors == []
    second.page.locator("#review-bar button").nth(0).click()
    second.page.get_by_text("Not saved: vit-audit serve does not answer").wait_for()
    assert card.get_by_label("Reason").input_value() == "kept"
    assert [d.name for d in read_decisions(run, digest_of(run))] == ["R. Reader", "S. Second"]


def test_every_control_is_reached_with_the_keyboard(opened: Opener) -> None:
    page = opened("single_layer").page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached: set[str] = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        reached.add(str(page.evaluate("(document.activeElement.tagName + ' ' + (document.activeElement.type || ''))")))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none" or page.evaluate(
            "document.activeElement === document.body"
        )
    assert {"BUTTON button", "INPUT radio", "INPUT text", "TEXTAREA textarea", "SUMMARY ", "TD "} <= reached


def test_hostile_labels_stay_text(opened: Opener) -> None:
    page = opened("hostile")
    assert page.page.locator("img[onerror]").count() == 0
    assert HOSTILE[0] in page.page.locator("body").inner_text()
    assert page.page.locator("script:not([type])").count() == 1
    assert page.errors == []


def hostile_finding() -> Finding:
    found = next(f for f in examples()["disparity"].findings if f.kind == "head")
    return found.model_copy(update={"group": HOSTILE[1]})


def compared() -> RunComparison:
    def run(name: str, outcome: Any) -> RunName:
        return RunName(
            audit_id=name, audit_sha256="a" * 64, name=HOSTILE[0], outcome=outcome, started="2026-03-01T09:30:00+00:00",
            weights_sha256="b" * 64, data_fingerprint="c" * 64, gap_above=0.1, above_policy=2,
        )  # fmt: skip

    number = Estimate(value=0.05, low=0.03, high=0.07)
    few = Untested(
        why=WhyUntested.TOO_LITTLE_DATA, shortfall=Shortfall.SUBJECTS, fewest_subjects=12, subjects_needed=30
    )
    rows = [
        ComparedFinding(
            id=f"F-{k}", finding=hostile_finding(), kind="head", state=state, before=number, after=number,
            change=number, p=0.012, images=300, untested=few if state == FindingState.NO_LONGER_TESTABLE else None,
            below=WhyBelow.NOT_CONFIRMED if state == FindingState.BELOW_THRESHOLD else None,
        )
        for k, state in enumerate(FindingState)
    ]  # fmt: skip
    notes = [ComparisonNote(code=code, error="a.parquet: damaged") for code in NoteCode]
    gap = ComparedGap(
        id=HOSTILE[0], attribute=HOSTILE[0], group=HOSTILE[1], reference=HOSTILE[0], outcome=HOSTILE[1],
        metric=Metric.TPR_GAP, before=number, after=None, before_state=State.DISPARITY, after_state=None,
        before_above=True, after_above=None,
    )  # fmt: skip
    rate = ComparedRate(
        attribute=HOSTILE[0], group=HOSTILE[1], outcome=HOSTILE[1], rate="selection_rate", before=number, after=None
    )
    head = ComparedHead(
        contrast=HOSTILE[0], outcome=HOSTILE[1], name="L0H1", before=number, after=None,
        before_verdict=Verdict.CONFIRMED, after_verdict=None,
    )  # fmt: skip
    return RunComparison(
        before=run("a", "DISPARITY FOUND"), after=run("b", "PASSED"), same_images=True, findings=rows, notes=notes,
        gaps=[gap], rates=[rate], heads=[head],
    )  # fmt: skip


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_comparison_is_accessible_too(opened: Opener, tmp_path: Path, dark: bool) -> None:
    file = tmp_path / "diff.html"
    file.write_text(render_diff(compared()), encoding="utf-8")
    page = opened.open(file, examples()["passed"], "", dark=dark, width=PHONE)
    assert violations(page) == []
    assert page.errors == []
    assert page.page.evaluate("document.documentElement.scrollWidth") <= PHONE
    states = column(page, "compared", 1)
    assert [state.split(maxsplit=1)[1] for state in states] == [
        "new",
        "persisting",
        "no longer testable too little data: 12 subjects in the smaller group, fewer than 30",
        "below the threshold now 5.0 → 5.0 points, difference +5.0 [+3.0, +7.0]: the head is not confirmed",
    ]  # fmt: skip
    assert json.loads(compared().model_dump_json())["diff_version"] == "3.0"
