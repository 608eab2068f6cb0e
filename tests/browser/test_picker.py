"""Picking groups, a label and a head on the page: by keyboard, read out, on a phone, without scripts, and at once."""

from __future__ import annotations

import pytest

from audit.report.formats import label
from tests.browser.conftest import MANY_PAIRS, PHONE, SMALL_PHONE, WIDE, Opened, Opener, violations
from tests.report.examples import HOSTILE, changed, examples

pytestmark = pytest.mark.browser
BLOCKS = ("picked-rates", "picked-gaps", "picked-head")
LARGEST_PAGE = 4_000_000  # bytes, of 144 heads x 6 pairs
MOST_SHIFT = 0.1  # what Lighthouse calls good
SLOWEST = 3.0  # seconds until such a page is there: under 1 on an idle machine of 2 cores, and tests run on busy ones
CELLS = """(table) => [...table.tBodies[0].rows].map((row) => [...row.cells].map(
  (cell) => [...cell.childNodes].map((part) => part.textContent.trim()).join(" ").trim()))"""  # of a folded table, too
LISTEN = """() => {
  window.heard = [];
  for (const block of document.querySelectorAll("#picker [aria-live]")) {
    new MutationObserver(() => window.heard.push(block.id))
      .observe(block, { childList: true, characterData: true, subtree: true });
  }
}"""


def shown(opened: Opened, block: str) -> str:
    """Return what a block says, which is what is read out of it."""
    return " ".join(opened.page.locator(f"#{block}").inner_text().split())


def chosen(opened: Opened, of: str) -> str:
    text: str = opened.page.locator(f"#pick-{of}").evaluate("(select) => select.selectedOptions[0].text")
    return text


def heard(opened: Opened) -> set[str]:
    """Return which blocks have changed since it was last asked, and so are read out."""
    opened.page.wait_for_timeout(50)
    blocks: list[str] = opened.page.evaluate("() => window.heard.splice(0)")
    return set(blocks)


def test_the_page_opens_with_the_first_pair_and_its_largest_head(opened: Opener) -> None:
    page = opened("disparity")
    assert page.page.locator("#picker").is_visible()
    assert page.page.locator("#pick .unscripted").is_hidden()
    assert [chosen(page, of) for of in ("pair", "label", "group", "head")] == [
        "gender: female against male",
        "happiness",
        "female",
        "L3H2, confirmed: widens the gap",
    ]
    rates, gaps, head = (shown(page, block) for block in BLOCKS)
    assert rates.startswith("female Images (subjects) 1,204 (803) Called “happiness” 56.9% [54.1, 59.7]")
    assert rates.endswith("In audit.json: /rates/0")
    assert "Label-standardised gap +11.6 points [+8.8, +14.5]; disparity, above the policy" in gaps
    assert "confirmed: widens the gap" in head and "+5.86 [+5.16, +6.56]" in head
    assert "Placebo: a donor of the same group +0.11 [−0.29, +0.51]" in head
    assert page.errors == []


def test_everything_is_picked_by_keyboard_and_only_what_changed_is_read_out(opened: Opener) -> None:
    page = opened("disparity")
    page.page.evaluate(LISTEN)
    press = page.page.keyboard.press
    page.page.locator("#pick-pair").focus()
    for of in ("label", "group", "head"):
        press("Tab")
        assert page.page.evaluate("document.activeElement.id") == f"pick-{of}"
    page.page.keyboard.type("L0H1")  # a list goes to what is typed
    assert chosen(page, "head") == "L0H1, not found"
    assert heard(page) == {"picked-head"}
    assert shown(page, "picked-head").startswith("L0H1 Verdict not found")
    press("Shift+Tab")
    press("ArrowDown")
    assert chosen(page, "group") == "male (reference)"
    assert heard(page) == {"picked-rates"}
    assert shown(page, "picked-rates").startswith("male (reference) Images (subjects) 1,187 (792)")
    press("Shift+Tab")
    press("Shift+Tab")
    press("ArrowDown")
    assert chosen(page, "pair") == "gender and race: female, asian against male, caucasian"
    assert heard(page) == set(BLOCKS)
    assert "too little data: 12 subjects in the smaller group, fewer than 30" in shown(page, "picked-gaps")
    assert shown(page, "picked-head") == "No head was tested for these groups and this label"
    assert page.page.locator("#pick-head").is_disabled()
    assert page.errors == []


@pytest.mark.parametrize("name", ["many", "passed", "single_layer"])
def test_what_is_picked_is_what_the_table_of_heads_says(opened: Opener, name: str) -> None:
    page = opened(name)
    table = page.page.locator("table.heads").first
    rows = table.evaluate(CELLS)
    written = {cells[0]: [cells[k] for k in (4, 6, 9)] for cells in rows}
    options: list[str] = page.page.locator("#pick-head option").all_inner_texts()
    assert len(options) == len(rows)
    for position in {0, len(options) // 2, len(options) - 1}:
        page.page.locator("#pick-head").select_option(index=position)
        facts = page.page.locator("#picked-head dd").all_inner_texts()
        assert facts[1:] == written[options[position].split(",")[0]]


def test_every_control_has_a_name_and_every_answer_is_read_out_as_a_whole(opened: Opener) -> None:
    page = opened("disparity")
    for name in ("Groups compared", "Label", "Group", "Head"):
        assert page.page.locator("#picker").get_by_label(name, exact=True).count() == 1
    for block in BLOCKS:
        live = page.page.locator(f"#{block}")
        assert (live.get_attribute("aria-live"), live.get_attribute("aria-atomic")) == ("polite", "true")
    page.page.locator("#pick-pair").select_option(index=1)
    assert violations(page, within="#pick") == []


def test_an_invalid_audit_offers_no_comparison(opened: Opener) -> None:
    page = opened("invalid")
    assert page.page.locator("#pick-head, #picked-head, #picked-gaps").count() == 0
    page.page.get_by_label("Attribute", exact=True).select_option(label="gender and race")
    page.page.locator("#pick-group").select_option(label="female, caucasian")
    assert shown(page, "picked-rates").startswith("female, caucasian Images")
    assert page.errors == []


def test_hostile_names_are_shown_as_they_are(opened: Opener) -> None:
    page = opened("hostile")
    assert chosen(page, "group") == label(HOSTILE[1])
    assert shown(page, "picked-rates").startswith(label(HOSTILE[1]))
    assert page.page.locator("#pick img").count() == 0
    assert page.errors == []


def test_without_scripts_a_line_says_where_the_tables_are(opened: Opener) -> None:
    page = opened("disparity", scripts=False)
    assert page.page.locator("#picker").is_hidden()
    assert page.page.locator("#pick select:visible").count() == 0
    line = " ".join(page.page.locator("#pick > p").first.inner_text().split())
    assert line.startswith("The same numbers stand in tables: rates and gaps in appendix C, heads in appendix A.")
    assert line.endswith("the page needs JavaScript, which is off.")
    assert "1,204 (803)" not in page.page.locator("#pick").inner_text()


@pytest.mark.parametrize("width", [WIDE, PHONE, SMALL_PHONE])
def test_long_names_do_not_widen_the_page(opened: Opener, width: int) -> None:
    page = opened("hostile", width=width).page
    for select in page.locator("#picker select").all():
        box = select.bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
        assert box["height"] >= 24  # WCAG 2.5.8
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def timing(page: Opened) -> dict[str, float]:
    """Return when a page was there and when its largest part was painted, in seconds, and how far parts moved."""
    measured: dict[str, float] = page.page.evaluate(
        """() => new Promise((done) => {
          const [entry] = performance.getEntriesByType("navigation");
          const seen = { loaded: entry.loadEventEnd / 1000, painted: 0, shift: 0 };
          const watch = (type, note) =>
            new PerformanceObserver((list) => list.getEntries().forEach(note)).observe({ type, buffered: true });
          watch("layout-shift", (moved) => { seen.shift += moved.value; });
          watch("largest-contentful-paint", (part) => { seen.painted = part.startTime / 1000; });
          setTimeout(() => done(seen), 300);
        })"""
    )
    return measured


def test_a_page_of_144_heads_and_6_pairs_opens_at_once(opened: Opener) -> None:
    pages = [opened(MANY_PAIRS) for _ in range(3)]
    measured = [timing(page) for page in pages]
    for what in ("loaded", "painted"):
        assert 0 < min(times[what] for times in measured) < SLOWEST, measured
    assert max(times["shift"] for times in measured) < MOST_SHIFT, measured
    assert (opened.folder / f"{MANY_PAIRS}.html").stat().st_size < LARGEST_PAGE
    assert all(page.errors == [] for page in pages)


def test_the_page_says_what_it_is_and_in_which_language(opened: Opener) -> None:
    page = opened("disparity").page
    assert page.title().endswith("DISPARITY FOUND - audit report")
    assert page.locator("html").get_attribute("lang") == "en"
    told = {name: page.locator(f"meta[name='{name}']").get_attribute("content") for name in ("description", "viewport")}
    assert told == {
        "description": "Audit report: DISPARITY FOUND",
        "viewport": "width=device-width, initial-scale=1",  # may be zoomed
    }
    assert page.evaluate("document.compatMode") == "CSS1Compat"


def test_a_pick_is_answered_within_a_frame_or_two(opened: Opener) -> None:
    page = opened(MANY_PAIRS)
    took: float = page.page.evaluate(
        """() => {
          const pairs = document.getElementById("pick-pair");
          const times = [...pairs.options].map((_, position) => {
            const start = performance.now();
            pairs.selectedIndex = position;
            pairs.dispatchEvent(new Event("change"));
            document.getElementById("picked-head").getBoundingClientRect();
            return performance.now() - start;
          });
          return times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
        }"""
    )
    assert took < 250  # milliseconds
    page.page.locator("#pick-pair").select_option(index=5)
    assert shown(page, "picked-gaps").startswith("gender: group 5 against male")
    assert page.page.locator("#pick-head option").count() == 144


def test_another_label_keeps_group_and_head(opened: Opener) -> None:
    one = examples()["disparity"]
    renamed = {
        rows: [*getattr(one, rows), *(r.model_copy(update={"outcome": "anger"}) for r in getattr(one, rows))]
        for rows in ("rates", "heads")
    }
    gaps = [c.model_copy(update={"outcome": "anger", "id": f"{c.id}, anger"}) for c in one.contrasts]
    page = opened.audit(changed(one, **renamed, contrasts=[*one.contrasts, *gaps]), "labels")
    before = page.page.locator("#picker *").count()
    page.page.locator("#pick-group").select_option(index=1)
    page.page.locator("#pick-head").select_option(index=3)
    page.page.locator("#pick-label").select_option(label="anger")
    assert [chosen(page, of) for of in ("label", "group", "head")] == ["anger", "male (reference)", "L0H3, not found"]
    assert shown(page, "picked-rates").endswith(f"/rates/{len(one.rates) + 1}")
    assert shown(page, "picked-head").endswith(f"/heads/{len(one.heads) + 3}")
    page.page.locator("#pick-pair").select_option(index=1)
    page.page.locator("#pick-pair").select_option(index=0)
    assert [chosen(page, of) for of in ("group", "head")] == ["female", "L3H2, confirmed: widens the gap"]
    assert page.page.locator("#picker *").count() == before
