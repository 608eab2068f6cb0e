"""Count how often intervals of the mean-shift patch hold the truth, and what it finds beside donor pairs.

    python benchmarks/means/run.py --work DIR     # a few minutes on one core; resumes

Writes results.json and the tables of README.md, both beside this file.
"""

from __future__ import annotations

import datetime
import json
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

import click  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402

from audit import __version__  # noqa: E402
from audit.evidence.bootstrap import draw_bootstrap, weighted_estimates  # noqa: E402
from audit.evidence.effects import SwapEffects  # noqa: E402
from audit.evidence.mean_shift import MeanShift, judge_shifts, means_of  # noqa: E402
from audit.evidence.stats import excludes_zero  # noqa: E402
from audit.patching.engine import Donor  # noqa: E402
from audit.patching.mean_shift import measure_shifts  # noqa: E402
from audit.patching.parts import Part  # noqa: E402
from audit.patching.patch_parts import patch_parts  # noqa: E402
from audit.patching.plans import plan_group_swap  # noqa: E402
from audit.patching.shifts import SCALES, draw_shifts  # noqa: E402
from audit.patching.sites import record  # noqa: E402
from audit.records import Contrast, Estimate  # noqa: E402
from audit.store import write_text  # noqa: E402
from benchmarks.means.formula import Formula, count  # noqa: E402
from benchmarks.means.worlds import Maker, Sample, World  # noqa: E402
from benchmarks.pages import write_figures  # noqa: E402

HERE = Path(__file__).parent
Figures = dict[str, Any]
WORLDS = {
    "no group": World(),
    "no group, four images of a person": World(a_person=4),
    "group": World(group=0.8),
}
FORMULAS = {
    "no group": Formula(),
    "no group, four images of a person": Formula(a_person=4),
    "group": Formula(group=0.8),
}
NULL = "no group"
SHUFFLES = 5
RESAMPLES = 500
SPARING = "means at equal passes"  # one forward, one backward that counts as two, and the shuffles; a pair takes two
FEWER = 4  # as many times fewer images are moved for that
SCALE = SCALES.index("probability")  # tests are made on it
LEAST_TRUE = 0.1  # of the gap: parts that truly take so much of it count in the power


def measure(maker: Maker, sample: Sample, parts: list[Part], seed: int, *, moved_share: int = 1) -> Figures:
    """Return what the patch finds on all scales, with and without the noise of the means."""
    layout = sample.layout()
    kept = _evenly(sample, moved_share)
    shown = layout.take(np.flatnonzero(kept))
    weights = np.zeros(len(kept))
    weights[kept] = np.abs(shown.gap_weights())
    shifts = draw_shifts(sample.label, sample.is_group, sample.subject, weights, shuffles=SHUFFLES, again=1, seed=seed)
    images = sample.images
    found = measure_shifts(maker.model, lambda rows: images[torch.from_numpy(rows)], shifts, parts, [1])
    means = [means_of(found, shifts, layout, 0, scale) for scale in range(len(SCALES))]
    both: dict[str, list[list[MeanShift]]] = {
        name: [judge_shifts(m, resamples=RESAMPLES, seed=seed, of_means=of_means) for m in means]
        for name, of_means in (("with", True), ("without", False))
    }
    change = shifts.coefficients[:, -1] - shifts.coefficients[:, 0]
    own = means[SCALE].images.gap_weights()
    exact = -own @ (found.patched[:, :, -1, 0, SCALE] - found.patched[:, :, 0, 0, SCALE])
    return {
        **both,
        "gap": [float(m.images.gap_weights() @ m.images.unpatched) for m in means],
        "exact": exact,
        "first order": -2 * change @ found.pulls[:, :, 0, SCALE],
    }


def _evenly(sample: Sample, share: int) -> Any:
    """Return which images are moved: one person in ``share`` of each label and group."""
    return sample.subject // 4 % share == 0


def measure_pairs(maker: Maker, sample: Sample, parts: list[Part], seed: int) -> list[Estimate]:
    """Return mediated gaps in mean probability, by donor pairs that are each used once."""
    frame = pd.DataFrame(
        {"label": sample.label, "subject": sample.subject.astype(str), "group": np.where(sample.is_group, "a", "b")}
    )
    plan = plan_group_swap(frame, Contrast("group", "a", "b"), [], seed=seed).rows
    rows = {
        name: torch.from_numpy(plan[name].to_numpy(dtype=np.int64).copy()) for name in ("recipient", "cross", "placebo")
    }
    traces = {name: record(maker.model, sample.images[of], mlp=True) for name, of in rows.items()}

    def read(name: str) -> Any:
        given = Donor(maker.model, traces[name])
        patched = [patch_parts(maker.model, traces["recipient"], given, [part]) for part in parts]
        return torch.stack(patched, dim=1).double().softmax(-1)[..., 1].numpy()

    effects = SwapEffects(
        cross=read("cross"),
        placebo=read("placebo"),
        unpatched=maker.model(sample.images[rows["recipient"]]).double().softmax(-1)[:, 1].numpy(),
        is_group=(plan["side"] == "group").to_numpy(),
        label=plan["label"].to_numpy(dtype=np.int64),
        subject=sample.subject[plan["recipient"].to_numpy(dtype=np.int64)],
        unit=plan["unit"].to_numpy(dtype=np.int64),
        heads=[],
        shares={0: 0.5, 1: 0.5},
    )
    bootstrap = draw_bootstrap(effects, resamples=RESAMPLES, seed=seed)
    return weighted_estimates(effects.difference, effects.mediated_weights(), effects, bootstrap)


def hold(estimates: list[Estimate], true: Any) -> list[bool]:
    """Tell of each interval whether it holds the truth."""
    pairs = zip(estimates, np.asarray(true).tolist(), strict=True)
    return [e.low is not None and e.high is not None and e.low <= t <= e.high for e, t in pairs]


def _finds(found: Estimate | MeanShift, gap: float) -> bool:
    """Tell whether something is found in the direction of the gap."""
    if isinstance(found, MeanShift):
        return found.takes(gap)
    return excludes_zero(found) and (found.value or 0.0) * gap > 0


def _half_width(found: Estimate | MeanShift) -> float:
    """Return half of the width of an interval."""
    interval = found.effect if isinstance(found, MeanShift) else found
    return ((interval.high or np.nan) - (interval.low or np.nan)) / 2


@torch.no_grad()
def one_run(maker: Maker, known: tuple[list[Part], Any, Any], rng: np.random.Generator, seed: int) -> Figures:
    """Draw images once, and return of each part what was found."""
    parts, true, true_gaps = known
    sample = maker.draw(rng, maker.world.images)
    every = measure(maker, sample, parts, seed)
    gap, on_all = every["gap"][SCALE], every["with"][SCALE]
    pairs = measure_pairs(maker, sample, parts, seed)
    found: dict[str, Sequence[Estimate | MeanShift]] = {"means": on_all, "pairs": pairs}
    if maker.world.group:
        found[SPARING] = measure(maker, sample, parts, seed, moved_share=FEWER)["with"][SCALE]
    takes = {name: [_finds(one, gap) for one in of] for name, of in found.items()}
    widths = {name: [_half_width(one) for one in of] for name, of in found.items()}
    errors = np.array(widths["means"]) / 1.96
    return {
        "held": {
            name: {of: hold([m.effect for m in every[name][k]], true[:, k]) for k, of in enumerate(SCALES)}
            for name in ("with", "without")
        },
        "held beyond placebo": hold([m.beyond for m in on_all], true[:, SCALE]),
        "quiet": [not excludes_zero(m.placebo) for m in on_all],
        "excludes 0": [excludes_zero(m.effect) for m in on_all],
        "takes": takes,
        "widths": widths,
        "true": [bool(abs(t) > LEAST_TRUE * abs(true_gaps[SCALE])) for t in true[:, SCALE]],
        "bias": [float(m.effect.value - t) for m, t in zip(on_all, true[:, SCALE], strict=True)],
        "bias beyond": [float(m.beyond.value - t) for m, t in zip(on_all, true[:, SCALE], strict=True)],
        "off": ((every["exact"] - every["first order"]) / errors).tolist(),
        "moved": (every["exact"] / errors).tolist(),
    }


def told_by(world: World, number: int, runs: int, seed: int, path: Path) -> Figures:
    """Draw images many times for one model, or take what is done already."""
    if not path.is_file():
        rng, maker = np.random.default_rng([seed, number]), Maker(world, 1000 * seed + number)
        known = maker.truth(rng)
        found = [one_run(maker, known, rng, seed * 100_000 + number * 1000 + run) for run in range(runs)]
        write_text(path, json.dumps({"gap": float(known[2][SCALE]), "told": found}))
    done: Figures = json.loads(path.read_text(encoding="utf-8"))
    return done


def summed(told: list[Figures], gaps: list[float]) -> Figures:
    """Put runs together."""

    def mean(*path: str) -> float:
        values = []
        for run in told:
            at: Any = run
            for step in path:
                at = at[step]
            values.append(np.mean(at))
        return round(float(np.mean(values)), 4)

    true = np.array([run["true"] for run in told])
    every = {name: np.array([run["takes"][name] for run in told]) for name in told[0]["takes"]}
    widths = {name: np.array([run["widths"][name] for run in told]) for name in told[0]["takes"]}
    off, moved = (np.array([run[name] for run in told]) for name in ("off", "moved"))
    return {
        "runs": len(told),
        "parts": true.shape[1],
        "true_gaps": [round(gap, 4) for gap in gaps],
        "coverage": {name: {of: mean("held", name, of) for of in SCALES} for name in ("with", "without")},
        "coverage_beyond_placebo": mean("held beyond placebo"),
        "placebo_quiet": mean("quiet"),
        "excludes_0": mean("excludes 0"),
        "bias": mean("bias"),
        "bias_beyond_placebo": mean("bias beyond"),
        "taken": {name: round(float(found.mean()), 4) for name, found in every.items()},
        "any_part_taken": {name: round(float(found.any(axis=1).mean()), 4) for name, found in every.items()},
        "power": {name: round(float(found[true].mean()), 4) if true.any() else None for name, found in every.items()},
        "half_width_to_pairs": {
            name: round(float(np.median(wide / widths["pairs"])), 3) for name, wide in widths.items()
        },
        "first_order": {
            "off": round(float(np.sqrt((off**2).mean())), 3),
            "of": round(float(np.sqrt((moved**2).mean())), 3),
        },
    }


COVERAGE = (
    "| 95% intervals hold the truth | probability | log-odds | rate | without the means' noise: probability "
    "| log-odds | rate | beyond the placebo, probability |\n|---|---|---|---|---|---|---|---|"
)
BY_FORMULA = (
    "| by a formula: 95% intervals hold the truth | draws | probability | log-odds | without the means' noise: "
    "probability | log-odds | taken in the direction of the gap | the placebo's interval holds 0 |\n"
    "|---|---|---|---|---|---|---|---|"
)
FOUND = (
    "| found in the direction of the gap | means, part by part | pairs | means at equal passes | any part: means "
    "| pairs | the placebo's interval holds 0 |\n|---|---|---|---|---|---|---|"
)
WIDTH = (
    "| | half-width beside pairs, median | at equal passes | true gap, points, by model | bias, points "
    "| beyond the placebo | means drawn again move the effect by, in its standard errors | first order misses |\n"
    "|---|---|---|---|---|---|---|---|"
)


def tables(results: Figures) -> str:
    """Return the tables of the page."""
    s, lines = results["settings"], [COVERAGE]
    for name, row in results["worlds"].items():
        cells = [row["coverage"][k][of] for k in ("with", "without") for of in ("probability", "log_odds", "rate")]
        lines.append(_line(name, [*map(_pct, cells), _pct(row["coverage_beyond_placebo"])]))
    lines += ["", FOUND]
    for name, row in results["worlds"].items():
        found, some = row["power"], row["any_part_taken"]
        if name.startswith(NULL) or found["means"] is None:
            found = row["taken"]
        cells = [found["means"], found["pairs"], found.get(SPARING), some["means"], some["pairs"]]
        lines.append(_line(name, map(_pct, [*cells, row["placebo_quiet"]])))
    lines += ["", WIDTH]
    for name, row in results["worlds"].items():
        wide, by, gaps = row["half_width_to_pairs"], row["first_order"], row["true_gaps"]
        cells = [
            f"{wide['means']:.2f}", f"{wide[SPARING]:.2f}" if SPARING in wide else "",
            ", ".join(f"{100 * gap:.1f}" for gap in gaps),
            f"{100 * row['bias']:.2f}", f"{100 * row['bias_beyond_placebo']:.2f}",
            f"{by['of']:.2f}", f"{by['off']:.2f}",
        ]  # fmt: skip
        lines.append(_line(name, cells))
    made = (
        f"{results['date']}, {results['hardware']}, vit-audit {results['version']}, torch {results['torch']}. "
        f"{s['models']} models and {s['models'] * s['runs']} draws of images a row, six parts each, {SHUFFLES} "
        f"shuffles of the groups, {RESAMPLES} draws of the bootstrap, seed {s['seed']}; settled with seed 1."
    )
    return "\n".join([made, "", formula_table(results["formulas"]), "", *lines])


def formula_table(rows: Figures) -> str:
    """Return the table of the formulas."""
    lines = [BY_FORMULA]
    for name, row in rows.items():
        cells = [row["coverage"][k][of] for k in ("with", "without") for of in ("probability", "log_odds")]
        lines.append(_line(name, [f"{row['runs']:,}", *map(_pct, [*cells, row["taken"], row["placebo_quiet"]])]))
    return "\n".join(lines)


def _line(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _pct(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


@click.command()
@click.option("--models", default=2, show_default=True, help="Models of a world.")
@click.option("--runs", default=10, show_default=True, help="Draws of images for each model.")
@click.option("--draws", default=200, show_default=True, help="Draws of each formula.")
@click.option("--seed", default=11, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="What is done lies there; it resumes.")
@click.option("--json", "out", type=click.Path(path_type=Path), default=HERE / "results.json")
def main(models: int, runs: int, draws: int, seed: int, work: Path, out: Path) -> None:
    """Count, and write what came out."""
    torch.set_num_threads(1)
    formulas = {}
    for place, (name, formula) in enumerate(FORMULAS.items()):
        own = seed + 100 * place
        path = work / f"formula-{own}-{draws}.json"
        if not path.is_file():
            write_text(path, json.dumps(count(formula, draws, own)))
        formulas[name] = json.loads(path.read_text(encoding="utf-8"))
    done: dict[str, list[Figures]] = {name: [] for name in WORLDS}
    for number in range(models):  # world after world, so that what is done of all is alike
        for place, (name, world) in enumerate(WORLDS.items()):
            own = seed + 100 * place
            done[name].append(told_by(world, number, runs, own, work / f"{own}-{number}-{runs}.json"))
            click.echo(f"{name}, model {number + 1}")
    worlds = {
        name: summed([run for model in of for run in model["told"]], [model["gap"] for model in of])
        for name, of in done.items()
    }
    results = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": platform.processor() or platform.machine(),
        "version": __version__,
        "torch": torch.__version__,
        "settings": {"models": models, "runs": runs, "draws": draws, "seed": seed},
        "formulas": formulas,
        "worlds": worlds,
    }
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if out == HERE / "results.json":
        write_figures(HERE / "README.md", tables(results))


if __name__ == "__main__":
    main()
