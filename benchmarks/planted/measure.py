"""From a plan to a row: a model is made, audited from card to ``audit.json``, and compared with what is true of it."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from click.testing import CliRunner
from scipy import stats
from timm.models.vision_transformer import VisionTransformer

from audit.card.load import load_card
from audit.cli import main as vit_audit
from audit.data.assemble import read_samples
from audit.data.pixels import centred_square, load_pixels
from audit.models.build import Backbone
from audit.store import cache_folder, write_text
from benchmarks.planted import models, rivals, truth

GROUP, REFERENCE = "darker", "lighter"
CONTRAST = f"skin_tone:{GROUP}-{REFERENCE}:smiling"
FINISHED = (0, 1, 3, 4)  # exit codes of an audit that came to an answer, INVALID among them
ALPHA = 0.05  # of the audits, by default
PREPARING = 240  # faces of the audit that makes the controls


@dataclass(frozen=True)
class Size:
    """How much is made and measured."""

    per_dose: int
    per_null: int
    pool: int
    audit_images: int
    crowd: int
    permutations: int
    bootstrap: int
    start_steps: int
    steps: int


@dataclass(frozen=True)
class Job:
    """What a worker needs to know."""

    plan: models.Plan
    work: Path  # of runs and rows
    made: Path  # of faces and weights, which no audit changes
    size: Size
    seed: int  # of the run


def card_of(plan: models.Plan, weights: Path, size: Size, patches: str) -> dict[str, Any]:
    """Write the card by which a model is audited, as a user would who brings a model of their own."""
    group: dict[str, Any] = {"column": "skin_tone", "reference": REFERENCE}
    if plan.kind == "random labels":
        group["permuted"] = plan.seed
    rendered: dict[str, Any] = {"train_images": 80, "audit_images": size.audit_images, "seed": plan.seed}
    if plan.kind == "base rates":
        rendered["audit_association"] = 0.4
    spec = models.SPEC.model_dump(exclude={"weights", "classes"})
    spec["preprocess"] = {"crop": spec["image_size"]}  # as they were made: timm's default would cut a tenth off
    return {
        "name": plan.name,
        "task": "emotion",
        "data": {"reader": "synthetic", "rendered": rendered},
        "groups": {"skin_tone": group},
        "match_on": ["hair_length"],
        "model": {**spec, "weights": str(weights), "classes": ["neutral", "smiling"]},
        "training": "none",
        "controls": {"card": "rendered", "weights": "rendered"},
        "audit": {
            "outcomes": ["smiling"],
            "layers": "trained",
            "patches": patches,
            "permutations": size.permutations,
            "bootstrap": size.bootstrap,
        },
    }


def audit(
    plan: models.Plan, weights: Path, work: Path, size: Size, *, patches: str = "all"
) -> tuple[dict[str, Any], Path, Path]:
    """Audit one model by the command line; return the record, the card and the run directory."""
    card, out = work / "cards" / f"{plan.name}-{patches}.yaml", work / "runs" / f"{plan.name}-{patches}"
    write_text(card, yaml.safe_dump(card_of(plan, weights, size, patches), sort_keys=False))
    result = CliRunner().invoke(vit_audit, ["run", str(card), "--out", str(out), "--no-report"])
    if result.exit_code not in FINISHED:
        raise RuntimeError(f"{plan.name}: vit-audit ended with {result.exit_code}: {result.output[-500:]}")
    (path,) = out.glob("*/audit.json")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record, card, path.parent


def measure(job: Job) -> dict[str, Any]:
    """Make, audit and rank one model."""
    begun = time.monotonic()
    plan, work, size = job.plan, job.work, job.size
    base, model, weights = make(job)
    record, card_path, run = audit(plan, weights, work, size)
    sampled, _, sampled_run = audit(plan, weights, work, size, patches="sampled")
    if record["outcome"] == "INVALID":
        return {**plan_fields(plan), "outcome": "INVALID", "seconds": round(time.monotonic() - begun, 1)}
    heads = record["heads"]
    localised = _localised(record)
    (gap,) = (c for c in record["contrasts"] if c["metric"] == "standardised_gap")
    ranked = _rankings(plan, model, card_path, run, heads, localised)
    true = _truth(job, model, base, heads)
    row = {
        **plan_fields(plan),
        "localised": localised,
        "confirmed": _confirmed(record),
        "discovered": [h["name"] for h in heads if h["discovery_p_adjusted"] <= ALPHA],
        "metric": heads[0]["metric"],
        "disparity": any(c["state"] == "disparity" for c in record["contrasts"]),
        "outcome": record["outcome"],
        "gap": gap["estimate"],
        "gap_within_margin": gap["within_margin"],
        "scores": {m: {name(h): v for h, v in r.scores.items()} for m, r in ranked.items()},
        "named": {m: [name(h) for h in r.named] for m, r in ranked.items() if r.named is not None},
        "beyond_sum": _beyond_sum(record["joint"], plan),
        "patching_seconds": _patching_seconds(run),
        **_coverage(true, heads, gap),
        "sampled": {
            "localised": _localised(sampled),
            "confirmed": _confirmed(sampled),
            "patching_seconds": _patching_seconds(sampled_run),
            "patches": sum(part["patches"] for part in sampled["method"]["effort"]),
            "patches_in_all": sum(part["of"] for part in sampled["method"]["effort"]),
            "covered": _coverage(true, sampled["heads"], gap)["covered"],
            "half_widths": _half_widths(sampled["heads"], heads),
        },
    }
    return {**row, "seconds": round(time.monotonic() - begun, 1)}


def make(job: Job) -> tuple[Backbone, VisionTransformer, Path]:
    """Train a model, or load it where that is done; return the common base, the model and its file."""
    torch.set_num_threads(1)
    base = models.backbone(cache_folder())
    weights = job.made / "weights" / f"{job.plan.name}.safetensors"
    pool = _pool(base, job.made, job.size, job.seed)
    start = _start(base, pool, job.made, job.size, job.seed)
    return base, models.make_model(base, pool, job.plan, weights, start=start, steps=job.size.steps), weights


def name(head: models.Head) -> str:
    """Name a head as the audit does."""
    return f"L{head[0]}H{head[1]}"


def plan_fields(plan: models.Plan) -> dict[str, Any]:
    """Say what is known of a model before it is audited."""
    planted = [] if plan.is_null else [name(head) for head in plan.heads]
    decoy = None if plan.decoy is None else name(plan.decoy)
    about = {"name": plan.name, "kind": plan.kind, "dose": plan.dose, "null": plan.is_null}
    return {**about, "planted": planted, "decoy": decoy}


def _rankings(
    plan: models.Plan,
    model: VisionTransformer,
    card_path: Path,
    run: Path,
    heads: list[dict[str, Any]],
    localised: list[str],
) -> dict[str, rivals.Ranking]:
    """Rank the heads by this tool and by its rivals, on the same confirmation faces."""
    samples = read_samples(load_card(card_path), card_path=card_path, data_root=None)
    frame = samples.of_split("confirmation")
    pixels = load_pixels(samples.source, frame["image"].tolist(), centred_square(64))
    is_group, smiling = (frame["skin_tone"] == GROUP).to_numpy(), (frame["label"] == "smiling").to_numpy()
    found = rivals.rank_rivals(model, pixels, is_group, smiling, seed=plan.seed)
    stored = pd.read_parquet(run / "effects" / "first-order-seed-0.parquet")
    found["attribution patching"] = rivals.rank_by_attribution(stored[stored["split"] == "confirmation"])
    own = [(int(h["layer"]), int(h["head"])) for h in heads if h["name"] in localised]
    return {**found, rivals.TOOL: rivals.Ranking(rivals.scores_of_audit(heads), own)}


def _beyond_sum(joint: list[dict[str, Any]], plan: models.Plan) -> dict[str, Any] | None:
    """Return what two planted heads do together beyond the sum of their single effects, if they were tried so."""
    planted = sorted(name(head) for head in plan.heads)
    rows = [row for row in joint if sorted(row["heads"]) == planted and len(planted) == 2]
    return {"together": rows[0]["together"], "beyond": rows[0]["beyond_sum"]} if rows else None


def _localised(record: dict[str, Any]) -> list[str]:
    """Return the heads that an audit names as carriers of the gap."""
    where = record["localisation"].get(CONTRAST)
    return _confirmed(record) if where and where["status"] == "localised" else []


def _confirmed(record: dict[str, Any]) -> list[str]:
    """Return the heads that pass on both splits, gap or no gap."""
    return [h["name"] for h in record["heads"] if h["verdict"] in ("confirmed", "confirmed, no gap")]


def _patching_seconds(run: Path) -> float:
    """Return the seconds of all sweeps: what an audit costs besides its controls, which are measured once."""
    lines = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    seconds = {line["stage"]: line["seconds"] for line in lines if "stage" in line}
    return float(seconds["patching"] + seconds["heads together"])


def _half_widths(sampled: list[dict[str, Any]], every: list[dict[str, Any]]) -> dict[str, float]:
    """Return how wide each head's interval is with a sample of the patches, as a multiple of that with all."""
    wide = {h["name"]: h["confirmation"]["high"] - h["confirmation"]["low"] for h in every}
    return {h["name"]: (h["confirmation"]["high"] - h["confirmation"]["low"]) / wide[h["name"]] for h in sampled}


def _truth(
    job: Job, model: VisionTransformer, base: Backbone, heads: list[dict[str, Any]]
) -> tuple[truth.Truth, list[models.Head]] | None:
    """Measure what is true of the gap, and of planted heads, decoy and one other; None where labels are assigned."""
    plan = job.plan
    if plan.kind == "random labels":
        return None
    others = sorted({(h["layer"], h["head"]) for h in heads} - set(plan.heads) - {plan.decoy})
    chance = others[int(np.random.default_rng(plan.seed).integers(len(others)))]
    asked = [*plan.heads, *([] if plan.decoy is None else [plan.decoy]), chance]
    (metric,) = {h["metric"] for h in heads}  # the gap that was localised, in which the heads' effects are
    labels = truth.LABELS_OF[metric]
    return truth.measure(model, _crowd(base, job.made, job.size, job.seed), asked, labels=labels), asked


def _coverage(
    known: tuple[truth.Truth, list[models.Head]] | None, heads: list[dict[str, Any]], gap: dict[str, Any]
) -> dict[str, Any]:
    """Compare intervals with the truth; heads that were not patched are left out."""
    if known is None:
        return {"covered": [], "gap_covered": covers(gap["estimate"], 0.0, 0.0), "true_gap": 0.0}
    true, asked = known
    found = {(h["layer"], h["head"]): h["confirmation"] for h in heads}
    return {
        "true_gap": true.rate,
        "true_gap_of_mean_probability": true.mean,
        "error_of_true_gap": true.rate_error,
        "true_mediated": {name(head): v for head, v in true.mediated.items()},
        "error_of_true_mediated": {name(head): v for head, v in true.error.items()},
        "covered": [covers(found[h], true.mediated[h], true.error[h]) for h in asked if h in found],
        "gap_covered": covers(gap["estimate"], true.rate, true.rate_error),
    }


def covers(interval: dict[str, float], true: float, error: float) -> bool:
    """Tell whether an interval holds what is true, each arm widened by the error with which the truth is known."""
    value, z = interval["value"], float(stats.norm.ppf(0.975))
    arm = interval["high"] - value if true > value else value - interval["low"]
    return abs(true - value) <= math.hypot(arm, z * error)


def _pool(base: Backbone, work: Path, size: Size, seed: int) -> models.Pool:
    path = work / f"pool-{size.pool}.pt"
    if not path.is_file():
        _save(asdict(models.make_pool(base, size.pool, seed=seed)), path)
    return models.Pool(**torch.load(path, weights_only=True, mmap=True))


def _start(base: Backbone, pool: models.Pool, work: Path, size: Size, seed: int) -> models.State:
    path = work / f"start-{size.start_steps}.pt"
    if not path.is_file():
        _save(dict(models.make_start(base, pool, seed=seed, steps=size.start_steps)), path)
    state: models.State = torch.load(path, weights_only=True)
    return state


def _crowd(base: Backbone, work: Path, size: Size, seed: int) -> truth.Crowd:
    path = work / f"crowd-{size.crowd}.pt"
    if not path.is_file():
        made = asdict(truth.make_crowd(base.build(2), size.crowd, seed=seed))
        _save({k: v if isinstance(v, torch.Tensor) else torch.from_numpy(v) for k, v in made.items()}, path)
    held = torch.load(path, weights_only=True, mmap=True)
    return truth.Crowd(**{k: v if k == "stream" else v.numpy() for k, v in held.items()})


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    part = path.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, part)
    part.replace(path)


def prepare_controls(job: Job) -> None:
    """Make the control models and their verdict, by an audit of the base itself: every audit takes them up.

    The same whichever model comes first, so that an interrupted run finds what it has made.
    """
    torch.set_num_threads(1)
    base = models.backbone(cache_folder())
    assert base.weights is not None
    size = replace(job.size, audit_images=PREPARING)
    audit(models.Plan("unused", 0, 0.0, (), job.seed), base.weights, job.work / "prepare", size)


def prepare_faces(job: Job) -> None:
    """Draw the faces, and train the start that all models share."""
    torch.set_num_threads(1)
    base = models.backbone(cache_folder())
    _start(base, _pool(base, job.made, job.size, job.seed), job.made, job.size, job.seed)
    _crowd(base, job.made, job.size, job.seed)
