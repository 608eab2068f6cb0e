"""From laps to figures: ratios inside one round, their median and spread, and the tables of the README.

Nothing but the standard library is imported here, so that a table can be printed from stored results anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

TOOL, HOOKS, SKIP, FLOOR = "this tool", "plain hooks", "nnsight, prefix skipped by hand", "floor"
ROUGH = "this tool in bfloat16"  # need not agree, and is in none of the headline ratios
NO_PEERS = (TOOL, ROUGH, HOOKS, SKIP, FLOOR)  # whoever else takes part is a peer as its documentation teaches it
TOLERANCE = 1e-4  # largest difference of any logit from plain hooks'
RATIOS = ("ratio_fastest_peer", "ratio_nnsight_skip", "ratio_floor")
MIB, GIGA = 2**20, 1e9

Json = dict[str, Any]
Laps = Mapping[str, Mapping[str, float]]  # by contender: seconds and cpu_seconds


def ratio(rounds: Sequence[Laps], over: str, under: str) -> dict[str, float]:
    """Return the ratio of two contenders' times: median and range over rounds, and the median in CPU seconds."""
    wall, cpu = ([laps[over][unit] / laps[under][unit] for laps in rounds] for unit in ("seconds", "cpu_seconds"))
    return {"median": median(wall), "min": min(wall), "max": max(wall), "cpu_median": median(cpu)}


def median_of(rounds: Sequence[Laps], name: str, unit: str = "seconds") -> float:
    """Return a contender's median time in seconds."""
    return median(laps[name][unit] for laps in rounds)


def fastest_peer(rounds: Sequence[Laps]) -> str | None:
    """Return the peer with the smallest median time, or None if none could be run."""
    return min((n for n in rounds[0] if n not in NO_PEERS), key=lambda name: median_of(rounds, name), default=None)


def summarise(records: Mapping[str, Json]) -> Json:
    """Return the figures of all cases: each key of the race by case, and all else about a case under "cases".

    Parameters
    ----------
    records : mapping of str to dict
        ``race.Record`` of each case, as a dict.
    """
    results: Json = {key: {} for key in (*RATIOS, "max_abs_diff", "cases")}
    for label, record in records.items():
        rounds, fastest = record["rounds"], fastest_peer(record["rounds"])
        for key, over, under in zip(RATIOS, (fastest, SKIP, TOOL), (TOOL, TOOL, FLOOR), strict=True):
            ran = over in rounds[0]
            results[key][label] = ratio(rounds, over, under) if over is not None and ran else None
        results["max_abs_diff"][label] = max(v for name, v in record["max_abs_diff"].items() if name != ROUGH)
        results["cases"][label] = _about(record, fastest)
    return results


def _about(record: Json, fastest: str | None) -> Json:
    rounds = record["rounds"]
    seconds = {unit: {n: median_of(rounds, n, unit) for n in rounds[0]} for unit in ("seconds", "cpu_seconds")}
    return {
        "rounds": len(rounds),
        "fastest_peer": fastest,
        **seconds,
        "ratio_to_this_tool": {n: ratio(rounds, n, TOOL) for n in rounds[0] if n != TOOL},
        "peak_mib": {name: peak / MIB for name, peak in record["peak_bytes"].items()},
        "max_abs_diff": record["max_abs_diff"],
        "smallest_effect": record["smallest_effect"],
        "failed": record["failed"],
        "bound_gflop": record["bound_flops"] / GIGA,
        "naive_gflop": record["naive_flops"] / GIGA,
        "naive_to_bound": record["naive_flops"] / record["bound_flops"],
        "gemm_gflop_per_second": record["bound_flops"] / GIGA / seconds["seconds"][FLOOR],
    }


def disagreements(results: Json) -> list[str]:
    """Name the contenders whose logits are not those of plain hooks."""
    return [
        f"{label}: {name} differs from plain hooks by {apart:.2g}, more than {TOLERANCE:.0e}"
        for label, case in results["cases"].items()
        for name, apart in case["max_abs_diff"].items()
        if name != ROUGH and not apart <= TOLERANCE
    ]


def table(results: Json) -> str:
    """Return the figures as Markdown: ratios, then what each contender took."""
    return "\n\n".join((_ratio_table(results), _cost_table(results)))


def _ratio_table(results: Json) -> str:
    head = (
        "| model | fastest peer / this tool | nnsight, prefix skipped / this tool | this tool / floor "
        "| largest difference | naive / fewest operations |"
    )
    lines = [head, "|---" * 6 + "|"]
    for label, case in results["cases"].items():
        peer, skip, floor = (_with_range(results[key][label]) for key in RATIOS)
        named = f"{peer} ({case['fastest_peer']})" if case["fastest_peer"] else peer
        apart, fewer = f"{results['max_abs_diff'][label]:.1e}", f"{case['naive_to_bound']:.2f}"
        lines.append(f"| {label} | {named} | {skip} | {floor} | {apart} | {fewer} |")
    return "\n".join(lines)


def _with_range(found: Mapping[str, float] | None) -> str:
    return "none" if found is None else f"{found['median']:.2f} [{found['min']:.2f}, {found['max']:.2f}]"


def _cost_table(results: Json) -> str:
    lines = ["| model | contender | seconds | CPU seconds | / this tool | peak MiB |", "|---" * 6 + "|"]
    for label, case in results["cases"].items():
        for name, seconds in case["seconds"].items():
            compared = _with_range(case["ratio_to_this_tool"].get(name)) if name != TOOL else "1"
            peak = f"{case['peak_mib'][name]:.0f}" if name in case["peak_mib"] else ""
            cells = (label, name, f"{seconds:.2f}", f"{case['cpu_seconds'][name]:.2f}", compared, peak)
            lines.append(f"| {' | '.join(cells)} |")
        lines += [f"| {label} | {name} | could not be run: {reason} | | | |" for name, reason in case["failed"].items()]
    return "\n".join(lines)
