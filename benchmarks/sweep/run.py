"""Race the exact sweep against its peers, and against the arithmetic.

    python benchmarks/sweep/run.py --quick --json out.json    # minutes, once the peers are installed
    python benchmarks/sweep/run.py                            # the published run
    python benchmarks/sweep/run.py --table                    # its tables, as Markdown

Peers are installed into an environment of their own in the work folder, and the race is run there; whatever Python
starts it needs nothing but itself. A case that is done is stored, so that the same command resumes after an
interruption; a finished run leaves nothing stored, and the next one measures again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

from benchmarks.sweep import environment, summary  # noqa: E402

if TYPE_CHECKING:
    from benchmarks.sweep.cases import Case

SEED = 7
TINY, SMALL, BASE = (f"vit_{size}_patch16_224" for size in ("tiny", "small", "base"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the race in its own environment; return 1 if any contender's logits are not those of plain hooks."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    if options.table is not None:
        print(summary.table(json.loads(options.table.read_text(encoding="utf-8"))))
        return 0
    python = environment.make_environment(options.work)
    if not environment.is_inside(python):
        return subprocess.run([str(python), __file__, *given], check=False).returncode
    results = measure(quick=options.quick, work=options.work, seed=options.seed)
    out = options.out or (options.work / "quick.json" if options.quick else HERE / "results.json")
    publish(results, out)
    print(summary.table(results))
    faults = summary.disagreements(results)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few images, two rounds; the figures mean little")
    parser.add_argument(
        "--json",
        dest="out",
        type=Path,
        help="where results go, cost.svg beside them; default: here, or the work folder",
    )
    parser.add_argument("--work", type=Path, default=HERE / "work", help="where the peers and unfinished runs are kept")
    parser.add_argument("--seed", type=int, default=SEED, help="of weights, images and the order of the contenders")
    parser.add_argument(
        "--table", type=Path, nargs="?", const=HERE / "results.json", help="print the tables of stored results, no more"
    )
    return parser


def measure(*, quick: bool, work: Path, seed: int) -> summary.Json:
    """Race over all cases, and return the figures with all that they were made with."""
    import torch

    from audit.batching import keep_freed_memory
    from benchmarks.sweep.contenders import CONTENDERS
    from benchmarks.sweep.race import cost_series

    begun, load = time.monotonic(), os.getloadavg()[0]
    keep_freed_memory()
    rows = work / f"rows-{_code_hash()[:12]}-{'quick' if quick else 'full'}-{seed}"
    records = {}
    for case, with_memory in _cases(quick=quick):
        records[case.label] = measure_and_store(case, rows, seed, with_memory=with_memory)
        print(f"{case.label}: done after {(time.monotonic() - begun) / 60:.1f} min", file=sys.stderr)
    results = summary.summarise(records)
    series = _series(quick=quick)
    model = series["images"][0].model
    fastest = next(case["fastest_peer"] for label, case in results["cases"].items() if label.startswith(model))
    compared = {name: CONTENDERS[name] for name in (summary.TOOL, summary.HOOKS, fastest) if name is not None}
    results["series"] = {"model": model, "of": cost_series(series, compared, seed)}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        results["control_variate_saving"] = pool.submit(_saving, quick=quick).result()
    results["made_with"] = {
        "command": "python benchmarks/sweep/run.py" + " --quick" * quick,
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": environment.commit(),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "hardware": environment.hardware(),
        "load_before": round(load, 2),
        "versions": environment.versions(),
    }
    shutil.rmtree(rows)
    return results


def _saving(*, quick: bool) -> summary.Json:
    """Measure what first-order estimates save; in a process of its own, for nnsight changes ``object`` in this one."""
    from audit.batching import keep_freed_memory
    from benchmarks.sweep.saving import measure_saving

    keep_freed_memory()
    return measure_saving(quick=quick)


def _cases(*, quick: bool) -> list[tuple[Case, bool]]:
    """Return what is raced over, and of which of them memory is measured too."""
    from benchmarks.sweep.cases import DEMO, Case

    if quick:
        return [(Case(DEMO, 16, 2), True), (Case(TINY, 2, 2), False), (Case(SMALL, 1, 2), False)]
    cases = [Case(DEMO, 64, 9), Case(TINY, 16, 3), Case(TINY, 64, 1), Case(SMALL, 8, 3), Case(BASE, 4, 2)]
    return [(case, True) for case in cases]


def _series(*, quick: bool) -> dict[str, list[Case]]:
    """Return the cases of the plot, by what is varied in them."""
    from benchmarks.sweep.cases import DEMO, Case

    if quick:
        return _varied(Case(DEMO, 8, 2), images=(4, 8, 16), heads=(2, 4, 8), depths=(2, 4, 8))
    return _varied(Case(TINY, 4, 3), images=(2, 4, 8, 16), heads=(1, 2, 3, 6), depths=(3, 6, 9, 12))


def _varied(base: Case, *, images: Sequence[int], heads: Sequence[int], depths: Sequence[int]) -> dict[str, list[Case]]:
    return {
        "images": [replace(base, images=n) for n in images],
        "heads": [replace(base, heads=n) for n in heads],
        "depth": [replace(base, depth=n) for n in depths],
    }


def measure_and_store(case: Case, rows: Path, seed: int, *, with_memory: bool) -> summary.Json:
    """Race over one case, or take up what an interrupted run has stored of it."""
    from audit.store import folder_name, write_text
    from benchmarks.sweep.contenders import CONTENDERS
    from benchmarks.sweep.race import peak_memory, race

    path = rows / f"{folder_name(case.label)}.json"
    if not path.is_file():
        record = race(case, CONTENDERS, seed)
        if with_memory:
            record.peak_bytes = peak_memory(case, [name for name in CONTENDERS if name in record.rounds[0]], seed)
        write_text(path, json.dumps(asdict(record), indent=1))
    found: summary.Json = json.loads(path.read_text(encoding="utf-8"))
    return found


def _code_hash() -> str:
    """SHA-256 over the code of the tool and of the race: what other code has measured is not taken up."""
    digest = hashlib.sha256()
    for source in (*sorted((ROOT / "audit").rglob("*.py")), *sorted(HERE.glob("*.py"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def publish(results: summary.Json, out: Path) -> None:
    """Write the results, and the plot beside them."""
    from audit.store import write_text
    from benchmarks.sweep.plot import plot_cost

    write_text(out, json.dumps(results, indent=1) + "\n")
    plot_cost(results["series"]["of"], results["series"]["model"], out.with_name("cost.svg"))


if __name__ == "__main__":
    sys.exit(main())
