"""The figures of a run derived again from what it stored, and compared with its record."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
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
from audit.pipeline.print_again import SHOWN, Fault
from audit.pipeline.run_controls import CONTROL_EFFECTS, CONTROL_NUMBERS, check_round_trips
from audit.pipeline.run_sweeps import Swept, head_settings, make_plans, search_precision
from audit.pipeline.train_models import weights_name
from audit.progress import Progress
from audit.records import Audit, Control, Effort, WhyNotRead
from audit.report import answers
from audit.report.shareable import mark_of
from audit.store import file_hash

NEAR = 1e-6  # relative; resampled intervals add up in single precision, in an order that depends on threads
NEAR_ZERO = 1e-7  # absolute, for the same reason
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of norms: no parameters
HASHED = ("card", "data", "preregistration", "base weights")  # and each model's weights
AT_MOST = 20  # differences of the record that are named one by one
JUDGED = (
    "rates", "contrasts", "ranges", "adjusted", "sensitivity", "accuracy", "findings", "heads", "joint", "pairs",
    "grids", "stability", "agreement", "ledgers", "ledger", "trained", "trained_parts", "carried", "smallest",
    "answers", "read_writers", "read", "read_maps",
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """How many numbers of a record were compared with what the effects give, and where they differ."""

    compared: int
    faults: Sequence[Fault]


def check_figures(run: Path, audit: Audit, tick: Progress) -> Figures:
    """Derive all figures of a record again, and compare."""
    try:
        derived = derive(run, audit)
        tick(1, 2)
        beside = [*preregistration_faults(run, audit), *_left_out(run, audit)]
    except Exception as error:  # whatever a damaged file makes its reader raise
        return Figures(0, [Fault("effects", f"figures cannot be derived from them ({error})")])
    whole = audit.model_dump(mode="json")
    differences = list(compare({name: whole.get(name) for name in derived}, derived))
    faults = [Fault(f"audit.json, {place}", f"is {a}, effects give {b}") for place, a, b in differences[:AT_MOST]]
    if len(differences) > AT_MOST:
        what = f"{len(differences) - AT_MOST} more figures are not those of the effects"
        faults.append(Fault("audit.json", what))
    return Figures(count_numbers(derived), [*faults, *beside])


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
    mark = mark_of(scope.run)
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
        "display": scope.card.model.display,
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
    if held is None or held.asked() != card.asked():  # a repair has a preregistration of its own
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
