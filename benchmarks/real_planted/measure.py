"""From a plan to a row: a model is made, audited by the tool's own functions, and compared with what is true of it."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from timm.models.vision_transformer import VisionTransformer

from audit.evidence.disparity import label_shares
from audit.evidence.effects_store import Settings
from audit.evidence.trained_rows import layer_to_part
from audit.patching.parts import Kind, Part, parse_part
from audit.patching.sites import sites_of
from audit.pipeline.run_sweeps import Plan as DonorPlan
from audit.records import Estimate
from audit.units import name_of
from benchmarks.planted.measure import covers
from benchmarks.planted.rivals import TOOL
from benchmarks.real_planted import ledgers, models, nulls, rivals, truth
from benchmarks.real_planted.audit_heads import (
    AUDITED,
    Heads,
    answer,
    codes_of,
    is_of_group,
    judge,
    make_plans,
    sweep_plans,
)
from benchmarks.real_planted.photographs import CONTRAST, OUTCOME, QUESTION, World

Row = dict[str, Any]
Z = 1.959964
WRITERS_RESAMPLES = 1000


@dataclass(frozen=True)
class Size:
    """How much is made and measured."""

    passes: int
    side: int  # of the photographs, pixels
    blocks: int  # that are trained
    train: int  # photographs; then of each of the two audited splits, and of the truth
    audit: int
    truth: int
    steps: models.Steps
    recipients: int  # of a split
    permutations: int
    bootstrap: int
    trained: int  # photographs on which weights are exchanged, of the audit and of the truth
    carried: int  # recipients for whom parts are patched
    at_points: int  # recipients of EAP-IG
    strata: int  # photographs of a split whose patches are kept for audits with permuted groups
    at_once: int  # photographs of a stratum
    null_audits: int  # of a model
    null_draws: int  # of the ledgers of a model

    @property
    def splits(self) -> dict[str, int]:
        """Return how many photographs each split has."""
        return {"train": self.train, **dict.fromkeys(AUDITED, self.audit), "truth": self.truth}


@dataclass(frozen=True)
class Bench:
    """What all models of a run share."""

    world: World
    base: VisionTransformer
    reference: VisionTransformer
    size: Size
    seed: int

    @property
    def frame(self) -> pd.DataFrame:
        """The audited photographs."""
        return self.world.frame.loc[self.world.rows(*AUDITED)]

    def settings(self, seed: int) -> Settings:
        """Return sizes and strictness of the localisation; sizes as a card's own."""
        return Settings(0.05, self.size.permutations, self.size.bootstrap, seed, 30)


def prepare(world: World, size: Size, seed: int, folder: Path) -> Bench:
    """Make what all models are made from, and the reference; or take up the weights that a folder has of them."""
    made = []
    for number, name in enumerate(("base", "reference"), start=1):
        path = folder / f"{name}.pt"
        if path.is_file():
            model = copy.deepcopy(world.base)
            model.load_state_dict(torch.load(path, weights_only=True))
        else:
            model = models.make_base(world, size.steps, seed * 1000 + number)
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), path)
        made.append(model)
    return Bench(world, made[0], made[1], size, seed)


def describe(bench: Bench) -> Row:
    """Say what the base and the reference are worth: accuracy and gap on the photographs of the truth."""
    rows = bench.world.rows("truth")
    frame = bench.world.frame.loc[rows]
    shares = label_shares(frame, QUESTION)
    about = {}
    for name, model in (("base", bench.base), ("reference", bench.reference)):
        found = answer(model, bench.world, ("truth",))
        called = (found["predicted"] == OUTCOME).to_numpy().astype(np.float64)
        right = (found["predicted"].to_numpy() == frame["label"].to_numpy()).mean()
        gap = truth.standardised_gap(called, is_of_group(frame), codes_of(frame) == 1, shares)
        about[name] = {"accuracy": float(right), "gap": gap.value, "gap_error": gap.error}
    return about


def measure(bench: Bench, plan: models.Plan) -> Row:
    """Make one model and measure the tool on it."""
    begun = time.process_time()
    model = models.make_model(bench.base, bench.world, plan, bench.size.steps)
    row = {"name": plan.name, "kind": plan.kind, "dose": plan.dose, "planted": list(plan.parts)}
    row |= _by_chance(bench, model, plan) if plan.kind == "permuted groups" else _planted(bench, model, plan)
    return {**row, "seconds": round(time.process_time() - begun, 1)}


def _by_chance(bench: Bench, model: VisionTransformer, plan: models.Plan) -> Row:
    """Audit one model many times with permuted groups."""
    size = bench.size
    bank = nulls.fill_bank(model, bench.world, images=size.strata, at_once=size.at_once, seed=plan.seed)
    seeds = [plan.seed * 1000 + k for k in range(size.null_audits)]
    found = nulls.audits(bank, bench.frame, answer(model, bench.world), bench.settings(plan.seed), seeds)
    return {
        "audits": [
            {
                "enough": h.enough,
                "detected": h.detected,
                "named": h.named,
                "confirmed": h.confirmed,
                "discovered": h.discovered,
            }
            for h in found
        ]
    }


def _planted(bench: Bench, model: VisionTransformer, plan: models.Plan) -> Row:
    """Audit a model in which something is planted."""
    world, seed = bench.world, plan.seed
    answers, donors = answer(model, world), make_plans(bench.frame, recipients=bench.size.recipients, seed=seed)
    found = judge(bench.frame, answers, sweep_plans(model, world, donors), bench.settings(seed))
    asked = _asked(model, plan, found)
    known = truth.measure(
        model, world, [*asked, *_layer_parts(plan)], found.stored.label_shares(CONTRAST, OUTCOME)["label_shares"],
        seed=seed,
    )  # fmt: skip
    estimates = {r.name: r.confirmation for r in found.rows}
    heads = [str(part) for part in asked]
    row: Row = {
        "detected": found.detected,
        "metric": str(found.gap.metric),
        "gap": _numbers(found.gap.estimate),
        "true_gap": asdict(known.rate),
        "gap_covered": _covers(found.gap.estimate, known.rate),
        "named": found.named,
        "confirmed": found.confirmed,
        "discovered": found.discovered,
        "true_mediated": {name: asdict(k) for name, k in known.mediated.items()},
        "estimated": {name: _numbers(estimates[name]) for name in heads},
        "covered": [_covers(estimates[name], known.mediated[name]) for name in heads[: len(_at_random(model, plan))]],
    }
    row |= _ledgers(bench, model, plan, found, donors["confirmation"], known)
    row["scores"] = _scores(bench, model, plan, found, donors["confirmation"]) if found.detected else {}
    return row


def _at_random(model: VisionTransformer, plan: models.Plan) -> list[Part]:
    """Return the heads whose intervals are compared with the truth: the planted ones, and one or two at random."""
    planted = [part for part in map(parse_part, plan.parts) if part.kind is Kind.HEAD]
    others = [
        Part(Kind.HEAD, s.layer, s.head) for s in sites_of(model) if Part(Kind.HEAD, s.layer, s.head) not in planted
    ]
    drawn = np.random.default_rng(plan.seed).permutation(len(others))[: 1 if planted else 2]
    return [*planted, *(others[k] for k in drawn)]


def _asked(model: VisionTransformer, plan: models.Plan, found: Heads) -> list[Part]:
    """Return the heads whose truth is measured: besides, of a planted MLP, the largest of those that are named."""
    asked = _at_random(model, plan)
    if plan.kind == "one MLP":
        size = {r.name: abs(r.confirmation.value or 0.0) for r in found.rows}
        asked += [parse_part(name) for name in sorted(found.named, key=lambda n: -size[n])[:2]]
    return list(dict.fromkeys(asked))


def _layer_parts(plan: models.Plan) -> list[Part]:
    """Return the attention, or the MLP, that the planted parts are of."""
    parts = [parse_part(name) for name in plan.parts]
    return list(dict.fromkeys(Part(Kind.MLP if p.kind is Kind.MLP else Kind.ATTENTION, p.layer) for p in parts))


def _ledgers(
    bench: Bench,
    model: VisionTransformer,
    plan: models.Plan,
    found: Heads,
    donors: DonorPlan,
    known: truth.Truth,
) -> Row:
    """Judge the three ledgers, and compare their rows with the truth."""
    world, frame, seed, gap = bench.world, bench.frame, plan.seed, found.gap
    few = {"resamples": WRITERS_RESAMPLES, "seed": seed}
    given = ledgers.contributions(model, world, world.rows(*AUDITED))
    writers = ledgers.judge_writers(given, frame, gap, **few)
    others = world.rows("truth")
    true_frame = world.frame.loc[others]
    true_writers = ledgers.judge_writers(ledgers.contributions(model, world, others), true_frame, gap, **few)
    parts = {ledgers.writer(row): row.gap for row in writers.rows}
    true_parts = {ledgers.writer(row): _known(row.gap) for row in true_writers.rows}

    rows = ledgers.draw_rows(world, world.rows(*AUDITED), bench.size.trained, bench.seed)
    paths = ledgers.exchanged(bench.reference, model, world, rows, seed=seed)
    sets = ledgers.exchanged(bench.reference, model, world, rows, seed=seed, in_sets=True)
    totals, weights = ledgers.judge_weights(pd.concat([paths, sets]), frame, gap.metric, **few)
    layer = layer_to_part(weights)
    if layer is not None:
        parted = ledgers.exchanged(bench.reference, model, world, rows, seed=seed, layer=layer)
        weights += ledgers.judge_weights(parted, frame, gap.metric, **few)[1]
    true_rows = ledgers.draw_rows(world, others, bench.size.trained, bench.seed)
    true_paths = ledgers.exchanged(bench.reference, model, world, true_rows, seed=seed)
    _, true_weights = ledgers.judge_weights(true_paths, true_frame, gap.metric, **few)
    carried = ledgers.sweep_carried(model, world, donors, recipients=bench.size.carried, seed=seed)
    carriers = ledgers.judge_carriers(found.stored, carried, bench.settings(seed))
    chance = nulls.ledgers_by_chance(
        frame, gap, given, paths, found.stored, carried, bench.settings(seed),
        [seed * 1000 + k for k in range(bench.size.null_draws)],
    )  # fmt: skip
    return {
        "closure": {
            "written, nats": writers.closure,
            "written, image by image": writers.closure_of_images,
            "trained, in rates": max((t.closure or 0.0 for t in totals), default=0.0),
        },
        "written": {
            "rows": {name: _numbers(e) for name, e in parts.items()},
            "covered": [_covers(parts[name], true_parts[name]) for name in map(ledgers.writer, writers.own)],
        },
        "trained": {
            "paths": ledgers.over_paths(weights),
            "orders": ledgers.over_orders(weights),
            "heads": ledgers.heads_exchanged(weights),
            "parted": layer,
            **_weights_covered(weights, true_weights),
        },
        "carried": {
            "rows": {ledgers.carrier(r): _numbers(r.denoised) for r in carriers},
            "beyond_noise": [ledgers.carrier(r) for r in carriers if r.beyond_noise],
            "covered": [
                _covers(r.denoised, known.mediated[ledgers.carrier(r)])
                for r in carriers
                if ledgers.carrier(r) in known.mediated
            ],
        },
        "by_chance": asdict(chance),
    }


def _weights_covered(rows: Sequence[Any], true_rows: Sequence[Any]) -> Row:
    """Compare the rows of both paths with those on other photographs, in rates and in log-odds."""
    known = {(r.order, r.player): r for r in true_rows if r.player and not r.same_weights}
    both = [(r, known[(r.order, r.player)]) for r in rows if not r.same_weights and (r.order, r.player) in known]
    return {
        "covered": [_covers(r.rate, _known(t.rate)) for r, t in both],
        "covered_log_odds": [_covers(r.log_odds, _known(t.log_odds)) for r, t in both],
    }


def _scores(
    bench: Bench, model: VisionTransformer, plan: models.Plan, found: Heads, donors: DonorPlan
) -> dict[str, dict[str, float]]:
    """Rank the heads by this tool and by its rivals."""
    ranked = rivals.rank(model, bench.world, donors, at_points=bench.size.at_points, seed=plan.seed)
    scores = {method: {name_of("head", *h): float(s) for h, s in r.scores.items()} for method, r in ranked.items()}
    return {**scores, TOOL: {r.name: abs(r.confirmation.value or 0.0) for r in found.rows}}


def _numbers(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _known(estimate: Estimate) -> truth.Known:
    """Return what a large sample says, with its standard error."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return truth.Known(float("nan"), float("nan"))
    return truth.Known(estimate.value, (estimate.high - estimate.low) / (2 * Z))


def _covers(estimate: Estimate, known: truth.Known) -> bool | None:
    """Tell whether an interval holds the truth, widened by the truth's own error; None where there is no interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None or np.isnan(known.value):
        return None
    return covers({"value": estimate.value, "low": estimate.low, "high": estimate.high}, known.value, known.error)
