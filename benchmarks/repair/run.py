"""Every method of repair on models whose gap is known, and how often certificates are given at a margin.

    python benchmarks/repair/run.py --work DIR                                  # rendered faces, simulated sealed sets
    python benchmarks/repair/run.py --work DIR --shared FOLDER --case expressions
    python benchmarks/repair/run.py --work DIR --shared FOLDER --case ages        # an hour or more on 2 cores
    python benchmarks/repair/run.py --work DIR --shared FOLDER --case planted     # right heads against random ones
    python benchmarks/repair/run.py --work DIR --case costs                     # seconds on a ViT-S; no file is needed

Writes results.json, the tables and pictures of README.md beside this file, and the tables of docs/repair.md. Audits and
methods that are done are taken up.
"""

from __future__ import annotations

import base64
import datetime
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import click
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

import vit_audit as va  # noqa: E402
from audit import __version__  # noqa: E402
from audit.api.repairing import RepairResult  # noqa: E402
from audit.card.repair_spec import RepairMethod  # noqa: E402
from audit.records import Estimate  # noqa: E402
from audit.records.repair_run import Figures as OnSplit  # noqa: E402
from audit.report.figures import Trade, trade_picture  # noqa: E402
from benchmarks.commits import commit_here  # noqa: E402
from benchmarks.ledgers.run import ages, expressions  # noqa: E402
from benchmarks.pages import write_figures  # noqa: E402
from benchmarks.repair.boundary import boundary_certified, null_gap_certified  # noqa: E402
from benchmarks.repair.costs import SMALL, TABLE, Sizes, costs, costs_told  # noqa: E402
from benchmarks.repair.planted import ground, planted, planted_told  # noqa: E402

Figures = dict[str, Any]
DOCUMENT = ROOT / "docs" / "repair.md"
HELD_BACK = {"train": 0.3, "discovery": 0.1, "confirmation": 0.1, "repair": 0.15, "sealed": 0.35}
HEADS = ("heads_to_reference", "heads_finetuned", "heads_shifted")
# All methods, also the one that needs each person's group when it decides.
REPAIR = {
    "methods": list(get_args(RepairMethod)),
    "candidates": 12,
    "legal_basis": "a benchmark, in which nobody is judged",
}
RENDERED: dict[str, tuple[str, dict[str, Any]]] = {
    "rendered": ("synthetic-expressions", {"association": 0.85, "attribute": "skin_tone", "audit_images": 4800}),
    "rendered, no gap planted": ("synthetic-balanced", {"audit_images": 4800}),
}
PHOTOGRAPHS = {"expressions": expressions, "ages": ages}
MOST_IMAGES = 400  # recipients per split of an audit of photographs; a repair needs its heads, not their rank
HEADER = (
    "| method | gap that is left | accuracy | largest loss, by group and label | gap, sealed | certificate | seconds |"
)
DRAWN = "What each method leaves of the gap, and what it costs"
CASES = (*RENDERED, *PHOTOGRAPHS)
WITHOUT_AUDIT = ("simulated", "costs")
PLANTED = "planted"


def card_of(case: str, shared: Path | None) -> va.Card:
    """Return the card of a case, with most images held back."""
    if case in PHOTOGRAPHS:
        card = PHOTOGRAPHS[case](_needed(shared).resolve()).card
        asked = card.model_dump(exclude_unset=True)
        asked["audit"]["max_images"] = MOST_IMAGES
    else:
        named, rendered = RENDERED[case]
        asked = yaml.safe_load((ROOT / "datasets" / f"{named}.yaml").read_text(encoding="utf-8"))
        asked["data"]["rendered"] = {**asked["data"].get("rendered", {}), **rendered}
    asked["data"]["shares"] = HELD_BACK
    return va.Card.model_validate({**asked, "repair": REPAIR})


def _needed(shared: Path | None) -> Path:
    if shared is None:
        raise click.UsageError("--shared FOLDER is needed: name the folder of the photographs")
    return shared


def repaired(case: str, work: Path, shared: Path | None) -> RepairResult:
    """Audit and repair a case, or take up what is done of it."""
    place = work / drawn_as(case)
    folder = place / "run"
    if (folder / "audit.json").is_file():  # finished, by whatever code: repairs are what is measured
        run = va.open_run(folder)
    else:
        run = va.audit(va.plan(card_of(case, shared)), folder, report=False, callback=_tell)
    return va.repair(run, place / "repair", reaudit=False, report=False, callback=_tell)


def _tell(step: str, done: int, total: int) -> None:
    if done == total == 0:  # a step begins
        click.echo(f"{datetime.datetime.now(tz=datetime.UTC):%H:%M:%S} {step}", err=True)


def told(result: RepairResult) -> Figures:
    """Return what is kept of a repair."""
    record = result.record
    found: Figures = {"state": record.state, "recommended": record.recommended, "audited": _of(record.audited)}
    found["audited_sealed"] = _of(record.audited_sealed)
    if record.plan is not None:
        found["plan"] = {
            "heads": record.plan.heads,
            "images": record.plan.images,
            "margins": record.plan.margins.model_dump(),
        }
    judged = {one.method: one.certificate.state for one in record.certificates}
    found["methods"] = {
        str(row.method): {
            "not_offered": row.not_offered,
            "ranked": _of(row.ranked),
            "sealed": _of(row.sealed),
            "certificate": judged.get(row.method),
            "seconds": row.seconds,
            "settings": row.settings,
        }
        for row in record.rows
    }
    found["random_heads"] = [row.model_dump(mode="json") for row in record.random]
    return found


def _of(figures: OnSplit | None) -> Figures | None:
    return None if figures is None else figures.model_dump(mode="json")


def by_method(cases: Mapping[str, Figures]) -> dict[str, Figures]:
    """Return for every method what it left and cost in each case; of the edits at heads the one that left least."""
    methods: dict[str, Figures] = {}
    for case, found in cases.items():
        rows = dict(found["methods"])
        edits = [rows.pop(name) | {"edit": name} for name in HEADS if name in rows]
        able = [row for row in edits if row["ranked"] is not None]
        if able:
            rows["heads"] = min(able, key=lambda row: abs(row["ranked"]["gap"]["value"]))
        elif edits:
            rows["heads"] = edits[0]
        rows["random_heads"] = {"draws": found["random_heads"]}
        for name, row in rows.items():
            methods.setdefault(name, {})[case] = row
    return methods


def table(results: Figures) -> str:
    """Return the results as Markdown."""
    lines = cases_told(results["cases"])
    lines += [f"![{DRAWN}: {case}]({drawn_as(case)}.svg)\n" for case in results["cases"] if drawn(case, results)]
    for key, what in (
        ("boundary_certified", "at a margin, alpha 5%"),
        ("null_gap_certified", "no gap, planned images, aim 80%"),
    ):
        if key not in results:
            continue
        lines += [
            f"Certificates given, {what}:",
            "",
            "| situation | sets | certified | 95% interval |",
            "|---|---|---|---|",
        ]
        for name, one in results[key]["situations"].items():
            lines.append(f"| {name} | {one['n']:,} | {100 * one['estimate']:.1f}% | {_percent(one)} |")
        lines.append("")
    lines += planted_told(results[PLANTED]) if PLANTED in results else []
    lines += [line for found in results.get("costs", []) for line in costs_told(found)]
    made = [f"{case} {one['date']}, {one['code']}, {one['hardware']}" for case, one in results["made_with"].items()]
    return "\n".join([*lines, f"Date, code (commit) and hardware: {'; '.join(made)}. Seeds are in results.json."])


def cases_told(cases: Mapping[str, Figures]) -> list[str]:
    """Return what every method did in each case as lines of Markdown."""
    lines = []
    for case, found in cases.items():
        if found["audited"] is None:
            lines += [f"**{case}**: {found['state']}.", ""]
            continue
        audited = found["audited"]
        chosen = found["recommended"]
        ended = "No method is a candidate" if chosen is None else f"State of the chosen method, `{chosen}`"
        begun = (
            f"**{case}**: gap {_points(audited['gap'])} on {audited['images']:,} images that methods are ranked on, "
            f"fitted on {found['plan']['images']['fit']:,} others; {_sealed(found)}. "
            f"{ended}: {found['state']}."
        )
        lines += [begun, "", HEADER, "|---|---|---|---|---|---|---|"]
        for name, row in found["methods"].items():
            if row["ranked"] is None:
                lines.append(f"| `{name}` | not offered: {row['not_offered']} | | | | | |")
                continue
            sealed = "" if row["sealed"] is None else _points(row["sealed"]["gap"])
            worst = row["ranked"]["worst"]
            lines.append(
                f"| `{name}` | {_points(row['ranked']['gap'])} | {100 * row['ranked']['accuracy']['value']:.1f}% | "
                f"{100 * worst['change']['value']:+.1f} ({worst['group']}, {worst['label']}) | {sealed} | "
                f"{row['certificate'] or ''} | {row['seconds']:.1f} |"
            )
        for row in found["random_heads"]:
            told, p = "no other set to draw", ""
            if row["draws"]:
                told = f"best {100 * row['smallest']:.1f}, median {100 * row['median']:.1f} of {row['draws']}"
                p = f"p {row['p']:.2f}"
            lines.append(f"| random heads, `{row['method']}` | {told} | | | | {p} | |")
        lines.append("")
    return lines


def drawn(case: str, results: Figures) -> bytes | None:
    """Return a picture (SVG) of what each method leaves in a case, and of what it costs; None where none was run."""
    found = results["cases"][case]
    trades = tuple(
        Trade(
            name,
            Estimate.model_validate(row["ranked"]["gap"]),
            Estimate.model_validate(row["ranked"]["worst"]["change"]),
            name == found["recommended"],
        )
        for name, row in found["methods"].items()
        if row["ranked"] is not None
    )
    margin = found["plan"]["margins"]["accuracy"] if trades else 0.0
    picture = trade_picture(trades, margin, f"{DRAWN}: {case}")
    return None if picture is None else base64.b64decode(picture.light.partition(",")[2])


def drawn_as(case: str) -> str:
    """Return the name of a case as files have it."""
    return case.replace(", ", "-").replace(" ", "-")


def write_pages(results: Figures) -> None:
    """Write tables to the page of this benchmark and to that on repairs, and the pictures."""
    write_figures(HERE / "README.md", table(results))
    write_figures(DOCUMENT, "\n".join(cases_told(results["cases"])))
    for case in results["cases"]:
        picture = drawn(case, results)
        if picture is not None:
            (HERE / f"{drawn_as(case)}.svg").write_bytes(picture)


def _sealed(found: Figures) -> str:
    before, images = found.get("audited_sealed"), f"{found['plan']['images']['sealed']:,} sealed"
    return images if before is None else f"{images}, where it is {_points(before['gap'])}"


def _made_with() -> Figures:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "version": __version__,
        "code": commit_here(),
    }


def _points(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['value']:+.1f} [{100 * estimate['low']:+.1f}, {100 * estimate['high']:+.1f}]"


def _percent(one: Mapping[str, float]) -> str:
    return f"[{100 * one['low']:.1f}, {100 * one['high']:.1f}]"


@click.command()
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("work"), help="Runs and repairs lie there; it resumes."
)
@click.option("--shared", type=click.Path(path_type=Path, exists=True), help="Folder of the photographs.")
@click.option(
    "--case", "only", multiple=True, type=click.Choice([*CASES, PLANTED, *WITHOUT_AUDIT]), help="These; others stay."
)
@click.option("--sets", default=1000, show_default=True, help="Of simulated sealed sets, in each situation.")
@click.option("--json", "out", type=click.Path(path_type=Path), default=HERE / "results.json")
@click.option("--pages", is_flag=True, help="Write tables and pictures from results.json, and measure nothing.")
def main(work: Path, shared: Path | None, only: tuple[str, ...], sets: int, out: Path, *, pages: bool) -> None:
    """Repair, simulate, and write what came out."""
    kept: Figures = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"cases": {}}
    if pages:
        write_pages(kept)
        return
    default = [case for case in CASES if case not in PHOTOGRAPHS or shared is not None]
    for case in only or (*default, *([PLANTED] if shared else []), *WITHOUT_AUDIT):
        if case == PLANTED:
            kept[PLANTED] = planted(ground(_needed(shared).resolve()), work / PLANTED, _tell)
        elif case == "costs":
            kept["costs"] = [costs(Sizes(*images), _tell) for images in (SMALL, TABLE)]
        elif case == "simulated":
            kept |= {"boundary_certified": boundary_certified(sets), "null_gap_certified": null_gap_certified(sets)}
        else:
            kept["cases"][case] = told(repaired(case, work, shared))
        kept.setdefault("made_with", {})[case] = _made_with()
    kept["methods"] = by_method(kept["cases"])
    kept["recommended"] = {case: found["recommended"] for case, found in kept["cases"].items()}
    out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if out == HERE / "results.json":
        write_pages(kept)


if __name__ == "__main__":
    main()
