"""Run what docs/results.md quotes, and write every table of that page and every figure of README.md.

    python benchmarks/results.py                  # everything: audits of rendered faces, some minutes each
    python benchmarks/results.py --only planted   # one section; those of other benchmarks are read, not run
    python benchmarks/results.py --sample         # the demo alone, and its shareable copy in reports/sample
    python benchmarks/results.py --check          # runs nothing: are pages, results.json and their sources one?

Figures are kept in results.json, and worded by results.j2, both beside this file.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere
THREADS = "1"  # rounding depends on their number, and the base is trained from random weights

import click  # noqa: E402
from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: E402

import vit_audit as va  # noqa: E402

Figures = dict[str, Any]
STORED = ROOT / "benchmarks" / "results.json"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
SAMPLE = ROOT / "reports" / "sample"
DEMO = "synthetic-expressions"
AUDITS = (DEMO, "synthetic-balanced")
MAKERS = ("audit", "vit_audit", "templates", "datasets")  # what the figures of an audit are made by
MARKED = re.compile(r"(<!-- results:([\w-]+) -->\n).*?(<!-- /results:\2 -->)", re.DOTALL)

# What is quoted of other benchmarks: the figures, and when, where and with what they were made.
QUOTED: dict[str, tuple[str, ...]] = {
    "planted": (
        "models", "false_positive_rate", "false_positive_rate_without_a_gap_gate", "hit_at_1", "power", "coverage",
        "coverage_of_gaps", "auroc", "rivals", "sampled", "made_with",
    ),
    "real_planted": (
        "models", "false_positive_rate", "false_positive_rate_without_a_gap_gate", "planted_mlps", "hit_at_1", "rivals",
        "coverage", "coverage_of_gaps", "written", "trained", "carried", "made_with",
    ),
    "sweep": ("ratio_fastest_peer", "ratio_nnsight_skip", "ratio_floor", "max_abs_diff", "made_with"),
    "faults": (
        "kills", "mutations", "lost", "different", "unclean", "tracebacks", "hangs", "seed", "date", "code", "hardware",
    ),
    "preprocessing": ("cases", "date", "code", "hardware", "versions", "seed", "resamples"),
    "whole_audit": ("float32",),
    "ledgers": ("cases",),
    "scale": ("efficiency_2_workers", "workers", "kills", "audits", "identical_records", "records"),
    "bootstrap": ("date", "code", "hardware", "version", "numpy", "runs", "resamples", "seed", "cost", "labels"),
}  # fmt: skip
# What a benchmark has measured on some machines only: None where there is none.
IF_MEASURED: dict[str, tuple[str, ...]] = {
    "scale": ("memory_ratio_10x", "flat", "ray", "executors"),
    "whole_audit": ("bf16",),
}
OF_ALL = ("right", "fast")  # sections that several benchmarks go into
# How often the tool is wrong, as a report has it beside each claim about a part of the network.
WRONG = ROOT / "templates" / "error_rates.json"
RATES = ("false_positive_rate", "hit_at_1", "coverage")
TRUTH_KNOWN = {"rendered": "planted", "photographs": "real_planted"}
ROWS: dict[str, set[str]] = {
    "accuracy": {"attribute", "group", "images", "accuracy", "balanced_accuracy"},
    "rates": {
        "attribute", "group", "outcome", "images", "positives", "negatives", "true_positives", "false_positives",
        "selection_rate", "true_positive_rate", "false_positive_rate", "accuracy",
    },
    "contrasts": {
        "attribute", "group", "reference", "outcome", "metric", "estimate", "p_adjusted", "smallest_detectable",
        "state", "above_policy", "within_margin", "equivalence_margin", "by_seed",
    },
    "heads": {
        "contrast", "outcome", "name", "direction", "verdict", "confirmation", "confirmation_rate", "share_of_gap",
        "placebo", "discovery_p_adjusted", "confirmation_p_adjusted",
    },
    "joint": {"contrast", "outcome", "heads", "all_heads", "together", "together_rate", "sum_of_singles",
              "beyond_sum", "share_of_gap"},
    "pairs": {"contrast", "outcome", "pairs", "total"},
    "stability": {"contrast", "outcome", "split_half_rank_correlation", "seeds_rank_correlation", "heads"},
    "agreement": {"contrast", "outcome", "design", "rank_correlation"},
}  # fmt: skip
EXECUTORS = {"local": "two local workers", "shards": "shares", "slurm": "SLURM", "ray": "Ray"}
NAMED = {"standardised_gap": "at equal labels", "tpr_gap": "true positives", "fpr_gap": "false positives"}


def of_audit(result: va.Result) -> Figures:
    """Return what is quoted of an audit."""
    record = result.record
    tables = {
        name: [row.model_dump(mode="json", include=fields) for row in getattr(record, name)]
        for name, fields in ROWS.items()
    }
    return {
        "command": record.provenance.command,
        "started": record.provenance.started[:10],
        "hardware": record.provenance.hardware,
        "versions": record.provenance.versions,
        "seeds": record.provenance.seeds,
        "outcome": str(result.outcome),
        "exit_code": int(result.exit_code),
        "controls": {"passed": sum(c.passed for c in result.controls), "of": len(result.controls)},
        "localisation": {name: place.model_dump(mode="json") for name, place in record.localisation.items()},
        "findings": len(result.findings),
        **tables,
    }


def of_benchmark(name: str) -> Figures:
    """Return what is quoted of another benchmark's results.json."""
    path = ROOT / "benchmarks" / name / "results.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    found = {key: whole.get(key) if key == "code" else whole[key] for key in QUOTED[name]}
    return found | {key: whole.get(key) for key in IF_MEASURED.get(name, ())}


def error_rates(stored: Figures) -> Figures:
    """Return how often this tool is wrong where the truth is known, and of which version and day that is."""
    return {
        where: {
            **{rate: stored[name][rate] for rate in RATES},
            "version": stored[name]["made_with"]["versions"]["vit-audit"],
            "date": stored[name]["made_with"].get("date")
            or _git("log", "-1", "--format=%cs", "--", f"benchmarks/{name}/results.json"),
        }
        for where, name in TRUTH_KNOWN.items()
    }


def run_audit(card: str, runs: Path, *, sample: bool) -> Figures:
    """Audit a built-in card, or take its finished run up, and return what is quoted of it."""
    result = va.audit(va.plan(card), runs=runs, command=f"vit-audit run {card}", callback=_tell)
    if card == DEMO and sample:
        share(result)
    return {**of_audit(result), "commit": commit()}


def share(result: va.Result) -> None:
    """Put the shareable copy of a run into reports/sample, and keep what tells about it."""
    shutil.rmtree(SAMPLE, ignore_errors=True)
    result.share(SAMPLE)


def _tell(step: str, done: int, total: int) -> None:
    if done == total == 0:  # a step begins
        click.echo(f"{datetime.datetime.now(tz=datetime.UTC):%H:%M:%S} {step}", err=True)


def commit() -> str:
    """Return the last commit that changed what makes an audit; say so where something of it is not committed."""
    last = _git("log", "-1", "--format=%h", "--", *MAKERS)
    return f"{last}, with changes" if _git("status", "--porcelain", "--", *MAKERS) else last


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def down(value: float | None, digits: int = 0, times: int = 1) -> str:
    """Round down: what speaks for the tool is never made larger."""
    return _rounded(value, digits, times, ROUND_FLOOR)


def up(value: float | None, digits: int = 0, times: int = 1) -> str:
    """Round up: what speaks against the tool, or bounds it from above."""
    return _rounded(value, digits, times, ROUND_CEILING)


def _rounded(value: float | None, digits: int, times: int, way: str) -> str:
    if value is None:
        return "not known"
    return str((Decimal(str(value)) * times).quantize(Decimal(1).scaleb(-digits), rounding=way))


def share_of(estimate: Figures) -> str:
    """Word a share with its interval, which is rounded outwards."""
    low, high = down(estimate["low"], 1, 100), up(estimate["high"], 1, 100)
    return f"{down(estimate['estimate'], 1, 100)}% [{low}, {high}]"


def counted(estimate: Figures) -> str:
    """Word a share of few as a count."""
    if not estimate["n"]:
        return "0 of 0"
    return f"{round(estimate['estimate'] * estimate['n'])} of {estimate['n']}"


def interval(estimate: Figures | None, times: float = 100, digits: int = 1, sign: str = "", unit: str = "") -> str:
    """Word a number with its interval, as a report does."""
    if estimate is None or estimate["value"] is None:
        return ""
    value = f"{estimate['value'] * times:{sign}.{digits}f}{unit}"
    if estimate["low"] is None:
        return value
    return f"{value} [{estimate['low'] * times:.{digits}f}, {estimate['high'] * times:.{digits}f}]"


def p_value(p: float | None) -> str:
    """Word a p value; none is 0."""
    if p is None:
        return ""
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0")


def points(gap: float) -> str:
    """Word a gap in percentage points."""
    return f"{gap * 100:+.1f}"


def correlation(value: float | None) -> str:
    """Word a rank correlation."""
    return "not known" if value is None else f"{value:.2f}"


def largest(heads: Sequence[Figures]) -> list[Figures]:
    """Return the five heads of the largest effects on the confirmation split."""
    return sorted(heads, key=lambda row: -abs(row["confirmation"]["value"]))[:5]


def words() -> Environment:
    """Return the templates, with what they word numbers by."""
    environment = Environment(
        loader=FileSystemLoader(ROOT / "benchmarks"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown
    )
    environment.filters |= {
        "down": down, "up": up, "share": share_of, "counted": counted, "interval": interval, "p": p_value,
        "points": points, "correlation": correlation, "largest": largest, "thousands": "{:,}".format,
    }  # fmt: skip
    environment.globals |= {"named": NAMED, "executors": EXECUTORS}
    return environment


def worded(name: str, stored: Figures) -> str:
    """Return the text between the markers of one name."""
    macro = "audit" if name in AUDITS else name
    about = stored if name in OF_ALL else stored[name]
    text: str = getattr(words().get_template("results.j2").module, macro)(about)
    return text.strip("\n") + "\n"


def filled(page: str, stored: Figures) -> str:
    """Return a page with the text of every section between its markers."""
    return MARKED.sub(lambda found: f"{found[1]}{worded(found[2], stored)}{found[3]}", page)


def differences(stored: Figures) -> Iterator[str]:
    """Say what is not as results.json, or its sources, have it."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if filled(text, stored) != text:
            yield f"{page.relative_to(ROOT)} does not hold what results.json gives"
    for name in QUOTED:
        if stored[name] != of_benchmark(name):
            yield f"results.json has other figures than benchmarks/{name}/results.json: --only {name} takes them over"
    printed = json.loads(WRONG.read_text(encoding="utf-8"))
    if any(printed[w][rate] != stored[name][rate] for w, name in TRUTH_KNOWN.items() for rate in RATES):
        yield f"{WRONG.relative_to(ROOT)} has other figures than results.json"
    of_sample = of_audit(va.open_run(SAMPLE))
    if {key: stored[DEMO][key] for key in of_sample} != of_sample:
        yield f"results.json has other figures of {DEMO} than reports/sample: --sample makes both"


@click.command()
@click.option("--only", type=click.Choice([*AUDITS, *QUOTED]), multiple=True, help="These sections; others stay.")
@click.option("--check", is_flag=True, help="Run and write nothing; exit with 1 where something differs.")
@click.option("--sample", is_flag=True, help=f"Run {DEMO} alone, and make reports/sample of it.")
@click.option("--runs", type=click.Path(path_type=Path), default=ROOT / "reports", help="Where runs are kept.")
def main(only: Sequence[str], runs: Path, *, check: bool, sample: bool) -> None:
    """Collect figures, keep them, and write them into the pages."""
    os.environ.setdefault("OMP_NUM_THREADS", THREADS)  # before torch is imported
    stored: Figures = json.loads(STORED.read_text(encoding="utf-8")) if STORED.is_file() else {}
    if check:
        found = list(differences(stored))
        for fault in found:
            click.echo(fault, err=True)
        sys.exit(bool(found))
    for name in [DEMO] if sample else only or [*AUDITS, *QUOTED]:
        stored[name] = of_benchmark(name) if name in QUOTED else run_audit(name, runs, sample=sample)
    STORED.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    WRONG.write_text(json.dumps(error_rates(stored), indent=1) + "\n", encoding="utf-8")
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), stored), encoding="utf-8")


if __name__ == "__main__":
    main()
