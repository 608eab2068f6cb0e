"""Sentences that are made from any record claim no more than was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import escape

from audit.data.decode import MAX_PIXELS, MIN_SIDE_PX
from audit.evidence.findings import make_findings
from audit.evidence.outcome import decide, localisation
from audit.records import (
    Audit,
    ChanceReason,
    Control,
    ControlReport,
    DataSource,
    DataWarning,
    DataWarningCode,
    EngineReport,
    Estimate,
    ExcludedRow,
    Finding,
    HeadLimit,
    LeftOut,
    NotRun,
    NotRunCode,
    Removed,
    SharedCopy,
    Shortfall,
    SourceKind,
)
from audit.report import formats
from audit.report.html import render_html
from audit.report.names import Names
from audit.report.text import (
    Sentences,
    called_sentence,
    data_file,
    finding_title,
    left_out_sentence,
    limit_sentences,
    removed_words,
    source_sentence,
    warning_sentence,
)
from audit.terminal import shared_summary, summary
from tests.evidence.rows import CONTEXT, around, contrast_row, contrast_rows, controls, head_row, head_rows
from tests.report.forbidden import forbidden_words

from .examples import examples
from .test_html import PARTS

pytestmark = pytest.mark.unit
AUDIT = examples()["disparity"]


def with_(**update: object) -> Audit:
    return AUDIT.model_copy(update=update)


def title(**changes: object) -> str:
    gap = contrast_row(estimate=around(-0.15))
    heads = [head_row(**changes)]
    found = make_findings([gap], heads, localisation(heads, [gap]), CONTEXT)
    return finding_title(next(f for f in found if f.kind == "head"), "head", Names())


def is_sound(sentence: str) -> bool:
    return bool(sentence) and not forbidden_words(sentence) and "None" not in sentence and "{{" not in sentence


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_sentence_of_a_finding_claims_more_than_was_measured(data: st.DataObject) -> None:
    rows = data.draw(st.lists(contrast_rows(), min_size=1, max_size=4))
    heads = [data.draw(head_rows(row)) for row in rows if row.metric == "standardised_gap" and data.draw(st.booleans())]
    found: list[Finding] = make_findings(rows, heads, localisation(heads, rows), CONTEXT)
    say = Sentences(with_(contrasts=rows, findings=found, rates=[]))
    for finding in found:
        said = {part: say.finding(part, finding) for part in PARTS}
        assert [part for part, sentence in said.items() if not is_sound(sentence)] == []
        assert said["wording"].endswith(".")
        assert all(map(is_sound, say.alternatives(finding)))


@settings(max_examples=60, deadline=None)
@given(st.lists(contrast_rows(), max_size=6), st.integers(0, 2), st.floats(0.01, 1))
def test_every_reason_and_step_is_a_sentence(rows: list, failed: int, gap_above: float) -> None:
    report = controls(failed=failed)
    verdict = decide(report, rows, gap_above=gap_above)
    audit = with_(
        controls=report, contrasts=rows, outcome=verdict.outcome, reasons=verdict.reasons, next_steps=verdict.next_steps
    )
    say = Sentences(audit)
    sentences = [*say.reasons(), *say.next_steps(), *say.not_shown()]
    assert len(sentences) >= 3
    assert [s for s in sentences if not is_sound(s) or not s.endswith(".")] == []


@pytest.mark.parametrize(
    ("direction", "words"), [("widens", "widens the gap"), ("narrows", "narrows the gap"), ("not determined", "moves")]
)
def test_a_head_is_said_to_widen_or_narrow_only_where_its_own_interval_says_so(direction: str, words: str) -> None:
    said = title(direction=direction)
    assert words in said
    assert ("widens" in said, "narrows" in said) == (direction == "widens", direction == "narrows")


def test_an_effect_without_direction_says_what_is_known() -> None:
    finding = next(f for f in AUDIT.findings if f.kind == "head").model_copy(update={"direction": "not determined"})
    effect = Sentences(AUDIT).finding("effect", finding)
    assert "the interval holds 0, so it is not known whether the head widens or narrows the gap" in effect


def test_a_head_whose_rate_is_not_known_is_said_to_be_so() -> None:
    gap = contrast_row(estimate=around(-0.15))
    heads = [head_row(confirmation_rate=None, confirmation=around(-0.031), direction="not determined")]
    found = next(f for f in make_findings([gap], heads, localisation(heads, [gap]), CONTEXT) if f.kind == "head")
    said = {part: Sentences(AUDIT).finding(part, found) for part in PARTS}
    assert ": the data cannot tell. In mean probability, which was tested: −3.1 points" in said["condition"]
    assert "the data cannot tell, so it is not known whether the head widens or narrows the gap" in said["effect"]
    assert "n/a" not in said["wording"] and "−3.1" not in said["wording"]
    assert "there is no interval" in said["confidence_reason"]


def test_seeds_of_a_head_are_compared_in_mean_probability_and_of_a_gap_in_rates() -> None:
    say = Sentences(AUDIT)
    disparity, head = (next(f for f in AUDIT.findings if f.kind == kind) for kind in ("disparity", "head"))
    told = ", ".join(formats.points(v) for v in head.by_seed)
    assert say.finding("agreement", head).endswith(f"({told} points of mean probability)")
    told = ", ".join(formats.points(v) for v in disparity.by_seed)
    assert say.finding("agreement", disparity).endswith(f"({told} points)")


WARNING = {
    "of": "gender", "images": 1204, "total": 4346, "names": ["female", "Female ", "a  b", "c", "d"],
    "examples": ["a.png", "b.png"], "subjects": ["s1"], "values": ["A.", "B."],
    "numbers": {
        "looked_at": 5000.0, "p": 0.0004, "several splits": 2.0, "several subjects": 3.0, "brightness": -1.25,
        "gray": 0.4, "cramers_v": 0.31, "lowest": 0.1, "highest": 0.9, "least": 30.0, "seed": 7.0,
        "compared": 1204.0, "of": 4346.0,
        **{f"{kind}:{name}": 6.0 for kind in ("lost", "of") for name in ("female", "Female ", "a  b", "c", "d")},
    },
}  # fmt: skip


@pytest.mark.parametrize("code", DataWarningCode)
def test_every_warning_about_the_data_has_its_sentence(code: DataWarningCode) -> None:
    if code == DataWarningCode.SOURCES_DIFFER:
        given = {**WARNING, "numbers": {"brightness": -1.25, "pixels": 2e6, "gray": 0.4}}
    else:
        given = WARNING
    said = warning_sentence(DataWarning.model_validate({"code": code, **given}))
    assert is_sound(said) and "\n" not in said and not said.endswith(".")
    assert any(part in said for part in ("gender", "1,204", "28%"))


@pytest.mark.parametrize("kind", LeftOut)
def test_every_reason_to_leave_images_out_has_its_sentence(kind: LeftOut) -> None:
    row = ExcludedRow(kind=kind, of="gender", names=["darker", "smile"], kept=0.1, images=1)
    said = left_out_sentence(row)
    assert said
    assert "darker" in said or kind not in (LeftOut.LABEL_NOT_KEPT, LeftOut.PLANTED)
    assert "(blank)" not in said
    others = {left_out_sentence(row.model_copy(update={"kind": other})) for other in LeftOut if other != kind}
    assert said not in others


def test_what_is_left_out_is_said_with_what_was_found() -> None:
    def said(kind: LeftOut, detail: str) -> str:
        return left_out_sentence(ExcludedRow(kind=kind, detail=detail, images=1))

    assert said(LeftOut.SUFFIX, ".heic") == "suffix '.heic' is no image's"
    assert said(LeftOut.SUFFIX, "") == "no suffix"
    assert said(LeftOut.NO_ROW, "groups.csv") == "no row in groups.csv"
    assert said(LeftOut.NOT_OPENED, "Permission denied") == "cannot be opened (Permission denied)"
    assert said(LeftOut.MISSING, "") == "missing file"
    for small in (LeftOut.TOO_SMALL, LeftOut.SMALL_BOX):
        assert f"under {MIN_SIDE_PX} px" in said(small, "")
    assert f"over {MAX_PIXELS:,} pixels" in said(LeftOut.TOO_LARGE, "")


SOURCES = {
    SourceKind.FILES: (DataSource(kind=SourceKind.FILES, reader="folder", path="faces"), "folder: faces"),
    SourceKind.MEMORY: (DataSource(kind=SourceKind.MEMORY, name="table"), "table"),
    SourceKind.RENDERED: (
        DataSource(kind=SourceKind.RENDERED, version="faces-1", seed=3),
        "rendered faces (faces-1, seed 3)",
    ),
}


@pytest.mark.parametrize("kind", SourceKind)
def test_every_source_of_images_has_its_words(kind: SourceKind) -> None:
    source, words = SOURCES[kind]
    assert source_sentence(source) == words
    named = DataSource(kind=SourceKind.FILES, reader="croissant", path="a: b", name="Small faces")
    assert source_sentence(named) == "croissant: a: b (Small faces)"


def test_everything_that_a_copy_may_lose_has_its_words() -> None:
    copy = SharedCopy(other_names={"image": 3}, left_out={}, removed=list(Removed))
    words = removed_words(copy)
    assert len(set(words)) == len(Removed)
    assert list(data_file("words.yaml")["removed"]) == list(Removed)
    assert shared_summary(copy)[1] == f"  taken out: {'; '.join(words)}"


def test_names_that_differ_in_blanks_are_written_with_them() -> None:
    names = ["a  b", "a b", "a b "]
    said = warning_sentence(DataWarning(code=DataWarningCode.SIMILAR_NAMES, of="gender", names=names))
    assert said.startswith("gender: 'a  b', 'a b', 'a b ' differ in case or blanks only and count as 3")


@pytest.mark.parametrize(
    ("code", "numbers", "shown"),
    [
        (DataWarningCode.IDENTICAL_IMAGES, {"several subjects": 2.0, "several splits": 0.0}, True),
        (DataWarningCode.IDENTICAL_IMAGES, {"several subjects": 0.0, "several splits": 0.0}, False),
        (DataWarningCode.SIMILAR_NAMES, {}, True),
        (DataWarningCode.REPEATED_ROWS, {}, False),
    ],
)
def test_warnings_that_change_what_the_outcome_means_are_shown_with_it(
    code: DataWarningCode, numbers: dict[str, float], shown: bool
) -> None:
    warning = DataWarning(code=code, of="gender", images=4, total=9, names=["a", "A"], numbers=numbers)
    audit = with_(data=AUDIT.data.model_copy(update={"warnings": [warning]}))
    said = warning_sentence(warning)
    assert Sentences(audit).first_warnings() == ([f"{said}."] if shown else [])
    assert (f"warning: {said}" in summary(audit, Path("run"))) == shown
    front = re.sub("</?a[^>]*>", "", render_html(audit, "d" * 64).partition('id="system"')[0])
    assert (str(escape(said)) in front) == shown


def test_what_sizes_allow_is_said_from_numbers() -> None:
    limit = AUDIT.data.limits[0].model_copy(
        update={"detectable": {"a": 0.0612, "b": None}, "absent": ["c"], "in_both": 3}
    )
    heads = HeadLimit(
        attribute="gender", group="f", reference="m", unit="slice", shortfall=Shortfall.CLUSTERS, clusters=(29, 31),
        clusters_needed=30,
    )  # fmt: skip
    report = AUDIT.data.model_copy(update={"limits": [limit], "head_limits": [heads]})
    gaps, crossed, head = limit_sentences(report)
    assert gaps == (
        f"gender female ({limit.subjects_group} subjects) against male ({limit.subjects_reference}): gaps this audit "
        "can detect at 80% power, corrected over 3 tests: a 6.1 points or more; b none, however large; no image "
        "labelled c outside the training split, so nothing can be estimated; 3 subjects are in both groups, so smaller "
        "gaps may be detected"
    )
    assert crossed == "gender and race: 3 of 4 groups have 30 subjects or more"
    assert head == (
        "gender f against m: slices cannot be localised: too little data, too few independent groups of people who are "
        "patched, with their counterparts; 29 and 31 independent groups of people who are patched, with their "
        "counterparts, in discovery and confirmation, 30 needed in each"
    )
    info = report.attributes[0].model_copy(update={"display": {"female": "women"}})
    named = report.model_copy(update={"attributes": [info], "display": {"a": "happy"}})
    assert limit_sentences(named)[0].startswith(f"gender women ({limit.subjects_group} subjects) against male")
    assert ": happy 6.1 points or more; b none" in limit_sentences(named)[0]


def of_model(passed: bool, reason: str = "constant") -> Audit:
    """Return an audit of a model that is right no more often than chance, or may be."""
    labels = Control(
        id="knows_labels", check="knows_labels", kind="model", reason=reason, relation=">",
        estimate=Estimate(value=0.5, low=0.44, high=0.56 if passed else 0.5), judged="high", threshold=0.5,
        passed=passed,
    )  # fmt: skip
    report = controls(valid=passed)
    report = report.model_copy(update={"controls": [labels, *report.controls]})
    verdict = decide(report, [], gap_above=0.1)
    return with_(
        controls=report, outcome=verdict.outcome, reasons=verdict.reasons, next_steps=verdict.next_steps, findings=[]
    )


def test_a_model_that_does_not_know_the_labels_is_not_called_a_failure_of_the_method() -> None:
    audit = of_model(passed=False)
    assert audit.outcome == "INVALID"
    say = Sentences(audit)
    assert say.meaning().startswith("The audited model is not right more often than chance")
    (reason,) = say.reasons()
    assert reason == (
        "The model is right no more often than chance: balanced accuracy 50.0% [44.0, 50.0], chance is 50.0%. Likely: "
        "it always gives one answer."
    )
    for shown in (render_html(audit, "d" * 64), summary(audit, Path("run"))):
        assert "withheld, because the model is not right more often than chance" in shown
        assert "method failed" not in shown
    broken = Sentences(with_(controls=controls(failed=1), outcome="INVALID"))
    assert broken.meaning().startswith("The method failed one of its own tests")
    assert broken.withheld() == "because a check of the method failed"


@pytest.mark.parametrize(
    ("reason", "likely", "fix"),
    [
        (ChanceReason.CLASS_ORDER, " Likely: the classes are in another order.", "write model.classes: ["),
        (ChanceReason.CONSTANT, " Likely: it always gives one answer.", "gives one answer whatever the image"),
        (ChanceReason.UNRELATED, "", "the answers do not go with the labels; check weights"),
    ],
)
def test_why_a_model_is_at_chance_is_a_field_and_has_its_words(reason: str, likely: str, fix: str) -> None:
    say = Sentences(of_model(passed=False, reason=reason))
    (said,) = say.reasons()
    assert said.endswith(f"chance is 50.0%.{likely}")
    assert fix in say.control("fix", say.audit.controls.controls[0])


@pytest.mark.parametrize(
    ("former", "reason"),
    [
        ("the classes are in another order", ChanceReason.CLASS_ORDER),
        ("it always gives one answer", ChanceReason.CONSTANT),
        ("its answers do not go with the labels", ChanceReason.UNRELATED),
        ("", None),
    ],
)
def test_an_earlier_record_says_why_a_model_is_at_chance_in_another_field(former: str, reason: object) -> None:
    control = of_model(passed=False).controls.controls[0]
    read = Control.model_validate_json(
        control.model_copy(update={"form": former, "reason": None}).model_dump_json(exclude={"reason"})
    )
    assert (read.reason, read.form) == (reason, "")


def test_a_model_that_may_know_the_labels_is_not_said_to() -> None:
    audit = of_model(passed=True)
    assert audit.outcome == "INCONCLUSIVE"
    page = render_html(audit, "d" * 64)
    assert "is not shown to be right more often than chance" in page
    assert "too little data to answer the question" not in page
    assert "The model may know the labels" in page and "The model knows the labels better than chance" not in page


def test_what_the_input_rules_out_is_said_on_page_one() -> None:
    row = NotRun(code=NotRunCode.NOT_APPLICABLE, design="colour")
    controls = AUDIT.controls.model_copy(update={"not_run": [*AUDIT.controls.not_run, row]})
    assert Sentences(AUDIT).not_applicable() == []
    (said,) = Sentences(with_(controls=controls)).not_applicable()
    assert "gray" in said
    assert "neither pass nor fail" in said


@pytest.mark.parametrize("code", NotRunCode)
def test_what_was_not_run_is_said(code: NotRunCode) -> None:
    row = NotRun(code=code, design="Design C", failed=1, of=4, contrast="gender:f-m")
    audit = with_(controls=AUDIT.controls.model_copy(update={"not_run": [row]}))
    (said,) = Sentences(audit).not_run()
    assert is_sound(said) and said.endswith(".")
    assert str(escape(said)) in render_html(audit, "d" * 64)


def test_how_the_audit_was_made_is_said_from_numbers() -> None:
    say = Sentences(AUDIT)
    assert say.of_method("origin", AUDIT.model) == "trained by this audit from weights 'vit_small.safetensors'"
    assert say.of_method("training", AUDIT.model.training) == (
        "the last 2 blocks fine-tuned on 1,852 images for 3 epochs, batches of 64, AdamW, learning rate 5 × 10⁻⁴ with "
        "cosine schedule, weight decay 0.05"
    )
    assert say.of_method("training_short", AUDIT.model.training) == (
        "the last 2 blocks trained on 1,852 images for 3 epochs; settings in appendix E"
    )
    assert say.of_method("seen_short", AUDIT.model) == "98 × 98 pixels; every step in appendix E"
    assert say.setup() == (
        "Images: rendered patterns; 600 for training, 300 for judging. Models: 5 of this audit's backbone. Colour and "
        "blur were measured on 2026-03-01, by vit-audit 0.2.0."
    )
    assert say.of_method("engine", AUDIT.method.engine) == (
        "exact patching, float32 unless stated otherwise, CPU; largest difference from plain hooks in this run: 2.3 × "
        "10⁻⁶ in a logit"
    )
    assert say.patches() == (
        "every one: all patches cost about 41,234 forward passes of an image, a sample about 9,876; up to 60,000 are "
        "affordable for this model"
    )


@pytest.mark.parametrize(
    ("layers", "words"),
    [([], "CPU;"), ([1, 2], "; layers 1, 2 are run whole"), ([0, 1, 2, 3], "; all layers are run whole")],
)
def test_blocks_that_are_run_whole_are_named(layers: list[int], words: str) -> None:
    engine = EngineReport(device="CPU", largest_difference=None, whole_blocks=layers)
    said = Sentences(AUDIT).of_method("engine", engine)
    assert "not measured, the audit ended before" in said and words in said and " ;" not in said


def test_a_model_audited_as_it_is_was_not_trained() -> None:
    say, own = Sentences(AUDIT), AUDIT.model.model_copy(update={"training": None})
    assert say.of_method("origin", own) == "the user's own checkpoint"
    assert say.of_method("training", None) == "not trained by this audit"


@pytest.mark.parametrize("check", data_file("controls.yaml")["checks"])
@pytest.mark.parametrize("unit", ["head", "slice"])
@pytest.mark.parametrize("judged", ["value", "low", "high"])
def test_every_control_has_its_words(check: str, unit: str, judged: str) -> None:
    kinds = dict.fromkeys(("same_base", "heads_match", "barrier", "barrier_bound"), "initialisation")
    kinds |= dict.fromkeys(("gap", "joint", "head", "noising"), "effect")
    kind = "null" if check.startswith("null") else kinds.get(check, "identity")
    figures = {"joint": 0.9, "single": 0.2, "null": 0.1, "effect": 0.3, "seeds": 3, "pairs": 3, "raw": 0.5, "differ": 2}
    control = Control(
        id=check, check=check, kind=kind, channel=None if kind == "identity" else "blur", form="models", head="L1H2",
        figures=figures, estimate=Estimate(value=1.0), judged=judged, relation=">", threshold=0.5, passed=False,
        n=80,
    )  # fmt: skip
    audit = with_(
        model=AUDIT.model.model_copy(update={"unit": unit}),
        controls=ControlReport(valid=False, controls=[control], grids=[]),
    )
    say = Sentences(audit)
    said = {part: say.control(part, control) for part in ("title", "where", "statistic", "meaning", "fix")}
    assert [part for part, sentence in said.items() if not is_sound(sentence)] == []
    assert ("head" in " ".join(said.values()).lower()) <= (unit == "head")
    end = {"low": "lower end of ", "high": "upper end of "}.get(judged, "")
    assert said["statistic"].startswith(end)
    assert is_sound(say.kind(control))


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        ({}, ["the one of 2 classes whose probability is highest", "a softmax over the classes"]),
        ({"output": "sigmoid"}, ["probability is highest", "the sigmoid of an output of its own"]),
        (
            {"output": "sigmoid", "decision": "threshold", "threshold": 0.3},
            ["each class whose probability is 0.3 or more: several, or none", "need not sum to 1"],
        ),
        (
            {"output": "sigmoid", "decision": "threshold", "threshold": 0.3, "one_logit": True},
            ["called “yes” where the probability is 0.3 or more, else “no”", "one output, whose sigmoid"],
        ),
        ({"decision": "threshold", "threshold": 0.3}, ["else “no”", "a softmax over the classes"]),
        (
            {"access": "predictions"},
            ["what the table says, or the one of 2", "as they were given, or of logits a softmax"],
        ),
        ({"access": "answers"}, ["probability is highest. Probabilities are as they were given"]),
        ({"access": "answers", "output": "sigmoid"}, ["as it was given, or the sigmoid of a logit"]),
        ({"access": "answers", "output": "sigmoid", "one_logit": True}, ["one output: the probability of “yes”"]),
    ],
)
def test_how_outputs_are_read_is_said(reading: dict[str, object], said: list[str]) -> None:
    model = AUDIT.model.model_copy(update={"classes": ["no", "yes"], **reading})
    page = re.sub("</?a[^>]*>", "", render_html(AUDIT.model_copy(update={"model": model}), "0" * 64))
    sentence = called_sentence(model)
    assert all(part in sentence for part in said)
    assert page.count(str(escape(sentence))) == (
        2 if reading.keys() & {"output", "decision"} else 1
    )  # of what is usual, page 1 says nothing


def test_every_kind_of_control_has_its_words_on_page_one_and_in_the_table() -> None:
    kinds = set(get_args(Control.model_fields["kind"].annotation))
    assert kinds == set(data_file("words.yaml")["kinds"])
    assert kinds <= set(data_file("controls.yaml")["where"])


def test_a_grid_says_where_its_numbers_are_estimated() -> None:
    say, grid = Sentences(AUDIT), AUDIT.controls.grids[0].model_copy(update={"images": 100})
    assert "estimated" not in say.grid(grid)[1]
    caption = say.grid(grid.model_copy(update={"patched": 12}))[1]
    assert (
        "100 images. The largest heads are patched on all of them, the others on 12; the rest is estimated" in caption
    )


def test_a_gap_before_and_after_covariates_is_said_with_what_goes_with_them() -> None:
    whole, by_label = AUDIT.adjusted
    text = Sentences(AUDIT)
    assert text.of_outcome("adjusted", whole) == (
        f"'happiness', gender female against male: {formats.spread(whole.before)}; with the same age in both groups "
        f"{formats.spread(whole.after)}, so that {formats.spread(whole.part)} goes with age; "
        "12 images without age left out"
    )
    assert text.of_outcome("adjusted", by_label).endswith(
        "labelled 'happiness': not adjusted for age: 21 subjects in the smaller group, fewer than 30; "
        "12 images without age left out"
    )
    assert "adjusted: 'happiness'" in summary(AUDIT, Path("run"))
    assert "adjusted" not in summary(with_(adjusted=[]), Path("run"))


def test_donors_that_are_near_in_a_number_are_said_to_be() -> None:
    head = next(f for f in AUDIT.findings if f.kind == "head")
    near = head.model_copy(update={"matched_on": ["annotator"], "calipers": {"age": 5.0}})
    for part in ("intervention", "placebo"):
        assert "same label, annotator, age within 5" in Sentences(AUDIT).finding(part, near)
        assert "within" not in Sentences(AUDIT).finding(part, head)


@pytest.mark.parametrize(
    ("together", "redundancy", "said"),
    [
        (-0.16, Estimate(value=-0.04, low=-0.06, high=-0.02), "is counted more than once"),
        (-0.16, Estimate(value=0.04, low=0.02, high=0.06), "is what others make up for"),
        (0.16, Estimate(value=0.04, low=0.02, high=0.06), "is counted more than once"),
        (0.16, Estimate(value=0.04, low=-0.01, high=0.09), "may be chance"),
    ],
)
def test_what_heads_do_beyond_the_sum_is_told_in_the_direction_of_the_gap(
    together: float, redundancy: Estimate, said: str
) -> None:
    audit = examples()["disparity"]
    one = audit.smallest[0]
    both = {"heads": ["L0H1", "L1H0"], "together": Estimate(value=together, low=together, high=together)}
    text = Sentences(audit).ledger("smallest", one.model_copy(update=both | {"redundancy": redundancy}))
    assert said in text


def test_sums_at_equal_covariates_are_told_where_the_card_names_some() -> None:
    audit = examples()["disparity"]
    text, total = Sentences(audit), audit.ledgers[0]
    families = [row for row in audit.ledger if (row.among, row.level) == ("all", "family")]
    assert total.adjusted is not None and total.adjusted.low is not None and total.adjusted.high is not None
    low, high = (formats.decimal(v, 2, signed=True) for v in (total.adjusted.low, total.adjusted.high))
    assert (
        f"With both groups at equal covariates it is {text.ledger('value', total.adjusted)} [{low}, {high}] nats: "
        in (text.ledger("answer", total, families))
    )
    assert "covariates" not in text.ledger("answer", total.model_copy(update={"adjusted": None}), families)
    unknown = total.model_copy(update={"adjusted": Estimate(value=None)})
    assert "it is not known" in text.ledger("answer", unknown, families)


def test_sums_disagree_where_only_images_far_from_the_decision_have_a_sure_one() -> None:
    audit = examples()["disparity"]
    near = next(t for t in audit.ledgers if t.among != "all")
    whole = audit.families_of(audit.ledgers[0])
    chance = Estimate(value=0.04, low=-0.01, high=0.1)
    same = [row.model_copy(update={"gap": chance}) for row in audit.families_of(near)]
    beyond = same[0].model_copy(update={"family": "beyond the clip", "gap": Estimate(value=0.57, low=0.4, high=0.7)})
    text = Sentences(audit)
    said = text.ledger("disagreement", [beyond, *same], whole)
    assert "near the decision +0.04 [−0.01, +0.10], which may be chance; images far from" in said
    assert text.ledger("disagreement", audit.families_of(near), whole) == ""
