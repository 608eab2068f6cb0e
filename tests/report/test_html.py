import base64
import hashlib
import math
import re
from collections import Counter
from itertools import pairwise

import pytest
from lxml import html as lxml_html

from audit.records import Decision, Localisation, LocalisationStatus
from audit.report import formats
from audit.report.html import render_html
from audit.report.page import Page, top_findings
from audit.report.text import Sentences, data_file, glossary, words_of
from audit.units import UNITS

from .examples import HOSTILE, estimate, examples
from .forbidden import NO_CERTIFICATE, forbidden_words

pytestmark = pytest.mark.unit
NAMES = sorted(examples())
PARTS = (
    "title", "wording", "criterion", "condition", "cause", "effect", "recommendation", "severity_reason",
    "confidence_reason", "intervention", "placebo", "agreement", "replication",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_page_is_well_formed_with_unique_ids_and_live_links(page, name) -> None:
    tree = page(name).tree
    ids = [element.get("id") for element in tree.iter() if isinstance(element.tag, str) and element.get("id")]
    assert [key for key, times in Counter(ids).items() if times > 1] == []
    links = [a.get("href") for a in tree.iter("a")]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert {a for e in tree.iter("article", "section") for a in (e.get("aria-labelledby"),) if a} <= set(ids)


@pytest.mark.parametrize("name", NAMES)
def test_structure_serves_assistive_technology(page, name) -> None:
    tree = page(name).tree
    assert len(tree.xpath("//h1")) == len(tree.xpath("//main")) == 1
    assert tree.get("lang") == "en"
    assert all(th.get("scope") in {"row", "col"} for th in tree.iter("th"))
    assert all("".join(table.find("caption").itertext()).strip() for table in tree.iter("table"))
    assert all(image.get("alt") for image in tree.iter("img"))
    assert all(r.get("tabindex") == "0" for r in tree.xpath("//*[@role='region']"))
    levels = [int(h.tag[1]) for h in tree.xpath("//h1|//h2|//h3|//h4|//h5")]
    assert all(after - before <= 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_fetched_and_nothing_runs(page, name) -> None:
    page = page(name)
    assert page.tree.xpath("//iframe|//object|//link|//form|//*[@style]") == []
    data = {"type": "application/json", "id": "pick-data"}  # which runs nothing
    assert [dict(script.attrib) for script in page.tree.xpath("//script")] == [data, {}]
    assert [k for e in page.tree.iter() if isinstance(e.tag, str) for k in e.attrib if k.startswith("on")] == []
    sources = page.tree.xpath("//img/@src|//source/@srcset")
    assert all(source.startswith(("data:image/svg+xml;base64,", "data:image/png;base64,")) for source in sources)
    assert not re.search(r"""(?:url\(|@import|(?:href|src)=["']?(?:https?:|//))""", page.source)


def test_policy_admits_exactly_the_style_sheet(page) -> None:
    tree = page("disparity").tree
    policy = tree.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")[0]
    (style,) = tree.xpath("//style/text()")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    (script,) = tree.xpath("//script[not(@type)]/text()")
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "unsafe" not in policy


def test_the_printed_page_runs_nothing() -> None:
    printed = lxml_html.document_fromstring(render_html(examples()["many"], "0" * 64, for_print=True))
    assert printed.xpath("//script|//details|//template|//button|//input|//select") == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "hostile"])
def test_report_uses_no_forbidden_word(page, name) -> None:
    assert forbidden_words(page(name).text) == []


def test_forbidden_words_are_found() -> None:
    text = "It is fair, certified and proves that the\n model is UNBIASED. " + NO_CERTIFICATE
    assert forbidden_words(text) == ["fair", "certified", "proves", "UNBIASED"]
    assert forbidden_words("fairlearn 0.12; legal compliance; fairface") == []


@pytest.mark.parametrize("name", NAMES)
def test_outcome_stands_in_words_and_symbol(page, name) -> None:
    page = page(name)
    symbol = words_of("head")["outcomes"][page.audit.outcome]["symbol"]
    assert page.tree.xpath("string(//*[@class='outcome-word'])").split() == [symbol, *page.audit.outcome.split()]
    assert NO_CERTIFICATE in page.text


def test_rates_agree_with_the_records(page) -> None:
    page = page("disparity")
    rows = page.table("Rates - gender: predicted")
    records = [row for row in page.audit.rates if row.attribute == "gender"]
    assert len(rows) == len(records)
    for cells, row in zip(rows, records, strict=True):
        assert cells[1] == f"{row.images:,} ({row.subjects})"
        assert cells[2] == str(row.positives)
        rate = row.selection_rate
        assert cells[3] == f"{100 * rate.value:.1f}% [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
        assert cells[9] == f"{row.impact_ratio:.2f}"


@pytest.mark.parametrize(
    ("metric", "rate", "words"),
    [
        ("standardised_gap", "standardised_rate", "images, at equal labels, predicted"),
        ("tpr_gap", "true_positive_rate", "images labelled so predicted"),
        ("fpr_gap", "false_positive_rate", "images labelled otherwise predicted"),
    ],
)
def test_the_picture_of_a_finding_shows_the_rate_that_it_is_about(metric: str, rate: str, words: str) -> None:
    audit = examples()["disparity"]
    found = next(f for f in audit.findings if f.kind == "disparity")
    finding = found.model_copy(update={"metric": metric})
    drawn = Page(audit, "0" * 64).finding_picture(finding)
    assert drawn is not None
    rows = [r for r in audit.rates if (r.attribute, r.outcome) == (finding.attribute, finding.outcome)]
    assert words in drawn.alt
    assert rows and all(formats.rate(getattr(row, rate)) in drawn.alt for row in rows)


def test_every_contrast_keeps_its_state(page) -> None:
    page = page("disparity")
    rows = page.table("Compared with the reference - gender:")
    records = [row for row in page.audit.contrasts if row.attribute == "gender"]
    for cells, row in zip(rows, records, strict=True):
        assert row.state in cells[2]
        shown = "n/a" if row.estimate.value is None else f"{100 * row.estimate.value:+.1f}"
        assert cells[3].startswith(shown)
    assert f"could detect gaps of {formats.size(records[1].smallest_detectable)} points or more" in rows[1][2]
    assert "above policy" in rows[2][2]
    crossed = page.table("Compared with the reference - gender and race:")
    assert "12 subjects in the smaller group, fewer than 30" in crossed[0][2]


@pytest.mark.parametrize("name", ["disparity", "many", "not_localisable", "no_design_c", "single_layer"])
def test_every_head_is_listed_with_its_numbers(page, name) -> None:
    page = page(name)
    rows = page.table(f"All {len(page.audit.heads)} heads")
    for cells, head in zip(rows, page.audit.heads, strict=True):
        assert cells[0] == head.name
        assert head.verdict in cells[1] or "not found" in cells[1]
        assert cells[4].split()[0] == formats.points(head.confirmation.value, 2)
    head = page.tree.xpath("string((//table[contains(@class, 'heads')]/thead)[1])")
    assert ("Design C" in head) == (name != "no_design_c")


def test_heads_together_stand_beside_the_sum(page) -> None:
    rows, records = page("disparity").table("Heads patched together"), page("disparity").audit.joint
    assert [cells[0] for cells in rows] == ["All 16 heads that were tested", "L0H0, L3H2"]
    for cells, row in zip(rows, records, strict=True):
        sizes = (row.together, row.sum_of_singles, row.beyond_sum, row.together_rate)
        assert [cells[k].split()[0] for k in (1, 2, 3, 4)] == [formats.points(e.value, 2) for e in sizes]
    titles = columns(page("disparity").tree, "together-")
    assert [title.endswith("points of mean probability") for title in titles] == [False, *[True] * 3, *[False] * 3]
    assert titles[4] == "Together Label-standardised gap, points"
    assert "Heads patched together" not in page("not_localisable").text


@pytest.mark.parametrize(("repair", "sealed"), [(0, 0), (31, 0), (31, 17)])
def test_the_splits_that_hold_images_are_named(repair: int, sealed: int) -> None:
    audit = examples()["disparity"]
    splits = {"train": 20, "discovery": 12, "confirmation": 9, "repair": repair, "sealed": sealed}
    named = audit.model_copy(update={"data": audit.data.model_copy(update={"splits": splits})})
    tree = lxml_html.document_fromstring(render_html(named, "d" * 64))
    (said,) = tree.xpath("//section[@id='data']/p[dfn]")
    assert [name.text for name in said.iter("em")][1:] == [name for name, images in splits.items() if images]
    assert ("three" in said.text_content(), "sealed (held back" in said.text_content()) == (False, sealed > 0)


def columns(tree: lxml_html.HtmlElement, table: str) -> list[str]:
    """Return the titles of the first table whose id begins so."""
    titles = tree.xpath(f"(//table[starts-with(@id, '{table}')])[1]/thead//th")
    return [" ".join(" ".join(title.itertext()).split()) for title in titles]


def test_seeds_of_a_head_are_said_to_be_compared_in_mean_probability(page) -> None:
    tree = page("disparity").tree
    assert "By seed points of mean probability" in columns(tree, "all-heads-")
    assert "By seed points" in columns(tree, "contrasts-")


def test_a_grid_in_mean_probability_says_nothing_of_the_gap_in_rates(page) -> None:
    (grid,) = [t for t in page("disparity").tree.iter("table") if (t.get("id") or "").startswith("grid-bias")][:1]
    (note,) = grid.getparent().getparent().xpath("p[@class='note']")
    said = note.text_content()
    assert "Mediated gap of each head in mean probability, confirmation split." in said
    assert [word for word in ("widens", "narrows") if word in said] == []


def test_designs_are_compared_and_transplanted_weights_stand_in_the_table_of_heads(page) -> None:
    rows = page("disparity").table("How far other ways to look agree")
    assert [cells[2] for cells in rows] == ["attribution patching", "Design B", "Design C", "weight transplant"]
    assert {tuple(cells[3:]) for cells in rows} == {("0.83", "90%", "70%")}
    assert "transplanted" in page("disparity").text
    assert "transplanted, points" not in page("no_design_c").text
    assert "Agreement between designs" not in page("not_localisable").text


def test_the_widest_difference_is_shown_less_chance_where_there_are_several_groups(page) -> None:
    (cells,) = page("many").table("Widest difference between groups")
    (row,) = page("many").audit.ranges
    sizes = [formats.size(v) for v in (row.widest, row.by_chance, row.corrected)]
    assert cells[1:] == ["3", *sizes, "0.004"]
    assert "Widest difference between groups" not in page("disparity").text


def test_grids_hold_value_and_symbol(page) -> None:
    page = page("disparity")
    grid = page.table("Where the gap in 'happiness' is carried: gender: female against male")
    assert [len(row) for row in grid] == [5] * 4
    assert grid[3][3] == "◆ +2.85"
    assert page.table("Colour: what each head carries")[3][3] == "● +0.30"


def test_control_grids_share_one_scale(page) -> None:
    tree = page("disparity").tree
    tones = {
        table.findtext("caption/span"): {cell.get("class").split()[0] for cell in table.iter("td")}
        for table in tree.xpath("//table[contains(@class, 'grid')]")
    }
    assert "step-pos5" in tones["Colour: what each head carries"]
    assert tones["Colour, null: donors that know no more"] == {"step-zero"}


def test_unknown_excluded_and_quarantined_have_their_rows(page) -> None:
    page = page("disparity")
    counts = page.table("Images by gender")
    unknown = [row for row in counts if row[0] == "unknown"]
    records = [row for row in page.audit.data.counts if row.group == "unknown"]
    assert sum(int(row[-1].replace(",", "")) for row in unknown) == sum(row.images for row in records) > 0
    (lost,) = page.audit.data.excluded
    assert page.table("Excluded")[0][:3] == [
        "label 'surprise' is not in data.labels",
        "112",
        f"gender: {', '.join(f'{g} {n}' for g, n in lost.by_group['gender'].items())}",
    ]
    assert page.table("Files that could not be read")[0][:3] == ["damaged or truncated image", "2", "–"]


def test_controls_show_statistic_threshold_and_verdict(page) -> None:
    page = page("invalid")
    rows = page.table("Controls:")
    assert len(rows) == len(page.audit.controls.controls)
    assert rows[0][0] == "✕ FAIL"
    assert rows[0][3].startswith("0.02 [−0.01, 0.05]")
    assert rows[0][4] == "> 0"
    assert {row[0] for row in rows[1:]} == {"✓ pass"}


def test_invalid_withholds_findings_heads_and_comparisons(page) -> None:
    page = page("invalid")
    assert page.audit.findings
    assert page.audit.heads
    for finding in page.audit.findings:
        assert finding.id not in page.text
        assert Sentences(page.audit).finding("title", finding) not in page.text
    for absent in ("Compared with the reference", "All 16 heads", "is carried", "Reviewer’s decision"):
        assert absent not in page.text
    failed = next(c for c in page.audit.controls.controls if not c.passed)
    summary = page.tree.get_element_by_id("summary").text_content()
    text = Sentences(page.audit)
    assert text.control("title", failed) in summary
    assert text.control("fix", failed) in summary


def test_a_failed_gate_withholds_whatever_the_outcome_says(page) -> None:
    shown = Page(page("invalid").audit.model_copy(update={"outcome": "DISPARITY FOUND"}), "0" * 64)
    assert shown.outcome == "INVALID"
    assert shown.findings == shown.head_blocks() == []


@pytest.mark.parametrize("name", ["disparity", "many", "no_design_c"])
def test_each_finding_has_all_its_fields(page, name) -> None:
    page = page(name)
    cards = {
        card.xpath("string(header/p)").strip(): " ".join(card.text_content().split())
        for card in page.tree.xpath("//article[@class='finding']")
    }
    assert set(cards) == {finding.id for finding in page.audit.findings}
    text = Sentences(page.audit)
    for finding in page.audit.findings:
        card = cards[finding.id]
        wanted = [
            *(text.finding(part, finding) for part in PARTS), finding.reproduce, repr(finding.expected),
            repr(finding.tolerance), *text.alternatives(finding), *finding.hashes.values(), *finding.heads,
            "risk accepted",
        ]  # fmt: skip
        assert all(wanted)
        assert [text for text in wanted if text not in card] == []


def test_page_one_says_who_gets_which_error_with_a_picture(page) -> None:
    front = page("many").tree.get_element_by_id("summary")
    assert front.xpath(".//p[@class='harm']")
    assert all(front.xpath(".//figure//img/@alt"))


def test_passed_says_that_nothing_was_found(page) -> None:
    assert "No finding." in page("passed").text
    assert "not localisable" in page("not_localisable").text.lower()
    assert "No head was tested" in page("no_heads").text


def test_hostile_text_stays_text(page) -> None:
    page = page("hostile")
    assert page.tree.xpath("//img[@onerror]") == []
    assert len(page.tree.xpath("//script[not(@type)]")) == 1
    assert HOSTILE[0] in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "\u202e" not in page.source
    assert "\\u202e" in page.text
    assert "x" * 200 not in page.source


def test_glossary_and_screen_are_complete(page) -> None:
    text = page("disparity").text
    assert all(isinstance(term, str) and term in text for term, _ in glossary("head"))
    terms = {unit: [term for term, _ in glossary(unit)] for unit in UNITS}
    assert set(terms["head"]) ^ set(terms["slice"]) == {"Attention head", "Slice of channels"}
    assert all(listed == sorted(listed, key=str.casefold) for listed in terms.values())
    assert text.count("not answered") >= 6
    assert data_file("words.yaml")["fixed"]["emotion"] in text


def test_heads_that_move_the_prediction_without_a_gap_are_told_and_not_called_a_finding() -> None:
    audit = examples()["not_localisable"]
    seeds = {"over_seeds": estimate(0.012), "p_over_seeds": 0.03125}
    small = {"within_margin": True, "equivalence_margin": 0.005}
    moving = audit.heads[0].model_copy(update={"verdict": "confirmed, no gap", **seeds, **small})
    where = dict.fromkeys(audit.localisation, Localisation(status=LocalisationStatus.NO_GAP))
    audit = audit.model_copy(update={"heads": [moving, *audit.heads[1:]], "localisation": where})
    tree = lxml_html.document_fromstring(render_html(audit, "0" * 64))
    answer = tree.xpath("string(//p[@class='answer'])")
    assert answer.startswith("No gap detected, nothing to localise: 16 heads tested.")
    assert f"patching {moving.name} moves the prediction by group all the same" in answer
    table = tree.xpath("//table[@class='dense heads']")[0]
    first, *others = ([cell.text_content() for cell in row] for row in table.xpath("tbody/tr"))
    assert "confirmed, no gap" in first[1]
    assert "shown to be under 0.50" in first[-1]
    assert not any("shown" in row[-1] for row in others)
    assert any("+1.20 [" in cell and cell.strip().endswith("]; 0.031") for cell in first)
    assert "points of mean probability; mean of seeds; raw p" in table.xpath("string(thead)")


def test_page_one_says_who_gets_which_error_and_how_often(page) -> None:
    page = page("disparity")
    rows = page.table("Who gets which error, and how often")
    records = [r for r in page.audit.rates if r.attribute == "gender"]
    assert len(rows) == len(records) == 2
    for cells, r in zip(rows, records, strict=True):
        assert cells[0].startswith(f"gender: {r.group}")
        assert cells[2].startswith(f"{r.false_positives} of {r.negatives} ")
        assert cells[3].startswith(f"{r.false_negatives} of {r.positives} ")
    every = page.audit.accuracy[0]
    right, balanced = formats.rate(every.accuracy), formats.rate(every.balanced_accuracy)
    assert f"All images: right on {right}, balanced over labels {balanced}" in page.text
    sentence = Sentences(page.audit).errors("gender", "happiness")
    assert sentence == (
        "Not labelled 'happiness': 199 of 664 images of 'female' (30.0%) and 73 of 707 images of 'male' (10.3%) are "
        "called 'happiness'. Labelled 'happiness': 54 of 540 images of 'female' (10.0%) and 52 of 480 images of 'male' "
        "(10.8%) are missed."
    )
    assert sentence in page.text  # in the effect of the finding


def test_an_inconclusive_page_says_what_is_missing_and_not_to_loosen_the_policy(page) -> None:
    page = page("inconclusive")
    summary = " ".join(" ".join(page.tree.get_element_by_id("summary").itertext()).split())
    gap = page.audit.contrasts[0]
    assert gap.smallest_detectable is not None and gap.smallest_detectable > 0.1
    assert f"the measured gap is {formats.spread(gap.estimate)}" in summary
    least = formats.size(gap.smallest_detectable)
    assert "a true gap of 10 points would be detected in four of five such audits" in summary
    assert f"and here only one of {least} or more would be" in summary
    more = [math.ceil(((gap.smallest_detectable / 0.1) ** 2 - 1) * n) for n in (gap.n_group, gap.n_reference)]
    assert f"about {more[0]} more images of 'female' and {more[1]} more images of 'male' are needed" in summary
    assert "larger gap" not in summary


def test_a_rejected_finding_is_not_the_headline() -> None:
    audit = examples()["disparity"]
    first = top_findings(audit)[0]
    made = Decision(
        finding=first.id, decision="reject", name="R.", role="r", reason="no", decided="2026-03-02T10:00:00Z"
    )
    assert first.id not in {f.id for f in top_findings(audit, [made])}


def test_the_page_says_when_its_law_was_checked(page) -> None:
    text = page("disparity").text
    assert text.count("last checked on 27 November 2026") == 2
    assert text.count("a lawyer must check it") == 2
    assert "2026/1744" in text


def test_the_report_of_a_convolutional_network_speaks_of_slices(page) -> None:
    audit = examples()["disparity"]
    model = audit.model.model_copy(update={"unit": "slice"})
    tree = lxml_html.document_fromstring(render_html(audit.model_copy(update={"model": model}), "0" * 64))
    for script in tree.xpath("//script"):
        script.getparent().remove(script)
    words = " ".join(" ".join(tree.find("body").itertext()).split())
    words = words.replace(words_of("slice")["fixed"]["attention"], "")
    assert "slice" in words
    assert re.findall(r"(?<!/)\b[Hh]eads?\b(?!\.csv)", words) == []


def test_a_group_without_images_says_so(page) -> None:
    audit = examples()["disparity"]
    row = audit.rates[0].model_copy(update={"images": 0})
    text = render_html(audit.model_copy(update={"rates": [row, *audit.rates[1:]]}), "0" * 64)
    assert text.count("no image of this group in the audit splits") == 1
    assert "no image of this group" not in page("disparity").source
