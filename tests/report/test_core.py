"""The first eleven sections: who is harmed, how, how sure, what now; and whether a person can read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from lxml import html as lxml_html

from audit.records import Audit, Decision, HarmfulError, Metric, State
from audit.report.core import Core
from audit.report.html import render_html
from audit.report.page import Page
from audit.report.text import Sentences, data_file, term_forms

from .examples import examples
from .run_folder import decision

pytestmark = pytest.mark.unit
SECTIONS = (
    "summary", "system", "groups", "drawn", "undecided", "training", "location", "trust", "limits", "law", "actions",
)  # fmt: skip
GOLD = Path(__file__).with_name("gold")
# An outcome each; ``python -m tests.report.test_core`` writes their text again after a change that was looked at.
OUTCOMES = {"disparity": "DISPARITY FOUND", "passed": "PASSED", "inconclusive": "INCONCLUSIVE", "invalid": "INVALID"}
REJECTED = "rejected"  # the first of these, once a reviewer has rejected its gap
QUESTION = ("gender", "happiness")
# Words that a reviewer need not know, unless the glossary says what they are.
TECHNICAL = (
    "logit", "logits", "log-odds", "nats", "softmax", "sigmoid", "embedding", "residual stream", "bootstrap", "Holm",
    "patching", "patched", "placebo", "attention head", "head", "heads", "seed", "seeds", "Design A", "Design C",
    "attribution patching", "instrument", "crosswalk", "quarantine", "denoising", "noising", "interval", "control",
)  # fmt: skip
SKIPPED = ("caption", "th", "dt", "h2", "h3", "h4", "h5", "code", "output", "template")


def sections(audit: Audit, decisions: Sequence[Decision] = ()) -> dict[str, lxml_html.HtmlElement]:
    tree = lxml_html.document_fromstring(render_html(audit, "0" * 64, decisions))
    return {name: tree.get_element_by_id(name) for name in SECTIONS}


def with_(audit: Audit, **changes: object) -> Audit:
    return audit.model_copy(update=changes)


def of_policy(error: HarmfulError) -> Audit:
    audit = examples()["disparity"]
    return with_(audit, method=audit.method.model_copy(update={"harmful_error": error}))


def test_the_worst_group_comes_first_with_how_many_of_how_many() -> None:
    audit = examples()["disparity"]
    core, say = Core(audit, audit.findings), Sentences(audit)
    for error, wrong, of in (
        (HarmfulError.MISSED, "false_negatives", "positives"),
        (HarmfulError.FALSE_ALARM, "false_positives", "negatives"),
    ):
        rows, between = core.told(QUESTION, error)
        shares = [getattr(r, wrong) / getattr(r, of) for r in rows]
        assert shares == sorted(shares, reverse=True)
        assert between == 0
        said = say.core("missed" if error == HarmfulError.MISSED else "false_alarms", (rows, between), QUESTION[1])
        assert re.findall(r"[Oo]f (\d+) .*?, (\d+) \(", said) == [
            (f"{getattr(r, of)}", f"{getattr(r, wrong)}") for r in rows
        ]


def test_of_many_groups_the_worst_the_best_and_the_reference_are_told() -> None:
    audit = examples()["disparity"]
    first = next(r for r in audit.rates if (r.attribute, r.outcome) == QUESTION)
    rows = [
        first.model_copy(
            update={
                "group": f"g{i}",
                "is_reference": i == 3,
                "false_negative_rate": first.false_negative_rate.model_copy(update={"value": i / 10}),
            }
        )
        for i in range(8)
    ]
    info = audit.data.attributes[0].model_copy(update={"groups": [r.group for r in rows]})
    many = with_(audit, rates=rows, data=audit.data.model_copy(update={"attributes": [info]}))
    told, between = Core(many, []).told(QUESTION, HarmfulError.MISSED)
    assert ([r.group for r in told], between) == (["g7", "g6", "g3", "g0"], 4)
    assert "4 more groups lie between these." in Sentences(many).core("missed", (told, between), "happiness")


@pytest.mark.parametrize(
    ("error", "first"),
    [
        (HarmfulError.MISSED, "Missed."),
        (HarmfulError.BOTH, "False alarms."),  # in which the groups differ most
        (HarmfulError.FALSE_ALARM, "False alarms."),
    ],
)
def test_the_error_that_harms_comes_first_else_the_one_in_which_groups_differ(error: HarmfulError, first: str) -> None:
    said = sections(of_policy(error))["summary"].xpath(".//p[@class='harm']//strong")
    assert said[0].text_content() == first


def test_names_of_the_card_take_the_place_of_values() -> None:
    audit = examples()["disparity"]
    info = audit.data.attributes[0].model_copy(update={"display": {"female": "women"}})
    rest = audit.data.attributes[1:]
    data = audit.data.model_copy(update={"attributes": [info, *rest], "display": {"happiness": "happy"}})
    front = sections(with_(audit, data=data))["summary"].text_content()
    assert "women labelled 'happy'" in front or "women not labelled 'happy'" in front
    assert "images of 'male'" in front
    assert "images of 'female'" not in front


@pytest.mark.parametrize("name", OUTCOMES)
def test_page_one_says_what_is_decided_by_whom_and_until_when(name: str) -> None:
    audit = with_(examples()[name], owner="Ethics board", decide_by="2027-03-01")
    front = sections(audit)["summary"].text_content()
    states = {
        "DISPARITY FOUND": "Not met by what was measured",
        "PASSED": "No breach was detected",
        "INCONCLUSIVE": "Not known",
        "INVALID": "not valid",
    }
    assert states[OUTCOMES[name]] in front
    assert "Ethics board" in front
    assert "2027-03-01" in front
    assert "the settings of this audit name nobody" in sections(examples()[name])["summary"].text_content()


def test_a_gap_that_could_not_have_been_seen_is_undecided_and_one_that_could_is_not() -> None:
    audit = examples()["disparity"]
    row = next(c for c in audit.contrasts if c.metric == Metric.STANDARDISED_GAP and c.attribute == "gender")

    def undecided(**changes: object) -> bool:
        changed = row.model_copy(update=changes)
        return Core(with_(audit, contrasts=[changed]), []).undecided() == [changed]

    limit = audit.method.thresholds["policy.gap_above"]
    assert not undecided(state=State.DISPARITY)
    assert not undecided(state=State.NOT_DETECTED, smallest_detectable=limit)
    assert undecided(state=State.NOT_DETECTED, smallest_detectable=limit + 0.01)
    assert undecided(state=State.TOO_LITTLE_DATA)
    assert undecided(state=State.DISPARITY, attribute="gender x race")


def test_every_head_belongs_to_one_gap_or_stands_alone() -> None:
    audit = examples()["many"]
    core = Page(audit, "0" * 64).core
    shown = core.decisions()
    nested = [f.id for gap in shown if gap.kind == "disparity" for f in core.heads_of(gap)]
    assert nested
    assert sorted([*nested, *(f.id for f in shown)]) == sorted(f.id for f in audit.findings)


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_technical_word_is_linked_to_the_glossary_where_it_is_first_used(name: str) -> None:
    parts = sections(examples()[name])
    forms = {form.casefold(): term for term, words in term_forms("head").items() for form in words}
    seen: set[str] = set()
    for section in parts.values():
        for text, linked in _texts(section):
            if linked:
                seen.add(forms[text.casefold()])
            for word in TECHNICAL:
                if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text, re.IGNORECASE):
                    continue
                assert word.casefold() in forms, f"'{word}' is used and not explained: {text.strip()}"
                term = forms[word.casefold()]
                assert term in seen, f"the first use of '{word}' has no link: {text.strip()}"


def _texts(element: lxml_html.HtmlElement, *, linked: bool = False) -> list[tuple[str, bool]]:
    """Return the texts that a reader meets, in order, and whether each is a link to the glossary."""
    if not isinstance(element.tag, str) or element.tag in SKIPPED or element.get("class") == "source":
        return []
    inside = linked or element.get("class") == "term"
    found = [(element.text or "", inside)]
    for child in element:
        found += _texts(child, linked=inside)
        found.append((child.tail or "", inside))
    return found


@pytest.mark.parametrize("name", OUTCOMES)
def test_sentences_are_short(name: str) -> None:
    lengths = []
    for section in sections(examples()[name]).values():
        for element in section.iter("p", "li"):
            if element.get("class") != "note":
                text = " ".join(element.text_content().split())
                lengths += [len(s.split()) for s in re.split(r"(?<=[.?!])\s+", text) if len(s.split()) > 2]
    assert len(lengths) > 20
    assert sum(lengths) / len(lengths) < 22


def text_of(name: str) -> str:
    """Return what a reviewer of an example reads first, one line a paragraph."""
    audit, decisions = examples()["disparity" if name == REJECTED else name], []
    if name == REJECTED:
        gap = next(f for f in audit.findings if f.kind == "disparity")
        asked = {
            "owner": "D. Data",
            "due": "2026-06-30",
            "remedy": "ask who labelled the images",
            "independence": "external",
        }
        decisions = [
            decision(gap.id, decision="reject", reason="the labels are wrong", **asked),
            decision("", section="report", decision="needs more", reason="until the labels are checked"),
            decision("", section="data", decision="comment", reason="who labelled them?"),
        ]
    lines = []
    for name, section in sections(audit, decisions).items():
        lines.append(f"== {name}")
        for element in section.iter("h2", "h3", "p", "li", "dt", "dd", "caption", "tr"):
            said = " ".join(" ".join(element.itertext()).split()).replace(" .", ".").replace(" ,", ",")
            if said and element.get("class") != "note":
                lines.append(said)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", [*OUTCOMES, REJECTED])
def test_the_first_sections_read_as_they_were_approved(name: str) -> None:
    assert text_of(name) == (GOLD / f"{name}.txt").read_text(encoding="utf-8")


def test_error_rates_of_this_tool_stand_beside_the_claim() -> None:
    rates = data_file("error_rates.json")
    said = Sentences(examples()["disparity"]).core("own_errors", rates)
    for where in ("rendered", "photographs"):
        found = rates[where]["hit_at_1"]
        assert f"{round(found['estimate'] * found['n'])} of {found['n']}" in said
        assert rates[where]["date"] in said


if __name__ == "__main__":
    GOLD.mkdir(exist_ok=True)
    for outcome in (*OUTCOMES, REJECTED):
        (GOLD / f"{outcome}.txt").write_text(text_of(outcome), encoding="utf-8")
