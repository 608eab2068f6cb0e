"""The report as one self-contained HTML file: no network, everything escaped, readable without its one script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from audit.data.samples import SPLITS
from audit.records import AttentionMap, Audit, Decision, FindingState, RateRow, RunComparison
from audit.records.repair_run import Repair
from audit.report.bias_audit import RACE, SEX, Category, bias_tables, category_of, missing_categories, selected
from audit.report.formats import clean, label
from audit.report.glossed import linked
from audit.report.legal import applies_sentence, checked_sentence, clause_of, crosswalk, day_of
from audit.report.names import AS_IN_THE_DATA, Names, names_of_both
from audit.report.page import Page
from audit.report.picker import picker_json
from audit.report.pointers import spelled
from audit.report.repairs import Chapter, Kept, chapters_of
from audit.report.reviews import in_order
from audit.report.text import (
    FILTERS,
    Sentences,
    because,
    contrast_in_words,
    counted_findings,
    data_file,
    export_sentence,
    finalised,
    finding_title,
    glossary,
    note_sentences,
    of_unit,
    policy_sentence,
    term_forms,
    words_of,
)
from audit.resources import resource_dir
from audit.units import UNITS

UNFOLDED = 12  # findings that are open when the page is
DRAWN = 24  # findings with a picture of their own; all of them are in the forest plots and tables
PRINTED_HEADS = 36  # rows of the table of heads in the PDF, found ones aside


@cache
def environment() -> Environment:
    """Return the environment in which all pages are rendered."""
    made = Environment(
        loader=FileSystemLoader(resource_dir("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalised,
    )
    made.filters.update(FILTERS)
    made.filters["breakable"] = _breakable
    made.filters.update(HELPERS)
    made.filters["with_terms"] = lambda page, unit: linked(page, term_forms(unit))
    made.globals.update(named=_named, numbered=_numbered, described=_described, crossed=_crossed, gridded=_gridded)
    made.globals.update(spelled=spelled, unfolded=UNFOLDED, drawn=DRAWN, printed_heads=PRINTED_HEADS)
    return made


Columns = list[tuple[str, str, bool]]


def _named(letter: str, number: int) -> Columns:
    """Return the columns of a grid of heads."""
    return [(f"{letter}{k}", "", True) for k in range(number)]


def _numbered(names: Iterable[str]) -> Columns:
    """Return columns of numbers."""
    return [(label(name), "", True) for name in names]


def _crossed(maps: Sequence[AttentionMap], across: Sequence[str]) -> Columns:
    """Return the columns of regions, several for each group."""
    return [(label(seen.group), name, True) for seen in maps for name in across]


def _described(rates: Sequence[RateRow]) -> list[tuple[RateRow, str]]:
    """Return what is shown of a group besides the tested gaps: raw difference and equalised odds."""
    return [(r, what) for r in rates if r.difference is not None for what in ("difference", "equalised odds")]


def _gridded(pointer: str, layers: int) -> list[str]:
    return [f"{pointer}/values/{k}" for k in range(layers)]


def _grouped(rows: Iterable[Any], field: str) -> list[tuple[Any, list[Any]]]:
    """Group rows by a field, in the order of their first."""
    groups: dict[Any, list[Any]] = {}
    for row in rows:
        groups.setdefault(getattr(row, field), []).append(row)
    return list(groups.items())


def _in_split_order(splits: Sequence[str]) -> list[str]:
    known = [split for split in SPLITS if split in splits]
    return known + [split for split in splits if split not in SPLITS]


HELPERS: dict[str, Any] = {
    "grouped": _grouped,
    "hash_facts": lambda hashes: [(f"SHA-256 of {name}", digest, "mono") for name, digest in hashes.items()],
    "in_split_order": _in_split_order,
    "marks": lambda grids: {mark for g in grids for row in g.marks for mark in row if mark},
    "placed": lambda row, place: place(row),
    "several_seeds": lambda rows: any(len(row.by_seed) > 1 for row in rows),
}


def _breakable(text: str) -> Markup:
    """Let a long identifier break after its separators and nowhere else."""
    escaped = Markup.escape(clean(text))
    return Markup(str(escaped).replace("_", "_<wbr>").replace("/", "/<wbr>"))  # noqa: S704 - escaped above


def _file(name: str) -> str:
    return (resource_dir("templates") / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Return a hash as a Content-Security-Policy has it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def render_html(
    audit: Audit,
    digest: str,
    decisions: Sequence[Decision] = (),
    *,
    repairs: Sequence[Kept] = (),
    for_print: bool = False,
    served: bool = False,
) -> str:
    """Print the record of an audit into the report's template.

    Parameters
    ----------
    audit : Audit
        Where it is invalid, findings, heads and comparisons are left out.
    digest : str
        SHA-256 of the bytes of ``audit.json``, which binds the report to them.
    decisions : sequence of Decision
        Of reviewers, in the order in which they came in.
    repairs : sequence of Kept
        Of the audited model, in the order in which they were planned.
    for_print : bool
        True for the PDF: everything unfolded, the print style sheet, a table of contents with page numbers.
    served : bool
        True for ``vit-audit serve``: the page may talk to where it came from, and saves decisions there.

    Returns
    -------
    str
        A whole HTML document. Its Content-Security-Policy admits only its own style sheet and script, by their hashes,
        and ``data:`` images.
    """
    style = _file("report.css") + (_file("print.css") if for_print else "")
    script = "" if for_print else _file("report.js")
    page, unit = Page(audit, digest, decisions), audit.model.unit
    named = {
        "audit": audit,
        "page": page,
        "say": page.text,
        "names": page.text.names,
        "place": page.place,
        "words": page.text.words,
        "unit": page.text.unit,
        "method": of_unit(dict(data_file("method.yaml")), unit),
        "glossary": glossary(unit),
        "clause_of": clause_of,
        "law_checked": checked_sentence(audit.provenance.started),
        "applies": lambda clause: applies_sentence(clause, audit.provenance.started),
        "crosswalk": crosswalk(),
        "in_order": in_order,
        "error_rates": data_file("error_rates.json"),
        "served": served,
        "chapters": chapters_of(repairs, page.text.names),
        "picker": "" if for_print else picker_json(page),  # on paper nothing can be picked
    }
    return _page("report.html.j2", style, script, for_print=for_print, **named)


def render_diff(comparison: RunComparison) -> str:
    """Print a comparison of two runs as a whole HTML document, self-contained as a report is."""
    unit, names = comparison.unit, names_of_both(comparison)
    order = list(FindingState)
    named = {
        "comparison": comparison,
        "rows": sorted(comparison.findings, key=lambda f: (order.index(f.state), f.kind, f.id)),
        "counted": counted_findings(comparison),
        "notes": note_sentences(comparison),
        "names": names,
        "title_of": lambda row: finding_title(row.finding, unit, names),
        "contrast_of": lambda key: contrast_in_words(key, comparison.gaps, names),
        "because": lambda row: because(row, unit),
        "policy_of": lambda run: policy_sentence(run, unit),
        "words": words_of(unit),
        "unit": UNITS[unit],
        "place": lambda _row: "",
    }
    return _page("diff.html.j2", _file("report.css"), _file("report.js"), for_print=False, **named)


def render_bias_audit(audit: Audit) -> str:
    """Print what Local Law 144 wants published of an audit as a whole HTML document, self-contained as a report is."""
    words, tables = words_of(audit.model.unit), bias_tables(audit)
    own, named_as = words["bias_audit"], {Category.SEX: SEX, Category.RACE: RACE}
    lacking = [export_sentence("lacking", each, named_as.get(each, ())) for each in missing_categories(tables)]
    named = {
        "audit": audit,
        "say": (text := Sentences(audit)),
        "names": text.names,
        "words": words,
        "tables": tables,
        "notes": [*lacking, own["not_candidates"], own["named_as"]],
        "day": day_of(audit.provenance.started),
        "law_checked": checked_sentence(audit.provenance.started),
        "category_of": category_of,
        "selected": selected,
        "place": lambda _row: "",
    }
    return _page("bias_audit.html.j2", _file("report.css"), "", for_print=False, **named)


def render_repair(record: Repair, names: Names = AS_IN_THE_DATA, *, for_print: bool = False) -> str:
    """Print a repair as a whole HTML document, self-contained as a report is."""
    named = {
        "chapter": Chapter(record, names=names),
        "names": names,
        "words": words_of("head"),
        "place": lambda _row: "",
        "for_print": for_print,
    }
    style = _file("report.css") + (_file("print.css") if for_print else "")
    return _page("repair.html.j2", style, "", **named)


def _page(template: str, style: str, script: str, **named: object) -> str:
    """Print a template with its style sheet, its script and the policy that admits nothing else.

    Style sheet and script are ours, ship with the package and hold no foreign text.
    """
    runs = f" script-src 'sha256-{_digest(script)}';" if script else ""
    talks = " connect-src 'self';" if named.get("served") else ""
    policy = (
        f"default-src 'none'; style-src 'sha256-{_digest(style)}';{runs}{talks} img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    return (
        environment()
        .get_template(template)
        .render(
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            policy=policy,
            **named,
        )
    )
