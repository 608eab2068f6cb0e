"""From one row per model to the figures of the benchmark, each with its interval and n."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from audit.patching.parts import Kind, Part, parse_part
from benchmarks.planted.rivals import TOOL
from benchmarks.planted.summary import Figure, mean, ranking, share, share_within
from benchmarks.real_planted.models import PLANTED

Row = Mapping[str, Any]
HEADS = PLANTED[:2]  # kinds whose planted parts are heads
LEDGERS = ("written", "trained", "carried")
ERRORS = 2.0  # a head whose true effect is further from 0 than so many of its standard errors carries something


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return every figure of the benchmark.

    Parameters
    ----------
    rows : sequence of mapping
        As ``measure.measure`` returns them.
    """
    audits = [audit for r in rows for audit in r.get("audits", ())]
    enough = [audit for audit in audits if audit["enough"]]
    planted = [r for r in rows if r["kind"] in PLANTED]
    of_heads = [r for r in planted if r["kind"] in HEADS]
    detected = [r for r in of_heads if r["detected"]]
    mlps = [r for r in planted if r["kind"] == "one MLP"]
    return {
        "models": {
            "planted": len(planted),
            "with permuted groups": len(rows) - len(planted),
            "heads planted": len({p for r in of_heads for p in r["planted"]}),
        },
        "false_positive_rate": share([bool(a["named"]) for a in audits]),
        "false_positive_rate_without_a_gap_gate": {
            "confirmed": share([bool(a["confirmed"]) for a in enough]),
            "discovered": share([bool(a["discovered"]) for a in audits]),
        },
        "false_positive_rate_where_a_gap_is_detected_by_chance": share(
            [bool(a["named"]) for a in audits if a["detected"]]
        ),
        "gap_detected_where_groups_mean_nothing": share([a["detected"] for a in audits]),
        "donors_enough_where_groups_mean_nothing": share([a["enough"] for a in audits]),
        "planted_mlps": {
            "a_head_is_named": share([bool(r["named"]) for r in mlps if r["detected"]]),
            "named_heads_that_carry_something": share(_carrying(mlps)),
        },
        "gap_detected": _by(planted, lambda group: share([r["detected"] for r in group])),
        "true_gap": _by(planted, lambda group: mean([r["true_gap"]["value"] for r in group])),
        "true_mediated_by_planted_heads": _by(of_heads, lambda group: mean(_true_of_planted(group))),
        "hit_at_1": share([_hit(r, r["scores"][TOOL]) for r in detected]),
        "hit_at_1_by_kind": _by(detected, lambda group: share([_hit(r, r["scores"][TOOL]) for r in group])),
        "planted_heads_named": share([set(r["planted"]) <= set(r["named"]) for r in detected]),
        "other_heads_named": mean([len(set(r["named"]) - set(r["planted"])) for r in detected]),
        "coverage": share_within([r["covered"] for r in planted]),
        "coverage_of_gaps": share([bool(r["gap_covered"]) for r in planted if r["gap_covered"] is not None]),
        "ledger_closure_max_abs": _closure(planted),
        **{name: _ledger(planted, name) for name in LEDGERS},
        "rivals": _rivals(detected),
    }


def _by(rows: Sequence[Row], figure: Callable[[list[Row]], Figure]) -> dict[str, Figure]:
    """Return a figure for each kind and dose."""
    keys = sorted({(PLANTED.index(r["kind"]), r["dose"]) for r in rows})
    return {
        f"{PLANTED[kind]}, dose {dose:g}": figure(
            [r for r in rows if (PLANTED.index(r["kind"]), r["dose"]) == (kind, dose)]
        )
        for kind, dose in keys
    }


def _carrying(rows: Sequence[Row]) -> list[bool]:
    """Tell of the heads that are named, and whose truth was measured, whether they carry something."""
    known = [r["true_mediated"][name] for r in rows for name in r["named"] if name in r["true_mediated"]]
    return [abs(k["value"]) > ERRORS * k["error"] for k in known]


def _true_of_planted(rows: Sequence[Row]) -> list[float]:
    return [r["true_mediated"][name]["value"] for r in rows for name in r["planted"]]


def _hit(row: Row, scores: Mapping[str, float], names: Sequence[str] | None = None) -> bool:
    """Tell whether the first by size is planted, or one of ``names``."""
    wanted = set(row["planted"] if names is None else names)
    return bool(scores) and max(scores, key=lambda name: abs(scores[name])) in wanted


def part_of(name: str) -> str:
    """Return the attention of a head's layer; of an MLP itself."""
    part = parse_part(name)
    return name if part.kind is Kind.MLP else str(Part(Kind.ATTENTION, part.layer))


def layer_of(name: str) -> str:
    """Return a part's layer."""
    return str(Part(Kind.LAYER, parse_part(name).layer))


def _values(rows: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    return {name: row["value"] or 0.0 for name, row in rows.items()}


def _first(row: Row, ledger: str) -> bool:
    """Tell whether a ledger names the planted part first: a head as such, or the attention that it is of."""
    parts = [part_of(name) for name in row["planted"]]
    if ledger == "written":
        return _hit(row, _values(row["written"]["rows"]))
    if ledger == "trained":
        return _hit(row, row["trained"]["paths"], parts)
    return _hit(row, _values(row["carried"]["rows"]), parts)


def _ledger(planted: Sequence[Row], name: str) -> dict[str, Any]:
    """Return a ledger's figures: of models whose gap was detected, and the coverage of its rows of all."""
    asked = [r for r in planted if r["detected"]]
    draws = [draw for r in planted for draw in r["by_chance"][name]]
    found: dict[str, Any] = {
        "hit_at_1": share([_first(r, name) for r in asked]),
        "hit_at_1_by_kind": {kind: share([_first(r, name) for r in asked if r["kind"] == kind]) for kind in PLANTED},
        "coverage": share_within([[c for c in r[name]["covered"] if c is not None] for r in planted]),
        # of the rows of two ledgers how many intervals exclude 0; of what parts carry, in how many draws any is named
        "false_positive_rate": share([any(draw) for draw in draws]) if name == "carried" else share_within(draws),
    }
    if name == "trained":
        parted = [r for r in asked if r["kind"] in HEADS]
        found |= {
            "block_first": share([_hit(r, r["trained"]["orders"], list(map(layer_of, r["planted"]))) for r in asked]),
            "head_first": share([_hit(r, r["trained"]["heads"]) for r in parted]),
            "coverage_log_odds": share_within(
                [[c for c in r[name]["covered_log_odds"] if c is not None] for r in planted]
            ),
        }
    return found


def _closure(planted: Sequence[Row]) -> dict[str, float]:
    """Return by how much the rows of any model's ledger miss its total."""
    names = dict.fromkeys(name for r in planted for name in r["closure"])
    return {name: max(r["closure"][name] for r in planted) for name in names}


def _rivals(detected: Sequence[Row]) -> dict[str, dict[str, Figure]]:
    """Return how well each method ranks the heads of models with planted heads whose gap was detected."""
    methods = sorted({m for r in detected for m in r["scores"]}, key=lambda m: (m != TOOL, m))
    figures = {}
    for method in methods:
        ranked = [ranking(r["scores"][method], r["planted"]) for r in detected]
        own = [ranking(r["scores"][TOOL], r["planted"]) for r in detected]
        figures[method] = {
            "hit_at_1": share([_hit(r, r["scores"][method]) for r in detected]),
            "auroc": mean([found["auroc"] for found in ranked]),
            "auroc_tool_minus_it": mean([a["auroc"] - b["auroc"] for a, b in zip(own, ranked, strict=True)]),
            "mrr": mean([found["mrr"] for found in ranked]),
        }
    return figures


def table(results: Mapping[str, Any]) -> str:
    """Write the figures as Markdown tables."""
    gate, mlps = results["false_positive_rate_without_a_gap_gate"], results["planted_mlps"]
    lines = ["| figure | estimate | 95% interval | n |", "|---|---|---|---|"]
    named = [
        ("groups permuted: a head is named", results["false_positive_rate"]),
        ("groups permuted: a gap is detected", results["gap_detected_where_groups_mean_nothing"]),
        ("- in these a head is named", results["false_positive_rate_where_a_gap_is_detected_by_chance"]),
        ("groups permuted: donors are enough to confirm heads", results["donors_enough_where_groups_mean_nothing"]),
        ("- in these, gap or no gap, a head is confirmed", gate["confirmed"]),
        ("groups permuted, gap or no gap: a head is discovered", gate["discovered"]),
        ("gap planted in an MLP: a head is named", mlps["a_head_is_named"]),
        ("- of these heads, the truth is beyond 2 standard errors", mlps["named_heads_that_carry_something"]),
        *((f"a gap is detected: {name}", figure) for name, figure in results["gap_detected"].items()),
        ("planted head first (of two, one of them), where a gap is detected", results["hit_at_1"]),
        *((f"- {name}", figure) for name, figure in results["hit_at_1_by_kind"].items()),
        ("all planted heads named, where a gap is detected", results["planted_heads_named"]),
        ("heads named besides them, mean", results["other_heads_named"]),
        ("coverage of heads' mediated gaps", results["coverage"]),
        ("coverage of gaps", results["coverage_of_gaps"]),
    ]
    lines += [_line(*item) for item in named]
    lines += ["", "| what is true, points | mean | 95% interval | n |", "|---|---|---|---|"]
    lines += [_line(f"gap: {name}", _points(f), 1) for name, f in results["true_gap"].items()]
    carried = results["true_mediated_by_planted_heads"]
    lines += [_line(f"carried by a planted head: {name}", _points(f), 1) for name, f in carried.items()]
    return "\n".join([*lines, *_ledger_lines(results), *_rival_lines(results["rivals"])]) + "\n"


def _ledger_lines(results: Mapping[str, Any]) -> list[str]:
    lines = ["", "| ledger | planted part first: one head | two heads | one MLP | coverage of rows | false alarms |"]
    lines.append("|---|---|---|---|---|---|")
    for name in LEDGERS:
        found = results[name]
        shown = [*found["hit_at_1_by_kind"].values(), found["coverage"], found["false_positive_rate"]]
        lines.append(f"| {name} | {' | '.join(map(_text, shown))} |")
    trained = results["trained"]
    lines += ["", "| which trained weights | estimate | 95% interval | n |", "|---|---|---|---|"]
    lines.append(_line("the planted part's block first, over all orders", trained["block_first"]))
    lines.append(_line("planted head first among the heads of the layer that is parted", trained["head_first"]))
    lines.append(_line("coverage of rows in log-odds", trained["coverage_log_odds"]))
    lines += ["", "| rows of a ledger miss its total by at most | |", "|---|---|"]
    return lines + [f"| {name} | {value:.1e} |" for name, value in results["ledger_closure_max_abs"].items()]


def _rival_lines(figures: Mapping[str, Mapping[str, Figure]]) -> list[str]:
    columns = ("hit_at_1", "auroc", "auroc_tool_minus_it", "mrr")
    lines = ["", "| ranking by | planted head first | AUROC | this tool's minus it | MRR |", "|---|---|---|---|---|"]
    in_order = sorted(figures.items(), key=lambda item: (item[0] != TOOL, -(item[1]["auroc"]["estimate"] or 0.0)))
    return lines + [f"| {method} | {' | '.join(_text(f[c]) for c in columns)} |" for method, f in in_order]


def _points(figure: Figure) -> Figure:
    return {k: v if v is None or k == "n" else 100 * v for k, v in figure.items()}


def _line(name: str, figure: Figure, digits: int = 3) -> str:
    if figure["estimate"] is None:
        return f"| {name} | none | | 0 |"
    low, high = figure["low"], figure["high"]
    interval = "" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"
    return f"| {name} | {figure['estimate']:.{digits}f} | {interval} | {figure['n']} |"


def _text(figure: Figure) -> str:
    if figure["estimate"] is None:
        return "none"
    low, high = figure["low"], figure["high"]
    interval = "" if low is None or high is None or np.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    return f"{figure['estimate']:.2f}{interval} of {figure['n']}"
