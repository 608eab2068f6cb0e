"""What can be picked on the page: the record's numbers, as its tables write them, and a block that stays small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonpointer import resolve_pointer

from audit.records import Access, Audit, Metric
from audit.report.formats import label
from audit.report.html import render_html
from audit.report.names import names_of
from audit.report.page import Page
from audit.report.picker import picker_json
from audit.report.render import printed, read_run
from audit.report.text import data_file
from tests.report.examples import HOSTILE, changed, examples, many_pairs
from tests.report.run_folder import page_faults, write_run
from tests.report.test_traceable import NUMBER, is_there, leaves

pytestmark = pytest.mark.unit
LARGEST_BLOCK = 110_000  # bytes, of 144 heads x 6 pairs


def picked(audit: Audit) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(picker_json(Page(audit, "0" * 64)))
    return content


def test_a_group_and_its_gaps_are_written_out() -> None:
    content = picked(examples()["disparity"])
    first, second, third = content["pairs"]
    (happiness,) = first["labels"]
    assert [pair["name"] for pair in (first, second, third)] == [
        "gender: female against male",
        "gender and race: female, asian against male, caucasian",
        "gender and race: male, asian against male, caucasian",
    ]
    assert (happiness["name"], happiness["groups"]) == ("happiness", [0, 1])
    assert [content["rates"][place][1] for place in second["labels"][0]["groups"]] == [
        "female, asian",
        "male, caucasian (reference)",
    ]
    assert content["rates"][0] == [
        0,
        "female",
        "1,204 (803)",
        "56.9% [54.1, 59.7]",
        "54 of 540: 10.0% [7.5, 12.5]",
        "199 of 664: 30.0% [26.5, 33.5]",
        "55.6% [53.3, 57.8]",
        "79.0% [76.7, 81.3]",
    ]
    assert happiness["gaps"] == [
        "+11.6 points [+8.8, +14.5]; disparity, above the policy",
        "+0.8 points [−2.9, +4.6]; no disparity detected: 6.2 points or more could have been seen",
        "+19.6 points [+15.5, +23.8]; disparity, above the policy",
    ]
    assert second["labels"][0]["gaps"] == [
        "+12.4 points [−6.9, +31.7]; too little data: 12 subjects in the smaller group, fewer than 30",
        "",
        "",
    ]
    assert third["labels"][0]["gaps"][1] == "not estimable: a label has no image in one of the two groups"


def test_a_head_has_its_verdict_its_effect_and_its_placebo() -> None:
    content = picked(examples()["disparity"])
    (happiness,) = content["pairs"][0]["labels"]
    assert len(happiness["heads"]) == 16
    place, name, verdict, *effects = happiness["heads"][happiness["largest"]]
    assert (place, name, content["verdicts"][verdict]) == (14, "L3H2", "confirmed: widens the gap")
    assert effects == ["+5.86 [+5.16, +6.56]", "+8.13 [+7.03, +9.23]", "+0.11 [−0.29, +0.51]"]
    others = {content["verdicts"][row[2]] for row in happiness["heads"] if row[1] != "L3H2"}
    assert others == {"not found"}


def test_gaps_stand_in_the_order_of_their_names() -> None:
    assert list(data_file("words.yaml")["metrics"]) == list(Metric)


@pytest.mark.parametrize("name", sorted(set(examples()) - {"hostile"}))
def test_every_number_is_that_of_the_row_that_it_names(name: str) -> None:
    audit = examples()[name]
    content, record = picked(audit), json.loads(audit.model_dump_json())
    rows = [("/rates", *row) for row in content["rates"]]
    rows += [("/heads", *row) for pair in content["pairs"] for about in pair["labels"] for row in about["heads"]]
    assert len(rows) == len(audit.rates) + (0 if audit.is_invalid else len(audit.heads))
    for parent, place, named, *texts in rows:
        part = resolve_pointer(record, f"{parent}/{place}")
        own = names_of(audit).group(part["attribute"], part["group"]) if parent == "/rates" else part["name"]
        assert named.removesuffix(" (reference)") == own
        shown = NUMBER.findall(" ".join(text for text in texts if isinstance(text, str)))
        assert shown and all(is_there(token, list(leaves(part))) for token in shown), (parent, place, texts)


@pytest.mark.parametrize("name", ["disparity", "single_layer", "no_design_c"])
def test_heads_are_written_as_in_their_table(page: Any, name: str) -> None:
    table = {row[0]: row for row in page(name).table(f"All {len(page(name).audit.heads)} heads")}
    rows = picked(page(name).audit)["pairs"][0]["labels"][0]["heads"]
    assert {row[1] for row in rows} == table.keys()
    for _, named, _, carried, own, placebo in rows:
        cells = table[named]
        assert (carried, own, placebo) == (cells[4], cells[6], cells[9])


def test_an_invalid_audit_offers_rates_alone() -> None:
    content = picked(examples()["invalid"])
    assert [pair["name"] for pair in content["pairs"]] == ["gender", "gender and race"]
    labels = [about for pair in content["pairs"] for about in pair["labels"]]
    assert [len(about["groups"]) for about in labels] == [2, 4]
    assert all(about["heads"] == [] and not any(about["gaps"]) for about in labels)
    assert content["verdicts"] == []


def test_a_group_without_images_and_a_head_without_its_own_metric_say_so() -> None:
    audit = examples()["disparity"]
    rates = [audit.rates[0].model_copy(update={"images": 0}), *audit.rates[1:]]
    heads = [audit.heads[0].model_copy(update={"confirmation_rate": None}), *audit.heads[1:]]
    content = picked(changed(audit, rates=rates, heads=heads))
    assert content["rates"][0] == [0, "female", *["no data"] * 6]
    assert content["pairs"][0]["labels"][0]["heads"][0][4] == "n/a"


def test_a_record_without_rates_has_nothing_to_pick(page: Any) -> None:
    audit = changed(examples()["passed"], rates=[], contrasts=[])
    assert picker_json(Page(audit, "0" * 64)) == ""
    assert 'id="pick"' not in render_html(audit, "0" * 64)
    assert page("passed").source.count('id="pick"') == 1


def test_hostile_names_stay_in_the_block(page: Any) -> None:
    (block,) = page("hostile").tree.xpath("//script[@id='pick-data']/text()")
    assert not set("<>&") & set(block)
    content = json.loads(block)
    assert content["pairs"][0]["labels"][0]["name"] == label(HOSTILE[2])
    assert content["rates"][0][1] == label(HOSTILE[1])


def test_no_number_is_picked_on_paper() -> None:
    assert "pick-data" not in render_html(examples()["disparity"], "0" * 64, for_print=True)


def test_without_the_inside_no_head_can_be_picked(page: Any) -> None:
    audit = examples()["no_heads"]
    model = audit.model.model_copy(update={"access": Access.ANSWERS})
    shown = render_html(changed(audit, model=model), "0" * 64)
    assert 'id="pick-group"' in shown and 'id="pick-head"' not in shown
    assert 'id="pick-head"' in page("no_heads").source  # tested of none, though they could have been


def test_the_block_of_a_common_model_stays_small() -> None:
    audit = many_pairs()
    assert len(audit.heads) == 144 * 6
    block = picker_json(Page(audit, "0" * 64)).encode()
    assert sum(len(about["heads"]) for pair in json.loads(block)["pairs"] for about in pair["labels"]) == 144 * 6
    assert len(block) < LARGEST_BLOCK
    assert len(block) < len(render_html(audit, "0" * 64).encode()) / 20


def test_a_number_that_was_changed_in_the_block_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", examples()["single_layer"])
    source = read_run(run)
    page = printed(source, pdf=False)["report.html"].decode()
    (run / "report.html").write_text(page, encoding="utf-8")
    assert page_faults(run) == []
    block = page.index('id="pick-data"')
    (run / "report.html").write_text(page[:block] + page[block:].replace("54 of 540", "45 of 540", 1), encoding="utf-8")
    (fault,) = page_faults(run)
    assert fault.place == "report.html"
    assert "45 of 540" in fault.what and "54 of 540" in fault.what
