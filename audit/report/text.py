"""Every sentence of reports, exports and the terminal, made from records by the templates in ``templates/``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, Undefined

from audit.data.samples import UNKNOWN
from audit.evidence.outcome import question_of
from audit.records import (
    AttributeInfo,
    Audit,
    ComparedFinding,
    ComparedGap,
    ComparisonNote,
    ContrastRow,
    Control,
    DataReport,
    DataSource,
    DataWarning,
    DataWarningCode,
    Decision,
    Estimate,
    ExcludedRow,
    Finding,
    FindingState,
    GapAnswer,
    HeadGrid,
    HeadRow,
    LoadedWeights,
    Localisation,
    NextStep,
    NotRunCode,
    Outcome,
    PreprocessingInfo,
    RateRow,
    Reason,
    ReasonCode,
    RunComparison,
    RunName,
    SharedCopy,
    TableForm,
)
from audit.records.repair_json import CertificateLine, Reach
from audit.records.repair_methods import LOSS_AT_HALF, SMALLEST_CELL
from audit.records.repair_run import Repair, RepairRow
from audit.report import formats
from audit.report.names import AS_IN_THE_DATA, Names, names_in, names_of
from audit.resources import resource_dir
from audit.units import UNITS, Unit

LEAST_NATS = 0.005  # less is printed as 0
OF_CONTROLS = ("kinds", "failed_kinds")  # sentences that name more than nouns
NOT_SHOWN = ("law", "groups", "route", "other data")


FIRST_WARNINGS = (
    DataWarningCode.NULL_RUN,
    DataWarningCode.IDENTICAL_IMAGES,
    DataWarningCode.SIMILAR_NAMES,
    DataWarningCode.EMPTY_GROUPS,
    DataWarningCode.UNEVEN_LOSS,
    DataWarningCode.UNEVEN_DETECTION,
)


def _is_first(warning: DataWarning) -> bool:
    """Tell whether a warning is shown with the outcome: of identical images, where they are of several subjects."""
    several = warning.numbers.get("several subjects", 0) > 0
    return warning.code in FIRST_WARNINGS and (several or warning.code != DataWarningCode.IDENTICAL_IMAGES)


def _agreeing(values: Sequence[float], value: float) -> int:
    """Count the values of the same sign."""
    return sum(v * value > 0 for v in values)


def _holds_zero(estimate: Estimate) -> bool:
    return estimate.low is None or estimate.high is None or estimate.low <= 0 <= estimate.high


def _is_shown(value: float | None) -> bool:
    """Tell whether a number of nats is other than 0 where it is printed."""
    return value is not None and abs(value) >= LEAST_NATS


def _is_sure(e: Estimate) -> bool:
    """Tell whether an interval excludes 0."""
    return e.low is not None and e.high is not None and not e.low <= 0 <= e.high


def finalised(value: object) -> object:
    """Make visible what could mislead in whatever a template prints."""
    return formats.clean(value) if type(value) is str else value


@cache
def environment() -> Environment:
    """Return the environment of plain text; pages escape what comes out of it."""
    made = Environment(  # noqa: S701 - plain text, for a terminal or to be escaped by the page
        loader=FileSystemLoader(resource_dir("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalised,
    )
    made.filters.update(FILTERS)
    made.tests["shown"] = _is_shown
    made.tests["sure"] = _is_sure
    return made


@cache
def _template(text: str) -> Template:
    return environment().from_string(text)


def filled(text: str, **values: object) -> str:
    """Fill a sentence of a data file."""
    return one_line(_template(text).render(**values))


def one_line(text: str) -> str:
    """Put a sentence that a template wrote over several lines into one."""
    return " ".join(text.split())


@cache
def data_file(name: str) -> Mapping[str, Any]:
    """Read a file of ``templates/``, such as ``words.yaml``."""
    content = yaml.safe_load((resource_dir("templates") / name).read_text(encoding="utf-8"))
    return MappingProxyType(content)


def method_hash() -> str:
    """SHA-256 of ``templates/method.yaml``: hypotheses, measures, designs and estimands as they are printed."""
    return hashlib.sha256((resource_dir("templates") / "method.yaml").read_bytes()).hexdigest()


def of_unit(value: Any, unit: Unit) -> Any:
    """Fill every sentence of a tree from a data file with the nouns of what is patched."""
    if isinstance(value, str):
        return filled(value, unit=UNITS[unit])
    if isinstance(value, Mapping):
        return {key: inner if key in OF_CONTROLS else of_unit(inner, unit) for key, inner in value.items()}
    return [of_unit(inner, unit) for inner in value] if isinstance(value, list) else value


@cache
def words_of(unit: Unit) -> Mapping[str, Any]:
    """Return ``words.yaml`` for a kind of part that is patched."""
    words: dict[str, Any] = of_unit(dict(data_file("words.yaml")), unit)
    return MappingProxyType(words)


@cache
def glossary(unit: Unit) -> tuple[tuple[str, str], ...]:
    """Return terms and their meanings, from ``templates/glossary.yaml``, for a kind of part that is patched."""
    content = data_file("glossary.yaml")
    terms = of_unit({**content["terms"], **content[unit]}, unit)
    return tuple((term, terms[term]) for term in sorted(terms, key=str.casefold))


@cache
def term_forms(unit: Unit) -> Mapping[str, Sequence[str]]:
    """Return the words that stand for each term of the glossary: its own, and those that it names."""
    content, noun = data_file("glossary.yaml"), UNITS[unit]
    forms = {**content["forms"], **dict.fromkeys(content[unit], (noun.singular, noun.plural))}
    return MappingProxyType({term: (term, f"{term}s", *forms.get(term, ())) for term, _ in glossary(unit)})


class Sentences:
    """The sentences of one audit."""

    def __init__(self, audit: Audit) -> None:
        self.audit = audit
        self.unit = UNITS[audit.model.unit]
        self.words = words_of(audit.model.unit)
        self.names = names_of(audit)
        self._controls = {c.id: c for c in audit.controls.controls}
        self._contrasts = {c.id: c for c in audit.contrasts}
        values = {
            "audit": audit,
            "unit": self.unit,
            "words": self.words,
            "limits": {"policy.gap_above": 0.1, "policy.impact_ratio_below": 0.8, "alpha": 0.05}
            | audit.method.thresholds,
            "say": self,
            "control_of": self._controls.get,
            "contrast_of": self._contrast_of,
            "rates_of": self.rates_of,
            "attribute_of": self.attribute_of,
            "names": self.names,
        }
        self._finding: Any = environment().get_template("text/finding.j2").make_module(values)
        self._method: Any = environment().get_template("text/method.j2").make_module(values)
        self._outcome: Any = environment().get_template("text/outcome.j2").make_module(values)
        self._pictures: Any = environment().get_template("text/pictures.j2").make_module(values)
        self._ledger: Any = environment().get_template("text/ledger.j2").make_module(values)
        self._sensitivity: Any = environment().get_template("text/sensitivity.j2").make_module(values)
        self._core: Any = environment().get_template("text/core.j2").make_module(values)
        self._summary: Any = environment().get_template("text/summary.j2").make_module(values)
        self._review: Any = environment().get_template("text/review.j2").make_module(values)
        self._picker: Any = environment().get_template("text/picker.j2").make_module(values)

    def _contrast_of(self, key: str) -> ContrastRow | Undefined:
        return self._contrasts.get(key) or StrictUndefined(name=f"comparison {key}")

    def attribute_of(self, name: str) -> AttributeInfo | None:
        """Return where an attribute comes from; None for an intersection."""
        return next((a for a in self.audit.data.attributes if a.attribute == name), None)

    def rates_of(self, attribute: str, outcome: str, groups: Sequence[str] = ()) -> list[RateRow]:
        """Return the rates of an attribute's known groups for one outcome."""
        return [
            r
            for r in self.audit.rates
            if (r.attribute, r.outcome) == (attribute, outcome)
            and (r.group in groups if groups else r.group != UNKNOWN)
        ]

    def finding(self, part: str, finding: Finding) -> str:
        """Return one part of a finding: "title", "wording", "cause" and others."""
        return one_line(str(getattr(self._finding, part)(finding)))

    def alternatives(self, finding: Finding) -> list[str]:
        """Return what else could explain a finding."""
        return [one_line(str(self._finding.alternative(key))) for key in finding.alternatives]

    def preprocessing(self) -> str:
        """Say what is done to an image before the model sees it."""
        seen = self.audit.model.preprocessing
        return str(self.words["fixed"]["not_seen"]) if seen is None else preprocessing_sentence(seen)

    def errors(self, attribute: str, outcome: str, groups: Sequence[str] = ()) -> str:
        """Say how many of each group get either error."""
        return one_line(str(self._finding.errors(attribute, outcome, list(groups))))

    @property
    def blamed(self) -> str:
        """Return whose words explain the outcome: of the method, of a model at chance, or of one that is not in use."""
        kinds = {c.kind for c in self.audit.controls.controls if not c.passed and c.gates == "audit"}
        if not kinds and any(r.code == ReasonCode.NOT_ABOVE_CHANCE for r in self.audit.reasons):
            return "of_model"
        return f"of_{kinds.pop()}" if kinds in ({"model"}, {"served"}) else "of_method"

    def meaning(self) -> str:
        """Say what the outcome means."""
        name = Outcome.INVALID if self.audit.is_invalid else self.audit.outcome
        outcome = self.words["outcomes"][name]
        if not self.audit.model.has_inside:
            outcome = self.words["without_inside"].get(name, outcome)
        text: str = outcome.get(self.blamed, outcome["means"])
        return text

    def withheld(self) -> str:
        """Say why findings are withheld: "because ..."."""
        text: str = self.words["withheld"][self.blamed]
        return text

    def reason(self, reason: Reason) -> str:
        """Say one reason of the outcome."""
        return one_line(str(self._outcome.reason(reason)))

    def reasons(self, rows: Sequence[Reason] | None = None) -> list[str]:
        """Return the reasons of the outcome: all of them, or some."""
        return [self.reason(r) for r in (self.audit.reasons if rows is None else rows)]

    def next_steps(self, steps: Sequence[NextStep] | None = None) -> list[str]:
        """Return what to do next, by default all steps; where controls failed, what fixes them comes first."""
        steps = self.audit.next_steps if steps is None else steps
        failed = [c for c in self.audit.controls.controls if not c.passed and c.gates == "audit"]
        fixes = dict.fromkeys(self.control("fix", c) for c in failed)
        asked = [*fixes] if NextStep.FIX_CONTROLS in steps else []
        said = [one_line(str(self._outcome.step(step))) for step in steps]
        return [f"{fix[:1].upper()}{fix[1:]}." for fix in asked] + said

    def not_shown(self) -> list[str]:
        """Return what the audit does not show."""
        keys = [*NOT_SHOWN, *(["emotion"] if self.audit.task == "emotion" else [])]
        return [one_line(str(self._outcome.not_shown(key))) for key in keys]

    def first_warnings(self) -> list[str]:
        """Return the warnings that belong to the outcome: they may change what it means."""
        return [f"{warning_sentence(w)}." for w in self.audit.data.warnings if _is_first(w)]

    def localisation(self, question: str, rows: Sequence[HeadRow]) -> str:
        """Say where in the model a question's gap was found."""
        where = self.audit.localisation.get(question)
        return one_line(str(self._outcome.localisation(where, rows)))

    def no_sensitivity(self) -> str:
        """Say why the texts of a zero-shot model's prompts were not tried one by one; "" where they were."""
        found = self.audit.prompt_sensitivity
        return "" if found is None or found.left_out is None else one_line(str(self._method.no_sensitivity(found)))

    def prompts(self) -> str:
        """Say by what a zero-shot model's classes are described; "" of other models."""
        return "" if self.audit.model.prompts is None else one_line(str(self._method.prompts(self.audit.model)))

    def setup(self) -> str:
        """Say what the known effects were measured on; "" where they were not."""
        setup = self.audit.controls.setup
        return "" if setup is None else one_line(str(self._method.setup(setup)))

    def not_applicable(self) -> list[str]:
        """Return the controls that the model's input rules out."""
        rows = [row for row in self.audit.controls.not_run if row.code == NotRunCode.NOT_APPLICABLE]
        return [one_line(str(self._method.not_run(row))) for row in rows]

    def not_run(self) -> list[str]:
        """Say which controls were not run, or failed and left out what they gate."""
        return [one_line(str(self._method.not_run(row))) for row in self.audit.controls.not_run]

    def patches(self) -> str:
        """Say whether all patches were made; "" where none was."""
        choice = self.audit.method.patches
        return "" if choice is None else one_line(str(self._method.patches(choice)))

    def kind(self, control: Control) -> str:
        """Say in one line what all controls of a kind and channel show; of one that failed, what that means."""
        sentences = data_file("words.yaml")["kinds" if control.passed else "failed_kinds"]
        where = data_file("controls.yaml")["channels"].get(control.channel, {}).get("carries", "")
        return filled(sentences[control.kind], unit=self.unit, where=where, c=control)

    def control(self, part: str, control: Control) -> str:
        """Return one part of a control: "title", "where", "statistic", "meaning" or "fix"."""
        book = data_file("controls.yaml")
        entry = book["checks"].get(control.check, {})
        values = self._of_control(control)
        if control.added is not None and part != "where":
            said = formats.clean(str(getattr(control.added, part)))
            return filled("{{ said.end(c) }}", **values) + said if part == "statistic" else said
        if part == "where":
            run = filled(entry.get("run", ""), **values)
            return filled(book["where"][control.kind], **values, run=run)
        if part == "fix":
            return filled(book["fixes"][entry["fix"]], **values)
        said = str(entry.get(part) or book["nulls"][part])
        return filled("{{ said.end(c) }}" + said if part == "statistic" else said, **values)

    def _of_control(self, control: Control) -> dict[str, Any]:
        channel = data_file("controls.yaml")["channels"].get(control.channel, {})
        said = environment().get_template("text/controls.j2").module
        return {"c": control, "unit": self.unit, "model": self.audit.model, "said": said, **channel}

    def grid(self, grid: HeadGrid) -> tuple[str, str]:
        """Return title and caption of a grid of heads."""
        corruption = data_file("controls.yaml")["channels"].get(grid.channel, {}).get("corruption", "")
        return self.picture("grid_title", grid, corruption), self.picture("grid_caption", grid, corruption)

    def of_method(self, part: str, *about: object) -> str:
        """Say something of model or method: a macro of ``text/method.j2`` ("size", "origin", "training", "engine")."""
        return one_line(str(getattr(self._method, part)(*about)))

    def of_outcome(self, part: str, *about: object) -> str:
        """Say something of the outcome: a macro of ``text/outcome.j2`` ("precision", "family")."""
        return one_line(str(getattr(self._outcome, part)(*about)))

    def label(self, outcome: str) -> str:
        """Return what the report calls a label: as the card says, or as it is in the data."""
        return self.names.label(outcome)

    def group(self, attribute: str, group: str) -> str:
        """Return what people of a group are called where a name stands alone, as in a picture."""
        return self.names.group(attribute, group)

    def group_and_value(self, attribute: str, group: str) -> str:
        """Return what a group is called, and beside it how it is written in the data where that differs."""
        return _with_value(self.group(attribute, group), group)

    def labels(self, values: Iterable[str]) -> list[str]:
        """Return what some labels are called."""
        return [self.label(value) for value in values]

    def labels_and_values(self, values: Iterable[str]) -> list[str]:
        """Return the same, each with how it is written in the data where that differs."""
        return [_with_value(self.label(value), value) for value in values]

    def core(self, part: str, *about: object) -> str:
        """Say something of the first eleven sections: a macro of ``text/core.j2`` ("headline", "missed", "owner")."""
        return one_line(str(getattr(self._core, part)(*about)))

    def picture(self, part: str, *about: object) -> str:
        """Return what a grid, a picture or a set of heads is called: a macro of ``text/pictures.j2``."""
        return one_line(str(getattr(self._pictures, part)(*about)))

    def pick(self, part: str, *about: object) -> str:
        """Say what can be picked on the page: a macro of ``text/picker.j2`` ("pair", "group", "gap", "verdict")."""
        return one_line(str(getattr(self._picker, part)(*about)))

    def ledger(self, part: str, *about: object) -> str:
        """Say something of a sum of parts: a macro of ``text/ledger.j2`` ("name", "nats", "answer", "short")."""
        return one_line(str(getattr(self._ledger, part)(*about)))

    def sensitivity(self, part: str, gap: ContrastRow) -> str:
        """Say how wrong annotations may be before a gap vanishes: a macro of ``text/sensitivity.j2``.

        These are "answer", "at_random", "declared" and "short"; "" of a gap that was not looked at.
        """
        rows = self.audit.sensitivity_of(gap)
        return one_line(str(getattr(self._sensitivity, part)(gap, rows))) if rows else ""

    def review(self, part: str, *about: object) -> str:
        """Say what reviewers made of something: a macro of ``text/review.j2`` ("who", "rejected", "disputed")."""
        return one_line(str(getattr(self._review, part)(*about)))

    def where(self, gap: ContrastRow) -> Localisation | None:
        """Return where in the model a gap was found; None where that was not asked."""
        return self.audit.localisation.get(question_of(gap))

    def answer_to(self, key: str) -> GapAnswer | None:
        """Return where the gap of a question runs, by "contrast:outcome"; None where that was not asked."""
        return next((a for a in self.audit.answers if f"{a.contrast}:{a.outcome}" == key), None)

    def summary(
        self,
        asked: Sequence[tuple[str, str]],
        gap: ContrastRow | None,
        heads: Sequence[HeadRow],
        top: Sequence[Finding],
        *,
        reasons: Sequence[Reason] | None = None,
        reviewed: Sequence[str] = (),
    ) -> list[str]:
        """Say in a dozen lines what an audit found; ``heads`` are those of the largest gap, largest first.

        ``reasons`` are those of the outcome that count, all unless given; ``reviewed`` is what reviewers made of it.
        """
        # the one that speaks for the decisions: near them, which is recorded after that of all images
        ledgers = {f"{t.contrast}:{t.outcome}": t for t in self.audit.ledgers if t.kept is None or t.kept < 1}
        ledger = None if gap is None else ledgers.get(question_of(gap))
        families = [] if ledger is None else self.audit.families_of(ledger)
        mean = {f"{t.contrast}:{t.outcome}": t for t in self.audit.trained}  # the last order of each
        trained = None if gap is None else mean.get(question_of(gap))
        located = None if gap is None else self.answer_to(question_of(gap))
        why = self.reasons(reasons)
        about = (asked, gap, heads, top, located, ledger, families, trained, why, reviewed)
        lines = str(self._summary.summary(*about)).splitlines()
        return [line for line in lines if line.strip()]

    def contrast(self, key: str) -> str:
        """Write a contrast in words, "gender: women against men"; its id where the record holds no such rates."""
        return contrast_in_words(key, self.audit.contrasts, self.names)


def contrast_in_words(key: str, rows: Iterable[ContrastRow | ComparedGap], names: Names) -> str:
    """Write a contrast in words; its id where no comparison is of it."""
    for row in rows:
        if key == f"{row.attribute}:{row.group}-{row.reference}":
            groups = " against ".join(names.group(row.attribute, group) for group in (row.group, row.reference))
            return f"{names.attribute(row.attribute)}: {groups}"
    return formats.label(key)


def _with_value(shown: str, value: str) -> str:
    written = formats.label(value)
    return shown if shown == written else f"{shown} (in the data: {written})"


def bars_in_words(title: str, bars: Sequence[object]) -> str:
    """Say what a picture of bars shows; each has ``name`` and ``rate``."""
    templates: Any = environment().get_template("text/pictures.j2").module
    return one_line(str(templates.bars(title, bars)))


def forest_in_words(title: str, heads: Sequence[object]) -> str:
    """Say what a forest plot shows; each head has ``name``, ``effect``, ``placebo``, ``design_c``, ``null_bound``."""
    templates: Any = environment().get_template("text/pictures.j2").module
    return one_line(str(templates.forest(title, heads)))


def network_in_words(title: str, panels: Sequence[object]) -> str:
    """Say what a picture of ledgers shows; each has ``label``, ``unit`` and ``bars`` with ``name`` and ``gap``."""
    templates: Any = environment().get_template("text/ledger.j2").module
    return one_line(str(templates.network(title, panels)))


def trades_in_words(title: str, trades: Sequence[object]) -> str:
    """Say what a picture of repairs shows; each has ``name``, ``gap`` and ``paid``."""
    templates: Any = environment().get_template("text/repair.j2").module
    return one_line(str(templates.trades(title, trades)))


def saved_sentence(new: int, disputed: int) -> str:
    """Say what came of a save: decisions that are new in the run, and about how many things reviewers differ now."""
    templates: Any = environment().get_template("text/review.j2").module
    return one_line(str(templates.saved(new, disputed)))


def left_sentence(decision: Decision) -> str:
    """Say what of an earlier run was not taken over."""
    templates: Any = environment().get_template("text/review.j2").make_module({"words": words_of("head")})
    return one_line(str(templates.left(decision)))


def repair_notes(record: Repair, names: Names = AS_IN_THE_DATA) -> list[str]:
    """Say what a reader of a repair must know first."""
    templates: Any = environment().get_template("text/repair.j2").module
    said = data_file("words.yaml")["repair"]
    lines = str(templates.notes(record, said, names, _half(record), _smallest_cell(record))).splitlines()
    return [one_line(line) for line in lines if line.strip()]


def _half(record: Repair) -> tuple[float, RepairRow] | None:
    """Return the least accuracy that a group and label would lose if the gap were halved, and the method."""
    priced = [(row.settings.get(LOSS_AT_HALF), row) for row in record.rows if row.weights is not None]
    return min(((loss, row) for loss, row in priced if loss is not None), key=lambda one: one[0], default=None)


def _smallest_cell(record: Repair) -> int | None:
    """Return how many images the smallest group and label has where strengths are chosen; None where none is known."""
    sizes = [
        row.settings[SMALLEST_CELL]
        for row in record.rows
        if row.weights is not None and row.settings.get(SMALLEST_CELL)
    ]
    return min(sizes, default=None)


def repair_line(record: Repair) -> str:
    """Say what came of a repair in one line."""
    said = data_file("words.yaml")["repair"]
    return f"{record.state}: {one_line(said['states'][record.state]['means'])}"


def repair_sentence(record: Repair, names: Names = AS_IN_THE_DATA) -> str:
    """Say of which gap a repair was made, and what came of it."""
    templates: Any = environment().get_template("text/repair.j2").module
    return one_line(str(templates.told(record, data_file("words.yaml")["repair"], names)))


def method_line(row: RepairRow, attribute: str, names: Names = AS_IN_THE_DATA) -> str:
    """Say what a method leaves of the gap between groups of an attribute, and what it costs."""
    templates: Any = environment().get_template("text/repair.j2").module
    return one_line(str(templates.method(row, data_file("words.yaml")["repair"], attribute, names)))


def certificate_line(line: CertificateLine, names: Names = AS_IN_THE_DATA) -> str:
    """Say what sealed images show of one claim."""
    templates: Any = environment().get_template("text/repair.j2").module
    return one_line(str(templates.line(line, data_file("words.yaml")["repair"], names)))


def reach_line(reach: Reach, names: Names = AS_IN_THE_DATA) -> str:
    """Say whether a repair could be certified with the sealed images."""
    templates: Any = environment().get_template("text/repair.j2").module
    return one_line(str(templates.reach(reach, names)))


def bounds_in_words(title: str, gap: Estimate, lines: Sequence[object]) -> str:
    """Say what a picture of the bounds on a gap shows; each line has ``name``, ``shares``, ``low``, ``high``."""
    templates: Any = environment().get_template("text/sensitivity.j2").module
    return one_line(str(templates.bounds(title, gap, lines)))


def called_sentence(model: object) -> str:
    """Say how outputs are read, of whatever has the fields that the sentence reads."""
    templates: Any = environment().get_template("text/method.j2").module
    return one_line(str(templates.called(model)))


def warning_sentence(warning: DataWarning) -> str:
    """Say what is odd about the data and what follows, without a full stop."""
    return str(_data_templates().warning(warning)).strip()


def table_sentence(form: TableForm) -> str:
    """Say how a table was read."""
    return str(_data_templates().table_form(form)).strip()


def limit_sentences(report: DataReport) -> list[str]:
    """Say what the sizes of the data let an audit detect."""
    say, told = _data_templates(), ((report.limits, "gap_limit"), (report.intersections, "intersection"))
    parts = (*told, (report.head_limits, "head_limit"))
    return [str(getattr(say, macro)(row, names_in(report))).strip() for rows, macro in parts for row in rows]


def preprocessing_sentence(info: PreprocessingInfo) -> str:
    """Say in one line what is done to an image before the model sees it."""
    return one_line(str(_data_templates().preprocessing(info)))


def held_sentence(size: int, held: bool) -> str:
    """Say in one line how many bytes the decoded images take, and whether they are held in memory."""
    return one_line(str(_data_templates().decoded(size, held)))


def served_sentence(control: Control) -> str:
    """Say how far the audited model's answers are from those of the deployed one."""
    return one_line(str(_data_templates().served(control)))


def loaded_sentence(weights: LoadedWeights) -> str:
    """Say what of a file of weights became a model's."""
    say: Any = environment().get_template("text/weights.j2").module
    return one_line(str(say.loaded(weights)))


def not_opened_sentence(field: str, named: str) -> str:
    """Say of what a card names that only a run can open it, and why."""
    say: Any = environment().get_template("text/weights.j2").module
    return one_line(str(say.not_opened(field, named)))


def detection_sentences(report: DataReport) -> list[str]:
    """Say for each attribute how many images never reached the classifier; nothing where that is not known."""
    say, names = _data_templates(), names_in(report)
    every = [[r for r in report.detection if r.attribute == a.attribute] for a in report.attributes]
    return [str(say.detection(rows, names)).strip() for rows in every if rows]


def untested_sentence(row: ContrastRow) -> str:
    """Say why a comparison could not be tested; "" where it was."""
    return str(_data_templates().untested(row)).strip()


def left_out_sentence(row: ExcludedRow) -> str:
    """Say why images were left out."""
    return str(_data_templates().left_out(row)).strip()


def source_sentence(source: DataSource) -> str:
    """Say where the images are from."""
    return str(_data_templates().source(source)).strip()


def attribute_note(info: AttributeInfo) -> str:
    """Say what the card says of an attribute, and what was made of its column."""
    return one_line(str(_data_templates().attribute_note(info)))


def removed_words(copy: SharedCopy) -> list[str]:
    """Say what a shareable copy has lost besides names and files."""
    return [data_file("words.yaml")["removed"][what] for what in copy.removed]


@cache
def _data_templates() -> Any:
    return environment().get_template("text/data.j2").make_module({"units": UNITS})


def finding_title(finding: Finding, unit: Unit, names: Names) -> str:
    """Return the title of a finding, whatever audit it is of."""
    values = {"unit": UNITS[unit], "names": names}
    module: Any = environment().get_template("text/finding.j2").make_module(values)
    return one_line(str(module.title(finding)))


def export_sentence(part: str, *about: object) -> str:
    """Return a sentence of an export: a macro of ``text/exports.j2`` ("lacking", "title", "outcome")."""
    return one_line(str(getattr(environment().get_template("text/exports.j2").module, part)(*about)))


def counted_findings(comparison: RunComparison) -> str:
    """Say in one line what became of the findings: "1 new, 2 persisting, 0 no longer testable, 1 below ..."."""
    return str(_diff_templates(comparison.unit).counted(comparison.findings, list(FindingState)))


def note_sentences(comparison: RunComparison) -> list[str]:
    """Say what a reader of a comparison must know."""
    return [str(_diff_templates(comparison.unit).note(note, comparison)) for note in comparison.notes]


def comparison_note(note: ComparisonNote, unit: Unit) -> str:
    """Say what a reader of a comparison must know; of notes that name no run."""
    return str(_diff_templates(unit).note(note, None))


def because(row: ComparedFinding, unit: Unit) -> str:
    """Say why a finding has the state that it has, with both numbers where it is below; "" where that says enough."""
    return one_line(str(_diff_templates(unit).because(row)))


def policy_sentence(run: RunName, unit: Unit) -> str:
    """Say how many comparisons of a run are above its policy."""
    return str(_diff_templates(unit).policy(run))


@cache
def _diff_templates(unit: Unit) -> Any:
    return environment().get_template("text/diff.j2").make_module({"unit": UNITS[unit]})


FILTERS: Mapping[str, Any] = {
    "agreeing": _agreeing,
    "attribute_note": attribute_note,
    "called": called_sentence,
    "count": formats.count,
    "day": formats.day,
    "decimal": formats.decimal,
    "detection": detection_sentences,
    "difference": formats.difference,
    "holds_zero": _holds_zero,
    "label": formats.label,
    "left_out": left_out_sentence,
    "limits": limit_sentences,
    "magnitude": formats.magnitude,
    "md": formats.markdown,
    "measured": formats.measured,
    "level_note": formats.level_note,
    "p": formats.p_value,
    "percent": formats.percent,
    "plural": formats.plural,
    "points": formats.points,
    "precise": repr,
    "quantity": formats.quantity,
    "rate": formats.rate,
    "rate_interval": formats.rate_interval,
    "interval_of": formats.interval_of,
    "ratio": formats.ratio,
    "sentence": lambda text: text[:1].upper() + text[1:],
    "short": formats.short_hash,
    "size": formats.size,
    "slug": formats.slug,
    "source": source_sentence,
    "spread": formats.spread,
    "table_form": table_sentence,
    "untested": untested_sentence,
    "warning": warning_sentence,
}
