"""The methods of a repair side by side, the candidates among them, and the same edit at random heads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from audit.card.repair_spec import RepairSpec
from audit.errors import DivergedError, InputError, ModelError
from audit.models.checkpoint import hash_state, save_weights
from audit.pipeline.repair_images import figures
from audit.pipeline.repair_setup import Setup
from audit.records.repair_methods import AT_HEADS, Method, WhyNotOffered
from audit.records.repair_run import Figures, RandomRow, RepairRow
from audit.repair.base import Repaired
from audit.repair.random_heads import matched_sets, p_value
from audit.repair.registry import OFFERS, repair, repair_at_random, why_not
from audit.store import write_text
from audit.units import name_of

WEIGHTS, ROWS = "weights", "methods"  # folders of a repair
ROUNDING = 1e-9


def run_methods(setup: Setup) -> list[RepairRow]:
    """Run every method of the plan, in order; what is stored is not done again."""
    return [_row(setup, method) for method in setup.plan.methods]


def stored_state(setup: Setup, row: RepairRow) -> dict[str, torch.Tensor]:
    """Return the weights that a method left.

    Raises
    ------
    InputError
        If they are missing, or are others.
    """
    return _unchanged(setup.options.out / str(row.weights), row.weights_sha256)


def state_of_seed(setup: Setup, method: Method, seed: int) -> dict[str, torch.Tensor]:
    """Return the weights that a method makes of another seed's model; what is stored is not done again.

    Raises
    ------
    InputError
        If what is stored is not what was made.
    """
    name = f"{method}-seed-{seed}"
    path, digest = setup.options.out / WEIGHTS / f"{name}.safetensors", setup.options.out / ROWS / f"{name}.sha256"
    if not digest.is_file():
        state = repair(method, setup.given_of(seed)).state
        assert state is not None  # candidates are methods that leave weights
        save_weights(state, path, started_from=setup.hash_of(seed))
        write_text(digest, hash_state(state) + "\n")
    return _unchanged(path, digest.read_text(encoding="utf-8").strip())


def _unchanged(path: Path, digest: str | None) -> dict[str, torch.Tensor]:
    """Open weights that a repair has saved, and refuse others."""
    if not path.is_file():
        raise InputError(str(path), "missing", "restore it, or name another --out")
    state = load_file(path)
    if hash_state(state) != digest:
        raise InputError(str(path), "has changed since it was written", "restore it, or name another --out")
    return state


def ranked(setup: Setup, made: Repaired | None = None) -> Figures:
    """Return how a repaired model, or the audited one, does on the images that methods are ranked on."""
    seen, groups = setup.to_choose
    if made is None:
        return figures(setup.choose, seen.logits, None, setup.gap)
    return figures(setup.choose, made.answer(seen, groups), seen.logits, setup.gap)


def _row(setup: Setup, method: Method) -> RepairRow:
    path = setup.options.out / ROWS / f"{method}.json"
    if path.is_file():
        return RepairRow.model_validate_json(path.read_text(encoding="utf-8"))
    supervision = OFFERS[method].supervision
    row = RepairRow(
        method=method,
        group_at_training=supervision.group_at_training,
        group_at_prediction=supervision.group_at_prediction,
        not_offered=why_not(method, setup.given),
    )
    if row.not_offered is not None:
        return row  # a package may be installed, or a legal basis be found, before it is asked for again
    tick = setup.step(f"repair: {method}")
    tick(0, 1)
    made = _made(setup, method)
    row = row.model_copy(update={"not_offered": made}) if isinstance(made, WhyNotOffered) else _told(setup, row, made)
    tick(1, 1)
    write_text(path, row.model_dump_json(indent=1) + "\n")
    return row


def _made(setup: Setup, method: Method) -> Repaired | WhyNotOffered:
    """Run a method, or say why it came to nothing: the others go on."""
    try:
        return repair(method, setup.given)
    except DivergedError:
        return WhyNotOffered.DIVERGED
    except ModelError:
        return WhyNotOffered.OTHER_REFERENCE


def _told(setup: Setup, row: RepairRow, made: Repaired) -> RepairRow:
    """Save a repaired model's weights, and say how it does on images that it was not fitted on."""
    file, digest = None, None
    if made.state is not None and made.method is not Method.UNTOUCHED:
        file = f"{WEIGHTS}/{made.method}.safetensors"
        carried = setup.context.preprocessing.carried
        save_weights(
            made.state,
            setup.options.out / file,
            started_from=setup.hash_of(setup.context.seeds[0]),
            preprocessing=None if carried is None else carried.text,
        )
        digest = hash_state(made.state)
    return row.model_copy(
        update={
            "settings": dict(made.settings),
            "seconds": round(made.seconds, 2),
            "heads": [name_of(setup.context.unit, site.layer, site.head) for site in made.heads],
            "weights": file,
            "weights_sha256": digest,
            "ranked": ranked(setup, made),
        }
    )


def candidates(spec: RepairSpec, rows: Sequence[RepairRow], before: Figures) -> list[Method]:
    """Return the methods that are judged on sealed images: those that leave the smallest gap and no cell behind.

    A cell is left behind where even the upper end of its change is a loss beyond the margin; cells of the part that
    methods are ranked on are small: by the change itself, one image more or less would decide.
    """
    had = abs(before.gap.value or 0.0)
    able = [
        (gap, place, row.method)
        for place, row in enumerate(rows)
        if row.weights is not None
        and (gap := _left(row)) is not None
        and gap < had - ROUNDING
        and row.ranked is not None
        and row.ranked.loss_shown <= spec.accuracy_margin + ROUNDING
    ]
    return [method for _, _, method in sorted(able)[: spec.candidates]]


def at_random(setup: Setup, rows: Sequence[RepairRow]) -> list[RandomRow]:
    """Make the first edit at the named heads that is offered at random ones, too.

    The first, not the best: the best of several would be compared with one of each random set.
    """
    edits = [(gap, row.method) for row in rows if row.method in AT_HEADS and (gap := _left(row)) is not None]
    if not edits:
        return []
    left, edit = edits[0]
    path = setup.options.out / ROWS / f"{Method.RANDOM_HEADS}.json"
    if path.is_file():
        return [RandomRow.model_validate_json(path.read_text(encoding="utf-8"))]
    sets = matched_sets(setup.given, setup.spec.random_draws)
    tick, drawn = setup.step("repair: random heads"), setup.options.out / ROWS / f"{Method.RANDOM_HEADS}-gaps.json"
    gaps: list[float] = json.loads(drawn.read_text(encoding="utf-8")) if drawn.is_file() else []
    left_over = replace(sets, sets=sets.sets[len(gaps) :])
    for made in repair_at_random(edit, setup.given, left_over) if left_over.sets else ():
        gaps.append(abs(ranked(setup, made).gap.value or 0.0))
        write_text(drawn, json.dumps(gaps) + "\n")
        tick(len(gaps), len(sets.sets))
    row = RandomRow(
        method=edit,
        draws=len(gaps),
        gap=left,
        smallest=min(gaps, default=None),
        median=float(np.median(gaps)) if gaps else None,
        p=p_value(left, gaps),
        layers_apart=sets.layers_apart,
    )
    write_text(path, row.model_dump_json(indent=1) + "\n")
    return [row]


def _left(row: RepairRow) -> float | None:
    """Return what a method leaves of the gap, absolute; None where it is not known."""
    value = None if row.ranked is None else row.ranked.gap.value
    return None if value is None else abs(value)
