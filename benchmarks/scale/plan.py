"""What an audit of ten million images with a ViT-H takes, on paper, and what gives way first.

    python benchmarks/scale/plan.py            # writes the tables of docs/scale.md
    python benchmarks/scale/plan.py --check    # ends with 1 where the page says something else

Nothing is measured here. A figure is measured (read from what other benchmarks have stored), counted (by the tool's own
planner, or from the sizes of the model) or assumed (``Assumed``).
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that the script runs from anywhere

import click  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: E402

from audit.card.schema import AuditSpec, ControlsSpec  # noqa: E402
from audit.controls.control_models import FEW, conditions  # noqa: E402
from audit.evidence.sampled import FirstOrder  # noqa: E402
from audit.models.device import DECODERS  # noqa: E402
from audit.patching.sites import trace_bytes  # noqa: E402
from audit.patching.sweep import RECIPIENTS_AT_ONCE  # noqa: E402
from audit.pipeline.patch_heads import LIKELY_SHARE, SweepSize, count_passes  # noqa: E402
from benchmarks.pages import write_figures  # noqa: E402
from benchmarks.sweep.floor import Sizes, bound_flops, pass_flops, sizes_of  # noqa: E402

PAGE = ROOT / "docs" / "scale.md"
SAMPLE = ROOT / "reports" / "sample" / "effects"
IMAGES = 10_000_000
MOST = 20_000  # recipients of a split, where not every image is one
MODEL = "vit_huge_patch14_224"
TIMED = "vit_base_patch16_224"  # whose sweep was timed on an accelerator
TIMED_IMAGES = 64
PHOTOGRAPHS = 9_002  # of benchmarks/whole_audit
SPLITS = 2
BLOCK = 2 * RECIPIENTS_AT_ONCE  # recipients of a task on an accelerator
KINDS = 2  # of donors: cross-group and same-group
FLOAT = 8  # bytes; statistics compute in float64
LEDGER = 4  # bytes that the ledger of who writes holds for each part of an image
LISTS = 4  # of tasks for each split where not all is patched, at least: first order, two looks, one more to be narrow
BACKWARD = 2  # a backward pass, in forward passes
HOUR = 3600.0


@dataclass(frozen=True)
class Assumed:
    """What nobody here has measured, each with its unit."""

    gpu_hour_usd: float = 3.0  # of an H100 80GB, rented
    disk_month_usd: float = 0.1  # a GB
    gpus: int = 64
    efficiency: float = 0.8  # of many GPUs beside one
    planner_gb: int = 512  # memory of the machine on which the run is planned
    planner_hours: float = 24.0  # that a process may run, as schedulers have it
    gpu_gb: int = 80
    files: int = 1_000_000  # in one folder
    ledger_passes: float = 2.0  # that an image takes in the ledger of who writes


@dataclass(frozen=True)
class Measured:
    """What other benchmarks have measured, in their units."""

    operations: float  # a second, of the sweep on an accelerator, float32
    opening: float  # seconds an image, one process with all cores of the machine
    decoding: float  # processor seconds an image
    tests: float  # seconds of statistics for a recipient, head and draw
    intervals: float
    peak: float  # bytes of statistics for a recipient and head
    row: dict[str, float]  # bytes of a row of stored tables
    image: float  # bytes that the planner holds of an image
    patched: float  # share of the patches that was needed on photographs


@dataclass(frozen=True)
class Planned:
    """What one way to audit the images takes."""

    name: str
    recipients: int  # of a split
    patches: float
    planner_hours: float  # of one process, with one accelerator
    gpu_hours: float  # of whoever does tasks
    tasks: int
    stored_gb: float
    memory_gb: float  # of the planner


def sizes(name: str) -> Sizes:
    """Return the sizes of a model, of which no weight is made."""
    with torch.device("meta"):
        return sizes_of(timm.create_model(name))


def measured() -> Measured:
    """Read what was measured."""
    steps = _stored("whole_audit")["float32"]["seconds_by_step"]
    effort = _stored("whole_audit")["float32"]["effort"]
    cuda = json.loads((ROOT / "benchmarks" / "sweep" / "results-cuda.json").read_text(encoding="utf-8"))
    timed = cuda["cases"][f"{TIMED}, {TIMED_IMAGES} images"]["this tool"]["seconds"]
    cost = _stored("bootstrap")["cost"]
    values = cost["recipients"] * cost["heads"]
    page = (ROOT / "benchmarks" / "scale" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"beyond libraries and model.*\| (\d+), in \d+ s of one core \|", page)
    assert found is not None
    return Measured(
        operations=sum(bound_flops(sizes(TIMED), TIMED_IMAGES).values()) / timed,
        opening=steps["opening"][0] / PHOTOGRAPHS,
        decoding=steps["data: decoding images"][1] / PHOTOGRAPHS,
        tests=cost["seconds_tests"] / values / cost["resamples"],
        intervals=cost["seconds_intervals"] / values / cost["resamples"],
        peak=cost["peak_mib"] * 2**20 / values,
        row={name: _row(name) for name in ("samples", "unpatched", "swap-seed-0", "first-order-seed-0", "written")},
        image=float(found[1]),  # MB of a million
        patched=sum(row["patches"] for row in effort) / sum(row["of"] for row in effort),
    )


def _stored(name: str) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((ROOT / "benchmarks" / name / "results.json").read_text(encoding="utf-8"))
    return held


def _row(name: str) -> float:
    """Return the bytes of a row of a table of the sample report."""
    path = SAMPLE / f"{name}.parquet"
    return path.stat().st_size / int(pq.ParquetFile(path).metadata.num_rows)


@dataclass(frozen=True)
class Model:
    """What is counted of the audited model."""

    sizes: Sizes
    forward: float  # operations of one image's pass
    parameters: int
    trace: int  # bytes that one image's recorded pass takes

    @property
    def heads(self) -> int:
        """All of them."""
        return self.sizes.depth * self.sizes.heads


def counted(name: str) -> Model:
    """Count a model's sizes and operations; no weight is made."""
    with torch.device("meta"):
        model = timm.create_model(name)
    found = sizes_of(model)
    parameters = sum(p.numel() for p in model.parameters())
    return Model(found, float(sum(pass_flops(found).values())), parameters, trace_bytes(model))


def plan(name: str, images: int, model: Model, m: Measured, a: Assumed, *, most: int | None, sampled: bool) -> Planned:
    """Plan an audit of a model as it is: one attribute of two groups, one outcome, halves of the images as splits.

    Parameters
    ----------
    most : int or None
        ``audit.max_images``.
    sampled : bool
        Whether ``audit.patches`` is "sampled", which "auto" chooses for so many, rather than "all".
    """
    split = images // SPLITS
    recipients = split if most is None else min(most, split)
    sweeps = [SweepSize(recipients, min((1 + KINDS) * recipients, split))] * SPLITS
    heads = dict.fromkeys(range(model.sizes.depth), model.sizes.heads)
    every, some = count_passes(heads, model.sizes.depth, 1, sweeps, sweeps[1:])
    share = LIKELY_SHARE if sampled else 1.0
    patches = SPLITS * KINDS * recipients * model.heads * share
    estimated = KINDS * recipients * model.heads * (SPLITS if sampled else 1)
    parts = model.heads + model.sizes.depth + 2  # heads, MLPs, embedding, last norm
    hours = model.forward / m.operations / HOUR  # of a pass
    draws = AuditSpec()
    statistics = SPLITS * recipients * model.heads * (draws.permutations * m.tests + draws.bootstrap * m.intervals)
    opened = images * (m.opening + m.decoding / DECODERS) / HOUR
    blocks = SPLITS * math.ceil(recipients / BLOCK)
    rows = {
        "samples": images,
        "unpatched": images,
        "swap-seed-0": patches,
        "first-order-seed-0": estimated,
        "written": images * parts,
    }
    arrays = m.peak + (KINDS * len(fields(FirstOrder)) * FLOAT if sampled else 0)
    return Planned(
        name,
        recipients,
        patches,
        planner_hours=opened + images * hours + statistics / HOUR,
        gpu_hours=(some if sampled else every) * hours + images * a.ledger_passes * hours + controls_hours(model, m),
        tasks=blocks * (LISTS if sampled else 2) + math.ceil(images / BLOCK),
        stored_gb=sum(count * m.row[name] for name, count in rows.items()) / 1e9,
        memory_gb=(images * (m.image + parts * LEDGER) + SPLITS * recipients * model.heads * arrays) / 1e9,
    )


def controls_hours(model: Model, m: Measured) -> float:
    """Return the hours of an accelerator that control models take: trained whole on few rendered images, measured."""
    spec, small = ControlsSpec(), _stored("control_cost")["block_passes"]["all blocks trained, 72 heads"]
    seen = FEW * (3 * spec.base_epochs + len(conditions(False, spec.donor_seeds)) * spec.condition_epochs)
    trained = seen * (1 + BACKWARD) * model.forward
    larger = model.heads * model.sizes.depth / (72 * 12)  # more heads, each with more blocks behind it
    patched = sum(small.values()) * larger * model.forward / model.sizes.depth
    hours: float = (trained + patched) / m.operations / HOUR
    return hours


def walls(model: Model, m: Measured, a: Assumed) -> list[tuple[float, str]]:
    """Return how many images each resource is enough for, where every image is a recipient, the scarcest first."""
    one = plan("", IMAGES, model, m, a, most=None, sampled=True)
    opening = (m.opening + m.decoding / DECODERS) / HOUR
    predicting = model.forward / m.operations / HOUR
    found = [
        (
            IMAGES * a.planner_gb / one.memory_gb,
            f"memory of the process that plans, {a.planner_gb} GB: statistics of all heads",
        ),
        (a.planner_hours / predicting, f"predictions by one process on one accelerator, {a.planner_hours:g} h"),
        (a.planner_hours / opening, f"opening images in one process, {a.planner_hours:g} h"),
        (a.files / 2 * BLOCK * SPLITS, f"files in one folder of `work/`, {a.files:,}: two for each task of a split"),
    ]
    return sorted(found)


def rounded(value: float) -> str:
    """Write a number with two digits that count."""
    if value == 0:
        return "0"
    digits = 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def tables() -> str:
    """Return what stands between the markers of the page."""
    model, m, a = counted(MODEL), measured(), Assumed()
    ways = [
        plan("every image, `patches: all`", IMAGES, model, m, a, most=None, sampled=False),
        plan("every image, `patches: sampled`, as `auto` chooses", IMAGES, model, m, a, most=None, sampled=True),
        plan(f"`max_images: {MOST}`, `patches: sampled`", IMAGES, model, m, a, most=MOST, sampled=True),
    ]
    block = 2 * BLOCK * (1 + KINDS) * model.trace / 1e9
    loader = FileSystemLoader(Path(__file__).parent)
    words = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    words.filters["rounded"] = rounded
    return words.get_template("plan.j2").render(
        name=MODEL,
        model=model,
        small=counted("vit_small_patch16_224"),
        timed=TIMED,
        images=IMAGES,
        most=MOST,
        m=m,
        a=a,
        share=LIKELY_SHARE,
        block=BLOCK,
        block_gb=block,
        fitting=min(BLOCK, 2 ** math.floor(math.log2(BLOCK * a.gpu_gb / block))),
        ways=ways,
        rows=compared(ways, a),
        walls=walls(model, m, a),
        controls_gb=(1 + len(conditions(False, ControlsSpec().donor_seeds))) * model.parameters * 4 / 1e9,
        controls_hours=controls_hours(model, m),
    )


def compared(ways: Sequence[Planned], a: Assumed) -> list[tuple[str, list[float]]]:
    """Return the rows of the table of ways to audit the images."""
    waited = [way.planner_hours + way.gpu_hours / a.gpus / a.efficiency for way in ways]
    hours = [way.planner_hours + way.gpu_hours / a.efficiency for way in ways]
    paid = [a.gpu_hour_usd * used + a.disk_month_usd * way.stored_gb for used, way in zip(hours, ways, strict=True)]
    return [
        ("recipients a split", [way.recipients for way in ways]),
        ("exact patches, millions", [way.patches / 1e6 for way in ways]),
        ("tasks, at least", [way.tasks for way in ways]),
        ("hours of GPUs, for tasks", [way.gpu_hours for way in ways]),
        ("hours of the process that plans", [way.planner_hours for way in ways]),
        (f"hours until the record, {a.gpus} GPUs", waited),
        ("GB stored", [way.stored_gb for way in ways]),
        ("GB of memory where it is planned", [way.memory_gb for way in ways]),
        ("US dollars, a month of storage included", paid),
    ]


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; end with 1 where the page differs.")
def main(*, check: bool) -> None:
    """Write the plan into its page."""
    before = PAGE.read_text(encoding="utf-8")
    text = tables()
    if check:
        sys.exit(0 if text in before else 1)
    write_figures(PAGE, text)


if __name__ == "__main__":
    main()
