"""Measure the tool in a pretrained ViT on photographs: gaps planted in known parts, and groups that mean nothing.

    python benchmarks/real_planted/run.py --shared ../shared --minutes 60    # goes on where it stopped
    python benchmarks/real_planted/run.py --table                            # writes README.md's tables

Every model leaves a row in the work folder as soon as it is done; the same command resumes after an interruption.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

import click  # noqa: E402
import torch  # noqa: E402

from audit import __version__  # noqa: E402
from audit.store import write_text  # noqa: E402
from benchmarks.ledgers.run import made_with as with_what  # noqa: E402
from benchmarks.real_planted import measure, models, photographs, summary  # noqa: E402
from benchmarks.real_planted.measure import Bench, Size  # noqa: E402

OUT, PAGE = (Path(__file__).with_name(name) for name in ("results.json", "README.md"))
FIGURES = re.compile(r"(<!-- figures -->\n).*?(<!-- /figures -->)", re.DOTALL)
PUBLISHED_SEED = 11
HEADS = 6
FULL = Size(
    passes=6, side=56, blocks=3, train=1200, audit=300, truth=900, steps=models.Steps(80, 60, 8), recipients=100,
    permutations=2000, bootstrap=1000, trained=120, carried=60, at_points=40, strata=128, at_once=4, null_audits=50,
    null_draws=10,
)  # fmt: skip


def bench_of(shared: Path, made: Path, size: Size, seed: int) -> Bench:
    """Open the photographs, and make what all models share."""
    frame = photographs.split(photographs.read_table(shared), size.splits, seed)
    pixels = photographs.open_photographs(frame["path"].tolist(), size.side)
    world = photographs.make_world(photographs.pretrained(shared, size.side, seed), pixels, frame, size.blocks)
    return measure.prepare(world, size, seed, made)


def rows_of(
    plans: list[models.Plan], work: Path, made: Path, shared: Path, size: Size, seed: int, until: float
) -> Iterator[Any]:
    """Yield every model's row: those that are stored, then the others, each stored as soon as it is made.

    No model is begun after ``until``, a time of ``time.monotonic``.
    """
    stored = [path for plan in plans if (path := work / "rows" / f"{plan.name}.json").is_file()]
    for path in stored:
        yield json.loads(path.read_text(encoding="utf-8"))
    todo = [plan for plan in plans if not (work / "rows" / f"{plan.name}.json").is_file()]
    if not todo or time.monotonic() > until:
        return
    bench = bench_of(shared, made, size, seed)
    if not (work / "bench.json").is_file():
        write_text(work / "bench.json", json.dumps(measure.describe(bench), indent=1))
    for plan in todo:
        if time.monotonic() > until:
            return
        row = measure.measure(bench, plan)
        write_text(work / "rows" / f"{plan.name}.json", json.dumps(row, indent=1))
        yield row


def code_hash(size: Size, *, rooms: str = "*", of: tuple[str, ...] = ("*",)) -> str:
    """SHA-256 over the code that makes the rows, and the sizes: rows of other code are not mixed in.

    How rows are summed up has no part in them. Models are made of less: ``rooms`` of the package, and modules ``of``
    this benchmark.
    """
    digest = hashlib.sha256(repr((size, torch.__version__)).encode())
    own = [path for name in of for path in Path(__file__).parent.glob(f"{name}.py")]
    borrowed = [ROOT / "benchmarks" / "planted" / name for name in ("measure.py", "rivals.py", "truth.py")]
    rows = [path for path in own if path.name not in ("run.py", "summary.py")] + (borrowed if of == ("*",) else [])
    for source in [*sorted((ROOT / "audit").glob(f"{rooms}/**/*.py")), *sorted(rows)]:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def made_with(rows: list[Any], planned: int, code: str, size: Size, seed: int) -> dict[str, Any]:
    """Return with what the rows were made."""
    today = with_what()
    return {
        "models_planned": planned,
        "models_done": len(rows),
        "processor_minutes_of_models": round(sum(row["seconds"] for row in rows) / 60, 1),
        "date": today["date"],
        "commit": today["code"],
        "code": code,
        "seed": seed,
        "size": asdict(size),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread",
        "versions": {"vit-audit": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def told(results: dict[str, Any]) -> str:
    """Say with what results were made."""
    made, size = results["made_with"], results["made_with"]["size"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    lines = [
        f"{made['date']}, {made['hardware']}, {versions}; seed {made['seed']};",
        f"code of commit {made['commit']}, sources with the hash {made['code'][:8]}.",
        f"{made['models_done']} of {made['models_planned']} models,",
        f"{made['processor_minutes_of_models']} minutes of one processor;",
        f"{results['models']['heads planted']} different heads planted. Photographs of {size['side']} pixels:",
        f"{size['train']} to train on, {2 * size['audit']} audited, {size['truth']} for the truth.",
    ]
    for name, model in results["base_and_reference"].items():
        gap, error = 100 * model["gap"], 100 * model["gap_error"]
        lines.append(f"The {name} is right on {100 * model['accuracy']:.1f}% of the latter;")
        lines.append(f"its gap is {gap:.1f} points (standard error {error:.1f}).")
    return "\n".join(lines) + "\n"


def write_page(results: dict[str, Any]) -> None:
    """Write the tables between the marks of README.md."""
    text = f"{told(results)}\n{summary.table(results)}"
    page = FIGURES.sub(lambda found: f"{found[1]}{text}{found[2]}", PAGE.read_text(encoding="utf-8"))
    write_text(PAGE, page)


@click.command()
@click.option("--shared", type=click.Path(exists=True, path_type=Path), help="Folder of data and weights.")
@click.option("--work", type=click.Path(path_type=Path), help="Where rows are kept.")
@click.option("--seed", default=PUBLISHED_SEED, show_default=True, help="Of everything; the published run has 11.")
@click.option("--minutes", type=float, help="Begin no model after so long; figures are of those that are done.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Results; default: here for the published seed.")
@click.option(
    "--table", "only_table", is_flag=True, help="Write the tables of results.json into README.md; run nothing."
)
def main(
    *, shared: Path | None, work: Path | None, seed: int, minutes: float | None, out: Path | None, only_table: bool
) -> None:
    """Make the models, audit them, and write the figures."""
    begun = time.monotonic()
    if only_table:
        write_page(json.loads((out or OUT).read_text(encoding="utf-8")))
        return
    if shared is None:
        raise click.UsageError("--shared is missing: name the folder of data and weights")
    torch.set_num_threads(1)
    code, made_by = code_hash(FULL), code_hash(FULL, rooms="models", of=("models", "photographs"))
    work = work or Path(__file__).parent / "work"
    made, work = work / f"models-{seed}-{made_by[:8]}", work / f"{seed}-{code[:8]}"
    plans = models.plans(passes=FULL.passes, seed=seed, layers=FULL.blocks, heads=HEADS)
    rows: list[Any] = []
    until = math.inf if minutes is None else begun + 60 * minutes
    out = out or (OUT if seed == PUBLISHED_SEED else work / "results.json")
    for row in rows_of(plans, work, made, shared.resolve(), FULL, seed, until):
        rows.append(row)
        click.echo(f"{len(rows)}/{len(plans)} {row['name']} ({(time.monotonic() - begun) / 60:.1f} min)", err=True)
    results = summary.summarise(sorted(rows, key=lambda row: str(row["name"])))
    worth = work / "bench.json"
    results["base_and_reference"] = json.loads(worth.read_text(encoding="utf-8")) if worth.is_file() else {}
    results["made_with"] = made_with(rows, len(plans), code, FULL, seed)
    write_text(out, json.dumps(results, indent=1) + "\n")
    click.echo(summary.table(results))


if __name__ == "__main__":
    main()
