"""Count how often the intervals of mediated gaps hold the truth, and what they cost.

    python benchmarks/bootstrap/run.py

Writes results.json and the tables of README.md, both beside this file.
"""

from __future__ import annotations

import datetime
import json
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

import click  # noqa: E402
import numpy as np  # noqa: E402

from audit import __version__  # noqa: E402
from audit.evidence.bootstrap import draw_bootstrap, influences, tost_p_values, weighted_estimates  # noqa: E402
from audit.evidence.effects import SwapEffects  # noqa: E402
from audit.evidence.stats import Array, Codes, components  # noqa: E402
from benchmarks.bootstrap.worlds import (  # noqa: E402
    ONE_IMAGE_A_CELL,
    RARE,
    Flips,
    Labels,
    sizes_of_forty_labels,
)
from benchmarks.commits import commit_here  # noqa: E402

HERE = Path(__file__).parent
Figures = dict[str, Any]
Draw = Callable[[np.random.Generator, tuple[int, int]], Any]

ROOT_5 = 5**0.5
MULTIPLIERS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "Rademacher": lambda rng, shape: 2.0 * rng.integers(0, 2, shape) - 1,
    "Mammen": lambda rng, shape: np.where(
        rng.random(shape) < (ROOT_5 + 1) / (2 * ROOT_5), (1 - ROOT_5) / 2, (1 + ROOT_5) / 2
    ),
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
}
RESAMPLED = "resampling, draws with an empty cell dropped"


def worlds(seed: int) -> dict[str, Labels]:
    """Return the tables of images."""
    forty = sizes_of_forty_labels(np.random.default_rng(seed))
    return {
        "40 labels, 3 to 30 images each": Labels(forty),
        "the same, skewed effects": Labels(forty, skewed=True),
        "the same, 60% of the images from subjects with several labels": Labels(forty, several=0.6),
        "the same, 14 labels without weight": Labels(forty, weightless=range(0, 40, 3)),
        "one label of 60 images a side, 15 of 1 to 3": Labels(RARE),
        "the same rare labels, skewed effects": Labels(RARE, skewed=True),
        "40 labels, one image a cell": Labels(ONE_IMAGE_A_CELL),
        "2 labels, 8 images each": Labels([(8, 8), (8, 8)]),
        "2 labels, 30 images each, skewed effects": Labels([(30, 30), (30, 30)], skewed=True),
    }


FLIPS = [
    Flips(patched, towards, away, share)
    for patched in (30, 60, 150, 300)
    for share in (1.0, 0.1)
    for towards, away in ((0.002, 0.0), (0.01, 0.0), (0.02, 0.0), (0.05, 0.0), (0.03, 0.02))
]


def cover(world: Labels, runs: int, resamples: int, seed: int) -> Figures:
    """Count how often each kind of multiplier, and plain resampling of clusters, holds the truth."""
    rng = np.random.default_rng(seed)
    held = dict.fromkeys([*MULTIPLIERS, RESAMPLED], 0)
    lost: list[float] = []
    for _ in range(runs):
        effects = world.draw(rng)
        weights, clusters = effects.mediated_weights(), components(effects.subject, effects.unit)
        value, true = float(weights @ effects.difference[:, 0]), world.true(effects)
        found = influences(effects.difference, weights, effects, clusters)
        assert found is not None
        for name, draw in MULTIPLIERS.items():
            held[name] += _holds(value + draw(rng, (resamples, len(found))) @ found[:, 0], true)
        draws = _resampled(effects, weights, clusters, resamples, rng)
        usable = draws[np.isfinite(draws)]
        lost.append(1 - len(usable) / len(draws))
        held[RESAMPLED] += len(usable) > 0 and _holds(usable, true)
    return {"coverage": {name: n / runs for name, n in held.items()}, "draws_dropped": float(np.mean(lost))}


def _holds(draws: Array, true: float) -> bool:
    low, high = np.quantile(draws, [0.025, 0.975])
    return bool(low <= true <= high)


def _resampled(
    effects: SwapEffects, weights: Array, clusters: Codes, resamples: int, rng: np.random.Generator
) -> Array:
    """Draw whole clusters with replacement; not a number where a cell with weight is empty."""
    n = int(clusters.max()) + 1
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples)[:, clusters].astype(np.float64)
    total = np.zeros(resamples)
    cell = effects.label * 2 + effects.is_group
    for code in np.unique(cell[weights != 0]):
        rows = cell == code
        size = counts[:, rows].sum(axis=1)
        sums = counts[:, rows] @ effects.difference[rows, 0]
        mean = np.divide(sums, size, out=np.full(resamples, np.nan), where=size > 0)
        total += weights[rows].sum() * mean
    return total


def cover_flips(world: Flips, runs: int, resamples: int, seed: int) -> Figures:
    """Count how often the interval of a rate effect holds the truth, and how wide it is."""
    rng, held, widths = np.random.default_rng(seed), 0, []
    for run in range(runs):
        effects = world.draw(rng)
        bootstrap = draw_bootstrap(effects, resamples=resamples, seed=run)
        (found,) = weighted_estimates(effects.difference, effects.mediated_weights(), effects, bootstrap)
        assert found.low is not None and found.high is not None
        held += found.low <= world.true <= found.high
        widths.append((found.high - found.low) / 2)
    return {"coverage": held / runs, "half_width": float(np.mean(widths)), "narrowest": float(min(widths))}


def measure_cost(recipients: int = 20_000, heads: int = 144, resamples: int = 10_000) -> Figures:
    """Measure processor time and peak memory of this process for intervals and equivalence tests of all heads."""
    rng = np.random.default_rng(0)
    rows = np.arange(recipients)
    cross, placebo = (rng.random((recipients, heads), dtype=np.float32).astype(np.float64) for _ in range(2))
    effects = SwapEffects(
        cross=cross,
        placebo=placebo,
        unpatched=rng.random(recipients),
        is_group=rows % 2 == 0,
        label=rows // 2 % 5,
        subject=rows,
        unit=rows // 2,
        heads=[(k // 12, k % 12) for k in range(heads)],
    )
    begun = time.process_time()
    bootstrap = draw_bootstrap(effects, resamples=resamples, seed=0)
    found = weighted_estimates(effects.difference, effects.mediated_weights(), effects, bootstrap)
    between = time.process_time()
    tests = tost_p_values(effects, bootstrap, 0.01)
    assert len(found) == len(tests) == heads
    return {
        "recipients": recipients,
        "heads": heads,
        "resamples": resamples,
        "seconds_intervals": between - begun,
        "seconds_tests": time.process_time() - between,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def tables(results: Figures) -> str:
    """Write the README's tables."""
    names = [*MULTIPLIERS, RESAMPLED]
    chance = 196 * (0.95 * 0.05 / results["runs"]) ** 0.5
    lines = [
        (
            f"{results['date']}, {results['hardware']}, vit-audit {results['version']}, numpy {results['numpy']}. "
            f"{results['runs']:,} runs a row, {results['runs_of_changes']:,} in the second table; "
            f"{results['resamples']} draws, seed {results['seed']}; the method was chosen with seeds 1, 3 and 5. With "
            f"{results['runs']:,} runs a coverage of 95% comes out between {95 - chance:.1f}% and {95 + chance:.1f}%."
        ),
        "",
        "| images | " + " | ".join(names) + " | draws dropped |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    for name, found in results["labels"].items():
        cells = [f"{100 * found['coverage'][n]:.1f}%" for n in names]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {100 * found['draws_dropped']:.0f}% |")
    lines += [
        "",
        "| patched | of all | change class, with and against the gap | coverage | half-width, mean | narrowest |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["flips"]:
        lines.append(
            f"| {row['patched']} | {100 * row['share']:.0f}% | {100 * row['towards']:.1f}%, {100 * row['away']:.1f}% | "
            f"{100 * row['coverage']:.1f}% | {100 * row['half_width']:.1f} points | {100 * row['narrowest']:.1f} |"
        )
    cost = results["cost"]
    lines += [
        "",
        (
            f"{cost['recipients']:,} recipients, {cost['resamples']:,} draws, {cost['heads']} heads: intervals in "
            f"{cost['seconds_intervals']:.1f} s of processor time, equivalence tests in "
            f"{cost['seconds_tests']:.1f} s, on one thread; {cost['peak_mib']:.0f} MiB at the peak of the whole "
            "process."
        ),
    ]
    return "\n".join(lines)


def write_readme(text: str) -> None:
    """Put the tables between the markers of the README."""
    path = HERE / "README.md"
    begin, end = "<!-- figures: begin -->", "<!-- figures: end -->"
    pattern = re.compile(f"{begin}.*{end}", re.DOTALL)
    path.write_text(
        pattern.sub(lambda _: f"{begin}\n{text}\n{end}", path.read_text(encoding="utf-8")), encoding="utf-8"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = [x for x in info.read_text().splitlines() if x.startswith("model name")] if info.is_file() else []
    return lines[0].split(":", 1)[1].strip() if lines else platform.processor() or platform.machine()


@click.command()
@click.option("--runs", default=1500, show_default=True)
@click.option("--runs-of-changes", default=400, show_default=True, help="Of the second table, whose rows are many.")
@click.option("--resamples", default=400, show_default=True)
@click.option("--seed", default=9100, show_default=True)
@click.option("--cost-only", is_flag=True, help="Measure seconds and memory alone, and print them.")
def main(runs: int, runs_of_changes: int, resamples: int, seed: int, *, cost_only: bool) -> None:
    """Run the simulations and write results.json and README.md."""
    if cost_only:
        click.echo(json.dumps(measure_cost()))
        return
    cost = subprocess.run([sys.executable, __file__, "--cost-only"], capture_output=True, text=True, check=True)
    results: Figures = {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "code": commit_here(),
        "hardware": _processor(),
        "version": __version__,
        "numpy": np.__version__,
        "runs": runs,
        "runs_of_changes": runs_of_changes,
        "resamples": resamples,
        "seed": seed,
        "cost": json.loads(cost.stdout),
        "labels": {},
        "flips": [],
    }
    for number, (name, world) in enumerate(worlds(seed).items()):
        results["labels"][name] = cover(world, runs, resamples, seed + number)
        click.echo(f"{name}: {results['labels'][name]}", err=True)
    for number, flips in enumerate(FLIPS):
        about = {k: getattr(flips, k) for k in ("patched", "share", "towards", "away")}
        results["flips"].append(about | cover_flips(flips, runs_of_changes, resamples, seed + 100 + number))
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_readme(tables(results))


if __name__ == "__main__":
    main()
