"""Stage: which trained weights put a gap there: hybrids of the balanced reference models and the audited model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from audit.batching import limit_of_memory
from audit.data.pixels import Images
from audit.evidence.stored_rows import StoredRows
from audit.evidence.trained import BETWEEN_REFERENCES, draw_images
from audit.models.adapters.registry import Model
from audit.models.checkpoint import hash_state
from audit.patching.players import are_same, merge, players_of, split_heads
from audit.patching.trained import MOST_IMAGES, Answers, paths, shapley
from audit.pipeline.context import RunContext
from audit.pipeline.in_blocks import block_size, memory_of_block
from audit.pipeline.run_sweeps import audit_rows, with_class_names, with_image_keys
from audit.pipeline.train_models import AuditedModels
from audit.pipeline.write_rows import write_in_turn
from audit.progress import Progress
from audit.records import HybridOrder
from audit.work.pool import run_tasks
from audit.work.tasks import Task, read_results

TRAINED = "effects/trained.parquet"
TRAINED_HEADS = "effects/trained_heads.parquet"
STAGE = "trained"
IN_A_PATH = 1200  # images; a path takes a few forward passes of each, and both orders at most a tenth of an audit
PASSES = 2.0  # recorded passes' worth of memory that an image takes

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Exchange:
    """From which model to which, on which images, and whether in orders or in sets."""

    name: str  # the reference's
    reference: Model
    audited: Model
    rows: Rows
    in_sets: bool
    layer: int | None = None  # whose heads are exchanged one by one

    @property
    def what(self) -> str:
        """What is exchanged, as progress tells it."""
        return "sets" if self.in_sets else "paths" if self.layer is None else "heads"

    def measure(self, images: Images, rows: Rows, outcomes: Mapping[str, int], seed: int) -> pd.DataFrame:
        """Return a row for each image and hybrid."""
        players = players_of(self.audited)
        if self.in_sets:
            same = are_same(self.reference, self.audited, players)
            trained = merge([player for player, is_same in zip(players, same, strict=True) if not is_same])
            found = shapley(self.reference, self.audited, images, trained, outcomes, seed=seed, rows=rows)
            sets = ["".join("1" if taken else "0" for taken in row) for row in found.members]
            drawn = "" if found.orders is None else "|".join(",".join(map(str, order)) for order in found.orders)
            told = {"players": "|".join(found.players), "orders": drawn}
            return _table(self.name, HybridOrder.SHAPLEY, rows, sets, (False,) * len(sets), found.answers, **told)
        if self.layer is not None:
            parted = split_heads(self.audited, players, [self.layer])
            (path,) = paths(self.reference, self.audited, images, [parted], outcomes, rows=rows)
            exchanged = ["", *path.players]
            return _table(self.name, HybridOrder.HEADS, rows, exchanged, (False, *path.same), path.answers)
        both = paths(self.reference, self.audited, images, [players, players[::-1]], outcomes, rows=rows)
        return pd.concat(
            [
                _table(self.name, order, rows, ["", *path.players], (False, *path.same), path.answers)
                for order, path in zip((HybridOrder.INPUT_FIRST, HybridOrder.OUTPUT_FIRST), both, strict=True)
            ],
            ignore_index=True,
        )


def measure_trained(context: RunContext, models: AuditedModels) -> StoredRows | None:
    """Return what hybrids answer to some of the images kept out of training.

    Returns
    -------
    StoredRows or None
        ``recipient``, ``image``, ``reference`` ("balanced-0"; "null": from one reference to another), ``order``,
        ``step`` (the hybrid's place), ``exchanged`` (the player that was exchanged last; of Shapley's sets, 0 or 1 for
        each player), ``players`` and ``orders`` (of Shapley's sets: all players, and the orders where some were drawn),
        ``same`` (whether it has the same weights in both), ``predicted``, and ``called:``, ``p:`` and ``m:<outcome>``.
        None where there is no balanced reference.
    """
    path = context.run / TRAINED
    if path.is_file():
        return StoredRows([path])
    if not models.balanced:
        return None
    return _measured(context, path, _exchanges(context, models))


def measure_heads(context: RunContext, models: AuditedModels, layer: int) -> StoredRows:
    """Return what hybrids answer on the path from input to output, heads of one layer exchanged one by one."""
    path = context.run / TRAINED_HEADS
    if path.is_file():
        return StoredRows([path])
    rows = _drawn(context, models, MOST_IMAGES)
    asked = [
        Exchange(f"balanced-{number}", reference, models.primary, rows, in_sets=False, layer=layer)
        for number, reference in enumerate(models.balanced)
    ]
    return _measured(context, path, asked)


def _measured(context: RunContext, path: Path, asked: Sequence[Exchange]) -> StoredRows:
    planned = [(exchange.what, task) for exchange in asked for task in _plan(context, exchange)]
    for kind in dict.fromkeys(what for what, _ in planned):
        some = [task for what, task in planned if what == kind]
        step = context.step(f"ledger: which trained weights put it there, {kind}")
        run_tasks(some, context.work / STAGE, context.workers, step)
    tables = read_results([task for _, task in planned], context.work / STAGE)
    write_in_turn(path, (with_image_keys(context, with_class_names(t, context.samples.labels)) for t in tables))
    return StoredRows([path])


def _drawn(context: RunContext, models: AuditedModels, most: int) -> Rows:
    """Return some of the images kept out of training, the fewer among the more."""
    frame, every, seed = context.samples.frame, audit_rows(context), context.card.audit.seed
    rows = every[draw_images(frame.loc[every], models.balanced_on, IN_A_PATH, seed)]
    if most < IN_A_PATH:
        rows = rows[draw_images(frame.loc[rows], models.balanced_on, most, seed)]
    return np.asarray(rows, dtype=np.int64)


def _exchanges(context: RunContext, models: AuditedModels) -> list[Exchange]:
    """Return every reference's paths and sets; between the first two references, the paths that show chance."""
    rows, few = (_drawn(context, models, most) for most in (IN_A_PATH, MOST_IMAGES))
    found = []
    for number, reference in enumerate(models.balanced):
        name = f"balanced-{number}"
        found += [Exchange(name, reference, models.primary, rows, in_sets=False)]
        found += [Exchange(name, reference, models.primary, few, in_sets=True)]
    if len(models.balanced) > 1:
        found.append(Exchange(BETWEEN_REFERENCES, models.balanced[0], models.balanced[1], rows, in_sets=False))
    return found


def _plan(context: RunContext, exchange: Exchange) -> list[Task]:
    """Return the blocks of images."""
    size, seed = block_size(context), context.card.audit.seed
    memory, smaller = memory_of_block(size, exchange.audited, PASSES)
    one = exchange.measure(context.pixels, exchange.rows[:1], context.outcomes, seed)
    starts = range(0, len(exchange.rows), size)
    tasks = []
    for number, start in enumerate(starts):
        rows = exchange.rows[start : start + size]
        made_of = {
            "question": context.question,
            "stage": STAGE,
            "models": [hash_state(m.state_dict()) for m in (exchange.reference, exchange.audited)],
            "in_sets": exchange.in_sets,
            "layer": exchange.layer,
            "seed": seed,
            "outcomes": dict(context.outcomes),
            "images": hashlib.sha256(rows.tobytes()).hexdigest(),
            "computed": context.compute.exact.name,
            "memory": limit_of_memory(),
        }
        name = f"{exchange.name}, {exchange.what}, block {number + 1} of {len(starts)}"
        perform = partial(_perform, exchange, context.pixels, rows, context.outcomes, seed)
        answers = len(rows) * len(one)
        tasks.append(Task(name, made_of, answers, answers, perform, memory, smaller, portable=True))
    return tasks


def _perform(
    exchange: Exchange, images: Images, rows: Rows, outcomes: Mapping[str, int], seed: int, *, progress: Progress
) -> pd.DataFrame:
    table = exchange.measure(images, rows, outcomes, seed)
    progress(len(table), len(table))
    return table


def _table(
    name: str,
    order: HybridOrder,
    rows: Rows,
    exchanged: list[str],
    same: tuple[bool, ...],
    answers: Answers,
    *,
    players: str = "",
    orders: str = "",
) -> pd.DataFrame:
    """Return a row for each image and hybrid."""
    images, hybrids = answers.predicted.shape
    values = {"p": answers.probability, "m": answers.log_odds, "called": answers.called}
    return pd.DataFrame(
        {
            "recipient": np.repeat(rows, hybrids),
            "reference": name,
            "order": str(order),
            "step": np.tile(np.arange(hybrids), images),
            "exchanged": np.tile(np.array(exchanged, dtype=object), images),
            "players": players,
            "orders": orders,
            "same": np.tile(np.array(same), images),
            "predicted": answers.predicted.reshape(-1),
            **{f"{kind}:{outcome}": v.reshape(-1) for kind, found in values.items() for outcome, v in found.items()},
        }
    )
