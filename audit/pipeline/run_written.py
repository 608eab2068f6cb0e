"""Stage: who writes each image's log-odds, over all images kept out of training, in the first seed's model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.batching import limit_of_memory
from audit.data.pixels import Images
from audit.evidence.stored_rows import Rows, StoredRows
from audit.models.adapters.registry import Model
from audit.models.checkpoint import hash_state
from audit.models.transforms import as_input
from audit.patching.contributions import Contributions, NotSummedError, Written
from audit.patching.written import written
from audit.pipeline.context import RunContext
from audit.pipeline.flat_numbers import flattened, numbers_in, restored
from audit.pipeline.in_blocks import block_size, memory_of_block
from audit.pipeline.run_sweeps import audit_rows, with_image_keys
from audit.pipeline.train_models import AuditedModels
from audit.pipeline.write_rows import write_sorted
from audit.progress import Progress
from audit.records import WhyNoLedger
from audit.work.pool import run_tasks
from audit.work.tasks import Task, read_results

WRITTEN = "effects/written.parquet"
STAGE = "written"
NOWHERE = -1  # in place of a layer or a head that a part has not
PASSES = 3.0  # recorded passes' worth of memory that an image takes
NUMBERS = ("values", "log_odds", "logits", "scales", "sums", "counts")
PART_OF_IMAGE = ["position", "place"]


def measure_written(context: RunContext, models: AuditedModels) -> Rows | WhyNoLedger:
    """Return what every part writes into each image's log-odds, counted from the mean over images of its label.

    Returns
    -------
    Rows or WhyNoLedger
        ``recipient``, ``image``, ``place`` (the part's, in the order of the pass), ``part``, ``layer``, ``head`` (-1:
        none), and ``m:<outcome>`` in nats; or why the log-odds of this network are no such sum.
    """
    path = context.run / WRITTEN
    if path.is_file():
        return StoredRows([path])
    model, rows = models.primary, audit_rows(context)
    targets = context.targets[rows]
    try:
        probe = _written(context, model, rows[:1], targets[:1])
    except NotSummedError as refused:
        return refused.reason
    tasks = _plan(context, model, rows, targets, probe)
    folder = context.work / STAGE
    try:
        run_tasks(tasks, folder, context.workers, context.step("ledger: who writes the log-odds"))
    except NotSummedError as refused:  # of an image that is not the first
        return refused.reason
    write_sorted(path, [_tables(context, tasks, rows, targets, probe)], PART_OF_IMAGE)
    return StoredRows([path])


def _written(context: RunContext, model: Model, rows: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> Written:
    return written(model, as_input(model, context.pixels[rows]), context.outcomes, targets)


def _plan(
    context: RunContext, model: Model, rows: npt.NDArray[np.int64], targets: npt.NDArray[np.int64], probe: Written
) -> list[Task]:
    """Return the blocks of images."""
    size = block_size(context)
    digest, tasks = hash_state(model.state_dict()), []
    memory, smaller = memory_of_block(size, model, PASSES)
    starts = range(0, len(rows), size)
    for number, start in enumerate(starts):
        part = slice(start, min(start + size, len(rows)))
        made_of = {
            "question": context.question,
            "stage": STAGE,
            "model": digest,
            "outcomes": dict(context.outcomes),
            "images": hashlib.sha256(rows[part].tobytes()).hexdigest(),
            "computed": context.compute.exact.name,
            "memory": limit_of_memory(),
        }
        images = part.stop - part.start
        name = f"{STAGE}, block {number + 1} of {len(starts)}"
        perform = partial(_numbers_of_block, context.pixels, model, context.outcomes, rows[part], targets[part])
        numbers = numbers_in(_shapes(probe, images, int(targets[part].max()) + 1))
        tasks.append(Task(name, made_of, images, numbers, perform, memory, smaller, portable=True))
    return tasks


def _numbers_of_block(
    images: Images,
    model: Model,
    outcomes: Mapping[str, int],
    rows: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
    *,
    progress: Progress,
) -> pd.DataFrame:
    """Return all that is kept of a block, a number for each row."""
    found = written(model, as_input(model, images[rows]), outcomes, targets)
    progress(len(rows), len(rows))
    return flattened({name: getattr(found, name) for name in NUMBERS})


def _shapes(probe: Written, images: int, labels: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what is kept of a block."""
    parts, outcomes = probe.values.shape[1:]
    return {
        "values": (images, parts, outcomes),
        "log_odds": (images, outcomes),
        "logits": (images, probe.logits.shape[1]),
        "scales": (images, parts),
        "sums": (labels, *probe.sums.shape[1:]),
        "counts": (labels,),
    }


def _read_block(table: pd.DataFrame, probe: Written, targets: npt.NDArray[np.int64]) -> Written:
    """Put together again what was kept of a block."""
    found: dict[str, Any] = dict(restored(table, _shapes(probe, len(targets), int(targets.max()) + 1)))
    return replace(probe, labels=targets, **found | {"counts": found["counts"].astype(np.int64)})


def _tables(
    context: RunContext,
    tasks: Sequence[Task],
    rows: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
    probe: Written,
) -> Iterator[pd.DataFrame]:
    """Yield the rows of the stored table, block by block: first the means of all blocks are taken, then the blocks."""
    folder, size, labels = context.work / STAGE, block_size(context), int(targets.max()) + 1
    sums, counts = np.zeros((labels, *probe.sums.shape[1:])), np.zeros(labels, dtype=np.int64)
    places = [slice(start, start + size) for start in range(0, len(rows), size)]
    for place, table in zip(places, read_results(tasks, folder), strict=True):
        block = _read_block(table, probe, targets[place])
        sums[: len(block.counts)] += block.sums
        counts[: len(block.counts)] += block.counts
    for place, table in zip(places, read_results(tasks, folder), strict=True):
        block = replace(_read_block(table, probe, targets[place]), sums=sums, counts=counts)
        yield with_image_keys(context, _rows_of(block.centred(), rows[place], place.start))


def _rows_of(found: Contributions, rows: npt.NDArray[np.int64], start: int) -> pd.DataFrame:
    """Return one row for each image and part."""
    images, parts = found.values.shape[:2]
    components = found.components
    told = {
        "part": [str(c.kind) for c in components],
        "layer": [NOWHERE if c.layer is None else c.layer for c in components],
        "head": [NOWHERE if c.index is None else c.index for c in components],
    }
    return pd.DataFrame(
        {
            "position": np.repeat(np.arange(start, start + images), parts),
            "recipient": np.repeat(rows, parts),
            "place": np.tile(np.arange(parts), images),
            **{name: np.tile(np.array(values), images) for name, values in told.items()},
            **{f"m:{o}": found.values[..., k].reshape(-1).astype(np.float32) for k, o in enumerate(found.outcomes)},
        }
    )
