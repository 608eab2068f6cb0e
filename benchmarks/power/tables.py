"""The tables of the page, from the figures of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.power.decide import RULES

Figures = dict[str, Any]
PERCENT = 100

SHARES = {
    "of_pair": "of the variance of effects, what recipients of one donor pair share",
    "between_columns": "correlation of two heads' effects",
    "slope_variation": "p (1 - p), its standard deviation over its mean",
    "size_with_slope": "correlation of p (1 - p) with the size of an effect",
    "kurtosis": "kurtosis of effects",
    "width_with_more": "half-width with two pairs on average, more where answers move, beside one each",
    "width_beside_two": "beside two each",
}


def tables(results: Figures) -> str:
    """Return all tables, one after the other."""
    s = results["settings"]
    made = (
        f"{results['date']}, {results['hardware']}, one thread, {results['cpu_minutes']:.1f} minutes of it, vit-audit "
        f"{results['version']}. {s['null']:,} draws where nothing carries anything, {s['draws']:,} where something "
        f"does, {s['permutations']} swaps, {s['bootstrap']} draws of the bootstrap, seed {s['seed']}; "
        "settled with seed 1."
    )
    parts = [[made], _shares(results["shares"])]
    parts += [_donors(cost, arms) for cost, arms in results["donors"].items()]
    for cost, names in s["rules_of"].items():
        parts += [_rules(cost, {name: results["donors"][cost][name] for name in names})]
    parts += [_trees(results["trees"])]
    return "\n\n".join("\n".join(lines) for lines in parts)


def _shares(told: Figures) -> list[str]:
    lines = _head("what effects are made of", ["reports/sample: mean", "from", "to", "simulated"])
    for name, words in SHARES.items():
        sample, own = told["sample"][name], told["simulation"][name]
        lines.append(_line(words, [f"{v:.2f}" for v in (sample["mean"], sample["least"], sample["most"], own["mean"])]))
    return lines


def _donors(cost: str, arms: Figures) -> list[str]:
    lines = _head(
        f"{cost}: donor pairs a recipient",
        [
            "patches a head and half", "recipients", "pairs", "clusters", "half-width",
            "in nothing, some head found", "confirmed", "of three heads confirmed",
            "intervals hold the truth in nothing", "beside three heads",
        ],
    )  # fmt: skip
    first = next(iter(arms.values()))
    for name, arm in arms.items():
        nothing, some = (world["today"] for world in arm["worlds"].values())
        width = nothing["half_width"] / next(iter(first["worlds"].values()))["today"]["half_width"]
        sizes = [f"{arm[what]:,}" for what in ("patches", "recipients", "pairs", "clusters")]
        found = [_interval(nothing["found_false"]), _interval(nothing["confirmed_false"]), _mean(some["power"])]
        lines.append(_line(name, [*sizes, f"{width:.2f}", *found, _mean(nothing["coverage"]), _mean(some["coverage"])]))
    return lines


def _rules(cost: str, arms: Figures) -> list[str]:
    lines = _head(
        f"{cost}: pairs, rule",
        [
            "false head confirmed, at most", "in nothing", "beside three heads", "of three heads confirmed",
            "any of them", "quoted intervals hold the truth in nothing", "beside three heads", "of what is confirmed",
            "all confirmed within those at once",
        ],
    )  # fmt: skip
    for name, arm in arms.items():
        nothing, some = arm["worlds"].values()
        for rule in RULES:
            a, b = nothing[rule], some[rule]
            cells = [
                f"{PERCENT * RULES[rule].bound:.2f}%", _interval(a["confirmed_false"]), _interval(b["confirmed_false"]),
                _mean(b["power"]), _pct(b["any_true"]["estimate"]), _mean(a["coverage"]), _mean(b["coverage"]),
                _interval(b.get("coverage_of_confirmed")), _interval(b.get("all_confirmed_held_at_once")),
            ]  # fmt: skip
            lines.append(_line(f"{name}: {rule}", cells))
    return lines


def _trees(worlds: Figures) -> list[str]:
    """Return what today's rule confirms; found wrongly is on the discovery half."""
    levels = ["head", "layer", "third", "kind", "whole"]
    lines = _head(
        "what carries: what is tested, today's rule",
        [
            "patches a half", "some false node found", "confirmed", "some true node confirmed",
            *levels, "intervals hold the truth", "of what is confirmed", "all confirmed within those at once",
        ],
    )  # fmt: skip
    for world, arms in worlds.items():
        for name, arm in arms.items():
            told = arm["today"]
            cells = [
                f"{arm['patches']:,}", *(_interval(told[of]) for of in ("found_false", "confirmed_false")),
                _interval(told.get("any_true")),
                *(_pct(told["levels"].get(level)) if "any_true" in told else "" for level in levels),
                _mean(told["coverage"]), _interval(told.get("coverage_of_confirmed")),
                _interval(told.get("all_confirmed_held_at_once")),
            ]  # fmt: skip
            lines.append(_line(f"{world}: {name}", cells))
    return lines


def _head(first: str, others: Sequence[str]) -> list[str]:
    return [f"| {first} | {' | '.join(others)} |", "|---" * (1 + len(others)) + "|"]


def _line(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _pct(value: float | None) -> str:
    return "" if value is None else f"{PERCENT * value:.1f}%"


def _interval(share: Figures | None) -> str:
    if share is None:
        return ""
    return f"{_pct(share['estimate'])} [{PERCENT * share['low']:.1f}, {PERCENT * share['high']:.1f}]"


def _mean(told: Figures) -> str:
    return f"{_pct(told['estimate'])} ± {PERCENT * told['error']:.1f}"
