"""Sweeps, and what is measured of control models, in pieces: blocks of images that any number of workers does alike."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from audit.batching import PLANNED, batch_size_limit, batches, limit_of_memory
from audit.controls.looks import Found, Measurement
from audit.controls.measure import BATCH, HELD
from audit.data.pixels import Images
from audit.models.adapters.registry import Model
from audit.models.checkpoint import hash_state
from audit.models.device import CPU, Compute
from audit.patching.first_order import BLOCK, GRAPH, sweep_first_order
from audit.patching.parts import Part
from audit.patching.sites import Site, sites_of, trace_bytes
from audit.patching.sweep import RECIPIENTS_AT_ONCE, DonorKind, side_by_side, sweep, sweep_parts, sweep_together
from audit.pipeline.context import RunContext
from audit.progress import Progress
from audit.work.pool import run_tasks
from audit.work.tasks import Task, merge, read_results

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
PATCH = ["position", "layer", "head", "donor_kind"]  # what tells one patch of a sweep from the others
PATCH_OF_SET = ["position", "set", "donor_kind"]  # likewise, of sets of heads
NUMBER = ["name", "image", "place"]  # likewise, one number of a measurement from the others
WITH_MLPS = 4 / 3  # of a pass's memory, where what MLPs add is kept


def do_blocks(context: RunContext, stage: str, tasks: Sequence[Task], progress: Progress) -> Iterator[pd.DataFrame]:
    """Do the tasks of a sweep, and yield their rows block by block.

    ``stage`` names the sweep among those of the run: it is where its pieces are kept until all are done.
    """
    run_tasks(tasks, context.work / stage, context.workers, progress)
    yield from read_results(tasks, context.work / stage)


def plan_sweep(
    context: RunContext,
    stage: str,
    model: Model,
    recipients: Rows,
    donors: Sequence[DonorKind],
    *,
    layers: range,
    images: Images | None = None,
    chosen: Mask | None = None,
    units: Rows | None = None,
    precision: torch.dtype = torch.float32,
) -> list[Task]:
    """Return the tasks of :func:`audit.patching.sweep.sweep`; each holds no more than its own block.

    The images are the audit's where none are given.
    """
    sites = sites_of(model, layers)
    asked = np.ones((len(recipients), len(sites)), dtype=bool) if chosen is None else chosen
    seen = context.pixels if images is None else images
    what = _made_of(context, stage, model, donors, Compute(context.compute.device, precision))
    what |= {"layers": [layers.start, layers.stop]}
    blocks = list(side_by_side(block_size(context), len(recipients), units, np.asarray(asked.any(axis=1))))
    memory, smaller = memory_of_block(block_size(context), model, 1 + len(donors))
    every = _Sweep(model, seen, recipients, donors, layers, context.outcomes, asked, precision)
    tasks = []
    for number, positions in enumerate(blocks):
        patches = int(asked[positions].sum()) * len(donors)
        own = {"block": _hash(np.packbits(asked[positions]), *_images(recipients, donors, positions))}
        name = f"{stage}, block {number + 1} of {len(blocks)}"
        perform = partial(every.block, positions)
        tasks.append(Task(name, what | own, patches, patches, perform, memory, smaller, portable=True))
    return tasks


@dataclass(frozen=True)
class _Sweep:
    """What the blocks of a sweep have in common: thousands of tasks are held, and take their parts when done."""

    model: Model
    images: Images
    recipients: Rows
    donors: Sequence[DonorKind]
    layers: range
    outcomes: Mapping[str, int]
    asked: Mask
    precision: torch.dtype

    def block(self, positions: Rows, *, progress: Progress) -> pd.DataFrame:
        """Patch some of the recipients."""
        table = sweep(
            self.model,
            self.images,
            self.recipients[positions],
            _of_block(self.donors, positions),
            layers=self.layers,
            outcomes=self.outcomes,
            chosen=self.asked[positions],
            precision=self.precision,
            progress=progress,
        )
        return _placed(table, positions)


@dataclass(frozen=True)
class _Jointly:
    """Likewise, of sets of heads or of larger parts, which ``patched`` patches."""

    model: Model
    images: Images
    recipients: Rows
    donors: Sequence[DonorKind]
    outcomes: Mapping[str, int]
    patched: Callable[..., pd.DataFrame]

    def block(self, positions: Rows, *, progress: Progress) -> pd.DataFrame:
        """Patch some of the recipients."""
        some, given = self.recipients[positions], _of_block(self.donors, positions)
        table = self.patched(self.model, self.images, some, given, outcomes=self.outcomes, progress=progress)
        return _placed(table, positions)


@dataclass(frozen=True)
class _Estimates:
    """Likewise, of estimates to first order; so many images at once as a card says."""

    model: Model
    images: Images
    plan: pd.DataFrame
    subjects: Rows
    kinds: Sequence[str]
    layers: range
    outcomes: Mapping[str, int]
    at_most: int | None

    def block(self, positions: Rows, *, progress: Progress) -> pd.DataFrame:
        """Estimate the patches of some of the recipients."""
        some = self.plan.iloc[positions].reset_index(drop=True)
        with nullcontext() if self.at_most is None else batch_size_limit(self.at_most):
            table = sweep_first_order(
                self.model,
                self.images,
                some,
                self.subjects,
                self.kinds,
                layers=self.layers,
                outcomes=self.outcomes,
                progress=progress,
            )
        return _placed(table, positions)


def _placed(table: pd.DataFrame, positions: Rows) -> pd.DataFrame:
    """Give the rows of a block their places among all recipients."""
    return table.assign(position=positions[table["position"]])


def sweep_sets_in_blocks(
    context: RunContext,
    stage: str,
    model: Model,
    recipients: Rows,
    donors: Sequence[DonorKind],
    *,
    sets: Mapping[str, Sequence[Site]],
    units: Rows,
    progress: Progress,
) -> Iterator[pd.DataFrame]:
    """Yield the rows of :func:`audit.patching.sweep.sweep_together` block by block."""
    every = _Jointly(
        model, context.pixels, recipients, donors, context.outcomes, partial(sweep_together, sets=dict(sets))
    )
    what = {"sets": {name: [[s.layer, s.head] for s in sites] for name, sites in sets.items()}}
    tasks = _plan_jointly(context, stage, every, what, units, answers=len(sets), passes=1.0)
    yield from do_blocks(context, stage, tasks, progress)


def sweep_parts_in_blocks(
    context: RunContext,
    stage: str,
    model: Model,
    recipients: Rows,
    donors: Sequence[DonorKind],
    *,
    parts: Sequence[Part],
    units: Rows,
    progress: Progress,
) -> Iterator[pd.DataFrame]:
    """Yield the rows of :func:`audit.patching.sweep.sweep_parts` block by block."""
    every = _Jointly(
        model, context.pixels, recipients, donors, context.outcomes, partial(sweep_parts, parts=list(parts))
    )
    what = {"parts": [str(part) for part in parts]}
    tasks = _plan_jointly(context, stage, every, what, units, answers=2 * len(parts), passes=WITH_MLPS)
    yield from do_blocks(context, stage, tasks, progress)


def _plan_jointly(
    context: RunContext,
    stage: str,
    every: _Jointly,
    what: Mapping[str, object],
    units: Rows,
    *,
    answers: int,
    passes: float,
) -> list[Task]:
    """Return the tasks.

    ``answers`` are those for each recipient and donor, ``passes`` is the memory of a recorded pass over a plain one's.
    """
    about = _made_of(context, stage, every.model, every.donors, context.compute.exact) | dict(what)
    blocks = list(side_by_side(block_size(context), len(every.recipients), units))
    memory, smaller = memory_of_block(block_size(context), every.model, passes * (1 + len(every.donors)))
    tasks = []
    for number, positions in enumerate(blocks):
        patches = len(positions) * len(every.donors) * answers
        own = {"block": _hash(*_images(every.recipients, every.donors, positions))}
        name = f"{stage}, block {number + 1} of {len(blocks)}"
        perform = partial(every.block, positions)
        tasks.append(Task(name, about | own, patches, patches, perform, memory, smaller, portable=True))
    return tasks


def estimate_in_blocks(
    context: RunContext,
    stage: str,
    model: Model,
    plan: pd.DataFrame,
    subjects: Rows,
    kinds: Sequence[str],
    *,
    layers: range,
    outcomes: Mapping[str, int],
    progress: Progress,
) -> Iterator[pd.DataFrame]:
    """Yield the rows of :func:`audit.patching.first_order.sweep_first_order` block by block."""
    donors = [DonorKind(kind, model, plan[kind].to_numpy(dtype=np.int64)) for kind in kinds]
    recipients = plan["recipient"].to_numpy(dtype=np.int64)
    what = _made_of(context, stage, model, donors, context.compute.exact) | {
        "layers": [layers.start, layers.stop],
        "outcomes": dict(outcomes),
    }
    blocks = list(side_by_side(BLOCK, len(plan), plan["unit"].to_numpy(dtype=np.int64)))
    memory, smaller = memory_of_block(block_size(context), model, GRAPH + len(donors))
    at_most, heads = context.card.audit.block, len(sites_of(model, layers))
    every = _Estimates(model, context.pixels, plan, subjects, kinds, layers, outcomes, at_most)
    tasks = []
    for number, positions in enumerate(blocks):
        rows = len(positions) * len(kinds) * heads
        own = {"block": _hash(*_images(recipients, donors, positions))}
        name = f"{stage}, block {number + 1} of {len(blocks)}"
        perform = partial(every.block, positions)
        tasks.append(Task(name, what | own, len(positions), rows, perform, memory, smaller, portable=True))
    yield from do_blocks(context, stage, tasks, progress)


def measure_in_blocks(
    context: RunContext,
    stage: str,
    asked: Sequence[Measurement],
    *,
    made_of: Mapping[str, object],
    progress: Progress,
) -> dict[str, Found]:
    """Return what measurements find, by their names; ``made_of`` is what all of them depend on."""
    planned = {measurement.name: plan_measurement(context, measurement, made_of) for measurement in asked}
    folder, every = context.work / stage, [task for tasks in planned.values() for task in tasks]
    every.sort(key=lambda task: -task.size)  # begun last, a large one would be waited for
    run_tasks(every, folder, context.workers, progress)
    return {m.name: _laid_out(m, merge(planned[m.name], folder, NUMBER)) for m in asked}


def plan_measurement(context: RunContext, measurement: Measurement, made_of: Mapping[str, object]) -> list[Task]:
    """Return the tasks of one of the measurements of :func:`measure_in_blocks`."""
    images, at_once = measurement.images, min(block_size(context), BATCH)
    parts = [images[part] for part in batches(len(images), len(images) if measurement.whole else at_once)]
    width, tasks = sum(map(math.prod, measurement.shapes.values())), []
    drawn = context.card.controls.card == "rendered"  # tasks hold the controls' images, which show nobody
    memory, smaller = memory_of_block(at_once, measurement.model, HELD)
    for number, part in enumerate(parts):
        about = {
            "question": context.question,
            "measured": dict(made_of),
            "name": measurement.name,
            "decided": dict(measurement.made_of),
            "images": [part.start, part.stop],
            "at_once": at_once,
            "memory": limit_of_memory(),
        }
        name = f"{measurement.name}, block {number + 1} of {len(parts)}"
        perform = partial(_measured, measurement, part)
        size, rows = measurement.patches * len(part), width * len(part)
        tasks.append(Task(name, about, size, rows, perform, memory, smaller, portable=drawn))
    return tasks


def _measured(measurement: Measurement, images: range, progress: Progress) -> pd.DataFrame:
    """Return one row for each number."""
    found = measurement.measure(images=images)
    parts = []
    for name, shape in measurement.shapes.items():
        values, width = found[name], math.prod(shape)
        index = {"name": name, "image": np.repeat(images, width), "place": np.tile(np.arange(width), len(images))}
        parts.append(pd.DataFrame({**index, "value": values.reshape(-1)}))
    patches = measurement.patches * len(images)
    progress(patches, patches)
    return pd.concat(parts, ignore_index=True)


def _laid_out(measurement: Measurement, table: pd.DataFrame) -> Found:
    """Return the numbers of a sorted table as arrays."""
    values, n = table.groupby("name")["value"], len(measurement.images)
    return {name: values.get_group(name).to_numpy().reshape(n, *shape) for name, shape in measurement.shapes.items()}


def block_size(context: RunContext) -> int:
    """Return how many recipients a block holds: as the card says, else a constant of the device's kind."""
    default = RECIPIENTS_AT_ONCE if context.compute.device.type == CPU else 2 * RECIPIENTS_AT_ONCE
    return context.card.audit.block or default


def memory_of_block(size: int, model: Model, passes: float) -> tuple[int, str]:
    """Return the bytes that a block of images holds, about, and what to change where there are not so many.

    Twice its recorded passes, and no more than a limit leaves tasks.
    """
    wanted, limit = int(2 * size * passes * trace_bytes(model)), limit_of_memory()
    memory = wanted if limit is None else min(wanted, int(PLANNED * limit))
    if size == 1:
        return memory, "take a smaller model or image_size, or a larger machine"
    return memory, f"plan smaller blocks: audit.block: {size // 2} in the card"


def _made_of(
    context: RunContext, stage: str, model: Model, donors: Sequence[DonorKind], compute: Compute
) -> dict[str, object]:
    """Return what all tasks of a sweep depend on; card, data, code and versions are in the question."""
    models = {id(m): m for m in (model, *(d.model for d in donors))}
    hashes = {key: hash_state(m.state_dict()) for key, m in models.items()}
    return {
        "question": context.question,
        "stage": stage,
        "model": hashes[id(model)],
        "donors": [[d.name, hashes[id(d.model)], d.weights_only] for d in donors],
        "outcomes": dict(context.outcomes),
        "computed": compute.name,
        "memory": limit_of_memory(),
    }


def _of_block(donors: Sequence[DonorKind], positions: Rows) -> list[DonorKind]:
    return [replace(kind, rows=kind.rows[positions]) for kind in donors]


def _images(recipients: Rows, donors: Sequence[DonorKind], positions: Rows) -> list[Rows]:
    """Return which images a block has, as rows of the sample: its places, recipients and donors."""
    return [positions, recipients[positions], *(kind.rows[positions] for kind in donors)]


def _hash(*lists: npt.NDArray[np.generic]) -> str:
    """Return the SHA-256 of lists of numbers: of thousands of blocks nothing longer is held."""
    digest = hashlib.sha256()
    for numbers in lists:
        digest.update(f"{numbers.dtype}{numbers.shape}".encode())
        digest.update(np.ascontiguousarray(numbers).tobytes())
    return digest.hexdigest()
