"""Kill runs and feed damaged input; count what is lost, different, shown as a traceback, or hanging.

python benchmarks/faults/run.py                     # the published size: half an hour on 2 cores
python benchmarks/faults/run.py --quick --json out.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

from benchmarks.faults.kills import Killed, durability_share, kill_runs  # noqa: E402
from benchmarks.faults.mutations import Mutated, mutate  # noqa: E402

FULL, QUICK = (200, 5000), (6, 200)  # kills, mutations
SHOWN = 20


def measure(kills: int, mutations: int, seed: int, work: Path) -> dict[str, Any]:
    """Share kills, then mutations, out over two processes; each has a seed of its own.

    Returns
    -------
    dict
        ``kills``, ``mutations``, ``lost``, ``different``, ``unclean``, ``tracebacks``, ``hangs``, and what they
        consist of.
    """
    begun = time.monotonic()
    share = durability_share(work / "timed")
    with ProcessPoolExecutor(2) as pool:
        killed = list(pool.map(kill_runs, (work / "a", work / "b"), _halves(kills), (seed, seed + 1)))
        mutated = list(pool.map(mutate, _halves(mutations), (seed, seed + 1)))
    return {
        **summary(killed, mutated),
        "durability_share": round(share, 4),
        "seed": seed,
        "minutes": round((time.monotonic() - begun) / 60, 1),
    }


def summary(killed: list[Killed], mutated: list[Mutated]) -> dict[str, Any]:
    """Add up what several processes found."""
    every: list[Killed | Mutated] = [*killed, *mutated]
    return {
        "kills": sum(k.kills for k in killed),
        "mutations": sum(m.mutations for m in mutated),
        "lost": sum(k.lost for k in killed),
        "different": sum(k.different for k in killed),
        "unclean": sum(k.unclean for k in killed),
        "tracebacks": sum(m.tracebacks for m in mutated),
        "hangs": sum(part.hangs for part in every),
        "runs": sum(k.runs for k in killed),
        "stages": dict(sum((k.stages for k in killed), Counter()).most_common()),
        "signals": dict(sum((k.signals for k in killed), Counter()).most_common()),
        "mutated": dict(sum((m.by_kind for m in mutated), Counter()).most_common()),
        "refused": dict(sum((m.refused for m in mutated), Counter()).most_common()),
        "faults": [fault for part in every for fault in part.faults][:SHOWN],
    }


def _halves(number: int) -> tuple[int, int]:
    return number - number // 2, number // 2


def _about() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "code": commit.stdout.strip(),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
    }


def main() -> None:
    """Measure, and print or write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK[0]} kills and {QUICK[1]} mutations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result there")
    asked = parser.parse_args()
    kills, mutations = QUICK if asked.quick else FULL
    with tempfile.TemporaryDirectory() as place:
        result = {**measure(kills, mutations, asked.seed, Path(place)), **_about()}
    text = json.dumps(result, indent=1) + "\n"
    if asked.json is not None:
        asked.json.write_text(text, encoding="utf-8")
    print(text, end="")
    sys.exit(any(result[key] for key in ("lost", "different", "unclean", "tracebacks", "hangs")))


if __name__ == "__main__":
    main()
