"""Measure the tool itself: models whose truth is known, audited from card to ``audit.json``.

    python benchmarks/planted/run.py --quick --json out.json
    python benchmarks/planted/run.py                            # the published run

Every model leaves a row in the work folder as soon as it is done; the same command goes on after an interruption.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

import click  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from scipy import stats  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

from audit import __version__  # noqa: E402
from audit.card.load import load_card  # noqa: E402
from audit.cli import main as vit_audit  # noqa: E402
from audit.data.assemble import read_samples  # noqa: E402
from audit.data.pixels import load_pixels  # noqa: E402
from audit.models.build import Backbone  # noqa: E402
from audit.store import cache_folder, write_text  # noqa: E402
from benchmarks.planted import models, rivals, summary, truth  # noqa: E402

GROUP, REFERENCE = "darker", "lighter"
CONTRAST = f"skin_tone:{GROUP}-{REFERENCE}:smiling"
PUBLISHED_SEED = 7
FINISHED = (0, 1, 3, 4)  # exit codes of an audit that came to an answer, INVALID among them


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


FULL = Size(8, 25, 4000, 1000, 8000, 5000, 2000, models.START_STEPS, models.STEPS)
QUICK = Size(1, 1, 400, 240, 1000, 500, 500, 60, 30)


ALPHA = 0.05  # of the audits, by default
TASKS_PER_WORKER = 12  # then a fresh process, so that memory does not grow with the number of models


@dataclass(frozen=True)
class Job:
    """What a worker needs to know."""

    plan: models.Plan
    work: Path
    size: Size
    seed: int  # of the run


def card_of(plan: models.Plan, weights: Path, size: Size) -> dict[str, Any]:
    """Write the card by which a model is audited, as a user would who brings a model of their own."""
    group: dict[str, Any] = {"column": "skin_tone", "reference": REFERENCE}
    if plan.kind == "random labels":
        group["permuted"] = plan.seed
    rendered: dict[str, Any] = {"train_images": 80, "audit_images": size.audit_images, "seed": plan.seed}
    if plan.kind == "base rates":
        rendered["audit_association"] = 0.4
    spec = models.SPEC.model_dump(exclude={"weights", "classes"})
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
            "permutations": size.permutations,
            "bootstrap": size.bootstrap,
        },
    }


def audit(plan: models.Plan, weights: Path, work: Path, size: Size) -> tuple[dict[str, Any], Path, Path]:
    """Audit one model by the command line; return the record, the card and the run directory."""
    card = work / "cards" / f"{plan.name}.yaml"
    write_text(card, yaml.safe_dump(card_of(plan, weights, size), sort_keys=False))
    result = CliRunner().invoke(vit_audit, ["run", str(card), "--out", str(work / "runs" / plan.name), "--no-report"])
    if result.exit_code not in FINISHED:
        raise RuntimeError(f"{plan.name}: vit-audit ended with {result.exit_code}: {result.output[-500:]}")
    (path,) = (work / "runs" / plan.name).glob("*/audit.json")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record, card, path.parent


def measure(job: Job) -> dict[str, Any]:
    """Make, audit and rank one model."""
    begun = time.monotonic()
    plan, work, size = job.plan, job.work, job.size
    base, model, weights = make(job)
    record, card_path, run = audit(plan, weights, work, size)
    if record["outcome"] == "INVALID":
        return {**_about(plan), "outcome": "INVALID", "seconds": round(time.monotonic() - begun, 1)}
    heads = record["heads"]
    where = record["localisation"].get(CONTRAST, "")
    confirmed = [h["name"] for h in heads if h["verdict"] == "confirmed"]
    localised = confirmed if where.startswith("localised") else []
    (gap,) = (c for c in record["contrasts"] if c["metric"] == "standardised_gap")
    ranked = _rankings(plan, model, card_path, run, heads, localised)
    row = {
        **_about(plan),
        "localised": localised,
        "confirmed": confirmed,
        "discovered": [h["name"] for h in heads if h["discovery_p_adjusted"] <= ALPHA],
        "disparity": any(c["state"] == "disparity" for c in record["contrasts"]),
        "outcome": record["outcome"],
        "gap": gap["estimate"],
        "scores": {m: {name(h): v for h, v in r.scores.items()} for m, r in ranked.items()},
        "named": {m: [name(h) for h in r.named] for m, r in ranked.items() if r.named is not None},
        "beyond_sum": _beyond_sum(record["joint"], plan),
        **_coverage(job, model, base, heads, gap),
    }
    return {**row, "seconds": round(time.monotonic() - begun, 1)}


def make(job: Job) -> tuple[Backbone, VisionTransformer, Path]:
    """Train a model, or load it where that is done; return the common base, the model and its file."""
    torch.set_num_threads(1)
    base = models.backbone(cache_folder())
    weights = job.work / "weights" / f"{job.plan.name}.safetensors"
    pool = _pool(base, job.work, job.size, job.seed)
    start = _start(base, pool, job.work, job.size, job.seed)
    return base, models.make_model(base, pool, job.plan, weights, start=start, steps=job.size.steps), weights


def name(head: models.Head) -> str:
    """Name a head as the audit does."""
    return f"L{head[0]}H{head[1]}"


def _about(plan: models.Plan) -> dict[str, Any]:
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
    pixels = load_pixels(samples.source, frame["image"].tolist(), 64)
    is_group, smiling = (frame["skin_tone"] == GROUP).to_numpy(), (frame["label"] == "smiling").to_numpy()
    found = rivals.rank_rivals(model, pixels, is_group, smiling, seed=plan.seed)
    found["attribution patching"] = rivals.rank_by_attribution(pd.read_parquet(run / "effects" / "attribution.parquet"))
    own = [(int(h["layer"]), int(h["head"])) for h in heads if h["name"] in localised]
    return {**found, summary.TOOL: rivals.Ranking(rivals.scores_of_audit(heads), own)}


def _beyond_sum(joint: list[dict[str, Any]], plan: models.Plan) -> dict[str, Any] | None:
    """Return what two planted heads do together beyond the sum of their single effects, if they were tried so."""
    planted = sorted(name(head) for head in plan.heads)
    rows = [row for row in joint if sorted(row["heads"]) == planted and len(planted) == 2]
    return {"together": rows[0]["together"], "beyond": rows[0]["beyond_sum"]} if rows else None


def _coverage(
    job: Job, model: VisionTransformer, base: Backbone, heads: list[dict[str, Any]], gap: dict[str, Any]
) -> dict[str, Any]:
    """Compare intervals with the truth: the gap, and the mediated gap of planted heads, decoy and one other."""
    plan = job.plan
    if plan.kind == "random labels":
        return {"covered": [], "gap_covered": covers(gap["estimate"], 0.0, 0.0), "true_gap": 0.0}
    others = sorted({(h["layer"], h["head"]) for h in heads} - set(plan.heads) - {plan.decoy})
    chance = others[int(np.random.default_rng(plan.seed).integers(len(others)))]
    asked = [*plan.heads, *([] if plan.decoy is None else [plan.decoy]), chance]
    true = truth.measure(model, _crowd(base, job.work, job.size, job.seed), asked)
    found = {(h["layer"], h["head"]): h["confirmation"] for h in heads}
    return {
        "true_gap": true.rate,
        "true_gap_of_mean_probability": true.mean,
        "error_of_true_gap": true.rate_error,
        "true_mediated": {name(head): v for head, v in true.mediated.items()},
        "error_of_true_mediated": {name(head): v for head, v in true.error.items()},
        "covered": [covers(found[h], true.mediated[h], true.error[h]) for h in asked],
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


def rows_of(jobs: list[Job], workers: int) -> Iterator[dict[str, Any]]:
    """Yield every model's row: those that are stored, then the others, each stored as soon as it is made."""
    todo = []
    for job in jobs:
        path = job.work / "rows" / f"{job.plan.name}.json"
        if path.is_file():
            yield json.loads(path.read_text(encoding="utf-8"))
        else:
            todo.append(job)
    if not todo:
        return
    models.backbone(cache_folder())  # trained here, if it has never been
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=TASKS_PER_WORKER) as pool:
        try:
            controls = pool.submit(_prepare_controls, todo[0])
            pool.submit(_prepare_faces, todo[0]).result()
            for ahead in todo:  # one worker trains models until the other has the controls, which every audit needs
                if controls.done():
                    break
                pool.submit(_make_ahead, ahead).result()
            controls.result()
            for future in as_completed([pool.submit(_stored, job) for job in todo]):
                yield future.result()
        except BaseException:  # a model that cannot be made, or a worker that was killed; what is stored stays
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _prepare_controls(job: Job) -> None:
    """Make the control models and their verdict, by an audit of the base itself: every audit takes them up."""
    torch.set_num_threads(1)
    base = models.backbone(cache_folder())
    assert base.weights is not None
    audit(models.Plan("unused", 0, 0.0, (), job.plan.seed), base.weights, job.work / "prepare", QUICK)


def _prepare_faces(job: Job) -> None:
    """Draw the faces, and train the start that all models share."""
    torch.set_num_threads(1)
    base = models.backbone(cache_folder())
    _start(base, _pool(base, job.work, job.size, job.seed), job.work, job.size, job.seed)
    _crowd(base, job.work, job.size, job.seed)


def _make_ahead(job: Job) -> None:
    make(job)


def _stored(job: Job) -> dict[str, Any]:
    """Measure a model and store its row as soon as it is there."""
    row = measure(job)
    write_text(job.work / "rows" / f"{job.plan.name}.json", json.dumps(row, indent=1))
    return row


def code_hash(size: Size) -> str:
    """SHA-256 over the code that makes the rows, and the sizes: rows of other code are not mixed in."""
    digest = hashlib.sha256(repr((size, torch.__version__)).encode())
    for folder in (ROOT / "audit", ROOT / "benchmarks" / "planted"):
        for source in sorted(folder.rglob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()


@click.command()
@click.option("--quick", is_flag=True, help="A few small models, in minutes; the figures mean little.")
@click.option(
    "--json",
    "out",
    type=click.Path(path_type=Path),
    help="Where results go; default: results.json here for the published run, else in the work folder.",
)
@click.option("--work", type=click.Path(path_type=Path), help="Where models, runs and rows are kept.")
@click.option("--seed", default=PUBLISHED_SEED, show_default=True, help="Of everything; the published run has 7.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True, help="Models at once.")
def main(*, quick: bool, out: Path | None, work: Path | None, seed: int, workers: int) -> None:
    """Make the models, audit them, and write the figures."""
    begun = time.monotonic()
    size = QUICK if quick else FULL
    here = Path(__file__).resolve().parent
    made_by = code_hash(size)
    work = (work or here / "work") / f"{'quick' if quick else 'full'}-{seed}-{made_by[:8]}"
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # of the workers
    torch.set_num_threads(1)
    jobs = [Job(p, work, size, seed) for p in models.plans(per_dose=size.per_dose, per_null=size.per_null, seed=seed)]
    rows: list[dict[str, Any]] = []
    for row in rows_of(jobs, workers):
        rows.append(row)
        spent = time.monotonic() - begun
        found = row["outcome"] if "localised" not in row else ", ".join(row["localised"]) or "no head"
        click.echo(f"{len(rows)}/{len(jobs)} {row['name']}: {found} ({spent / 60:.1f} min)", err=True)
    results = summary.summarise(sorted(rows, key=lambda row: str(row["name"])))
    results["made_with"] = {
        "command": " ".join(["python", "benchmarks/planted/run.py", *sys.argv[1:]]),
        "minutes": round((time.monotonic() - begun) / 60, 1),  # of this call; rows of earlier ones were taken up
        "minutes_of_models": round(sum(row["seconds"] for row in rows) / 60, 1),
        "code": made_by,
        "seed": seed,
        "size": asdict(size),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {workers} workers",
        "versions": {"vit-audit": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    published = not quick and seed == PUBLISHED_SEED
    write_text(out or (here if published else work) / "results.json", json.dumps(results, indent=1) + "\n")
    click.echo(summary.table(results))


if __name__ == "__main__":
    main()
