"""A run checked from the outside: hashes, every figure derived again from stored effects, every page printed again."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pikepdf
import torch
from pydantic import BaseModel, ValidationError
from safetensors.torch import load_file

from audit.batching import arrow_in_one_heap, freed_memory_returned
from audit.card.load import load_card
from audit.card.schema import Card
from audit.controls.colour_blur import ChannelResult, Measured, judge_channel
from audit.controls.spec import CALLED
from audit.controls.verdict import judge_again
from audit.data.sealed import count_openings
from audit.data.summary import describe_data
from audit.errors import InputError
from audit.evidence.detection import with_detection
from audit.evidence.outcome import decide
from audit.evidence.smallest import StoredSets, judge_smallest
from audit.evidence.stored_rows import Rows, StoredRows
from audit.models.checkpoint import hash_state
from audit.models.device import FLOAT32
from audit.models.readout import READING
from audit.pipeline.analyze import (
    EMPTY,
    Judged,
    Rates,
    judge_answers,
    judge_effects,
    judge_rates,
    judge_sets,
)
from audit.pipeline.attention_maps import TABLE, maps_of
from audit.pipeline.build_record import PRECISION, REGISTRATION, accuracies, method_of, model_file_name, training_run
from audit.pipeline.context import Scope
from audit.pipeline.judge_ledgers import (
    asked_to_read,
    judge_carriers,
    judge_reading,
    judge_training,
    judge_writers,
    questions_of_heads,
    with_answers,
)
from audit.pipeline.load_run import OpenedRun, open_run
from audit.pipeline.run_controls import CONTROL_EFFECTS, CONTROL_NUMBERS, check_round_trips
from audit.pipeline.run_sweeps import Swept, head_settings, make_plans, search_precision
from audit.pipeline.train_models import weights_name
from audit.progress import Step
from audit.records import Audit, Control, Effort, SharedCopy, WhyNotRead
from audit.report import answers
from audit.report.exports import PRINTED_WITH, printed_with, statement
from audit.report.formats import clean
from audit.report.manifest import MANIFEST, SIGNATURE, check_signature, hash_files, manifest_rows
from audit.report.render import Source, printed, read_run
from audit.report.shareable import MARK, read_mark
from audit.store import file_hash

NEAR = 1e-6  # relative; resampled intervals add up in single precision, in an order that depends on threads
NEAR_ZERO = 1e-7  # absolute, for the same reason
SHOWN = 40  # characters of a difference, to either side
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of norms: no parameters
HASHED = ("card", "data", "preregistration", "base weights")  # and each model's weights
AT_MOST = 20  # differences of the record that are named one by one
JUDGED = (
    "rates", "contrasts", "ranges", "adjusted", "sensitivity", "accuracy", "findings", "heads", "joint", "pairs",
    "grids", "stability", "agreement", "ledgers", "ledger", "trained", "trained_parts", "carried", "smallest",
    "answers", "read_writers", "read", "read_maps",
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was written: where, and what."""

    place: str
    what: str

    def __str__(self) -> str:
        return clean(" ".join(f"{self.place}: {self.what}".split()))


@dataclass(frozen=True)
class Verified:
    """What was checked, and what is wrong; ``figures`` counts all numbers that were compared."""

    faults: Sequence[Fault]
    files: int
    figures: int
    signed: bool
    shared: SharedCopy | None = None  # what it lacks on purpose, where it is a copy that was made to be handed on

    @property
    def holds(self) -> bool:
        """Tell whether everything is as it was written."""
        return not self.faults


@arrow_in_one_heap()
@freed_memory_returned()
def verify_run(run: Path, step: Step, *, key: Path | None = None) -> Verified:
    """Check a run directory, as :func:`vit_audit.verify` describes it.

    Faults of files come first, then those of figures, then those of pages.
    """
    tick = step("verify: hashes, figures, pages")
    files = hash_files(run)
    try:
        source = read_run(run)
    except InputError as error:  # what its hash says of it comes first
        unreadable = [*_changed_files(run, None, files), *_signature(run, key), Fault(error.where, error.what)]
        return Verified(unreadable, len(files), 0, (run / SIGNATURE).is_file())
    faults = [*_changed_files(run, source.audit, files), *_signature(run, key), *_marked(run)]
    tick(1, 3)
    figures = 0
    try:
        derived = derive(run, source.audit)
        beside = [*preregistration_faults(run, source.audit), *_left_out(run, source.audit)]
    except Exception as error:  # whatever a damaged file makes its reader raise
        faults.append(Fault("effects", f"figures cannot be derived from them ({error})"))
    else:
        stored = {name: source.audit.model_dump(mode="json").get(name) for name in derived}
        differences = list(compare(stored, derived))
        faults += [Fault(f"audit.json, {place}", f"is {a}, effects give {b}") for place, a, b in differences[:AT_MOST]]
        if len(differences) > AT_MOST:
            faults.append(
                Fault("audit.json", f"{len(differences) - AT_MOST} more figures are not those of the effects")
            )
        faults += beside
        figures = count_numbers(derived)
    tick(2, 3)
    try:
        faults += _pages(run, source)
    except Exception as error:  # a library that prints is missing, say
        faults.append(Fault("report", f"cannot be printed again ({error})"))
    tick(3, 3)
    return Verified(faults, len(files), figures, (run / SIGNATURE).is_file(), _mark(run))


def _mark(run: Path) -> SharedCopy | None:
    """Return what a shareable copy lacks; None where the run is none, or does not say so legibly."""
    try:
        return read_mark(run)
    except InputError:
        return None


def _marked(run: Path) -> Iterator[Fault]:
    """Name what a shareable copy says it lacks and holds all the same."""
    try:
        mark = read_mark(run)
    except InputError as error:
        yield Fault(MARK, error.what)
        return
    for name in sorted(mark.left_out) if mark is not None else ():
        if (run / name).exists():
            yield Fault(name, f"is here, and {MARK} says that it was left out")


def _changed_files(run: Path, audit: Audit | None, files: Mapping[str, str]) -> Iterator[Fault]:
    """Compare every file with the manifest, and the manifest with what it would be for a record."""
    path = run / MANIFEST
    if not path.is_file():
        yield Fault(MANIFEST, "missing")
        return
    content = path.read_bytes()
    try:
        rows = manifest_rows(content)
    except ValueError:
        yield Fault(MANIFEST, "is no manifest")
        return
    for link in sorted(p for p in run.rglob("*") if p.is_symlink()):
        yield Fault(link.relative_to(run).as_posix(), "is a link, and what it leads to is not of this run")
    for name in sorted(rows.keys() | files.keys()):
        if name not in files:
            yield Fault(name, f"missing, but in {MANIFEST}")
        elif name not in rows:
            yield Fault(name, f"not in {MANIFEST}")
        elif files[name] != rows[name]:
            yield Fault(name, f"changed: its SHA-256 is not that of {MANIFEST}")
    if audit is not None and content.decode("utf-8", "replace") != statement(audit, rows):
        yield Fault(MANIFEST, "changed: the tool would not have written it so")


def _signature(run: Path, key: Path | None) -> Iterator[Fault]:
    if key is not None or (run / SIGNATURE).is_file():
        wrong = check_signature(run, key)
        if wrong is not None:
            yield Fault(SIGNATURE, wrong)


@arrow_in_one_heap()
@freed_memory_returned()
def derive(run: Path, audit: Audit) -> dict[str, Any]:
    """Derive from the effects of a run all that its record says of groups and heads, as plain data.

    Every control is judged again: colour, blur and the round trips of edited pictures from what was measured image by
    image; the identities and the same-initialisation gates from the numbers that the models gave.
    """
    opened = open_run(run)
    scope, card = opened.scope, opened.scope.card
    trips = _round_trips(run)
    results = _channels(run)
    unpatched = opened.unpatched
    measured = None if unpatched is None else judge_rates(scope, unpatched, opened.table("texts"))
    again = trips | {c.id: c for result in results for c in result.controls}
    if measured is not None and any(c.id == measured.labels.id for c in audit.controls.controls):
        again[measured.labels.id] = measured.labels
    path = run / CONTROL_NUMBERS
    numbers = pd.read_parquet(path) if path.is_file() else pd.DataFrame(columns=["control"])
    controls = [again[c.id] if c.id in again else judge_again(c, numbers) for c in audit.controls.controls]
    controls += [c for c in again.values() if all(c.id != recorded.id for recorded in audit.controls.controls)]
    shown = {grid.id: grid for grid in audit.controls.grids} | {g.id: g for result in results for g in result.grids}
    valid = all(c.passed for c in controls if c.gates == "audit")
    update = {"controls": controls, "valid": valid, "grids": list(shown.values())}
    report = audit.controls.model_copy(update=update)
    derived: dict[str, Any] = {"controls": _plain(report), "data": _data(scope, audit)}
    # Nothing may be said where a control failed, and there is nothing to say where nothing was measured or differs.
    judged = _judged(opened, trips, measured) if valid and measured is not None and measured.comparable else EMPTY
    derived |= {name: [_plain(row) for row in getattr(judged, name)] for name in JUDGED}
    derived["prompt_sensitivity"] = None if judged.prompt_sensitivity is None else _plain(judged.prompt_sensitivity)
    shown_accuracy = measured is not None and measured.labels.id in {c.id for c in controls}
    derived["accuracy"] = [_plain(row) for row in measured.accuracy] if measured and shown_accuracy else []
    derived["localisation"] = {key: _plain(where) for key, where in judged.localisation.items()}
    looks = opened.table(TABLE) if valid else None
    derived["attention"] = [] if looks is None else [_plain(seen) for seen in maps_of(looks)]
    derived["method"] = _method(opened)
    derived["model"] = _model(scope, audit)
    verdict = decide(report, judged.contrasts, gap_above=card.policy.gap_above)
    return derived | {
        "name": card.name,
        "task": card.task,
        "intended_use": card.intended_use,
        "out_of_scope": card.out_of_scope,
        "owner": card.report.owner,
        "decide_by": card.report.decide_by,
        "legal": [_plain(answer) for answer in answers(card.legal, card.task)],
        "synthetic": card.data.reader == "synthetic",
        "outcome": verdict.outcome,
        "exit_code": verdict.exit_code,
        "reasons": [_plain(reason) for reason in verdict.reasons],
        "next_steps": verdict.next_steps,
        "provenance": _provenance(scope, run, audit),
    }


def _plain(record: BaseModel) -> dict[str, Any]:
    return record.model_dump(mode="json")


def _channels(run: Path) -> list[ChannelResult]:
    """Judge colour and blur again from what was measured of them."""
    files = {role: run / CONTROL_EFFECTS.format(role) for role in CALLED}
    return [judge_channel(Measured.load(path, role)) for role, path in files.items() if path.is_file()]


def _round_trips(run: Path) -> dict[str, Control]:
    path = run / "effects" / "pairs.parquet"
    if not path.is_file():
        return {}
    trips = check_round_trips(pd.read_parquet(path))
    return {c.id: c.model_copy(update={"gates": "Design B"}) for c in trips}


def _judged(opened: OpenedRun, trips: Mapping[str, Control], rates: Rates) -> Judged:
    """Judge the stored effects as the run did."""
    scope, audit, effects = opened.scope, opened.audit, opened.effects
    named = replace(scope, run=Path(audit.audit_id))  # whatever the folder is called now
    if not audit.model.has_inside:
        return judge_answers(named, rates, {"data": audit.data.fingerprint, **_hashes(scope, audit)})
    plans, without = make_plans(scope)
    swept = Swept(effects, plans, without, None, audit.method.patches, audit.method.effort)
    pairs = None if any(not c.passed for c in trips.values()) else opened.table("pairs")
    hashes = {"data": audit.data.fingerprint, **_hashes(scope, audit)}
    judged = judge_effects(named, rates, swept, pairs, hashes)
    together = opened.stored("together")
    judged = judge_sets(
        scope, swept, pd.DataFrame(columns=["contrast", "set"]) if together is None else together, judged
    )
    written = opened.stored("written") or next((t.why_not for t in audit.ledgers if t.why_not is not None), None)
    judged = judged if written is None else judge_writers(scope, rates, written, judged)
    judged = judged if not isinstance(written, StoredRows) else _with_reading(opened, rates, written, judged)
    hybrids = opened.stored("trained", "trained_heads")
    balanced_on = next(iter(scope.samples.attributes))
    judged = judged if hybrids is None else judge_training(scope, rates, hybrids, balanced_on, judged)
    parts, sets = opened.stored("parts"), opened.stored("smallest")
    if parts is None and sets is None and not audit.answers:  # of a version that did not ask
        return judged
    judged = judge_carriers(scope, swept, parts, judged)
    look = StoredSets(pd.DataFrame(columns=["contrast", "split", "set"]) if sets is None else sets)
    asked = questions_of_heads(scope, swept, judged)
    smallest = judge_smallest(effects, asked, scope.seeds[0], head_settings(scope), look)
    return with_answers(scope, swept, replace(judged, smallest=smallest))


def _with_reading(opened: OpenedRun, rates: Rates, written: Rows, judged: Judged) -> Judged:
    """Judge what the largest writers read as the run did; why that is not known is taken from the record."""
    if not asked_to_read(opened.scope, rates, judged):
        return judged
    read = opened.stored("read") or WhyNotRead.NOT_PLAIN
    return judge_reading(opened.scope, rates, written, read, opened.table("read_maps"), judged)


def _weights(scope: Scope) -> dict[int, dict[str, torch.Tensor]]:
    """Read the audited models' weights, by seed."""
    folder = scope.run / "models"
    own = folder / "audited.safetensors"
    files = {0: own} if own.is_file() else {}
    if scope.training is not None:
        files = {int(path.stem.removeprefix("seed-")): path for path in sorted(folder.glob("seed-*.safetensors"))}
    return {seed: load_file(path) for seed, path in files.items()}


def _hashes(scope: Scope, audit: Audit) -> dict[str, str]:
    """Return the hashes of the audited models' weights, from their files; as recorded where these were left out."""
    if not audit.model.has_inside:
        return {"model": str(_registered(scope.run).get("base weights"))}
    found = {weights_name(seed): hash_state(state) for seed, state in _weights(scope).items()}
    mark = _mark(scope.run)
    if found or mark is None or not any(name.startswith("models/") for name in mark.left_out):
        return found
    return {name: digest for name, digest in audit.provenance.hashes.items() if name not in HASHED}


def _data(scope: Scope, audit: Audit) -> dict[str, Any]:
    """Count the images again; what was left out on reading, and what was warned of, is taken from the record."""
    counted = with_detection(describe_data(scope.samples, scope.card), scope.samples, scope.card)
    # later openings, each for a certificate, change nothing of what was audited before
    opened = min(audit.data.sealed_opened, count_openings(scope.run))
    kept = {"warnings": audit.data.warnings, "sealed_opened": opened}
    return _plain(counted.model_copy(update=kept))


def _method(opened: OpenedRun) -> dict[str, Any]:
    scope, method, swap = opened.scope, opened.audit.method, opened.of_seeds("swap")
    files = [p for seed in scope.seeds if (p := scope.run / "effects" / f"effort-seed-{seed}.json").is_file()]
    effort = [Effort.model_validate(row) for p in files for row in json.loads(p.read_text(encoding="utf-8"))]
    dtype = method.precision.dtype if method.precision else ""
    precision = None if swap is None else search_precision(swap, list(scope.outcomes), dtype)
    update = {
        "effort": effort,
        "precision": precision,
        "preregistration_sha256": file_hash(scope.run / REGISTRATION),
        "layers": _registered(scope.run).get("layers"),
        **method_of(scope.card),
    }
    return _plain(method.model_copy(update=update))


def _model(scope: Scope, audit: Audit) -> dict[str, Any]:
    """Derive what the run's files say of its model; layers and heads, which they do not, are taken from the record."""
    plain, balanced = accuracies(scope)
    hashes = _hashes(scope, audit)
    sizes = [
        sum(tensor.numel() for name, tensor in state.items() if not name.endswith(STATISTICS))
        for state in _weights(scope).values()
    ]
    update = {
        "parameters": next(iter(sizes), audit.model.parameters),
        "name": scope.card.model.name,
        "weights": model_file_name(scope.card),
        "training": training_run(scope, _registered(scope.run).get(PRECISION, FLOAT32)),
        "seeds": [] if scope.training is None else scope.training.seeds,
        "classes": list(scope.samples.labels),
        **{name: v for name in READING if (v := getattr(scope.card.model, name)) is not None},
        "accuracy_by_seed": plain,
        "balanced_accuracy_by_seed": balanced,
        "weights_sha256": next(iter(hashes.values()), _registered(scope.run).get("base weights")),
    }
    return _plain(audit.model.model_copy(update=update))


def _registered(run: Path) -> dict[str, Any]:
    """Read what was fixed before anything was measured; nothing where the file is damaged, which its hash tells."""
    try:
        held = json.loads((run / REGISTRATION).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def preregistration_faults(run: Path, audit: Audit) -> Iterator[Fault]:
    """Compare what was fixed beforehand with the card and the data that the record is of."""
    fixed = _registered(run)
    card = load_card(run / "card.yaml")
    try:  # fields that came later than the run have their defaults
        held: Card | None = Card.model_validate(fixed.get("card"))
    except ValidationError:
        held = None
    if held is not None and card.model.classes is None:  # a Hugging Face folder may have named them
        model = card.model.model_copy(update={"classes": held.model.classes})
        card = card.model_copy(update={"model": model})
    if held != card.model_copy(update={"repair": None}):  # which has a preregistration of its own
        yield Fault("card.yaml", "is not the card that preregistration.json holds")
    if fixed.get("data") != audit.data.fingerprint:
        yield Fault("audit.json, data.fingerprint", "is not that of preregistration.json")


def _left_out(run: Path, audit: Audit) -> Iterator[Fault]:
    """Name the controls of which there are numbers, and no word in the record; and those that occur there twice."""
    every = [c.id for c in audit.controls.controls]
    for name in sorted({name for name in every if every.count(name) > 1}):
        yield Fault("audit.json, controls", f"has '{name}' twice")
    path = run / CONTROL_NUMBERS
    measured = pd.read_parquet(path, columns=["control"])["control"] if path.is_file() else ()
    for name in sorted(set(measured) - {c.id for c in audit.controls.controls}):
        yield Fault("audit.json, controls", f"lacks '{name}', of which {CONTROL_NUMBERS} holds numbers")


def _provenance(scope: Scope, run: Path, audit: Audit) -> dict[str, Any]:
    hashes = {
        **{name: digest for name, digest in audit.provenance.hashes.items() if name in HASHED},
        "card": file_hash(run / "card.yaml"),
        "data": audit.data.fingerprint,
        "preregistration": file_hash(run / REGISTRATION),
        "base weights": _registered(run).get("base weights"),
        **_hashes(scope, audit),
    }
    seeds = [] if scope.training is None else scope.training.seeds
    return _plain(audit.provenance.model_copy(update={"hashes": hashes, "seeds": seeds}))


def compare(stored: Any, derived: Any, place: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield where two trees of plain data differ, and what either holds there; numbers may differ by rounding."""
    if isinstance(stored, dict) and isinstance(derived, dict):
        for name in [*stored, *(n for n in derived if n not in stored)]:
            yield from compare(stored.get(name), derived.get(name), f"{place}.{name}" if place else str(name))
    elif isinstance(stored, list) and isinstance(derived, list):
        if len(stored) != len(derived):
            yield place, f"{len(stored)} rows", f"{len(derived)} rows"
        for number, (a, b) in enumerate(zip(stored, derived, strict=False)):
            yield from compare(a, b, f"{place}[{number}]")
    elif not _same(stored, derived):
        yield place, _short(stored), _short(derived)


def _same(a: Any, b: Any) -> bool:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (a, b))
    return math.isclose(a, b, rel_tol=NEAR, abs_tol=NEAR_ZERO) if numbers else bool(a == b)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 2 * SHOWN else f"{text[: 2 * SHOWN]}…"


def count_numbers(tree: Any) -> int:
    """Count the numbers in a tree of plain data."""
    if isinstance(tree, dict):
        return sum(map(count_numbers, tree.values()))
    if isinstance(tree, list):
        return sum(map(count_numbers, tree))
    return int(isinstance(tree, int | float) and not isinstance(tree, bool))


def _pages(run: Path, source: Source) -> Iterator[Fault]:
    """Print everything again, and say where a file is not what comes out; one that is missing its hash has named.

    A run without a PDF has none printed. Where pages were printed with other versions than are here, this is said once,
    instead of where they differ.
    """
    other = _other_versions(run / "exports" / PRINTED_WITH)
    if other:
        yield Fault("report", f"cannot be compared: printed with {other}; install these versions, or render it again")
        return
    for name, again in printed(source, pdf=(run / "report.pdf").is_file()).items():
        path = run / name
        if not path.is_file():
            continue
        if path.read_bytes() != again:
            differ = _first_page if name.endswith(".pdf") else _first_line
            yield Fault(name, differ(path.read_bytes(), again))


def _other_versions(path: Path) -> str:
    """Say with which versions pages were printed, and what is here instead; "" where these are the same."""
    try:
        then = json.loads(path.read_text(encoding="utf-8"))
        now = json.loads(printed_with())
        return ", ".join(f"{name} {then[name]} (here: {now[name]})" for name in now if then[name] != now[name])
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # the comparison of this file, or its hash, says what is wrong with it


def _first_line(found: bytes, again: bytes) -> str:
    """Say where two texts begin to differ, and how."""
    lines = [text.decode("utf-8", "replace").splitlines() for text in (found, again)]
    number = _first_difference(*lines)
    ours, theirs = (text[number] if number < len(text) else "nothing" for text in lines)
    at = _first_difference(ours, theirs)
    a, b = (text[max(0, at - SHOWN) : at + SHOWN].strip() for text in (ours, theirs))
    return f"line {number + 1} says …{a}…, audit.json prints …{b}…"


def _first_difference(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Return the first place where two sequences differ, or the length of the one that the other begins with."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


def _first_page(found: bytes, again: bytes) -> str:
    """Say on which page two documents begin to differ."""
    try:
        with pikepdf.open(io.BytesIO(found)) as ours, pikepdf.open(io.BytesIO(again)) as theirs:
            for number, (a, b) in enumerate(zip(ours.pages, theirs.pages, strict=False), start=1):
                if _content(a) != _content(b):
                    return f"page {number} is not what audit.json prints"
    except pikepdf.PdfError as error:
        return f"is no whole PDF ({error})"
    return "is not what audit.json prints (another version of Pango or of the fonts differs so, too)"


def _content(page: pikepdf.Page) -> bytes:
    return bytes(pikepdf.unparse_content_stream(pikepdf.parse_content_stream(page)))
