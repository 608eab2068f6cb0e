"""Race the exact sweep on an accelerator against plain hooks, with as many images at once as each can take.

python benchmarks/sweep/on_cuda.py --json benchmarks/sweep/results-cuda.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

from audit.models.device import CUDA, device_name, open_device  # noqa: E402
from benchmarks.sweep import environment  # noqa: E402
from benchmarks.sweep.cases import Case, build, draw_images  # noqa: E402
from benchmarks.sweep.contenders import CONTENDERS, Sweep  # noqa: E402
from benchmarks.sweep.summary import HOOKS, ROUGH, TOLERANCE, TOOL  # noqa: E402

NAMES = (TOOL, ROUGH, HOOKS)
CASES = (
    Case("vit_tiny_patch16_224", 256, 5),
    Case("vit_small_patch16_224", 256, 5),
    Case("vit_base_patch16_224", 64, 5),
)
SEED = 7
MIB = 2**20


@torch.inference_mode()
def race(case: Case, device: torch.device, seed: int) -> dict[str, Any]:
    """Run the contenders in turns, in an order shuffled for every round, after a round that warms up.

    Returns
    -------
    dict
        By contender: the median of ``seconds``, ``peak_mib`` beyond model and images, ``hooks_ratio`` (plain hooks'
        seconds by its own, of each round: median, smallest, largest), ``max_abs_diff`` of any logit from plain hooks'.
    """
    model = build(case, seed).to(device)
    images, donors = (t.to(device) for t in draw_images(model, case.images, seed))
    layers = range(len(model.blocks))
    sweeps: dict[str, Sweep] = {name: CONTENDERS[name](model) for name in NAMES}
    order, rounds = np.random.default_rng(seed), []
    peak, apart = dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, 0.0)
    for number in range(case.repeats + 1):
        seconds, logits = {}, {}
        for name in order.permutation(NAMES):
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            seconds[name], logits[name] = _timed(partial(sweeps[name], images, donors, layers))
            peak[name] = max(peak[name], torch.cuda.max_memory_allocated() - held)
        for name, found in logits.items():
            apart[name] = max(float((found - logits[HOOKS]).abs().max()), apart[name])  # what is no number stays
        rounds += [seconds] if number else []
    return {name: _about(name, rounds) | {"peak_mib": peak[name] // MIB, "max_abs_diff": apart[name]} for name in NAMES}


def _timed(work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Do some work, and wait until the accelerator has done it."""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    found = work()
    torch.cuda.synchronize()
    return time.perf_counter() - begun, found


def _about(name: str, rounds: list[dict[str, float]]) -> dict[str, Any]:
    ratios = [laps[HOOKS] / laps[name] for laps in rounds]
    return {
        "seconds": round(float(np.median([laps[name] for laps in rounds])), 3),
        "hooks_ratio": [round(float(f(ratios)), 2) for f in (np.median, np.min, np.max)],
    }


def table(results: dict[str, Any]) -> str:
    """Print results as Markdown."""
    lines = [
        "| model | contender | seconds | plain hooks / it | peak MiB | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for label, case in results["cases"].items():
        for name, found in case.items():
            middle, least, most = found["hooks_ratio"]
            ratio = "1" if name == HOOKS else f"{middle:.2f} [{least:.2f}, {most:.2f}]"
            cells = (label, name, f"{found['seconds']:.2f}", ratio, found["peak_mib"], f"{found['max_abs_diff']:.1e}")
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    """Race; return 1 if the tool's logits in float32 are not those of plain hooks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=SEED, help="of weights, images and the order of the contenders")
    parser.add_argument("--json", type=Path, help="write the result there")
    asked = parser.parse_args()
    device = open_device(CUDA)
    results = {
        "cases": {case.label: race(case, device, asked.seed) for case in CASES},
        "made_with": {
            "device": device_name(device), "torch": torch.__version__, "timm": timm.__version__, "seed": asked.seed,
            "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": environment.commit(),
        },
    }  # fmt: skip
    if asked.json is not None:
        asked.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    return int(not all(case[TOOL]["max_abs_diff"] <= TOLERANCE for case in results["cases"].values()))


if __name__ == "__main__":
    sys.exit(main())
