"""Sections "Method" and "Provenance" as facts and tables."""

from __future__ import annotations

from collections.abc import Sequence

from audit.records import Audit, SearchPrecision
from audit.report import formats, wording
from audit.report.svg import Cell, Column, Fact, Table, header_cell, number_cell
from audit.units import Unit, said_of


def model_size(audit: Audit) -> str:
    """Return layers and heads in words."""
    heads = sorted({audit.model.heads, *audit.model.heads_by_layer})
    several = formats.plural(heads[0], "head") if len(heads) == 1 else f"{heads[0]} to {heads[-1]} heads"
    return said_of(audit.model.unit, f"{formats.plural(audit.model.layers, 'layer')} of {several}")


def model_facts(audit: Audit) -> tuple[Fact, ...]:
    """Return what is known of the audited model."""
    model = audit.model
    return (
        Fact("Architecture", model.name),
        Fact("Origin", model.origin),
        Fact("Training", model.training),
        Fact("SHA-256 of the weights", model.weights_sha256, mono=True),
        Fact(
            "Size",
            f"{formats.count(model.parameters)} parameters; {model_size(audit)}; "
            f"images of {model.image_size} × {model.image_size} pixels",
        ),
        Fact("Classes", ", ".join(formats.label(name) for name in model.classes)),
    )


def model_seeds(audit: Audit) -> Table:
    """Return the accuracy of each training seed."""
    model = audit.model
    scores = zip(model.accuracy_by_seed, model.balanced_accuracy_by_seed, strict=False)
    names = [str(seed) for seed in model.seeds] or ["–"]
    return Table(
        id="model-seeds",
        caption="Accuracy on held-out images, for each training seed",
        columns=(
            Column("Seed"),
            Column("Accuracy", is_number=True),
            Column("Balanced accuracy", is_number=True),
        ),
        rows=tuple(
            (
                header_cell(name, source=f"/model/accuracy_by_seed/{k} /model/balanced_accuracy_by_seed/{k}"),
                number_cell(formats.percent(plain)),
                number_cell(formats.percent(balanced)),
            )
            for k, (name, (plain, balanced)) in enumerate(zip(names, scores, strict=False))
        ),
    )


def method_facts(audit: Audit) -> tuple[Fact, ...]:
    """Return what was fixed before the run."""
    method = audit.method
    return (
        Fact("Preregistration, SHA-256", method.preregistration_sha256, mono=True),
        Fact("Family of tests", method.family),
        Fact("Permutations", formats.count(method.permutations)),
        Fact("Bootstrap samples", formats.count(method.bootstrap)),
        Fact("Seeds", ", ".join(map(str, audit.provenance.seeds)) or "none"),
        Fact("Patching engine", method.engine),
        *((Fact("Patches", method.patches),) if method.patches else ()),
        *((Fact("Precision", _precision(audit.model.unit, method.precision)),) if method.precision else ()),
    )


def _precision(unit: Unit, found: SearchPrecision) -> str:
    """Say how precisely heads were searched for."""
    return said_of(unit, wording.PRECISION).format(
        dtype=found.dtype, apart=f"{found.largest_difference:.1g}", compared=formats.count(found.compared)
    )


def effort(audit: Audit) -> Table | None:
    """Return how many patches were made, part by part; None where all were."""
    rows = audit.method.effort
    if not rows:
        return None
    made, every = sum(row.patches for row in rows), sum(row.of for row in rows)
    return Table(
        id="effort",
        caption=f"Patches made: {formats.count(made)} of {formats.count(every)}",
        columns=(
            Column("Question"),
            Column("Images"),
            Column("Seed", is_number=True),
            Column("Patches", is_number=True),
            Column("Of all", is_number=True),
            Column("Found early", said_of(audit.model.unit, "heads"), True),
            Column("Given up early", said_of(audit.model.unit, "heads"), True),
        ),
        rows=tuple(
            (
                header_cell(formats.label(row.contrast), source=f"/method/effort/{number}"),
                Cell(row.split),
                number_cell(str(row.seed)),
                number_cell(formats.count(row.patches)),
                number_cell(formats.percent(row.patches / row.of, 0)),
                number_cell(str(row.found_early)),
                number_cell(str(row.given_up_early)),
            )
            for number, row in enumerate(rows)
        ),
        note=said_of(audit.model.unit, wording.EFFORT),
    )


def estimands(audit: Audit) -> Table:
    """Return name, formula and meaning of each estimand."""
    return Table(
        id="estimands",
        caption="What is estimated",
        columns=(Column("Name"), Column("Formula"), Column("In words")),
        rows=tuple(
            (header_cell(name, source=f"/method/estimands/{number}"), Cell(formula, tone="formula"), Cell(words))
            for number, (name, formula, words) in enumerate(audit.method.estimands)
        ),
    )


def provenance_facts(audit: Audit, audit_sha256: str) -> tuple[Fact, ...]:
    """Return what is needed to repeat the run."""
    provenance = audit.provenance
    return (
        Fact("Audit id", audit.audit_id),
        Fact("SHA-256 of audit.json", audit_sha256, mono=True),
        Fact("Command", provenance.command, mono=True),
        Fact("Started", provenance.started),
        Fact("Run by", provenance.run_by or "not stated"),
        Fact("Hardware", provenance.hardware),
        Fact("Seeds", ", ".join(map(str, provenance.seeds)) or "none"),
        Fact("Schema of audit.json", f"version {audit.schema_version}"),
    )


def pairs(
    table_id: str,
    caption: str,
    left: str,
    right: str,
    rows: Sequence[tuple[str, str]],
    *,
    is_number: bool = False,
    mono: bool = False,
    source: str = "",
) -> Table:
    """Return a table of names and values; ``source`` is where their mapping or list stands in ``audit.json``."""
    tone = "mono" if mono else ""
    return Table(
        id=table_id,
        caption=caption,
        columns=(Column(left), Column(right, is_number=is_number)),
        rows=tuple(
            (header_cell(name, source=source), Cell(value, tone=tone, is_number=is_number)) for name, value in rows
        ),
    )
